//! The 32-byte header of every frame on a lane.
//!
//! In: 32 bytes that the I/O layer peeked or read, or a [`Frame`] to send. Out: the other one. Called by producers, the
//! upstream's lane writers and `lanes` (pings). Invariant: a header that decodes is in bounds, has no unused bit set, and
//! encodes to the same 32 bytes; whether it fits what came before is [`super::frame_check`]'s question.
//!
//! All integers are big-endian:
//!
//! | bytes | field | used by |
//! | --- | --- | --- |
//! | 0 | magic `P` | all |
//! | 1 | kind | all |
//! | 2 | flags | END: the outcome; DATA: 1 if sent again; CREDIT: how the lane is read; BODY: 1 if the last |
//! | 3 | reserved, 0 | |
//! | 4..8 | len: payload bytes behind the header | OPEN, BODY, HEAD, DATA, END; CREDIT, which has none: the next frame |
//! | 8..16 | seq | DATA; TOTAL, END: frames in total; CREDIT: frames received; PING, PONG: the token |
//! | 16..24 | offset | DATA, BODY; TOTAL, END: bytes in total; CREDIT: the limit |
//! | 24..32 | transfer | all but PING, PONG |
//!
//! A field that a kind does not use is 0.

use thiserror::Error;

use super::reason::MAX_REASON_BYTES;
use super::units::{FrameLen, MAX_BODY_BYTES, MAX_SEQ, Offset, Seq, TransferId};

mod words;

pub use words::{Direction, Kind, Outcome, Reading};

/// Bytes of a header: room for all fields at natural alignment.
pub const HEADER_BYTES: usize = 32;

/// 64 KiB: eight times what common servers accept as a head, and small enough to hold one per lane.
pub const MAX_HEAD_BYTES: u32 = 64 * 1024;

/// 8 MiB: a 1 MiB pipe's 256 slots may each hold a fragment of 32 KiB, so one splice into it can move this much.
pub const MAX_FRAME_BYTES: u32 = 8 * 1024 * 1024;

/// 64 KiB of a request's body in one frame: a path's bandwidth is used well with less, and one may be held per lane.
pub const MAX_REQUEST_BODY_FRAME_BYTES: u32 = 64 * 1024;

/// 4 MiB may be on their way before the client has taken a byte: what 100 clients that never take one leave in the sockets
/// of a chain stays below 1 GiB, and slow start has not used it up before the first credit arrives.
pub const FIRST_CREDIT_BYTES: u64 = 4 << 20;

/// `P`. An HTTP head on a lane by mistake may begin with it too (POST), then its second byte is no kind.
const MAGIC: u8 = b'P';

/// A decoded header. The payload, if any ([`Frame::payload_len`]), follows it on the lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    /// Start `transfer`; the payload is the HTTP request head to send to the root.
    Open {
        /// The new transfer.
        transfer: TransferId,
        /// 1 to [`MAX_HEAD_BYTES`].
        head_len: FrameLen,
    },
    /// Stop `transfer`; the upstream answers END, and until then frames may still arrive.
    Cancel {
        /// The transfer to stop.
        transfer: TransferId,
    },
    /// What the downstream has of a lane, and what it can take: the upstream may hand out the body's bytes below `limit`;
    /// the highest limit of all lanes counts. Before the first one it may hand out [`FIRST_CREDIT_BYTES`].
    Credit {
        /// Whose body.
        transfer: TransferId,
        /// DATA frames of the transfer that have arrived on this lane, at most [`MAX_SEQ`]; never goes back.
        frames: u64,
        /// How the lane is read from now on.
        reading: Reading,
        /// At most [`MAX_BODY_BYTES`].
        limit: Offset,
        /// The lower 32 bits of the number of the frame that the client waits for: none before it need be sent again, also
        /// of those that a lost lane has brought and cannot acknowledge any more.
        next: u32,
    },
    /// The payload is a piece of the request's body. The pieces follow the OPEN, in order and without gap, on its lane,
    /// which is then the transfer's only one.
    Body {
        /// Whose request.
        transfer: TransferId,
        /// The place of its first byte in the request's body.
        offset: Offset,
        /// 0 to [`MAX_REQUEST_BODY_FRAME_BYTES`], 0 only in the last one.
        len: FrameLen,
        /// The body is complete.
        last: bool,
    },
    /// Ask for a [`Frame::Pong`] with the same token.
    Ping {
        /// Any number.
        token: u64,
    },
    /// The payload is the root's response head.
    Head {
        /// Whose head.
        transfer: TransferId,
        /// 1 to [`MAX_HEAD_BYTES`].
        head_len: FrameLen,
    },
    /// The payload is a piece of the body.
    Data {
        /// Whose body.
        transfer: TransferId,
        /// The piece's number.
        seq: Seq,
        /// The place of its first byte; the last one is at most at [`MAX_BODY_BYTES`].
        offset: Offset,
        /// 1 to [`MAX_FRAME_BYTES`].
        len: FrameLen,
        /// Another lane carried the same piece before; only such a one may have a lower number than its lane's last.
        again: bool,
    },
    /// The whole body has been handed out to lanes. Pieces that were lost may still follow, until END.
    Total {
        /// Whose body.
        transfer: TransferId,
        /// DATA frames over all lanes, at most [`MAX_SEQ`].
        frames: u64,
        /// Body bytes over all lanes, at most [`MAX_BODY_BYTES`].
        bytes: u64,
    },
    /// `transfer` is over, nothing of it follows on this lane. The payload is a [`super::reason::Reason`], only if aborted.
    End {
        /// Which transfer.
        transfer: TransferId,
        /// How it ended.
        outcome: Outcome,
        /// DATA frames of the transfer over all lanes, at most [`MAX_SEQ`].
        frames: u64,
        /// Body bytes over all lanes, at most [`MAX_BODY_BYTES`].
        bytes: u64,
        /// 0 to [`MAX_REASON_BYTES`], 0 unless aborted.
        reason_len: FrameLen,
    },
    /// The answer to [`Frame::Ping`].
    Pong {
        /// The ping's.
        token: u64,
    },
}

