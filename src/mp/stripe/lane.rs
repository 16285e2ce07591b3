//! One lane of a striped transfer: what is on it, and what its acknowledgements teach.
//!
//! In: frames put on the lane, acknowledgements by count (a lane is first in, first out). Out: the frames that arrived,
//! estimates of arrival. Called by `striper`. Invariant: `in_flight` is the sum of what `sent` holds.

use std::collections::VecDeque;

use super::model::{LaneModel, QUEUE_SECONDS, RateSample};
use crate::wire::frame::Reading;

/// A lane within one [`super::Striper`]; never reused there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneId(pub u32);

/// A lane is full with what it carries in its round trip, [`QUEUE_SECONDS`], and half a round trip more, or as many as two
/// where its acknowledgements pause: a lossy lane catches up. What is on a lane is what others must bring once it is lost.
const GAP_ROUND_TRIPS: [f64; 2] = [0.5, 2.0];
/// The next pause is often longer.
const GAP_FACTOR: f64 = 2.0;
/// Until the first acknowledgement of a transfer it can carry no more than this, and faster lanes may be about to join.
const FIRST_FLIGHT_ROUND_TRIPS: f64 = 1.25;
/// How often a lane that brings nothing in time is tried again.
const TRIAL_PAUSE_SECONDS: f64 = 1.0;
const TRIAL_PAUSE_ROUND_TRIPS: f64 = 4.0;
/// A lane that is late by so many round trips may have been lost.
const SUSPECT_ROUND_TRIPS: f64 = 0.5;

/// By so many seconds it is later than what wakes up late on a busy host.
const LATE_SECONDS_MIN: f64 = 0.05;

/// A frame on its way.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) seq: u64,
    pub(super) len: u64,
    /// Bytes the lane has carried with this frame's last one.
    upto: u64,
    at: f64,
    /// The same by the lane's busy time: without what it was given nothing for although it had room.
    busy_at: f64,
    /// When its acknowledgement was expected as it was sent.
    pub(super) due: f64,
    /// Bytes acknowledged as it was sent, and when the last of them was; and when that one was sent, by the lane's busy time.
    acknowledged: u64,
    acknowledged_at: f64,
    acknowledged_busy_at: f64,
    /// The lane had been without work.
    after_idleness: bool,
}

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) id: LaneId,
    pub(super) model: LaneModel,
    pub(super) sent: VecDeque<Sent>,
    /// Frames acknowledged: the number of the first in `sent`.
    pub(super) frames_acknowledged: u64,
    bytes_sent: u64,
    bytes_acknowledged: u64,
    /// When the last acknowledgement came, or the lane became busy again.
    quiet_since: f64,
    /// When the last frame acknowledged was sent, by the lane's busy time: a rate is not lower because it had less in flight.
    acknowledged_busy_at: f64,
    /// When the first acknowledgement since the last frame came: from then on the lane could have been given more.
    unanswered_since: Option<f64>,
    /// Seconds for which it was not.
    paused: f64,
    /// Samples of frames sent before this much was acknowledged do not show all the lane can carry.
    idle_upto: u64,
    pub(super) reading: Reading,
    pub(super) silent_since: Option<f64>,
    /// The lane has had room in this transfer: until then others do not wait for it.
    pub(super) has_asked: bool,
    /// When the lane was last told to bring fresh bytes.
    pub(super) asked_at: f64,
    /// Frames that others bring in time as well: they show whether the lane has become better.
    pub(super) is_trial: bool,
}

impl Lane {
    pub(super) fn new(id: LaneId, mut model: LaneModel, now: f64) -> Self {
        model.begins();
        Self {
            id,
            model,
            sent: VecDeque::new(),
            frames_acknowledged: 0,
            bytes_sent: 0,
            bytes_acknowledged: 0,
            quiet_since: now,
            acknowledged_busy_at: now,
            unanswered_since: None,
            paused: 0.0,
            // Its first flight waits a round trip for the first acknowledgement.
            idle_upto: 1,
            reading: Reading::Eager,
            silent_since: None,
            has_asked: false,
            asked_at: now,
            is_trial: false,
        }
    }

    pub(super) fn in_flight(&self) -> u64 {
        self.bytes_sent - self.bytes_acknowledged
    }

    pub(super) fn is_silent(&self) -> bool {
        self.silent_since.is_some()
    }

    pub(super) fn is_paused(&self) -> bool {
        self.reading == Reading::Paused
    }

