//! What a packet of 64 bytes costs either end of a vhost-user connection: nanoseconds per packet of the
//! calls of our `virtio_user` port (the driver) and of our `vhost` port (the device), both on this core,
//! in bursts of 32. The least of many rounds.
//!
//!   send     the driver sends copies of foreign packets, the device receives
//!   receive  the device sends copies of foreign packets, the driver receives
//!   return   the same, and the driver sends back what it received, where it lies

use std::error::Error;
use std::time::{Duration, Instant};

use hugepages::{Backing, Buf, Loan, Pool};
use pmd::port::vhost::{self, Vhost};
use pmd::port::virtio_user::{self, VirtioUser};
use pmd::vhost::{Server, Socket};
use pmd::{Batch, Port, Queue};

const BURST: usize = 32;
const BURSTS: usize = 50;
const ROUNDS: usize = 400;
const LEN: u32 = 60;

/// One end, and the time it took.
struct End {
    queue: Box<dyn Queue>,
    spent: Duration,
    loans: Batch<Loan>,
}

impl End {
    fn new(queue: Box<dyn Queue>) -> End {
        End { queue, spent: Duration::ZERO, loans: Batch::default() }
    }

    fn timed<T>(&mut self, call: impl FnOnce(&mut dyn Queue) -> T) -> T {
        let since = Instant::now();
        let value = call(&mut *self.queue);
        self.spent += since.elapsed();
        value
    }

    /// Sends packets of the pool.
    fn send(&mut self, pool: &mut Pool, batch: &mut Batch<Buf>) {
        for _ in 0..BURST {
            let mut buf = pool.take().expect("receipts come at once");
            buf.truncate(LEN);
            batch.push(buf);
        }
        let mut loans = std::mem::take(&mut self.loans);
        self.timed(|queue| {
            queue.tx(batch);
            queue.reap(&mut loans);
        });
        while let Some(loan) = loans.pop_front() {
            pool.settle(loan);
        }
        self.loans = loans;
    }

    /// Receives a burst.
    fn receive(&mut self, batch: &mut Batch<Buf>) {
        self.timed(|queue| queue.rx(batch));
    }

    /// Gives the packets of a batch back to this end, which lent them.
    fn settle(&mut self, batch: &mut Batch<Buf>) {
        batch.finish_front(batch.len(), &mut self.loans);
        let mut loans = std::mem::take(&mut self.loans);
        self.timed(|queue| queue.settle(&mut loans));
        self.loans = loans;
    }
}

/// One burst of what is measured.
fn turn(what: &str, driver: &mut End, device: &mut End, pool: &mut Pool, batch: &mut Batch<Buf>) -> usize {
    if what == "send" {
        driver.send(pool, batch);
        device.receive(batch);
        let n = batch.len();
        device.settle(batch);
        return n;
    }
    device.send(pool, batch);
    driver.receive(batch);
    let n = batch.len();
    if what == "return" {
        driver.timed(|queue| queue.tx(batch));
        device.receive(batch);
        device.settle(batch);
    } else {
        driver.settle(batch);
    }
    n
}

fn measure(what: &str, packed: bool, mergeable: bool) -> Result<(f64, f64), Box<dyn Error>> {
    let path = std::env::temp_dir().join(format!("hotring-bench-{}.sock", std::process::id()));
    let server = Server::start()?;
    let listen = vhost::Config::new(Socket::Listen(path.clone()));
    let mut vhost = Vhost::new("vhost0", listen, &server.handle())?;
    let mut device = End::new(vhost.start(1)?.pop().ok_or("no queue")?);
    let config = virtio_user::Config { path, packed, mrg_rxbuf: mergeable, ..Default::default() };
    let mut user = VirtioUser::new("virtio_user0", config)?;
    let mut driver = End::new(user.start(1)?.pop().ok_or("no queue")?);
    let (mut pool, _) = Pool::new(4 * BURST, 2048, Backing::default())?;
    let mut batch = Batch::new(BURST);
    let (mut best, since) = ((f64::MAX, f64::MAX), Instant::now());
    let mut rounds = 0;
    while rounds < ROUNDS {
        (driver.spent, device.spent) = (Duration::ZERO, Duration::ZERO);
        let mut packets = 0;
        for _ in 0..BURSTS {
            for end in [&mut driver, &mut device] {
                end.queue.reap(&mut Batch::default());
            }
            packets += turn(what, &mut driver, &mut device, &mut pool, &mut batch);
            // Before the rings are there nothing is taken.
            while let Some(buf) = batch.pop_front() {
                pool.settle(buf.finish(0));
            }
        }
        if packets == BURST * BURSTS {
            rounds += 1;
            let each = |end: &End| end.spent.as_nanos() as f64 / packets as f64;
            best = (best.0.min(each(&driver)), best.1.min(each(&device)));
        } else if since.elapsed() > Duration::from_secs(10) {
            return Err(format!("{packets} of {} packets arrive", BURST * BURSTS).into());
        }
    }
    user.stop(vec![driver.queue])?;
    vhost.stop(vec![device.queue])?;
    Ok(best)
}

fn main() -> Result<(), Box<dyn Error>> {
    println!("{:22}  {:>10}  {:>10}", "ns/packet", "driver", "device");
    for (packed, mergeable) in [(false, true), (false, false), (true, true), (true, false)] {
        for what in ["send", "receive", "return"] {
            let (driver, device) = measure(what, packed, mergeable)?;
            let layout = if packed { "packed" } else { "split" };
            let plain = if mergeable { "" } else { " -mrg" };
            println!("{:22}  {driver:>10.1}  {device:>10.1}", format!("{layout}{plain} {what}"));
        }
    }
    Ok(())
}
