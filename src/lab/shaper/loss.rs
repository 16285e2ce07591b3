//! Which packets are lost behind the bottleneck.
//!
//! In: the share and the mean burst. Out: lost or not, packet by packet. Invariant: in the long run the asked share is
//! lost, whatever the burst.

use fastrand::Rng;

/// Packets pass and get lost in alternating runs (Gilbert's model); a run's length is geometric. Independent losses are
/// the case in which a run of losses has the mean length 1 ÷ (1 − loss), so there is one code for both.
#[derive(Debug)]
pub struct Loss {
    passing_mean: f64,
    losing_mean: f64,
    losing: bool,
    /// Packets until the other run begins.
    left: u64,
}

impl Loss {
    /// `loss` is 0 to 1, `burst` the mean length of a run of losses.
    pub fn new(loss: f64, burst: Option<f64>, rng: &mut Rng) -> Self {
        let odds = loss / (1.0 - loss);
        // Passing runs are one packet long at least, which sets the shortest burst that can bring so much loss.
        let losing_mean = burst.unwrap_or(1.0 / (1.0 - loss)).max(odds);
        let passing_mean = losing_mean / odds;
        let losing = loss >= 1.0;
        let left = if losing || loss <= 0.0 { u64::MAX } else { run_length(passing_mean, rng) };
        Self { passing_mean, losing_mean, losing, left }
    }

    /// Whether the next packet is lost.
    pub fn takes_next(&mut self, rng: &mut Rng) -> bool {
        if self.left == 0 {
            self.losing = !self.losing;
            self.left = run_length(if self.losing { self.losing_mean } else { self.passing_mean }, rng);
        }
        self.left -= 1;
        self.losing
    }
}

/// A geometric random number of at least 1 with this mean.
fn run_length(mean: f64, rng: &mut Rng) -> u64 {
    if mean <= 1.0 {
        return 1;
    }
    1 + ((1.0 - rng.f64()).ln() / (-1.0 / mean).ln_1p()) as u64
}
