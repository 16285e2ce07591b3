//! Counts events that a stranger can cause at will, and says when it is time to log them.
//!
//! In: one call for each event. Out: now and then, the counts for a log line. Called wherever somebody is refused.
//! Invariant: at most one line per [`LOG_PAUSE`] and tally, so that a flood of peers is no flood of the log.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Between two lines: the first event is logged at once, and a flood that lasts shows every ten seconds.
const LOG_PAUSE: Duration = Duration::from_secs(10);

/// Events of one kind.
#[derive(Debug, Default)]
pub struct Tally(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    total: u64,
    /// Of these, how many a line has told.
    told: u64,
    told_at: Option<Instant>,
}

/// What a log line about a [`Tally`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Events since the line before, this one included.
    pub since: u64,
    /// Events since the start.
    pub total: u64,
}

impl Tally {
    /// No event yet.
    pub const fn new() -> Self {
        Self(Mutex::new(Counts { total: 0, told: 0, told_at: None }))
    }

    /// Counts one event; returns the counts if it is to be logged.
    pub fn count(&self) -> Option<Told> {
        self.count_at(Instant::now())
    }

    /// Events since the start.
    pub fn total(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).total
    }

    fn count_at(&self, now: Instant) -> Option<Told> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.total += 1;
        if counts.told_at.is_some_and(|at| now.saturating_duration_since(at) < LOG_PAUSE) {
            return None;
        }
        counts.told_at = Some(now);
        let since = counts.total - counts.told;
        counts.told = counts.total;
        Some(Told { since, total: counts.total })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_told_once_in_a_while() {
        let (tally, start) = (Tally::new(), Instant::now());
        assert_eq!(tally.count_at(start), Some(Told { since: 1, total: 1 }));
        for _ in 0..1000 {
            assert_eq!(tally.count_at(start), None);
        }
        assert_eq!(tally.count_at(start + LOG_PAUSE), Some(Told { since: 1001, total: 1002 }));
    }
}
