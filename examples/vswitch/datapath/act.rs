//! What is done to a packet. One that is only sent goes as it lies; of one that is changed the headers
//! are copied, and the payload goes as it lies; copies are made only for more than one receiver.

use std::sync::{Arc, PoisonError};

use hugepages::Buf;
use pmd::Batch;
use pmd::worker::{Outbox, QueueId};

use super::{Datapath, MAX_ROUNDS, NONE, gather, port_of, queue_of};
use crate::vswitch::bridge::{Injected, Megaflow};
use crate::vswitch::conntrack::{self, Beyond, Rewritten, Tuple};
use crate::vswitch::flow::key::{proto, word};
use crate::vswitch::flow::{Field, Key};
use crate::vswitch::packet::{HEAD, Head, parse};
use crate::vswitch::pipeline::op::Op;

/// Most bytes of a packet sent to a controller.
const MAX_TOLD: usize = 65_535;

/// A packet that something is done to: its headers as they are now, and the rest of it.
pub(super) struct Packet {
    head: Head,
    /// Bytes of `rest` that `head` stands for.
    skip: u32,
    /// Nothing of the headers differs from what lies in `rest`.
    intact: bool,
    truncate: Option<u32>,
    key: Key,
}

/// The buffers of one packet: few, but for hostile guests.
pub(super) type Rest = Vec<Buf>;

/// Drops the first packet of a batch.
pub(super) fn discard(batch: &mut Batch<Buf>, out: &mut Outbox) {
    while let Some(buf) = batch.pop_front() {
        let more = buf.more();
        out.drop(buf);
        if !more {
            return;
        }
    }
}

fn drop_rest(rest: &mut Rest, out: &mut Outbox) {
    rest.drain(..).for_each(|buf| out.drop(buf));
}

/// Whether operations change nothing and only one of them, the last, needs the packet.
fn plain(ops: &[Op]) -> Option<u32> {
    match ops {
        [Op::Output(dp)] => Some(*dp),
        _ => None,
    }
}

impl Datapath {
    /// Does what is to be done to the first packet of a batch.
    #[inline]
    pub(super) fn act_on_first(
        &mut self,
        from: QueueId,
        place: u32,
        batch: &mut Batch<Buf>,
        out: &mut Outbox,
    ) {
        let flow = self.cache.get(place);
        if let Some(dp) = plain(&flow.ops) {
            let to = queue_of(dp);
            while let Some(buf) = batch.pop_front() {
                let more = buf.more();
                out.send(to, buf);
                if !more {
                    break;
                }
            }
            return;
        }
        if flow.ops.is_empty() {
            return discard(batch, out);
        }
        let flow = Arc::clone(flow);
        self.act(from, &flow, batch, out);
    }

    fn act(&mut self, from: QueueId, flow: &Arc<Megaflow>, batch: &mut Batch<Buf>, out: &mut Outbox) {
        let (buffers, bytes) = batch.packet_at(0);
        let mut first = [0; HEAD];
        let n = gather(batch, 0, buffers, &mut first);
        let offload = batch.front().map(|b| b.offload).unwrap_or_default();
        let mut rest = std::mem::take(&mut self.rest);
        rest.extend((0..buffers).filter_map(|_| batch.pop_front()));
        let mut key = Key::default();
        key.set_in_port(port_of(from));
        parse(&first[..n], bytes as usize, &mut key);
        let head = Head::new(&first[..n], bytes as usize, offload);
        let mut packet = Packet { head, skip: n as u32, intact: true, truncate: None, key };
        self.run(&flow.ops, &mut packet, &mut rest, out, 0);
        drop_rest(&mut rest, out);
        self.rest = rest;
    }

