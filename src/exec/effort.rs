//! What a core's thread has run since a moment, to see whether it was the bottleneck.
//!
//! In: nothing but the clocks. Out: a share of the time. Called for a transfer, on the core that does most of its work.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::Instant;

/// What was done in less time than this says nothing of the core's load.
const TIME_MIN: Duration = Duration::from_millis(20);
/// A core that ran for this share of the time was the bottleneck.
const SATURATED: f64 = 0.85;

/// See the module's description.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    began: Instant,
    cpu_began: Duration,
}

impl Effort {
    /// Begins now, on this thread.
    pub fn begin() -> Self {
        Self { began: Instant::now(), cpu_began: thread_cpu_time() }
    }

    /// Whether this thread, which is the one that began, has had no time left; `None` after less than 20 ms.
    pub fn has_saturated(&self) -> Option<bool> {
        let time = self.began.elapsed();
        let cpu_time = || thread_cpu_time().saturating_sub(self.cpu_began);
        (time >= TIME_MIN).then(|| cpu_time().as_secs_f64() > time.as_secs_f64() * SATURATED)
    }
}

/// CPU time of this thread, clock_gettime(2).
fn thread_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}
