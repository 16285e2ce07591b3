//! Bounds that clients and strangers run into: each is exceeded here, and whoever does so is told, or cut off, and harms
//! nobody else.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use crate::{
    chain::{Chain, Plan, Root, text},
    client::{Answer, Client, ask},
    content::{content, hash},
    observe::limit_hits,
    process::{DEADLINE, Process, Settings},
    roots::{After, ScriptedRoot},
};

/// Many times what a chain holds, so that a transfer runs as long as its client takes nothing.
const BIG: usize = 100_000_000;

fn chain_with(flags: &[&str], files: &[(&str, &[u8])]) -> Chain {
    let downstream = flags.iter().map(|&flag| flag.to_owned()).collect();
    Plan { downstream, ..Plan::default() }
        .start(|ground| files.iter().for_each(|(name, bytes)| ground.store(name, bytes)))
}

/// A connection from another of this host's loopback addresses.
pub fn connect_from(source: [u8; 4], address: SocketAddr) -> TcpStream {
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
pub fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
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
        let settings = Settings { executor, admin: true, ..Settings::default() };
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
        assert_eq!(limit_hits(chain.downstream.admin(), "request-time"), 4.0);
        assert_eq!(limit_hits(chain.downstream.admin(), "head-size"), 0.0);
        let long = format!("X-Long: {}\r\n", "a".repeat(70_000));
        assert_eq!(ask(chain.address, "GET", "/f", &long).status(), 431);
        assert_eq!(limit_hits(chain.downstream.admin(), "head-size"), 1.0);
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
        let settings = Settings { executor, admin: true, ..Settings::default() };
        let downstream = ["--stall-timeout", "3", "--lanes-max", "1"].map(String::from).to_vec();
        let chain =
            Plan { downstream, settings, ..Plan::default() }.start(|ground| ground.store("f", &bytes));
        let mut stalled = Client::connect(chain.address);
        stalled.request("GET", "/f", "");
        stalled.head().unwrap();
        chain.downstream.wait_for_log("client: no progress for 3 s");
        eventually("that is counted", || {
            (limit_hits(chain.downstream.admin(), "client-stall") == 1.0).then_some(())
        });
        assert!(stalled.some(BIG).is_err(), "what a client that was cut off has looks whole");
        let next = ask(chain.address, "GET", "/f", "Range: bytes=0-999999\r\n");
        assert!(next.body == bytes[..1_000_000], "{executor}: {}", next.status());
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

/// As few descriptors as a role can start with, and some more.
const FEW_DESCRIPTORS: u32 = 64;

fn with_few_descriptors(executor: &'static str) -> Settings {
    Settings { executor, descriptors: Some(FEW_DESCRIPTORS), ..Settings::default() }
}

/// More connections than descriptors, at every port of a chain: they wait, those that stand are served, and all is as
/// before once they are gone.
#[test]
fn more_connections_than_descriptors() {
    for executor in ["tokio-uring", "glommio"] {
        let bytes = content(3_000_000);
        let chain = Plan { settings: with_few_descriptors(executor), ..Plan::default() }
            .start(|ground| ground.store("f", &bytes));
        let mut served = Client::connect(chain.address);
        assert_eq!(hash(&served.ask("GET", "/f", "").unwrap().body), hash(&bytes));
        let lane_port = chain.paths[0].split(',').next().unwrap().parse().unwrap();
        let crowd: Vec<_> = [chain.address, lane_port, chain.upstream_address]
            .into_iter()
            .flat_map(|address| {
                (0..2 * FEW_DESCRIPTORS).map(move |_| {
                    let stream = TcpStream::connect(address).unwrap();
                    // So that the peer counts it as a client that has begun.
                    let _ = (&stream).write_all(b"G");
                    stream
                })
            })
            .collect();
        let said = "no connection can be accepted now";
        let relay = &chain.relays[0][0];
        relay.wait_for_log(said);
        chain.upstream.wait_for_log(said);
        chain.downstream.wait_for_log("clients are turned away");
        let processes = [&chain.downstream, relay, &chain.upstream];
        let (began, before) = (Instant::now(), processes.map(Process::cpu_time));
        let answer = served.ask("GET", "/f", "Range: bytes=5-1004\r\n").unwrap();
        assert!(answer.body == bytes[5..1005], "{executor}: {}", answer.text());
        std::thread::sleep(Duration::from_secs(1));
        for (process, before) in processes.iter().zip(before) {
            let share = (process.cpu_time() - before).as_secs_f64() / began.elapsed().as_secs_f64();
            assert!(share < 0.5, "{executor}: accepting spins: {share:.2} cores");
            assert!(process.log().matches(said).count() < 10, "{}", process.log());
        }
        drop(crowd);
        eventually("the chain does not recover", || {
            let answer = Client::connect(chain.address).ask("GET", "/f", "").ok()?;
            (answer.status() == 200 && hash(&answer.body) == hash(&bytes)).then_some(())
        });
    }
}

/// With few descriptors there are few pipes: payload is copied then.
#[test]
fn transfers_without_pipes() {
    for executor in ["tokio-uring", "glommio"] {
        let bytes = content(5_000_000);
        let wanted = hash(&bytes);
        // A quarter of them may be for pipes: sixteen of 1 MiB, and each client wants four in the upstream alone.
        let settings = Settings { descriptors: Some(128), executor, ..Settings::default() };
        let chain = Plan { settings, ..Plan::default() }.start(|ground| ground.store("f", &bytes));
        let (address, clients) = (chain.address, 12);
        let fetches: Vec<_> = (0..clients)
            .map(|_| std::thread::spawn(move || Client::connect(address).ask("GET", "/f", "")))
            .collect();
        for fetch in fetches {
            let answer = fetch.join().unwrap().unwrap();
            assert_eq!(answer.status(), 200, "{executor}: {}", answer.text());
            assert_eq!(hash(&answer.body), wanted, "{executor}");
        }
    }
}

/// One lane, and clients that take nothing: what they keep of the chain keeps nobody else waiting.
#[test]
fn slow_clients_cannot_keep_all_lanes() {
    for executor in ["tokio-uring", "glommio"] {
        let bytes = content(20_000_000);
        let settings = Settings { executor, cores: "0".into(), ..Settings::default() };
        let downstream = ["--lanes-max", "1"].map(String::from).to_vec();
        let chain = Plan { paths: 1, downstream, settings, ..Plan::default() }
            .start(|ground| ground.store("f", &bytes));
        let mut slow: Vec<_> = (0..3).map(|_| Client::connect(chain.address)).collect();
        for client in &mut slow {
            client.request("GET", "/f", "");
        }
        // Each waits until the one before is seen to be slow.
        let heads: Vec<_> = slow.iter_mut().map(|client| client.head().unwrap()).collect();
        for first in 0..3 {
            let answer = ask(chain.address, "GET", "/f", &format!("Range: bytes={first}-999999\r\n"));
            assert_eq!(answer.status(), 206, "{executor}: {}", answer.text());
            assert!(answer.body == bytes[first..1_000_000], "{executor}");
        }
        for (client, head) in slow.iter_mut().zip(heads) {
            assert!(client.body(&head).unwrap() == bytes, "{executor}: a client that was slow");
        }
    }
}

/// A client that takes all the time, faster than what counts as slow, keeps its lane: others wait, and are told after a while.
#[test]
fn who_waits_too_long_for_a_lane_is_told_when_to_come_back() {
    let bytes = content(BIG);
    let settings = Settings { cores: "0".into(), admin: true, ..Settings::default() };
    let downstream = ["--lanes-max", "1"].map(String::from).to_vec();
    let chain =
        Plan { paths: 1, downstream, settings, ..Plan::default() }.start(|ground| ground.store("f", &bytes));
    let mut steady = Client::connect(chain.address);
    steady.request("GET", "/f", "");
    let head = steady.head().unwrap();
    assert_eq!(head.status, 200);
    let address = chain.address;
    let waits = std::thread::spawn(move || ask(address, "GET", "/f", "Range: bytes=0-9\r\n"));
    let mut taken = 0;
    while !waits.is_finished() && taken < BIG / 2 {
        taken += steady.some(400_000).unwrap().len();
        std::thread::sleep(Duration::from_millis(100));
    }
    let answer = waits.join().unwrap();
    assert_eq!((answer.status(), answer.header("retry-after")), (503, Some("5")), "{}", answer.text());
    assert!(answer.text().starts_with("downstream: all lanes are busy"), "{}", answer.text());
    let admin = chain.downstream.admin();
    // The steady one may have waited for a second lane, too.
    assert!(limit_hits(admin, "lanes") >= 1.0);
    assert_eq!(limit_hits(admin, "lanes-wait"), 1.0);
}

/// Less memory for frames than one transfer likes, many clients that take nothing, and others that do: all come to their
/// end, and the upstream stays small.
#[test]
fn what_the_upstream_keeps_is_bounded() {
    for executor in ["tokio-uring", "glommio"] {
        let bytes = content(8_000_000);
        let wanted = hash(&bytes);
        let settings = Settings { executor, no_splice: true, admin: true, ..Settings::default() };
        let ground = crate::chain::Ground::new();
        ground.store("f", &bytes);
        let (_root, root_at) = ground.start_root(&settings);
        let (key, root) = (ground.key(), format!("http://{root_at}"));
        let args = ["upstream", "--listen", "127.0.0.1:0", "--root", &root, "--key", text(&key)];
        let args = args.iter().chain(&["--max-kept", "4M"]);
        let (upstream, upstream_at) = Process::role("upstream", &settings, args);
        let (_downstream, address) = ground.start_downstream(&settings, &[upstream_at.to_string()], &[]);
        assert_eq!(hash(&ask(address, "GET", "/f", "").body), wanted);
        let before = upstream.resident_bytes();
        let stalled: Vec<_> = (0..20)
            .map(|_| {
                let mut client = Client::connect(address);
                client.request("GET", "/f", "");
                let head = client.head().unwrap();
                (client, head)
            })
            .collect();
        assert_eq!(hash(&ask(address, "GET", "/f", "").body), wanted, "{executor}");
        let grown = upstream.resident_bytes().saturating_sub(before);
        assert!(limit_hits(upstream.admin(), "kept") > 0.0);
        // 4 MB are kept, and pooled buffers have another 16 MiB; twenty windows of 4 MiB would take 80 more.
        assert!(grown < 40 << 20, "{executor}: {} MiB", grown >> 20);
        for (mut client, head) in stalled {
            assert_eq!(hash(&client.body(&head).unwrap()), wanted, "{executor}");
        }
    }
}

/// A body that keeps moving, and moves too little: 16 KiB in the time of a head is the least.
#[test]
fn a_body_that_drips_is_given_up() {
    for executor in ["tokio-uring", "glommio"] {
        let root = ScriptedRoot::start(|_, _| Ok(After::Keep));
        let settings = Settings { executor, ..Settings::default() };
        let downstream = ["--request-timeout", "1"].map(String::from).to_vec();
        let plan = Plan { root: Root::At(root.address), downstream, settings, ..Plan::default() };
        let chain = plan.start(|_| {});
        let mut client = Client::connect(chain.address);
        client.request("PUT", "/f", "Content-Length: 100000\r\n");
        let until = Instant::now() + DEADLINE;
        while client.sends(b"x") && !client.has_answer() {
            assert!(Instant::now() < until, "a body may drip for ever");
            std::thread::sleep(Duration::from_millis(20));
        }
        let answer = client.answer("PUT").unwrap();
        assert_eq!(answer.status(), 408, "{executor}: {}", answer.text());
        assert!(answer.text().contains("came too slowly"), "{executor}: {}", answer.text());
        // What has come of it went on; the root must not take that for all.
        assert!(client.is_closed());
    }
}

/// While one path keeps the frame that is next, the others bring no more than may wait for it.
#[test]
fn frames_that_wait_are_bounded_in_the_whole_process() {
    const BOUND: f64 = 4e6;
    /// A frame of each lane may be let in by the same look at the bound.
    const BESIDE: f64 = 2e6;
    let parked_most = |flags: &[&str]| {
        let bytes = content(BIG);
        let bytes_len = bytes.len();
        let settings = Settings { admin: true, ..Settings::default() };
        let downstream = flags.iter().map(ToString::to_string).collect();
        let chain =
            Plan { downstream, settings, ..Plan::default() }.start(|ground| ground.store("f", &bytes));
        let admin = chain.downstream.admin();
        let parked = || {
            let mut client = Client::connect(admin);
            client.send("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
            let text = client.answer("GET").unwrap().text();
            let line = text.lines().find_map(|line| line.strip_prefix("plait_parked_bytes ")).unwrap();
            line.parse::<f64>().unwrap()
        };
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let most = scope.spawn(|| {
                let mut most = 0_f64;
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    most = most.max(parked());
                }
                most
            });
            for _ in 0..4 {
                let mut client = Client::connect(chain.address);
                client.request("GET", "/f", "");
                let head = client.head().unwrap();
                let mut taken = client.some(10_000_000).unwrap();
                chain.relays[0][0].freeze();
                let rest = scope.spawn(move || client.some(bytes_len - 10_000_000).unwrap());
                // Time to fill what there is; the others bring nothing that can be taken.
                std::thread::sleep(Duration::from_secs(1));
                chain.relays[0][0].thaw();
                taken.extend(rest.join().unwrap());
                assert!(head.status == 200 && taken == bytes);
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            most.join().unwrap()
        })
    };
    let (bounded, unbounded) = (parked_most(&["--max-parked", "4M"]), parked_most(&[]));
    eprintln!("parked at most: {bounded} bytes, without the bound {unbounded}");
    assert!(bounded > 0.0 && bounded < BOUND + BESIDE, "{bounded} bytes");
    assert!(unbounded > BOUND + BESIDE, "nothing comes near the bound: {unbounded} bytes");
}

