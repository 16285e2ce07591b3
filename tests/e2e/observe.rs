//! What a chain says of itself: metrics, state, access log.

use std::{
    collections::BTreeMap,
    io::Write,
    net::{SocketAddr, TcpListener},
    thread,
    time::Duration,
    time::Instant,
};

use plait::observe::Snapshot;

use crate::{
    chain::{Chain, Ground, Plan, Root, text},
    client::{Answer, Client, ask},
    content::content,
    process::{DEADLINE, Process, Settings},
    roots::{After, ScriptedRoot},
};

const LENGTH: usize = 20_000_000;

fn watched_chain() -> Chain {
    let settings = Settings { admin: true, ..Settings::default() };
    Plan { settings, ..Plan::default() }.start(|ground| ground.store("f.mp4", &content(LENGTH)))
}

fn admin(address: SocketAddr, target: &str, host: &str) -> Answer {
    let mut client = Client::connect(address);
    client.send(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    client.answer("GET").unwrap()
}

fn state(address: SocketAddr) -> Snapshot {
    serde_json::from_slice(&admin(address, "/state.json", "localhost").body).unwrap()
}

/// Values by name and labels, as they are written.
struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    fn of(address: SocketAddr) -> Self {
        let answer = admin(address, "/metrics", "localhost");
        assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
        let text = answer.text();
        let samples = text.lines().filter(|line| !line.starts_with('#')).map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series.to_owned(), value.parse().unwrap())
        });
        Self(samples.collect())
    }

    /// Sum over all series of this name that have `label` somewhere.
    fn sum(&self, name: &str, label: &str) -> f64 {
        let of_name = |series: &str| series.split('{').next() == Some(name) && series.contains(label);
        let found: Vec<_> = self.0.iter().filter(|(series, _)| of_name(series)).collect();
        assert!(!found.is_empty(), "no {name} with {label}");
        found.into_iter().map(|(_, value)| value).sum()
    }
}

/// Looks again and again until there is something to see.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "{what} does not happen");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn metrics_move_during_a_transfer_and_agree_with_what_was_sent() {
    let chain = watched_chain();
    let (downstream, upstream) = (chain.downstream.admin(), chain.upstream.admin());
    let relays: Vec<_> = chain.relays.iter().flatten().map(|relay| relay.admin()).collect();
    let mut client = Client::connect(chain.address);
    client.request("GET", "/f.mp4", "");
    let head = client.head().unwrap();
    let mut got = client.some(1_000_000).unwrap();

    // In the middle of it: the client takes no more, and not all of it fits into buffers.
    let during = Scrape::of(downstream);
    assert!(during.sum("plait_path_received_bytes_total", "path=") >= 1e6);
    assert!(during.sum("plait_path_lanes_leased", "path=") >= 1.0);
    assert!(during.sum("plait_lane_in_use", "end=\"downstream\"") >= 1.0);
    assert_eq!(during.sum("plait_client_connections", "role=\"downstream\""), 1.0);
    assert_eq!(during.sum("plait_requests_total", "role=\"downstream\",status=\"2xx\""), 0.0);
    assert_eq!(Scrape::of(upstream).sum("plait_transfers_running", ""), 1.0);

    let rest = head.header("content-length").unwrap().parse::<usize>().unwrap() - got.len();
    got.extend(client.some(rest).unwrap());
    assert!(got == content(LENGTH));
    let length = LENGTH as f64;
    let after = eventually("the request's end", || {
        let scrape = Scrape::of(downstream);
        (scrape.sum("plait_requests_total", "role=\"downstream\",status=\"2xx\"") == 1.0).then_some(scrape)
    });
    assert_eq!(after.sum("plait_body_bytes_total", "role=\"downstream\""), length);
    assert_eq!(after.sum("plait_first_byte_seconds_count", "role=\"downstream\""), 1.0);
    assert_eq!(after.sum("plait_reorder_depth_frames_count", "role=\"downstream\""), 1.0);
    assert!(after.sum("plait_path_received_bytes_total", "path=") >= length);
    assert!(after.sum("plait_lane_round_trip_seconds", "end=\"downstream\"") > 0.0);
    let sent = Scrape::of(upstream);
    let resent = sent.sum("plait_upstream_resent_bytes_total", "");
    assert_eq!(sent.sum("plait_upstream_payload_bytes_total", "") - resent, length);
    assert_eq!(sent.sum("plait_root_requests_total", ""), 1.0);
    assert_eq!(sent.sum("plait_refused_total", "reason=\"key\""), 0.0);
    let relayed = relays.iter().map(|&relay| Scrape::of(relay).sum("plait_relay_bytes_total", "down"));
    assert!(relayed.sum::<f64>() >= length, "frames carry headers, too");
    let root = chain.root.as_ref().unwrap().admin();
    eventually("the root's end", || {
        (Scrape::of(root).sum("plait_body_bytes_total", "role=\"root\"") == length).then_some(())
    });

    // Cores add up, and all of it is documented.
    assert!(after.sum("plait_core_busy_seconds_total", "core=") > 0.0);
    let documented = include_str!("../../docs/metrics.md");
    let all = [downstream, upstream, root].into_iter().chain(relays);
    for series in all.flat_map(|address| Scrape::of(address).0.into_keys()) {
        let name = series.split('{').next().unwrap();
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        let is_known = |name: &str| documented.contains(&format!("| `{name}` |"));
        assert!(is_known(name) || base.is_some_and(is_known), "{series} is not documented");
    }
}

