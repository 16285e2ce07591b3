//! What all clients of a role have asked for and got: counters, distributions, and the requests that ended last.
//!
//! In: an [`Outcome`] for each request. Out: a line of the access log each, and a [`TrafficReport`] when asked. Called by
//! `accept`; `observe` asks. Invariant: what is kept does not grow with the number of requests.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ::http::Method;
use serde::{Deserialize, Serialize};

use super::account::{CacheUse, Outcome, PathShare};

/// Requests that are remembered: a screen of them.
const RECENT_MAX: usize = 40;
/// Of a target as it is remembered; the log has all of it.
const TARGET_CHARS_MAX: usize = 200;

/// Seconds; a factor of two to two and a half apart, from a hit of the cache to the patience of a viewer.
pub const TIME_BOUNDS_S: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Frames: powers of four, up to all of a ring.
pub const DEPTH_BOUNDS_FRAMES: &[f64] = &[0.0, 1.0, 4.0, 16.0, 64.0, 256.0, 1024.0];

/// A distribution with fixed bounds.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One for each bound, and one for what is above them all.
    counts: Box<[AtomicU64]>,
    /// In millionths, so that an integer does.
    sum_micro: AtomicU64,
}

/// [`Histogram`] at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HistogramReport {
    /// Upper bounds, and how many values were at most so large and above the bound before.
    pub buckets: Vec<(f64, u64)>,
    /// Values above all bounds.
    pub above: u64,
    /// Sum of all values.
    pub sum: f64,
}

impl HistogramReport {
    /// How many values there are.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum::<u64>() + self.above
    }
}

impl Histogram {
    /// Without values.
    pub fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, sum_micro: AtomicU64::new(0) }
    }

    /// Adds a value, which is not negative.
    pub fn observe(&self, value: f64) {
        let bucket = self.bounds.iter().position(|&bound| value <= bound).unwrap_or(self.bounds.len());
        self.counts[bucket].fetch_add(1, Relaxed);
        self.sum_micro.fetch_add((value * 1e6) as u64, Relaxed);
    }

    /// The values until now.
    pub fn report(&self) -> HistogramReport {
        let counts: Vec<_> = self.counts.iter().map(|count| count.load(Relaxed)).collect();
        HistogramReport {
            buckets: self.bounds.iter().copied().zip(counts.iter().copied()).collect(),
            above: counts[self.bounds.len()],
            sum: self.sum_micro.load(Relaxed) as f64 * 1e-6,
        }
    }
}

/// A request that has ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recent {
    /// Seconds since 1970 when it ended.
    pub ended_s: f64,
    /// Who has asked.
    pub client: String,
    /// GET or HEAD.
    pub method: String,
    /// As asked for.
    pub target: String,
    /// 0 if the answer has not begun.
    pub status: u16,
    /// The answer has come to its end.
    pub complete: bool,
    /// Bytes of the body that were taken.
    pub body_bytes: u64,
    /// From the request to its end.
    pub taken_s: f64,
    /// From the request to the head of the answer.
    pub first_byte_s: Option<f64>,
    /// How the cache took part.
    pub cache: Option<CacheUse>,
    /// What each path has carried.
    pub shares: Vec<PathShare>,
    /// How many frames ahead a frame has come at most.
    pub reorder_depth: u64,
    /// Longest time in which the lanes brought nothing.
    pub longest_stall_s: f64,
}

/// What becomes a [`Recent`] when somebody wants to see it.
#[derive(Debug)]
struct Ended {
    at: SystemTime,
    client: Option<SocketAddr>,
    method: Method,
    target: String,
    outcome: Outcome,
    complete: bool,
}

impl Ended {
    fn report(&self) -> Recent {
        let seconds = |time: Duration| time.as_secs_f64();
        let outcome = &self.outcome;
        let carried = outcome.carried.as_deref();
        Recent {
            ended_s: self.at.duration_since(UNIX_EPOCH).map_or(0.0, seconds),
            client: self.client.map(|client| client.ip().to_canonical().to_string()).unwrap_or_default(),
            method: self.method.to_string(),
            target: self.target.chars().take(TARGET_CHARS_MAX).collect(),
            status: outcome.status.map_or(0, |status| status.as_u16()),
            complete: self.complete,
            body_bytes: outcome.body_bytes,
            taken_s: seconds(outcome.taken),
            first_byte_s: outcome.first_byte.map(seconds),
            cache: outcome.cache,
            shares: carried.map(|carried| carried.shares.clone()).unwrap_or_default(),
            reorder_depth: carried.map_or(0, |carried| carried.reorder_depth),
            longest_stall_s: carried.map_or(0.0, |carried| seconds(carried.longest_stall)),
        }
    }
}

/// See the module's description.
#[derive(Debug)]
pub struct Traffic {
    /// By the first digit of the status; 0 for answers that have not begun.
    statuses: [AtomicU64; 6],
    aborted: AtomicU64,
    broken: AtomicU64,
    body_bytes: AtomicU64,
    caches: [AtomicU64; CacheUse::ALL.len()],
    first_byte: Histogram,
    stall: Histogram,
    depth: Histogram,
    recent: Mutex<VecDeque<Ended>>,
    logs: bool,
}

