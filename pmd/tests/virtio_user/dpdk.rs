//! Against DPDK's back-end: `dpdk-testpmd` with `net_vhost`, which swaps the MAC addresses and sends
//! every frame back. Skipped where `dpdk-testpmd` is not installed.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pmd::port::virtio_user::{Config, VirtioUser};
use pmd::{Batch, Port};

use crate::lanes::*;
use crate::peer::{Testpmd, socket_of};

/// Frames of a case, over all queues.
const FRAMES: u32 = 10_000;

/// Each of the tests wants both cores.
fn alone() -> MutexGuard<'static, ()> {
    static CORES: Mutex<()> = Mutex::new(());
    CORES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends single frames until they come back: a testpmd that connects to us takes frames before it can
/// send any. None is on its way afterwards.
fn warm_up(lanes: &mut [Lane]) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let (mut sent, mut loans, mut back) = (Batch::default(), Batch::default(), Batch::default());
    for lane in lanes {
        let mut quiet = 0;
        lane.queue.reap(&mut loans);
        while quiet < 3 {
            assert!(Instant::now() < deadline, "nothing comes back");
            assert!(make(&mut lane.pool, 1, size_of(1, 1514), &mut sent));
            assert_eq!(lane.queue.tx(&mut sent), 1);
            lane.queue.reap(&mut loans);
            lane.pool.settle(loans.pop_front().unwrap());
            std::thread::sleep(Duration::from_millis(20));
            quiet = if lane.queue.rx(&mut back) > 0 { quiet + 1 } else { 0 };
            while !back.is_empty() {
                check(&mut back, &mut loans, 1514);
            }
            lane.queue.settle(&mut loans);
        }
    }
}

#[test]
fn every_frame_comes_back() {
    let _alone = alone();
    for queues in [1, 4] {
        let Some(peer) = Testpmd::vhost("frames", queues, "") else { return };
        for case in 0..16 {
            let bit = |i: u32| case >> i & 1 != 0;
            let config = Config {
                path: peer.socket().to_owned(),
                queues,
                packed: bit(0),
                in_order: bit(1),
                mrg_rxbuf: bit(2),
                event_idx: bit(3),
                backing: base(),
                ..Config::default()
            };
            let (flags, began) = ([0, 1, 2, 3].map(bit), Instant::now());
            round_trip(config, queues, 1514, FRAMES);
            println!(
                "{queues} queue pairs, [packed, in-order, mergeable, event index] {flags:?}: {FRAMES} frames \
                 there and back in {:?}",
                began.elapsed()
            );
        }
    }
}

#[test]
fn long_frames_and_odd_rings() {
    let _alone = alone();
    let Some(peer) = Testpmd::vhost("long", 1, "") else { return };
    for (queue_size, packed, mrg_rxbuf, indirect) in [
        (1024, false, true, true),
        (1024, false, false, false),
        (1000, true, true, true),
        (333, true, false, false),
        (64, true, true, false),
        (64, false, true, true),
    ] {
        let path = peer.socket().to_owned();
        let (mtu, backing) = (9000, base());
        let config =
            Config { path, queue_size, packed, mrg_rxbuf, indirect, mtu, backing, ..Config::default() };
        round_trip(config, 1, 9014, FRAMES);
    }
}

#[test]
fn a_new_back_end_takes_over() {
    let _alone = alone();
    for (server, packed) in [(false, false), (false, true), (true, false), (true, true)] {
        let name = format!("again{}{}", u8::from(server), u8::from(packed));
        let path = socket_of(&name);
        let vdev = if server { ",client=1" } else { "" };
        let mut peer = None;
        if !server {
            peer = Testpmd::vhost(&name, 2, vdev);
            if peer.is_none() {
                return;
            }
        }
        let config = Config { path, server, packed, queues: 2, backing: base(), ..Config::default() };
        let mut port = VirtioUser::new("virtio_user0", config).unwrap();
        let mut lanes = lanes(&mut port, 2, 0);
        for round in 1..3 {
            if peer.is_none() {
                peer = Testpmd::vhost(&name, 2, vdev);
                if peer.is_none() {
                    return;
                }
            }
            wait_for(true, &port, &mut lanes);
            warm_up(&mut lanes);
            for lane in &mut lanes {
                lane.end += 3000;
            }
            exchange(&mut lanes, 1514, 64);
            assert_eq!(port.xstats()[0].1, round);
            peer = None;
            wait_for(false, &port, &mut lanes);
            let mut batch = Batch::default();
            make(&mut lanes[0].pool, 1, 60, &mut batch);
            lanes[0].queue.reap(&mut Batch::default());
            assert_eq!(lanes[0].queue.tx(&mut batch), 0, "no link, nothing is taken");
            lanes[0].pool.settle(batch.pop_front().unwrap().finish(0));
        }
        stop(&mut port, lanes);
    }
}
