//! Heads of answers from the cache.
//!
//! In: a stored response and a request. Out: the status, the head and the span of bytes that answer it. No I/O. Invariant:
//! an answer from the cache says so (`Age`, `Cache-Status`), and its length is that of its span.

use std::{ops::Range, time::SystemTime};

use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{
        ACCEPT_RANGES, AGE, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, DATE, ETAG,
        IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, LAST_MODIFIED, RANGE,
    },
};

use crate::{
    cache::{freshness, object::Object, record::Meta},
    http::{
        account::CacheUse,
        conditional::{Decision, EntityTag, Validators, evaluate},
        cors,
        date::parse_date,
        forward,
        multipart::{self, Multipart, Ranges},
        problem::{Problem, Side},
        range::{ByteRange, ContentRange, RangeSpec, requested_range, requested_ranges},
        request::RequestHead,
        response::{Framing, ResponseHead},
    },
};

/// RFC 9211.
pub(super) const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// The conditions of a request.
const CONDITIONS: [HeaderName; 5] =
    [IF_MATCH, IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE, IF_RANGE];

/// RFC 9111 section 3.2: a 304 updates all stored headers but those about the body that is kept.
const ABOUT_THE_BODY: [HeaderName; 4] = [CONTENT_LENGTH, CONTENT_ENCODING, CONTENT_TYPE, CONTENT_RANGE];

/// Why a request went to the root, or that it did not (RFC 9211 section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// `hit`.
    Hit,
    /// `fwd=` and this; `fwd-status=` if there was an answer.
    Forwarded(&'static str, Option<StatusCode>),
    /// Another request's fetch brings it: `collapsed`.
    Collapsed,
    /// Some bytes are missing: `fwd=partial`.
    Partial,
}

impl Way {
    /// As the access log says it.
    pub(super) fn cache_use(self) -> CacheUse {
        match self {
            Self::Hit => CacheUse::Hit,
            Self::Forwarded("bypass" | "method", _) => CacheUse::Bypass,
            Self::Forwarded(..) => CacheUse::Miss,
            Self::Collapsed => CacheUse::Collapsed,
            Self::Partial => CacheUse::Partial,
        }
    }
}

/// How `Cache-Status` begins where nothing was fetched.
pub(super) const HIT: &str = "plait; hit";

/// The value of `Cache-Status`.
pub(super) fn cache_status(way: Way, stored: Option<(&Meta, SystemTime)>) -> HeaderValue {
    let mut text = match way {
        Way::Hit => HIT.to_owned(),
        Way::Forwarded(why, Some(status)) => format!("plait; fwd={why}; fwd-status={}", status.as_u16()),
        Way::Forwarded(why, None) => format!("plait; fwd={why}"),
        Way::Collapsed => "plait; fwd=miss; collapsed".to_owned(),
        Way::Partial => "plait; fwd=partial".to_owned(),
    };
    if let Some((meta, now)) = stored {
        if matches!(way, Way::Forwarded(_, Some(status)) if status.is_success()) {
            text.push_str("; stored");
        }
        text.push_str(&format!("; ttl={}", meta.freshness.ttl_s(now)));
    }
    // Digits and tokens are always a header value.
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("plait"))
}

/// How a stored response answers a request.
pub(super) enum Answer {
    /// This head, and these bytes of the object unless the request is HEAD.
    Send(ResponseHead, Range<u64>),
    /// This head, and these parts of the object between the multipart's lines.
    SendParts(ResponseHead, Multipart, Vec<ByteRange>),
    /// 304.
    NotModified(ResponseHead),
    /// 412 or 416.
    Refuse(Problem),
}