/// A field that some kinds leave unused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// Byte 2.
    Flags,
    /// Bytes 4..8.
    Len,
    /// Bytes 8..16.
    Seq,
    /// Bytes 16..24.
    Offset,
    /// Bytes 24..32.
    Transfer,
}

/// A header that no Plait peer sends. The bytes on the lane cannot be trusted any more: close it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FrameError {
    /// Byte 0 is not the magic: the peer is no Plait process, or payload was taken for a header.
    #[error("not a frame: the header begins with {found:#04x} instead of 'P'")]
    Magic {
        /// Byte 0.
        found: u8,
    },
    /// Byte 1 names no kind.
    #[error("unknown kind of frame {kind:#04x}")]
    UnknownKind {
        /// Byte 1.
        kind: u8,
    },
    /// Byte 3 is set.
    #[error("the reserved byte of a {kind} frame is {value:#04x} instead of 0")]
    Reserved {
        /// The frame's kind.
        kind: Kind,
        /// Byte 3.
        value: u8,
    },
    /// A field that this kind does not use is set.
    #[error("a {kind} frame has {field:?} = {value}, a field that must be 0 there")]
    UnusedField {
        /// The frame's kind.
        kind: Kind,
        /// Which field.
        field: Field,
        /// What is in it.
        value: u64,
    },
    /// An END without a known outcome.
    #[error("an END frame names the unknown outcome {outcome}")]
    UnknownOutcome {
        /// Byte 2.
        outcome: u8,
    },
    /// The payload is longer than this kind's may be.
    #[error("a {kind} frame announces {len} payload bytes, more than {max}")]
    TooLong {
        /// The frame's kind.
        kind: Kind,
        /// Bytes announced.
        len: FrameLen,
        /// Bytes allowed.
        max: u32,
    },
    /// OPEN, HEAD, DATA and all BODY but the last carry at least one byte: an empty one would only burn a sequence number.
    #[error("a {kind} frame announces no payload")]
    Empty {
        /// The frame's kind.
        kind: Kind,
    },
    /// A sequence number or frame total beyond [`MAX_SEQ`].
    #[error("a {kind} frame has the sequence number {seq}, beyond 2^48")]
    SeqOutOfRange {
        /// The frame's kind.
        kind: Kind,
        /// The number.
        seq: Seq,
    },
    /// The payload's end, or the byte total, lies beyond [`MAX_BODY_BYTES`].
    #[error("a {kind} frame of {len} bytes at offset {offset} ends beyond 2^63 - 1")]
    OffsetOutOfRange {
        /// The frame's kind.
        kind: Kind,
        /// DATA: where it begins. END: the byte total.
        offset: Offset,
        /// Payload bytes of a DATA frame, 0 for END.
        len: FrameLen,
    },
    /// An END that is not an abort gives a reason.
    #[error(
        "an END frame with the outcome {outcome} announces a reason of {len} bytes; only an abort has one"
    )]
    ReasonWithoutAbort {
        /// The outcome.
        outcome: Outcome,
        /// Bytes announced.
        len: FrameLen,
    },
    /// Totals that no sum of frames of 1 to [`MAX_FRAME_BYTES`] bytes can have.
    #[error("an END frame claims {bytes} bytes in {frames} frames, which cannot be")]
    ImpossibleTotals {
        /// Claimed frames.
        frames: u64,
        /// Claimed bytes.
        bytes: u64,
    },
}

