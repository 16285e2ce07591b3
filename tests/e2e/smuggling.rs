//! Requests that two readers might understand differently, and what a hostile client writes into them: whoever reads
//! such a thing here refuses it and closes, and the root sees nothing of it.

use std::{io::Write, net::SocketAddr};

use crate::{
    chain::{Ground, Plan, Root, text},
    client::{Answer, Client, ask},
    content::content,
    process::{Process, Settings},
    roots::{After, ScriptedRoot},
};

/// Follows each attack, in the hope that somebody takes it for a request of its own.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n";

/// Heads whose end, or whose body's end, is a matter of opinion.
fn attacks() -> Vec<Vec<u8>> {
    let mut attacks: Vec<Vec<u8>> = Vec::new();
    // Header lines, each behind a good start.
    for lines in [
        // Two lengths.
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
        "Content-Length: 0\r\nContent-Length: 35",
        "Content-Length: 35\r\nContent-Length: 35",
        "Content-Length: 35, 35",
        "Content-Length: +35",
        "Content-Length: -1",
        "Content-Length: 0x23",
        "Content-Length: 3 5",
        "Content-Length:",
        "Content-Length: 99999999999999999999",
        "Content-Length: 18446744073709551617",
        // Codings that somebody may not see, or not take for chunked.
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: \x0bchunked",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: chunked;x=1",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding\t: chunked",
        "Transfer-Encoding:\r\n chunked",
        " Transfer-Encoding: chunked",
        "X: y\r\n Transfer-Encoding: chunked",
        "X: y\r\n\tz",
        // Line ends that are none.
        "X: y\nTransfer-Encoding: chunked",
        "X: y\rTransfer-Encoding: chunked",
        "X: y\r\r\nTransfer-Encoding: chunked",
        "X: y\n",
        // Bytes that end strings, names without a colon, and names that are none.
        "X: a\0b",
        "X\0: a",
        "no colon",
        ": no name",
        "X(): y",
        "Host: other",
    ] {
        // A method whose bodies go on to the root must not make a difference.
        for method in ["GET", "POST"] {
            let is_plain_chunked = lines == "Transfer-Encoding: chunked";
            if method == "GET" || !is_plain_chunked {
                let attack = format!("{method} /f HTTP/1.1\r\nHost: h\r\n{lines}\r\n\r\n0\r\n\r\n");
                attacks.push(attack.into_bytes());
            }
        }
    }
    for start in [
        "GET /f HTTP/1.1\nHost: h\n\n",
        "GET /f HTTP/1.1\r\n Host: h\r\n\r\n",
        "GET /f\0 HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET /f /g HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET  /f HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET /f\tHTTP/1.1\r\nHost: h\r\n\r\n",
        "GET /f\r\nHost: h\r\n\r\n",
        "GET /f HTTP/1.1 \r\nHost: h\r\n\r\n",
        "GET /f HTTP/1.1\r\n\r\n",
        "GET /f HTTP/1.1\r\nHost: a b\r\n\r\n",
        "GET /f HTTP/1.1\r\nHost: u@h\r\n\r\n",
        "GET http://u:p@h/f HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET //[::1/f\r\nHTTP/1.1\r\nHost: h\r\n\r\n",
        "GET /f HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "G\0T /f HTTP/1.1\r\nHost: h\r\n\r\n",
    ] {
        attacks.push(start.into());
    }
    attacks.push(format!("{} /f HTTP/1.1\r\nHost: h\r\n\r\n", "A".repeat(100_000)).into_bytes());
    attacks.push(format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "a".repeat(1_000_000)).into_bytes());
    attacks
}

/// Sends each attack with a request behind it; the first must be refused, and be the last.
fn check_refused(address: SocketAddr) {
    for attack in attacks() {
        let shown = String::from_utf8_lossy(&attack[..attack.len().min(90)]).into_owned();
        let mut client = Client::connect(address);
        // It may be refused, and closed, before all is said.
        let _ = client.sends(&[&attack, SMUGGLED.as_bytes()].concat());
        match client.answer("GET") {
            Ok(answer) => {
                assert!((400..506).contains(&answer.status()), "{shown:?}: {}", answer.status());
                assert_eq!(answer.header("connection"), Some("close"), "{shown:?}");
                assert!(!client.answers_again(), "{shown:?}: what follows was taken for a request");
            }
            // More than is thrown away lies behind: the answer went with the reset.
            Err(error) => assert!(attack.len() > 64 << 10, "{shown:?}: {error}"),
        }
    }
}

#[test]
fn a_downstream_refuses_what_can_be_read_in_two_ways() {
    let root = ScriptedRoot::start(|_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfilm")?;
        Ok(After::Keep)
    });
    let chain = Plan { paths: 1, depth: 0, root: Root::At(root.address), ..Plan::default() }.start(|_| {});
    check_refused(chain.address);
    let asked: Vec<_> = root.asked().iter().map(|asked| asked.line.clone()).collect();
    assert_eq!(asked, Vec::<String>::new(), "the root was asked");
    assert_eq!(ask(chain.address, "GET", "/f", "").text(), "film");
}

