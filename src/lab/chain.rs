//! The real roles, each in its host of the lab.
//!
//! In: a [`Lab`] and [`ChainOptions`]. Out: running processes that listen, their addresses and PIDs. Called by the
//! command line and the benchmark. Invariant: the processes end with the [`Chain`]; they are killed when the thread
//! that started it ends.

use std::{
    collections::VecDeque,
    fmt,
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc::channel},
    time::Duration,
};

use super::{
    host::{Host, inherit},
    store::Store,
    topology::{Lab, LabError},
    usage,
};
use crate::wire::key::Key;

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

/// How lanes go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Via {
    /// Over the relay of the path, by TCP.
    #[default]
    Relays,
    /// To the upstream without a stop, by TCP.
    Direct,
    /// To the upstream, by kernel MPTCP: each lane uses all paths; the chosen path is where it begins.
    Mptcp,
}

/// What is served.
#[derive(Clone, Debug)]
pub enum Content {
    /// A file of this many bytes, [`FILE_NAME`], in memory.
    Generated(u64),
    /// The files of a directory.
    Directory(PathBuf),
}

/// Name of the generated file.
pub const FILE_NAME: &str = "video.bin";
/// The directory that the root serves; the key is beside it.
const SERVED: &str = "served";
const KEY_NAME: &str = "lab.key";

/// How to start the roles.
#[derive(Clone, Debug)]
pub struct ChainOptions {
    /// The `plait` binary.
    pub binary: PathBuf,
    /// What the root serves.
    pub content: Content,
    /// Congestion control of lanes (`--lane-cc`).
    pub lane_cc: String,
    /// Lanes per path and transfer (`--lanes`); None lets the downstream choose.
    pub lanes: Option<u16>,
    /// How lanes go.
    pub via: Via,
    /// The paths to use, from 0.
    pub paths: Vec<usize>,
    /// Where each role's log goes, as a file of its name.
    pub logs: Option<PathBuf>,
    /// More flags for a role: its name (root, upstream, relay, downstream, or all) and the flag.
    pub flags: Vec<(String, String)>,
}

impl ChainOptions {
    /// What the scenario of `lab` asks for, on all its paths, over relays, with a file of 200 MB.
    pub fn new(lab: &Lab, binary: PathBuf) -> Self {
        let lanes = &lab.scenario().lanes;
        Self {
            binary,
            content: Content::Generated(200_000_000),
            lane_cc: lanes.cc[0].clone(),
            lanes: lanes.per_path,
            via: Via::default(),
            paths: (0..lab.paths()).collect(),
            logs: None,
            flags: Vec::new(),
        }
    }
}

/// Ports are fixed: every host has a network of its own.
const ROOT_PORT: u16 = 9000;
const UPSTREAM_PORT: u16 = 7000;
const RELAY_PORT: u16 = 7001;
const DOWNSTREAM_PORT: u16 = 8080;
/// Every role is ready within milliseconds; ten seconds mean that it never will be.
const READY_LIMIT: Duration = Duration::from_secs(10);
/// Lines of a role's log that are kept for the case that it fails.
const LOG_LINES_MAX: usize = 50;

/// A running role; it is killed when this is dropped.
#[derive(Debug)]
pub struct RoleProcess {
    role: Role,
    child: Child,
    log: Arc<Mutex<VecDeque<String>>>,
}

impl RoleProcess {
    /// Starts the role and waits until it listens.
    fn start(role: Role, command: &mut Command, logs: Option<&Path>) -> Result<Self, LabError> {
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"PLAIT_") {
                command.env_remove(name);
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|source| LabError::System {
            what: format!("cannot start {}", command.get_program().to_string_lossy()),
            source,
        })?;
        let log = Arc::new(Mutex::new(VecDeque::new()));
        let mut file = match logs {
            None => None,
            Some(dir) => {
                let path = dir.join(format!("{role}.log").replace(' ', "-"));
                let cannot =
                    |source| LabError::System { what: format!("cannot write {}", path.display()), source };
                Some(std::io::BufWriter::new(File::create(&path).map_err(cannot)?))
            }
        };
        if let Some(stderr) = child.stderr.take() {
            let log = log.clone();
            each_line(stderr, move |line| {
                // A full disk must not stop the role.
                let _ = file.as_mut().map(|file| writeln!(file, "{line}"));
                let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
                if log.len() == LOG_LINES_MAX {
                    log.pop_front();
                }
                log.push_back(line);
            });
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
        let mut process = Self { role, child, log };
        if listening.recv_timeout(READY_LIMIT).is_err() {
            // What it said last is there once it has ended.
            let _ = process.child.kill();
            let _ = process.child.wait();
            return Err(LabError::Program(format!("{role} does not listen; it says:\n{}", process.log())));
        }
        Ok(process)
    }

