//! How a body comes along, for whoever watches its consumer.
//!
//! In: bytes that move, and who is waited for. Out: how long nothing has moved, and whose fault that is. Kept by the consumer, read
//! by the deadline that runs beside it. No I/O.

use std::{cell::Cell, time::Duration};

use crate::exec::Instant;

/// What the consumer is waiting for, and since when; watched by a deadline outside.
#[derive(Debug)]
pub struct Progress {
    moved_at: Cell<Instant>,
    pub(super) on_client: Cell<bool>,
    longest_stall: Cell<Duration>,
    pub(super) given: Cell<u64>,
}

impl Progress {
    /// Of a consumer that begins now.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            moved_at: Cell::new(now),
            on_client: Cell::default(),
            longest_stall: Cell::default(),
            given: Cell::default(),
        }
    }

    /// The body is asked for.
    pub(super) fn begins(&self) {
        self.moved_at.set(Instant::now());
    }

    /// Bytes have moved.
    pub(super) fn moved(&self) {
        let now = Instant::now();
        let pause = now.saturating_duration_since(self.moved_at.replace(now));
        if !self.on_client.get() && pause > self.longest_stall.get() {
            self.longest_stall.set(pause);
        }
    }

    /// Longest time in which the lanes were waited for and brought nothing.
    pub fn longest_stall(&self) -> Duration {
        self.longest_stall.get()
    }

    /// Body bytes given to the sink, those of the frame that is next included.
    pub fn given(&self) -> u64 {
        self.given.get()
    }

    /// When the last byte moved.
    pub fn moved_at(&self) -> Instant {
        self.moved_at.get()
    }

    /// True while the client is waited for, false while the lanes are.
    pub fn on_client(&self) -> bool {
        self.on_client.get()
    }
}
