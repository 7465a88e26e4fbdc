//! A device that lies: registers that read as anything, rings in which anything is written at any time, under
//! every driver and the port above it. No lie costs more than the device: what it had comes home.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use hugepages::{Backing, Batch, Buf, Lender, Loan, Map, Offload, PageSize, Table, Window, Words};

use super::queue::{NicQueue, ROOM};
use super::{Config, Shared};
use crate::nic::{Chip, Registers, Regs, Rings, Setup, e1000e, igb, ixgbe, virtio, vmxnet3};
use crate::port::{Filter, Queue};
use crate::spec::{net, virtio as v};
use crate::vring::driver::{Packed, Split};

const BASE: Backing = Backing { page: PageSize::Base, node: None };

/// Registers that keep what is written, but for bits that a device sets or clears itself, and lies.
struct Liar {
    regs: Mutex<HashMap<u32, u32>>,
    /// Register; bits that always read as ones, as zeros.
    bits: &'static [(u32, u32, u32)],
    /// What the next reads are changed by.
    lies: Mutex<Vec<u32>>,
}

impl Registers for Liar {
    fn read(&self, at: u32, bytes: u32) -> u32 {
        let mut value = self.regs.lock().unwrap().get(&at).copied().unwrap_or(0);
        for &(_, ones, zeros) in self.bits.iter().filter(|bits| bits.0 == at) {
            value = (value | ones) & !zeros;
        }
        value ^= self.lies.lock().unwrap().pop().unwrap_or(0);
        value & (u32::MAX >> (32 - 8 * bytes))
    }

    fn write(&self, at: u32, _: u32, value: u32) {
        self.regs.lock().unwrap().insert(at, value);
    }
}

/// Resets that end, of the gigabit controllers; PHYs that are ready.
const GIGABIT: &[(u32, u32, u32)] = &[(0x0000, 0, 1 << 26), (0x0020, 1 << 28, 0)];
/// The same of the 82599; its EEPROM is read, its DMA ready, its security block idle.
const TEN_GIGABIT: &[(u32, u32, u32)] =
    &[(0x0000, 0, 1 << 26 | 1 << 3), (0x1_0010, 1 << 9, 0), (0x2f00, 1 << 3, 0), (0x8d04, 1, 0)];
/// Revision 1; commands are answered with 0.
const VMXNET3: &[(u32, u32, u32)] = &[(0x00, 1, 0), (0x08, 1, 0), (0x20, 0, u32::MAX)];

/// The bytes that say what happens.
pub(crate) struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Script<'a> {
        Script(bytes)
    }

    pub(crate) fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }

    /// What is missing is zero.
    pub(crate) fn number(&mut self, bytes: usize) -> u64 {
        (0..bytes).fold(0, |number, _| number << 8 | u64::from(self.byte().unwrap_or(0)))
    }
}

/// All words of the rings.
fn words(table: &Arc<Table>) -> Window<u64> {
    let all = &table.regions()[0];
    table.window(all.gpa, (all.len / 8).min(1 << 13) as usize).unwrap()
}

