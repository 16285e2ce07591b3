//! How many lanes a transfer opens on one path, found by trying.
//!
//! In: the bytes that came over the path, every 100 ms or so. Out: the number of lanes wanted. Called by the downstream's
//! manager, one [`LaneCount`] per path. Invariants: a transfer that its client holds back is never probed; a number that
//! brought nothing is given up.

use std::{collections::VecDeque, time::Duration};

/// Lanes on one path at most: with 1 % loss 32 cubic connections carry what the path has, and a policer of single
/// connections seldom allows less than a thirtieth of the path.
pub const LANES_MAX: usize = 32;
/// A step up multiplies by this: 32 lanes are found in three steps, and single lanes, which random loss makes go up and
/// down by half, cannot hide the gain.
const LEAP: usize = 4;
/// What a step up has to bring for all its lanes to be kept; half of them are if it brought less. What is measured while they come up to
/// speed is less than what they bring.
const LEAP_GAIN_MIN: f64 = 1.75;
/// What twice the lanes have to bring at least, and what more do: less is the noise of a busy path.
const GAIN_MIN: f64 = 1.2;
const LEAP_LEAST: f64 = GAIN_MIN * GAIN_MIN;
/// Half the lanes are as good if they bring this share.
const LOSS_MAX: f64 = 0.95;
/// A measurement takes this long, or five round trips: a lane's own ups and downs average out.
const MEASURE_MIN: Duration = Duration::from_secs(1);
const MEASURE_ROUND_TRIPS: u32 = 5;
/// A gain of this much is no noise: it is believed after a shorter time, or two round trips.
const GAIN_CLEAR: f64 = 2.0;
/// As clear is a loss of this much.
const LOSS_CLEAR: f64 = 0.75;
const CLEAR_MIN: Duration = Duration::from_millis(300);
const CLEAR_ROUND_TRIPS: u32 = 2;
/// More lanes are compared with the median of so many measurements, or with the last one if that is lower: a single lane goes up
/// and down.
const MEASUREMENTS: usize = 3;
/// New lanes get this long, or four round trips, to be dialled and to come up to speed before they are measured.
const SETTLE_MIN: Duration = Duration::from_millis(300);
const SETTLE_ROUND_TRIPS: u32 = 4;
/// Fewer are tried for so many times longer: taken for as good by chance, they would stay for long.
const FEWER_MEASURES: u32 = 3;
/// Fewer are tried when the wait after tries of more has grown to this.
const FEWER_AFTER: Duration = Duration::from_secs(8);
/// One paced lane (BBR) fills a path that loses packets at random: more are tried only to find out whether single connections are
/// policed, and kept if the first step brings this much.
const PACED_LEAP_GAIN_MIN: f64 = 2.5;
/// That is tried only where the rate differs by this at most from the one before: on a lossy path BBR grows by fits and starts, and more
/// lanes take from it what it has just found; a policer lets through the same every second.
const PACED_STILL: f64 = 0.05;
/// The step is given up early if it has brought less than this after [`CLEAR_MIN`], before the new lanes have come up to speed and take
/// the path from the one that has it.
const PACED_EARLY_GAIN_MIN: f64 = 1.4;
/// The wait after that; it doubles each time.
const PACED_REST_MIN: Duration = Duration::from_secs(30);
/// A path that brings nothing for so long is out.
const OUTAGE_MIN: Duration = Duration::from_secs(1);
/// The wait after that: lanes that stand again have to come up to speed, which more of them would not shorten.
const OUTAGE_REST: Duration = Duration::from_secs(10);
/// One that was out for less time than this, while a few lanes lost segments, may have had retransmissions lost: two or three timeouts
/// in a row.
const TIMEOUTS_MAX: Duration = Duration::from_secs(3);
/// The wait after a number was learned, and after the largest was: that fewer would do is less likely then, and to try it takes
/// seconds of the lanes that are left out. It doubles each time that fewer did not do.
const LEARNED_REST: Duration = Duration::from_secs(15);
const MOST_LEARNED_REST: Duration = Duration::from_secs(60);
/// The wait after a try that brought nothing; doubles each time.
const REST_MIN: Duration = Duration::from_secs(2);
const REST_MAX: Duration = Duration::from_secs(600);

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
    /// Another number is measured against `before`, for the second time if `is_second`.
    Measuring { measurement: Measurement, before: f64, is_second: bool },
}

/// The number of lanes of one path; outlives transfers.
#[derive(Debug)]
pub struct LaneCount {
    /// Lanes use BBR.
    is_paced: bool,
    least: usize,
    most: usize,
    /// The number that has proved itself.
    learned: usize,
    /// The number to have now.
    wanted: usize,
    state: State,
    /// The last rates that the learned number carried.
    rates: VecDeque<f64>,
    /// Time in transfers until the next try, and the one after that.
    rest_left: Duration,
    rest: Duration,
    /// The wait after the next try of fewer that brings less.
    fewer_rest: Duration,
    /// What the last try of more, which brought nothing, was compared with.
    basis: Option<f64>,
    /// The running or the next try goes down.
    tries_fewer: bool,
    last: Duration,
    received: u64,
    /// When the last bytes came.
    received_at: Duration,
}

