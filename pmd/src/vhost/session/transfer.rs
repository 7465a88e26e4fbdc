//! The state of the device, carried to another host (spec "Migrating back-end state").
//!
//! The channel is a file of ours in memory, whatever the front-end brings: nobody waits for anybody who writes
//! or reads slowly.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{MemfdFlags, fstat, memfd_create};
use rustix::io::{Errno, pread, pwrite, retry_on_intr};

use super::super::host::{Host, HostError};
use super::super::message::Answer;
use super::super::refusal::Refusal;
use super::Session;
use crate::spec::vhost_user::{LOAD, PROTOCOL_F_DEVICE_STATE, SAVE, StateTransfer, id};

/// Bytes of the longest state that is read.
const MAX_STATE: u64 = 1 << 20;

/// The state of the device on its way.
#[derive(Debug)]
pub(super) enum Transfer {
    None,
    /// It was given.
    Saved,
    /// It is being written to this file.
    Loading(OwnedFd),
}

fn os(errno: Errno) -> Refusal {
    Refusal::State(HostError::Files(errno.into()))
}

impl Session {
    pub(super) fn set_transfer(
        &mut self,
        how: StateTransfer,
        host: &mut dyn Host,
    ) -> Result<Answer, Refusal> {
        self.has_protocol(PROTOCOL_F_DEVICE_STATE, id::SET_DEVICE_STATE_FD)?;
        self.transfer = Transfer::None;
        if self.rings.iter().any(|ring| ring.running) {
            return Err(Refusal::Transfer("rings run; GET_VRING_BASE stops them"));
        }
        if how.phase != 0 {
            return Err(Refusal::Transfer("a phase other than 0 (stopped)"));
        }
        let file = memfd_create(c"device-state", MemfdFlags::CLOEXEC).map_err(os)?;
        self.transfer = match how.direction {
            SAVE => {
                write_all(&file, &host.save()).map_err(os)?;
                Transfer::Saved
            }
            LOAD => Transfer::Loading(file.try_clone().map_err(|e| Refusal::State(HostError::Files(e)))?),
            _ => return Err(Refusal::Transfer("a direction other than 0 (save) and 1 (load)")),
        };
        Ok(Answer::state(file))
    }

    pub(super) fn check_transfer(&mut self, host: &mut dyn Host) -> Result<(), Refusal> {
        self.has_protocol(PROTOCOL_F_DEVICE_STATE, id::CHECK_DEVICE_STATE)?;
        match std::mem::replace(&mut self.transfer, Transfer::None) {
            Transfer::None => Err(Refusal::Transfer("none was given or taken")),
            Transfer::Saved => Ok(()),
            Transfer::Loading(_) if self.rings.iter().any(|ring| ring.running) => {
                Err(Refusal::Transfer("rings run; it is to be loaded before they start"))
            }
            Transfer::Loading(file) => host.load(&read_all(&file)?).map_err(Refusal::State),
        }
    }
}

fn write_all(file: impl AsFd, bytes: &[u8]) -> Result<(), Errno> {
    let mut at = 0;
    // The offset stays where the other side begins to read.
    while at < bytes.len() {
        at += retry_on_intr(|| pwrite(&file, &bytes[at..], at as u64))?;
    }
    Ok(())
}

fn read_all(file: impl AsFd) -> Result<Vec<u8>, Refusal> {
    let size = fstat(&file).map_err(os)?.st_size as u64;
    if size > MAX_STATE {
        return Err(Refusal::Transfer("it has more than 1 MiB"));
    }
    let mut bytes = vec![0; size as usize];
    let mut at = 0;
    while at < bytes.len() {
        match retry_on_intr(|| pread(&file, &mut bytes[at..], at as u64)).map_err(os)? {
            // It was cut short meanwhile.
            0 => bytes.truncate(at),
            n => at += n,
        }
    }
    Ok(bytes)
}
