//! The MPManager: sets up one transfer, with its ring, its crew of producers and its consumer.
//!
//! In: a request's head. Out: the root's response head and a [`Consumer`] for the body. One manager per core, over the
//! core's pools. Invariants: all lanes of a transfer lead to the same upstream process, and one that dies before the
//! answer is replaced by another; a path that is down is left out; every wait here has a deadline.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    pin::pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::{Either, join_all, select};
use tokio::sync::{Barrier, watch};

use super::{
    consumer::Consumer,
    crew::{Crew, LaneCounts, Place, Places},
    fetch_error::{FetchError, NoLaneCause},
    progress::Progress,
    queue::MpQueue,
    transfer::{Transfer, WINDOW_FRAMES},
    upload::RequestBody,
    upstreams,
    window::Usual,
};
use crate::{
    exec::{self, Core, Effort, Instant},
    http::account::Carried,
    lanes::{PathStatus, Pool, PoolConfig},
    wire::{
        frame::{MAX_HEAD_BYTES, Outcome},
        units::TransferId,
    },
};

/// How long a request waits for its first lane: longer than a dial over a relay that lost two SYNs. Paths that do not answer
/// are dialled again until then, and the last of these dials is waited for as long again at most.
pub(crate) const LANE_DEADLINE: Duration = Duration::from_secs(10);
/// Who starts a downstream does not wait for longer until it says that it is ready: five round trips of 400 ms, which the first
/// lanes and their ping take. A path that does not answer comes in when it does.
const FIRST_LANES_DEADLINE: Duration = Duration::from_secs(2);
/// How long a response head may take: more than the 30 s that the upstream gives the root, so that its answer, which
/// names the root, comes first.
pub(super) const HEAD_DEADLINE: Duration = Duration::from_secs(45);
/// A transfer whose lanes all died before the head is opened once more, on fresh lanes: idle lanes that a restarted
/// relay has forgotten look alive until they are used. And once more, where that took it to an upstream that died, too.
const TRIES: usize = 3;

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

/// A response that has begun.
pub struct Incoming {
    /// The root's response head as the upstream passed it on.
    pub head: Bytes,
    /// Its body. Dropping it cancels the transfer.
    pub consumer: Consumer,
    places: Places,
    _busy: Busy,
}

impl Incoming {
    /// For whoever wants to know afterwards what the lanes did for it.
    pub fn figures(&self) -> Figures {
        Figures {
            transfer: self.consumer.transfer().clone(),
            places: self.places.clone(),
            progress: self.consumer.progress(),
        }
    }
}

/// What is measured of a transfer; it may go on meanwhile.
pub struct Figures {
    transfer: Arc<Transfer>,
    pub(super) places: Places,
    progress: Rc<Progress>,
}

impl Figures {
    /// The figures now.
    pub fn carried(&self) -> Carried {
        Carried {
            shares: self.places.iter().map(|place| place.share()).collect(),
            reorder_depth: self.transfer.reorder_depth(),
            longest_stall: self.progress.longest_stall(),
        }
    }
}

/// What the managers of all cores share: transfers running on each core, for [`Placement::Auto`], whose turn it is among
/// upstreams, and where cores wait for each other at their end.
#[derive(Clone, Debug)]
pub struct Load {
    running: Arc<[AtomicUsize]>,
    /// Counts transfers, so that equal upstreams take turns.
    turn: Arc<AtomicUsize>,
    /// Counts attempts at them.
    begun: Arc<AtomicUsize>,
    usual_window: Arc<Usual>,
    ending: Arc<Barrier>,
}

impl Load {
    /// Of `cores` idle cores.
    pub fn new(cores: usize) -> Self {
        Self {
            running: (0..cores).map(|_| AtomicUsize::new(0)).collect(),
            turn: Arc::default(),
            begun: Arc::default(),
            usual_window: Arc::default(),
            ending: Arc::new(Barrier::new(cores)),
        }
    }

    fn enter(&self, core: Core) -> Busy {
        self.running[core.0].fetch_add(1, Ordering::Relaxed);
        self.begun.fetch_add(1, Ordering::Relaxed);
        Busy { load: self.clone(), core, effort: Effort::begin() }
    }

    /// What windows came to, and how many transfers run.
    fn windows(&self) -> (Arc<Usual>, usize) {
        (self.usual_window.clone(), self.running())
    }

