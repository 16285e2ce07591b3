//! In: commands to start. Out: running processes that say where they listen, what they used, and that end with their
//! guard.
//!
//! Called by `peers` and the scenarios. Invariant: whatever was started is stopped by its own PID: on drop, on a panic
//! that unwinds, on SIGINT and on SIGTERM.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use rustix::thread::{CpuSet, sched_setaffinity};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::Outcome;

/// Every role is ready within milliseconds; ten seconds means that it never will be.
const READY_MS_MAX: u64 = 10_000;
/// A role may finish transfers on SIGTERM; the bench has none left when it stops one.
const STOP_MS_MAX: u64 = 2_000;
/// USER_HZ: the unit of the CPU times in /proc/PID/stat is 10 ms on every Linux platform that Rust knows.
const NS_PER_TICK: u64 = 10_000_000;

/// The PIDs that must not outlive this program.
static STARTED: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// Stops everything that was started, and removes `dirs`, when a signal ends the program before its guards run.
pub fn clean_up_on_signal(dirs: Vec<PathBuf>) -> Outcome<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            for &pid in STARTED.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).iter() {
                // Already gone is as good as stopped.
                let _ = kill_process(pid, Signal::KILL);
            }
            for dir in &dirs {
                let _ = fs::remove_dir_all(dir);
            }
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}

/// CPU time of all threads of a process so far, in nanoseconds.
///
/// The sum over /proc/PID/task/*/schedstat is exact but forgets threads that ended; /proc/PID/stat remembers them
/// in 10 ms ticks, rounded down. Neither can exceed the truth, so the larger is the better.
pub fn cpu_ns(pid: Pid) -> Outcome<u64> {
    let mut running_ns = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))?.map_while(Result::ok) {
        // A thread may end between the listing and the reading.
        if let Ok(text) = fs::read_to_string(task.path().join("schedstat")) {
            running_ns += first_number(&text).ok_or("schedstat has no numbers")?;
        }
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Fields 14 and 15 of proc_pid_stat(5), counted behind the command name, which may hold spaces.
    let behind_name = stat.rsplit_once(") ").ok_or("stat has no command name")?.1;
    let ticks: u64 = behind_name.split(' ').skip(11).take(2).filter_map(first_number).sum();
    Ok(running_ns.max(ticks * NS_PER_TICK))
}

/// How a process ended that was waited for.
pub struct Finished {
    /// What it printed.
    pub stdout: String,
    /// CPU time of all its threads, in nanoseconds.
    pub cpu_ns: u64,
    /// False: it had to be killed.
    pub in_time: bool,
    /// A sentence about its end, if its exit status was not 0.
    pub trouble: Option<String>,
}

/// A child process and the guard that ends it.
pub struct Process {
    name: String,
    child: Child,
    pid: Pid,
    stdout: Receiver<String>,
    stderr: PathBuf,
}

impl Process {
    /// Moves the process, which has one thread, to the first CPU: where `plait --cores 0` runs.
    pub fn pin_to_first_cpu(&self) -> Outcome<()> {
        let mut first = CpuSet::new();
        first.set(0);
        Ok(sched_setaffinity(Some(self.pid), &first)?)
    }

