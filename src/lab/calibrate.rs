//! Whether the emulator does what it is asked for on this machine now.
//!
//! In: nothing. Out: a [`Calibration`], about 15 s later. Called by `plait lab calibrate` and before every benchmark.

use super::topology::LabError;

/// One check.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    /// What was checked.
    pub what: String,
    /// What was seen.
    pub seen: String,
    /// What must be.
    pub bound: String,
    /// Whether it is.
    pub good: bool,
}

/// The result of all checks.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    /// The checks.
    pub checks: Vec<Check>,
}

impl Calibration {
    /// Whether results of a lab on this machine count.
    pub fn good(&self) -> bool {
        self.checks.iter().all(|check| check.good)
    }
}

/// Builds a lab of its own and measures it.
///
/// # Errors
/// There is no lab on this machine. A bad result is no error; see [`Calibration::good`].
pub fn calibrate() -> Result<Calibration, LabError> {
    Err(LabError::Program("not built yet".into()))
}
