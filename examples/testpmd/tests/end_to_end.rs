//! The program as scripts use it: commands through a pipe, text and JSON out, an exit code.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// testpmd with its standard input and output in our hands.
struct Testpmd {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

fn command(args: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_testpmd"));
    command.args(args.split_whitespace()).arg("--no-huge").env_remove("RUST_LOG");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs it to its end, without input.
fn run(args: &str) -> Output {
    command(args).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

impl Testpmd {
    fn start(args: &str) -> Testpmd {
        let mut child = command(args).spawn().unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut testpmd = Testpmd { child, input, output };
        testpmd.answer();
        testpmd
    }

    /// What it says up to the next prompt.
    fn answer(&mut self) -> String {
        let mut out = Vec::new();
        while !out.ends_with(b"testpmd> ") {
            assert!(self.output.read_until(b' ', &mut out).unwrap() > 0, "{}", text(&out));
        }
        text(&out[..out.len() - b"testpmd> ".len()])
    }

    /// Obeys a command; its answer, without the echo.
    fn ask(&mut self, line: &str) -> String {
        writeln!(self.input, "{line}").unwrap();
        let answer = self.answer();
        let (echo, rest) = answer.split_once('\n').unwrap();
        assert_eq!(echo, line);
        rest.to_owned()
    }

    /// Asks until the answer contains `words`.
    fn wait(&mut self, line: &str, words: &str) -> String {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let answer = self.ask(line);
            if answer.contains(words) {
                return answer;
            }
            assert!(Instant::now() < deadline, "no '{words}' in:\n{answer}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn quit(mut self) {
        writeln!(self.input, "quit").unwrap();
        drop(self.input);
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut self.output, &mut rest).unwrap();
        assert!(rest.ends_with("\nBye...\n"), "{rest}");
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }
}

const LOOP: &str = "--vdev generator0,count=20000,check=1,size=200 --port-topology=loop -i";

#[test]
fn forwards_exactly_what_is_received_in_every_mode_that_keeps_packets() {
    let mut t = Testpmd::start(LOOP);
    for mode in ["io", "noisy", "csum"] {
        assert_eq!(t.ask(&format!("set fwd {mode}")), format!("Set {mode} packet forwarding mode\n"));
        assert!(
            t.ask("start").starts_with(&format!("{mode} packet forwarding - ports=1 - cores=1 - streams=1"))
        );
        let xstats = t.wait("show port xstats 0", "\nreturned: 20000\n");
        for words in ["\nlost: 0\n", "\nduplicated: 0\n", "\nreordered: 0\n", "\ndamaged: 0\n"] {
            assert!(xstats.contains(words), "{mode}: {xstats}");
        }
        let report = t.ask("stop");
        for words in [
            "  RX-packets: 20000          RX-dropped: 0             RX-total: 20000\n",
            "  TX-packets: 20000          TX-dropped: 0             TX-total: 20000\n",
        ] {
            assert!(report.contains(words), "{mode}: {report}");
        }
        assert!(report.ends_with("\nDone.\n"), "{report}");
        assert!(t.ask("show rings").contains("P=0/Q=0: lent=0 - held=0\n"));
        // A port that starts anew counts anew.
        t.ask("port stop 0");
        t.ask("port start 0");
    }
    t.quit();
}

#[test]
fn commands_answer_as_dpdks_do() {
    let mut t = Testpmd::start("-l 0 --no-pci --vdev net_null0 --vdev net_null1,no-rx=1 -- -i --burst=16");
    assert!(t.ask("show port summary all").starts_with(
        "Number of available ports: 2\nPort MAC Address       Name         Driver         Status   Link\n0    02:"
    ));
    for (line, answer) in [
        ("stop", "Packet forwarding not started\n"),
        ("bogus command", "Command not found\n"),
        ("set burst 64", "Number of packets per burst set to 64\n"),
        ("set burst 1000", "nb pkt per burst: 1000 > 256 (maximum packet per burst)  ignored\n"),
        ("set nbcore 9", "nb fwd cores 9 > 1 (max. number of configured lcores) - ignored\n"),
        ("set txpkts 9", "total packet length=9 < 42 - give up\n"),
        ("set txpkts 64,128", ""),
        ("show config txpkts", "Number of segments: 2\nSegment sizes: 64,128\nSplit packet: off\n"),
        ("show config cores", "List of forwarding lcores:  0\n"),
        ("show port stats 7", "Invalid port 7\nThe valid ports array is [ 0 1 ]\n"),
        ("set verbose 1", "Change verbose level from 0 to 1\n"),
        ("set verbose 0", "Change verbose level from 1 to 0\n"),
        ("port detach 1", "Removing a device...\nPort not stopped\n"),
        ("port attach null0", "Attaching a new port...\nport net_null0 exists already\n"),
        ("port attach null2", "Attaching a new port...\nPort 2 is attached. Now total ports is 3\nDone\n"),
        ("start", "Not all ports were started\n"),
        ("set nbport 2", "Number of forwarding ports set to 2\n"),
        ("clear port stats 0", "\n  NIC statistics for port 0 cleared\n"),
        ("port config all rxq 2", "Please stop all ports first\n"),
    ] {
        assert_eq!(t.ask(line), answer, "{line}");
    }
    assert!(
        t.ask("start").contains("  RX P=0/Q=0 (socket 0) -> TX P=1/Q=0 (socket 0) peer=02:00:00:00:00:01\n")
    );
    assert_eq!(t.ask("start"), "Packet forwarding already started\n");
    assert!(t.ask("port stop 0").contains("Please remove port 0 from forwarding configuration.\n"));
    t.ask("stop");
    assert_eq!(t.ask("port stop all"), "Stopping ports...\nChecking link statuses...\nDone\n");
    assert!(t.ask("port config all rxq 2").is_empty() && t.ask("port config all txq 2").is_empty());
    t.ask("port start all");
    assert!(t.ask("show config fwd").contains("Logical Core 0 (socket 0) forwards packets on 4 streams:"));
    t.quit();
}

#[test]
fn queues_spread_over_cores_and_move() {
    let mut t = Testpmd::start(
        "--lcores 0@0,1@0,2@0 --vdev generator0,count=8000,check=1,flows=8 --vdev generator1,count=8000,check=1 \
         -- -i --rxq=4 --txq=4 --nb-cores=2 --port-topology=loop",
    );
    for cores in [2, 1, 2] {
        t.ask(&format!("set nbcore {cores}"));
        let config = t.ask("start");
        assert!(config.contains(&format!("ports=2 - cores={cores} - streams=8")), "{config}");
        t.wait("show port xstats 0", "\nreturned: 8000\n");
        t.wait("show port xstats 1", "\nlost: 0\n");
        assert!(
            t.ask("stop")
                .contains("------- Forward Stats for RX Port= 0/Queue= 3 -> TX Port= 0/Queue= 3 -------")
        );
        t.ask("port stop all");
        t.ask("port start all");
    }
    t.quit();
}

#[test]
fn json_is_all_there_is_and_numbers_add_up() {
    let out = run("--vdev generator0,count=5000 --vdev null1,no-rx=1 --duration 1 --stats-period 1 --json");
    let lines: Vec<serde_json::Value> =
        text(&out.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (first, last) = (&lines[0], &lines[lines.len() - 1]);
    assert_eq!((&first["event"], &last["event"]), (&"period".into(), &"end".into()));
    assert_eq!(last["ports"][0]["rx_packets"], 5000);
    assert_eq!(last["ports"][1]["tx_packets"], 5000);
    assert_eq!(last["ports"][1]["tx_dropped"], 0);
    assert!(last["seconds"].as_f64().unwrap() >= 1.0);
    assert_eq!(out.status.code(), Some(0));
}

#[test]
fn text_statistics_come_each_period() {
    let out = run("--vdev generator0,count=5000 --vdev null1,no-rx=1 --duration 1.2 --stats-period 1");
    let text = text(&out.stdout);
    assert_eq!(text.matches("\nPort statistics ====================================\n").count(), 2);
    assert!(text.contains("  RX-packets: 5000       RX-missed: 0          RX-bytes:  320000\n"), "{text}");
    assert!(!text.contains('\x1b'), "a pipe is not cleared");
}

#[test]
fn mistakes_are_one_line_and_exit_code_1() {
    for (args, message) in [
        ("--bogus", "testpmd: unexpected argument '--bogus' found\n"),
        ("--vdev foo0", "no kind of port 'foo0'"),
        ("--vdev null0 --forward-mode=fast", "[possible values: io, mac"),
        ("--vdev null0 -l 0,1 --nb-cores=2", "testpmd: --nb-cores=2: allowed: 1 to 1"),
        ("--vdev null0 -l 0@4000", "CPU 4000 is not one this process may use; allowed: 0"),
        ("--vdev pcap0,rx_pcap=/nonexistent.pcap", "/nonexistent.pcap"),
        ("--vdev memif0,role=king", "--vdev net_memif0: role=king is none of client, server"),
        ("--vdev memif0,socket-abstract=maybe", "socket-abstract=maybe is none of yes, no"),
        (
            "--vdev memif0,role=server,socket=/nonexistent/s,socket-abstract=no",
            "cannot listen on memif socket",
        ),
        ("--vdev af_packet0,iface=nonexistent", "interface nonexistent: ip link shows"),
        ("--vdev af_packet0,iface=lo,blocksz=131073", "blocksz= is a power of two"),
        ("--vdev tap0,netns=nonexistent", "netns=nonexistent: ip netns list"),
        ("--vdev tap0,fd=99999", "fd=99999: not a queue of a TAP interface"),
        ("--vdev null0,queues=1 --rxq 2", "can't be greater than max_rxqs (1) of port 0"),
        ("--config /nonexistent.toml", "testpmd: --config /nonexistent.toml: No such file"),
    ] {
        let out = run(args);
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{args}: {said}");
        assert!(said.contains(message) && said.trim_end().lines().count() == 1, "{args}: {said}");
    }
    let out = run("--help");
    assert!(out.status.success() && text(&out.stdout).contains("Examples:"));
}

#[test]
fn a_signal_ends_it_cleanly() {
    for signal in ["INT", "TERM"] {
        for args in ["--vdev null0 --stats-period 1", "--vdev null0 -i -a"] {
            let mut child = command(args).spawn().unwrap();
            let mut output = BufReader::new(child.stdout.take().unwrap());
            let mut line = String::new();
            while !line.contains("TX offloads=0x0 - TX RS bit threshold=0") {
                line.clear();
                assert!(output.read_line(&mut line).unwrap() > 0);
            }
            let kill = Command::new("kill").args(["-s", signal, &child.id().to_string()]).status();
            assert!(kill.unwrap().success());
            let mut rest = String::new();
            std::io::Read::read_to_string(&mut output, &mut rest).unwrap();
            assert!(rest.contains("Forward statistics for port 0") && rest.ends_with("Bye...\n"), "{rest}");
            assert_eq!(child.wait().unwrap().code(), Some(0));
        }
    }
}

/// A folder of this test's own, gone with it.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("testpmd-test-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What a process has given up, and every thread of it.
fn confinement(pid: u32, another_user: bool) {
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        assert!(status.contains("\nSeccomp:\t2\n") && status.contains("\nNoNewPrivs:\t1\n"), "{status}");
        let nobody =
            ["\nUid:\t65534\t65534\t65534\t65534\n", "\nCapEff:\t0000000000000000\n", "\nGroups:\t65534"];
        assert!(!another_user || nobody.iter().all(|line| status.contains(line)), "{status}");
    }
}

#[test]
fn a_guest_gets_all_its_frames_back_from_a_vhost_port() {
    let folder = Folder::new("vhost");
    let root = rustix::process::geteuid().is_root();
    let user = if root { "--user 65534:65534" } else { "--confine" };
    for (keys, client, confined) in [
        ("", 0, ""),
        ("packed_vq=1", 0, user),
        ("mrg_rxbuf=0,in_order=0", 1, "--confine"),
        ("packed_vq=1", 1, ""),
    ] {
        let socket = folder.0.join(format!("s{client}"));
        let (path, server) = (socket.display(), client);
        let back =
            format!("--vdev net_vhost0,iface={path},client={client} -i -a --port-topology=loop {confined}");
        let front = format!(
            "--vdev generator0,count=2000,rate=20000,check=1,size=700 \
             --vdev net_virtio_user1,path={path},server={server},queue_size=2048,{keys} -i"
        );
        let (mut guest, mut vhost);
        if client == 0 {
            vhost = Testpmd::start(&back);
            guest = Testpmd::start(&front);
        } else {
            guest = Testpmd::start(&front);
            vhost = Testpmd::start(&back);
        }
        guest.wait("show port info 1", "\nLink status: up\n");
        vhost.wait("show vhost", " - connected - ");
        if !confined.is_empty() {
            confinement(vhost.child.id(), root && confined == user);
        }
        // Queues look for their rings once in a millisecond while nothing is forwarded.
        std::thread::sleep(Duration::from_millis(200));
        guest.ask("start");
        let xstats = guest.wait("show port xstats 0", "\nreturned: 2000\n");
        for words in ["\nlost: 0\n", "\nduplicated: 0\n", "\ndamaged: 0\n", "\nforeign: 0\n"] {
            assert!(xstats.contains(words), "{keys}: {xstats}");
        }
        assert!(vhost.ask("show port stats 0").contains("  RX-packets: 2000 "));
        // The guest goes, and the port waits for the next.
        guest.quit();
        vhost.wait("show vhost", " - waits for its peer - ");
        assert!(vhost.ask("stop").contains("TX-dropped: 0 "));
        assert!(vhost.ask("show rings").contains("P=0/Q=0: lent=0 - held=0\n"));
        vhost.quit();
        // Another user may not remove what is in our folder.
        assert!(!socket.exists() || confined.starts_with("--user"), "the socket is removed");
        let _ = std::fs::remove_file(&socket);
    }
}

#[test]
fn the_demo_needs_nothing() {
    let out = run("--duration 1.5");
    let said = text(&out.stdout);
    assert_eq!(out.status.code(), Some(0), "{said}{}", text(&out.stderr));
    for words in
        ["Demo: two guests", " s   guest 0 -> guest 1 ", "  guest 1 -> guest 0: sent ", "Mpps; ring full"]
    {
        assert!(said.contains(words), "no '{words}' in {said}");
    }
    assert!(!said.contains("received 0, "), "{said}");
}

#[test]
fn ports_around_ports_do_what_they_are_asked() {
    let folder = Folder::new("around");
    let (record, trace) = (folder.0.join("r.pcap"), folder.0.join("t.txt"));
    let out = run(&format!(
        "--vdev generator0,count=100,record={},tracer={} --vdev null1,no-rx=1,fault=drop:1 --duration 1",
        record.display(),
        trace.display()
    ));
    let said = text(&out.stdout);
    assert_eq!(out.status.code(), Some(0), "{said}{}", text(&out.stderr));
    assert_eq!(std::fs::metadata(&record).unwrap().len(), 24 + 100 * (16 + 64));
    assert_eq!(std::fs::read_to_string(&trace).unwrap().lines().count(), 100);
    let mut t =
        Testpmd::start(&format!("--vdev pcap0,rx_pcap={} --vdev null1,no-rx=1 -i -a", record.display()));
    t.wait("show port stats 1", "  TX-packets: 100 ");
    t.quit();
}
