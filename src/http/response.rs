//! Response heads: bytes of a root to [`ResponseHead`] and back, and how the body behind one is framed.

use std::time::SystemTime;

use http::{
    HeaderMap, HeaderValue, Method, StatusCode, Version,
    header::{CONNECTION, DATE, TRANSFER_ENCODING},
};

pub use super::request::Parsed;
use super::request::{
    HEAD_BYTES_MAX, HEADERS_MAX, check_octets, content_length, head_end, list_has, to_map, write_fields,
};

/// A response without its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// The status; reason phrases are not kept.
    pub status: StatusCode,
    /// All fields.
    pub headers: HeaderMap,
}

/// How the body of a response is framed. RFC 9112 §6.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseBody {
    /// There is none, whatever the fields say.
    None,
    /// This many bytes.
    Length(u64),
    /// Chunks.
    Chunked,
    /// Everything until the connection closes.
    UntilClose,
}

/// The root's answer is no HTTP/1.x response.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the root's answer has {what}")]
pub struct ResponseError {
    what: String,
}

fn bad(what: impl Into<String>) -> ResponseError {
    ResponseError { what: what.into() }
}

/// A response head and what its first line says of the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// The head.
    pub head: ResponseHead,
    /// HTTP/1.0 or HTTP/1.1.
    pub version: Version,
}

/// Reads the head at the front of `bytes`.
///
/// # Errors
/// [`ResponseError`] says what is wrong; the connection is of no more use then.
pub fn parse(bytes: &[u8]) -> Result<Parsed<Received>, ResponseError> {
    let window = &bytes[..bytes.len().min(HEAD_BYTES_MAX)];
    let head = head_end(window).map_or(window, |end| &window[..end]);
    check_octets(head).map_err(bad)?;
    let mut lines = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut lines);
    let len = match response.parse(head).map_err(|error| bad(format!("no valid head: {error}")))? {
        httparse::Status::Complete(len) => len,
        httparse::Status::Partial if bytes.len() >= HEAD_BYTES_MAX => {
            return Err(bad(format!("a head of more than {HEAD_BYTES_MAX} bytes")));
        }
        httparse::Status::Partial => return Ok(Parsed::Partial),
    };
    let (Some(code), Some(minor)) = (response.code, response.version) else {
        return Err(bad("no status line"));
    };
    let status = StatusCode::from_u16(code).map_err(|_| bad(format!("the status {code}")))?;
    let headers = to_map(response.headers).map_err(bad)?;
    let version = if minor == 0 { Version::HTTP_10 } else { Version::HTTP_11 };
    Ok(Parsed::Complete(Received { head: ResponseHead { status, headers }, version }, len))
}

impl Received {
    /// How the body behind this head is framed, as the answer to `method`.
    ///
    /// # Errors
    /// A framing that two parsers could read in two ways.
    pub fn body(&self, method: &Method) -> Result<ResponseBody, ResponseError> {
        let ResponseHead { status, headers } = &self.head;
        let length = content_length(headers).map_err(bad)?;
        // §6.3: no body "regardless of the header fields present in the message".
        let empty =
            status.is_informational() || matches!(*status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        if empty || method == Method::HEAD {
            return Ok(ResponseBody::None);
        }
        if headers.contains_key(TRANSFER_ENCODING) {
            if length.is_some() || self.version == Version::HTTP_10 {
                return Err(bad("both Content-Length and Transfer-Encoding"));
            }
            let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
            let single =
                codings.next().is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"chunked"));
            if !single || codings.next().is_some() {
                return Err(bad("a transfer coding other than chunked"));
            }
            return Ok(ResponseBody::Chunked);
        }
        Ok(length.map_or(ResponseBody::UntilClose, ResponseBody::Length))
    }

    /// Whether the connection may carry another request behind this answer.
    pub fn keeps_alive(&self) -> bool {
        let headers = &self.head.headers;
        if list_has(headers, &CONNECTION, "close") {
            return false;
        }
        self.version == Version::HTTP_11 || list_has(headers, &CONNECTION, "keep-alive")
    }
}

impl ResponseHead {
    /// The one Content-Length; none if there is none or it is invalid.
    pub fn content_length(&self) -> Option<u64> {
        content_length(&self.headers).ok().flatten()
    }

    /// Adds Date if there is none: RFC 9110 §6.6.1, "An origin server with a clock MUST generate a Date header field".
    pub fn date(&mut self, now: SystemTime) {
        if !self.headers.contains_key(DATE)
            && let Ok(date) = HeaderValue::try_from(httpdate::fmt_http_date(now))
        {
            self.headers.insert(DATE, date);
        }
    }

    /// The head as bytes, in HTTP/1.1.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(512);
        bytes.extend_from_slice(b"HTTP/1.1 ");
        bytes.extend_from_slice(self.status.as_str().as_bytes());
        bytes.push(b' ');
        bytes.extend_from_slice(self.status.canonical_reason().unwrap_or("").as_bytes());
        bytes.extend_from_slice(b"\r\n");
        write_fields(&self.headers, &mut bytes);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(text: &str) -> Received {
        match parse(text.as_bytes()) {
            Ok(Parsed::Complete(received, _)) => received,
            other => panic!("{other:?} of {text:?}"),
        }
    }

    #[test]
    fn framing() {
        for (fields, method, body) in [
            ("200 OK\r\nContent-Length: 5\r\n", Method::GET, Some(ResponseBody::Length(5))),
            ("200 OK\r\nContent-Length: 5\r\n", Method::HEAD, Some(ResponseBody::None)),
            ("304 Not Modified\r\nContent-Length: 5\r\n", Method::GET, Some(ResponseBody::None)),
            ("204 No Content\r\n", Method::GET, Some(ResponseBody::None)),
            ("200 OK\r\nTransfer-Encoding: Chunked\r\n", Method::GET, Some(ResponseBody::Chunked)),
            ("200 OK\r\n", Method::GET, Some(ResponseBody::UntilClose)),
            ("200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n", Method::GET, None),
            ("200 OK\r\nTransfer-Encoding: gzip, chunked\r\n", Method::GET, None),
            ("200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n", Method::GET, None),
            ("200 OK\r\nContent-Length: -5\r\n", Method::GET, None),
        ] {
            assert_eq!(
                received(&format!("HTTP/1.1 {fields}\r\n")).body(&method).ok(),
                body,
                "{method} {fields}"
            );
        }
    }

    #[test]
    fn keep_alive() {
        assert!(received("HTTP/1.1 200 OK\r\n\r\n").keeps_alive());
        assert!(!received("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n").keeps_alive());
        assert!(!received("HTTP/1.0 200 OK\r\n\r\n").keeps_alive());
        assert!(received("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n").keeps_alive());
    }

    #[test]
    fn garbage_is_named() {
        for garbage in ["SSH-2.0-OpenSSH\r\n\r\n", "HTTP/1.1 20x OK\r\n\r\n", "HTTP/1.1 200 OK\nA: b\r\n\r\n"]
        {
            assert!(parse(garbage.as_bytes()).is_err(), "{garbage:?}");
        }
    }

    /// Also a fuzz target: `cargo bolero test http::response::tests::arbitrary_bytes`.
    #[test]
    fn arbitrary_bytes() {
        bolero::check!().for_each(|bytes: &[u8]| {
            if let Ok(Parsed::Complete(received, len)) = parse(bytes) {
                assert!(len <= bytes.len());
                let written = received.head.to_bytes();
                match parse(&written) {
                    Ok(Parsed::Complete(again, _)) => assert_eq!(again.head, received.head),
                    other => panic!("{other:?} of {written:?}"),
                }
            }
        });
    }
}
