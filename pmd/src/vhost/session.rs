//! The conversation with one front-end, from connect to disconnect: a state machine that reads no
//! socket, maps no memory and owns no ring. It answers what it can answer itself and asks a [`Host`]
//! for the rest.
//!
//! What is refused: a message with an acknowledgement asked for gets a non-zero one, and the
//! conversation goes on. Without, the front-end could not learn that it and we now disagree, so the
//! connection ends; except for a message that is not known, which is ignored, and for a ring that
//! cannot run (its size and addresses are the guest's choice): it stays stopped, and the guest may set
//! it up anew.

mod inband;
mod legacy;
mod transfer;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::backend::{Ask, Asked};
use super::host::{Host, HostError};
use super::message::{Answer, Frame, Request};
use super::refusal::{Refusal, SessionError};
use super::regions::Regions;
use inband::bell;
use transfer::Transfer;

use super::ring::{Kick, Ring, RingError, check_addr, check_base, check_num};
use crate::spec::vhost_user::{
    CONFIG_F_MIGRATION, ConfigAccess, F_LOG_ALL, F_PROTOCOL_FEATURES, InflightArea, IotlbMsg, MAX_CONFIG,
    MAX_MEM_SLOTS, MAX_VRING_NUM, MAX_VRINGS, MIN_MTU, MemRegion, PROTOCOL_F_BACKEND_REQ, PROTOCOL_F_CONFIG,
    PROTOCOL_F_CONFIGURE_MEM_SLOTS, PROTOCOL_F_DEVICE_STATE, PROTOCOL_F_GET_VRING_BASE_INFLIGHT,
    PROTOCOL_F_INBAND_NOTIFICATIONS, PROTOCOL_F_INFLIGHT_SHMFD, PROTOCOL_F_LOG_SHMFD, PROTOCOL_F_MQ,
    PROTOCOL_F_NET_MTU, PROTOCOL_F_PAGEFAULT, PROTOCOL_F_RARP, PROTOCOL_F_REPLY_ACK, PROTOCOL_F_RESET_DEVICE,
    PROTOCOL_F_STATUS, STATE_NO_FD, VRING_F_LOG, VringAddr, VringState, id, iotlb,
};
use crate::spec::virtio::{F_ACCESS_PLATFORM, F_RING_PACKED, F_VERSION_1};

/// Protocol features that are offered: those that work.
pub const PROTOCOL_FEATURES: u64 = PROTOCOL_F_MQ
    | PROTOCOL_F_LOG_SHMFD
    | PROTOCOL_F_RARP
    | PROTOCOL_F_REPLY_ACK
    | PROTOCOL_F_NET_MTU
    | PROTOCOL_F_BACKEND_REQ
    | PROTOCOL_F_CONFIG
    | PROTOCOL_F_INFLIGHT_SHMFD
    | PROTOCOL_F_RESET_DEVICE
    | PROTOCOL_F_CONFIGURE_MEM_SLOTS
    | PROTOCOL_F_STATUS
    | PROTOCOL_F_DEVICE_STATE
    // A ring is given back when nothing of it is in flight: its record is empty then, which is allowed.
    | PROTOCOL_F_GET_VRING_BASE_INFLIGHT;

/// What a device offers to any front-end.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Features of virtio; the bit for protocol features is added.
    pub features: u64,
    /// Queue pairs, 1 to 128.
    pub pairs: u16,
    /// Rings after those, for control.
    pub control: u16,
    /// Largest MTU.
    pub mtu: u16,
    /// Whether a guest may come before its memory does (post-copy).
    pub postcopy: bool,
    /// Whether kicks, calls and errors may be messages, for simulations.
    pub inband: bool,
    /// Configuration space, up to 256 bytes.
    pub config: Vec<u8>,
}

/// What comes of a message.
#[derive(Debug, Default)]
pub struct Reply {
    /// To be sent.
    pub answer: Option<Answer>,
    /// The channel for our own requests, from now on.
    pub channel: Option<OwnedFd>,
    /// What was refused, for the log.
    pub refused: Vec<Refusal>,
}

/// How far post-copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Postcopy {
    No,
    /// The front-end has the descriptor.
    Advised,
    /// Memory that comes lacks pages.
    Listening,
    /// Memory has come, and the front-end does not bring pages yet: nothing may touch it.
    Mapped,
}

