//! The RFC's examples, and every small range against an oracle that looks at each byte.

use super::*;

fn spec(value: &'static str) -> Option<RangeSpec> {
    requested_range(&HeaderMap::from_iter([(RANGE, HeaderValue::from_static(value))]))
}

fn resolved(value: &'static str, len: u64) -> Option<(u64, u64)> {
    match spec(value).expect(value).resolve(len) {
        RangeOutcome::Partial(range) => Some((range.first(), range.last())),
        RangeOutcome::Full => Some((0, u64::MAX)),
        RangeOutcome::Unsatisfiable => None,
    }
}

#[test]
fn examples_of_rfc_9110_section_14_1_2() {
    assert_eq!(resolved("bytes=0-499", 10_000), Some((0, 499)));
    assert_eq!(resolved("bytes=500-999", 10_000), Some((500, 999)));
    assert_eq!(resolved("bytes=-500", 10_000), Some((9_500, 9_999)));
    assert_eq!(resolved("bytes=9500-", 10_000), Some((9_500, 9_999)));
    assert_eq!(resolved("Bytes= , 0-0 ,", 10_000), Some((0, 0)));
}

#[test]
fn numbers_that_do_not_fit_lie_behind_the_end() {
    assert_eq!(resolved("bytes=1-99999999999999999999999", 10), Some((1, 9)));
    assert_eq!(resolved("bytes=99999999999999999999999-", 10), None);
    assert_eq!(resolved("bytes=-99999999999999999999999", 10), Some((0, 9)));
    assert_eq!(resolved("bytes=0-", u64::MAX), Some((0, u64::MAX - 1)));
    assert_eq!(resolved("bytes=-1", u64::MAX), Some((u64::MAX - 1, u64::MAX - 1)));
}

#[test]
fn ignored_headers() {
    for value in [
        "",
        "bytes",
        "bytes=",
        "bytes=,",
        "bytes=-",
        "bytes=1",
        "bytes=2-1",
        "bytes=a-b",
        "bytes=1-2x",
        "bytes=+1-2",
        "bytes=--1",
        "bytes=1--2",
        "bytes = 0-1",
        "bytes=0 -1",
        "lines=0-1",
        "bytes=0-0,-1",
        "bytes=500-600,601-999",
    ] {
        assert_eq!(spec(value), None, "{value:?}");
    }
    let mut twice = HeaderMap::new();
    twice.append(RANGE, HeaderValue::from_static("bytes=0-1"));
    twice.append(RANGE, HeaderValue::from_static("bytes=0-1"));
    assert_eq!(requested_range(&twice), None);
    assert_eq!(requested_range(&HeaderMap::new()), None);
    assert_eq!(RangeSpec::FromTo { first: 2, last: 1 }.resolve(9), RangeOutcome::Full);
}

/// What the bytes of a representation say: those that the range names, one by one.
fn oracle(spec: RangeSpec, len: u64) -> RangeOutcome {
    let wanted = |at: &u64| match spec {
        RangeSpec::FromTo { first, last } => (first..=last).contains(at),
        RangeSpec::From { first } => *at >= first,
        RangeSpec::Suffix { len: suffix } => at + suffix >= len,
    };
    let bytes: Vec<u64> = (0..len).filter(wanted).collect();
    match (bytes.first(), bytes.last(), spec) {
        (Some(&first), Some(&last), _) => RangeOutcome::Partial(ByteRange { first, last }),
        (_, _, RangeSpec::Suffix { len: 1.. }) => RangeOutcome::Full,
        _ => RangeOutcome::Unsatisfiable,
    }
}

#[test]
fn every_small_range_resolves_as_its_bytes_say() {
    for len in 0..10 {
        for first in 0..12 {
            let mut specs = vec![RangeSpec::From { first }, RangeSpec::Suffix { len: first }];
            specs.extend((first..12).map(|last| RangeSpec::FromTo { first, last }));
            for spec in specs {
                assert_eq!(spec.resolve(len), oracle(spec, len), "{spec:?} of {len}");
                let headers = HeaderMap::from_iter([(RANGE, spec.to_value())]);
                assert_eq!(requested_range(&headers), Some(spec));
            }
        }
    }
}

#[test]
fn any_range_stays_within_any_length() {
    bolero::check!().with_type::<(Vec<u8>, u64, u64, u64)>().for_each(|(bytes, first, last, len)| {
        let mut specs = vec![
            RangeSpec::From { first: *first },
            RangeSpec::Suffix { len: *last },
            RangeSpec::FromTo { first: *first, last: *last },
        ];
        let value = [b"bytes=", bytes.as_slice()].concat();
        if let Ok(value) = HeaderValue::from_bytes(&value) {
            specs.extend(requested_range(&HeaderMap::from_iter([(RANGE, value)])));
        }
        for spec in specs {
            if let RangeOutcome::Partial(range) = spec.resolve(*len) {
                assert!(range.first() <= range.last() && range.last() < *len);
                assert_eq!(range.len(), range.last() - range.first() + 1);
            }
        }
    });
}

#[test]
fn content_ranges() {
    let parse = |text: &'static str| ContentRange::parse(&HeaderValue::from_static(text));
    for text in ["bytes 42-1233/1234", "bytes 42-1233/*", "bytes */1234", "bytes 0-0/1"] {
        assert_eq!(parse(text).expect(text).to_value(), text);
    }
    for text in [
        "bytes 42-1234/1234",
        "bytes 2-1/9",
        "bytes */*",
        "bytes 1-/9",
        "bytes -1/9",
        "bytes=0-1/2",
        "lines 0-1/2",
        "bytes 0-1",
        "bytes 0-1/2/3",
        "bytes 0-99999999999999999999/*",
        "bytes +0-1/2",
        "bytes",
        "",
    ] {
        assert_eq!(parse(text), None, "{text:?}");
    }
    let range = ByteRange { first: 1, last: 2 };
    let value = ContentRange::Satisfied { range, complete: None }.to_value();
    let mut headers = HeaderMap::from_iter([(http::header::CONTENT_RANGE, value.clone())]);
    assert_eq!(ContentRange::of(&headers), Some(ContentRange::Satisfied { range, complete: None }));
    headers.append(http::header::CONTENT_RANGE, value);
    assert_eq!(ContentRange::of(&headers), None);
}

#[test]
fn any_content_range_reads_back() {
    bolero::check!().with_type::<Vec<u8>>().for_each(|bytes| {
        let value = [b"bytes ", bytes.as_slice()].concat();
        if let Ok(value) = HeaderValue::from_bytes(&value)
            && let Some(range) = ContentRange::parse(&value)
        {
            assert_eq!(ContentRange::parse(&range.to_value()), Some(range));
        }
    });
}
