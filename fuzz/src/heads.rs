//! Heads of requests and responses, from clients and roots that may say anything.

use std::{path::Component, time::UNIX_EPOCH};

use http::{HeaderValue, Method, header::DATE};
use plait::http::{
    forward::{request_to_root, response_to_client},
    head::{MAX_BODY_BYTES, MAX_HEAD_BYTES, MAX_HEADERS, Parsed},
    request::{RequestHead, parse_request},
    response::{Framing, ResponseHead, parse_final_response, parse_response},
    target::relative_path,
};

/// No reader may see an end, or another line, where we see none.
fn assert_plain(head: &[u8]) {
    assert!(head.ends_with(b"\r\n\r\n") && !head.contains(&0));
    assert!(!head[..head.len() - 2].windows(4).any(|four| four == b"\r\n\r\n"));
    assert!(head.iter().enumerate().all(|(at, &byte)| byte != b'\n' || head[at - 1] == b'\r'));
}

/// With what a proxy adds, a head at the bounds is beyond them: the next reader refuses it.
fn is_too_large(head: &[u8]) -> bool {
    head.len() > MAX_HEAD_BYTES || head.iter().filter(|&&byte| byte == b'\n').count() > MAX_HEADERS + 2
}

fn written(head: &RequestHead) -> Vec<u8> {
    let mut out = Vec::new();
    head.write_head(&mut out);
    out
}

fn request(bytes: &[u8]) {
    let Ok(Parsed::Complete { head, len }) = parse_request(bytes) else { return };
    assert_plain(&bytes[..len]);
    assert!(head.target().starts_with('/'));
    if let Ok(path) = relative_path(head.target()) {
        let inside = |part| matches!(part, Component::Normal(_) | Component::CurDir);
        assert!(path.components().all(inside), "{path:?}");
    }
    let out = written(&head);
    let again = parse_request(&[&out, b"rest".as_slice()].concat());
    assert_eq!(again, Ok(Parsed::Complete { head: head.clone(), len: out.len() }));
    // What the root reads is one request without a body, for the same thing.
    if let Ok(forwarded) = request_to_root(&head, Some(&HeaderValue::from_static("root"))) {
        let out = written(&forwarded);
        assert_plain(&out);
        if is_too_large(&out) {
            return;
        }
        let Ok(Parsed::Complete { head: read, len }) = parse_request(&out) else { panic!("{forwarded:?}") };
        assert_eq!((len, read.target(), &read.method), (out.len(), head.target(), &head.method));
        assert_eq!(read.headers, forwarded.headers);
        for name in ["content-length", "transfer-encoding", "connection", "upgrade", "te", "expect"] {
            assert!(!read.headers.contains_key(name), "{name}");
        }
    }
}

fn response(bytes: &[u8]) {
    let _ = parse_final_response(bytes);
    let Ok(Parsed::Complete { mut head, len }) = parse_response(bytes) else { return };
    assert_plain(&bytes[..len]);
    let reads_back = |head: &mut ResponseHead| {
        let mut out = Vec::new();
        head.write_head(UNIX_EPOCH, &mut out);
        assert_plain(&out);
        if is_too_large(&out) {
            return;
        }
        let Ok(Parsed::Complete { head: again, len }) = parse_response(&out) else { panic!("{head:?}") };
        head.headers.entry(DATE).or_insert(HeaderValue::from_static("Thu, 01 Jan 1970 00:00:00 GMT"));
        assert_eq!((len, &again), (out.len(), &*head));
    };
    for method in [Method::GET, Method::HEAD] {
        let Ok(framing) = head.framing(&method) else { continue };
        if let Framing::Fixed(length) = framing {
            assert!(length <= MAX_BODY_BYTES);
        }
        // The client sees the same end of the body.
        let request = RequestHead::new(method.clone(), "/", "h").expect("a good request");
        let mut told = response_to_client(&head, framing, &request, true).head;
        let same = match framing {
            Framing::UntilClose => Framing::Chunked,
            framing => framing,
        };
        assert_eq!(told.framing(&method), Ok(same), "{told:?}");
        reads_back(&mut told);
    }
    reads_back(&mut head);
}

#[test]
fn requests_and_responses() {
    bolero::check!().for_each(|bytes: &[u8]| {
        request(bytes);
        response(bytes);
        // Behind a good start nothing is lost on the first line.
        request(&[b"GET / HTTP/1.1\r\nHost: h\r\n", bytes, b"\r\n\r\n"].concat());
        response(&[b"HTTP/1.1 200 OK\r\n", bytes, b"\r\n\r\n"].concat());
    });
}
