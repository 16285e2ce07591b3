//! One role of the chain as a process that can be killed, started anew, frozen and thawed.
//!
//! In: a command. Out: a process that listens, its CPU time and what it says. Called by the chain and the timeline, from
//! any thread. Invariant: the process ends with its [`RoleProcess`], and with this process.

use std::{
    collections::VecDeque,
    fmt,
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc::channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use super::{lasting, topology::LabError, usage};

/// A downstream may take twenty-one seconds until its lanes are warm; who takes longer will never be ready.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// Lines of a role's log that are kept for the case that it fails.
const LOG_LINES_MAX: usize = 50;

/// A role of the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Serves the file.
    Root,
    /// Stripes it.
    Upstream,
    /// Forwards the lanes of the path of this number, from 0.
    Relay(usize),
    /// Serves clients.
    Downstream,
}

impl fmt::Display for Role {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => out.write_str("root"),
            Self::Upstream => out.write_str("upstream"),
            Self::Relay(path) => write!(out, "relay {}", path + 1),
            Self::Downstream => out.write_str("downstream"),
        }
    }
}

/// A role; its process is killed when this is dropped.
#[derive(Debug)]
pub struct RoleProcess {
    role: Role,
    life: Mutex<Life>,
    log: Arc<Mutex<VecDeque<String>>>,
    file: Option<Arc<File>>,
}

#[derive(Debug)]
struct Life {
    /// Of its last start; taken while it is started.
    command: Option<Command>,
    /// None between a kill and the next start.
    child: Option<Child>,
    /// CPU time of the processes that were killed.
    cpu_before_ns: u64,
}

impl RoleProcess {
    /// Starts the role and waits until it listens. Its log goes to a file of its name in `logs`, if given.
    pub(super) fn start(role: Role, mut command: Command, logs: Option<&Path>) -> Result<Self, LabError> {
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"PLAIT_") {
                command.env_remove(name);
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let create = |dir: &Path| {
            let path = dir.join(format!("{role}.log").replace(' ', "-"));
            let cannot =
                |source| LabError::System { what: format!("cannot write {}", path.display()), source };
            fs::create_dir_all(dir).and_then(|()| File::create(&path)).map(Arc::new).map_err(cannot)
        };
        let process = Self {
            role,
            life: Mutex::new(Life { command: Some(command), child: None, cpu_before_ns: 0 }),
            log: Arc::default(),
            file: logs.map(create).transpose()?,
        };
        process.start_again()?;
        Ok(process)
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts it anew, unless it runs, and waits until it listens.
    ///
    /// # Errors
    /// It does not start; the text has what it says.
    pub fn start_again(&self) -> Result<(), LabError> {
        let mut life = self.life();
        if life.child.is_some() {
            return Ok(());
        }
        let Some(command) = life.command.take() else { return Ok(()) };
        let program = command.get_program().to_string_lossy().into_owned();
        let (command, mut child) = lasting::spawn(command)
            .map_err(|source| LabError::System { what: format!("cannot start {program}"), source })?;
        life.command = Some(command);
        let mut reader = None;
        if let Some(stderr) = child.stderr.take() {
            let (log, file) = (self.log.clone(), self.file.clone());
            reader = Some(each_line(stderr, move |line| {
                // A full disk must not stop the role.
                let _ = file.as_deref().map(|mut file| file.write_all(format!("{line}\n").as_bytes()));
                let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
                if log.len() == LOG_LINES_MAX {
                    log.pop_front();
                }
                log.push_back(line);
            }));
        }
        let (said, listening) = channel();
        if let Some(stdout) = child.stdout.take() {
            each_line(stdout, move |line| {
                if line.starts_with("listening on ") {
                    // Nobody waits for a second one.
                    let _ = said.send(());
                }
            });
        }
        if listening.recv_timeout(READY_LIMIT).is_err() {
            // What it said last is there once it has ended.
            let _ = child.kill();
            let _ = child.wait();
            let _ = reader.map(JoinHandle::join);
            let text = format!("{} does not listen; it says:\n{}", self.role, self.log());
            return Err(LabError::Program(text));
        }
        life.child = Some(child);
        Ok(())
    }

    /// Kills it, as SIGKILL does: the kernel closes its connections.
    pub fn kill(&self) {
        let mut life = self.life();
        let Some(mut child) = life.child.take() else { return };
        life.cpu_before_ns += usage::cpu_ns(child.id()).unwrap_or(0);
        // Already gone is as good as stopped.
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Freezes it, as SIGSTOP does: its kernel still acknowledges what comes.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = self.life().child.as_ref().map(Pid::from_child);
        // It cannot be gone: it is a child that nobody has waited for.
        let _ = pid.map(|pid| kill_process(pid, signal));
    }

    /// What it is.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Its process, unless it was killed.
    pub fn pid(&self) -> Option<u32> {
        self.life().child.as_ref().map(Child::id)
    }

    /// CPU time of all its threads so far, in nanoseconds, those of processes before included.
    ///
    /// # Errors
    /// The process is gone; the text has what it said last.
    pub fn cpu_ns(&self) -> Result<u64, LabError> {
        let life = self.life();
        let now = life.child.as_ref().map_or(Ok(0), |child| usage::cpu_ns(child.id()));
        let gone = |error| LabError::Program(format!("{} is gone ({error}):\n{}", self.role, self.log()));
        Ok(life.cpu_before_ns + now.map_err(gone)?)
    }

    /// What it wrote to standard error last, some lines.
    pub fn log(&self) -> String {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for RoleProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Reads to the end even when nobody wants the lines any more: a full pipe must not block the role.
fn each_line(
    stream: impl Read + Send + 'static,
    mut take: impl FnMut(String) + Send + 'static,
) -> JoinHandle<()> {
    thread::spawn(move || BufReader::new(stream).lines().map_while(Result::ok).for_each(&mut take))
}
