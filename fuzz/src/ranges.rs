//! Which bytes of a file are asked for, if any: `Range`, also for several, behind preconditions such as `If-Range`.

use std::{
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use http::{HeaderValue, Method, StatusCode, header::RANGE};
use plait::http::{
    file_response::{FileBody, FileFacts, file_response},
    head::Parsed,
    multipart::{Multipart, Ranges, resolve, span},
    range::{ContentRange, RANGES_MAX, requested_ranges},
    request::parse_request,
    response::Framing,
};

/// Content-Range and the head must tell what is sent.
fn check_file(head: &plait::http::request::RequestHead, len: u64) {
    let modified = UNIX_EPOCH + Duration::from_secs(784_111_777);
    let now = modified + Duration::from_secs(60);
    let answer = file_response(head, Path::new("f.mp4"), FileFacts { len, modified }, now);
    let told = ContentRange::of(&answer.head.headers);
    match (answer.head.status, &answer.body) {
        (StatusCode::OK, &FileBody::Span { offset, len: sent }) => assert_eq!((offset, sent), (0, len)),
        (StatusCode::PARTIAL_CONTENT, &FileBody::Span { offset, len: sent }) => {
            let Some(ContentRange::Satisfied { range, complete }) = told else { panic!("{told:?}") };
            assert_eq!((range.first(), range.len(), complete), (offset, sent, Some(len)));
            assert!(sent > 0 && offset.checked_add(sent).is_some_and(|end| end <= len));
            assert_eq!(answer.head.framing(&Method::GET), Ok(Framing::Fixed(sent)));
            assert!(head.headers.contains_key(RANGE));
        }
        (StatusCode::RANGE_NOT_SATISFIABLE, _) => {
            assert_eq!(told, Some(ContentRange::Unsatisfied { complete: len }));
        }
        (StatusCode::NOT_MODIFIED | StatusCode::PRECONDITION_FAILED, _) => {}
        (StatusCode::OK | StatusCode::PARTIAL_CONTENT, FileBody::None) => {
            assert_eq!(head.method, Method::HEAD)
        }
        other => panic!("{other:?}"),
    }
}

/// Several ranges never cost more than the file and the lines between them.
fn check_parts(head: &plait::http::request::RequestHead, len: u64) {
    let Some(specs) = requested_ranges(&head.headers) else { return };
    assert!((1..=RANGES_MAX).contains(&specs.len()));
    let Ranges::Parts(parts) = resolve(&specs, len) else { return };
    assert!(!parts.is_empty() && parts.len() <= specs.len());
    let mut sorted = parts.clone();
    sorted.sort_unstable_by_key(|part| part.first());
    assert!(sorted.windows(2).all(|pair| pair[0].last() < pair[1].first()));
    assert!(sorted.last().is_some_and(|part| part.last() < len));
    // Every byte that was asked for and exists is in a part.
    for spec in specs {
        if let plait::http::range::RangeOutcome::Partial(range) = spec.resolve(len) {
            let holds =
                |part: &&_| span(**part).contains(&range.first()) && span(**part).contains(&range.last());
            assert!(sorted.iter().any(|part| holds(&part)), "{spec:?}");
        }
    }
    let multipart = Multipart::new(None, len, 7);
    let lines: usize = parts.iter().map(|part| multipart.before(*part).len()).sum();
    let bytes: u128 = parts.iter().map(|part| u128::from(part.len())).sum();
    assert!(bytes <= u128::from(len));
    if let Ok(bytes) = u64::try_from(bytes + (lines + multipart.end().len()) as u128) {
        assert_eq!(multipart.len(&parts), bytes);
    }
}

/// The first eight bytes are the file's length, the rest header lines of a request for it.
#[test]
fn ranges_and_preconditions() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let Some((len, lines)) = bytes.split_first_chunk() else { return };
        // No body is longer than 2^60 bytes.
        let len = u64::from_be_bytes(*len) >> 4;
        for method in ["GET", "HEAD"] {
            let head = format!("{method} /f HTTP/1.1\r\nHost: h\r\n");
            let head = parse_request(&[head.as_bytes(), lines, b"\r\n\r\n"].concat());
            if let Ok(Parsed::Complete { head, .. }) = head {
                check_file(&head, len);
                check_parts(&head, len);
            }
        }
        if let Ok(value) = HeaderValue::from_bytes(lines)
            && let Some(range) = ContentRange::parse(&value)
        {
            assert_eq!(ContentRange::parse(&range.to_value()), Some(range));
        }
    });
}
