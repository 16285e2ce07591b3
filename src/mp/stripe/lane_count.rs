//! How many lanes a transfer opens on one path, found by trying.
//!
//! In: the bytes that came over the path, every 100 ms or so. Out: the number of lanes wanted. Called by the downstream's
//! manager, one [`LaneCount`] per path and one [`ProbeTurn`] for all of them. Invariants: only one path tries at a time; a
//! transfer that its client holds back is never probed; a number that brought nothing is given up.

use std::time::Duration;

/// Lanes on one path at most: with 1 % loss 32 cubic connections carry what the path has, and a policer of single
/// connections seldom allows less than a thirtieth of the path.
pub const LANES_MAX: usize = 32;
/// What a doubling has to bring at least: less is the noise of a busy path.
const GAIN_MIN: f64 = 1.2;
/// Half the lanes are as good if they bring this share.
const LOSS_MAX: f64 = 0.95;
/// A measurement takes this long, or five round trips: a lane's own ups and downs average out.
const MEASURE_MIN: Duration = Duration::from_secs(1);
const MEASURE_ROUND_TRIPS: u32 = 5;
/// A gain of this much is no noise: it is believed after a shorter time, or two round trips. 16 lanes are found in half the
/// time.
const GAIN_CLEAR: f64 = 1.6;
const CLEAR_MIN: Duration = Duration::from_millis(300);
const CLEAR_ROUND_TRIPS: u32 = 2;
/// New lanes get this long, or three round trips, to come up to speed before they are measured.
const SETTLE_MIN: Duration = Duration::from_millis(300);
const SETTLE_ROUND_TRIPS: u32 = 3;
/// The wait after a try that brought nothing; doubles each time.
const REST_MIN: Duration = Duration::from_secs(30);
const REST_MAX: Duration = Duration::from_secs(600);

/// Held by the path that tries another number of lanes; shared by the paths of a downstream.
#[derive(Debug, Default)]
pub struct ProbeTurn {
    is_taken: bool,
}

/// Rate over a stretch of time.
#[derive(Clone, Copy, Debug)]
struct Measurement {
    since: Duration,
    bytes: u64,
}

impl Measurement {
    fn rate(&self, now: Duration, bytes: u64) -> f64 {
        (bytes - self.bytes) as f64 / (now - self.since).as_secs_f64().max(1e-3)
    }
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Waits, or measures, what the learned number carries.
    Steady(Option<Measurement>),
    /// Another number is wanted; its lanes come up to speed until `until`.
    Settling { until: Duration, before: f64 },
    /// Another number is measured against `before`.
    Measuring { measurement: Measurement, before: f64 },
}

/// The number of lanes of one path; outlives transfers.
#[derive(Debug)]
pub struct LaneCount {
    least: usize,
    most: usize,
    /// The number that has proved itself.
    learned: usize,
    /// The number to have now.
    wanted: usize,
    state: State,
    /// Time in transfers until the next try, and the one after that.
    rest_left: Duration,
    rest: Duration,
    /// The next try goes down.
    tries_fewer: bool,
    last: Duration,
    received: u64,
}

impl LaneCount {
    /// Begins with `least` lanes (at least 1) and goes up to `most`, which may be the same.
    pub fn new(least: usize, most: usize) -> Self {
        let least = least.max(1);
        Self {
            least,
            most: most.max(least),
            learned: least,
            wanted: least,
            state: State::Steady(None),
            rest_left: Duration::ZERO,
            rest: REST_MIN,
            tries_fewer: false,
            last: Duration::ZERO,
            received: 0,
        }
    }

    /// Lanes that have proved themselves.
    pub fn learned(&self) -> usize {
        self.learned
    }

    /// A transfer begins or ends: what is being tried is given up, what was learned stays.
    pub fn restart(&mut self, turn: &mut ProbeTurn) -> usize {
        self.give_up(turn);
        self.last = Duration::ZERO;
        self.received = 0;
        self.wanted
    }

    /// `received` bytes have come over the path by `now`, both since the transfer's start. `by_network`: since the sample
    /// before, the network and not the client (or the root) was the limit. `may_gain`: there is reason to believe that more
    /// lanes would carry more. Returns the lanes wanted.
    pub fn sample(
        &mut self,
        now: Duration,
        received: u64,
        by_network: bool,
        may_gain: bool,
        round_trip: Duration,
        turn: &mut ProbeTurn,
    ) -> usize {
        self.rest_left = self.rest_left.saturating_sub(now.saturating_sub(self.last));
        self.last = now;
        self.received = self.received.max(received);
        let here = Measurement { since: now, bytes: self.received };
        if !by_network {
            self.give_up(turn);
            return self.wanted;
        }
        let measure = MEASURE_MIN.max(round_trip * MEASURE_ROUND_TRIPS);
        match self.state {
            State::Steady(None) => self.state = State::Steady(Some(here)),
            State::Steady(Some(begin)) if now - begin.since >= measure => {
                let rate = begin.rate(now, self.received);
                let may_begin = self.rest_left.is_zero() && (may_gain || self.learned > self.least);
                if !may_begin || !self.begin(rate, now, round_trip, turn) {
                    self.state = State::Steady(Some(here));
                }
            }
            State::Steady(Some(_)) => {}
            State::Settling { until, before } if now >= until => {
                self.state = State::Measuring { measurement: here, before };
            }
            State::Settling { .. } => {}
            State::Measuring { measurement, before } => {
                let elapsed = now - measurement.since;
                let rate = measurement.rate(now, self.received);
                let is_clear = elapsed >= CLEAR_MIN.max(round_trip * CLEAR_ROUND_TRIPS)
                    && !self.tries_fewer
                    && rate >= before * GAIN_CLEAR;
                if is_clear || elapsed >= measure {
                    self.judge(rate, before, now, round_trip, turn);
                }
            }
        }
        self.wanted
    }

    /// Tries another number, if there is one and no other path tries.
    fn begin(&mut self, before: f64, now: Duration, round_trip: Duration, turn: &mut ProbeTurn) -> bool {
        self.tries_fewer = (self.tries_fewer || self.learned >= self.most) && self.learned > self.least;
        let other = if self.tries_fewer {
            (self.learned / 2).max(self.least)
        } else {
            (self.learned * 2).min(self.most)
        };
        if turn.is_taken || other == self.learned {
            return false;
        }
        turn.is_taken = true;
        self.wanted = other;
        let until = now + SETTLE_MIN.max(round_trip * SETTLE_ROUND_TRIPS);
        self.state = State::Settling { until, before };
        true
    }

    fn judge(&mut self, rate: f64, before: f64, now: Duration, round_trip: Duration, turn: &mut ProbeTurn) {
        turn.is_taken = false;
        let is_better = if self.tries_fewer { rate >= before * LOSS_MAX } else { rate >= before * GAIN_MIN };
        if is_better {
            self.learned = self.wanted;
            self.rest = REST_MIN;
            // On in the same direction at once.
            if self.begin(rate, now, round_trip, turn) {
                return;
            }
        }
        self.wanted = self.learned;
        self.rest_left = self.rest;
        self.rest = (self.rest * 2).min(REST_MAX);
        self.tries_fewer = !self.tries_fewer && self.learned > self.least;
        self.state = State::Steady(None);
    }

    fn give_up(&mut self, turn: &mut ProbeTurn) {
        if !matches!(self.state, State::Steady(_)) {
            turn.is_taken = false;
        }
        self.wanted = self.learned;
        self.state = State::Steady(None);
    }
}

#[cfg(test)]
#[path = "lane_count_tests.rs"]
mod tests;
