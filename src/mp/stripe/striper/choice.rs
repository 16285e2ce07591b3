//! What a lane with room is to do.
//!
//! In: the striper's state, which lane asks, and when. Out: a [`Turn`]. Invariants: a lane that would bring the frame sooner
//! than any other never waits for another one, so that they cannot all wait for each other, but for
//! [`FIRST_FRAME_SECONDS`] at the start; copies cost their shares at most, but for what is stuck: a copy of each such frame
//! every [`STUCK_AGE_SECONDS`], and never two on one lane.

use std::time::Duration;

use super::{
    super::{lane::Lane, sizer::FRAME_BYTES_MIN},
    FRAMES_AHEAD_MAX, FRAMES_AHEAD_MIN, LaneId, Striper, Turn,
};
use crate::wire::{frame::Reading, units::Seq};

/// Copies of frames that would arrive late: at most this share of the body, or of what was handed out if the length is not
/// known,
const TAIL_SHARE: f64 = 0.03;
/// or this many bytes, which is one frame of a lane that is not known yet.
const TAIL_BYTES_MIN: u64 = 64 << 10;
/// Frames that hold up the window while their copier has nothing else to do may cost this share more: a path that stands
/// still costs more than bytes. Beyond it, and behind the first [`COPY_CANDIDATES_MAX`], only the one frame that the client waits for is
/// copied,
const HELD_UP_SHARE: f64 = 0.1;
/// and what is stuck: on lanes that have collapsed stand many frames, and to copy one after the other would take a round trip for
/// each. A frame is if by a copy, its first one, it would come so much earlier,
const STUCK_SECONDS: f64 = 1.0;
/// or if so long after it was last sent it is not there, whatever the estimates are: that is worth another copy,
const STUCK_AGE_SECONDS: f64 = 0.5;
/// unless its round trips are long.
const STUCK_AGE_ROUND_TRIPS: f64 = 3.0;
/// A copy is worth its bytes only if it comes this much earlier: estimates are not exact to the millisecond.
pub(super) const COPY_GAIN_SECONDS: f64 = 0.02;
/// and in this proportion.
const COPY_GAIN: f64 = 1.25;
/// Frames looked at for a copy, from the one the client waits for on: where they are [stuck](STUCK_SECONDS), of those that are missing.
pub(super) const COPY_CANDIDATES_MAX: usize = 64;
/// In flight on a lane of which nothing is known: a copy of it is in budget.
const COLD_BYTES_MAX: u64 = 48 << 10;
/// Its frames: one fits into the ten segments that TCP begins with, and so is acknowledged after one round trip.
const COLD_FRAME_BYTES: u64 = 12 << 10;
/// What a frame may take where the path is slowest. The sizer sees how fast the lane's socket takes bytes, which may be
/// only the way to a relay, or slow start into an empty queue.
const FRAME_SECONDS_MAX: f64 = 0.04;
/// but as much as this, unless other lanes are far faster: with hundreds of transfers at once all lanes are slow, and small
/// frames would make them cost more.
const EQUAL_FRAME_BYTES: u64 = 64 << 10;
/// In flight in any case on such a lane.
const EQUAL_QUEUE_BYTES: u64 = 256 << 10;
/// So much faster.
const FAR_FASTER: f64 = 4.0;
/// A lane that has nobody beside it may have so many times what is full otherwise: what does not fit has nowhere else to go,
/// so that an estimate that is too low must cost nothing; but more lanes may come, and wait for what is on its way here.
const ALONE_TIMES: f64 = 4.0;
/// Lanes of one transfer reach the upstream within this time of each other.
const ALONE_SECONDS: f64 = 0.5;
/// A frame should arrive when the others have used this much of the window ahead: one that comes too late stops them all.
const WINDOW_SHARE: f64 = 0.5;
/// How much of a lane's longest pause counts, as far as it is longer than that of the steadiest lane.
const STALL_SHARE: f64 = 0.5;
/// The first frame is the one that the client waits for from the start: for so long lanes that are farther away, or pause, leave it to
/// one that is not and does not,
const FIRST_FRAME_SECONDS: f64 = 0.02;
/// and look again so soon.
const FIRST_FRAME_RETRY_SECONDS: f64 = 0.002;
/// How soon a lane that waits for nothing but a better estimate is looked at again.
const RETRY_SECONDS_MIN: f64 = 0.01;

