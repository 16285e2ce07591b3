//! Whether a lane is still in slow start.
//!
//! In: rates and acknowledgements. Out: bytes that it may have in flight meanwhile. Called by `model`, which keeps it from one
//! transfer to the next. Invariant: once over, it stays over.

use super::model::QUEUE_SECONDS;

/// Slow start doubles the rate each round trip. It is over when the rate has not grown by this factor
const GROWTH_MIN: f64 = 1.25;
/// for three of them, as BBR has it; rounds here are longer, by what waits in relays.
const ROUNDS: u32 = 3;
/// A cold lane may have so much in flight, and twice what it has brought: slow start has as much on its way as has arrived
/// within the round trip, and acknowledgements are a round trip old. It is the window that TCP begins with, doubled twice.
pub(super) const FIRST_WINDOW_BYTES: u64 = 48 << 10;
/// Once the rate stands still, what the lane carries in so many round trips: BBR has 2.9 on their way until it has seen
/// that, and what half of one brought is yet to be acknowledged. With less it takes itself to be limited by its application,
/// stays in slow start, and loses a sixth of what it sends to the queue that it fills.
const ROUND_TRIPS: f64 = 4.0;

/// See the module's description. The default is that of a cold lane.
#[derive(Clone, Debug, Default)]
pub(super) struct Growth {
    /// Bytes a second.
    highest: f64,
    /// Round trips without growth, of frames as they were, queues included.
    rounds: u32,
    /// The running one ends when so many bytes of the transfer are acknowledged; `None` if none runs.
    round_upto: Option<u64>,
}

impl Growth {
    /// Another transfer begins: bytes are counted from zero.
    pub(super) fn begins(&mut self) {
        self.round_upto = None;
    }

    /// `acknowledged` bytes of `sent` are, at this rate. `was_idle`: the lane had less to send than it could, which says nothing.
    pub(super) fn saw(&mut self, rate: f64, was_idle: bool, acknowledged: u64, sent: u64) {
        if self.is_over() {
            return;
        }
        if rate > GROWTH_MIN * self.highest {
            (self.highest, self.rounds) = (rate, 0);
        } else if !was_idle && self.round_upto.is_some_and(|upto| acknowledged < upto) {
            return;
        } else if !was_idle && self.round_upto.is_some() {
            self.rounds += 1;
        }
        self.round_upto = Some(sent);
    }

    fn is_over(&self) -> bool {
        self.rounds >= ROUNDS
    }

    /// Bytes in flight that slow start needs once `acknowledged` have arrived; `round_trip` in seconds, without queues.
    pub(super) fn needs(&self, acknowledged: u64, round_trip: f64) -> u64 {
        let carried = |round_trips| (self.highest * (round_trips * round_trip + QUEUE_SECONDS)) as u64;
        match self.rounds {
            // The rate is known a round trip late, when it may have doubled.
            0 => FIRST_WINDOW_BYTES + (2 * acknowledged).min(carried(2.0 * ROUND_TRIPS)),
            1..ROUNDS => carried(ROUND_TRIPS),
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: f64 = 6.25e6;
    const ROUND_TRIP: f64 = 0.1;
    const FLIGHT: u64 = (RATE * ROUND_TRIP) as u64;

    /// Rounds at a rate that stands still.
    fn rounds(growth: &mut Growth, count: u64, was_idle: bool) {
        growth.begins();
        (0..=count).for_each(|round| growth.saw(RATE, was_idle, round * FLIGHT, (round + 1) * FLIGHT));
    }

    #[test]
    fn a_lane_whose_rate_stands_still_has_what_slow_start_needs_until_it_has_seen_that() {
        let mut growth = Growth::default();
        growth.saw(RATE, false, FLIGHT, 2 * FLIGHT);
        let needs = |growth: &Growth| growth.needs(100 * FLIGHT, ROUND_TRIP) as f64 / FLIGHT as f64;
        for _ in 0..ROUNDS {
            assert!(needs(&growth) > 3.5, "{growth:?}");
            rounds(&mut growth, 1, false);
        }
        assert_eq!(needs(&growth), 0.0);
        // Rates go up and down later, too.
        growth.saw(3.0 * RATE, false, FLIGHT, 2 * FLIGHT);
        assert_eq!(needs(&growth), 0.0);
    }

    #[test]
    fn rounds_of_a_lane_without_work_and_the_start_of_a_transfer_do_not_count() {
        let mut growth = Growth::default();
        growth.saw(RATE, false, FLIGHT, 2 * FLIGHT);
        rounds(&mut growth, 9, true);
        (0..9).for_each(|_| rounds(&mut growth, 0, false));
        assert!(!growth.is_over(), "{growth:?}");
    }
}
