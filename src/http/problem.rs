//! Answers that we make up ourselves: a status, the side at fault, one line of plain text.
//!
//! Errors of any role come in, the bytes of a whole response go out. Invariant: never cached (`no-store`), always framed
//! by `Content-Length`, so that the connection can live on if the role wants it to.

use std::fmt;
use std::time::SystemTime;

use http::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RETRY_AFTER,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderValue, Method, StatusCode};

use super::range::ContentRange;
use super::response::ResponseHead;

/// Who has to act so that the same request succeeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The sender of the request.
    Client,
    /// The proxy next to the clients.
    Downstream,
    /// A proxy on the way.
    Relay,
    /// The proxy next to the root.
    Upstream,
    /// The server that stores the videos.
    Root,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Downstream => "downstream",
            Self::Relay => "relay",
            Self::Upstream => "upstream",
            Self::Root => "root",
        })
    }
}

/// One answer of our own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Status of the answer. 405 also gets `Allow`.
    pub status: StatusCode,
    /// Side at fault.
    pub side: Side,
    /// The line of the body, which starts with the side.
    text: String,
    retry_after_s: Option<u32>,
    content_range: Option<ContentRange>,
    /// Of 405.
    allowed: &'static str,
}

impl Problem {
    /// `text` says what is wrong and, where there is one, the remedy; the name of the side is put before it.
    pub fn new(status: StatusCode, side: Side, text: impl fmt::Display) -> Self {
        Self::of(status, side, format!("{side}: {text}"))
    }

    /// From an error of this room, whose message already starts with the side.
    pub(super) fn from_error(status: StatusCode, side: Side, error: &dyn std::error::Error) -> Self {
        Self::of(status, side, error.to_string())
    }

    fn of(status: StatusCode, side: Side, text: String) -> Self {
        Self { status, side, text, retry_after_s: None, content_range: None, allowed: "GET, HEAD" }
    }

    /// Tells the client which methods may be tried; for 405, where that is more than GET and HEAD.
    pub(super) fn with_allowed(mut self, methods: &'static str) -> Self {
        self.allowed = methods;
        self
    }

    /// Tells the client when to come back, in seconds; for 503 (RFC 9110 §10.2.3).
    pub fn with_retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// Tells the client the length, in bytes, that its range missed; for 416 (RFC 9110 §15.5.17).
    pub fn with_complete_length(mut self, complete: u64) -> Self {
        self.content_range = Some(ContentRange::Unsatisfied { complete });
        self
    }

    /// The body, one line with its line feed.
    pub fn body(&self) -> String {
        format!("{}\n", self.text)
    }

    /// The head, `Content-Length` set and no `Connection` yet.
    pub fn head(&self) -> ResponseHead {
        let mut head = ResponseHead::new(self.status);
        let headers = &mut head.headers;
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        // The text may quote the client: no browser shall guess that it is HTML.
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(self.body().len()));
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, HeaderValue::from_static(self.allowed));
        }
        if let Some(seconds) = self.retry_after_s {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(range) = self.content_range {
            headers.insert(CONTENT_RANGE, range.to_value());
        }
        head
    }

    /// The whole answer as bytes: head and, unless `method` is HEAD, body. `keep_alive` says what the role does with
    /// the connection afterwards. Use [`Method::GET`] when the request could not be read.
    pub fn to_bytes(&self, method: &Method, keep_alive: bool, now: SystemTime) -> Vec<u8> {
        let mut head = self.head();
        let connection = if keep_alive { "keep-alive" } else { "close" };
        head.headers.insert(CONNECTION, HeaderValue::from_static(connection));
        let mut out = Vec::new();
        head.write_head(now, &mut out);
        if *method != Method::HEAD {
            out.extend_from_slice(self.body().as_bytes());
        }
        out
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.text, self.status.as_u16())
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::http::response::{Framing, Parsed, parse_response};

    #[test]
    fn a_problem_is_a_whole_response() {
        let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, Side::Downstream, "no path is up")
            .with_retry_after(2);
        let bytes = problem.to_bytes(&Method::GET, true, UNIX_EPOCH);
        let Ok(Parsed::Complete { head, len }) = parse_response(&bytes) else { panic!("no head") };
        assert_eq!(&bytes[len..], b"downstream: no path is up\n");
        assert_eq!(head.framing(&Method::GET), Ok(Framing::Fixed((bytes.len() - len) as u64)));
        assert_eq!(head.headers[RETRY_AFTER], "2");
        assert_eq!(head.headers[CACHE_CONTROL], "no-store");
        assert_eq!(head.headers["date"], "Thu, 01 Jan 1970 00:00:00 GMT");
        assert!(head.keep_alive(Framing::None));
        assert_eq!(problem.to_string(), "downstream: no path is up (503)");
    }

    #[test]
    fn a_problem_for_head_has_no_body() {
        let bytes = Problem::new(StatusCode::NOT_FOUND, Side::Client, "no such file").to_bytes(
            &Method::HEAD,
            false,
            UNIX_EPOCH,
        );
        let Ok(Parsed::Complete { head, len }) = parse_response(&bytes) else { panic!("no head") };
        assert_eq!(len, bytes.len());
        assert_eq!(head.headers[CONTENT_LENGTH], "21");
        assert_eq!(head.headers[CONNECTION], "close");
    }

    #[test]
    fn status_specific_headers() {
        let head = Problem::new(StatusCode::METHOD_NOT_ALLOWED, Side::Client, "no").head();
        assert_eq!(head.headers[ALLOW], "GET, HEAD");
        let head = Problem::new(StatusCode::RANGE_NOT_SATISFIABLE, Side::Client, "no")
            .with_complete_length(7)
            .head();
        assert_eq!(head.headers[CONTENT_RANGE], "bytes */7");
    }
}
