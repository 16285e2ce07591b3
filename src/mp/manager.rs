//! The MPManager: sets up one transfer, with its ring, its producers and its consumer.
//!
//! In: a request's head. Out: the root's response head and a [`Consumer`] for the body. One manager per core, over the
//! core's pools. Invariants: all lanes of a transfer lead to the same upstream process; a path that is down is left
//! out; every wait here has a deadline.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    pin::pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::{Either, select};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::Barrier;

use super::{
    consumer::Consumer,
    producer::{Delivery, Producer},
    queue::{self, MpQueue},
    tap::Tap,
    transfer::{Parcel, Transfer, WINDOW_FRAMES},
};
use crate::{
    exec::{self, Core},
    lanes::{Lease, Pool},
    wire::{frame::Outcome, units::TransferId},
};

/// How long a request waits for its first lane: longer than a dial over a relay that lost two SYNs.
const LANE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a response head may take: more than the 30 s that the upstream gives the root, so that its answer, which
/// names the root, comes first.
const HEAD_DEADLINE: Duration = Duration::from_secs(45);
/// A transfer whose lanes all died before the head is opened once more, on fresh lanes: idle lanes that a restarted
/// relay has forgotten look alive until they are used.
const TRIES: usize = 2;

/// Which cores the lanes of a transfer live on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Placement {
    /// Local; spread over idle cores when the transfer before has saturated the client's core.
    #[default]
    Auto,
    /// All lanes on the core that serves the client.
    Local,
    /// Each lane on another core, as far as there are cores.
    Spread,
}

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No path could be used.
    #[error("no path leads to the upstream now: {reason}")]
    NoLane {
        /// What the last one said.
        reason: String,
    },
    /// Every lane is busy and none became free.
    #[error("all lanes are busy: none became free within {} s", LANE_DEADLINE.as_secs())]
    Busy,
    /// The lanes were lost before the answer.
    #[error("the lanes were lost before the answer: {reason}")]
    LanesLost {
        /// What the last one said.
        reason: String,
    },
    /// The upstream gave up before the answer.
    #[error("{reason}")]
    Aborted {
        /// What it said.
        reason: String,
    },
    /// The answer did not come.
    #[error("no answer within {} s", HEAD_DEADLINE.as_secs())]
    Deadline,
    /// The kernel has no randomness.
    #[error("no randomness for a transfer number: {0}")]
    Random(#[from] getrandom::Error),
    /// The ring cannot be made.
    #[error(transparent)]
    Queue(#[from] queue::CapacityError),
}

/// A response that has begun.
pub struct Incoming {
    /// The root's response head as the upstream passed it on.
    pub head: Bytes,
    /// Its body. Dropping it cancels the transfer.
    pub consumer: Consumer,
    _busy: Busy,
}

/// What the managers of all cores share: transfers running on each core, for [`Placement::Auto`], and where cores wait
/// for each other at their end.
#[derive(Clone, Debug)]
pub struct Load {
    running: Arc<[AtomicUsize]>,
    ending: Arc<Barrier>,
}

impl Load {
    /// Of `cores` idle cores.
    pub fn new(cores: usize) -> Self {
        Self {
            running: (0..cores).map(|_| AtomicUsize::new(0)).collect(),
            ending: Arc::new(Barrier::new(cores)),
        }
    }

    fn enter(&self, core: Core) -> Busy {
        self.running[core.0].fetch_add(1, Ordering::Relaxed);
        Busy { load: self.clone(), core, began: Instant::now(), cpu_began: thread_cpu_time() }
    }

    /// The cores for the lanes of a transfer whose client is on `here`; the first is `here`. `saturated` says that the
    /// transfer before this one left this core no time.
    fn place(&self, placement: Placement, here: Core, saturated: bool) -> Vec<Core> {
        let others = (1..self.running.len()).map(|step| Core((here.0 + step) % self.running.len()));
        let idle = |core: &Core| self.running[core.0].load(Ordering::Relaxed) == 0;
        let mut cores = vec![here];
        match placement {
            Placement::Local => {}
            Placement::Spread => cores.extend(others),
            // Handing frames to another core costs half as much again: only a core that is the bottleneck gains by it.
            Placement::Auto if saturated && idle(&here) => cores.extend(others.filter(idle)),
            Placement::Auto => {}
        }
        cores
    }
}

/// A transfer shorter than this says nothing of its core's load.
const LOAD_TIME_MIN: Duration = Duration::from_millis(20);
/// A core that ran for this share of a transfer's time was its bottleneck.
const SATURATED: f64 = 0.85;

/// A transfer that runs, and what this core's thread has spent since it began.
#[derive(Debug)]
struct Busy {
    load: Load,
    core: Core,
    began: Instant,
    cpu_began: Duration,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.load.running[self.core.0].fetch_sub(1, Ordering::Relaxed);
        let time = self.began.elapsed();
        if time >= LOAD_TIME_MIN {
            let cpu_time = thread_cpu_time().saturating_sub(self.cpu_began);
            CORE_SATURATED.set(cpu_time.as_secs_f64() > time.as_secs_f64() * SATURATED);
        }
    }
}

