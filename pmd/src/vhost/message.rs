//! What one message says. Bytes and descriptors become a [`Request`], an [`Answer`] becomes bytes; no
//! state, no I/O. Descriptors that no request takes are closed here.

mod answer;
mod frame;
mod name;

use std::os::fd::OwnedFd;

use arrayvec::ArrayVec;
use zerocopy::{FromBytes, Immutable, KnownLayout};

use crate::spec::vhost_user::{
    ConfigAccess, INFLIGHT_AREA, InflightArea, IotlbMsg, LogArea, MAX_CONFIG, MAX_TABLE_REGIONS, MemRegion,
    MemTable, SingleRegion, StateTransfer, VRING_FD_INDEX_MASK, VRING_FD_NONE, VringAddr, VringState, id,
};

pub use answer::Answer;
pub use frame::{Fds, Frame, FramingError, check_header, check_reply};
pub use name::name;

/// A message whose extent is known but whose content makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Payload shorter or longer than the message has it.
    #[error("{} has {got} bytes of payload, {want} expected", name(*.id))]
    Size {
        /// Id of the message.
        id: u32,
        /// Bytes that came.
        got: usize,
        /// Bytes there should have been.
        want: usize,
    },
    /// More or fewer descriptors than the message carries.
    #[error("{} came with {got} descriptors, {want} expected; they were closed", name(*.id))]
    Fds {
        /// Id of the message.
        id: u32,
        /// How many came.
        got: usize,
        /// How many there should have been.
        want: usize,
    },
    /// A table of no region, or of more than a message can carry.
    #[error("SET_MEM_TABLE of {0} regions; 1 to {MAX_TABLE_REGIONS} can be set (more with ADD_MEM_REG)")]
    Regions(u32),
    /// Bits other than index and no-descriptor flag in SET_VRING_KICK, CALL or ERR.
    #[error("{} of {value:#x}: more than a ring index and the no-descriptor flag", name(*.id))]
    VringFd {
        /// Id of the message.
        id: u32,
        /// The payload.
        value: u64,
    },
}

/// What a front-end asks for. Indices and sizes are as they came, not yet checked against anything.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum Request {
    GetFeatures,
    SetFeatures(u64),
    SetOwner,
    ResetOwner,
    /// Regions with their files, 1 to 8.
    SetMemTable(ArrayVec<(MemRegion, OwnedFd), MAX_TABLE_REGIONS>),
    /// Where writes to memory are logged, and the file of it.
    SetLogBase(LogArea, OwnedFd),
    /// What is signalled when something was logged.
    SetLogFd(OwnedFd),
    SetVringNum(VringState),
    SetVringAddr(VringAddr),
    SetVringBase(VringState),
    /// Ring.
    GetVringBase(u32),
    /// Ring, and its descriptor; `None`: the ring is to be polled.
    SetVringKick(u32, Option<OwnedFd>),
    /// Ring, and its descriptor; `None`: the driver polls.
    SetVringCall(u32, Option<OwnedFd>),
    /// Ring, and its descriptor; `None`: nobody listens.
    SetVringErr(u32, Option<OwnedFd>),
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    SetVringEnable(VringState),
    /// The address that a guest has now here.
    SendRarp([u8; 6]),
    NetSetMtu(u64),
    /// The ring, and 0 for little-endian or 1 for big-endian.
    SetVringEndian(VringState),
    GetConfig(ConfigAccess),
    SetConfig(ConfigAccess, ArrayVec<u8, MAX_CONFIG>),
    GetMaxMemSlots,
    AddMemReg(MemRegion, OwnedFd),
    RemMemReg(MemRegion),
    /// Memory for records of what is in flight, and the length of the message.
    GetInflightFd(InflightArea, usize),
    SetInflightFd(InflightArea, OwnedFd),
    ResetDevice,
    SetStatus(u64),
    GetStatus,
    /// The channel on which we may ask something of the front-end.
    SetBackendReqFd(OwnedFd),
    /// The guest comes before its memory does: a descriptor is asked for, by which its pages are brought.
    PostcopyAdvise,
    /// From now on, memory lacks pages.
    PostcopyListen,
    /// All pages have come.
    PostcopyEnd,
    /// The front-end has taken note of where memory is mapped, and brings pages from now on.
    PostcopyReady,
    /// An address of the guest's IOMMU is now there, or nowhere.
    Iotlb(IotlbMsg),
    /// The state of the device is to be carried through a channel.
    SetDeviceStateFd(StateTransfer, OwnedFd),
    /// Whether that came to a good end.
    CheckDeviceState,
    /// The driver has made buffers available in a ring whose kicks come like this.
    VringKick(VringState),
    /// A message that is not served, by id.
    Unknown(u32),
}

