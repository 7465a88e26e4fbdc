//! Ports that are left to another process, or were left by one.

use std::path::Path;

use rustix::io::Errno;
use tracing::info;

use super::super::endpoint::Socket;
use super::super::legacy::{Legacy, LegacyError, LegacyTrouble, Talk};
use super::super::lines::say;
use super::super::refusal::Refusal;
use super::super::session::Session;
use super::super::wire::{Half, Wire};
use super::{Control, Endpoint, Link, Port, ServerError};

/// A listening socket that was left is none.
pub(super) fn listener(path: &Path, errno: Errno) -> LegacyError {
    let source = LegacyTrouble::Os { what: "its listening socket", source: errno.into() };
    LegacyError { path: path.into(), source }
}

impl Control {
    /// As [`Handle::freeze`](super::Handle::freeze).
    pub(super) fn freeze(&mut self) -> Result<Vec<Legacy>, ServerError> {
        let left = self
            .rest()
            .and_then(|()| self.ports.iter().map(|port| port.leave().map_err(|e| port.blame(e))).collect());
        if left.is_err() {
            self.ports.iter_mut().for_each(Port::thaw);
        }
        Ok(left?)
    }

    /// What guests have sent arrives at the others before those stop: rings from guests have odd numbers.
    fn rest(&mut self) -> Result<(), LegacyError> {
        self.ports.iter_mut().for_each(|port| port.frozen = true);
        for odd in [true, false] {
            for port in &mut self.ports {
                if let Some(link) = &mut port.link
                    && let Err(why) = link.session.rest(odd, port.host.as_mut())
                {
                    return Err(port.blame(why.into()));
                }
            }
        }
        Ok(())
    }

    /// As [`Handle::leave`](super::Handle::leave).
    pub(super) fn leave(&mut self) {
        for mut port in self.ports.extract_if(.., |port| port.frozen) {
            port.forget_path();
        }
    }
}

impl Port {
    fn blame(&self, source: LegacyTrouble) -> LegacyError {
        LegacyError { path: self.path.clone(), source }
    }

    /// The socket file is another process's.
    pub(super) fn forget_path(&mut self) {
        if let Endpoint::Listener { listener, .. } = &mut self.endpoint {
            listener.leave();
        }
    }

    /// Goes on.
    pub(super) fn thaw(&mut self) {
        if !std::mem::take(&mut self.frozen) {
            return;
        }
        if let Endpoint::Listener { listener, .. } = &mut self.endpoint {
            listener.own();
        }
        let Some(link) = &mut self.link else { return };
        for refusal in link.session.resume(self.host.as_mut()) {
            say!(self.lines, warn, socket = %self.path.display(), "refused: {refusal}");
        }
        self.ask(false);
    }

    fn leave(&self) -> Result<Legacy, LegacyTrouble> {
        let os = |what| move |source| LegacyTrouble::Os { what, source };
        let (socket, listener) = match &self.endpoint {
            Endpoint::Caller { .. } => (Socket::Connect(self.path.clone()), None),
            Endpoint::Listener { listener, .. } => {
                let socket = listener.socket().try_clone_to_owned().map_err(os("its listening socket"))?;
                (Socket::Listen(self.path.clone()), Some(socket))
            }
        };
        let talk = self.link.as_ref().map(|link| {
            Ok::<Talk, LegacyTrouble>(Talk {
                wire: link.wire.leave().map_err(os("its connection"))?,
                channel: link.channel.as_ref().map(Wire::leave).transpose().map_err(os("its channel"))?,
                asked: link.session.unanswered(),
                said: link.session.leave(self.host.as_ref())?,
                device: self.host.save(),
            })
        });
        let (pairs, control) = (self.offer.pairs, self.offer.control);
        Ok(Legacy { socket, pairs, control, listener, talk: talk.transpose()? })
    }

    /// Goes on where another process has left it; frozen until [`Port::thaw`].
    pub(super) fn inherit(&mut self, legacy: Legacy) -> Result<(), LegacyError> {
        self.frozen = true;
        let (ours, our_control) = (self.offer.pairs, self.offer.control);
        let (theirs, their_control) = (legacy.pairs, legacy.control);
        let Some(talk) = legacy.talk else { return Ok(()) };
        if (theirs, their_control) != (ours, our_control) {
            let queues = LegacyTrouble::Queues { theirs, their_control, ours, our_control };
            return Err(self.blame(queues));
        }
        self.link = Some(self.go_on(talk).map_err(|why| self.blame(why))?);
        info!(socket = %self.path.display(), "a front-end goes on here");
        Ok(())
    }

    fn go_on(&mut self, talk: Talk) -> Result<Link, LegacyTrouble> {
        let Talk { wire, channel, asked, said, device } = talk;
        self.host.connected();
        let mut session = Session::inherit(self.offer.clone(), said, self.host.as_mut())?;
        session.inherit_asked(asked);
        self.host.load(&device).map_err(Refusal::State)?;
        let channel = channel.map(Half::channel).transpose()?;
        Ok(Link { wire: wire.conversation()?, session, channel })
    }
}
