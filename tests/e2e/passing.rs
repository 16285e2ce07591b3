//! Requests that are neither GET nor HEAD: they reach the root once, with their bodies, and what they change is forgotten.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    iter,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    chain::{Chain, Ground, Plan, Root, text},
    client::{Client, ask, curl},
    content::content,
    missing::skipped,
    process::DEADLINE,
    roots::{chunked, nginx_with},
};

/// What a root got.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Received {
    method: String,
    headers: String,
    body: Vec<u8>,
    /// The body has come to its end.
    whole: bool,
}

/// A root that takes bodies. It refuses `/refuse` before it has read one byte of them, goes silently behind those of
/// `/vanish`, and answers anything else with the body.
struct Taker {
    address: SocketAddr,
    /// Heads that it has read.
    begun: Arc<AtomicUsize>,
    received: Arc<Mutex<Vec<Received>>>,
}

impl Taker {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (begun, received) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (heads, list) = (begun.clone(), received.clone());
        thread::spawn(move || {
            for connection in listener.incoming() {
                let (heads, list) = (heads.clone(), list.clone());
                // It ends with the process; a connection that breaks is what some tests are about.
                thread::spawn(move || converse(connection.unwrap(), &heads, &list));
            }
        });
        Self { address, begun, received }
    }

    fn chain(&self, cache: bool) -> (Chain, Option<tempfile::TempDir>) {
        let dir = cache.then(|| tempfile::tempdir().unwrap());
        let downstream = dir.iter().flat_map(|dir| ["--cache".to_owned(), text(dir.path()).to_owned()]);
        let (root, downstream) = (Root::At(self.address), downstream.collect());
        (Plan { root, downstream, ..Plan::default() }.start(|_| {}), dir)
    }

    fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    /// Waits until `holds`, or fails at the deadline.
    fn wait_until(&self, holds: impl Fn(&Self) -> bool) {
        let until = Instant::now() + DEADLINE;
        while !holds(self) {
            let (begun, received) = (self.begun.load(Ordering::SeqCst), self.received().len());
            assert!(Instant::now() < until, "the root got {begun} heads and {received} whole requests");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn converse(connection: TcpStream, heads: &AtomicUsize, list: &Mutex<Vec<Received>>) -> io::Result<()> {
    connection.set_read_timeout(Some(DEADLINE))?;
    let mut reader = BufReader::new(connection.try_clone()?);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        heads.fetch_add(1, Ordering::SeqCst);
        let mut words = head.split(' ');
        let (method, target) = (words.next().unwrap().to_owned(), words.next().unwrap().to_owned());
        let headers = head.to_ascii_lowercase();
        if target == "/refuse" {
            list.lock().unwrap().push(Received { method, headers, body: Vec::new(), whole: false });
            let answer = "HTTP/1.1 413 Too Much\r\nContent-Length: 4\r\nConnection: close\r\n\r\nmuch";
            (&connection).write_all(answer.as_bytes())?;
            connection.shutdown(Shutdown::Write)?;
            // What still comes is read, so that no reset takes the answer away.
            let _ = io::copy(&mut reader, &mut io::sink());
            return Ok(());
        }
        let mut body = Vec::new();
        let whole = read_body(&mut reader, &headers, &mut body).is_ok();
        let answer = body.clone();
        list.lock().unwrap().push(Received { method, headers, body, whole });
        if !whole || target == "/vanish" {
            return Ok(());
        }
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nETag: \"a\"\r\nCache-Control: max-age=600\r\n\r\n",
            answer.len()
        );
        (&connection).write_all(head.as_bytes())?;
        (&connection).write_all(&answer)?;
    }
}

