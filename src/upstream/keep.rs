//! How much the frames of all transfers may take that nobody has acknowledged.
//!
//! In: lengths of frames as they are kept and let go. Out: how large a transfer's next frame may be. Called by `transfer`.
//! Invariants: a transfer may always keep a small frame, so that it goes on, however slowly; beyond that all of them
//! together stay below the bound, and the fewer bytes are free, the less each may have.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// Twice the furthest that a downstream of ours lets a transfer be ahead: who grants more and acknowledges nothing gains
/// nothing.
const TRANSFER_BYTES_MAX: usize = 128 << 20;
/// One transfer may have this part of what is free (a dynamic threshold, as in the shared buffers of switches): one
/// alone has its whole window, sixteen that are greedy share evenly, and there is room left for the next.
const FREE_PART: usize = 4;
/// A transfer may always have so much, and frames of half of it: two small frames keep a lane going.
const TRANSFER_BYTES_MIN: usize = 64 << 10;

/// The bound, and what is kept now. Shared by all transfers of an upstream.
#[derive(Debug)]
pub(super) struct Keep {
    max: usize,
    used: AtomicUsize,
}

/// What one transfer keeps.
#[derive(Debug)]
pub(super) struct Share {
    keep: Arc<Keep>,
    own: Arc<AtomicUsize>,
}

/// The bytes of one frame, counted until this is dropped.
#[derive(Debug)]
pub(super) struct Held {
    keep: Arc<Keep>,
    own: Arc<AtomicUsize>,
    bytes: usize,
}

impl Keep {
    /// Nothing is kept yet; `max` is in bytes.
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, used: AtomicUsize::new(0) })
    }

    /// Bytes that may be kept.
    pub(super) fn max(&self) -> usize {
        self.max
    }

    /// Bytes kept now.
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Of a new transfer.
    pub(super) fn share(self: &Arc<Self>) -> Share {
        Share { keep: self.clone(), own: Arc::default() }
    }
}

impl Share {
    /// How many bytes of the `wanted` ones the next frame may have; none when the transfer has to wait for
    /// acknowledgements, its own or those of others.
    pub(super) fn allowed(&self, wanted: usize) -> Option<usize> {
        let free = self.keep.max.saturating_sub(self.keep.used.load(Ordering::Relaxed));
        let own = self.own.load(Ordering::Relaxed);
        let window = (free / FREE_PART).min(TRANSFER_BYTES_MAX);
        if own + wanted <= window {
            return Some(wanted);
        }
        let small = wanted.min(TRANSFER_BYTES_MIN / 2);
        (own + small <= TRANSFER_BYTES_MIN.max(window)).then_some(small)
    }

    /// A frame of `bytes` is kept.
    pub(super) fn hold(&self, bytes: usize) -> Held {
        self.keep.used.fetch_add(bytes, Ordering::Relaxed);
        self.own.fetch_add(bytes, Ordering::Relaxed);
        Held { keep: self.keep.clone(), own: self.own.clone(), bytes }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.keep.used.fetch_sub(self.bytes, Ordering::Relaxed);
        self.own.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// Takes frames of 1 MiB until it must wait.
    fn fill(share: &Share, held: &mut Vec<Held>) -> usize {
        let before = held.len();
        while let Some(bytes) = share.allowed(MIB) {
            held.push(share.hold(bytes));
            assert!(held.len() < 1_000_000, "there is no bound");
        }
        held.len() - before
    }

    #[test]
    fn one_transfer_has_its_window_and_no_more() {
        let keep = Keep::new(1 << 30);
        let (share, mut held) = (keep.share(), Vec::new());
        fill(&share, &mut held);
        let own = share.own.load(Ordering::Relaxed);
        assert!((TRANSFER_BYTES_MAX - MIB..=TRANSFER_BYTES_MAX).contains(&own), "{own}");
        drop(held);
        assert_eq!((keep.used.load(Ordering::Relaxed), share.own.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn many_share_and_each_goes_on() {
        let keep = Keep::new(64 * MIB);
        let (shares, mut held): (Vec<_>, Vec<_>) = ((0..500).map(|_| keep.share()).collect(), Vec::new());
        for share in &shares {
            assert!(fill(share, &mut held) > 0, "a transfer that cannot begin");
        }
        let used = keep.used.load(Ordering::Relaxed);
        assert!(used <= keep.max + shares.len() * TRANSFER_BYTES_MIN, "{used}");
        // Who lets go may go on.
        let last = shares.last().unwrap();
        assert_eq!(last.allowed(MIB), None);
        held.pop();
        assert!(last.allowed(MIB).is_some());
    }
}
