//! Short answers that say what went wrong and on which side.

use std::{fmt, time::SystemTime};

use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, DATE, RETRY_AFTER},
};

use super::response::ResponseHead;

/// Who has to act.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Who asks.
    Client,
    /// The proxy next to the clients.
    Downstream,
    /// The lanes between the two proxies, and the relays on them.
    Lanes,
    /// The proxy next to the root.
    Upstream,
    /// The server that has the files.
    Root,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Side::Client => "client",
            Side::Downstream => "downstream",
            Side::Lanes => "lanes",
            Side::Upstream => "upstream",
            Side::Root => "root",
        })
    }
}

/// After 503 a client may come back this many seconds later: a lane is free again by then, or a path is up.
const RETRY_AFTER_S: u32 = 2;

/// An error as a response.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{side}: {text} ({status})")]
pub struct Problem {
    /// Its status.
    pub status: StatusCode,
    /// Who has to act.
    pub side: Side,
    /// What is wrong and what to do, one line.
    pub text: String,
}

impl Problem {
    /// A problem; `text` is one line.
    pub fn new(status: StatusCode, side: Side, text: impl Into<String>) -> Self {
        Self { status, side, text: text.into() }
    }

    /// The response: a head with Content-Length, and a plain body `side: text`.
    pub fn response(&self, now: SystemTime) -> (ResponseHead, String) {
        let body = format!("{}: {}\n", self.side, self.text);
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Ok(date) = HeaderValue::try_from(httpdate::fmt_http_date(now)) {
            headers.insert(DATE, date);
        }
        match self.status {
            // RFC 9110 §15.5.6: the origin server MUST generate an Allow header field.
            StatusCode::METHOD_NOT_ALLOWED => {
                headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
            }
            _ => {}
        }
        (ResponseHead { status: self.status, headers }, body)
    }
}