#[test]
fn a_root_refuses_what_can_be_read_in_two_ways() {
    let ground = Ground::new();
    ground.store("f", b"film");
    ground.store("smuggled", b"smuggled");
    let (_root, address): (Process, SocketAddr) = ground.start_root(&Settings::default());
    check_refused(address);
    assert_eq!(ask(address, "GET", "/f", "").text(), "film");
}

/// What a client may write reaches the root as one request with one meaning.
#[test]
fn nothing_is_injected_towards_the_root() {
    let root = ScriptedRoot::start(|_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
        Ok(After::Keep)
    });
    let chain = Plan { paths: 1, depth: 0, root: Root::At(root.address), ..Plan::default() }.start(|_| {});
    let mut client = Client::connect(chain.address);
    // A body is not for the root: it could be taken for the next request on its connection.
    let body = format!("GET /f HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{SMUGGLED}", SMUGGLED.len());
    let rows = [
        (body.as_str(), "GET /f HTTP/1.1", "h"),
        ("GET /f%0d%0aX-Evil:%201 HTTP/1.1\r\nHost: h\r\n\r\n", "GET /f%0d%0aX-Evil:%201 HTTP/1.1", "h"),
        ("GET http://other/f?a HTTP/1.1\r\nHost: h\r\n\r\n", "GET /f?a HTTP/1.1", "other"),
        // Naming a header of the connection's must not take away what a request needs.
        ("GET /f HTTP/1.1\r\nHost: h\r\nConnection: host, keep-alive\r\n\r\n", "GET /f HTTP/1.1", "h"),
    ];
    for (request, _, _) in rows {
        client.send(request);
        let answer = client.answer("GET").unwrap();
        assert_eq!((answer.status(), answer.text().as_str()), (200, "ok"), "{request}");
    }
    let asked = root.asked();
    assert_eq!(asked.len(), rows.len());
    for (asked, (request, line, host)) in asked.iter().zip(rows) {
        assert_eq!((asked.line.as_str(), asked.header("host")), (line, Some(host)), "{request}");
        for name in ["x-evil", "content-length", "transfer-encoding"] {
            assert_eq!(asked.header(name), None, "{request}: {name}");
        }
    }
    // No tunnels.
    client.send("CONNECT other:80 HTTP/1.1\r\nHost: other:80\r\n\r\n");
    assert!(matches!(client.answer("GET").unwrap().status(), 400 | 405 | 501));
}

/// A head that is just small enough for us is too large with what we add: its client is told, and no lane suffers.
#[test]
fn heads_at_the_bound() {
    let chain = Plan::default().start(|ground| ground.store("f", b"film"));
    let mut client = Client::connect(chain.address);
    let padding = |len: usize| {
        let begin = "GET /f HTTP/1.1\r\nHost: h\r\nX: ";
        format!("{begin}{}\r\n\r\n", "x".repeat(len - begin.len() - 4))
    };
    for (len, status) in [(65_000, 200), (65_530, 431), (65_536, 431), (65_000, 200)] {
        client.send(padding(len));
        let answer = client.answer("GET").unwrap();
        assert_eq!(answer.status(), status, "{len}: {}", answer.text());
    }
    for (lines, status) in [(90, 200), (99, 431), (90, 200)] {
        let answer = client.ask("GET", "/f", &"X: y\r\n".repeat(lines)).unwrap();
        assert_eq!(answer.status(), status, "{lines} lines: {}", answer.text());
    }
    assert!(!chain.downstream.log().contains("lane"), "{}", chain.downstream.log());
}

/// Many, overlapping and huge ranges cost no more than the file.
#[test]
fn range_bombs() {
    let bytes = content(100_000);
    for root in [Root::Plait, Root::Directory] {
        let chain = Plan { root, ..Plan::default() }.start(|ground| ground.store("f", &bytes));
        let many = (0..5_000).map(|first| format!("{first}-")).collect::<Vec<_>>().join(",");
        for ranges in [
            many,
            vec!["0-"; 10_000].join(","),
            vec!["-1"; 1_300].join(","),
            "0-18446744073709551615".into(),
            "18446744073709551615-18446744073709551616".into(),
            format!("0-{}", "9".repeat(10_000)),
            format!("-{}", "9".repeat(10_000)),
            ",".repeat(30_000),
            "5-1".into(),
        ] {
            let shown = &ranges[..ranges.len().min(40)];
            let mut client = Client::connect(chain.address);
            let answer = client.ask("GET", "/f", &format!("Range: bytes={ranges}\r\n")).unwrap();
            assert!(matches!(answer.status(), 200 | 206 | 416), "{shown}: {}", answer.status());
            assert!(answer.body.len() <= bytes.len(), "{shown}: {} bytes", answer.body.len());
            if answer.status() == 200 {
                assert!(answer.body == bytes, "{shown}");
            }
            assert_eq!(client.ask("GET", "/f", "Range: bytes=0-9\r\n").unwrap().body, bytes[..10], "{shown}");
        }
    }
}

