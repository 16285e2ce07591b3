//! The words of a frame's header: its kind, how a transfer ended, how a lane is read.
//!
//! In: the number on the wire. Out: the word, or an error. Called by [`super`]; no I/O. Invariant: a number that is not listed
//! here is refused.

use std::fmt;

use super::FrameError;

/// What kind of frame a header announces. The number is the one on the wire: 1.. towards the upstream, 0x81.. towards the
/// downstream, so that the top bit is the direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Start a transfer.
    Open = 0x01,
    /// Give a transfer up.
    Cancel = 0x02,
    /// Are you there?
    Ping = 0x03,
    /// So much has arrived, and so much may be sent.
    Credit = 0x04,
    /// A piece of the request's body.
    Body = 0x05,
    /// The root's response head.
    Head = 0x81,
    /// A piece of the body.
    Data = 0x82,
    /// The transfer's end and totals.
    End = 0x83,
    /// Yes.
    Pong = 0x84,
    /// All of a body has been handed out.
    Total = 0x85,
}

/// Which way a frame travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Sent by the downstream.
    ToUpstream,
    /// Sent by the upstream.
    ToDownstream,
}

/// How a transfer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Outcome {
    /// The whole body was sent: the totals are the body's.
    Complete = 1,
    /// The upstream or the root failed; the body is a truncation.
    Aborted = 2,
    /// The downstream had asked for it.
    Cancelled = 3,
}

/// How the downstream reads a lane.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Reading {
    /// Everything is taken as it comes.
    #[default]
    Eager = 0,
    /// It is left unread on purpose, because the client is slow: that nothing arrives says nothing of the path.
    Paused = 1,
    /// The transfer has enough other lanes: this one is to bring nothing fresh.
    Resting = 2,
}

impl Reading {
    pub(super) fn from_wire(flags: u8) -> Option<Self> {
        [Self::Eager, Self::Paused, Self::Resting].into_iter().find(|&reading| reading as u8 == flags)
    }
}

impl Kind {
    pub(super) fn from_wire(kind: u8) -> Result<Self, FrameError> {
        const ALL: [Kind; 10] = [
            Kind::Open,
            Kind::Cancel,
            Kind::Ping,
            Kind::Credit,
            Kind::Body,
            Kind::Head,
            Kind::Data,
            Kind::End,
            Kind::Pong,
            Kind::Total,
        ];
        ALL.into_iter().find(|&known| known as u8 == kind).ok_or(FrameError::UnknownKind { kind })
    }

    pub(super) fn direction(self) -> Direction {
        if self as u8 & 0x80 == 0 { Direction::ToUpstream } else { Direction::ToDownstream }
    }
}

impl Outcome {
    pub(super) fn from_wire(outcome: u8) -> Result<Self, FrameError> {
        [Self::Complete, Self::Aborted, Self::Cancelled]
            .into_iter()
            .find(|&known| known as u8 == outcome)
            .ok_or(FrameError::UnknownOutcome { outcome })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Open => "OPEN",
            Self::Cancel => "CANCEL",
            Self::Ping => "PING",
            Self::Credit => "CREDIT",
            Self::Body => "BODY",
            Self::Head => "HEAD",
            Self::Data => "DATA",
            Self::End => "END",
            Self::Pong => "PONG",
            Self::Total => "TOTAL",
        })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Complete => "complete",
            Self::Aborted => "aborted",
            Self::Cancelled => "cancelled",
        })
    }
}