/// A conversation.
#[derive(Debug)]
pub struct Session {
    offer: Offer,
    /// `None` until the front-end has set them.
    features: Option<u64>,
    protocol: u64,
    /// Virtio 1.3 §2.1, as the front-end last set it.
    status: u8,
    /// The configuration space, which a migration may have brought along.
    config: Vec<u8>,
    regions: Regions,
    rings: Vec<Ring>,
    postcopy: Postcopy,
    /// A channel for our own requests, until it is fetched.
    channel: Option<OwnedFd>,
    asked: Asked,
    /// The state of the device on its way.
    transfer: Transfer,
    /// The message at hand is not acknowledged, whatever its flags say.
    silent: bool,
    /// No ring starts yet.
    held: bool,
}

impl Session {
    /// With a front-end that has just connected.
    pub fn new(offer: Offer) -> Session {
        let rings = usize::from(offer.pairs) * 2 + usize::from(offer.control);
        assert!((2..=MAX_VRINGS).contains(&rings), "{} queue pairs", offer.pairs);
        assert!(offer.config.len() <= MAX_CONFIG, "{} bytes of configuration", offer.config.len());
        let rings = (0..rings).map(|_| Ring::default()).collect();
        let config = offer.config.clone();
        Session {
            offer,
            features: None,
            protocol: 0,
            status: 0,
            config,
            regions: Regions::default(),
            rings,
            postcopy: Postcopy::No,
            channel: None,
            asked: Asked::default(),
            transfer: Transfer::None,
            silent: false,
            held: false,
        }
    }

    /// Takes a message.
    ///
    /// # Errors
    /// [`SessionError`]: the connection has to end, with [`Session::close`].
    pub fn on(&mut self, frame: Frame, host: &mut dyn Host) -> Result<Reply, SessionError> {
        let id = frame.header.request;
        let need_reply = frame.need_reply();
        let mut refused = Vec::new();
        let done = match Request::parse(frame) {
            Ok(request) => self.serve(request, host, &mut refused),
            Err(malformed) => Err(malformed.into()),
        };
        // Spec "REPLY_ACK": only once it is negotiated; requests with an answer of their own need none.
        let acknowledge = need_reply && self.protocol & PROTOCOL_F_REPLY_ACK != 0;
        let answer = match done {
            Ok(Some(answer)) => Some(answer),
            Ok(None) => (acknowledge && !std::mem::take(&mut self.silent)).then(|| Answer::number(id, 0)),
            Err(why) => {
                let answer = match id {
                    id::GET_CONFIG => Some(Answer::no_config()),
                    id::SET_DEVICE_STATE_FD => Some(Answer::number(id, 1 | STATE_NO_FD)),
                    id::CHECK_DEVICE_STATE => Some(Answer::number(id, 1)),
                    // Of a message that is not served, an acknowledgement is as good as any answer.
                    _ if acknowledge && matches!(why, Refusal::Unknown(_)) => Some(Answer::number(id, 1)),
                    id::IOTLB_MSG => Some(Answer::number(id, 1)),
                    _ if has_answer(id, self.protocol) => return Err(SessionError::Unanswerable(why)),
                    _ if acknowledge => Some(Answer::number(id, 1)),
                    _ if why.spares_the_connection() => None,
                    _ => return Err(SessionError::Unheard(why)),
                };
                refused.push(why);
                answer
            }
        };
        Ok(Reply { answer, channel: self.channel.take(), refused })
    }

    /// What is to be sent on the channel for our own requests now; to be asked after every message, and when
    /// the host may have something to ask.
    pub fn requests(&mut self, host: &mut dyn Host) -> Vec<u8> {
        self.gather();
        if !self.asked.waits() {
            let told = self.protocol & PROTOCOL_F_CONFIG != 0;
            let asks = host.asks().into_iter().filter(|ask| told || *ask != Ask::ConfigChange);
            asks.for_each(|ask| self.asked.push(ask));
        }
        self.asked.send(self.protocol & PROTOCOL_F_REPLY_ACK != 0)
    }

    /// Takes a reply from that channel. `false`: it is none to anything.
    pub fn on_reply(&mut self, frame: &Frame, host: &mut dyn Host) -> bool {
        let reply = self.asked.reply(frame);
        // QEMU does not know ACCESS_FAIL.
        if let Some((ask @ Ask::Miss { .. }, false)) = reply {
            host.refused(ask);
        }
        reply.is_some()
    }

