//! Byte ranges (RFC 9110 §14): the `Range` header of a request comes in, first and last byte of a given length go out.
//!
//! `file_response` and the cache call it; `Content-Range` is built for them and parsed for the upstream and `plait get`.
//! Invariant: a [`ByteRange`] lies within the length it was resolved against, with `first <= last`.

use http::header::RANGE;
use http::{HeaderMap, HeaderValue};

use super::head::decimal;

/// One range as asked for, before the length of the representation is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeSpec {
    /// `bytes=first-last`, `first <= last`.
    FromTo {
        /// First byte.
        first: u64,
        /// Last byte, included; may lie behind the end.
        last: u64,
    },
    /// `bytes=first-`.
    From {
        /// First byte.
        first: u64,
    },
    /// `bytes=-len`, the last `len` bytes.
    Suffix {
        /// Bytes from the end; 0 is valid syntax and never satisfiable.
        len: u64,
    },
}

/// Bytes `first` to `last`, both included, of something longer than `last`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    first: u64,
    last: u64,
}

/// What to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeOutcome {
    /// 200 and everything.
    Full,
    /// 206 and a part (which may be the whole: the client sees that ranges work).
    Partial(ByteRange),
    /// 416.
    Unsatisfiable,
}

/// Ranges that one request may ask for: more are a mistake or an attack (RFC 9110 §17.15).
pub const RANGES_MAX: usize = 32;

/// Reads a `Range` of one range. `None` means that the header is to be ignored and the answer is a 200: it is absent,
/// repeated, malformed, of another unit, or asks for several ranges (RFC 9110 §14.2 lets a server ignore any `Range`).
pub fn requested_range(headers: &HeaderMap) -> Option<RangeSpec> {
    match requested_ranges(headers)?.as_slice() {
        [spec] => Some(*spec),
        _ => None,
    }
}

/// Reads a `Range` of one or more ranges, at most [`RANGES_MAX`]; `None` as for [`requested_range`].
pub fn requested_ranges(headers: &HeaderMap) -> Option<Vec<RangeSpec>> {
    let mut values = headers.get_all(RANGE).iter();
    let value = values.next()?.as_bytes();
    if values.next().is_some() {
        return None;
    }
    let (unit, set) = value.split_at_checked("bytes=".len())?;
    if !unit.eq_ignore_ascii_case(b"bytes=") {
        return None;
    }
    let specs = set.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|spec| !spec.is_empty());
    let specs = specs.take(RANGES_MAX + 1).map(one_range).collect::<Option<Vec<_>>>()?;
    (1..=RANGES_MAX).contains(&specs.len()).then_some(specs)
}

fn one_range(spec: &[u8]) -> Option<RangeSpec> {
    let dash = spec.iter().position(|&byte| byte == b'-')?;
    match (&spec[..dash], &spec[dash + 1..]) {
        (b"", len) => Some(RangeSpec::Suffix { len: position(len)? }),
        (first, b"") => Some(RangeSpec::From { first: position(first)? }),
        (first, last) => {
            let (first, last) = (position(first)?, position(last)?);
            (first <= last).then_some(RangeSpec::FromTo { first, last })
        }
    }
}

impl RangeSpec {
    /// Applies the range to a representation of `len` bytes (RFC 9110 §14.1.2).
    ///
    /// A suffix of an empty representation is satisfiable by the RFC's rule but has no `Content-Range`: it is `Full`.
    pub fn resolve(self, len: u64) -> RangeOutcome {
        let (first, last) = match self {
            Self::Suffix { len: 0 } => return RangeOutcome::Unsatisfiable,
            Self::Suffix { .. } if len == 0 => return RangeOutcome::Full,
            Self::Suffix { len: suffix } => (len.saturating_sub(suffix), len - 1),
            Self::From { first } | Self::FromTo { first, .. } if first >= len => {
                return RangeOutcome::Unsatisfiable;
            }
            Self::From { first } => (first, len - 1),
            // Not a range, and malformed ones are ignored; the parser lets none through.
            Self::FromTo { first, last } if first > last => return RangeOutcome::Full,
            Self::FromTo { first, last } => (first, last.min(len - 1)),
        };
        RangeOutcome::Partial(ByteRange { first, last })
    }

    /// The value of a `Range` header that asks for it.
    pub fn to_value(self) -> HeaderValue {
        header_value(match self {
            Self::FromTo { first, last } => format!("bytes={first}-{last}"),
            Self::From { first } => format!("bytes={first}-"),
            Self::Suffix { len } => format!("bytes=-{len}"),
        })
    }
}

impl ByteRange {
    /// First byte, which is the offset of the part.
    pub fn first(self) -> u64 {
        self.first
    }

    /// From the same first byte to `last`, or to the first if that lies before it.
    pub fn to(self, last: u64) -> Self {
        Self { first: self.first, last: last.max(self.first) }
    }

    /// Last byte, included.
    pub fn last(self) -> u64 {
        self.last
    }

    /// Number of bytes, at least 1. Cannot overflow: `last` is below a length.
    #[expect(clippy::len_without_is_empty, reason = "a byte range is never empty")]
    pub fn len(self) -> u64 {
        self.last - self.first + 1
    }
}

/// The `Content-Range` header of a 206 or 416 (RFC 9110 §14.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentRange {
    /// `bytes first-last/complete`, or `*` when the complete length is not known.
    Satisfied {
        /// The part.
        range: ByteRange,
        /// Length of the whole, above `range.last()`.
        complete: Option<u64>,
    },
    /// `bytes */complete`.
    Unsatisfied {
        /// Length of the whole.
        complete: u64,
    },
}

impl ContentRange {
    /// Reads the header; `None` for another unit, bad numbers, `first > last`, or a part that leaves the whole.
    pub fn parse(value: &HeaderValue) -> Option<Self> {
        let (unit, rest) = value.as_bytes().split_at_checked("bytes ".len())?;
        if !unit.eq_ignore_ascii_case(b"bytes ") {
            return None;
        }
        let slash = rest.iter().position(|&byte| byte == b'/')?;
        let complete = match &rest[slash + 1..] {
            b"*" => None,
            digits => Some(decimal(digits)?),
        };
        let part = &rest[..slash];
        if part == b"*" {
            return Some(Self::Unsatisfied { complete: complete? });
        }
        let dash = part.iter().position(|&byte| byte == b'-')?;
        let (first, last) = (decimal(&part[..dash])?, decimal(&part[dash + 1..])?);
        (first <= last && complete.is_none_or(|complete| last < complete))
            .then_some(Self::Satisfied { range: ByteRange { first, last }, complete })
    }

    /// The one `Content-Range` of a head; `None` when there are none or several.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(http::header::CONTENT_RANGE).iter();
        let value = values.next()?;
        if values.next().is_some() { None } else { Self::parse(value) }
    }

    /// The header's value.
    pub fn to_value(self) -> HeaderValue {
        header_value(match self {
            Self::Satisfied { range, complete: Some(complete) } => {
                format!("bytes {}-{}/{complete}", range.first, range.last)
            }
            Self::Satisfied { range, complete: None } => format!("bytes {}-{}/*", range.first, range.last),
            Self::Unsatisfied { complete } => format!("bytes */{complete}"),
        })
    }
}

/// Digits and punctuation are always a header value; the empty one is never used.
fn header_value(text: String) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
}

/// `1*DIGIT`; a number that does not fit is as good as the largest, since both lie behind every end.
fn position(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(std::str::from_utf8(digits).ok()?.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
#[path = "range_tests.rs"]
mod tests;