impl Frame {
    /// The frame's kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Open { .. } => Kind::Open,
            Self::Cancel { .. } => Kind::Cancel,
            Self::Credit { .. } => Kind::Credit,
            Self::Body { .. } => Kind::Body,
            Self::Ping { .. } => Kind::Ping,
            Self::Head { .. } => Kind::Head,
            Self::Data { .. } => Kind::Data,
            Self::End { .. } => Kind::End,
            Self::Pong { .. } => Kind::Pong,
            Self::Total { .. } => Kind::Total,
        }
    }

    /// The way it travels: a frame that arrives at its sender's side is a protocol error.
    pub fn direction(&self) -> Direction {
        self.kind().direction()
    }

    /// The transfer it belongs to; none for PING and PONG, which belong to the lane.
    pub fn transfer(&self) -> Option<TransferId> {
        match *self {
            Self::Open { transfer, .. }
            | Self::Cancel { transfer }
            | Self::Credit { transfer, .. }
            | Self::Body { transfer, .. }
            | Self::Head { transfer, .. }
            | Self::Data { transfer, .. }
            | Self::Total { transfer, .. }
            | Self::End { transfer, .. } => Some(transfer),
            Self::Ping { .. } | Self::Pong { .. } => None,
        }
    }

    /// Payload bytes that follow the header: within the kind's bound if the frame came from [`Frame::decode`].
    pub fn payload_len(&self) -> FrameLen {
        match *self {
            Self::Open { head_len, .. } | Self::Head { head_len, .. } => head_len,
            Self::Data { len, .. } | Self::Body { len, .. } => len,
            Self::End { reason_len, .. } => reason_len,
            Self::Cancel { .. }
            | Self::Credit { .. }
            | Self::Ping { .. }
            | Self::Pong { .. }
            | Self::Total { .. } => FrameLen(0),
        }
    }

    /// The header's bytes. The caller keeps the fields' bounds; the peer refuses a frame that breaks them (and a debug
    /// build stops here).
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let (flags, seq, offset) = match *self {
            Self::Open { .. } | Self::Cancel { .. } | Self::Head { .. } => (0, 0, 0),
            Self::Credit { frames, limit, reading, .. } => (reading as u8, frames, limit.0),
            Self::Body { offset, last, .. } => (u8::from(last), 0, offset.0),
            Self::Ping { token } | Self::Pong { token } => (0, token, 0),
            Self::Data { seq, offset, again, .. } => (u8::from(again), seq.0, offset.0),
            Self::Total { frames, bytes, .. } => (0, frames, bytes),
            Self::End { outcome, frames, bytes, .. } => (outcome as u8, frames, bytes),
        };
        let mut header = [0; HEADER_BYTES];
        header[0] = MAGIC;
        header[1] = self.kind() as u8;
        header[2] = flags;
        let len = match *self {
            Self::Credit { next, .. } => next,
            _ => self.payload_len().0,
        };
        header[4..8].copy_from_slice(&len.to_be_bytes());
        header[8..16].copy_from_slice(&seq.to_be_bytes());
        header[16..24].copy_from_slice(&offset.to_be_bytes());
        header[24..32].copy_from_slice(&self.transfer().unwrap_or_default().0.to_be_bytes());
        debug_assert_eq!(
            Self::decode(&header).as_ref(),
            Ok(self),
            "a frame out of bounds was about to be sent"
        );
        header
    }

    /// Reads a header.
    pub fn decode(header: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let fields = Fields::read(header)?;
        let Fields { kind, flags, len, seq, offset, transfer } = fields;
        match kind {
            Kind::Open => {
                fields.require_unused(&[Field::Flags, Field::Seq, Field::Offset])?;
                fields.require_payload(MAX_HEAD_BYTES)?;
                Ok(Self::Open { transfer, head_len: len })
            }
            Kind::Head => {
                fields.require_unused(&[Field::Flags, Field::Seq, Field::Offset])?;
                fields.require_payload(MAX_HEAD_BYTES)?;
                Ok(Self::Head { transfer, head_len: len })
            }
            Kind::Cancel => {
                fields.require_unused(&[Field::Flags, Field::Len, Field::Seq, Field::Offset])?;
                Ok(Self::Cancel { transfer })
            }
            Kind::Credit => {
                fields.require_place(FrameLen(0))?;
                let reading = Reading::from_wire(flags).ok_or_else(|| fields.unknown_flags())?;
                Ok(Self::Credit { transfer, frames: seq.0, reading, limit: offset, next: len.0 })
            }
            Kind::Body => {
                fields.require_unused(&[Field::Seq])?;
                let last = fields.flag()?;
                if !last {
                    fields.require_payload(MAX_REQUEST_BODY_FRAME_BYTES)?;
                }
                fields.require_len_at_most(MAX_REQUEST_BODY_FRAME_BYTES)?;
                fields.require_place(len)?;
                Ok(Self::Body { transfer, offset, len, last })
            }
            Kind::Ping => {
                fields.require_unused(&[Field::Flags, Field::Len, Field::Offset, Field::Transfer])?;
                Ok(Self::Ping { token: seq.0 })
            }
            Kind::Pong => {
                fields.require_unused(&[Field::Flags, Field::Len, Field::Offset, Field::Transfer])?;
                Ok(Self::Pong { token: seq.0 })
            }
            Kind::Data => {
                fields.require_payload(MAX_FRAME_BYTES)?;
                fields.require_place(len)?;
                Ok(Self::Data { transfer, seq, offset, len, again: fields.flag()? })
            }
            Kind::Total => {
                fields.require_unused(&[Field::Flags, Field::Len])?;
                let (frames, bytes) = fields.totals()?;
                Ok(Self::Total { transfer, frames, bytes })
            }
            Kind::End => {
                let outcome = Outcome::from_wire(flags)?;
                let (frames, bytes) = fields.totals()?;
                if len.0 > 0 && outcome != Outcome::Aborted {
                    return Err(FrameError::ReasonWithoutAbort { outcome, len });
                }
                fields.require_len_at_most(MAX_REASON_BYTES as u32)?;
                Ok(Self::End { transfer, outcome, frames, bytes, reason_len: len })
            }
        }
    }
}

