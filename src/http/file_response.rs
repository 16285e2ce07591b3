//! The answer for a file: a request head and the facts of an open file come in, a head and a span of bytes go out.
//!
//! The root role and an upstream with `--root DIR` call it after opening the file, then send the head and sendfile the
//! span. Invariant: the span lies within the length that was given, and the head announces exactly its bytes.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, LAST_MODIFIED};
use http::{HeaderMap, HeaderValue, Method, StatusCode};

use super::conditional::{Decision, EntityTag, Validators, evaluate};
use super::date::format_date;
use super::mime::content_type;
use super::problem::{Problem, Side};
use super::range::{ContentRange, RangeOutcome, requested_range};
use super::request::RequestHead;
use super::response::ResponseHead;

/// What fstat said about the open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileFacts {
    /// Length in bytes.
    pub len: u64,
    /// Time of last modification, with the nanoseconds that the file system keeps.
    pub modified: SystemTime,
}

/// What to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileResponse {
    /// Without `Connection`, which is the caller's to set.
    pub head: ResponseHead,
    /// What follows the head.
    pub body: FileBody,
}

/// The body of a [`FileResponse`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileBody {
    /// HEAD and 304.
    None,
    /// Bytes of the file; `len` is 0 for an empty file only.
    Span {
        /// Where they start.
        offset: u64,
        /// How many.
        len: u64,
    },
    /// The line of a 412 or 416.
    Text(String),
}

/// Plans the answer to a GET or HEAD for an existing regular file; `path` is looked at for its extension only.
///
/// Statuses: 200, 206, 304, 412, 416. A `Range` is honoured for GET only (RFC 9110 §14.2).
pub fn file_response(request: &RequestHead, path: &Path, facts: FileFacts, now: SystemTime) -> FileResponse {
    let etag = etag(facts);
    // RFC 9110 §8.8.2.1: never later than Date.
    let last_modified = facts.modified.min(now);
    let validators =
        Validators { etag: EntityTag::parse(etag.as_bytes()), last_modified: Some(last_modified) };
    let honour_range = match evaluate(&request.method, &request.headers, validators, now) {
        Decision::NotModified => {
            let mut head = ResponseHead::new(StatusCode::NOT_MODIFIED);
            insert_validators(&mut head.headers, etag, last_modified);
            return FileResponse { head, body: FileBody::None };
        }
        Decision::PreconditionFailed => {
            let text = "the file is not the one that If-Match or If-Unmodified-Since asks for";
            return refusal(request, Problem::new(StatusCode::PRECONDITION_FAILED, Side::Client, text));
        }
        Decision::Proceed { honour_range } => honour_range,
    };
    let spec = if honour_range { requested_range(&request.headers) } else { None };
    let outcome = spec.map_or(RangeOutcome::Full, |spec| spec.resolve(facts.len));
    let (status, offset, len, content_range) = match outcome {
        RangeOutcome::Full => (StatusCode::OK, 0, facts.len, None),
        RangeOutcome::Partial(range) => {
            let header = ContentRange::Satisfied { range, complete: Some(facts.len) };
            (StatusCode::PARTIAL_CONTENT, range.first(), range.len(), Some(header))
        }
        RangeOutcome::Unsatisfiable => {
            let text =
                format_args!("the range starts behind the end of the file, which has {} bytes", facts.len);
            let problem = Problem::new(StatusCode::RANGE_NOT_SATISFIABLE, Side::Client, text);
            return refusal(request, problem.with_complete_length(facts.len));
        }
    };
    let mut head = ResponseHead::new(status);
    let headers = &mut head.headers;
    headers.insert(CONTENT_TYPE, content_type(path));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(len));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Some(range) = content_range {
        headers.insert(CONTENT_RANGE, range.to_value());
    }
    insert_validators(headers, etag, last_modified);
    let body = if request.method == Method::HEAD { FileBody::None } else { FileBody::Span { offset, len } };
    FileResponse { head, body }
}

/// `"<length>-<mtime in ns>"` in hexadecimal. Strong: a file that changes within the clock tick of its file system and
/// keeps its length is the one change it misses.
fn etag(facts: FileFacts) -> HeaderValue {
    let (sign, distance) = match facts.modified.duration_since(UNIX_EPOCH) {
        Ok(after) => ("", after),
        Err(before) => ("-", before.duration()),
    };
    let text = format!("\"{:x}-{sign}{:x}\"", facts.len, distance.as_nanos());
    // Hexadecimal digits, dashes and quotes are always a header value; the empty tag is never used.
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("\"\""))
}

/// A time that HTTP cannot write (before 1970) has no `Last-Modified`.
fn insert_validators(headers: &mut HeaderMap, etag: HeaderValue, last_modified: SystemTime) {
    headers.insert(ETAG, etag);
    if let Some(date) = format_date(last_modified) {
        headers.insert(LAST_MODIFIED, date);
    }
}

fn refusal(request: &RequestHead, problem: Problem) -> FileResponse {
    let mut head = problem.head();
    head.headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    let body = if request.method == Method::HEAD { FileBody::None } else { FileBody::Text(problem.body()) };
    FileResponse { head, body }
}

#[cfg(test)]
#[path = "file_response_tests.rs"]
mod tests;
