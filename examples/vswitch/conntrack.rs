//! Connections: zones, states, commit, NAT, related ICMP errors, limits.
//!
//! A connection is kept under both its directions' addresses; with NAT the reply's are those that the
//! other side sees. States of TCP are followed as far as timeouts need it.

mod nat;
mod tuple;

use std::collections::HashMap;

use super::flow::{Field, Key};
use super::pipeline::op::CtOp;
pub use tuple::{Beyond, Tuple};

/// Bits of `ct_state`.
#[allow(missing_docs)]
pub mod state {
    pub const NEW: u32 = 0x01;
    pub const ESTABLISHED: u32 = 0x02;
    pub const RELATED: u32 = 0x04;
    pub const REPLY: u32 = 0x08;
    pub const INVALID: u32 = 0x10;
    pub const TRACKED: u32 = 0x20;
    pub const SRC_NAT: u32 = 0x40;
    pub const DST_NAT: u32 = 0x80;
}

/// Most connections, unless it is set otherwise.
pub const MAX_CONNECTIONS: usize = 1 << 18;

/// Milliseconds after which a connection that nothing passes by is forgotten.
mod timeout {
    pub(super) const UDP_FIRST: u64 = 60_000;
    pub(super) const UDP: u64 = 120_000;
    pub(super) const ICMP: u64 = 60_000;
    pub(super) const TCP_OPENING: u64 = 30_000;
    pub(super) const TCP_ESTABLISHED: u64 = 86_400_000;
    pub(super) const TCP_CLOSING: u64 = 90_000;
}

/// A connection.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Addresses of the first direction.
    pub original: Tuple,
    /// Addresses of the answers.
    pub reply: Tuple,
    /// Mark.
    pub mark: u32,
    /// Label.
    pub label: u128,
    /// An answer came.
    pub answered: bool,
    /// Flags of TCP that were seen, by direction.
    flags: [u8; 2],
    /// When it is forgotten.
    pub until_ms: u64,
}

/// What is known of connections.
#[derive(Debug, Default)]
pub struct Conntrack {
    connections: HashMap<u64, Connection>,
    /// Number and direction (1: reply) of each tuple.
    tuples: HashMap<Tuple, (u64, usize)>,
    next: u64,
    /// Most connections of a zone.
    limits: HashMap<u16, usize>,
    counts: HashMap<u16, usize>,
}

/// What is to be changed of a packet: its new addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewritten {
    /// What it is to be.
    pub tuple: Tuple,
}

impl Conntrack {
    /// Looks a packet's connection up, and keeps it if that is asked for. Its key learns the state; what
    /// NAT makes of its addresses comes back.
    pub fn track(&mut self, op: &CtOp, key: &mut Key, beyond: &Beyond, now: u64) -> Option<Rewritten> {
        clear(key);
        key.lay(Field::CtZone, op.zone.into());
        if let Some((id, direction)) =
            beyond.quoted.and_then(|t| self.find(&Tuple { zone: op.zone, ..t }, now))
        {
            // An error about a packet of a connection that is known.
            let reply = if direction == 0 { state::REPLY } else { 0 };
            self.connections[&id].tell(state::TRACKED | state::RELATED | reply, key);
            return None;
        }
        let Some(tuple) = Tuple::of(key, op.zone, beyond.id) else {
            key.lay(Field::CtState, u128::from(state::TRACKED | state::INVALID));
            return None;
        };
        let mut found = self.find(&tuple, now);
        if let Some((id, 1)) = found
            && op.commit
            && op.force
        {
            self.forget(id);
            found = None;
        }
        match found {
            Some((id, direction)) => self.known(id, direction, op, key, now),
            None => self.new_one(&tuple, op, key, now),
        }
    }

    fn find(&mut self, tuple: &Tuple, now: u64) -> Option<(u64, usize)> {
        let (id, direction) = *self.tuples.get(tuple)?;
        if self.connections[&id].until_ms > now {
            return Some((id, direction));
        }
        self.forget(id);
        None
    }