/// A header taken apart, before its kind's rules were applied.
struct Fields {
    kind: Kind,
    flags: u8,
    len: FrameLen,
    seq: Seq,
    offset: Offset,
    transfer: TransferId,
}

impl Fields {
    fn read(header: &[u8; HEADER_BYTES]) -> Result<Self, FrameError> {
        let &[magic, kind, flags, reserved, l0, l1, l2, l3, ..] = header;
        if magic != MAGIC {
            return Err(FrameError::Magic { found: magic });
        }
        let kind = Kind::from_wire(kind)?;
        if reserved != 0 {
            return Err(FrameError::Reserved { kind, value: reserved });
        }
        Ok(Self {
            kind,
            flags,
            len: FrameLen(u32::from_be_bytes([l0, l1, l2, l3])),
            seq: Seq(read_u64(header, 8)),
            offset: Offset(read_u64(header, 16)),
            transfer: TransferId(read_u64(header, 24)),
        })
    }

    fn require_unused(&self, unused: &[Field]) -> Result<(), FrameError> {
        for &field in unused {
            let value = match field {
                Field::Flags => u64::from(self.flags),
                Field::Len => u64::from(self.len.0),
                Field::Seq => self.seq.0,
                Field::Offset => self.offset.0,
                Field::Transfer => self.transfer.0,
            };
            if value != 0 {
                return Err(FrameError::UnusedField { kind: self.kind, field, value });
            }
        }
        Ok(())
    }

    /// The one flag of a kind that has one.
    fn flag(&self) -> Result<bool, FrameError> {
        match self.flags {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.unknown_flags()),
        }
    }

    fn unknown_flags(&self) -> FrameError {
        FrameError::UnusedField { kind: self.kind, field: Field::Flags, value: u64::from(self.flags) }
    }

    fn require_len_at_most(&self, max: u32) -> Result<(), FrameError> {
        if self.len.0 > max {
            return Err(FrameError::TooLong { kind: self.kind, len: self.len, max });
        }
        Ok(())
    }

    fn require_payload(&self, max: u32) -> Result<(), FrameError> {
        if self.len.0 == 0 {
            return Err(FrameError::Empty { kind: self.kind });
        }
        self.require_len_at_most(max)
    }

    /// Seq within bounds, and `len` bytes at offset too.
    fn require_place(&self, len: FrameLen) -> Result<(), FrameError> {
        let (kind, seq, offset) = (self.kind, self.seq, self.offset);
        if seq.0 > MAX_SEQ {
            return Err(FrameError::SeqOutOfRange { kind, seq });
        }
        offset.next(len).map(drop).ok_or(FrameError::OffsetOutOfRange { kind, offset, len })
    }

    /// An END's totals: frames and bytes.
    fn totals(&self) -> Result<(u64, u64), FrameError> {
        self.require_place(FrameLen(0))?;
        let (frames, bytes) = (self.seq.0, self.offset.0);
        if bytes < frames || bytes > frames.saturating_mul(u64::from(MAX_FRAME_BYTES)) {
            return Err(FrameError::ImpossibleTotals { frames, bytes });
        }
        debug_assert!(bytes <= MAX_BODY_BYTES);
        Ok((frames, bytes))
    }
}

/// The big-endian integer at `at`, which is a constant within the header.
fn read_u64(header: &[u8; HEADER_BYTES], at: usize) -> u64 {
    header[at..at + 8].iter().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

#[cfg(test)]
pub(super) mod tests;