    /// Ends the conversation: no ring runs and no memory is mapped afterwards. What went wrong on the
    /// way, for the log.
    pub fn close(mut self, host: &mut dyn Host) -> Option<Refusal> {
        // A core that waits for a page that nobody brings any more would not give its ring back.
        if self.postcopy != Postcopy::No {
            host.end_postcopy();
        }
        let stopped = self.stop_all(host);
        host.disconnected();
        stopped.err()
    }

    fn serve(
        &mut self,
        request: Request,
        host: &mut dyn Host,
        refused: &mut Vec<Refusal>,
    ) -> Result<Option<Answer>, Refusal> {
        let number = |id, value| Ok(Some(Answer::number(id, value)));
        match request {
            Request::GetFeatures => return number(id::GET_FEATURES, self.offered()),
            Request::GetProtocolFeatures => {
                return number(id::GET_PROTOCOL_FEATURES, self.protocol_features());
            }
            Request::GetQueueNum => return number(id::GET_QUEUE_NUM, self.offer.pairs.into()),
            Request::GetMaxMemSlots => return number(id::GET_MAX_MEM_SLOTS, MAX_MEM_SLOTS as u64),
            Request::GetVringBase(index) => return self.vring_base(index, host).map(Some),
            Request::GetStatus => return number(id::GET_STATUS, self.status.into()),
            Request::SetLogBase(area, file) => {
                host.log_base(area, file).map_err(Refusal::Log)?;
                // Spec "Communication": with LOG_SHMFD it is always answered, but not with what. rust-vmm's
                // front-end waits for as many bytes as it sent and hangs if fewer come; QEMU takes any.
                let answered = has_answer(id::SET_LOG_BASE, self.protocol);
                return Ok(answered.then(|| Answer::log_base(area)));
            }
            Request::GetInflightFd(area, len) => {
                let InflightArea { rings, num, .. } = self.records(area)?;
                let (size, file) = host.make_records(rings, num).map_err(Refusal::Record)?;
                let area = InflightArea { size, rings, num, ..InflightArea::default() };
                return Ok(Some(Answer::inflight(area, len, file)));
            }
            Request::GetConfig(access) => {
                let range = self.config_range(&access)?;
                let mut config = self.config.clone();
                host.fill_config(&mut config);
                return Ok(Some(Answer::config(access, &config[range])));
            }
            Request::Unknown(id) => return Err(Refusal::Unknown(id)),
            Request::PostcopyAdvise => {
                self.has_protocol(PROTOCOL_F_PAGEFAULT, id::POSTCOPY_ADVISE)?;
                let fd = host.advise_postcopy().map_err(Refusal::Pages)?;
                self.postcopy = Postcopy::Advised;
                return Ok(Some(Answer::postcopy(fd)));
            }
            Request::PostcopyListen => {
                if self.postcopy != Postcopy::Advised {
                    return Err(Refusal::Postcopy(id::POSTCOPY_LISTEN, "no descriptor was asked for"));
                }
                self.postcopy = Postcopy::Listening;
            }
            // Not answered, even if the front-end repeats the flags of the message before: it does not look.
            Request::PostcopyReady => {
                if self.postcopy != Postcopy::Mapped {
                    return Err(Refusal::Postcopy(id::SET_MEM_TABLE, "nothing is mapped for post-copy"));
                }
                self.postcopy = Postcopy::Listening;
                self.start_all(host, refused);
                self.silent = true;
            }
            Request::PostcopyEnd => {
                self.has_protocol(PROTOCOL_F_PAGEFAULT, id::POSTCOPY_END)?;
                host.end_postcopy();
                self.postcopy = Postcopy::No;
                self.start_all(host, refused);
                return number(id::POSTCOPY_END, 0);
            }
            // Spec "Front-end message types": always answered.
            Request::Iotlb(entry) => {
                self.iotlb(&entry, host)?;
                return number(id::IOTLB_MSG, 0);
            }
            Request::SetBackendReqFd(channel) => {
                self.has_protocol(PROTOCOL_F_BACKEND_REQ, id::SET_BACKEND_REQ_FD)?;
                self.channel = Some(channel);
                self.asked = Asked::default();
            }

            Request::SetDeviceStateFd(how, _) => return self.set_transfer(how, host).map(Some),
            Request::CheckDeviceState => {
                self.check_transfer(host)?;
                return number(id::CHECK_DEVICE_STATE, 0);
            }
            Request::VringKick(state) => self.kicked(state, host)?,

            Request::SetOwner => {}
            Request::ResetOwner => self.stop_anew(host)?,
            Request::ResetDevice => self.reset(host)?,
            Request::SetStatus(status) => {
                let status = u8::try_from(status).map_err(|_| Refusal::Status(status))?;
                if status == 0 {
                    self.stop_anew(host)?;
                    host.clear_records();
                }
                self.status = status;
            }
            Request::SetInflightFd(area, file) => {
                let area = self.records(area)?;
                if self.rings.iter().any(|ring| ring.running) {
                    return Err(Refusal::RecordsRunning);
                }
                host.set_records(area, file).map_err(Refusal::Record)?;
            }
            Request::SetLogFd(fd) => host.log_signal(fd).map_err(Refusal::Log)?,
            Request::SendRarp(mac) => host.announce(mac),
            Request::SetVringEndian(VringState { index, num: order }) => {
                self.ring(index)?;
                if order != 0 {
                    return Err(Refusal::Endian { index, order });
                }
            }
            Request::SetFeatures(features) => {
                self.set_features(features, host)?;
                self.start_all(host, refused);
            }
            Request::SetProtocolFeatures(features) => {
                offers(self.protocol_features(), features)?;
                let needed = PROTOCOL_F_BACKEND_REQ | PROTOCOL_F_REPLY_ACK;
                if features & PROTOCOL_F_INBAND_NOTIFICATIONS != 0 && features & needed != needed {
                    return Err(Refusal::Inband);
                }
                self.protocol = features;
            }
            Request::SetMemTable(table) => {
                let all: Vec<MemRegion> = table.iter().map(|(region, _)| *region).collect();
                let regions = Regions::of(all.iter().copied())?;
                self.change_memory(host, refused, |host| host.map(table.into_iter().collect()))?;
                self.regions = regions;
                if let Some(mapped) = self.lack_pages(&all, host)? {
                    return Ok(Some(Answer::mem_table(&mapped)));
                }
                self.start_all(host, refused);
            }
            Request::AddMemReg(region, file) => {
                self.regions.check(&region)?;
                self.change_memory(host, refused, |host| host.add(region, file))?;
                self.regions.add(region);
                if let Some(mapped) = self.lack_pages(&[region], host)? {
                    return Ok(Some(Answer::mem_region(mapped[0])));
                }
                self.start_all(host, refused);
            }
            Request::RemMemReg(wanted) => self.remove_region(&wanted, host, refused)?,
            Request::SetVringNum(state) => self.set_num(state)?,
            Request::SetVringAddr(addr) => {
                let ring = self.ring(addr.index)?;
                self.set_addr(ring, addr, host)?;
                self.start(ring, host)?;
            }
            Request::SetVringBase(state) => self.set_base(state)?,
            Request::SetVringKick(index, fd) => {
                let ring = self.ring(index)?;
                self.rings[ring].kick = Some(match fd {
                    Some(fd) => Kick::Fd(Arc::new(fd)),
                    None if self.inband() => Kick::Message(bell()?),
                    None => Kick::Polled,
                });
                self.signal(ring, host)?;
                self.start(ring, host)?;
            }
            Request::SetVringCall(index, fd) => {
                let ring = self.ring(index)?;
                (self.rings[ring].call, self.rings[ring].call_message) = self.line(fd)?;
                self.signal(ring, host)?;
            }
            Request::SetVringErr(index, fd) => {
                let ring = self.ring(index)?;
                (self.rings[ring].err, self.rings[ring].err_message) = self.line(fd)?;
                self.signal(ring, host)?;
            }
            Request::SetVringEnable(state) => self.set_enable(state, host)?,
            // Only a promise of ours: frames of that size pass.
            Request::NetSetMtu(mtu) => {
                let max = self.offer.mtu;
                if mtu < u64::from(MIN_MTU) || mtu > u64::from(max) {
                    return Err(Refusal::Mtu { mtu, max });
                }
            }
            Request::SetConfig(access, bytes) => {
                let range = self.config_range(&access)?;
                if access.flags != CONFIG_F_MIGRATION {
                    return Err(Refusal::ConfigReadOnly(access.flags));
                }
                self.config[range].copy_from_slice(&bytes);
            }
        }
        Ok(None)
    }