    fn running(&self) -> usize {
        self.running.iter().map(|core| core.load(Ordering::Relaxed)).sum()
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

/// A transfer that runs, and what this core's thread has spent since it began.
#[derive(Debug)]
struct Busy {
    load: Load,
    core: Core,
    effort: Effort,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.load.running[self.core.0].fetch_sub(1, Ordering::Relaxed);
        if let Some(saturated) = self.effort.has_saturated() {
            CORE_SATURATED.set(saturated);
        }
    }
}

thread_local! {
    /// Whether the last transfer of this core left it no time.
    static CORE_SATURATED: Cell<bool> = const { Cell::new(false) };
}

thread_local! {
    /// The manager of this core, for lanes that another core asks for.
    static HERE: RefCell<Option<Rc<Manager>>> = const { RefCell::new(None) };
}

/// The configured paths, each the same as before as long as it stays.
pub type PathSet = Vec<Arc<PathStatus>>;

/// How transfers use their lanes.
#[derive(Clone, Copy, Debug)]
pub struct ManagerConfig {
    /// On which cores.
    pub placement: Placement,
    /// How long a transfer that has lost all its lanes waits for one: [`DESERTED_MAX`](super::crew::DESERTED_MAX), except
    /// in tests.
    pub deserted_max: Duration,
}

/// See the module's description.
pub struct Manager {
    pools: RefCell<Vec<Rc<Pool>>>,
    pool_config: PoolConfig,
    counts: Arc<LaneCounts>,
    config: ManagerConfig,
    load: Load,
    closing: Cell<bool>,
}

impl Manager {
    /// The manager of this core; there is one per core and process. It follows `paths` as they change: a new one is used
    /// by the next transfer, the lanes of one that is gone finish what they carry.
    pub fn start(
        mut paths: watch::Receiver<PathSet>,
        pool_config: PoolConfig,
        counts: Arc<LaneCounts>,
        config: ManagerConfig,
        load: Load,
    ) -> Rc<Self> {
        let (pools, closing) = (RefCell::default(), Cell::new(false));
        let manager = Rc::new(Self { pools, pool_config, counts, config, load, closing });
        manager.follow(&paths.borrow_and_update());
        HERE.with(|here| *here.borrow_mut() = Some(manager.clone()));
        let follower = manager.clone();
        exec::spawn(async move {
            while paths.changed().await.is_ok() {
                follower.follow(&paths.borrow_and_update());
            }
        });
        manager
    }

    /// Opens pools for paths that are new and closes those of paths that are gone.
    fn follow(&self, paths: &[Arc<PathStatus>]) {
        if self.closing.get() {
            return;
        }
        let mut pools = self.pools.borrow_mut();
        let gone = |pool: &mut Rc<Pool>| !paths.iter().any(|path| Arc::ptr_eq(path, pool.path()));
        for pool in pools.extract_if(.., gone) {
            pool.close();
            self.counts.forget(pool.path());
        }
        for path in paths {
            if !pools.iter().any(|pool| Arc::ptr_eq(path, pool.path())) {
                self.counts.remember(path);
                let pool = Pool::new(path.clone(), self.pool_config.clone());
                exec::spawn(pool.clone().keep());
                pools.push(pool);
            }
        }
    }

    /// Resolves once each path has its first lanes on this core or has failed to bring them, or after
    /// `FIRST_LANES_DEADLINE`.
    pub async fn first_lanes(&self) {
        let pools = self.pools.borrow().clone();
        let tried = join_all(pools.iter().map(|pool| pool.tried()));
        if exec::timeout(FIRST_LANES_DEADLINE, tried).await.is_err() {
            tracing::debug!("not all paths have brought a lane yet");
        }
    }

    /// The longest round trip of the paths that have lanes; zero if none is known.
    pub(super) fn longest_round_trip(&self) -> Duration {
        let pools = self.pools.borrow();
        let live = pools.iter().map(|pool| pool.path()).filter(|path| path.live_instance().is_some());
        live.map(|path| path.round_trip()).max().unwrap_or_default()
    }

    /// Whether all lanes of this core are idle.
    pub(super) fn is_at_rest(&self) -> bool {
        self.pools.borrow().iter().all(|pool| pool.is_at_rest())
    }

    /// Transfers that were begun so far, on all cores, and those of them that run.
    pub(super) fn traffic(&self) -> (usize, usize) {
        (self.load.begun.load(Ordering::Relaxed), self.load.running())
    }

    /// The one of this core, while it runs.
    pub(super) fn here() -> Option<Rc<Self>> {
        HERE.with(|here| here.borrow().clone())
    }

