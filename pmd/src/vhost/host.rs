//! What a conversation asks of whoever runs the rings.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use super::backend::Ask;
use crate::spec::vhost_user::{InflightArea, IotlbMsg, LogArea, MemRegion, VringAddr};

/// Why a wish of the front-end could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The file of a region cannot serve as guest memory.
    #[error("region of {size:#x} bytes at guest address {guest:#x}: {source}")]
    Memory {
        /// Guest address of the region.
        guest: u64,
        /// Its bytes.
        size: u64,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Memory that was mapped is gone.
    #[error("{what}: {damage}; nothing in it can be trusted any more")]
    Damaged {
        /// Which.
        what: String,
        /// What became of it.
        damage: hugepages::Damage,
    },
    /// The regions make no memory.
    #[error("{0}")]
    Table(Box<dyn std::error::Error + Send + Sync>),
    /// The log cannot serve.
    #[error("dirty log: {0}")]
    Log(Box<dyn std::error::Error + Send + Sync>),
    /// The memory for records of what is in flight cannot serve.
    #[error("in-flight record: {0}")]
    Record(Box<dyn std::error::Error + Send + Sync>),
    /// The state of a device cannot be taken over.
    #[error("device state: {0}")]
    State(Box<dyn std::error::Error + Send + Sync>),
    /// A descriptor cannot be passed on.
    #[error("{0}: is the limit of open files (ulimit -n) reached?")]
    Files(std::io::Error),
    /// Memory cannot lack pages.
    #[error("post-copy: {0}")]
    Postcopy(Box<dyn std::error::Error + Send + Sync>),
    /// An address of the guest's IOMMU cannot be where it is said to be.
    #[error("{size:#x} bytes at I/O address {iova:#x}: {what}")]
    Translation {
        /// The address.
        iova: u64,
        /// How much.
        size: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// The ring cannot run as it is described.
    #[error("{0}")]
    Ring(Box<dyn std::error::Error + Send + Sync>),
    /// The core that runs the ring did not give it back in time.
    #[error(
        "its core did not give it back in {waited_ms} ms, {lent} of its buffers are still out; it can run again when it has come home"
    )]
    Late {
        /// How long it was waited for.
        waited_ms: u64,
        /// Buffers that keep it.
        lent: u32,
    },
}

/// The eventfds of a ring. `None`: the other side polls, or nobody listens.
#[derive(Clone, Debug, Default)]
pub struct Signals {
    /// Readable when the driver has made buffers available.
    pub kick: Option<Arc<OwnedFd>>,
    /// To be written when buffers were used.
    pub call: Option<Arc<OwnedFd>>,
    /// To be written when the ring is retired for a fault.
    pub err: Option<Arc<OwnedFd>>,
}

/// A ring that is ready to run. Size, alignment and extent of its areas are checked; whether they lie
/// in guest memory is not.
#[derive(Clone, Debug)]
pub struct RingSetup {
    /// Which.
    pub index: u16,
    /// Features of the device, as negotiated.
    pub features: u64,
    /// Entries: 1 to 32768, a power of two when split.
    pub num: u16,
    /// Its areas, in the front-end's address space, or in that of the guest's IOMMU with
    /// `F_ACCESS_PLATFORM`.
    pub addr: VringAddr,
    /// Where it goes on, as [`VringState::num`](crate::spec::vhost_user::VringState::num) has it, with
    /// both halves when packed.
    pub base: u32,
    /// Its eventfds.
    pub signals: Signals,
}

/// The files behind what a front-end has sent, for another process that goes on with it.
#[derive(Debug, Default)]
pub struct Files {
    /// By guest address: those of the memory.
    pub memory: Vec<(u64, OwnedFd)>,
    /// That of the dirty log, and where the log is in it.
    pub log: Option<(LogArea, OwnedFd)>,
    /// What is signalled when something was logged.
    pub log_signal: Option<OwnedFd>,
    /// That of the in-flight records, and where they are in it.
    pub records: Option<(InflightArea, OwnedFd)>,
}

