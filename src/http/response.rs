//! Response heads: bytes of a root come in, a [`ResponseHead`] and the [`Framing`] of its body go out, and back to bytes.
//!
//! The upstream parses with it what the root sends, the downstream and `plait get` what came over the lanes; every role
//! that answers writes with it. Invariant: what [`ResponseHead::framing`] says is what any other strict reader of the
//! same head would say, or it is an error.

use std::time::SystemTime;

use http::header::DATE;
use http::{HeaderMap, Method, StatusCode};

use super::date::format_date;
use super::head::{self, Announced, BareLineFeed, FramingFault, MAX_HEAD_BYTES, MAX_HEADERS};
pub use super::head::{Parsed, Version};
use super::problem::{Problem, Side};

/// Everything of a response but its body. The reason phrase is not kept: RFC 9112 §4 tells clients to ignore it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// 100 to 599.
    pub status: StatusCode,
    /// Version of the sender.
    pub version: Version,
    /// All headers, in order within one name.
    pub headers: HeaderMap,
}

/// How the body of a response ends (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is no body, whatever the headers say: HEAD, 1xx, 204, 304.
    None,
    /// Exactly this many bytes, at most `MAX_BODY_BYTES`; fewer are a truncation.
    Fixed(u64),
    /// Chunks; an end without the last chunk is a truncation.
    Chunked,
    /// Until the sender closes: a truncation cannot be told from the end.
    UntilClose,
}

/// Why a response is refused; always the fault of the root (or of whatever answers in its place).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResponseError {
    /// RFC 9112 §2.2.
    #[error("root: a line of the response head ends in a bare LF")]
    BareLineFeed,
    /// Not `HTTP/1.x NNN`.
    #[error(
        "root: the answer does not start with an HTTP/1.1 status line (is it an HTTP server without TLS?)"
    )]
    StatusLine,
    /// Below 100 or above 599 (RFC 9110 §15).
    #[error("root: status {0} is none of HTTP's")]
    Status(u16),
    /// 101, though we never ask for another protocol.
    #[error("root: it switched protocols without being asked")]
    Switched,
    /// Space before a colon, a folded line, NUL, a name that is no token.
    #[error("root: a header line of the response is malformed ({0})")]
    Header(String),
    /// More than [`MAX_HEAD_BYTES`], interim responses included, or more than [`MAX_HEADERS`] lines.
    #[error("root: the response head is larger than 64 KiB or has more than 100 header lines")]
    HeadTooLarge,
    /// `Content-Length` or `Transfer-Encoding`.
    #[error("root: the response has {0}")]
    Framing(#[from] FramingFault),
}

impl ResponseError {
    /// The answer for the client: 502 Bad Gateway (RFC 9110 §15.6.3).
    pub fn problem(&self) -> Problem {
        Problem::from_error(StatusCode::BAD_GATEWAY, Side::Root, self)
    }
}

/// Reads one response head, interim or final, from the start of `buf`. Every call starts over.
///
/// # Errors
/// See [`ResponseError`]; the connection is of no more use.
pub fn parse_response(buf: &[u8]) -> Result<Parsed<ResponseHead>, ResponseError> {
    let window = &buf[..buf.len().min(MAX_HEAD_BYTES)];
    if matches!(window, [b'\r' | b'\n', ..]) {
        return Err(ResponseError::StatusLine);
    }
    head::scan(window).map_err(|BareLineFeed| ResponseError::BareLineFeed)?;
    let mut storage = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut storage);
    let len = match parsed.parse(window) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if window.len() < MAX_HEAD_BYTES => return Ok(Parsed::Partial),
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Err(ResponseError::HeadTooLarge);
        }
        Err(
            error @ (httparse::Error::HeaderName | httparse::Error::HeaderValue | httparse::Error::NewLine),
        ) => {
            return Err(ResponseError::Header(error.to_string()));
        }
        Err(_) => return Err(ResponseError::StatusLine),
    };
    let code = parsed.code.ok_or(ResponseError::StatusLine)?;
    let status = StatusCode::from_u16(code)
        .ok()
        .filter(|status| status.as_u16() < 600)
        .ok_or(ResponseError::Status(code))?;
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(ResponseError::Switched);
    }
    let version = Version::from_minor(parsed.version);
    let headers = head::header_map(parsed.headers).map_err(|refused| ResponseError::Header(refused.0))?;
    Ok(Parsed::Complete { head: ResponseHead { status, version, headers }, len })
}

/// Reads a final response head and skips the interim ones (100, 102, 103) before it; they count in `len` and towards
/// [`MAX_HEAD_BYTES`], so keep them in the buffer until this is complete.
///
/// # Errors
/// As [`parse_response`].
pub fn parse_final_response(buf: &[u8]) -> Result<Parsed<ResponseHead>, ResponseError> {
    let mut skipped = 0;
    loop {
        match parse_response(&buf[skipped..])? {
            Parsed::Complete { len, .. } if skipped + len > MAX_HEAD_BYTES => {
                return Err(ResponseError::HeadTooLarge);
            }
            Parsed::Complete { head, len } if head.status.is_informational() => skipped += len,
            Parsed::Complete { head, len } => return Ok(Parsed::Complete { head, len: skipped + len }),
            Parsed::Partial if buf.len() >= MAX_HEAD_BYTES => return Err(ResponseError::HeadTooLarge),
            Parsed::Partial => return Ok(Parsed::Partial),
        }
    }
}

impl ResponseHead {
    /// An HTTP/1.1 head without headers.
    pub fn new(status: StatusCode) -> Self {
        Self { status, version: Version::Http11, headers: HeaderMap::new() }
    }

    /// How the body ends, given the method of the request that this answers (RFC 9112 §6.3).
    ///
    /// # Errors
    /// [`ResponseError::Framing`] when readers could disagree about it.
    pub fn framing(&self, request_method: &Method) -> Result<Framing, ResponseError> {
        if bodiless(request_method, self.status) {
            // The length is not used, but HEAD and 304 pass it on.
            head::content_length(&self.headers)?;
            return Ok(Framing::None);
        }
        Ok(match head::announced(self.version, &self.headers)? {
            Announced::Nothing => Framing::UntilClose,
            Announced::Length(length) => Framing::Fixed(length),
            Announced::Chunked => Framing::Chunked,
        })
    }

    /// Whether the sender keeps its connection open after this response, whose body ends as `framing` says.
    pub fn keep_alive(&self, framing: Framing) -> bool {
        framing != Framing::UntilClose && head::keep_alive(self.version, &self.headers)
    }

    /// Appends the head as bytes, with a `Date` when it has none (RFC 9110 §6.6.1).
    pub fn write_head(&self, now: SystemTime, out: &mut Vec<u8>) {
        let reason = self.status.canonical_reason().unwrap_or("");
        for part in ["HTTP/", self.version.number(), " ", self.status.as_str(), " ", reason, "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
        if !self.headers.contains_key(DATE)
            && let Some(date) = format_date(now)
        {
            out.extend_from_slice(b"date: ");
            out.extend_from_slice(date.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        head::write_headers(&self.headers, out);
    }
}

/// Responses that end with their head (RFC 9112 §6.3 step 1; CONNECT is not spoken).
fn bodiless(request_method: &Method, status: StatusCode) -> bool {
    *request_method == Method::HEAD
        || status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
}

#[cfg(test)]
#[path = "response_tests.rs"]
mod tests;