    /// What it is.
    pub fn role(&self) -> Role {
        self.role
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// CPU time of all its threads so far, in nanoseconds.
    ///
    /// # Errors
    /// The process is gone; the text has what it said last.
    pub fn cpu_ns(&self) -> Result<u64, LabError> {
        usage::cpu_ns(self.pid())
            .map_err(|error| LabError::Program(format!("{} is gone ({error}):\n{}", self.role, self.log())))
    }

    /// What it wrote to standard error last, some lines.
    pub fn log(&self) -> String {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for RoleProcess {
    fn drop(&mut self) {
        // Already gone is as good as stopped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads to the end even when nobody wants the lines any more: a full pipe must not block the role.
fn each_line(stream: impl Read + Send + 'static, mut take: impl FnMut(String) + Send + 'static) {
    std::thread::spawn(move || BufReader::new(stream).lines().map_while(Result::ok).for_each(&mut take));
}

/// Running roles.
#[derive(Debug)]
pub struct Chain {
    processes: Vec<RoleProcess>,
    /// Keeps the file that is served.
    _store: Store,
}

impl Chain {
    /// Starts the roles and waits until all of them listen.
    ///
    /// # Errors
    /// A role does not start; the text has what it says.
    pub fn start(lab: &Lab, options: &ChainOptions) -> Result<Self, LabError> {
        let in_memory =
            |source| LabError::System { what: "cannot keep the lab's files in memory".into(), source };
        let store = Store::new(lab.server()).map_err(in_memory)?;
        if let Content::Generated(bytes) = &options.content {
            store.generate(SERVED, FILE_NAME, *bytes).map_err(in_memory)?;
        }
        Key::generate()
            .map_err(|error| in_memory(io::Error::other(error)))?
            .save_new(&store.path(KEY_NAME))
            .map_err(|error| in_memory(io::Error::other(error)))?;
        let mut chain = Self { processes: Vec::new(), _store: store };

        let mut root = Starter::new(lab.server(), Role::Root, "root", ROOT_PORT, options);
        let dir = match &options.content {
            Content::Generated(_) => {
                inherit(&mut root.command, chain._store.dir()).map_err(in_memory)?.join(SERVED)
            }
            Content::Directory(dir) => dir.clone(),
        };
        root.command.arg("--dir").arg(dir);
        chain.add(root)?;

        let mut upstream = Starter::new(lab.server(), Role::Upstream, "upstream", UPSTREAM_PORT, options);
        upstream.command.arg("--root").arg(format!("http://127.0.0.1:{ROOT_PORT}"));
        upstream.key(&chain._store)?;
        chain.add(upstream)?;

        if options.via == Via::Relays {
            for &path in &options.paths {
                let mut relay =
                    Starter::new(lab.relay(path), Role::Relay(path), "relay", RELAY_PORT, options);
                relay.key(&chain._store)?;
                chain.add(relay)?;
            }
        }

        let mut downstream =
            Starter::new(lab.client(), Role::Downstream, "downstream", DOWNSTREAM_PORT, options);
        for &path in &options.paths {
            downstream.command.arg("--path").arg(lane_path(lab, options.via, path));
        }
        if let Some(lanes) = options.lanes {
            downstream.command.arg("--lanes").arg(lanes.to_string());
        }
        downstream.key(&chain._store)?;
        chain.add(downstream)?;
        Ok(chain)
    }

    fn add(&mut self, mut starter: Starter<'_>) -> Result<(), LabError> {
        let flags = starter.options.flags.iter();
        let own = flags.filter(|(role, _)| role == "all" || role == starter.word).map(|(_, flag)| flag);
        starter.command.args(own);
        self.processes.push(RoleProcess::start(
            starter.role,
            &mut starter.command,
            starter.options.logs.as_deref(),
        )?);
        Ok(())
    }

    /// Where clients in the client's host reach the downstream.
    pub fn entrance(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, DOWNSTREAM_PORT))
    }

    /// Where clients in the client's host reach the root over `path`, without Plait in between.
    pub fn root_address(&self, lab: &Lab, path: usize) -> SocketAddr {
        SocketAddr::new(lab.server_address(path), ROOT_PORT)
    }

    /// The processes.
    pub fn processes(&self) -> &[RoleProcess] {
        &self.processes
    }
}

/// What `--path` says.
fn lane_path(lab: &Lab, via: Via, path: usize) -> String {
    let upstream = SocketAddr::new(lab.server_address(path), UPSTREAM_PORT);
    match via {
        Via::Relays => format!("{}:{RELAY_PORT},{upstream}", lab.relay_address(path)),
        Via::Direct => upstream.to_string(),
        Via::Mptcp => format!("mptcp:{upstream}"),
    }
}

/// A role that is about to start.
struct Starter<'a> {
    role: Role,
    word: &'static str,
    command: Command,
    options: &'a ChainOptions,
}

impl<'a> Starter<'a> {
    fn new(host: &Host, role: Role, word: &'static str, port: u16, options: &'a ChainOptions) -> Self {
        let mut command = host.command(&options.binary);
        let anywhere = if role == Role::Downstream { Ipv4Addr::LOCALHOST } else { Ipv4Addr::UNSPECIFIED };
        command.arg(word).arg("--listen").arg(format!("{anywhere}:{port}"));
        command.args(["--lane-cc", &options.lane_cc]);
        Self { role, word, command, options }
    }

    /// Gives it the key of the chain.
    fn key(&mut self, store: &Store) -> Result<(), LabError> {
        let dir = inherit(&mut self.command, store.dir())
            .map_err(|source| LabError::System { what: "no descriptor is left".into(), source })?;
        self.command.arg("--key").arg(dir.join(KEY_NAME));
        Ok(())
    }
}
