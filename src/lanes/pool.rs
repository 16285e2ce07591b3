//! The lanes of one path on one core: warm ones kept, dead ones found, new ones dialled.
//!
//! In: leases asked for by the MPManager. Out: [`Lane`]s; and, from [`Pool::keep`], pings, reconnects with backoff and
//! the closing of lanes nobody needs. Invariants: at most [`PoolConfig::lanes_max`] lanes of a path stand on a core, those
//! that slow clients keep not counted up to [`SLOW_SHARE`] times as many;
//! who waits for a lane waits in order of arrival, but whoever has none goes before those who want one more.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    pin::pin,
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

mod dial;
mod dial_error;
mod hang_up;
mod keep;
mod lease;
mod moving;

pub use dial_error::DialError;
use futures_util::future::{Either, select};
pub use lease::Lease;
use tokio::sync::{Notify, oneshot};

use super::{Lane, PathStatus};
use crate::{
    exec::{self, Instant},
    net::{Congestion, Limit, Names},
    wire::key_ring::KeyRing,
};

/// A path that does not bring a lane within this time is silent: one lost SYN (1 s) and a few long round trips.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);
/// Once nobody waits for a transfer any more, its END must come within this time or the lane is closed: a round trip of
/// the longest path and the time that what is in flight needs on a slow one.
const END_DEADLINE: Duration = Duration::from_secs(5);
/// The last lanes of transfers whose clients are slow stand idle most of the time: they cost a descriptor and what is left
/// unread in them. Up to so many times [`PoolConfig::lanes_max`] keep no others waiting.
const SLOW_SHARE: usize = 3;
/// Requests waiting for a lane of one path on one core; more would not be served before their deadline.
const WAITING_MAX: usize = 4096;

/// What all pools of a process share.
#[derive(Clone, Debug)]
pub struct PoolConfig {
    /// The pre-shared keys.
    pub keys: Arc<KeyRing>,
    /// Congestion control of lanes.
    pub congestion: Congestion,
    /// Who is asked about the first hop of a path.
    pub names: Names,
    /// Lanes kept standing per path and core, so that a request finds one open.
    pub lanes_warm: usize,
    /// Lanes of a path that may stand on a core at once, besides those that slow clients keep.
    pub lanes_max: usize,
}

/// See the module's description. Bound to its core.
pub struct Pool {
    path: Arc<PathStatus>,
    config: PoolConfig,
    idle: RefCell<Vec<Rc<Lane>>>,
    /// Lanes that still bring the rest of a transfer nobody waits for; they may be leased again already.
    draining: RefCell<Vec<Draining>>,
    /// Lanes that stand or are being dialled.
    open: Cell<usize>,
    /// Lanes that are being dialled.
    dialling: Cell<usize>,
    /// Lanes on loan that slow clients keep.
    slow: Cell<usize>,
    waiting: RefCell<VecDeque<Waiter>>,
    /// Itself, for the dials it starts.
    this: Weak<Self>,
    /// Wakes the keeper before its time: a lane was lost.
    disturbed: Notify,
    /// A lane is on the shelf that is not watched yet.
    shelved: Notify,
    /// The first warm lanes stand, or could not be had.
    tried: Tried,
    closing: Cell<bool>,
}

/// Whether something was done for the first time.
#[derive(Default)]
struct Tried {
    is_over: Cell<bool>,
    told: Notify,
}

impl Tried {
    fn set(&self) {
        self.is_over.set(true);
        self.told.notify_waiters();
    }

    async fn wait(&self) {
        while !self.is_over.get() {
            // Nothing runs in between on this core.
            self.told.notified().await;
        }
    }
}

/// Who waits for a lane.
struct Waiter {
    lease: oneshot::Sender<Result<Lease, DialError>>,
    /// Whether it has no other lane meanwhile.
    is_urgent: Box<dyn Fn() -> bool>,
}

/// A lane that is being drained, and what tells the task that does it to let go. Each time has its own: the task of an
/// earlier one may not have run yet.
struct Draining {
    lane: Rc<Lane>,
    taken: Rc<Notify>,
}

/// A lane's place among those that may stand; given back when the dial fails or is dropped.
struct Place {
    pool: Rc<Pool>,
    /// The lane stands: the place is the lane's now.
    stands: bool,
}