impl Striper {
    /// What a lane with room is to do; `size` is what its [`FrameSizer`](crate::mp::stripe::FrameSizer) says, in bytes.
    pub fn turn(&mut self, lane: LaneId, size: usize, now: Duration) -> Turn {
        let now = now.as_secs_f64();
        let Some(index) = self.index(lane) else { return Turn::Wait { until: None } };
        self.lanes[index].has_asked = true;
        if self.lanes[index].is_silent() {
            return Turn::Wait { until: None };
        }
        if self.rests(index, now) {
            return Turn::Wait { until: None };
        }
        if let Some(until) = self.word_awaited(index, now) {
            return Turn::Wait { until: Some(Duration::from_secs_f64(until)) };
        }
        if let Some(seq) = self.lost_for(index, now) {
            return Turn::Again { seq: Seq(seq) };
        }
        if let Some(seq) = self.late_for(index, now) {
            return Turn::Again { seq: Seq(seq) };
        }
        let fresh_left = self.fresh_left();
        if fresh_left > 0 && self.leaves_first_frame(index, now) {
            return Turn::Wait { until: Some(Duration::from_secs_f64(now + FIRST_FRAME_RETRY_SECONDS)) };
        }
        if fresh_left > 0 {
            if let Some(want) = self.fresh_for(index, size.max(1) as u64, fresh_left, now) {
                self.lanes[index].asked_at = now;
                self.lanes[index].is_trial = false;
                return Turn::Fresh { want: want as usize };
            }
            if self.tries(index, now) {
                return Turn::Fresh { want: COLD_FRAME_BYTES.min(fresh_left) as usize };
            }
            self.lanes[index].idles(now);
            let retry = now + self.retry_seconds(index);
            return Turn::Wait { until: Some(Duration::from_secs_f64(retry)) };
        }
        if let Some(until) = self.lanes[index].busy_until(now).filter(|_| !self.is_at_end()) {
            // The window opens before the lane falls idle; copies would only cost.
            return Turn::Wait { until: Some(Duration::from_secs_f64(until.max(now + RETRY_SECONDS_MIN))) };
        }
        self.lanes[index].idles(now);
        match self.copy_for(index, now) {
            Copy::Now(seq) => Turn::Again { seq: Seq(seq) },
            Copy::At(until) => Turn::Wait { until: Some(Duration::from_secs_f64(until)) },
            Copy::Never => Turn::Wait { until: None },
        }
    }

    /// Whether others carry what this lane need not: one that is to rest works on while no other is in order.
    fn rests(&self, index: usize, now: f64) -> bool {
        self.lanes[index].reading == Reading::Resting
            && self
                .lanes
                .iter()
                .any(|lane| lane.reading == Reading::Eager && lane.is_healthy(self.spares_habits(), now))
    }

    /// Fresh bytes that may be handed out now.
    pub(super) fn fresh_left(&self) -> u64 {
        if self.has_ended || self.outstanding.len() as u64 >= self.frames_ahead_max() {
            return 0;
        }
        self.limit.min(self.length.unwrap_or(u64::MAX)).saturating_sub(self.next_offset)
    }

    fn frames_ahead_max(&self) -> u64 {
        FRAMES_AHEAD_MAX.saturating_sub(self.lanes.len() as u64).max(FRAMES_AHEAD_MIN)
    }

    /// Whether no more credit would bring fresh bytes.
    pub(super) fn is_at_end(&self) -> bool {
        self.has_ended || self.length.is_some_and(|length| self.next_offset >= length)
    }

    /// The lowest lost frame that this lane should take: the others take those before it.
    fn lost_for(&self, index: usize, now: f64) -> Option<u64> {
        let lane = &self.lanes[index];
        let mut before = 0;
        // No more may be parked, perhaps: behind a later frame the one that the client waits for would never come.
        let has_paused = self.lanes.iter().any(Lane::is_paused);
        for &seq in self.lost.iter().take(COPY_CANDIDATES_MAX) {
            let frame = &self.outstanding[(seq - self.base) as usize];
            let len = u64::from(frame.len);
            if has_paused && seq == self.base {
                if lane.sent.iter().all(|sent| sent.seq < seq) {
                    return Some(seq);
                }
                before += len;
                continue;
            }
            if frame.carriers.iter().all(|(carrier, _)| *carrier != lane.id) {
                let soonest = self.others(index).filter_map(|other| other.arrival(before + len, now));
                let Some(soonest) = soonest.reduce(f64::min) else { return Some(seq) };
                // If not, a lane that brings it sooner will ask.
                let is_soon = |arrival| arrival <= soonest + COPY_GAIN_SECONDS;
                return lane.arrival(len, now).is_some_and(is_soon).then_some(seq);
            }
            before += len;
        }
        None
    }

    /// Whether a lane that brings nothing in time is to be tried again: with a few frames that others send as well.
    fn tries(&mut self, index: usize, now: f64) -> bool {
        let budget = self.tail_budget();
        let lane = &mut self.lanes[index];
        if lane.sent.is_empty() {
            lane.is_trial = lane.is_stale(now);
        }
        lane.is_trial
            && lane.in_flight() < COLD_BYTES_MAX
            && self.resent.tail_bytes + COLD_BYTES_MAX <= budget
    }