    fn has_protocol(&self, feature: u64, id: u32) -> Result<(), Refusal> {
        if self.protocol & feature != 0 { Ok(()) } else { Err(Refusal::NotNegotiated(id)) }
    }

    fn iotlb(&mut self, entry: &IotlbMsg, host: &mut dyn Host) -> Result<(), Refusal> {
        let negotiated = self.features() & F_ACCESS_PLATFORM != 0;
        match entry.kind {
            iotlb::UPDATE if negotiated => host.translate(entry),
            iotlb::INVALIDATE if negotiated => host.invalidate(entry),
            kind => return Err(Refusal::IotlbKind { kind, negotiated }),
        }
        .map_err(Refusal::Iotlb)
    }

    fn protocol_features(&self) -> u64 {
        let optional = |offered: bool, feature| if offered { feature } else { 0 };
        PROTOCOL_FEATURES
            | optional(self.offer.postcopy, PROTOCOL_F_PAGEFAULT)
            | optional(self.offer.inband, PROTOCOL_F_INBAND_NOTIFICATIONS)
    }

    /// In post-copy mode: regions that were mapped just now lack pages. They, with our addresses.
    fn lack_pages(
        &mut self,
        regions: &[MemRegion],
        host: &mut dyn Host,
    ) -> Result<Option<Vec<MemRegion>>, Refusal> {
        if !matches!(self.postcopy, Postcopy::Listening | Postcopy::Mapped) {
            return Ok(None);
        }
        let mapped = |region: &MemRegion| Ok(MemRegion { user: host.wait_for_pages(region)?, ..*region });
        let mapped = regions.iter().map(mapped).collect::<Result<_, _>>().map_err(Refusal::Pages)?;
        self.postcopy = Postcopy::Mapped;
        Ok(Some(mapped))
    }

