//! Going on with a body in the middle: what to ask for, and whether an answer is the rest of the same body.
//!
//! In: the head of the answer that broke off. Out: the request for what is missing, and a verdict on the answer to it. The
//! downstream calls it when an upstream dies under a transfer. Invariant: bytes of two versions of a file never meet in
//! one body: only a strong validator (RFC 9110 §8.8.1) that both answers carry makes them parts of the same.

use std::time::Duration;

use http::header::{
    ACCEPT_RANGES, CONTENT_ENCODING, DATE, ETAG, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
    IF_UNMODIFIED_SINCE, LAST_MODIFIED, RANGE,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use super::conditional::EntityTag;
use super::date::parse_date;
use super::range::{ContentRange, RangeSpec};
use super::request::RequestHead;
use super::response::{Framing, ResponseHead};

/// A date is a strong validator if the answer is younger than the file by more than clocks differ (RFC 9110 §8.8.2.2 leaves
/// the figure open; 60 s is what its predecessors named).
const STRONG_DATE_AGE: Duration = Duration::from_secs(60);

/// A body that can be continued wherever it breaks off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Continuation {
    /// First byte of the body within the whole.
    first: u64,
    /// Bytes of the body.
    len: u64,
    /// Bytes of the whole.
    complete: u64,
    /// `ETag` or `Last-Modified`.
    validator: (HeaderName, HeaderValue),
    encoding: Option<HeaderValue>,
}

/// The answer is not the rest of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTheRest {
    /// The status says so: 200 when the file has changed, 5xx when there is nobody to ask.
    #[error("the rest of the body was answered with status {0}")]
    Status(StatusCode),
    /// Another part, or a file of another length.
    #[error("the rest of the body was asked for, and another range came")]
    Range,
    /// Of another version.
    #[error("the rest of the body comes from another version of the file")]
    Version,
}

impl Continuation {
    /// What is needed to continue the body behind `response`; none if it has no strong validator, or no known place in a
    /// whole of known length.
    pub fn of(method: &Method, response: &ResponseHead, framing: Framing) -> Option<Self> {
        let Framing::Fixed(len @ 1..) = framing else { return None };
        let headers = &response.headers;
        let no_ranges = headers.get(ACCEPT_RANGES).is_some_and(|value| value == "none");
        if *method != Method::GET || no_ranges {
            return None;
        }
        let (first, complete) = match response.status {
            StatusCode::OK => (0, len),
            StatusCode::PARTIAL_CONTENT => match ContentRange::of(headers)? {
                ContentRange::Satisfied { range, complete: Some(complete) } if range.len() == len => {
                    (range.first(), complete)
                }
                _ => return None,
            },
            _ => return None,
        };
        let encoding = headers.get(CONTENT_ENCODING).cloned();
        Some(Self { first, len, complete, validator: strong_validator(headers)?, encoding })
    }

    /// Bytes that are missing when `given` have come.
    pub fn missing(&self, given: u64) -> u64 {
        self.len.saturating_sub(given)
    }

    /// `request`, which led to the body, for what is missing of it: at least one byte.
    pub fn request(&self, request: &RequestHead, given: u64) -> RequestHead {
        let mut rest = request.clone();
        // They were evaluated for the first answer; what they were about is this version.
        for precondition in [IF_MATCH, IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE] {
            rest.headers.remove(precondition);
        }
        let range = RangeSpec::FromTo { first: self.first + given, last: self.first + self.len - 1 };
        rest.headers.insert(RANGE, range.to_value());
        rest.headers.insert(IF_RANGE, self.validator.1.clone());
        rest
    }

    /// Whether `response` is the rest of the body behind its first `given` bytes.
    ///
    /// # Errors
    /// [`NotTheRest`]: not one byte of it may be given to the client.
    pub fn check(&self, response: &ResponseHead, framing: Framing, given: u64) -> Result<(), NotTheRest> {
        if response.status != StatusCode::PARTIAL_CONTENT {
            return Err(NotTheRest::Status(response.status));
        }
        let missing = self.missing(given);
        match ContentRange::of(&response.headers) {
            Some(ContentRange::Satisfied { range, complete })
                if range.first() == self.first + given
                    && range.len() == missing
                    && complete == Some(self.complete)
                    && framing == Framing::Fixed(missing) => {}
            _ => return Err(NotTheRest::Range),
        }
        let is_same = strong_validator(&response.headers).as_ref() == Some(&self.validator)
            && response.headers.get(CONTENT_ENCODING) == self.encoding.as_ref();
        if is_same { Ok(()) } else { Err(NotTheRest::Version) }
    }
}

/// The strongest validator of an answer that identifies every byte.
pub fn strong_validator(headers: &HeaderMap) -> Option<(HeaderName, HeaderValue)> {
    if let Some(etag) = headers.get(ETAG) {
        let is_strong = EntityTag::parse(etag.as_bytes()).is_some_and(|tag| !tag.weak);
        // A weak tag says that the bytes may differ: then a date is no better.
        return is_strong.then(|| (ETAG, etag.clone()));
    }
    let modified = headers.get(LAST_MODIFIED)?;
    let age = parse_date(headers.get(DATE)?)?.duration_since(parse_date(modified)?).ok()?;
    (age >= STRONG_DATE_AGE).then(|| (LAST_MODIFIED, modified.clone()))
}

