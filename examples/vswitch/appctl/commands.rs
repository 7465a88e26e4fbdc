//! The commands of `ovs-appctl`, in the words of `ovs-vswitchd`.

use std::fmt::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::vswitch::config::port_names;
use crate::vswitch::cores::CoreSum;
use crate::vswitch::flow::action::port;
use crate::vswitch::flow::values::mac_text;
use crate::vswitch::flow::{Flow, Key};
use crate::vswitch::pipeline::rule::now_ms;
use crate::vswitch::runner::{CoreView, Runner};

type Run = fn(&Runner, &[String]) -> Result<String, String>;

/// A command: its name, how it is used, how many arguments it takes, what it does.
struct Command(&'static str, &'static str, usize, usize, Run);

const COMMANDS: &[Command] = &[
    Command("dpctl/dump-conntrack", "[dp] [zone=N]", 0, 2, dump_conntrack),
    Command("dpctl/flush-conntrack", "[dp] [zone=N]", 0, 2, flush_conntrack),
    Command("dpctl/del-flows", "[dp]", 0, 1, del_flows),
    Command("dpctl/dump-flows", "[-m] [--names] [dp]", 0, 4, dump_flows),
    Command("dpctl/show", "[dp]", 0, 1, dpif_show),
    Command("dpif-netdev/pmd-perf-show", "[-pmd core]", 0, 4, |r, args| report(r, args, pmd_perf)),
    Command("dpif-netdev/pmd-rxq-rebalance", "[dp]", 0, 1, rebalance),
    Command("dpif-netdev/pmd-rxq-show", "", 0, 4, rxq_show),
    Command("dpif-netdev/pmd-stats-clear", "", 0, 4, pmd_clear),
    Command("dpif-netdev/pmd-stats-show", "[-pmd core]", 0, 4, |r, args| report(r, args, pmd_stats)),
    Command("dpif/show", "", 0, 0, dpif_show),
    Command("fdb/flush", "[bridge]", 0, 1, fdb_flush),
    Command("fdb/show", "bridge", 1, 1, fdb_show),
    Command("ofproto/list", "", 0, 0, |r, _| {
        Ok(r.switch().bridges().iter().map(|b| format!("{b}\n")).collect())
    }),
    Command("ofproto/trace", "bridge br_flow", 2, 2, trace),
    Command("revalidator/wait", "", 0, 0, |r, _| {
        r.switch().revalidate();
        Ok(String::new())
    }),
    Command("upcall/show", "", 0, 0, upcall_show),
    Command("version", "", 0, 0, |_, _| Ok(format!("vswitch (Hotring) {}\n", env!("CARGO_PKG_VERSION")))),
];

/// Runs a command. `quit` is set by the one that ends the switch.
pub(crate) fn run(
    runner: &Runner,
    quit: &AtomicBool,
    command: &str,
    args: &[String],
) -> Result<String, String> {
    match command {
        "list-commands" => return Ok(list()),
        "exit" => {
            quit.store(true, Ordering::Relaxed);
            return Ok(String::new());
        }
        _ => {}
    }
    let Some(Command(name, usage, least, most, run)) = COMMANDS.iter().find(|c| c.0 == command) else {
        return Err(format!(
            "\"{command}\" is not a valid command (use \"list-commands\" to see a list of valid commands)"
        ));
    };
    if args.len() < *least {
        return Err(format!("\"{name}\" command requires at least {least} arguments ({usage})"));
    }
    if args.len() > *most {
        return Err(format!("\"{name}\" command takes at most {most} arguments"));
    }
    run(runner, args)
}

fn list() -> String {
    let mut lines: Vec<String> = COMMANDS.iter().map(|c| format!("  {:<23} {}\n", c.0, c.1)).collect();
    lines.extend(["exit", "list-commands"].map(|n| format!("  {n:<23} \n")));
    lines.sort();
    format!("The available commands are:\n{}", lines.concat())
}

fn known<'a>(runner: &Runner, bridge: &'a str) -> Result<&'a str, String> {
    if runner.switch().bridges().iter().any(|b| b == bridge) {
        Ok(bridge)
    } else {
        Err(format!("{bridge}: no such bridge"))
    }
}

fn trace(runner: &Runner, args: &[String]) -> Result<String, String> {
    let bridge = known(runner, &args[0])?;
    let flow = Flow::parse(&args[1], &port_names(runner.switch(), bridge))
        .map_err(|e| format!("Bad openflow flow syntax: {e}"))?;
    let mut key: Key = flow.matching.key;
    if key.in_port() == 0 {
        key.set_in_port(port::ANY);
    }
    Ok(runner.switch().trace(bridge, &key))
}