    fn offered(&self) -> u64 {
        self.offer.features | F_PROTOCOL_FEATURES | F_LOG_ALL
    }

    /// The features at work; none before they are set.
    fn features(&self) -> u64 {
        self.features.unwrap_or(0)
    }

    fn set_features(&mut self, features: u64, host: &mut dyn Host) -> Result<(), Refusal> {
        offers(self.offered(), features)?;
        if features & F_RING_PACKED != 0 && features & F_VERSION_1 == 0 {
            return Err(Refusal::PackedLegacy);
        }
        // A front-end with several queue pairs sets the same features again for each.
        let from = self.features();
        let changed = from ^ features;
        if changed & !F_LOG_ALL != 0 && self.rings.iter().any(|r| r.running) {
            return Err(Refusal::FeaturesChange { from, to: features });
        }
        // Spec "Migration": at any time.
        if changed & F_LOG_ALL != 0 {
            host.log_all(features & F_LOG_ALL != 0).map_err(Refusal::Log)?;
        }
        self.features = Some(features);
        Ok(())
    }

    /// Spec "RESET_OWNER", virtio 1.3 §2.4: disables all rings. They start again with a new kick descriptor.
    fn stop_anew(&mut self, host: &mut dyn Host) -> Result<(), Refusal> {
        let stopped = self.stop_all(host);
        for ring in &mut self.rings {
            ring.forget_start();
            ring.enabled = None;
        }
        stopped
    }

    /// An area for records, if the device can have such rings.
    fn records(&self, area: InflightArea) -> Result<InflightArea, Refusal> {
        let InflightArea { rings, num, .. } = area;
        let known = (1..=self.rings.len()).contains(&rings.into());
        let good = known && (1..=MAX_VRING_NUM).contains(&num.into());
        if good { Ok(area) } else { Err(Refusal::Records { rings, num }) }
    }

    /// Spec "RESET_DEVICE": the device is as it was when the front-end connected. Its memory stays.
    fn reset(&mut self, host: &mut dyn Host) -> Result<(), Refusal> {
        let stopped = self.stop_anew(host);
        host.clear_records();
        if self.features() & F_LOG_ALL != 0 {
            host.log_all(false).map_err(Refusal::Log)?;
        }
        for ring in &mut self.rings {
            let err_message = ring.err_message;
            *ring = Ring { err: ring.err.take(), err_message, ..Ring::default() };
        }
        (self.features, self.status) = (None, 0);
        self.config.clone_from(&self.offer.config);
        stopped
    }

