//! Upstreams that die, hang or are replaced under running transfers: the client sees identical bytes, or that they are
//! not whole.

use std::{
    cell::RefCell,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use crate::{
    chain::{Ground, text},
    client::{Client, ask},
    content::content,
    process::{DEADLINE, Process, Settings, run},
    roots::{After, ScriptedRoot},
};

/// What a client takes of a body before something happens.
const BEGUN: usize = 5_000_000;
/// Many times what a chain holds, so that a transfer runs as long as its client takes nothing.
const BIG: usize = 100_000_000;

/// Two upstreams, each behind a relay of its own, and a downstream with a path to each.
struct Twins {
    address: SocketAddr,
    upstreams: Vec<Process>,
    paths: Vec<String>,
    downstream: Process,
    _relays: Vec<Process>,
    ground: Ground,
    settings: Settings,
}

impl Twins {
    /// `roots` as `--root` of each.
    fn start(settings: Settings, ground: Ground, roots: [&str; 2]) -> Self {
        let (mut upstreams, mut relays, mut paths) = (Vec::new(), Vec::new(), Vec::new());
        for root in roots {
            let (upstream, upstream_at) = ground.start_upstream(&settings, root);
            let (relay, relay_at) = ground.start_relay(&settings);
            upstreams.push(upstream);
            relays.push(relay);
            paths.push(format!("{relay_at},{upstream_at}"));
        }
        let (downstream, address) = ground.start_downstream(&settings, &paths, &[]);
        let twins = Self { address, upstreams, paths, downstream, _relays: relays, ground, settings };
        twins.wait_for_both();
        twins
    }

    /// Transfers that each has begun.
    fn begun(&self) -> Vec<usize> {
        self.upstreams.iter().map(|upstream| upstream.log().matches("a transfer begins").count()).collect()
    }

    /// Begins requests until each upstream has one, and leaves most of their bodies there.
    fn begin_on_each(&self, request: impl Fn() -> Client) -> Vec<Client> {
        let (before, until) = (self.begun(), Instant::now() + DEADLINE);
        let mut clients = Vec::new();
        loop {
            clients.push(request());
            if self.begun().iter().zip(&before).all(|(now, before)| now > before) {
                return clients;
            }
            assert!(Instant::now() < until, "one of two upstreams is never asked");
        }
    }

    /// Asks until both have answered: they take turns once lanes to both stand.
    fn wait_for_both(&self) {
        let until = Instant::now() + DEADLINE;
        while self.begun().contains(&0) {
            assert!(Instant::now() < until, "one of two upstreams is never asked");
            // Of no file: a root of the test's own would not answer.
            let mut client = Client::connect(self.address);
            client.request("GET", "/", "");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Logs what tests wait for.
fn settings(executor: &'static str, placement: &'static str) -> Settings {
    Settings { executor, placement, log: "info,plait::upstream=debug", ..Settings::default() }
}

/// Begins to fetch the file and leaves most of it there.
fn begin(address: SocketAddr, bytes: &[u8]) -> Client {
    let mut client = Client::connect(address);
    client.request("GET", "/f", "");
    assert_eq!(client.head().unwrap().status, 200);
    let begun = client.some(BEGUN).unwrap();
    assert!(begun == bytes[..begun.len()]);
    client
}

/// Takes the rest of all; how many were whole, and that no byte was wrong.
fn finish(clients: Vec<Client>, bytes: &[u8]) -> usize {
    let whole = |mut client: Client| match client.some(bytes.len() - BEGUN) {
        Ok(rest) => {
            assert!(rest == bytes[BEGUN..], "the client received other bytes");
            true
        }
        Err(_) => false,
    };
    thread::scope(|scope| {
        let running: Vec<_> = clients.into_iter().map(|client| scope.spawn(|| whole(client))).collect();
        running.into_iter().filter_map(|client| client.join().ok()).filter(|&whole| whole).count()
    })
}

fn twins_on_one_directory(settings: Settings, bytes: &[u8]) -> Twins {
    let ground = Ground::new();
    ground.store("f", bytes);
    let files = ground.files();
    Twins::start(settings, ground, [text(&files), text(&files)])
}

#[test]
fn the_other_upstream_goes_on_where_one_was_killed() {
    let bytes = content(BIG);
    for (executor, placement) in [("tokio-uring", "local"), ("tokio-uring", "spread"), ("glommio", "spread")]
    {
        let mut twins = twins_on_one_directory(settings(executor, placement), &bytes);
        let clients = twins.begin_on_each(|| begin(twins.address, &bytes));
        let all = clients.len();
        twins.upstreams[0].kill();
        assert_eq!(finish(clients, &bytes), all, "{executor}, {placement}");
        twins.downstream.wait_for_log("the body goes on from here");
        assert_eq!(ask(twins.address, "GET", "/f", "Range: bytes=0-9\r\n").body, bytes[..10]);
    }
}

#[test]
fn a_range_goes_on_over_the_other_upstream() {
    let bytes = content(BIG);
    let mut twins = twins_on_one_directory(settings("tokio-uring", "auto"), &bytes);
    let (first, last) = (1_000_003, BIG - 1_000_005);
    let mut clients = twins.begin_on_each(|| {
        let mut client = Client::connect(twins.address);
        client.request("GET", "/f", &format!("Range: bytes={first}-{last}\r\n"));
        assert_eq!(client.head().unwrap().status, 206);
        client
    });
    twins.upstreams[1].kill();
    for client in &mut clients {
        assert!(client.some(last - first + 1).unwrap() == bytes[first..=last]);
        // The connection is in step.
        assert_eq!(client.ask("GET", "/f", "Range: bytes=5-6\r\n").unwrap().body, bytes[5..7]);
    }
}

#[test]
fn the_other_upstream_goes_on_where_one_is_frozen() {
    let bytes = content(BIG);
    let twins = twins_on_one_directory(settings("tokio-uring", "auto"), &bytes);
    let clients = twins.begin_on_each(|| begin(twins.address, &bytes));
    let all = clients.len();
    twins.upstreams[0].freeze();
    assert_eq!(finish(clients, &bytes), all);
    // A request that goes there first is answered, too.
    for _ in 0..2 {
        assert_eq!(ask(twins.address, "GET", "/f", "Range: bytes=0-9\r\n").body, bytes[..10]);
    }
}

#[test]
fn two_versions_of_a_file_are_never_mixed() {
    let (old, new, begins) = (content(BIG), vec![7; BIG], RefCell::new(Vec::new()));
    let (ground, other) = (Ground::new(), Ground::new());
    ground.store("f", &old);
    other.store("f", &new);
    let roots = [ground.files(), other.files()];
    let mut twins = Twins::start(settings("tokio-uring", "auto"), ground, [text(&roots[0]), text(&roots[1])]);
    let clients = twins.begin_on_each(|| {
        let mut client = Client::connect(twins.address);
        client.request("GET", "/f", "");
        assert_eq!(client.head().unwrap().status, 200);
        begins.borrow_mut().push(client.some(BEGUN).unwrap());
        client
    });
    twins.upstreams[0].kill();
    let mut broken = 0;
    for (mut client, begun) in clients.into_iter().zip(begins.take()) {
        let rest = client.some(BIG - BEGUN);
        if begun[..] == new[..BEGUN] {
            assert!(rest.unwrap() == new[BEGUN..]);
        } else {
            assert!(begun[..] == old[..BEGUN] && rest.is_err(), "of the other version nothing may come");
            broken += 1;
        }
    }
    assert!(broken > 0);
}

#[test]
fn an_upstream_that_dies_before_the_answer_is_replaced() {
    let silent = ScriptedRoot::start(|_, _| {
        thread::park();
        Ok(After::Close)
    });
    let ground = Ground::new();
    ground.store("f", b"hello");
    let files = ground.files();
    let root = format!("http://{}", silent.address);
    let mut twins = Twins::start(settings("tokio-uring", "auto"), ground, [&root, text(&files)]);
    let mut clients: Vec<_> = (0..2).map(|_| Client::connect(twins.address)).collect();
    for client in &mut clients {
        client.request("GET", "/f", "");
    }
    silent.wait_for_request("/f");
    twins.upstreams[0].kill();
    for client in &mut clients {
        assert_eq!(client.answer("GET").unwrap().text(), "hello");
    }
}

/// With one upstream only: the new process answers for what the old one has begun.
#[test]
fn an_upstream_that_is_restarted_goes_on() {
    let bytes = content(BIG);
    for executor in ["tokio-uring", "glommio"] {
        let ground = Ground::new();
        ground.store("f", &bytes);
        let (settings, files, key) = (settings(executor, "auto"), ground.files(), ground.key());
        // A host of this test's own: elsewhere somebody could get the port between the two processes.
        let [_, _, high, low] = std::process::id().to_be_bytes();
        let listen = format!("127.99.{high}.{low}:0");
        let args = ["upstream", "--listen", &listen, "--root", text(&files), "--key", text(&key)];
        let (mut upstream, at) = Process::role("upstream", &settings, args);
        let at = at.to_string();
        let (downstream, address) = ground.start_downstream(&settings, std::slice::from_ref(&at), &[]);
        let clients = (0..2).map(|_| begin(address, &bytes)).collect();
        upstream.kill();
        let again = ["upstream", "--listen", &at, "--root", text(&files), "--key", text(&key)];
        let (_upstream, _) = Process::role("the next upstream", &settings, again);
        assert_eq!(finish(clients, &bytes), 2, "{executor}");
        downstream.wait_for_log("the body goes on from here");
    }
}

#[test]
fn a_download_goes_on_over_the_other_upstream() {
    let bytes = content(BIG);
    let mut twins = twins_on_one_directory(settings("tokio-uring", "auto"), &bytes);
    let (key, file) = (twins.ground.key(), twins.ground.scratch("got"));
    let mut command = twins.settings.plait();
    command.args(["get", "/f", "-o", text(&file), "--key", text(&key)]);
    for path in &twins.paths {
        command.args(["--path", path]);
    }
    let begun = |upstream: &Process| upstream.log().matches("a transfer begins").count();
    let before: Vec<_> = twins.upstreams.iter().map(begun).collect();
    let mut upstreams = std::mem::take(&mut twins.upstreams);
    let killer = thread::spawn(move || {
        let until = Instant::now() + DEADLINE;
        loop {
            assert!(Instant::now() < until, "the download does not begin");
            if let Some(used) = upstreams.iter().zip(&before).position(|(now, before)| begun(now) > *before) {
                upstreams[used].kill();
                return upstreams;
            }
        }
    });
    let got = run(&mut command);
    let _upstreams = killer.join().unwrap();
    assert!(got.status.success(), "{got:?}");
    assert!(std::fs::read(&file).unwrap() == bytes);
}

/// The relay hears nothing from behind it, says so, and is asked again: that is no refusal.
#[test]
fn an_upstream_that_is_frozen_when_a_request_comes() {
    let bytes = content(BEGUN);
    for executor in ["tokio-uring", "glommio"] {
        let settings = Settings { executor, ..Settings::default() };
        let ground = Ground::new();
        ground.store("f", &bytes);
        let (upstream, upstream_at) = ground.start_upstream(&settings, text(&ground.files()));
        let (relay, relay_at) = ground.start_relay(&settings);
        upstream.freeze();
        let paths = [format!("{relay_at},{upstream_at}")];
        let (_downstream, address) = ground.start_downstream(&settings, &paths, &[]);
        thread::scope(|scope| {
            let answer = scope.spawn(|| ask(address, "GET", "/f", ""));
            relay.wait_for_log("the handshake was not finished");
            // The request's own dial began a moment after that of the warm lane, which the relay speaks of.
            thread::sleep(Duration::from_millis(500));
            upstream.thaw();
            assert!(answer.join().unwrap().body == bytes);
        });
    }
}