    fn known(&mut self, id: u64, direction: usize, op: &CtOp, key: &mut Key, now: u64) -> Option<Rewritten> {
        let connection = self.connections.get_mut(&id)?;
        let tcp = connection.original.proto == 6;
        let flags = key.lie(Field::TcpFlags) as u8;
        if tcp {
            // A SYN after the end opens a new one.
            let ended =
                connection.flags.iter().any(|f| f & 4 != 0) || connection.flags.iter().all(|f| f & 1 != 0);
            if ended && flags & 0x12 == 2 && direction == 0 {
                let tuple = connection.original;
                self.forget(id);
                return self.new_one(&tuple, op, key, now);
            }
            connection.flags[direction] |= flags;
        }
        connection.answered |= direction == 1;
        connection.until_ms = now + connection.time();
        if op.commit {
            connection.mark = connection.mark & !op.mark.1 | op.mark.0;
            connection.label = connection.label & !op.label.1 | op.label.0;
        }
        let connection = connection.clone();
        let mut bits = state::TRACKED;
        bits |= if connection.answered { state::ESTABLISHED } else { state::NEW };
        if direction == 1 {
            bits |= state::REPLY;
        }
        let out = op.nat.as_ref().and_then(|_| connection.translated(direction));
        if op.nat.is_some() {
            bits |= connection.nat_bits(direction);
        }
        connection.tell(bits, key);
        out
    }

    fn new_one(&mut self, tuple: &Tuple, op: &CtOp, key: &mut Key, now: u64) -> Option<Rewritten> {
        if tuple.proto == 6 && key.lie(Field::TcpFlags) & 0x07 == 0x03 {
            key.lay(Field::CtState, u128::from(state::TRACKED | state::INVALID));
            return None;
        }
        let mut connection = Connection {
            original: *tuple,
            reply: tuple.reversed(),
            mark: op.mark.0,
            label: op.label.0,
            answered: false,
            flags: [key.lie(Field::TcpFlags) as u8, 0],
            until_ms: 0,
        };
        if !op.commit {
            (connection.mark, connection.label) = (0, 0);
            connection.tell(state::TRACKED | state::NEW, key);
            return None;
        }
        let taken = |reply: &Tuple| self.tuples.contains_key(reply);
        let chosen = op.nat.as_ref().map(|n| nat::choose(n, tuple, taken));
        match chosen {
            Some(None) => {
                // No address is free: it cannot be.
                key.lay(Field::CtState, u128::from(state::TRACKED | state::INVALID));
                return None;
            }
            Some(Some(reply)) => connection.reply = reply,
            None => {}
        }
        let full = self.limits.get(&op.zone).is_some_and(|most| self.count(op.zone) >= *most);
        if full || self.connections.len() >= MAX_CONNECTIONS {
            key.lay(Field::CtState, u128::from(state::TRACKED | state::INVALID));
            return None;
        }
        // Answers of another connection would come here, if both had the same.
        if self.find(&connection.reply, now).is_some() {
            key.lay(Field::CtState, u128::from(state::TRACKED | state::INVALID));
            return None;
        }
        connection.until_ms = now + connection.time();
        let bits = state::TRACKED | state::NEW | if op.nat.is_some() { connection.nat_bits(0) } else { 0 };
        connection.tell(bits, key);
        let out = op.nat.as_ref().and_then(|_| connection.translated(0));
        self.keep(connection);
        out
    }

    fn keep(&mut self, connection: Connection) {
        self.next += 1;
        self.tuples.insert(connection.original, (self.next, 0));
        self.tuples.insert(connection.reply, (self.next, 1));
        *self.counts.entry(connection.original.zone).or_default() += 1;
        self.connections.insert(self.next, connection);
    }

    fn forget(&mut self, id: u64) {
        if let Some(connection) = self.connections.remove(&id) {
            self.tuples.remove(&connection.original);
            self.tuples.remove(&connection.reply);
            *self.counts.entry(connection.original.zone).or_insert(1) -= 1;
        }
    }

    /// Connections of a zone.
    pub fn count(&self, zone: u16) -> usize {
        self.counts.get(&zone).copied().unwrap_or(0)
    }

    /// Sets the most connections of a zone; `None`: as many as there can be.
    pub fn limit(&mut self, zone: u16, most: Option<usize>) {
        match most {
            Some(most) => drop(self.limits.insert(zone, most)),
            None => drop(self.limits.remove(&zone)),
        }
    }

    /// Forgets what nothing passed by for long.
    pub fn age(&mut self, now: u64) {
        let old: Vec<u64> =
            self.connections.iter().filter(|(_, c)| c.until_ms <= now).map(|(id, _)| *id).collect();
        old.into_iter().for_each(|id| self.forget(id));
    }

