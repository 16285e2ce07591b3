//! Lanes: long-lived, authenticated connections along a path, each owned by one core at a time.
//!
//! In: path specifications and the key. Out: warm lanes, leased exclusively for one transfer and given back when the
//! upstream's END has come. `mp` leases from [`Pool`]; `relay` and `upstream` use [`handshake`] for the other end.
//!
//! Invariant: a lane in a pool is silent and in step: every OPEN sent on it has been answered by its END.

pub mod census;
pub mod door;
pub mod handshake;
mod lane;
mod packed;
mod path;
mod pool;

pub use lane::{Lane, LaneError};
pub use path::{PathReport, PathStatus};
pub use pool::{DialError, Lease, Pool, PoolConfig};

#[cfg(test)]
pub(crate) mod tests;
