//! Request heads: bytes of a client come in, a [`RequestHead`] or a [`RequestError`] goes out, and back to bytes.
//!
//! The root role and the downstream parse with it, the upstream and `plait get` build and write with it. Invariant: the
//! target of a head is origin-form without spaces, control bytes or `#`, there is exactly one `Host` in an HTTP/1.1
//! request, and the body length is known, so whatever was accepted can be forwarded as it is.

use http::header::HOST;
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, StatusCode};

use super::head::{self, Announced, BareLineFeed, FramingFault, MAX_HEAD_BYTES, MAX_HEADERS};
pub use super::head::{Parsed, Version};
use super::problem::{Problem, Side};

/// 16 KiB for the first line: twice the 8000 bytes that RFC 9112 §3 asks for, for long signed URLs.
pub const MAX_REQUEST_LINE_BYTES: usize = 16 * 1024;

/// Everything of a request but its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// As received; [`method_allowed`](Self::method_allowed) says whether we serve it.
    pub method: Method,
    /// Version of the sender.
    pub version: Version,
    /// All headers, in order within one name.
    pub headers: HeaderMap,
    target: String,
    body_len: BodyLen,
}

/// How long the body of a request is (RFC 9112 §6.3; never until close).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLen {
    /// The next request follows at once.
    None,
    /// This many bytes, 1 to `MAX_BODY_BYTES`, must be taken (or the connection closed) before the next request.
    Fixed(u64),
    /// Chunks, to be taken by a [`ChunkDecoder`](super::chunked::ChunkDecoder) before the next request.
    Chunked,
}

/// Why a request is refused; always the client's fault. When it comes from [`parse_request`], close the connection after
/// the answer, because nobody knows where the next request would start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// RFC 9112 §2.2.
    #[error("client: a line of the request head ends in a bare LF (end lines with CRLF)")]
    BareLineFeed,
    /// Two or more empty lines, or a stray CR, before the request line.
    #[error("client: more than one empty line before the request line")]
    EmptyLines,
    /// Not `METHOD SP target SP HTTP/x.y CRLF`: HTTP/0.9, TLS on a plain port, two spaces.
    #[error("client: the request line is not \"METHOD target HTTP/1.1\" (is this TLS on a plain port?)")]
    RequestLine,
    /// More than [`MAX_REQUEST_LINE_BYTES`].
    #[error("client: the request line is longer than 16 KiB")]
    LineTooLong,
    /// HTTP, but neither 1.0 nor 1.1.
    #[error("client: only HTTP/1.1 and HTTP/1.0 are spoken here")]
    UnsupportedVersion,
    /// Space before a colon, a folded line, NUL, a name that is no token.
    #[error("client: a header line of the request is malformed ({0})")]
    Header(String),
    /// More than [`MAX_HEAD_BYTES`] or [`MAX_HEADERS`].
    #[error("client: the request head is larger than 64 KiB or has more than 100 header lines")]
    HeadTooLarge,
    /// RFC 9112 §3.2: no `Host` in HTTP/1.1, two of them, or one that names no host.
    #[error("client: the Host header is missing, repeated or not HOST[:PORT] (send exactly one)")]
    Host,
    /// Neither origin-form nor an absolute http URI.
    #[error("client: the request target is neither a path nor an http:// address")]
    Target,
    /// CONNECT, `OPTIONS *` and methods nobody knows.
    #[error("client: this server does not implement the method {0}")]
    MethodUnknown(String),
    /// A method of HTTP that this server does not serve.
    #[error("client: method {0} is not allowed here (GET and HEAD are)")]
    MethodNotAllowed(Method),
    /// TRACE, where all others go on.
    #[error(
        "client: method {0} is not allowed here (it shows scripts what their browsers keep from them; other methods go on to the root)"
    )]
    MethodStays(Method),
    /// `Content-Length` or `Transfer-Encoding`.
    #[error("client: the request has {0}")]
    Framing(#[from] FramingFault),
}

impl RequestError {
    /// The status to answer with.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::LineTooLong => StatusCode::URI_TOO_LONG,
            Self::UnsupportedVersion => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::MethodUnknown(_) | Self::Framing(FramingFault::UnsupportedEncoding) => {
                StatusCode::NOT_IMPLEMENTED
            }
            Self::MethodNotAllowed(_) | Self::MethodStays(_) => StatusCode::METHOD_NOT_ALLOWED,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    /// The answer for the client.
    pub fn problem(&self) -> Problem {
        let problem = Problem::from_error(self.status(), Side::Client, self);
        match self {
            // Those of RFC 9110 and PATCH; which of them the root takes is its own to say.
            Self::MethodStays(_) => problem.with_allowed("GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH"),
            _ => problem,
        }
    }
}