/// A queue over these rings, and a guest that sends through it, until the script ends.
fn play<R: Rings + 'static>(
    rings: R,
    memory: &Arc<Table>,
    regs: &Liar,
    mut script: Script<'_>,
    mut chip: impl FnMut(),
) {
    let shared = Shared::new("nic", None).unwrap();
    shared.run();
    let config = Config { copy_break: 100, backing: BASE, mtu: 4000, ..Config::default() };
    let mut queue = NicQueue::new(rings, &config, "nic", Arc::clone(&shared)).unwrap();
    let guest = Lender::new(Table::of(Map::shared(1 << 18, BASE).unwrap()));
    let words = words(memory);
    let (mut batch, mut loans) = (Batch::<Buf>::default(), Batch::<Loan>::default());
    let mut id = 0;
    while let Some(step) = script.byte() {
        match step % 8 {
            0 => {
                queue.rx(&mut batch);
                while let Some(buf) = batch.pop_front() {
                    assert!(buf.len() <= ROOM);
                    loans.push(buf.finish(0));
                }
                queue.settle(&mut loans);
                assert!(loans.is_empty());
            }
            1 | 2 => {
                let n = script.number(1) as u16 % 20 + 1;
                for i in 0..n {
                    let len = script.number(2) as u32 % 3000 + 1;
                    let mut buf = guest.lend(u64::from(id % 60) * 4096, len, id).unwrap();
                    buf.set_more(i + 1 < n);
                    if step & 0x80 != 0 && i == 0 {
                        buf.offload = Offload {
                            flags: script.number(1) as u8,
                            gso_type: script.number(1) as u8,
                            hdr_len: script.number(2) as u16,
                            gso_size: script.number(2) as u16,
                            csum_start: script.number(1) as u16,
                            csum_offset: script.number(1) as u16,
                        };
                    }
                    id = id.wrapping_add(1);
                    batch.push(buf);
                }
                queue.tx(&mut batch);
                // What does not fit is dropped.
                while let Some(buf) = batch.pop_front() {
                    guest.settle(buf.finish(0));
                }
            }
            3 => {
                queue.reap(&mut loans);
                while let Some(loan) = loans.pop_front() {
                    guest.settle(loan);
                }
            }
            4 => words.set(script.number(2) as usize % words.len(), script.number(8)),
            // Everything in a part of the rings is done.
            5 => {
                let (from, n) = (script.number(2) as usize % words.len(), script.number(1) as usize);
                let bits = script.number(8);
                (from..words.len().min(from + n)).for_each(|i| words.set(i, words.get(i) | bits));
            }
            6 => regs.lies.lock().unwrap().push(script.number(4) as u32),
            _ => chip(),
        }
    }
    shared.halt("the end");
    for _ in 0..64 {
        queue.reap(&mut loans);
        while let Some(loan) = loans.pop_front() {
            guest.settle(loan);
        }
    }
    assert_eq!((queue.held(), queue.lent(), guest.out()), (0, 0, 0), "everything comes home");
}

/// The first bytes choose the driver, the size of its rings and how it is lied to while it starts.
pub fn run(data: &[u8]) {
    let Some((&[which, size, early, _], data)) = data.split_first_chunk::<4>() else { return };
    let mut script = Script::new(data);
    let bits = [GIGABIT, GIGABIT, TEN_GIGABIT, VMXNET3, &[], &[]][usize::from(which) % 6];
    let lies = (0..early % 64 * (early >> 7)).map(|_| script.number(4) as u32).collect();
    let liar = Arc::new(Liar { regs: Mutex::default(), bits, lies: Mutex::new(lies) });
    let regs = Arc::clone(&liar) as Regs;
    let setup = Setup {
        queues: 1,
        rx_size: u16::from(size % 64) + 1,
        tx_size: u16::from(size % 48) + 1,
        room: ROOM,
        max_frame: 4018,
        mac: None,
        backing: BASE,
    };
    macro_rules! chip {
        ($chip:expr) => {{
            let mut chip = $chip;
            let _ = chip.filter(&Filter { promiscuous: size & 1 != 0, ..Filter::default() });
            let Ok(mut started) = chip.start(&setup) else { return chip.stop() };
            let rings = started.pop().expect("a queue pair");
            let memory = Arc::clone(&rings.memory);
            let look = || {
                let _ = (chip.link(), chip.mac(), chip.about(), chip.counters());
            };
            play(rings, &memory, &liar, script, look);
        }};
    }
    match which % 6 {
        0 => chip!(e1000e::E1000e::new(regs, None)),
        1 => chip!(igb::Igb::new(regs, None)),
        2 => chip!(ixgbe::Ixgbe::new(regs, None)),
        3 => chip!(vmxnet3::Vmxnet3::new(Arc::clone(&regs), regs, None)),
        4 => {
            let (rings, memory) = virtio::liar::<Split>(regs, features(size), 1 << (size % 5 + 1));
            play(rings, &memory, &liar, script, || {});
        }
        _ => {
            let (rings, memory) =
                virtio::liar::<Packed>(regs, features(size) | v::F_RING_PACKED, size.max(2).into());
            play(rings, &memory, &liar, script, || {});
        }
    }
}

fn features(size: u8) -> u64 {
    let merge = if size & 0x40 != 0 { net::F_MRG_RXBUF } else { 0 };
    v::F_VERSION_1 | net::F_CSUM | net::F_GUEST_CSUM | net::F_HOST_TSO4 | merge
}
