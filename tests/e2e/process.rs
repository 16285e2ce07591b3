//! Child processes: started, watched line by line, ended with their handle.
//!
//! In: a program and its arguments. Out: what it says, when it says it, and how it ended. Invariants: every wait has a
//! deadline and waits for an event, not for time; no process outlives its handle.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    os::unix::process::ExitStatusExt,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Resource, Rlimit, Signal, kill_process, pidfd_open, prlimit},
};

/// What anything may take that takes milliseconds on a quiet machine: a debug build on a host with ten busy builders.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The binary that is tested.
pub const PLAIT: &str = env!("CARGO_BIN_EXE_plait");

/// What a process wrote to one stream so far.
#[derive(Default)]
struct Said {
    text: Mutex<(String, bool)>,
    changed: Condvar,
}

impl Said {
    /// Collects `stream` to its end on a thread.
    fn collect(stream: impl Read + Send + 'static) -> Arc<Self> {
        let said = Arc::new(Self::default());
        let collected = said.clone();
        thread::spawn(move || {
            let mut lines = BufReader::new(stream);
            let mut line = Vec::new();
            while lines.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
                collected.text.lock().unwrap().0.push_str(&String::from_utf8_lossy(&line));
                collected.changed.notify_all();
                line.clear();
            }
            collected.text.lock().unwrap().1 = true;
            collected.changed.notify_all();
        });
        said
    }

    /// Waits until `found` finds something in the text, the stream ends, or the deadline has passed.
    fn wait<T>(&self, found: impl Fn(&str) -> Option<T>) -> Option<T> {
        let until = Instant::now() + DEADLINE;
        let mut text = self.text.lock().unwrap();
        loop {
            if let Some(found) = found(&text.0) {
                return Some(found);
            }
            let left = until.saturating_duration_since(Instant::now());
            if text.1 || left.is_zero() {
                return None;
            }
            text = self.changed.wait_timeout(text, left).unwrap().0;
        }
    }

    fn text(&self) -> String {
        self.text.lock().unwrap().0.clone()
    }
}

/// A running process; killed when dropped.
pub struct Process {
    name: String,
    child: Child,
    out: Arc<Said>,
    log: Arc<Said>,
    /// It has children of its own, which it takes with it when it is asked to stop.
    asked_to_stop: bool,
}

impl Process {
    /// Starts `command` with its output caught.
    pub fn start(name: impl Into<String>, command: &mut Command) -> Self {
        let name = name.into();
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        let out = Said::collect(child.stdout.take().unwrap());
        let log = Said::collect(child.stderr.take().unwrap());
        Self { name, child, out, log, asked_to_stop: false }
    }

    /// The same, but asked to stop before it is killed.
    pub fn ends_with_sigterm(mut self) -> Self {
        self.asked_to_stop = true;
        self
    }

    /// Starts a role of the tested binary and waits for its port.
    pub fn role<S: AsRef<OsStr>>(
        name: impl Into<String>,
        settings: &Settings,
        args: impl IntoIterator<Item = S>,
    ) -> (Self, SocketAddr) {
        Self::listening(name, settings.plait().args(args))
    }

    /// Starts a command that becomes a role, and waits for its port.
    pub fn listening(name: impl Into<String>, command: &mut Command) -> (Self, SocketAddr) {
        let process = Self::start(name, command);
        let address = process.out.wait(|text| {
            let line = text.lines().find_map(|line| line.strip_prefix("listening on "))?;
            line.parse().ok()
        });
        let address = address
            .unwrap_or_else(|| panic!("{} does not listen; it says:\n{}", process.name, process.log()));
        (process, address)
    }

    /// Where its admin endpoint is.
    pub fn admin(&self) -> SocketAddr {
        let address = self.out.wait(|text| {
            let line = text.lines().find_map(|line| line.strip_prefix("dashboard and metrics on http://"))?;
            line.strip_suffix('/')?.parse().ok()
        });
        address.unwrap_or_else(|| panic!("{} has no admin endpoint; it says:\n{}", self.name, self.log()))
    }

    /// Waits until the process has written something with `text` in it to standard output.
    pub fn wait_for_output(&self, text: &str) {
        let found = self.out.wait(|out| out.contains(text).then_some(()));
        assert!(found.is_some(), "{} did not say '{text}' but:\n{}", self.name, self.output());
    }

    /// What it wrote to standard output so far.
    pub fn output(&self) -> String {
        self.out.text()
    }

    /// Waits until the process has logged something with `text` in it.
    pub fn wait_for_log(&self, text: &str) {
        let found = self.log.wait(|log| log.contains(text).then_some(()));
        assert!(found.is_some(), "{} did not log '{text}' but:\n{}", self.name, self.log());
    }

    /// Waits until it has done so that many times.
    pub fn wait_for_log_times(&self, text: &str, times: usize) {
        let found = self.log.wait(|log| (log.matches(text).count() >= times).then_some(()));
        assert!(found.is_some(), "{} did not log '{text}' {times} times but:\n{}", self.name, self.log());
    }

