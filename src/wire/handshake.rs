//! How two processes prove to each other that they hold the same key, and agree where a lane goes.
//!
//! In: bytes of one connection, in order, and a fresh random nonce per connection. Out: bytes to write, then a proven
//! [`Route`](super::route::Route) at the server, or a proven acceptance at the client. The server (upstream or relay) and
//! the client (downstream or relay) side of `lanes` call it. Invariant: nothing that the peer chose, except lengths within
//! bounds, is looked at before its MAC was checked; a message is answered at most once; never more than
//! [`MAX_HELLO_BYTES`] are held for a stranger.
//!
//! The server speaks first. Its nonce makes every hello good for one connection only, so a replayed hello fails without
//! a clock or a memory of old ones; the client's nonce does the same for the reply. No message carries a time, so that
//! the clocks of the two hosts may differ by any amount. Deadlines are the I/O layer's.
//!
//! | message | bytes |
//! | --- | --- |
//! | challenge, server → client | magic `PLAT`, version, 3 × 0, nonce 16 |
//! | hello, client → server | magic, version, purpose, total length u16, key id 4, nonce 16, route, MAC 32 |
//! | reply, server → client | magic, version, status, total length u16, instance u64, reason, MAC 32 |
//!
//! The MACs are HMAC-SHA256 under the key over `"plait-1 hello"`, the challenge, the hello without its MAC; and over
//! `"plait-1 reply"`, the challenge, the whole hello, the reply without its MAC. A reply is thus tied to its connection
//! and can only come from a key holder who read this hello. The route travels in clear: MACs protect, they do not hide.
//!
//! A server whose key is another one cannot sign a reply. It sends [`bad_key_reply`], without a MAC, before it closes.
//! The client uses that for the text of its error and for nothing else: it fails either way.

use thiserror::Error;

use super::key::{KeyId, MAC_BYTES};
use super::reason::{MAX_REASON_BYTES, Reason, ReasonError};
use super::route::{MAX_ROUTE_BYTES, RouteError};

pub use client::{Accepted, AwaitingReply, ClientHandshake};
pub use server::{Refusal, ServerHandshake, VerifiedHello, bad_key_reply};

mod client;
mod server;

/// The version of handshake and frames that this release speaks. Version 1 had no transport in its routes,
/// version 2 no bodies of requests, version 3 no next frame in its CREDITs.
pub const VERSION: u8 = 4;

/// 128 bits: two connections get the same random nonce with a probability of 2^-64 after 2^32 of them.
pub const NONCE_BYTES: usize = 16;

/// Magic, version, reserved bytes, nonce.
pub const CHALLENGE_BYTES: usize = 8 + NONCE_BYTES;

/// 2 KiB: eight hops with long names. It is all that a stranger can make a server hold.
pub const MAX_HELLO_BYTES: usize = 2048;

/// Everything but the reason, and the longest reason: 560 bytes.
pub const MAX_REPLY_BYTES: usize = REPLY_REASON_AT + MAX_REASON_BYTES + MAC_BYTES;

const MAGIC: [u8; 4] = *b"PLAT";
const LABEL_HELLO: &str = "plait-1 hello";
const LABEL_REPLY: &str = "plait-1 reply";

/// The purpose of a hello that wants a lane. The byte leaves room for other uses of a listening port.
const PURPOSE_LANE: u8 = 1;

/// Magic, version, purpose or status, total length: the same in hello and reply.
const PREFIX_BYTES: usize = 8;
const HELLO_NONCE_AT: usize = PREFIX_BYTES + 4;
const HELLO_ROUTE_AT: usize = HELLO_NONCE_AT + NONCE_BYTES;
const REPLY_REASON_AT: usize = PREFIX_BYTES + 8;

/// An empty route is its transport and its count.
const MIN_HELLO_BYTES: usize = HELLO_ROUTE_AT + 2 + MAC_BYTES;
const MIN_REPLY_BYTES: usize = REPLY_REASON_AT + MAC_BYTES;

const _: () = assert!(HELLO_ROUTE_AT + MAX_ROUTE_BYTES + MAC_BYTES <= MAX_HELLO_BYTES);