/// CPU time of this core's thread, clock_gettime(2).
fn thread_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

thread_local! {
    /// Whether the last transfer of this core left it no time.
    static CORE_SATURATED: Cell<bool> = const { Cell::new(false) };
}

thread_local! {
    /// The manager of this core, for lanes that another core asks for.
    static HERE: RefCell<Option<Rc<Manager>>> = const { RefCell::new(None) };
}

/// See the module's description.
pub struct Manager {
    pools: Vec<Rc<Pool>>,
    lanes_per_path: usize,
    placement: Placement,
    load: Load,
}

impl Manager {
    /// The manager of this core; there is one per core and process.
    pub fn start(pools: Vec<Rc<Pool>>, lanes_per_path: usize, placement: Placement, load: Load) -> Rc<Self> {
        for pool in &pools {
            exec::spawn(pool.clone().keep());
        }
        let manager = Rc::new(Self { pools, lanes_per_path, placement, load });
        HERE.with(|here| *here.borrow_mut() = Some(manager.clone()));
        manager
    }

    /// Waits until the clients of all cores are served, since lanes of this core may carry their transfers, then closes
    /// the idle lanes and those given back from now on. Every core must call it.
    pub async fn close(&self) {
        self.load.ending.wait().await;
        for pool in &self.pools {
            pool.close();
        }
    }

    /// Opens a transfer for `request` and waits for the response's head.
    ///
    /// # Errors
    /// [`FetchError`]; nothing was given to the client yet.
    pub async fn fetch(self: &Rc<Self>, request: Bytes) -> Result<Incoming, FetchError> {
        let mut outcome = Err(FetchError::Busy);
        let started = Instant::now();
        for attempt in 0..TRIES {
            outcome = self.open(request.clone(), (attempt > 0).then_some(started)).await;
            match &outcome {
                Err(FetchError::LanesLost { reason }) => {
                    tracing::debug!(reason, "opened again on fresh lanes")
                }
                _ => break,
            }
        }
        outcome
    }

    /// Idle lanes that were not used since `suspect_before` are not trusted, if that is given.
    async fn open(
        self: &Rc<Self>,
        request: Bytes,
        suspect_before: Option<Instant>,
    ) -> Result<Incoming, FetchError> {
        let mut id = [0; 8];
        getrandom::fill(&mut id)?;
        let transfer = Transfer::new(TransferId(u64::from_be_bytes(id)), request);
        let (ring, parcels) = MpQueue::new(WINDOW_FRAMES)?;
        let taps = Rc::new(RefCell::new(Vec::new()));
        let here = exec::core();
        let cores = self.load.place(self.placement, here, CORE_SATURATED.get());
        let busy = self.load.enter(here);
        let places: Places = self.pools.iter().map(|_| Arc::default()).collect();
        for lane in 0..self.lanes_per_path * self.pools.len() {
            let path = lane % self.pools.len();
            let (transfer, ring, taps) = (transfer.clone(), ring.clone(), Some(taps.clone()));
            let place = Taken::new(&places[path]);
            self.seat(&cores, lane, path, Seat { transfer, ring, taps, place, suspect_before });
        }
        let mut consumer = Consumer::new(transfer.clone(), parcels, taps.clone());
        let head = exec::timeout(HEAD_DEADLINE, consumer.head())
            .await
            .map_err(|exec::Elapsed| FetchError::Deadline)??;
        let crew = Crew { manager: self.clone(), transfer, ring, taps, places, cores };
        crew.start();
        Ok(Incoming { head, consumer, _busy: busy })
    }