impl Request {
    /// Reads a message.
    ///
    /// # Errors
    /// [`Malformed`], and all its descriptors are closed.
    pub fn parse(frame: Frame) -> Result<Request, Malformed> {
        let id = frame.header.request;
        let payload = &frame.payload[..];
        let fds = frame.fds;
        match id {
            // Spec "Front-end message types", SET_MEM_TABLE, in post-copy mode: a second message of that id.
            id::SET_MEM_TABLE | id::ADD_MEM_REG if payload == [0; 8] && fds.is_empty() => {
                return Ok(Request::PostcopyReady);
            }
            id::SET_MEM_TABLE => return mem_table(payload, fds),
            id::ADD_MEM_REG => {
                let region = read::<SingleRegion>(id, payload)?.region;
                return Ok(Request::AddMemReg(region, one_fd(id, fds)?));
            }
            id::SET_LOG_BASE => return Ok(Request::SetLogBase(read(id, payload)?, one_fd(id, fds)?)),
            id::SET_LOG_FD => {
                // Spec: no payload; some front-ends fill in the 64 bits of the other descriptor messages.
                if !payload.is_empty() {
                    read::<u64>(id, payload)?;
                }
                return Ok(Request::SetLogFd(one_fd(id, fds)?));
            }
            id::SET_BACKEND_REQ_FD => {
                if !payload.is_empty() {
                    return Err(wrong_size(id, payload, 0));
                }
                return Ok(Request::SetBackendReqFd(one_fd(id, fds)?));
            }
            id::SET_INFLIGHT_FD => {
                return Ok(Request::SetInflightFd(inflight(id, payload)?, one_fd(id, fds)?));
            }
            id::SET_DEVICE_STATE_FD => {
                return Ok(Request::SetDeviceStateFd(read(id, payload)?, one_fd(id, fds)?));
            }
            id::SET_VRING_KICK => return vring_fd(id, payload, fds, Request::SetVringKick),
            id::SET_VRING_CALL => return vring_fd(id, payload, fds, Request::SetVringCall),
            id::SET_VRING_ERR => return vring_fd(id, payload, fds, Request::SetVringErr),
            _ => {}
        }
        let nothing =
            |request| if payload.is_empty() { Ok(request) } else { Err(wrong_size(id, payload, 0)) };
        let request = match id {
            id::GET_FEATURES => nothing(Request::GetFeatures)?,
            id::SET_FEATURES => Request::SetFeatures(read(id, payload)?),
            id::SET_OWNER => nothing(Request::SetOwner)?,
            id::RESET_OWNER => nothing(Request::ResetOwner)?,
            id::SET_VRING_NUM => Request::SetVringNum(read(id, payload)?),
            id::SET_VRING_ADDR => Request::SetVringAddr(read(id, payload)?),
            id::SET_VRING_BASE => Request::SetVringBase(read(id, payload)?),
            id::GET_VRING_BASE => Request::GetVringBase(read::<VringState>(id, payload)?.index),
            id::GET_PROTOCOL_FEATURES => nothing(Request::GetProtocolFeatures)?,
            id::SET_PROTOCOL_FEATURES => Request::SetProtocolFeatures(read(id, payload)?),
            id::GET_QUEUE_NUM => nothing(Request::GetQueueNum)?,
            id::SET_VRING_ENABLE => Request::SetVringEnable(read(id, payload)?),
            id::SEND_RARP => {
                let [mac @ .., _, _] = read::<u64>(id, payload)?.to_ne_bytes();
                Request::SendRarp(mac)
            }
            id::NET_SET_MTU => Request::NetSetMtu(read(id, payload)?),
            id::SET_VRING_ENDIAN => Request::SetVringEndian(read(id, payload)?),
            id::GET_CONFIG => Request::GetConfig(config(id, payload)?.0),
            id::SET_CONFIG => {
                let (access, bytes) = config(id, payload)?;
                Request::SetConfig(access, bytes)
            }
            id::GET_MAX_MEM_SLOTS => nothing(Request::GetMaxMemSlots)?,
            id::REM_MEM_REG => Request::RemMemReg(read::<SingleRegion>(id, payload)?.region),
            id::GET_INFLIGHT_FD => Request::GetInflightFd(inflight(id, payload)?, payload.len()),
            id::RESET_DEVICE => nothing(Request::ResetDevice)?,
            id::SET_STATUS => Request::SetStatus(read(id, payload)?),
            id::GET_STATUS => nothing(Request::GetStatus)?,
            id::POSTCOPY_ADVISE => nothing(Request::PostcopyAdvise)?,
            id::POSTCOPY_LISTEN => nothing(Request::PostcopyListen)?,
            id::POSTCOPY_END => nothing(Request::PostcopyEnd)?,
            id::CHECK_DEVICE_STATE => nothing(Request::CheckDeviceState)?,
            id::VRING_KICK => Request::VringKick(read(id, payload)?),
            id::IOTLB_MSG => Request::Iotlb(read(id, payload)?),
            _ => return Ok(Request::Unknown(id)),
        };
        // Spec, REM_MEM_REG: some front-ends send the region's descriptor along; it is closed.
        if !(fds.is_empty() || id == id::REM_MEM_REG && fds.len() == 1) {
            return Err(Malformed::Fds { id, got: fds.len(), want: 0 });
        }
        Ok(request)
    }
}