/// The same with a cache, which answers several ranges in parts: what overlaps is joined, what are too many ranges are
/// none (RFC 9110 section 14.2), and neither what is fetched nor what is kept grows with their number.
#[test]
fn range_bombs_at_a_cache() {
    const BOMBS: usize = 1000;
    /// With cores to itself a debug build grows by a few megabytes; a body for each range would be three gigabytes.
    const GROWTH_BYTES_MAX: u64 = 48 << 20;
    /// Around one part of an answer: a boundary, a type, a range.
    const LINES_BYTES_MAX: usize = 256;
    let bytes = content(3_000_000);
    let list = |range: &dyn Fn(usize) -> String| (0..BOMBS).map(range).collect::<Vec<_>>().join(",");
    let few = |range: &dyn Fn(usize) -> String| (0..32).map(range).collect::<Vec<_>>().join(",");
    let bombs = [
        list(&|first| format!("{first}-")),
        list(&|_| "0-2999998".into()),
        list(&|number| format!("{}-{}", number * 3000, number * 3000)),
        list(&|number| format!("-{}", number + 1)),
        list(&|number| format!("{}-18446744073709551615", 2_999_999 - number)),
        // As many as are answered in parts.
        few(&|first| format!("{}-", first + 1)),
        few(&|_| "1-2999999".into()),
        few(&|number| format!("{0}-{0}", number * 90_000)),
        few(&|number| format!("{}-{}", number * 90_000, number * 90_000 + 89_000)),
        few(&|number| format!("{}-{}", 2_999_999 - number * 1000, u64::MAX)),
    ];
    for root in [Root::Plait, Root::Directory] {
        let ground = Ground::new();
        for file in 0..bombs.len() {
            ground.store(&format!("f{file}"), &bytes);
        }
        let cache = ground.scratch("cache");
        let downstream = vec!["--cache".to_owned(), text(&cache).to_owned()];
        let chain = Plan { root, downstream, ..Plan::default() }.start_on(ground);
        let mut client = Client::connect(chain.address);
        assert!(client.ask("GET", "/f0", "Range: bytes=0-9\r\n").unwrap().body == bytes[..10]);
        let before = chain.downstream.resident_bytes();
        // Each on a file that the cache does not have yet, and once more on what it has then.
        for (file, ranges) in bombs.iter().enumerate().chain(bombs.iter().enumerate()) {
            let (target, shown) = (format!("/f{file}"), &ranges[..40]);
            let answer = client.ask("GET", &target, &format!("Range: bytes={ranges}\r\n")).unwrap();
            let ranges_len = ranges.split(',').count();
            match (answer.status(), answer.header("content-range")) {
                (200, _) => assert!(answer.body == bytes, "{shown}"),
                (206, Some(range)) => {
                    let (first, last) = span(range);
                    assert!(answer.body == bytes[first..=last], "{shown}: {range}");
                }
                (206, None) => {
                    let got = parts(&answer, &bytes);
                    let body_len = answer.body.len();
                    assert!(got <= bytes.len() && ranges_len <= 32, "{shown}: {got} bytes in parts");
                    assert!(body_len <= got + 33 * LINES_BYTES_MAX, "{shown}: {body_len} bytes for {got}");
                }
                (status, _) => panic!("{shown}: {status}"),
            }
            let ten = client.ask("GET", &target, "Range: bytes=1000-1009\r\n").unwrap();
            assert!(ten.body == bytes[1000..1010], "{shown}");
        }
        let grown = chain.downstream.peak_resident_bytes().saturating_sub(before);
        assert!(grown < GROWTH_BYTES_MAX, "{} MiB more", grown >> 20);
    }
}

/// First and last byte of a `Content-Range`.
fn span(range: &str) -> (usize, usize) {
    let (first, last) =
        range.strip_prefix("bytes ").unwrap().split_once('/').unwrap().0.split_once('-').unwrap();
    (first.parse().unwrap(), last.parse().unwrap())
}

/// Checks every part of a `multipart/byteranges` against `bytes`; returns how many bytes they have.
fn parts(answer: &Answer, bytes: &[u8]) -> usize {
    let kind = answer.header("content-type").unwrap();
    let boundary = kind.strip_prefix("multipart/byteranges; boundary=").unwrap();
    let (mut rest, mut got) = (&answer.body[..], 0);
    loop {
        let line = format!("\r\n--{boundary}");
        rest = rest.strip_prefix(line.as_bytes()).expect("a boundary");
        if rest == b"--\r\n" {
            return got;
        }
        let head_len = rest.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
        let head = String::from_utf8_lossy(&rest[..head_len]);
        let range = head.lines().find_map(|line| line.strip_prefix("Content-Range: ")).unwrap();
        let (first, last) = span(range);
        let part = &bytes[first..=last];
        rest = rest[head_len..].strip_prefix(part).expect("the part's bytes");
        got += part.len();
    }
}