fn dump_flows(runner: &Runner, _: &[String]) -> Result<String, String> {
    let flows = runner.switch().dump_datapath();
    Ok(flows.iter().map(|f| format!("{f}\n")).collect())
}

/// The zone that the arguments name, if they do.
fn zone(args: &[String]) -> Result<Option<u16>, String> {
    let named = args.iter().find_map(|a| a.strip_prefix("zone="));
    named.map(|n| n.parse().map_err(|_| format!("zone={n}: not a zone"))).transpose()
}

fn dump_conntrack(runner: &Runner, args: &[String]) -> Result<String, String> {
    let zone = zone(args)?;
    let lines = runner.switch().conntrack.lock().map(|c| c.dump()).unwrap_or_default();
    let of_zone = |line: &&String| match zone {
        None => true,
        Some(0) => !line.contains("zone="),
        Some(n) => line.split(',').any(|part| part == format!("zone={n}")),
    };
    Ok(lines.iter().filter(of_zone).map(|line| format!("{line}\n")).collect())
}

fn flush_conntrack(runner: &Runner, args: &[String]) -> Result<String, String> {
    let zone = zone(args)?;
    if let Ok(mut connections) = runner.switch().conntrack.lock() {
        connections.flush(zone);
    }
    Ok(String::new())
}

fn del_flows(runner: &Runner, _: &[String]) -> Result<String, String> {
    runner.switch().flush_datapath();
    Ok(String::new())
}

fn dpif_show(runner: &Runner, _: &[String]) -> Result<String, String> {
    let stats = runner.stage_stats();
    let hit = stats.exact + stats.signature + stats.megaflow;
    let mut out = format!("netdev@ovs-netdev: hit:{hit} missed:{}\n", stats.miss);
    let devices = runner.described();
    for name in runner.switch().bridges() {
        let _ = writeln!(out, "  {name}:");
        let ports = runner
            .switch()
            .with(&name, |b| b.ports.values().map(|p| (p.name.clone(), p.number, p.dp)).collect::<Vec<_>>());
        let mut ports = ports.unwrap_or_default();
        ports.sort();
        for (port_name, number, dp) in ports {
            let number = if number == port::LOCAL { 65_534 } else { number };
            let kind = devices
                .iter()
                .find(|(n, _)| *n == port_name)
                .map_or("internal", |(_, vdev)| vdev.split([',', ':']).next().unwrap_or(""));
            let kind = kind.trim_start_matches("net_").trim_end_matches(|c: char| c.is_ascii_digit());
            let _ = writeln!(out, "    {port_name} {number}/{dp}: ({kind})");
        }
    }
    Ok(out)
}

fn share(n: u64, of: u64) -> f64 {
    if of == 0 { 0.0 } else { n as f64 / of as f64 }
}

/// `pmd-stats-show`: packets and where they were looked up, since the counters were cleared.
fn pmd_stats(core: &CoreView) -> Vec<(&'static str, String)> {
    let CoreSum { stage: s, turns } = core.sum;
    let (busy, all) = (turns.busy_cycles, turns.busy_cycles + turns.idle_cycles);
    let passes = s.packets + s.recirculated;
    vec![
        ("packets received", s.packets.to_string()),
        ("packet recirculations", s.recirculated.to_string()),
        ("avg. datapath passes per packet", format!("{:.2}", share(passes, s.packets))),
        ("emc hits", s.exact.to_string()),
        ("smc hits", s.signature.to_string()),
        ("megaflow hits", s.megaflow.to_string()),
        ("avg. subtable lookups per megaflow hit", format!("{:.2}", share(s.lookups, s.megaflow))),
        ("miss with success upcall", s.miss.to_string()),
        ("avg. packets per input batch", format!("{:.2}", share(s.packets, s.bursts))),
        ("idle cycles", format!("{} ({:.2}%)", all - busy, 100.0 * share(all - busy, all))),
        ("processing cycles", format!("{busy} ({:.2}%)", 100.0 * share(busy, all))),
        ("avg cycles per packet", format!("{:.2} ({all}/{})", share(all, s.packets), s.packets)),
        ("avg processing cycles per packet", format!("{:.2} ({busy}/{})", share(busy, s.packets), s.packets)),
    ]
}