fn wrong_size(id: u32, payload: &[u8], want: usize) -> Malformed {
    Malformed::Size { id, got: payload.len(), want }
}

fn read<T: FromBytes + KnownLayout + Immutable>(id: u32, payload: &[u8]) -> Result<T, Malformed> {
    T::read_from_bytes(payload).map_err(|_| wrong_size(id, payload, size_of::<T>()))
}

fn one_fd(id: u32, mut fds: Fds) -> Result<OwnedFd, Malformed> {
    match (fds.len(), fds.pop()) {
        (1, Some(fd)) => Ok(fd),
        (got, _) => Err(Malformed::Fds { id, got, want: 1 }),
    }
}

/// Spec "Front-end message types", SET_VRING_KICK: bits 0-7 the ring, bit 8: no descriptor.
fn vring_fd(
    id: u32,
    payload: &[u8],
    fds: Fds,
    request: fn(u32, Option<OwnedFd>) -> Request,
) -> Result<Request, Malformed> {
    let value: u64 = read(id, payload)?;
    if value & !(VRING_FD_INDEX_MASK | VRING_FD_NONE) != 0 {
        return Err(Malformed::VringFd { id, value });
    }
    let index = (value & VRING_FD_INDEX_MASK) as u32;
    if value & VRING_FD_NONE == 0 {
        return Ok(request(index, Some(one_fd(id, fds)?)));
    }
    if fds.is_empty() {
        Ok(request(index, None))
    } else {
        Err(Malformed::Fds { id, got: fds.len(), want: 0 })
    }
}

fn mem_table(payload: &[u8], fds: Fds) -> Result<Request, Malformed> {
    let id = id::SET_MEM_TABLE;
    let (table, rest) =
        MemTable::read_from_prefix(payload).map_err(|_| wrong_size(id, payload, size_of::<MemTable>()))?;
    let n = table.regions as usize;
    if n == 0 || n > MAX_TABLE_REGIONS {
        return Err(Malformed::Regions(table.regions));
    }
    // Some front-ends always send the room of a few regions and say how many of them count.
    const REGION: usize = size_of::<MemRegion>();
    if rest.len() < n * REGION
        || rest.len() > MAX_TABLE_REGIONS * REGION
        || !rest.len().is_multiple_of(REGION)
    {
        return Err(wrong_size(id, payload, size_of::<MemTable>() + n * REGION));
    }
    if fds.len() != n {
        return Err(Malformed::Fds { id, got: fds.len(), want: n });
    }
    let region = |bytes| MemRegion::read_from_bytes(bytes).expect("a chunk is as long as a region");
    Ok(Request::SetMemTable(rest.chunks_exact(REGION).map(region).zip(fds).collect()))
}

/// With the padding of the C structure, or without.
fn inflight(id: u32, payload: &[u8]) -> Result<InflightArea, Malformed> {
    let mut bytes = [0; size_of::<InflightArea>()];
    if payload.len() != INFLIGHT_AREA && payload.len() != bytes.len() {
        return Err(wrong_size(id, payload, bytes.len()));
    }
    bytes[..payload.len()].copy_from_slice(payload);
    read(id, &bytes)
}

/// The payload carries as many bytes as it says; in a GET it may leave them out.
fn config(id: u32, payload: &[u8]) -> Result<(ConfigAccess, ArrayVec<u8, MAX_CONFIG>), Malformed> {
    const HEAD: usize = size_of::<ConfigAccess>();
    let (access, bytes) =
        ConfigAccess::read_from_prefix(payload).map_err(|_| wrong_size(id, payload, HEAD))?;
    let want = (access.size as usize).min(MAX_CONFIG);
    let complete = bytes.len() as u64 == u64::from(access.size);
    match ArrayVec::try_from(bytes) {
        Ok(bytes) if complete || (id == id::GET_CONFIG && bytes.is_empty()) => Ok((access, bytes)),
        _ => Err(wrong_size(id, payload, HEAD + want)),
    }
}

#[cfg(test)]
mod tests;
