//! Everything that is shown of a process, at one moment.
//!
//! Written as JSON by the admin endpoint, read by the dashboard and by `plait top`. Fields are added, never renamed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    http::traffic::{HistogramReport, TrafficReport},
    lanes::census::{EndTotals, LaneReport},
};

/// See the module's description.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Of the program.
    pub version: String,
    /// The command: `relay`, `up`, ...
    pub role: String,
    /// Name of the executor.
    pub executor: String,
    /// Seconds since 1970, now.
    pub now_s: f64,
    /// Seconds since 1970 when the process began.
    pub started_s: f64,
    /// Cores that run.
    pub cores: Vec<CoreReport>,
    /// Memory and descriptors.
    pub process: ProcessReport,
    /// Pipes and buffers.
    pub pools: PoolsReport,
    /// Bytes of frames that wait for earlier ones, and how many may.
    pub parked_bytes: u64,
    /// See `parked_bytes`.
    pub parked_bytes_max: u64,
    /// Paths of a downstream.
    pub paths: Vec<PathOnWire>,
    /// Lanes that stand, the first 256 of each core.
    pub lanes: Vec<LaneOnCore>,
    /// All lanes, by end.
    pub ends: BTreeMap<String, EndTotals>,
    /// Clients, by role: `downstream`, `root`.
    pub clients: BTreeMap<String, ClientsReport>,
    /// The downstream's cache, if it has one.
    pub cache: Option<CacheReport>,
    /// Who asks to be let in, by role: `upstream`, `relay`.
    pub doors: BTreeMap<String, DoorReport>,
    /// Transfers of an upstream.
    pub upstream: Option<UpstreamSnapshot>,
    /// Where clients are served: for the player of the dashboard.
    pub clients_at: Option<String>,
    /// Files that are known to be there.
    pub library: Vec<String>,
    /// How often each bound was met that is not counted elsewhere.
    #[serde(default)]
    pub limits: BTreeMap<String, u64>,
}

/// One core of the process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CoreReport {
    /// Number of the core in the process.
    pub core: usize,
    /// CPU seconds of its thread.
    pub busy_s: f64,
}

/// What the process takes of the machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProcessReport {
    /// Memory in RAM.
    pub resident_bytes: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// How many may be open.
    pub descriptors_max: u64,
}

/// Pipes and buffers of the process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PoolsReport {
    /// Pipes that exist.
    pub pipes: u64,
    /// Pipes that may.
    pub pipes_max: u64,
    /// Pipes that nobody uses.
    pub pipes_idle: u64,
    /// Buffers that nobody uses.
    pub buffers_idle: u64,
    /// How often there was no pipe, so that payload was copied.
    pub pipes_refused: u64,
}

/// A path of a downstream.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PathOnWire {
    /// As on the command line.
    pub name: String,
    /// Its hops, the upstream last.
    pub hops: Vec<String>,
    /// It is MPTCP.
    pub mptcp: bool,
    /// The last dial failed and no lane stands.
    pub down: bool,
    /// Lanes that stand.
    pub lanes: u64,
    /// Lanes that carry a transfer.
    pub leased: u64,
    /// Lanes that have come up since the start.
    pub lanes_opened: u64,
    /// Dials that have failed since the start.
    pub dials_failed: u64,
    /// Payload bytes that have come.
    pub received_bytes: u64,
    /// Of those, the ones that were parked.
    pub parked_bytes: u64,
    /// Frames that have come.
    pub frames: u64,
    /// Of those, the ones that another lane had carried before.
    pub frames_again: u64,
    /// Round trip to the upstream, seconds; 0 before the first ping.
    pub rtt_s: f64,
    /// Subflows of the MPTCP lane looked at last.
    pub subflows: u64,
    /// A leg of it fell back to plain TCP.
    pub fell_back: bool,
}

/// A lane and its core.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LaneOnCore {
    /// Number of the core in the process.
    pub core: usize,
    /// The lane.
    #[serde(flatten)]
    pub lane: LaneReport,
}

/// Clients of a role.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClientsReport {
    /// Connections now.
    pub connections: u64,
    /// How many there may be.
    pub connections_max: u64,
    /// Connections that were one too many.
    pub turned_away: u64,
    /// What they have asked for and got.
    pub traffic: TrafficReport,
}

/// The cache.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CacheReport {
    /// Objects.
    pub objects: u64,
    /// Bytes that they take.
    pub bytes: u64,
    /// Bytes that they may take.
    pub bytes_max: u64,
}

/// The door of a role that takes lanes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DoorReport {
    /// Hellos that are awaited.
    pub hellos: u64,
    /// How many may be.
    pub hellos_max: u64,
    /// Who was refused, by reason.
    pub refused: BTreeMap<String, u64>,
}

/// Transfers of an upstream.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UpstreamSnapshot {
    /// Transfers that run.
    pub transfers: u64,
    /// Bytes of frames that nobody has acknowledged.
    pub kept_bytes: u64,
    /// How many there may be.
    pub kept_bytes_max: u64,
    /// Requests to the root.
    pub root_requests: u64,
    /// Of those, the ones without an answer of use.
    pub root_failures: u64,
    /// From the request to the head of the root's answer, seconds.
    pub root_first_byte: HistogramReport,
}
