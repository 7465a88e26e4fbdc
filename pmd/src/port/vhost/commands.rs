//! What a guest asks of its device through the control queue: virtio 1.3 §5.1.6.5.
//!
//! A command is parsed after it was copied out. One that is not known, was not negotiated, or has not just
//! the bytes that it must have changes nothing and is answered with an error.

use std::sync::Arc;

use super::filter::Filter;
use super::hash::Hashing;
use super::orders::{Delivery, Moderation, Orders, Sieve};
use super::steering::{Indirection, Steering};
use crate::spec::net::hash::MAX_TABLE;
use crate::spec::net::{self, ctrl};

/// Bytes of the longest command that is read: a table of more than 10,000 addresses.
pub(super) const MAX_COMMAND: usize = 65536;
/// The longest time a driver may have calls held back, in microseconds.
pub(super) const MAX_HOLD_US: u32 = 1_000_000;

/// What a command is answered with: the acknowledgement, then the result, if it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    bytes: [u8; 9],
    len: usize,
}

impl Answer {
    pub(super) const ERR: Answer = Answer { bytes: [ctrl::ERR, 0, 0, 0, 0, 0, 0, 0, 0], len: 1 };
    const OK: Answer = Answer { bytes: [ctrl::OK, 0, 0, 0, 0, 0, 0, 0, 0], len: 1 };

    fn moderation(moderation: Moderation) -> Answer {
        let mut bytes = [ctrl::OK; 9];
        bytes[1..5].copy_from_slice(&moderation.packets.to_le_bytes());
        bytes[5..].copy_from_slice(&moderation.usecs.to_le_bytes());
        Answer { bytes, len: 9 }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Whether the command was obeyed.
    pub(super) fn is_ok(&self) -> bool {
        self.bytes[0] == ctrl::OK
    }
}

/// Everything a guest has asked for since its device was reset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Commands {
    pub(super) features: u64,
    /// Queue pairs of the device, and those in use.
    pub(super) pairs: u16,
    pub(super) active: u16,
    pub(super) filter: Arc<Filter>,
    /// What is hashed of packets.
    pub(super) hashing: Option<Arc<Hashing>>,
    /// Which rings they go into by that; otherwise each into the one of the queue that it came to.
    pub(super) indirection: Option<Arc<Indirection>>,
    /// Of [`net::GUEST_OFFLOADS`]: those that are on.
    pub(super) offloads: u64,
    /// By ring.
    pub(super) moderation: Vec<Moderation>,
    /// The driver is to announce its guest, and has not said that it did.
    pub(super) announce: bool,
}

impl Commands {
    /// Nothing asked for yet, of a device with these negotiated features, queue pairs and address.
    pub(super) fn new(features: u64, pairs: u16, mac: [u8; 6]) -> Commands {
        let commanded = features & net::F_CTRL_VQ != 0;
        let vlans = commanded && features & net::F_CTRL_VLAN != 0;
        // §5.1.6.5.5: only the first pair is in use, until the driver asks for more. Without a control queue
        // of ours the front-end enables and disables rings.
        let active = if commanded { 1 } else { pairs };
        Commands {
            features,
            pairs,
            active,
            filter: Arc::new(Filter::new(mac, vlans)),
            hashing: None,
            indirection: None,
            offloads: features & net::GUEST_OFFLOADS,
            moderation: vec![Moderation::default(); usize::from(pairs) * 2],
            announce: false,
        }
    }

    /// Has the driver announce its guest, if it can (§5.1.6.5.4); whether it was not told to before.
    pub(super) fn announce(&mut self) -> bool {
        let can = self.has(net::F_CTRL_VQ) && self.has(net::F_GUEST_ANNOUNCE) && self.has(net::F_STATUS);
        can && !std::mem::replace(&mut self.announce, true)
    }

    /// The device's address, which the driver may have set.
    pub(super) fn address(&self) -> [u8; 6] {
        self.filter.parts().1
    }

    /// Whether they are those of a device with these features.
    pub(super) fn of(&self, features: u64) -> bool {
        self.features == features
    }

    /// How one of the guest's receive or transmit rings is to serve it.
    pub(super) fn orders(&self, ring: u16) -> Orders {
        let steering = self.steering(ring / 2);
        let everything = self.filter.is_open() && matches!(steering, Steering::Here);
        let delivery = if ring % 2 == 1 || everything {
            Delivery::All
        } else {
            let sieve = Sieve::new(Arc::clone(&self.filter), steering, self.pairs.into());
            Delivery::Some(Box::new(sieve))
        };
        let features = self.features & !net::GUEST_OFFLOADS | self.offloads;
        let hashing = self.hashing.clone().filter(|_| self.has(net::F_HASH_REPORT));
        Orders { delivery, hashing, features, moderation: self.moderation[usize::from(ring)] }
    }

