//! Where rings, buffers and frames of a port lie in its memory.

use std::sync::Arc;

use hugepages::{Backing, Lender, Map, MapError, Table};

use crate::args::{Header, Shape};
use crate::frames::Size;

/// Bytes from one header to the next, where headers have buffers of their own.
const HEADER_STRIDE: u64 = 64;
const PAGE: u64 = 4096;

/// Where everything of a queue pair lies: addresses in the memory of its port.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places {
    /// The rings, receive and transmit.
    pub(crate) rings: [u64; 2],
    /// Their indirect tables, if they have any.
    pub(crate) tables: [Option<u64>; 2],
    /// Buffers of an entry of each ring.
    pub(crate) parts: [u16; 2],
    /// Bytes of the virtio-net header.
    pub(crate) hdr: u32,
    /// Bytes of a receive buffer, and whether the header has a buffer of its own beside it.
    room: u32,
    headers: [u64; 2],
    rooms: u64,
    frames: u64,
    stride: u64,
    end: u64,
}

impl Places {
    /// The places of a queue pair from `at` on, its rings of `ring` bytes each.
    pub(crate) fn at(at: u64, ring: u64, shape: &Shape, frame: Size) -> Places {
        let n = u64::from(shape.size);
        let own = shape.header == Header::Own;
        let parts = [1 + u16::from(own && shape.no_mergeable), 1 + u16::from(own)];
        let (hdr, room) = (shape.hdr(), shape.room(frame));
        let whole = u64::from((hdr + frame.longest()).max(room)).next_multiple_of(64);
        let stride = u64::from(shape.stride).next_multiple_of(64).max(whole);
        let mut next = at;
        let mut take = |bytes: u64| {
            let at = next;
            next = (at + bytes).next_multiple_of(PAGE);
            at
        };
        let rings = [take(ring), take(ring)];
        let tables = parts.map(|parts| take(n * 16 * u64::from(parts)));
        let used = [shape.indirect && parts[0] > 1, shape.indirect];
        let tables = [used[0].then_some(tables[0]), used[1].then_some(tables[1])];
        let headers = [take(n * HEADER_STRIDE), take(n * HEADER_STRIDE)];
        let (rooms, frames) = (take(n * stride), take(n * stride));
        Places { rings, tables, parts, hdr, room, headers, rooms, frames, stride, end: next }
    }

    /// Address and length of a buffer of receive entry `entry`: header and frame, or one of them.
    pub(crate) fn room(&self, entry: u16, part: u16) -> (u64, u32) {
        let at = self.rooms + u64::from(entry) * self.stride;
        match (self.parts[0], part) {
            (1, _) => (at, self.room),
            (_, 0) => (self.headers[0] + u64::from(entry) * HEADER_STRIDE, self.hdr),
            _ => (at, self.room - self.hdr),
        }
    }

    /// Address and length of a buffer of transmit entry `entry`, with a frame of `len` bytes.
    pub(crate) fn packet(&self, entry: u16, part: u16, len: u32) -> (u64, u32) {
        let at = self.frames + u64::from(entry) * self.stride;
        match (self.parts[1], part) {
            (1, _) => (at, self.hdr + len),
            (_, 0) => (self.headers[1] + u64::from(entry) * HEADER_STRIDE, self.hdr),
            _ => (at, len),
        }
    }

    /// Where the virtio-net header of receive entry `entry` lies.
    pub(crate) fn room_header(&self, entry: u16) -> u64 {
        self.room(entry, 0).0
    }

    /// Where the frame of receive entry `entry` begins.
    pub(crate) fn room_frame(&self, entry: u16) -> u64 {
        self.room(entry, self.parts[0] - 1).0 + if self.parts[0] == 1 { u64::from(self.hdr) } else { 0 }
    }

    /// Where the frame of transmit entry `entry` begins.
    pub(crate) fn frame(&self, entry: u16) -> u64 {
        self.frames
            + u64::from(entry) * self.stride
            + if self.parts[1] == 1 { u64::from(self.hdr) } else { 0 }
    }
}

/// The memory of a port, and the places of its queue pairs.
pub(crate) struct Memory {
    pub(crate) table: Arc<Table>,
    pub(crate) pairs: Vec<Places>,
    /// The file behind it, its length, and our address of it.
    pub(crate) file: (std::os::fd::OwnedFd, u64, u64),
    /// Bytes of its pages.
    pub(crate) page: usize,
}

