//! HTTP/1.1 through the chain: what a client may ask, and what it is told when something is wrong.

use std::{
    io::Write,
    net::{SocketAddr, TcpStream},
    sync::OnceLock,
};

use crate::{
    chain::{Chain, Plan, Root},
    client::{Answer, Client, ask},
    content::{content, hash},
    missing::installed,
    process::Settings,
    roots::{After, ScriptedRoot},
};

const LENGTH: usize = 300_000;

/// Every kind of root answers ranges and conditions; the chain must pass all of them on.
fn each_root(check: impl Fn(&Chain)) {
    for root in [Root::Plait, Root::Nginx, Root::Directory] {
        if root == Root::Nginx && !installed("nginx") {
            continue;
        }
        let chain = Plan { root, ..Plan::default() }.start(|ground| ground.store("f.mp4", &content(LENGTH)));
        check(&chain);
    }
}

fn film() -> &'static [u8] {
    static FILM: OnceLock<Vec<u8>> = OnceLock::new();
    FILM.get_or_init(|| content(LENGTH))
}

fn get(chain: &Chain, headers: &str) -> Answer {
    ask(chain.address, "GET", "/f.mp4", headers)
}

#[test]
fn head_tells_what_get_would() {
    each_root(|chain| {
        let got = get(chain, "");
        // On one connection: a body that came by mistake would be taken for the next answer.
        let mut client = Client::connect(chain.address);
        for _ in 0..2 {
            let told = client.ask("HEAD", "/f.mp4", "").unwrap();
            assert_eq!(told.status(), 200);
            for name in ["content-length", "content-type", "etag", "last-modified", "accept-ranges"] {
                assert!(told.header(name).is_some(), "{name} is missing");
                assert_eq!(told.header(name), got.header(name), "{name}");
            }
            assert_eq!(told.header("content-length"), Some("300000"));
            assert_eq!(told.header("content-type"), Some("video/mp4"));
        }
        assert_eq!(client.ask("HEAD", "/missing", "").unwrap().status(), 404);
        assert_eq!(hash(&client.ask("GET", "/f.mp4", "").unwrap().body), hash(film()));
    });
}

#[test]
fn ranges() {
    each_root(|chain| {
        let last = LENGTH - 1;
        for (range, first, end) in [
            ("0-0", 0, 1),
            ("0-99", 0, 100),
            ("65535-65536", 65_535, 65_537),
            ("299999-", last, LENGTH),
            ("100000-", 100_000, LENGTH),
            ("-1", last, LENGTH),
            ("-70000", LENGTH - 70_000, LENGTH),
            ("-9999999", 0, LENGTH),
            ("5-9999999", 5, LENGTH),
        ] {
            let answer = get(chain, &format!("Range: bytes={range}\r\n"));
            assert_eq!(answer.status(), 206, "{range}");
            let wanted = format!("bytes {first}-{}/{LENGTH}", end - 1);
            assert_eq!(answer.header("content-range"), Some(wanted.as_str()), "{range}");
            assert_eq!(answer.header("content-length"), Some((end - first).to_string().as_str()), "{range}");
            assert!(answer.body == film()[first..end], "{range} brought other bytes");
        }
        for range in ["300000-", "300000-300001", "-0"] {
            let answer = get(chain, &format!("Range: bytes={range}\r\n"));
            assert_eq!(answer.status(), 416, "{range}");
            assert_eq!(answer.header("content-range"), Some("bytes */300000"), "{range}");
        }
        // What is no range is as if it were not there (RFC 9110 section 14.2).
        for range in ["bytes=5-4", "bytes=a-b", "seconds=1-2"] {
            let answer = get(chain, &format!("Range: {range}\r\n"));
            assert!(matches!(answer.status(), 200 | 416), "{range}: {}", answer.status());
        }
    });
}

