//! Why a request gets no response, and whether it is of use to try again.
//!
//! In: what the manager and the consumer saw of a transfer without a head. Out: errors, whose side at fault `downstream` names.
//! Invariant: only what may go otherwise the next time is tried again, and only for so long.

use super::{
    manager::{HEAD_DEADLINE, LANE_DEADLINE},
    queue,
};
use crate::{exec::Instant, wire::frame::MAX_HEAD_BYTES};

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No path could be used.
    #[error("no path leads to the upstream now: {reason}")]
    NoLane {
        /// Whether it is of use to dial again.
        cause: NoLaneCause,
        /// What the last one said.
        reason: String,
    },
    /// Every lane is busy and none became free.
    #[error("all lanes are busy: none became free within {} s", LANE_DEADLINE.as_secs())]
    Busy,
    /// The lanes were lost before the answer.
    #[error("the lanes were lost before the answer: {reason}")]
    LanesLost {
        /// What the last one said.
        reason: String,
    },
    /// The upstream gave up before the answer.
    #[error("{reason}")]
    Aborted {
        /// What it said.
        reason: String,
    },
    /// With what proxies add to it, the request is longer than a lane takes.
    #[error("the head of the request is too large: more than {MAX_HEAD_BYTES} bytes on its way")]
    TooLarge,
    /// The answer did not come.
    #[error("no answer within {} s", HEAD_DEADLINE.as_secs())]
    Deadline,
    /// The kernel has no randomness.
    #[error("no randomness for a transfer number: {0}")]
    Random(#[from] getrandom::Error),
    /// The ring cannot be made.
    #[error(transparent)]
    Queue(#[from] queue::CapacityError),
}

impl FetchError {
    /// For a request of `started`: no lane came, but one may, and there is time left to dial. A dial that was not answered
    /// has taken seconds, so that there are few of them.
    pub(super) fn is_worth_another_dial(&self, started: Instant) -> bool {
        matches!(self, Self::NoLane { cause: NoLaneCause::Unanswered, .. })
            && started.elapsed() < LANE_DEADLINE
    }
}

/// What paths without a lane have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoLaneCause {
    /// Every path was refused: nobody listens there, no route leads there, the key is another. Whoever dials again at once
    /// hears the same.
    Refused,
    /// One at least did not answer in time, as when its packets are lost: it may answer the next dial.
    Unanswered,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_silent_paths_are_dialled_again_and_only_for_so_long() {
        let no_lane = |cause| FetchError::NoLane { cause, reason: String::new() };
        let now = Instant::now();
        assert!(no_lane(NoLaneCause::Unanswered).is_worth_another_dial(now));
        assert!(!no_lane(NoLaneCause::Refused).is_worth_another_dial(now));
        assert!(!FetchError::Busy.is_worth_another_dial(now));
        let long_ago = now - LANE_DEADLINE;
        assert!(!no_lane(NoLaneCause::Unanswered).is_worth_another_dial(long_ago));
    }
}
