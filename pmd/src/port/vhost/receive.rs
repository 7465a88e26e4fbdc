//! Packets of a guest's transmit ring: chains with the header taken off.

use hugepages::{Buf, Offload};
use zerocopy::FromBytes;

use super::wire::Wire;
use crate::batch::{Batch, CAP};
use crate::spec::net;
use crate::vring::{Layout, Vring};

/// Bytes one ring may lend in one burst, so that a guest of large frames leaves the others their share:
/// the weight of the kernel's vhost-net.
pub(crate) const WEIGHT: u64 = 0x80000;

/// Bytes of a chain that may be a packet: more than any frame has, whatever its headers. A guest can
/// make one of 4 GiB of little memory, and whoever copies that keeps the core for a second.
pub(crate) const LONGEST: u32 = 2 * 65536;

/// Lends packets of a guest's transmit ring: pops a run of them first, so that the lines of their headers
/// are on the way, then takes the headers off. How many packets, how many chains that were none (no longer
/// than a header, or longer than [`LONGEST`]), and the bytes of the packets.
#[inline(always)]
pub(super) fn receive<L: Layout>(
    ring: &mut Vring<L>,
    wire: Wire,
    out: &mut Batch<Buf>,
) -> (usize, usize, u64) {
    let (mut packets, mut bytes, mut errors) = (0, 0u64, 0);
    if !ring.ready() {
        return (0, 0, 0);
    }
    while packets + errors < out.burst() && bytes < WEIGHT {
        let at = out.len();
        let most = out.burst() - packets - errors;
        let (n, sum) = ring.pop_simple(out, most, (wire.hdr + 1, LONGEST), WEIGHT - bytes);
        if n > 0 {
            packets += n;
            bytes += sum - n as u64 * u64::from(wire.hdr);
            headers(wire, &mut out.as_mut_slice()[at..]);
            if n < most && !ring.ready() {
                break;
            }
            continue;
        }
        let Some(chain) = ring.pop(out) else { break };
        let first = out.get_mut(at).filter(|first| first.len() > wire.hdr && chain.bytes <= LONGEST);
        if let Some(first) = first {
            if first.more() {
                let frame = out.packet_at(at).1 - wire.hdr;
                any_header(wire, out.get_mut(at).expect("looked at above"), Some(frame));
            } else {
                any_header(wire, first, None);
            }
        } else if !strip(ring, wire, out, at) {
            errors += 1;
            continue;
        }
        packets += 1;
        bytes += u64::from(chain.bytes - wire.hdr);
    }
    (packets, errors, bytes)
}

/// Takes the headers off packets of one buffer each.
#[inline(never)]
fn headers(wire: Wire, bufs: &mut [Buf]) {
    if wire.hdr == net::HDR_LEN {
        bufs.iter_mut().for_each(|buf| header::<{ net::HDR_LEN }>(wire, buf, None));
    } else if wire.hdr == net::HDR_LEN_HASH {
        bufs.iter_mut().for_each(|buf| header::<{ net::HDR_LEN_HASH }>(wire, buf, None));
    } else {
        bufs.iter_mut().for_each(|buf| header::<{ net::HDR_LEN_LEGACY }>(wire, buf, None));
    }
}

/// Takes the header off the first buffer of a packet, of `frame` bytes besides, or of which it is all.
#[inline(always)]
fn header<const HDR: u32>(wire: Wire, buf: &mut Buf, frame: Option<u32>) {
    let Some((low, high)) = buf.take_header::<HDR>() else { return };
    // Most headers ask for nothing: all ten bytes are zero.
    if low | u64::from(high) != 0 {
        let mut bytes = [0; size_of::<Offload>()];
        bytes[..8].copy_from_slice(&low.to_le_bytes());
        bytes[8..].copy_from_slice(&high.to_le_bytes());
        buf.offload = wire.believe(zerocopy::transmute!(bytes), frame.unwrap_or(buf.len()));
    }
}

/// The same for any length of header.
#[inline(always)]
fn any_header(wire: Wire, buf: &mut Buf, frame: Option<u32>) {
    if wire.hdr == net::HDR_LEN {
        header::<{ net::HDR_LEN }>(wire, buf, frame);
    } else if wire.hdr == net::HDR_LEN_HASH {
        header::<{ net::HDR_LEN_HASH }>(wire, buf, frame);
    } else {
        header::<{ net::HDR_LEN_LEGACY }>(wire, buf, frame);
    }
}

/// Takes the header off the last packet of `out`, which begins at buffer `at`, when the header does not
/// lie in its first buffer with room to spare. `false`: it was no longer than its header, or too long,
/// and is gone.
#[cold]
fn strip<L: Layout>(ring: &mut Vring<L>, wire: Wire, out: &mut Batch<Buf>, at: usize) -> bool {
    let (_, bytes) = out.packet_at(at);
    let none = bytes <= wire.hdr || bytes > LONGEST;
    let (mut header, mut got) = ([0u8; net::HDR_LEN_HASH as usize], 0);
    // Its buffers, last first: those that the header leaves empty are finished at once.
    let mut keep = [const { None }; CAP];
    let mut n = 0;
    while out.len() > at {
        keep[n] = out.pop_back();
        n += 1;
    }
    for buf in keep[..n].iter_mut().rev() {
        let mut buf = buf.take().expect("filled just now");
        let part = buf.read(0, &mut header[got..wire.hdr as usize]);
        got += part;
        buf.advance(part as u32);
        if none || buf.is_empty() {
            ring.settle(buf.finish(0));
        } else {
            out.push(buf);
        }
    }
    if let Some(buf) = out.get_mut(at) {
        let (offload, _) = Offload::read_from_prefix(&header).expect("long enough");
        buf.offload = wire.believe(offload, bytes - wire.hdr);
    }
    !none
}
