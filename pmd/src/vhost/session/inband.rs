//! Kicks, calls and errors as messages (spec "In-band notifications"). The cores know nothing of it: they have
//! eventfds, as ever, and at our end of those are messages.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use rustix::io::{read, write};

use super::super::backend::Ask;
use super::super::host::{Host, HostError};
use super::super::refusal::Refusal;
use super::super::ring::{Kick, Ring};
use super::Session;
use crate::spec::vhost_user::{PROTOCOL_F_INBAND_NOTIFICATIONS, VringState, id};

/// An eventfd of ours.
pub(super) fn bell() -> Result<Arc<OwnedFd>, Refusal> {
    let made = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
    made.map(Arc::new).map_err(|errno| Refusal::Memory(HostError::Files(errno.into())))
}

/// Takes what was signalled; whether anything was.
fn rung(bell: &OwnedFd) -> bool {
    read(bell, &mut [0; 8]).is_ok()
}

/// The rings' eventfds for which messages are sent: of the call, and of the error.
fn bells(ring: &Ring) -> [Option<&Arc<OwnedFd>>; 2] {
    [ring.call.as_ref().filter(|_| ring.call_message), ring.err.as_ref().filter(|_| ring.err_message)]
}

impl Session {
    /// Whether a ring without descriptors has messages in their place.
    pub(super) fn inband(&self) -> bool {
        self.protocol & PROTOCOL_F_INBAND_NOTIFICATIONS != 0
    }

    /// What is to be signalled for a call or an error, and whether that is to become a message.
    pub(super) fn line(&self, fd: Option<OwnedFd>) -> Result<(Option<Arc<OwnedFd>>, bool), Refusal> {
        match fd {
            Some(fd) => Ok((Some(Arc::new(fd)), false)),
            None if self.inband() => Ok((Some(bell()?), true)),
            None => Ok((None, false)),
        }
    }

    /// A ring was kicked by a message; one that is not started is, like one whose descriptor came.
    pub(super) fn kicked(&mut self, state: VringState, host: &mut dyn Host) -> Result<(), Refusal> {
        if !self.inband() {
            return Err(Refusal::NotNegotiated(id::VRING_KICK));
        }
        let ring = self.ring(state.index)?;
        if self.rings[ring].kick.is_none() {
            self.rings[ring].kick = Some(Kick::Message(bell()?));
        }
        if let Some(Kick::Message(bell)) = &self.rings[ring].kick {
            // A counter that is full is signalled.
            let _ = write(bell, &1u64.to_ne_bytes());
        }
        self.start(ring, host)
    }

    /// What is readable when messages are to be sent.
    pub(in super::super) fn bells(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.rings.iter().flat_map(|ring| bells(ring).into_iter().flatten().map(|bell| bell.as_fd()))
    }

    /// Asks for what was signalled since the last time.
    pub(super) fn gather(&mut self) {
        if !self.inband() {
            return;
        }
        for (index, ring) in self.rings.iter().enumerate() {
            let ring_index = index as u16;
            let [call, err] = bells(ring);
            if call.is_some_and(|bell| rung(bell)) {
                self.asked.push_once(Ask::Call { ring: ring_index });
            }
            if err.is_some_and(|bell| rung(bell)) {
                self.asked.push_once(Ask::Err { ring: ring_index });
            }
        }
    }
}
