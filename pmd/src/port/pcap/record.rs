//! Packets written to a capture file, and a port around a port that does so with all that pass.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pcap_file::pcap::PcapHeader;
use pcap_file::{DataLink, Endianness, TsResolution};

use crate::port::watch::{Seen, Watched, Watcher};
use crate::port::{Port, PortError};

use super::capture::plain;

/// Bytes of a packet that are recorded at most: what tcpdump takes.
pub(super) const SNAPLEN: u32 = 1 << 18;
/// Bytes that are gathered before they are written.
const BUFFER: usize = 1 << 20;

/// A capture file that is being written, with times in nanoseconds.
#[derive(Debug)]
pub struct Recorder {
    path: PathBuf,
    file: BufWriter<File>,
    failed: bool,
}

impl Recorder {
    /// Makes the file anew.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(path: &Path) -> io::Result<Recorder> {
        let header = PcapHeader {
            snaplen: SNAPLEN,
            datalink: DataLink::ETHERNET,
            ts_resolution: TsResolution::NanoSecond,
            endianness: Endianness::native(),
            ..PcapHeader::default()
        };
        let mut file = BufWriter::with_capacity(BUFFER, File::create(path)?);
        header.write_to(&mut file).map_err(plain)?;
        Ok(Recorder { path: path.to_owned(), file, failed: false })
    }

    /// Adds a packet of `len` bytes, of which `bytes` are at hand; `false` when the file cannot be
    /// written, which is logged once.
    pub fn add(&mut self, at: Duration, bytes: &[u8], len: u32) -> bool {
        if self.failed {
            return false;
        }
        let mut write = || {
            // Seconds (the format ends in 2106), nanoseconds, bytes here, bytes there.
            for field in [at.as_secs() as u32, at.subsec_nanos(), bytes.len() as u32, len] {
                self.file.write_all(&field.to_ne_bytes())?;
            }
            self.file.write_all(bytes)
        };
        if let Err(why) = write() {
            tracing::error!("recording to {}: {why}; nothing more is recorded", self.path.display());
            self.failed = true;
        }
        !self.failed
    }

    /// Writes what is still in memory.
    ///
    /// # Errors
    /// When it cannot, or could not write something earlier.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.failed {
            let what = format!("{} is incomplete: a write failed", self.path.display());
            return Err(io::Error::other(what));
        }
        self.file.flush().map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", self.path.display())))
    }
}

impl Watcher for Recorder {
    fn wants(&self) -> u32 {
        if self.failed { 0 } else { SNAPLEN }
    }

    /// As it passes: an open checksum stays open, a packet to be segmented stays whole.
    fn packet(&mut self, _: &str, packet: &Seen<'_>) {
        self.add(packet.at, packet.bytes, packet.len);
    }

    fn flush(&mut self) -> io::Result<()> {
        Recorder::flush(self)
    }
}

/// A port around a port that records what passes, both ways in one file.
pub type Tap = Watched<Recorder>;

impl Tap {
    /// Records the packets of `inner` to `path`, made anew. It is complete when the port has stopped.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn new(inner: Box<dyn Port>, path: &Path) -> Result<Tap, PortError> {
        match Recorder::create(path) {
            Ok(recorder) => Ok(Watched::around(inner, recorder)),
            Err(source) => Err(PortError::Io {
                port: inner.name().to_owned(),
                what: format!("making {}", path.display()),
                source,
            }),
        }
    }
}
