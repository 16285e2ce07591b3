//! What is accepted, what is refused with which status, and that no input breaks the invariants.

use super::*;

fn parse(text: &str) -> Result<Parsed<RequestHead>, RequestError> {
    parse_request(text.as_bytes())
}

fn accepted(text: &str) -> RequestHead {
    match parse(text) {
        Ok(Parsed::Complete { head, .. }) => head,
        other => panic!("{text:?} gave {other:?}"),
    }
}

fn refused(text: &str) -> u16 {
    match parse(text) {
        Err(error) => {
            assert!(error.to_string().starts_with("client: "), "{error}");
            assert_eq!(error.problem().body(), format!("{error}\n"));
            error.status().as_u16()
        }
        other => panic!("{text:?} gave {other:?}"),
    }
}

fn with(lines: &str) -> String {
    format!("GET /a HTTP/1.1\r\nHost: h\r\n{lines}\r\n")
}

#[test]
fn a_plain_request() {
    let text =
        "GET /where?q=now HTTP/1.1\r\nHost: www.example.org\r\nRange: bytes=0-\r\nX: 1\r\nx:\t2 \r\n\r\nGET";
    let Ok(Parsed::Complete { head, len }) = parse(text) else { panic!("refused") };
    assert_eq!(len, text.len() - 3);
    assert_eq!((head.target(), &head.method, head.version), ("/where?q=now", &Method::GET, Version::Http11));
    assert_eq!(head.headers.get_all("x").iter().collect::<Vec<_>>(), ["1", "2"]);
    assert_eq!(head.body_len(), BodyLen::None);
    assert!(head.keep_alive());
}

#[test]
fn every_prefix_is_partial() {
    let text = "\r\nGET / HTTP/1.1\r\nHost: h\r\nA: b\r\n\r\n";
    for end in 0..text.len() {
        assert_eq!(parse(&text[..end]), Ok(Parsed::Partial), "{:?}", &text[..end]);
    }
    assert!(matches!(parse(text), Ok(Parsed::Complete { len, .. }) if len == text.len()));
}

#[test]
fn line_ends_and_spaces() {
    for text in [
        "GET / HTTP/1.1\nHost: h\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\n\n",
        "GET / HTTP/1.1\r\nHost: h\rX: y\r\n\r\n",
        "\nGET / HTTP/1.1\r\nHost: h\r\n\r\n",
        "\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n",
        " GET / HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET  / HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET / HTTP/1.1 \r\nHost: h\r\n\r\n",
        "GET\t/ HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET / HTTP/1.1\r\n Host: h\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : h\r\n\r\n",
        "GET /\r\n\r\n",
        "GET / FTP/1.1\r\nHost: h\r\n\r\n",
        "\u{16}\u{3}\u{1}\u{2}\0\u{1}",
    ] {
        assert_eq!(refused(text), 400, "{text:?}");
    }
    for lines in
        ["A: b\r\n c\r\n", "A: b\0c\r\n", "A: b\u{7f}\r\n", ": b\r\n", "A\r\n", "A\0: b\r\n", "A(: b\r\n"]
    {
        assert_eq!(refused(&with(lines)), 400, "{lines:?}");
    }
}

#[test]
fn a_bare_line_feed_in_the_next_request_is_not_this_one_s_fault() {
    assert!(matches!(parse(&(with("") + "garbage\n\0")), Ok(Parsed::Complete { .. })));
}

