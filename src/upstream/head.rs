//! The heads that an upstream passes on: a request from a lane to the root, a response from the root to the lanes.
//!
//! In: the bytes of one whole head. Out: the head as it travels on, without the fields that concern one connection only
//! (RFC 9110 section 7.6.1), and what the upstream has to know of it. Called by `fetch`. Invariant: no I/O; what is passed
//! on is a valid head of at most [`MAX_HEAD_BYTES`] bytes, whoever wrote it.

use httparse::{EMPTY_HEADER, Header, Status};
use thiserror::Error;

use super::source::{Chunks, Framing};
use crate::wire::frame::MAX_HEAD_BYTES;

/// Fields of one head: more than any server or browser sends, and a table of 4 KiB on the stack.
const FIELDS_MAX: usize = 128;

/// Fields about one connection, besides those that Connection names. Proxy-Connection is not standard, but sent.
const HOP_BY_HOP: [&str; 8] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "upgrade",
];

/// A request that is not sent to the root. The downstream should have refused it: its own client is at fault, or it is.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum RequestError {
    /// Not one whole HTTP head.
    #[error("the request is no HTTP/1.1 request: {0}")]
    Syntax(&'static str),
    /// A method with side effects or a body.
    #[error("the method {0} is not served: only GET and HEAD are")]
    Method(String),
    /// `http://host/path` or `*`.
    #[error("the request's target is no path")]
    Target,
    /// A body.
    #[error("a request with a body is not served")]
    Body,
}

/// A response that is not passed on. The root is at fault.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum ResponseError {
    /// Not an HTTP head.
    #[error("answers with something that is no HTTP/1.1 response: {0}")]
    Syntax(&'static str),
    /// More bytes than a lane carries.
    #[error("answers with a head of more than {MAX_HEAD_BYTES} bytes")]
    TooLong,
    /// 101 to a request that asked for no upgrade.
    #[error("switches to another protocol, which nobody asked for")]
    Upgrade,
    /// No number, or several that differ.
    #[error("answers with a Content-Length that is no number or contradicts another")]
    Length,
    /// A coding besides chunked.
    #[error("answers in the transfer coding {0}, of which only chunked is known")]
    Coding(String),
}

/// A request as the root gets it.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) bytes: Vec<u8>,
    pub(super) is_head: bool,
}

/// A response head as the lanes get it, and how its body ends.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) bytes: Vec<u8>,
    pub(super) framing: Framing,
    /// The connection may be used again behind the body.
    pub(super) keep_alive: bool,
}

/// Where the head at the start of `bytes` ends, its empty line included; the first `searched` bytes do not end it.
pub(super) fn head_end(bytes: &[u8], searched: usize) -> Option<usize> {
    let from = searched.saturating_sub(3);
    let line_ends = bytes[from..].iter().enumerate().filter(|(_, byte)| **byte == b'\n');
    line_ends.map(|(at, _)| from + at).find_map(|at| match &bytes[at + 1..] {
        [b'\n', ..] => Some(at + 2),
        [b'\r', b'\n', ..] => Some(at + 3),
        _ => None,
    })
}

/// Reads the head that a downstream sent and writes the one for `host`.
pub(super) fn request(head: &[u8], host: &str) -> Result<Request, RequestError> {
    let syntax = RequestError::Syntax;
    let mut fields = [EMPTY_HEADER; FIELDS_MAX];
    let mut parsed = httparse::Request::new(&mut fields);
    match parsed.parse(head) {
        Ok(Status::Complete(end)) if end == head.len() => {}
        Ok(Status::Complete(_)) => return Err(syntax("bytes follow its head")),
        Ok(Status::Partial) => return Err(syntax("its head is cut off")),
        Err(_) => return Err(syntax("its head is malformed")),
    }
    let (method, target) = (parsed.method.unwrap_or_default(), parsed.path.unwrap_or_default());
    if !matches!(method, "GET" | "HEAD") {
        return Err(RequestError::Method(method.to_owned()));
    }
    if !target.starts_with('/') {
        return Err(RequestError::Target);
    }
    let fields = &*parsed.headers;
    let has_body = named(fields, "content-length").any(|field| field.value.trim_ascii() != b"0");
    if has_body || named(fields, "transfer-encoding").next().is_some() {
        return Err(RequestError::Body);
    }
    let mut bytes = Vec::with_capacity(head.len() + host.len() + 64);
    bytes.extend_from_slice(format!("{method} {target} HTTP/1.1\r\n").as_bytes());
    if named(fields, "host").next().is_none() {
        bytes.extend_from_slice(format!("Host: {host}\r\n").as_bytes());
    }
    append_end_to_end(&mut bytes, fields, |_| true);
    bytes.extend_from_slice(b"Connection: keep-alive\r\n\r\n");
    Ok(Request { bytes, is_head: method == "HEAD" })
}

