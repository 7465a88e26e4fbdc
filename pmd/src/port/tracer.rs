//! A port around a port that tells of each packet in a line: to the log (target `pmd::packet`, level
//! trace) or to a file.

use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use crate::port::watch::{Seen, Watched, Watcher, Way};
use crate::port::{Port, PortError};
use crate::spec::net::{
    GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP, GSO_UDP_L4, HDR_F_DATA_VALID, HDR_F_NEEDS_CSUM,
};

/// Bytes of a packet that are looked at: Ethernet, two VLAN tags, IPv6, ports.
const WANTS: u32 = 96;

/// Where the lines go.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// A file, made anew; `None`: the log.
    pub file: Option<PathBuf>,
}

/// Writes the lines.
#[derive(Debug)]
pub struct Log {
    file: Option<(PathBuf, BufWriter<File>)>,
    failed: Option<io::Error>,
}

/// A port around a port that tells of each packet.
pub type Tracer = Watched<Log>;

impl Tracer {
    /// Tells of the packets of `inner`.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn new(inner: Box<dyn Port>, config: Config) -> Result<Tracer, PortError> {
        let open = |path: PathBuf| match File::create(&path) {
            Ok(file) => Ok((path, BufWriter::new(file))),
            Err(source) => Err(PortError::Io {
                port: inner.name().to_owned(),
                what: format!("making {}", path.display()),
                source,
            }),
        };
        let file = config.file.map(open).transpose()?;
        Ok(Watched::around(inner, Log { file, failed: None }))
    }
}

impl Watcher for Log {
    fn wants(&self) -> u32 {
        let on = match &self.file {
            Some(_) => self.failed.is_none(),
            None => tracing::enabled!(target: "pmd::packet", tracing::Level::TRACE),
        };
        if on { WANTS } else { 0 }
    }

    fn packet(&mut self, port: &str, packet: &Seen<'_>) {
        let line = Line(port, packet);
        let Some((path, file)) = &mut self.file else {
            tracing::trace!(target: "pmd::packet", "{line}");
            return;
        };
        let (s, ns) = (packet.at.as_secs(), packet.at.subsec_nanos());
        if let Err(why) = writeln!(file, "{s}.{ns:09} {line}") {
            tracing::error!("tracing to {}: {why}; nothing more is traced", path.display());
            self.failed = Some(why);
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match (&self.failed, &mut self.file) {
            (Some(why), _) => Err(io::Error::new(why.kind(), why.to_string())),
            (None, Some((_, file))) => file.flush(),
            (None, None) => Ok(()),
        }
    }
}

/// A packet of a port in a line.
struct Line<'a>(&'a str, &'a Seen<'a>);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Line(port, seen) = self;
        let way = if seen.way == Way::Rx { "rx" } else { "tx" };
        write!(f, "{port} q{} {way} {} B: ", seen.queue, seen.len)?;
        frame(f, seen.bytes)?;
        if seen.bufs > 1 {
            write!(f, ", {} buffers", seen.bufs)?;
        }
        let offload = &seen.offload;
        if offload.flags & HDR_F_NEEDS_CSUM != 0 {
            write!(f, ", checksum open at {}+{}", offload.csum_start, offload.csum_offset)?;
        } else if offload.flags & HDR_F_DATA_VALID != 0 {
            f.write_str(", checksum verified")?;
        }
        if offload.gso_type != GSO_NONE {
            let kind = match offload.gso_type & !GSO_ECN {
                GSO_TCPV4 => "TCPv4",
                GSO_TCPV6 => "TCPv6",
                GSO_UDP => "UDP fragments",
                GSO_UDP_L4 => "UDP",
                _ => "unknown",
            };
            write!(f, ", segments of {} ({kind})", offload.gso_size)?;
        }
        Ok(())
    }
}

fn frame(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    let (Some(dst), Some(src), Some(kind)) = (part(bytes, 0), part(bytes, 6), word(bytes, 12)) else {
        return f.write_str("runt");
    };
    mac(f, src)?;
    f.write_str(" > ")?;
    mac(f, dst)?;
    let (mut kind, mut at) = (kind, 14);
    while matches!(kind, 0x8100 | 0x88A8)
        && let (Some(tag), Some(next)) = (word(bytes, at), word(bytes, at + 2))
    {
        write!(f, " VLAN {}", tag & 0xFFF)?;
        (kind, at) = (next, at + 4);
    }
    let rest = bytes.get(at..).unwrap_or_default();
    let known = match kind {
        0x0800 => ipv4(f, rest),
        0x86DD => ipv6(f, rest),
        0x0806 => arp(f, rest),
        _ => None,
    };
    known.unwrap_or_else(|| write!(f, " type {kind:#06x}"))
}

fn mac(f: &mut fmt::Formatter<'_>, mac: [u8; 6]) -> fmt::Result {
    let [a, b, c, d, e, g] = mac;
    write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
}

/// `None`: cut short.
fn ipv4(f: &mut fmt::Formatter<'_>, ip: &[u8]) -> Option<fmt::Result> {
    let (src, dst): ([u8; 4], [u8; 4]) = (part(ip, 12)?, part(ip, 16)?);
    let (src, dst) = (Ipv4Addr::from(src), Ipv4Addr::from(dst));
    let fragment = word(ip, 6)? & 0x1FFF;
    let transport = ip.get(usize::from(ip[0] & 15) * 4..).unwrap_or_default();
    let ports = if fragment == 0 { ports(ip[9], transport) } else { None };
    Some(ends(f, "IPv4", ip[9], (src, dst), ports))
}