/// Whoever maps the guest's memory and runs its rings. Called by one thread, by
/// [`Session`](super::Session), which keeps these promises: a ring is started only when it does not
/// run and stopped only when it does; memory changes only while no ring runs.
///
/// A call may wait for a core, but must end in bounded time: other ports are served by the same
/// thread.
pub trait Host: Send {
    /// A front-end is there.
    fn connected(&mut self) {}

    /// What is wrong with the front-end's memory since it was mapped, see [`hugepages::sigbus`]. Asked when
    /// any memory of this process was found damaged; the conversation ends for it.
    fn damage(&mut self) -> Option<HostError> {
        None
    }

    /// The front-end is gone; no ring runs. All its memory is to be unmapped.
    fn disconnected(&mut self);

    /// The guest's memory is now these regions and no others.
    ///
    /// # Errors
    /// [`HostError::Memory`] or [`HostError::Table`]; then the memory stays as it was.
    fn map(&mut self, regions: Vec<(MemRegion, OwnedFd)>) -> Result<(), HostError>;

    /// One region more.
    ///
    /// # Errors
    /// [`HostError::Memory`] or [`HostError::Table`]; then the memory stays as it was.
    fn add(&mut self, region: MemRegion, file: OwnedFd) -> Result<(), HostError>;

    /// One region less: one that was mapped or added before.
    fn remove(&mut self, region: &MemRegion);

    /// The ring runs from now on.
    ///
    /// # Errors
    /// When its areas are outside guest memory, or a ring of that index is still out
    /// ([`HostError::Late`]).
    fn start(&mut self, ring: RingSetup) -> Result<(), HostError>;

    /// The rings run no more: everything taken from them is given back and published. Where each
    /// would go on (as in [`RingSetup::base`]), in the order asked.
    ///
    /// # Errors
    /// [`HostError::Late`] for a ring that does not come home; it counts as stopped all the same and
    /// cannot be started until it has come.
    fn stop(&mut self, rings: &[u16]) -> Vec<Result<u32, HostError>>;

    /// A running ring has new eventfds.
    ///
    /// # Errors
    /// When a descriptor is no eventfd.
    fn signals(&mut self, ring: u16, signals: &Signals) -> Result<(), HostError>;

    /// Writes to memory are logged in this part of `file` from now on, when they are logged; nothing is
    /// written to the log before any more.
    ///
    /// # Errors
    /// [`HostError::Log`] when it cannot be mapped or is too small for the memory; then the log stays as it
    /// was. [`HostError::Late`].
    fn log_base(&mut self, area: LogArea, file: OwnedFd) -> Result<(), HostError>;

    /// What is signalled when something was logged.
    ///
    /// # Errors
    /// When the descriptor is no eventfd.
    fn log_signal(&mut self, fd: OwnedFd) -> Result<(), HostError>;

    /// Every write to memory is logged from now on, or none.
    ///
    /// # Errors
    /// [`HostError::Late`].
    fn log_all(&mut self, on: bool) -> Result<(), HostError>;

    /// A running ring logs its used elements elsewhere; its areas are where they were.
    ///
    /// # Errors
    /// [`HostError::Late`].
    fn log_used(&mut self, ring: u16, addr: &VringAddr) -> Result<(), HostError>;

    /// Memory for the records of so many rings of so many entries each: its bytes, all zero, and its file.
    ///
    /// # Errors
    /// [`HostError::Record`].
    fn make_records(&mut self, rings: u16, num: u16) -> Result<(u64, OwnedFd), HostError>;

    /// Rings that start from now on keep a record of what is in flight in this memory, and go on with what it
    /// says. No ring runs.
    ///
    /// # Errors
    /// [`HostError::Record`] when it cannot be mapped or is too small; then there is none.
    fn set_records(&mut self, area: InflightArea, file: OwnedFd) -> Result<(), HostError>;

    /// The device is reset: nothing is in flight, whatever the records say.
    fn clear_records(&mut self);

    /// The guest has moved here: the network is to learn where this address is now.
    fn announce(&mut self, mac: [u8; 6]);

    /// Puts what the device itself says into the configuration space, before it is read.
    fn fill_config(&self, config: &mut [u8]) {
        let _ = config;
    }