    /// Bytes of copies that may have been sent by now.
    fn tail_budget(&self) -> u64 {
        let bytes = self.length.unwrap_or(self.next_offset);
        TAIL_BYTES_MIN.max((bytes as f64 * TAIL_SHARE) as u64)
    }

    /// Bytes that copies may cost from now on.
    pub(super) fn copy_bytes_left(&self) -> u64 {
        if self.is_at_end() {
            return self.tail_budget().saturating_sub(self.resent.tail_bytes);
        }
        let budget = TAIL_BYTES_MIN.max((self.next_offset as f64 * HELD_UP_SHARE) as u64);
        budget.saturating_sub(self.resent.held_up_bytes)
    }

    /// How many fresh bytes the lane should take, of `left` that may be handed out.
    fn fresh_for(&self, index: usize, size: u64, left: u64, now: f64) -> Option<u64> {
        let lane = &self.lanes[index];
        let want = size.min(left);
        let Some(rate) = lane.model.rate() else {
            let is_cold = self.lanes.len() > 1 && lane.in_flight() >= COLD_BYTES_MAX;
            return (!is_cold).then_some(want.min(COLD_FRAME_BYTES));
        };
        let (frame_least, queue_least) = if self.is_laggard(index, rate, now) {
            (FRAME_BYTES_MIN as u64, 2 * FRAME_BYTES_MIN as u64)
        } else {
            (EQUAL_FRAME_BYTES, EQUAL_QUEUE_BYTES)
        };
        let want = want.min(((rate * FRAME_SECONDS_MAX) as u64).max(frame_least));
        let times = if self.lanes.len() == 1 && now > ALONE_SECONDS { ALONE_TIMES } else { 1.0 };
        let is_wary = self.others(index).any(|lane| lane.is_suspect(now));
        if lane.is_full(queue_least, times, is_wary) {
            return None;
        }
        let remaining = self.length.map(|length| length - self.next_offset);
        let Some(others_remaining) = self.others_need(index, remaining.unwrap_or(u64::MAX) as f64, now)
        else {
            return Some(want);
        };
        // What the others could carry until they have to wait for this frame.
        let frames = self.base + self.outstanding.len() as u64;
        let frame_mean = self.next_offset.checked_div(frames).unwrap_or(size).max(1);
        let window = (self.limit - self.base_offset()).min(self.frames_ahead_max() * frame_mean);
        let others_window = self.others_need(index, window as f64, now).unwrap_or(f64::INFINITY);
        let steadiest = self.others(index).map(|lane| lane.model.stall()).fold(f64::INFINITY, f64::min);
        let pauses = (lane.model.stall() - steadiest).max(0.0) * STALL_SHARE;
        let deadline = (others_window * WINDOW_SHARE).min(others_remaining) - pauses;
        let smallest = want.min(FRAME_BYTES_MIN as u64);
        let in_time = [want, want / 2, want / 4]
            .into_iter()
            .map(|want| want.max(smallest))
            .find(|&want| lane.arrival(want, now).is_some_and(|arrival| arrival <= deadline));
        // Whatever the estimates say, the lane that brings a frame first waits for nobody: or all could wait for each other.
        in_time.or_else(|| self.is_first(index, smallest, now).then_some(smallest))
    }

    /// Whether another lane would bring the body's first frame sooner, or as soon without the pauses that this one has. It may be
    /// about to ask.
    fn leaves_first_frame(&mut self, index: usize, now: f64) -> bool {
        if self.next_offset > 0 || now - *self.first_asked_at.get_or_insert(now) > FIRST_FRAME_SECONDS {
            return false;
        }
        let known = |lane: &Lane| Some((lane.model.arrival(0.0, 0.0)?, lane.model.stall()));
        let Some((own, own_pause)) = known(&self.lanes[index]) else { return false };
        let is_better = |(arrival, pause): (f64, f64)| {
            let is_as_soon = arrival <= own + COPY_GAIN_SECONDS;
            arrival + COPY_GAIN_SECONDS < own || (is_as_soon && pause + COPY_GAIN_SECONDS < own_pause)
        };
        let usable = self.lanes.iter().filter(|lane| !lane.is_silent() && lane.reading == Reading::Eager);
        usable.filter_map(known).any(is_better)
    }

    /// Whether other lanes are far faster than this one, or may be.
    fn is_laggard(&self, index: usize, rate: f64, now: f64) -> bool {
        let is_far_faster = |other: &Lane| other.model.rate().is_some_and(|other| other > FAR_FASTER * rate);
        // Faster ones may be about to join.
        now < ALONE_SECONDS || self.others(index).any(is_far_faster)
    }

