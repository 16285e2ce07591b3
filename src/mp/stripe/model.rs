//! What a lane has learned about itself: rate, round trip and how long it pauses without being lost.
//!
//! In: acknowledgements, with what was known when the acknowledged frame was sent. Out: when a frame given now would
//! arrive, and how late an acknowledgement may be. Called by `lane`. Invariant: estimates are positive and finite; until
//! the first acknowledgement of a lane's life there are none.

use std::net::IpAddr;

use super::growth::Growth;

/// A lane may have so much more in flight than its round trips need: what the clocks and wakeups of the hosts on the way cost.
pub(super) const QUEUE_SECONDS: f64 = 0.1;
/// The round trip's minimum forgets what is older than one to two of these: a path that got longer is noticed, and a
/// queue of some seconds is not taken for the path.
const ROUND_TRIP_MEMORY_SECONDS: f64 = 15.0;
/// The rate follows within half of the time a sample spans, which is a round trip; shorter ones than this are noise of
/// the acknowledgements' timing.
const RATE_MEMORY_SECONDS_MIN: f64 = 0.1;
/// A pause that was seen counts for a minute: lossy paths have several in that time.
const STALL_MEMORY_SECONDS: f64 = 60.0;
/// Longer pauses are faults, not a lane's habit: nothing is learned from them, or the next fault would be noticed later.
const STALL_SECONDS_MAX: f64 = 1.2;
/// Gaps between acknowledgements fade within this time: a path that loses one packet in a thousand has several in it.
const GAP_MEMORY_SECONDS: f64 = 4.0;
/// What is lost comes again within so many round trips. Longer gaps are others': BBR sends next to nothing for 0.2 s every ten
/// seconds, and then goes on where it was; more in flight would not have shortened that.
const GAP_ROUND_TRIPS_MAX: f64 = 2.5;
/// How much longer than the longest pause seen a lane may be silent: the next one is often somewhat longer.
const STALL_FACTOR: f64 = 1.5;
/// A packet lost once comes again after another round trip, queue included, and what was lost with it a little later.
const RETRANSMISSION_FACTOR: f64 = 1.25;
/// That is so many without a queue at most: bottlenecks hold one round trip, and what waits in a relay is not on the way yet.
const RETRANSMISSION_ROUND_TRIPS: f64 = 2.0;
/// TCP's smallest retransmission timeout on Linux: one of these is part of any lossy path.
const SILENCE_SECONDS_MIN: f64 = 0.2;
/// Rates below this are as good as none; it keeps divisions finite.
const RATE_MIN: f64 = 1.0;

/// What a lane has learned; outlives transfers, so that a warm lane is judged from its first frame. The default knows
/// nothing.
#[derive(Clone, Debug, Default)]
pub struct LaneModel {
    /// Bytes per second, end to end.
    rate: Option<f64>,
    /// Of this and the last [`ROUND_TRIP_MEMORY_SECONDS`].
    quickest: Option<[Quickest; 2]>,
    /// The longest pause, fading.
    stall: f64,
    /// The longest time without an acknowledgement although there was something to acknowledge, fading sooner.
    gap: f64,
    growth: Growth,
    /// The kernel spreads the lane over several paths (MPTCP).
    spans_paths: bool,
    /// From where it comes, where that says over which path.
    peer: Option<IpAddr>,
    /// Time since the halves of `quickest` were shifted, and since the last sample: clocks restart with transfers.
    quickest_age: f64,
}

/// The acknowledgement that came soonest after its frame was sent.
#[derive(Clone, Copy, Debug)]
struct Quickest {
    seconds: f64,
    /// Bytes of the frame.
    len: f64,
    /// The highest rate of the time: a frame's own transmission, which is no part of the round trip, took no less. The
    /// rate at the moment would not do, which is too low while a lane starts.
    rate: f64,
}

/// What one acknowledgement says of the rate.
#[derive(Clone, Copy, Debug)]
pub(super) struct RateSample {
    pub(super) bytes: f64,
    pub(super) seconds: f64,
    /// Time since the sample before.
    pub(super) since_last: f64,
    /// The lane had less to send than it could: the rate is at least this.
    pub(super) is_floor: bool,
}

impl LaneModel {
    /// Nothing is known of the lane. `spans_paths`: the kernel spreads it over several paths. `peer`: where it comes from; the
    /// lanes of one relay share its path.
    pub fn new(spans_paths: bool, peer: Option<IpAddr>) -> Self {
        Self { spans_paths, peer, ..Self::default() }
    }

