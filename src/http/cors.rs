//! Players in browsers that come from other origins: what they may read (the CORS protocol of the Fetch standard).
//!
//! In: heads of requests and of answers to clients. Out: the headers that let scripts of any page read the answer, and
//! answers to preflights. Called by the downstream. Invariant: what the root says itself about origins stays as it is.

use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{
        ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
        ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
        ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
    },
};

use super::{request::RequestHead, response::ResponseHead};

/// What players look at besides the few headers that scripts may always read.
const EXPOSED: &str = "Accept-Ranges, Age, Cache-Status, Content-Encoding, Content-Length, Content-Range, Date, ETag, Retry-After";
/// Browsers ask again after a day, or after two hours if that is their limit.
const PREFLIGHT_LIFETIME_S: u64 = 86_400;

/// Whether the request only asks what another one may do.
pub fn is_preflight(request: &RequestHead) -> bool {
    request.method == Method::OPTIONS
        && request.headers.contains_key(ORIGIN)
        && request.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// The answer to a preflight: reading is allowed, with any headers.
pub fn preflight_response(request: &RequestHead) -> ResponseHead {
    let mut head = ResponseHead::new(StatusCode::NO_CONTENT);
    allow_reading(&mut head.headers);
    let headers = &mut head.headers;
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, HEAD, OPTIONS"));
    // The wildcard would not cover Authorization: the request's own list does.
    if let Some(wanted) = request.headers.get(ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
        headers.insert(VARY, HeaderValue::from_static("Access-Control-Request-Headers"));
    }
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from(PREFLIGHT_LIFETIME_S));
    head
}

/// Lets scripts of any page read an answer, unless the root has its own rule. The answer is the same for every origin, so
/// that it needs no `Vary`; credentials are not included.
pub fn allow_reading(headers: &mut HeaderMap) {
    if headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN) {
        return;
    }
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
    // Resource Timing: players measure with it.
    headers.insert("timing-allow-origin", HeaderValue::from_static("*"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::request::{Parsed, parse_request};

    fn request(text: &str) -> RequestHead {
        match parse_request(text.as_bytes()) {
            Ok(Parsed::Complete { head, .. }) => head,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_preflight_of_shaka_is_answered() {
        let asked = request(
            "OPTIONS /a.mpd HTTP/1.1\r\nHost: a\r\nOrigin: https://player.example\r\n\
             Access-Control-Request-Method: GET\r\nAccess-Control-Request-Headers: range,authorization\r\n\r\n",
        );
        assert!(is_preflight(&asked));
        let head = preflight_response(&asked);
        assert_eq!(head.status, StatusCode::NO_CONTENT);
        assert_eq!(head.headers[ACCESS_CONTROL_ALLOW_ORIGIN], "*");
        assert_eq!(head.headers[ACCESS_CONTROL_ALLOW_HEADERS], "range,authorization");
        for other in ["OPTIONS", "GET"] {
            assert!(!is_preflight(&request(&format!("{other} / HTTP/1.1\r\nHost: a\r\nOrigin: x\r\n\r\n"))));
        }
    }

    #[test]
    fn the_roots_own_rule_stays() {
        let mut headers = HeaderMap::new();
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("https://a"));
        let before = headers.clone();
        allow_reading(&mut headers);
        assert_eq!(headers, before);
    }
}