/// Reads a request head from the start of `buf`, which holds what the connection gave so far.
///
/// Every call starts over, so call it when bytes arrived and not for each byte. One empty line before the request is
/// skipped (RFC 9112 §2.2) and counted in `len`. An absolute target replaces `Host` and becomes origin-form (§3.2.2).
///
/// # Errors
/// See [`RequestError`]; the head is refused as early as its bytes allow, at the latest at [`MAX_HEAD_BYTES`].
pub fn parse_request(buf: &[u8]) -> Result<Parsed<RequestHead>, RequestError> {
    let skipped = if buf.starts_with(b"\r\n") { 2 } else { 0 };
    let rest = &buf[skipped..];
    match rest {
        [] | [b'\r'] => return Ok(Parsed::Partial),
        [b'\r' | b'\n', ..] => return Err(RequestError::EmptyLines),
        _ => {}
    }
    let window = &rest[..rest.len().min(MAX_HEAD_BYTES)];
    let lines = head::scan(window).map_err(|BareLineFeed| RequestError::BareLineFeed)?;
    if lines.first.unwrap_or(window.len()) > MAX_REQUEST_LINE_BYTES {
        return Err(RequestError::LineTooLong);
    }
    let mut storage = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut storage);
    let len = match parsed.parse(window) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) if window.len() < MAX_HEAD_BYTES => return Ok(Parsed::Partial),
        Ok(httparse::Status::Partial) => return Err(RequestError::HeadTooLarge),
        Err(error) => return Err(refusal(error, window)),
    };
    let headers = head::header_map(parsed.headers).map_err(|refused| RequestError::Header(refused.0))?;
    let method = parsed.method.and_then(|name| Method::from_bytes(name.as_bytes()).ok());
    let head = RequestHead::checked(
        method.ok_or(RequestError::RequestLine)?,
        parsed.path.ok_or(RequestError::RequestLine)?,
        Version::from_minor(parsed.version),
        headers,
    )?;
    Ok(Parsed::Complete { head, len: skipped + len })
}

impl RequestHead {
    /// A request of our own: HTTP/1.1, without a body. `host` is `HOST[:PORT]`.
    ///
    /// # Errors
    /// [`RequestError::Target`] or [`RequestError::Host`] when they could not be written as one line each.
    pub fn new(method: Method, target: &str, host: &str) -> Result<Self, RequestError> {
        let host = HeaderValue::from_str(host).map_err(|_| RequestError::Host)?;
        Self::checked(method, target, Version::Http11, HeaderMap::from_iter([(HOST, host)]))
    }

    fn checked(
        method: Method,
        target: &str,
        version: Version,
        mut headers: HeaderMap,
    ) -> Result<Self, RequestError> {
        if method == Method::CONNECT || (method == Method::OPTIONS && target == "*") {
            return Err(RequestError::MethodUnknown(format!("{method} {target:.100}")));
        }
        let mut hosts = headers.get_all(HOST).iter();
        match (hosts.next(), hosts.next()) {
            (Some(host), None) if names_a_host(host.as_bytes()) => {}
            (None, None) if version == Version::Http10 => {}
            _ => return Err(RequestError::Host),
        }
        let target = origin_form(target, &mut headers)?;
        let body_len = match head::announced(version, &headers)? {
            Announced::Nothing | Announced::Length(0) => BodyLen::None,
            Announced::Length(length) => BodyLen::Fixed(length),
            Announced::Chunked => BodyLen::Chunked,
        };
        Ok(Self { method, version, headers, target, body_len })
    }

    /// Path and query as received, starting with `/`; still percent-encoded.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// What follows the head. GET and HEAD have no use for a body, yet it must be passed to find the next request.
    pub fn body_len(&self) -> BodyLen {
        self.body_len
    }

    /// Whether the client will take another answer on this connection (RFC 9112 §9.3).
    pub fn keep_alive(&self) -> bool {
        head::keep_alive(self.version, &self.headers)
    }

