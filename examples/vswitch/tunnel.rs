//! Tunnels. Devices of the kernel put the headers around frames and take them off; what comes from one has its
//! numbers in the fields of tunnels, as if they had been read.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::Command;

use super::flow::{Field, Key};

/// Largest number of a network.
const MAX_KEY: u32 = (1 << 24) - 1;

/// A tunnel to one other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// As the kernel has it: `vxlan` or `geneve`.
    kind: &'static str,
    remote: IpAddr,
    local: Option<IpAddr>,
    key: u32,
    /// Further words for the kernel.
    words: Vec<String>,
    /// Bytes of the largest packet inside.
    pub mtu: u32,
}

impl Tunnel {
    /// Reads the options of an interface of type `kind`, in the words of the database.
    ///
    /// # Errors
    /// Which option is missing, or cannot be had.
    pub fn parse(kind: &str, options: &BTreeMap<String, String>) -> Result<Tunnel, String> {
        let (kind, mut port) = match kind {
            "vxlan" => ("vxlan", 4789u16),
            "geneve" => ("geneve", 6081),
            other => return Err(format!("'{other}' is no tunnel; there are vxlan and geneve")),
        };
        let (mut remote, mut local, mut keys, mut words) = (None, None, Vec::new(), Vec::new());
        for (name, value) in options {
            let bad = || format!("options:{name}={value}: only one fixed value can be had here");
            let address = || value.parse::<IpAddr>().map_err(|_| bad());
            match name.as_str() {
                "remote_ip" => remote = Some(address()?),
                "local_ip" => local = Some(address()?),
                "key" | "in_key" | "out_key" => {
                    keys.push(value.parse::<u32>().ok().filter(|k| *k <= MAX_KEY).ok_or_else(bad)?);
                }
                "dst_port" => port = value.parse().map_err(|_| bad())?,
                "ttl" | "tos" => {
                    let known = value == "inherit" || value.parse::<u8>().is_ok();
                    words.extend([name.clone(), known.then(|| value.clone()).ok_or_else(bad)?]);
                }
                "df_default" => {
                    words.extend(["df".into(), if value == "true" { "set" } else { "unset" }.into()])
                }
                "csum" => words.push(if value == "true" { "udpcsum" } else { "noudpcsum" }.into()),
                _ => return Err(format!("options:{name} of a tunnel is not known here")),
            }
        }
        let key = keys.first().copied().unwrap_or(0);
        if keys.iter().any(|k| *k != key) {
            return Err("options:in_key and out_key must be the same here".into());
        }
        words.extend(["dstport".into(), port.to_string()]);
        if kind == "vxlan" {
            // There is one other end: nothing is to be learned.
            words.push("nolearning".into());
        }
        let remote = remote.ok_or("options:remote_ip is missing")?;
        Ok(Tunnel { kind, remote, local, key, words, mtu: 1500 })
    }

    /// Writes its numbers into the fields of tunnels: packets come from its other end.
    pub fn lay(&self, key: &mut Key) {
        key.lay(Field::TunId, self.key.into());
        let ends = [
            (Some(self.remote), Field::TunSrc, Field::TunIpv6Src),
            (self.local, Field::TunDst, Field::TunIpv6Dst),
        ];
        for (end, v4, v6) in ends {
            match end {
                Some(IpAddr::V4(ip)) => key.lay(v4, u32::from(ip).into()),
                Some(IpAddr::V6(ip)) => key.lay(v6, ip.into()),
                None => {}
            }
        }
    }

    /// The words with which `ip link` makes its device.
    fn link(&self, name: &str) -> Vec<String> {
        let mut words: Vec<String> =
            ["link", "add", "name", name, "type", self.kind].map(str::to_owned).into();
        words.extend(["id".into(), self.key.to_string(), "remote".into(), self.remote.to_string()]);
        if let Some(local) = self.local {
            words.extend(["local".into(), local.to_string()]);
        }
        words.extend(self.words.iter().cloned());
        words
    }

    /// Makes the device. One of the same name and kind that was left goes.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn create(&self, name: &str) -> Result<(), String> {
        let left = ip(&["-o", "link", "show", "dev", name, "type", self.kind].map(str::to_owned));
        if left.is_ok_and(|text| !text.trim().is_empty()) {
            self.remove(name)?;
        }
        ip(&self.link(name))?;
        let mtu = self.mtu.to_string();
        let up = ["link", "set", "dev", name, "mtu", &mtu, "addrgenmode", "none", "up"].map(str::to_owned);
        ip(&up).map(drop).inspect_err(|_| drop(self.remove(name)))
    }

    /// Takes the device away.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn remove(&self, name: &str) -> Result<(), String> {
        ip(&["link", "del", "dev", name].map(str::to_owned)).map(drop)
    }
}

/// Runs `ip`; what it prints.
fn ip(words: &[String]) -> Result<String, String> {
    let told = |e: String| format!("ip {}: {}", words.join(" "), e.trim());
    let out = Command::new("ip").args(words).output().map_err(|e| told(e.to_string()))?;
    if out.status.success() {
        return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
    }
    Err(told(String::from_utf8_lossy(&out.stderr).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(kind: &str, options: &[(&str, &str)]) -> Result<Tunnel, String> {
        Tunnel::parse(kind, &options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn options_become_words_of_the_kernel_and_fields_of_packets() {
        let options = [
            ("remote_ip", "10.0.0.2"),
            ("local_ip", "10.0.0.1"),
            ("key", "77"),
            ("ttl", "9"),
            ("csum", "true"),
        ];
        let tunnel = parse("vxlan", &options).unwrap();
        assert_eq!(
            tunnel.link("vx").join(" "),
            "link add name vx type vxlan id 77 remote 10.0.0.2 local 10.0.0.1 udpcsum ttl 9 dstport 4789 nolearning"
        );
        let mut key = Key::default();
        tunnel.lay(&mut key);
        let fields = [Field::TunId, Field::TunSrc, Field::TunDst].map(|f| key.lie(f));
        assert_eq!(fields, [77, 0x0a00_0002, 0x0a00_0001]);
        let six = parse("geneve", &[("remote_ip", "fd00::2"), ("dst_port", "7000")]).unwrap();
        assert_eq!(six.link("g").join(" "), "link add name g type geneve id 0 remote fd00::2 dstport 7000");
    }

    #[test]
    fn what_the_kernel_cannot_do_is_refused() {
        for (options, word) in [
            (&[][..], "remote_ip is missing"),
            (&[("remote_ip", "flow")], "remote_ip=flow"),
            (&[("remote_ip", "10.0.0.2"), ("key", "flow")], "key=flow"),
            (&[("remote_ip", "10.0.0.2"), ("key", "16777216")], "key=16777216"),
            (&[("remote_ip", "10.0.0.2"), ("in_key", "1"), ("out_key", "2")], "the same"),
            (&[("remote_ip", "10.0.0.2"), ("exts", "gbp")], "exts"),
        ] {
            let error = parse("vxlan", options).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
