//! How far the upstream may be ahead of the client.
//!
//! In: what the client took, and when, and whether lanes had to wait for it. Out: limits for CREDIT frames. Called by the consumer. Invariants: no I/O and no
//! clock; a limit never goes back; what is on its way and parked is below the window, whatever the client does.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::{exec::Instant, wire::frame::FIRST_CREDIT_BYTES};

/// Half a window taken within so many round trips lets it grow: lanes hold three each, and what is ahead of a client that
/// goes away, or seeks, has to come for nothing before its lanes are free.
const WINDOW_ROUND_TRIPS: u32 = 3;
/// and within this time even where round trips are shorter: a core that serves many clients comes back to each only so
/// often.
const WINDOW_TIME_MIN: Duration = Duration::from_millis(20);
/// As long as the rate may still grow, a window grows as soon as the same share is taken within so many round trips: slow start
/// doubles the rate each round trip, and by the time at which half of the window is taken it would be in the way. Less than
/// two are one burst.
const RAMP_ROUND_TRIPS: u32 = 2;
/// A window that is full but for this part is full: lanes cannot be filled with the rest.
const FULL_PARTS: u64 = 4;
/// The largest window: the same bound as for parked bytes, which it includes.
const WINDOW_BYTES_MAX: u64 = 64 << 20;

/// What a transfer begins with at most; all that run together begin with little more than twice this, see [`Usual::first`].
const FIRST_BYTES_MAX: u64 = 32 << 20;
/// What was carried in so many round trips of the longest path is what lanes hold, and what waits for a frame of that path.
const USUAL_ROUND_TRIPS: u32 = 4;
/// A transfer of fewer bytes says little of what the paths carry.
const TELLING_BYTES_MIN: u64 = 2 * FIRST_CREDIT_BYTES;

/// What windows of this process came to lately, so that a transfer over lanes that are warm need not wait for its own to grow.
#[derive(Debug, Default)]
pub struct Usual {
    bytes: AtomicU64,
}

impl Usual {
    /// The window to begin with where so many transfers run, this one among them. They share it: clients that take nothing
    /// must not cost more, the more there are.
    pub fn first(&self, running: usize) -> u64 {
        let share = self.bytes.load(Relaxed) / running.max(1) as u64;
        share.clamp(FIRST_CREDIT_BYTES, FIRST_BYTES_MAX)
    }

    /// A transfer took `bytes` within `time` over paths whose longest round trip is given. One that took more counts at once,
    /// those that took less count for a quarter: their clients may have been slow.
    pub fn learn(&self, bytes: u64, time: Duration, round_trip: Duration) {
        if bytes < TELLING_BYTES_MIN || time.is_zero() {
            return;
        }
        let round_trips = (round_trip * USUAL_ROUND_TRIPS).as_secs_f64() / time.as_secs_f64();
        let needed = (bytes as f64 * round_trips) as u64;
        let before = self.bytes.load(Relaxed);
        // Two that end together: the later one counts.
        self.bytes.store(needed.max(before - before / 4), Relaxed);
    }
}

/// Whether lanes have filled the window while the client waits for a frame that is missing: they would carry more if it were
/// larger. Many lanes that are slow and lose packets do that at a rate that would never let the window grow.
#[derive(Debug, Default)]
pub struct Crowding {
    waits: AtomicBool,
    is_full: AtomicBool,
}

impl Crowding {
    /// The client has taken all that was there, and waits; or waits no more.
    pub fn set_waiting(&self, waits: bool) {
        self.waits.store(waits, Relaxed);
    }

    /// A frame that ends at `end` of the body has come, of which the client has `taken` so much, with the credit given.
    pub fn arrives(&self, end: u64, taken: u64, credit: u64) {
        let window = credit.saturating_sub(taken);
        if end > credit.saturating_sub(window / FULL_PARTS) && end > taken && self.waits.load(Relaxed) {
            self.is_full.store(true, Relaxed);
        }
    }

    /// Whether it was full since the last call.
    pub fn was_full(&self) -> bool {
        self.is_full.load(Relaxed) && self.is_full.swap(false, Relaxed)
    }
}

