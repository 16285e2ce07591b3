//! Shares lanes when there are too few: decides when a transfer gives one up for somebody who has none.
//!
//! In: what a look at the transfer shows, and the time. Out: whether to give a lane up, and whether to ask for one more.
//! Called by the crew at each look; no I/O and no clock. Invariants: nothing is given up while nobody without a lane
//! waits; every transfer keeps one lane to its end, a slow client's as well: the pool does not count that one.
//!
//! A lane that is given up is closed. What was on its way then travels again, as after a loss.

use std::time::Duration;

/// A client that takes less in a second is slow: 8 Mbit/s, which one lane brings in a fraction of the time.
const SLOW_BYTES_PER_S: u64 = 1 << 20;
/// Over which time that is measured.
const SPAN: Duration = Duration::from_secs(1);

/// What a transfer looks like now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// Since its start.
    pub(super) now: Duration,
    /// Bytes that the client has taken.
    pub(super) taken: u64,
    /// The client is waited for.
    pub(super) is_client_blocked: bool,
    /// Lanes, of all paths.
    pub(super) lanes: usize,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Share {
    /// Begin of the current span, and what had been taken then.
    span: (Duration, u64),
    is_slow: bool,
    look: Option<Look>,
}

impl Share {
    /// Takes a look; to be called before the questions below.
    pub(super) fn look(&mut self, look: Look) {
        let (since, taken) = self.span;
        if look.now >= since + SPAN {
            let allowed = SLOW_BYTES_PER_S as f64 * (look.now - since).as_secs_f64();
            self.is_slow = look.is_client_blocked && ((look.taken - taken) as f64) < allowed;
            self.span = (look.now, look.taken);
        }
        self.look = Some(look);
    }

    /// Whether one of the `lanes` of a path is to be given up, where `is_short` says that somebody without a lane waits for one.
    pub(super) fn gives_up(&mut self, lanes: usize, is_short: bool) -> bool {
        let Some(look) = self.look.as_mut().filter(|look| is_short && lanes > 0 && look.lanes > 1) else {
            return false;
        };
        let gives = lanes > 1 || self.is_slow;
        if gives {
            look.lanes -= 1;
        }
        gives
    }

    /// Whether all that the transfer has is one lane that its client leaves idle.
    pub(super) fn is_last_and_slow(&self) -> bool {
        self.is_slow && self.look.is_some_and(|look| look.lanes == 1)
    }

    /// Whether a lane that is missing is to be asked for.
    pub(super) fn may_seat(&self, is_short: bool) -> bool {
        self.look.is_none_or(|look| look.lanes == 0 || !is_short)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks every 100 ms for `seconds` at a transfer with `lanes` lanes whose client takes `rate` bytes a second.
    fn watch(share: &mut Share, from: f64, seconds: f64, rate: f64, lanes: usize) -> f64 {
        for step in 0..=(seconds * 10.0) as u32 {
            let now = from + f64::from(step) / 10.0;
            share.look(Look {
                now: Duration::from_secs_f64(now),
                taken: (now * rate) as u64,
                is_client_blocked: true,
                lanes,
            });
        }
        from + seconds
    }

    const SLOW: f64 = 64.0 * 1024.0;
    const FAST: f64 = 10e6;

    #[test]
    fn nothing_is_given_up_while_nobody_waits() {
        let mut share = Share::default();
        watch(&mut share, 0.0, 60.0, SLOW, 5);
        assert!(!share.gives_up(3, false));
        assert!(share.may_seat(false));
    }

    #[test]
    fn a_fast_transfer_keeps_one_lane_on_each_path() {
        let mut share = Share::default();
        watch(&mut share, 0.0, 60.0, FAST, 3);
        assert!(share.gives_up(2, true), "one of two on a path");
        assert!(!share.gives_up(1, true));
        assert!(!share.may_seat(true), "it has some and others have none");
        watch(&mut share, 60.0, 60.0, FAST, 1);
        assert!(!share.gives_up(1, true));
        assert!(!share.is_last_and_slow());
    }

    #[test]
    fn a_slow_transfer_gives_up_all_but_one() {
        let mut share = Share::default();
        watch(&mut share, 0.0, 1.5, SLOW, 2);
        assert!(share.gives_up(1, true), "another path still has one");
        assert!(!share.gives_up(1, true), "the last one");
        watch(&mut share, 1.5, 60.0, SLOW, 1);
        assert!(!share.gives_up(1, true));
        assert!(share.is_last_and_slow());
        watch(&mut share, 61.5, 1.0, SLOW, 0);
        assert!(share.may_seat(true), "it was lost");
    }
}
