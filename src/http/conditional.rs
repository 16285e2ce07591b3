//! Conditional requests (RFC 9110 §13): headers of a request and validators of a file come in, a decision goes out.
//!
//! `file_response` calls it for files, the cache for what it stores. Invariant: the preconditions are evaluated in the
//! order of §13.2.2, and only GET and HEAD are ever answered 304.

use std::time::{Duration, SystemTime};

use http::header::{IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::date::{parse_date, to_seconds};

/// An entity tag (RFC 9110 §8.8.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntityTag<'a> {
    /// Marked with `W/`.
    pub weak: bool,
    /// What stands between the quotes.
    pub opaque: &'a [u8],
}

impl<'a> EntityTag<'a> {
    /// Reads one tag that fills the whole value.
    pub fn parse(value: &'a [u8]) -> Option<Self> {
        let (tag, rest) = Self::split(value.trim_ascii())?;
        rest.is_empty().then_some(tag)
    }

    /// Reads a tag from the start and returns what follows; commas may stand inside the quotes.
    fn split(value: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (weak, quoted) = match value.strip_prefix(b"W/") {
            Some(quoted) => (true, quoted),
            None => (false, value),
        };
        let inner = quoted.strip_prefix(b"\"")?;
        let end = inner.iter().position(|&byte| byte == b'"')?;
        let opaque = &inner[..end];
        let allowed = |byte: &u8| matches!(byte, 0x21..=0x7e | 0x80..=0xff);
        opaque.iter().all(allowed).then_some((Self { weak, opaque }, &inner[end + 1..]))
    }

    /// Strong comparison (§8.8.3.2): byte for byte the same, for ranges and `If-Match`.
    pub fn strong_eq(self, other: EntityTag<'_>) -> bool {
        !self.weak && !other.weak && self.opaque == other.opaque
    }

    /// Weak comparison (§8.8.3.2): good enough to show, for `If-None-Match`.
    pub fn weak_eq(self, other: EntityTag<'_>) -> bool {
        self.opaque == other.opaque
    }
}

/// What is known about the current representation, which exists.
#[derive(Clone, Copy, Debug, Default)]
pub struct Validators<'a> {
    /// Value of its `ETag`.
    pub etag: Option<EntityTag<'a>>,
    /// Value of its `Last-Modified`; parts of a second are ignored.
    pub last_modified: Option<SystemTime>,
}

/// What the preconditions ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Answer as if there were no preconditions.
    Proceed {
        /// False when there is no `Range` to look at: none was sent, the method is not GET, or `If-Range` failed.
        honour_range: bool,
    },
    /// 304.
    NotModified,
    /// 412.
    PreconditionFailed,
}

/// Evaluates all preconditions of a request against a representation that exists, in the order of RFC 9110 §13.2.2.
/// `now` decides whether a date is old enough to be a strong validator.
pub fn evaluate(method: &Method, headers: &HeaderMap, current: Validators<'_>, now: SystemTime) -> Decision {
    let safe = *method == Method::GET || *method == Method::HEAD;
    let last_modified = current.last_modified.and_then(to_seconds);
    // Steps 1 and 2.
    if headers.contains_key(IF_MATCH) {
        if !any_tag(headers, IF_MATCH, current.etag, |a, b| a.strong_eq(b)) {
            return Decision::PreconditionFailed;
        }
    } else if let (Some(date), Some(modified)) = (only_date(headers, IF_UNMODIFIED_SINCE), last_modified)
        && modified > date
    {
        return Decision::PreconditionFailed;
    }
    // Steps 3 and 4.
    if headers.contains_key(IF_NONE_MATCH) {
        if any_tag(headers, IF_NONE_MATCH, current.etag, |a, b| a.weak_eq(b)) {
            return if safe { Decision::NotModified } else { Decision::PreconditionFailed };
        }
    } else if safe
        && let (Some(date), Some(modified)) = (only_date(headers, IF_MODIFIED_SINCE), last_modified)
        && modified <= date
    {
        return Decision::NotModified;
    }
    // Step 5.
    let honour_range = *method == Method::GET
        && headers.contains_key(RANGE)
        && if_range(headers, current.etag, last_modified, now);
    Decision::Proceed { honour_range }
}

/// Whether the client's part, if any, is of the current representation (RFC 9110 §13.1.5). True without `If-Range`.
fn if_range(
    headers: &HeaderMap,
    etag: Option<EntityTag<'_>>,
    last_modified: Option<SystemTime>,
    now: SystemTime,
) -> bool {
    let mut values = headers.get_all(IF_RANGE).iter();
    let Some(value) = values.next() else { return true };
    if values.next().is_some() {
        return false;
    }
    if let Some(tag) = EntityTag::parse(value.as_bytes()) {
        return etag.is_some_and(|etag| tag.strong_eq(etag));
    }
    match (parse_date(value), last_modified) {
        (Some(date), Some(modified)) => date == modified && is_strong_date(modified, now),
        _ => false,
    }
}

/// A representation that changed within this very second may change again under the same date (RFC 9110 §8.8.2.2).
fn is_strong_date(modified: SystemTime, now: SystemTime) -> bool {
    now.duration_since(modified).is_ok_and(|age| age >= Duration::from_secs(1))
}

/// Whether `*` or a tag of the list matches. What follows a malformed element is not looked at.
fn any_tag(
    headers: &HeaderMap,
    name: HeaderName,
    current: Option<EntityTag<'_>>,
    same: impl Fn(EntityTag<'_>, EntityTag<'_>) -> bool,
) -> bool {
    headers.get_all(name).iter().any(|value| {
        let mut rest = value.as_bytes().trim_ascii();
        if rest == b"*" {
            return true;
        }
        let Some(current) = current else { return false };
        loop {
            rest = rest.trim_ascii_start();
            if let Some(behind) = rest.strip_prefix(b",") {
                rest = behind;
                continue;
            }
            let Some((tag, behind)) = EntityTag::split(rest) else { return false };
            if same(tag, current) {
                return true;
            }
            rest = behind.trim_ascii_start();
            if !rest.is_empty() && !rest.starts_with(b",") {
                return false;
            }
        }
    })
}

/// The date of a header that was sent once and is a date; RFC 9110 §13.1.3 and §13.1.4 ignore anything else.
fn only_date(headers: &HeaderMap, name: HeaderName) -> Option<SystemTime> {
    let mut values = headers.get_all(name).iter();
    let value: &HeaderValue = values.next()?;
    if values.next().is_some() { None } else { parse_date(value) }
}

#[cfg(test)]
#[path = "conditional_tests.rs"]
mod tests;