#[test]
fn conditions() {
    each_root(|chain| {
        let whole = get(chain, "");
        let etag = whole.header("etag").unwrap();
        let modified = whole.header("last-modified").unwrap();
        let status = |headers: String| {
            let answer = get(chain, &headers);
            match answer.status() {
                200 => assert!(answer.body == film()),
                304 => assert_eq!((answer.header("etag"), answer.body.len()), (Some(etag), 0)),
                206 => assert_eq!(answer.body, film()[..10]),
                _ => {}
            }
            answer.status()
        };
        assert_eq!(status(format!("If-None-Match: {etag}\r\n")), 304);
        assert_eq!(status(format!("If-None-Match: \"other\", {etag}\r\n")), 304);
        assert_eq!(status("If-None-Match: \"other\"\r\n".into()), 200);
        assert_eq!(status(format!("If-Modified-Since: {modified}\r\n")), 304);
        assert_eq!(status("If-Modified-Since: Thu, 01 Jan 1998 00:00:00 GMT\r\n".into()), 200);
        assert_eq!(status(format!("If-None-Match: \"other\"\r\nIf-Modified-Since: {modified}\r\n")), 200);
        assert_eq!(status(format!("Range: bytes=0-9\r\nIf-Range: {etag}\r\n")), 206);
        assert_eq!(status("Range: bytes=0-9\r\nIf-Range: \"other\"\r\n".into()), 200);
        assert_eq!(status(format!("Range: bytes=0-9\r\nIf-Range: {modified}\r\n")), 206);
        let old = "Range: bytes=0-9\r\nIf-Range: Thu, 01 Jan 1998 00:00:00 GMT\r\n";
        assert_eq!(status(old.into()), 200);
    });
}

