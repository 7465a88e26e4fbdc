//! `set`, and `port config`: what can be changed at the prompt.

use crate::app::{App, say};
use crate::cli::{Topology, check_txpkts};
use crate::command::Verb;

/// `set`, and `port config`.
pub(super) fn set(app: &mut App, verb: Verb, words: &[&str]) -> Result<(), String> {
    let said = match verb {
        Verb::SetForward => {
            app.options.forward_mode = clap::ValueEnum::from_str(words[0], false)?;
            format!("Set {} packet forwarding mode\n", words[0])
        }
        Verb::SetBurst => burst(app, words[0])?,
        Verb::SetTxpkts => {
            let lengths = words[0].split(',').map(number).collect::<Result<Vec<u16>, _>>()?;
            check_txpkts(&lengths)?;
            app.options.txpkts = lengths;
            String::new()
        }
        Verb::SetVerbose => {
            let level = number(words[0])?;
            let before = app.set_verbose(level)?;
            format!("Change verbose level from {before} to {level}\n")
        }
        Verb::SetCores => {
            let (n, most): (u16, _) = (number(words[0])?, app.max_cores());
            if usize::from(n) > most {
                return Err(format!(
                    "nb fwd cores {n} > {most} (max. number of configured lcores) - ignored"
                ));
            }
            app.options.nb_cores = n.max(1);
            format!("Number of forwarding cores set to {}\n", app.options.nb_cores)
        }
        Verb::SetPorts => {
            let (n, most): (u16, _) = (number(words[0])?, app.all().len());
            if usize::from(n) > most {
                return Err(format!("nb fwd ports {n} > {most} (number of probed ports) - ignored"));
            }
            app.options.nb_ports = Some(n);
            format!("Number of forwarding ports set to {n}\n")
        }
        Verb::SetPeer => {
            let mac = crate::vdev::mac(words[1]).ok_or("the MAC address is xx:xx:xx:xx:xx:xx")?;
            for port in app.choose(words[0])? {
                app.options.eth_peer.push((port as u16, mac));
            }
            String::new()
        }
        Verb::SetTopology => {
            app.options.port_topology = <Topology as clap::ValueEnum>::from_str(words[0], false)?;
            format!("Set {} port topology\n", words[0])
        }
        Verb::SetCycles => {
            app.options.record_core_cycles = words[0] == "on";
            String::new()
        }
        Verb::SetBursts => {
            app.options.record_burst_stats = words[0] == "on";
            String::new()
        }
        _ => configure(app, words[0], words[1])?,
    };
    say(&said);
    Ok(())
}

fn burst(app: &mut App, word: &str) -> Result<String, String> {
    let (n, most): (u32, _) = (number(word)?, pmd::batch::CAP as u32);
    if n > most {
        return Err(format!("nb pkt per burst: {n} > {most} (maximum packet per burst)  ignored"));
    }
    app.set_burst(n.max(1) as u16)?;
    Ok(format!("Number of packets per burst set to {n}\n"))
}

/// `port config all`.
fn configure(app: &mut App, what: &str, word: &str) -> Result<String, String> {
    if what == "burst" {
        return burst(app, word);
    }
    if app.any_started() {
        return Err("Please stop all ports first".into());
    }
    let n: u16 = number(word)?;
    let most =
        if what.ends_with('q') { pmd::spec::net::MAX_QUEUE_PAIRS } else { pmd::spec::virtio::MAX_RING };
    if n > most || (what.ends_with('q') && n == 0) {
        return Err(format!("{what} {n}: allowed: {} to {most}", u16::from(what.ends_with('q'))));
    }
    let o = &mut app.options;
    match what {
        "rxq" => o.rxq = n,
        "txq" => o.txq = n,
        "rxd" => o.rxd = n,
        _ => o.txd = n,
    }
    Ok(String::new())
}

pub(super) fn number<T: std::str::FromStr>(word: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("Bad arguments\n{word} is no number that fits"))
}
