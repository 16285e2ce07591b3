//! The root role over real sockets: one core in a thread, clients of the standard library.

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    os::unix::fs::symlink,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::*;
use crate::{
    exec::{self, Backend},
    http::server::Deadlines,
    wire::route::Transport,
};

/// No test waits longer for an answer; a hang becomes a failure.
const PATIENCE: Duration = Duration::from_secs(30);

struct Served {
    tree: tempfile::TempDir,
    address: SocketAddr,
    stop: watch::Sender<bool>,
    core: Option<JoinHandle<()>>,
}

impl Served {
    fn new() -> Self {
        Self::with(Deadlines::default())
    }

    fn with(deadlines: Deadlines) -> Self {
        let tree = tempfile::tempdir().unwrap();
        let served = tree.path().join("tree");
        fs::create_dir(&served).unwrap();
        fs::write(served.join("digits"), "0123456789").unwrap();
        fs::write(tree.path().join("secret"), "secret").unwrap();
        let root = Arc::new(Root::open(&served, Limits::new(1000, 1000, deadlines)).unwrap());
        let (mut listeners, address) =
            Listener::bind("127.0.0.1:0".parse().unwrap(), 1, Transport::Tcp).unwrap();
        let listener = std::sync::Mutex::new(listeners.pop());
        let (stop, stopping) = watch::channel(false);
        let core = thread::spawn(move || {
            let config = exec::Config { backend: Backend::TokioUring, cpus: vec![exec::available_cpus()[0]] };
            exec::run(&config, move |_| {
                let listener = listener.lock().unwrap().take().unwrap();
                let (root, stopping) = (root.clone(), stopping.clone());
                async move { serve(root, Listener::new(listener), Legs::default(), stopping).await }
            })
            .unwrap();
        });
        Self { tree, address, stop, core: Some(core) }
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.tree.path().join("tree").join(name), content).unwrap();
    }

    fn connect(&self) -> Client {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client { stream }
    }

    /// One request on a connection of its own.
    fn get(&self, target: &str, headers: &str) -> Answer {
        let mut client = self.connect();
        client.send(&format!("GET {target} HTTP/1.1\r\nHost: h\r\n{headers}\r\n"));
        client.answer(false)
    }

    /// Sends `request` and returns the status and whether the server then closes.
    fn refusal(&self, request: &[u8]) -> (u16, bool) {
        let mut client = self.connect();
        client.stream.write_all(request).unwrap();
        let answer = client.answer(request.starts_with(b"HEAD"));
        let closes = answer.header("connection") == Some("close");
        if closes {
            assert_eq!(client.rest(), b"", "after {}", answer.head);
        }
        (answer.status, closes)
    }

    /// Stops the server and waits for its end; returns how long that took.
    fn stop(&mut self) -> Duration {
        let start = Instant::now();
        let _ = self.stop.send(true);
        if let Some(core) = self.core.take() {
            core.join().unwrap();
        }
        start.elapsed()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.stop();
        }
    }
}

struct Client {
    stream: TcpStream,
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

impl Client {
    fn send(&mut self, request: &str) {
        self.stream.write_all(request.as_bytes()).unwrap();
    }

    /// Reads one answer; `is_head` says that no body follows whatever is announced.
    fn answer(&mut self, is_head: bool) -> Answer {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.stream.read_exact(&mut byte).unwrap_or_else(|error| {
                panic!("{error} after {:?}", String::from_utf8_lossy(&head));
            });
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut answer = Answer { status, head, body: Vec::new() };
        if !is_head && status != 304 {
            let len: usize = answer.header("content-length").unwrap().parse().unwrap();
            answer.body.resize(len, 0);
            self.stream.read_exact(&mut answer.body).unwrap();
        }
        answer
    }

    /// What comes until the server closes.
    fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).unwrap();
        rest
    }
}

