//! Roles that die, lie or are set up wrongly: requests are served over what is left, and what cannot be completed is
//! seen to be incomplete.

use std::{
    fs,
    io::Write,
    net::{SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt,
    thread,
    time::{Duration, Instant},
};

use crate::{
    chain::{Chain, Ground, Plan, Root, text},
    client::{Client, ask, curl_to, plait_get, try_get},
    content::{content, hash, hash_file},
    gate::Gate,
    process::{DEADLINE, Process, Settings, run},
    roots::{After, ScriptedRoot, chunked},
};

/// Many times what a chain holds, so that a transfer runs as long as its client takes nothing.
const BIG: usize = 100_000_000;
/// Enough that a transfer uses every path.
const SOME: usize = 8 << 20;

/// An address where nobody listens: one that a listener had until now.
fn dead_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A chain whose downstream has one path, through a gate and a relay of the test's own, for each relay that is given.
struct Gated {
    chain: Chain,
    gates: Vec<Gate>,
    relays: Vec<Process>,
}

fn gated(settings: Settings, paths: usize, more: &[&str], fill: impl FnOnce(&Ground)) -> Gated {
    let ground = Ground::new();
    fill(&ground);
    let (relays, gates): (Vec<_>, Vec<_>) = (0..paths)
        .map(|_| ground.start_relay(&settings))
        .map(|(relay, address)| (relay, Gate::to(address)))
        .unzip();
    let plan = Plan {
        paths: 0,
        more_paths: gates.iter().map(|gate| gate.address).collect(),
        downstream: more.iter().map(ToString::to_string).collect(),
        settings,
        ..Plan::default()
    };
    Gated { chain: plan.start_on(ground), gates, relays }
}

/// On one core, where one lane stands for each path.
fn one_core() -> Settings {
    let cores = Settings::default().cores;
    Settings { cores: cores.split(',').next().unwrap().to_owned(), ..Settings::default() }
}

#[test]
fn a_path_that_is_down_at_the_start_is_not_needed() {
    let bytes = content(SOME);
    let plan = Plan { paths: 1, more_paths: vec![dead_port()], ..Plan::default() };
    let chain = plan.start(|ground| ground.store("f", &bytes));
    chain.downstream.wait_for_log("the path is tried again");
    for _ in 0..4 {
        assert_eq!(hash(&ask(chain.address, "GET", "/f", "").body), hash(&bytes));
    }
}

#[test]
fn no_path_at_all() {
    let plan = Plan { paths: 0, more_paths: vec![dead_port(), dead_port()], ..Plan::default() };
    let chain = plan.start(|_| {});
    let mut client = Client::connect(chain.address);
    for _ in 0..2 {
        let answer = client.ask("GET", "/f", "").unwrap();
        assert_eq!(answer.status(), 502, "{}", answer.text());
        assert!(answer.text().starts_with("relay: "), "{}", answer.text());
    }
}

#[test]
fn a_relay_that_dies_while_idle_and_comes_back() {
    for executor in ["tokio-uring", "glommio"] {
        let bytes = content(SOME);
        let settings = Settings { executor, ..one_core() };
        let mut gated = gated(settings.clone(), 2, &[], |ground| ground.store("f", &bytes));
        let address = gated.chain.address;
        let fetch = || assert_eq!(hash(&ask(address, "GET", "/f", "").body), hash(&bytes));
        for gate in &gated.gates {
            gate.wait("a lane", |passed| passed.standing > 0);
        }
        fetch();
        gated.relays[0].kill();
        gated.gates[0].wait("the end of its lanes", |passed| passed.standing == 0);
        for _ in 0..4 {
            fetch();
        }
        // It comes back on another port, behind the same gate.
        let (relay, there) = gated.chain.ground.start_relay(&settings);
        gated.relays[0] = relay;
        gated.gates[0].lead_to(there);
        let before = gated.gates[0].passed().back_bytes;
        gated.gates[0].wait("a new lane", |passed| passed.standing > 0);
        // Whether a lane gets a share of a transfer is a race between lanes; it wins one soon.
        let until = Instant::now() + DEADLINE;
        while gated.gates[0].passed().back_bytes < before + 100_000 {
            assert!(Instant::now() < until, "the path is not used again");
            fetch();
        }
    }
}

#[test]
fn an_upstream_that_is_started_anew() {
    let bytes = content(SOME);
    let ground = Ground::new();
    ground.store("f", &bytes);
    let settings = Settings::default();
    let files = ground.files();
    let (mut upstream, at) = ground.start_upstream(&settings, text(&files));
    let gate = Gate::to(at);
    let (_downstream, address) = ground.start_downstream(&settings, &[gate.address.to_string()], &[]);
    assert_eq!(hash(&ask(address, "GET", "/f", "").body), hash(&bytes));
    upstream.kill();
    gate.wait("the end of all lanes", |passed| passed.standing == 0);
    assert_eq!(ask(address, "GET", "/f", "").status(), 502);
    let (_upstream, at) = ground.start_upstream(&settings, text(&files));
    gate.lead_to(at);
    let until = Instant::now() + DEADLINE;
    loop {
        let answer = ask(address, "GET", "/f", "");
        if answer.status() == 200 {
            return assert_eq!(hash(&answer.body), hash(&bytes));
        }
        assert!(Instant::now() < until, "the upstream is not used again: {}", answer.text());
    }
}

/// A client in the middle of a body, which must come whole whatever happens meanwhile.
struct Viewer {
    client: Client,
    taken: Vec<u8>,
}

impl Viewer {
    /// Asks for `/f` and takes the first `bytes` of it. The chain holds a few megabytes of what follows, and waits.
    fn begin(address: SocketAddr, bytes: usize) -> Self {
        let mut client = Client::connect(address);
        // An answer of any length then ends with the connection.
        client.send("GET /f HTTP/1.0\r\n\r\n");
        assert_eq!(client.head().unwrap().status, 200);
        let mut viewer = Self { client, taken: Vec::new() };
        viewer.take(bytes);
        viewer
    }

    fn take(&mut self, bytes: usize) {
        let some = self.client.some(bytes).unwrap_or_else(|error| self.broke_off(&error));
        self.taken.extend(some);
    }

    /// Takes the rest.
    fn finish(mut self, whole: &[u8]) {
        let rest = self.client.rest().unwrap_or_else(|error| self.broke_off(&error));
        self.taken.extend(rest);
        assert_eq!((self.taken.len(), hash(&self.taken)), (whole.len(), hash(whole)));
    }

    fn broke_off(&self, error: &std::io::Error) -> ! {
        panic!("the body broke off after more than {} bytes: {error}", self.taken.len())
    }
}

/// Begins to fetch a big file, lets `fail` happen, and takes the rest: all of it must be right, or the client must see
/// that it is not whole.
fn fail_in_mid_transfer(chain: &mut Chain, bytes: &[u8], fail: impl FnOnce(&mut Chain)) -> bool {
    let mut client = Client::connect(chain.address);
    client.request("GET", "/f", "");
    let head = client.head().unwrap();
    assert_eq!(head.status, 200);
    let begun = client.some(10_000_000).unwrap();
    assert!(begun == bytes[..begun.len()]);
    fail(chain);
    let rest = client.some(bytes.len() - begun.len());
    let whole = rest.is_ok();
    assert!(rest.is_err() || rest.unwrap() == bytes[begun.len()..], "the client received other bytes");
    whole
}

/// Executors and placements that the loss of lanes is tried with.
const WAYS: [(&str, &str); 3] = [("tokio-uring", "local"), ("tokio-uring", "spread"), ("glommio", "spread")];

#[test]
fn a_relay_that_is_killed_in_the_middle() {
    let bytes = content(BIG);
    for (executor, placement) in WAYS {
        let settings = Settings { executor, placement, ..Settings::default() };
        let mut chain = Plan { settings, ..Plan::default() }.start(|ground| ground.store("f", &bytes));
        let viewer = Viewer::begin(chain.address, 10_000_000);
        chain.relays[0][0].kill();
        viewer.finish(&bytes);
    }
}

#[test]
fn a_relay_that_is_frozen_in_the_middle() {
    let bytes = content(BIG);
    for (executor, placement) in WAYS {
        let settings = Settings { executor, placement, ..Settings::default() };
        let chain = Plan { settings, ..Plan::default() }.start(|ground| ground.store("f", &bytes));
        let mut viewer = Viewer::begin(chain.address, 10_000_000);
        chain.relays[0][0].freeze();
        // More than the chain holds: the other path brings what the frozen one keeps.
        viewer.take(50_000_000);
        chain.relays[0][0].thaw();
        viewer.finish(&bytes);
    }
}

#[test]
fn relays_that_are_killed_and_started_anew_again_and_again() {
    let bytes = content(BIG);
    for (executor, placement) in WAYS {
        let settings = Settings { executor, placement, ..Settings::default() };
        let mut gated = gated(settings.clone(), 2, &[], |ground| ground.store("f", &bytes));
        let mut viewer = Viewer::begin(gated.chain.address, 10_000_000);
        for round in 0..8 {
            // In turn, without waiting until the path is used again: now and then there is none.
            let path = round % 2;
            gated.relays[path].kill();
            let (relay, there) = gated.chain.ground.start_relay(&settings);
            gated.relays[path] = relay;
            gated.gates[path].lead_to(there);
            viewer.take(10_000_000);
        }
        viewer.finish(&bytes);
    }
}

#[test]
fn lanes_that_are_reset_or_end_in_the_middle() {
    let bytes = content(BIG);
    for (executor, placement) in WAYS {
        let settings = Settings { executor, placement, ..Settings::default() };
        let gated = gated(settings, 2, &[], |ground| ground.store("f", &bytes));
        let mut viewer = Viewer::begin(gated.chain.address, 10_000_000);
        for round in 0..8 {
            gated.gates[round % 2].cut(round % 4 < 2);
            viewer.take(10_000_000);
        }
        viewer.finish(&bytes);
    }
}

/// Long enough for what stands still to be taken for lost.
const OUTAGE: Duration = Duration::from_secs(5);

#[test]
fn all_paths_that_are_gone_for_seconds() {
    let bytes = content(BIG);
    for executor in ["tokio-uring", "glommio"] {
        let settings = Settings { executor, ..Settings::default() };
        let mut gated = gated(settings.clone(), 2, &[], |ground| ground.store("f", &bytes));
        let viewer = Viewer::begin(gated.chain.address, 10_000_000);
        gated.relays.iter_mut().for_each(Process::kill);
        thread::scope(|scope| {
            scope.spawn(|| viewer.finish(&bytes));
            thread::sleep(OUTAGE);
            for path in 0..2 {
                let (relay, there) = gated.chain.ground.start_relay(&settings);
                gated.relays[path] = relay;
                gated.gates[path].lead_to(there);
            }
        });
    }
}

#[test]
fn an_upstream_that_is_frozen_in_the_middle() {
    let bytes = content(BIG);
    for executor in ["tokio-uring", "glommio"] {
        let settings = Settings { executor, ..Settings::default() };
        let chain = Plan { settings, ..Plan::default() }.start(|ground| ground.store("f", &bytes));
        let viewer = Viewer::begin(chain.address, 10_000_000);
        chain.upstream.freeze();
        thread::scope(|scope| {
            scope.spawn(|| viewer.finish(&bytes));
            thread::sleep(OUTAGE);
            chain.upstream.thaw();
        });
    }
}

/// What a root sends only once, and whose length nobody knows, is kept by the upstream until it has arrived.
#[test]
fn lanes_are_lost_while_a_root_without_ranges_and_lengths_answers() {
    const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    const UNTIL_CLOSE: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n";
    let bytes = content(BIG);
    let chunks = chunked(&bytes, &[1, 70_000, 1_000_000, 16]);
    for (head, body) in [(CHUNKED, chunks), (UNTIL_CLOSE, bytes.clone())] {
        for executor in ["tokio-uring", "glommio"] {
            let root = ScriptedRoot::of_pieces(head, vec![body.clone()], || After::Close);
            let settings = Settings { executor, ..Settings::default() };
            let plan = Plan { paths: 3, root: Root::At(root.address), settings, ..Plan::default() };
            let mut chain = plan.start(|_| {});
            let mut viewer = Viewer::begin(chain.address, 10_000_000);
            chain.relays[0][0].kill();
            viewer.take(30_000_000);
            chain.relays[1][0].freeze();
            viewer.take(30_000_000);
            chain.relays[1][0].thaw();
            chain.relays[2][0].kill();
            viewer.finish(&bytes);
        }
    }
}

#[test]
fn an_upstream_that_dies_in_the_middle() {
    let bytes = content(BIG);
    let mut chain = Plan::default().start(|ground| ground.store("f", &bytes));
    let whole = fail_in_mid_transfer(&mut chain, &bytes, |chain| chain.upstream.kill());
    assert!(!whole, "nobody can have completed this");
}

#[test]
fn a_root_that_dies_in_the_middle() {
    let bytes = content(BIG);
    let mut chain = Plan::default().start(|ground| ground.store("f", &bytes));
    let whole = fail_in_mid_transfer(&mut chain, &bytes, |chain| chain.root.as_mut().unwrap().kill());
    assert!(!whole, "nobody can have completed this");
    assert_eq!(ask(chain.address, "GET", "/f", "").status(), 502);
}

#[test]
fn a_body_that_breaks_off_is_seen_to_be_incomplete() {
    const FIXED: &str = "HTTP/1.1 200 OK\r\nContent-Length: 3000001\r\n\r\n";
    const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let body = || content(3_000_000);
    let in_a_chunk = || [b"300000\r\n".to_vec(), content(3_000_000)].concat();
    let behind_a_chunk = || [b"5\r\nhello\r\n".to_vec()].concat();
    let not_a_chunk = || [b"5\r\nhello\r\nnonsense\r\n".to_vec(), vec![b'x'; 100]].concat();
    let close: fn() -> After = || After::Close;
    let reset: fn() -> After = || After::Reset;
    let keep: fn() -> After = || After::Keep;
    let rows = [
        ("one byte short", FIXED, body(), close),
        ("reset", FIXED, body(), reset),
        ("in a chunk", CHUNKED, in_a_chunk(), close),
        ("without a last chunk", CHUNKED, behind_a_chunk(), close),
        ("reset behind a chunk", CHUNKED, behind_a_chunk(), reset),
        ("broken chunks", CHUNKED, not_a_chunk(), keep),
    ];
    for (case, head, body, after) in rows {
        for executor in ["tokio-uring", "glommio"] {
            let root = ScriptedRoot::of_pieces(head, vec![body.clone()], after);
            let settings = Settings { executor, ..Settings::default() };
            let chain = Plan { root: Root::At(root.address), settings, ..Plan::default() }.start(|_| {});
            match try_get(chain.address, "GET", "/f", "") {
                Err(_) => {}
                Ok(answer) => assert_eq!(answer.status(), 502, "{case}: taken for whole"),
            }
            let (content, file) = curl_to(&chain, "/f", "f");
            assert!(!content, "{case}: curl took {} for whole", file.display());
            let file = chain.ground.scratch("got");
            let got = plait_get(&chain, "/f", &file);
            assert_eq!(got.status.code(), Some(1), "{case}: plait get took it for whole: {got:?}");
            assert!(!file.exists(), "{case}: a part stands under the name of the whole");
            // Where only the end of the connection tells the end, that end must be a reset.
            let mut client = Client::connect(chain.address);
            client.send("GET /f HTTP/1.0\r\n\r\n");
            match client.answer("GET") {
                Err(_) => {}
                Ok(answer) => assert_eq!(answer.status(), 502, "{case}: taken for whole by HTTP/1.0"),
            }
        }
    }
}

#[test]
fn a_wrong_key_is_named() {
    let ground = Ground::new();
    let other = Ground::new();
    let settings = Settings::default();
    let files = ground.files();
    let (upstream, upstream_at) = ground.start_upstream(&settings, text(&files));
    let (relay, relay_at) = ground.start_relay(&settings);
    for (first, listening) in [(relay_at, &relay), (upstream_at, &upstream)] {
        let path = if first == upstream_at { first.to_string() } else { format!("{first},{upstream_at}") };
        let (downstream, address) = other.start_downstream(&settings, &[path], &[]);
        downstream.wait_for_log("--key");
        listening.wait_for_log("key");
        let answer = ask(address, "GET", "/f", "");
        assert_eq!(answer.status(), 502, "{}", answer.text());
        assert!(answer.text().contains("key"), "{}", answer.text());
    }
}

#[test]
fn routes_that_lead_nowhere_are_named() {
    let ground = Ground::new();
    let settings = Settings::default();
    let (_upstream, upstream_at) = ground.start_upstream(&settings, text(&ground.files()));
    let (_relay, relay_at) = ground.start_relay(&settings);
    let key = ground.key();
    let choosy = ["relay", "--listen", "127.0.0.1:0", "--key", text(&key), "--allow", "upstream.example:*"];
    let (_choosy, choosy_at) = Process::role("choosy relay", &settings, choosy);
    let dead = dead_port();
    let rows = [
        (format!("{choosy_at},{upstream_at}"), "--allow"),
        (relay_at.to_string(), "--path"),
        (format!("{upstream_at},{relay_at}"), "--path"),
        (format!("{relay_at},{dead}"), "refused"),
    ];
    for (path, named) in rows {
        let (_downstream, address) = ground.start_downstream(&settings, std::slice::from_ref(&path), &[]);
        let answer = ask(address, "GET", "/f", "");
        assert_eq!(answer.status(), 502, "{path}: {}", answer.text());
        assert!(answer.text().contains(named), "{path}: {}", answer.text());
    }
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let ground = Ground::new();
    for mode in [0o644, 0o640, 0o660] {
        fs::set_permissions(ground.key(), fs::Permissions::from_mode(mode)).unwrap();
        let key = ground.key();
        let roles: [&[&str]; 3] = [
            &["relay", "--listen", "127.0.0.1:0"],
            &["upstream", "--listen", "127.0.0.1:0", "--root", "http://127.0.0.1:1"],
            &["downstream", "--listen", "127.0.0.1:0", "--path", "127.0.0.1:1"],
        ];
        for role in roles {
            let output = run(Settings::default().plait().args(role).args(["--key", text(&key)]));
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(said.contains(text(&key)) && said.contains("chmod 600"), "{said}");
        }
    }
}

#[test]
fn a_port_in_use_is_named() {
    let ground = Ground::new();
    let (key, files) = (ground.key(), ground.files());
    let settings = Settings::default();
    let (_root, taken) = ground.start_root(&settings);
    let taken = taken.to_string();
    let roles: [&[&str]; 4] = [
        &["root", "--dir", text(&files)],
        &["relay", "--key", text(&key)],
        &["upstream", "--root", "http://127.0.0.1:1", "--key", text(&key)],
        &["downstream", "--path", "127.0.0.1:1", "--key", text(&key)],
    ];
    for role in roles {
        let output = run(settings.plait().args(role).args(["--listen", &taken]));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{role:?}: {said}");
        assert!(said.contains(&taken) && said.contains("--listen"), "{role:?}: {said}");
        assert!(!String::from_utf8_lossy(&output.stdout).contains("listening"), "{role:?}");
    }
}

#[test]
fn wrong_flags_are_named() {
    let ground = Ground::new();
    let key = ground.key();
    let key = text(&key);
    let rows: [(&[&str], &str); 13] = [
        (&["root", "--listen", "here", "--dir", "/"], "--listen"),
        (&["root", "--listen", "127.0.0.1:0", "--dir", "/does/not/exist"], "--dir"),
        (&["root", "--listen", "127.0.0.1:0"], "--dir"),
        (&["relay", "--listen", "127.0.0.1:0"], "--key"),
        (&["relay", "--listen", "127.0.0.1:0", "--key", key, "--allow", "nonsense"], "--allow"),
        (&["relay", "--listen", "127.0.0.1:0", "--key", key, "--cores", "3-1"], "--cores"),
        (&["relay", "--listen", "127.0.0.1:0", "--key", key, "--executor", "threads"], "--executor"),
        (&["relay", "--listen", "127.0.0.1:0", "--key", "/does/not/exist"], "/does/not/exist"),
        (&["upstream", "--listen", "127.0.0.1:0", "--key", key, "--root", "https://a"], "--root"),
        (&["upstream", "--listen", "127.0.0.1:0", "--key", key, "--root", "/does/not/exist"], "--root"),
        (&["downstream", "--listen", "127.0.0.1:0", "--key", key], "--path"),
        (&["downstream", "--listen", "127.0.0.1:0", "--key", key, "--path", "a:1,:2"], "--path"),
        (
            &["downstream", "--listen", "127.0.0.1:0", "--key", key, "--path", "a:1", "--lanes", "0"],
            "--lanes",
        ),
    ];
    for (args, named) in rows {
        let output = run(Settings::default().plait().args(args));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(matches!(output.status.code(), Some(1 | 2)), "{args:?}: {:?} {said}", output.status);
        assert!(said.contains(named), "{args:?}: {said}");
        assert!(!said.contains("panicked"), "{args:?}: {said}");
    }
}

#[test]
fn every_role_stops_on_sigterm() {
    for executor in ["tokio-uring", "glommio"] {
        let settings = Settings { executor, ..Settings::default() };
        let mut chain = Plan { settings, ..Plan::default() }.start(|ground| ground.store("f", b"hello"));
        // One client has gone, another is idle.
        assert_eq!(ask(chain.address, "GET", "/f", "").text(), "hello");
        let mut idle = Client::connect(chain.address);
        assert_eq!(idle.ask("GET", "/f", "").unwrap().text(), "hello");
        let Chain { downstream, relays, upstream, root, .. } = &mut chain;
        let relays = relays.iter_mut().flatten();
        for process in [downstream].into_iter().chain(relays).chain([upstream]).chain(root) {
            process.terminate();
            let ended = process.wait();
            assert_eq!(ended.code(), Some(0), "{executor}: {ended}; {}", process.log());
        }
        assert!(idle.is_closed());
    }
}

#[test]
fn a_transfer_that_runs_is_finished_before_a_role_stops() {
    let bytes = content(BIG);
    for executor in ["tokio-uring", "glommio"] {
        let settings = Settings { executor, ..Settings::default() };
        let mut chain = Plan { settings, ..Plan::default() }.start(|ground| ground.store("f", &bytes));
        let whole = fail_in_mid_transfer(&mut chain, &bytes, |chain| {
            chain.downstream.terminate();
            for relay in chain.relays.iter().flatten() {
                relay.terminate();
            }
            chain.upstream.terminate();
            chain.root.as_ref().unwrap().terminate();
        });
        assert!(whole, "{executor}: the transfer was cut off");
        let Chain { downstream, relays, upstream, root, .. } = &mut chain;
        let relays = relays.iter_mut().flatten();
        for process in [downstream].into_iter().chain(relays).chain([upstream]).chain(root) {
            let ended = process.wait();
            assert_eq!(ended.code(), Some(0), "{executor}: {ended}; {}", process.log());
        }
    }
}

#[test]
fn strangers_at_a_lane_port_harm_nobody() {
    let bytes = content(SOME);
    let chain = Plan::default().start(|ground| ground.store("f", &bytes));
    let lanes: SocketAddr = chain.upstream_address;
    let mut strangers = Vec::new();
    for words in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 4096], &[0xff; 65_536], b"P", b""] {
        let mut stranger = std::net::TcpStream::connect(lanes).unwrap();
        // It may be refused before everything is said.
        let _ = stranger.write_all(words);
        strangers.push(stranger);
    }
    assert_eq!(hash(&ask(chain.address, "GET", "/f", "").body), hash(&bytes));
    let (whole, file) = curl_to(&chain, "/f", "f");
    assert!(whole);
    assert_eq!(hash_file(&file), hash(&bytes));
}

/// Lanes of a client that goes away in the middle serve the next at once: nothing was dialled for it.
#[test]
fn a_client_that_goes_away_frees_its_lanes() {
    for executor in ["tokio-uring", "glommio"] {
        let bytes = content(BIG);
        let settings = Settings { executor, ..one_core() };
        let gated = gated(settings, 2, &["--lanes-max", "1"], |ground| ground.store("f", &bytes));
        let standing = |passed: &crate::gate::Passed| passed.standing == 1;
        for gate in &gated.gates {
            gate.wait("a lane", standing);
        }
        for _ in 0..5 {
            let mut leaves = Client::connect(gated.chain.address);
            leaves.request("GET", "/f", "");
            leaves.head().unwrap();
            leaves.some(2_000_000).unwrap();
            drop(leaves);
            let next = ask(gated.chain.address, "GET", "/f", "Range: bytes=0-999999\r\n");
            assert_eq!(next.status(), 206, "{}", next.text());
            assert!(next.body == bytes[..1_000_000]);
        }
        for gate in &gated.gates {
            let passed = gate.passed();
            assert_eq!((passed.connections, passed.standing), (1, 1), "{executor}: lanes were dialled again");
        }
    }
}