/// Plans the answer. `ranges` says that parts of the object can be had by themselves.
pub(super) fn plan(request: &RequestHead, meta: &Meta, len: u64, ranges: bool, now: SystemTime) -> Answer {
    let etag = meta.headers.get(ETAG).and_then(|value| EntityTag::parse(value.as_bytes()));
    let last_modified = meta.headers.get(LAST_MODIFIED).and_then(parse_date);
    let honour_range =
        match evaluate(&request.method, &request.headers, Validators { etag, last_modified }, now) {
            Decision::NotModified => return Answer::NotModified(not_modified(request, meta, now)),
            Decision::PreconditionFailed => {
                let text = "the stored answer is not the one that If-Match or If-Unmodified-Since asks for";
                return Answer::Refuse(Problem::new(StatusCode::PRECONDITION_FAILED, Side::Client, text));
            }
            Decision::Proceed { honour_range } => honour_range && ranges,
        };
    let specs = if honour_range { requested_ranges(&request.headers) } else { None };
    let (status, span, content_range) =
        match specs.map_or(Ranges::Full, |specs| multipart::resolve(&specs, len)) {
            Ranges::Full => (StatusCode::OK, 0..len, None),
            Ranges::Parts(parts) => match parts.as_slice() {
                [range] => {
                    let header = ContentRange::Satisfied { range: *range, complete: Some(len) };
                    (StatusCode::PARTIAL_CONTENT, multipart::span(*range), Some(header))
                }
                _ => return several_parts(request, meta, len, parts, now),
            },
            Ranges::Unsatisfiable => {
                let text = format_args!("the range starts behind the end of the file, which has {len} bytes");
                let problem = Problem::new(StatusCode::RANGE_NOT_SATISFIABLE, Side::Client, text);
                return Answer::Refuse(problem.with_complete_length(len));
            }
        };
    let length = span.end - span.start;
    let mut head = ResponseHead::new(status);
    head.headers = meta.headers.clone();
    head.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    if let Some(range) = content_range {
        head.headers.insert(CONTENT_RANGE, range.to_value());
    }
    if ranges {
        head.headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    }
    Answer::Send(towards_client(&head, Framing::Fixed(length), request, meta, now), span)
}

fn several_parts(
    request: &RequestHead,
    meta: &Meta,
    len: u64,
    parts: Vec<ByteRange>,
    now: SystemTime,
) -> Answer {
    let lines = Multipart::new(meta.headers.get(CONTENT_TYPE).cloned(), len, fastrand::u128(..));
    let length = lines.len(&parts);
    let mut head = ResponseHead::new(StatusCode::PARTIAL_CONTENT);
    head.headers = meta.headers.clone();
    head.headers.insert(CONTENT_TYPE, lines.content_type());
    head.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    let head = towards_client(&head, Framing::Fixed(length), request, meta, now);
    Answer::SendParts(head, lines, parts)
}

fn not_modified(request: &RequestHead, meta: &Meta, now: SystemTime) -> ResponseHead {
    let mut head = ResponseHead::new(StatusCode::NOT_MODIFIED);
    head.headers = meta.headers.clone();
    // RFC 9110 section 15.4.5: no metadata but what the client needs to update what it has.
    for name in ABOUT_THE_BODY {
        head.headers.remove(name);
    }
    towards_client(&head, Framing::None, request, meta, now)
}

fn towards_client(
    head: &ResponseHead,
    framing: Framing,
    request: &RequestHead,
    meta: &Meta,
    now: SystemTime,
) -> ResponseHead {
    let mut head = forward::response_to_client(head, framing, request, true).head;
    // RFC 9111 section 5.1: "the age of the stored response", in place of the Age that it came with.
    head.headers.insert(AGE, HeaderValue::from(meta.freshness.age(now).as_secs()));
    cors::allow_reading(&mut head.headers);
    head
}

/// Whether the request carries conditions of the client's own.
pub(super) fn is_conditional(request: &RequestHead) -> bool {
    CONDITIONS.iter().any(|name| *name != IF_RANGE && request.headers.contains_key(name))
}

/// Whether the request asks for several ranges, or for something that only looks like one.
pub(super) fn has_odd_range(request: &RequestHead) -> bool {
    request.headers.contains_key(RANGE) && requested_range(&request.headers).is_none()
}

/// Makes a request unconditional.
pub(super) fn remove_conditions(headers: &mut HeaderMap) {
    for name in CONDITIONS {
        headers.remove(name);
    }
}

/// Makes a request validate what is stored (RFC 9111 section 4.3.1).
pub(super) fn validate(headers: &mut HeaderMap, meta: &Meta) {
    remove_conditions(headers);
    for (validator, condition) in [(ETAG, IF_NONE_MATCH), (LAST_MODIFIED, IF_MODIFIED_SINCE)] {
        if let Some(value) = meta.headers.get(validator) {
            headers.insert(condition, value.clone());
        }
    }
}

