//! What the ring tests share: memory that a guest and its rings lie in, the ring under test in each of
//! its four forms, and a guest that does what the specification says, one word at a time.

use std::collections::VecDeque;
use std::sync::Arc;

use hugepages::{Backing, Buf, Loan, Map, PageSize, Region, Table};
use pmd::Batch;
use pmd::spec::virtio as v;
use pmd::vring::driver::{Areas, Desc, Raw, Segment};
use pmd::vring::iotlb::{Change, Entry, Iotlb, Want};
use pmd::vring::{AnyVring, Chain, RingLayout, Way};
use pmd::with_ring;

/// Where buffers and indirect tables of tests begin; the rings lie before.
pub(crate) const DATA: u64 = 0x4_0000;
/// Bytes of guest memory.
pub(crate) const MEMORY: u64 = 0x10_0000;

/// A layout and a way to reach its words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Form {
    pub(crate) packed: bool,
    pub(crate) checked: bool,
    /// Its addresses are those of an IOMMU, which the device learns page by page.
    pub(crate) translated: bool,
}

const fn form(packed: bool, checked: bool, translated: bool) -> Form {
    Form { packed, checked, translated }
}

/// All forms of a ring.
pub(crate) const FORMS: [Form; 8] = [
    form(false, false, false),
    form(false, true, false),
    form(true, false, false),
    form(true, true, false),
    form(false, false, true),
    form(false, true, true),
    form(true, false, true),
    form(true, true, true),
];

/// Those whose addresses are the guest's.
pub(crate) fn plain_forms() -> impl Iterator<Item = Form> {
    FORMS.into_iter().filter(|form| !form.translated)
}

/// A ring under test, in memory that the test writes as it likes.
pub(crate) struct Rig {
    pub(crate) ring: AnyVring,
    pub(crate) raw: Raw,
    pub(crate) table: Arc<Table>,
    origin: u64,
    areas: Arc<Table>,
    form: Form,
    memory: u64,
}

const PAGE: u64 = 4096;

/// The guest address of an address that the driver uses. Behind an IOMMU, the rings come behind the data,
/// page by page in reverse order for a checked ring.
fn place(form: Form, at: u64, memory: u64) -> u64 {
    match at {
        _ if !form.translated => at,
        DATA.. => at - DATA,
        _ if form.checked => memory - PAGE - at / PAGE * PAGE + at % PAGE,
        _ => memory - DATA + at,
    }
}

fn open(form: Form, ring: &RingLayout, areas: &Arc<Table>, memory: &Arc<Table>) -> AnyVring {
    let open = if form.translated {
        AnyVring::open_translated(ring, areas, memory, &Iotlb::default(), true)
    } else {
        AnyVring::open(ring, memory)
    };
    open.unwrap()
}

impl Rig {
    /// An empty ring. Its areas lie in one region, or, for a checked ring, over the border of two.
    pub(crate) fn new(form: Form, size: u16, features: u64, way: Way) -> Rig {
        Rig::with_memory(form, size, features, way, MEMORY)
    }

    /// The same in `memory` bytes.
    pub(crate) fn with_memory(form: Form, size: u16, features: u64, way: Way, memory: u64) -> Rig {
        let features = features | if form.packed { v::F_RING_PACKED } else { 0 };
        let backing = Backing { page: PageSize::Base, node: None };
        let map = Arc::new(Map::shared(memory as usize, backing).unwrap());
        let origin = map.address();
        let region =
            |gpa, len| Region { gpa, len, user: origin + gpa, map: Arc::clone(&map), at: gpa as usize };
        // The driver sees its memory in one piece; the border is a matter of what the device was told.
        let guest = Arc::new(Table::new(vec![region(0, memory)]).unwrap());
        let border = 0x1000;
        let at = if form.checked { border - 128 } else { 0 };
        let areas = Areas::at(at, size, features, 0);
        assert!(areas.end <= DATA);
        let mut regions = vec![region(0, memory)];
        if form.checked && !form.translated {
            // Small rings have all descriptors before the border: then it is the areas that are apart.
            regions = vec![region(0, border), region(border, memory - border)];
        }
        let mut parts = regions.clone();
        if form.translated {
            let part = if form.checked { PAGE } else { DATA };
            parts = (0..DATA / part).map(|i| region(i * part, part)).collect();
            let placed = |r: &Region| Region { gpa: place(form, r.gpa, memory), ..r.clone() };
            regions = parts.iter().chain(&[region(DATA, memory - DATA)]).map(placed).collect();
        }
        let (table, parts) = (Table::new(regions).unwrap(), Table::new(parts).unwrap());
        let (table, parts) = (Arc::new(table), Arc::new(parts));
        let ring = open(form, &areas.ring(way), &parts, &table);
        let crosses = areas.desc < border && areas.desc + 16 * u64::from(size) > border;
        assert_eq!(ring.mapped(), !(form.checked && crosses));
        Rig { ring, raw: Raw::open(&areas, &guest).unwrap(), table, areas: parts, origin, form, memory }
    }

