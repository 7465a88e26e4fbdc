//! vhost-user, device side.

#[allow(dead_code)]
pub(crate) mod door;
#[allow(dead_code)]
pub(crate) mod queue;
#[allow(dead_code)]
mod deliver;
#[allow(dead_code)]
mod receive;
#[allow(dead_code)]
pub(crate) mod wire;