    /// What it wrote to standard error so far.
    pub fn log(&self) -> String {
        self.log.text()
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Asks it to stop.
    pub fn terminate(&self) {
        kill_process(self.pid(), Signal::TERM).unwrap();
    }

    /// What Ctrl-C does.
    pub fn interrupt(&self) {
        kill_process(self.pid(), Signal::INT).unwrap();
    }

    /// Stops it where it is, as a host does that hangs: its connections stand and say nothing.
    pub fn freeze(&self) {
        kill_process(self.pid(), Signal::STOP).unwrap();
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        kill_process(self.pid(), Signal::CONT).unwrap();
    }

    /// It may open descriptors below this number only, from now on.
    pub fn limit_descriptors(&self, max: u64) {
        let limit = Rlimit { current: Some(max), maximum: Some(max) };
        prlimit(Some(self.pid()), Resource::Nofile, limit).unwrap();
    }

    /// Tells it to read its settings again.
    pub fn hang_up(&self) {
        kill_process(self.pid(), Signal::HUP).unwrap();
    }

    /// Ends it at once, as a crash does, and waits for its end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }

    /// How it ended.
    pub fn wait(&mut self) -> ExitStatus {
        assert!(self.ends_within(DEADLINE), "{} still runs; its log:\n{}", self.name, self.log());
        self.child.wait().unwrap()
    }

    /// Whether it has ended by then. A process that was not waited for is still there, even as a zombie.
    fn ends_within(&self, deadline: Duration) -> bool {
        let deadline = Timespec::try_from(deadline).unwrap();
        pidfd_open(self.pid(), PidfdFlags::empty())
            .and_then(|pidfd| poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&deadline)))
            .is_ok_and(|ended| ended == 1)
    }

    /// CPU time that it has used.
    pub fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // proc(5): the name may hold spaces; utime and stime are the 12th and 13th fields behind it.
        let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
        let ticks: u64 = fields.skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum();
        Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
    }

    /// Memory of the process in RAM now, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        self.status_bytes("VmRSS:")
    }

    /// The most that it ever was.
    pub fn peak_resident_bytes(&self) -> u64 {
        self.status_bytes("VmHWM:")
    }

    fn status_bytes(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.asked_to_stop && matches!(self.child.try_wait(), Ok(None)) {
            self.terminate();
            self.ends_within(Duration::from_secs(5));
        }
        let _ = self.child.kill();
        let ended = self.child.wait();
        if thread::panicking() {
            let log = self.log();
            let tail = log.char_indices().rev().nth(4000).map_or(0, |(at, _)| at);
            let signal = ended.ok().and_then(|status| status.signal());
            eprintln!("---- {} (ended by signal {signal:?}) logged:\n{}", self.name, &log[tail..]);
        }
    }
}

/// What every process of a chain is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `--executor`.
    pub executor: &'static str,
    /// `PLAIT_PLACEMENT`.
    pub placement: &'static str,
    /// `--cores`; two of the machine's unless a test says otherwise.
    pub cores: String,
    /// `--log`.
    pub log: &'static str,
    /// Payload is copied, as on kernels that refuse splice.
    pub no_splice: bool,
    /// Descriptors that each process may open (`ulimit -n`), if not as many as this one.
    pub descriptors: Option<u32>,
    /// Each has an admin endpoint, on a port of the kernel's choice.
    pub admin: bool,
    /// `--log-format`.
    pub log_format: &'static str,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            executor: "tokio-uring",
            placement: "auto",
            cores: two_cores(),
            log: "info",
            no_splice: false,
            descriptors: None,
            admin: false,
            log_format: "text",
        }
    }
}

impl Settings {
    /// The binary with these settings and nothing of the environment's own.
    pub fn plait(&self) -> Command {
        let mut command = match self.descriptors {
            None => Command::new(PLAIT),
            Some(descriptors) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("ulimit -n {descriptors} && exec \"$0\" \"$@\""), PLAIT]);
                shell
            }
        };
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"PLAIT_") {
                command.env_remove(name);
            }
        }
        command
            .env("PLAIT_PLACEMENT", self.placement)
            .env("PLAIT_EXECUTOR", self.executor)
            .env("PLAIT_LOG", self.log)
            .env("PLAIT_CORES", &self.cores);
        command.env("PLAIT_LOG_FORMAT", self.log_format);
        if self.admin {
            command.env("PLAIT_ADMIN", "0");
        }
        if self.no_splice {
            command.env("PLAIT_NO_SPLICE", "1");
        }
        command
    }
}

/// Two CPUs that this process may use, others for each test process, so that a big machine is used as a whole and no
/// role starts a hundred threads.
fn two_cores() -> String {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let cpus: Vec<usize> = (0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).collect();
    let first = std::process::id() as usize * 2 % cpus.len();
    let mut two = vec![cpus[first], cpus[(first + 1) % cpus.len()]];
    two.dedup();
    two.iter().map(usize::to_string).collect::<Vec<_>>().join(",")
}

/// Runs `command` to its end, or fails the test at the deadline.
pub fn run(command: &mut Command) -> Output {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut process = Process::start(name, command.stdin(Stdio::null()));
    let status = process.wait();
    let whole = |said: &Said| {
        said.wait(|_| None::<()>);
        said.text().into_bytes()
    };
    Output { status, stdout: whole(&process.out), stderr: whole(&process.log) }
}
