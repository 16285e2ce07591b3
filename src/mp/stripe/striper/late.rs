//! Frames of lanes that are late, sent once more before it is known whether their lanes are lost.
//!
//! In: lanes whose acknowledgements are overdue, which lane asks, and when. Out: the frame that the client will wait for
//! first. Invariants: a lane that is late itself sends none; where such copies have cost enough there are as many as one for
//! each [`PAUSE_SECONDS`], and then none.

use super::{
    LaneId, Striper,
    choice::{COPY_CANDIDATES_MAX, COPY_GAIN_SECONDS},
};

/// Copies of frames whose lanes are late cost this share of what was handed out before they are rationed.
const LATE_SHARE: f64 = 0.01;
/// and this much, but for some frames, before there are none: where every lane is late now and then, they only take from what all
/// carry.
const LATE_SHARE_MAX: f64 = 0.02;
const LATE_BYTES_MIN: u64 = 1 << 20;
/// Between two copies, once copies have turned out needless: the viewer goes on, slowly, and a lane whose frames take 0.04 s
/// loses a fifth of its rate.
const PAUSE_SECONDS: f64 = 0.2;

impl Striper {
    /// The first frame that all its lanes are late with, if this lane is to bring it. To wait until they are called silent would
    /// cost the viewer a round trip and more, or far more where lanes are known to pause.
    pub(super) fn late_for(&self, index: usize, now: f64) -> Option<u64> {
        let lates = self.lanes.iter().filter(|lane| lane.is_late(now));
        let overdue = lates.map(|lane| lane.overdue(now)).reduce(f64::max)?;
        let lane = &self.lanes[index];
        if lane.is_suspect(now) {
            return None;
        }
        let mut copies = 0;
        let frames = self.outstanding.iter().enumerate().take(COPY_CANDIDATES_MAX);
        for (place, frame) in frames.filter(|(_, frame)| !frame.is_acknowledged) {
            if !self.are_late(&frame.carriers, now) {
                let is_copied =
                    frame.carriers.iter().any(|(id, _)| self.lane(*id).is_some_and(|lane| lane.is_late(now)));
                copies += u32::from(is_copied);
                continue;
            }
            let len = u64::from(frame.len);
            let is_rationed = overdue < f64::from(copies) * PAUSE_SECONDS || !self.may_be_copied(len);
            if is_rationed && !self.are_copies_free(len) {
                return None;
            }
            let others = self.others(index).filter(|other| !other.is_suspect(now));
            let soonest = others.filter_map(|other| other.arrival(len, now)).fold(f64::INFINITY, f64::min);
            // If not, a lane that brings it sooner will ask.
            let is_soon = |arrival| arrival <= soonest + COPY_GAIN_SECONDS;
            return lane.arrival(len, now).is_some_and(is_soon).then_some(self.base + place as u64);
        }
        None
    }

    /// Whether a copy of `len` bytes costs little, even if it should turn out needless.
    fn are_copies_free(&self, len: u64) -> bool {
        let budget = (self.next_offset as f64 * LATE_SHARE) as u64;
        !self.spares_habits() && self.resent.late_bytes + len <= budget
    }

    /// Whether there may be one of `len` bytes at all.
    fn may_be_copied(&self, len: u64) -> bool {
        let budget = LATE_BYTES_MIN.max((self.next_offset as f64 * LATE_SHARE_MAX) as u64);
        self.resent.late_bytes + len <= budget
    }

    /// Whether none of these lanes is in time, and not all of them are known to be silent.
    pub(super) fn are_late(&self, carriers: &[(LaneId, u64)], now: f64) -> bool {
        let carriers = || carriers.iter().filter_map(|(id, _)| self.lane(*id));
        carriers().any(|lane| lane.is_late(now))
            && carriers().all(|lane| lane.is_silent() || lane.is_late(now))
    }
}