impl Place {
    fn take(pool: &Rc<Pool>) -> Self {
        pool.open.set(pool.open.get() + 1);
        pool.dialling.set(pool.dialling.get() + 1);
        Self { pool: pool.clone(), stands: false }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pool.dialling.set(self.pool.dialling.get() - 1);
        if !self.stands {
            self.pool.open.set(self.pool.open.get() - 1);
        }
    }
}

impl Pool {
    /// A pool without lanes; [`Pool::keep`] fills it.
    pub fn new(path: Arc<PathStatus>, config: PoolConfig) -> Rc<Self> {
        Rc::new_cyclic(|this| Self {
            path,
            config,
            idle: RefCell::default(),
            draining: RefCell::default(),
            open: Cell::new(0),
            dialling: Cell::new(0),
            slow: Cell::new(0),
            waiting: RefCell::default(),
            this: this.clone(),
            disturbed: Notify::new(),
            shelved: Notify::new(),
            tried: Tried::default(),
            closing: Cell::new(false),
        })
    }

    /// The path of all its lanes.
    pub fn path(&self) -> &Arc<PathStatus> {
        &self.path
    }

    fn lease(&self, lane: Rc<Lane>) -> Lease {
        lane.lease_began();
        Lease::new(lane, self.this.clone())
    }

    /// An idle lane, of the warmest the most recently used one (its congestion window is the freshest) unless that will pause
    /// soon, if one stands that leads to `instance` (to any, if none is named).
    ///
    /// Rather than a worse one it is one that has only the END of the transfer before to bring, and rather than none one that
    /// has the rest of its body to bring, too: it is in order, and as warm as any.
    pub fn lease_idle(&self, instance: Option<u64>) -> Option<Lease> {
        let fits = |lane: &Rc<Lane>| instance.is_none_or(|wanted| wanted == lane.instance());
        // It may have been closed by the other side.
        self.lease_best(fits).or_else(|| self.lease_shelved(fits)).or_else(|| self.lease_draining(fits))
    }

    /// A warm one, as [`Pool::lease_idle`] prefers it; none if no such lane is idle.
    pub fn lease_warm(&self, instance: Option<u64>) -> Option<Lease> {
        let fits =
            |lane: &Rc<Lane>| lane.is_warm() && instance.is_none_or(|wanted| wanted == lane.instance());
        self.lease_best(fits).or_else(|| self.lease_shelved(fits))
    }

    /// Of those that `fits`, and that bring no more than an END of a transfer before.
    fn lease_best(&self, fits: impl Fn(&Rc<Lane>) -> bool) -> Option<Lease> {
        let ends = |lane: &Rc<Lane>| fits(lane) && lane.only_ends_left();
        let shelved = self.idle.borrow().iter().filter(|lane| fits(lane)).map(|lane| lane.warmth()).max();
        let ending = {
            let draining = self.draining.borrow();
            let lanes = draining.iter().map(|draining| &draining.lane).filter(|lane| ends(lane));
            lanes.map(|lane| lane.warmth()).max()
        };
        if ending > shelved {
            self.lease_draining(|lane| ends(lane) && Some(lane.warmth()) == ending)
        } else {
            self.lease_shelved(|lane| fits(lane) && Some(lane.warmth()) == shelved)
        }
    }

    fn lease_shelved(&self, fits: impl Fn(&Rc<Lane>) -> bool) -> Option<Lease> {
        loop {
            let found = self.idle.borrow().iter().rposition(&fits)?;
            let lane = self.idle.borrow_mut().remove(found);
            self.note_warmth();
            if lane.is_quiet() {
                return Some(self.lease(lane));
            }
            tracing::debug!(path = self.path.name(), "an idle lane had been closed by the other side");
            drop(lane);
            self.lane_gone();
        }
    }

    fn lease_draining(&self, fits: impl Fn(&Rc<Lane>) -> bool) -> Option<Lease> {
        let Draining { lane, taken } = {
            let mut draining = self.draining.borrow_mut();
            let found = draining.iter().position(|draining| fits(&draining.lane))?;
            draining.remove(found)
        };
        self.note_warmth();
        taken.notify_one();
        Some(self.lease(lane))
    }

    /// Closes idle lanes that were not used since `moment`, and those that wait for the END of a transfer from before.
    pub fn close_quiet_since(&self, moment: Instant) {
        let mut old = self.idle.borrow_mut().extract_if(.., |lane| lane.quiet_since() < moment).count();
        for drained in
            self.draining.borrow_mut().extract_if(.., |drained| drained.lane.quiet_since() < moment)
        {
            // Its task holds the lane until it hears this.
            drained.taken.notify_one();
            old += 1;
        }
        self.note_warmth();
        for _ in 0..old {
            self.lane_gone();
        }
    }

