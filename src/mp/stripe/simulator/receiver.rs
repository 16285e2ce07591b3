//! The downstream's memory of a transfer, and its client.
//!
//! In: whole frames that lanes have brought. Out: credit. Called by the world. Invariants: the client gets each byte once
//! and in order; what is parked stays below the credit.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    exec::Instant,
    mp::window::{Crowding, Window},
};

/// What the client's socket holds.
const CLIENT_BUFFER_BYTES: f64 = 1e6;
/// As in `mp::transfer`.
const PARKED_BYTES_MAX: u64 = 64 << 20;

/// The client's side of the transfer.
pub(super) struct Receiver {
    pub(super) next: u64,
    pub(super) next_offset: u64,
    /// Frames that are not next, and their lengths.
    parked: BTreeMap<u64, u64>,
    parked_bytes: u64,
    window: Window,
    crowding: Crowding,
    pub(super) limit: u64,
    /// Bytes in the client's socket, and when that was so.
    client: (f64, f64),
    client_rate: f64,
    pub(super) is_client_blocked: bool,
}

impl Receiver {
    pub(super) fn new(window: u64, client_rate: f64, now: Instant) -> Self {
        Self {
            next: 0,
            next_offset: 0,
            parked: BTreeMap::new(),
            parked_bytes: 0,
            window: Window::new(window, now),
            crowding: Crowding::default(),
            limit: window,
            client: (0.0, 0.0),
            client_rate,
            is_client_blocked: false,
        }
    }

    /// A whole frame is on a lane's socket; returns whether it was taken off.
    pub(super) fn takes(&mut self, seq: u64, len: u64) -> bool {
        if seq < self.next || self.parked.contains_key(&seq) {
            return true;
        }
        self.crowding.set_waiting(seq != self.next && !self.has_next() && !self.is_client_blocked);
        self.crowding.arrives(self.next_offset + self.parked_bytes + len, self.next_offset, self.limit);
        let has_window = seq == self.next || self.parked_bytes + len <= PARKED_BYTES_MAX;
        if self.is_client_blocked || !has_window {
            return false;
        }
        self.parked.insert(seq, len);
        self.parked_bytes += len;
        true
    }

    pub(super) fn has_next(&self) -> bool {
        !self.is_client_blocked && self.parked.contains_key(&self.next)
    }

    /// What is next goes to the client, as far as that takes it. Returns when a client
    /// that is blocked from now on takes more.
    pub(super) fn advance(
        &mut self,
        seconds: f64,
        now: Instant,
        round_trip: Duration,
        frames: &[(u64, u64)],
        pending_bytes_max: u64,
    ) -> Option<f64> {
        if self.is_client_blocked {
            return None;
        }
        while self.has_next() {
            let len = self.parked.remove(&self.next)?;
            assert_eq!(frames[self.next as usize], (self.next_offset, len), "in order, and once");
            self.parked_bytes -= len;
            self.next += 1;
            self.next_offset += len;
            if let Some(limit) = self.window.taken(len, self.crowding.was_full(), round_trip, now) {
                self.limit = limit;
            }
            if self.client_rate.is_finite() {
                let (held, at) = self.client;
                let held = (held - (seconds - at) * self.client_rate).max(0.0) + len as f64;
                self.client = (held, seconds);
                self.is_client_blocked = held > CLIENT_BUFFER_BYTES;
            }
        }
        let most = self.limit + pending_bytes_max;
        assert!(self.next_offset + self.parked_bytes <= most, "more is parked than was let go");
        self.is_client_blocked
            .then(|| seconds + (self.client.0 - CLIENT_BUFFER_BYTES / 2.0) / self.client_rate)
    }
}
