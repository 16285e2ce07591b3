//! The crew of a transfer: seats lanes on each path, replaces lost ones, and finds out how many are worth having.
//!
//! In: seats to fill, from the manager at the start and from the crew itself afterwards. Out: producers that run on the
//! cores of their lanes. Runs beside the consumer, on its core. Invariants: every seat ends in one `lane_done`; a path has at
//! most `SLOTS_MAX` seats; the crew ends with its transfer.

use std::{
    cell::RefCell,
    pin::pin,
    rc::Rc,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::{Either, select};

use super::{
    manager::{FetchError, LANE_DEADLINE, Manager},
    producer::{Delivery, Producer},
    queue,
    stripe::{LaneCount, ProbeTurn},
    tap::Tap,
    transfer::{Parcel, Transfer},
};
use crate::{
    exec::{self, Core},
    lanes::{Lease, Pool},
};

/// One bit each in [`Place::slots`]; as many as `--lanes` allows.
const SLOTS_MAX: usize = 64;
/// Between two looks at the lanes of a transfer: a lost one is missed by nobody sooner, since the others carry its frames.
const CREW_PAUSE: Duration = Duration::from_millis(100);
/// A path whose lanes are lost or cannot be dialled is tried again after one pause, then after two and so on up to this
/// many: it is used again at most a second after it is back.
const CREW_PAUSES_MAX: u32 = 10;
/// How long a transfer without lanes is kept: as long as the upstream keeps it.
pub const DESERTED_MAX: Duration = Duration::from_secs(30);

/// A round trip this much longer than the shortest shows a queue: jitter is less.
const QUEUED_RATIO: f64 = 1.2;
/// And by this much on short paths.
const QUEUED_MIN: Duration = Duration::from_millis(5);

/// What a transfer has of one path.
#[derive(Debug)]
pub(super) struct Place {
    /// A bit for each lane, and each dial that may become one.
    slots: AtomicU64,
    /// Lanes.
    lanes: AtomicUsize,
    /// Lanes in slots from this one on are to rest.
    wanted: AtomicUsize,
    /// Payload that has come.
    bytes: AtomicU64,
    /// Looks at its lanes that found segments lost although none stood in a queue, less the others; see [`Place::looked`].
    starved: AtomicI32,
}

/// Bounds of [`Place::starved`]: it takes a second of looks at one lane to turn the verdict.
const STARVED_MAX: i32 = 5;

impl Place {
    pub(super) fn new(wanted: usize) -> Arc<Self> {
        Arc::new(Self {
            slots: AtomicU64::new(0),
            lanes: AtomicUsize::new(0),
            wanted: AtomicUsize::new(wanted),
            bytes: AtomicU64::new(0),
            starved: AtomicI32::new(0),
        })
    }

    /// A lane was looked at. One that loses segments while the round trip is what the empty path takes is limited by random
    /// loss or a policer: more lanes would carry more. Losses of one that fills a queue are its own doing.
    pub(super) fn looked(&self, has_lost: bool, round_trip: Duration, round_trip_min: Duration) {
        let is_queued = round_trip > round_trip_min.mul_f64(QUEUED_RATIO) + QUEUED_MIN;
        let step = |score: i32| match (is_queued, has_lost) {
            (true, _) => Some((score - 1).max(-STARVED_MAX)),
            (false, true) => Some((score + 1).min(STARVED_MAX)),
            (false, false) => None,
        };
        // No step: nothing was learned.
        let _ = self.starved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step);
    }

    /// Lanes that it should have and has not. Those that rest do not count: they carry nothing fresh.
    fn missing(&self) -> usize {
        let wanted = self.wanted.load(Ordering::Relaxed);
        let eager = 1_u64.checked_shl(wanted as u32).map_or(u64::MAX, |beyond| beyond - 1);
        wanted.min(SLOTS_MAX) - (self.slots.load(Ordering::SeqCst) & eager).count_ones() as usize
    }

    fn is_starved(&self) -> bool {
        self.starved.load(Ordering::Relaxed) > 1
    }

    /// Payload has come over the path.
    pub(super) fn received(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

pub(super) type Places = Vec<Arc<Place>>;

/// One lane's, or dial's, part of a [`Place`].
pub(super) struct Slot {
    place: Arc<Place>,
    number: usize,
}

impl Slot {
    /// The lowest free one; none if all are taken.
    pub(super) fn take(place: &Arc<Place>) -> Option<Self> {
        let mut number = 0;
        let lowest = |slots: u64| {
            number = slots.trailing_ones() as usize;
            (number < SLOTS_MAX).then(|| slots | 1 << number)
        };
        let taken = place.slots.fetch_update(Ordering::SeqCst, Ordering::SeqCst, lowest);
        taken.ok().map(|_| Self { place: place.clone(), number })
    }

    /// The path's part of the transfer.
    pub(super) fn place(&self) -> &Arc<Place> {
        &self.place
    }

    /// Whether the path has more lanes than it should: this one is to carry nothing fresh.
    pub(super) fn rests(&self) -> bool {
        self.number >= self.place.wanted.load(Ordering::Relaxed)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.place.slots.fetch_and(!(1 << self.number), Ordering::SeqCst);
    }
}

/// How many lanes each path should have: fixed, or learned by the transfers of all cores.
#[derive(Debug)]
pub struct LaneCounts(Mutex<Counts>);

#[derive(Debug)]
struct Counts {
    paths: Vec<LaneCount>,
    turn: ProbeTurn,
    /// One transfer at a time tries numbers: several would take each other's effect for their own.
    is_probing: bool,
}

/// The right of one transfer to try other numbers of lanes.
struct Probe {
    counts: Arc<LaneCounts>,
    began: Instant,
}

impl LaneCounts {
    /// For so many paths: begins at `least` lanes each and goes up to `most`; equal numbers are fixed.
    pub fn new(paths: usize, least: usize, most: usize) -> Arc<Self> {
        let paths = (0..paths).map(|_| LaneCount::new(least, most)).collect();
        Arc::new(Self(Mutex::new(Counts { paths, turn: ProbeTurn::default(), is_probing: false })))
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lanes that a new transfer should have on path number `path`.
    pub(super) fn wanted(&self, path: usize) -> usize {
        self.counts().paths[path].learned()
    }

    fn probe(self: &Arc<Self>) -> Option<Probe> {
        let is_taken = std::mem::replace(&mut self.counts().is_probing, true);
        (!is_taken).then(|| Probe { counts: self.clone(), began: Instant::now() })
    }
}

impl Probe {
    /// Looks at path number `path`; returns how many lanes it should have.
    fn sample(&self, path: usize, place: &Place, by_network: bool, round_trip: Duration) -> usize {
        let (received, may_gain) = (place.bytes.load(Ordering::Relaxed), place.is_starved());
        let Counts { paths, turn, .. } = &mut *self.counts.counts();
        paths[path].sample(self.began.elapsed(), received, by_network, may_gain, round_trip, turn)
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let Counts { paths, turn, is_probing } = &mut *self.counts.counts();
        for path in paths {
            path.restart(turn);
        }
        *is_probing = false;
    }
}

/// See the module's description.
pub(super) struct Crew {
    pub(super) manager: Rc<Manager>,
    pub(super) transfer: Arc<Transfer>,
    pub(super) ring: queue::Producer<Parcel>,
    pub(super) taps: Rc<RefCell<Vec<Rc<Tap>>>>,
    pub(super) places: Places,
    /// Where the lanes go, in turn; the first is this core.
    pub(super) cores: Vec<Core>,
}

impl Crew {
    /// Fills the seats that the transfer begins with. Idle lanes that were not used since `suspect_before` are not
    /// trusted, if that is given.
    pub(super) fn board(&self, suspect_before: Option<Instant>) {
        let most = self.places.iter().map(|place| place.wanted.load(Ordering::Relaxed)).max().unwrap_or(0);
        for lane in 0..most {
            for (path, place) in self.places.iter().enumerate() {
                if lane < place.wanted.load(Ordering::Relaxed) {
                    self.seat(path, suspect_before);
                }
            }
        }
    }

    /// Runs until nobody waits for the transfer, or until it has had no lane for too long. While it runs, that no lane is
    /// left does not mean that none will come.
    pub(super) fn start(self) {
        self.transfer.lane_expected();
        exec::spawn(async move {
            self.work().await;
            self.transfer.lane_done(None);
        });
    }

    async fn work(&self) {
        let probe = self.manager.counts().probe();
        let mut rests = vec![(0, 0); self.places.len()];
        let mut had_lane_at = Instant::now();
        while exec::timeout(CREW_PAUSE, self.transfer.over()).await.is_err() {
            if self.places.iter().any(|place| place.lanes.load(Ordering::SeqCst) > 0) {
                had_lane_at = Instant::now();
            } else if had_lane_at.elapsed() > self.manager.config().deserted_max {
                return;
            }
            // Lanes that have seen the end are not lost.
            if self.transfer.end().is_some() {
                continue;
            }
            for (path, (rest, rest_next)) in rests.iter_mut().enumerate() {
                let place = &self.places[path];
                if let Some(probe) = &probe {
                    place.wanted.store(self.sample(probe, path), Ordering::Relaxed);
                }
                let missing = place.missing();
                if missing == 0 {
                    (*rest, *rest_next) = (0, 0);
                } else if *rest > 0 {
                    *rest -= 1;
                } else {
                    *rest = *rest_next;
                    *rest_next = (*rest_next + 1).min(CREW_PAUSES_MAX - 1);
                    (0..missing).for_each(|_| self.seat(path, None));
                }
            }
        }
    }

    fn sample(&self, probe: &Probe, path: usize) -> usize {
        let round_trip = self.manager.pools()[path].path().round_trip();
        probe.sample(path, &self.places[path], !self.transfer.is_client_blocked(), round_trip)
    }

    /// Seats one more lane of path number `path`, in its lowest free slot.
    fn seat(&self, path: usize, suspect_before: Option<Instant>) {
        let Some(slot) = Slot::take(&self.places[path]) else { return };
        let here = exec::core();
        let pool = &self.manager.pools()[path];
        let mut core = self.cores[(slot.number * self.places.len() + path) % self.cores.len()];
        if self.cores.len() == 1 && suspect_before.is_none() {
            core = pool.path().core_of_warm_lane(here);
        }
        let (transfer, ring) = (self.transfer.clone(), self.ring.clone());
        transfer.lane_expected();
        let seat = Seat { transfer, ring, taps: None, slot, suspect_before };
        if core == here {
            Seat { taps: Some(self.taps.clone()), ..seat }.take(pool);
        } else {
            seat.invite(core, path);
        }
    }
}

/// A place in a transfer for one lane.
struct Seat {
    transfer: Arc<Transfer>,
    ring: queue::Producer<Parcel>,
    /// The consumer's taps, if it is on this core.
    taps: Option<Rc<RefCell<Vec<Rc<Tap>>>>>,
    slot: Slot,
    /// Idle lanes that were not used since then are closed instead of leased.
    suspect_before: Option<Instant>,
}

impl Seat {
    /// Asks `core` to take the seat for a lane of path number `path`.
    fn invite(self, core: Core, path: usize) {
        let Seat { transfer, ring, slot, suspect_before, .. } = self;
        let told = transfer.clone();
        let letter = move || match Manager::here() {
            Some(manager) => {
                let seat = Seat { transfer, ring, taps: None, slot, suspect_before };
                seat.take(&manager.pools()[path]);
            }
            // The core has not started or has ended.
            None => transfer.lane_done(None),
        };
        if exec::post(core, Box::new(letter)).is_err() {
            told.lane_done(None);
        }
    }

    /// Seats an idle lane at once, or the next one that stands.
    fn take(self, pool: &Rc<Pool>) {
        let transfer = &self.transfer;
        if let Some(moment) = self.suspect_before {
            pool.close_quiet_since(moment);
        }
        if let Some(lane) = pool.lease_idle(transfer.instance()) {
            return self.fill(lane);
        }
        let pool = pool.clone();
        exec::spawn(async move {
            let leased = {
                let wait = pin!(exec::timeout(LANE_DEADLINE, pool.lease_next()));
                let over = pin!(self.transfer.over());
                match select(wait, over).await {
                    Either::Left((leased, _)) => Some(leased),
                    Either::Right(_) => None,
                }
            };
            match leased {
                Some(Ok(Ok(lane))) => self.fill(lane),
                Some(Ok(Err(error))) => self.transfer.lane_done(Some(error.to_string())),
                Some(Err(exec::Elapsed)) => self.transfer.lane_done(Some(FetchError::Busy.to_string())),
                None => self.transfer.lane_done(None),
            }
        });
    }

    fn fill(self, lane: Lease) {
        let Self { transfer, ring, taps, slot, .. } = self;
        if transfer.is_over() || !transfer.claim_instance(lane.instance()) {
            lane.give_back();
            return transfer.lane_done(None);
        }
        transfer.lane_round_trip(lane.path().round_trip());
        let place = slot.place().clone();
        let delivery = match taps {
            None => Delivery::Handed,
            Some(taps) => {
                let tap = Tap::new(lane.socket().clone(), lane.path().clone(), place.clone());
                let index = add_tap(&mut taps.borrow_mut(), tap.clone());
                Delivery::Tapped { tap, index, taps }
            }
        };
        let producer = Producer::new(lane, transfer, ring, delivery, slot);
        exec::spawn(async move {
            place.lanes.fetch_add(1, Ordering::SeqCst);
            producer.run().await;
            place.lanes.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

/// Puts `tap` in the place of a lost lane's, which would hold its descriptor to the end, if there is one.
fn add_tap(taps: &mut Vec<Rc<Tap>>, tap: Rc<Tap>) -> usize {
    match taps.iter().position(|old| old.is_spent()) {
        Some(index) => {
            taps[index] = tap;
            index
        }
        None => {
            taps.push(tap);
            taps.len() - 1
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_slots_are_taken_and_the_others_rest() {
        let place = Place::new(2);
        let slots: Vec<_> = (0..SLOTS_MAX).map(|_| Slot::take(&place).unwrap()).collect();
        assert_eq!(slots.iter().filter(|slot| !slot.rests()).count(), 2);
        assert!(Slot::take(&place).is_none());
        let mut slots = slots;
        drop(slots.remove(1));
        assert_eq!(Slot::take(&place).unwrap().number, 1);
    }

    #[test]
    fn a_lost_lane_is_missed_although_others_rest() {
        let place = Place::new(3);
        let mut slots: Vec<_> = (0..3).map(|_| Slot::take(&place).unwrap()).collect();
        assert_eq!(place.missing(), 0);
        place.wanted.store(1, Ordering::Relaxed);
        assert_eq!(place.missing(), 0);
        drop(slots.remove(0));
        assert_eq!(place.missing(), 1, "the two that are left rest");
        assert_eq!(Slot::take(&place).unwrap().number, 0);
        place.wanted.store(SLOTS_MAX, Ordering::Relaxed);
        assert_eq!(place.missing(), SLOTS_MAX - 2);
    }

    #[test]
    fn losses_without_a_queue_starve_a_path() {
        let (place, rtt) = (Place::new(1), Duration::from_millis(100));
        assert!(!place.is_starved());
        (0..3).for_each(|_| place.looked(true, rtt, rtt));
        (0..9).for_each(|_| place.looked(false, rtt, rtt));
        assert!(place.is_starved());
        (0..3).for_each(|_| place.looked(true, 2 * rtt, rtt));
        assert!(!place.is_starved());
    }

    #[test]
    fn one_transfer_at_a_time_probes() {
        let counts = LaneCounts::new(2, 1, 32);
        let probe = counts.probe().unwrap();
        assert!(counts.probe().is_none());
        drop(probe);
        assert!(counts.probe().is_some());
    }
}