fn ipv6(f: &mut fmt::Formatter<'_>, ip: &[u8]) -> Option<fmt::Result> {
    let (src, dst): ([u8; 16], [u8; 16]) = (part(ip, 8)?, part(ip, 24)?);
    let (src, dst) = (Ipv6Addr::from(src), Ipv6Addr::from(dst));
    let ports = ports(ip[6], ip.get(40..).unwrap_or_default());
    Some(ends(f, "IPv6", ip[6], (src, dst), ports))
}

fn ports(protocol: u8, transport: &[u8]) -> Option<(u16, u16)> {
    if matches!(protocol, 6 | 17) { Some((word(transport, 0)?, word(transport, 2)?)) } else { None }
}

fn ends<A: fmt::Display>(
    f: &mut fmt::Formatter<'_>,
    ip: &str,
    protocol: u8,
    (src, dst): (A, A),
    ports: Option<(u16, u16)>,
) -> fmt::Result {
    match protocol {
        1 | 58 => write!(f, " {ip} ICMP")?,
        6 => write!(f, " {ip} TCP")?,
        17 => write!(f, " {ip} UDP")?,
        other => write!(f, " {ip} protocol {other}")?,
    }
    match ports {
        Some((sport, dport)) => write!(f, " {src} port {sport} > {dst} port {dport}"),
        None => write!(f, " {src} > {dst}"),
    }
}

fn arp(f: &mut fmt::Formatter<'_>, arp: &[u8]) -> Option<fmt::Result> {
    let (sender, target): ([u8; 4], [u8; 4]) = (part(arp, 14)?, part(arp, 24)?);
    let (sender, target) = (Ipv4Addr::from(sender), Ipv4Addr::from(target));
    Some(match word(arp, 6)? {
        1 => write!(f, " ARP {sender} asks for {target}"),
        2 => write!(f, " ARP {sender} answers {target}"),
        other => write!(f, " ARP operation {other}"),
    })
}

fn part<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    part(bytes, at).map(u16::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Batch;
    use crate::port::generator::{self, Generator};
    use etherparse::PacketBuilder;
    use hugepages::{Backing, Offload, PageSize};
    use std::time::Duration;

    fn line(bytes: &[u8], bufs: usize, offload: Offload) -> String {
        let len = bytes.len() as u32;
        let seen = Seen { way: Way::Rx, queue: 3, at: Duration::ZERO, bytes, len, bufs, offload };
        Line("tap0", &seen).to_string()
    }

    #[test]
    fn a_packet_is_a_line() {
        let mut udp = Vec::new();
        let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let ip = builder.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
        ip.udp(1000, 53).write(&mut udp, &[0; 10]).unwrap();
        let open = Offload { flags: HDR_F_NEEDS_CSUM, csum_start: 34, csum_offset: 6, ..Offload::default() };
        assert_eq!(
            line(&udp, 1, open),
            "tap0 q3 rx 52 B: 02:00:00:00:00:01 > 02:00:00:00:00:02 IPv4 UDP 10.0.0.1 port 1000 > 10.0.0.2 \
             port 53, checksum open at 34+6"
        );
        let mut tcp = Vec::new();
        let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
            .single_vlan(7.try_into().unwrap())
            .ipv6([0; 16], [1; 16], 64);
        builder.tcp(1, 2, 3, 4).write(&mut tcp, &[0; 10]).unwrap();
        let large = Offload { gso_type: GSO_TCPV6 | GSO_ECN, gso_size: 1440, flags: 2, ..Offload::default() };
        let text = line(&tcp, 5, large);
        let end = " VLAN 7 IPv6 TCP :: port 1 > 101:101:101:101:101:101:101:101 port 2, 5 buffers, checksum \
                   verified, segments of 1440 (TCPv6)";
        assert!(text.ends_with(end), "{text}");
        // Cut anywhere, it is still a line.
        for n in 0..tcp.len() {
            assert!(line(&tcp[..n], 1, Offload::default()).starts_with("tap0 q3 rx "));
        }
        assert_eq!(line(&[0; 13], 1, Offload::default()), "tap0 q3 rx 13 B: runt");
        let mut arp = vec![0xFF; 12];
        arp.extend([
            8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2,
        ]);
        assert!(line(&arp, 1, Offload::default()).ends_with(" ARP 10.0.0.1 asks for 10.0.0.2"));
    }

    #[test]
    fn lines_go_to_a_file() {
        let path = std::env::temp_dir().join(format!("hotring-{}-trace", std::process::id()));
        let backing = Backing { page: PageSize::Base, node: None };
        let config = generator::Config { count: Some(20), backing, ..generator::Config::default() };
        let inner = Box::new(Generator::new("gen0", config).unwrap());
        let mut port = Tracer::new(inner, Config { file: Some(path.clone()) }).unwrap();
        let mut queues = port.start(1).unwrap();
        let (mut batch, mut loans) = (Batch::default(), Batch::default());
        queues[0].rx(&mut batch);
        queues[0].tx(&mut batch);
        queues[0].reap(&mut loans);
        queues[0].settle(&mut loans);
        port.stop(queues).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        assert_eq!(text.lines().filter(|l| l.contains(" gen0 q0 rx 64 B: ")).count(), 20);
        assert_eq!(text.lines().filter(|l| l.contains(" gen0 q0 tx 64 B: ")).count(), 20);
    }
}
