use super::*;
use crate::port::generator::{self, Generator, IMIX};
use crate::port::null::{self, Null};
use hugepages::{Lender, Map, PageSize};
use std::collections::HashMap;

const BASE: Backing = Backing { page: PageSize::Base, node: None };
const COUNT: u64 = 5000;

fn around(inner: Box<dyn Port>, config: Config) -> Fault {
    Fault::new(inner, Config { backing: BASE, ..config }).unwrap()
}

fn null() -> Box<dyn Port> {
    Box::new(Null::new("null0", null::Config { no_rx: true, backing: BASE, ..Default::default() }).unwrap())
}

/// What a generator finds when its frames pass a faulty port out and in again.
fn found(config: Config) -> HashMap<String, u64> {
    let sizes = [&IMIX[..], &[9000]].concat();
    let traffic = generator::Config {
        check: true,
        count: Some(COUNT),
        sizes,
        backing: BASE,
        ..generator::Config::default()
    };
    let mut port = around(Box::new(Generator::new("gen0", traffic).unwrap()), config);
    let mut queues = port.start(1).unwrap();
    let queue = &mut *queues[0];
    let (mut batch, mut loans, mut quiet) = (Batch::new(32), Batch::default(), 0);
    while quiet < 2 * RECALL {
        quiet = if queue.rx(&mut batch) == 0 { quiet + 1 } else { 0 };
        queue.tx(&mut batch);
        queue.reap(&mut loans);
        queue.settle(&mut loans);
        assert!(loans.is_empty());
    }
    assert!(batch.is_empty());
    assert_eq!((queue.lent(), queue.held()), (0, 0), "all buffers are home");
    port.stop(queues).unwrap();
    port.xstats().into_iter().collect()
}

#[test]
fn without_faults_it_is_the_port_inside() {
    let found = found(Config::default());
    assert_eq!((found["sent"], found["returned"]), (COUNT, COUNT));
    assert!(found.iter().all(|(name, &n)| !name.starts_with("fault") || n == 0));
}

#[test]
fn each_fault_is_what_the_generator_finds() {
    let loss = found(Config { drop: 0.1, ..Config::default() });
    assert!(loss["lost"] > COUNT / 10 && loss["lost"] == loss["fault_dropped"], "{loss:?}");

    let copies = found(Config { duplicate: 0.1, ..Config::default() });
    assert!(copies["duplicated"] > COUNT / 10, "{copies:?}");
    assert_eq!((copies["duplicated"], copies["lost"]), (copies["fault_duplicated"], 0));

    let damage = found(Config { corrupt: 0.05, ..Config::default() });
    // A flipped bit of a MAC address is no damage to the generator.
    let noticed = damage["damaged"] + damage["foreign"];
    assert_eq!(damage["lost"], noticed);
    assert!(noticed <= damage["fault_corrupted"] && noticed > damage["fault_corrupted"] / 2, "{damage:?}");

    let order = found(Config { reorder: 0.1, ..Config::default() });
    assert!(order["reordered"] > COUNT / 20 && order["fault_reordered"] > COUNT / 10, "{order:?}");
    assert_eq!((order["lost"], order["duplicated"], order["damaged"]), (0, 0, 0));

    let delay = found(Config { delay: 0.2, ..Config::default() });
    assert!(delay["reordered"] > 0 && delay["fault_delayed"] > COUNT / 5, "{delay:?}");
    assert_eq!((delay["lost"], delay["returned"]), (0, COUNT));
}

#[test]
fn the_same_seed_does_the_same() {
    let all = Config {
        drop: 0.1,
        duplicate: 0.1,
        corrupt: 0.1,
        delay: 0.1,
        reorder: 0.1,
        hold: 0.3,
        permute: true,
        ..Config::default()
    };
    assert_eq!(found(all.clone()), found(all.clone()));
    assert_ne!(found(all.clone()), found(Config { seed: 2, ..all }));
}

#[test]
fn receipts_come_late_in_any_order_and_each_once() {
    let mut port = around(null(), Config { hold: 0.5, permute: true, turns: 8, ..Config::default() });
    let mut queues = port.start(1).unwrap();
    let lender = Lender::new(Table::of(Map::shared(4096, BASE).unwrap()));
    let mut batch = Batch::default();
    (0..100).for_each(|id| batch.push(lender.lend(0, 60, id).unwrap()));
    assert_eq!((queues[0].tx(&mut batch), queues[0].held()), (100, 100));
    let (mut order, mut turns, mut loans) = (Vec::new(), 0, Batch::default());
    while queues[0].held() > 0 {
        queues[0].reap(&mut loans);
        while let Some(loan) = loans.pop_front() {
            order.push(lender.settle(loan).0);
        }
        turns += 1;
    }
    assert!((2..=9).contains(&turns), "{turns}");
    assert!(!order.is_sorted(), "permuted");
    order.sort_unstable();
    assert!(order.into_iter().eq(0..100), "each once");
    assert_eq!((lender.out(), port.xstats()[5].1 > 20), (0, true));
}

#[test]
fn what_may_not_be_written_is_damaged_in_a_copy() {
    let mut port = around(null(), Config { corrupt: 1.0, duplicate: 1.0, ..Config::default() });
    let mut queues = port.start(1).unwrap();
    let lender = Lender::new(Table::of(Map::shared(8192, BASE).unwrap()));
    let mut batch = Batch::default();
    // One packet of two buffers, larger than a frame.
    let mut first = lender.lend(0, 4000, 0).unwrap();
    first.set_more(true);
    batch.push(first);
    batch.push(lender.lend(4000, 100, 1).unwrap());
    assert_eq!(queues[0].tx(&mut batch), 1);
    let (mut loans, mut home) = (Batch::default(), 0);
    while queues[0].held() > 0 {
        queues[0].reap(&mut loans);
        while let Some(loan) = loans.pop_front() {
            lender.settle(loan);
            home += 1;
        }
    }
    queues[0].reap(&mut loans);
    assert_eq!((home, queues[0].lent(), lender.out()), (2, 0, 0));
    let stats = port.stats()[0];
    assert_eq!((stats.tx_packets, stats.tx_bytes), (2, 8200));
    assert!((0..512).all(|i| lender.peek::<u64>(i * 8) == Ok(0)), "the original is as it was");
}

#[test]
fn a_queue_that_is_recalled_gives_everything_back() {
    let traffic = generator::Config { backing: BASE, ..generator::Config::default() };
    let inner = Box::new(Generator::new("gen0", traffic).unwrap());
    let mut port = around(inner, Config { delay: 1.0, turns: 1_000_000, ..Config::default() });
    let mut queues = port.start(1).unwrap();
    let mut batch = Batch::new(32);
    assert_eq!((queues[0].rx(&mut batch), queues[0].lent()), (0, 32));
    assert!(!queues[0].sleep(&mut |_| ()));
    for _ in 0..=RECALL {
        queues[0].reap(&mut Batch::default());
    }
    assert_eq!(queues[0].lent(), 0);
    port.stop(queues).unwrap();
}

#[test]
fn impossible_chances_are_refused() {
    let why = Fault::new(null(), Config { drop: 1.5, ..Config::default() }).err().unwrap();
    assert_eq!(why.to_string(), "port null0: drop=1.5 is not a chance from 0 to 1");
    assert!(Fault::new(null(), Config { turns: 0, ..Config::default() }).is_err());
    assert!(Fault::new(null(), Config { hold: f64::NAN, ..Config::default() }).is_err());
}