impl Client {
    /// An answer that was cut short must not look complete.
    fn assert_reset(&mut self) {
        let error = self.stream.read_to_end(&mut Vec::new()).expect_err("the answer ended in order");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}

fn pattern(len: u32) -> Vec<u8> {
    (0..len).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

#[test]
fn files_and_ranges_are_sent_with_their_heads() {
    let served = Served::new();
    served.write("film.mp4", "0123456789");
    served.write("empty.ts", "");
    let whole = served.get("/film.mp4", "");
    assert_eq!((whole.status, whole.text()), (200, "0123456789"));
    assert_eq!(whole.header("content-type"), Some("video/mp4"));
    assert_eq!(whole.header("accept-ranges"), Some("bytes"));
    let (etag, modified) = (whole.header("etag").unwrap(), whole.header("last-modified").unwrap());

    for (headers, status, body, range) in [
        ("Range: bytes=2-4\r\n".to_owned(), 206, "234", Some("bytes 2-4/10")),
        ("Range: bytes=7-\r\n".to_owned(), 206, "789", Some("bytes 7-9/10")),
        ("Range: bytes=-3\r\n".to_owned(), 206, "789", Some("bytes 7-9/10")),
        ("Range: bytes=5-999\r\n".to_owned(), 206, "56789", Some("bytes 5-9/10")),
        (format!("Range: bytes=0-0\r\nIf-Range: {etag}\r\n"), 206, "0", Some("bytes 0-0/10")),
        ("Range: bytes=0-0\r\nIf-Range: \"old\"\r\n".to_owned(), 200, "0123456789", None),
        (format!("If-None-Match: {etag}\r\n"), 304, "", None),
        (format!("If-Modified-Since: {modified}\r\n"), 304, "", None),
        ("If-None-Match: \"other\"\r\n".to_owned(), 200, "0123456789", None),
    ] {
        let answer = served.get("/film.mp4", &headers);
        assert_eq!((answer.status, answer.text()), (status, body), "{headers}");
        assert_eq!(answer.header("content-range"), range, "{headers}");
    }
    let beyond = served.get("/film.mp4", "Range: bytes=10-\r\n");
    assert_eq!((beyond.status, beyond.header("content-range")), (416, Some("bytes */10")));

    let empty = served.get("/empty.ts", "");
    assert_eq!((empty.status, empty.text(), empty.header("content-length")), (200, "", Some("0")));
}

#[test]
fn a_head_request_gets_the_head_alone() {
    let served = Served::new();
    let mut client = served.connect();
    for (target, status, len) in [("/digits", 200, Some("10")), ("/missing", 404, None)] {
        client.send(&format!("HEAD {target} HTTP/1.1\r\nHost: h\r\n\r\n"));
        let answer = client.answer(true);
        assert_eq!(answer.status, status);
        if len.is_some() {
            assert_eq!(answer.header("content-length"), len);
        }
    }
    // Had a body followed, this answer would not be found.
    client.send("GET /digits HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(client.answer(false).text(), "0123456789");
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let served = Served::new();
    for n in 0..20 {
        served.write(&format!("f{n}"), format!("content {n}"));
    }
    let mut client = served.connect();
    let requests: String = (0..20).map(|n| format!("GET /f{n} HTTP/1.1\r\nHost: h\r\n\r\n")).collect();
    client.send(&requests);
    for n in 0..20 {
        assert_eq!(client.answer(false).text(), format!("content {n}"));
    }
    // A small body is thrown away, and not taken for the next request.
    client.send("GET /f1 HTTP/1.1\r\nHost: h\r\nContent-Length: 24\r\n\r\nGET /secret HTTP/1.1\r\n\r\nGET /f2 HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(client.answer(false).text(), "content 1");
    assert_eq!(client.answer(false).text(), "content 2");
}

#[test]
fn a_head_may_come_byte_by_byte_and_end_with_the_first_byte_of_the_next() {
    let served = Served::new();
    let mut client = served.connect();
    client.stream.set_nodelay(true).unwrap();
    for byte in b"GET /digits HTTP/1.1\r\nHost: h\r\nX: y\r\n\r" {
        client.stream.write_all(&[*byte]).unwrap();
    }
    client.send("\nGET /digits HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    assert_eq!(client.answer(false).text(), "0123456789");
    assert_eq!(client.answer(false).text(), "0123456789");
    assert_eq!(client.rest(), b"");
}

#[test]
fn connections_last_as_long_as_both_sides_want() {
    let served = Served::new();
    for (request, lasts) in [
        ("GET /digits HTTP/1.1\r\nHost: h\r\n\r\n", true),
        ("GET /digits HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", false),
        ("GET /digits HTTP/1.0\r\n\r\n", false),
        ("GET /digits HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", true),
    ] {
        let mut client = served.connect();
        client.send(request);
        assert_eq!(client.answer(false).text(), "0123456789", "{request}");
        if lasts {
            client.send("GET /digits HTTP/1.1\r\nHost: h\r\n\r\n");
            assert_eq!(client.answer(false).text(), "0123456789", "{request}");
        } else {
            assert_eq!(client.rest(), b"", "{request}");
        }
    }
}

#[test]
fn half_closed_clients_get_their_answer() {
    let served = Served::new();
    let mut client = served.connect();
    client.send("GET /digits HTTP/1.1\r\nHost: h\r\n\r\n");
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.answer(false).text(), "0123456789");
    assert_eq!(client.rest(), b"");
}

#[test]
fn nothing_outside_the_directory_is_reachable() {
    let served = Served::new();
    let tree = served.tree.path().join("tree");
    fs::create_dir_all(tree.join("sub")).unwrap();
    symlink("../secret", tree.join("out")).unwrap();
    symlink("..", tree.join("up")).unwrap();
    symlink(served.tree.path().join("secret"), tree.join("absolute")).unwrap();
    symlink("../digits", tree.join("sub/inside")).unwrap();
    assert_eq!(served.get("/sub/inside", "").text(), "0123456789");
    let absolute = format!("{}", served.tree.path().join("secret").display());
    for target in [
        "/../secret",
        "/sub/../../secret",
        "/%2e%2e/secret",
        "/sub/%2E%2e/%2e./secret",
        "/..%2fsecret",
        "/%2e%2e%2fsecret",
        "/..%5csecret",
        "//../secret",
        "/./../secret",
        "/out",
        "/up/secret",
        "/absolute",
        "/%00",
        "/digits%00.mp4",
        &format!("/{absolute}"),
        &absolute.replace('/', "%2f"),
    ] {
        let answer = served.get(target, "");
        assert!(matches!(answer.status, 400 | 404), "{target}: {}", answer.head);
        assert!(!answer.text().contains("secret\n") && answer.text() != "secret", "{target}");
    }
}

#[test]
fn directories_answer_with_their_index_or_not_at_all() {
    let served = Served::new();
    let tree = served.tree.path().join("tree");
    fs::create_dir_all(tree.join("with an é")).unwrap();
    fs::create_dir_all(tree.join("without")).unwrap();
    served.write("with an é/index.html", "page");
    let page = served.get("/with%20an%20%C3%A9/", "");
    assert_eq!((page.status, page.text()), (200, "page"));
    assert!(page.header("content-type").unwrap().starts_with("text/html"));
    let moved = served.get("/with%20an%20%c3%a9?q", "");
    assert_eq!((moved.status, moved.header("location")), (301, Some("/with%20an%20%C3%A9/?q")));
    for target in ["/without", "/without/", "/", "/digits/"] {
        assert_eq!(served.get(target, "").status, 404, "{target}");
    }
}

#[test]
fn special_files_do_not_exist_and_do_not_hang() {
    let served = Served::new();
    let fifo = served.tree.path().join("tree/fifo");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    assert_eq!(served.get("/fifo", "").status, 404);
}

#[test]
fn wrong_requests_get_the_right_status() {
    let served = Served::new();
    let long_line = [b"GET /", &[b'a'; 70_000][..], b" HTTP/1.1\r\n\r\n"].concat();
    let long_head = [b"GET / HTTP/1.1\r\nHost: h\r\nX: ", &[b'a'; 70_000][..], b"\r\n\r\n"].concat();
    let body_413 =
        [b"GET /digits HTTP/1.1\r\nHost: h\r\nContent-Length: 65537\r\n\r\n", &[b'a'; 65537][..]].concat();
    for (request, status, closes) in [
        (&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], 400, true),
        (b"GET\r\n\r\n", 400, true),
        (b"GET /digits HTTP/1.1\r\n\r\n", 400, true),
        (b"GET /digits HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, true),
        (
            b"GET /digits HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
            true,
        ),
        (b"GET /%zz HTTP/1.1\r\nHost: h\r\n\r\n", 400, false),
        (b"GET /missing HTTP/1.1\r\nHost: h\r\n\r\n", 404, false),
        (b"POST /digits HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc", 405, false),
        (b"DELETE /digits HTTP/1.1\r\nHost: h\r\n\r\n", 405, false),
        (b"POST /digits HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 405, true),
        (b"BREW /digits HTTP/1.1\r\nHost: h\r\n\r\n", 501, false),
        (b"GET /digits HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411, true),
        (&body_413, 413, true),
        (&long_line, 414, true),
        (&long_head, 431, true),
    ] {
        let shown = String::from_utf8_lossy(&request[..request.len().min(80)]).into_owned();
        assert_eq!(served.refusal(request), (status, closes), "{shown:?}");
    }
}

#[test]
fn refusals_say_which_methods_work_and_who_is_at_fault() {
    let served = Served::new();
    let mut client = served.connect();
    client.send("PUT /digits HTTP/1.1\r\nHost: h\r\n\r\n");
    let answer = client.answer(false);
    assert_eq!((answer.status, answer.header("allow")), (405, Some("GET, HEAD")));
    assert_eq!(served.get("/missing", "").text(), "client: the root has no such file (check the address)\n");
}

#[test]
fn a_refused_client_may_still_send_for_a_moment() {
    let served = Served::new();
    let mut client = served.connect();
    client.send("GET /digits HTTP/1.1\r\nHost: h\r\nContent-Length: 99999\r\n\r\nabc");
    assert_eq!(client.answer(false).status, 413);
    assert_eq!(client.rest(), b"");
    // A closed socket would answer one of them with a reset, which the next would see.
    for _ in 0..100 {
        client.send("d");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_client_that_waits_for_leave_to_send_gets_it() {
    let served = Served::new();
    let mut client = served.connect();
    client.send("GET /digits HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.answer(true).status, 100);
    client.send("abc");
    assert_eq!(client.answer(false).text(), "0123456789");
}

#[test]
fn slow_heads_end_in_408_and_idle_connections_silently() {
    let short = Duration::from_millis(100);
    let served = Served::with(Deadlines { request: short, idle: short, ..Deadlines::default() });
    assert_eq!(served.refusal(b"GET /digits HTT"), (408, true));
    assert_eq!(
        served.refusal(b"GET /digits HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc"),
        (408, true)
    );
    assert_eq!(served.connect().rest(), b"");
    let mut client = served.connect();
    client.send("GET /digits HTTP/1.1\r\nHost: h\r\n\r\n");
    client.answer(false);
    assert_eq!(client.rest(), b"");
}

#[test]
fn a_big_file_arrives_whole_at_several_clients() {
    let served = Served::new();
    let content = pattern(20_000_000);
    served.write("big", &content);
    let wanted = Sha256::digest(&content);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| assert_eq!(Sha256::digest(served.get("/big", "").body), wanted));
        }
        let range = served.get("/big", "Range: bytes=1234567-14567890\r\n");
        assert!(range.body == content[1_234_567..=14_567_890]);
    });
}

#[test]
fn a_client_that_leaves_or_stalls_frees_its_task() {
    let mut served = Served::with(Deadlines { stall: Duration::from_millis(200), ..Deadlines::default() });
    served.write("big", "");
    let big = fs::File::options().write(true).open(served.tree.path().join("tree/big")).unwrap();
    big.set_len(1 << 30).unwrap();
    let mut leaver = served.connect();
    leaver.send("GET /big HTTP/1.1\r\nHost: h\r\n\r\n");
    leaver.stream.read_exact(&mut [0; 4096]).unwrap();
    drop(leaver);
    let mut staller = served.connect();
    staller.send("GET /big HTTP/1.1\r\nHost: h\r\n\r\n");
    staller.stream.read_exact(&mut [0; 4096]).unwrap();
    assert_eq!(served.get("/digits", "").text(), "0123456789");
    // Both tasks must end by themselves, long before the server would end them.
    assert!(served.stop() < Duration::from_secs(8));
    staller.assert_reset();
}

#[test]
fn a_file_that_shrinks_ends_in_a_reset_and_one_that_grows_as_announced() {
    let served = Served::new();
    served.write("shrinks", "");
    let path = served.tree.path().join("tree/shrinks");
    let file = fs::File::options().write(true).open(&path).unwrap();
    // A hole, larger than what fits into both socket buffers.
    file.set_len(256 << 20).unwrap();
    let mut client = served.connect();
    client.send("GET /shrinks HTTP/1.1\r\nHost: h\r\n\r\n");
    client.stream.read_exact(&mut [0; 4096]).unwrap();
    file.set_len(1 << 20).unwrap();
    client.assert_reset();

    file.set_len(64 << 20).unwrap();
    let mut client = served.connect();
    client.send("GET /shrinks HTTP/1.1\r\nHost: h\r\n\r\nGET /digits HTTP/1.1\r\nHost: h\r\n\r\n");
    client.stream.peek(&mut [0; 1]).unwrap();
    file.set_len(128 << 20).unwrap();
    assert_eq!(client.answer(false).body.len(), 64 << 20);
    assert_eq!(client.answer(false).text(), "0123456789");
}

#[test]
fn a_stop_ends_idle_connections_at_once_and_lets_answers_finish() {
    let mut served = Served::new();
    served.write("big", pattern(16_000_000));
    let mut idle = served.connect();
    idle.send("GET /digits HTTP/1.1\r\nHost: h\r\n\r\n");
    idle.answer(false);
    let mut busy = served.connect();
    busy.send("GET /big HTTP/1.1\r\nHost: h\r\n\r\n");
    busy.stream.read_exact(&mut [0; 1]).unwrap();
    let reader = thread::spawn(move || busy.rest().len());
    assert!(served.stop() < Duration::from_secs(8));
    assert_eq!(idle.rest(), b"");
    assert!(reader.join().unwrap() > 16_000_000);
    assert!(TcpStream::connect(served.address).is_err());
}

#[test]
fn a_stop_does_not_wait_for_ever_for_a_client() {
    let mut served = Served::with(Deadlines { finish: Duration::from_millis(200), ..Deadlines::default() });
    let big = fs::File::create(served.tree.path().join("tree/big")).unwrap();
    big.set_len(1 << 30).unwrap();
    let mut staller = served.connect();
    staller.send("GET /big HTTP/1.1\r\nHost: h\r\n\r\n");
    staller.stream.read_exact(&mut [0; 4096]).unwrap();
    assert!(served.stop() < Duration::from_secs(8));
    staller.assert_reset();
}