/// What feeding bytes to a handshake led to.
#[derive(Debug)]
pub enum Progress<T> {
    /// Read at most this many bytes more, never 0, and feed them: what lies behind them belongs to somebody else.
    NeedMore(usize),
    /// The message is whole and proven.
    Done(T),
}

/// One of the three messages, for errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Message {
    /// Server to client, first.
    Challenge,
    /// The client's answer.
    Hello,
    /// The server's verdict.
    Reply,
}

/// Why there is no lane. Close the connection; a server sends [`bad_key_reply`] before if the error is
/// [`HandshakeError::KeyMismatch`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum HandshakeError {
    /// The first bytes are something else.
    #[error("the peer does not speak plait: its {message} begins with \"{}\" (is it the right address and port?)", .found.escape_ascii())]
    NotPlait {
        /// The message that was due.
        message: Message,
        /// The bytes in the magic's place.
        found: [u8; 4],
    },
    /// Another release.
    #[error(
        "the peer speaks version {theirs} of the lane protocol, this side version {ours} (run the same release on both)"
    )]
    Version {
        /// The peer's.
        theirs: u8,
        /// [`VERSION`].
        ours: u8,
    },
    /// A challenge with a reserved byte that is not 0.
    #[error("the peer's challenge has reserved bytes that are not 0")]
    Reserved,
    /// A length beyond the message's bound; nothing behind the prefix was read.
    #[error("the peer's {message} announces {len} bytes, more than {max}")]
    TooLong {
        /// Which message.
        message: Message,
        /// Bytes announced.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// A length that cannot hold the message's fixed parts.
    #[error("the peer's {message} announces {len} bytes, fewer than {min}")]
    TooShort {
        /// Which message.
        message: Message,
        /// Bytes announced.
        len: usize,
        /// Bytes needed.
        min: usize,
    },
    /// The connection ended within a message.
    #[error("the peer closed the connection {missing} bytes before the end of its {message} (see its log)")]
    Truncated {
        /// Which message.
        message: Message,
        /// How much was missing, as far as known.
        missing: usize,
    },
    /// More bytes than asked for were fed: the I/O layer read too far.
    #[error("bytes follow the peer's {message} where none may")]
    TrailingBytes {
        /// Which message.
        message: Message,
    },
    /// Server: the client uses a key that this side does not have.
    #[error(
        "key mismatch: the peer uses key {theirs}, this side {ours} (start both with the same --key file)"
    )]
    KeyMismatch {
        /// The client's claim.
        theirs: KeyId,
        /// This side's.
        ours: KeyId,
    },
    /// Client: the server says so, without proof.
    #[error("the peer refused the lane: key mismatch (start it with the same --key file)")]
    KeyMismatchReported,
    /// The MAC does not fit: damaged, forged, or a replay from another connection.
    #[error(
        "the peer's {message} is not authentic: it was damaged, forged or recorded on another connection"
    )]
    NotAuthentic {
        /// Which message.
        message: Message,
    },
    /// Server: a key holder wants something that this release does not know.
    #[error("the peer's hello has the unknown purpose {purpose} (run the same release on both)")]
    UnknownPurpose {
        /// Its byte.
        purpose: u8,
    },
    /// Server: a key holder's route breaks the rules.
    #[error("the peer's hello has no valid route: {0}")]
    Route(#[from] RouteError),
    /// Client: a key holder's reply has an unknown status, or fields that contradict it.
    #[error(
        "the peer's reply has the unknown or contradictory status {status} (run the same release on both)"
    )]
    BadStatus {
        /// Its byte.
        status: u8,
    },
    /// Client: a key holder's reason breaks the rules.
    #[error(transparent)]
    Reason(#[from] ReasonError),
    /// Client: the server does not serve this route.
    #[error("the peer refused the lane: {reason}")]
    Refused {
        /// In the words of the hop that refused.
        reason: Reason,
    },
    /// Client: a relay cannot reach the next hop.
    #[error("the peer cannot reach the next hop: {reason}")]
    Unreachable {
        /// In the words of the hop that failed.
        reason: Reason,
    },
    /// Client: the upstream's host says that no process listens there.
    #[error("the upstream is not running: {reason}")]
    NobodyThere {
        /// In the words of the hop before the upstream.
        reason: Reason,
    },
    /// Client: a hop behind the peer has said nothing in time, neither yes nor no; another try may find it.
    #[error("no answer from behind the peer: {reason}")]
    Unanswered {
        /// In the words of the hop that waited.
        reason: Reason,
    },
}

