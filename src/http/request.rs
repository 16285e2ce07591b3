//! Request heads: bytes to [`RequestHead`], strictly.
//!
//! In: the bytes at the front of a client's connection. Out: a head that is safe to act on and to pass on, or a
//! [`Problem`] to answer with. Invariant: what two parsers could read in two ways (smuggling) is refused.

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version,
    header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING},
};

use super::problem::{Problem, Side};

/// A head may have this many bytes; the same bound as a frame's OPEN.
pub const HEAD_BYTES_MAX: usize = crate::wire::frame::MAX_HEAD_BYTES as usize;
/// Header lines; players send about twenty.
pub const HEADERS_MAX: usize = 100;
/// Bytes of the request target: what common servers accept.
const TARGET_BYTES_MAX: usize = 8 << 10;

/// A request without its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// GET, HEAD or another.
    pub method: Method,
    /// Path and query, as received; begins with `/` (or is `*` for OPTIONS).
    pub target: String,
    /// HTTP/1.0 or HTTP/1.1.
    pub version: Version,
    /// All fields; exactly one Host in HTTP/1.1.
    pub headers: HeaderMap,
}

/// What [`parse`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed<T> {
    /// The whole head and how many bytes it has.
    Complete(T, usize),
    /// More bytes are needed.
    Partial,
}

/// How the body of a request is framed. RFC 9112 §6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestBody {
    /// There is none.
    None,
    /// This many bytes follow.
    Length(u64),
    /// Chunks follow.
    Chunked,
}

fn bad(text: impl Into<String>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, Side::Client, text)
}

/// Reads the head at the front of `bytes`.
///
/// # Errors
/// The [`Problem`] to answer with; the connection is of no more use then, because the request's end is unknown.
pub fn parse(bytes: &[u8]) -> Result<Parsed<RequestHead>, Problem> {
    let window = &bytes[..bytes.len().min(HEAD_BYTES_MAX)];
    let end = head_end(window);
    // Before httparse, which accepts them: RFC 9112 §2.2 lets a recipient take a bare LF for a line end, and another
    // on the way may not.
    let head = end.map_or(window, |end| &window[..end]);
    check_octets(head).map_err(|what| bad(format!("the request head has {what}")))?;
    let mut lines = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut lines);
    let status = request.parse(head).map_err(|error| match error {
        httparse::Error::TooManyHeaders => Problem::new(
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Side::Client,
            format!("more than {HEADERS_MAX} header fields"),
        ),
        httparse::Error::Version => Problem::new(
            StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Side::Client,
            "only HTTP/1.0 and HTTP/1.1 are spoken here",
        ),
        error => bad(format!("not an HTTP request: {error}")),
    })?;
    let len = match status {
        httparse::Status::Complete(len) => len,
        httparse::Status::Partial => {
            let target_full = request.path.is_none() && window.len() > TARGET_BYTES_MAX;
            if target_full {
                return Err(too_long());
            }
            if bytes.len() >= HEAD_BYTES_MAX {
                return Err(Problem::new(
                    StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                    Side::Client,
                    format!("a request head has at most {HEAD_BYTES_MAX} bytes"),
                ));
            }
            return Ok(Parsed::Partial);
        }
    };
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version) else {
        return Err(bad("not an HTTP request"));
    };
    if target.len() > TARGET_BYTES_MAX {
        return Err(too_long());
    }
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| bad("no valid method"))?;
    let version = if minor == 0 { Version::HTTP_10 } else { Version::HTTP_11 };
    let mut headers = to_map(request.headers).map_err(bad)?;
    let target = origin_form(&method, target, &mut headers)?;
    check_host(version, &headers)?;
    let head = RequestHead { method, target, version, headers };
    head.body()?;
    Ok(Parsed::Complete(head, len))
}

fn too_long() -> Problem {
    Problem::new(
        StatusCode::URI_TOO_LONG,
        Side::Client,
        format!("a target has at most {TARGET_BYTES_MAX} bytes"),
    )
}

/// Where the head ends: behind the first empty line.
pub(super) fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

/// Refuses NUL, bare CR, bare LF and line folding (RFC 9112 §2.2 and §5.2) in a head.
pub(super) fn check_octets(head: &[u8]) -> Result<(), &'static str> {
    for (at, &octet) in head.iter().enumerate() {
        let before = at.checked_sub(1).map(|at| head[at]);
        let behind = head.get(at + 1);
        match octet {
            0 => return Err("a NUL"),
            b'\n' if before != Some(b'\r') => return Err("a bare LF"),
            b'\r' if behind.is_some_and(|&octet| octet != b'\n') => return Err("a bare CR"),
            b'\n' if matches!(behind, Some(b' ' | b'\t')) => return Err("a folded line"),
            _ => {}
        }
    }
    Ok(())
}

