//! The commands of the prompt: one table for reading, completing and explaining them.

mod table;

use Word::{Any, Is, Number, One, Port};
use table::COMMANDS;

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
    ShowLimits,
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
    MacAddress,
    Multicast,
    Vlan,
    VlanFilter,
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
    use super::Verb::*;
    use super::table::MODES;
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
            ("mac_addr add 1 02:00:00:00:00:07", MacAddress, vec!["add", "1", "02:00:00:00:00:07"]),
            ("rx_vlan rm all 0", Vlan, vec!["rm", "all", "0"]),
            ("vlan set filter on 2", VlanFilter, vec!["on", "2"]),
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