/// `pmd-perf-show`: turns, and where their cycles go.
fn pmd_perf(core: &CoreView) -> Vec<(&'static str, String)> {
    let CoreSum { stage: s, turns } = core.sum;
    let worked = turns.turns - turns.empty_turns;
    let lookup = s.lookup_cycles.saturating_sub(s.upcall_cycles);
    let each = |cycles: u64| format!("{:.1} cycles/pkt", share(cycles, s.packets));
    vec![
        ("Iterations", turns.turns.to_string()),
        ("- idle iterations", turns.empty_turns.to_string()),
        ("- busy iterations", worked.to_string()),
        ("Rx packets", format!("{} ({:.0} cycles/pkt)", s.packets, share(turns.busy_cycles, s.packets))),
        ("Datapath passes", (s.packets + s.recirculated).to_string()),
        ("- EMC hits", s.exact.to_string()),
        ("- SMC hits", s.signature.to_string()),
        (
            "- Megaflow hits",
            format!("{} ({:.2} subtbl lookups/hit)", s.megaflow, share(s.lookups, s.megaflow)),
        ),
        ("- Upcalls", format!("{} ({:.0} cycles/upcall)", s.miss, share(s.upcall_cycles, s.miss))),
        ("Stage: parse, look up", each(lookup)),
        ("Stage: upcalls", each(s.upcall_cycles)),
        ("Stage: actions", each(s.action_cycles)),
        ("Stage: rx, tx, receipts", each(turns.busy_cycles.saturating_sub(s.cycles))),
    ]
}

fn pmd_clear(runner: &Runner, _: &[String]) -> Result<String, String> {
    runner.clear_core_stats();
    Ok(String::new())
}

/// Lines of each core; with `-pmd CPU` of that one.
fn report(
    runner: &Runner,
    args: &[String],
    lines: fn(&CoreView) -> Vec<(&'static str, String)>,
) -> Result<String, String> {
    let only = match args {
        [option, cpu, ..] if option == "-pmd" => {
            Some(cpu.parse::<usize>().map_err(|_| format!("-pmd {cpu}: not a core"))?)
        }
        _ => None,
    };
    let mut out = String::new();
    for core in runner.cores().iter().filter(|c| only.is_none() || c.cpu == only) {
        let _ = writeln!(out, "{}:", core_name(core));
        for (name, value) in lines(core) {
            let _ = writeln!(out, "  {name}: {value}");
        }
    }
    Ok(out)
}

/// A core in the words of `ovs-vswitchd`, as far as it is pinned to one.
fn core_name(core: &CoreView) -> String {
    core.cpu.map_or("pmd thread".into(), |cpu| format!("pmd thread core_id {cpu}"))
}

/// `pmd-rxq-show`: which core looks after which queue, and what that took of it in the last minute.
fn rxq_show(runner: &Runner, _: &[String]) -> Result<String, String> {
    let mut out = String::new();
    for core in runner.cores() {
        let _ = writeln!(out, "{}:\n  isolated : {}", core_name(&core), core.isolated);
        for served in &core.queues {
            let usage = served.share.map_or("NOT AVAIL".into(), |share| format!("{:>2} %", share / 10_000));
            let _ = writeln!(
                out,
                "  port: {:<16}  queue-id: {:>2} (enabled)   pmd usage: {usage}",
                served.port, served.queue
            );
        }
    }
    Ok(out)
}

fn rebalance(runner: &Runner, _: &[String]) -> Result<String, String> {
    runner.rebalance().map_err(|e| e.to_string())?;
    Ok("pmd rxq rebalance requested.\n".into())
}

fn fdb_show(runner: &Runner, args: &[String]) -> Result<String, String> {
    let bridge = known(runner, &args[0])?;
    let entries = runner
        .switch()
        .with(bridge, |b| b.fdb.lock().map(|f| f.entries()).unwrap_or_default())
        .unwrap_or_default();
    let mut out = " port  VLAN  MAC                Age\n".to_owned();
    for (vlan, mac, entry) in entries {
        let age = now_ms().saturating_sub(entry.seen_ms) / 1000;
        let number = if entry.port == port::LOCAL { "LOCAL".into() } else { entry.port.to_string() };
        let _ = writeln!(out, "{number:>5}  {vlan:>4}  {}  {age:>3}", mac_text(mac));
    }
    Ok(out)
}

fn fdb_flush(runner: &Runner, args: &[String]) -> Result<String, String> {
    let bridges = match args.first() {
        Some(name) => vec![known(runner, name)?.to_owned()],
        None => runner.switch().bridges(),
    };
    for name in bridges {
        // To change a bridge is what makes cores look again at what they keep.
        runner.switch().change(&name, |b| b.fdb.lock().map(|mut f| f.flush(None)).ok());
    }
    Ok("table successfully flushed\n".into())
}

fn upcall_show(runner: &Runner, _: &[String]) -> Result<String, String> {
    let flows = runner.switch().dump_datapath().len();
    let limit = crate::vswitch::bridge::FLOW_LIMIT;
    let idle = crate::vswitch::bridge::MAX_IDLE_MS;
    Ok(format!(
        "netdev@ovs-netdev:\n  flows         : (current {flows}) (limit {limit})\n  max-idle      : {idle}ms\n"
    ))
}