/// httparse's lines as a map; values keep their order.
pub(super) fn to_map(lines: &[httparse::Header<'_>]) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::with_capacity(lines.len());
    for line in lines {
        let name =
            HeaderName::from_bytes(line.name.as_bytes()).map_err(|_| "an invalid field name".to_owned())?;
        let value = HeaderValue::from_bytes(line.value).map_err(|_| format!("an invalid value of {name}"))?;
        headers.append(name, value);
    }
    Ok(headers)
}

/// RFC 9112 §3.2: reduces absolute-form to origin-form; its authority then replaces Host (§3.2.2).
fn origin_form(method: &Method, target: &str, headers: &mut HeaderMap) -> Result<String, Problem> {
    if method == Method::CONNECT {
        return Err(Problem::new(StatusCode::NOT_IMPLEMENTED, Side::Client, "CONNECT is not spoken here"));
    }
    if target.starts_with('/') || (target == "*" && method == Method::OPTIONS) {
        return Ok(target.to_owned());
    }
    let uri: http::Uri = target.parse().map_err(|_| bad("the target is no path"))?;
    let (Some("http" | "https"), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(bad("the target is no path"));
    };
    let host = HeaderValue::from_str(authority.as_str()).map_err(|_| bad("an invalid authority"))?;
    headers.insert(HOST, host);
    Ok(uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string))
}

/// RFC 9112 §3.2: "A server MUST respond with a 400 to any HTTP/1.1 request message that lacks a Host header field and
/// to any request message that contains more than one Host header field line or an invalid value".
fn check_host(version: Version, headers: &HeaderMap) -> Result<(), Problem> {
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (_, Some(_)) => Err(bad("more than one Host")),
        (None, _) if version == Version::HTTP_11 => Err(bad("no Host")),
        (Some(host), None) if host.as_bytes().iter().any(|&b| b <= b' ' || b == b'/' || b == b'@') => {
            Err(bad("an invalid Host"))
        }
        _ => Ok(()),
    }
}

/// The one Content-Length of a message; `None` if there is none.
///
/// # Errors
/// Says what is wrong: several, not a number, too large for 63 bits.
pub(super) fn content_length(headers: &HeaderMap) -> Result<Option<u64>, &'static str> {
    let mut values = headers.get_all(CONTENT_LENGTH).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err("more than one Content-Length");
    }
    let digits = value.as_bytes();
    // Not `parse`, which takes a sign.
    if digits.is_empty() || digits.len() > 18 || !digits.iter().all(u8::is_ascii_digit) {
        return Err("a Content-Length that is no length");
    }
    Ok(value.to_str().ok().and_then(|digits| digits.parse().ok()))
}

/// True if a comma-separated list header has `token`, in any case.
pub(super) fn list_has(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|word| word.trim().eq_ignore_ascii_case(token))
}

impl RequestHead {
    /// How the body is framed. RFC 9112 §6.3.
    ///
    /// # Errors
    /// The [`Problem`] to answer with; the connection must be closed then.
    pub fn body(&self) -> Result<RequestBody, Problem> {
        let length = content_length(&self.headers).map_err(bad)?;
        if self.headers.contains_key(TRANSFER_ENCODING) {
            // §6.1: "A server MAY reject a request that contains both Content-Length and Transfer-Encoding", and one of
            // HTTP/1.0 with Transfer-Encoding has faulty framing.
            if length.is_some() || self.version == Version::HTTP_10 {
                return Err(bad("a Transfer-Encoding where there may be none"));
            }
            let mut codings = self.headers.get_all(TRANSFER_ENCODING).iter();
            let single =
                codings.next().is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"chunked"));
            if !single || codings.next().is_some() {
                return Err(Problem::new(
                    StatusCode::NOT_IMPLEMENTED,
                    Side::Client,
                    "the only transfer coding understood here is chunked",
                ));
            }
            return Ok(RequestBody::Chunked);
        }
        Ok(match length {
            None | Some(0) => RequestBody::None,
            Some(length) => RequestBody::Length(length),
        })
    }

    /// Whether the client wants the connection to stay. RFC 9112 §9.3.
    pub fn keeps_alive(&self) -> bool {
        if list_has(&self.headers, &CONNECTION, "close") {
            return false;
        }
        self.version == Version::HTTP_11 || list_has(&self.headers, &CONNECTION, "keep-alive")
    }

    /// Only GET and HEAD are served here.
    ///
    /// # Errors
    /// 405 for other methods of HTTP, 501 for unknown ones.
    pub fn require_safe_method(&self) -> Result<(), Problem> {
        match self.method {
            Method::GET | Method::HEAD => Ok(()),
            Method::POST | Method::PUT | Method::DELETE | Method::OPTIONS | Method::PATCH | Method::TRACE => {
                Err(Problem::new(
                    StatusCode::METHOD_NOT_ALLOWED,
                    Side::Client,
                    "only GET and HEAD are served here",
                ))
            }
            _ => Err(Problem::new(StatusCode::NOT_IMPLEMENTED, Side::Client, "an unknown method")),
        }
    }

    /// The head as bytes, in HTTP/1.1.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(512);
        bytes.extend_from_slice(self.method.as_str().as_bytes());
        bytes.push(b' ');
        bytes.extend_from_slice(self.target.as_bytes());
        bytes.extend_from_slice(b" HTTP/1.1\r\n");
        write_fields(&self.headers, &mut bytes);
        bytes
    }
}

/// Appends the field lines and the empty line.
pub(super) fn write_fields(headers: &HeaderMap, bytes: &mut Vec<u8>) {
    for (name, value) in headers {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
