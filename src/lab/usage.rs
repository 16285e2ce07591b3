//! What a process costs.
//!
//! In: a PID. Out: its CPU time. Called by the chain, and through it by the benchmark.

use std::{fs, io};

/// USER_HZ: the unit of the CPU times in /proc/PID/stat is 10 ms on every Linux platform that Rust knows.
const NS_PER_TICK: u64 = 10_000_000;

/// CPU time of all threads of a process so far, in nanoseconds.
///
/// The sum over /proc/PID/task/*/schedstat is exact but forgets threads that ended; /proc/PID/stat remembers them in
/// 10 ms ticks, rounded down. Neither can exceed the truth, so the larger is the better.
///
/// # Errors
/// The process is gone.
pub fn cpu_ns(pid: u32) -> io::Result<u64> {
    let mut running_ns = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))?.map_while(Result::ok) {
        // A thread may end between the listing and the reading.
        if let Ok(text) = fs::read_to_string(task.path().join("schedstat")) {
            running_ns += first_number(&text).unwrap_or(0);
        }
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Fields 14 and 15 of proc_pid_stat(5), counted behind the command name, which may hold spaces.
    let behind_name = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    let ticks: u64 = behind_name.split(' ').skip(11).take(2).filter_map(first_number).sum();
    Ok(running_ns.max(ticks * NS_PER_TICK))
}

fn first_number(text: &str) -> Option<u64> {
    text.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_own_time_grows() {
        let pid = std::process::id();
        let before = super::cpu_ns(pid).unwrap();
        while super::cpu_ns(pid).unwrap() == before {}
        assert!(super::cpu_ns(u32::MAX).is_err());
    }
}