impl Memory {
    /// Memory for a port of rings of `ring` bytes; says so when it must do without huge pages.
    pub(crate) fn new(ring: u64, shape: &Shape, frame: Size) -> Result<Memory, MapError> {
        let (mut pairs, mut at) = (Vec::new(), 0);
        for _ in 0..shape.queues {
            let places = Places::at(at, ring, shape, frame);
            at = places.end;
            pairs.push(places);
        }
        let (map, fallback) = Map::shared_or_base(at as usize, Backing::default())?;
        if let Some(why) = fallback {
            eprintln!("linerate: ordinary pages are used: {why}");
        }
        let fd = map.fd().try_clone_to_owned().map_err(|e| MapError::Os {
            what: "duplicating a memory fd",
            errno: rustix::io::Errno::from_io_error(&e).unwrap_or(rustix::io::Errno::MFILE),
        })?;
        let (file, page) = ((fd, map.len() as u64, map.address()), map.page());
        Ok(Memory { table: Table::of(map), pairs, file, page })
    }
}

/// Writes `bytes` to `at`.
pub(crate) fn write(lender: &Lender, at: u64, bytes: &[u8]) {
    let mut buf = lender.lend_writable(at, bytes.len() as u32, 0).expect("the places lie in the memory");
    buf.write(0, bytes);
    lender.settle(buf.finish(0));
}

/// Reads bytes from `at` on.
pub(crate) fn read(lender: &Lender, at: u64, bytes: &mut [u8]) {
    let buf = lender.lend(at, bytes.len() as u32, 0).expect("the places lie in the memory");
    buf.read(0, bytes);
    lender.settle(buf.finish(0));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Args;
    use clap::Parser;

    fn places(args: &str) -> Places {
        let args = Args::parse_from(format!("linerate --path a {args}").split_whitespace());
        Places::at(1 << 20, 8192, &args.shape, args.frame[0])
    }

    #[test]
    fn nothing_lies_on_something_else() {
        for args in [
            "",
            "--header own",
            "--header own --no-mergeable --frame 9014",
            "--header own --no-mergeable --legacy",
            "--legacy --no-mergeable --frame imix",
            "--stride 64 --room 128",
            "--frame 9000 --stride 9216 --size 256",
        ] {
            let p = places(args);
            let n = 256u16;
            let mut all: Vec<(u64, u64)> = p.rings.iter().map(|&at| (at, 8192)).collect();
            for entry in 0..n {
                all.extend((0..p.parts[0]).map(|part| p.room(entry, part)).map(|(a, l)| (a, l.into())));
                let packet = |part| p.packet(entry, part, 60);
                all.extend((0..p.parts[1]).map(packet).map(|(a, l)| (a, l.into())));
            }
            all.push((p.end, 1));
            all.sort_unstable();
            assert!(all[0].0 >= 1 << 20);
            for pair in all.windows(2) {
                assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{args}: {pair:x?}");
            }
        }
    }

    #[test]
    fn a_frame_follows_its_header_or_begins_its_own_buffer() {
        let p = places("");
        assert_eq!((p.parts, p.hdr), ([1, 1], 12));
        assert_eq!(p.packet(3, 0, 60), (p.frame(3) - 12, 72));
        assert_eq!(p.room(3, 0), (p.room_frame(3) - 12, 2048));
        assert_eq!(p.room_header(3), p.room_frame(3) - 12);
        let p = places("--header own --no-mergeable --legacy");
        assert_eq!((p.parts, p.hdr), ([2, 2], 10));
        assert_eq!(p.packet(3, 0, 60).1, 10);
        assert_eq!(p.packet(3, 1, 60), (p.frame(3), 60));
        assert_eq!(p.room(3, 1), (p.room_frame(3), 2038));
        assert_eq!(p.room(3, 0), (p.room_header(3), 10));
        let p = places("--no-mergeable --frame 9000");
        assert_eq!(p.room(0, 0).1, 9024);
        assert_eq!(p.room(1, 0).0 - p.room(0, 0).0, 9024);
        assert_eq!(places("--header own --indirect").tables.map(|t| t.is_some()), [false, true]);
        assert_eq!(places("--header own --indirect --no-mergeable").tables.map(|t| t.is_some()), [true; 2]);
    }
}
