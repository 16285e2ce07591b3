//! What proc(5) says of this process: memory, descriptors, and the CPU time of each core's thread.
//!
//! Invariant: what cannot be read is zero or absent, never an error: figures are no reason to fail.

use std::{fs, time::SystemTime};

use rustix::{
    param::page_size,
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
            let read = |name| fs::read_to_string(task.path().join(name)).ok();
            core_of_thread(&read("comm")?, &read("schedstat")?)
        })
        .collect();
    cores.sort_by_key(|report| report.core);
    cores
}

/// The first number of schedstat is the time on a CPU, in nanoseconds.
fn core_of_thread(comm: &str, schedstat: &str) -> Option<CoreReport> {
    let core = comm.trim_end().strip_prefix("plait-core-")?.parse().ok()?;
    let busy_ns: u64 = schedstat.split_whitespace().next()?.parse().ok()?;
    Some(CoreReport { core, busy_s: busy_ns as f64 * 1e-9 })
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
        let report = core_of_thread("plait-core-3\n", "2500000000 17 4\n");
        assert_eq!(report, Some(CoreReport { core: 3, busy_s: 2.5 }));
        assert_eq!(core_of_thread("plait\n", "1 2 3\n"), None);
        assert_eq!(core_of_thread("plait-core-0\n", ""), None);
    }

    #[test]
    fn this_process_has_memory_and_descriptors() {
        let report = report();
        assert!(report.resident_bytes > 0 && report.descriptors > 0, "{report:?}");
    }
}
