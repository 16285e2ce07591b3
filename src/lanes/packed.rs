//! A lane on its way from one core to another.
//!
//! In: an idle lane of a pool. Out: the same connection as a lane of another core's pool. Called by the pools. A warm lane
//! that stands where its next client is not would have to hand over whole frames between the cores: the first byte waits
//! for the first frame's last one then. Invariant: the path counts the lane all the time, once.

use std::{rc::Rc, sync::Arc};

use super::{
    Lane, PathStatus,
    census::{Counted, End},
};
use crate::{
    exec::Instant,
    net::{Shared, Socket},
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
}

impl PackedLane {
    /// Packs a lane on which nothing is under way.
    pub(super) fn pack(lane: Lane) -> Self {
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
        }))
    }

    /// The lane, on the core that calls.
    pub(super) fn unpack(mut self) -> Option<Lane> {
        let Parts { connection, path, instance, fell_back, quiet_since, unused_since, warmth } =
            self.0.take()?;
        let socket = Socket::on_this_core(connection);
        let counted = Counted::moved(End::Downstream, path.name().to_owned(), &socket);
        let lane = Lane::of(Rc::new(socket), path, counted, (instance, fell_back));
        lane.quiet_since.set(quiet_since);
        lane.unused_since.set(unused_since);
        lane.warmth.set(warmth);
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
