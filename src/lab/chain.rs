//! The real roles, each in its host of the lab.
//!
//! In: a [`Lab`] and [`ChainOptions`]. Out: running processes that listen, their addresses and PIDs. Called by the
//! command line and the benchmark. Invariant: the processes end with the [`Chain`]; they are killed when the thread
//! that started it ends.

use std::{net::SocketAddr, path::PathBuf};

use super::topology::{Lab, LabError};

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
            flags: Vec::new(),
        }
    }
}

/// A running role.
#[derive(Debug)]
pub struct RoleProcess {
    /// What it is.
    pub role: Role,
    /// Its process.
    pub pid: u32,
}

impl RoleProcess {
    /// CPU time of all its threads so far, in nanoseconds.
    ///
    /// # Errors
    /// The process is gone.
    pub fn cpu_ns(&self) -> Result<u64, LabError> {
        Ok(0)
    }

    /// What it wrote to standard error last, some lines.
    pub fn log(&self) -> String {
        String::new()
    }
}

/// Running roles.
#[derive(Debug)]
pub struct Chain {
    processes: Vec<RoleProcess>,
    entrance: SocketAddr,
}

impl Chain {
    /// Starts the roles and waits until all of them listen.
    ///
    /// # Errors
    /// A role does not start; the text has what it says.
    pub fn start(lab: &Lab, options: &ChainOptions) -> Result<Self, LabError> {
        let _ = (lab, options);
        Err(LabError::Program("not built yet".into()))
    }

    /// Where clients in the client's host reach the downstream.
    pub fn entrance(&self) -> SocketAddr {
        self.entrance
    }

    /// Where clients in the client's host reach the root over `path`, without Plait in between.
    pub fn root_address(&self, lab: &Lab, path: usize) -> SocketAddr {
        SocketAddr::new(lab.server_address(path), 9000)
    }

    /// The processes.
    pub fn processes(&self) -> &[RoleProcess] {
        &self.processes
    }
}
