//! The numbers a frame header carries, one type each, so that a sequence number is never added to a byte offset.
//!
//! In: raw integers of a header. Out: ordered, printable newtypes whose successors are checked. Called by [`super::frame`],
//! `mp` and `lanes`. Invariant: no arithmetic here wraps.

use std::fmt;

/// 2^48: at 1 KiB a frame this numbers 256 PiB in one transfer; anything beyond is a damaged header, not a long video. The
/// 16 free bits keep `seq + window` far from wrapping.
pub const MAX_SEQ: u64 = 1 << 48;

/// 2^63 - 1, the largest `loff_t`: splice(2), sendfile(2) and every file offset end here.
pub const MAX_BODY_BYTES: u64 = i64::MAX as u64;

/// A frame's place in its transfer: 0 for the first, then one more each, at most [`MAX_SEQ`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Seq(pub u64);

/// The place of a frame's first payload byte in the transfer's body, in bytes from the body's start (for a 206 too: not
/// from the start of the file), at most [`MAX_BODY_BYTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Offset(pub u64);

/// The number of payload bytes behind a header. Its bound depends on the kind of frame, see [`super::frame`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct FrameLen(pub u32);

/// Names one transfer on all lanes that carry it; chosen by the downstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TransferId(pub u64);

impl Seq {
    /// The next frame's number, `None` past [`MAX_SEQ`].
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).filter(|&seq| seq <= MAX_SEQ).map(Self)
    }
}

impl Offset {
    /// Where the next frame starts when this one has `len` bytes, `None` past [`MAX_BODY_BYTES`].
    pub fn next(self, len: FrameLen) -> Option<Self> {
        self.0.checked_add(u64::from(len.0)).filter(|&offset| offset <= MAX_BODY_BYTES).map(Self)
    }
}

impl TransferId {
    /// The next transfer's name, `None` after 2^64 - 1.
    pub fn next(self) -> Option<Self> {
        self.0.checked_add(1).map(Self)
    }
}

impl FrameLen {
    /// The length as an index or buffer size.
    pub fn as_usize(self) -> usize {
        self.0 as usize
    }
}

macro_rules! display_as_number {
    ($($unit:ty),+) => {$(
        impl fmt::Display for $unit {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )+};
}
display_as_number!(Seq, Offset, FrameLen, TransferId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn successors_stop_at_their_bounds() {
        assert_eq!(Seq(0).next(), Some(Seq(1)));
        assert_eq!(Seq(MAX_SEQ - 1).next(), Some(Seq(MAX_SEQ)));
        assert_eq!(Seq(MAX_SEQ).next(), None);
        assert_eq!(Seq(u64::MAX).next(), None);
        assert_eq!(Offset(MAX_BODY_BYTES - 7).next(FrameLen(7)), Some(Offset(MAX_BODY_BYTES)));
        assert_eq!(Offset(MAX_BODY_BYTES - 7).next(FrameLen(8)), None);
        assert_eq!(Offset(u64::MAX).next(FrameLen(1)), None);
        assert_eq!(TransferId(u64::MAX - 1).next(), Some(TransferId(u64::MAX)));
        assert_eq!(TransferId(u64::MAX).next(), None);
    }

    #[test]
    fn units_print_as_plain_numbers() {
        assert_eq!(format!("{} {:>3} {} {}", Seq(1), Offset(2), FrameLen(3), TransferId(4)), "1   2 3 4");
    }
}