    /// The lanes of `path` on this core, unless it was removed.
    pub(super) fn pool(&self, path: &Arc<PathStatus>) -> Option<Rc<Pool>> {
        self.pools.borrow().iter().find(|pool| Arc::ptr_eq(pool.path(), path)).cloned()
    }

    /// Has the pools of this core look at their idle lanes; see [`Pool::look`].
    pub fn look() {
        if let Some(manager) = Self::here() {
            manager.pools.borrow().iter().for_each(|pool| pool.look());
        }
    }

    /// Whether lanes stand that lead to another upstream process than `instance`.
    pub(super) fn has_other_upstream(&self, instance: u64) -> bool {
        self.pools.borrow().iter().any(|pool| pool.path().leads_elsewhere(instance))
    }

    pub(super) fn counts(&self) -> &Arc<LaneCounts> {
        &self.counts
    }

    pub(super) fn config(&self) -> &ManagerConfig {
        &self.config
    }

    /// Waits until the clients of all cores are served, since lanes of this core may carry their transfers, then closes
    /// the idle lanes and those given back from now on. Every core must call it.
    pub async fn close(&self) {
        self.load.ending.wait().await;
        self.closing.set(true);
        for pool in self.pools.borrow().iter() {
            pool.close();
        }
    }

    /// Opens a transfer for `request` and waits for the response's head.
    ///
    /// # Errors
    /// [`FetchError`]; nothing was given to the client yet.
    pub async fn fetch(self: &Rc<Self>, request: Bytes) -> Result<Incoming, FetchError> {
        self.fetch_avoiding(request, None).await
    }

    /// The same, not over the upstream process `lost`, if there is another.
    ///
    /// # Errors
    /// [`FetchError`]; nothing was given to the client yet.
    pub async fn fetch_avoiding(
        self: &Rc<Self>,
        request: Bytes,
        mut lost: Option<u64>,
    ) -> Result<Incoming, FetchError> {
        if request.len() > MAX_HEAD_BYTES as usize {
            return Err(FetchError::TooLarge);
        }
        let started = Instant::now();
        let (mut tries, mut suspect_before) = (1, None);
        loop {
            let preferred = self.choose_upstream(lost);
            let unopened = match self.open(request.clone(), suspect_before, preferred, lost).await {
                Ok(incoming) => return Ok(incoming),
                Err(unopened) => unopened,
            };
            match (&unopened.error, unopened.instance.or(preferred)) {
                (FetchError::LanesLost { reason } | FetchError::NoLane { reason, .. }, Some(instance))
                    if tries < TRIES =>
                {
                    tracing::debug!(reason, "opened again on fresh lanes");
                    (lost, tries) = (Some(instance), tries + 1);
                }
                (error, _) if error.is_worth_another_dial(started) => {
                    tracing::debug!(%error, "dialled again");
                }
                _ => return Err(unopened.error),
            }
            suspect_before = Some(started);
        }
    }

    /// Opens a transfer for a request that must not be sent twice, with `body` behind it, and waits for the response's head. It
    /// has one lane, of the quickest path that has one, and is not opened again once that lane has been given the request:
    /// nobody knows what has become of it then.
    ///
    /// # Errors
    /// [`FetchError`]; nothing was given to the client yet.
    pub async fn fetch_once(
        self: &Rc<Self>,
        request: Bytes,
        mut body: Option<RequestBody>,
    ) -> Result<Incoming, FetchError> {
        let started = Instant::now();
        loop {
            let mut refused =
                FetchError::NoLane { cause: NoLaneCause::Refused, reason: "no path is configured".into() };
            let mut may_answer = false;
            let mut paths: Vec<_> = self.pools.borrow().iter().map(|pool| pool.path().clone()).collect();
            paths.sort_by_key(|path| (path.live_instance().is_none(), path.round_trip()));
            for path in paths {
                match self.fetch_over(path, &request, &mut body).await? {
                    Ok(incoming) => return Ok(incoming),
                    Err(error) => {
                        may_answer |= error.is_worth_another_dial(started);
                        refused = error;
                    }
                }
            }
            if !may_answer {
                return Err(refused);
            }
            tracing::debug!(error = %refused, "dialled again");
        }
    }

