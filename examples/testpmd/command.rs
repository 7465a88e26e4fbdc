//! The commands of the prompt: one table for reading, completing and explaining them.

use Verb::*;
use Word::{Any, Is, Number, One, Port};

/// What a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) enum Verb {
    Start,
    StartFirst,
    Stop,
    Quit,
    Help,
    Load,
    ShowPort,
    ShowForward,
    ShowConfig,
    ShowRings,
    ShowVhost,
    ClearPort,
    ClearForward,
    SetForward,
    SetBurst,
    SetTxpkts,
    SetVerbose,
    SetCores,
    SetPorts,
    SetPromisc,
    SetPeer,
    SetTopology,
    SetCycles,
    SetBursts,
    PortStart,
    PortStop,
    PortClose,
    PortReset,
    PortAttach,
    PortDetach,
    PortConfig,
}

/// One word of a command.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Word {
    /// This one.
    Is(&'static str),
    /// One of these.
    One(&'static [&'static str]),
    /// A port's number, or `all`.
    Port,
    /// A whole number.
    Number,
    /// Any word; what it is called in help.
    Any(&'static str),
}

/// A command.
#[derive(Debug)]
pub(crate) struct Command {
    /// What it does.
    pub(crate) verb: Verb,
    /// How it is spelled.
    pub(crate) words: &'static [Word],
    /// The section of help it is in.
    pub(crate) section: Section,
    /// What it does, for help.
    pub(crate) about: &'static str,
}

/// Sections of help, DPDK's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) enum Section {
    Control,
    Display,
    Config,
    Ports,
}

const fn command(verb: Verb, section: Section, words: &'static [Word], about: &'static str) -> Command {
    Command { verb, words, section, about }
}

const MODES: &[&str] =
    &["io", "mac", "macswap", "flowgen", "rxonly", "txonly", "csum", "icmpecho", "noisy", "5tswap"];
const ON_OFF: Word = One(&["on", "off"]);

/// All commands, in the order of help.
pub(crate) const COMMANDS: &[Command] = &[
    command(Start, Section::Control, &[Is("start")], "Start packet forwarding with current configuration."),
    command(
        StartFirst,
        Section::Control,
        &[Is("start"), Is("tx_first")],
        "Start packet forwarding with current config after sending one burst of packets.",
    ),
    command(
        StartFirst,
        Section::Control,
        &[Is("start"), Is("tx_first"), Number],
        "The same after sending so many bursts.",
    ),
    command(
        Stop,
        Section::Control,
        &[Is("stop")],
        "Stop packet forwarding, and display accumulated statistics.",
    ),
    command(Load, Section::Control, &[Is("load"), Any("file")], "Run the commands of a file."),
    command(Quit, Section::Control, &[Is("quit")], "Stop everything and leave."),
    command(Help, Section::Control, &[Is("help")], "List the sections of help."),
    command(
        Help,
        Section::Control,
        &[Is("help"), Any("section|command")],
        "Explain a section (control, display, config, ports, all) or the commands that begin with a word.",
    ),
    command(
        ShowPort,
        Section::Display,
        &[Is("show"), Is("port"), One(&["info", "stats", "summary", "xstats"]), Port],
        "Display information for port_id, or all.",
    ),
    command(
        ClearPort,
        Section::Display,
        &[Is("clear"), Is("port"), One(&["stats", "xstats"]), Port],
        "Clear information for port_id, or all.",
    ),
    command(
        ShowConfig,
        Section::Display,
        &[Is("show"), Is("config"), One(&["rxtx", "cores", "fwd", "txpkts"])],
        "Display the given configuration.",
    ),
    command(
        ShowForward,
        Section::Display,
        &[Is("show"), Is("fwd"), Is("stats"), Is("all")],
        "Display statistics for all fwd engines.",
    ),
    command(
        ClearForward,
        Section::Display,
        &[Is("clear"), Is("fwd"), Is("stats"), Is("all")],
        "Clear statistics for all fwd engines.",
    ),
    command(
        ShowRings,
        Section::Display,
        &[Is("show"), Is("rings")],
        "Display where the buffers of every queue are, and what its core does.",
    ),
    command(
        ShowVhost,
        Section::Display,
        &[Is("show"), Is("vhost")],
        "Display who is connected to the vhost and virtio_user ports.",
    ),
    command(SetForward, Section::Config, &[Is("set"), Is("fwd"), One(MODES)], "Set packet forwarding mode."),
    command(SetBurst, Section::Config, &[Is("set"), Is("burst"), Number], "Set number of packets per burst."),
    command(
        SetTxpkts,
        Section::Config,
        &[Is("set"), Is("txpkts"), Any("x[,y]*")],
        "Set the length of each segment of TXONLY and FLOWGEN packets.",
    ),
    command(
        SetVerbose,
        Section::Config,
        &[Is("set"), Is("verbose"), Number],
        "Set the debug verbosity level X: 1 prints received packets.",
    ),
    command(
        SetCores,
        Section::Config,
        &[Is("set"), Is("nbcore"), Number],
        "Set number of cores used for forwarding.",
    ),
    command(
        SetPorts,
        Section::Config,
        &[Is("set"), Is("nbport"), Number],
        "Set number of ports used for forwarding.",
    ),
    command(
        SetPromisc,
        Section::Config,
        &[Is("set"), One(&["promisc", "allmulti"]), Port, ON_OFF],
        "Set promiscuous or allmulti mode: always on here.",
    ),
    command(
        SetPeer,
        Section::Config,
        &[Is("set"), Is("eth-peer"), Port, Any("peer_addr")],
        "Set the peer address for certain port.",
    ),
    command(
        SetTopology,
        Section::Config,
        &[Is("set"), Is("port-topology"), One(&["paired", "chained", "loop"])],
        "Set which port a packet leaves by.",
    ),
    command(
        SetCycles,
        Section::Config,
        &[Is("set"), Is("record-core-cycles"), ON_OFF],
        "Set the option to enable measurement of CPU cycles.",
    ),
    command(
        SetBursts,
        Section::Config,
        &[Is("set"), Is("record-burst-stats"), ON_OFF],
        "Set the option to enable display of RX and TX bursts.",
    ),
    command(PortStart, Section::Ports, &[Is("port"), Is("start"), Port], "Start all ports or port_id."),
    command(PortStop, Section::Ports, &[Is("port"), Is("stop"), Port], "Stop all ports or port_id."),
    command(PortClose, Section::Ports, &[Is("port"), Is("close"), Port], "Close all ports or port_id."),
    command(
        PortReset,
        Section::Ports,
        &[Is("port"), Is("reset"), Port],
        "Stop and start all ports or port_id.",
    ),
    command(
        PortAttach,
        Section::Ports,
        &[Is("port"), Is("attach"), Any("ident")],
        "Make a port, as --vdev does; it is stopped.",
    ),
    command(
        PortDetach,
        Section::Ports,
        &[Is("port"), Is("detach"), Port],
        "Remove a stopped port by port_id.",
    ),
    command(
        PortConfig,
        Section::Ports,
        &[Is("port"), Is("config"), Is("all"), One(&["rxq", "txq", "rxd", "txd", "burst"]), Number],
        "Set number for rxq/txq/rxd/txd of stopped ports, or packets per burst.",
    ),
];