    /// The ring is gone and opened again, as a front-end opens it that knows nothing.
    pub(crate) fn reopen(&mut self, way: Way) {
        self.ring = open(self.form, &self.raw.areas().ring(way), &self.areas, &self.table);
    }

    pub(crate) fn pop(&mut self, out: &mut Batch<Buf>) -> Option<Chain> {
        loop {
            let chain = with_ring!(&mut self.ring, ring => ring.pop(out));
            if chain.is_some() || !self.translate() {
                return chain;
            }
        }
    }

    /// Answers what the ring asks its front-end; whether it did.
    fn translate(&mut self) -> bool {
        let mut wants = Vec::new();
        self.ring.wants(&mut wants);
        for want in &wants {
            let Want::Translation(miss) = *want else { continue };
            self.ring.change(if miss.iova < self.memory {
                let (first, last, perm) = (miss.iova, miss.iova + PAGE - 1, 3);
                Change::Add(Entry { first, last, gpa: place(self.form, first, self.memory), perm })
            } else {
                Change::Refuse(miss)
            });
        }
        assert!(!wants.is_empty() || !self.ring.blocked(), "it waits and asks for nothing");
        !wants.is_empty()
    }

    /// The guest address of an address of the driver's.
    pub(crate) fn place(&self, at: u64) -> u64 {
        place(self.form, at, self.memory)
    }

    /// Pops as ports do: runs of simple chains in one go. Their buffers, and how many chains.
    pub(crate) fn pop_simple(&mut self, out: &mut Batch<Buf>, most: usize) -> usize {
        with_ring!(&mut self.ring, ring => ring.pop_simple(out, most, (1, u32::MAX), u64::MAX)).0
    }

    /// What a buffer on loan covers, in guest addresses.
    pub(crate) fn segment(&self, buf: &Buf) -> Segment {
        Segment { addr: buf.iova() - self.origin, len: buf.len(), write: buf.writable() }
    }

    /// Settles all of a batch, and publishes.
    pub(crate) fn settle(&mut self, bufs: &mut Batch<Buf>) -> bool {
        while let Some(buf) = bufs.pop_front() {
            let loan: Loan = buf.finish(0);
            self.ring.settle(loan);
        }
        self.ring.publish()
    }

    pub(crate) fn size(&self) -> u16 {
        self.raw.areas().size
    }
}

/// A driver as the specification has it, without a thought for speed. Descriptors and ids are taken
/// from anywhere in the list of free ones.
pub(crate) struct Guest {
    packed: bool,
    in_order: bool,
    event_idx: bool,
    size: u16,
    free: Vec<u16>,
    /// Descriptors of each id, as they are free again when it comes back.
    held: Vec<Vec<u16>>,
    /// Places of a packed ring that are free.
    places: u16,
    avail: (u16, bool),
    used: (u16, bool),
    /// What was offered since the last kick decision: places (packed) or chains (split).
    offered: u16,
    idx: u16,
    /// In-order: what is out, oldest first, and the element of the batch that is being taken.
    order: VecDeque<u16>,
    batch: Option<(u16, u32)>,
}

