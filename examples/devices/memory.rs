//! What our buffers are made of.

use hugepages::{Backing, Map, MapError, PageSize};

use super::Error;

/// Bytes that must be had for huge pages to be used: frames of one core and a few queues.
const ENOUGH: usize = 64 << 20;

/// The pages that are wanted, where enough of them are free; ordinary ones otherwise, and the line that
/// says why and what to do.
///
/// # Errors
/// When there is no memory at all, or not on that node.
pub fn choose(wanted: Backing) -> Result<(Backing, Option<String>), Error> {
    let base = Backing { page: PageSize::Base, ..wanted };
    match Map::shared(ENOUGH, wanted) {
        Ok(_) => Ok((wanted, None)),
        Err(why @ MapError::NoHugePages { .. }) => {
            Ok((base, Some(format!("ordinary pages are used: {why}"))))
        }
        Err(e) => Err(e.into()),
    }
}