/// Makes a request ask for a span of the object that has this strong validator.
pub(super) fn ask_for_span(headers: &mut HeaderMap, span: &Range<u64>, validator: HeaderValue) {
    remove_conditions(headers);
    headers.insert(RANGE, RangeSpec::FromTo { first: span.start, last: span.end - 1 }.to_value());
    // RFC 9110 section 13.1.5: without a match the root sends the whole of what there is now.
    headers.insert(IF_RANGE, validator);
}

/// The validator by which parts of several answers may be joined (RFC 9111 section 3.4: "share the same strong
/// validator"), as `If-Range` takes it.
pub(super) fn strong_validator(headers: &HeaderMap) -> Option<HeaderValue> {
    if let Some(etag) = headers.get(ETAG) {
        return EntityTag::parse(etag.as_bytes()).filter(|tag| !tag.weak).map(|_| etag.clone());
    }
    // RFC 9110 section 8.8.2.2: strong if "the cache entry includes a Date value that is at least one second after the
    // Last-Modified value"; a minute allows for clocks that differ.
    let modified = headers.get(LAST_MODIFIED)?;
    let date = headers.get(DATE).and_then(parse_date)?;
    let since = date.duration_since(parse_date(modified)?).ok()?;
    (since.as_secs() >= 60).then(|| modified.clone())
}

/// Whether parts of several answers may be joined to this object: they can be had, and it can be told that they fit.
pub(super) fn joins(object: &Object) -> bool {
    !object.comes_whole() && strong_validator(&object.meta().headers).is_some()
}

/// Whether the root has ignored a range that is not all there is (RFC 9110 section 14.2: "A server MAY ignore the Range
/// header field").
pub(super) fn ignores_ranges(request: &RequestHead, status: StatusCode) -> bool {
    let asked = requested_range(&request.headers).filter(|_| !request.headers.contains_key(IF_RANGE));
    let is_part = asked.is_some_and(|spec| {
        !matches!(spec, RangeSpec::FromTo { first: 0, .. } | RangeSpec::From { first: 0 })
    });
    status == StatusCode::OK && is_part
}

/// What a 304 to `request` makes of what is stored, and whether that may stay stored; `None` if it is about something else.
pub(super) fn confirmed(
    request: &RequestHead,
    stored: &Meta,
    confirmed: &HeaderMap,
    times: Range<SystemTime>,
) -> Option<(Meta, bool)> {
    let mut head = ResponseHead::new(StatusCode::OK);
    head.headers = freshened(stored, confirmed)?;
    let may_stay = freshness::may_store(request, &head);
    // `Vary` may name more than before: it is for this request that the root has confirmed it.
    let selecting = freshness::selecting_headers(&request.headers, &head.headers);
    let meta = Meta::new(stored.url.clone(), head.headers, selecting, times, stored.usual);
    let may_stay = may_stay && meta.is_storable();
    Some((meta, may_stay))
}

/// Whether the 200 to a HEAD is about what is stored (RFC 9111 section 4.3.5); none if it does not say.
pub(super) fn is_told_by_head(stored: &Meta, len: u64, told: &HeaderMap) -> Option<bool> {
    let told_len = told.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if told_len.is_some_and(|told| told != len) {
        return Some(false);
    }
    let same = |name| told.get(&name).map(|value| stored.headers.get(name) == Some(value));
    match (same(ETAG), same(LAST_MODIFIED)) {
        (Some(false), _) | (_, Some(false)) => Some(false),
        // A date alone says less than the tag that is stored.
        (None, Some(true)) if stored.headers.contains_key(ETAG) => None,
        (None, None) => None,
        _ => Some(true),
    }
}

/// What a 304 makes of the stored headers (RFC 9111 section 3.2); `None` if it is about something else.
fn freshened(stored: &Meta, confirmed: &HeaderMap) -> Option<HeaderMap> {
    let tag = |headers: &HeaderMap| headers.get(ETAG).cloned();
    if let (Some(old), Some(new)) = (tag(&stored.headers), tag(confirmed)) {
        let (old, new) = (EntityTag::parse(old.as_bytes())?, EntityTag::parse(new.as_bytes())?);
        if !old.weak_eq(new) {
            return None;
        }
    }
    let mut confirmed = end_to_end(confirmed);
    for name in ABOUT_THE_BODY {
        confirmed.remove(name);
    }
    // Section 4.3.4 takes a strong tag for that of the bytes which came with it: to a body that has a weak one, or none, as
    // of servers that compress on the fly, a 304 may bring that of the file before.
    confirmed.remove(ETAG);
    let mut headers = stored.headers.clone();
    for name in confirmed.keys() {
        headers.remove(name);
    }
    // The Age of the answer before says nothing of this one.
    headers.remove(AGE);
    headers.extend(confirmed);
    Some(headers)
}