    /// Whether it will ask for frames as soon as it has room.
    pub(super) fn takes_part(&self) -> bool {
        self.has_asked && !self.is_silent() && self.reading == Reading::Eager
    }

    /// Seconds until a frame given now would have arrived. What is overdue is expected to take as long again, and holds up
    /// all behind it.
    pub(super) fn arrival(&self, len: u64, now: f64) -> Option<f64> {
        let arrival = self.model.arrival(self.in_flight() as f64, len as f64)?;
        Some(arrival.max(self.overdue(now)))
    }

    /// Whether more would only wait in a queue on the way; never with less than `least` bytes in flight. `times` as much may
    /// be as is usual. `is_wary`: another lane may be lost, and what it carries would have to wait behind what is in flight
    /// here.
    ///
    /// Over several paths the kernel knows: what it puts on the longest of them must be in flight for as long as that takes,
    /// or the shortest has nothing to send, the rate falls, and with it what would be allowed.
    pub(super) fn is_full(&self, least: u64, times: f64, is_wary: bool) -> bool {
        let (Some(rate), Some(round_trip)) = (self.model.rate(), self.model.round_trip()) else {
            return false;
        };
        if self.model.spans_paths() {
            return false;
        }
        let is_first_flight = self.bytes_acknowledged == 0;
        let seconds = QUEUE_SECONDS
            + if is_first_flight {
                FIRST_FLIGHT_ROUND_TRIPS * round_trip
            } else {
                let [least, most] = GAP_ROUND_TRIPS.map(|round_trips| round_trips * round_trip);
                let (least, factor) = if is_wary { (0.0, 1.0) } else { (least, GAP_FACTOR) };
                round_trip + (factor * self.model.gap()).clamp(least, most)
            };
        let slow_start = self.model.slow_start(self.bytes_acknowledged);
        self.in_flight() >= least.max((rate * seconds * times) as u64).max(slow_start)
    }

    /// Until when the lane has work without being given more; `None` if it has none already, or nothing is known of it.
    pub(super) fn busy_until(&self, now: f64) -> Option<f64> {
        let (rate, round_trip) = (self.model.rate()?, self.model.round_trip()?);
        let waiting = self.in_flight() as f64 - rate * round_trip;
        (waiting > 0.0).then(|| now + waiting / rate)
    }

    /// Seconds by which the oldest frame is late.
    pub(super) fn overdue(&self, now: f64) -> f64 {
        if self.is_paused() {
            return 0.0;
        }
        self.sent.front().map_or(0.0, |oldest| (now - oldest.due).min(now - self.quiet_since).max(0.0))
    }

    /// The lane is given nothing although it has room: it could carry more, unless it has a queue to work off.
    pub(super) fn idles(&mut self, now: f64) {
        if self.busy_until(now).is_none() {
            self.idle_upto = self.bytes_sent.max(1);
        }
    }

    /// A frame goes on the lane; returns its number there.
    pub(super) fn send(&mut self, seq: u64, len: u64, now: f64) -> u64 {
        self.paused += self.unanswered_since.take().map_or(0.0, |since| now - since);
        let busy_at = now - self.paused;
        if self.sent.is_empty() {
            self.quiet_since = now;
            self.acknowledged_busy_at = busy_at;
        }
        let round_trip = self.model.round_trip().unwrap_or(0.0);
        let arrival = self.model.arrival(self.in_flight() as f64, len as f64);
        let due = now + arrival.map_or(1.0, |arrival| arrival + round_trip / 2.0);
        self.bytes_sent += len;
        self.sent.push_back(Sent {
            seq,
            len,
            upto: self.bytes_sent,
            at: now,
            busy_at,
            due,
            acknowledged: self.bytes_acknowledged,
            acknowledged_at: self.quiet_since,
            acknowledged_busy_at: self.acknowledged_busy_at,
            after_idleness: self.bytes_acknowledged < self.idle_upto,
        });
        self.frames_acknowledged + self.sent.len() as u64 - 1
    }