/// Whoever starts it in the place of another one stops that one then, and no client waits for a lane.
#[test]
fn a_downstream_that_says_it_listens_has_lanes_on_every_path_that_answers() {
    // Connections to it stand in its backlog.
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let settings = Settings { admin: true, ..Settings::default() };
    let more_paths = vec![mute.local_addr().unwrap()];
    let plan = Plan { settings, more_paths, ..Plan::default() };
    let chain = plan.start(|ground| ground.store("f.mp4", &content(LENGTH)));
    let paths = state(chain.downstream.admin()).paths;
    let stand: Vec<_> = paths.iter().map(|path| path.lanes > 0 && path.rtt_s > 0.0).collect();
    assert_eq!(stand, [true, true, false], "{paths:?}");
    assert_eq!(ask(chain.address, "GET", "/f.mp4", "").body.len(), LENGTH);
}

#[test]
fn a_killed_relay_shows_without_a_transfer() {
    let mut chain = watched_chain();
    let admin = chain.downstream.admin();
    let paths_down = |snapshot: &Snapshot| snapshot.paths.iter().map(|path| path.down).collect::<Vec<_>>();
    assert_eq!(paths_down(&state(admin)), [false, false]);
    chain.relays[0][0].kill();
    eventually("the first path down", || (paths_down(&state(admin)) == [true, false]).then_some(()));
    assert!(Scrape::of(admin).sum("plait_path_up", &chain.paths[0]) == 0.0);
    let answer = ask(chain.address, "GET", "/f.mp4", "");
    assert_eq!(answer.body.len(), LENGTH);
    let snapshot = eventually("the request's end", || {
        let snapshot = state(admin);
        (!snapshot.clients["downstream"].traffic.recent.is_empty()).then_some(snapshot)
    });
    let recent = &snapshot.clients["downstream"].traffic.recent[0];
    assert_eq!((recent.target.as_str(), recent.status, recent.complete), ("/f.mp4", 200, true));
    let share = |path: &str| recent.shares.iter().find(|share| share.path == path).map_or(0, |s| s.bytes);
    assert_eq!(share(&chain.paths[0]), 0);
    assert!(share(&chain.paths[1]) >= LENGTH as u64);
}