    /// A descriptor by which pages are brought that memory lacks.
    ///
    /// # Errors
    /// [`HostError::Postcopy`].
    fn advise_postcopy(&mut self) -> Result<OwnedFd, HostError>;

    /// Pages of this region, the one mapped or added last of these addresses, are missing and will be
    /// brought: where it is mapped.
    ///
    /// # Errors
    /// [`HostError::Postcopy`].
    fn wait_for_pages(&mut self, region: &MemRegion) -> Result<u64, HostError>;

    /// No page is missing any more, or none will be brought: whoever waits for one goes on.
    fn end_postcopy(&mut self);

    /// These addresses of the guest's IOMMU are there now (an `UPDATE`).
    ///
    /// # Errors
    /// [`HostError::Translation`].
    fn translate(&mut self, entry: &IotlbMsg) -> Result<(), HostError>;

    /// These addresses of the guest's IOMMU are nowhere (an `INVALIDATE`). When this returns, nothing is
    /// accessed there any more.
    ///
    /// # Errors
    /// [`HostError::Late`]: some buffers there are still out.
    fn invalidate(&mut self, entry: &IotlbMsg) -> Result<(), HostError>;

    /// What the guest has asked of the device itself, for the process or the host that goes on with it. No ring
    /// runs.
    fn save(&self) -> Vec<u8>;

    /// The device is as it was when that was saved. No ring runs.
    ///
    /// # Errors
    /// [`HostError::State`]; then it stays as it was.
    fn load(&mut self, state: &[u8]) -> Result<(), HostError>;

    /// The files behind what the front-end has sent, once more. No ring runs.
    ///
    /// # Errors
    /// [`HostError::Files`].
    fn files(&self) -> Result<Files, HostError>;

    /// What the device wants of the front-end since this was last called.
    fn asks(&mut self) -> Vec<Ask>;

    /// The front-end refused that.
    fn refused(&mut self, ask: Ask);

    /// What rings when the host has work of its own for this thread: a ring that it serves itself.
    fn bell(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// When it is to have a turn, rung or not.
    fn alarm(&self) -> Option<Instant> {
        None
    }

    /// Its turn. Must end in bounded time, like any call.
    fn attend(&mut self) {}
}

#[cfg(test)]
pub(crate) mod testing {
    //! A host without memory or rings: it writes down what it is asked, and holds the session to its
    //! promises.

    use std::collections::BTreeMap;
    use std::sync::Mutex;

    use super::*;

    /// What a host was asked.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub(crate) enum Asked {
        Connected,
        Disconnected,
        Map(Vec<MemRegion>),
        Add(MemRegion),
        Remove(MemRegion),
        Start { index: u16, num: u16, base: u32 },
        Stop(Vec<u16>),
        Signals { ring: u16, kick: bool, call: bool, err: bool },
        LogBase(LogArea),
        LogSignal,
        LogAll(bool),
        LogUsed(u16, u64),
        Announce([u8; 6]),
        MakeRecords(u16, u16),
        SetRecords(InflightArea),
        ClearRecords,
        AdvisePostcopy,
        WaitForPages(u64),
        EndPostcopy,
        Translate(IotlbMsg),
        Invalidate(IotlbMsg),
        Refused(Ask),
        Load(Vec<u8>),
    }

    /// Shared between the test and the thread that serves it.
    #[derive(Default)]
    pub(crate) struct Diary {
        pub(crate) asked: Vec<Asked>,
        /// Rings that run.
        pub(crate) running: BTreeMap<u16, RingSetup>,
        /// Regions with their files.
        pub(crate) memory: Vec<(MemRegion, OwnedFd)>,
        /// Where rings stand when they are stopped, if not where they started.
        pub(crate) bases: BTreeMap<u16, u32>,
        /// Rings that refuse to start, or are late when stopped.
        pub(crate) broken: Vec<u16>,
        pub(crate) late: Vec<u16>,
        /// What the device wants of the front-end.
        pub(crate) asks: Vec<Ask>,
        /// Whether memory is refused.
        pub(crate) unmappable: bool,
        /// What is saved, and was loaded.
        pub(crate) state: Vec<u8>,
    }