    /// `count` more frames have arrived.
    pub(super) fn acknowledge(&mut self, count: usize, now: f64) -> Vec<u64> {
        let elapsed = now - self.quiet_since;
        self.model.saw_stall(self.overdue(now), elapsed);
        if let (Some(first), Some(rate), Some(round_trip)) =
            (self.sent.front(), self.model.rate(), self.model.round_trip())
        {
            let since = self.quiet_since.max(first.at + round_trip);
            self.model.saw_gap(now - since - first.len as f64 / rate, elapsed);
        }
        let acknowledged: Vec<Sent> = self.sent.drain(..count).collect();
        self.frames_acknowledged += count as u64;
        if let Some(last) = acknowledged.last() {
            self.bytes_acknowledged = last.upto;
            let bytes = last.upto - last.acknowledged;
            let spent = (now - last.acknowledged_at).max(last.busy_at - last.acknowledged_busy_at);
            self.model.saw_rate(RateSample {
                bytes: bytes as f64,
                seconds: spent,
                since_last: elapsed,
                is_floor: last.after_idleness,
            });
            self.model.saw_round_trip(now - last.at, last.len as f64, elapsed);
            self.acknowledged_busy_at = last.busy_at;
            self.model.saw_progress(last.after_idleness, self.bytes_acknowledged, self.bytes_sent);
        }
        self.quiet_since = now;
        self.unanswered_since.get_or_insert(now);
        acknowledged.into_iter().map(|sent| sent.seq).collect()
    }

    /// Whether nothing was heard of the lane for so long that it may have become better than it was.
    pub(super) fn is_stale(&self, now: f64) -> bool {
        let round_trip = self.model.round_trip().unwrap_or(0.0);
        now - self.quiet_since.max(self.asked_at)
            > TRIAL_PAUSE_SECONDS.max(TRIAL_PAUSE_ROUND_TRIPS * round_trip)
    }

    /// The downstream reads the lane again: what was due meanwhile is due from now on.
    pub(super) fn resumes(&mut self, now: f64) {
        self.quiet_since = now;
        self.idle_upto = self.bytes_sent.max(1);
    }

    /// When the lane is to be called silent if nothing is heard of it. `spares_habits`: not for a pause as it has them now and
    /// then.
    pub(super) fn silent_at(&self, spares_habits: bool) -> Option<f64> {
        if self.is_paused() || self.is_silent() {
            return None;
        }
        let oldest = self.sent.front()?;
        let round_trip = self.model.round_trip().unwrap_or(1.0);
        let expected = self.model.arrival(self.in_flight() as f64, 0.0).unwrap_or(1.0) + round_trip / 2.0;
        Some(oldest.due.max(self.quiet_since) + self.model.patience(expected, spares_habits))
    }

    /// Whether it is late, and not called silent yet.
    pub(super) fn is_suspect(&self, now: f64) -> bool {
        let round_trip = self.model.round_trip().unwrap_or(0.0);
        !self.is_silent() && self.overdue(now) > SUSPECT_ROUND_TRIPS * round_trip
    }

    /// Whether it is so late, and not called silent yet, that what it carries is worth a copy.
    pub(super) fn is_late(&self, now: f64) -> bool {
        let overdue = self.overdue(now);
        self.is_suspect(now) && overdue > LATE_SECONDS_MIN && overdue > GAP_FACTOR * self.model.gap()
    }

    /// Whether nothing speaks against the lane's health.
    pub(super) fn is_healthy(&self, spares_habits: bool, now: f64) -> bool {
        !self.is_silent() && self.silent_at(spares_habits).is_none_or(|at| now + self.overdue(now) < at)
    }

    /// Seconds since the frame with this number on the lane was sent; `None` if it has arrived.
    pub(super) fn age(&self, number: u64, now: f64) -> Option<f64> {
        Some(now - self.sent.get(number.checked_sub(self.frames_acknowledged)? as usize)?.at)
    }

    /// Seconds until the frame with this number on the lane has arrived; `None` if that is not known. What is overdue
    /// is expected to take as long again.
    pub(super) fn remaining(&self, number: u64, now: f64) -> Option<f64> {
        let sent = self.sent.get((number - self.frames_acknowledged) as usize)?;
        if self.is_paused() {
            return None;
        }
        let (Some(rate), Some(round_trip)) = (self.model.rate(), self.model.round_trip()) else {
            return Some(now - sent.at);
        };
        let ahead = (sent.upto - self.bytes_acknowledged) as f64 / rate - round_trip / 2.0;
        let earliest = sent.at + round_trip / 2.0 + sent.len as f64 / rate - now;
        Some(ahead.max(earliest).max(self.overdue(now)))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::growth::FIRST_WINDOW_BYTES, *};

    const RATE: f64 = 6.25e6;
    const ROUND_TRIP: f64 = 0.1;
    const FRAME: u64 = 16 << 10;

