//! How a path's delay wanders.
//!
//! In: times that do not go back. Out: where between −1 and 1 the delay is. Invariant: it moves steadily, so that
//! neighbouring packets see nearly the same delay, as on a path whose other traffic comes and goes.

use fastrand::Rng;

/// From one random point to the next: some round trips of a long path, so that a round trip estimate sees it as drift.
const LEG_NS: u64 = 200_000_000;

/// Straight lines between random points, one every 200 ms.
#[derive(Debug)]
pub struct Drift {
    from: f64,
    to: f64,
    began_ns: u64,
}

impl Drift {
    /// A drift that begins at time zero.
    pub fn new(rng: &mut Rng) -> Self {
        Self { from: point(rng), to: point(rng), began_ns: 0 }
    }

    /// The drift at `now_ns`, −1 to 1.
    pub fn at(&mut self, now_ns: u64, rng: &mut Rng) -> f64 {
        let legs = (now_ns - self.began_ns) / LEG_NS;
        if legs > 0 {
            // After a pause, the point where it stood long ago says nothing.
            self.from = if legs == 1 { self.to } else { point(rng) };
            self.to = point(rng);
            self.began_ns += legs * LEG_NS;
        }
        self.from + (self.to - self.from) * ((now_ns - self.began_ns) as f64 / LEG_NS as f64)
    }
}

fn point(rng: &mut Rng) -> f64 {
    rng.f64() * 2.0 - 1.0
}
