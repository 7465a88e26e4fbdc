//! `--takeover`: ports from the process before, and to the next one.

use pmd::vhost::Socket;
use pmd::vhost::handover::{self, HandoverError, Successor, Will};

use super::{App, Slot};
use crate::Error;
use crate::ports;
use crate::vdev::Vdev;

/// A port that was closed for the successor: its description, and whether it was started.
type Closed = (usize, Vdev, bool);

impl App {
    /// Asks the process before for its ports, if there is one at the socket of `--takeover`; listens there, if
    /// not.
    ///
    /// # Errors
    /// When it does not hand them over, and goes on, or nobody can listen there.
    pub(super) fn claim(&mut self) -> Result<(), Error> {
        let Some(path) = &self.options.takeover else { return Ok(()) };
        let named: Vec<Socket> = self.options.vdevs.iter().filter_map(ports::socket).collect();
        self.maker.claim = handover::claim(path, &named).map_err(|e| self.blame(e))?;
        if self.maker.claim.is_none() {
            self.maker.will = Some(Will::open(path).map_err(|e| self.blame(e))?);
        }
        Ok(())
    }

    fn blame(&self, why: HandoverError) -> Error {
        let path = self.options.takeover.as_deref().unwrap_or("".as_ref());
        Error::Usage(format!("--takeover {}: {why}", path.display()))
    }

    /// Tells the process before, if it waits, that it has to go on.
    pub(crate) fn refuse(&mut self, why: &Error) {
        if let Some(claim) = self.maker.claim.take() {
            claim.refuse(why);
        }
    }

    /// Everything is ready: the ports of the process before are ours, and where the next one will come. `true`:
    /// there was one before.
    ///
    /// # Errors
    /// When the process before has not confirmed.
    pub(crate) fn settle(&mut self) -> Result<Option<(Will, bool)>, Error> {
        let Some(claim) = self.maker.claim.take() else {
            return Ok(self.maker.will.take().map(|will| (will, false)));
        };
        let will = claim.settle().map_err(|e| self.blame(e))?;
        if let Some(server) = self.maker.server() {
            server.thaw();
        }
        Ok(Some((will, true)))
    }

    /// The sockets of all vhost ports.
    pub(crate) fn served(&self) -> Vec<Socket> {
        self.ports.iter().flatten().filter_map(|slot| ports::socket(&slot.vdev)).collect()
    }

    /// Hands all ports over: vhost ports as they are; others are closed, so that the successor can open them.
    /// Afterwards there are no vhost ports here.
    ///
    /// # Errors
    /// Why it does not go on with them. All goes on here.
    pub(crate) fn hand_over(&mut self, mut successor: Successor, will: &Will) -> Result<(), String> {
        if self.ports.iter().flatten().any(|slot| slot.vdev.kind == "dpdk") {
            let why = "DPDK's devices, which cannot be opened again, are not handed over".to_owned();
            successor.refuse(&why);
            return Err(why);
        }
        self.rest()?;
        let mut closed = Vec::new();
        let handed = match self.release(&mut closed) {
            Err(why) => {
                successor.refuse(&why);
                Err(why)
            }
            Ok(left) => {
                let heard = successor.bequeath(will, left).and_then(|()| successor.confirm());
                heard.map_err(|e| e.to_string())
            }
        };
        if handed.is_ok() {
            if let Some(server) = self.maker.server() {
                server.leave();
            }
            return Ok(());
        }
        if let Some(server) = self.maker.server() {
            server.thaw();
        }
        let reopened = closed.into_iter().map(|port| self.reopen(port)).fold(Ok(()), Result::and);
        reopened.and(self.go_on()).and(handed)
    }

    /// Closes what is no vhost port, and freezes what is one.
    fn release(&mut self, closed: &mut Vec<Closed>) -> Result<Vec<pmd::vhost::Legacy>, String> {
        for port in self.all() {
            if ports::socket(&self.slot(port).vdev).is_some() {
                continue;
            }
            let started = self.slot(port).started.is_some();
            self.stop_port(port)?;
            let Slot { vdev, .. } = self.ports[port].take().expect("it is there");
            closed.push((port, vdev, started));
        }
        match self.maker.server() {
            Some(server) => server.freeze().map_err(|e| e.to_string()),
            None => Ok(Vec::new()),
        }
    }

    fn reopen(&mut self, (port, vdev, started): Closed) -> Result<(), String> {
        let made = self.maker.make(&vdev, &self.options.rings()).map_err(|e| e.to_string())?;
        self.ports[port] = Some(Slot { vdev, port: made, started: None, shown: None, told: None });
        if started { self.start_ports(&[port]) } else { Ok(()) }
    }
}
