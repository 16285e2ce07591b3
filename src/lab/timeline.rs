//! The paths as they are now, what happens to them, and how soon they are used again.
//!
//! In: running links and roles, events. Out: the links' shapes and the relays' processes, changed in time; what came of it.
//! Called by the topology and the chain. Invariant: when a [`Timeline`] ends, paths and relays are again what the
//! scenario says.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{
    link::Link,
    role::{Role, RoleProcess},
    scenario::{EmulatedPath, Event, RelayChange},
    shape::Direction,
};

/// Between two looks at a path that is back.
const LOOK_PAUSE: Duration = Duration::from_millis(20);
/// A path is used again once it has carried this share of its rate
const USED_SHARE: f64 = 0.5;
/// for so many looks: longer than a flush of what was left in a socket at a few times the rate.
const USED_LOOKS: usize = 5;

/// The emulated paths.
#[derive(Debug)]
pub(super) struct Paths {
    pub(super) links: Vec<Link>,
    /// What the scenario says.
    asked: Vec<EmulatedPath>,
    now: Mutex<Vec<EmulatedPath>>,
}

impl Paths {
    pub(super) fn new(links: Vec<Link>, asked: Vec<EmulatedPath>) -> Self {
        Self { links, now: Mutex::new(asked.clone()), asked }
    }

    /// Applies what one event says of the path now.
    pub(super) fn apply(&self, event: &Event) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let path = event.path - 1;
        now[path] = now[path].changed(event);
        self.set(path, &now[path]);
        if let Some(down) = event.down {
            self.outage(path, event.direction, down);
        }
    }

    fn restore(&self) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        for (path, asked) in self.asked.iter().enumerate() {
            self.set(path, asked);
            self.outage(path, None, false);
        }
        now.clone_from(&self.asked);
    }

    fn set(&self, path: usize, wanted: &EmulatedPath) {
        for direction in [Direction::Forward, Direction::Backward] {
            // Scenarios are checked when they are read, events included.
            if let Err(error) = self.links[path].set(direction, wanted.shape()) {
                tracing::warn!("path {}: {error}", path + 1);
            }
        }
    }

    fn outage(&self, path: usize, only: Option<Direction>, down: bool) {
        for direction in [Direction::Forward, Direction::Backward] {
            if only.is_none_or(|only| only == direction) {
                self.links[path].outage(direction, down);
            }
        }
    }

    /// Bytes carried to the client, and what its rate makes of the time of [`USED_LOOKS`].
    fn carried(&self, path: usize) -> (u64, f64) {
        let now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds = LOOK_PAUSE.as_secs_f64() * USED_LOOKS as f64;
        (self.links[path].stats()[1].bytes, now[path].rate_mbit * 1e6 / 8.0 * seconds)
    }
}

/// An event that has happened.
#[derive(Clone, Debug, PartialEq)]
pub struct Happened {
    /// What.
    pub event: Event,
    /// How soon after it the path carried half of its rate to the client, if it was
    /// [brought back](Event::brings_back) and did.
    pub used_again: Option<Duration>,
}

/// Events that are happening. Dropping it stops them and brings paths and relays back to what the scenario says.
#[derive(Debug)]
pub struct Timeline {
    stage: Arc<Stage>,
    clock: Option<(Sender<()>, JoinHandle<Vec<Happened>>)>,
}

/// What events happen to.
#[derive(Debug)]
struct Stage {
    paths: Arc<Paths>,
    roles: Vec<Arc<RoleProcess>>,
}

impl Timeline {
    /// Starts the clock of `events`, which are in order.
    pub(super) fn start(paths: Arc<Paths>, roles: Vec<Arc<RoleProcess>>, events: Vec<Event>) -> Self {
        let began = Instant::now();
        let (stop, stopped) = channel();
        let stage = Arc::new(Stage { paths, roles });
        let play = {
            let stage = stage.clone();
            move || stage.play(began, &events, &stopped)
        };
        Self { stage, clock: Some((stop, std::thread::spawn(play))) }
    }

    /// Ends it, and tells what has happened.
    pub fn end(mut self) -> Vec<Happened> {
        self.stop()
    }

    fn stop(&mut self) -> Vec<Happened> {
        let Some((stop, clock)) = self.clock.take() else { return Vec::new() };
        drop(stop);
        // It cannot panic, and if it did, the paths would be restored all the same.
        let happened = clock.join().unwrap_or_default();
        self.stage.restore();
        happened
    }
}

impl Drop for Timeline {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Stage {
    /// Lets `events` happen, and looks at the paths that came back, until it is stopped.
    fn play(&self, began: Instant, events: &[Event], stopped: &Receiver<()>) -> Vec<Happened> {
        let mut happened: Vec<Happened> = Vec::new();
        let mut watched: Vec<(usize, Instant, VecDeque<u64>)> = Vec::new();
        loop {
            let next = events.get(happened.len()).map(|event| began + Duration::from_secs_f64(event.at));
            let pause = next.map_or(LOOK_PAUSE, |due| due.saturating_duration_since(Instant::now()));
            if stopped.recv_timeout(pause.min(LOOK_PAUSE)) != Err(RecvTimeoutError::Timeout) {
                return happened;
            }
            if next.is_some_and(|due| due <= Instant::now()) {
                let event = events[happened.len()].clone();
                watched.retain(|(index, ..)| happened[*index].event.path != event.path);
                if event.brings_back() {
                    watched.push((happened.len(), Instant::now(), VecDeque::new()));
                }
                self.apply(&event);
                happened.push(Happened { event, used_again: None });
            }
            watched.retain_mut(|(index, since, looks)| {
                let Happened { event, used_again } = &mut happened[*index];
                let (bytes, whole) = self.paths.carried(event.path - 1);
                looks.push_back(bytes);
                let before = if looks.len() > USED_LOOKS { looks.pop_front() } else { None };
                let is_used = before.is_some_and(|before| (bytes - before) as f64 >= USED_SHARE * whole);
                *used_again = is_used.then(|| since.elapsed());
                !is_used
            });
        }
    }

    fn apply(&self, event: &Event) {
        self.paths.apply(event);
        let relay = self.roles.iter().find(|role| role.role() == Role::Relay(event.path - 1));
        let (Some(change), Some(relay)) = (event.relay, relay) else { return };
        match change {
            RelayChange::Kill => relay.kill(),
            RelayChange::Start => start(relay),
            RelayChange::Freeze => relay.freeze(),
            RelayChange::Thaw => relay.thaw(),
        }
    }

    fn restore(&self) {
        self.paths.restore();
        for role in &self.roles {
            role.thaw();
            start(role);
        }
    }
}

/// A role that does not start anew is missed by whoever uses it; this says why.
fn start(role: &RoleProcess) {
    if let Err(error) = role.start_again() {
        tracing::warn!("{error}");
    }
}