    /// Starts `command`; its standard error goes to a file below `dir`, from which failures quote.
    pub fn start(name: &str, command: &mut Command, dir: &Path) -> Outcome<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let stderr = dir.join(format!("stderr-{}", COUNT.fetch_add(1, Ordering::Relaxed)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&stderr)?);
        let mut started = STARTED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut child = command.spawn().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => "not installed".to_owned(),
            _ => format!("{name} did not start: {error}"),
        })?;
        let pid = Pid::from_child(&child);
        started.push(pid);
        drop(started);
        let (lines, stdout) = channel();
        if let Some(pipe) = child.stdout.take() {
            // Reads to the end even when nobody listens any more: a full pipe must not block the child.
            thread::spawn(move || {
                BufReader::new(pipe).lines().map_while(Result::ok).for_each(|line| {
                    let _ = lines.send(line);
                });
            });
        }
        Ok(Self { name: name.to_owned(), child, pid, stdout, stderr })
    }

    /// Waits for plait's ready line, `listening on ADDR`.
    pub fn listening_on(&mut self) -> Outcome<SocketAddr> {
        let deadline = Instant::now() + Duration::from_millis(READY_MS_MAX);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self
                .stdout
                .recv_timeout(left)
                .map_err(|_| self.failure("ended or hung before it printed `listening on ADDR`"))?;
            if let Some(address) = line.strip_prefix("listening on ") {
                return address.trim().parse().map_err(|error| {
                    self.failure(&format!("printed `{line}`, which is not an address: {error}")).into()
                });
            }
        }
    }

    /// Calls `ready` until it succeeds, for servers that do not announce themselves.
    pub fn wait_until(&mut self, mut ready: impl FnMut() -> bool) -> Outcome<()> {
        let deadline = Instant::now() + Duration::from_millis(READY_MS_MAX);
        while !ready() {
            if self.child.try_wait()?.is_some() {
                return Err(self.failure("ended at once").into());
            }
            if Instant::now() > deadline {
                return Err(self.failure("was not ready in time").into());
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// CPU time of all its threads so far, in nanoseconds.
    pub fn cpu_ns(&self) -> Outcome<u64> {
        cpu_ns(self.pid).map_err(|error| self.failure(&format!("is gone: {error}")).into())
    }

    /// Waits for its end, and kills it after `limit`. Its standard output must be short: it stays in memory.
    pub fn finish(mut self, limit: Duration) -> Outcome<Finished> {
        let ending = pidfd_open(self.pid, PidfdFlags::empty())?;
        let deadline = Instant::now() + limit;
        let in_time = loop {
            let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now()))?;
            match poll(&mut [PollFd::new(&ending, PollFlags::IN)], Some(&left)) {
                Err(Errno::INTR) => {}
                ready => break ready? > 0,
            }
        };
        if !in_time {
            self.child.kill()?;
            poll(&mut [PollFd::new(&ending, PollFlags::IN)], None)?;
        }
        // Until it is reaped, the kernel still knows what it has used.
        let cpu_ns = cpu_ns(self.pid)?;
        let status = self.child.wait()?;
        let stdout = self.stdout.iter().collect::<Vec<_>>().join("\n");
        let trouble = (!status.success()).then(|| self.failure(&format!("ended with {status}")));
        Ok(Finished { stdout, cpu_ns, in_time, trouble })
    }

    /// Resident memory (VmRSS) in bytes.
    pub fn rss_bytes(&self) -> Outcome<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        Ok(field(&status, "VmRSS:").ok_or("status has no VmRSS")? * 1024)
    }

    /// How often its threads have gone to sleep so far: each one is a wakeup later.
    pub fn sleeps(&self) -> Outcome<u64> {
        let mut sleeps = 0;
        for task in self.tasks()? {
            if let Ok(status) = fs::read_to_string(task.join("status")) {
                sleeps += field(&status, "voluntary_ctxt_switches:").ok_or("status counts no switches")?;
            }
        }
        Ok(sleeps)
    }

    fn tasks(&self) -> Outcome<Vec<PathBuf>> {
        let listing = fs::read_dir(format!("/proc/{}/task", self.pid))
            .map_err(|error| self.failure(&format!("is gone: {error}")))?;
        Ok(listing.map_while(Result::ok).map(|task| task.path()).collect())
    }

    /// A sentence about this process with the last line that it wrote to standard error.
    fn failure(&self, what: &str) -> String {
        let stderr = fs::read_to_string(&self.stderr).unwrap_or_default();
        match stderr.lines().rfind(|line| !line.trim().is_empty()) {
            Some(last) => format!("{} {what}: {last}", self.name),
            None => format!("{} {what}", self.name),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has been reaped has no number any more that a signal could go to.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill_process(self.pid, Signal::TERM);
        }
        let deadline = Instant::now() + Duration::from_millis(STOP_MS_MAX);
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                eprintln!("{} did not stop on SIGTERM", self.name);
                let _ = self.child.kill();
                let _ = self.child.wait();
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
        // Reaped: the number may belong to somebody else from now on.
        STARTED.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).retain(|&pid| pid != self.pid);
    }
}

fn first_number(text: &str) -> Option<u64> {
    text.split_ascii_whitespace().next()?.parse().ok()
}

fn field(status: &str, name: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix(name)).and_then(first_number)
}