impl LaneCount {
    /// Begins with `least` lanes (at least 1) and goes up to `most`, which may be the same. `is_paced`: lanes use BBR.
    pub fn new(least: usize, most: usize, is_paced: bool) -> Self {
        let least = least.max(1);
        Self {
            is_paced,
            least,
            most: most.max(least),
            learned: least,
            wanted: least,
            state: State::Steady(None),
            rates: VecDeque::new(),
            rest_left: Duration::ZERO,
            rest: REST_MIN,
            fewer_rest: LEARNED_REST,
            basis: None,
            tries_fewer: false,
            last: Duration::ZERO,
            received: 0,
            received_at: Duration::ZERO,
        }
    }

    /// Lanes that have proved themselves.
    pub fn learned(&self) -> usize {
        self.learned
    }

    /// As many lanes as may be have proved themselves, and their congestion control takes each loss for a queue: what
    /// they carry sinks to what losses allow, far below what slow start brought them to.
    pub fn wears_out(&self) -> bool {
        !self.is_paced && self.learned == self.most && self.wanted == self.most && self.least < self.most
    }

    /// Another number is being tried, or will be as soon as the rate stands still. `may_gain` as in [`LaneCount::sample`].
    pub fn is_trying(&self, may_gain: bool) -> bool {
        let may_try_more = may_gain && self.rest_left.is_zero() && self.learned < self.most;
        may_try_more || !matches!(self.state, State::Steady(_))
    }

    /// A transfer begins or ends: what is being tried is given up, what was learned stays.
    pub fn restart(&mut self) -> usize {
        self.give_up();
        self.last = Duration::ZERO;
        self.received = 0;
        self.received_at = Duration::ZERO;
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
    ) -> usize {
        self.rest_left = self.rest_left.saturating_sub(now.saturating_sub(self.last));
        self.last = now;
        if received > self.received {
            (self.received, self.received_at) = (received, now);
        }
        let here = Measurement { since: now, bytes: self.received };
        if !by_network {
            self.received_at = now;
            self.give_up();
            return self.wanted;
        }
        let silent = now - self.received_at;
        if silent >= OUTAGE_MIN.max(round_trip * MEASURE_ROUND_TRIPS) {
            let may_be_losses = may_gain && !self.is_paced && self.learned < LEAP && silent < TIMEOUTS_MAX;
            self.rest_left = self.rest_left.max(if may_be_losses { REST_MIN } else { OUTAGE_REST });
            self.rates.clear();
            self.give_up();
            return self.wanted;
        }
        let measure = MEASURE_MIN.max(round_trip * MEASURE_ROUND_TRIPS);
        // Nobody wants to wait for the first try of more. What BBR does in slow start on a lossy path would be taken for a stand.
        let is_first = !self.is_paced && self.learned == self.least && self.rates.len() < 2;
        let steady_measure = if is_first { measure / 2 } else { measure };
        match self.state {
            State::Steady(None) => self.state = State::Steady(Some(here)),
            State::Steady(Some(begin)) if now - begin.since >= steady_measure => {
                let rate = begin.rate(now, self.received);
                self.rates.truncate(MEASUREMENTS - 1);
                self.rates.push_front(rate);
                // Slow start, as it goes on, would be taken for what more lanes bring.
                let still_grows = self.rates.get(1).is_none_or(|before| rate >= before * GAIN_MIN);
                if still_grows {
                    self.rates.truncate(1);
                }
                if may_gain && self.is_disproved(rate) {
                    self.rest_left = Duration::ZERO;
                }
                let tries_fewer = self.tries_fewer;
                self.tries_fewer |= !may_gain;
                let may_begin = self.rest_left.is_zero() && (may_gain || self.learned > self.least);
                if still_grows || !may_begin || !self.stands_still() || !self.begin(rate, now, round_trip) {
                    self.tries_fewer = tries_fewer;
                    self.state = State::Steady(Some(here));
                }
            }
            State::Steady(Some(_)) => {}
            State::Settling { until, before } if now >= until => {
                self.state = State::Measuring { measurement: here, before, is_second: false };
            }
            State::Settling { .. } => {}
            State::Measuring { measurement, before, is_second } => {
                let elapsed = now - measurement.since;
                let rate = measurement.rate(now, self.received);
                let is_clear = match self.tries_fewer {
                    true => rate <= before * LOSS_CLEAR,
                    false => {
                        rate >= before * GAIN_CLEAR
                            || (self.is_first_leap() && rate < before * PACED_EARLY_GAIN_MIN)
                    }
                } && elapsed >= CLEAR_MIN.max(round_trip * CLEAR_ROUND_TRIPS);
                let enough = if self.tries_fewer { measure * FEWER_MEASURES } else { measure };
                // Lanes that are still in slow start show what they bring in the second one.
                if !is_clear
                    && elapsed >= enough
                    && !is_second
                    && may_gain
                    && self.may_bring_more(rate, before)
                {
                    self.state = State::Measuring { measurement: here, before, is_second: true };
                } else if is_clear || elapsed >= enough {
                    self.judge(rate, before, now, round_trip);
                }
            }
        }
        self.wanted
    }

