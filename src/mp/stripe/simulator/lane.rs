//! A lane at both of its ends: what stands for the upstream's writer and for the downstream's producer.
//!
//! In: the world's wishes. Out: state. Called by the world. Invariant: connection, sizer and model outlive transfers, as
//! those of a warm lane do.

use std::{collections::VecDeque, time::Duration};

use super::path::Connection;
use crate::{
    mp::stripe::{FrameSizer, LaneId, LaneModel},
    wire::frame::FIRST_CREDIT_BYTES,
};

/// As in `net::socket`.
const NOT_SENT_BYTES_MIN: usize = 128 << 10;

/// A lane: both ends.
pub(super) struct Lane {
    pub(super) path: usize,
    pub(super) connection: Connection,
    pub(super) sizer: FrameSizer,
    pub(super) model: LaneModel,
    /// Since the request is at the upstream.
    pub(super) id: Option<LaneId>,
    pub(super) is_alive: bool,
    pub(super) not_sent: usize,
    /// Bytes of the frame before, and since when the lane is busy with them.
    pub(super) carried: Option<(usize, f64)>,
    pub(super) wake_at: f64,
    pub(super) waits_for_source: bool,
    /// Whole frames in the socket at the downstream: sequence number and length.
    pub(super) readable: VecDeque<(u64, u64)>,
    pub(super) frames: u64,
    pub(super) told: (u64, u64, bool),
    pub(super) rests: bool,
    pub(super) held_back_since: Option<f64>,
    pub(super) will_tell: bool,
    pub(super) credit_at: f64,
}

impl Lane {
    pub(super) fn new(path: usize) -> Self {
        Self {
            path,
            connection: Connection::new(),
            sizer: FrameSizer::default(),
            model: LaneModel::default(),
            id: None,
            is_alive: true,
            not_sent: NOT_SENT_BYTES_MIN,
            carried: None,
            wake_at: f64::NAN,
            waits_for_source: false,
            readable: VecDeque::new(),
            frames: 0,
            told: (0, FIRST_CREDIT_BYTES, false),
            rests: false,
            held_back_since: None,
            will_tell: false,
            credit_at: 0.0,
        }
    }

    /// The next transfer begins.
    pub(super) fn restart(&mut self) {
        let old = std::mem::replace(self, Self::new(self.path));
        self.is_alive = old.is_alive;
        self.connection = old.connection;
        self.connection.unread = 0.0;
        self.sizer = old.sizer;
        self.model = old.model;
        self.not_sent = old.not_sent;
        self.rests = old.rests;
    }

    /// The lane has room again after a frame.
    pub(super) fn has_carried(&mut self, now: f64) {
        let Some((bytes, since)) = self.carried.take() else { return };
        self.sizer.carried(bytes, Duration::from_secs_f64(now - since));
        let size = self.sizer.size();
        if size >= 2 * self.not_sent || size <= self.not_sent / 2 {
            self.not_sent = size.max(NOT_SENT_BYTES_MIN);
        }
    }
}