impl Word {
    fn matches(self, text: &str) -> bool {
        match self {
            Is(word) => text == word,
            One(words) => words.contains(&text),
            Port => text == "all" || is_number(text),
            Number => is_number(text),
            Any(_) => true,
        }
    }

    /// Whether it says something that the command needs to know.
    fn tells(self) -> bool {
        !matches!(self, Is(_))
    }

    fn usage(self) -> String {
        match self {
            Is(word) => word.into(),
            One(words) => format!("({})", words.join("|")),
            Port => "(port_id|all)".into(),
            Number => "(value)".into(),
            Any(what) => format!("({what})"),
        }
    }

    /// What could stand here.
    fn candidates(self) -> Vec<&'static str> {
        match self {
            Is(word) => vec![word],
            One(words) => words.to_vec(),
            Port => vec!["all"],
            Number | Any(_) => vec![],
        }
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

impl Command {
    /// How it is spelled, as help shows it.
    pub(crate) fn usage(&self) -> String {
        self.words.iter().map(|w| w.usage()).collect::<Vec<_>>().join(" ")
    }
}

/// Reads a line: the command, and the words that it needs to know.
///
/// # Errors
/// What testpmd says: no such command, or bad arguments, with how it is spelled.
pub(crate) fn parse(line: &str) -> Result<(Verb, Vec<&str>), String> {
    let given: Vec<&str> = line.split_whitespace().collect();
    for command in COMMANDS {
        let words = command.words;
        if words.len() == given.len() && words.iter().zip(&given).all(|(w, text)| w.matches(text)) {
            let told = words.iter().zip(given).filter(|(w, _)| w.tells()).map(|(_, text)| text);
            return Ok((command.verb, told.collect()));
        }
    }
    // How far the best attempt came.
    let agreed = |c: &Command| c.words.iter().zip(&given).take_while(|(w, text)| w.matches(text)).count();
    let best = COMMANDS.iter().map(agreed).max().unwrap_or(0);
    if best == 0 {
        return Err("Command not found".into());
    }
    let meant = COMMANDS.iter().filter(|c| agreed(c) == best).map(Command::usage).collect::<Vec<_>>();
    Err(format!("Bad arguments\nUsage: {}", meant.join("\n       ")))
}

/// What could follow: the words that complete the last one of `line`, and where that one begins.
pub(crate) fn complete(line: &str) -> (usize, Vec<&'static str>) {
    let begin = line.rfind(char::is_whitespace).map_or(0, |i| i + 1);
    let (before, last) = (line[..begin].split_whitespace().collect::<Vec<_>>(), &line[begin..]);
    let mut found = Vec::new();
    for command in COMMANDS {
        let Some(word) = command.words.get(before.len()) else { continue };
        if command.words.iter().zip(&before).all(|(w, text)| w.matches(text)) {
            found.extend(word.candidates().into_iter().filter(|c| c.starts_with(last)));
        }
    }
    if before == ["help"] {
        found.extend(["control", "display", "config", "ports", "all"].iter().filter(|c| c.starts_with(last)));
    }
    found.sort_unstable();
    found.dedup();
    (begin, found)
}

/// `help`, or of a section, or of the commands that begin with a word.
pub(crate) fn help(topic: Option<&str>) -> String {
    let sections = [
        ("control", Section::Control, "Control forwarding:", "Start and stop forwarding."),
        ("display", Section::Display, "Display:", "Displaying port, stats and config information."),
        ("config", Section::Config, "Configuration:", "Configuration information."),
        ("ports", Section::Ports, "Port Operations:", "Configuring ports."),
    ];
    let Some(topic) = topic else {
        let mut out = String::from("\nHelp is available for the following sections:\n\n");
        for (name, _, _, about) in sections {
            out += &format!("    help {name:<27}: {about}\n");
        }
        return out + "    help all                        : All of the above sections.\n\n";
    };
    let mut out = String::new();
    for (_, section, title, _) in sections.iter().filter(|s| topic == "all" || topic == s.0) {
        out += &format!("\n{title}\n{}\n\n", "-".repeat(title.len()));
        for command in COMMANDS.iter().filter(|c| c.section == *section) {
            out += &explain(command);
        }
    }
    if out.is_empty() {
        let begins = |c: &&Command| c.words.first().is_some_and(|w| w.matches(topic));
        out = COMMANDS.iter().filter(begins).map(explain).collect();
    }
    if out.is_empty() { format!("No help for '{topic}'; try: help\n") } else { out }
}

fn explain(command: &Command) -> String {
    format!("{}\n    {}\n\n", command.usage(), command.about)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_type() {
        for (line, verb, told) in [
            ("start", Start, vec![]),
            ("  start   tx_first ", StartFirst, vec![]),
            ("start tx_first 3", StartFirst, vec!["3"]),
            ("show port stats all", ShowPort, vec!["stats", "all"]),
            ("show port xstats 12", ShowPort, vec!["xstats", "12"]),
            ("show fwd stats all", ShowForward, vec![]),
            ("set fwd 5tswap", SetForward, vec!["5tswap"]),
            ("set txpkts 64,128", SetTxpkts, vec!["64,128"]),
            ("set promisc all off", SetPromisc, vec!["promisc", "all", "off"]),
            ("port attach net_null0,size=64", PortAttach, vec!["net_null0,size=64"]),
            ("port config all rxq 2", PortConfig, vec!["rxq", "2"]),
            ("help", Help, vec![]),
            ("help show", Help, vec!["show"]),
        ] {
            assert_eq!(parse(line), Ok((verb, told)), "{line}");
        }
        assert_eq!(parse("bogus command"), Err("Command not found".into()));
        for line in ["show", "set fwd foo", "show port stats x", "set burst", "start tx_first x", "stop now"]
        {
            assert!(parse(line).unwrap_err().starts_with("Bad arguments\nUsage: "), "{line}");
        }
        assert_eq!(parse("set burst x").unwrap_err(), "Bad arguments\nUsage: set burst (value)");
    }

    #[test]
    fn completes_and_explains() {
        assert_eq!(complete("sho"), (0, vec!["show"]));
        assert_eq!(complete("show port "), (10, vec!["info", "stats", "summary", "xstats"]));
        assert_eq!(complete("show port s"), (10, vec!["stats", "summary"]));
        assert_eq!(complete("set fwd mac"), (8, vec!["mac", "macswap"]));
        assert_eq!(complete("help c"), (5, vec!["config", "control"]));
        assert_eq!(complete("stop x "), (7, vec![]));
        assert!(help(None).contains("    help control                    : Start and stop forwarding.\n"));
        assert!(help(Some("ports")).contains("port attach (ident)\n"));
        assert!(help(Some("start")).contains("start tx_first (value)\n"));
        assert!(help(Some("nothing")).starts_with("No help"));
        for command in COMMANDS {
            assert!(help(Some("all")).contains(&command.usage()));
        }
    }

    #[test]
    fn every_mode_can_be_set() {
        use clap::ValueEnum;
        for mode in crate::cli::Mode::value_variants() {
            assert!(MODES.contains(&mode.name().as_str()));
        }
    }
}
