//! Which frames a port takes: `set promisc|allmulti`, `mac_addr`, `mcast_addr`, `rx_vlan`, `vlan set filter`.

use pmd::port::Filter;

use super::set::number;
use crate::app::{App, say};
use crate::command::Verb;

/// Addresses or networks, each once.
fn change<T: PartialEq>(list: &mut Vec<T>, add: bool, one: T) {
    list.retain(|known| *known != one);
    if add {
        list.push(one);
    }
}

pub(super) fn set(app: &mut App, verb: Verb, words: &[&str]) -> Result<(), String> {
    let ports = app.choose(match verb {
        Verb::Vlan => words[2],
        _ => words[1],
    })?;
    for port in ports {
        let Some(mut filter) = app.filter(port) else {
            fixed(verb, words, port)?;
            continue;
        };
        apply(&mut filter, verb, words, port)?;
        app.set_filter(port, filter)?;
    }
    Ok(())
}

/// A port that takes every frame.
fn fixed(verb: Verb, words: &[&str], port: usize) -> Result<(), String> {
    if verb != Verb::SetPromisc {
        return Err(format!("Port {port} takes every frame: Operation not supported"));
    }
    if words[2] == "off" {
        let mode = if words[0] == "promisc" { "promiscuous" } else { "all-multicast" };
        say(&format!("Error during disabling {mode} mode for port {port}: Operation not supported\n"));
    }
    Ok(())
}

fn apply(filter: &mut Filter, verb: Verb, words: &[&str], port: usize) -> Result<(), String> {
    let mac = |group: bool| {
        let mac = crate::vdev::mac(words[2]).ok_or("the MAC address is xx:xx:xx:xx:xx:xx")?;
        let kind = if group { "multicast" } else { "unicast" };
        let right = (mac[0] & 1 == 1) == group;
        if right { Ok(mac) } else { Err(format!("{} is no {kind} address", words[2])) }
    };
    let add = words[0] == "add";
    match verb {
        Verb::SetPromisc if words[0] == "promisc" => filter.promiscuous = words[2] == "on",
        Verb::SetPromisc => filter.all_multicast = words[2] == "on",
        Verb::MacAddress => change(&mut filter.unicast, add, mac(false)?),
        Verb::Multicast => change(&mut filter.multicast, add, mac(true)?),
        Verb::VlanFilter if words[0] == "off" => filter.vlans = None,
        Verb::VlanFilter => drop(filter.vlans.get_or_insert_default()),
        _ => {
            let off = || format!("VLAN filtering is off on port {port}; vlan set filter on {port}");
            let vlans = filter.vlans.as_mut().ok_or_else(off)?;
            if words[1] == "all" {
                *vlans = if add { (0..4096).collect() } else { Vec::new() };
            } else {
                let vlan: u16 = number(words[1])?;
                if vlan > 4095 {
                    return Err(format!("Invalid vlan_id {vlan} (must be < 4096)"));
                }
                change(vlans, add, vlan);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_changes_the_filter_and_nothing_else() {
        let mut filter = Filter { promiscuous: true, ..Filter::default() };
        let mut obey = |verb, words: &[&str]| apply(&mut filter, verb, words, 0).map(|()| filter.clone());
        assert!(!obey(Verb::SetPromisc, &["promisc", "0", "off"]).unwrap().promiscuous);
        assert!(obey(Verb::SetPromisc, &["allmulti", "0", "on"]).unwrap().all_multicast);
        let own = ["add", "0", "02:00:00:00:00:07"];
        assert_eq!(obey(Verb::MacAddress, &own).unwrap().unicast, [[2, 0, 0, 0, 0, 7]]);
        assert_eq!(obey(Verb::MacAddress, &own).unwrap().unicast.len(), 1, "each once");
        assert_eq!(obey(Verb::MacAddress, &["remove", own[1], own[2]]).unwrap().unicast.len(), 0);
        assert!(obey(Verb::MacAddress, &["add", "0", "01:00:5e:00:00:fb"]).is_err());
        assert!(obey(Verb::Multicast, &own).is_err());
        assert_eq!(obey(Verb::Multicast, &["add", "0", "01:00:5e:00:00:fb"]).unwrap().multicast.len(), 1);
        assert!(obey(Verb::Vlan, &["add", "7", "0"]).unwrap_err().contains("vlan set filter on 0"));
        assert_eq!(obey(Verb::VlanFilter, &["on", "0"]).unwrap().vlans, Some(vec![]));
        assert_eq!(obey(Verb::Vlan, &["add", "7", "0"]).unwrap().vlans, Some(vec![7]));
        assert!(obey(Verb::Vlan, &["add", "4096", "0"]).is_err());
        assert_eq!(obey(Verb::VlanFilter, &["on", "0"]).unwrap().vlans, Some(vec![7]), "kept");
        assert_eq!(obey(Verb::Vlan, &["add", "all", "0"]).unwrap().vlans.unwrap().len(), 4096);
        assert_eq!(obey(Verb::Vlan, &["rm", "all", "0"]).unwrap().vlans, Some(vec![]));
        assert_eq!(obey(Verb::VlanFilter, &["off", "0"]).unwrap().vlans, None);
    }
}