    /// Forgets all, or those of a zone.
    pub fn flush(&mut self, zone: Option<u16>) {
        let is = |c: &Connection| zone.is_none_or(|z| z == c.original.zone);
        let gone: Vec<u64> = self.connections.iter().filter(|(_, c)| is(c)).map(|(id, _)| *id).collect();
        gone.into_iter().for_each(|id| self.forget(id));
    }

    /// Every tuple is of a connection that is there, and every connection has both its own.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn check(&self) {
        for (id, c) in &self.connections {
            let found = [c.original, c.reply].map(|t| self.tuples.get(&t).map(|(id, _)| *id));
            assert_eq!(found, [Some(*id); 2], "{c:?}");
        }
        let own = |c: &Connection| if c.original == c.reply { 1 } else { 2 };
        assert_eq!(self.tuples.len(), self.connections.values().map(own).sum::<usize>());
    }

    /// As `dpctl/dump-conntrack` prints them.
    pub fn dump(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.connections.values().map(Connection::text).collect();
        lines.sort();
        lines
    }
}

impl Connection {
    fn time(&self) -> u64 {
        match self.original.proto {
            6 if self.flags.iter().any(|f| f & 5 != 0) => timeout::TCP_CLOSING,
            6 if self.answered => timeout::TCP_ESTABLISHED,
            6 => timeout::TCP_OPENING,
            17 | 132 if self.answered => timeout::UDP,
            17 | 132 => timeout::UDP_FIRST,
            _ => timeout::ICMP,
        }
    }

    /// What packets of a direction are to be.
    fn translated(&self, direction: usize) -> Option<Rewritten> {
        let (seen, wanted) = match direction {
            0 => (self.original, self.reply.reversed()),
            _ => (self.reply, self.original.reversed()),
        };
        (seen != wanted).then_some(Rewritten { tuple: wanted })
    }

    fn nat_bits(&self, direction: usize) -> u32 {
        let wanted = self.reply.reversed();
        let src = (wanted.src, wanted.src_port) != (self.original.src, self.original.src_port);
        let dst = (wanted.dst, wanted.dst_port) != (self.original.dst, self.original.dst_port);
        // Answers are changed at the other end.
        let (src, dst) = if direction == 0 { (src, dst) } else { (dst, src) };
        (if src { state::SRC_NAT } else { 0 }) | if dst { state::DST_NAT } else { 0 }
    }

    /// The key of a packet of it.
    fn tell(&self, bits: u32, key: &mut Key) {
        key.lay(Field::CtState, bits.into());
        key.lay(Field::CtMark, self.mark.into());
        key.lay(Field::CtLabel, self.label);
        self.original.tell(key);
    }

    fn text(&self) -> String {
        let name = match self.original.proto {
            6 => "tcp".into(),
            17 => "udp".into(),
            1 => "icmp".into(),
            58 => "icmpv6".into(),
            132 => "sctp".into(),
            other => other.to_string(),
        };
        let mut out = format!("{name},orig=({}),reply=({})", self.original.text(), self.reply.text());
        if self.original.zone != 0 {
            out += &format!(",zone={}", self.original.zone);
        }
        if self.mark != 0 {
            out += &format!(",mark={}", self.mark);
        }
        if self.label != 0 {
            out += &format!(",labels={:#x}", self.label);
        }
        if self.original.proto == 6 {
            let both = |bit: u8| self.flags.iter().all(|f| f & bit != 0);
            let any = |bit: u8| self.flags.iter().any(|f| f & bit != 0);
            let state = match () {
                () if any(4) => "CLOSING",
                () if both(1) => "TIME_WAIT",
                () if any(1) => "FIN_WAIT_1",
                () if self.answered && self.flags[0] & 0x10 != 0 => "ESTABLISHED",
                () if self.answered => "SYN_RECV",
                () => "SYN_SENT",
            };
            out += &format!(",protoinfo=(state={state})");
        }
        out
    }
}

/// Forgets what a key knows of a connection.
pub fn clear(key: &mut Key) {
    use super::flow::key::word;
    let mark = key.words[word::MARK] & 0xffff_ffff;
    key.words[word::CT..word::TUN_ID].fill(0);
    key.words[word::MARK] = mark;
}

#[cfg(test)]
mod tests;
