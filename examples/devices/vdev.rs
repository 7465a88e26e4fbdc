//! Ports as they are given: `KIND<N>,key=value,...`, in the words of DPDK's `--vdev`.

mod kinds;

use std::fmt;

use super::{Error, faults};
pub use kinds::help;
use kinds::{KINDS, Kind, WRAPPERS};

/// What a value of a key may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Form {
    /// Any text.
    Text,
    /// 0 or 1.
    Flag,
    /// A whole number in a range; `k`, `M` and `G` multiply.
    Number(u64, u64),
    /// Permissions of a file, octal.
    Mode,
    /// `xx:xx:xx:xx:xx:xx`.
    Mac,
    /// What `faults` reads.
    Faults,
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Form::Text => write!(f, "text"),
            Form::Flag => write!(f, "0 or 1"),
            Form::Number(low, high) => write!(f, "a number from {low} to {high}"),
            Form::Mode => write!(f, "permissions as 0660, to 0777"),
            Form::Mac => write!(f, "xx:xx:xx:xx:xx:xx"),
            Form::Faults => write!(f, "{}", faults::ALLOWED),
        }
    }
}

/// A port to be made.
#[derive(Clone, Debug)]
pub struct Vdev {
    /// As DPDK spells it: `net_vhost0`.
    pub name: String,
    /// Its kind, one of `KINDS`.
    pub kind: &'static str,
    /// As given, after the name: what `show port info` calls devargs.
    pub devargs: String,
    /// What was given that means nothing here.
    pub ignored: Vec<String>,
    args: Vec<(&'static str, String)>,
}

impl Vdev {
    /// Reads `KIND<N>,key=value,...`; `net_KIND<N>` is the same.
    ///
    /// # Errors
    /// One line that names the kind, key or value and what is allowed.
    pub fn parse(text: &str) -> Result<Vdev, Error> {
        if let Some(vdev) = Vdev::parse_pci(text) {
            return vdev;
        }
        let (device, devargs) = text.split_once(',').unwrap_or((text, ""));
        let stem = device.trim_end_matches(|c: char| c.is_ascii_digit());
        let number = &device[stem.len()..];
        let base = stem.strip_prefix("net_").unwrap_or(stem);
        // DPDK calls a virtio-user port virtio_user; dashes are a common slip.
        let kind = KINDS.iter().find(|k| k.name == base.replace('-', "_"));
        let Some(kind) = kind else {
            let known = KINDS.iter().map(|k| format!("{}<N>", k.name)).collect::<Vec<_>>().join(", ");
            return Err(Error::Usage(format!("--vdev {text}: no kind of port '{device}'; known: {known}")));
        };
        if number.parse::<u16>().is_err() {
            return Err(Error::Usage(format!("--vdev {text}: '{device}' needs a number, as in {stem}0")));
        }
        let name = format!("net_{}{number}", kind.name);
        let (mut args, mut ignored) = (Vec::new(), Vec::new());
        for arg in devargs.split(',').filter(|a| !a.is_empty()) {
            if kind.meaningless.contains(&arg.split('=').next().unwrap_or_default()) {
                ignored.push(format!("{arg} of {name}"));
                continue;
            }
            args.push(argument(&name, kind, arg)?);
        }
        for required in kind.required {
            if !args.iter().any(|(k, _)| k == required) {
                return Err(Error::Usage(format!("--vdev {name}: key '{required}' is required")));
            }
        }
        Ok(Vdev { name, kind: kind.name, devargs: devargs.into(), ignored, args })
    }

    /// Reads `PCI-ADDRESS,key=value,...`; `None`: it does not begin with such an address.
    fn parse_pci(text: &str) -> Option<Result<Vdev, Error>> {
        let (address, devargs) = text.split_once(',').unwrap_or((text, ""));
        let address = pci(address)?;
        let kind = KINDS.iter().find(|k| k.name == "nic").expect("among the kinds");
        let mut args = vec![("pci", address.clone())];
        for arg in devargs.split(',').filter(|a| !a.is_empty()) {
            match argument(&address, kind, arg) {
                Ok(arg) => args.push(arg),
                Err(e) => return Some(Err(e)),
            }
        }
        Some(Ok(Vdev { name: address, kind: kind.name, devargs: devargs.into(), ignored: Vec::new(), args }))
    }