#[cfg(test)]
mod tests {
    use super::super::request::{Parsed, parse_request};
    use super::super::response::parse_response;
    use super::*;

    const DATES: &str =
        "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\nDate: Sun, 06 Nov 1994 09:49:37 GMT\r\n";

    fn response(status: &str, headers: &str) -> (ResponseHead, Framing) {
        let text = format!("HTTP/1.1 {status} X\r\n{headers}\r\n");
        let Parsed::Complete { head, .. } = parse_response(text.as_bytes()).unwrap() else {
            panic!("{text}")
        };
        let framing = head.framing(&Method::GET).unwrap();
        (head, framing)
    }

    fn of(status: &str, headers: &str) -> Option<Continuation> {
        let (head, framing) = response(status, headers);
        Continuation::of(&Method::GET, &head, framing)
    }

    #[test]
    fn what_can_be_continued() {
        let etag = "ETag: \"a\"\r\n";
        assert!(of("200", &format!("Content-Length: 5\r\n{etag}")).is_some());
        assert!(of("200", &format!("Content-Length: 5\r\n{DATES}")).is_some());
        assert!(of("206", &format!("Content-Length: 5\r\nContent-Range: bytes 2-6/9\r\n{etag}")).is_some());
        for (status, headers) in [
            ("200", "Content-Length: 5\r\n".to_owned()),
            ("200", "Content-Length: 5\r\nETag: W/\"a\"\r\n".to_owned()),
            ("200", format!("Content-Length: 5\r\nETag: W/\"a\"\r\n{DATES}")),
            ("200", format!("Content-Length: 0\r\n{etag}")),
            ("200", format!("Transfer-Encoding: chunked\r\n{etag}")),
            ("200", format!("Content-Length: 5\r\nAccept-Ranges: none\r\n{etag}")),
            ("200", format!("Content-Length: 5\r\n{}", DATES.replace("09:49:37", "08:50:36"))),
            ("206", format!("Content-Length: 5\r\nContent-Range: bytes 2-6/*\r\n{etag}")),
            ("206", format!("Content-Length: 4\r\nContent-Range: bytes 2-6/9\r\n{etag}")),
            ("206", format!("Content-Length: 5\r\nContent-Type: multipart/byteranges\r\n{etag}")),
            ("404", format!("Content-Length: 5\r\n{etag}")),
        ] {
            assert_eq!(of(status, &headers), None, "{status} {headers}");
        }
        let (head, framing) = response("200", &format!("Content-Length: 5\r\n{etag}"));
        assert_eq!(Continuation::of(&Method::HEAD, &head, framing), None);
    }

    #[test]
    fn the_rest_is_asked_for_and_nothing_else_is_taken() {
        let begun = of("206", "Content-Length: 5\r\nContent-Range: bytes 2-6/9\r\nETag: \"a\"\r\n").unwrap();
        let asked =
            b"GET /f HTTP/1.1\r\nHost: h\r\nRange: bytes=2-6\r\nIf-None-Match: \"b\"\r\nAccept: x\r\n\r\n";
        let Parsed::Complete { head, .. } = parse_request(asked).unwrap() else { panic!() };
        let mut text = Vec::new();
        begun.request(&head, 3).write_head(&mut text);
        let text = String::from_utf8(text).unwrap().to_ascii_lowercase();
        assert!(text.contains("range: bytes=5-6\r\n") && text.contains("if-range: \"a\"\r\n"), "{text}");
        assert!(text.contains("accept: x") && !text.contains("if-none-match"), "{text}");

        let check = |status: &str, headers: &str| {
            let (head, framing) = response(status, headers);
            begun.check(&head, framing, 3)
        };
        let rest = "Content-Length: 2\r\nContent-Range: bytes 5-6/9\r\n";
        assert_eq!(check("206", &format!("{rest}ETag: \"a\"\r\n")), Ok(()));
        for other in ["ETag: \"b\"\r\n", "ETag: W/\"a\"\r\n", "", DATES] {
            assert_eq!(check("206", &format!("{rest}{other}")), Err(NotTheRest::Version), "{other}");
        }
        let gzip = format!("{rest}ETag: \"a\"\r\nContent-Encoding: gzip\r\n");
        assert_eq!(check("206", &gzip), Err(NotTheRest::Version));
        for range in ["bytes 4-5/9", "bytes 5-6/10", "bytes 5-6/*", "bytes 5-7/9"] {
            let headers = format!("Content-Length: 2\r\nContent-Range: {range}\r\nETag: \"a\"\r\n");
            assert_eq!(check("206", &headers), Err(NotTheRest::Range), "{range}");
        }
        let whole = check("200", "Content-Length: 9\r\nETag: \"b\"\r\n");
        assert_eq!(whole, Err(NotTheRest::Status(StatusCode::OK)));
    }
}