    /// Seats one more lane of path number `path`, on the core that lane number `lane` belongs to.
    fn seat(&self, cores: &[Core], lane: usize, path: usize, seat: Seat) {
        let core = cores[lane % cores.len()];
        seat.transfer.lane_expected();
        if core == exec::core() {
            seat.take(&self.pools[path]);
        } else {
            invite(core, path, Seat { taps: None, ..seat });
        }
    }
}

impl Consumer {
    /// Waits for the head, or for the certainty that none will come.
    async fn head(&mut self) -> Result<Bytes, FetchError> {
        let transfer = self.transfer().clone();
        poll_fn(|cx| {
            transfer.register(cx);
            let live = transfer.live();
            if let Some(head) = transfer.head() {
                return Poll::Ready(Ok(head));
            }
            if let Some(reason) = transfer.failure() {
                return Poll::Ready(Err(FetchError::Aborted { reason }));
            }
            match transfer.end() {
                Some(end) if end.outcome == Outcome::Aborted => {
                    return Poll::Ready(Err(FetchError::Aborted { reason: end.reason }));
                }
                _ if live > 0 => return Poll::Pending,
                _ => {}
            }
            let reason = transfer.last_loss().unwrap_or_else(|| "no lane brought an answer".into());
            Poll::Ready(Err(if transfer.had_lane() {
                FetchError::LanesLost { reason }
            } else {
                FetchError::NoLane { reason }
            }))
        })
        .await
    }
}

/// What a transfer has of one path.
#[derive(Debug, Default)]
pub(super) struct Place {
    /// Lanes, and dials that may become lanes.
    taken: AtomicUsize,
    /// Lanes.
    lanes: AtomicUsize,
    /// Payload that has come.
    pub(super) bytes: Arc<AtomicU64>,
}

type Places = Vec<Arc<Place>>;

/// One lane's, or dial's, part of a [`Place`].
struct Taken(Arc<Place>);

impl Taken {
    fn new(place: &Arc<Place>) -> Self {
        place.taken.fetch_add(1, Ordering::SeqCst);
        Self(place.clone())
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Replaces the lanes that a running transfer loses.
struct Crew {
    manager: Rc<Manager>,
    transfer: Arc<Transfer>,
    ring: queue::Producer<Parcel>,
    taps: Rc<RefCell<Vec<Rc<Tap>>>>,
    places: Places,
    cores: Vec<Core>,
}

/// Between two looks at the lanes of a transfer: a lost one is missed by nobody sooner, since the others carry its frames.
const CREW_PAUSE: Duration = Duration::from_millis(250);
/// A path whose lanes are lost or cannot be dialled is tried again after one pause, then after two and so on up to this
/// many: it is used again at most a second after it is back.
const CREW_PAUSES_MAX: u32 = 4;
/// How long a transfer without lanes is kept: as long as the upstream keeps it.
const DESERTED_MAX: Duration = Duration::from_secs(30);

impl Crew {
    /// Runs until nobody waits for the transfer, or until it has had no lane for too long. While it runs, that no lane is
    /// left does not mean that none will come.
    fn start(self) {
        self.transfer.lane_expected();
        exec::spawn(async move {
            self.work().await;
            self.transfer.lane_done(None);
        });
    }

    async fn work(&self) {
        let mut rests = vec![(0, 0); self.places.len()];
        let mut had_lane_at = Instant::now();
        while exec::timeout(CREW_PAUSE, self.transfer.over()).await.is_err() {
            if self.places.iter().any(|place| place.lanes.load(Ordering::SeqCst) > 0) {
                had_lane_at = Instant::now();
            } else if had_lane_at.elapsed() > DESERTED_MAX {
                return;
            }
            for (path, (rest, rest_next)) in rests.iter_mut().enumerate() {
                let missing = self
                    .manager
                    .lanes_per_path
                    .saturating_sub(self.places[path].taken.load(Ordering::SeqCst));
                if missing == 0 {
                    (*rest, *rest_next) = (0, 0);
                } else if *rest > 0 {
                    *rest -= 1;
                } else {
                    *rest = *rest_next;
                    *rest_next = (*rest_next + 1).min(CREW_PAUSES_MAX - 1);
                    (0..missing).for_each(|lane| self.seat(path, lane));
                }
            }
        }
    }

    fn seat(&self, path: usize, lane: usize) {
        let (transfer, ring) = (self.transfer.clone(), self.ring.clone());
        let (taps, place) = (Some(self.taps.clone()), Taken::new(&self.places[path]));
        let lane = lane * self.places.len() + path;
        self.manager.seat(
            &self.cores,
            lane,
            path,
            Seat { transfer, ring, taps, place, suspect_before: None },
        );
    }
}

/// A place in a transfer for one lane.
struct Seat {
    transfer: Arc<Transfer>,
    ring: queue::Producer<Parcel>,
    /// The consumer's taps, if it is on this core.
    taps: Option<Rc<RefCell<Vec<Rc<Tap>>>>>,
    place: Taken,
    /// Idle lanes that were not used since then are closed instead of leased.
    suspect_before: Option<Instant>,
}

/// Asks `core` to take a seat for a lane of path number `path`.
fn invite(core: Core, path: usize, seat: Seat) {
    let Seat { transfer, ring, place, suspect_before, .. } = seat;
    let told = transfer.clone();
    let letter = move || {
        let manager = HERE.with(|here| here.borrow().clone());
        match manager {
            Some(manager) => {
                Seat { transfer, ring, taps: None, place, suspect_before }.take(&manager.pools[path]);
            }
            // The core has not started or has ended.
            None => transfer.lane_done(None),
        }
    };
    if exec::post(core, Box::new(letter)).is_err() {
        told.lane_done(None);
    }
}

impl Seat {
    /// Seats an idle lane at once, or the next one that stands.
    fn take(self, pool: &Rc<Pool>) {
        let transfer = &self.transfer;
        if let Some(moment) = self.suspect_before {
            pool.close_quiet_since(moment);
        }
        if let Some(lane) = pool.lease_idle(transfer.instance()) {
            return self.seat(lane);
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
                Some(Ok(Ok(lane))) => self.seat(lane),
                Some(Ok(Err(error))) => self.transfer.lane_done(Some(error.to_string())),
                Some(Err(exec::Elapsed)) => self.transfer.lane_done(Some(FetchError::Busy.to_string())),
                None => self.transfer.lane_done(None),
            }
        });
    }

