//! T9: every word of the rings, and of the buffers, changes while the device reads it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hugepages::Words;
use pmd::spec::{net, virtio as v};
use pmd::vring::driver::{Desc, Raw};

use crate::guest::{FORMS, FRAMES, GUEST, Guest, MEMORY, NUM};
use crate::house::House;

/// xorshift64*: no dependence on anything, and the same each time.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn throw(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[(self.throw() >> 33) as usize % all.len()]
    }
}

/// A descriptor that is right, nearly right, or wrong.
fn desc(dice: &mut Dice, packed: bool) -> Desc {
    let addr = dice.of(&[
        FRAMES,
        FRAMES + 2048,
        FRAMES + 0x1_0000,
        GUEST,
        GUEST + 0x100,
        GUEST + MEMORY - 64,
        GUEST + MEMORY - 1,
        GUEST - 1,
        u64::MAX,
    ]);
    let len = dice.of(&[0, 1, 12, 64, 76, 76, 2048, 2048, 70_000, u32::MAX]);
    let flags = dice.of(&[
        0,
        0,
        v::DESC_F_WRITE,
        v::DESC_F_WRITE,
        v::DESC_F_NEXT,
        v::DESC_F_NEXT | v::DESC_F_WRITE,
        v::DESC_F_INDIRECT,
    ]);
    let lap = if packed { dice.of(&[Raw::avail_bits(true), Raw::avail_bits(false), 0]) } else { 0 };
    Desc { addr, len, flags: flags | lap, tag: (dice.throw() >> 40) as u16 % (NUM + NUM / 16) }
}

/// Writes one word somewhere, as a second core of the guest would.
pub(crate) fn disturb(dice: &mut Dice, raw: &[Raw; 2], words: &hugepages::Window<u16>, packed: bool) {
    let ring = &raw[(dice.throw() >> 63) as usize];
    let i = (dice.throw() >> 40) as u16 % NUM;
    match dice.throw() >> 61 {
        0..4 => ring.set_desc(i, desc(dice, packed)),
        4 if !packed => ring.set_avail(i, (dice.throw() >> 40) as u16 % NUM),
        5 if !packed => ring.set_avail_idx(ring.used_idx().wrapping_add((dice.throw() >> 56) as u16 % NUM)),
        6 => ring.set_driver(usize::from(i) % 2, (dice.throw() >> 48) as u16 & 3),
        7 if !packed => ring.set_device(usize::from(i), (dice.throw() >> 48) as u16),
        // Headers and frames.
        _ => {
            let at = (FRAMES - GUEST) as usize / 2 + (dice.throw() >> 40) as usize % 0x8000;
            words.set(at, (dice.throw() >> 48) as u16);
        }
    }
}

/// How long each form of a ring is disturbed; `HOTRING_RACE_MS` says otherwise.
fn spell() -> Duration {
    let ms = std::env::var("HOTRING_RACE_MS").ok().and_then(|ms| ms.parse().ok());
    Duration::from_millis(ms.unwrap_or(400))
}

#[test]
fn t9_rings_that_change_while_they_are_read() {
    let house = House::new("race", |_| {});
    for (i, form) in FORMS.into_iter().enumerate() {
        for features in [form, form | net::F_MRG_RXBUF] {
            let mut guest = Guest::connect(&house.path, features);
            let (raw, words, packed) = (
                [guest.raw(0), guest.raw(1)],
                guest.table.window::<u16>(GUEST, MEMORY as usize / 2).unwrap(),
                guest.packed(),
            );
            let stop = AtomicBool::new(false);
            let mut rounds = 0;
            std::thread::scope(|threads| {
                threads.spawn(|| {
                    let mut dice = Dice(0x9e37_79b9_7f4a_7c15 + i as u64);
                    while !stop.load(Ordering::Relaxed) {
                        (0..256).for_each(|_| disturb(&mut dice, &raw, &words, packed));
                        std::thread::yield_now();
                    }
                });
                let since = Instant::now();
                // Retired soon, and started again.
                while since.elapsed() < spell() {
                    guest.start();
                    guest.kick();
                    std::thread::sleep(Duration::from_micros(500));
                    for ring in 0..2 {
                        assert!(guest.stop_ring(ring).is_some(), "its buffers come home");
                    }
                    rounds += 1;
                }
                stop.store(true, Ordering::Relaxed);
            });
            assert!(rounds > 10, "{rounds} rounds");
        }
        house.stands("a race");
    }
    assert!(house.faults() > 20, "{} faults", house.faults());
    house.ends("races");
}
