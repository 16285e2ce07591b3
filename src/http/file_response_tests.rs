//! Statuses, headers and spans for files of all kinds.

use std::time::Duration;

use super::*;
use crate::http::request::{Parsed, parse_request};
use crate::http::response::{Framing, parse_response};

const ETAG_VALUE: &str = "\"a-ae1b981da166f00\"";
const MODIFIED: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

fn facts(len: u64) -> FileFacts {
    FileFacts { len, modified: UNIX_EPOCH + Duration::from_nanos(784_111_777_500_000_000) }
}

fn now() -> SystemTime {
    facts(0).modified + Duration::from_secs(60)
}

fn request(method: &str, lines: &str) -> RequestHead {
    let text = format!("{method} /f HTTP/1.1\r\nHost: h\r\n{lines}\r\n");
    match parse_request(text.as_bytes()) {
        Ok(Parsed::Complete { head, .. }) => head,
        other => panic!("{text:?} gave {other:?}"),
    }
}

fn ask(method: &str, lines: &str, len: u64) -> (u16, FileBody, ResponseHead) {
    let answer = file_response(&request(method, lines), Path::new("f.mp4"), facts(len), now());
    (answer.head.status.as_u16(), answer.body, answer.head)
}

#[test]
fn the_whole_file() {
    let (status, body, head) = ask("GET", "", 10);
    assert_eq!((status, body), (200, FileBody::Span { offset: 0, len: 10 }));
    assert_eq!(head.headers[CONTENT_LENGTH], "10");
    assert_eq!(head.headers[CONTENT_TYPE], "video/mp4");
    assert_eq!(head.headers[ACCEPT_RANGES], "bytes");
    assert_eq!(head.headers[LAST_MODIFIED], MODIFIED);
    assert_eq!(head.headers[ETAG], ETAG_VALUE);
    assert!(!head.headers.contains_key(CONTENT_RANGE));
    assert_eq!(ask("GET", "", 0).1, FileBody::Span { offset: 0, len: 0 });
    let (status, body, same) = ask("HEAD", "Range: bytes=1-2\r\n", 10);
    assert_eq!((status, body, same), (200, FileBody::None, head));
}

#[test]
fn parts() {
    for (range, status, span, content_range) in [
        ("bytes=2-5", 206, Some((2, 4)), Some("bytes 2-5/10")),
        ("bytes=2-99", 206, Some((2, 8)), Some("bytes 2-9/10")),
        ("bytes=0-", 206, Some((0, 10)), Some("bytes 0-9/10")),
        ("bytes=-3", 206, Some((7, 3)), Some("bytes 7-9/10")),
        ("bytes=10-", 416, None, Some("bytes */10")),
        ("bytes=-0", 416, None, Some("bytes */10")),
        ("bytes=0-1,3-4", 200, Some((0, 10)), None),
        ("bytes=5-2", 200, Some((0, 10)), None),
    ] {
        let (got, body, head) = ask("GET", &format!("Range: {range}\r\n"), 10);
        assert_eq!(got, status, "{range}");
        assert_eq!(
            head.headers.get(CONTENT_RANGE).map(|value| value.to_str().unwrap()),
            content_range,
            "{range}"
        );
        match (body, span) {
            (FileBody::Span { offset, len }, Some(expected)) => {
                assert_eq!((offset, len), expected, "{range}");
                assert_eq!(head.headers[CONTENT_LENGTH], len.to_string());
            }
            (FileBody::Text(text), None) => {
                assert!(text.starts_with("client: "), "{text}");
                assert_eq!(head.headers[CONTENT_LENGTH], text.len().to_string());
            }
            other => panic!("{range}: {other:?}"),
        }
    }
    assert_eq!(ask("GET", "Range: bytes=0-\r\n", 0).0, 416);
    assert_eq!(ask("GET", "Range: bytes=-1\r\n", 0).0, 200);
}

