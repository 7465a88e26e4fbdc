//! Targets of the fuzzers that reach what is not public: functions of bytes that panic when a promise is broken.
//! `fuzz/` wraps them, and tests run what its fuzzers kept.

pub use crate::port::memif::lies::run as memif;
pub use crate::port::nic::lies::run as nic;
pub use crate::port::vhost::lies::run as control_queue;
pub use crate::port::virtio_user::lies::run as virtio_user;

#[cfg(test)]
mod tests {
    include!("../../fuzz/replay.rs");

    #[test]
    fn nics_that_lie() {
        replay("nic", super::nic);
    }

    #[test]
    fn control_queues_of_all_kinds() {
        replay("control_queue", super::control_queue);
    }

    #[test]
    fn memif_peers_that_lie() {
        replay("memif", super::memif);
    }

    #[test]
    fn back_ends_that_lie() {
        replay("virtio_user", super::virtio_user);
    }
}
