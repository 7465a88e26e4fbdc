//! What a process gives up once it is set up: an attacker who takes it over has no more than it needs.
//!
//! [`User::assume`] leaves root, and with it all capabilities; [`only_needed_calls`] rules out new privileges
//! for good, programs, and all system calls but those that forwarding, and ports that come and go, take. Both
//! hold for every thread there is, and for those that come.

use std::io;

use crate::sys::confine as sys;

/// Why something could not be given up.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// No such user.
    #[error("no user {0:?} in /etc/passwd; name one that is, or give UID:GID")]
    NoUser(String),
    /// The kernel refused.
    #[error("{what}: {source}")]
    Os {
        /// The step that failed.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// No filter could be made, or it could not be put in force.
    #[error("filter of system calls: {0}; is seccomp built into this kernel?")]
    Filter(String),
}

/// A user and its main group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// Number of the user.
    pub uid: u32,
    /// Number of the group.
    pub gid: u32,
}

impl User {
    /// The user of that name in `/etc/passwd`, or of those numbers, `UID:GID`.
    ///
    /// # Errors
    /// [`ConfineError::NoUser`].
    pub fn find(name: &str) -> Result<User, ConfineError> {
        let known = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        User::among(name, &known).ok_or_else(|| ConfineError::NoUser(name.to_owned()))
    }

    fn among(name: &str, known: &str) -> Option<User> {
        if let Some((uid, gid)) = name.split_once(':')
            && let (Ok(uid), Ok(gid)) = (uid.parse(), gid.parse())
        {
            return Some(User { uid, gid });
        }
        // passwd(5): name:password:UID:GID:...
        known.lines().find_map(|line| {
            let mut fields = line.split(':');
            let found = fields.next() == Some(name) && !name.is_empty();
            let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
            found.then_some(User { uid, gid })
        })
    }

    /// Goes on as this user, in its main group and no other, without any capability.
    ///
    /// # Errors
    /// [`ConfineError::Os`]: only root can.
    pub fn assume(self) -> Result<(), ConfineError> {
        sys::assume(self.uid, self.gid).map_err(|(what, source)| ConfineError::Os { what, source })
    }
}

/// From now on, no thread of the process can gain privileges, run a program, or make a system call that is not
/// in the list of `sys/confine.rs`: it fails with `EPERM`.
///
/// # Errors
/// [`ConfineError::Filter`].
pub fn only_needed_calls() -> Result<(), ConfineError> {
    sys::filter().map_err(ConfineError::Filter)
}

#[cfg(all(test, not(miri)))]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn users_by_name_and_number() {
        let known = "root:x:0:0:root:/root:/bin/sh\nbroken\nvm:x:64:107::/:/bin/false\n";
        assert_eq!(User::among("vm", known), Some(User { uid: 64, gid: 107 }));
        assert_eq!(User::among("64055:107", known), Some(User { uid: 64055, gid: 107 }));
        for unknown in ["", "v", "64", "64:", "a:b", "broken"] {
            assert_eq!(User::among(unknown, known), None, "{unknown}");
        }
    }

    /// In a process of its own: what was given up stays so.
    #[test]
    fn what_is_given_up_is_gone() {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "confine::tests::gives_up_here", "--nocapture"]).env("HOTRING_CONFINE", "1");
        let out = child.stderr(Stdio::piped()).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }

    fn status(thread: &str, key: &str) -> String {
        let status = std::fs::read_to_string(format!("/proc/self/task/{thread}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn gives_up_here() {
        if std::env::var_os("HOTRING_CONFINE").is_none() {
            return;
        }
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || wait.recv().unwrap_err());
        let root = rustix::process::geteuid().is_root();
        if root {
            User { uid: 65534, gid: 65534 }.assume().unwrap();
        }
        only_needed_calls().unwrap();
        for task in std::fs::read_dir("/proc/self/task").unwrap() {
            let thread = task.unwrap().file_name().into_string().unwrap();
            assert_eq!(status(&thread, "NoNewPrivs:"), "1");
            assert_eq!(status(&thread, "Seccomp:"), "2");
            if root {
                assert_eq!(status(&thread, "Uid:"), "65534 65534 65534 65534");
                assert_eq!(status(&thread, "CapEff:"), "0000000000000000");
                assert_eq!(status(&thread, "CapPrm:"), "0000000000000000");
            }
        }
        let denied = |e: io::Error| e.raw_os_error() == Some(libc::EPERM);
        assert!(Command::new("/bin/true").status().is_err_and(denied), "a program was run");
        assert!(
            rustix::net::socket(rustix::net::AddressFamily::INET6, rustix::net::SocketType::STREAM, None)
                .is_err()
        );
        assert!(User { uid: 0, gid: 0 }.assume().is_err());
        // What is needed goes on: threads, memory, eventfds, sockets.
        std::thread::spawn(|| assert!(crate::sys::eventfd::EventFd::shared().is_ok())).join().unwrap();
        let backing = hugepages::Backing { page: hugepages::PageSize::Base, node: None };
        hugepages::Map::shared(1 << 20, backing).unwrap();
        drop(go);
        other.join().unwrap();
    }
}
