//! How large the next frame of a lane is to be.
//!
//! In: what a lane carried and how long it was busy with it. Out: the number of bytes to pull next. Called by the
//! upstream's lanes. Invariant: no I/O and no clock; a size is between [`FRAME_BYTES_MIN`] and [`FRAME_BYTES_MAX`] and at
//! most doubles from one frame to the next.

use std::time::Duration;

/// 16 KiB: with 32 bytes of header and a handful of system calls each, smaller frames would cost more than they carry.
pub const FRAME_BYTES_MIN: usize = 16 << 10;
/// 960 KiB: 240 pages of a file, which fill a slot of a 1 MiB pipe's 256 each, with some to spare for a header and pages
/// cut at both ends. With 1 MiB every frame took two fills and two drains, the second ones of 60 KiB.
pub const FRAME_BYTES_MAX: usize = 960 << 10;
/// 64 KiB: 20 ms of a 26 Mbit/s lane, and half of what a lane holds unsent, so that the first frames of a body spread
/// over all its lanes.
const FRAME_BYTES_FIRST: usize = 64 << 10;
/// What a frame is to occupy its lane for. The last frame of a body, and every frame that others wait for, arrives that
/// much after its first byte; 20 ms is little next to the round trip of a path worth striping over, and at 1 Gbit/s it
/// is already more than the largest frame.
const FRAME_TIME: Duration = Duration::from_millis(20);
/// How far back the rate looks, counted in time the lane was busy: a round trip of a long path, so that bursts into an
/// empty socket buffer average out, and short enough to follow a lane that loses most of its rate within a second.
const MEMORY: Duration = Duration::from_millis(200);
/// How much a frame may outgrow the one before: a burst into an empty socket buffer looks like an endless rate, and must
/// not lead to one huge frame on a slow lane.
const GROWTH_MAX: usize = 2;

/// The state of one lane; it outlives transfers, so that a warm lane starts with the size it earned.
#[derive(Clone, Debug)]
pub struct FrameSizer {
    /// Bytes carried and seconds spent, both fading with [`MEMORY`].
    bytes: f64,
    seconds: f64,
    size: usize,
}

impl Default for FrameSizer {
    fn default() -> Self {
        Self { bytes: 0.0, seconds: 0.0, size: FRAME_BYTES_FIRST }
    }
}

impl FrameSizer {
    /// Bytes to pull for the next frame.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The lane took `bytes` and had room again `busy` after it began to take them. Time spent on waiting for the root
    /// is not the lane's.
    pub fn carried(&mut self, bytes: usize, busy: Duration) {
        let fade = (-busy.as_secs_f64() / MEMORY.as_secs_f64()).exp();
        self.bytes = self.bytes * fade + bytes as f64;
        self.seconds = self.seconds * fade + busy.as_secs_f64();
        // Dividing by 0 gives infinity, which the bounds below cut off.
        let wanted = self.bytes / self.seconds * FRAME_TIME.as_secs_f64();
        let max = (self.size * GROWTH_MAX).min(FRAME_BYTES_MAX);
        self.size = (wanted as usize).clamp(FRAME_BYTES_MIN, max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A lane that buffers `buffer` bytes and drains `rate` bytes per second; it has room once half the buffer is free.
    fn run(sizer: &mut FrameSizer, rate: f64, buffer: f64, frames: usize) -> Vec<usize> {
        let mut unsent = 0.0;
        (0..frames)
            .map(|_| {
                let size = sizer.size();
                unsent += size as f64;
                let busy = ((unsent - buffer / 2.0) / rate).max(0.0);
                unsent = (unsent - busy * rate).max(0.0);
                sizer.carried(size, Duration::from_secs_f64(busy));
                size
            })
            .collect()
    }

    #[test]
    fn frames_settle_at_20_ms_of_the_lanes_rate() {
        for (rate_mbit, wanted) in [(50.0, 125_000.0), (200.0, 500_000.0), (20.0, 50_000.0)] {
            let mut sizer = FrameSizer::default();
            let sizes = run(&mut sizer, rate_mbit * 125_000.0, 256e3, 200);
            let last = sizes[199] as f64;
            assert!((last / wanted - 1.0).abs() < 0.15, "{rate_mbit} Mbit/s: {last} instead of {wanted}");
        }
    }

    #[test]
    fn slow_and_fast_lanes_stay_in_bounds() {
        let mut sizer = FrameSizer::default();
        assert_eq!(run(&mut sizer, 50e3, 256e3, 100)[99], FRAME_BYTES_MIN);
        let mut sizer = FrameSizer::default();
        assert_eq!(
            run(&mut sizer, 5e9, 256e3, 5),
            [64 << 10, 128 << 10, 256 << 10, 512 << 10, FRAME_BYTES_MAX]
        );
    }

    #[test]
    fn a_frame_at_most_doubles_even_if_the_lane_took_no_time() {
        let mut sizer = FrameSizer::default();
        sizer.carried(1, Duration::ZERO);
        assert_eq!(sizer.size(), 2 * FRAME_BYTES_FIRST);
        sizer.carried(0, Duration::from_secs(3600));
        assert_eq!(sizer.size(), FRAME_BYTES_MIN);
        sizer.carried(0, Duration::ZERO);
        assert!((FRAME_BYTES_MIN..=2 * FRAME_BYTES_MIN).contains(&sizer.size()));
    }

    #[test]
    fn a_lane_that_slows_down_gets_small_frames_within_a_second() {
        let mut sizer = FrameSizer::default();
        run(&mut sizer, 50e6, 256e3, 100);
        assert!(sizer.size() > 900 << 10, "{}", sizer.size());
        // 20 ms of 2 MB/s are 40 KB.
        let sizes = run(&mut sizer, 2e6, 256e3, 100);
        let until_small: usize = sizes.iter().take_while(|&&size| size > 80_000).sum();
        assert!(until_small < 2_000_000, "{sizes:?}");
    }
}