    /// Tries another number, if there is one.
    fn begin(&mut self, before: f64, now: Duration, round_trip: Duration) -> bool {
        self.tries_fewer = (self.tries_fewer || self.learned >= self.most) && self.learned > self.least;
        let other = if self.tries_fewer {
            (self.learned / 2).max(self.least)
        } else {
            (self.learned * LEAP).min(self.most)
        };
        if other == self.learned {
            return false;
        }
        let before = match self.tries_fewer {
            true => before,
            // While slow start gives way to what losses allow, the last one is the lower one.
            false => self.usual_rate().map_or(before, |usual| usual.min(before)),
        };
        self.wanted = other;
        let until = now + SETTLE_MIN.max(round_trip * SETTLE_ROUND_TRIPS);
        self.state = State::Settling { until, before };
        true
    }

    fn judge(&mut self, rate: f64, before: f64, now: Duration, round_trip: Duration) {
        let gain = rate / before.max(f64::MIN_POSITIVE);
        let is_better = gain
            >= match self.wanted / self.learned {
                0 => LOSS_MAX,
                1..=2 => GAIN_MIN,
                _ if self.is_first_leap() => PACED_LEAP_GAIN_MIN,
                _ => LEAP_LEAST,
            };
        if is_better {
            let is_too_far = self.wanted > 2 * self.learned && gain < LEAP_GAIN_MIN;
            self.learned = if is_too_far { self.wanted / 2 } else { self.wanted };
            self.rest = REST_MIN;
            self.rates.clear();
            self.basis = None;
            let is_at_bound = self.learned == if self.tries_fewer { self.least } else { self.most };
            // On in the same direction at once.
            if !is_at_bound && self.begin(rate, now, round_trip) {
                return;
            }
            self.fewer_rest = self.learned_rest();
            self.rest_left = self.fewer_rest;
        } else if self.tries_fewer {
            self.fewer_rest = (self.fewer_rest * 2).min(REST_MAX);
            self.rest_left = self.fewer_rest.max(self.rest);
        } else {
            if self.is_first_leap() {
                self.rest = self.rest.max(PACED_REST_MIN);
            }
            self.rest_left = self.rest;
            self.rest = (self.rest * 2).min(REST_MAX);
            self.basis = Some(before);
        }
        self.wanted = self.learned;
        self.tries_fewer = !self.tries_fewer && self.rest > FEWER_AFTER && self.learned > self.least;
        self.state = State::Steady(None);
    }

    /// Whether the rate is so steady that a first leap may be tried.
    fn stands_still(&self) -> bool {
        let [rate, before] = [0, 1].map(|index| self.rates.get(index).copied());
        let is_still = |rate: f64, before: f64| (rate - before).abs() <= PACED_STILL * before;
        !self.is_first_leap() || rate.zip(before).is_some_and(|(rate, before)| is_still(rate, before))
    }

    /// Whether the last try of more was compared with what slow start had brought and losses have taken since; not later, when others
    /// are more likely to have taken it.
    fn is_disproved(&self, rate: f64) -> bool {
        let is_young = !self.is_paced && self.rest <= FEWER_AFTER;
        is_young && self.basis.is_some_and(|basis| rate < basis * LOSS_CLEAR)
    }

    /// Whether more lanes that lose packets have not brought enough for all of them to be kept, and may yet.
    fn may_bring_more(&self, rate: f64, before: f64) -> bool {
        !self.is_paced && !self.tries_fewer && self.learned < LEAP && rate < before * LEAP_GAIN_MIN
    }

    fn learned_rest(&self) -> Duration {
        if self.learned == self.most { MOST_LEARNED_REST } else { LEARNED_REST }
    }

    /// Whether more are tried beside the one paced lane that a path begins with.
    fn is_first_leap(&self) -> bool {
        self.is_paced && !self.tries_fewer && self.learned == self.least
    }

    /// The lower median of the last rates.
    fn usual_rate(&self) -> Option<f64> {
        let mut rates: Vec<_> = self.rates.iter().copied().collect();
        rates.sort_unstable_by(f64::total_cmp);
        rates.get(rates.len().saturating_sub(1) / 2).copied()
    }

    fn give_up(&mut self) {
        self.wanted = self.learned;
        self.state = State::Steady(None);
    }
}

#[cfg(test)]
#[path = "lane_count_tests.rs"]
mod tests;