    /// Whether packets go to other rings than those of the queues they come to.
    pub(super) fn steers(&self) -> bool {
        self.indirection.is_some() || self.active < self.pairs
    }

    /// Where the packets of a queue go.
    fn steering(&self, queue: u16) -> Steering {
        match (&self.hashing, &self.indirection) {
            (Some(hashing), Some(indirection)) => {
                Steering::Dealt(Arc::clone(hashing), Arc::clone(indirection))
            }
            _ if queue >= self.active => Steering::There(queue % self.active),
            _ => Steering::Here,
        }
    }

    /// Obeys a command.
    pub(super) fn obey(&mut self, command: &[u8]) -> Answer {
        let [class, command, data @ ..] = command else { return Answer::ERR };
        let obeyed = match *class {
            ctrl::RX => self.receive_mode(*command, data),
            ctrl::MAC => self.mac(*command, data),
            ctrl::VLAN => self.vlan(*command, data),
            ctrl::ANNOUNCE => self.announced(*command, data),
            ctrl::MQ => self.queues(*command, data),
            ctrl::GUEST_OFFLOADS => self.offloads(*command, data),
            ctrl::NOTF_COAL => self.moderation(*command, data),
            _ => None,
        };
        obeyed.unwrap_or(Answer::ERR)
    }

    fn announced(&mut self, command: u8, data: &[u8]) -> Option<Answer> {
        if !self.has(net::F_GUEST_ANNOUNCE) || command != ctrl::ANNOUNCE_ACK || !data.is_empty() {
            return None;
        }
        self.announce = false;
        Some(Answer::OK)
    }

    fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    fn receive_mode(&mut self, command: u8, data: &[u8]) -> Option<Answer> {
        let &[on @ (0 | 1)] = data else { return None };
        let filter = Arc::make_mut(&mut self.filter);
        let (feature, mode) = match command {
            ctrl::RX_PROMISC => (net::F_CTRL_RX, &mut filter.promiscuous),
            ctrl::RX_ALLMULTI => (net::F_CTRL_RX, &mut filter.all_multicast),
            ctrl::RX_ALLUNI => (net::F_CTRL_RX_EXTRA, &mut filter.all_unicast),
            ctrl::RX_NOMULTI => (net::F_CTRL_RX_EXTRA, &mut filter.no_multicast),
            ctrl::RX_NOUNI => (net::F_CTRL_RX_EXTRA, &mut filter.no_unicast),
            ctrl::RX_NOBCAST => (net::F_CTRL_RX_EXTRA, &mut filter.no_broadcast),
            _ => return None,
        };
        if self.features & feature == 0 {
            return None;
        }
        *mode = on == 1;
        Some(Answer::OK)
    }

    fn mac(&mut self, command: u8, data: &[u8]) -> Option<Answer> {
        match command {
            ctrl::MAC_TABLE_SET if self.has(net::F_CTRL_RX) => {
                let (unicast, rest) = table(data)?;
                let (multicast, []) = table(rest)? else { return None };
                Arc::make_mut(&mut self.filter).set_table(unicast.iter().chain(multicast));
            }
            ctrl::MAC_ADDR_SET if self.has(net::F_CTRL_MAC_ADDR) => {
                Arc::make_mut(&mut self.filter).set_mac(data.try_into().ok()?);
            }
            _ => return None,
        }
        Some(Answer::OK)
    }

    fn vlan(&mut self, command: u8, data: &[u8]) -> Option<Answer> {
        let id = u16::from_le_bytes(data.try_into().ok()?);
        let on = match command {
            ctrl::VLAN_ADD => true,
            ctrl::VLAN_DEL => false,
            _ => return None,
        };
        if !self.has(net::F_CTRL_VLAN) || id > 0xfff {
            return None;
        }
        Arc::make_mut(&mut self.filter).set_vlan(id, on);
        Some(Answer::OK)
    }

    fn queues(&mut self, command: u8, data: &[u8]) -> Option<Answer> {
        match command {
            ctrl::MQ_VQ_PAIRS_SET if self.has(net::F_MQ) => {
                let pairs = u16::from_le_bytes(data.try_into().ok()?);
                if !(1..=self.pairs).contains(&pairs) {
                    return None;
                }
                (self.active, self.indirection) = (pairs, None);
            }
            ctrl::MQ_RSS_CONFIG if self.has(net::F_RSS) => {
                let (hashing, indirection, pairs) = steering_of(data)?;
                let known = |queue: &u16| *queue < self.pairs;
                let good = indirection.table.iter().chain([&indirection.unclassified]).all(known);
                if !good || !(1..=self.pairs).contains(&pairs) {
                    return None;
                }
                self.active = pairs;
                (self.hashing, self.indirection) = (Some(Arc::new(hashing)), Some(Arc::new(indirection)));
            }
            ctrl::MQ_HASH_CONFIG if self.has(net::F_HASH_REPORT) => {
                let (types, rest) = data.split_first_chunk::<4>()?;
                let (_reserved, rest) = rest.split_first_chunk::<8>()?;
                self.hashing = Some(Arc::new(hashing_of(u32::from_le_bytes(*types), rest)?));
            }
            _ => return None,
        }
        Some(Answer::OK)
    }