    /// Lets GET and HEAD pass. The head stays well framed, so the connection may live on when there is no body.
    ///
    /// # Errors
    /// 405 for other methods of HTTP, 501 for words nobody knows (RFC 9110 §9.1).
    pub fn method_allowed(&self) -> Result<(), RequestError> {
        match self.method {
            Method::GET | Method::HEAD => Ok(()),
            Method::POST
            | Method::PUT
            | Method::DELETE
            | Method::OPTIONS
            | Method::TRACE
            | Method::PATCH
            | Method::QUERY => Err(RequestError::MethodNotAllowed(self.method.clone())),
            _ => Err(RequestError::MethodUnknown(format!("{:.100}", self.method.as_str()))),
        }
    }

    /// Whether it is a GET or HEAD: what can be asked again and again, over many lanes at once, and has no body.
    pub fn is_plain(&self) -> bool {
        matches!(self.method, Method::GET | Method::HEAD)
    }

    /// Whether its success changes nothing at the root (RFC 9110 §9.2.1).
    pub fn is_safe(&self) -> bool {
        self.method.is_safe()
    }

    /// Lets every method pass that a root may be asked: all but CONNECT, which no head has, and TRACE, which would show
    /// scripts what their browsers keep from them.
    ///
    /// # Errors
    /// 405.
    pub fn may_go_on(&self) -> Result<(), RequestError> {
        if self.method == Method::TRACE {
            return Err(RequestError::MethodStays(self.method.clone()));
        }
        Ok(())
    }

    /// Appends the head as bytes, `Host` first as RFC 9110 §7.2 asks.
    pub fn write_head(&self, out: &mut Vec<u8>) {
        for part in [self.method.as_str(), " ", &self.target, " HTTP/", self.version.number(), "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
        let (host, others) =
            (self.headers.get_all(HOST), self.headers.iter().filter(|(name, _)| *name != HOST));
        head::write_headers(host.iter().map(|value| (&HOST, value)).chain(others), out);
    }

    /// Same method and target with other headers, without a body, for the way onwards; `forward` calls it.
    pub(super) fn onwards(&self, headers: HeaderMap) -> Result<Self, RequestError> {
        Self::checked(self.method.clone(), &self.target, Version::Http11, headers)
    }
}

/// Tells what httparse did not like in the words of [`RequestError`].
fn refusal(error: httparse::Error, window: &[u8]) -> RequestError {
    match error {
        httparse::Error::TooManyHeaders => RequestError::HeadTooLarge,
        httparse::Error::HeaderName | httparse::Error::HeaderValue | httparse::Error::NewLine => {
            RequestError::Header(error.to_string())
        }
        httparse::Error::Version => {
            let line = window.split(|&byte| byte == b'\r').next().unwrap_or(window);
            let version = line.rsplit(|&byte| byte == b' ').next().unwrap_or(line);
            match version.strip_prefix(b"HTTP/") {
                Some([b'0'..=b'9', ..]) => RequestError::UnsupportedVersion,
                _ => RequestError::RequestLine,
            }
        }
        httparse::Error::Token | httparse::Error::Status => RequestError::RequestLine,
    }
}

/// Turns an absolute http target into path and query and sets `Host` from it; checks that the rest is writable.
fn origin_form(target: &str, headers: &mut HeaderMap) -> Result<String, RequestError> {
    if target.bytes().any(|byte| byte <= b' ' || byte == 0x7f || byte == b'#') {
        return Err(RequestError::Target);
    }
    if target.starts_with('/') {
        return Ok(target.to_owned());
    }
    let (scheme, rest) = target.split_at_checked("http://".len()).ok_or(RequestError::Target)?;
    if !scheme.eq_ignore_ascii_case("http://") {
        return Err(RequestError::Target);
    }
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    if !names_a_host(authority.as_bytes()) {
        return Err(RequestError::Target);
    }
    headers.insert(HOST, HeaderValue::from_str(authority).map_err(|_| RequestError::Target)?);
    Ok(if path.starts_with('/') { path.to_owned() } else { format!("/{path}") })
}

/// `uri-host [ ":" port ]` with a host that is not empty and without user information (RFC 9110 §4.2.1, §4.2.4).
fn names_a_host(value: &[u8]) -> bool {
    let Ok(authority) = Authority::try_from(value) else { return false };
    let (text, host) = (authority.as_str(), authority.host());
    // Behind user information the text does not go on from the host.
    let Some(port) = text.strip_prefix(host) else { return false };
    let port_is_fine = match port.strip_prefix(':') {
        Some(digits) => digits.is_empty() || digits.parse::<u16>().is_ok_and(|_| !digits.starts_with('+')),
        None => port.is_empty(),
    };
    !host.is_empty() && (host.starts_with('[') || !host.contains('[')) && port_is_fine
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
