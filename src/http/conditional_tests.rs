//! The comparison table of RFC 9110 §8.8.3.2 and the order of preconditions of §13.2.2.

use std::time::UNIX_EPOCH;

use super::*;

const OLDER: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
const SAME: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
const NEWER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";
const PROCEED: Decision = Decision::Proceed { honour_range: false };
const RANGE_HONOURED: Decision = Decision::Proceed { honour_range: true };

fn modified() -> SystemTime {
    // The half second must not make the file newer than its own Last-Modified.
    UNIX_EPOCH + Duration::from_millis(784_111_777_500)
}

fn decide(method: Method, lines: &[(&'static str, &'static str)]) -> Decision {
    let mut headers = HeaderMap::new();
    for (name, value) in lines {
        headers.append(*name, HeaderValue::from_static(value));
    }
    let current = Validators { etag: EntityTag::parse(b"\"v1\""), last_modified: Some(modified()) };
    evaluate(&method, &headers, current, modified() + Duration::from_secs(60))
}

fn get(lines: &[(&'static str, &'static str)]) -> Decision {
    decide(Method::GET, lines)
}

#[test]
fn comparisons_of_rfc_9110_section_8_8_3_2() {
    let tag = |text: &'static str| EntityTag::parse(text.as_bytes()).expect(text);
    for (one, other, strong, weak) in [
        ("W/\"1\"", "W/\"1\"", false, true),
        ("W/\"1\"", "W/\"2\"", false, false),
        ("W/\"1\"", "\"1\"", false, true),
        ("\"1\"", "\"1\"", true, true),
    ] {
        assert_eq!(tag(one).strong_eq(tag(other)), strong, "{one} {other}");
        assert_eq!(tag(one).weak_eq(tag(other)), weak, "{one} {other}");
    }
    for bad in ["", "1", "\"", "\"1", "1\"", "w/\"1\"", "W\"1\"", "\"1\"x", "\"a b\"", "\"a\"\"", "*"] {
        assert_eq!(EntityTag::parse(bad.as_bytes()), None, "{bad}");
    }
    assert_eq!(tag("\"\"").opaque, b"");
}

#[test]
fn if_none_match() {
    for hit in ["\"v1\"", "W/\"v1\"", "*", "\"a\", \"v1\"", "\"a,b\" ,, W/\"v1\" , \"c\"", " \"v1\""] {
        assert_eq!(get(&[("if-none-match", hit)]), Decision::NotModified, "{hit}");
        assert_eq!(decide(Method::HEAD, &[("if-none-match", hit)]), Decision::NotModified, "{hit}");
        assert_eq!(decide(Method::PUT, &[("if-none-match", hit)]), Decision::PreconditionFailed, "{hit}");
    }
    for miss in ["\"v2\"", "v1", "\"a,\\\"v1\\\"", "", "\"a\" \"v1\"", "\"x\", *"] {
        assert_eq!(get(&[("if-none-match", miss)]), PROCEED, "{miss}");
    }
    assert_eq!(get(&[("if-none-match", "\"a\""), ("if-none-match", "\"v1\"")]), Decision::NotModified);
}

#[test]
fn if_match_compares_strongly() {
    for hit in ["\"v1\"", "*", "\"a\",\"v1\""] {
        assert_eq!(get(&[("if-match", hit)]), PROCEED, "{hit}");
    }
    for miss in ["W/\"v1\"", "\"v2\"", "v1", ""] {
        assert_eq!(get(&[("if-match", miss)]), Decision::PreconditionFailed, "{miss}");
    }
}

#[test]
fn dates() {
    assert_eq!(get(&[("if-modified-since", OLDER)]), PROCEED);
    assert_eq!(get(&[("if-modified-since", SAME)]), Decision::NotModified);
    assert_eq!(get(&[("if-modified-since", NEWER)]), Decision::NotModified);
    assert_eq!(decide(Method::POST, &[("if-modified-since", SAME)]), PROCEED);
    assert_eq!(get(&[("if-unmodified-since", OLDER)]), Decision::PreconditionFailed);
    assert_eq!(get(&[("if-unmodified-since", SAME)]), PROCEED);
    assert_eq!(get(&[("if-unmodified-since", NEWER)]), PROCEED);
    for name in ["if-modified-since", "if-unmodified-since"] {
        assert_eq!(get(&[(name, "yesterday")]), PROCEED);
        assert_eq!(get(&[(name, OLDER), (name, SAME)]), PROCEED);
    }
}

