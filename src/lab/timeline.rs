//! The paths as they are now, and what happens to them.
//!
//! In: running links, events. Out: the links' shapes, changed in time. Called by the topology. Invariant: when a
//! [`Timeline`] ends, the paths are again what the scenario says.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{
    link::Link,
    scenario::{EmulatedPath, Event},
    shape::Direction,
};

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

    /// Applies one event now.
    pub(super) fn apply(&self, event: &Event) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let path = event.path - 1;
        now[path] = now[path].changed(event);
        self.set(path, &now[path]);
        if let Some(down) = event.down {
            self.outage(path, down);
        }
    }

    fn restore(&self) {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        for (path, asked) in self.asked.iter().enumerate() {
            self.set(path, asked);
            self.outage(path, false);
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

    fn outage(&self, path: usize, down: bool) {
        self.links[path].outage(Direction::Forward, down);
        self.links[path].outage(Direction::Backward, down);
    }
}

/// Events that are happening. Dropping it stops them and brings the paths back to what the scenario says.
#[derive(Debug)]
pub struct Timeline {
    paths: Arc<Paths>,
    clock: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Timeline {
    /// Starts the clock of `events`, which are in order.
    pub(super) fn start(paths: Arc<Paths>, events: Vec<Event>) -> Self {
        let began = Instant::now();
        let (stop, stopped) = channel();
        let links = paths.clone();
        let play = move || {
            for event in events {
                let due = began + Duration::from_secs_f64(event.at);
                let left = due.saturating_duration_since(Instant::now());
                if stopped.recv_timeout(left) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
                links.apply(&event);
            }
        };
        Self { paths, clock: Some((stop, std::thread::spawn(play))) }
    }
}

impl Drop for Timeline {
    fn drop(&mut self) {
        if let Some((stop, clock)) = self.clock.take() {
            drop(stop);
            // It cannot panic, and if it did, the paths would be restored all the same.
            let _ = clock.join();
        }
        self.paths.restore();
    }
}