    /// Does operations in turn. The last that needs the buffers takes them.
    fn run(&mut self, ops: &[Op], packet: &mut Packet, rest: &mut Rest, out: &mut Outbox, round: u32) {
        for (i, op) in ops.iter().enumerate() {
            let last = i + 1 == ops.len();
            match op {
                Op::Output(dp) => {
                    self.output(*dp, packet, rest, last, out);
                    packet.truncate = None;
                }
                Op::Trunc(len) => packet.truncate = Some(*len),
                Op::Controller(to) => {
                    let data = packet.bytes(rest);
                    self.switch.packet_in(to, &data, &packet.key);
                }
                Op::Meter(_, bucket) => {
                    if !bucket.pass(packet.head.size() as u64) {
                        self.stats.dropped.add(1);
                        return;
                    }
                }
                Op::Clone(inner) => {
                    let mut copy = Packet { head: packet.head.clone(), ..*packet };
                    if last {
                        self.run(inner, &mut copy, rest, out, round);
                    } else if let Some(frame) = duplicate(packet, rest, out) {
                        (copy.skip, copy.intact) = (packet.head.bytes().len() as u32, true);
                        let mut buffers = vec![frame];
                        self.run(inner, &mut copy, &mut buffers, out, round);
                        drop_rest(&mut buffers, out);
                    }
                }
                Op::Recirc(id) => {
                    if round < MAX_ROUNDS {
                        self.again(*id, packet, rest, out, round + 1);
                    }
                    return;
                }
                Op::Ct(_) | Op::CtClear => self.track(op, packet),
                edit => packet.edit(edit),
            }
        }
    }

    /// Looks a packet up once more.
    fn again(&mut self, id: u32, packet: &mut Packet, rest: &mut Rest, out: &mut Outbox, round: u32) {
        self.stats.recirculated.add(1);
        let mut key = Key::default();
        key.set_in_port(packet.key.in_port());
        parse(packet.head.bytes(), packet.head.size(), &mut key);
        key.words[word::IN] |= u64::from(id);
        key.words[word::CT..word::HASH].copy_from_slice(&packet.key.words[word::CT..word::HASH]);
        let place = self.place_of(&key);
        if place == NONE {
            return;
        }
        self.count(place, 1, packet.head.size() as u64);
        packet.key = key;
        let flow = Arc::clone(self.cache.get(place));
        self.run(&flow.ops, packet, rest, out, round);
    }

    fn track(&mut self, op: &Op, packet: &mut Packet) {
        let Op::Ct(ct) = op else {
            return conntrack::clear(&mut packet.key);
        };
        // The fields as they are now, and what is known of its connection so far.
        let mut key = Key::default();
        let layers = parse(packet.head.bytes(), packet.head.size(), &mut key);
        key.set_in_port(packet.key.in_port());
        key.lay(Field::PktMark, packet.key.lie(Field::PktMark));
        let upper =
            if layers.l4 == 0 { &[] } else { packet.head.bytes().get(layers.l4..).unwrap_or_default() };
        let beyond = Beyond::of(&key, upper);
        let table = &self.switch.conntrack;
        let rewritten =
            table.lock().unwrap_or_else(PoisonError::into_inner).track(ct, &mut key, &beyond, self.now_ms);
        packet.key.words[word::CT..word::TUN_ID].copy_from_slice(&key.words[word::CT..word::TUN_ID]);
        if let Some(Rewritten { tuple }) = rewritten {
            packet.intact = false;
            packet.readdress(&tuple);
        }
    }

    fn output(&mut self, dp: u32, packet: &Packet, rest: &mut Rest, last: bool, out: &mut Outbox) {
        let to = queue_of(dp);
        if !out.has(to) {
            return;
        }
        if packet.truncate.is_some() || !last {
            if let Some(copy) = duplicate(packet, rest, out) {
                out.send(to, copy);
            }
            return;
        }
        if !packet.intact && !packet.settle(rest, out) {
            self.stats.dropped.add(1);
            return;
        }
        rest.drain(..).for_each(|buf| out.send(to, buf));
    }

