//! Sockets and pipes: everything that moves payload between descriptors.
//!
//! In: descriptors from `accept` and `connect`, demands from the pumps above. Out: bytes in pipes (by splice and
//! sendfile) or, where the kernel will not splice, in pooled buffers. Called by `lanes`, `mp` and the roles.
//!
//! Invariant: nothing here waits without its caller's deadline, and nothing reads from a source while what was read
//! before has not left (demand-driven: one direction blocks, and only that one is waited for).

mod admission;
mod backoff;
mod bbr;
mod conduit;
mod congestion;
mod discard;
mod hand_over;
pub(crate) mod keep_alive;
mod limit;
mod listener;
mod low_water;
mod mptcp;
mod names;
mod pipe;
mod progress;
mod pump;
mod receive;
mod renewal;
mod resolve;
mod sendfile;
mod shared;
#[cfg(test)]
pub(crate) mod simulated;
mod socket;
mod splice_probe;
mod startup;
mod tally;
mod tcp_info;

pub use admission::{Admission, Crowded, Seat};
pub use conduit::{Conduit, Drained, Filled};
pub use congestion::{Congestion, Leg, Legs};
pub use limit::Limit;
pub use listener::{BoundSocket, InheritError, Listener};
pub use mptcp::{MptcpMissing, MptcpState, mptcp_available, state as mptcp_state};
pub use names::{NameServer, Names, ServiceError, Target, Targets};
pub use pipe::{PoolReport, pool_report, set_descriptor_budget};
pub use pump::pump;
pub use resolve::{ResolveError, resolve};
pub use sendfile::{sendfile, sendfile_counting};
pub use shared::{Glimpse, Shared};
pub use socket::{BATCH_BYTES, ConnectError, Socket};
pub use splice_probe::{PayloadMove, payload_move};
pub use tally::{Tally, Told};
pub use tcp_info::TcpInfo;

#[cfg(test)]
mod tests;