    /// The next lane that is given back or dialled; a dial is started if there is room for one more lane. Who gives up
    /// waiting leaves the dial running: its lane is shelved for the next. Whoever waits while `is_urgent` holds goes before
    /// the others.
    ///
    /// # Errors
    /// [`DialError`]: the path is down, or too many wait already. The caller bounds the wait.
    pub async fn lease_next(&self, is_urgent: impl Fn() -> bool + 'static) -> Result<Lease, DialError> {
        let busy = || DialError::Busy { path: self.path.name().to_owned(), max: self.config.lanes_max };
        let (send, receive) = oneshot::channel();
        {
            let mut waiting = self.waiting.borrow_mut();
            waiting.retain(|waiter| !waiter.lease.is_closed());
            if waiting.len() >= WAITING_MAX || self.closing.get() {
                return Err(busy());
            }
            waiting.push_back(Waiter { lease: send, is_urgent: Box::new(is_urgent) });
        }
        if !self.has_place() {
            Limit::Lanes.hit();
        }
        self.dial_for_waiter();
        receive.await.unwrap_or_else(|_| Err(busy()))
    }

    /// Whether a lane is idle that leads elsewhere than to `instance`, if that is named.
    pub fn has_idle_beside(&self, instance: Option<u64>) -> bool {
        self.idle.borrow().iter().any(|lane| Some(lane.instance()) != instance)
    }

    /// Whether all lanes that stand are idle, with nothing on its way to them.
    pub fn is_at_rest(&self) -> bool {
        self.idle.borrow().len() + self.dialling.get() == self.open.get()
    }

    /// Lanes that are being dialled.
    pub fn dialling(&self) -> usize {
        self.dialling.get()
    }

    /// A lane that is dialled for the caller; none if none may stand, or the dial fails.
    pub async fn lease_fresh(self: &Rc<Self>) -> Option<Lease> {
        if !self.has_place() || self.closing.get() {
            return None;
        }
        let dialled = self.dial(Place::take(self)).await;
        if dialled.is_err() {
            // Others may have found no room meanwhile.
            self.dial_if_awaited();
        }
        dialled.ok().map(|lane| self.lease(Rc::new(lane)))
    }

    /// Starts a dial for a waiter, if one more lane may stand.
    fn dial_for_waiter(&self) {
        let Some(pool) = self.this.upgrade().filter(|pool| pool.has_place()) else { return };
        // Taken before the dial begins, or several requests of one instant would all find room.
        let place = Place::take(&pool);
        let dial = async move {
            match pool.dial(place).await {
                Ok(lane) => pool.shelve(Rc::new(lane)),
                Err(error) => pool.dial_failed(error),
            }
        };
        exec::spawn(dial);
    }

    /// Tells who waits longest. While lanes stand, nobody is told: they come back, and a path that is too busy for one
    /// more lane must not turn away requests that those can carry. Where nobody has answered, somebody may the next time: a
    /// dial that was not answered has taken seconds, so that there are few of them while anybody waits.
    fn dial_failed(&self, error: DialError) {
        if self.open.get() > self.dialling.get() {
            self.waiting.borrow_mut().retain(|waiter| !waiter.lease.is_closed());
            if error.is_unanswered() && self.waiting.borrow().len() > self.dialling.get() {
                self.dial_for_waiter();
            }
            return;
        }
        if let Some(waiter) = self.next_waiter() {
            // Whoever gave up does not need to know.
            let _ = waiter.lease.send(Err(error));
        }
        // Those who waited for a lane that is gone.
        if self.dialling.get() == 0 && !self.waiting.borrow().is_empty() {
            self.dial_for_waiter();
        }
    }

    fn next_waiter(&self) -> Option<Waiter> {
        let mut waiting = self.waiting.borrow_mut();
        waiting.retain(|waiter| !waiter.lease.is_closed());
        let urgent = waiting.iter().position(|waiter| (waiter.is_urgent)());
        waiting.remove(urgent.unwrap_or(0))
    }

    /// One more lane may stand.
    fn has_place(&self) -> bool {
        let max = self.config.lanes_max;
        self.open.get().saturating_sub(self.slow.get().min(SLOW_SHARE * max)) < max
    }