    /// Sends a packet that came from no queue.
    #[cold]
    pub(super) fn inject(&mut self, injected: &Injected, out: &mut Outbox) {
        let Some(mut frame) = out.frame(injected.data.len() as u32) else { return };
        frame.write(0, &injected.data);
        let size = injected.data.len();
        let n = size.min(HEAD);
        let head = Head::new(&injected.data[..n], size, Default::default());
        let mut packet = Packet { head, skip: n as u32, intact: true, truncate: None, key: injected.key };
        let mut rest = vec![frame];
        self.run(&injected.ops, &mut packet, &mut rest, out, 0);
        drop_rest(&mut rest, out);
    }
}

/// The packet as it is now, copied into a frame of the core's own. `None`: none is free.
fn duplicate(packet: &Packet, rest: &Rest, out: &mut Outbox) -> Option<Buf> {
    let size = packet.head.size() as u32;
    let len = packet.truncate.map_or(size, |t| t.min(size));
    let mut frame = out.frame(len)?;
    let head = packet.head.bytes();
    frame.write(0, head);
    let (mut at, mut skip) = (head.len() as u32, packet.skip);
    for buf in rest {
        let from = skip.min(buf.len());
        skip -= from;
        if at < len {
            at += buf.copy_part(from, &mut frame, at, len - at);
        }
    }
    // What is cut cannot be cut up further.
    frame.offload = if len < size { Default::default() } else { packet.head.offload };
    Some(frame)
}

impl Packet {
    /// All bytes of it, as they are now.
    fn bytes(&self, rest: &Rest) -> Vec<u8> {
        let mut data = self.head.bytes().to_vec();
        let mut skip = self.skip;
        for buf in rest {
            let from = skip.min(buf.len());
            skip -= from;
            let start = data.len();
            data.resize((start + (buf.len() - from) as usize).min(MAX_TOLD), 0);
            let _ = buf.read(from, &mut data[start..]);
        }
        data
    }

    fn edit(&mut self, op: &Op) {
        self.intact = false;
        match op {
            Op::Set(set) => {
                self.head.set(&set.0, &set.1);
                let mark = Field::PktMark;
                if set.1.lie(mark) != 0 {
                    self.key.lay(mark, set.0.lie(mark));
                }
            }
            Op::PushVlan(kind, tci) => drop(self.head.push_vlan(*kind, *tci)),
            Op::PopVlan => drop(self.head.pop_vlan()),
            Op::PushMpls(kind, entry) => drop(self.head.push_mpls(*kind, *entry)),
            Op::PopMpls(kind) => drop(self.head.pop_mpls(*kind)),
            _ => {}
        }
    }

    /// Gives it the addresses of a tuple.
    fn readdress(&mut self, to: &Tuple) {
        let (src, dst) = match to.v6 {
            false => (Field::NwSrc, Field::NwDst),
            true => (Field::Ipv6Src, Field::Ipv6Dst),
        };
        // A field that the packet has not is not written.
        let _ = self.head.set_field(src, to.src, u128::MAX);
        let _ = self.head.set_field(dst, to.dst, u128::MAX);
        if !matches!(to.proto, proto::ICMP | proto::ICMP6) {
            let _ = self.head.set_field(Field::TcpSrc, to.src_port.into(), 0xffff);
            let _ = self.head.set_field(Field::TcpDst, to.dst_port.into(), 0xffff);
        }
    }

    /// Has the buffers begin with the headers as they are now; `false`: no frame is free.
    fn settle(&self, rest: &mut Rest, out: &mut Outbox) -> bool {
        let head = self.head.bytes();
        let Some(mut frame) = out.frame(head.len() as u32) else { return false };
        frame.write(0, head);
        frame.offload = self.head.offload;
        let mut skip = self.skip;
        let mut i = 0;
        while i < rest.len() {
            let gone = skip.min(rest[i].len());
            skip -= gone;
            rest[i].advance(gone);
            if rest[i].is_empty() {
                let mut empty = rest.remove(i);
                // Its bytes are in the frame: this is no packet that is dropped.
                empty.set_more(true);
                out.drop(empty);
            } else {
                i += 1;
            }
        }
        if let Some(end) = rest.last_mut() {
            end.set_more(false);
        }
        frame.set_more(!rest.is_empty());
        rest.insert(0, frame);
        true
    }
}