#[test]
fn the_endpoint_is_for_this_host_and_changes_nothing() {
    let chain = watched_chain();
    let address = chain.upstream.admin();
    assert_eq!(admin(address, "/metrics", "evil.example").status(), 403);
    assert_eq!(admin(address, "/nothing", "localhost").status(), 404);
    assert_eq!(admin(address, "/state.json?x", &address.to_string()).status(), 200);
    let mut client = Client::connect(address);
    client.send("POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(client.answer("POST").unwrap().status(), 405);
    assert!(!chain.upstream.log().contains("/metrics"), "scrapes are not logged");
}

#[test]
fn each_request_is_a_line_of_the_log() {
    for log_format in ["text", "json"] {
        let settings = Settings { log_format, ..Settings::default() };
        let chain =
            Plan { settings, ..Plan::default() }.start(|ground| ground.store("f.mp4", &content(LENGTH)));
        let answer = ask(chain.address, "GET", "/f.mp4?\u{1b}", "");
        assert_eq!(answer.status(), 400, "no control characters");
        let answer = ask(chain.address, "GET", "/f.mp4", "");
        assert!(answer.header("server-timing").unwrap().starts_with("root;dur="), "{:?}", answer.head);
        chain.downstream.wait_for_log("GET /f.mp4");
        let log = chain.downstream.log();
        let line = log.lines().find(|line| line.contains("GET /f.mp4")).unwrap();
        if log_format == "json" {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!((&line["level"], &line["target"]), (&"INFO".into(), &"access".into()));
            assert_eq!((&line["status"], &line["bytes"]), (&200.into(), &LENGTH.into()));
            assert!(line["paths"].as_str().unwrap().contains(&chain.paths[0]), "{line}");
            assert!(line["first_byte_ms"].as_f64().unwrap() > 0.0, "{line}");
        } else {
            for part in ["status=200", &format!("bytes={LENGTH}"), "stall_ms=", "paths=", &chain.paths[0]] {
                assert!(line.contains(part), "'{part}' is missing: {line}");
            }
        }
    }
}

#[test]
fn a_hit_is_seen_in_the_log_and_by_players() {
    for log_format in ["text", "json"] {
        let ground = Ground::new();
        ground.store("f.mp4", &content(1_000_000));
        let downstream = vec!["--cache".to_owned(), text(&ground.scratch("cache")).to_owned()];
        let settings = Settings { log_format, ..Settings::default() };
        let chain = Plan { settings, downstream, ..Plan::default() }.start_on(ground);
        let first = ask(chain.address, "GET", "/f.mp4?0", "");
        let timing = |answer: &Answer| answer.header("server-timing").unwrap().to_owned();
        assert!(timing(&first).starts_with("cache;desc=miss"), "{}", timing(&first));
        let mut asked = 0;
        eventually("a hit", || {
            asked += 1;
            (timing(&ask(chain.address, "GET", "/f.mp4?0", "")) == "cache;desc=hit").then_some(())
        });
        chain.downstream.wait_for_log_times("GET /f.mp4?0", asked + 1);
        let log = chain.downstream.log();
        let lines: Vec<_> = log.lines().filter(|line| line.contains("GET /f.mp4?0")).collect();
        let (first, last) = (lines[0], lines[asked]);
        if log_format == "json" {
            let read = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
            let (first, last) = (read(first), read(last));
            assert_eq!((&first["cache"], &last["cache"]), (&"miss".into(), &"hit".into()));
            assert!(first["stall_ms"].is_f64(), "{first}");
            assert!(last["stall_ms"].is_null(), "no lane carried it: {last}");
        } else {
            assert!(first.contains("cache=\"miss\"") && first.contains("stall_ms="), "{first}");
            assert!(last.contains("cache=\"hit\"") && !last.contains("stall_ms="), "{last}");
        }
    }
}

/// What clients can cause as often as they like is logged once in ten seconds.
#[test]
fn requests_are_no_flood_of_warnings() {
    const REQUESTS: usize = 40;
    let ground = Ground::new();
    ground.store("f", b"film");
    let settings = Settings::default();
    // A root's descriptors are used up, and then those of an upstream that reads files itself.
    let (root, root_at) = ground.start_root(&settings);
    let (upstream, upstream_at) = ground.start_upstream(&settings, text(&ground.files()));
    let (_downstream, address) = ground.start_downstream(&settings, &[upstream_at.to_string()], &[]);
    for (process, address) in [(root, root_at), (upstream, address)] {
        let mut client = Client::connect(address);
        assert_eq!(client.ask("GET", "/f", "").unwrap().text(), "film");
        process.limit_descriptors(3);
        for _ in 0..REQUESTS {
            assert_eq!(client.ask("GET", "/f", "").unwrap().status(), 503);
        }
        process.wait_for_log("a file cannot be sent");
        // Two where the machine needed more than ten seconds for it.
        let told = process.log().matches("a file cannot be sent").count();
        assert!(told <= 2, "{told} lines about {REQUESTS} requests");
    }
}

#[test]
fn files_that_shrink_are_no_flood_of_warnings() {
    const LENGTH: usize = 30_000_000;
    let ground = Ground::new();
    ground.store("f", &content(LENGTH));
    let (root, address) = ground.start_root(&Settings::default());
    // More than fits into the buffers of all of them is not sent yet when the file becomes shorter.
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let mut client = Client::connect(address);
            client.request("GET", "/f", "");
            client.head().unwrap();
            client
        })
        .collect();
    std::fs::File::options().write(true).open(ground.files().join("f")).unwrap().set_len(1000).unwrap();
    for mut client in clients {
        assert!(client.some(LENGTH).is_err());
    }
    root.wait_for_log("a file became shorter");
    let told = root.log().matches("a file became shorter").count();
    assert!(told <= 2, "{told} lines about 8 requests");
}

