//! A lane on its way from one core to another.
//!
//! In: an idle lane of a pool. Out: the same connection as a lane of another core's pool. Called by the pools. A warm lane
//! that stands where its next client is not would have to hand over whole frames between the cores: the first byte waits
//! for the first frame's last one then. Invariant: the path counts the lane all the time, once.

use std::{collections::VecDeque, rc::Rc, sync::Arc};

use super::{
    Lane, PathStatus,
    census::{Counted, End},
};
use crate::{
    exec::Instant,
    net::{Shared, Socket},
    wire::{frame::HEADER_BYTES, units::TransferId},
};

/// See the module's description. Dropping it closes the connection.
pub(super) struct PackedLane(Option<Parts>);

struct Parts {
    connection: Shared,
    path: Arc<PathStatus>,
    instance: u64,
    fell_back: bool,
    quiet_since: Instant,
    unused_since: Instant,
    warmth: u32,
    partial: ([u8; HEADER_BYTES], usize),
    stale: VecDeque<TransferId>,
    stale_payload: usize,
}

impl PackedLane {
    /// Packs a lane on which nothing is under way but what next to nothing is left of: ENDs of delivered bodies. Whoever holds
    /// it, too, must leave it alone from now on.
    pub(super) fn pack(lane: &Lane) -> Self {
        // Before the lane goes, which counts itself out: who looks meanwhile must not find the path without lanes.
        lane.path.lane_moves();
        Self(Some(Parts {
            connection: lane.socket.leave(),
            path: lane.path.clone(),
            instance: lane.instance,
            fell_back: lane.fell_back,
            quiet_since: lane.quiet_since.get(),
            unused_since: lane.unused_since.get(),
            warmth: lane.warmth.get(),
            partial: *lane.partial.borrow(),
            stale: lane.stale.take(),
            stale_payload: lane.stale_payload.get(),
        }))
    }

    /// The lane, on the core that calls.
    pub(super) fn unpack(mut self) -> Option<Lane> {
        let parts = self.0.take()?;
        let socket = Socket::on_this_core(parts.connection);
        let counted = Counted::moved(End::Downstream, parts.path.name().to_owned(), &socket);
        let lane = Lane::of(Rc::new(socket), parts.path, counted, (parts.instance, parts.fell_back));
        lane.quiet_since.set(parts.quiet_since);
        lane.unused_since.set(parts.unused_since);
        lane.warmth.set(parts.warmth);
        lane.stale_payload.set(parts.stale_payload);
        lane.partial.replace(parts.partial);
        lane.stale.replace(parts.stale);
        Some(lane)
    }
}

impl Drop for PackedLane {
    fn drop(&mut self) {
        if let Some(parts) = &self.0 {
            parts.path.lane_closed();
        }
    }
}
