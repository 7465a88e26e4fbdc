//! vhost-user, device side.

#[allow(dead_code)]
pub(crate) mod door;
#[allow(dead_code)]
pub(crate) mod queue;