/// How far the upstream may be ahead of the client, at the downstream: the credit of a transfer.
///
/// The window begins small, so that a client that takes nothing costs next to nothing on every host of the chain, or as
/// large as was [usual](Usual) lately, and doubles while half of it is taken within three round trips; it ends between six
/// and twelve times what the paths hold. It also doubles, once each round trip, while [lanes wait](Crowding) and not the client.
#[derive(Debug)]
pub struct Window {
    size: u64,
    taken: u64,
    granted: u64,
    /// What had been taken at the beginning of the running measurement, and when that was.
    mark: (u64, Instant),
    grown_at: Instant,
    /// The same for [`RAMP_ROUND_TRIPS`], until half a window has taken too long, the first one aside.
    ramp: Option<(u64, Instant)>,
}

impl Window {
    /// The window of a transfer that begins, with so many bytes.
    pub fn new(size: u64, now: Instant) -> Self {
        Self { size, taken: 0, granted: size, mark: (0, now), grown_at: now, ramp: Some((0, now)) }
    }

    /// The client took `bytes` more; `was_full`: lanes had filled the window while it waited. Returns the new limit when it is worth
    /// a frame to the upstream.
    pub fn taken(&mut self, bytes: u64, was_full: bool, round_trip: Duration, now: Instant) -> Option<u64> {
        if self.taken == 0 {
            // The wait for the first byte says nothing of the client.
            self.mark.1 = now;
        }
        self.taken += bytes;
        let (mark, since) = self.mark;
        if self.taken - mark >= self.size / 2 {
            if now.duration_since(since) < (WINDOW_ROUND_TRIPS * round_trip).max(WINDOW_TIME_MIN) {
                self.grow(now);
            } else if mark > 0 {
                // The first half says nothing: slow start began with next to nothing.
                self.ramp = None;
            }
            self.mark = (self.taken, now);
        }
        if let Some((mark, since)) = &mut self.ramp {
            let part = self.size * u64::from(RAMP_ROUND_TRIPS) / u64::from(2 * WINDOW_ROUND_TRIPS);
            if now.duration_since(*since) > RAMP_ROUND_TRIPS * round_trip {
                (*mark, *since) = (self.taken, now);
            } else if self.taken - *mark >= part {
                (*mark, *since) = (self.taken, now);
                self.grow(now);
                self.mark = (self.taken, now);
            }
        }
        if was_full && now.duration_since(self.grown_at) >= round_trip.max(WINDOW_TIME_MIN) {
            self.grow(now);
        }
        let limit = self.taken + self.size;
        if limit < self.granted + self.size / 4 {
            return None;
        }
        self.granted = limit;
        Some(limit)
    }