/// What a reply says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Status {
    Accepted = 1,
    Refused = 2,
    Unreachable = 3,
    /// Only in the reply without a MAC.
    BadKey = 4,
    /// Accepted, but a leg behind this server was to be MPTCP and is plain TCP.
    AcceptedFellBack = 5,
    /// As [`Status::Unreachable`], and the upstream's host has refused the connection.
    NobodyThere = 6,
    /// As [`Status::Unreachable`], and nobody has answered in time.
    Unanswered = 7,
}

/// Collects one hello or reply, whose length stands in its prefix.
#[derive(Debug)]
struct Intake {
    message: Message,
    bytes: Vec<u8>,
    min: usize,
    max: usize,
}

impl Intake {
    fn hello() -> Self {
        Self { message: Message::Hello, bytes: Vec::new(), min: MIN_HELLO_BYTES, max: MAX_HELLO_BYTES }
    }

    fn reply() -> Self {
        Self { message: Message::Reply, bytes: Vec::new(), min: MIN_REPLY_BYTES, max: MAX_REPLY_BYTES }
    }

    /// Takes `bytes` and says how many are still missing, as far as known; 0 when the message is whole.
    fn feed(&mut self, mut bytes: &[u8]) -> Result<usize, HandshakeError> {
        // At most three rounds: up to the prefix, up to the end, nothing left.
        loop {
            let missing = self.missing()?;
            if bytes.is_empty() {
                return Ok(missing);
            }
            if missing == 0 {
                return Err(HandshakeError::TrailingBytes { message: self.message });
            }
            let (now, later) = bytes.split_at(missing.min(bytes.len()));
            self.bytes.extend_from_slice(now);
            bytes = later;
        }
    }

    fn missing(&self) -> Result<usize, HandshakeError> {
        let message = self.message;
        let Some(prefix) = self.bytes.first_chunk::<PREFIX_BYTES>() else {
            return Ok(PREFIX_BYTES - self.bytes.len());
        };
        let &[m0, m1, m2, m3, version, _, len_high, len_low] = prefix;
        check_magic(message, [m0, m1, m2, m3], version)?;
        let len = usize::from(u16::from_be_bytes([len_high, len_low]));
        if len > self.max {
            return Err(HandshakeError::TooLong { message, len, max: self.max });
        }
        if len < self.min {
            return Err(HandshakeError::TooShort { message, len, min: self.min });
        }
        Ok(len - self.bytes.len())
    }

    /// The error to report when the connection ends now.
    fn closed(&self) -> HandshakeError {
        self.missing().map_or_else(
            |error| error,
            |missing| HandshakeError::Truncated { message: self.message, missing },
        )
    }

    /// The purpose or status of a whole message.
    fn code(&self) -> u8 {
        self.bytes[5]
    }

    /// A whole message without its MAC, and the MAC.
    fn body_and_mac(&self) -> (&[u8], &[u8]) {
        self.bytes.split_at(self.bytes.len() - MAC_BYTES)
    }
}

fn check_magic(message: Message, found: [u8; 4], version: u8) -> Result<(), HandshakeError> {
    if found != MAGIC {
        return Err(HandshakeError::NotPlait { message, found });
    }
    if version != VERSION {
        return Err(HandshakeError::Version { theirs: version, ours: VERSION });
    }
    Ok(())
}

/// The prefix of a hello or reply with `len` bytes in total, a number below 2^16 by the bounds on its parts.
fn prefix(code: u8, len: usize) -> [u8; PREFIX_BYTES] {
    let [m0, m1, m2, m3] = MAGIC;
    let [len_high, len_low] = (len as u16).to_be_bytes();
    [m0, m1, m2, m3, VERSION, code, len_high, len_low]
}

impl std::fmt::Display for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Challenge => "challenge",
            Self::Hello => "hello",
            Self::Reply => "reply",
        })
    }
}

#[cfg(test)]
mod tests;
