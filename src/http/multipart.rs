//! Several ranges in one answer: `multipart/byteranges` (RFC 9110 §14.6).
//!
//! In: ranges as asked for, and the length. Out: the parts in the order asked for, the bytes before each, and the exact
//! length of the body. Called by the downstream's cache. Invariant: the parts never overlap, so an answer is never larger
//! than what it is about by more than the lines between the parts.

use std::ops::Range;

use http::HeaderValue;

use super::range::{ByteRange, ContentRange, RangeOutcome, RangeSpec};

/// Parts nearer than this are one: the lines between them take as much (RFC 9110 §15.3.7.2).
const GAP_BYTES_MIN: u64 = 128;

/// What several ranges come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ranges {
    /// 416.
    Unsatisfiable,
    /// 206, or 206 in several parts.
    Parts(Vec<ByteRange>),
    /// 200: what is asked for is no part.
    Full,
}

/// Applies all ranges. Those that lie behind the end are left out; those that overlap or nearly touch are joined, and then
/// all are sent in rising order.
pub fn resolve(specs: &[RangeSpec], len: u64) -> Ranges {
    let mut parts = Vec::new();
    for spec in specs {
        match spec.resolve(len) {
            RangeOutcome::Full => return Ranges::Full,
            RangeOutcome::Partial(range) => parts.push(range),
            RangeOutcome::Unsatisfiable => {}
        }
    }
    let mut sorted: Vec<ByteRange> = parts.clone();
    sorted.sort_unstable_by_key(|range| (range.first(), range.last()));
    let mut joined: Vec<ByteRange> = Vec::new();
    for range in sorted {
        match joined.last_mut() {
            Some(before) if range.first() <= before.last().saturating_add(GAP_BYTES_MIN) => {
                *before = before.to(range.last().max(before.last()));
            }
            _ => joined.push(range),
        }
    }
    match joined.len() {
        0 => Ranges::Unsatisfiable,
        // RFC 9110 §15.3.7.2: "a server [...] SHOULD send the parts in the same order that the corresponding range-spec
        // appeared".
        joined_len if joined_len == parts.len() => Ranges::Parts(parts),
        _ => Ranges::Parts(joined),
    }
}

/// The lines around the parts of one answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Multipart {
    boundary: String,
    kind: Option<HeaderValue>,
    complete: u64,
}

impl Multipart {
    /// Of something of `complete` bytes and this content type. `number` makes the boundary differ between answers: it must
    /// be random, for a body that holds the boundary would be cut there.
    pub fn new(kind: Option<HeaderValue>, complete: u64, number: u128) -> Self {
        Self { boundary: format!("plait-{number:032x}"), kind, complete }
    }

    /// The answer's content type.
    pub fn content_type(&self) -> HeaderValue {
        // Letters, digits and a dash are always a header value.
        HeaderValue::try_from(format!("multipart/byteranges; boundary={}", self.boundary))
            .unwrap_or(HeaderValue::from_static("multipart/byteranges"))
    }

    /// What stands before a part.
    pub fn before(&self, range: ByteRange) -> Vec<u8> {
        let mut lines = format!("\r\n--{}\r\n", self.boundary).into_bytes();
        if let Some(kind) = &self.kind {
            lines.extend_from_slice(b"Content-Type: ");
            lines.extend_from_slice(kind.as_bytes());
            lines.extend_from_slice(b"\r\n");
        }
        let place = ContentRange::Satisfied { range, complete: Some(self.complete) }.to_value();
        lines.extend_from_slice(b"Content-Range: ");
        lines.extend_from_slice(place.as_bytes());
        lines.extend_from_slice(b"\r\n\r\n");
        lines
    }

    /// What stands behind the last part.
    pub fn end(&self) -> Vec<u8> {
        format!("\r\n--{}--\r\n", self.boundary).into_bytes()
    }

    /// Length of the whole body.
    pub fn len(&self, parts: &[ByteRange]) -> u64 {
        let part = |range: &ByteRange| self.before(*range).len() as u64 + range.len();
        parts.iter().map(part).sum::<u64>() + self.end().len() as u64
    }

    /// Whether it has no part: never.
    pub fn is_empty(&self) -> bool {
        false
    }
}

/// The span of a range.
pub fn span(range: ByteRange) -> Range<u64> {
    range.first()..range.last() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(specs: &[(u64, u64)], len: u64) -> Ranges {
        let specs: Vec<_> = specs.iter().map(|&(first, last)| RangeSpec::FromTo { first, last }).collect();
        resolve(&specs, len)
    }

    fn places(ranges: Ranges) -> Vec<(u64, u64)> {
        match ranges {
            Ranges::Parts(parts) => parts.iter().map(|part| (part.first(), part.last())).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn parts_keep_their_order_unless_they_overlap() {
        assert_eq!(places(parts(&[(5000, 5009), (0, 9)], 10_000)), [(5000, 5009), (0, 9)]);
        assert_eq!(places(parts(&[(5000, 5009), (0, 9), (5, 20)], 10_000)), [(0, 20), (5000, 5009)]);
        assert_eq!(places(parts(&[(0, 0), (100, 100)], 10_000)), [(0, 100)]);
        assert_eq!(places(parts(&[(0, 9), (20_000, 20_001)], 10_000)), [(0, 9)]);
        assert_eq!(parts(&[(20_000, 20_001)], 10_000), Ranges::Unsatisfiable);
        assert_eq!(resolve(&[RangeSpec::Suffix { len: 5 }], 0), Ranges::Full);
    }

    #[test]
    fn parts_never_overlap() {
        bolero::check!().with_type::<(Vec<(u16, u16)>, u16)>().for_each(|(ranges, len)| {
            let specs: Vec<_> = ranges.iter().map(|&(a, b)| (a.min(b).into(), a.max(b).into())).collect();
            let Ranges::Parts(found) = parts(&specs, (*len).into()) else { return };
            let mut found: Vec<_> = found.into_iter().map(span).collect();
            assert!(found.iter().all(|span| span.end <= u64::from(*len)));
            for (first, last) in &specs {
                let there = *first..(last + 1).min((*len).into());
                assert!(
                    there.is_empty()
                        || found.iter().any(|span| span.start <= there.start && there.end <= span.end)
                );
            }
            found.sort_unstable_by_key(|span| span.start);
            assert!(found.windows(2).all(|pair| pair[0].end <= pair[1].start));
        });
    }

    #[test]
    fn the_length_is_that_of_the_body() {
        let Ranges::Parts(ranges) = parts(&[(0, 9), (5000, 5009)], 10_000) else { panic!() };
        let multipart = Multipart::new(Some(HeaderValue::from_static("video/mp4")), 10_000, 7);
        let mut body = Vec::new();
        for range in &ranges {
            body.extend(multipart.before(*range));
            body.extend(vec![b'x'; range.len() as usize]);
        }
        body.extend(multipart.end());
        assert_eq!(multipart.len(&ranges), body.len() as u64);
        let text = String::from_utf8(body).unwrap();
        assert!(text.contains(
            "Content-Type: video/mp4\r\nContent-Range: bytes 5000-5009/10000\r\n\r\nxxxxxxxxxx\r\n--"
        ));
        assert!(
            multipart
                .content_type()
                .to_str()
                .unwrap()
                .ends_with("boundary=plait-00000000000000000000000000000007")
        );
    }
}