/// [`Traffic`] at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrafficReport {
    /// Requests by the first digit of their answer's status; 0: it has not begun.
    pub statuses: [u64; 6],
    /// Answers that were cut off.
    pub aborted: u64,
    /// Of those, the ones that their clients would have taken to the end.
    #[serde(default)]
    pub broken: u64,
    /// Bytes of bodies that clients have taken, counted when an answer ends.
    pub body_bytes: u64,
    /// Requests by how the cache took part, in the order of [`CacheUse::ALL`].
    pub caches: [u64; CacheUse::ALL.len()],
    /// From the request's head to that of the answer, seconds.
    pub first_byte: HistogramReport,
    /// Longest wait for lanes of answers that they carried, seconds.
    pub stall: HistogramReport,
    /// Reorder depth of answers that lanes carried, frames.
    pub depth: HistogramReport,
    /// The requests that ended last, the newest first.
    pub recent: Vec<Recent>,
}

impl Default for Traffic {
    fn default() -> Self {
        Self {
            statuses: Default::default(),
            aborted: AtomicU64::new(0),
            broken: AtomicU64::new(0),
            body_bytes: AtomicU64::new(0),
            caches: Default::default(),
            first_byte: Histogram::new(TIME_BOUNDS_S),
            stall: Histogram::new(TIME_BOUNDS_S),
            depth: Histogram::new(DEPTH_BOUNDS_FRAMES),
            recent: Mutex::default(),
            logs: true,
        }
    }
}

impl Traffic {
    /// Without lines in the log.
    pub fn silent() -> Self {
        Self { logs: false, ..Self::default() }
    }

    /// A request has ended; `complete` says that its answer has.
    pub fn ended(
        &self,
        client: Option<SocketAddr>,
        method: Method,
        target: String,
        outcome: Outcome,
        complete: bool,
    ) {
        let status = outcome.status.map_or(0, |status| status.as_u16());
        self.statuses[usize::from(status / 100).min(5)].fetch_add(1, Relaxed);
        self.aborted.fetch_add(u64::from(!complete), Relaxed);
        self.body_bytes.fetch_add(outcome.body_bytes, Relaxed);
        if let Some(cache) = outcome.cache {
            self.caches[cache as usize].fetch_add(1, Relaxed);
        }
        if let Some(first_byte) = outcome.first_byte {
            self.first_byte.observe(first_byte.as_secs_f64());
        }
        if let Some(carried) = &outcome.carried {
            self.stall.observe(carried.longest_stall.as_secs_f64());
            self.depth.observe(carried.reorder_depth as f64);
        }
        let mut ended = Ended { at: SystemTime::now(), client, method, target, outcome, complete };
        if self.logs && tracing::enabled!(target: "access", tracing::Level::INFO) {
            log(&ended.report(), &ended.target);
        }
        if let Some((end, _)) = ended.target.char_indices().nth(TARGET_CHARS_MAX) {
            ended.target.truncate(end);
            ended.target.shrink_to_fit();
        }
        let mut kept = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        kept.truncate(RECENT_MAX - 1);
        kept.push_front(ended);
    }

    /// The answer that has just [ended](Self::ended) was cut off, and not by its client.
    pub fn broke(&self) {
        self.broken.fetch_add(1, Relaxed);
    }

    /// All until now.
    pub fn report(&self) -> TrafficReport {
        TrafficReport {
            statuses: self.statuses.each_ref().map(|count| count.load(Relaxed)),
            aborted: self.aborted.load(Relaxed),
            broken: self.broken.load(Relaxed),
            body_bytes: self.body_bytes.load(Relaxed),
            caches: self.caches.each_ref().map(|count| count.load(Relaxed)),
            first_byte: self.first_byte.report(),
            stall: self.stall.report(),
            depth: self.depth.report(),
            recent: self
                .recent
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .iter()
                .map(Ended::report)
                .collect(),
        }
    }
}

/// The line of the access log.
fn log(recent: &Recent, target: &str) {
    let ms = |seconds: f64| (seconds * 1e4).round() / 10.0;
    let shares = recent.shares.iter().filter(|share| share.bytes > 0);
    let shares: Vec<_> = shares.map(|share| format!("{}={}", share.path, share.bytes)).collect();
    let lanes = (!shares.is_empty()).then_some(());
    tracing::info!(
        target: "access",
        client = recent.client,
        status = recent.status,
        bytes = recent.body_bytes,
        complete = recent.complete,
        ms = ms(recent.taken_s),
        first_byte_ms = recent.first_byte_s.map(ms),
        cache = recent.cache.map(CacheUse::name),
        stall_ms = lanes.map(|()| ms(recent.longest_stall_s)),
        reorder_depth = lanes.map(|()| recent.reorder_depth),
        paths = lanes.map(|()| shares.join(" ")),
        "{} {target}",
        recent.method,
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::account::Account;

    #[test]
    fn a_histogram_puts_values_below_their_bounds() {
        let histogram = Histogram::new(DEPTH_BOUNDS_FRAMES);
        for value in [0.0, 1.0, 2.0, 4.0, 5000.0] {
            histogram.observe(value);
        }
        let report = histogram.report();
        assert_eq!(report.buckets[..3], [(0.0, 1), (1.0, 1), (4.0, 2)]);
        assert_eq!((report.above, report.count(), report.sum), (1, 5, 5007.0));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let traffic = Traffic::default();
        for request in 0..RECENT_MAX + 3 {
            let target = format!("/{request}{}", "x".repeat(TARGET_CHARS_MAX));
            traffic.ended(None, Method::GET, target, Account::new().close(), false);
        }
        let report = traffic.report();
        assert_eq!(report.recent.len(), RECENT_MAX);
        assert!(report.recent[0].target.starts_with(&format!("/{}x", RECENT_MAX + 2)));
        assert_eq!(report.recent[0].target.len(), TARGET_CHARS_MAX);
        assert_eq!((report.statuses[0], report.aborted), (43, 43));
    }
}
