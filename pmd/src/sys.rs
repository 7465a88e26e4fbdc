//! Every system call of the data plane.

pub(crate) mod aio;
pub(crate) mod bpf;
pub(crate) mod confine;
pub(crate) mod cycles;
#[allow(dead_code)]
pub(crate) mod eventfd;
pub(crate) mod netns;
pub(crate) mod packet;
pub(crate) mod tap;
pub(crate) mod vfio;
pub(crate) mod xsk;
