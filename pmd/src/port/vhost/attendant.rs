//! Serves the control queue of a guest, on the control thread.

use std::time::{Duration, Instant};

use hugepages::Buf;

use super::commands::{Answer, MAX_COMMAND};
use super::queue::Ring;
use crate::batch::Batch;
use crate::with_ring;

/// How long one guest may have commands carried out before other ports have their turn, and how many.
const TURN: Duration = Duration::from_millis(20);
const COMMANDS_A_TURN: usize = 64;
/// How often a ring is looked at whose driver does not kick.
const LOOK: Duration = Duration::from_millis(10);

/// A control queue that runs.
pub(super) struct Attendant {
    pub(super) ring: Ring,
    chain: Batch<Buf>,
    command: Vec<u8>,
    /// When it is to be looked at without being kicked.
    next: Option<Instant>,
}

impl Attendant {
    pub(super) fn new(ring: Ring) -> Attendant {
        // Commands may be there already.
        let next = Some(Instant::now());
        Attendant { ring, chain: Batch::default(), command: Vec::new(), next }
    }

    /// When it wants to be looked at, kicked or not.
    pub(super) fn alarm(&self) -> Option<Instant> {
        self.next
    }

    /// Looks soon: its eventfds have changed.
    pub(super) fn look(&mut self) {
        self.next = Some(Instant::now());
    }

    /// Has commands carried out by `obey`, as many as are there or may be in a turn. `true`: it was retired.
    pub(super) fn serve(&mut self, mut obey: impl FnMut(&[u8]) -> Answer) -> bool {
        if let Some(kick) = &self.ring.events.kick {
            kick.clear();
        }
        if self.ring.ring.fault().is_some() {
            self.next = None;
            return false;
        }
        let since = Instant::now();
        let mut more = true;
        for _ in 0..COMMANDS_A_TURN {
            more = self.one(&mut obey) || self.ring.ring.arm(true);
            // It goes on when it is known where its buffers are.
            more &= !self.ring.ring.blocked();
            if !more || since.elapsed() > TURN {
                break;
            }
        }
        if self.ring.ring.publish()
            && let Some(call) = &self.ring.events.call
        {
            call.signal();
        }
        let polled = self.ring.events.kick.is_none();
        self.next = match (more, polled) {
            (true, _) => Some(Instant::now()),
            (false, true) => Some(Instant::now() + LOOK),
            (false, false) => None,
        };
        self.ring.ring.fault().is_some()
    }

    /// Carries out the next command; `false`: there is none.
    fn one(&mut self, obey: &mut impl FnMut(&[u8]) -> Answer) -> bool {
        let Attendant { ring, chain, command, .. } = self;
        let popped = with_ring!(&mut ring.ring, vring => vring.pop(chain));
        let Some(popped) = popped else { return false };
        // What cannot be answered is given back as it is; so is, without buffers, what was no chain.
        let room: u64 = chain.iter().filter(|buf| buf.writable()).map(|buf| u64::from(buf.len())).sum();
        let answer = if room == 0 || popped.overflow {
            None
        } else if copy(chain, command) {
            Some(obey(command)).filter(|answer| answer.bytes().len() as u64 <= room)
        } else {
            None
        };
        let answer = answer.unwrap_or(Answer::ERR);
        let mut rest = answer.bytes();
        while let Some(mut buf) = chain.pop_front() {
            let mut written = 0;
            if buf.writable() {
                written = buf.write(0, rest);
                rest = &rest[written..];
            }
            ring.ring.settle(buf.finish(written as u32));
        }
        true
    }
}

/// Copies the readable bytes of a chain out; `false`: there are more than any command has.
fn copy(chain: &Batch<Buf>, command: &mut Vec<u8>) -> bool {
    command.clear();
    for buf in chain.iter().filter(|buf| !buf.writable()) {
        let (at, len) = (command.len(), buf.len() as usize);
        if at + len > MAX_COMMAND {
            return false;
        }
        command.resize(at + len, 0);
        buf.read(0, &mut command[at..]);
    }
    true
}
