//! The calibration of the emulator, before a benchmark measures anything through it.
//!
//! In: nothing. Out: the checks for the report, and whether what follows is worth anything. Called by `main`, and by the film of
//! the cache's benchmark.

use plait::lab::calibrate::{Check, calibrate};
use serde::Serialize;

use crate::Outcome;

/// What the calibration found.
pub struct Calibrated {
    pub checks: Vec<CalibrationCheck>,
    /// Why everything that is measured now is worth nothing.
    pub invalid: Option<String>,
}

/// One of the emulator's own checks.
#[derive(Serialize)]
pub struct CalibrationCheck {
    pub what: String,
    pub seen: String,
    pub bound: String,
    pub is_good: bool,
}

impl From<Check> for CalibrationCheck {
    fn from(check: Check) -> Self {
        Self { what: check.what, seen: check.seen, bound: check.bound, is_good: check.good }
    }
}

/// Calibrates, which takes 15 s.
pub fn calibrated() -> Outcome<Calibrated> {
    eprintln!("calibrating the emulator");
    let calibration = calibrate()?;
    let invalid =
        (!calibration.good()).then(|| "the emulator is not what it should be on this machine".to_owned());
    Ok(Calibrated { checks: calibration.checks.into_iter().map(CalibrationCheck::from).collect(), invalid })
}

/// What stands above results that are worth nothing, in Markdown.
pub fn warning(reason: &str) -> String {
    format!("**INVALID: {reason}. Nothing below is worth quoting.**\n")
}

/// The checks in Markdown.
pub fn table(checks: &[CalibrationCheck]) -> String {
    let mut text = "| calibration of the emulator | seen | bound | |\n| --- | --- | --- | --- |\n".to_owned();
    for check in checks {
        let verdict = if check.is_good { "good" } else { "**BAD**" };
        text += &format!("| {} | {} | {} | {verdict} |\n", check.what, check.seen, check.bound);
    }
    text
}
