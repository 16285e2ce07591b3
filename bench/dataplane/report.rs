//! In: samples. Out: Markdown tables of medians, and the table of what must be reached.
//!
//! Called by the scenarios and `main`. Invariant: a ratio is computed from the medians of cells whose samples
//! alternated in one run, or it is not printed.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::Outcome;
use crate::load::MB;

/// One transfer.
pub struct Sample {
    /// First to last byte.
    pub taken: Duration,
    /// What the process under test used meanwhile, if it is counted.
    pub cpu_ns: Option<u64>,
}

/// One row: a competitor at one transfer size.
pub struct Cell {
    label: String,
    bytes: u64,
    samples: Vec<Sample>,
    /// Why there are no (more) samples.
    pub trouble: Option<String>,
}

impl Cell {
    /// An empty row.
    pub fn new(label: impl Into<String>, bytes: u64) -> Self {
        Self { label: label.into(), bytes, samples: Vec::new(), trouble: None }
    }

    /// Takes a sample, or the reason why there is none.
    pub fn push(&mut self, sample: Outcome<Sample>) {
        match sample {
            Ok(sample) => self.samples.push(sample),
            Err(error) => self.trouble = Some(error.to_string()),
        }
    }

    /// Median of the transfer times in seconds.
    pub fn seconds(&self) -> Option<f64> {
        Some(Spread::of(self.samples.iter().map(|sample| sample.taken.as_secs_f64()))?.median)
    }

    /// Median throughput in MB/s.
    pub fn throughput(&self) -> Option<f64> {
        Some(self.throughputs()?.median)
    }

    /// Median CPU seconds per GB.
    pub fn cpu_per_gb(&self) -> Option<f64> {
        Some(self.cpus_per_gb()?.median)
    }

    fn throughputs(&self) -> Option<Spread> {
        let megabytes = self.bytes as f64 / MB as f64;
        Spread::of(self.samples.iter().map(|sample| megabytes / sample.taken.as_secs_f64()))
    }

    fn cpus_per_gb(&self) -> Option<Spread> {
        let samples = self.samples.iter().filter_map(|sample| sample.cpu_ns);
        // ns per byte and s per GB are the same number.
        Spread::of(samples.map(|cpu_ns| cpu_ns as f64 / self.bytes as f64))
    }

    fn row(&self) -> Outcome<String> {
        let Some(throughputs) = self.throughputs().filter(|_| self.trouble.is_none()) else {
            let trouble = self.trouble.as_deref().unwrap_or("not measured");
            return Ok(format!("| {} | {trouble} | | | | | | {} |", self.label, self.samples.len()));
        };
        let cpu = self.cpus_per_gb().map_or("–".to_owned(), |cpu| cpu.show(3));
        let mut times = Histogram::<u64>::new(3)?;
        for sample in &self.samples {
            times.record(u64::try_from(sample.taken.as_micros())?)?;
        }
        let milliseconds = |quantile| times.value_at_quantile(quantile) as f64 / 1000.0;
        Ok(format!(
            "| {} | {} | {cpu} | {:.1} | {:.1} | {:.1} | {:.1} | {} |",
            self.label,
            throughputs.show(0),
            milliseconds(0.5),
            milliseconds(0.9),
            milliseconds(0.99),
            times.max() as f64 / 1000.0,
            self.samples.len()
        ))
    }
}

/// Median and extremes.
pub struct Spread {
    /// Of an even number of samples, the mean of the two in the middle.
    pub median: f64,
    min: f64,
    max: f64,
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

    /// As the tables have it: median (min–max).
    pub fn show(&self, digits: usize) -> String {
        format!("{:.digits$} ({:.digits$}–{:.digits$})", self.median, self.min, self.max)
    }
}

/// Prints the rows of one scenario.
pub fn print_cells(title: &str, notes: &[String], cells: &[&Cell]) -> Outcome<()> {
    println!("\n### {title}\n");
    for note in notes {
        println!("{note}\n");
    }
    println!(
        "| | MB/s, median (min–max) | CPU s/GB, median (min–max) | ms p50 | p90 | p99 | max | transfers |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    for cell in cells {
        println!("{}", cell.row()?);
    }
    Ok(())
}

/// Which side of the target is good.
pub enum Target {
    /// Reached when the value is this or less.
    AtMost(f64),
    /// Reached when the value is this or more.
    AtLeast(f64),
}

/// A row of "Must reach".
pub struct Goal {
    what: String,
    value: Option<f64>,
    target: Target,
}

impl Goal {
    /// A goal on one number.
    pub fn new(what: impl Into<String>, value: Option<f64>, target: Target) -> Self {
        Self { what: what.into(), value, target }
    }

    /// A goal on `ours` ÷ `theirs`.
    pub fn ratio(what: impl Into<String>, ours: Option<f64>, theirs: Option<f64>, target: Target) -> Self {
        Self::new(what, ours.zip(theirs).map(|(ours, theirs)| ours / theirs), target)
    }
}

/// Prints the goals of all scenarios that ran.
pub fn print_goals(goals: &[Goal]) {
    println!("\n### Must reach\n\n| what | measured | target | |\n| --- | --- | --- | --- |");
    for goal in goals {
        let (target, reached) = match goal.target {
            Target::AtMost(limit) => (format!("≤ {limit}"), goal.value.map(|value| value <= limit)),
            Target::AtLeast(limit) => (format!("≥ {limit}"), goal.value.map(|value| value >= limit)),
        };
        let verdict = match reached {
            Some(true) => "reached",
            Some(false) => "MISSED",
            None => "not measured",
        };
        let value = goal.value.map_or("–".to_owned(), |value| format!("{value:.2}"));
        println!("| {} | {value} | {target} | {verdict} |", goal.what);
    }
}