fn read_body(reader: &mut impl BufRead, headers: &str, body: &mut Vec<u8>) -> io::Result<()> {
    let line = |name: &str| headers.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let mut take = |reader: &mut dyn BufRead, len: usize| {
        let taken = reader.take(len as u64).read_to_end(body)?;
        if taken == len { Ok(()) } else { Err(io::Error::from(io::ErrorKind::UnexpectedEof)) }
    };
    if let Some(len) = line("content-length:") {
        return take(reader, len.parse().unwrap());
    }
    if line("transfer-encoding:").is_none() {
        return Ok(());
    }
    loop {
        let mut size = String::new();
        reader.read_line(&mut size)?;
        let size = usize::from_str_radix(size.trim(), 16)
            .map_err(|_| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        take(reader, size)?;
        let mut end = String::new();
        if reader.read_line(&mut end)? != 2 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if size == 0 {
            return Ok(());
        }
    }
}

#[test]
fn bodies_reach_the_root_as_they_are() {
    let taker = Taker::start();
    let (chain, _dir) = taker.chain(false);
    let film = content(3_000_001);
    let mut client = Client::connect(chain.address);
    for (method, body, in_chunks) in [
        ("PUT", &film[..], false),
        ("POST", &film[..], true),
        ("PATCH", &film[..1], true),
        ("POST", &film[..0], true),
        ("POST", &film[..0], false),
        ("DELETE", &film[..0], false),
        ("PROPFIND", &film[..100], false),
        ("OPTIONS", &film[..0], false),
    ] {
        let (announced, sent) = match in_chunks {
            true => ("Transfer-Encoding: chunked\r\n".to_owned(), chunked(body, &[1, 70_000, 333])),
            false => (format!("Content-Length: {}\r\n", body.len()), body.to_vec()),
        };
        client.request(method, "/f", &announced);
        // While it is sent, nobody reads the echo: it waits in the chain.
        client.send(&sent);
        let answer = client.answer(method).unwrap();
        assert_eq!(answer.status(), 200, "{method}: {}", answer.text());
        assert!(answer.body == body, "{method}: {} bytes", answer.body.len());
        let received = taker.received().pop().unwrap();
        assert_eq!((received.method.as_str(), received.whole), (method, true));
        assert!(received.body == body, "{method}");
        assert_eq!(received.headers.contains("transfer-encoding: chunked"), in_chunks, "{method}");
    }
    // The connection is of use for anything else.
    assert_eq!(client.ask("GET", "/f", "").unwrap().status(), 200);
}

#[test]
fn who_waits_for_the_word_gets_it() {
    let taker = Taker::start();
    let (chain, _dir) = taker.chain(false);
    let mut client = Client::connect(chain.address);
    client.request("PUT", "/f", "Content-Length: 4\r\nExpect: 100-continue\r\n");
    assert_eq!(client.head().unwrap().status, 100);
    client.send("film");
    assert_eq!(client.answer("PUT").unwrap().text(), "film");
    assert!(
        !taker.received()[0].headers.contains("expect"),
        "the root is not asked for a word that is not waited for"
    );
}

#[test]
fn a_refusal_comes_before_the_body_is_sent() {
    let taker = Taker::start();
    let (chain, _dir) = taker.chain(false);
    let mut client = Client::connect(chain.address);
    client.request("PUT", "/refuse", "Content-Length: 50000000000\r\n");
    let head = client.head().unwrap();
    assert_eq!((head.status, head.header("connection")), (413, Some("close")));
    assert_eq!(client.body(&head).unwrap(), b"much");
}

#[test]
fn a_body_that_is_cut_off_is_never_taken_for_a_whole_one() {
    let taker = Taker::start();
    let (chain, _dir) = taker.chain(false);
    for (number, (announced, sent)) in [
        ("Content-Length: 200000\r\n", vec![b'x'; 150_000]),
        ("Transfer-Encoding: chunked\r\n", chunked(&[b'x'; 150_000], &[1000])[..100_000].to_vec()),
        ("Transfer-Encoding: chunked\r\n", b"5\r\nabcdefg\r\n0\r\n\r\n".to_vec()),
        ("Transfer-Encoding: chunked\r\n", b"5\r\nabcde\r\n-1\r\n\r\n".to_vec()),
    ]
    .into_iter()
    .enumerate()
    {
        let mut client = Client::connect(chain.address);
        client.request("PUT", "/f", announced);
        client.sends(&sent);
        if number < 2 {
            // Of one that is gone sooner it may have heard nothing, as of those that are refused.
            taker.wait_until(|taker| taker.begun.load(Ordering::SeqCst) > number);
            drop(client);
            taker.wait_until(|taker| taker.received().len() > number);
        } else {
            let answer = client.answer("PUT").unwrap();
            assert_eq!((answer.status(), answer.header("connection")), (400, Some("close")));
        }
    }
    assert!(taker.received().iter().all(|received| !received.whole));
    assert_eq!(ask(chain.address, "GET", "/f", "").status(), 200);
}

#[test]
fn what_may_have_been_done_is_not_done_again() {
    let taker = Taker::start();
    let (chain, _dir) = taker.chain(false);
    // So that connections stand that could be tried again.
    assert_eq!(ask(chain.address, "GET", "/f", "").status(), 200);
    for (method, headers, body) in [("POST", "Content-Length: 4\r\n", "film"), ("DELETE", "", "")] {
        let before = taker.received().len();
        let mut client = Client::connect(chain.address);
        client.request(method, "/vanish", headers);
        client.send(body);
        let answer = client.answer(method).unwrap();
        assert_eq!(answer.status(), 502, "{method}: {}", answer.text());
        assert!(answer.text().starts_with("root: "), "{}", answer.text());
        assert_eq!(taker.received().len(), before + 1, "{method}");
    }
}

#[test]
fn the_cache_takes_no_method_for_another() {
    let taker = Taker::start();
    let (chain, _dir) = taker.chain(true);
    for method in ["PUT", "POST", "DELETE", "BREW"] {
        for _ in 0..2 {
            let mut client = Client::connect(chain.address);
            client.request(method, "/f", "Content-Length: 4\r\n");
            client.send("film");
            let answer = client.answer(method).unwrap();
            assert_eq!((answer.status(), answer.text().as_str()), (200, "film"), "{method}");
            assert_eq!(answer.header("cache-status"), Some("plait; fwd=method; fwd-status=200"));
        }
    }
    assert_eq!(taker.received().len(), 8);
}

#[test]
fn trace_alone_is_refused_and_the_others_are_told() {
    let taker = Taker::start();
    for cached in [false, true] {
        let (chain, _dir) = taker.chain(cached);
        let answer = ask(chain.address, "TRACE", "/f", "");
        assert_eq!(answer.status(), 405);
        let text = answer.text();
        assert!(text.starts_with("client: method TRACE is not allowed here"), "{text}");
        assert!(text.contains("other methods go on to the root"), "{text}");
        assert_eq!(answer.header("allow"), Some("GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH"));
        assert!(!chain.downstream.log().contains("GET and HEAD are"), "{}", chain.downstream.log());
    }
    assert!(taker.received().is_empty());
}

/// A real server that takes files: what was put is served, what was cached of the old one is not.
#[test]
fn nginx_as_a_dav_server() {
    let ground = Ground::new();
    let version = Command::new("nginx").arg("-V").output();
    if !version.is_ok_and(|out| String::from_utf8_lossy(&out.stderr).contains("http_dav_module")) {
        skipped("no nginx with DAV");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let cache = vec!["--cache".to_owned(), text(dir.path()).to_owned()];
    let (_nginx, root) = nginx_with(&ground, "client_max_body_size 1g; dav_methods PUT DELETE;");
    let plan = Plan { root: Root::At(root), downstream: cache, ..Plan::default() };
    let chain = plan.start(|_| {});
    let (old, new) = (content(1_000_000), content(2_000_000));
    let url = format!("http://{}/f.mp4", chain.address);
    for film in [&old, &new] {
        let file = ground.scratch("upload");
        fs::write(&file, film).unwrap();
        // The same host as that of `ask`: it is a part of what is cached under.
        let put = curl(["-f", "-H", "Host: films.example", "-T", text(&file), &url]);
        assert!(put.status.success(), "{put:?}");
        let told = || {
            let answer = ask(chain.address, "GET", "/f.mp4", "");
            assert!(answer.body == *film, "{} bytes", answer.body.len());
            answer.header("cache-status").unwrap().to_owned()
        };
        let first = told();
        assert!(first.contains("fwd=uri-miss"), "{first}");
        // While the disk writes, it is told as collapsed.
        let began = Instant::now();
        let next =
            iter::repeat_with(told).find(|told| !told.contains("collapsed") || began.elapsed() > DEADLINE);
        assert!(next.as_ref().is_some_and(|told| told.contains("hit")), "{next:?}");
    }
    // 204 from nginx.
    assert_eq!(ask(chain.address, "DELETE", "/f.mp4", "").status(), 204);
    assert_eq!(ask(chain.address, "GET", "/f.mp4", "").status(), 404);
}