    /// Whether no other lane would bring a frame of `len` bytes sooner.
    fn is_first(&self, index: usize, len: u64, now: f64) -> bool {
        let arrival = self.lanes[index].arrival(len, now);
        self.others(index)
            .filter_map(|lane| lane.arrival(len, now))
            .all(|other| arrival.is_some_and(|own| own <= other))
    }

    /// Other lanes that fresh bytes may be left to.
    pub(super) fn others(&self, index: usize) -> impl Iterator<Item = &Lane> {
        let others = self.lanes.iter().enumerate().filter(move |(other, _)| *other != index);
        others.map(|(_, lane)| lane).filter(|lane| lane.takes_part())
    }

    fn base_offset(&self) -> u64 {
        self.outstanding.front().map_or(self.next_offset, |frame| frame.offset)
    }

    /// Seconds until the other lanes could have brought `bytes` more; `None` if none of them is known and alive.
    fn others_need(&self, index: usize, bytes: f64, now: f64) -> Option<f64> {
        // Lanes in the order in which they could first bring something; each adds its rate from then on.
        let mut lanes: Vec<(f64, f64)> =
            self.others(index).filter_map(|lane| Some((lane.arrival(0, now)?, lane.model.rate()?))).collect();
        lanes.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let (first, _) = *lanes.first()?;
        let (mut at, mut rate, mut left) = (first, 0.0, bytes);
        for (start, more) in lanes {
            let carried = rate * (start - at);
            if carried >= left {
                break;
            }
            left -= carried;
            at = start;
            rate += more;
        }
        Some(at + left / rate)
    }

    /// A frame of others that this lane would bring earlier.
    fn copy_for(&self, index: usize, now: f64) -> Copy {
        let lane = &self.lanes[index];
        let bytes_left = self.copy_bytes_left();
        let mut retry = None;
        let frames = self.outstanding.iter().enumerate().filter(|(_, frame)| !frame.is_acknowledged);
        for (place, frame) in frames.take(COPY_CANDIDATES_MAX) {
            if frame.carriers.iter().any(|(carrier, _)| *carrier == lane.id) {
                continue;
            }
            let len = u64::from(frame.len);
            let is_in_budget = len <= bytes_left && place < COPY_CANDIDATES_MAX;
            let is_next = place == 0 && !self.is_at_end();
            if !is_in_budget && self.is_at_end() {
                return retry.map_or(Copy::Never, Copy::At);
            }
            let Some(arrival) = lane.arrival(len, now) else {
                // A lane without work may as well find out.
                let is_small = lane.in_flight() + len <= COLD_BYTES_MAX;
                return if is_small && (is_in_budget || is_next) {
                    Copy::Now(self.base + place as u64)
                } else {
                    Copy::Never
                };
            };
            let carriers =
                || frame.carriers.iter().filter_map(|(id, number)| Some((self.lane(*id)?, *number)));
            let remaining = carriers().filter_map(|(lane, number)| lane.remaining(number, now));
            let Some(remaining) = remaining.reduce(f64::min) else { continue };
            let mut again = (arrival * COPY_GAIN + COPY_GAIN_SECONDS).max(RETRY_SECONDS_MIN);
            let is_sooner_by = |gain| remaining > arrival * COPY_GAIN + gain;
            let mut is_worth_it = (is_in_budget || is_next) && is_sooner_by(COPY_GAIN_SECONDS);
            if !is_in_budget {
                let ages = carriers().filter_map(|(lane, number)| lane.age(number, now));
                let round_trip = lane.model.round_trip().unwrap_or(0.0);
                let stuck_after = STUCK_AGE_SECONDS.max(STUCK_AGE_ROUND_TRIPS * round_trip);
                let stuck_in = stuck_after - ages.fold(f64::INFINITY, f64::min);
                again = again.min(stuck_in.max(RETRY_SECONDS_MIN));
                is_worth_it |= stuck_in <= 0.0 || (frame.carriers.len() == 1 && is_sooner_by(STUCK_SECONDS));
            }
            if is_worth_it {
                return Copy::Now(self.base + place as u64);
            }
            retry.get_or_insert(now + again);
        }
        retry.map_or(Copy::Never, Copy::At)
    }

    fn retry_seconds(&self, index: usize) -> f64 {
        let round_trip = self.lanes[index].model.round_trip().unwrap_or(0.1);
        (round_trip / 4.0).max(RETRY_SECONDS_MIN)
    }
}

/// What [`Striper::copy_for`] found.
enum Copy {
    Now(u64),
    At(f64),
    Never,
}
