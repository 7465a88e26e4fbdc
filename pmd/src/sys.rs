//! Every system call of the data plane.

#[allow(dead_code)]
pub(crate) mod eventfd;
