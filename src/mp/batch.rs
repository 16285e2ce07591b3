//! How many bytes a producer lets arrive before it wakes.
//!
//! In: frames as they come off a lane. Out: a number of bytes that the lane brings in a small part of its round trip. A
//! distant, paced lane delivers single segments; a wake-up and two splices for each cost ten times the CPU time of moving
//! them together. No I/O, no clock of its own.

use std::time::Duration;

use crate::{exec::Instant, net::BATCH_BYTES};

/// Bytes come this much later at most: no player notices, and an idle client's first bytes are not held at all.
const DELAY_MAX: Duration = Duration::from_millis(4);
/// Part of the round trip that bytes may be held: the sender's clock, the acknowledgements, stays as it is.
const ROUND_TRIP_PART: u32 = 16;

/// See the module's description.
pub(super) struct Batch {
    last: Instant,
    bytes: usize,
}

impl Batch {
    /// Nothing is known at `now`: every byte wakes.
    pub(super) fn new(now: Instant) -> Self {
        Self { last: now, bytes: 1 }
    }

    /// Bytes to wait for, from 1 to 32 KiB.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// A frame of `len` bytes has left the socket at `now`; the one before left it at the last call.
    pub(super) fn frame(&mut self, len: usize, round_trip: Duration, now: Instant) {
        let took = (now - self.last).max(Duration::from_micros(1));
        let held = DELAY_MAX.min(round_trip / ROUND_TRIP_PART);
        let measured = (len as f64 * held.as_secs_f64() / took.as_secs_f64()) as usize;
        // Frames that had waited for the client come in a burst: they count by half.
        self.bytes = self.bytes.midpoint(measured).clamp(1, BATCH_BYTES);
        self.last = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after_frames(len: usize, every: Duration, round_trip: Duration) -> usize {
        let start = Instant::now();
        let mut batch = Batch::new(start);
        for frame in 1..=20 {
            batch.frame(len, round_trip, start + every * frame);
        }
        batch.bytes()
    }

    #[test]
    fn a_batch_is_what_comes_in_four_milliseconds() {
        // 256 KiB every 40 ms: 52 Mbit/s.
        let bytes = after_frames(256 << 10, Duration::from_millis(40), Duration::from_millis(100));
        assert!((26_000..=26_300).contains(&bytes), "{bytes}");
    }

    #[test]
    fn short_paths_and_slow_lanes_hold_little_and_fast_ones_not_too_much() {
        assert_eq!(after_frames(16 << 10, Duration::from_secs(1), Duration::from_micros(20)), 1);
        let slow = after_frames(16 << 10, Duration::from_millis(130), Duration::from_millis(100));
        assert!((400..=600).contains(&slow), "{slow}");
        assert_eq!(after_frames(1 << 20, Duration::from_micros(10), Duration::from_secs(1)), BATCH_BYTES);
    }
}
