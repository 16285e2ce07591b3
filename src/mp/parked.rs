//! Bytes of frames that wait for those before them, of all transfers of the process.
//!
//! In: what `transfer` parks and takes. Out: how much that is, and how much it may be. Invariant: what was added is taken once.

use std::sync::atomic::{
    AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};

/// Bytes parked in the process at most, unless it is said otherwise: fifteen full windows. Beyond it only frames that are next
/// move, so transfers go on at the pace of their slowest lane; see `jam` for those that are behind others.
pub const PARKED_BYTES_MAX: usize = 1_000_000_000;

/// What is parked, and how much may be.
struct Parked {
    bytes: AtomicUsize,
    bytes_max: AtomicUsize,
}

static OF_PROCESS: Parked =
    Parked { bytes: AtomicUsize::new(0), bytes_max: AtomicUsize::new(PARKED_BYTES_MAX) };

#[cfg(test)]
thread_local! {
    /// Of the chain that this thread simulates; it may park nothing while there is none.
    static OF_SIMULATION: Parked = const { Parked { bytes: AtomicUsize::new(0), bytes_max: AtomicUsize::new(0) } };
}

#[cfg(not(test))]
fn with<T>(work: impl FnOnce(&Parked) -> T) -> T {
    work(&OF_PROCESS)
}

#[cfg(test)]
fn with<T>(work: impl FnOnce(&Parked) -> T) -> T {
    OF_SIMULATION.with(|simulated| {
        let is_simulated = simulated.bytes_max.load(Relaxed) > 0;
        work(if is_simulated { simulated } else { &OF_PROCESS })
    })
}

/// From now on this thread's count is one of its own, and begins anew; or it is the process's again.
#[cfg(test)]
pub(crate) fn simulate(max: Option<usize>) {
    OF_SIMULATION.with(|simulated| {
        simulated.bytes.store(0, SeqCst);
        simulated.bytes_max.store(max.unwrap_or(0), SeqCst);
    });
}

/// Bytes parked in the process now.
pub fn bytes() -> usize {
    with(|parked| parked.bytes.load(Relaxed))
}

/// How many there may be.
pub fn bytes_max() -> usize {
    with(|parked| parked.bytes_max.load(Relaxed))
}

/// Changes that; to be called before the first transfer.
pub fn bound(max: usize) {
    OF_PROCESS.bytes_max.store(max, Relaxed);
}

/// So many more are parked.
pub(super) fn add(bytes: usize) {
    with(|parked| parked.bytes.fetch_add(bytes, SeqCst));
}

/// So many are not parked any more.
pub(super) fn take(bytes: usize) {
    with(|parked| parked.bytes.fetch_sub(bytes, SeqCst));
}