    /// A lane that was cold, after a few seconds on a path that queues without end, as a relay does, and where acknowledgements
    /// pause for so many seconds each second.
    fn driven(pause: f64) -> Lane {
        let mut lane = Lane::new(LaneId(0), LaneModel::default(), 0.0);
        // When acknowledgements come, and when the path is free again.
        let (mut acknowledgements, mut free_at) = (VecDeque::new(), 0.0_f64);
        for step in 0..8000 {
            let now = f64::from(step) / 1000.0;
            while now % 1.0 >= pause && acknowledgements.front().is_some_and(|&at| at <= now) {
                acknowledgements.pop_front();
                lane.acknowledge(1, now);
            }
            while !lane.is_full(2 * FRAME, 1.0, false)
                && (lane.model.rate().is_some() || lane.in_flight() < FIRST_WINDOW_BYTES)
            {
                lane.send(0, FRAME, now);
                free_at = free_at.max(now + ROUND_TRIP / 2.0) + FRAME as f64 / RATE;
                acknowledgements.push_back(free_at + ROUND_TRIP / 2.0);
            }
        }
        lane
    }

    #[test]
    fn a_cold_lane_is_full_once_its_rate_stands_still() {
        let seconds = driven(0.0).in_flight() as f64 / RATE;
        let wanted = 1.5 * ROUND_TRIP + QUEUE_SECONDS;
        assert!(seconds > 0.95 * wanted && seconds < 1.05 * wanted, "{seconds} s in flight, {wanted} wanted");
    }

    #[test]
    fn slow_start_that_is_over_is_over_for_the_next_transfer_too() {
        let next = Lane::new(LaneId(1), driven(0.0).model, 0.0);
        assert_eq!(next.model.slow_start(0), 0);
    }

    #[test]
    fn a_lane_whose_acknowledgements_pause_may_have_more_in_flight() {
        let seconds = driven(0.15).in_flight() as f64 / RATE;
        let wanted = 3.0 * ROUND_TRIP + QUEUE_SECONDS;
        assert!(seconds > 0.85 * wanted && seconds < 1.15 * wanted, "{seconds} s in flight, {wanted} wanted");
    }

    #[test]
    fn a_lane_is_given_less_while_another_one_is_late() {
        let mut lane = driven(0.0);
        let now = lane.quiet_since;
        while lane.in_flight() as f64 / RATE > 1.5 * ROUND_TRIP + QUEUE_SECONDS {
            lane.acknowledge(1, now);
        }
        assert!(!lane.is_full(2 * FRAME, 1.0, false) && lane.is_full(2 * FRAME, 1.0, true));
        let expected = lane.sent.front().unwrap().due.max(now);
        assert!(
            !lane.is_suspect(expected + 0.4 * ROUND_TRIP) && lane.is_suspect(expected + 0.7 * ROUND_TRIP)
        );
    }

    #[test]
    fn a_lane_that_pauses_is_not_late_as_soon() {
        let is_late = |pause, seconds| {
            let mut lane = driven(pause);
            let now = lane.quiet_since;
            lane.send(0, FRAME, now);
            lane.is_late(lane.sent.front().unwrap().due.max(now) + seconds)
        };
        assert!(!is_late(0.0, 0.04) && is_late(0.0, 0.06));
        assert!(!is_late(0.15, 0.1) && is_late(0.15, 0.5));
    }

    #[test]
    fn a_lane_is_silent_before_what_waits_in_a_relay_could_have_come() {
        let mut lane = driven(0.0);
        let now = lane.quiet_since;
        // Two seconds of it.
        (0..2 * RATE as u64 / FRAME).for_each(|_| _ = lane.send(0, FRAME, now));
        let silent_after = lane.silent_at(false).unwrap() - lane.sent.front().unwrap().due.max(now);
        assert!(silent_after < 3.0 * ROUND_TRIP, "{silent_after} s late");
    }

    #[test]
    fn a_lane_with_a_queue_is_not_idle_although_it_is_given_nothing() {
        let mut lane = Lane::new(LaneId(0), LaneModel::default(), 0.0);
        let mut at = 0.0;
        // A megabyte a second, then a tenth of it, with ten frames on their way.
        for seconds in [FRAME as f64 / 1e6, FRAME as f64 / 1e5] {
            for _ in 0..100 {
                while lane.in_flight() < 10 * FRAME {
                    lane.send(0, FRAME, at);
                }
                lane.idles(at);
                at += seconds;
                lane.acknowledge(1, at);
            }
        }
        let rate = lane.model.rate().unwrap();
        assert!(rate < 1.5e5, "{rate}");
    }
}
