//! What one message says. Bytes and descriptors become a [`Request`], an [`Answer`] becomes bytes; no
//! state, no I/O. Descriptors that no request takes are closed here.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use arrayvec::ArrayVec;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::spec::vhost_user::{
    ConfigAccess, FLAG_NEED_REPLY, FLAG_REPLY, FLAG_VERSION, FLAG_VERSION_MASK, Header, INFLIGHT_AREA,
    InflightArea, IotlbMsg, LogArea, MAX_CONFIG, MAX_FDS, MAX_PAYLOAD, MAX_TABLE_REGIONS, MemRegion,
    MemTable, SingleRegion, StateTransfer, VRING_FD_INDEX_MASK, VRING_FD_NONE, VringAddr, VringState, id,
};

/// A message as it came through the socket: header checked, payload complete.
#[derive(Debug)]
pub struct Frame {
    /// Its header, see [`check_header`].
    pub header: Header,
    /// Its payload, `header.size` bytes.
    pub payload: Vec<u8>,
    /// The descriptors that came with it.
    pub fds: Fds,
}

impl Frame {
    /// A message to be sent.
    pub(super) fn of(request: u32, payload: &[u8], fds: Fds) -> Frame {
        assert!(payload.len() <= MAX_PAYLOAD, "{} bytes of payload", payload.len());
        let header = Header { request, flags: FLAG_VERSION, size: payload.len() as u32 };
        Frame { header, payload: payload.to_vec(), fds }
    }

    /// Whether the sender asks for an acknowledgement.
    pub fn need_reply(&self) -> bool {
        self.header.flags & FLAG_NEED_REPLY != 0
    }
}

/// The descriptors of a message, in order. Those beyond [`MAX_FDS`] are closed and counted.
#[derive(Debug, Default)]
pub struct Fds {
    kept: ArrayVec<OwnedFd, MAX_FDS>,
    closed: usize,
}

impl Fds {
    /// Takes one more.
    pub fn push(&mut self, fd: OwnedFd) {
        if self.kept.try_push(fd).is_err() {
            self.closed += 1;
        }
    }

    /// How many came.
    pub fn len(&self) -> usize {
        self.kept.len() + self.closed
    }

    /// The same descriptors once more.
    ///
    /// # Errors
    /// When we run out of descriptors.
    pub(super) fn again(&self) -> std::io::Result<Fds> {
        let kept = self.kept.iter().map(OwnedFd::try_clone).collect::<std::io::Result<_>>()?;
        Ok(Fds { kept, closed: self.closed })
    }

    /// Whether none came.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl IntoIterator for Fds {
    type Item = OwnedFd;
    type IntoIter = arrayvec::IntoIter<OwnedFd, MAX_FDS>;

    /// Those that were kept, in order.
    fn into_iter(self) -> Self::IntoIter {
        self.kept.into_iter()
    }
}

impl FromIterator<OwnedFd> for Fds {
    fn from_iter<I: IntoIterator<Item = OwnedFd>>(fds: I) -> Fds {
        let mut all = Fds::default();
        fds.into_iter().for_each(|fd| all.push(fd));
        all
    }
}

/// The sender and we disagree about where messages begin: the connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    /// Not the only version there is.
    #[error("message {} has version {version}, not 1: not a vhost-user front-end, or framing is lost", name(*.id))]
    Version {
        /// Id of the message.
        id: u32,
        /// What it had.
        version: u32,
    },
    /// A reply to a request that was never sent.
    #[error("message {} is marked as a reply, and nothing was asked of the front-end", name(*.id))]
    Reply {
        /// Id of the message.
        id: u32,
    },
    /// A request on the channel for ours.
    #[error("message number {id} on the back-end channel is no reply")]
    NoReply {
        /// Id of the message.
        id: u32,
    },
    /// Longer than any message.
    #[error("message {} announces {size} bytes of payload; no message has more than {MAX_PAYLOAD}", name(*.id))]
    Oversize {
        /// Id of the message.
        id: u32,
        /// Bytes announced.
        size: u32,
    },
}

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

