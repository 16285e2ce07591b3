//! Judges whether a lane's frames make sense one after the other.
//!
//! In: the decoded frames of one lane, in order, while one transfer owns it, and how far the consumer is. Out: yes, or the
//! rule that was broken. Called by producers before they take memory for a frame. Invariant: state of constant size; every
//! DATA frame let through continues the lane's earlier ones and lies at most [`MAX_SEQ_AHEAD`] before the consumer.
//!
//! The rule behind the offsets: frames cut the body without gap or overlap and have 1 to [`MAX_FRAME_BYTES`] bytes each, so
//! the frames that went to other lanes bound where the next one here can begin.

use thiserror::Error;

use super::frame::{Direction, Frame, Kind, MAX_FRAME_BYTES, Outcome};
use super::units::{Offset, Seq, TransferId};

/// 2^20 frames: 16 GiB of the smallest frames, more than any window will ever be. The queue refuses at its own window,
/// which is far smaller; this bound only catches numbers that are no window's business.
pub const MAX_SEQ_AHEAD: u64 = 1 << 20;

/// One lane's view of one transfer, at the downstream.
#[derive(Debug, Clone)]
pub struct FrameCheck {
    transfer: TransferId,
    /// The lowest number that the lane's next DATA frame may have, and the earliest place where a frame of that number
    /// begins.
    next_seq: Seq,
    next_offset: Offset,
    stage: Stage,
    has_total: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing came yet: a HEAD may. (A lane that joined late may never carry one.)
    Start,
    /// HEAD came.
    Head,
    /// DATA or TOTAL came.
    Data,
    /// END came.
    End,
}

/// A frame that no correct upstream sends at this point. The upstream, or whoever sits on the way, is at fault: close the
/// lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FrameCheckError {
    /// A frame that only a downstream sends.
    #[error("the upstream sent a {kind} frame, which only travels towards it")]
    WrongDirection {
        /// What was sent.
        kind: Kind,
    },
    /// A frame of a transfer that does not own the lane.
    #[error("a {kind} frame of transfer {found} came on a lane that carries transfer {expected}")]
    WrongTransfer {
        /// What was sent.
        kind: Kind,
        /// Its transfer.
        found: TransferId,
        /// The lane's transfer.
        expected: TransferId,
    },
    /// Anything behind END.
    #[error("a {kind} frame came after the transfer's END")]
    AfterEnd {
        /// What was sent.
        kind: Kind,
    },
    /// A second HEAD.
    #[error("a second HEAD frame came on the same lane")]
    SecondHead,
    /// A second TOTAL.
    #[error("a second TOTAL frame came on the same lane")]
    SecondTotal,
    /// A HEAD behind DATA.
    #[error("a HEAD frame came after DATA")]
    HeadAfterData,
    /// A number that this lane's frames have passed already, and not sent again.
    #[error("DATA frame {found} came on a lane whose frames go on at {expected}")]
    SeqNotIncreasing {
        /// Its number.
        found: Seq,
        /// The lowest number allowed.
        expected: Seq,
    },
    /// A number more than [`MAX_SEQ_AHEAD`] after the one that the consumer waits for.
    #[error("DATA frame {found} is more than {MAX_SEQ_AHEAD} frames ahead of {wanted}")]
    SeqTooFarAhead {
        /// Its number.
        found: Seq,
        /// The number that the consumer waits for.
        wanted: Seq,
    },
    /// An offset that no cutting of the body gives this number.
    #[error("DATA frame {seq} begins at offset {found}, where only {min} to {max} can be")]
    OffsetMismatch {
        /// Its number.
        seq: Seq,
        /// Its offset.
        found: Offset,
        /// If every frame on the other lanes since this lane's last one has one byte.
        min: Offset,
        /// If each has [`MAX_FRAME_BYTES`].
        max: Offset,
    },
    /// A complete transfer's totals contradict what this lane carried.
    #[error(
        "END claims {frames} frames and {bytes} bytes, but this lane's frames end before {next_seq} at offset {next_offset}"
    )]
    TotalsMismatch {
        /// Claimed frames.
        frames: u64,
        /// Claimed bytes.
        bytes: u64,
        /// One more than the lane's last frame number.
        next_seq: Seq,
        /// The end of the lane's last frame.
        next_offset: Offset,
    },
}

