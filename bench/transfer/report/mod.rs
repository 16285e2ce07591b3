//! In: a run. Out: Markdown, JSON and SVG charts.
//!
//! Called by `main`, after each row for what has come so far.

mod charts;
mod tables;

use std::fs;
use std::path::Path;

use serde::Serialize;

pub use tables::markdown;

use crate::Outcome;
use crate::calibration::CalibrationCheck;
use crate::row::Row;

/// Everything that was measured, and under which circumstances.
#[derive(Serialize)]
pub struct Run {
    pub date: String,
    pub kernel: String,
    pub cores: usize,
    pub load_before: String,
    /// The command line that repeats it.
    pub command: String,
    /// Plait's commit, if this is a checkout.
    pub commit: Option<String>,
    pub size_bytes: u64,
    pub runs: u32,
    pub is_quick: bool,
    /// When transfers are cut off.
    pub deadline_s: u64,
    pub calibration: Vec<CalibrationCheck>,
    /// Why the whole output is worth nothing.
    pub invalid: Option<String>,
    pub rows: Vec<Row>,
    /// Rows that could not be measured, each with its reason.
    pub given_up: Vec<String>,
}

/// Writes transfer.md, transfer.json and the charts into `dir`.
pub fn write(run: &Run, dir: &Path) -> Outcome<()> {
    fs::create_dir_all(dir)?;
    fs::write(dir.join("transfer.md"), markdown(run))?;
    fs::write(dir.join("transfer.json"), serde_json::to_string_pretty(run)?)?;
    charts::overview(&run.rows, &dir.join("overview.svg"))?;
    for row in &run.rows {
        charts::row(row, &dir.join(format!("{}-{}.svg", row.scenario, row.cc)))?;
    }
    Ok(())
}
