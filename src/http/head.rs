//! What request and response heads have in common: versions, bounds, line ends, and the headers that frame a body.
//!
//! `request` and `response` call it before and after httparse; nobody else needs more than [`Version`] and [`Parsed`].
//! Invariant: httparse never decides about a head with a bare line feed in it, because `scan` saw the bytes first
//! (httparse takes bare LF as a line end, RFC 9112 §2.2 only allows that to those who do not mind smuggling).

use std::fmt;

use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue};

/// 64 KiB for a whole head: eight times what common servers take, so that long cookies and signed URLs pass, and
/// small enough that ten thousand half-sent heads stay below 1 GiB.
pub const MAX_HEAD_BYTES: usize = 64 * 1024;

/// 100 header lines: players send about 20; the array for them lives on the stack (3.2 KiB).
pub const MAX_HEADERS: usize = 100;

/// 2^60 bytes: no body is that long, and sums and differences of such lengths cannot overflow an `i64` (`off_t`).
pub const MAX_BODY_BYTES: u64 = 1 << 60;

/// The protocol version of a message; others are refused by the parsers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// HTTP/1.0: closes after each message unless told otherwise, knows no chunks.
    Http10,
    /// HTTP/1.1.
    Http11,
}

impl Version {
    /// The number that `Via` shows: `1.0` or `1.1` (RFC 9110 §7.6.3).
    pub fn number(self) -> &'static str {
        match self {
            Self::Http10 => "1.0",
            Self::Http11 => "1.1",
        }
    }

    /// httparse reports the minor version and accepts 0 and 1 only.
    pub(super) fn from_minor(minor: Option<u8>) -> Self {
        if minor == Some(0) { Self::Http10 } else { Self::Http11 }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HTTP/{}", self.number())
    }
}

/// What a parser made of the bytes so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed<T> {
    /// A whole head; its first `len` bytes of the buffer are used up.
    Complete {
        /// The head.
        head: T,
        /// Bytes of the buffer that belong to it, including lines that were skipped.
        len: usize,
    },
    /// Nothing wrong yet: call again with the same bytes and more behind them.
    Partial,
}

/// Line structure of a buffer that starts with a head.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Lines {
    /// Bytes of the first line with its CRLF, when it has ended.
    pub first: Option<usize>,
    /// Whether the empty line that ends the head was seen.
    pub ended: bool,
}

/// A line feed without a carriage return before it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BareLineFeed;

/// Looks at the line ends of a head and stops at the empty line, so that a body behind it may hold anything.
pub(super) fn scan(window: &[u8]) -> Result<Lines, BareLineFeed> {
    let mut lines = Lines { first: None, ended: false };
    for line in window.split_inclusive(|&byte| byte == b'\n') {
        if !line.ends_with(b"\n") {
            break;
        }
        if !line.ends_with(b"\r\n") {
            return Err(BareLineFeed);
        }
        if lines.first.is_none() {
            lines.first = Some(line.len());
        } else if line.len() == 2 {
            lines.ended = true;
            break;
        }
    }
    Ok(lines)
}

/// A header that httparse accepted and the http crate did not, by name.
#[derive(Debug)]
pub(super) struct RefusedHeader(pub String);

/// Copies httparse's borrowed headers into a map; the order within one name is kept.
pub(super) fn header_map(parsed: &[httparse::Header<'_>]) -> Result<HeaderMap, RefusedHeader> {
    let refused = |name: &str| RefusedHeader(name.to_owned());
    let mut headers = HeaderMap::with_capacity(parsed.len());
    for header in parsed {
        let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(|_| refused(header.name))?;
        let value = HeaderValue::from_bytes(header.value).map_err(|_| refused(header.name))?;
        headers.try_append(name, value).map_err(|_| refused(header.name))?;
    }
    Ok(headers)
}

/// Appends `name: value` lines and the empty line. `HeaderName` and `HeaderValue` cannot hold CR or LF.
pub(super) fn write_headers<'a>(
    headers: impl IntoIterator<Item = (&'a HeaderName, &'a HeaderValue)>,
    out: &mut Vec<u8>,
) {
    for (name, value) in headers {
        write_header(name, value, out);
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends one line.
pub fn write_header(name: &HeaderName, value: &HeaderValue, out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_str().as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// What the framing headers of a message say, RFC 9112 §6.3 steps 3 to 5, for requests and responses alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Announced {
    /// Neither `Content-Length` nor `Transfer-Encoding`.
    Nothing,
    /// `Content-Length`, at most [`MAX_BODY_BYTES`].
    Length(u64),
    /// `Transfer-Encoding: chunked` and nothing else.
    Chunked,
}

/// Why the framing headers are refused. The words fit behind the name of a side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FramingFault {
    /// RFC 9112 §6.3: one of the two may be an attempt at smuggling.
    #[error("both Transfer-Encoding and Content-Length (send one of them)")]
    LengthAndEncoding,
    /// RFC 9112 §6.1: HTTP/1.0 has no transfer codings.
    #[error("Transfer-Encoding in an HTTP/1.0 message")]
    EncodingInHttp10,
    /// Any coding but exactly `chunked`.
    #[error("a Transfer-Encoding other than chunked")]
    UnsupportedEncoding,
    /// RFC 9110 §8.6 lets us refuse even equal repetitions.
    #[error("more than one Content-Length (send exactly one)")]
    RepeatedLength,
    /// Not 1 to 19 digits, or above [`MAX_BODY_BYTES`].
    #[error("a Content-Length that is not a decimal number up to 2^60")]
    BadLength,
}

/// Reads `Content-Length` and `Transfer-Encoding`.
pub(super) fn announced(version: Version, headers: &HeaderMap) -> Result<Announced, FramingFault> {
    let length = content_length(headers)?;
    let mut encodings = headers.get_all(TRANSFER_ENCODING).iter();
    let Some(encoding) = encodings.next() else {
        return Ok(length.map_or(Announced::Nothing, Announced::Length));
    };
    if version == Version::Http10 {
        return Err(FramingFault::EncodingInHttp10);
    }
    if length.is_some() {
        return Err(FramingFault::LengthAndEncoding);
    }
    if encodings.next().is_some() || !encoding.as_bytes().eq_ignore_ascii_case(b"chunked") {
        return Err(FramingFault::UnsupportedEncoding);
    }
    Ok(Announced::Chunked)
}

/// The one `Content-Length`: digits only, at most [`MAX_BODY_BYTES`].
pub(super) fn content_length(headers: &HeaderMap) -> Result<Option<u64>, FramingFault> {
    let mut values = headers.get_all(CONTENT_LENGTH).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(FramingFault::RepeatedLength);
    }
    decimal(value.as_bytes())
        .filter(|&length| length <= MAX_BODY_BYTES)
        .map(Some)
        .ok_or(FramingFault::BadLength)
}

/// `1*DIGIT` without sign or space; more than 19 digits could not be a length and is not looked at.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 19 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Elements of a comma-separated list over all lines of a header, without empty ones (RFC 9110 §5.6.1). Not for
/// values that may hold quoted commas.
pub fn list_elements(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &[u8]> {
    headers
        .get_all(name)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|element| !element.is_empty())
}

/// Whether the connection may carry another message after this one, as far as its sender is concerned (RFC 9112 §9.3).
pub(super) fn keep_alive(version: Version, headers: &HeaderMap) -> bool {
    let named = |option: &[u8]| {
        list_elements(headers, CONNECTION).any(|element| element.eq_ignore_ascii_case(option))
    };
    !named(b"close") && (version == Version::Http11 || named(b"keep-alive"))
}
