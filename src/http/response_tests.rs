//! Status lines, framing by RFC 9112 §6.3, interim responses, and that no input breaks the invariants.

use std::time::{Duration, UNIX_EPOCH};

use super::*;

fn parse(text: &str) -> Result<Parsed<ResponseHead>, ResponseError> {
    parse_response(text.as_bytes())
}

fn accepted(text: &str) -> ResponseHead {
    match parse(text) {
        Ok(Parsed::Complete { head, len }) if len == text.len() => head,
        other => panic!("{text:?} gave {other:?}"),
    }
}

fn framing(text: &str, method: Method) -> Result<Framing, ResponseError> {
    accepted(text).framing(&method)
}

#[test]
fn status_lines() {
    assert_eq!(accepted("HTTP/1.1 200 OK\r\n\r\n").status, 200);
    assert_eq!(accepted("HTTP/1.1 206 \r\n\r\n").status, 206);
    assert_eq!(accepted("HTTP/1.1 599\r\n\r\n").status, 599);
    assert_eq!(accepted("HTTP/1.0 404 Nicht gefunden\r\nA: b\r\n\r\n").version, Version::Http10);
    for bad in [
        "HTTP/2 200\r\n\r\n",
        "HTTP/1.1 099 x\r\n\r\n",
        "HTTP/1.1 600 x\r\n\r\n",
        "HTTP/1.1 20 x\r\n\r\n",
        "HTTP/1.1 2000 x\r\n\r\n",
        "HTTP/1.1  200 x\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
        "\r\nHTTP/1.1 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\n\r\n",
        "HTTP/1.1 200 OK\r\nA: b\n\r\n",
        "HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
        "HTTP/1.1 200 O\0K\r\n\r\n",
        "220 mail.example.org ESMTP\r\n",
    ] {
        let error = parse(bad).expect_err(bad);
        assert!(error.to_string().starts_with("root: "), "{error}");
        assert_eq!(error.problem().status, 502);
    }
}

#[test]
fn every_prefix_is_partial() {
    let text = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n";
    for end in 0..text.len() {
        assert_eq!(parse(&text[..end]), Ok(Parsed::Partial), "{:?}", &text[..end]);
    }
}

