//! The crew of a transfer: seats lanes on each path, replaces lost ones, and finds out how many are worth having.
//!
//! In: seats to fill, from the manager at the start and from the crew itself afterwards. Out: producers that run on the
//! cores of their lanes; the word that the upstream is lost, as soon as that is known. Runs beside the consumer, on its
//! core. Invariants: every seat ends in one `lane_done`; a path has at most `SLOTS_MAX` seats; the crew ends with its
//! transfer.

use std::{
    cell::RefCell,
    pin::pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

mod counts;

pub use counts::LaneCounts;
use futures_util::future::{Either, join_all, select};
use tokio::sync::Notify;

use super::{
    manager::{FetchError, LANE_DEADLINE, Manager},
    producer::{Delivery, Producer},
    queue,
    share::{Look, Share},
    tap::Tap,
    transfer::{Parcel, Transfer},
};
use crate::{
    exec::{self, Core, Instant},
    http::account::PathShare,
    lanes::{DialError, Lease, PathStatus, Pool},
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
/// An upstream that is dead for certain is back within this time if a service manager restarts it.
const RESTART_MAX: Duration = Duration::from_secs(5);

/// Lanes that bring nothing for so long although the client takes everything make the crew ask whether the upstream still
/// answers, if there is another: several times the longest stall that the upstream itself needs to notice a silent path.
/// A slow root is no reason to leave an upstream that answers.
const SILENT_MAX: Duration = Duration::from_secs(3);

/// A round trip this much longer than the shortest shows a queue: jitter is less.
const QUEUED_RATIO: f64 = 1.2;
/// And by this much on short paths.
const QUEUED_MIN: Duration = Duration::from_millis(5);

/// What the last try to get a lane said of a path: a number of [`Place::outlook`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
enum Outlook {
    /// A lane was seated, or none was tried.
    Open,
    /// No lane could be had.
    Failed,
    /// The upstream's own host says that no process listens there.
    NobodyThere,
}

/// What a transfer has of one path.
#[derive(Debug)]
pub(super) struct Place {
    path: Arc<PathStatus>,
    outlook: AtomicU8,
    /// A bit for each lane, and each dial that may become one.
    slots: AtomicU64,
    /// Lanes.
    lanes: AtomicUsize,
    /// Lanes in slots from this one on are to rest.
    wanted: AtomicUsize,
    /// Lanes to be given up for others; whichever sees it first goes.
    give_up: AtomicUsize,
    /// The only lane of the transfer, which its slow client leaves idle, is this path's.
    is_slow: AtomicBool,
    called: Notify,
    /// Payload that has come.
    bytes: AtomicU64,
    /// Looks at its lanes that found segments lost although none stood in a queue, less the others; see [`Place::looked`].
    starved: AtomicI32,
}

/// Bounds of [`Place::starved`]: it takes a second of looks at one lane to turn the verdict.
const STARVED_MAX: i32 = 5;

impl Place {
    pub(super) fn new(path: Arc<PathStatus>, wanted: usize) -> Arc<Self> {
        Arc::new(Self {
            path,
            outlook: AtomicU8::new(Outlook::Open as u8),
            slots: AtomicU64::new(0),
            lanes: AtomicUsize::new(0),
            wanted: AtomicUsize::new(wanted),
            give_up: AtomicUsize::new(0),
            is_slow: AtomicBool::new(false),
            called: Notify::new(),
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

    /// One of the lanes is to be closed, or none: a word that no lane has heard until the next look is taken back.
    fn give_up(&self, one: bool) {
        self.give_up.store(one.into(), Ordering::SeqCst);
        if one {
            self.call();
        }
    }

    /// Lanes that wait for a frame are to see how things stand.
    fn call(&self) {
        self.called.notify_waiters();
    }

    /// Lanes that it should have and has not. Those that rest do not count: they carry nothing fresh.
    fn missing(&self) -> usize {
        let wanted = self.wanted.load(Ordering::Relaxed);
        let eager = 1_u64.checked_shl(wanted as u32).map_or(u64::MAX, |beyond| beyond - 1);
        wanted.min(SLOTS_MAX) - (self.slots.load(Ordering::SeqCst) & eager).count_ones() as usize
    }

    fn learn(&self, outlook: Outlook) {
        self.outlook.store(outlook as u8, Ordering::SeqCst);
    }

    fn dial_failed(&self, error: &DialError) {
        self.learn(match error {
            DialError::Busy { .. } => return,
            error if error.nobody_there(self.path.spec()) => Outlook::NobodyThere,
            _ => Outlook::Failed,
        });
    }

    fn is_at_least(&self, outlook: Outlook) -> bool {
        self.outlook.load(Ordering::SeqCst) >= outlook as u8
    }

    fn is_starved(&self) -> bool {
        self.starved.load(Ordering::Relaxed) > 1
    }

    /// What has come over the path.
    pub(super) fn share(&self) -> PathShare {
        PathShare { path: self.path.name().to_owned(), bytes: self.bytes.load(Ordering::Relaxed) }
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

    /// Whether this lane is to be closed for somebody who has none; true for one lane of the path only.
    pub(super) fn is_given_up(&self) -> bool {
        let less = |lanes: usize| lanes.checked_sub(1);
        self.place.give_up.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok()
    }

    /// Whether it is the only lane of a transfer whose client is slow.
    pub(super) fn is_slow(&self) -> bool {
        self.place.is_slow.load(Ordering::Relaxed)
    }

    /// Resolves when the crew has something to say: that [`Slot::is_given_up`], perhaps, or that [`Slot::is_slow`] is no
    /// longer what the lane knows it to be.
    pub(super) async fn called(&self, is_known_slow: bool) {
        let mut called = pin!(self.place.called.notified());
        called.as_mut().enable();
        if self.place.give_up.load(Ordering::SeqCst) == 0 && self.is_slow() == is_known_slow {
            called.await;
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.place.slots.fetch_and(!(1 << self.number), Ordering::SeqCst);
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
    /// The upstream process to begin with; the first lane decides.
    pub(super) preferred: Option<u64>,
}

impl Crew {
    /// Fills the seats that the transfer begins with. Idle lanes that were not used since `suspect_before` are not
    /// trusted, if that is given.
    pub(super) fn board(&self, suspect_before: Option<Instant>) {
        let places: Vec<_> = self.places.iter().filter(|place| self.leads_there(place)).collect();
        let most = places.iter().map(|place| place.wanted.load(Ordering::Relaxed)).max().unwrap_or(0);
        for lane in 0..most {
            for (index, place) in places.iter().enumerate() {
                if lane < place.wanted.load(Ordering::Relaxed) {
                    self.seat(index, place, suspect_before);
                }
            }
        }
    }

    /// Whether lanes of the path may lead to the transfer's upstream.
    fn leads_there(&self, place: &Place) -> bool {
        let upstream = self.transfer.instance().or(self.preferred);
        upstream.is_none_or(|instance| !place.path.leads_elsewhere(instance))
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
        let (mut share, began) = (Share::default(), Instant::now());
        let mut silence = Silence::begins();
        while exec::timeout(CREW_PAUSE, self.transfer.over()).await.is_err() {
            if self.places.iter().any(|place| place.lanes.load(Ordering::SeqCst) > 0) {
                had_lane_at = Instant::now();
            } else {
                let deserted = had_lane_at.elapsed();
                if deserted > self.manager.config().deserted_max || self.is_upstream_lost(deserted) {
                    return;
                }
            }
            // Lanes that have seen the end are not lost.
            if self.transfer.end().is_some() {
                continue;
            }
            share.look(Look {
                now: began.elapsed(),
                taken: self.transfer.taken(),
                is_client_blocked: self.transfer.is_client_blocked(),
                lanes: self.transfer.seated(),
            });
            if silence.lasts(self.received(), self.transfer.is_client_blocked())
                && self.transfer.may_move()
                && self.is_upstream_silent().await
            {
                return self.transfer.desert(SILENT.into());
            }
            for (index, (place, (rest, rest_next))) in self.places.iter().zip(&mut rests).enumerate() {
                if !self.leads_there(place) {
                    continue;
                }
                let by_network = !self.transfer.is_client_blocked();
                if let Some(wanted) = probe.as_ref().and_then(|probe| probe.sample(place, by_network)) {
                    let before = place.wanted.swap(wanted, Ordering::Relaxed);
                    if wanted != before {
                        let (path, starved) = (place.path.spec(), place.is_starved());
                        tracing::debug!(%path, before, wanted, starved, "another number of lanes");
                    }
                }
                let is_slow = share.is_last_and_slow();
                if place.is_slow.swap(is_slow, Ordering::Relaxed) != is_slow {
                    place.call();
                }
                let is_short = self.manager.pool(&place.path).is_some_and(|pool| pool.is_short());
                place.give_up(share.gives_up(place.lanes.load(Ordering::SeqCst), is_short));
                let missing = place.missing();
                if missing == 0 || !share.may_seat(is_short) {
                    (*rest, *rest_next) = (0, 0);
                } else if *rest > 0 {
                    *rest -= 1;
                } else {
                    *rest = *rest_next;
                    *rest_next = (*rest_next + 1).min(CREW_PAUSES_MAX - 1);
                    (0..missing).for_each(|_| self.seat(index, place, None));
                }
            }
        }
    }

    fn received(&self) -> u64 {
        self.places.iter().map(|place| place.bytes.load(Ordering::Relaxed)).sum()
    }

    /// For a transfer that has had no lane for the time given: whether none to its upstream's process will come any more.
    /// That is certain once every path leads to another process, or finds none at its end. One that can go on elsewhere does
    /// not wait for paths that merely fail; one that could, if there were another upstream, waits for a successor.
    fn is_upstream_lost(&self, deserted: Duration) -> bool {
        let Some(instance) = self.transfer.instance() else { return false };
        let verdict = match (self.transfer.may_move(), self.manager.has_other_upstream(instance)) {
            (true, true) => Outlook::Failed,
            (true, false) if deserted < RESTART_MAX => return false,
            _ => Outlook::NobodyThere,
        };
        self.places.iter().all(|place| {
            place.path.leads_elsewhere(instance)
                || place.is_at_least(verdict)
                || self.manager.pool(&place.path).is_none()
        })
    }

    /// Resolves when the upstream has been silent for so long, does not answer, and there is another.
    pub(super) async fn silence(&self) -> &'static str {
        loop {
            exec::sleep(SILENT_MAX).await;
            if self.is_upstream_silent().await {
                return SILENT;
            }
        }
    }

    /// Asks for a sign of life over every path, if there is another upstream.
    async fn is_upstream_silent(&self) -> bool {
        let Some(instance) = self.transfer.instance().or(self.preferred) else { return false };
        if !self.manager.has_other_upstream(instance) {
            return false;
        }
        let paths = self.places.iter().filter(|place| !place.path.leads_elsewhere(instance));
        let pools = paths.filter_map(|place| self.manager.pool(&place.path));
        let answers = join_all(pools.map(|pool| async move { pool.answers(instance).await })).await;
        !answers.contains(&true)
    }

    /// Seats one more lane of `place`, which is number `index` of the places, in its lowest free slot.
    fn seat(&self, index: usize, place: &Arc<Place>, suspect_before: Option<Instant>) {
        // The path may have been removed.
        let Some(pool) = self.manager.pool(&place.path) else { return };
        let Some(slot) = Slot::take(place) else { return };
        let here = exec::core();
        let mut core = self.cores[(slot.number * self.places.len() + index) % self.cores.len()];
        if self.cores.len() == 1 && suspect_before.is_none() {
            core = place.path.core_of_warm_lane(here);
        }
        let (transfer, ring) = (self.transfer.clone(), self.ring.clone());
        transfer.lane_expected();
        let seat = Seat { transfer, ring, taps: None, slot, suspect_before };
        if core == here {
            Seat { taps: Some(self.taps.clone()), ..seat }.take(&pool);
        } else {
            seat.invite(core, place.path.clone());
        }
    }
}

/// Why an upstream is given up that is not known to be dead.
const SILENT: &str = "the upstream has fallen silent";

/// Since when nothing has come.
struct Silence {
    received: u64,
    since: Instant,
}

impl Silence {
    fn begins() -> Self {
        Self { received: 0, since: Instant::now() }
    }

    /// True once for each [`SILENT_MAX`] without a byte that were not the client's fault.
    fn lasts(&mut self, received: u64, is_client_blocked: bool) -> bool {
        let is_over = self.since.elapsed() > SILENT_MAX;
        let is_silent = received == self.received && !is_client_blocked;
        if !is_silent || is_over {
            *self = Self { received, since: Instant::now() };
        }
        is_silent && is_over
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
    /// Asks `core` to take the seat for a lane of `path`.
    fn invite(self, core: Core, path: Arc<PathStatus>) {
        let Seat { transfer, ring, slot, suspect_before, .. } = self;
        let told = transfer.clone();
        let letter = move || match Manager::here().and_then(|manager| manager.pool(&path)) {
            Some(pool) => Seat { transfer, ring, taps: None, slot, suspect_before }.take(&pool),
            // The core has not started or has ended, or the path was removed.
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
            let waiting = self.transfer.clone();
            let is_urgent = move || waiting.seated() == 0;
            let leased = {
                let wait = pin!(exec::timeout(LANE_DEADLINE, pool.lease_next(is_urgent)));
                let over = pin!(self.transfer.over());
                match select(wait, over).await {
                    Either::Left((leased, _)) => Some(leased),
                    Either::Right(_) => None,
                }
            };
            match leased {
                Some(Ok(Ok(lane))) => self.fill(lane),
                Some(Ok(Err(error))) => {
                    self.slot.place().dial_failed(&error);
                    if matches!(error, DialError::Busy { .. }) {
                        self.transfer.set_busy();
                    }
                    self.transfer.lane_done(Some(error.to_string()));
                }
                Some(Err(exec::Elapsed)) => {
                    self.transfer.set_busy();
                    self.transfer.lane_done(Some(FetchError::Busy.to_string()));
                }
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
        place.learn(Outlook::Open);
        let delivery = match taps {
            None => Delivery::Handed,
            Some(taps) => {
                let tap = Tap::new(lane.socket().clone(), lane.path().clone(), place.clone());
                let index = add_tap(&mut taps.borrow_mut(), tap.clone());
                Delivery::Tapped { tap, index, taps }
            }
        };
        let producer = Producer::new(lane, transfer.clone(), ring, delivery, slot);
        transfer.seat(true);
        exec::spawn(async move {
            place.lanes.fetch_add(1, Ordering::SeqCst);
            producer.run().await;
            place.lanes.fetch_sub(1, Ordering::SeqCst);
            transfer.seat(false);
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

    fn place(wanted: usize) -> Arc<Place> {
        Place::new(Arc::new(PathStatus::new("127.0.0.1:1".parse().unwrap())), wanted)
    }

    #[test]
    fn the_lowest_slots_are_taken_and_the_others_rest() {
        let place = place(2);
        let slots: Vec<_> = (0..SLOTS_MAX).map(|_| Slot::take(&place).unwrap()).collect();
        assert_eq!(slots.iter().filter(|slot| !slot.rests()).count(), 2);
        assert!(Slot::take(&place).is_none());
        let mut slots = slots;
        drop(slots.remove(1));
        assert_eq!(Slot::take(&place).unwrap().number, 1);
    }

    #[test]
    fn a_lost_lane_is_missed_although_others_rest() {
        let place = place(3);
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
        let (place, rtt) = (place(1), Duration::from_millis(100));
        assert!(!place.is_starved());
        (0..3).for_each(|_| place.looked(true, rtt, rtt));
        (0..9).for_each(|_| place.looked(false, rtt, rtt));
        assert!(place.is_starved());
        (0..3).for_each(|_| place.looked(true, 2 * rtt, rtt));
        assert!(!place.is_starved());
    }

    #[test]
    fn one_transfer_at_a_time_probes() {
        let counts = LaneCounts::new(1, 32, false);
        let probe = counts.probe().unwrap();
        assert!(counts.probe().is_none());
        drop(probe);
        assert!(counts.probe().is_some());
    }
}
