//! Reproducible randomness.

/// SplitMix64.
#[derive(Debug)]
pub(in crate::mp::stripe) struct Random(u64);

impl Random {
    pub(in crate::mp::stripe) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to below 1.
    pub(in crate::mp::stripe) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub(in crate::mp::stripe) fn up_to(&mut self, most: f64) -> f64 {
        self.unit() * most
    }

    pub(in crate::mp::stripe) fn chance(&mut self, share: f64) -> bool {
        self.unit() < share
    }

    pub(in crate::mp::stripe) fn between(&mut self, least: f64, most: f64) -> f64 {
        least + self.up_to(most - least)
    }

    /// Every order of magnitude is as likely.
    pub(in crate::mp::stripe) fn magnitude(&mut self, least: f64, most: f64) -> f64 {
        self.between(least.ln(), most.ln()).exp()
    }

    pub(in crate::mp::stripe) fn below(&mut self, count: usize) -> usize {
        (self.next() % count as u64) as usize
    }
}