#[test]
fn bodies_end_as_the_rfc_says() {
    let fixed = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
    assert_eq!(framing(fixed, Method::GET), Ok(Framing::Fixed(5)));
    assert_eq!(framing(fixed, Method::HEAD), Ok(Framing::None));
    for bodiless in ["103 Early Hints", "204 No Content", "304 Not Modified"] {
        let text = format!("HTTP/1.1 {bodiless}\r\nContent-Length: 5\r\n\r\n");
        assert_eq!(framing(&text, Method::GET), Ok(Framing::None));
    }
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(framing(chunked, Method::GET), Ok(Framing::Chunked));
    assert_eq!(framing("HTTP/1.1 200 OK\r\n\r\n", Method::GET), Ok(Framing::UntilClose));
    assert_eq!(framing("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Method::GET), Ok(Framing::Fixed(0)));
}

#[test]
fn ambiguous_framing_is_an_error() {
    for (lines, method, fault) in [
        ("Content-Length: 5\r\nContent-Length: 6\r\n", Method::GET, FramingFault::RepeatedLength),
        ("Content-Length: 5\r\nContent-Length: 5\r\n", Method::HEAD, FramingFault::RepeatedLength),
        ("Content-Length: 5, 5\r\n", Method::GET, FramingFault::BadLength),
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", Method::GET, FramingFault::LengthAndEncoding),
        ("Transfer-Encoding: gzip, chunked\r\n", Method::GET, FramingFault::UnsupportedEncoding),
    ] {
        let text = format!("HTTP/1.1 200 OK\r\n{lines}\r\n");
        assert_eq!(framing(&text, method), Err(ResponseError::Framing(fault)), "{lines:?}");
    }
    let old = "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(framing(old, Method::GET), Err(ResponseError::Framing(FramingFault::EncodingInHttp10)));
}

#[test]
fn connections_of_the_root() {
    let head = accepted("HTTP/1.1 200 OK\r\n\r\n");
    assert!(head.keep_alive(Framing::Fixed(1)) && !head.keep_alive(Framing::UntilClose));
    assert!(!accepted("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n").keep_alive(Framing::None));
    assert!(!accepted("HTTP/1.0 200 OK\r\n\r\n").keep_alive(Framing::Fixed(1)));
    assert!(accepted("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n").keep_alive(Framing::Chunked));
}

#[test]
fn interim_responses_are_skipped() {
    let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    let text = format!("{interim}HTTP/1.1 200 OK\r\n\r\nbody");
    for end in 0..text.len() - 4 {
        assert_eq!(parse_final_response(&text.as_bytes()[..end]), Ok(Parsed::Partial));
    }
    let Ok(Parsed::Complete { head, len }) = parse_final_response(text.as_bytes()) else { panic!("refused") };
    assert_eq!((head.status.as_u16(), len), (200, text.len() - 4));
    let endless = "HTTP/1.1 100 Continue\r\n\r\n".repeat(MAX_HEAD_BYTES / 25 + 1);
    assert_eq!(parse_final_response(endless.as_bytes()), Err(ResponseError::HeadTooLarge));
    let half = format!("A: {}\r\n\r\n", "b".repeat(MAX_HEAD_BYTES / 2));
    let both = format!("HTTP/1.1 103 Early Hints\r\n{half}HTTP/1.1 200 OK\r\n{half}");
    assert_eq!(parse_final_response(both.as_bytes()), Err(ResponseError::HeadTooLarge));
}

#[test]
fn bounds() {
    let lines = |count: usize| format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(count));
    accepted(&lines(MAX_HEADERS));
    assert_eq!(parse(&lines(MAX_HEADERS + 1)), Err(ResponseError::HeadTooLarge));
    let long = format!("HTTP/1.1 200 OK\r\nA: {}", "b".repeat(MAX_HEAD_BYTES));
    assert_eq!(parse(&long), Err(ResponseError::HeadTooLarge));
}

#[test]
fn a_date_is_added_once() {
    let now = UNIX_EPOCH + Duration::from_secs(784_111_777);
    let mut head = ResponseHead::new(StatusCode::OK);
    let mut out = Vec::new();
    head.write_head(now, &mut out);
    assert_eq!(out, b"HTTP/1.1 200 OK\r\ndate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n");
    head.headers.insert(DATE, http::HeaderValue::from_static("x"));
    out.clear();
    head.write_head(now, &mut out);
    assert_eq!(out, b"HTTP/1.1 200 OK\r\ndate: x\r\n\r\n");
}

/// Pieces that responses are made of, whole, broken and hostile.
const PIECES: &[&[u8]] = &[
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.0 404 x\r\n",
    b"HTTP/1.1 ",
    b"304",
    b"100 \r\n",
    b" ",
    b"Content-Length: ",
    b"1",
    b"23\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b"A: b\xff\r\n",
    b":",
    b"Date: x\r\n",
    b"\r\n\r\n",
    b"Connection: close\r\n",
];

fn assert_sound(bytes: &[u8]) {
    let _ = parse_final_response(bytes);
    let Ok(Parsed::Complete { mut head, len }) = parse_response(bytes) else { return };
    let taken = &bytes[..len];
    assert!(taken.ends_with(b"\r\n\r\n") && !taken.contains(&0));
    assert!(taken.iter().enumerate().all(|(at, &byte)| byte != b'\n' || taken[at - 1] == b'\r'));
    for method in [Method::GET, Method::HEAD] {
        if let Ok(Framing::Fixed(length)) = head.framing(&method) {
            assert!(length <= super::super::head::MAX_BODY_BYTES);
        }
    }
    let mut out = Vec::new();
    head.write_head(UNIX_EPOCH, &mut out);
    let Ok(Parsed::Complete { head: again, len }) = parse_response(&out) else { panic!("not read back") };
    assert_eq!(len, out.len());
    head.headers.entry(DATE).or_insert(http::HeaderValue::from_static("Thu, 01 Jan 1970 00:00:00 GMT"));
    assert_eq!(again, head);
}

#[test]
fn any_pieces() {
    bolero::check!().with_type::<Vec<u8>>().with_iterations(5_000).for_each(|picks| {
        let bytes: Vec<u8> =
            picks.iter().flat_map(|&pick| PIECES[usize::from(pick) % PIECES.len()]).copied().collect();
        assert_sound(&bytes);
        assert_sound(&[b"HTTP/1.1 200 OK\r\n", bytes.as_slice(), b"\r\n"].concat());
    });
}
