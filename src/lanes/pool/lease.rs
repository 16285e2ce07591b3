//! A lane on loan from its pool.
//!
//! In: a lane that a pool has chosen. Out: the lane to its transfer, and the word to the pool when it is back or gone.
//! Made by the pool, held by a producer. Invariant: the pool hears of its end once, and counts it as a slow client's only
//! while it stands.

use std::rc::{Rc, Weak};

use super::Pool;
use crate::lanes::Lane;

/// A lane on loan. Giving it back warm is [`Lease::give_back`]; dropping it closes the lane.
pub struct Lease {
    lane: Option<Rc<Lane>>,
    pool: Weak<Pool>,
    /// It is the last lane of a slow client, and counted as such.
    is_slow: bool,
}

impl std::ops::Deref for Lease {
    type Target = Lane;

    fn deref(&self) -> &Lane {
        self.lane.as_ref().expect("a lease holds its lane until it is consumed")
    }
}

impl Lease {
    /// Of a lane that `pool` counts as leased.
    pub(super) fn new(lane: Rc<Lane>, pool: Weak<Pool>) -> Self {
        Self { lane: Some(lane), pool, is_slow: false }
    }

    /// The lane is in step and silent: others may use it.
    pub fn give_back(mut self) {
        self.set_slow(false);
        // Dropped where the pool is gone, because its path was removed.
        if let Some(pool) = self.pool.upgrade()
            && let Some(lane) = self.lane.take()
        {
            lane.lease_ended();
            lane.has_carried();
            pool.shelve(lane);
        }
    }

    /// Closes the lane in order: nothing is on its way on it, and nobody needs it any more.
    pub fn close(mut self) {
        self.set_slow(false);
        if let Some(lane) = self.lane.take() {
            lane.lease_ended();
            // Others may hold its socket.
            lane.socket().finish();
            if let Some(pool) = self.pool.upgrade() {
                pool.lane_gone();
            }
        }
    }

    /// What [`Lease::set_slow`] said last.
    pub fn is_slow(&self) -> bool {
        self.is_slow
    }

    /// It is the last lane of a slow client from now on, or of one that is not slow.
    pub fn set_slow(&mut self, is_slow: bool) {
        if self.is_slow == is_slow {
            return;
        }
        self.is_slow = is_slow;
        if let Some(pool) = self.pool.upgrade() {
            let slow = pool.slow.get();
            pool.slow.set(if is_slow { slow + 1 } else { slow - 1 });
            if is_slow {
                pool.dial_if_awaited();
            }
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.set_slow(false);
        if let Some(lane) = self.lane.take() {
            lane.lease_ended();
            // Others may hold its socket, such as a tap that the consumer has not come to: both ends are to know now, or the
            // upstream waits for what nobody reads.
            lane.socket().abort();
            if let Some(pool) = self.pool.upgrade() {
                pool.lane_gone();
            }
        }
    }
}
