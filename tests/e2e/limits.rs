//! Bounds that clients and strangers run into: each is exceeded here, and whoever does so is told, or cut off, and harms
//! nobody else.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use crate::{
    chain::{Chain, Plan, text},
    client::{Answer, Client, ask},
    content::{content, hash},
    process::{DEADLINE, Process, Settings},
};

/// Many times what a chain holds, so that a transfer runs as long as its client takes nothing.
const BIG: usize = 100_000_000;

fn chain_with(flags: &[&str], files: &[(&str, &[u8])]) -> Chain {
    let downstream = flags.iter().map(|&flag| flag.to_owned()).collect();
    Plan { downstream, ..Plan::default() }
        .start(|ground| files.iter().for_each(|(name, bytes)| ground.store(name, bytes)))
}

/// A connection from another of this host's loopback addresses.
fn connect_from(source: [u8; 4], address: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(IpAddr::from(source), 0).into()).unwrap();
    socket.connect(&address.into()).unwrap();
    socket.into()
}

/// What a client at `source` is told.
fn ask_from(source: [u8; 4], address: SocketAddr) -> (Client, Answer) {
    let mut client = Client::over(connect_from(source, address));
    let answer = client.ask("GET", "/f", "").unwrap();
    (client, answer)
}

/// Repeats `attempt` until it succeeds: the end of a connection is noticed a moment later.
fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + DEADLINE;
    loop {
        if let Some(done) = attempt() {
            return done;
        }
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn check_connection_bounds(address: SocketAddr, says: &Process, side: &str) {
    let (first, answer) = ask_from([127, 0, 0, 1], address);
    assert_eq!(answer.text(), "film");
    let (_second, answer) = ask_from([127, 0, 0, 1], address);
    assert_eq!(answer.text(), "film");
    let (mut third, answer) = ask_from([127, 0, 0, 1], address);
    assert_eq!((answer.status(), answer.header("connection")), (503, Some("close")));
    assert!(answer.header("retry-after").is_some());
    assert!(
        answer.text().starts_with("client: too many connections: this address has 2"),
        "{}",
        answer.text()
    );
    assert!(third.is_closed());
    let (_other, answer) = ask_from([127, 0, 0, 2], address);
    assert_eq!(answer.text(), "film");
    let (_late, answer) = ask_from([127, 0, 0, 3], address);
    assert_eq!((answer.status(), answer.header("connection")), (503, Some("close")));
    let wanted = format!("{side}: too many connections: all 3 places");
    assert!(answer.text().starts_with(&wanted), "{}", answer.text());
    says.wait_for_log("clients are turned away");
    drop(first);
    eventually("no place becomes free", || {
        let (client, answer) = ask_from([127, 0, 0, 3], address);
        (answer.status() == 200).then_some(client)
    });
}

const TWO_AND_THREE: [&str; 4] = ["--max-per-address", "2", "--max-connections", "3"];

#[test]
fn connections_beyond_the_bounds_are_told_so_by_a_downstream() {
    let chain = chain_with(&TWO_AND_THREE, &[("f", b"film")]);
    check_connection_bounds(chain.address, &chain.downstream, "downstream");
}

#[test]
fn connections_beyond_the_bounds_are_told_so_by_a_root() {
    let ground = crate::chain::Ground::new();
    ground.store("f", b"film");
    let files = ground.files();
    let args = ["root", "--listen", "127.0.0.1:0", "--dir", text(&files)];
    let (root, address) = Process::role("root", &Settings::default(), args.iter().chain(&TWO_AND_THREE));
    check_connection_bounds(address, &root, "root");
}

/// Whoever is turned away may go on asking all day: those who are in notice nothing, and the log stays short.
#[test]
fn a_flood_of_connections_beyond_the_bound() {
    let bytes = content(BIG);
    let chain = chain_with(&["--max-per-address", "1"], &[("f", &bytes)]);
    let mut client = Client::connect(chain.address);
    client.request("GET", "/f", "");
    let head = client.head().unwrap();
    for _ in 0..3000 {
        // The answer, or the end of the connection, or its reset; in any case soon.
        drop(connect_from([127, 0, 0, 1], chain.address));
    }
    assert_eq!(hash(&client.body(&head).unwrap()), hash(&bytes));
    let lines = chain.downstream.log().matches("clients are turned away").count();
    assert!((1..20).contains(&lines), "{lines} lines");
}

#[test]
fn slow_requests_and_idle_connections_end() {
    for executor in ["tokio-uring", "glommio"] {
        let settings = Settings { executor, ..Settings::default() };
        let downstream = ["--request-timeout", "1", "--idle-timeout", "2"].map(String::from).to_vec();
        let chain =
            Plan { downstream, settings, ..Plan::default() }.start(|ground| ground.store("f", b"film"));
        for begun in [
            "G",
            "GET /f HTTP/1.1\r\nHost: h\r\nX-",
            "GET /f HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nsome",
        ] {
            let mut client = Client::connect(chain.address);
            client.send(begun);
            let answer = client.answer("GET").unwrap();
            assert_eq!((answer.status(), answer.header("connection")), (408, Some("close")), "{begun}");
            assert!(client.is_closed());
        }
        // A byte now and then is no progress: the head has one deadline as a whole.
        let mut dripping = Client::connect(chain.address);
        let mut bytes = b"GET /f HTTP/1.1\r\nHost: h\r\nX-Slow: ".iter().chain(std::iter::repeat(&b'a'));
        let until = Instant::now() + DEADLINE;
        while dripping.sends(&[*bytes.next().unwrap()]) && !dripping.has_answer() {
            assert!(Instant::now() < until, "a head may drip for ever");
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(dripping.answer("GET").unwrap().status(), 408);
        // An idle connection ends without a word, before its first request and after one.
        let mut silent = Client::connect(chain.address);
        assert!(silent.is_closed());
        let mut idle = Client::connect(chain.address);
        assert_eq!(idle.ask("GET", "/f", "").unwrap().text(), "film");
        assert!(idle.is_closed());
    }
}

/// A client that takes nothing is cut off by a reset, and what it held is free for others.
#[test]
fn a_client_that_takes_nothing_is_cut_off() {
    for executor in ["tokio-uring", "glommio"] {
        let bytes = content(BIG);
        let settings = Settings { executor, ..Settings::default() };
        let downstream = ["--stall-timeout", "1", "--lanes-max", "1"].map(String::from).to_vec();
        let chain =
            Plan { downstream, settings, ..Plan::default() }.start(|ground| ground.store("f", &bytes));
        let mut stalled = Client::connect(chain.address);
        stalled.request("GET", "/f", "");
        stalled.head().unwrap();
        chain.downstream.wait_for_log("client: no progress for 1 s");
        assert!(stalled.some(BIG).is_err(), "what a client that was cut off has looks whole");
        assert_eq!(hash(&ask(chain.address, "GET", "/f", "").body), hash(&bytes));
    }
}

/// Twenty thousand, as far as `ulimit -n` goes (it is raised where that is allowed).
#[test]
fn idle_connections_are_cheap() {
    const WANTED: usize = 20_000;
    /// The parser's buffer is gone and no answer has begun: what is left is the task with its timer and its poll.
    const BYTES_EACH_MAX: u64 = 16 << 10;
    let clients = crate::load::clients_possible(2 * WANTED + 200) / 2 - 100;
    let flags = ["--max-per-address", "20000", "--idle-timeout", "600"];
    let chain = chain_with(&flags, &[("f", b"film")]);
    let mut warm = Client::connect(chain.address);
    assert_eq!(warm.ask("GET", "/f", "").unwrap().text(), "film");
    let before = chain.downstream.resident_bytes();
    let mut idle: Vec<_> = (0..clients.min(WANTED))
        .map(|number| {
            let mut stream = connect_from([127, 0, 0, 1 + (number % 4) as u8], chain.address);
            // Some after an answer, some before their first request.
            if number % 10 == 0 {
                stream.write_all(b"HEAD /f HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
                let mut answer = vec![0; 1 << 10];
                let came = stream.read(&mut answer).unwrap();
                assert!(answer[..came].starts_with(b"HTTP/1.1 200"), "client {number}");
            }
            stream
        })
        .collect();
    let grown = chain.downstream.resident_bytes().saturating_sub(before);
    let (cpu, began) = (chain.downstream.cpu_time(), Instant::now());
    std::thread::sleep(Duration::from_secs(3));
    let cpu = (chain.downstream.cpu_time() - cpu).as_secs_f64() / began.elapsed().as_secs_f64();
    eprintln!(
        "{} idle connections: {} MiB, {} bytes each, {:.2} % of a core",
        idle.len(),
        grown >> 20,
        grown / idle.len() as u64,
        cpu * 100.0
    );
    assert!(grown / (idle.len() as u64) < BYTES_EACH_MAX, "{grown} bytes for {}", idle.len());
    // Other tests run at the same time; a busy loop would take a whole core.
    assert!(cpu < 0.5, "{cpu} cores for idle connections");
    let mut last = Client::over(idle.pop().unwrap());
    assert_eq!(last.ask("GET", "/f", "").unwrap().text(), "film");
}
