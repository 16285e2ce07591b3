//! What a lost lane has brought and could not acknowledge any more.
//!
//! In: lanes that are lost, and words of the downstream on the frame that its client waits for, which come over the others.
//! Out: frames that need not be sent again; until when a lane with work leaves lost frames alone. Invariants: nothing waits
//! for a word longer than one can take, and no lane falls idle over it.

use super::{super::lane::Lane, Overcount, Seq, Striper};

/// What is on its way when a lane breaks behind a relay still arrives, and its acknowledgements have no way back: it would be
/// sent again before what is missing. The word takes a round trip and so much more: a frame's time.
const WORD_SECONDS: f64 = 0.02;
/// Shorter waits are not worth a wake-up.
const WAIT_SECONDS_MIN: f64 = 0.001;

impl Striper {
    /// The client waits for the frame whose number has these lower 32 bits: all before it have arrived, over whatever lane.
    /// Returns those of which that was not known, if any are lost: otherwise their own lanes will say so.
    ///
    /// # Errors
    /// [`Overcount`]: the downstream lies, nothing it says can be trusted.
    pub fn waits_for(&mut self, next: u32) -> Result<Vec<Seq>, Overcount> {
        // Of what is said on several lanes, older words come late: they are behind.
        let Ok(count) = u64::try_from(next.wrapping_sub(self.base as u32).cast_signed()) else {
            return Ok(Vec::new());
        };
        let (claimed, sent) = (self.base + count, self.totals().0);
        if claimed > sent {
            return Err(Overcount { claimed, sent });
        }
        let known = if self.lost.is_empty() { self.base } else { claimed };
        Ok(self.settle(self.base..known))
    }

    /// Some frames of `gone` are lost, as far as is known here.
    pub(super) fn await_word(&mut self, gone: &Lane, now: f64) {
        let others = self.lanes.iter().filter(|lane| !lane.is_silent());
        let soonest = others.filter_map(|lane| lane.model.round_trip()).reduce(f64::min);
        // Who was silent has brought nothing for long.
        let round_trip = gone.model.round_trip().filter(|_| !gone.is_silent());
        if let (Some(there), Some(back)) = (round_trip, soonest) {
            self.word_by = self.word_by.max(now + f64::midpoint(there, back) + WORD_SECONDS);
        }
    }

    /// Until when a lane leaves lost frames alone: until the word is there, or until it would fall idle.
    pub(super) fn word_awaited(&self, index: usize, now: f64) -> Option<f64> {
        if self.lost.is_empty() || now >= self.word_by {
            return None;
        }
        let busy_until = self.lanes[index].busy_until(now)?;
        let until = self.word_by.min(busy_until - WORD_SECONDS);
        (until > now + WAIT_SECONDS_MIN).then_some(until)
    }
}
