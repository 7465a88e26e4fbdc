//! DPDK's two halves of a command line, made one.

use std::ffi::OsString;

use crate::Error;

use super::cores;

/// Options of DPDK that have nothing to act on here, and whether a value follows.
const MEANINGLESS: &[(&str, bool)] = &[
    // Of the EAL.
    ("-n", true),
    ("-m", true),
    ("-r", true),
    ("-d", true),
    ("-s", true),
    ("-S", true),
    ("-b", true),
    ("-v", false),
    ("--block", true),
    ("--base-virtaddr", true),
    ("--create-uio-dev", false),
    ("--file-prefix", true),
    ("--force-max-simd-bitwidth", true),
    ("--huge-dir", true),
    ("--huge-unlink", false),
    ("--in-memory", false),
    ("--iova-mode", true),
    ("--legacy-mem", false),
    ("--log-level", true),
    ("--main-lcore", true),
    ("--match-allocations", false),
    ("--mbuf-pool-ops-name", true),
    ("--no-hpet", false),
    ("--no-pci", false),
    ("--no-shconf", false),
    ("--no-telemetry", false),
    ("--proc-type", true),
    ("--single-file-segments", false),
    ("--socket-limit", true),
    ("--socket-mem", true),
    ("--syslog", true),
    ("--telemetry", false),
    ("--vfio-intr", true),
    ("--vfio-vf-token", true),
    ("--vmware-tsc-map", false),
    // Of testpmd.
    ("--disable-crc-strip", false),
    ("--disable-link-check", false),
    ("--disable-rss", false),
    ("--enable-lro", false),
    ("--enable-rx-cksum", false),
    ("--enable-scatter", false),
    ("--mbcache", true),
    ("--mlockall", false),
    ("--mp-alloc", true),
    ("--no-flush-rx", false),
    ("--no-iova-contig", false),
    ("--no-lsc-interrupt", false),
    ("--no-mlockall", false),
    ("--no-numa", false),
    ("--no-rmv-interrupt", false),
    ("--numa", false),
    ("--rss-ip", false),
    ("--rss-udp", false),
    ("--rx-offloads", true),
    ("--rxfreet", true),
    ("--rxht", true),
    ("--rxpt", true),
    ("--rxwt", true),
    ("--socket-num", true),
    ("--tx-offloads", true),
    ("--txfreet", true),
    ("--txht", true),
    ("--txpt", true),
    ("--txrst", true),
    ("--txwt", true),
];

/// DPDK's words for "use this PCI device".
const ALLOW: [&str; 3] = ["-a", "-w", "--allow"];

/// Takes out the lone `--` and what means nothing here. Before a lone `--` stand DPDK's EAL options,
/// where `-a` names a PCI device, which is a port; after it, and without one, `-a` is `--auto-start`.
///
/// # Errors
/// When an argument is not UTF-8 or a coremask is none.
pub(super) fn arrange(args: impl Iterator<Item = OsString>) -> Result<(Vec<String>, Vec<String>), Error> {
    let args = args
        .map(|a| a.into_string().map_err(|a| Error::Usage(format!("argument {a:?} is not UTF-8"))))
        .collect::<Result<Vec<_>, _>>()?;
    let divide = args.iter().position(|a| a == "--");
    let (mut given, mut ignored) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < args.len() {
        let arg = &args[at];
        let eal = divide.is_some_and(|d| at < d);
        at += 1;
        if Some(at - 1) == divide {
            continue;
        }
        if arg == "-c" || arg.starts_with("-c0x") {
            let mask = if arg == "-c" { args.get(at).map_or("", String::as_str) } else { &arg[2..] };
            at += usize::from(arg == "-c");
            given.push(format!("--lcores={}", cores::of_mask(mask)?));
            continue;
        }
        let (name, glued) = split(arg);
        if ALLOW.contains(&name) && (eal || name != "-a") {
            let device = if glued {
                arg[name.len()..].trim_start_matches('=')
            } else {
                args.get(at).map_or("", String::as_str)
            };
            at += usize::from(!glued);
            given.push(format!("--vdev={device}"));
            continue;
        }
        let takes_value = match MEANINGLESS.iter().find(|(known, _)| *known == name) {
            Some((_, takes_value)) => *takes_value,
            None => {
                given.push(arg.clone());
                continue;
            }
        };
        if takes_value && !glued {
            ignored.push(format!("{arg} {}", args.get(at).map_or("", String::as_str)));
            at += 1;
        } else {
            ignored.push(arg.clone());
        }
    }
    Ok((given, ignored))
}

/// The option's name, and whether its value is part of the same argument.
fn split(arg: &str) -> (&str, bool) {
    if arg.starts_with("--") {
        return arg.split_once('=').map_or((arg, false), |(name, _)| (name, true));
    }
    // -m256, but not -ia: only these options of one letter take values.
    match arg.get(..2) {
        Some(short) if arg.len() > 2 && (MEANINGLESS.contains(&(short, true)) || short == "-w") => {
            (short, true)
        }
        _ => (arg, false),
    }
}

/// The last value of a long option.
pub(super) fn value_of<'a>(args: &'a [String], name: &str) -> Option<&'a str> {
    let mut found = None;
    for (i, arg) in args.iter().enumerate() {
        if let Some(value) = arg.strip_prefix(name).and_then(|rest| rest.strip_prefix('=')) {
            found = Some(value);
        } else if arg == name {
            found = args.get(i + 1).map(String::as_str);
        }
    }
    found
}
