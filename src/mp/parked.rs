//! Bytes of frames that wait for those before them, of all transfers of the process.
//!
//! In: what `transfer` parks and takes. Out: how much that is, and how much it may be. Invariant: what was added is taken once.

use std::sync::atomic::{
    AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};

/// Bytes parked in the process at most, unless it is said otherwise: fifteen full windows. Beyond it only frames that are next
/// move, so transfers go on at the pace of their slowest lane.
pub const PARKED_BYTES_MAX: usize = 1_000_000_000;

static BYTES: AtomicUsize = AtomicUsize::new(0);
static BYTES_MAX: AtomicUsize = AtomicUsize::new(PARKED_BYTES_MAX);

/// Bytes parked in the process now.
pub fn bytes() -> usize {
    BYTES.load(Relaxed)
}

/// How many there may be.
pub fn bytes_max() -> usize {
    BYTES_MAX.load(Relaxed)
}

/// Changes that; to be called before the first transfer.
pub fn bound(max: usize) {
    BYTES_MAX.store(max, Relaxed);
}

/// So many more are parked.
pub(super) fn add(bytes: usize) {
    BYTES.fetch_add(bytes, SeqCst);
}

/// So many are not parked any more.
pub(super) fn take(bytes: usize) {
    BYTES.fetch_sub(bytes, SeqCst);
}
