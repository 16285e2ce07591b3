//! What an OPEN carries in place of a request where the downstream wants filler: bytes of no meaning that warm its lanes.
//!
//! In: how many bytes, or the payload of an OPEN. Out: the other one. Called by `mp`'s warm-up and by the upstream. Invariants: no
//! client can ask for it, since what asks is no request head, and only such go on to the upstream; one that does not know it
//! answers 400.

use bytes::Bytes;

/// More is never sent: what 500 Mbit/s carry in a second, 100 Mbit/s in five.
pub const FILLER_BYTES_MAX: u64 = 64 << 20;

const WORD: &str = "filler ";

/// What asks for so many bytes, [`FILLER_BYTES_MAX`] at most.
pub fn request(bytes: u64) -> Bytes {
    format!("{WORD}{}", bytes.min(FILLER_BYTES_MAX)).into()
}

/// How many bytes the payload of an OPEN asks for, if it is for filler: [`FILLER_BYTES_MAX`] at most.
pub fn asked(open: &[u8]) -> Option<u64> {
    let number = open.strip_prefix(WORD.as_bytes())?;
    let bytes: u64 = std::str::from_utf8(number).ok()?.parse().ok()?;
    Some(bytes.min(FILLER_BYTES_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::request::{Parsed, parse_request};

    #[test]
    fn what_is_asked_is_read() {
        for (bytes, read) in [(0, 0), (1, 1), (32 << 20, 32 << 20), (u64::MAX, FILLER_BYTES_MAX)] {
            assert_eq!(asked(&request(bytes)), Some(read));
        }
    }

    #[test]
    fn more_than_the_most_is_never_read() {
        let open = format!("{WORD}{}", u64::MAX);
        assert_eq!(asked(open.as_bytes()), Some(FILLER_BYTES_MAX));
    }

    #[test]
    fn requests_are_none_for_filler() {
        for open in [
            "filler",
            "filler ",
            "filler -1",
            "filler x",
            "filler 18446744073709551616",
            "filler 1 HTTP/1.1\r\nHost: upstream\r\n\r\n",
            "filler 1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: upstream\r\n\r\n",
            "",
        ] {
            assert_eq!(asked(open.as_bytes()), None, "{open}");
        }
    }

    #[test]
    fn no_request_asks_for_it() {
        assert!(!matches!(parse_request(&request(1)), Ok(Parsed::Complete { .. })));
    }
}
