//! What a proxy changes in a head before it passes it on. RFC 9110 §7.6.

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version,
    header::{
        CONNECTION, CONTENT_LENGTH, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING,
        UPGRADE, VIA,
    },
};

use super::{
    problem::{Problem, Side},
    request::RequestHead,
    response::ResponseHead,
};

/// A request that has been here this often runs in a circle.
const VIA_OWN_MAX: usize = 8;
const OWN_VIA: HeaderValue = HeaderValue::from_static("1.1 plait");

/// Removes what concerns one connection only: "Intermediaries MUST parse a received Connection header field before a
/// message is forwarded and, for each connection-option in this field, remove any header or trailer field(s) from the
/// message with the same name", RFC 9110 §7.6.1.
fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // A client must not be able to remove what frames the message or names its host.
        .filter(|name| *name != CONTENT_LENGTH && *name != http::header::HOST)
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [CONNECTION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION]
    {
        headers.remove(name);
    }
    headers.remove("keep-alive");
    headers.remove("proxy-connection");
}

/// The request as it goes over the lanes towards the root: end-to-end fields only, no body, `Via` added.
///
/// # Errors
/// 508 when the request runs in a circle.
pub fn request_towards_root(request: &RequestHead) -> Result<RequestHead, Problem> {
    let own = |value: &&HeaderValue| value.as_bytes().windows(5).any(|word| word == b"plait");
    if request.headers.get_all(VIA).iter().filter(own).count() >= VIA_OWN_MAX {
        return Err(Problem::new(
            StatusCode::LOOP_DETECTED,
            Side::Downstream,
            "the request runs in a circle: --root leads back to this downstream",
        ));
    }
    let mut forwarded = request.clone();
    strip_hop_by_hop(&mut forwarded.headers);
    forwarded.headers.remove(CONTENT_LENGTH);
    forwarded.headers.remove(http::header::EXPECT);
    forwarded.headers.append(VIA, OWN_VIA);
    forwarded.version = Version::HTTP_11;
    Ok(forwarded)
}

/// The root's response as it goes over the lanes: end-to-end fields only. Content-Length stays if it is the body's.
pub fn response_over_lanes(response: &ResponseHead) -> ResponseHead {
    let mut forwarded = response.clone();
    strip_hop_by_hop(&mut forwarded.headers);
    forwarded
}

/// How the body goes to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientBody {
    /// There is none.
    None,
    /// As it is, this many bytes.
    Length(u64),
    /// By chunked transfer coding.
    Chunked,
    /// As it is, until the connection closes: all that HTTP/1.0 has for an unknown length.
    UntilClose,
}

/// The response as it goes to the client that sent `request`, how its body goes there, and whether the connection may
/// stay.
pub fn response_to_client(
    request: &RequestHead,
    response: &ResponseHead,
) -> (ResponseHead, ClientBody, bool) {
    let mut forwarded = response.clone();
    strip_hop_by_hop(&mut forwarded.headers);
    forwarded.headers.append(VIA, OWN_VIA);
    let empty = request.method == Method::HEAD
        || response.status.is_informational()
        || matches!(response.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let body = match response.content_length() {
        _ if empty => ClientBody::None,
        Some(length) => ClientBody::Length(length),
        None if request.version == Version::HTTP_11 => {
            forwarded.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            ClientBody::Chunked
        }
        None => ClientBody::UntilClose,
    };
    let keep = request.keeps_alive() && body != ClientBody::UntilClose;
    set_connection(&mut forwarded.headers, request.version, keep);
    (forwarded, body, keep)
}

/// Says whether the connection stays, where the client's version does not imply it.
pub fn set_connection(headers: &mut HeaderMap, version: Version, keep: bool) {
    match (version, keep) {
        (_, false) => headers.insert(CONNECTION, HeaderValue::from_static("close")),
        (Version::HTTP_10, true) => headers.insert(CONNECTION, HeaderValue::from_static("keep-alive")),
        (_, true) => headers.remove(CONNECTION),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::request::{self, Parsed};

    fn request(text: &str) -> RequestHead {
        match request::parse(text.as_bytes()) {
            Ok(Parsed::Complete(head, _)) => head,
            other => panic!("{other:?}"),
        }
    }

    fn response(status: u16, fields: &[(&'static str, &'static str)]) -> ResponseHead {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        ResponseHead { status: StatusCode::from_u16(status).unwrap(), headers }
    }

    #[test]
    fn hop_by_hop_fields_stay_here_and_others_go_on() {
        let request = request(
            "GET /x HTTP/1.1\r\nHost: a\r\nConnection: close, X-Secret, Host\r\nX-Secret: 1\r\nKeep-Alive: 5\r\n\
             TE: trailers\r\nUpgrade: h2c\r\nRange: bytes=1-\r\nIf-Range: \"e\"\r\nVia: 1.0 other\r\n\r\n",
        );
        let sent = request_towards_root(&request).unwrap();
        let mut names: Vec<_> = sent.headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["host", "if-range", "range", "via"]);
        assert_eq!(sent.headers.get_all("via").iter().collect::<Vec<_>>(), ["1.0 other", "1.1 plait"]);
    }

    #[test]
    fn a_circle_is_found() {
        let mut sent = request("GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
        for _ in 0..VIA_OWN_MAX {
            sent = request_towards_root(&sent).unwrap();
        }
        assert_eq!(request_towards_root(&sent).unwrap_err().status, StatusCode::LOOP_DETECTED);
    }

    #[test]
    fn the_body_is_framed_for_the_client() {
        let get = request("GET /x HTTP/1.1\r\nHost: a\r\n\r\n");
        let old = request("GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        let head = request("HEAD /x HTTP/1.1\r\nHost: a\r\n\r\n");
        let known = response(200, &[("content-length", "7")]);
        let unknown = response(200, &[("transfer-encoding", "chunked")]);
        let framed = |request, response| {
            let (_, body, keep) = response_to_client(request, response);
            (body, keep)
        };
        assert_eq!(framed(&get, &known), (ClientBody::Length(7), true));
        assert_eq!(framed(&get, &unknown), (ClientBody::Chunked, true));
        assert_eq!(framed(&old, &known), (ClientBody::Length(7), true));
        assert_eq!(framed(&old, &unknown), (ClientBody::UntilClose, false));
        assert_eq!(framed(&head, &known), (ClientBody::None, true));
        assert_eq!(framed(&get, &response(304, &[])), (ClientBody::None, true));
        let (sent, _, _) = response_to_client(&head, &known);
        assert_eq!(sent.headers["content-length"], "7");
    }
}