/// The headers that are stored of a response.
pub(super) fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    forward::strip_hop_by_hop(&mut headers);
    for name in [CONTENT_LENGTH, CONTENT_RANGE] {
        headers.remove(name);
    }
    headers
}

/// The object that an answer of the root's can become: its length, and the span that the body brings.
pub(super) fn object_span(
    request: &RequestHead,
    response: &ResponseHead,
    framing: Framing,
) -> Option<(u64, Range<u64>)> {
    let Framing::Fixed(body) = framing else { return None };
    if body == 0 || !freshness::may_store(request, response) {
        return None;
    }
    match response.status {
        StatusCode::OK => Some((body, 0..body)),
        StatusCode::PARTIAL_CONTENT => {
            strong_validator(&response.headers)?;
            match ContentRange::of(&response.headers)? {
                ContentRange::Satisfied { range, complete: Some(len) } if range.len() == body => {
                    Some((len, range.first()..range.last() + 1))
                }
                _ => None,
            }
        }
        _ => None,
    }
}

/// Whether an answer whose length is not known can become an object once it has ended: its chunks say whether all of it has
/// come.
pub(super) fn may_be_duplicated(request: &RequestHead, response: &ResponseHead, framing: Framing) -> bool {
    framing == Framing::Chunked
        && response.status == StatusCode::OK
        && freshness::may_store(request, response)
}

/// Whether a response is of the version that is stored.
fn is_same(response: &ResponseHead, meta: &Meta) -> bool {
    match (meta.headers.get(ETAG), response.headers.get(ETAG)) {
        (Some(old), new) => new == Some(old),
        (None, _) => response.headers.get(LAST_MODIFIED) == meta.headers.get(LAST_MODIFIED),
    }
}

/// Whether the answer to [`ask_for_span`] is all of that object, from a root that ignores ranges, and may be stored in its place.
pub(super) fn is_all(
    request: &RequestHead,
    response: &ResponseHead,
    framing: Framing,
    meta: &Meta,
    len: u64,
) -> bool {
    response.status == StatusCode::OK
        && is_same(response, meta)
        && object_span(request, response, framing) == Some((len, 0..len))
}

/// What is stored of a newer answer of the same version.
pub(super) fn renewed(
    asked: &HeaderMap,
    stored: &Meta,
    headers: &HeaderMap,
    times: Range<SystemTime>,
) -> Meta {
    let headers = end_to_end(headers);
    let selecting = freshness::selecting_headers(asked, &headers);
    Meta::new(stored.url.clone(), headers, selecting, times, stored.usual)
}

/// Whether the answer to [`ask_for_span`] is that span of that object.
pub(super) fn is_span(
    response: &ResponseHead,
    framing: Framing,
    meta: &Meta,
    len: u64,
    span: &Range<u64>,
) -> bool {
    let range = ContentRange::of(&response.headers);
    let Some(ContentRange::Satisfied { range, complete: Some(complete) }) = range else { return false };
    response.status == StatusCode::PARTIAL_CONTENT
        && is_same(response, meta)
        && complete == len
        && (range.first()..range.last() + 1) == *span
        && framing == Framing::Fixed(range.len())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn a_304_brings_no_tag() {
        for (stored, confirmed, kept) in [
            (Some("\"a\""), "\"a\"", true),
            (Some("W/\"a\""), "\"a\"", true),
            (Some("\"a\""), "W/\"a\"", true),
            (None, "\"a\"", true),
            (Some("W/\"a\""), "\"b\"", false),
        ] {
            let headers = |tag: Option<&'static str>| -> HeaderMap {
                tag.map(|tag| (ETAG, HeaderValue::from_static(tag))).into_iter().collect()
            };
            let times = UNIX_EPOCH..UNIX_EPOCH;
            let meta = Meta::new("a/f".into(), headers(stored), HeaderMap::new(), times, Duration::ZERO);
            let freshened = freshened(&meta, &headers(Some(confirmed)));
            assert_eq!(freshened, kept.then(|| headers(stored)), "{stored:?} {confirmed}");
        }
    }
}
