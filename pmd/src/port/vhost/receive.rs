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

/// Lends packets of a guest's transmit ring: pops a burst first, so that the lines of its headers are
/// on the way, then takes the headers off. How many packets, how many chains that were none, and the
/// bytes of the packets.
#[inline(always)]
pub(super) fn receive<L: Layout>(
    ring: &mut Vring<L>,
    wire: Wire,
    out: &mut Batch<Buf>,
) -> (usize, usize, u64) {
    let mut plain = [0u8; CAP];
    let (mut plains, mut packets, mut bytes, mut errors) = (0, 0, 0u64, 0);
    while packets + errors < out.burst() && bytes < WEIGHT {
        let at = out.len();
        let Some(chain) = ring.pop(out) else { break };
        let first = out.get(at).filter(|first| first.len() > wire.hdr);
        if let Some(first) = first {
            first.prefetch();
            plain[plains] = at as u8;
            plains += 1;
        } else if !strip(ring, wire, out, at) {
            errors += 1;
            continue;
        }
        packets += 1;
        bytes += u64::from(chain.bytes - wire.hdr);
    }
    for &at in &plain[..plains] {
        let buf = out.get_mut(at.into()).expect("popped just now");
        let offload = buf.peek::<Offload>(0).expect("longer than a header");
        buf.advance(wire.hdr);
        if offload != Offload::default() {
            let (_, frame) = out.packet_at(at.into());
            out.get_mut(at.into()).expect("popped just now").offload = wire.believe(offload, frame);
        }
    }
    (packets, errors, bytes)
}

/// Takes the header off the last packet of `out`, which begins at buffer `at`, when the header does not
/// lie in its first buffer with room to spare. `false`: it was no longer than its header and is gone.
#[cold]
fn strip<L: Layout>(ring: &mut Vring<L>, wire: Wire, out: &mut Batch<Buf>, at: usize) -> bool {
    let (_, bytes) = out.packet_at(at);
    let runt = bytes <= wire.hdr;
    let (mut header, mut got) = ([0u8; net::HDR_LEN as usize], 0);
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
        if runt || buf.is_empty() {
            ring.settle(buf.finish(0));
        } else {
            out.push(buf);
        }
    }
    if let Some(buf) = out.get_mut(at) {
        let (offload, _) = Offload::read_from_prefix(&header).expect("long enough");
        buf.offload = wire.believe(offload, bytes - wire.hdr);
    }
    !runt
}