    /// As many lanes stand as may, and somebody waits who has none.
    pub fn is_short(&self) -> bool {
        let awaited = |waiter: &Waiter| !waiter.lease.is_closed() && (waiter.is_urgent)();
        !self.has_place() && self.waiting.borrow().iter().any(awaited)
    }

    /// Takes back a lane that is in step: to who waits longest, else to the shelf.
    fn shelve(&self, lane: Rc<Lane>) {
        // The other side may have closed behind its last frame; it waits for us to do the same.
        if self.closing.get() || (!lane.is_stale() && !lane.is_quiet()) {
            drop(lane);
            return self.lane_gone();
        }
        match self.next_waiter() {
            // A waiter that gives up in this instant drops the lease, which closes the lane.
            Some(waiter) => drop(waiter.lease.send(Ok(self.lease(lane)))),
            None if lane.is_stale() => self.drain(lane),
            None => {
                if !lane.is_watched.get() {
                    self.shelved.notify_one();
                }
                self.idle.borrow_mut().push(lane);
                self.note_warmth();
            }
        }
    }

    /// Tells the other cores whether their clients find a warm lane here.
    fn note_warmth(&self) {
        let is_warm = self.idle.borrow().iter().any(|lane| lane.is_warm())
            || self
                .draining
                .borrow()
                .iter()
                .any(|Draining { lane, .. }| lane.is_warm() && lane.only_ends_left());
        self.path.set_warm(exec::core(), is_warm);
    }

    /// Waits for the END of the transfer before, unless the lane is leased meanwhile.
    fn drain(&self, lane: Rc<Lane>) {
        let Some(pool) = self.this.upgrade() else { return };
        let taken = Rc::new(Notify::new());
        self.draining.borrow_mut().push(Draining { lane: lane.clone(), taken: taken.clone() });
        self.note_warmth();
        exec::spawn(async move {
            let outcome = {
                let caught_up = pin!(exec::timeout(END_DEADLINE, lane.catch_up()));
                match select(pin!(taken.notified()), caught_up).await {
                    Either::Left(_) => return,
                    Either::Right((outcome, _)) => outcome,
                }
            };
            let is_ours = {
                let mut draining = pool.draining.borrow_mut();
                let found = draining.iter().position(|other| Rc::ptr_eq(&other.taken, &taken));
                found.map(|found| draining.swap_remove(found)).is_some()
            };
            if !is_ours {
                return;
            }
            pool.note_warmth();
            match outcome {
                Ok(Ok(())) => return pool.shelve(lane),
                Ok(Err(error)) => tracing::debug!("{error}"),
                Err(exec::Elapsed) => tracing::debug!(
                    path = pool.path.name(),
                    "a transfer that nobody waits for was not ended in time; its lane is closed"
                ),
            }
            drop(lane);
            pool.lane_gone();
        });
    }

    /// Has the keeper look at the idle lanes now if the other side has closed one of them, which it would find when the
    /// next ping is due.
    pub fn look(&self) {
        if self.idle.borrow().iter().any(|lane| !lane.is_quiet()) {
            self.disturbed.notify_one();
        }
    }

    fn lane_gone(&self) {
        self.open.set(self.open.get() - 1);
        self.disturbed.notify_one();
        self.dial_if_awaited();
    }

    /// A place is free: for those who found none.
    fn dial_if_awaited(&self) {
        if !self.waiting.borrow().is_empty() {
            self.dial_for_waiter();
        }
    }

    /// Whether the upstream process `instance` answers over the path: dials one more lane, which is kept. Without room for
    /// one it is taken to.
    pub async fn answers(self: &Rc<Self>, instance: u64) -> bool {
        if !self.has_place() {
            return true;
        }
        let Ok(Ok(lane)) = exec::timeout(PROBE_DEADLINE, self.dial(Place::take(self))).await else {
            return false;
        };
        let is_there = lane.instance() == instance;
        self.shelve(Rc::new(lane));
        is_there
    }

    /// Closes the idle lanes; those on loan are closed when they come back.
    pub fn close(&self) {
        self.closing.set(true);
        let idle = std::mem::take(&mut *self.idle.borrow_mut());
        let draining = std::mem::take(&mut *self.draining.borrow_mut());
        self.open.set(self.open.get() - idle.len() - draining.len());
        draining.iter().for_each(|draining| draining.taken.notify_one());
        self.note_warmth();
        self.waiting.borrow_mut().clear();
        self.disturbed.notify_one();
    }
}