impl Guest {
    pub(crate) fn new(raw: &Raw) -> Guest {
        let areas = raw.areas();
        Guest {
            packed: areas.has(v::F_RING_PACKED),
            in_order: areas.has(v::F_IN_ORDER),
            event_idx: areas.has(v::F_EVENT_IDX),
            size: areas.size,
            free: (0..areas.size).collect(),
            held: vec![Vec::new(); areas.size.into()],
            places: areas.size,
            avail: (0, true),
            used: (0, true),
            offered: 0,
            idx: 0,
            order: VecDeque::new(),
            batch: None,
        }
    }

    fn step(&self, (at, wrap): (u16, bool), n: u16) -> (u16, bool) {
        (0..n).fold((at, wrap), |(at, wrap), _| if at + 1 == self.size { (0, !wrap) } else { (at + 1, wrap) })
    }

    /// Offers a chain; with a `table`, through an indirect table there. `pick` chooses among the free.
    pub(crate) fn offer(
        &mut self,
        raw: &Raw,
        chain: &[Segment],
        table: Option<u64>,
        pick: u16,
    ) -> Option<u16> {
        let descs: Vec<Desc> = match table {
            None => chain.iter().map(desc).collect(),
            Some(at) => {
                let n = chain.len();
                let link = |(i, s): (usize, &Segment)| {
                    let next = !self.packed && i + 1 < n;
                    let flags = if next { v::DESC_F_NEXT } else { 0 } | desc(s).flags;
                    Desc { flags, tag: if next { i as u16 + 1 } else { 0 }, ..desc(s) }
                };
                let entries: Vec<Desc> = chain.iter().enumerate().map(link).collect();
                raw.set_table(at, &entries).unwrap();
                vec![Desc { addr: at, len: n as u32 * 16, flags: v::DESC_F_INDIRECT, tag: 0 }]
            }
        };
        let id = if self.packed {
            self.offer_packed(raw, descs, pick)
        } else {
            self.offer_split(raw, descs, pick)
        };
        self.order.extend(id.filter(|_| self.in_order));
        id
    }

    fn take(&mut self, pick: u16) -> u16 {
        let at = if self.in_order { 0 } else { usize::from(pick) % self.free.len() };
        self.free.remove(at)
    }

    fn offer_split(&mut self, raw: &Raw, descs: Vec<Desc>, pick: u16) -> Option<u16> {
        if descs.len() > self.free.len() {
            return None;
        }
        let places: Vec<u16> = descs.iter().map(|_| self.take(pick)).collect();
        for (i, desc) in descs.iter().enumerate() {
            let (more, tag) = places.get(i + 1).map_or((0, 0), |&next| (v::DESC_F_NEXT, next));
            raw.set_desc(places[i], Desc { flags: desc.flags | more, tag, ..*desc });
        }
        let head = places[0];
        self.held[usize::from(head)] = places;
        raw.set_avail(self.idx, head);
        self.idx = self.idx.wrapping_add(1);
        self.offered += 1;
        Some(head)
    }

    fn offer_packed(&mut self, raw: &Raw, descs: Vec<Desc>, pick: u16) -> Option<u16> {
        let n = descs.len() as u16;
        if n > self.places {
            return None;
        }
        let id = self.take(pick);
        self.places -= n;
        // The first last: it uncovers the chain.
        let mut at = self.avail;
        let mut first = None;
        for (i, desc) in descs.iter().enumerate() {
            let more = if i + 1 < descs.len() { v::DESC_F_NEXT } else { 0 };
            let written = Desc { flags: desc.flags | more | Raw::avail_bits(at.1), tag: id, ..*desc };
            match first {
                None => first = Some((at.0, written)),
                Some(_) => raw.set_desc(at.0, written),
            }
            at = self.step(at, 1);
        }
        let (place, written) = first.expect("a chain is not empty");
        raw.set_desc(place, written);
        self.avail = at;
        self.held[usize::from(id)] = vec![id; n.into()];
        self.offered += n;
        Some(id)
    }