    /// A lane of which nothing is known pauses as `others` of its path do: at three percent of losses each one does, sooner
    /// than anything is learned of it, and would be called silent.
    pub(super) fn inherits<'a>(&mut self, others: impl Iterator<Item = &'a Self>) {
        if self.rate.is_some() || self.peer.is_none() {
            return;
        }
        let known = others.filter(|other| other.peer == self.peer && other.rate.is_some());
        let mut stalls: Vec<_> = known.map(|other| other.stall).collect();
        stalls.sort_unstable_by(f64::total_cmp);
        // The lower median: a fault of one is no habit of all.
        self.stall = stalls.get(stalls.len().saturating_sub(1) / 2).copied().unwrap_or(0.0);
    }

    /// The round trip is that of the shortest of several paths, and says nothing of what fits on all of them.
    pub(super) fn spans_paths(&self) -> bool {
        self.spans_paths
    }

    /// Bytes per second that arrive, once known.
    pub fn rate(&self) -> Option<f64> {
        self.rate
    }

    /// Seconds of a round trip without queues, once known.
    pub fn round_trip(&self) -> Option<f64> {
        let [now, before] = self.quickest?;
        let quickest = if now.seconds < before.seconds { now } else { before };
        let transmission = quickest.len / now.rate.max(before.rate);
        Some((quickest.seconds - transmission).max(quickest.seconds / 4.0))
    }

    /// Another transfer begins.
    pub(super) fn begins(&mut self) {
        self.growth.begins();
    }

    /// `acknowledged` bytes of the `sent` ones of a transfer are; `was_idle`: the lane had less to send than it could.
    pub(super) fn saw_progress(&mut self, was_idle: bool, acknowledged: u64, sent: u64) {
        self.growth.saw(self.rate.unwrap_or(0.0), was_idle, acknowledged, sent);
    }

    /// Bytes that slow start needs in flight once so many of the transfer are acknowledged; 0 once it is over.
    pub(super) fn slow_start(&self, acknowledged: u64) -> u64 {
        self.growth.needs(acknowledged, self.round_trip().unwrap_or(0.0))
    }

    /// Seconds until the last of `len` bytes given now would be at the downstream, behind `in_flight` others whose
    /// acknowledgement has not come.
    pub(super) fn arrival(&self, in_flight: f64, len: f64) -> Option<f64> {
        let (rate, round_trip) = (self.rate?, self.round_trip()?);
        Some((in_flight.max(rate * round_trip) + len) / rate - round_trip / 2.0)
    }

    /// The longest pause of the last minute or so, in seconds.
    pub(super) fn stall(&self) -> f64 {
        self.stall
    }

    /// The longest gap between acknowledgements of late, in seconds.
    pub(super) fn gap(&self) -> f64 {
        self.gap
    }

    /// Seconds by which an acknowledgement that was expected after `expected` may be late, and the lane quiet, before the
    /// lane counts as silent. `spares_habits`: and longer than it pauses now and then.
    pub(super) fn patience(&self, expected: f64, spares_habits: bool) -> f64 {
        let round_trip = self.round_trip().unwrap_or(f64::INFINITY);
        let retransmission = expected.min(RETRANSMISSION_ROUND_TRIPS * round_trip);
        let retransmission = (RETRANSMISSION_FACTOR * retransmission).min(STALL_SECONDS_MAX);
        let habit = if spares_habits { STALL_FACTOR * self.stall } else { 0.0 };
        retransmission.max(SILENCE_SECONDS_MIN).max(habit)
    }

    /// Whether a lane that was late by so many seconds may have paused as lanes do, without any fault.
    pub(super) fn is_habit(seconds: f64) -> bool {
        seconds <= STALL_SECONDS_MAX
    }

    /// An acknowledgement came `seconds` after its frame of `len` bytes was sent, and `elapsed` after the one before.
    pub(super) fn saw_round_trip(&mut self, seconds: f64, len: f64, elapsed: f64) {
        self.quickest_age += elapsed;
        let sample = Quickest { seconds: seconds.max(1e-6), len, rate: self.rate.unwrap_or(RATE_MIN) };
        let [now, before] = self.quickest.unwrap_or([sample; 2]);
        self.quickest = Some(if self.quickest_age > ROUND_TRIP_MEMORY_SECONDS {
            self.quickest_age = 0.0;
            [sample, now]
        } else {
            let rate = now.rate.max(sample.rate);
            let quickest = if sample.seconds < now.seconds { sample } else { now };
            [Quickest { rate, ..quickest }, before]
        });
    }

    /// So many bytes were acknowledged in so much time.
    pub(super) fn saw_rate(&mut self, sample: RateSample) {
        let measured = (sample.bytes / sample.seconds.max(1e-6)).max(RATE_MIN);
        let Some(rate) = self.rate else {
            self.rate = Some(measured);
            return;
        };
        if sample.is_floor && measured < rate {
            return;
        }
        let memory = (self.round_trip().unwrap_or(0.0) / 2.0).max(RATE_MEMORY_SECONDS_MIN);
        let weight = 1.0 - (-sample.since_last / memory).exp();
        // That it is no less is certain.
        let weight = if sample.is_floor { weight.max(0.5) } else { weight };
        self.rate = Some(rate + (measured - rate) * weight);
    }

    /// Frames arrived `seconds` later than right behind those before; `elapsed` since the acknowledgement before.
    pub(super) fn saw_gap(&mut self, seconds: f64, elapsed: f64) {
        let is_habit = seconds < GAP_ROUND_TRIPS_MAX * self.round_trip().unwrap_or(0.0);
        let seen = if is_habit { seconds } else { 0.0 };
        self.gap = (self.gap * (-elapsed / GAP_MEMORY_SECONDS).exp()).max(seen);
    }

    /// The lane was quiet for so long with an acknowledgement due, and then went on; `elapsed` since the time before.
    pub(super) fn saw_stall(&mut self, seconds: f64, elapsed: f64) {
        let faded = self.stall * (-elapsed / STALL_MEMORY_SECONDS).exp();
        let seen = if Self::is_habit(seconds) { seconds } else { 0.0 };
        self.stall = faded.max(seen);
    }
}
