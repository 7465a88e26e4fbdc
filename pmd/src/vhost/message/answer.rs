//! What is sent back.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use arrayvec::ArrayVec;
use zerocopy::{Immutable, IntoBytes};

#[cfg(doc)]
use super::Request;
use crate::spec::vhost_user::{
    ConfigAccess, FLAG_REPLY, FLAG_VERSION, Header, InflightArea, LogArea, MAX_CONFIG, MAX_TABLE_REGIONS,
    MemRegion, MemTable, SingleRegion, VringState, id,
};

/// Bytes of the longest payload of an answer.
const MAX_ANSWER: usize = size_of::<ConfigAccess>() + MAX_CONFIG;
const _: () = assert!(MAX_ANSWER >= size_of::<MemTable>() + MAX_TABLE_REGIONS * size_of::<MemRegion>());

/// What is sent back. Its bytes are a header and a payload; a descriptor may go with the first of them.
#[derive(Clone, Debug)]
pub struct Answer {
    id: u32,
    fd: Option<Arc<OwnedFd>>,
    payload: ArrayVec<u8, MAX_ANSWER>,
}

impl Answer {
    /// To a request for a number, or an acknowledgement (0: done).
    pub fn number(id: u32, value: u64) -> Answer {
        Answer::of(id, &value)
    }

    /// To [`Request::GetVringBase`].
    pub fn vring(id: u32, state: VringState) -> Answer {
        Answer::of(id, &state)
    }

    /// To [`Request::SetLogBase`]: what was set.
    pub fn log_base(area: LogArea) -> Answer {
        Answer::of(id::SET_LOG_BASE, &area)
    }

    /// To [`Request::GetInflightFd`]: as long as the request.
    pub fn inflight(area: InflightArea, len: usize, file: OwnedFd) -> Answer {
        let mut answer = Answer::of(id::GET_INFLIGHT_FD, &area);
        answer.payload.truncate(len);
        answer.fd = Some(Arc::new(file));
        answer
    }

    /// To [`Request::SetDeviceStateFd`]: the channel that is to be used.
    pub fn state(file: OwnedFd) -> Answer {
        Answer { fd: Some(Arc::new(file)), ..Answer::number(id::SET_DEVICE_STATE_FD, 0) }
    }

    /// To [`Request::PostcopyAdvise`]: nothing but the descriptor.
    pub fn postcopy(file: OwnedFd) -> Answer {
        Answer { id: id::POSTCOPY_ADVISE, fd: Some(Arc::new(file)), payload: ArrayVec::new() }
    }

    /// To [`Request::SetMemTable`] in post-copy mode: the same, with our addresses in place of the front-end's.
    pub fn mem_table(regions: &[MemRegion]) -> Answer {
        let mut answer =
            Answer::of(id::SET_MEM_TABLE, &MemTable { regions: regions.len() as u32, padding: 0 });
        answer.payload.try_extend_from_slice(regions.as_bytes()).expect("as many as a message can carry");
        answer
    }

    /// To [`Request::AddMemReg`] in post-copy mode: as [`Answer::mem_table`].
    pub fn mem_region(region: MemRegion) -> Answer {
        Answer::of(id::ADD_MEM_REG, &SingleRegion { padding: 0, region })
    }

    /// To [`Request::GetConfig`]: `bytes` are those that were asked for.
    pub fn config(access: ConfigAccess, bytes: &[u8]) -> Answer {
        assert_eq!(access.size as usize, bytes.len());
        let mut answer = Answer::of(id::GET_CONFIG, &access);
        answer.payload.try_extend_from_slice(bytes).expect("at most MAX_CONFIG bytes can be asked for");
        answer
    }

    /// To a [`Request::GetConfig`] that is refused: spec "Front-end message types", no payload at all.
    pub fn no_config() -> Answer {
        Answer { id: id::GET_CONFIG, fd: None, payload: ArrayVec::new() }
    }

    fn of<T: IntoBytes + Immutable>(id: u32, body: &T) -> Answer {
        Answer { id, fd: None, payload: body.as_bytes().iter().copied().collect() }
    }

    /// The descriptor that goes with it.
    pub fn fd(&self) -> Option<&Arc<OwnedFd>> {
        self.fd.as_ref()
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let size = self.payload.len() as u32;
        let header = Header { request: self.id, flags: FLAG_VERSION | FLAG_REPLY, size };
        [header.as_bytes(), &self.payload].concat()
    }
}
