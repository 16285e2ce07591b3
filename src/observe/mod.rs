//! What a person or a monitoring system sees of a running process: metrics, a dashboard, logs.
//!
//! In: handles of what the roles count anyway ([`Sources`]). Out: a [`Snapshot`], as Prometheus text, as JSON for the
//! dashboard and `plait top`, and the log's lines. Called by the command line. Invariant: whoever does not look pays nothing
//! but a few counters per request and per frame; lanes are sampled on their own cores when somebody asks.

mod admin;
mod gather;
pub mod logs;
mod process;
mod prometheus;
mod snapshot;

pub use admin::{AdminAddress, serve};
pub use gather::Sources;
pub use snapshot::{
    CacheReport, ClientsReport, CoreReport, DoorReport, LaneOnCore, PathOnWire, PoolsReport, ProcessReport,
    Snapshot, UpstreamSnapshot,
};
