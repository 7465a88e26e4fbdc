//! What our buffers are made of.

use hugepages::{Backing, Map, MapError, PageSize};

use crate::Error;

/// Bytes that must be had for huge pages to be used: frames of one core and a few queues.
const ENOUGH: usize = 64 << 20;

/// Huge pages of 2 MiB where enough are free; ordinary ones otherwise, and the line that says why and
/// what to do.
///
/// # Errors
/// When there is no memory at all.
pub(crate) fn choose(no_huge: bool) -> Result<(Backing, Option<String>), Error> {
    let base = Backing { page: PageSize::Base, node: None };
    if no_huge {
        return Ok((base, None));
    }
    match Map::shared(ENOUGH, Backing::default()) {
        Ok(_) => Ok((Backing::default(), None)),
        Err(why @ MapError::NoHugePages { .. }) => {
            Ok((base, Some(format!("ordinary pages are used: {why}"))))
        }
        Err(e) => Err(e.into()),
    }
}
