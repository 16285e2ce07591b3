//! One emulated link: a thread between two TUN devices.
//!
//! In: packets that the kernel routes into either device. Out: the same packets from the other one, as the shaper of
//! their direction says. Called by the lab, which makes the devices.

use std::{io, os::fd::OwnedFd};

use super::shape::{Counters, Direction, Shape, ShapeError};

/// A running link. Dropping it ends the thread and closes both devices.
#[derive(Debug)]
pub struct Link {}

impl Link {
    /// Starts a link between two devices of [`tun::open`](super::tun::open). `forward` shapes what comes out of `a`
    /// and goes into `b`. The thread is named `name` (15 bytes of it are visible) and pinned to `cpu`.
    ///
    /// Errors: a shape that [`Shape::check`] refuses (`InvalidInput`), or no thread.
    pub fn start(
        name: &str,
        a: OwnedFd,
        b: OwnedFd,
        forward: Shape,
        backward: Shape,
        cpu: Option<usize>,
    ) -> io::Result<Self> {
        let _ = (name, a, b, forward, backward, cpu);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Changes what a direction does, also for the packets that are waiting for its bottleneck. Those that have passed
    /// it keep their delay.
    pub fn set(&self, direction: Direction, shape: Shape) -> Result<(), ShapeError> {
        let _ = direction;
        shape.check()
    }

    /// Begins (`true`) or ends an outage of a direction: everything inside is dropped, and everything that comes.
    pub fn outage(&self, direction: Direction, down: bool) {
        let _ = (direction, down);
    }

    /// What the link has done so far: forward, backward.
    pub fn stats(&self) -> [Counters; 2] {
        [Counters::default(); 2]
    }

    /// Why the thread has ended by itself: a device has gone, or its descriptor is none of a device. None while it runs.
    pub fn failure(&self) -> Option<String> {
        None
    }
}