    /// Opens it on one lane of `path`. The inner error says that the upstream has not heard of it, and `body` is whole.
    async fn fetch_over(
        self: &Rc<Self>,
        path: Arc<PathStatus>,
        request: &Bytes,
        body: &mut Option<RequestBody>,
    ) -> Result<Result<Incoming, FetchError>, FetchError> {
        let (crew, mut consumer) = self.man(request.clone(), vec![Place::new(path, 1)], None)?;
        let busy = self.load.enter(exec::core());
        let transfer = crew.transfer.clone();
        if let Some(body) = body.take() {
            transfer.set_body(body);
        }
        crew.board(None);
        let mut sent = 0;
        let outcome = loop {
            match exec::timeout(HEAD_DEADLINE, consumer.head(&crew.places)).await {
                Ok(outcome) => break outcome,
                // A body takes its time; whoever reads it watches the client.
                Err(exec::Elapsed) if transfer.body_frames() > sent => sent = transfer.body_frames(),
                Err(exec::Elapsed) => break Err(FetchError::Deadline),
            }
        };
        match outcome {
            Ok(head) => Ok(Ok(Incoming { head, consumer, places: crew.places, _busy: busy })),
            Err(error) if transfer.was_opened() => Err(error),
            Err(error) => {
                *body = transfer.take_body();
                Ok(Err(error))
            }
        }
    }

    fn choose_upstream(&self, avoided: Option<u64>) -> Option<u64> {
        let pools = self.pools.borrow();
        let live = pools.iter().filter_map(|pool| {
            let path = pool.path();
            Some((path.live_instance()?, path.round_trip()))
        });
        upstreams::choose(live, avoided, self.load.turn.fetch_add(1, Ordering::Relaxed))
    }

    /// Opens it on paths that lead to the `preferred` upstream process, if there is one. Idle lanes that were not used
    /// since `suspect_before` are not trusted, if that is given. While it has no lane it takes any that does not lead to `lost`.
    async fn open(
        self: &Rc<Self>,
        request: Bytes,
        suspect_before: Option<Instant>,
        preferred: Option<u64>,
        lost: Option<u64>,
    ) -> Result<Incoming, Unopened> {
        let busy = self.load.enter(exec::core());
        let place = |pool: &Rc<Pool>| Place::new(pool.path().clone(), self.counts.wanted(pool.path()));
        let places: Places = self.pools.borrow().iter().map(place).collect();
        let (crew, mut consumer) = self.man(request, places.clone(), preferred)?;
        let transfer = crew.transfer.clone();
        crew.board(suspect_before);
        let outcome = {
            let (head, silence) = (pin!(consumer.head(&places)), pin!(crew.silence()));
            let others = pin!(crew.seat_any(lost));
            match exec::timeout(HEAD_DEADLINE, select(head, select(silence, others))).await {
                Ok(Either::Left((head, _))) => head,
                Ok(Either::Right((Either::Right((never, _)), _))) => match never {},
                Ok(Either::Right((Either::Left((reason, _)), _))) => {
                    Err(FetchError::LanesLost { reason: reason.into() })
                }
                Err(exec::Elapsed) => Err(FetchError::Deadline),
            }
        };
        let head = outcome.map_err(|error| Unopened { error, instance: transfer.instance() })?;
        crew.start();
        Ok(Incoming { head, consumer, places, _busy: busy })
    }

    /// The two ends of a new transfer over `places`, whose lanes are not seated yet.
    fn man(
        self: &Rc<Self>,
        request: Bytes,
        places: Places,
        preferred: Option<u64>,
    ) -> Result<(Crew, Consumer), FetchError> {
        let mut id = [0; 8];
        exec::fill_random(&mut id)?;
        let transfer = Transfer::new(TransferId(u64::from_be_bytes(id)), request);
        let (ring, parcels) = MpQueue::new(WINDOW_FRAMES)?;
        let taps = Rc::new(RefCell::new(Vec::new()));
        let cores = self.load.place(self.config.placement, exec::core(), CORE_SATURATED.get());
        let consumer = Consumer::new(transfer.clone(), parcels, taps.clone(), self.load.windows());
        Ok((Crew { manager: self.clone(), transfer, ring, taps, places, cores, preferred }, consumer))
    }
}

/// Why an open has failed, and the upstream process that it had reached.
struct Unopened {
    error: FetchError,
    instance: Option<u64>,
}

impl<E: Into<FetchError>> From<E> for Unopened {
    fn from(error: E) -> Self {
        Self { error: error.into(), instance: None }
    }
}

impl Consumer {
    /// Waits for the head, or for the certainty that none will come over `places`.
    async fn head(&mut self, places: &Places) -> Result<Bytes, FetchError> {
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
            } else if transfer.was_busy() {
                FetchError::Busy
            } else {
                let may_answer = places.iter().any(|place| place.may_answer());
                let cause = if may_answer { NoLaneCause::Unanswered } else { NoLaneCause::Refused };
                FetchError::NoLane { cause, reason }
            }))
        })
        .await
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
