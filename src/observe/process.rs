//! What proc(5) says of this process: memory, descriptors, and the CPU time of each core's thread.
//!
//! Invariant: what cannot be read is zero or absent, never an error: figures are no reason to fail.

use std::{fs, time::SystemTime};

use rustix::{
    param::{clock_ticks_per_second, page_size},
    process::{Resource, getrlimit},
};

use super::snapshot::{CoreReport, ProcessReport};

/// Memory and descriptors now.
pub(super) fn report() -> ProcessReport {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0);
    // One of them is the directory that is read.
    let descriptors =
        fs::read_dir("/proc/self/fd").map_or(0, |entries| (entries.count() as u64).saturating_sub(1));
    ProcessReport {
        resident_bytes: pages * page_size() as u64,
        descriptors,
        descriptors_max: getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
    }
}

/// CPU time of the cores' threads, which carry their numbers in their names; in order.
pub(super) fn cores() -> Vec<CoreReport> {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else { return Vec::new() };
    let mut cores: Vec<_> = tasks
        .flatten()
        .filter_map(|task| {
            let stat = fs::read_to_string(task.path().join("stat")).ok()?;
            core_of_stat(&stat, clock_ticks_per_second() as f64)
        })
        .collect();
    cores.sort_by_key(|report| report.core);
    cores
}

/// proc_pid_stat(5): the name stands in parentheses, utime and stime are the 12th and 13th fields behind it.
fn core_of_stat(stat: &str, ticks_per_second: f64) -> Option<CoreReport> {
    let (before, fields) = stat.rsplit_once(')')?;
    let core = before.split_once("(plait-core-")?.1.parse().ok()?;
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).filter_map(|f| f.parse::<u64>().ok()).sum();
    Some(CoreReport { core, busy_s: ticks as f64 / ticks_per_second })
}

/// When this process began, as near as it matters: when it is asked for first.
pub(super) fn started() -> SystemTime {
    static STARTED: std::sync::OnceLock<SystemTime> = std::sync::OnceLock::new();
    *STARTED.get_or_init(SystemTime::now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_threads_time_is_read_by_its_name() {
        let stat = "7 (plait-core-3) S 1 7 7 0 -1 4194368 100 0 0 0 250 50 0 0 20 0 2 0 100 1 2";
        assert_eq!(core_of_stat(stat, 100.0), Some(CoreReport { core: 3, busy_s: 3.0 }));
        assert_eq!(core_of_stat("7 (plait) S 1 7 7", 100.0), None);
        assert_eq!(core_of_stat("nonsense", 100.0), None);
    }

    #[test]
    fn this_process_has_memory_and_descriptors() {
        let report = report();
        assert!(report.resident_bytes > 0 && report.descriptors > 0, "{report:?}");
    }
}