/// Checks what every header must say.
///
/// # Errors
/// [`FramingError`]: what follows cannot be read.
pub fn check_header(header: &Header) -> Result<(), FramingError> {
    let Header { request: id, flags, size } = *header;
    if flags & FLAG_VERSION_MASK != FLAG_VERSION {
        return Err(FramingError::Version { id, version: flags & FLAG_VERSION_MASK });
    }
    if flags & FLAG_REPLY != 0 {
        return Err(FramingError::Reply { id });
    }
    if size as usize > MAX_PAYLOAD {
        return Err(FramingError::Oversize { id, size });
    }
    Ok(())
}

/// The same of a message on the channel for our own requests, where only replies come.
///
/// # Errors
/// [`FramingError`], as [`check_header`].
pub fn check_reply(header: &Header) -> Result<(), FramingError> {
    let Header { request: id, flags, .. } = *header;
    if flags & FLAG_REPLY == 0 {
        return Err(FramingError::NoReply { id });
    }
    check_header(&Header { flags: flags & !FLAG_REPLY, ..*header })
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
    match (fds.len(), fds.kept.pop()) {
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
    Ok(Request::SetMemTable(rest.chunks_exact(REGION).map(region).zip(fds.kept).collect()))
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

/// The name of a message, for logs: `SET_VRING_NUM`, or `number 99`.
pub fn name(id: u32) -> String {
    const NAMES: [&str; 44] = [
        "GET_FEATURES",
        "SET_FEATURES",
        "SET_OWNER",
        "RESET_OWNER",
        "SET_MEM_TABLE",
        "SET_LOG_BASE",
        "SET_LOG_FD",
        "SET_VRING_NUM",
        "SET_VRING_ADDR",
        "SET_VRING_BASE",
        "GET_VRING_BASE",
        "SET_VRING_KICK",
        "SET_VRING_CALL",
        "SET_VRING_ERR",
        "GET_PROTOCOL_FEATURES",
        "SET_PROTOCOL_FEATURES",
        "GET_QUEUE_NUM",
        "SET_VRING_ENABLE",
        "SEND_RARP",
        "NET_SET_MTU",
        "SET_BACKEND_REQ_FD",
        "IOTLB_MSG",
        "SET_VRING_ENDIAN",
        "GET_CONFIG",
        "SET_CONFIG",
        "CREATE_CRYPTO_SESSION",
        "CLOSE_CRYPTO_SESSION",
        "POSTCOPY_ADVISE",
        "POSTCOPY_LISTEN",
        "POSTCOPY_END",
        "GET_INFLIGHT_FD",
        "SET_INFLIGHT_FD",
        "GPU_SET_SOCKET",
        "RESET_DEVICE",
        "VRING_KICK",
        "GET_MAX_MEM_SLOTS",
        "ADD_MEM_REG",
        "REM_MEM_REG",
        "SET_STATUS",
        "GET_STATUS",
        "GET_SHARED_OBJECT",
        "SET_DEVICE_STATE_FD",
        "CHECK_DEVICE_STATE",
        "GET_SHMEM_CONFIG",
    ];
    match (id as usize).checked_sub(1).and_then(|at| NAMES.get(at)) {
        Some(name) => (*name).into(),
        None => format!("number {id}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs::File;

    fn fds(n: usize) -> Fds {
        (0..n).map(|_| OwnedFd::from(File::open("/dev/null").unwrap())).collect()
    }

    fn frame(id: u32, payload: &[u8], n: usize) -> Frame {
        let header = Header { request: id, flags: 1, size: payload.len() as u32 };
        Frame { header, payload: payload.to_vec(), fds: fds(n) }
    }

    fn parse(id: u32, payload: &[u8], n: usize) -> Result<Request, Malformed> {
        Request::parse(frame(id, payload, n))
    }

    /// Ids with the payload length and the number of descriptors that they take.
    const SHAPES: [(u32, usize, usize); 39] = [
        (id::SET_DEVICE_STATE_FD, 8, 1),
        (id::CHECK_DEVICE_STATE, 0, 0),
        (id::VRING_KICK, 8, 0),
        (id::GET_FEATURES, 0, 0),
        (id::SET_FEATURES, 8, 0),
        (id::SET_OWNER, 0, 0),
        (id::RESET_OWNER, 0, 0),
        (id::SET_MEM_TABLE, 40, 1),
        (id::SET_VRING_NUM, 8, 0),
        (id::SET_VRING_ADDR, 40, 0),
        (id::SET_VRING_BASE, 8, 0),
        (id::GET_VRING_BASE, 8, 0),
        (id::SET_VRING_KICK, 8, 1),
        (id::SET_VRING_CALL, 8, 1),
        (id::SET_VRING_ERR, 8, 1),
        (id::GET_PROTOCOL_FEATURES, 0, 0),
        (id::SET_PROTOCOL_FEATURES, 8, 0),
        (id::GET_QUEUE_NUM, 0, 0),
        (id::SET_VRING_ENABLE, 8, 0),
        (id::NET_SET_MTU, 8, 0),
        (id::GET_CONFIG, 12, 0),
        (id::SET_CONFIG, 12, 0),
        (id::GET_MAX_MEM_SLOTS, 0, 0),
        (id::ADD_MEM_REG, 40, 1),
        (id::REM_MEM_REG, 40, 0),
        (id::SET_LOG_BASE, 16, 1),
        (id::SET_LOG_FD, 0, 1),
        (id::SEND_RARP, 8, 0),
        (id::SET_VRING_ENDIAN, 8, 0),
        (id::GET_INFLIGHT_FD, 24, 0),
        (id::SET_INFLIGHT_FD, 24, 1),
        (id::RESET_DEVICE, 0, 0),
        (id::SET_STATUS, 8, 0),
        (id::GET_STATUS, 0, 0),
        (id::SET_BACKEND_REQ_FD, 0, 1),
        (id::IOTLB_MSG, 32, 0),
        (id::POSTCOPY_ADVISE, 0, 0),
        (id::POSTCOPY_LISTEN, 0, 0),
        (id::POSTCOPY_END, 0, 0),
    ];

    /// A payload of zeros, but for the count of regions.
    fn plain(id: u32, len: usize) -> Vec<u8> {
        let mut payload = vec![0; len];
        if id == id::SET_MEM_TABLE && len > 0 {
            payload[0] = 1;
        }
        payload
    }

    #[test]
    fn every_message_takes_its_own_size_and_no_other() {
        for (id, want, n) in SHAPES {
            for len in 0..=80 {
                let got = parse(id, &plain(id, len), n);
                let roomy = id == id::SET_MEM_TABLE && len == want + 32
                    || id == id::SET_LOG_FD && len == 8
                    || matches!(id, id::GET_INFLIGHT_FD | id::SET_INFLIGHT_FD) && len == 20;
                assert_eq!(got.is_ok(), len == want || roomy, "{} of {len}: {got:?}", name(id));
                if let Err(e) = got {
                    assert!(matches!(e, Malformed::Size { got, .. } if got == len), "{e}");
                }
            }
        }
    }

    #[test]
    fn every_message_takes_its_own_descriptors_and_no_others() {
        for (id, len, want) in SHAPES {
            for n in 0..=12 {
                let got = parse(id, &plain(id, len), n);
                let tolerated = id == id::REM_MEM_REG && n == 1;
                assert_eq!(got.is_ok(), n == want || tolerated, "{} with {n}: {got:?}", name(id));
                if let Err(e) = got {
                    assert_eq!(e, Malformed::Fds { id, got: n, want });
                }
            }
        }
    }

    #[test]
    fn no_descriptor_flag_and_stray_bits() {
        for id in [id::SET_VRING_KICK, id::SET_VRING_CALL, id::SET_VRING_ERR] {
            let with = |value: u64, n| parse(id, &value.to_ne_bytes(), n);
            assert!(with(0x1ff, 0).is_ok());
            assert_eq!(with(0x1ff, 1).unwrap_err(), Malformed::Fds { id, got: 1, want: 0 });
            assert_eq!(with(0x0ff, 0).unwrap_err(), Malformed::Fds { id, got: 0, want: 1 });
            for bit in 9..64 {
                let value = 1u64 << bit;
                assert_eq!(with(value, 1).unwrap_err(), Malformed::VringFd { id, value });
            }
        }
    }

    #[test]
    fn tables_hold_one_to_eight_regions() {
        for n in [0u32, 1, 2, 7, 8, 9, 0x1_0000, u32::MAX] {
            let fits = (1..=8).contains(&n);
            let regions = n.min(9) as usize;
            let mut payload = n.to_ne_bytes().to_vec();
            payload.resize(8 + regions * 32, 0xa5);
            let got = parse(id::SET_MEM_TABLE, &payload, regions);
            match got {
                Ok(Request::SetMemTable(table)) => assert!(fits && table.len() == regions),
                Err(e) => assert!(!fits && e == Malformed::Regions(n), "{e}"),
                other => panic!("{other:?}"),
            }
        }
        let two = [2u32.to_ne_bytes().as_slice(), &[0; 4 + 64]].concat();
        assert!(parse(id::SET_MEM_TABLE, &two[..40], 2).is_err(), "one region of two");
        assert!(parse(id::SET_MEM_TABLE, &two, 1).is_err(), "one descriptor of two");
    }

    #[test]
    fn config_says_how_much_it_carries() {
        let with = |id, size: u32, carried: usize| {
            let head = ConfigAccess { offset: 0, size, flags: 0 };
            parse(id, &[head.as_bytes(), &vec![7; carried]].concat(), 0)
        };
        assert!(with(id::GET_CONFIG, 8, 8).is_ok());
        assert!(with(id::GET_CONFIG, 8, 0).is_ok());
        assert!(with(id::SET_CONFIG, 256, 256).is_ok());
        for (id, size, carried) in [
            (id::SET_CONFIG, 8, 0),
            (id::SET_CONFIG, 8, 9),
            (id::GET_CONFIG, 8, 7),
            (id::SET_CONFIG, 257, 257),
            (id::SET_CONFIG, u32::MAX, 256),
        ] {
            assert!(matches!(with(id, size, carried), Err(Malformed::Size { .. })), "{size} {carried}");
        }
    }

    #[test]
    fn headers() {
        let check = |flags, size| check_header(&Header { request: 3, flags, size });
        assert_eq!(check(0x1, 0), Ok(()));
        assert_eq!(check(0x9, 4096), Ok(()));
        assert_eq!(check(0x5, 0), Err(FramingError::Reply { id: 3 }));
        for flags in [0x0, 0x2, 0x3, 0xa] {
            assert_eq!(check(flags, 0), Err(FramingError::Version { id: 3, version: flags & 3 }));
        }
        for size in [4097, 0x1_0000, u32::MAX] {
            assert_eq!(check(1, size), Err(FramingError::Oversize { id: 3, size }));
        }
    }

    #[test]
    fn answers_are_these_bytes() {
        #[rustfmt::skip]
        assert_eq!(Answer::number(id::GET_FEATURES, 0x0102_0304_0506_0708).encode(), [
            1, 0, 0, 0,  5, 0, 0, 0,  8, 0, 0, 0,  8, 7, 6, 5, 4, 3, 2, 1,
        ]);
        #[rustfmt::skip]
        assert_eq!(Answer::vring(id::GET_VRING_BASE, VringState { index: 3, num: 0x8001_8001 }).encode(), [
            11, 0, 0, 0,  5, 0, 0, 0,  8, 0, 0, 0,  3, 0, 0, 0,  1, 0x80, 1, 0x80,
        ]);
        #[rustfmt::skip]
        assert_eq!(Answer::config(ConfigAccess { offset: 6, size: 2, flags: 0 }, &[1, 0]).encode(), [
            24, 0, 0, 0,  5, 0, 0, 0,  14, 0, 0, 0,  6, 0, 0, 0,  2, 0, 0, 0,  0, 0, 0, 0,  1, 0,
        ]);
        assert_eq!(Answer::no_config().encode(), [24, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn names_follow_their_ids() {
        assert_eq!(name(id::GET_FEATURES), "GET_FEATURES");
        assert_eq!(name(id::SEND_RARP), "SEND_RARP");
        assert_eq!(name(id::GET_SHMEM_CONFIG), "GET_SHMEM_CONFIG");
        assert_eq!(name(0), "number 0");
        assert_eq!(name(45), "number 45");
        assert_eq!(name(u32::MAX), format!("number {}", u32::MAX));
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_are_refused(
            id in 0u32..50,
            payload in proptest::collection::vec(any::<u8>(), 0..320),
            n in 0usize..10,
        ) {
            let served = SHAPES.iter().any(|s| s.0 == id);
            match parse(id, &payload, n) {
                Ok(Request::Unknown(got)) => prop_assert!(got == id && !served),
                _ => prop_assert!(served),
            }
        }
    }
}
