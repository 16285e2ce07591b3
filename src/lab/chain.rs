//! The real roles, each in its host of the lab.
//!
//! In: a [`Lab`] and [`ChainOptions`]. Out: running processes that listen, their addresses and PIDs. Called by the
//! command line and the benchmark. Invariant: the processes end with the [`Chain`], and with this process.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::Command,
    sync::Arc,
};

pub use super::role::{Role, RoleProcess};
use super::{
    host::{Host, inherit},
    store::Store,
    timeline::Timeline,
    topology::{Lab, LabError},
};
use crate::wire::key::Key;

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
/// Running roles.
#[derive(Debug)]
pub struct Chain {
    processes: Vec<Arc<RoleProcess>>,
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
        let process = RoleProcess::start(starter.role, starter.command, starter.options.logs.as_deref())?;
        self.processes.push(Arc::new(process));
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
    pub fn processes(&self) -> &[Arc<RoleProcess>] {
        &self.processes
    }

    /// Starts the clock of the events of `lab`, its relays' included. They stop, and paths and relays are as they were,
    /// when the guard is dropped.
    pub fn play(&self, lab: &Lab) -> Timeline {
        lab.play_with(self.processes.clone())
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
