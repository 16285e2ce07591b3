//! Heads on their way through the chain: what the client sent becomes what the root is asked, what the root answered
//! becomes what the client gets.
//!
//! Only the downstream calls it, so that the chain shows as one proxy: the request head travels over the lanes as the
//! root will read it, the response head as the root wrote it. Invariant: nothing that is about one connection passes
//! from one side to the other (RFC 9110 §7.6.1), and the body length that a client is told is one that we keep to.

use http::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, EXPECT, HOST,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use super::head::{Version, list_elements};
use super::problem::{Problem, Side};
use super::request::{BodyLen, RequestError, RequestHead};
use super::response::{Framing, ResponseHead};

/// Name of the chain in `Via`.
const VIA_NAME: &str = "plait";

/// 16 passages through chains like this one: more are a loop, not a topology.
const MAX_VIA: usize = 16;

/// Headers about one connection: RFC 9110 §7.6.1, and the credentials for this proxy (§11.7), which are not the root's.
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Headers that `Connection` may name in vain: without them the message would mean something else to whoever is next
/// (RFC 9110 §7.6.1 forbids to name them).
const NEVER_DROPPED: [HeaderName; 6] =
    [HOST, VIA, CACHE_CONTROL, CONTENT_RANGE, CONTENT_TYPE, CONTENT_ENCODING];

/// Why a request does not go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    /// `Via` shows 16 passages through such chains already.
    #[error("downstream: the request runs in a loop (its root leads back to this chain)")]
    Loop,
    /// The host to ask for is none.
    #[error(transparent)]
    Request(#[from] RequestError),
}

impl ForwardError {
    /// The answer for the client: 508 for a loop.
    pub fn problem(&self) -> Problem {
        match self {
            Self::Loop => Problem::from_error(StatusCode::LOOP_DETECTED, Side::Downstream, self),
            Self::Request(error) => error.problem(),
        }
    }
}

/// The head that the root shall read: end-to-end headers of the client (`Range`, `If-*`, `Accept` and so on stay),
/// `Via` added, and `Host` as given, or the client's own for `None`. A request body is not forwarded (GET and HEAD give
/// it no meaning, RFC 9110 §9.3.1), so nothing announces one.
///
/// # Errors
/// [`ForwardError::Loop`], or [`RequestError::Host`] when an HTTP/1.0 client named no host and none is given.
pub fn request_to_root(
    request: &RequestHead,
    host: Option<&HeaderValue>,
) -> Result<RequestHead, ForwardError> {
    towards_root(request, host, false)
}

/// The same for a request whose body goes on: it is announced as the client has announced it.
///
/// # Errors
/// As [`request_to_root`].
pub fn request_to_root_with_body(
    request: &RequestHead,
    host: Option<&HeaderValue>,
) -> Result<RequestHead, ForwardError> {
    towards_root(request, host, true)
}

fn towards_root(
    request: &RequestHead,
    host: Option<&HeaderValue>,
    with_body: bool,
) -> Result<RequestHead, ForwardError> {
    let mut headers = request.headers.clone();
    if own_passages(&headers) >= MAX_VIA {
        return Err(ForwardError::Loop);
    }
    strip_hop_by_hop(&mut headers);
    let says_length = headers.remove(CONTENT_LENGTH).is_some();
    headers.remove(EXPECT);
    match request.body_len() {
        _ if !with_body => {}
        BodyLen::Fixed(length) => drop(headers.insert(CONTENT_LENGTH, HeaderValue::from(length))),
        BodyLen::Chunked => {
            headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        // RFC 9110 section 8.6: where a method gives a body a meaning, the length 0 says that there is none.
        BodyLen::None if says_length => drop(headers.insert(CONTENT_LENGTH, HeaderValue::from(0))),
        BodyLen::None => {}
    }
    if let Some(host) = host {
        headers.insert(HOST, host.clone());
    }
    append_via(&mut headers, request.version);
    Ok(request.onwards(headers)?)
}

/// How the body goes to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientBody {
    /// The answer ends with its head.
    None,
    /// Exactly this many bytes.
    Fixed(u64),
    /// In chunks, ended by `LAST_CHUNK`; without it the client sees a truncation.
    Chunked,
    /// As it comes, then close: all that HTTP/1.0 has for an unknown length. A truncation must reset the connection.
    UntilClose,
}

/// An answer as one client gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientResponse {
    /// To be written with [`ResponseHead::write_head`].
    pub head: ResponseHead,
    /// What follows it.
    pub body: ClientBody,
    /// Whether the connection stays open afterwards; the head says the same.
    pub keep_alive: bool,
}

/// The head for the client that sent `request`, for a body that ends as `framing` says. `keep_alive` false makes this
/// the last answer of the connection, true leaves it to the client's wish.
pub fn response_to_client(
    response: &ResponseHead,
    framing: Framing,
    request: &RequestHead,
    keep_alive: bool,
) -> ClientResponse {
    let mut headers = response.headers.clone();
    let announced = headers.remove(CONTENT_LENGTH);
    strip_hop_by_hop(&mut headers);
    append_via(&mut headers, response.version);
    let body = match framing {
        Framing::None => ClientBody::None,
        Framing::Fixed(length) => ClientBody::Fixed(length),
        Framing::Chunked | Framing::UntilClose if request.version == Version::Http11 => ClientBody::Chunked,
        Framing::Chunked | Framing::UntilClose => ClientBody::UntilClose,
    };
    match body {
        ClientBody::None => {
            // HEAD and 304 tell the length of what GET would get; 1xx and 204 must not (RFC 9110 §8.6).
            let tells_length = response.status == StatusCode::NOT_MODIFIED
                || (request.method == Method::HEAD
                    && !response.status.is_informational()
                    && response.status != StatusCode::NO_CONTENT);
            if let Some(length) = announced.filter(|_| tells_length) {
                headers.insert(CONTENT_LENGTH, length);
            }
        }
        ClientBody::Fixed(length) => {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        ClientBody::Chunked => {
            headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        ClientBody::UntilClose => {}
    }
    let keep_alive = keep_alive && request.keep_alive() && body != ClientBody::UntilClose;
    if !keep_alive {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    } else if request.version == Version::Http10 {
        headers.insert(CONNECTION, HeaderValue::from_static("keep-alive"));
    }
    let head = ResponseHead { status: response.status, version: Version::Http11, headers };
    ClientResponse { head, body, keep_alive }
}

/// Removes what is about one connection only: the known headers and those that `Connection` names.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = list_elements(headers, CONNECTION)
        .filter_map(|option| HeaderName::from_bytes(option).ok())
        .filter(|name| !NEVER_DROPPED.contains(name))
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// Adds this chain behind the proxies that the message has passed (RFC 9110 §7.6.3).
fn append_via(headers: &mut HeaderMap, received: Version) {
    let value = match received {
        Version::Http10 => HeaderValue::from_static("1.0 plait"),
        Version::Http11 => HeaderValue::from_static("1.1 plait"),
    };
    headers.append(VIA, value);
}

/// How often `Via` names this kind of chain.
fn own_passages(headers: &HeaderMap) -> usize {
    let is_own = |element: &&[u8]| {
        let mut words = element.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty());
        words.nth(1).is_some_and(|name| name.eq_ignore_ascii_case(VIA_NAME.as_bytes()))
    };
    list_elements(headers, VIA).filter(is_own).count()
}

#[cfg(test)]
#[path = "forward_tests.rs"]
mod tests;
