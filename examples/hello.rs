//! The smallest data plane: two ports, one core, one rule. `cargo run --release --bin hello`
//!
//! A port lends the packets it receives, the stage says where they go, and the receipts of what was
//! sent bring the buffers home. Everything else is a matter of which ports and which stage.

use std::error::Error;
use std::time::Duration;

use hugepages::Buf;
use pmd::port::generator::{self, Generator};
use pmd::port::null::{self, Null};
use pmd::worker::{Config, Outbox, QueueId, Stage, Worker};
use pmd::{Batch, Port};

/// Whatever comes from one queue goes to the other.
struct Cross;

const LEFT: QueueId = QueueId(0);
const RIGHT: QueueId = QueueId(1);

impl Stage for Cross {
    fn burst(&mut self, from: QueueId, batch: &mut Batch<Buf>, out: &mut Outbox) {
        out.send_all(if from == LEFT { RIGHT } else { LEFT }, batch);
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    // The control side of two devices: one makes UDP frames, the other takes and forgets them.
    let mut left = Generator::new("generator0", generator::Config::default())?;
    let mut right = Null::new("null0", null::Config { no_rx: true, ..null::Config::default() })?;

    // A core. It owns the queues from `attach` on, until they are recalled.
    let worker = Worker::spawn(Config { core: Some(0), ..Config::default() }, Box::new(Cross))?;
    for (id, port) in [(LEFT, &mut left as &mut dyn Port), (RIGHT, &mut right)] {
        let queue = port.start(1)?.pop().ok_or("a port starts as many queues as it is asked for")?;
        worker.attach(id, queue)?;
    }
    worker.start()?;
    std::thread::sleep(Duration::from_secs(1));

    // Every buffer comes home before a queue does.
    left.stop(vec![worker.recall(LEFT, Duration::from_secs(1))?])?;
    right.stop(vec![worker.recall(RIGHT, Duration::from_secs(1))?])?;
    println!("received {} packets, sent {}", left.stats()[0].rx_packets, right.stats()[0].tx_packets);
    Ok(())
}
