use super::*;
use crate::vswitch::bridge::{Command, FlowMod};
use crate::vswitch::config::port_names;
use crate::vswitch::flow::Flow;
use hugepages::PageSize;

const PATIENCE: Duration = Duration::from_secs(60);

fn until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn settings(cpus: &[usize]) -> Settings {
    let idle_sleep = Some(Duration::from_millis(1));
    Settings { cpus: cpus.to_vec(), idle_sleep, policy: Policy::RoundRobin, ..Settings::default() }
}

/// A bridge from a generator to a port that swallows all, on these cores.
fn runner(cpus: &[usize], generator: &str) -> Runner {
    let backing = Backing { page: PageSize::Base, ..Backing::default() };
    let runner = Runner::start(Arc::default(), settings(cpus), backing).unwrap();
    runner.switch().add_bridge("br0", 1);
    for (name, vdev) in [("from", generator), ("to", "null0,no-rx=1")] {
        let device = Device { vdev: vdev.into(), ..Device::default() };
        runner.add("br0", PortConfig::new(name), device).unwrap();
    }
    let flow = Flow::parse("in_port=from,actions=to", &port_names(runner.switch(), "br0")).unwrap();
    runner.switch().flow_mod("br0", &FlowMod::new(Command::Add, flow)).unwrap();
    runner.forward().unwrap();
    runner
}

/// By core: its queues.
fn places(runner: &Runner) -> Vec<Vec<String>> {
    let of = |core: CoreView| core.queues.into_iter().map(|q| q.port).collect();
    runner.cores().into_iter().map(of).collect()
}

#[test]
fn a_packet_leaves_by_a_port_of_another_core() {
    let runner = runner(&[0, 1], "generator0,flows=10");
    assert_eq!(places(&runner), [["from"], ["to"]]);
    until("packets cross", || runner.stats("to").unwrap().tx_packets > 100);
    let sums: Vec<u64> = runner.cores().iter().map(|core| core.sum.stage.packets).collect();
    assert!(sums[0] > 100 && sums[1] == 0, "one core does all but the sending: {sums:?}");
    runner.stop();
}

#[test]
fn queues_move_while_packets_flow() {
    let runner = runner(&[0, 1], "generator0,flows=10");
    let sent = || runner.stats("to").unwrap().tx_packets;
    let flows = || {
        let before = sent();
        until("packets flow", || sent() > before);
    };
    flows();
    runner.set_affinity("to", &BTreeMap::from([(0, 0)])).unwrap();
    assert_eq!(places(&runner), [["to"], ["from"]]);
    assert!(runner.cores()[0].isolated && !runner.cores()[1].isolated);
    flows();
    for cpus in [&[][..], &[1], &[0, 1]] {
        runner.configure(&settings(cpus)).unwrap();
        assert_eq!(runner.cores().len(), cpus.len().max(1));
        flows();
    }
    runner.set_affinity("to", &BTreeMap::new()).unwrap();
    assert_eq!(places(&runner), [["from"], ["to"]]);
    runner.remove("from").unwrap();
    runner.remove("to").unwrap();
    assert!(runner.described().is_empty());
    runner.stop();
}

#[test]
fn what_queues_cost_is_shown() {
    let runner = runner(&[0], "generator0,flows=10");
    let from = || runner.cores()[0].queues[0].clone();
    until("a load is known", || from().share.is_some_and(|share| share > 0));
    assert_eq!((from().port.as_str(), from().queue), ("from", 0));
    runner.rebalance().unwrap();
    runner.stop();
}
