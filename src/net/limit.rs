//! Which bounds were met, and how often, since the process began.
//!
//! In: a call from whatever keeps to a bound and made somebody wait, turned somebody away, or went without. Out: the counts, for
//! `observe`. Invariant: names are those of docs/metrics.md, and stay as they are.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A bound that is not counted elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// As many lanes of a path stand on a core as may, and a transfer waits for one.
    Lanes,
    /// A request was told 503, because no lane became free in time.
    LanesWait,
    /// A request was told 408.
    RequestTime,
    /// A request was told 414 or 431.
    HeadSize,
    /// A client was cut off that took nothing for `--stall-timeout`.
    ClientStall,
    /// A lane of an upstream had room, but what is kept is at its bound.
    Kept,
    /// A lane of a downstream was left unread, because what is parked is at its bound.
    Parked,
    /// A request that is no GET or HEAD was told 503: too many of them run.
    Uploads,
    /// A piece was not cached, because the disk is slow, full or broken.
    CacheDisk,
    /// No connection could be accepted for want of descriptors or memory.
    Accept,
}

/// By [`Limit`], of the whole process.
static HIT: [AtomicU64; Limit::ALL.len()] = [const { AtomicU64::new(0) }; Limit::ALL.len()];

impl Limit {
    /// In the order in which they are declared.
    pub const ALL: [Self; 10] = [
        Self::Lanes,
        Self::LanesWait,
        Self::RequestTime,
        Self::HeadSize,
        Self::ClientStall,
        Self::Kept,
        Self::Parked,
        Self::Uploads,
        Self::CacheDisk,
        Self::Accept,
    ];

    /// As metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lanes => "lanes",
            Self::LanesWait => "lanes-wait",
            Self::RequestTime => "request-time",
            Self::HeadSize => "head-size",
            Self::ClientStall => "client-stall",
            Self::Kept => "kept",
            Self::Parked => "parked",
            Self::Uploads => "uploads",
            Self::CacheDisk => "cache-disk",
            Self::Accept => "accept",
        }
    }

    /// It was met once more.
    pub fn hit(self) {
        HIT[self as usize].fetch_add(1, Relaxed);
    }

    /// How often it was met.
    pub fn hits(self) -> u64 {
        HIT[self as usize].load(Relaxed)
    }
}