    /// Shows what was offered; whether the device wants to be kicked for it.
    pub(crate) fn publish(&mut self, raw: &Raw) -> bool {
        let offered = std::mem::take(&mut self.offered);
        if !self.packed {
            raw.set_avail_idx(self.idx);
            if !self.event_idx {
                return raw.device(0) & v::USED_F_NO_NOTIFY == 0;
            }
            return (1..=offered).any(|i| self.idx.wrapping_sub(i) == raw.avail_event());
        }
        let mut at = self.avail;
        for _ in 0..offered {
            at = if at.0 == 0 { (self.size - 1, !at.1) } else { (at.0 - 1, at.1) };
        }
        self.wanted_packed(raw.device(0), raw.device(1), at, offered)
    }

    fn wanted_packed(&self, place: u16, flags: u16, from: (u16, bool), n: u16) -> bool {
        match flags {
            v::EVENT_ENABLE => true,
            v::EVENT_DISABLE => false,
            _ => (0..n).any(|i| self.step(from, i) == (place & 0x7fff, place >> 15 != 0)),
        }
    }

    /// Takes the next used chain: id and length.
    pub(crate) fn take_used(&mut self, raw: &Raw) -> Option<(u16, u32)> {
        let (mut id, mut len) = match self.batch.take() {
            Some(end) => end,
            None => self.element(raw)?,
        };
        if self.in_order {
            // §2.7.9, §2.8.9: an element stands for all chains up to its own; of the others no length is
            // told.
            let oldest = self.order.pop_front().expect("an element stands for chains that are out");
            if oldest != id {
                self.batch = Some((id, len));
                (id, len) = (oldest, 0);
            }
        }
        let held = std::mem::take(&mut self.held[usize::from(id)]);
        assert!(!held.is_empty(), "id {id} comes back, which is not out");
        if self.packed {
            let n = held.len() as u16;
            self.places += n;
            self.used = self.step(self.used, n);
            self.free.push(id);
        } else {
            self.used.0 = self.used.0.wrapping_add(1);
            self.free.extend(held);
        }
        Some((id, len))
    }

    /// The next used element.
    fn element(&self, raw: &Raw) -> Option<(u16, u32)> {
        if self.packed {
            let desc = raw.desc(self.used.0);
            let bits = desc.flags & (v::DESC_F_AVAIL | v::DESC_F_USED);
            let used = self.places < self.size && bits == Raw::used_bits(self.used.1);
            return used.then_some((desc.tag, desc.len));
        }
        let (id, len) = raw.used(self.used.0);
        (self.used.0 != raw.used_idx()).then_some((id as u16, len))
    }

    /// The next used chain, of one descriptor, must be there; this guest never offered it.
    pub(crate) fn skip(&mut self, raw: &Raw) {
        if self.packed {
            let bits = raw.desc(self.used.0).flags & (v::DESC_F_AVAIL | v::DESC_F_USED);
            assert_eq!(bits, Raw::used_bits(self.used.1), "place {} is used", self.used.0);
            self.used = self.step(self.used, 1);
        } else {
            assert_ne!(self.used.0, raw.used_idx(), "another chain is used");
            self.used.0 = self.used.0.wrapping_add(1);
        }
    }

    /// Asks for a call at the next used chain, or for none.
    pub(crate) fn arm(&self, raw: &Raw, on: bool) {
        match (self.packed, self.event_idx) {
            (false, false) => raw.set_driver(0, if on { 0 } else { v::AVAIL_F_NO_INTERRUPT }),
            (false, true) => raw.set_used_event(if on { self.used.0 } else { self.used.0.wrapping_sub(1) }),
            (true, false) => raw.set_driver(1, if on { v::EVENT_ENABLE } else { v::EVENT_DISABLE }),
            (true, true) => {
                raw.set_driver(0, self.used.0 | u16::from(self.used.1) << 15);
                raw.set_driver(1, if on { v::EVENT_DESC } else { v::EVENT_DISABLE });
            }
        }
    }
}

fn desc(s: &Segment) -> Desc {
    Desc { addr: s.addr, len: s.len, flags: if s.write { v::DESC_F_WRITE } else { 0 }, tag: 0 }
}
