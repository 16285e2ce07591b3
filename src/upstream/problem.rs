//! Responses that the upstream gives itself when it has none of the root's.
//!
//! In: what went wrong. Out: a short response whose text names the side at fault. Called by `fetch`.

use bytes::Bytes;

/// A response of the upstream's own.
#[derive(Debug)]
pub(super) struct Problem {
    /// The head, ready for the lanes.
    pub(super) head: Vec<u8>,
    /// The body; not to be sent in answer to HEAD.
    pub(super) body: Bytes,
}

impl Problem {
    /// A response with `status` (a number and its phrase) that tells `text` to a person.
    pub(super) fn new(status: &str, text: &str) -> Self {
        let body = Bytes::from(format!("{text}\n"));
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
             Cache-Control: no-store\r\n\r\n",
            body.len()
        );
        Self { head: head.into_bytes(), body }
    }
}