    fn grow(&mut self, now: Instant) {
        self.size = (self.size * 2).min(WINDOW_BYTES_MAX);
        self.grown_at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// A client that takes `rate` bytes a second for `seconds`; returns the window it ends with.
    fn after(rate: u64, round_trip_ms: u64, seconds: u64) -> u64 {
        let start = Instant::now();
        let mut window = Window::new(FIRST_CREDIT_BYTES, start);
        let mut limit = FIRST_CREDIT_BYTES;
        for ms in 1..=seconds * 1000 {
            let now = start + Duration::from_millis(ms);
            if let Some(more) = window.taken(rate / 1000, false, Duration::from_millis(round_trip_ms), now) {
                assert!(more > limit, "a limit went back");
                limit = more;
            }
            assert!(limit - window.taken <= WINDOW_BYTES_MAX);
            assert!(limit >= window.taken + window.size - window.size / 4 - rate / 1000);
        }
        window.size
    }

    #[test]
    fn a_window_holds_several_times_what_the_path_does() {
        assert_eq!(after(12_500_000, 100, 10), 8 * MIB);
        assert_eq!(after(62_500_000, 300, 10), WINDOW_BYTES_MAX);
        assert_eq!(after(1_250_000_000, 0, 2), 64 * MIB);
    }

    #[test]
    fn a_window_grows_ahead_of_slow_start() {
        let (start, round_trip) = (Instant::now(), Duration::from_millis(150));
        let mut window = Window::new(FIRST_CREDIT_BYTES, start);
        // From ten segments on; a credit is a round trip old when what it allows is sent.
        let mut flight = 14_480;
        for round in 0..9 {
            let allowed = window.size;
            let parts = flight / 10;
            (1..=10).for_each(|part| {
                let now = start + round_trip * round + round_trip * part / 10;
                window.taken(parts, false, round_trip, now);
            });
            flight *= 2;
            assert!(allowed > flight, "{allowed} bytes ahead where {flight} are sent, in round {round}");
        }
    }

    #[test]
    fn a_client_that_was_slow_gets_no_larger_one_for_a_burst() {
        let (start, round_trip) = (Instant::now(), Duration::from_millis(150));
        let sizes = [false, true].map(|was_slow| {
            let mut window = Window::new(FIRST_CREDIT_BYTES, start);
            let mut now = start;
            for _ in 0..if was_slow { 20 } else { 0 } {
                now += Duration::from_millis(200);
                window.taken(FIRST_CREDIT_BYTES / 16, false, round_trip, now);
            }
            window.taken(3 * FIRST_CREDIT_BYTES / 8, false, round_trip, now + Duration::from_millis(1));
            window.size
        });
        assert_eq!(sizes, [2 * FIRST_CREDIT_BYTES, FIRST_CREDIT_BYTES]);
    }

    #[test]
    fn the_next_window_begins_with_what_the_last_one_needed() {
        let usual = Usual::default();
        assert_eq!(usual.first(1), FIRST_CREDIT_BYTES);
        let (second, round_trip) = (Duration::from_secs(1), Duration::from_millis(200));
        usual.learn(25_000_000, second, round_trip);
        assert_eq!(usual.first(1), 20_000_000);
        assert_eq!(usual.first(2), 10_000_000, "two share it");
        assert_eq!(usual.first(100), FIRST_CREDIT_BYTES);
        usual.learn(1_000_000, second / 100, round_trip);
        assert_eq!(usual.first(1), 20_000_000, "too short to tell");
        usual.learn(10_000_000, second * 10, round_trip);
        assert_eq!(usual.first(1), 15_000_000, "a slow one");
        usual.learn(u64::MAX, second, round_trip);
        assert_eq!(usual.first(1), FIRST_BYTES_MAX);
    }

    #[test]
    fn a_window_that_is_full_while_the_client_waits_grows_once_each_round_trip() {
        let (start, round_trip, rate) = (Instant::now(), Duration::from_millis(150), 125);
        let mut window = Window::new(FIRST_CREDIT_BYTES, start);
        for ms in 1..=1000 {
            window.taken(rate, true, round_trip, start + Duration::from_millis(ms));
            let expected = (FIRST_CREDIT_BYTES << (ms / 150)).min(WINDOW_BYTES_MAX);
            assert_eq!(window.size, expected, "after {ms} ms");
        }
        for ms in 1001..=3000 {
            let now = start + Duration::from_millis(ms);
            if let Some(limit) = window.taken(rate, true, round_trip, now) {
                assert!(limit - window.taken <= WINDOW_BYTES_MAX);
            }
        }
    }

    #[test]
    fn lanes_wait_only_where_the_client_does_and_the_window_is_full() {
        let crowding = Crowding::default();
        let (taken, credit) = (5 * MIB, 9 * MIB);
        crowding.arrives(credit, taken, credit);
        assert!(!crowding.was_full(), "the client has not taken what is there");
        crowding.set_waiting(true);
        crowding.arrives(credit - 2 * MIB, taken, credit);
        assert!(!crowding.was_full(), "half of it is free");
        crowding.arrives(credit - MIB / 2, taken, credit);
        assert!(crowding.was_full() && !crowding.was_full());
    }

    #[test]
    fn a_slow_client_keeps_a_small_one() {
        assert_eq!(after(125_000, 100, 60), FIRST_CREDIT_BYTES);
        assert_eq!(after(1_000_000, 100, 60), FIRST_CREDIT_BYTES);
    }
}
