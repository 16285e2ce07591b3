//! Connections that begin a lane and never say who they are.
//!
//! In: a port that takes lanes. Out: so many of them kept up until it is told to stop. Called by `main`.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{Outcome, clients::connect};

/// A port gives a stranger up after so long; then the next one takes its place.
const LIFE: Duration = Duration::from_secs(2);

/// See the module's description.
pub struct Flood {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u32>,
}

impl Flood {
    /// Keeps `count` of them before `address`.
    pub fn start(address: SocketAddr, count: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = thread::spawn(move || {
            let (mut crowd, mut opened) = (VecDeque::with_capacity(count), 0);
            while !told.load(Ordering::Relaxed) {
                if crowd.front().is_some_and(|(since, _): &(Instant, _)| since.elapsed() > LIFE) {
                    crowd.pop_front();
                }
                if crowd.len() < count
                    && let Ok(stranger) = connect(address, opened, None)
                {
                    crowd.push_back((Instant::now(), stranger));
                    opened += 1;
                    // Evenly over their lives.
                    if opened.is_multiple_of(50) {
                        thread::sleep(LIFE * 50 / count as u32 / 2);
                    }
                } else {
                    thread::sleep(Duration::from_millis(1));
                }
            }
            opened
        });
        Self { stop, thread }
    }

    /// Ends it; returns how many there were in all.
    pub fn stop(self) -> Outcome<u32> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| "the flood panicked".into())
    }
}