#[test]
fn a_304_leaves_the_connection_in_step() {
    let chain = Plan::default().start(|ground| ground.store("f.mp4", film()));
    let mut client = Client::connect(chain.address);
    let etag = client.ask("GET", "/f.mp4", "").unwrap().header("etag").unwrap().to_owned();
    for _ in 0..3 {
        let answer = client.ask("GET", "/f.mp4", &format!("If-None-Match: {etag}\r\n")).unwrap();
        assert_eq!(answer.status(), 304);
        let range = client.ask("GET", "/f.mp4", "Range: bytes=7-8\r\n").unwrap();
        assert_eq!(range.body, film()[7..9]);
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    for executor in ["tokio-uring", "glommio"] {
        let settings = Settings { executor, ..Settings::default() };
        let chain = Plan { settings, ..Plan::default() }.start(|ground| {
            ground.store("f.mp4", film());
            ground.store("g.mp4", b"another");
        });
        let mut client = Client::connect(chain.address);
        let get = |target: &str, more: &str| format!("GET {target} HTTP/1.1\r\nHost: h\r\n{more}\r\n");
        // All in one segment, and the first byte of the next request too.
        let all = [
            get("/f.mp4", ""),
            get("/g.mp4", ""),
            get("/missing", ""),
            get("/f.mp4", "Range: bytes=1-2\r\n"),
            "G".to_owned(),
        ];
        client.send(all.concat());
        assert_eq!(hash(&client.answer("GET").unwrap().body), hash(film()));
        assert_eq!(client.answer("GET").unwrap().body, b"another");
        assert_eq!(client.answer("GET").unwrap().status(), 404);
        assert_eq!(client.answer("GET").unwrap().body, film()[1..3]);
        client.send("ET /g.mp4 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
        let last = client.answer("GET").unwrap();
        assert_eq!(
            (last.status(), last.header("connection"), last.text().as_str()),
            (200, Some("close"), "another")
        );
        assert!(client.is_closed());
    }
}

#[test]
fn many_pipelined_requests() {
    let chain = Plan::default().start(|ground| ground.store("f.mp4", film()));
    let mut client = Client::connect(chain.address);
    let request =
        |first| format!("GET /f.mp4 HTTP/1.1\r\nHost: h\r\nRange: bytes={first}-{}\r\n\r\n", first + 9);
    client.send((0..300).map(request).collect::<String>());
    for first in 0..300 {
        assert_eq!(client.answer("GET").unwrap().body, film()[first..first + 10], "{first}");
    }
}

#[test]
fn http_1_0_clients() {
    let root = ScriptedRoot::of_pieces(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        vec![b"5\r\nhello\r\n0\r\n\r\n".to_vec()],
        || After::Keep,
    );
    let chain = Plan { root: Root::At(root.address), ..Plan::default() }.start(|_| {});
    let mut client = Client::connect(chain.address);
    client.send("GET / HTTP/1.0\r\n\r\n");
    let answer = client.answer("GET").unwrap();
    // It knows no chunks: the end of the connection is the end of the body.
    assert_eq!((answer.header("transfer-encoding"), answer.text().as_str()), (None, "hello"));
    assert_eq!(answer.header("connection"), Some("close"));
}

/// What one connection is told after these bytes, and whether it is closed then.
fn told(chain: &Chain, bytes: impl AsRef<[u8]>) -> Answer {
    let mut client = Client::connect(chain.address);
    client.send(bytes);
    client.answer("GET").unwrap()
}

#[test]
fn wrong_requests_are_told_so() {
    let chain = Plan::default().start(|ground| ground.store("f.mp4", film()));
    let get = |headers: &str| format!("GET /f.mp4 HTTP/1.1\r\n{headers}\r\n");
    let long = "a".repeat(20_000);
    let rows: Vec<(String, u16)> = vec![
        ("nonsense\r\n\r\n".into(), 400),
        (get(""), 400),
        (get("Host: a\r\nHost: b\r\n"), 400),
        (get("Host: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n"), 400),
        (get("Host: a\r\nno colon\r\n"), 400),
        (get("Host : a\r\n"), 400),
        (get(&format!("Host: a\r\n{}", "X-Many: 1\r\n".repeat(300))), 431),
        (get(&format!("Host: a\r\n{}", format!("X-Long: {long}\r\n").repeat(4))), 431),
        (format!("GET /{long} HTTP/1.1\r\nHost: a\r\n\r\n"), 414),
        ("GET /missing HTTP/1.1\r\nHost: a\r\n\r\n".into(), 404),
        ("POST /f.mp4 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n".into(), 405),
        ("DELETE /f.mp4 HTTP/1.1\r\nHost: a\r\n\r\n".into(), 405),
        ("BREW /f.mp4 HTTP/1.1\r\nHost: a\r\n\r\n".into(), 501),
        (format!("{long} /f.mp4 HTTP/1.1\r\nHost: a\r\n\r\n"), 414),
        (get("Host: a\r\nTransfer-Encoding: gzip\r\n"), 501),
        ("GET /f.mp4 HTTP/2.5\r\nHost: a\r\n\r\n".into(), 505),
        (format!("POST /f.mp4 HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", 1_u64 << 40), 413),
        (get(&format!("Host: a\r\nContent-Length: {}\r\n", 1_u64 << 40)), 413),
    ];
    for (request, status) in rows {
        let shown = &request[..request.len().min(120)];
        let answer = told(&chain, &request);
        assert_eq!(answer.status(), status, "{shown}: {}", answer.text());
        if status != 404 {
            assert!(answer.text().starts_with("client: "), "{shown}: {}", answer.text());
        }
        if status == 405 {
            assert_eq!(answer.header("allow"), Some("GET, HEAD"));
        }
    }
    // Whoever was refused did no harm.
    assert_eq!(hash(&ask(chain.address, "GET", "/f.mp4", "").body), hash(film()));
}

#[test]
fn a_slow_head_is_told_so() {
    let chain = Plan::default().start(|_| {});
    // The deadline is 10 s after the first byte.
    let answer = told(&chain, "GET / HTTP/1.1\r\nHost: a\r\n");
    assert_eq!(answer.status(), 408);
    assert!(answer.text().starts_with("client: "), "{}", answer.text());
}

#[test]
fn a_root_that_is_down() {
    let mut chain = Plan::default().start(|ground| ground.store("f.mp4", film()));
    // So that the upstream keeps a connection, which dies with the root.
    assert_eq!(ask(chain.address, "GET", "/f.mp4", "").status(), 200);
    chain.root.as_mut().unwrap().kill();
    let mut client = Client::connect(chain.address);
    for method in ["GET", "HEAD", "GET"] {
        let answer = client.ask(method, "/f.mp4", "").unwrap();
        assert_eq!(answer.status(), 502, "{}", answer.text());
        if method == "GET" {
            assert!(answer.text().starts_with("root"), "{}", answer.text());
        }
    }
}

#[test]
fn a_root_that_takes_no_connection() {
    // A queue of length 0 that is full: the kernel drops further SYNs, as a dead host does.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let patience = std::time::Duration::from_millis(300);
    let waiting: Vec<_> =
        std::iter::from_fn(|| TcpStream::connect_timeout(&address, patience).ok()).take(64).collect();
    assert!(waiting.len() < 64, "the queue never fills");
    let chain = Plan { root: Root::At(address), ..Plan::default() }.start(|_| {});
    let answer = ask(chain.address, "GET", "/f.mp4", "");
    assert_eq!(answer.status(), 504, "{}", answer.text());
    assert!(answer.text().starts_with("root"), "{}", answer.text());
}

#[test]
fn a_root_that_speaks_no_http() {
    for words in ["220 mail.example ESMTP\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", ""] {
        let root = ScriptedRoot::of_pieces(words, vec![], || After::Close);
        let chain = Plan { root: Root::At(root.address), ..Plan::default() }.start(|_| {});
        let answer = ask(chain.address, "GET", "/f.mp4", "");
        assert_eq!(answer.status(), 502, "{words}: {}", answer.text());
        assert!(answer.text().starts_with("root"), "{words}: {}", answer.text());
    }
}

#[test]
fn headers_of_one_connection_stay_on_it() {
    let root = ScriptedRoot::start(|_, stream| {
        stream.write_all(
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive, X-Private\r\nX-Private: 1\r\n\
              Keep-Alive: timeout=5\r\nUpgrade: h2c\r\nProxy-Authenticate: Basic\r\nX-Public: yes\r\n\
              Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nCache-Control: max-age=60\r\n\r\nok",
        )?;
        Ok(After::Keep)
    });
    let chain = Plan { root: Root::At(root.address), ..Plan::default() }.start(|_| {});
    let answer = ask(
        chain.address,
        "GET",
        "/a%20b/c?d=e%2Ff&g",
        "Connection: X-Mine, keep-alive\r\nX-Mine: 1\r\nKeep-Alive: 1\r\nTE: trailers\r\nProxy-Authorization: Basic eDp5\r\n\
         Upgrade: h2c\r\nX-Other: stays\r\nAccept: */*\r\nVia: 1.0 first\r\n",
    );
    assert_eq!((answer.status(), answer.text().as_str()), (200, "ok"));
    for name in ["x-private", "keep-alive", "upgrade", "proxy-authenticate"] {
        assert_eq!(answer.header(name), None, "{name} came through");
    }
    assert_eq!(answer.header("x-public"), Some("yes"));
    assert_eq!(answer.header("cache-control"), Some("max-age=60"));
    assert_eq!(answer.head.headers.iter().filter(|(name, _)| name == "set-cookie").count(), 2);
    assert!(answer.header("via").is_some_and(|via| via.contains("1.1 plait")), "{answer:?}");

    let asked = &root.asked()[0];
    assert_eq!(asked.line, "GET /a%20b/c?d=e%2Ff&g HTTP/1.1");
    for name in ["x-mine", "keep-alive", "te", "proxy-authorization", "upgrade"] {
        assert_eq!(asked.header(name), None, "{name} went through");
    }
    assert_eq!((asked.header("x-other"), asked.header("accept")), (Some("stays"), Some("*/*")));
    assert_eq!(asked.header("host"), Some("films.example"));
    let vias: Vec<_> =
        asked.headers.iter().filter(|(name, _)| name == "via").map(|(_, via)| via.as_str()).collect();
    assert_eq!(vias.join(", "), "1.0 first, 1.1 plait");
}

#[test]
fn answers_of_the_root_pass_unchanged() {
    for status in [
        "201 Created",
        "301 Moved Permanently",
        "403 Forbidden",
        "410 Gone",
        "418 Teapot",
        "500 Oops",
        "503 Later",
    ] {
        let head: &'static str =
            format!("HTTP/1.1 {status}\r\nContent-Length: 5\r\nLocation: /x\r\n\r\nhello").leak();
        let root = ScriptedRoot::of_pieces(head, vec![], || After::Keep);
        let chain =
            Plan { paths: 1, depth: 0, root: Root::At(root.address), ..Plan::default() }.start(|_| {});
        let answer = ask(chain.address, "GET", "/", "");
        assert_eq!(answer.status().to_string(), status[..3]);
        assert_eq!((answer.text().as_str(), answer.header("location")), ("hello", Some("/x")));
    }
}

#[test]
fn interim_answers_of_the_root_are_not_the_answer() {
    let head = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let root = ScriptedRoot::of_pieces(head, vec![], || After::Keep);
    let chain = Plan { root: Root::At(root.address), ..Plan::default() }.start(|_| {});
    let mut client = Client::connect(chain.address);
    for _ in 0..3 {
        let answer = client.ask("GET", "/", "").unwrap();
        assert_eq!((answer.status(), answer.text().as_str()), (200, "ok"));
    }
}

#[test]
fn connections_to_the_root_are_used_again() {
    let (heard, hears) = std::sync::mpsc::channel();
    let root = ScriptedRoot::start(move |_, stream| {
        heard.send(stream.peer_addr()?).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
        Ok(After::Keep)
    });
    let settings = Settings { placement: "local", ..Settings::default() };
    let chain = Plan { root: Root::At(root.address), settings, ..Plan::default() }.start(|_| {});
    let mut client = Client::connect(chain.address);
    let mut peers = std::collections::HashSet::new();
    for _ in 0..20 {
        assert_eq!(client.ask("GET", "/", "").unwrap().text(), "ok");
        peers.insert(hears.recv().unwrap());
    }
    assert!(peers.len() < 5, "20 requests took {} connections", peers.len());
}

#[test]
fn nothing_outside_the_directory_can_be_had() {
    let targets = [
        "/../key",
        "/../../../../../../etc/passwd",
        "/%2e%2e/key",
        "/%2e%2e%2fkey",
        "/..%2fkey",
        "/a/../../key",
        "/link",
        "/link/passwd",
        "/f.mp4%00",
        "//etc/passwd",
        "/%2fetc/passwd",
    ];
    for root in [Root::Plait, Root::Directory] {
        let chain = Plan { root, ..Plan::default() }.start(|ground| {
            ground.store("f.mp4", film());
            std::os::unix::fs::symlink("/etc", ground.files().join("link")).unwrap();
            std::os::unix::fs::symlink(ground.key(), ground.files().join("key-link")).unwrap();
        });
        let key = std::fs::read_to_string(chain.ground.key()).unwrap();
        for target in targets.iter().chain(&["/key-link"]) {
            let answer = told(&chain, format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
            assert!(matches!(answer.status(), 400 | 403 | 404), "{target}: {}", answer.status());
            assert!(!answer.text().contains("root:") && !answer.text().contains(key.trim()), "{target}");
        }
        assert_eq!(ask(chain.address, "GET", "/%66.mp4", "").status(), 200);
    }
}

#[test]
fn content_types() {
    let rows = [
        ("a.mp4", "video/mp4"),
        ("a.m4s", "video/iso.segment"),
        ("a.ts", "video/mp2t"),
        ("a.m3u8", "application/vnd.apple.mpegurl"),
        ("a.mpd", "application/dash+xml"),
        ("a.webm", "video/webm"),
        ("a.vtt", "text/vtt"),
        ("a.jpg", "image/jpeg"),
    ];
    let chain = Plan::default().start(|ground| rows.iter().for_each(|(name, _)| ground.store(name, b"x")));
    for (name, kind) in rows {
        let answer = ask(chain.address, "GET", &format!("/{name}"), "");
        assert!(answer.header("content-type").is_some_and(|is| is.starts_with(kind)), "{name}: {answer:?}");
    }
}