/// Reads one whole head of the root's. `None` for an interim response, which another one follows.
pub(super) fn response(head: &[u8], to_head: bool) -> Result<Option<Response>, ResponseError> {
    let mut fields = [EMPTY_HEADER; FIELDS_MAX];
    let mut parsed = httparse::Response::new(&mut fields);
    match parsed.parse(head) {
        Ok(Status::Complete(end)) if end == head.len() => {}
        Ok(_) => return Err(ResponseError::Syntax("its head is cut off")),
        Err(_) => return Err(ResponseError::Syntax("its head is malformed")),
    }
    let status = parsed.code.unwrap_or_default();
    match status {
        101 => return Err(ResponseError::Upgrade),
        100..=199 => return Ok(None),
        200..=999 => {}
        _ => return Err(ResponseError::Syntax("its status is out of range")),
    }
    let fields = &*parsed.headers;
    let chunked = is_chunked(fields)?;
    let length = content_length(fields)?;
    let framing = match (chunked, length) {
        _ if to_head || matches!(status, 204 | 304) => Framing::Fixed(0),
        (true, _) => Framing::Chunked(Chunks::default()),
        (false, Some(length)) => Framing::Fixed(length),
        (false, None) => Framing::UntilClose,
    };
    let says = |token: &str| tokens(fields, "connection").any(|said| said.eq_ignore_ascii_case(token));
    let persistent = if parsed.version == Some(0) { says("keep-alive") } else { !says("close") };
    // RFC 9112 section 6.3: both framings at once may be an attack on whoever reads the connection next.
    let keep_alive = persistent && !(chunked && length.is_some()) && !matches!(framing, Framing::UntilClose);
    let mut bytes = Vec::with_capacity(head.len() + 16);
    bytes.extend_from_slice(format!("HTTP/1.1 {status:03} ").as_bytes());
    bytes.extend_from_slice(parsed.reason.unwrap_or_default().as_bytes());
    bytes.extend_from_slice(b"\r\n");
    append_end_to_end(&mut bytes, fields, |name| {
        !name.eq_ignore_ascii_case("transfer-encoding")
            && !(chunked && name.eq_ignore_ascii_case("content-length"))
    });
    bytes.extend_from_slice(b"\r\n");
    if bytes.len() > MAX_HEAD_BYTES as usize {
        return Err(ResponseError::TooLong);
    }
    Ok(Some(Response { bytes, framing, keep_alive }))
}

fn named<'a>(fields: &'a [Header<'a>], name: &'a str) -> impl Iterator<Item = &'a Header<'a>> {
    fields.iter().filter(move |field| field.name.eq_ignore_ascii_case(name))
}

/// The elements of a list (RFC 9110 section 5.6.1) over all fields of that name; those that are no text are skipped.
fn tokens<'a>(fields: &'a [Header<'a>], name: &'a str) -> impl Iterator<Item = &'a str> {
    named(fields, name)
        .filter_map(|field| std::str::from_utf8(field.value).ok())
        .flat_map(|value| value.split(',').map(str::trim).filter(|token| !token.is_empty()))
}