#[test]
fn tags_go_before_dates_and_if_match_before_all() {
    assert_eq!(get(&[("if-none-match", "\"v2\""), ("if-modified-since", SAME)]), PROCEED);
    assert_eq!(get(&[("if-none-match", "\"v1\""), ("if-modified-since", OLDER)]), Decision::NotModified);
    assert_eq!(get(&[("if-match", "\"v1\""), ("if-unmodified-since", OLDER)]), PROCEED);
    assert_eq!(get(&[("if-match", "\"v2\""), ("if-none-match", "\"v1\"")]), Decision::PreconditionFailed);
    assert_eq!(get(&[("if-match", "\"v1\""), ("if-none-match", "\"v1\"")]), Decision::NotModified);
    assert_eq!(
        get(&[("if-unmodified-since", OLDER), ("if-modified-since", SAME)]),
        Decision::PreconditionFailed
    );
}

#[test]
fn if_range_is_strong() {
    let range = ("range", "bytes=0-1");
    assert_eq!(get(&[range]), RANGE_HONOURED);
    assert_eq!(decide(Method::HEAD, &[range]), PROCEED);
    assert_eq!(get(&[range, ("if-range", "\"v1\"")]), RANGE_HONOURED);
    assert_eq!(get(&[range, ("if-range", SAME)]), RANGE_HONOURED);
    for stale in ["W/\"v1\"", "\"v2\"", OLDER, NEWER, "*", "\"v1\", \"v1\"", ""] {
        assert_eq!(get(&[range, ("if-range", stale)]), PROCEED, "{stale}");
    }
    assert_eq!(get(&[range, ("if-range", "\"v1\""), ("if-range", "\"v1\"")]), PROCEED);
    assert_eq!(get(&[range, ("if-range", "\"v2\""), ("if-none-match", "\"v1\"")]), Decision::NotModified);
}

#[test]
fn a_date_of_this_second_is_weak() {
    let headers = HeaderMap::from_iter([
        (RANGE, HeaderValue::from_static("bytes=0-1")),
        (IF_RANGE, HeaderValue::from_static(SAME)),
    ]);
    let current = Validators { etag: None, last_modified: Some(modified()) };
    let second = UNIX_EPOCH + Duration::from_secs(784_111_777);
    for (age_ms, expected) in [(0, PROCEED), (999, PROCEED), (1_000, RANGE_HONOURED)] {
        let now = second + Duration::from_millis(age_ms);
        assert_eq!(evaluate(&Method::GET, &headers, current, now), expected, "{age_ms}");
    }
}

#[test]
fn without_validators_only_stars_match() {
    let decide = |name: &'static str, value: &'static str| {
        let headers =
            HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_static(value))]);
        evaluate(&Method::GET, &headers, Validators::default(), UNIX_EPOCH)
    };
    assert_eq!(decide("if-none-match", "*"), Decision::NotModified);
    assert_eq!(decide("if-none-match", "\"v1\""), PROCEED);
    assert_eq!(decide("if-match", "\"v1\""), Decision::PreconditionFailed);
    assert_eq!(decide("if-modified-since", SAME), PROCEED);
    assert_eq!(decide("if-unmodified-since", OLDER), PROCEED);
}

#[test]
fn any_values_give_a_decision() {
    const NAMES: [HeaderName; 5] =
        [IF_MATCH, IF_NONE_MATCH, IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE, IF_RANGE];
    const PIECES: [&[u8]; 8] = [b"\"v1\"", b"W/", b",", b"\"", b"*", b" ", b"x", SAME.as_bytes()];
    bolero::check!().with_type::<Vec<(u8, Vec<u8>)>>().for_each(|lines| {
        let mut headers = HeaderMap::new();
        for (name, picks) in lines {
            let bytes: Vec<u8> =
                picks.iter().flat_map(|&pick| PIECES[usize::from(pick) % 8]).copied().collect();
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                headers.append(NAMES[usize::from(*name) % NAMES.len()].clone(), value);
            }
        }
        let current = Validators { etag: EntityTag::parse(b"\"v1\""), last_modified: Some(modified()) };
        for method in [Method::GET, Method::PUT] {
            let decision = evaluate(&method, &headers, current, modified());
            assert!(decision != Decision::NotModified || method == Method::GET);
            assert_ne!(decision, RANGE_HONOURED, "no Range was sent");
        }
    });
}
