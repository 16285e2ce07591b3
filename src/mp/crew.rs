//! The crew of a transfer: seats lanes on each path, replaces lost and worn ones, and finds out how many are worth having.
//!
//! In: seats to fill, from the manager at the start and from the crew itself afterwards. Out: producers that run on the
//! cores of their lanes; the word that the upstream is lost, as soon as that is known. Runs beside the consumer, on its
//! core. Invariants: every seat ends in one `lane_done`; a path has at most `SLOTS_MAX` seats; the crew ends with its
//! transfer.

use std::{
    cell::RefCell,
    convert::Infallible,
    pin::pin,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

mod counts;
mod place;

pub use counts::LaneCounts;
use futures_util::future::{Either, join_all, select};
use place::Outlook;
pub(super) use place::{Place, Places, Slot};

use super::{
    fetch_error::FetchError,
    manager::{LANE_DEADLINE, Manager},
    producer::{Delivery, Producer},
    queue,
    share::{Look, Share},
    tap::Tap,
    transfer::{Parcel, Transfer},
};
use crate::{
    exec::{self, Core, Instant},
    lanes::{DialError, Lease, PathStatus, Pool},
};

/// Between two looks at the lanes of a transfer: a lost one is missed by nobody sooner, since the others carry its frames.
const CREW_PAUSE: Duration = Duration::from_millis(100);
/// A path whose lanes are lost or cannot be dialled is tried again after one pause, then after two and so on up to this
/// many: it is dialled at most 0.4 s after it is back, which leaves a second for handshake and slow start.
const CREW_PAUSES_MAX: u32 = 4;
/// How long a transfer without lanes is kept: as long as the upstream keeps it.
pub const DESERTED_MAX: Duration = Duration::from_secs(30);
/// Between two looks of a request that waits for its first lane: a path may have come back that was down when it came.
const LATECOMER_PAUSE: Duration = Duration::from_millis(500);
/// An upstream that is dead for certain is back within this time if a service manager restarts it.
const RESTART_MAX: Duration = Duration::from_secs(5);

/// A lane whose congestion control takes each loss for a queue is worn out after so long, or so many round trips: slow start brings
/// it to a hundred segments in flight where one of 200 is lost, and twenty round trips later it has sunk to seventeen.
const WORN_OUT_MIN: Duration = Duration::from_millis(1500);
const WORN_OUT_ROUND_TRIPS: u32 = 20;
/// What was on its way over such a lane has come once it has brought nothing for so long, or so many round trips.
const LAST_FRAMES_MIN: Duration = Duration::from_millis(1000);
const LAST_FRAMES_ROUND_TRIPS: u32 = 6;
/// Lanes of a path dialled at once for that, as relays and upstreams may be far away.
const RELIEF_DIALS_MAX: usize = 8;

/// Lanes that bring nothing for so long although the client takes everything make the crew ask whether the upstream still
/// answers, if there is another: several times the longest stall that the upstream itself needs to notice a silent path.
/// A slow root is no reason to leave an upstream that answers.
const SILENT_MAX: Duration = Duration::from_secs(3);

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
                    self.seat(index, place, Fit::Any { suspect_before });
                }
            }
        }
    }

    /// Whether lanes of the path may lead to the transfer's upstream.
    fn leads_there(&self, place: &Place) -> bool {
        let upstream = self.transfer.instance().or(self.preferred);
        upstream.is_none_or(|instance| !place.path.leads_elsewhere(instance))
    }

    /// While the transfer has no lane, and waits for those of some paths that are busy, takes one of another path that has come
    /// back, unless that leads to `lost`.
    pub(super) async fn seat_any(&self, lost: Option<u64>) -> Infallible {
        loop {
            exec::sleep(LATECOMER_PAUSE).await;
            if self.transfer.instance().is_some() {
                continue;
            }
            for (index, place) in self.places.iter().enumerate().filter(|(_, place)| place.is_empty()) {
                if self.manager.pool(&place.path).is_some_and(|pool| pool.has_idle_beside(lost)) {
                    self.seat(index, place, Fit::Any { suspect_before: None });
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
            let looked_after = self.places.iter().zip(&mut rests).enumerate();
            for (index, (place, (rest, rest_next))) in looked_after {
                if !self.leads_there(place) {
                    continue;
                }
                let by_network = !self.transfer.is_client_blocked();
                if let Some(wanted) = probe.as_ref().and_then(|probe| probe.sample(place, by_network)) {
                    let before = place.want(wanted);
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
                if place.path.has_warm_lane() && share.may_seat(is_short) {
                    // Whoever finds no warm lane any more changes nothing.
                    (0..place.cold_lanes()).for_each(|_| self.seat(index, place, Fit::Warm));
                }
                let round_trip = place.path.round_trip();
                place.close_relieved(LAST_FRAMES_MIN.max(LAST_FRAMES_ROUND_TRIPS * round_trip));
                if by_network
                    && place.is_starved()
                    && share.may_seat(is_short)
                    && probe.as_ref().is_some_and(|probe| probe.wears_out(place))
                {
                    self.relieve(index, place);
                }
                let missing = place.missing();
                if missing == 0 || !share.may_seat(is_short) {
                    (*rest, *rest_next) = (0, 0);
                } else if *rest > 0 {
                    *rest -= 1;
                } else {
                    *rest = *rest_next;
                    *rest_next = (*rest_next + 1).min(CREW_PAUSES_MAX - 1);
                    (0..missing).for_each(|_| self.seat(index, place, Fit::Any { suspect_before: None }));
                }
            }
        }
    }

    /// Seats a new lane in the place of one that losses have worn out: one for each path and look.
    fn relieve(&self, index: usize, place: &Arc<Place>) {
        let age = WORN_OUT_MIN.max(WORN_OUT_ROUND_TRIPS * place.path.round_trip());
        let may_dial = self.manager.pool(&place.path).is_some_and(|pool| pool.dialling() < RELIEF_DIALS_MAX);
        if may_dial && place.has_lane_of(age) {
            self.seat(index, place, Fit::Fresh { age });
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
    fn seat(&self, index: usize, place: &Arc<Place>, fit: Fit) {
        // The path may have been removed.
        let Some(pool) = self.manager.pool(&place.path) else { return };
        let slot = match fit {
            Fit::Fresh { .. } => Slot::take_beside(place),
            _ => Slot::take(place),
        };
        let Some(slot) = slot else { return };
        let here = exec::core();
        let mut core = self.cores[(slot.number * self.places.len() + index) % self.cores.len()];
        if fit == Fit::Warm || (self.cores.len() == 1 && fit == (Fit::Any { suspect_before: None })) {
            core = place.path.core_of_warm_lane(here);
        }
        let (transfer, ring) = (self.transfer.clone(), self.ring.clone());
        transfer.lane_expected();
        let seat = Seat { transfer, ring, taps: None, slot, fit };
        if core == here {
            Seat { taps: Some(self.taps.clone()), ..seat }.take(&pool);
        } else if self.cores.len() == 1 {
            // What would be handed over frame by frame comes as a whole.
            Seat { taps: Some(self.taps.clone()), ..seat }.have_brought(pool, core);
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
    fit: Fit,
}

/// Which lane a seat takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fit {
    /// An idle one, or the next that stands.
    Any {
        /// Idle lanes that were not used since then are closed instead.
        suspect_before: Option<Instant>,
    },
    /// One that has just been dialled, in the place of the path's oldest, if that is still as old as that.
    Fresh { age: Duration },
    /// An idle one that is warm, in the place of one of the path that was cold; if there is none, none.
    Warm,
}

impl Seat {
    /// Asks `core` to take the seat for a lane of `path`.
    fn invite(self, core: Core, path: Arc<PathStatus>) {
        let Seat { transfer, ring, slot, fit, .. } = self;
        let told = transfer.clone();
        let letter = move || match Manager::here().and_then(|manager| manager.pool(&path)) {
            Some(pool) => Seat { transfer, ring, taps: None, slot, fit }.take(&pool),
            // The core has not started or has ended, or the path was removed.
            None => transfer.lane_done(None),
        };
        if exec::post(core, Box::new(letter)).is_err() {
            told.lane_done(None);
        }
    }

    /// Seats a warm lane that `core` has, or one of this core if it has none any more.
    fn have_brought(self, pool: Rc<Pool>, core: Core) {
        exec::spawn(async move {
            let path = pool.path().clone();
            let find = move || Manager::here().and_then(|manager| manager.pool(&path));
            let brought = pool.lease_from(core, self.transfer.instance(), find).await;
            match (brought, self.fit) {
                (Some(lane), Fit::Warm) => self.fill_warm(lane),
                (Some(lane), _) => self.fill(lane),
                (None, _) => self.take(&pool),
            }
        });
    }

    /// Seats an idle lane at once, or the next one that stands.
    fn take(self, pool: &Rc<Pool>) {
        let transfer = &self.transfer;
        match self.fit {
            Fit::Warm => return self.take_warm(pool),
            Fit::Fresh { age } => return self.take_fresh(pool.clone(), age),
            Fit::Any { suspect_before: Some(moment) } => pool.close_quiet_since(moment),
            Fit::Any { suspect_before: None } => {}
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

    /// Seats a warm lane, and lets a cold one rest now that it has come.
    fn take_warm(self, pool: &Pool) {
        match pool.lease_warm(self.transfer.instance()) {
            Some(lane) => self.fill_warm(lane),
            None => self.transfer.lane_done(None),
        }
    }

    /// Seats a lane that is dialled for it, which lets the oldest rest.
    fn take_fresh(self, pool: Rc<Pool>, age: Duration) {
        exec::spawn(async move {
            let waiting = self.transfer.clone();
            let (dial, over) = (pin!(pool.lease_fresh()), pin!(waiting.over()));
            match select(dial, over).await {
                // One that leads to the upstream's successor would take the old lane's place in vain.
                Either::Left((Some(lane), _))
                    if waiting.instance() == Some(lane.instance()) && self.slot.relieve(age) =>
                {
                    let path = lane.path().name();
                    tracing::debug!(path, transfer = %self.transfer.id(), "a new lane relieves a worn one");
                    self.fill(lane);
                }
                Either::Left((Some(lane), _)) => {
                    lane.give_back();
                    self.transfer.lane_done(None);
                }
                _ => self.transfer.lane_done(None),
            }
        });
    }

    fn fill_warm(self, lane: Lease) {
        if self.slot.place().replace_cold() {
            let path = lane.path().name();
            tracing::debug!(path, transfer = %self.transfer.id(), "a warm lane takes the place of a cold one");
            self.fill(lane);
        } else {
            // It has gone meanwhile.
            lane.give_back();
            self.transfer.lane_done(None);
        }
    }

    fn fill(self, lane: Lease) {
        let Self { transfer, ring, taps, slot, fit } = self;
        if transfer.is_over() || !transfer.claim_instance(lane.instance()) {
            lane.give_back();
            return transfer.lane_done(None);
        }
        transfer.lane_round_trip(lane.path().round_trip());
        // A new one is better than one that has carried much.
        if !lane.is_warm() && !matches!(fit, Fit::Fresh { .. }) {
            slot.set_cold();
        }
        let place = slot.place().clone();
        slot.set_seated();
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

    #[test]
    fn one_transfer_at_a_time_probes() {
        let counts = LaneCounts::new(1, 32, false);
        let probe = counts.probe().unwrap();
        assert!(counts.probe().is_none());
        drop(probe);
        assert!(counts.probe().is_some());
    }
}
