use std::time::{Duration, SystemTime};

use http::HeaderMap;

use super::*;

/// Several times what a reader waits for, so that seeks begin fetches of their own.
const LEN: u64 = 64 << 20;

fn object() -> Arc<Object> {
    let now = SystemTime::now();
    let meta = Meta::new("a/f".into(), HeaderMap::new(), HeaderMap::new(), now..now, Duration::ZERO);
    Object::new(Key(1), LEN, meta)
}

/// A reader at its position.
struct Reader {
    span: Range<u64>,
    seat: Option<Seat>,
}

/// A fetch at its position.
struct Fetch {
    lead: Lead,
    at: u64,
}

/// Readers come and go, fetches advance, lose what they bring, or die, writes end late or fail: in the end every reader
/// that stays has been given every byte, and only bytes that were written.
#[test]
fn every_reader_gets_what_was_written() {
    for seed in 0..100 {
        let mut random = fastrand::Rng::with_seed(seed);
        let object = object();
        let (mut readers, mut fetches, mut writes) = (Vec::new(), Vec::<Fetch>::new(), Vec::new());
        let mut written = Spans::default();
        let mut fetched = 0;
        for turn in 0_u32.. {
            // Trouble ends, so that readers do.
            let calm = turn > 400;
            if readers.is_empty() && calm {
                break;
            }
            assert!(turn < 20_000, "seed {seed}: {} readers wait for ever", readers.len());
            if !calm && random.u8(..) < 40 && readers.len() < 8 {
                let start = random.u64(0..LEN);
                readers.push(Reader { span: start..random.u64(start + 1..=LEN), seat: None });
            }
            if !calm && random.u8(..) < 5 && !readers.is_empty() {
                readers.swap_remove(random.usize(..readers.len()));
            }
            let mut waits = 0;
            readers.retain_mut(|reader| match object.step(reader.span.clone(), &mut reader.seat, true) {
                Step::Present(span) => {
                    assert_eq!(span.start, reader.span.start);
                    assert!(written.end_of(span.start).is_some_and(|end| end >= span.end), "seed {seed}");
                    reader.span.start = span.end;
                    reader.span.start < reader.span.end
                }
                Step::Coming => {
                    waits += 1;
                    true
                }
                Step::Missing(lead) => {
                    assert!(lead.span.start == reader.span.start && lead.span.end <= reader.span.end);
                    fetches.push(Fetch { at: lead.span.start, lead });
                    assert!(matches!(object.step(reader.span.clone(), &mut reader.seat, true), Step::Coming));
                    true
                }
                Step::Lost => panic!("seed {seed}: parts may be joined"),
            });
            assert!(
                waits == 0 || !fetches.is_empty() || !writes.is_empty(),
                "seed {seed}: waits for nothing"
            );
            fetches.retain_mut(|fetch| {
                let Some(demand) = fetch.lead.demand(fetch.at) else { return false };
                if (!calm && random.u8(..) < 3) || fetch.at == fetch.lead.span.end {
                    return false;
                }
                // A fetch of a client's own goes on whatever others want; it is let run here as well.
                let until = demand.until.max(fetch.at + 1).min(fetch.lead.span.end);
                let next = random.u64(fetch.at + 1..=until).min(fetch.at + (2 << 20));
                let stored = calm || random.u8(..) > 10;
                fetch.lead.hand_on(next, stored);
                if stored {
                    writes.push(fetch.at..next);
                }
                fetched += next - fetch.at;
                fetch.at = next;
                true
            });
            while !writes.is_empty() && random.bool() {
                let span = writes.swap_remove(random.usize(..writes.len()));
                let there = calm || random.u8(..) > 10;
                if there {
                    assert!(written.insert(span.clone()));
                }
                object.written(span, there);
            }
        }
        assert!(fetched > 0, "seed {seed}");
        drop(fetches);
        writes.into_iter().for_each(|span| {
            object.written(span, true);
        });
        assert!(!object.is_growing());
    }
}

#[test]
fn a_fetch_is_wanted_by_its_readers() {
    let object = object();
    let mut seat = None;
    let Step::Missing(lead) = object.step(0..LEN, &mut seat, true) else { panic!() };
    assert_eq!(lead.demand(0), None, "nobody but the client that is fed directly");
    assert!(matches!(object.step(0..LEN, &mut seat, true), Step::Coming));
    assert_eq!(lead.demand(0), Some(Demand { readers: 1, until: AHEAD_BYTES }));
    drop(seat);
    assert_eq!(lead.demand(0), None);
    assert!(!object.wants(lead.course()));
    // The rest of a segment is fetched even so.
    lead.hand_on(LEN - FINISH_BYTES, false);
    assert_eq!(lead.demand(LEN - FINISH_BYTES), Some(Demand { readers: 0, until: LEN }));
    assert!(object.wants(lead.course()));
}

#[test]
fn who_waits_for_the_disk_keeps_the_fetch() {
    let object = object();
    let (mut fast, mut slow) = (None, None);
    let Step::Missing(lead) = object.step(0..LEN, &mut fast, true) else { panic!() };
    for seat in [&mut fast, &mut slow] {
        assert!(matches!(object.step(0..LEN, seat, true), Step::Coming));
    }
    // As far ahead as it may be, and what comes at a time; not one byte is on the disk.
    lead.hand_on(AHEAD_BYTES + (1 << 20), true);
    assert!(matches!(object.step(0..LEN, &mut fast, true), Step::Coming));
    assert_eq!(lead.readers(), 2);
    // The other one is left behind.
    object.written(0..AHEAD_BYTES + (1 << 20), true);
    lead.hand_on(BEHIND_BYTES, true);
    assert!(matches!(object.step(AHEAD_BYTES..LEN, &mut fast, true), Step::Present(_)));
    assert!(matches!(object.step(0..LEN, &mut slow, true), Step::Present(_)));
    assert_eq!(lead.readers(), 1);
}

#[test]
fn a_client_that_the_fetch_lets_go_is_its_reader() {
    let object = object();
    let lead = object.begin(0..LEN);
    lead.hand_on(8 << 20, true);
    let mut seat = lead.seat(8 << 20);
    assert_eq!(lead.demand(8 << 20), Some(Demand { readers: 1, until: (8 << 20) + AHEAD_BYTES }));
    // Its bytes are on their way to the disk.
    assert!(matches!(object.step((8 << 20) - 1..LEN, &mut seat, true), Step::Coming));
    assert_eq!(lead.readers(), 1);
    drop(seat);
    assert_eq!(lead.demand(8 << 20), None);
    let object = lead.object().clone();
    lead.end();
    assert!(lead.seat(0).is_none() && !object.wants(lead.course()));
}

#[test]
fn one_who_seeks_far_ahead_does_not_wait() {
    let object = object();
    let (mut first, mut second) = (None, None);
    let Step::Missing(lead) = object.step(0..LEN, &mut first, true) else { panic!() };
    assert!(matches!(object.step(JOIN_BYTES..LEN, &mut second, true), Step::Coming));
    let Step::Missing(far) = object.step(40 << 20..LEN, &mut second, true) else { panic!() };
    assert_eq!(far.span, 40 << 20..LEN);
    assert!(second.is_none(), "the seat at the first fetch is given up");
    // Where parts must not be joined there is only one fetch.
    assert!(matches!(object.step(40 << 20..LEN, &mut second, false), Step::Coming));
    drop((lead, far));
    assert!(matches!(object.step(0..LEN, &mut second, false), Step::Lost));
}
