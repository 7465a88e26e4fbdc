//! A back-end that lies: anything is written at any time to rings and frames, under the queue of a port. It is
//! left, once, and every frame of the port comes home.

use std::path::PathBuf;
use std::sync::Arc;

use hugepages::{Backing, Batch, Buf, Lender, Loan, Map, Offload, PageSize, Table, Words};

use super::control::State;
use super::door::{Door, Live, Rings};
use super::frames::Frames;
use super::memory::{Memory, Side};
use super::queue::UserQueue;
use super::{Config, MAX_SEGMENTS};
use crate::port::Queue;
use crate::port::nic::lies::Script;
use crate::spec::{net, virtio as v};
use crate::sys::eventfd::EventFd;
use crate::vring::driver::{Packed, Ring, Split};

const BASE: Backing = Backing { page: PageSize::Base, node: None };
const OFFERED: u64 = net::F_CSUM | net::F_GUEST_CSUM | net::F_HOST_TSO4 | net::F_GUEST_TSO4;

/// Rings over their memory as it is.
fn rings(memory: &Memory, features: u64) -> Rings {
    let areas = [Side::Rx, Side::Tx].map(|side| memory.areas(0, side, 0, features));
    let planned = "planned to lie in the mapping";
    if features & v::F_RING_PACKED != 0 {
        let [rx, tx] = areas.map(|areas| Packed::open(&areas, memory.table()).expect(planned));
        Rings::Packed(rx, tx)
    } else {
        let [rx, tx] = areas.map(|areas| Split::open(&areas, memory.table()).expect(planned));
        Rings::Split(rx, tx)
    }
}

fn live(memory: &Memory, features: u64) -> Box<Live> {
    let kick = [(); 2].map(|()| EventFd::new().unwrap());
    Box::new(Live { rings: rings(memory, features), kick, features })
}

/// Receipts go to who lent.
fn home(queue: &mut UserQueue, guest: &Lender, loans: &mut Batch<Loan>) {
    queue.reap(loans);
    while !loans.is_empty() {
        queue.settle(loans);
        loans.pop_front().map(|loan| guest.settle(loan));
    }
}

/// Takes what has arrived; every second packet goes back from where it lies.
fn turn(queue: &mut UserQueue, loans: &mut Batch<Loan>, back: bool) {
    let mut batch = Batch::<Buf>::default();
    let packets = queue.rx(&mut batch);
    let mut seen = 0;
    while seen < packets {
        let (n, bytes) = batch.packet_at(0);
        assert!(n > 0 && n <= MAX_SEGMENTS && bytes > 0, "{n} buffers of {bytes} bytes are no packet");
        let mut packet = Batch::<Buf>::default();
        (0..n).for_each(|_| packet.push(batch.pop_front().expect("counted")));
        if back {
            queue.tx(&mut packet);
        }
        while let Some(buf) = packet.pop_front() {
            loans.push(buf.finish(0));
        }
        queue.settle(loans);
        seen += 1;
    }
    assert!(batch.is_empty() && loans.is_empty(), "nothing but packets, and nothing of others");
}

/// The first bytes choose layout, features and the size of rings; then frames, and what is written by whom.
pub fn run(data: &[u8]) {
    let Some((&[form, size, offered, _], data)) = data.split_first_chunk::<4>() else { return };
    let mut script = Script::new(data);
    let packed = form & 1 != 0;
    let layout = if packed { v::F_RING_PACKED } else { 0 };
    let more = if form & 2 != 0 { net::F_MRG_RXBUF } else { 0 } | if form & 4 != 0 { OFFERED } else { 0 };
    let indirect = if form & 8 != 0 { v::F_INDIRECT_DESC } else { 0 };
    let order = if form & 16 != 0 { v::F_IN_ORDER } else { 0 };
    let features = v::F_VERSION_1 | layout | more | indirect | order | u64::from(offered & 1) << 29;
    let queue_size = if packed { u16::from(size % 20) + 1 } else { 1 << (size % 6) };
    let path = PathBuf::new();
    let config =
        Config { path, queue_size, packed, indirect: indirect != 0, backing: BASE, ..Config::default() };
    let memory = Memory::new("fuzz", &config, 1).unwrap();
    let state = Arc::new(State::new().unwrap());
    let door = Arc::new(Door::new(&state).unwrap());
    let frames = Frames::new(&memory, 0);
    let mut queue = UserQueue::new("fuzz".to_owned(), frames, Arc::clone(&door));
    let guest = Lender::new(Table::of(Map::shared(1 << 18, BASE).unwrap()));
    let all = memory.region().len / 8;
    let words = memory.table().window::<u64>(0, all as usize).unwrap();
    // Rings of the one connection, and frames behind.
    let areas = memory.areas(0, Side::Tx, 0, features).end as usize / 8;
    let (mut batch, mut loans, mut id) = (Batch::<Buf>::default(), Batch::<Loan>::default(), 0u16);
    door.give(live(&memory, features));
    queue.reap(&mut loans);
    while let Some(step) = script.byte() {
        match step % 8 {
            0 => turn(&mut queue, &mut loans, step & 0x80 != 0),
            1 => {
                let n = script.number(1) as u16 % 12 + 1;
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
                while let Some(buf) = batch.pop_front() {
                    guest.settle(buf.finish(0));
                }
            }
            2 => {
                home(&mut queue, &guest, &mut loans);
            }
            3 | 4 => words.set(script.number(2) as usize % areas, script.number(8)),
            5 => {
                let (from, n) = (script.number(2) as usize % areas, script.number(1) as usize);
                let bits = script.number(8);
                (from..areas.min(from + n)).for_each(|i| words.set(i, words.get(i) | bits));
            }
            // Headers of frames.
            6 => words.set(script.number(3) as usize % words.len(), script.number(8)),
            _ => {
                // The connection begins anew, in the same memory.
                (0..areas).for_each(|i| words.set(i, 0));
                door.give(live(&memory, features));
                home(&mut queue, &guest, &mut loans);
            }
        }
    }
    door.down();
    home(&mut queue, &guest, &mut loans);
    assert_eq!((queue.held(), queue.lent(), guest.out()), (0, 0, 0), "everything comes home");
}