    /// Values of a key that may be given again and again.
    pub fn texts(&self, name: &str) -> impl Iterator<Item = &str> {
        self.args.iter().filter(move |(k, _)| *k == name).map(|(_, v)| v.as_str())
    }

    /// The last value of a key.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.texts(name).last()
    }

    /// Permissions, checked when they were read.
    pub fn mode(&self, name: &str) -> Option<u32> {
        self.text(name).and_then(mode)
    }

    /// A number, checked when it was read.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.text(name).and_then(number)
    }

    /// A flag, checked when it was read.
    pub fn flag(&self, name: &str) -> Option<bool> {
        self.text(name).map(|v| v == "1")
    }

    /// A MAC address, checked when it was read.
    pub fn mac(&self, name: &str) -> Option<[u8; 6]> {
        self.text(name).and_then(mac)
    }
}

fn argument(device: &str, kind: &Kind, arg: &str) -> Result<(&'static str, String), Error> {
    let (name, value) = arg.split_once('=').unwrap_or((arg, "1"));
    let Some(key) = kind.keys.iter().chain(WRAPPERS).find(|k| k.name == name) else {
        let known: Vec<_> = kind.keys.iter().chain(WRAPPERS).map(|k| k.name).collect();
        return Err(Error::Usage(format!(
            "--vdev {device}: unknown key '{name}'; allowed: {}",
            known.join(", ")
        )));
    };
    let good = match key.form {
        Form::Text => !value.is_empty() && arg.contains('='),
        Form::Flag => value == "0" || value == "1",
        Form::Number(low, high) => number(value).is_some_and(|n| (low..=high).contains(&n)),
        Form::Mode => mode(value).is_some(),
        Form::Mac => mac(value).is_some(),
        Form::Faults => faults::parse(value).is_some(),
    };
    if !good {
        return Err(Error::Usage(format!(
            "--vdev {device}: bad value '{value}' of key '{name}'; allowed: {}",
            key.form
        )));
    }
    Ok((key.name, value.into()))
}

/// Reads the permissions of a file.
fn mode(text: &str) -> Option<u32> {
    u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777)
}

/// Reads a whole number; `k`, `M` and `G` multiply by powers of a thousand.
pub fn number(text: &str) -> Option<u64> {
    let (digits, factor) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 1_000),
        b'M' => (&text[..text.len() - 1], 1_000_000),
        b'G' => (&text[..text.len() - 1], 1_000_000_000),
        _ => (text, 1),
    };
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

/// Reads a PCI address, `0000:3b:00.0` or without its domain; in full.
fn pci(text: &str) -> Option<String> {
    let (place, function) = text.split_once('.')?;
    let mut parts = place.split(':').collect::<Vec<_>>();
    if parts.len() == 2 {
        parts.insert(0, "0000");
    }
    let &[domain, bus, device] = parts.as_slice() else { return None };
    let hex = |part: &str, digits| part.len() == digits && part.bytes().all(|b| b.is_ascii_hexdigit());
    let good =
        domain.len() >= 4 && hex(domain, domain.len()) && hex(bus, 2) && hex(device, 2) && hex(function, 1);
    good.then(|| format!("{domain}:{bus}:{device}.{function}").to_lowercase())
}

