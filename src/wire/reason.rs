//! The short text with which one side tells the other why it gave up.
//!
//! In: an error message of this process, or the bytes a peer sent. Out: text that is safe to log. Called by
//! [`super::frame`]'s users for an aborted transfer and by [`super::handshake`] for a refusal. Invariant: at most
//! [`MAX_REASON_BYTES`] bytes of UTF-8 without control characters, whoever wrote it.

use std::fmt;

use thiserror::Error;

/// 512 bytes hold a sentence with a host name and a URL; more would only lengthen logs.
pub const MAX_REASON_BYTES: usize = 512;

/// Why a transfer or a lane was given up, for people. May be empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reason(String);

/// A reason from a peer that breaks the rules above: the peer is at fault.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ReasonError {
    /// More than [`MAX_REASON_BYTES`] bytes.
    #[error("the peer's reason has {len} bytes, more than {MAX_REASON_BYTES}")]
    TooLong {
        /// Bytes received.
        len: usize,
    },
    /// Not UTF-8.
    #[error("the peer's reason is not UTF-8 from byte {at} on")]
    NotUtf8 {
        /// Index of the first bad byte.
        at: usize,
    },
    /// A control character, which could rewrite a terminal or forge a line of the log.
    #[error("the peer's reason has a control character at byte {at}")]
    Control {
        /// Index of the character.
        at: usize,
    },
}

impl Reason {
    /// Makes a reason of any text: control characters become spaces, and what exceeds [`MAX_REASON_BYTES`] is cut off at a
    /// character's end.
    pub fn new(text: &str) -> Self {
        let cut =
            (0..=text.len().min(MAX_REASON_BYTES)).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        // A control character of two bytes (U+0080..U+009F) shrinks to one: the text never grows.
        Self(text[..cut].chars().map(|c| if c.is_control() { ' ' } else { c }).collect())
    }

    /// Takes a reason as a peer sent it.
    pub fn decode(bytes: &[u8]) -> Result<Self, ReasonError> {
        if bytes.len() > MAX_REASON_BYTES {
            return Err(ReasonError::TooLong { len: bytes.len() });
        }
        let text =
            std::str::from_utf8(bytes).map_err(|error| ReasonError::NotUtf8 { at: error.valid_up_to() })?;
        match text.char_indices().find(|(_, c)| c.is_control()) {
            Some((at, _)) => Err(ReasonError::Control { at }),
            None => Ok(Self(text.to_owned())),
        }
    }

    /// The text, also as it is sent.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its length in bytes, at most [`MAX_REASON_BYTES`].
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was said.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "no reason given" } else { &self.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_becomes_a_reason_that_decodes() {
        bolero::check!().with_type::<String>().for_each(|text| {
            let reason = Reason::new(text);
            assert_eq!(Reason::decode(reason.as_str().as_bytes()), Ok(reason));
        });
    }

    #[test]
    fn long_text_is_cut_at_a_character() {
        let text = "ä".repeat(300);
        assert_eq!(Reason::new(&text).len(), 512);
        let text = format!("x{text}");
        assert_eq!(Reason::new(&text).len(), 511);
    }

    #[test]
    fn a_peers_nonsense_is_named() {
        assert_eq!(Reason::decode(&[b'a'; 513]), Err(ReasonError::TooLong { len: 513 }));
        assert_eq!(Reason::decode(b"ab\xff"), Err(ReasonError::NotUtf8 { at: 2 }));
        assert_eq!(Reason::decode(b"a\x1b[2J"), Err(ReasonError::Control { at: 1 }));
        assert_eq!(Reason::new("a\x1b[2J\n").as_str(), "a [2J ");
    }
}