    fn offloads(&mut self, command: u8, data: &[u8]) -> Option<Answer> {
        let offloads = u64::from_le_bytes(data.try_into().ok()?);
        let can = self.features & net::GUEST_OFFLOADS;
        if !self.has(net::F_CTRL_GUEST_OFFLOADS)
            || command != ctrl::GUEST_OFFLOADS_SET
            || offloads & !can != 0
        {
            return None;
        }
        // §5.1.3.1: none of the others without checksums.
        self.offloads = if offloads & net::F_GUEST_CSUM != 0 { offloads } else { 0 };
        Some(Answer::OK)
    }

    fn moderation(&mut self, command: u8, data: &[u8]) -> Option<Answer> {
        let by_ring = matches!(command, ctrl::NOTF_COAL_VQ_SET | ctrl::NOTF_COAL_VQ_GET);
        if !self.has(if by_ring { net::F_VQ_NOTF_COAL } else { net::F_NOTF_COAL }) {
            return None;
        }
        let (ring, data) = if by_ring {
            let (ring, rest) = data.split_first_chunk::<2>()?;
            let (_reserved, rest) = rest.split_first_chunk::<2>()?;
            (Some(usize::from(u16::from_le_bytes(*ring))), rest)
        } else {
            (None, data)
        };
        if command == ctrl::NOTF_COAL_VQ_GET {
            return data.is_empty().then_some(Answer::moderation(*self.moderation.get(ring?)?));
        }
        let moderation = moderation_of(data)?;
        match (command, ring) {
            (ctrl::NOTF_COAL_VQ_SET, Some(ring)) => *self.moderation.get_mut(ring)? = moderation,
            // §5.1.2: receive rings have even numbers.
            (ctrl::NOTF_COAL_RX_SET, None) => {
                self.moderation.iter_mut().step_by(2).for_each(|m| *m = moderation);
            }
            (ctrl::NOTF_COAL_TX_SET, None) => {
                self.moderation.iter_mut().skip(1).step_by(2).for_each(|m| *m = moderation);
            }
            _ => return None,
        }
        Some(Answer::OK)
    }
}

/// §5.1.6.5.2: a number of addresses, and the addresses; what comes after them.
fn table(data: &[u8]) -> Option<(&[[u8; 6]], &[u8])> {
    let (entries, rest) = data.split_first_chunk::<4>()?;
    let bytes = usize::try_from(u32::from_le_bytes(*entries)).ok()?.checked_mul(6)?;
    let (macs, rest) = rest.split_at_checked(bytes)?;
    Some((macs.as_chunks().0, rest))
}

/// §5.1.6.5.7.1: types, mask, the queue of packets without a hash, the table, transmit queues in use, the key. A
/// queue is named by half its index.
fn steering_of(data: &[u8]) -> Option<(Hashing, Indirection, u16)> {
    let number = |bytes: &[u8; 2]| u16::from_le_bytes(*bytes);
    let (types, rest) = data.split_first_chunk::<4>()?;
    let (mask, rest) = rest.split_first_chunk::<2>()?;
    let (unclassified, rest) = rest.split_first_chunk::<2>()?;
    let entries = usize::from(number(mask)) + 1;
    if !entries.is_power_of_two() || entries > MAX_TABLE {
        return None;
    }
    let (table, rest) = rest.split_at_checked(2 * entries)?;
    let (pairs, rest) = rest.split_first_chunk::<2>()?;
    let table = table.as_chunks().0.iter().map(number).collect();
    let indirection = Indirection { unclassified: number(unclassified), table };
    Some((hashing_of(u32::from_le_bytes(*types), rest)?, indirection, number(pairs)))
}

/// The length of a key, then the key.
fn hashing_of(types: u32, key: &[u8]) -> Option<Hashing> {
    let (len, key) = key.split_first()?;
    (key.len() == usize::from(*len)).then_some(key).and_then(|key| Hashing::new(types, key))
}

/// §5.1.6.5.9: packets, then microseconds.
fn moderation_of(data: &[u8]) -> Option<Moderation> {
    let (packets, usecs) = data.split_first_chunk::<4>()?;
    let (packets, usecs) = (u32::from_le_bytes(*packets), u32::from_le_bytes(usecs.try_into().ok()?));
    (usecs <= MAX_HOLD_US).then_some(Moderation { packets, usecs })
}

#[cfg(test)]
mod tests;