#[test]
fn conditions() {
    let line = |name: &str, value: &str| format!("{name}: {value}\r\n");
    let (status, body, head) = ask("GET", &line("If-None-Match", ETAG_VALUE), 10);
    assert_eq!((status, body), (304, FileBody::None));
    assert_eq!(head.headers[ETAG], ETAG_VALUE);
    assert!(!head.headers.contains_key(CONTENT_LENGTH));
    assert_eq!(ask("GET", &line("If-Modified-Since", MODIFIED), 10).0, 304);
    assert_eq!(ask("HEAD", &line("If-Modified-Since", MODIFIED), 10).0, 304);
    let (status, body, _) = ask("GET", &line("If-Match", "\"other\""), 10);
    assert!(status == 412 && matches!(body, FileBody::Text(_)));
    assert_eq!(ask("HEAD", &line("If-Match", "\"other\""), 10).1, FileBody::None);
    assert_eq!(ask("GET", &line("If-None-Match", ETAG_VALUE), 11).0, 200, "another length is another tag");

    let range = "Range: bytes=0-0\r\n";
    assert_eq!(ask("GET", &(line("If-Range", ETAG_VALUE) + range), 10).0, 206);
    assert_eq!(ask("GET", &(line("If-Range", MODIFIED) + range), 10).0, 206);
    assert_eq!(ask("GET", &(line("If-Range", "\"other\"") + range), 10).0, 200);
    assert_eq!(ask("GET", &(line("If-Range", "\"other\"") + "Range: bytes=99-\r\n"), 10).0, 200);
}

#[test]
fn odd_modification_times() {
    let answer = |modified| {
        file_response(&request("GET", ""), Path::new("f"), FileFacts { len: 1, modified }, now()).head.headers
    };
    let future = answer(now() + Duration::from_secs(1_000_000_000_000));
    assert_eq!(future[LAST_MODIFIED], "Sun, 06 Nov 1994 08:50:37 GMT", "never later than Date");
    let ancient = answer(UNIX_EPOCH - Duration::from_nanos(255));
    assert!(!ancient.contains_key(LAST_MODIFIED));
    assert_eq!(ancient[ETAG], "\"1--ff\"");
    assert_ne!(ancient[ETAG], answer(UNIX_EPOCH + Duration::from_nanos(255))[ETAG]);
}

#[test]
fn any_request_gets_a_span_within_the_file_and_a_head_that_says_so() {
    const LINES: [&str; 9] = [
        "Range: bytes=0-0\r\n",
        "Range: bytes=3-\r\n",
        "Range: bytes=-4\r\n",
        "Range: bytes=2-18446744073709551615\r\n",
        "If-Range: \"x\"\r\n",
        "If-None-Match: *\r\n",
        "If-Match: \"x\"\r\n",
        "If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT\r\n",
        "If-Unmodified-Since: Sun, 06 Nov 1994 08:49:36 GMT\r\n",
    ];
    bolero::check!().with_type::<(bool, u64, bool, Vec<u8>)>().with_iterations(5_000).for_each(
        |(head_only, len, small, picks)| {
            let len = if *small { len % 6 } else { len % (1 << 60) };
            let lines: String =
                picks.iter().take(4).map(|&pick| LINES[usize::from(pick) % LINES.len()]).collect();
            let request = request(if *head_only { "HEAD" } else { "GET" }, &lines);
            let answer = file_response(&request, Path::new("f.ts"), facts(len), now());
            let mut out = Vec::new();
            answer.head.write_head(now(), &mut out);
            let Ok(Parsed::Complete { head, .. }) = parse_response(&out) else { panic!("not read back") };
            let body_len = match answer.body {
                FileBody::None => None,
                FileBody::Span { offset, len: span } => {
                    assert!(offset + span <= len && (span > 0 || len == 0));
                    Some(span)
                }
                FileBody::Text(text) => Some(text.len() as u64),
            };
            let expected = body_len.map_or(Framing::None, Framing::Fixed);
            assert_eq!(head.framing(&request.method), Ok(expected));
        },
    );
}