    #[derive(Clone, Default)]
    pub(crate) struct Recorder(pub(crate) Arc<Mutex<Diary>>);

    impl Recorder {
        pub(crate) fn diary(&self) -> std::sync::MutexGuard<'_, Diary> {
            self.0.lock().unwrap()
        }

        /// What was asked since the last call.
        pub(crate) fn asked(&self) -> Vec<Asked> {
            std::mem::take(&mut self.diary().asked)
        }
    }

    impl Diary {
        fn memory_may_change(&self, guest: u64) -> Result<(), HostError> {
            assert!(self.running.is_empty(), "memory changes under running rings");
            let source = "refused by the test".into();
            if self.unmappable { Err(HostError::Memory { guest, size: 0, source }) } else { Ok(()) }
        }
    }

    impl Host for Recorder {
        fn connected(&mut self) {
            self.diary().asked.push(Asked::Connected);
        }

        fn disconnected(&mut self) {
            let mut diary = self.diary();
            assert!(diary.running.is_empty(), "disconnected with running rings");
            diary.memory.clear();
            diary.asked.push(Asked::Disconnected);
        }

        fn map(&mut self, regions: Vec<(MemRegion, OwnedFd)>) -> Result<(), HostError> {
            let mut diary = self.diary();
            diary.asked.push(Asked::Map(regions.iter().map(|r| r.0).collect()));
            diary.memory_may_change(regions[0].0.guest)?;
            diary.memory = regions;
            Ok(())
        }

        fn add(&mut self, region: MemRegion, file: OwnedFd) -> Result<(), HostError> {
            let mut diary = self.diary();
            diary.asked.push(Asked::Add(region));
            diary.memory_may_change(region.guest)?;
            diary.memory.push((region, file));
            Ok(())
        }

        fn remove(&mut self, region: &MemRegion) {
            let mut diary = self.diary();
            diary.asked.push(Asked::Remove(*region));
            assert!(diary.running.is_empty(), "memory changes under running rings");
            let at = diary.memory.iter().position(|r| r.0 == *region).expect("the region is mapped");
            diary.memory.remove(at);
        }

        fn start(&mut self, ring: RingSetup) -> Result<(), HostError> {
            let mut diary = self.diary();
            let RingSetup { index, num, base, .. } = ring;
            diary.asked.push(Asked::Start { index, num, base });
            assert!(!diary.running.contains_key(&index), "ring {index} is started twice");
            assert!((1..=32768).contains(&num));
            if diary.broken.contains(&index) {
                return Err(HostError::Ring("refused by the test".into()));
            }
            diary.bases.insert(index, base);
            diary.running.insert(index, ring);
            Ok(())
        }

        fn stop(&mut self, rings: &[u16]) -> Vec<Result<u32, HostError>> {
            let mut diary = self.diary();
            diary.asked.push(Asked::Stop(rings.to_vec()));
            let stop = |ring: &u16| {
                assert!(diary.running.remove(ring).is_some(), "ring {ring} does not run");
                if diary.late.contains(ring) {
                    return Err(HostError::Late { waited_ms: 0, lent: 1 });
                }
                Ok(diary.bases[ring])
            };
            rings.iter().map(stop).collect()
        }

        fn signals(&mut self, ring: u16, signals: &Signals) -> Result<(), HostError> {
            let Signals { kick, call, err } = signals;
            let (kick, call, err) = (kick.is_some(), call.is_some(), err.is_some());
            let mut diary = self.diary();
            assert!(diary.running.contains_key(&ring), "ring {ring} does not run");
            diary.asked.push(Asked::Signals { ring, kick, call, err });
            Ok(())
        }

        fn log_base(&mut self, area: LogArea, _: OwnedFd) -> Result<(), HostError> {
            let mut diary = self.diary();
            diary.asked.push(Asked::LogBase(area));
            if diary.unmappable { Err(HostError::Log("refused by the test".into())) } else { Ok(()) }
        }

        fn log_signal(&mut self, _: OwnedFd) -> Result<(), HostError> {
            self.diary().asked.push(Asked::LogSignal);
            Ok(())
        }

        fn log_all(&mut self, on: bool) -> Result<(), HostError> {
            let mut diary = self.diary();
            diary.asked.push(Asked::LogAll(on));
            if diary.late.is_empty() { Ok(()) } else { Err(HostError::Late { waited_ms: 0, lent: 1 }) }
        }

        fn log_used(&mut self, ring: u16, addr: &VringAddr) -> Result<(), HostError> {
            let mut diary = self.diary();
            assert!(diary.running.contains_key(&ring), "ring {ring} does not run");
            diary.asked.push(Asked::LogUsed(ring, addr.log));
            Ok(())
        }

        fn make_records(&mut self, rings: u16, num: u16) -> Result<(u64, OwnedFd), HostError> {
            let mut diary = self.diary();
            diary.asked.push(Asked::MakeRecords(rings, num));
            let file = std::fs::File::open("/dev/null").expect("it is there");
            if diary.unmappable {
                return Err(HostError::Record("refused by the test".into()));
            }
            Ok((0x1_2345, file.into()))
        }

        fn set_records(&mut self, area: InflightArea, _: OwnedFd) -> Result<(), HostError> {
            let mut diary = self.diary();
            assert!(diary.running.is_empty(), "records change under running rings");
            diary.asked.push(Asked::SetRecords(area));
            Ok(())
        }

        fn clear_records(&mut self) {
            let mut diary = self.diary();
            assert!(diary.running.is_empty(), "records change under running rings");
            diary.asked.push(Asked::ClearRecords);
        }

        fn announce(&mut self, mac: [u8; 6]) {
            self.diary().asked.push(Asked::Announce(mac));
        }

        fn advise_postcopy(&mut self) -> Result<OwnedFd, HostError> {
            self.diary().asked.push(Asked::AdvisePostcopy);
            Ok(std::fs::File::open("/dev/null").expect("it is there").into())
        }

        fn wait_for_pages(&mut self, region: &MemRegion) -> Result<u64, HostError> {
            let mut diary = self.diary();
            diary.asked.push(Asked::WaitForPages(region.guest));
            assert!(diary.memory.iter().any(|known| known.0 == *region), "the region is mapped");
            Ok(region.guest + 0x10_0000_0000)
        }

        fn end_postcopy(&mut self) {
            self.diary().asked.push(Asked::EndPostcopy);
        }

        fn translate(&mut self, entry: &IotlbMsg) -> Result<(), HostError> {
            let mut diary = self.diary();
            diary.asked.push(Asked::Translate(*entry));
            let (iova, size) = (entry.iova, entry.size);
            let what = "refused by the test";
            if diary.unmappable { Err(HostError::Translation { iova, size, what }) } else { Ok(()) }
        }

        fn invalidate(&mut self, entry: &IotlbMsg) -> Result<(), HostError> {
            let mut diary = self.diary();
            diary.asked.push(Asked::Invalidate(*entry));
            if diary.late.is_empty() { Ok(()) } else { Err(HostError::Late { waited_ms: 0, lent: 1 }) }
        }

        fn save(&self) -> Vec<u8> {
            assert!(self.diary().running.is_empty(), "saved while rings run");
            self.diary().state.clone()
        }

        fn load(&mut self, state: &[u8]) -> Result<(), HostError> {
            let mut diary = self.diary();
            assert!(diary.running.is_empty(), "loaded while rings run");
            diary.asked.push(Asked::Load(state.to_vec()));
            if diary.unmappable {
                return Err(HostError::State("refused by the test".into()));
            }
            diary.state = state.to_vec();
            Ok(())
        }

        fn files(&self) -> Result<Files, HostError> {
            let diary = self.diary();
            let clone = |fd: &OwnedFd| fd.try_clone().map_err(HostError::Files);
            let memory = diary.memory.iter().map(|(region, file)| Ok((region.guest, clone(file)?)));
            Ok(Files { memory: memory.collect::<Result<_, _>>()?, ..Files::default() })
        }

        fn asks(&mut self) -> Vec<Ask> {
            std::mem::take(&mut self.diary().asks)
        }

        fn refused(&mut self, ask: Ask) {
            self.diary().asked.push(Asked::Refused(ask));
        }
    }
}
