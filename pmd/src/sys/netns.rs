//! Network namespaces by name, as `ip netns` makes them.

use std::io;
use std::os::fd::AsFd;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Runs `make` in the network namespace of that name, on a thread of its own; without a name, here. Sockets
/// belong to the namespace that they were made in.
///
/// # Errors
/// When there is no such namespace, or it may not be entered.
pub(crate) fn within<T: Send>(name: Option<&str>, make: impl FnOnce() -> T + Send) -> io::Result<T> {
    let Some(name) = name else { return Ok(make()) };
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the name of a network namespace"));
    }
    let place = std::fs::File::open(format!("/run/netns/{name}"))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            move_into_link_name_space(place.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(make())
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
