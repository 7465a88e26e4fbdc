use super::*;

fn parse(line: &str) -> Result<Parsed, Error> {
    Options::parse_args(std::iter::once("testpmd").chain(line.split_whitespace()).map(OsString::from))
}

fn run(line: &str) -> (Options, Vec<String>) {
    match parse(line) {
        Ok(Parsed::Run(options, ignored)) => (*options, ignored),
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn options_may_stand_before_and_after_the_lone_dashes() {
    for line in [
        "-l 0,1 --vdev net_null0 --vdev=net_null1 -i --forward-mode=io --rxq 2 --txq=2",
        "-l 0,1 --vdev net_null0 --vdev=net_null1 -- -i --forward-mode=io --rxq 2 --txq=2",
        "-l 0,1 -i --rxq=2 --vdev net_null0 -- --vdev net_null1 --forward-mode io --txq 2",
        "-c 0x3 --vdev net_null0 --vdev net_null1 -- -i --rxq=2 --txq=2",
        "--lcores 0@0,1@1 --vdev net_null0 --vdev net_null1 -- -i --rxq=1 --rxq=2 --txq=2",
    ] {
        let (options, ignored) = run(line);
        assert!(options.interactive && !options.auto_start, "{line}");
        assert_eq!((options.rxq, options.txq, options.forward_mode), (2, 2, Mode::Io), "{line}");
        assert_eq!(options.lcores, Some(vec![Lcore { id: 0, cpu: 0 }, Lcore { id: 1, cpu: 1 }]), "{line}");
        let names: Vec<_> = options.vdevs.iter().map(|v| v.name.as_str()).collect();
        assert_eq!((names, ignored.len()), (vec!["net_null0", "net_null1"], 0), "{line}");
    }
}

#[test]
fn options_without_meaning_are_taken_out_and_named() {
    let (options, ignored) = run("--no-pci -m 256 -n4 --file-prefix=x --socket-mem 1,1 -a 0000:01:00.0 \
                                  --vdev null0 --in-memory -- -a --no-flush-rx --mbcache 5 -i");
    assert_eq!(
        ignored,
        [
            "--no-pci",
            "-m 256",
            "-n4",
            "--file-prefix=x",
            "--socket-mem 1,1",
            "--in-memory",
            "--no-flush-rx",
            "--mbcache 5"
        ]
    );
    assert!(options.auto_start && options.interactive);
    let names: Vec<_> = options.vdevs.iter().map(|v| v.name.as_str()).collect();
    assert_eq!(names, ["0000:01:00.0", "net_null0"], "-a names a port");
    assert!(run("--vdev null0 -a").0.auto_start);
}

#[test]
fn a_wrong_option_is_one_line_that_says_what_is_allowed() {
    for (line, words) in [
        ("--bogus", "unexpected argument '--bogus' found"),
        ("--forward-mode=fast", "invalid value 'fast' for '--forward-mode <MODE>' [possible values: io, mac"),
        ("--rxq=0", "invalid value '0' for '--rxq <N>': 0 is not in 1..=128"),
        ("--burst 1000", "1000 is not in 1..=256"),
        ("--vdev null0,foo=1", "--vdev net_null0: unknown key 'foo'; allowed: size"),
        ("--vdev null0 --vdev net_null0", "given twice"),
        ("-l 2-1", "allowed: cores like 0,2-3"),
        ("-c 0", "allowed: a hexadecimal mask"),
        ("--eth-peer 1", "allowed: PORT,xx"),
        ("--txpkts=9", "--txpkts: total packet length=9 < 42 - give up"),
        ("--tx-ip=1.2.3.4", "two IPv4 addresses"),
        ("--duration=0", "greater than 0"),
        ("--noisy-lkup-num-reads 1", "--noisy-lkup-memory must be > 0"),
        ("--config /nonexistent.toml", "--config /nonexistent.toml: No such file"),
    ] {
        let message = parse(line).unwrap_err().to_string();
        assert!(message.contains(words), "{line}: {message}");
        assert!(!message.contains('\n'), "{line}: {message}");
    }
}

#[test]
fn help_teaches() {
    let Ok(Parsed::Print(help)) = parse("-l 0 -- --help") else { panic!() };
    for words in ["--vdev", "Examples:", "generator<N>", "iface=", "vhost-user", "--stats-period"] {
        assert!(help.contains(words), "{words}");
    }
    assert!(matches!(parse("--version"), Ok(Parsed::Print(v)) if v.starts_with("testpmd ")));
}

#[test]
fn every_mode_has_dpdks_name() {
    let names: Vec<_> = Mode::value_variants().iter().map(|m| m.name()).collect();
    assert_eq!(
        names,
        ["io", "mac", "macswap", "5tswap", "flowgen", "rxonly", "txonly", "csum", "icmpecho", "noisy"]
    );
}

#[test]
fn json_takes_a_file_or_nothing() {
    assert_eq!(run("--json -i").0.json, Some("-".into()));
    assert_eq!(run("--json=/tmp/x").0.json, Some("/tmp/x".into()));
    assert_eq!(run("-i").0.json, None);
}
