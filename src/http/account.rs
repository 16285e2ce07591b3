//! What becomes of one request: what the access log, the metrics and `Server-Timing` say of it.
//!
//! In: facts, as the connection and the role learn them. Out: an [`Outcome`] when the answer has ended, and the value of a
//! header. No I/O. Invariant: an account belongs to one request; the next one begins with an empty one.

use std::time::Duration;

use ::http::{HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};

use crate::exec::Instant;

/// How the cache took part in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheUse {
    /// All of it was there.
    Hit,
    /// The root was asked.
    Miss,
    /// Another request's fetch brought it.
    Collapsed,
    /// Some bytes were missing.
    Partial,
    /// The answer is not for the cache.
    Bypass,
}

impl CacheUse {
    /// In the order of their numbers.
    pub const ALL: [Self; 5] = [Self::Hit, Self::Miss, Self::Collapsed, Self::Partial, Self::Bypass];

    /// As logs, metrics and `Server-Timing` name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Collapsed => "collapsed",
            Self::Partial => "partial",
            Self::Bypass => "bypass",
        }
    }
}

/// What a path has carried of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathShare {
    /// The path as on the command line.
    pub path: String,
    /// Payload bytes, those of frames that came twice included.
    pub bytes: u64,
}

/// What the lanes did for an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// What each path has carried.
    pub shares: Vec<PathShare>,
    /// How many frames ahead of the one waited for a frame has come at most.
    pub reorder_depth: u64,
    /// Longest time in which the lanes were waited for and brought nothing.
    pub longest_stall: Duration,
}

/// See the module's description.
#[derive(Debug)]
pub struct Account {
    began: Instant,
    status: Option<StatusCode>,
    first_byte: Option<Duration>,
    waited: Option<Duration>,
    cache: Option<CacheUse>,
    body_bytes: u64,
    carried: Option<Box<Carried>>,
}

/// An account that is closed.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Status of the answer, if it has begun.
    pub status: Option<StatusCode>,
    /// From the request's head to the answer's.
    pub first_byte: Option<Duration>,
    /// From the request's head to the end of the answer.
    pub taken: Duration,
    /// How the cache took part, if there is one.
    pub cache: Option<CacheUse>,
    /// Bytes of the body that the client's connection has taken.
    pub body_bytes: u64,
    /// What the lanes did, if they were needed.
    pub carried: Option<Box<Carried>>,
}

impl Account {
    /// Of a request whose head has come now.
    pub fn new() -> Self {
        Self {
            began: Instant::now(),
            status: None,
            first_byte: None,
            waited: None,
            cache: None,
            body_bytes: 0,
            carried: None,
        }
    }

    /// The head of the answer goes.
    pub(super) fn head_goes(&mut self, status: StatusCode) {
        self.status = Some(status);
        self.first_byte = Some(self.began.elapsed());
    }

    /// The root was waited for, until the head of its answer came or did not.
    pub fn waited_for_root(&mut self, time: Duration) {
        *self.waited.get_or_insert_default() += time;
    }

    /// How the cache takes part.
    pub fn set_cache(&mut self, cache: CacheUse) {
        self.cache = Some(cache);
    }

    /// Bytes of the body were taken.
    pub fn add_body_bytes(&mut self, bytes: u64) {
        self.body_bytes += bytes;
    }

    /// Lanes have carried some of the answer; an answer may need several transfers.
    pub fn add_carried(&mut self, more: Carried) {
        let carried = self.carried.get_or_insert_default();
        for share in more.shares {
            match carried.shares.iter_mut().find(|known| known.path == share.path) {
                Some(known) => known.bytes += share.bytes,
                None => carried.shares.push(share),
            }
        }
        carried.reorder_depth = carried.reorder_depth.max(more.reorder_depth);
        carried.longest_stall = carried.longest_stall.max(more.longest_stall);
    }

    /// The value of `Server-Timing` (W3C), for a player to show; nothing to say where no cache and no root was asked.
    pub fn server_timing(&self) -> Option<HeaderValue> {
        if let (Some(CacheUse::Hit), None) = (self.cache, self.waited) {
            return Some(HeaderValue::from_static("cache;desc=hit"));
        }
        let cache = self.cache.map(|cache| format!("cache;desc={}", cache.name()));
        let root = self.waited.map(|waited| format!("root;dur={:.1}", waited.as_secs_f64() * 1e3));
        let metrics: Vec<_> = cache.into_iter().chain(root).collect();
        // Tokens and digits are always a header value.
        (!metrics.is_empty()).then(|| HeaderValue::try_from(metrics.join(", ")).ok()).flatten()
    }

    /// The answer has ended.
    pub fn close(self) -> Outcome {
        let Self { began, status, first_byte, cache, body_bytes, carried, .. } = self;
        Outcome { status, first_byte, taken: began.elapsed(), cache, body_bytes, carried }
    }
}

impl Default for Account {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_several_transfers_has_their_sums_and_worst() {
        let mut account = Account::new();
        assert_eq!(account.server_timing(), None);
        let share = |path: &str, bytes| PathShare { path: path.into(), bytes };
        let carried = |shares, reorder_depth, stall_ms| Carried {
            shares,
            reorder_depth,
            longest_stall: Duration::from_millis(stall_ms),
        };
        account.add_carried(carried(vec![share("a", 1), share("b", 2)], 7, 1));
        account.add_carried(carried(vec![share("b", 3)], 2, 9));
        account.waited_for_root(Duration::from_millis(20));
        account.set_cache(CacheUse::Miss);
        assert_eq!(account.server_timing().unwrap(), "cache;desc=miss, root;dur=20.0");
        let outcome = account.close();
        assert_eq!(*outcome.carried.unwrap(), carried(vec![share("a", 1), share("b", 5)], 7, 9));
    }
}
