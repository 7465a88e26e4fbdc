//! Targets of the fuzzers that reach what is not public: functions of bytes that panic when a promise is broken.
//! `fuzz/` wraps them, and tests run what its fuzzers kept.

pub use crate::port::nic::lies::run as nic;
pub use crate::port::vhost::lies::run as control_queue;

#[cfg(test)]
mod tests {
    #[track_caller]
    fn replay(name: &str, run: fn(&[u8])) {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/").to_owned() + name;
        let mut inputs = 0;
        for file in std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{folder}: {e}")) {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            run(&bytes);
            run(&bytes[..bytes.len() / 2]);
            inputs += 1;
        }
        assert!(inputs > 0, "{folder} is empty");
    }

    #[test]
    fn nics_that_lie() {
        replay("nic", super::nic);
    }

    #[test]
    fn control_queues_of_all_kinds() {
        replay("control_queue", super::control_queue);
    }
}
