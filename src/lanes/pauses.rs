//! When the other end of a lane pauses to measure the shortest round trip, if it uses BBR.
//!
//! In: the moments at which something comes. Out: when the next pause is due. Called by `lane`. No clock. What is known of a sender that
//! may be a relay is a guess: a wrong one costs a pause, as if nothing were known.

use std::time::Duration;

use crate::exec::Instant;

/// A sender that has seen no shorter round trip for so long pauses (PROBE_RTT), unless it goes on from idleness: BBRv1 as in
/// Linux, bbr_min_rtt_win_sec and bbr_update_min_rtt of net/ipv4/tcp_bbr.c.
const EVERY: Duration = Duration::from_secs(10);
/// How long that takes on paths of ordinary length, and when it has surely begun.
const LENGTH: Duration = Duration::from_millis(300);
const KNOWN_AFTER: Duration = Duration::from_millis(500);
/// A lane that has brought nothing for so long was idle: a frame takes less.
const IDLE_MIN: Duration = Duration::from_millis(150);

/// Before a pause that is due so soon no other lane can be found that goes on instead.
const SOON: Duration = Duration::from_secs(3);

/// See the module's description.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pauses {
    heard: Instant,
    /// When the round trip was measured last.
    measured: Instant,
}

impl Pauses {
    /// Of a connection that has just been made.
    pub(super) fn begin(now: Instant) -> Self {
        Self { heard: now, measured: now }
    }

    /// Something has come. Returns when the sender will pause, unless it is idle then.
    pub(super) fn hears(&mut self, now: Instant) -> Instant {
        let was_idle = now.saturating_duration_since(self.heard) > IDLE_MIN;
        self.heard = now;
        let age = now.saturating_duration_since(self.measured);
        if age > EVERY && (was_idle || age > 2 * EVERY) {
            self.measured = now;
        } else if age > EVERY + KNOWN_AFTER {
            // It was busy, and has paused.
            self.measured = self.measured + EVERY + LENGTH;
        }
        self.measured + EVERY
    }

    /// Whether a transfer that begins `now` would soon be stopped by a pause. One that was due while the lane was idle is none.
    pub(super) fn is_soon(&self, now: Instant) -> bool {
        let was_idle = now.saturating_duration_since(self.heard) > IDLE_MIN;
        let age = now.saturating_duration_since(self.measured);
        age + SOON > EVERY && !(age > EVERY && was_idle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hears something every 50 ms; returns when the next pause is due then, since the start.
    fn busy(pauses: &mut Pauses, start: Instant, seconds: std::ops::Range<u32>) -> Duration {
        let moments =
            (seconds.start * 20..=seconds.end * 20).map(|step| start + Duration::from_millis(50) * step);
        moments.fold(start, |_, now| pauses.hears(now)) - start
    }

    #[test]
    fn a_busy_lane_pauses_every_ten_seconds() {
        let start = Instant::now();
        let mut pauses = Pauses::begin(start);
        assert_eq!(busy(&mut pauses, start, 0..9), EVERY);
        assert_eq!(busy(&mut pauses, start, 9..12), 2 * EVERY + LENGTH);
    }

    #[test]
    fn a_pause_is_soon_unless_the_lane_is_idle_when_it_is_due() {
        let start = Instant::now();
        let mut pauses = Pauses::begin(start);
        busy(&mut pauses, start, 0..9);
        let is_soon = |millis| pauses.is_soon(start + Duration::from_millis(millis));
        assert!(!is_soon(6_900) && is_soon(9_010) && is_soon(9_900) && !is_soon(10_100));
    }

    #[test]
    fn a_lane_that_was_idle_at_the_time_does_not() {
        let start = Instant::now();
        let mut pauses = Pauses::begin(start);
        busy(&mut pauses, start, 0..9);
        assert_eq!(busy(&mut pauses, start, 11..12), Duration::from_secs(11) + EVERY);
        // Idleness before the time is over changes nothing.
        assert_eq!(busy(&mut pauses, start, 15..16), Duration::from_secs(11) + EVERY);
    }
}