/// Reads `xx:xx:xx:xx:xx:xx`.
pub fn mac(text: &str) -> Option<[u8; 6]> {
    let mut out = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut out {
        let part = parts.next()?;
        if part.len() > 2 || part.starts_with('+') {
            return None;
        }
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_ports_as_dpdk_spells_them() {
        for (text, name, kind, get) in [
            ("net_vhost0,iface=/tmp/s,queues=4", "net_vhost0", "vhost", ("queues", Some("4"))),
            ("vhost12,iface=/tmp/s,client=1", "net_vhost12", "vhost", ("client", Some("1"))),
            ("virtio-user3,path=/a=b", "net_virtio_user3", "virtio_user", ("path", Some("/a=b"))),
            ("net_memif0,role=server,id=7", "net_memif0", "memif", ("id", Some("7"))),
            ("net_af_packet0,iface=eth1", "net_af_packet0", "af_packet", ("iface", Some("eth1"))),
            ("net_null0", "net_null0", "null", ("size", None)),
            ("null1,no-rx", "net_null1", "null", ("no-rx", Some("1"))),
            ("generator0,rate=2M,size=64", "net_generator0", "generator", ("rate", Some("2M"))),
            (
                "pcap0,rx_pcap=a,rx_pcap=b,fault=drop:0.1+hold:0.2",
                "net_pcap0",
                "pcap",
                ("rx_pcap", Some("b")),
            ),
        ] {
            let vdev = Vdev::parse(text).unwrap();
            assert_eq!((vdev.name.as_str(), vdev.kind, vdev.text(get.0)), (name, kind, get.1), "{text}");
        }
        let tap = Vdev::parse("tap0,fd=7,fd=8").unwrap();
        assert!(tap.texts("fd").eq(["7", "8"]));
        let pcap = Vdev::parse("pcap0,rx_pcap=a,rx_pcap=b").unwrap();
        assert!(pcap.texts("rx_pcap").eq(["a", "b"]));
        for text in ["0000:3B:00.1,queues=4", "3b:00.1,queues=4"] {
            let nic = Vdev::parse(text).unwrap();
            assert_eq!((nic.name.as_str(), nic.kind, nic.number("queues")), ("0000:3b:00.1", "nic", Some(4)));
            assert_eq!(nic.text("pci"), Some("0000:3b:00.1"));
        }
        assert_eq!(Vdev::parse("nic0,pci=3b:00.1").unwrap().name, "net_nic0");
        let user = Vdev::parse("net_virtio_user0,path=/s,cq=0,vectorized=1").unwrap();
        assert_eq!(user.ignored, ["cq=0 of net_virtio_user0", "vectorized=1 of net_virtio_user0"]);
        let generator = Vdev::parse("generator0,rate=2M").unwrap();
        assert_eq!(generator.number("rate"), Some(2_000_000));
    }

    #[test]
    fn names_what_is_wrong_and_what_is_allowed() {
        for (text, message) in [
            (
                "foo0",
                "--vdev foo0: no kind of port 'foo0'; known: vhost<N>, virtio_user<N>, memif<N>, tap<N>, af_xdp<N>, af_packet<N>, pcap<N>, null<N>, nic<N>, dpdk<N>, generator<N>",
            ),
            (
                "3b:00.0,speed=1",
                "--vdev 0000:3b:00.0: unknown key 'speed'; allowed: pci, copy_break, direct, promisc, mtu, queues, mac, tracer, record, gro, fault",
            ),
            ("net_null", "--vdev net_null: 'net_null' needs a number, as in net_null0"),
            ("vhost0", "--vdev net_vhost0: key 'iface' is required"),
            (
                "null0,sice=1",
                "--vdev net_null0: unknown key 'sice'; allowed: size, no-rx, queues, tracer, record, gro, fault",
            ),
            (
                "null0,size=1",
                "--vdev net_null0: bad value '1' of key 'size'; allowed: a number from 14 to 65535",
            ),
            ("null0,no-rx=yes", "--vdev net_null0: bad value 'yes' of key 'no-rx'; allowed: 0 or 1"),
            ("tap0,mac=1:2:3", "--vdev net_tap0: bad value '1:2:3' of key 'mac'; allowed: xx:xx:xx:xx:xx:xx"),
            (
                "null0,fault=drop:2",
                "--vdev net_null0: bad value 'drop:2' of key 'fault'; allowed: NAME:CHANCE+... of drop, duplicate, corrupt, delay, reorder and hold with a chance from 0 to 1, permute:1, turns:N, seed:N",
            ),
            (
                "memif0,rsize=15",
                "--vdev net_memif0: bad value '15' of key 'rsize'; allowed: a number from 0 to 14",
            ),
            ("af_packet0", "--vdev net_af_packet0: key 'iface' is required"),
            ("tap0,fd=x", "--vdev net_tap0: bad value 'x' of key 'fd'; allowed: a number from 0 to 1000000"),
            ("tap0,iface", "--vdev net_tap0: bad value '1' of key 'iface'; allowed: text"),
        ] {
            assert_eq!(Vdev::parse(text).unwrap_err().to_string(), message);
        }
        assert_eq!(mac("02:aB:0:0:0:1"), Some([2, 0xab, 0, 0, 0, 1]));
        assert_eq!((mac("02:ab:0:0:0"), mac("02:ab:0:0:0:1:2"), mac("02:+b:0:0:0:1")), (None, None, None));
        assert_eq!(
            (number("18446744073709551615G"), number(""), number("k"), number("-1")),
            (None, None, None, None)
        );
    }
}
