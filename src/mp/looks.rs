//! What looks at a lane's socket say of its path: whether more lanes would carry more.
//!
//! In: what TCP_INFO shows, now and then. Out: a verdict on the path, or none. Called by the producer, one [`Looks`] per lane
//! and transfer, without I/O. Invariant: losses of slow start that has filled a queue are not taken for the path's.

use std::time::Duration;

use crate::{exec::Instant, net::TcpInfo};

/// Between two looks, a few round trips of most paths.
const PAUSE: Duration = Duration::from_millis(200);
/// A lane that starts is looked at more often, for so long: slow start fills a queue and empties it within two round trips. Losses of
/// one that has filled one are its own doing, and some of them show only when the queue has gone.
const EARLY: Duration = Duration::from_millis(2000);
const EARLY_PAUSE: Duration = Duration::from_millis(50);
/// A round trip this much longer than the shortest shows a queue: jitter is less.
const QUEUED_RATIO: f64 = 1.2;
/// And by this much on short paths.
const QUEUED_MIN: Duration = Duration::from_millis(5);

/// What one look says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The lane fills a queue: it has all that there is.
    Queued,
    /// It loses segments while the round trip is what the empty path takes: random losses or a policer limit it, and more lanes
    /// would carry more.
    Starved,
}

/// The looks at one lane; see the module's description.
#[derive(Debug)]
pub(super) struct Looks {
    began: Instant,
    last: Instant,
    /// Segments out of order, as the last look had them.
    out_of_order: Option<u32>,
    has_queued: bool,
}

impl Looks {
    pub(super) fn new(now: Instant) -> Self {
        Self { began: now, last: now, out_of_order: None, has_queued: false }
    }

    /// Whether it is time for another one.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        let pause = if self.is_early(now) { EARLY_PAUSE } else { PAUSE };
        now - self.last >= pause
    }

    /// What a look shows; `None` if nothing can be told from it.
    pub(super) fn saw(&mut self, now: Instant, info: &TcpInfo) -> Option<Verdict> {
        self.last = now;
        let before = self.out_of_order.replace(info.out_of_order);
        if info.rtt > info.rtt_min.mul_f64(QUEUED_RATIO) + QUEUED_MIN {
            self.has_queued = true;
            return Some(Verdict::Queued);
        }
        let is_own = self.has_queued && self.is_early(now);
        let has_lost = before.is_some_and(|before| before != info.out_of_order);
        (has_lost && !is_own).then_some(Verdict::Starved)
    }

    fn is_early(&self, now: Instant) -> bool {
        now - self.began < EARLY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUND_TRIP: Duration = Duration::from_millis(100);

    /// What looks say that find so long a round trip and so many segments out of order, at these times.
    fn verdicts(seen: &[(u64, Duration, u32)]) -> Vec<Option<Verdict>> {
        let began = Instant::now();
        let mut looks = Looks::new(began);
        let saw = |&(millis, rtt, out_of_order): &(u64, Duration, u32)| {
            let info = TcpInfo { rtt, rtt_min: ROUND_TRIP, out_of_order, ..TcpInfo::default() };
            looks.saw(began + Duration::from_millis(millis), &info)
        };
        seen.iter().map(saw).collect()
    }

    #[test]
    fn losses_without_a_queue_are_the_paths() {
        let seen = [(50, ROUND_TRIP, 7), (100, ROUND_TRIP, 7), (150, ROUND_TRIP, 9), (200, ROUND_TRIP, 9)];
        assert_eq!(verdicts(&seen), [None, None, Some(Verdict::Starved), None]);
    }

    #[test]
    fn losses_that_show_when_the_queue_has_gone_are_the_lanes_own() {
        let (short, long) = (ROUND_TRIP, ROUND_TRIP.mul_f64(1.5));
        let seen = [(50, short, 0), (100, long, 0), (300, short, 20), (1900, short, 30), (2100, short, 31)];
        let queued = Some(Verdict::Queued);
        assert_eq!(verdicts(&seen), [None, queued, None, None, Some(Verdict::Starved)]);
    }

    #[test]
    fn a_lane_that_starts_is_looked_at_more_often() {
        let began = Instant::now();
        let mut looks = Looks::new(began);
        let is_due = |looks: &Looks, millis| looks.is_due(began + Duration::from_millis(millis));
        assert!(!is_due(&looks, 49) && is_due(&looks, 50));
        looks.saw(began + EARLY, &TcpInfo::default());
        assert!(!is_due(&looks, 2199) && is_due(&looks, 2200));
    }
}
