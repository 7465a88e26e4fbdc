//! A conversation that another process goes on with.
//!
//! What it has come to is said in the words of the protocol: the messages that would bring a new conversation
//! there. Who inherits it reads and checks them like those of any front-end.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use zerocopy::IntoBytes;

use super::super::backend::Ask;
use super::super::host::{Files, Host, HostError};
use super::super::message::{Fds, Frame, Request, name};
use super::super::refusal::Refusal;
use super::super::ring::{Kick, Ring};
use super::{Offer, Postcopy, Session};
use crate::spec::vhost_user::{
    CONFIG_F_MIGRATION, ConfigAccess, F_LOG_ALL, MemRegion, SingleRegion, VRING_FD_NONE, VringAddr,
    VringState, id,
};

/// What may be said of a conversation: nothing that is answered, and nothing that ends what came before.
const SAID: [u32; 15] = [
    id::SET_PROTOCOL_FEATURES,
    id::SET_FEATURES,
    id::SET_STATUS,
    id::SET_CONFIG,
    id::ADD_MEM_REG,
    id::SET_LOG_BASE,
    id::SET_LOG_FD,
    id::SET_INFLIGHT_FD,
    id::SET_VRING_NUM,
    id::SET_VRING_BASE,
    id::SET_VRING_ADDR,
    id::SET_VRING_CALL,
    id::SET_VRING_ERR,
    id::SET_VRING_KICK,
    id::SET_VRING_ENABLE,
];

fn bare(id: u32, payload: &[u8]) -> Frame {
    Frame::of(id, payload, Fds::default())
}

fn with(id: u32, payload: &[u8], fd: OwnedFd) -> Frame {
    Frame::of(id, payload, std::iter::once(fd).collect())
}

/// The message by which one of a ring's descriptors came.
fn line(id: u32, ring: u32, fd: &Arc<OwnedFd>) -> Result<Frame, Refusal> {
    let fd = fd.try_clone().map_err(|e| Refusal::Memory(HostError::Files(e)))?;
    Ok(with(id, &u64::from(ring).to_ne_bytes(), fd))
}

impl Session {
    /// Stops rings that run, those with odd numbers or the others. [`Session::resume`] starts them again.
    pub(in super::super) fn rest(&mut self, odd: bool, host: &mut dyn Host) -> Result<(), Refusal> {
        if self.postcopy != Postcopy::No {
            return Err(Refusal::Postcopy(id::POSTCOPY_LISTEN, "it is under way"));
        }
        let at_work = |ring: &usize| self.rings[*ring].running && (ring % 2 == 1) == odd;
        let rings: Vec<usize> = (0..self.rings.len()).filter(at_work).collect();
        if rings.is_empty() { Ok(()) } else { self.stop(&rings, host) }
    }

    /// Starts what can run. What does not start, and why.
    pub(in super::super) fn resume(&mut self, host: &mut dyn Host) -> Vec<Refusal> {
        self.held = false;
        let mut refused = Vec::new();
        self.start_all(host, &mut refused);
        refused
    }

    /// What was asked of the front-end, and is not answered.
    pub(in super::super) fn unanswered(&self) -> Vec<Ask> {
        self.asked.unanswered()
    }

    /// These were asked, by another process.
    pub(in super::super) fn inherit_asked(&mut self, asked: Vec<Ask>) {
        self.asked.inherit(asked);
    }

    /// What it has come to. No ring runs.
    pub(in super::super) fn leave(&self, host: &dyn Host) -> Result<Vec<Frame>, Refusal> {
        let Files { mut memory, log, log_signal, records } = host.files().map_err(Refusal::Memory)?;
        let mut said = vec![bare(id::SET_PROTOCOL_FEATURES, &self.protocol.to_ne_bytes())];
        let features = |features: u64| bare(id::SET_FEATURES, &features.to_ne_bytes());
        said.extend(self.features.map(|set| features(set & !F_LOG_ALL)));
        said.push(bare(id::SET_STATUS, &u64::from(self.status).to_ne_bytes()));
        if !self.config.is_empty() {
            let size = self.config.len() as u32;
            let access = ConfigAccess { offset: 0, size, flags: CONFIG_F_MIGRATION };
            said.push(bare(id::SET_CONFIG, &[access.as_bytes(), &self.config].concat()));
        }
        for region in self.regions.iter() {
            let MemRegion { guest, size, .. } = *region;
            let gone = || HostError::Memory { guest, size, source: "it is not mapped".into() };
            let at = memory.iter().position(|(at, _)| *at == guest).ok_or_else(|| Refusal::Memory(gone()))?;
            let single = SingleRegion { padding: 0, region: *region };
            said.push(with(id::ADD_MEM_REG, single.as_bytes(), memory.swap_remove(at).1));
        }
        said.extend(log.map(|(area, file)| with(id::SET_LOG_BASE, area.as_bytes(), file)));
        said.extend(log_signal.map(|fd| with(id::SET_LOG_FD, &[], fd)));
        said.extend(self.features.filter(|set| set & F_LOG_ALL != 0).map(features));
        said.extend(records.map(|(area, file)| with(id::SET_INFLIGHT_FD, area.as_bytes(), file)));
        for (index, ring) in self.rings.iter().enumerate() {
            leave_ring(index as u32, ring, &mut said)?;
        }
        Ok(said)
    }

    /// Goes on where another process has left it; no ring runs before [`Session::resume`].
    ///
    /// # Errors
    /// Whatever a front-end would be refused for.
    pub(in super::super) fn inherit(
        offer: Offer,
        said: Vec<Frame>,
        host: &mut dyn Host,
    ) -> Result<Session, Refusal> {
        let mut session = Session { held: true, ..Session::new(offer) };
        let mut refused = Vec::new();
        for frame in said {
            let id = frame.header.request;
            if !SAID.contains(&id) {
                return Err(Refusal::Legacy(name(id)));
            }
            match session.serve(Request::parse(frame)?, host, &mut refused) {
                // A ring that could not run before either.
                Err(why) if !why.spares_the_connection() => return Err(why),
                _ => {}
            }
        }
        Ok(session)
    }
}

fn leave_ring(index: u32, ring: &Ring, said: &mut Vec<Frame>) -> Result<(), Refusal> {
    let mut state = |id, num| said.push(bare(id, VringState { index, num }.as_bytes()));
    if let Some(num) = ring.num {
        state(id::SET_VRING_NUM, num);
    }
    if let Some(base) = ring.base {
        state(id::SET_VRING_BASE, base);
    }
    if let Some(addr) = ring.addr {
        said.push(bare(id::SET_VRING_ADDR, VringAddr { index, ..addr }.as_bytes()));
    }
    let none = (u64::from(index) | VRING_FD_NONE).to_ne_bytes();
    for (id, fd, message) in [
        (id::SET_VRING_CALL, &ring.call, ring.call_message),
        (id::SET_VRING_ERR, &ring.err, ring.err_message),
    ] {
        match fd {
            Some(_) if message => said.push(bare(id, &none)),
            Some(fd) => said.push(line(id, index, fd)?),
            None => {}
        }
    }
    match &ring.kick {
        Some(Kick::Fd(kick)) => said.push(line(id::SET_VRING_KICK, index, kick)?),
        Some(Kick::Polled | Kick::Message(_)) => said.push(bare(id::SET_VRING_KICK, &none)),
        None => {}
    }
    if let Some(enabled) = ring.enabled {
        said.push(bare(id::SET_VRING_ENABLE, VringState { index, num: enabled.into() }.as_bytes()));
    }
    Ok(())
}
