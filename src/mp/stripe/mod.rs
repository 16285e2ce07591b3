//! Striping: which frame goes on which lane, how large, and over how many lanes.
//!
//! In: what lanes took and what the downstream said has arrived, each with the time since the transfer's start. Out:
//! what a lane with room is to do next. Called by the upstream's transfers and lanes ([`Striper`], [`FrameSizer`]) and by
//! the downstream's manager ([`LaneCount`]). Invariant: no I/O and no clock, so that tests drive it in virtual time.

mod growth;
mod lane;
mod lane_count;
mod model;
#[cfg(test)]
mod simulator;
mod sizer;
mod striper;

pub use lane::LaneId;
pub use lane_count::{LANES_MAX, LaneCount};
pub use model::LaneModel;
pub use sizer::{FRAME_BYTES_MAX, FRAME_BYTES_MIN, FrameSizer};
pub use striper::{FRAMES_AHEAD_MAX, Overcount, Piece, Resent, Striper, Turn};