    /// Stops what runs and changes memory. When that fails, the rings go on as before.
    fn change_memory(
        &mut self,
        host: &mut dyn Host,
        refused: &mut Vec<Refusal>,
        change: impl FnOnce(&mut dyn Host) -> Result<(), HostError>,
    ) -> Result<(), Refusal> {
        let changed = self.stop_all(host).and_then(|()| change(host).map_err(Refusal::Memory));
        if changed.is_err() {
            self.start_all(host, refused);
        }
        changed
    }

    fn remove_region(
        &mut self,
        wanted: &MemRegion,
        host: &mut dyn Host,
        refused: &mut Vec<Refusal>,
    ) -> Result<(), Refusal> {
        let region = self.regions.find(wanted)?;
        self.change_memory(host, refused, |host| {
            host.remove(&region);
            Ok(())
        })?;
        self.regions.remove(&region);
        self.start_all(host, refused);
        Ok(())
    }

    /// The ring with this index, all 32 bits of it.
    fn ring(&self, index: u32) -> Result<usize, Refusal> {
        let rings = self.rings.len();
        match usize::try_from(index) {
            Ok(ring) if ring < rings => Ok(ring),
            _ => Err(Refusal::Ring { index, source: RingError::NoSuchRing(rings) }),
        }
    }

    fn set_num(&mut self, state: VringState) -> Result<(), Refusal> {
        let ring = self.ring(state.index)?;
        at_rest(ring, &self.rings[ring], "size")?;
        let good = check_num(state.num, self.features);
        self.rings[ring].num = good.is_ok().then_some(state.num);
        good.map_err(about(ring))
    }

    /// A ring may move while it runs.
    fn set_addr(&mut self, ring: usize, addr: VringAddr, host: &mut dyn Host) -> Result<(), Refusal> {
        if self.rings[ring].running && self.rings[ring].addr != Some(addr) {
            let elsewhere = |old: VringAddr| VringAddr { flags: addr.flags, log: addr.log, ..old };
            if self.rings[ring].addr.map(elsewhere) == Some(addr) && addr.flags & !VRING_F_LOG == 0 {
                // Only the log of its used elements: it goes on.
                host.log_used(ring as u16, &addr).map_err(Refusal::Log)?;
                self.rings[ring].addr = Some(addr);
                return Ok(());
            }
            self.stop(&[ring], host)?;
        }
        // Before the size is known, the smallest ring there is.
        let good = check_addr(&addr, self.rings[ring].num.unwrap_or(1), self.features());
        self.rings[ring].addr = good.is_ok().then_some(addr);
        good.map_err(about(ring))
    }

    fn set_base(&mut self, state: VringState) -> Result<(), Refusal> {
        let ring = self.ring(state.index)?;
        at_rest(ring, &self.rings[ring], "base")?;
        self.rings[ring].base = Some(state.num);
        match (self.features, self.rings[ring].num) {
            (Some(features), Some(num)) => {
                check_base(state.num, num, features).map(drop).map_err(about(ring))
            }
            _ => Ok(()),
        }
    }

    /// Spec "GET_VRING_BASE": stops the ring, until a new kick descriptor comes.
    fn vring_base(&mut self, index: u32, host: &mut dyn Host) -> Result<Answer, Refusal> {
        let ring = self.ring(index)?;
        if self.rings[ring].running {
            self.stop(&[ring], host)?;
        }
        let features = self.features();
        let ring = &mut self.rings[ring];
        ring.forget_start();
        Ok(Answer::vring(id::GET_VRING_BASE, VringState { index, num: ring.base_at_rest(features) }))
    }

    fn set_enable(&mut self, state: VringState, host: &mut dyn Host) -> Result<(), Refusal> {
        let ring = self.ring(state.index)?;
        let enabled = match state.num {
            0 => false,
            1 => true,
            num => return Err(about(ring)(RingError::Enable(num))),
        };
        self.rings[ring].enabled = Some(enabled);
        match (enabled, self.rings[ring].running) {
            (true, false) => self.start(ring, host),
            (false, true) => self.stop(&[ring], host),
            _ => Ok(()),
        }
    }

