//! A guest's control queue over memory of any content, and commands of any bytes in any pieces: each is answered
//! or given back, what is refused changes nothing, and what comes of it is something that rings can obey.

use std::sync::Arc;

use hugepages::{Backing, Map, PageSize, Table, Words};

use super::attendant::Attendant;
use super::commands::Commands;
use super::queue::{Events, Ring};
use crate::spec::{net, virtio as v};
use crate::vring::driver::{self, Areas, Packed, Segment, Split};
use crate::vring::{AnyVring, Way};

const SIZE: u16 = 16;
const PAIRS: u16 = 4;
const MEMORY: usize = 1 << 17;
/// Where commands are; behind them, their answers.
const DATA: u64 = 0x8000;
const ANSWER: u64 = 0x1_8000;
const OFFERED: u64 = net::F_CTRL_VQ
    | net::F_CTRL_RX
    | net::F_CTRL_RX_EXTRA
    | net::F_CTRL_VLAN
    | net::F_CTRL_MAC_ADDR
    | net::F_CTRL_GUEST_OFFLOADS
    | net::F_GUEST_ANNOUNCE
    | net::F_MQ
    | net::F_NOTF_COAL
    | net::F_VQ_NOTF_COAL
    | net::F_GUEST_CSUM
    | net::F_GUEST_TSO4;

/// A control queue and what it is asked.
struct Play {
    attendant: Attendant,
    commands: Commands,
    features: u64,
    table: Arc<Table>,
}

impl Play {
    fn serve(&mut self) {
        let (commands, features) = (&mut self.commands, self.features);
        self.attendant.serve(|bytes| {
            let before = commands.clone();
            let answer = commands.obey(bytes);
            assert!(answer.is_ok() || *commands == before, "refused, and something changed");
            for ring in 0..2 * PAIRS {
                assert_eq!(commands.orders(ring).features & !features, 0);
            }
            answer
        });
        assert_eq!(self.attendant.ring.ring.lent(), 0, "every chain comes home");
    }

    /// Commands of a driver that knows how: bytes of each, in how many pieces, room for the answer.
    fn good<R: driver::Ring>(&mut self, areas: &Areas, mut data: &[u8]) {
        let mut ring = R::open(areas, &self.table).unwrap();
        let words = self.table.window::<u16>(DATA, 0x800).unwrap();
        while let Some((&[len, pieces, room], rest)) = data.split_first_chunk::<3>() {
            let (command, rest) = rest.split_at(usize::from(len).min(rest.len()));
            data = rest;
            let word = |pair: &[u8]| u16::from_le_bytes([pair[0], *pair.get(1).unwrap_or(&0)]);
            command.chunks(2).enumerate().for_each(|(i, pair)| words.set(i, word(pair)));
            let piece = (command.len() / (usize::from(pieces) % 4 + 1)).max(1);
            let part =
                |(i, part): (usize, &[u8])| Segment::read(DATA + (i * piece) as u64, part.len() as u32);
            let mut chain: Vec<Segment> = command.chunks(piece).enumerate().map(part).collect();
            chain.push(Segment::write(ANSWER, room.into()));
            if chain.len() > usize::from(ring.free()) || ring.add(&chain).is_none() {
                break;
            }
            let _ = ring.publish();
            self.serve();
            let used = ring.used().expect("the device keeps the rules").expect("it is answered");
            assert!(used.len <= u32::from(room));
        }
    }
}

/// The first bytes choose form and features; then commands, or the content of memory and its changes.
pub fn run(data: &[u8]) {
    let Some((&[form, offered, more, good], data)) = data.split_first_chunk::<4>() else { return };
    let packed = if form & 1 != 0 { v::F_RING_PACKED } else { 0 };
    let mask = u64::from(offered) << 17 | u64::from(more) << 50 | net::F_CTRL_VQ;
    let taken = v::F_VERSION_1 | v::F_INDIRECT_DESC | packed;
    let features = taken | if form & 2 != 0 { OFFERED } else { OFFERED & mask };
    let backing = Backing { page: PageSize::Base, node: None };
    let table = Table::of(Map::shared(MEMORY, backing).unwrap());
    let areas = Areas::at(0, SIZE, features, 0);
    let vring = AnyVring::open(&areas.ring(Way::Both), &table).unwrap();
    let ring = Ring::new(vring, features, Events::default(), "fuzz".into());
    let commands = Commands::new(features, PAIRS, [2, 0, 0, 0, 0, 1]);
    let mut play = Play { attendant: Attendant::new(ring), commands, features, table };
    if good & 1 != 0 {
        return if packed != 0 {
            play.good::<Packed>(&areas, data)
        } else {
            play.good::<Split>(&areas, data)
        };
    }
    let words = play.table.window::<u16>(0, 0x800).unwrap();
    let word = |pair: &[u8]| u16::from(pair[0]) | u16::from(pair[pair.len() - 1]) << 8;
    for lap in data.chunks(512) {
        for (i, pair) in lap.chunks(2).enumerate() {
            words.set(i, word(pair));
        }
        play.serve();
        if play.attendant.ring.ring.fault().is_some() {
            play.serve();
            break;
        }
    }
}