#[test]
fn answers_that_break_are_told_from_viewers_who_leave() {
    let settings = Settings { admin: true, ..Settings::default() };
    // A root that breaks off where the file is called so, and else sends on and on.
    let root = ScriptedRoot::start(|asked, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 900000000\r\n\r\n")?;
        let pieces = if asked.line.contains("broken") { 1 } else { 9000 };
        for _ in 0..pieces {
            stream.write_all(&[0; 100_000])?;
        }
        Ok(After::Reset)
    });
    let chain = Plan { settings, root: Root::At(root.address), ..Plan::default() }.start(|_| ());
    let admin = chain.downstream.admin();
    let cut_off = |aborted: f64, broken: f64| {
        eventually("an answer that is cut off", || {
            let scrape = Scrape::of(admin);
            let count = |name| scrape.sum(name, "role=\"downstream\"");
            let found = (count("plait_answers_aborted_total"), count("plait_answers_broken_total"));
            (found.0 >= aborted).then(|| assert_eq!(found, (aborted, broken)))
        });
    };
    let mut leaves = Client::connect(chain.address);
    leaves.request("GET", "/film", "");
    leaves.head().unwrap();
    leaves.some(10_000).unwrap();
    drop(leaves);
    cut_off(1.0, 0.0);
    let mut stays = Client::connect(chain.address);
    stays.request("GET", "/broken", "");
    // The reset may take the head with it, if the client has not read it by then.
    if let Ok(head) = stays.head() {
        assert!(stays.body(&head).is_err());
    }
    cut_off(2.0, 1.0);
}

/// How often the process at `address` met a bound.
pub fn limit_hits(address: SocketAddr, limit: &str) -> f64 {
    Scrape::of(address).sum("plait_limits_hit_total", &format!("limit=\"{limit}\""))
}

#[test]
fn an_upload_too_many_is_counted() {
    /// On a core, see `downstream::pass`.
    const UPLOADS_MAX: usize = 64;
    let settings = Settings { admin: true, cores: "0".into(), ..Settings::default() };
    // It says nothing, so that no upload ends.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let root = Root::At(silent.local_addr().unwrap());
    let downstream = ["--request-timeout", "60"].map(String::from).to_vec();
    let chain = Plan { settings, root, downstream, ..Plan::default() }.start(|ground| ground.store("f", b""));
    let mut uploads: Vec<_> = (0..=UPLOADS_MAX)
        .map(|_| {
            let mut client = Client::connect(chain.address);
            client.request("POST", "/f", "Content-Length: 10\r\n");
            client
        })
        .collect();
    let refused = eventually("one too many", || uploads.iter().position(Client::has_answer));
    assert_eq!(uploads[refused].answer("POST").unwrap().status(), 503);
    assert_eq!(limit_hits(chain.downstream.admin(), "uploads"), 1.0);
}

#[test]
fn a_balancer_is_told_when_no_path_is_up() {
    let mut chain = watched_chain();
    let ready = |process: &Process| admin(process.admin(), "/ready", "localhost").status();
    eventually("a lane", || (ready(&chain.downstream) == 200).then_some(()));
    assert_eq!((ready(&chain.upstream), ready(&chain.relays[0][0])), (200, 200));
    chain.relays.iter_mut().flatten().for_each(Process::kill);
    eventually("no lane", || (ready(&chain.downstream) == 503).then_some(()));
}