/// A path that stands still keeps the frame that is next. It is sent again over the other, behind frames for which there is
/// no room: these may not keep it back for ever.
#[test]
fn what_may_not_wait_does_not_stand_in_the_way() {
    let bytes = content(BIG);
    for (executor, placement) in [("tokio-uring", "local"), ("tokio-uring", "spread"), ("glommio", "local")] {
        let settings = Settings { executor, placement, admin: true, ..Settings::default() };
        let downstream = ["--max-parked", "4M"].map(ToString::to_string).into();
        let chain =
            Plan { downstream, settings, ..Plan::default() }.start(|ground| ground.store("f", &bytes));
        // It is a race whether the other path has brought more than may wait before all is sent again.
        eventually("nothing comes near the bound", || {
            let mut client = Client::connect(chain.address);
            client.request("GET", "/f", "");
            assert_eq!(client.head().unwrap().status, 200);
            let mut taken = client.some(10_000_000).unwrap();
            chain.relays[0][0].freeze();
            let rest = client.some(bytes.len() - taken.len());
            chain.relays[0][0].thaw();
            taken
                .extend(rest.unwrap_or_else(|error| panic!("{executor} {placement}: it broke off: {error}")));
            assert_eq!(hash(&taken), hash(&bytes), "{executor} {placement}");
            (limit_hits(chain.downstream.admin(), "parked") > 0.0).then_some(())
        });
    }
}
