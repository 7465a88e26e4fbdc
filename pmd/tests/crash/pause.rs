//! A process that is stopped for longer than a message may wait for a ring, and goes on.

use rustix::process::{Pid, Signal, kill_process};

use super::*;

/// Longer than a message waits, which is two seconds.
const PAUSE: Duration = Duration::from_millis(2500);

#[test]
fn a_pause_is_no_wait() {
    let path = std::env::temp_dir().join(format!("hotring-{}-pause", std::process::id()));
    let mut device = Command::new(std::env::current_exe().unwrap());
    // Its core answers within a third of a second, if it may run.
    device.args(["--exact", "device", "--nocapture"]).env(SOCKET, &path).env(SLEEP, "30");
    let mut device = device.stdout(Stdio::null()).spawn().unwrap();
    let mut guest = Guest::<Packed>::new(v::F_VERSION_1 | v::F_RING_PACKED);
    let front = guest.connect(&path);
    let pid = Pid::from_child(&device);
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| front.get_vring_base(0));
        std::thread::sleep(Duration::from_millis(50));
        kill_process(pid, Signal::STOP).unwrap();
        std::thread::sleep(PAUSE);
        kill_process(pid, Signal::CONT).unwrap();
        asked.join().unwrap().expect("the ring comes home: nobody had the time to be late");
    });
    device.kill().unwrap();
    device.wait().unwrap();
}