#[test]
fn versions() {
    for version in ["HTTP/2.0", "HTTP/1.2", "HTTP/0.9", "HTTP/3"] {
        assert_eq!(refused(&format!("GET / {version}\r\nHost: h\r\n\r\n")), 505, "{version}");
    }
    assert_eq!(refused("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 505);
    assert_eq!(accepted("GET / HTTP/1.0\r\n\r\n").version, Version::Http10);
}

#[test]
fn keep_alive_by_version_and_connection() {
    for (version, line, expected) in [
        ("1.1", "", true),
        ("1.1", "Connection: close\r\n", false),
        ("1.1", "Connection: x, Close\r\n", false),
        ("1.1", "Connection: keep-alive\r\nConnection: close\r\n", false),
        ("1.0", "", false),
        ("1.0", "Connection: Keep-Alive\r\n", true),
    ] {
        let head = accepted(&format!("GET / HTTP/{version}\r\nHost: h\r\n{line}\r\n"));
        assert_eq!(head.keep_alive(), expected, "{version} {line:?}");
    }
}

#[test]
fn hosts() {
    let host = |lines: &str| format!("GET / HTTP/1.1\r\n{lines}\r\n");
    for good in ["h", "h:80", "h:", "1.2.3.4:8080", "[::1]:80", "a.b-c_d"] {
        accepted(&host(&format!("Host: {good}\r\n")));
    }
    for bad in [
        "", "a b", "u@h", "h@h", "h:1@h", "h/x", "h:x", "h:+1", "h:65536", ":80", "[::1", "[::1]x", "a[b]:1",
        "h:1:2", "h?",
    ] {
        assert_eq!(refused(&host(&format!("Host: {bad}\r\n"))), 400, "{bad:?}");
    }
    assert_eq!(refused(&host("")), 400);
    assert_eq!(refused(&host("Host: h\r\nHost: h\r\n")), 400);
    assert_eq!(refused("GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n"), 400);
}

#[test]
fn absolute_targets_replace_the_host() {
    for (target, path, host) in [
        ("http://www.example.org/pub/WWW/TheProject.html?a", "/pub/WWW/TheProject.html?a", "www.example.org"),
        ("HTTP://h:81", "/", "h:81"),
        ("http://h?q", "/?q", "h"),
    ] {
        let head = accepted(&format!("GET {target} HTTP/1.1\r\nHost: other\r\n\r\n"));
        assert_eq!(head.target(), path);
        assert_eq!(head.headers.get_all(HOST).iter().collect::<Vec<_>>(), [host]);
    }
    for target in
        ["https://h/", "http:///x", "http://u@h/", "http://", "ftp", "*", "h:80", "/a#b", "\u{e9}bc://x"]
    {
        assert_eq!(refused(&format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n")), 400, "{target}");
    }
    assert_eq!(accepted("GET /\u{fc}.mp4 HTTP/1.1\r\nHost: h\r\n\r\n").target(), "/\u{fc}.mp4");
}

#[test]
fn methods() {
    assert_eq!(refused("CONNECT h:443 HTTP/1.1\r\nHost: h\r\n\r\n"), 501);
    assert_eq!(refused("OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n"), 501);
    for (method, status) in [
        ("GET", 0),
        ("HEAD", 0),
        ("POST", 405),
        ("DELETE", 405),
        ("OPTIONS", 405),
        ("BREW", 501),
        ("get", 501),
    ] {
        let head = accepted(&format!("{method} / HTTP/1.1\r\nHost: h\r\n\r\n"));
        let answer = head.method_allowed().map_or_else(|error| error.status().as_u16(), |()| 0);
        assert_eq!(answer, status, "{method}");
    }
    let error = accepted("PUT / HTTP/1.1\r\nHost: h\r\n\r\n").method_allowed().unwrap_err();
    assert_eq!(error.problem().head().headers["allow"], "GET, HEAD");
}

#[test]
fn body_lengths() {
    assert_eq!(accepted(&with("Content-Length: 0\r\n")).body_len(), BodyLen::None);
    assert_eq!(accepted(&with("Content-Length: 0042\r\n")).body_len(), BodyLen::Fixed(42));
    assert_eq!(accepted(&with("Transfer-Encoding: Chunked\r\n")).body_len(), BodyLen::Chunked);
    for (lines, status) in [
        ("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", 400),
        ("Content-Length: 1\r\nContent-Length: 1\r\n", 400),
        ("Content-Length: 1, 1\r\n", 400),
        ("Content-Length: +1\r\n", 400),
        ("Content-Length: -1\r\n", 400),
        ("Content-Length: 0x1\r\n", 400),
        ("Content-Length: 1 1\r\n", 400),
        ("Content-Length:\r\n", 400),
        ("Content-Length: 1152921504606846977\r\n", 400),
        ("Content-Length: 99999999999999999999\r\n", 400),
        ("Content-Length: 00000000000000000001\r\n", 400),
        ("Transfer-Encoding: gzip, chunked\r\n", 501),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 501),
        ("Transfer-Encoding: identity\r\n", 501),
        ("Transfer-Encoding:\r\n", 501),
        ("Transfer-Encoding: xchunked\r\n", 501),
    ] {
        assert_eq!(refused(&with(lines)), status, "{lines:?}");
    }
    assert_eq!(refused("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), 400);
}

#[test]
fn bounds() {
    let line = |len: usize| format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "a".repeat(len - 16));
    accepted(&line(MAX_REQUEST_LINE_BYTES));
    assert_eq!(refused(&line(MAX_REQUEST_LINE_BYTES + 1)), 414);
    assert_eq!(parse(&line(MAX_REQUEST_LINE_BYTES)[..MAX_REQUEST_LINE_BYTES]), Ok(Parsed::Partial));
    assert_eq!(refused(&"G".repeat(MAX_REQUEST_LINE_BYTES + 1)), 414);

    accepted(&with(&"A: b\r\n".repeat(MAX_HEADERS - 1)));
    assert_eq!(refused(&with(&"A: b\r\n".repeat(MAX_HEADERS))), 431);

    let value = |len: usize| with(&format!("A: {}\r\n", "b".repeat(len - with("A: \r\n").len())));
    accepted(&value(MAX_HEAD_BYTES));
    assert_eq!(refused(&value(MAX_HEAD_BYTES + 1)), 431);
    assert_eq!(parse(&value(MAX_HEAD_BYTES)[..MAX_HEAD_BYTES - 1]), Ok(Parsed::Partial));
}

#[test]
fn our_own_requests() {
    let head = RequestHead::new(Method::GET, "/a?b", "h:80").unwrap();
    let mut out = Vec::new();
    head.write_head(&mut out);
    assert_eq!(out, b"GET /a?b HTTP/1.1\r\nhost: h:80\r\n\r\n");
    assert_eq!(RequestHead::new(Method::GET, "/a HTTP/1.1\r\nX: y", "h"), Err(RequestError::Target));
    assert_eq!(RequestHead::new(Method::GET, "/a b", "h"), Err(RequestError::Target));
    assert_eq!(RequestHead::new(Method::GET, "/a", "h\r\nX: y"), Err(RequestError::Host));
}

/// Pieces that requests are made of, whole, broken and hostile, so that random picks get deep into the parser.
const PIECES: &[&[u8]] = &[
    b"GET ",
    b"HEAD ",
    b"/",
    b"/a%20b?c",
    b"http://h/x",
    b" HTTP/1.1\r\n",
    b" HTTP/1.0\r\n",
    b"Host: h\r\n",
    b"Host",
    b": ",
    b"x",
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b"Content-Length: ",
    b"1",
    b"Connection: close\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"A: b\xff\r\n",
    b"GET / HTTP/1.1\r\nHost: h\r\n",
];

fn assert_sound(bytes: &[u8]) {
    let Ok(Parsed::Complete { head, len }) = parse_request(bytes) else { return };
    let taken = &bytes[..len];
    assert!(taken.ends_with(b"\r\n\r\n") && !taken.contains(&0));
    assert!(taken.iter().enumerate().all(|(at, &byte)| byte != b'\n' || taken[at - 1] == b'\r'));
    assert!(head.target().starts_with('/'));
    let mut out = Vec::new();
    head.write_head(&mut out);
    let written = out.len();
    out.extend_from_slice(b"rest");
    assert_eq!(parse_request(&out), Ok(Parsed::Complete { head, len: written }));
}

#[test]
fn any_pieces() {
    bolero::check!().with_type::<Vec<u8>>().with_iterations(5_000).for_each(|picks| {
        let bytes: Vec<u8> =
            picks.iter().flat_map(|&pick| PIECES[usize::from(pick) % PIECES.len()]).copied().collect();
        assert_sound(&bytes);
        let after_a_good_start = [b"GET / HTTP/1.1\r\nHost: h\r\n", bytes.as_slice(), b"\r\n"].concat();
        assert_sound(&after_a_good_start);
    });
}