impl FrameCheck {
    /// For a lane that `transfer` was just opened on.
    pub fn new(transfer: TransferId) -> Self {
        Self { transfer, next_seq: Seq(0), next_offset: Offset(0), stage: Stage::Start, has_total: false }
    }

    /// Judges the lane's next frame while the consumer waits for frame `next_wanted`. A number below that passes (the queue
    /// knows duplicates), and so does PONG, which belongs to the lane and not to the transfer. After an error the state is
    /// as before.
    pub fn accept(&mut self, frame: &Frame, next_wanted: Seq) -> Result<(), FrameCheckError> {
        let kind = frame.kind();
        if frame.direction() != Direction::ToDownstream {
            return Err(FrameCheckError::WrongDirection { kind });
        }
        let Some(found) = frame.transfer() else { return Ok(()) };
        if found != self.transfer {
            return Err(FrameCheckError::WrongTransfer { kind, found, expected: self.transfer });
        }
        if self.stage == Stage::End {
            return Err(FrameCheckError::AfterEnd { kind });
        }
        match *frame {
            Frame::Head { .. } => match self.stage {
                Stage::Start => self.stage = Stage::Head,
                Stage::Data => return Err(FrameCheckError::HeadAfterData),
                Stage::Head | Stage::End => return Err(FrameCheckError::SecondHead),
            },
            Frame::Data { seq, again: true, .. } => {
                // Where it belongs is checked against its first copy, or when its turn comes.
                if seq.0.saturating_sub(next_wanted.0) > MAX_SEQ_AHEAD {
                    return Err(FrameCheckError::SeqTooFarAhead { found: seq, wanted: next_wanted });
                }
                self.stage = Stage::Data;
            }
            Frame::Data { seq, offset, len, .. } => {
                if seq < self.next_seq {
                    return Err(FrameCheckError::SeqNotIncreasing { found: seq, expected: self.next_seq });
                }
                if seq.0.saturating_sub(next_wanted.0) > MAX_SEQ_AHEAD {
                    return Err(FrameCheckError::SeqTooFarAhead { found: seq, wanted: next_wanted });
                }
                let (min, max) = self.place_of(seq);
                if offset < min || offset > max {
                    return Err(FrameCheckError::OffsetMismatch { seq, found: offset, min, max });
                }
                self.next_seq = Seq(seq.0.saturating_add(1));
                self.next_offset = Offset(offset.0.saturating_add(u64::from(len.0)));
                self.stage = Stage::Data;
            }
            Frame::Total { .. } if self.has_total => return Err(FrameCheckError::SecondTotal),
            Frame::Total { frames, bytes, .. } => {
                self.check_totals(frames, bytes)?;
                self.stage = Stage::Data;
                self.has_total = true;
            }
            Frame::End { outcome, frames, bytes, .. } => {
                // A complete body ends where the frame after its last one would begin. The totals of a failed one only
                // say how far the upstream came, which may be short of what it had handed to a lane.
                if outcome == Outcome::Complete {
                    self.check_totals(frames, bytes)?;
                }
                self.stage = Stage::End;
            }
            // Sorted out above: the other direction, or no transfer.
            Frame::Open { .. }
            | Frame::Cancel { .. }
            | Frame::Credit { .. }
            | Frame::Body { .. }
            | Frame::Ping { .. }
            | Frame::Pong { .. } => {}
        }
        Ok(())
    }

    fn check_totals(&self, frames: u64, bytes: u64) -> Result<(), FrameCheckError> {
        let (min, max) = self.place_of(Seq(frames));
        if frames >= self.next_seq.0 && (min.0..=max.0).contains(&bytes) {
            return Ok(());
        }
        let (next_seq, next_offset) = (self.next_seq, self.next_offset);
        Err(FrameCheckError::TotalsMismatch { frames, bytes, next_seq, next_offset })
    }

    /// Whether END came, so that the lane is free.
    pub fn is_ended(&self) -> bool {
        self.stage == Stage::End
    }

    /// The first and the last offset at which frame `seq` can begin after what this lane has seen.
    fn place_of(&self, seq: Seq) -> (Offset, Offset) {
        let frames_elsewhere = seq.0.saturating_sub(self.next_seq.0);
        let at_most = frames_elsewhere.saturating_mul(u64::from(MAX_FRAME_BYTES));
        (
            Offset(self.next_offset.0.saturating_add(frames_elsewhere)),
            Offset(self.next_offset.0.saturating_add(at_most)),
        )
    }
}

#[cfg(test)]
mod tests;