fn is_chunked(fields: &[Header<'_>]) -> Result<bool, ResponseError> {
    let mut codings = tokens(fields, "transfer-encoding");
    let first = codings.next();
    match (first, codings.next()) {
        (None, _) => Ok(false),
        (Some(coding), None) if coding.eq_ignore_ascii_case("chunked") => Ok(true),
        (Some(coding), second) => Err(ResponseError::Coding(second.unwrap_or(coding).to_owned())),
    }
}

fn content_length(fields: &[Header<'_>]) -> Result<Option<u64>, ResponseError> {
    let mut length = None;
    for field in named(fields, "content-length") {
        // RFC 9110 section 8.6: a list of equal numbers counts as one.
        for number in field.value.split(|byte| *byte == b',') {
            let number = std::str::from_utf8(number.trim_ascii()).unwrap_or_default();
            // The number's grammar is digits only; parse would also take a sign.
            let digits = number.bytes().all(|byte| byte.is_ascii_digit());
            let number = number.parse::<u64>().ok().filter(|n| digits && *n <= i64::MAX as u64);
            match (number, length) {
                (None, _) => return Err(ResponseError::Length),
                (Some(number), Some(other)) if number != other => return Err(ResponseError::Length),
                (Some(number), _) => length = Some(number),
            }
        }
    }
    Ok(length)
}

/// Appends the fields that are meant for the far end.
fn append_end_to_end(bytes: &mut Vec<u8>, fields: &[Header<'_>], keep: impl Fn(&str) -> bool) {
    for field in fields {
        let concerns_connection = HOP_BY_HOP.iter().any(|name| field.name.eq_ignore_ascii_case(name))
            || tokens(fields, "connection").any(|name| field.name.eq_ignore_ascii_case(name));
        if !concerns_connection && keep(field.name) {
            bytes.extend_from_slice(field.name.as_bytes());
            bytes.extend_from_slice(b": ");
            bytes.extend_from_slice(field.value);
            bytes.extend_from_slice(b"\r\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_passed_on_without_what_concerns_its_connection() {
        let head = b"GET /a?b HTTP/1.1\r\nRange: bytes=0-\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nTE: trailers\r\n\r\n";
        let request = request(head, "root:80").unwrap();
        assert_eq!(
            String::from_utf8(request.bytes).unwrap(),
            "GET /a?b HTTP/1.1\r\nHost: root:80\r\nRange: bytes=0-\r\nConnection: keep-alive\r\n\r\n"
        );
        let own_host = super::request(b"HEAD / HTTP/1.1\r\nHost: video\r\n\r\n", "root:80").unwrap();
        assert!(own_host.is_head);
        assert!(own_host.bytes.starts_with(b"HEAD / HTTP/1.1\r\nHost: video\r\n"));
    }

    #[test]
    fn requests_that_are_not_served_are_named() {
        for (head, wanted) in [
            ("POST / HTTP/1.1\r\n\r\n", RequestError::Method("POST".into())),
            ("GET http://other/ HTTP/1.1\r\n\r\n", RequestError::Target),
            ("GET / HTTP/1.1\r\nContent-Length: 1\r\n\r\n", RequestError::Body),
            ("GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", RequestError::Body),
            ("GET / HTTP/1.1\r\n", RequestError::Syntax("its head is cut off")),
            ("GET / HTTP/1.1\r\n\r\nGET /", RequestError::Syntax("bytes follow its head")),
            ("\x01\x02 / HTTP/1.1\r\n\r\n", RequestError::Syntax("its head is malformed")),
        ] {
            assert_eq!(request(head.as_bytes(), "root").unwrap_err(), wanted, "{head:?}");
        }
    }

    fn framing_of(fields: &str, to_head: bool) -> (String, bool) {
        let head = format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
        let response = response(head.as_bytes(), to_head).unwrap().unwrap();
        let framing = match response.framing {
            Framing::Fixed(bytes) => bytes.to_string(),
            Framing::Chunked(_) => "chunked".into(),
            Framing::UntilClose => "close".into(),
        };
        (framing, response.keep_alive)
    }

    #[test]
    fn the_end_of_a_body_is_known() {
        for (fields, to_head, framing, keep_alive) in [
            ("Content-Length: 5\r\n", false, "5", true),
            ("Content-Length: 5, 5\r\nContent-Length: 5\r\n", false, "5", true),
            ("Content-Length: 5\r\n", true, "0", true),
            ("Content-Length: 5\r\nConnection: Close\r\n", false, "5", false),
            ("Transfer-Encoding: Chunked\r\n", false, "chunked", true),
            ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", false, "chunked", false),
            ("", false, "close", false),
        ] {
            assert_eq!(framing_of(fields, to_head), (framing.to_owned(), keep_alive), "{fields:?}");
        }
        let old = response(b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n", false).unwrap().unwrap();
        assert!(!old.keep_alive);
        let not_modified = response(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", false);
        let not_modified = not_modified.unwrap().unwrap();
        assert!(matches!(not_modified.framing, Framing::Fixed(0)));
        assert_eq!(not_modified.bytes, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n");
        assert!(response(b"HTTP/1.1 103 Early Hints\r\n\r\n", false).unwrap().is_none());
    }

    #[test]
    fn a_response_is_passed_on_without_its_framing() {
        let head = b"HTTP/1.0 206 Partial Content\nContent-Range: bytes 0-1/9\nTransfer-Encoding: chunked\nContent-Length: 2\nKeep-Alive: 5\n\n";
        let bytes = response(head, false).unwrap().unwrap().bytes;
        assert_eq!(bytes, b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-1/9\r\n\r\n");
    }

    #[test]
    fn responses_that_are_not_passed_on_are_named() {
        for (head, wanted) in [
            ("HTTP/1.1 101 Switching\r\n\r\n", ResponseError::Upgrade),
            ("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", ResponseError::Length),
            ("HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n", ResponseError::Length),
            ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", ResponseError::Length),
            ("HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775808\r\n\r\n", ResponseError::Length),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
                ResponseError::Coding("chunked".into()),
            ),
            ("SSH-2.0-x\r\n\r\n", ResponseError::Syntax("its head is malformed")),
        ] {
            assert_eq!(response(head.as_bytes(), false).unwrap_err(), wanted, "{head:?}");
        }
        let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(65536));
        assert_eq!(response(long.as_bytes(), false).unwrap_err(), ResponseError::TooLong);
    }

    #[test]
    fn the_end_of_a_head_is_found_wherever_it_was_cut() {
        for head in ["HTTP/1.1 200 OK\r\nA: b\r\n\r\n", "HTTP/1.1 200 OK\nA: b\n\n", "A\r\n\n"] {
            let with_body = format!("{head}body\n\n");
            for searched in 0..head.len() {
                assert_eq!(head_end(with_body.as_bytes(), searched), Some(head.len()), "{head:?} {searched}");
                assert_eq!(head_end(&head.as_bytes()[..searched], 0), None);
            }
        }
    }
}
