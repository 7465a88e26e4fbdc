//! The packets of a capture file, in memory.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek};
use std::path::Path;

use pcap_file::pcap::PcapReader;
use pcap_file::pcapng::{Block, PcapNgReader};
use pcap_file::{DataLink, PcapError};

use crate::spec::net::MAX_FRAME;

/// Most bytes of packets that are taken from a file.
pub const MAX_BYTES: usize = 1 << 30;
/// Bytes of the smallest packet that is one: an Ethernet header.
const MIN_FRAME: usize = 14;
/// First block of a pcapng file, in either byte order.
const PCAPNG: [u8; 4] = [0x0A, 0x0D, 0x0D, 0x0A];

/// Packets, in the order of the file.
#[derive(Debug, Default)]
pub(super) struct Capture {
    bytes: Vec<u8>,
    /// Where each packet ends.
    ends: Vec<u32>,
    /// Packets left out: no Ethernet, shorter than its header or longer than any frame.
    pub(super) skipped: u64,
    /// The file ends within a packet.
    pub(super) cut: bool,
}

impl Capture {
    /// Reads a pcap or pcapng file.
    ///
    /// # Errors
    /// When it cannot be read, is neither, holds no Ethernet frame or more than [`MAX_BYTES`].
    pub(super) fn load(path: &Path) -> io::Result<Capture> {
        let mut file = File::open(path)?;
        let mut magic = [0; 4];
        file.read_exact(&mut magic)?;
        file.rewind()?;
        let mut capture = Capture::default();
        let read = if magic == PCAPNG { capture.read_pcapng(file) } else { capture.read_pcap(file) };
        match read {
            // A recorder that was killed leaves half a packet at the end.
            Err(e) if e.kind() == ErrorKind::UnexpectedEof && capture.len() > 0 => capture.cut = true,
            other => other?,
        }
        if capture.len() == 0 {
            let what = format!("no Ethernet frame in it ({} other packets)", capture.skipped);
            return Err(io::Error::new(ErrorKind::InvalidData, what));
        }
        Ok(capture)
    }

    /// Packets in it.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Packet `i`.
    #[inline]
    pub(super) fn get(&self, i: usize) -> Option<&[u8]> {
        let end = *self.ends.get(i)? as usize;
        let start = if i == 0 { 0 } else { self.ends[i - 1] as usize };
        Some(&self.bytes[start..end])
    }

    fn read_pcap(&mut self, file: File) -> io::Result<()> {
        let mut reader = PcapReader::new(file).map_err(plain)?;
        let ethernet = reader.header().datalink == DataLink::ETHERNET;
        while let Some(packet) = reader.next_raw_packet() {
            self.add(&packet.map_err(plain)?.data, ethernet)?;
        }
        Ok(())
    }

    fn read_pcapng(&mut self, file: File) -> io::Result<()> {
        let mut reader = PcapNgReader::new(file).map_err(plain)?;
        // Link types of the section's interfaces, in the order of their blocks.
        let mut ethernet = Vec::new();
        while let Some(block) = reader.next_block() {
            let (interface, data) = match block.map_err(plain)? {
                Block::SectionHeader(_) => {
                    ethernet.clear();
                    continue;
                }
                Block::InterfaceDescription(interface) => {
                    ethernet.push(interface.linktype == DataLink::ETHERNET);
                    continue;
                }
                Block::EnhancedPacket(packet) => (packet.interface_id as usize, packet.data),
                Block::Packet(packet) => (usize::from(packet.interface_id), packet.data),
                Block::SimplePacket(packet) => (0, packet.data),
                _ => continue,
            };
            self.add(&data, ethernet.get(interface) == Some(&true))?;
        }
        Ok(())
    }

