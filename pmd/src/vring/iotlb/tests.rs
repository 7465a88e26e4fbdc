use proptest::prelude::*;

use super::*;

/// Page by page, without a thought for speed.
#[derive(Default)]
struct Naive(BTreeMap<u64, (u64, u8)>);

impl Naive {
    fn insert(&mut self, entry: &Entry) {
        for page in entry.first / PAGE..=entry.last / PAGE {
            self.0.insert(page, (entry.gpa + (page * PAGE - entry.first), entry.perm));
        }
    }

    fn remove(&mut self, first: u64, last: u64) {
        self.0.retain(|page, _| !(first / PAGE..=last / PAGE).contains(page));
    }
}

#[derive(Clone, Debug)]
enum Act {
    Insert { page: u64, pages: u64, gpa: u64, perm: u8 },
    Remove { page: u64, pages: u64 },
    Clear,
}

fn act() -> impl Strategy<Value = Act> {
    // Often neighbours in both spaces, so that ranges join, and the end of all addresses.
    let page = prop_oneof![6 => 0u64..40, 1 => (1 << 52) - 20..1u64 << 52];
    let pages = 1u64..12;
    prop_oneof![
        8 => (page.clone(), pages.clone(), prop_oneof![3 => Just(None), 1 => (0u64..100).prop_map(Some)], 1u8..4)
            .prop_map(|(page, pages, gpa, perm)| Act::Insert { page, pages, gpa: gpa.unwrap_or(page % 64 + 1000), perm }),
        4 => (page, pages).prop_map(|(page, pages)| Act::Remove { page, pages }),
        1 => Just(Act::Clear),
    ]
}

fn range(page: u64, pages: u64) -> (u64, u64) {
    let end = (page + pages).min(1 << 52);
    (page * PAGE, (end - 1) * PAGE + (PAGE - 1))
}

proptest! {
    #[test]
    fn a_tlb_is_what_a_page_by_page_one_is(acts in prop::collection::vec(act(), 0..60)) {
        let (mut tlb, mut naive) = (Iotlb::default(), Naive::default());
        for act in acts {
            match act {
                Act::Insert { page, pages, gpa, perm } => {
                    let (first, last) = range(page, pages);
                    let entry = Entry { first, last, gpa: gpa * PAGE, perm };
                    naive.insert(&entry);
                    tlb.insert(entry);
                }
                Act::Remove { page, pages } => {
                    let (first, last) = range(page, pages);
                    naive.remove(first, last);
                    tlb.remove(first, last);
                }
                Act::Clear => {
                    naive.0.clear();
                    tlb.clear();
                }
            }
            for page in (0..60).chain((1 << 52) - 20..1 << 52) {
                let known = naive.0.get(&page);
                for perm in [READ, WRITE, READ | WRITE] {
                    let want = known.filter(|known| known.1 & perm == perm).map(|known| known.0 + 7);
                    let found = tlb.find(page * PAGE + 7, perm);
                    prop_assert_eq!(found.map(|found| found.0), want, "page {} for {}", page, perm);
                    // As far as it says they follow each other, they do.
                    for next in 1..found.map_or(0, |found| (found.1 + 7) / PAGE) {
                        let there = naive.0.get(&(page + next)).map(|there| there.0 + 7);
                        prop_assert_eq!(there, want.map(|want| want + next * PAGE));
                    }
                }
            }
            let joined = tlb.entries.values().zip(tlb.entries.values().skip(1));
            for (one, next) in joined {
                prop_assert!(one.last < next.first && one.first <= one.last, "{:?} {:?}", one, next);
            }
        }
    }
}

fn page(i: u64) -> Entry {
    Entry { first: i * PAGE, last: i * PAGE + PAGE - 1, gpa: (i ^ 1) * PAGE, perm: READ }
}

#[test]
fn it_holds_so_many_ranges_and_those_before_it_forgets_first() {
    let mut tlb = Iotlb::default();
    for i in 0..3 * MAX_ENTRIES as u64 {
        tlb.insert(page(2 * i));
        assert!(tlb.len() <= MAX_ENTRIES && tlb.find(2 * i * PAGE, READ).is_some());
    }
    assert_eq!(tlb.len(), MAX_ENTRIES);
    // A range that is cut makes one more.
    let mut tlb = Iotlb::default();
    tlb.insert(Entry { first: 0, last: u64::MAX, gpa: 0, perm: READ });
    for i in 0..2 * MAX_ENTRIES as u64 {
        tlb.remove(2 * i * PAGE, 2 * i * PAGE);
        assert!(tlb.len() <= MAX_ENTRIES);
    }
}

#[test]
fn a_storm_of_invalidations_costs_each_its_own() {
    let mut tlb = Iotlb::default();
    for i in 0..MAX_ENTRIES as u64 {
        tlb.insert(page(2 * i));
    }
    // Each of these would be 8192 steps in a list: 400 million in all, minutes in a build for tests.
    let since = std::time::Instant::now();
    for i in 0..50_000u64 {
        let at = 2 * (i * 7919 % MAX_ENTRIES as u64);
        tlb.remove(at * PAGE, at * PAGE + PAGE - 1);
        assert_eq!(tlb.find(at * PAGE, READ), None);
        tlb.insert(page(at));
    }
    assert!(since.elapsed().as_secs() < 20, "{:?}", since.elapsed());
    assert_eq!(tlb.len(), MAX_ENTRIES);
}