    fn signal(&mut self, ring: usize, host: &mut dyn Host) -> Result<(), Refusal> {
        if !self.rings[ring].running {
            return Ok(());
        }
        let signals = self.rings[ring].signals();
        host.signals(ring as u16, &signals).map_err(|source| Refusal::Signals { index: ring as u32, source })
    }

    /// Spec "Ring states": starts a ring that is described, kicked and enabled.
    fn start(&mut self, ring: usize, host: &mut dyn Host) -> Result<(), Refusal> {
        let Some(features) = self.features else { return Ok(()) };
        let waits = self.held || self.regions.is_empty() || self.postcopy == Postcopy::Mapped;
        if self.rings[ring].running || waits {
            return Ok(());
        }
        // User-mode Linux does not say that it has no descriptor for calls.
        if matches!(self.rings[ring].kick, Some(Kick::Message(_))) && self.rings[ring].call.is_none() {
            (self.rings[ring].call, self.rings[ring].call_message) = (Some(bell()?), true);
        }
        let setup = self.rings[ring].setup(ring as u16, features).map_err(about(ring))?;
        if let Some(setup) = setup {
            host.start(setup).map_err(|source| Refusal::Start { index: ring as u32, source })?;
            self.rings[ring].running = true;
        }
        Ok(())
    }

    fn start_all(&mut self, host: &mut dyn Host, refused: &mut Vec<Refusal>) {
        for ring in 0..self.rings.len() {
            refused.extend(self.start(ring, host).err());
        }
    }

    /// Stops rings that run, all of them whatever happens, and keeps where they stand.
    fn stop(&mut self, rings: &[usize], host: &mut dyn Host) -> Result<(), Refusal> {
        let indices: Vec<u16> = rings.iter().map(|&ring| ring as u16).collect();
        let mut all = Ok(());
        let bases = host.stop(&indices);
        assert_eq!(bases.len(), rings.len(), "a host answers for every ring it is to stop");
        for (&ring, base) in rings.iter().zip(bases) {
            self.rings[ring].running = false;
            match base {
                Ok(base) => self.rings[ring].base = Some(base),
                Err(source) if all.is_ok() => all = Err(Refusal::Stop { index: ring as u32, source }),
                Err(_) => {}
            }
        }
        all
    }

    fn stop_all(&mut self, host: &mut dyn Host) -> Result<(), Refusal> {
        let running: Vec<usize> = (0..self.rings.len()).filter(|&ring| self.rings[ring].running).collect();
        if running.is_empty() { Ok(()) } else { self.stop(&running, host) }
    }

    fn config_range(&self, access: &ConfigAccess) -> Result<std::ops::Range<usize>, Refusal> {
        let ConfigAccess { offset, size, .. } = *access;
        let len = self.config.len();
        let (start, end) = (u64::from(offset), u64::from(offset) + u64::from(size));
        if size == 0 || end > len as u64 {
            return Err(Refusal::ConfigRange { offset, size, len });
        }
        Ok(start as usize..end as usize)
    }
}

/// Whether a request is answered by more than an acknowledgement.
fn has_answer(id: u32, protocol: u64) -> bool {
    if id == id::SET_LOG_BASE {
        return protocol & PROTOCOL_F_LOG_SHMFD != 0;
    }
    matches!(
        id,
        id::GET_FEATURES
            | id::GET_PROTOCOL_FEATURES
            | id::GET_QUEUE_NUM
            | id::GET_MAX_MEM_SLOTS
            | id::GET_VRING_BASE
            | id::GET_CONFIG
            | id::GET_STATUS
            // Not served. A front-end that sends them nonetheless waits for an answer.
            | id::CREATE_CRYPTO_SESSION
            | id::POSTCOPY_ADVISE
            | id::POSTCOPY_END
            | id::GET_INFLIGHT_FD
            | id::GET_SHARED_OBJECT
            | id::GET_SHMEM_CONFIG
    )
}

fn offers(offered: u64, set: u64) -> Result<(), Refusal> {
    match set & !offered {
        0 => Ok(()),
        unknown => Err(Refusal::Features { unknown }),
    }
}

fn at_rest(index: usize, ring: &Ring, what: &'static str) -> Result<(), Refusal> {
    if ring.running { Err(about(index)(RingError::Running(what))) } else { Ok(()) }
}

fn about(ring: usize) -> impl Fn(RingError) -> Refusal {
    move |source| Refusal::Ring { index: ring as u32, source }
}

#[cfg(test)]
mod tests;