    fn add(&mut self, packet: &[u8], ethernet: bool) -> io::Result<()> {
        if !ethernet || !(MIN_FRAME..=MAX_FRAME as usize).contains(&packet.len()) {
            self.skipped += 1;
            return Ok(());
        }
        if self.bytes.len() + packet.len() > MAX_BYTES {
            let what = format!("more than {MAX_BYTES} bytes of packets; cut it: editcap -r IN OUT 1-1000000");
            return Err(io::Error::new(ErrorKind::FileTooLarge, what));
        }
        self.bytes.extend_from_slice(packet);
        self.ends.push(self.bytes.len() as u32);
        Ok(())
    }
}

/// The crate's message says less than the error inside it.
pub(super) fn plain(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(e) => e,
        other => io::Error::new(ErrorKind::InvalidData, format!("no valid pcap or pcapng file: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
    use pcap_file::pcapng::PcapNgWriter;
    use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
    use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionBlock;
    use std::path::PathBuf;
    use std::time::Duration;

    fn file(name: &str, bytes: &[u8]) -> PathBuf {
        let path = std::env::temp_dir().join(format!("hotring-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn load(name: &str, bytes: &[u8]) -> io::Result<Capture> {
        let path = file(name, bytes);
        let capture = Capture::load(&path);
        std::fs::remove_file(path).unwrap();
        capture
    }

    fn pcap(datalink: DataLink, packets: &[Vec<u8>]) -> Vec<u8> {
        let header = PcapHeader { datalink, snaplen: 1 << 18, ..PcapHeader::default() };
        let mut writer = PcapWriter::with_header(Vec::new(), header).unwrap();
        for packet in packets {
            let packet = PcapPacket::new(Duration::from_secs(1), packet.len() as u32, packet);
            writer.write_packet(&packet).unwrap();
        }
        writer.into_writer()
    }

    #[test]
    fn reads_both_formats_and_leaves_out_what_is_no_frame() {
        let packets = [vec![1; 60], vec![2; 13], vec![3; 65554], vec![4; 65555], vec![5; 14]];
        let capture = load("a.pcap", &pcap(DataLink::ETHERNET, &packets)).unwrap();
        assert_eq!((capture.len(), capture.skipped, capture.cut), (3, 2, false));
        assert_eq!(capture.get(0), Some(&packets[0][..]));
        assert_eq!(capture.get(1), Some(&packets[2][..]));
        assert_eq!((capture.get(2), capture.get(3)), (Some(&packets[4][..]), None));

        let mut writer = PcapNgWriter::new(Vec::new()).unwrap();
        for link in [DataLink::RAW, DataLink::ETHERNET] {
            let interface = InterfaceDescriptionBlock { linktype: link, snaplen: 0, options: vec![] };
            writer.write_pcapng_block(interface).unwrap();
        }
        for (interface_id, packet) in [(1, &packets[0]), (0, &packets[0]), (1, &packets[4])] {
            let block = EnhancedPacketBlock {
                interface_id,
                timestamp: Duration::ZERO,
                original_len: packet.len() as u32,
                data: packet.into(),
                options: vec![],
            };
            writer.write_pcapng_block(block).unwrap();
        }
        let capture = load("a.pcapng", &writer.into_inner()).unwrap();
        assert_eq!((capture.len(), capture.skipped), (2, 1));
        assert_eq!(capture.get(1), Some(&packets[4][..]));
    }

    #[test]
    fn a_cut_file_gives_what_it_has_and_no_capture_is_an_error() {
        let whole = pcap(DataLink::ETHERNET, &[vec![1; 60], vec![2; 60]]);
        let capture = load("cut.pcap", &whole[..whole.len() - 1]).unwrap();
        assert_eq!((capture.len(), capture.cut), (1, true));
        for (name, bytes, kind) in [
            ("empty.pcap", vec![], ErrorKind::UnexpectedEof),
            ("text.pcap", b"a text is not a capture, however long".to_vec(), ErrorKind::InvalidData),
            ("raw.pcap", pcap(DataLink::RAW, &[vec![1; 60]]), ErrorKind::InvalidData),
            ("none.pcap", pcap(DataLink::ETHERNET, &[]), ErrorKind::InvalidData),
        ] {
            assert_eq!(load(name, &bytes).unwrap_err().kind(), kind, "{name}");
        }
    }
}