    fn seat(self, lane: Lease) {
        let Self { transfer, ring, taps, place, .. } = self;
        let carried = place.0.bytes.clone();
        if transfer.is_over() || !transfer.claim_instance(lane.instance()) {
            lane.give_back();
            return transfer.lane_done(None);
        }
        transfer.lane_round_trip(lane.path().round_trip());
        let delivery = match taps {
            None => Delivery::Handed,
            Some(taps) => {
                let tap = Tap::new(lane.socket().clone(), lane.path().clone(), carried.clone());
                let index = {
                    let mut taps = taps.borrow_mut();
                    // In the place of a lost lane's, which would hold its descriptor to the end.
                    match taps.iter().position(|old| old.is_spent()) {
                        Some(index) => {
                            taps[index] = tap.clone();
                            index
                        }
                        None => {
                            taps.push(tap.clone());
                            taps.len() - 1
                        }
                    }
                };
                Delivery::Tapped { tap, index, taps }
            }
        };
        let producer = Producer::new(lane, transfer, ring, delivery, carried);
        exec::spawn(async move {
            place.0.lanes.fetch_add(1, Ordering::SeqCst);
            producer.run().await;
            place.0.lanes.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placement_follows_the_load() {
        let load = Load::new(4);
        let cores = |placement, here| {
            load.place(placement, Core(here), true).iter().map(|core| core.0).collect::<Vec<_>>()
        };
        assert_eq!(cores(Placement::Local, 2), [2]);
        assert_eq!(cores(Placement::Spread, 2), [2, 3, 0, 1]);
        assert_eq!(cores(Placement::Auto, 2), [2, 3, 0, 1]);
        let busy = load.enter(Core(3));
        assert_eq!(cores(Placement::Auto, 2), [2, 0, 1]);
        assert_eq!(cores(Placement::Auto, 3), [3]);
        drop(busy);
        assert_eq!(cores(Placement::Auto, 3), [3, 0, 1, 2]);
        assert_eq!(load.place(Placement::Auto, Core(3), false), [Core(3)], "a core with time to spare");
    }
}
