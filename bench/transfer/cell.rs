//! In: transfers. Out: medians, spreads and percentiles.
//!
//! Filled by `round`, read by `goals` and the reports. Invariant: a figure is computed from what was measured in one run;
//! where nothing was measured there is none. A transfer that its deadline cut off counts with the bytes that came until
//! then: it has a rate, but no transfer time.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::client::Download;
use crate::columns::{Column, Warmth};

/// One transfer and what it took.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    /// Which of the alternating rounds it belongs to, from 1.
    pub round: u32,
    /// What the client saw.
    #[serde(flatten)]
    pub download: Download,
    /// CPU time by role, in seconds.
    pub cpu_s: BTreeMap<&'static str, f64>,
    /// Bytes that entered each emulated link towards the client, by path, headers and lost packets included.
    pub wire_bytes: Vec<u64>,
    /// Share of packets that the emulator delivered more than 2 ms late: above 0.01 the sample is not worth much.
    pub late: f64,
}

impl Sample {
    /// Goodput in Mbit/s.
    pub fn mbit(&self) -> f64 {
        self.download.bytes as f64 * 8.0 / self.download.seconds / 1e6
    }
}

/// All transfers of one column in one row.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    pub column: Column,
    pub warmth: Warmth,
    pub samples: Vec<Sample>,
    /// Transfers that failed, each with its reason.
    pub failures: Vec<String>,
    /// Why there cannot be any.
    pub absent: Option<String>,
}

impl Cell {
    /// An empty one.
    pub fn new(column: Column, warmth: Warmth) -> Self {
        Self { column, warmth, samples: Vec::new(), failures: Vec::new(), absent: None }
    }

    /// Goodput in Mbit/s.
    pub fn mbit(&self) -> Option<Spread> {
        Spread::of(self.samples.iter().map(Sample::mbit))
    }

    /// Time to the first byte in seconds.
    pub fn first_byte_s(&self) -> Option<Spread> {
        Spread::of(self.samples.iter().filter_map(|sample| sample.download.first_byte_s))
    }

    /// CPU seconds per 10⁹ bytes of one role.
    pub fn cpu_s_per_gb(&self, role: &str) -> Option<Spread> {
        let per_gb = |sample: &Sample| Some(sample.cpu_s.get(role)? * 1e9 / sample.download.bytes as f64);
        Spread::of(self.samples.iter().filter_map(per_gb))
    }

    /// Bytes on the wire for each byte delivered.
    pub fn wire_ratio(&self) -> Option<Spread> {
        let ratio =
            |sample: &Sample| sample.wire_bytes.iter().sum::<u64>() as f64 / sample.download.bytes as f64;
        Spread::of(self.samples.iter().map(ratio))
    }

    /// Median share of each path in the bytes on the wire.
    pub fn path_shares(&self) -> Vec<f64> {
        let paths = self.samples.iter().map(|sample| sample.wire_bytes.len()).min().unwrap_or(0);
        let share = |sample: &Sample, path: usize| {
            sample.wire_bytes[path] as f64 / sample.wire_bytes.iter().sum::<u64>().max(1) as f64
        };
        let of_path = |path| Spread::of(self.samples.iter().map(|sample| share(sample, path)));
        (0..paths).filter_map(of_path).map(|spread| spread.median).collect()
    }

    /// Median share of packets with which the emulator was late.
    pub fn late(&self) -> f64 {
        Spread::of(self.samples.iter().map(|sample| sample.late)).map_or(0.0, |late| late.median)
    }

    /// The fewest subflows of a transfer that was to be MPTCP, and the most.
    pub fn subflows(&self) -> Option<(usize, usize)> {
        let subflows = || self.samples.iter().filter_map(|sample| sample.download.mptcp?.subflows);
        Some((subflows().min()?, subflows().max()?))
    }

    /// How many transfers were to be MPTCP and were plain TCP, at least in part.
    pub fn fell_back(&self) -> usize {
        self.samples.iter().filter(|sample| sample.download.mptcp.is_some_and(|it| it.fell_back)).count()
    }

    /// How many transfers their deadline cut off.
    pub fn cut_off(&self) -> usize {
        self.samples.iter().filter(|sample| !sample.download.is_complete).count()
    }

    /// Transfer times, of those that came to their end.
    pub fn times(&self) -> Percentiles {
        let complete = self.samples.iter().filter(|sample| sample.download.is_complete);
        Percentiles::of(complete.map(|sample| sample.download.seconds))
    }

    /// Times to the first byte.
    pub fn first_bytes(&self) -> Percentiles {
        Percentiles::of(self.samples.iter().filter_map(|sample| sample.download.first_byte_s))
    }

    /// Longest stalls.
    pub fn stalls(&self) -> Percentiles {
        Percentiles::of(self.samples.iter().filter_map(|sample| sample.download.stall_s))
    }
}

/// Median and extremes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// `None` without samples.
    pub fn of(samples: impl Iterator<Item = f64>) -> Option<Self> {
        let mut samples: Vec<f64> = samples.collect();
        samples.sort_by(f64::total_cmp);
        let (&min, &max) = (samples.first()?, samples.last()?);
        let (low, high) = (samples[(samples.len() - 1) / 2], samples[samples.len() / 2]);
        Some(Self { median: (low + high) / 2.0, min, max })
    }
}

/// A distribution of times, in microseconds with three digits.
pub struct Percentiles(Option<Histogram<u64>>);

impl Percentiles {
    fn of(seconds: impl Iterator<Item = f64>) -> Self {
        // An automatic range and three digits cannot be refused.
        let Ok(mut histogram) = Histogram::new(3) else { return Self(None) };
        for seconds in seconds {
            // It grows with what it is given.
            let _ = histogram.record(Duration::from_secs_f64(seconds).as_micros() as u64);
        }
        Self((!histogram.is_empty()).then_some(histogram))
    }

    /// p50, p90, p99 and the maximum in seconds.
    pub fn seconds(&self) -> Option<[f64; 4]> {
        let histogram = self.0.as_ref()?;
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e6;
        Some([at(0.5), at(0.9), at(0.99), histogram.max() as f64 / 1e6])
    }
}
