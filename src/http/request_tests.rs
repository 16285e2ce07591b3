use super::*;

fn head(text: &str) -> Result<RequestHead, Problem> {
    match parse(text.as_bytes())? {
        Parsed::Complete(head, len) => {
            assert_eq!(len, text.find("\r\n\r\n").unwrap() + 4);
            Ok(head)
        }
        Parsed::Partial => panic!("partial: {text:?}"),
    }
}

fn status(text: &str) -> u16 {
    head(text).map_or_else(|problem| problem.status.as_u16(), |_| 200)
}

#[test]
fn a_players_request() {
    let head = head("GET /a%20b.mp4?x=1 HTTP/1.1\r\nHost: h:8080\r\nRange: bytes=0-1\r\n\r\nrest").unwrap();
    assert_eq!((head.method.as_str(), head.target.as_str()), ("GET", "/a%20b.mp4?x=1"));
    assert_eq!(head.headers["range"], "bytes=0-1");
    assert!(head.keeps_alive());
    assert_eq!(head.body(), Ok(RequestBody::None));
}

#[test]
fn every_prefix_is_partial() {
    let text = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    for end in 0..text.len() {
        assert_eq!(parse(&text[..end]), Ok(Parsed::Partial), "{end}");
    }
}

#[test]
fn what_could_be_read_in_two_ways_is_refused() {
    for (text, expected) in [
        ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n", 501),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n",
            501,
        ),
        ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n", 501),
        ("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        ("GET / HTTP/1.1\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\n X: folded\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
        ("GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        ("GET x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 200),
        ("GET / HTTP/1.0\r\n\r\n", 200),
    ] {
        assert_eq!(status(text), expected, "{text:?}");
    }
}

#[test]
fn absolute_form_replaces_host() {
    let head = head("GET http://b:1/x?y HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert_eq!((head.target.as_str(), &head.headers["host"]), ("/x?y", &HeaderValue::from_static("b:1")));
}

#[test]
fn bounds() {
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(9000));
    assert_eq!(status(&long), 414);
    assert_eq!(parse(&[b"GET /".as_slice(), &[b'x'; 70_000]].concat()).unwrap_err().status, 414);
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(100));
    assert_eq!(status(&many), 431);
    let large = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "y".repeat(70_000));
    assert_eq!(parse(large.as_bytes()).unwrap_err().status, 431);
}

#[test]
fn methods() {
    let allowed = |method: &str| {
        let head = head(&format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n")).unwrap();
        head.require_safe_method().map_or_else(|problem| problem.status.as_u16(), |()| 200)
    };
    assert_eq!([allowed("GET"), allowed("HEAD"), allowed("POST"), allowed("BREW")], [200, 200, 405, 501]);
}

#[test]
fn keep_alive() {
    let keeps = |version: &str, connection: &str| {
        head(&format!("GET / HTTP/{version}\r\nHost: a\r\nConnection: {connection}\r\n\r\n"))
            .unwrap()
            .keeps_alive()
    };
    assert!(keeps("1.1", "x"));
    assert!(!keeps("1.1", "x, Close"));
    assert!(!keeps("1.0", "x"));
    assert!(keeps("1.0", "Keep-Alive"));
}

/// Also a fuzz target: `cargo bolero test http::request::tests::arbitrary_bytes`.
#[test]
fn arbitrary_bytes() {
    bolero::check!().for_each(|bytes: &[u8]| {
        if let Ok(Parsed::Complete(head, len)) = parse(bytes) {
            assert!(len <= bytes.len());
            let written = head.to_bytes();
            match parse(&written) {
                Ok(Parsed::Complete(again, _)) => {
                    assert_eq!(
                        (again.method, again.target, again.headers),
                        (head.method, head.target, head.headers)
                    );
                }
                other => panic!("{other:?} of {written:?}"),
            }
        }
    });
}
