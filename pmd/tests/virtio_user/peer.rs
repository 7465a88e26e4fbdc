//! `dpdk-testpmd` as a peer, run for the length of a test.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The socket of the peer of that name.
pub(crate) fn socket_of(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("hotring-{}-{name}.sock", std::process::id()))
}

/// A running `dpdk-testpmd`; killed when dropped.
pub(crate) struct Testpmd {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
    client: bool,
}

impl Testpmd {
    /// One `net_vhost` port that swaps MAC addresses and sends back. `None`, and a line that says so,
    /// where DPDK is not installed.
    pub(crate) fn vhost(name: &str, queues: u16, vdev: &str) -> Option<Testpmd> {
        let socket = socket_of(name);
        let log = socket.with_extension("log");
        let client = vdev.contains("client=1");
        if !client {
            let _ = fs::remove_file(&socket);
        }
        let iface = format!("net_vhost0,iface={},queues={queues}{vdev}", socket.display());
        let prefix = format!("hotring-{name}-{}", std::process::id());
        let mut command = Command::new("dpdk-testpmd");
        command
            .args(["-l", "0,1", "--no-pci", "--in-memory", "-m", "128", "--file-prefix", &prefix])
            .args(["--vdev", &iface, "--", "-i", "--forward-mode=macswap", "--total-num-mbufs=16384"])
            .args([format!("--rxq={queues}"), format!("--txq={queues}")])
            .args(["--max-pkt-len=9200", "--tx-offloads=0x8000"])
            .stdin(Stdio::piped())
            .stdout(File::create(&log).unwrap())
            .stderr(File::create(log.with_extension("err")).unwrap());
        let child = match command.spawn() {
            Ok(child) => child,
            Err(e) => {
                println!("skipped: dpdk-testpmd cannot be run ({e}); apt-get install dpdk");
                return None;
            }
        };
        let mut peer = Testpmd { child, socket, log, client };
        peer.say("start");
        peer.wait_for_socket();
        Some(peer)
    }

    /// Its socket.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Types a command at its prompt.
    pub(crate) fn say(&mut self, command: &str) {
        writeln!(self.child.stdin.as_mut().expect("piped"), "{command}").expect("testpmd reads");
    }

    fn wait_for_socket(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.socket.exists() {
            assert!(self.child.try_wait().unwrap().is_none() && Instant::now() < deadline, "{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn log(&self) -> String {
        let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
        format!("dpdk-testpmd: {}\n{}", read(&self.log), read(&self.log.with_extension("err")))
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        for path in [&self.log, &self.log.with_extension("err")] {
            let _ = fs::remove_file(path);
        }
        if !self.client {
            let _ = fs::remove_file(&self.socket);
        }
    }
}
