//! What hosts, addresses, routes and events do.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr},
    process::Command,
    sync::atomic::AtomicU64,
    thread,
    time::{Duration, Instant},
};

use plait::lab::{
    Lab, Scenario,
    chain::{Chain, ChainOptions, Content, FILE_NAME, Role},
    fetch::fetch,
    scenario::RelayChange,
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{SMALL, possible, skipped};

/// What takes milliseconds on a quiet machine.
const DEADLINE: Duration = Duration::from_secs(60);
const PORT: u16 = 5555;

fn small(more: &str) -> Lab {
    Lab::build(&Scenario::parse("small.toml", &format!("{SMALL}{more}")).unwrap()).unwrap()
}

/// Packets that each path carried towards the server.
fn sent(lab: &Lab) -> Vec<u64> {
    lab.counters().iter().map(|[forward, _]| forward.packets).collect()
}

/// Tries to connect where nobody listens. The server's host refuses if it is reached.
fn is_reached(lab: &Lab, source: Option<IpAddr>, target: IpAddr, limit: Duration) -> bool {
    let error = lab.client().connect(source, SocketAddr::new(target, PORT), limit).unwrap_err();
    error.kind() == ErrorKind::ConnectionRefused
}

fn listener(lab: &Lab, protocol: Protocol) -> Socket {
    let listener = lab.server().socket(Domain::IPV4, Type::STREAM, Some(protocol)).unwrap();
    listener.bind(&SocketAddr::from(([0, 0, 0, 0], PORT)).into()).unwrap();
    listener.listen(1).unwrap();
    listener
}

#[test]
fn the_client_s_address_decides_the_path() {
    if !possible() {
        return;
    }
    let lab = small("");
    let mut before = sent(&lab);
    for (source, target, expected) in [
        (Some(lab.client_address(0)), lab.server_address(0), 0),
        (Some(lab.client_address(1)), lab.server_address(1), 1),
        (Some(lab.client_address(1)), lab.server_address(0), 1),
        (Some(lab.client_address(0)), lab.relay_address(1), 0),
        (None, lab.server_address(0), 0),
        (None, lab.server_address(1), 1),
        (None, lab.relay_address(1), 1),
    ] {
        assert!(is_reached(&lab, source, target, DEADLINE), "{source:?} to {target}");
        let after = sent(&lab);
        assert!(after[expected] > before[expected], "{source:?} to {target}: {before:?} {after:?}");
        assert_eq!(after[1 - expected], before[1 - expected], "{source:?} to {target} by the other path");
        before = after;
    }
}

#[test]
fn routes_choose_the_congestion_control() {
    if !possible() {
        return;
    }
    let lab = small("");
    lab.set_congctl("reno").unwrap();
    let listener = listener(&lab, Protocol::TCP);
    let target = SocketAddr::new(lab.server_address(1), PORT);
    let client = lab.client().connect(None, target, DEADLINE).unwrap();
    let (server, _) = listener.accept().unwrap();
    for socket in [Socket::from(client), server] {
        assert!(socket.tcp_congestion().unwrap().starts_with(b"reno"));
    }
    let error = lab.set_congctl("nonsense").unwrap_err().to_string();
    assert!(error.contains("no congestion control nonsense, only "), "{error}");
    assert!(error.contains("modprobe tcp_nonsense"), "{error}");
}

#[test]
fn events_happen_and_are_undone() {
    if !possible() {
        return;
    }
    let lab = small("[[event]]\nat = 0\npath = 1\ndown = true\n");
    let (near, far) = (Some(lab.client_address(0)), lab.server_address(0));
    assert!(is_reached(&lab, near, far, DEADLINE));
    let timeline = lab.play();
    let until = Instant::now() + DEADLINE;
    while lab.counters()[0][0].dropped_outage == 0 {
        is_reached(&lab, near, far, Duration::from_millis(100));
        assert!(Instant::now() < until, "no outage");
    }
    assert!(is_reached(&lab, None, lab.server_address(1), DEADLINE), "the other path is no part of it");
    drop(timeline);
    assert!(is_reached(&lab, near, far, DEADLINE));
}

/// The relay of the first path is killed before a byte has come, and started anew while they come.
const RESTARTED: &str = r#"
[[event]]
at = 0
path = 1
relay = "kill"
[[event]]
at = 0.3
path = 1
relay = "start"
[[event]]
at = 0.4
path = 2
relay = "freeze"
[[event]]
at = 0.6
path = 2
relay = "thaw"
"#;

#[test]
fn relays_are_killed_started_frozen_and_thawed() {
    if !possible() {
        return;
    }
    let lab = small(RESTARTED);
    let mut options = ChainOptions::new(&lab, env!("CARGO_BIN_EXE_plait").into());
    options.content = Content::Generated(4_000_000);
    options.flags = vec![("all".into(), "--cores=0".into())];
    let chain = Chain::start(&lab, &options).unwrap();
    let pids = || chain.processes().iter().map(|role| (role.role(), role.pid().unwrap())).collect::<Vec<_>>();
    let before = pids();
    let timeline = chain.play(&lab);
    let target = format!("/{FILE_NAME}");
    let fetched = fetch(lab.client(), None, chain.entrance(), &target, &AtomicU64::new(0)).unwrap();
    assert_eq!(fetched.bytes, 4_000_000);
    // A run may end before its events do: what they left undone is put right.
    assert!(timeline.end().iter().any(|happened| happened.event.relay == Some(RelayChange::Kill)));
    for (then, now) in before.iter().zip(pids()) {
        assert_eq!(then.0, now.0);
        assert_eq!(then.1 == now.1, then.0 != Role::Relay(0), "{:?}", then.0);
    }
    let one_more = fetch(lab.client(), None, chain.entrance(), &target, &AtomicU64::new(0)).unwrap();
    assert_eq!(one_more.bytes, 4_000_000);
}

#[test]
fn kernel_mptcp_uses_both_paths() {
    if !possible() {
        return;
    }
    let lab = small("");
    if !lab.has_mptcp() {
        crate::missing::skipped("this kernel has no MPTCP: its paths");
        return;
    }
    // 1.6 s of one path.
    const BYTES: usize = 4_000_000;
    let listener = listener(&lab, Protocol::MPTCP);
    let client = lab.client().socket(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut server, _) = listener.accept().unwrap();
            server.write_all(&vec![1; BYTES]).unwrap();
        });
        client.connect(&SocketAddr::new(lab.server_address(0), PORT).into()).unwrap();
        let mut all = Vec::new();
        (&client).read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), BYTES);
    });
    let carried: Vec<u64> = lab.counters().iter().map(|[_, backward]| backward.bytes).collect();
    assert!(carried.iter().all(|&bytes| bytes > BYTES as u64 / 10), "bytes per path: {carried:?}");
}

#[test]
fn a_file_comes_whole_over_the_chain() {
    if !possible() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let scenario = dir.path().join("small.toml");
    std::fs::write(&scenario, SMALL).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_plait"));
    command
        .args(["lab", "run", "--size", "3M", "--runs", "2", "--role-flag", "all=--cores=0"])
        .arg(&scenario);
    // Nobody has made it.
    let logs = dir.path().join("some/logs");
    command.arg("--logs").arg(&logs);
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    for words in
        ["run 2 of 2", " of 0.965 x 40 Mbit/s", "first byte", "CPU s/GB: root", "wire / delivered: 1."]
    {
        assert!(said.contains(words), "no '{words}' in:\n{said}");
    }
    for role in ["root", "upstream", "relay-1", "relay-2", "downstream"] {
        let log = std::fs::read_to_string(logs.join(format!("{role}.log"))).unwrap();
        assert!(log.contains("started"), "{role}: {log}");
    }
    // A wrong flag of a role is that role's words.
    command.args(["--role-flag", "relay=--no-such"]);
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("--no-such"), "{said}");
}

/// Sends a file over a path of 20 Mbit/s and 100 ms, with BBR. Returns what the relay did about it, or `None` where the
/// kernel cannot.
fn relay_s_renewals(size: &str, events: &str) -> Option<Vec<String>> {
    let available = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control");
    if !available.is_ok_and(|names| names.split_whitespace().any(|name| name == "bbr")) {
        skipped("BBR of the kernel");
        return None;
    }
    if !possible() {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let scenario = dir.path().join("one.toml");
    let (one, _) = SMALL.rsplit_once("[[path]]").unwrap();
    std::fs::write(&scenario, one.replace("rtt-ms = 20", "rtt-ms = 100") + events).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_plait"));
    command.args(["lab", "run", "--runs", "1", "--size", size, "--lane-cc", "bbr"]);
    // Events are timed by the download, BBR by the lane's first bytes.
    command.args(["--log", "info,plait::net=trace", "--role-flag", "downstream=--warm-up=0"]);
    let output = command.arg("--logs").arg(dir.path()).arg(&scenario).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let log = std::fs::read_to_string(dir.path().join("relay-1.log")).unwrap();
    Some(log.lines().filter(|line| line.contains("BBR of a lane")).map(str::to_owned).collect())
}

/// How many of `lines` contain all of `words`.
fn having(lines: &[String], words: &[&str]) -> usize {
    lines.iter().filter(|line| words.iter().all(|word| line.contains(word))).count()
}

/// What the relay of a long path does with a lane that fills it for so long that BBR would pause.
#[test]
fn bbr_begins_anew_instead_of_pausing() {
    let Some(lines) = relay_s_renewals("35M", "") else { return };
    let (begun, released) = (having(&lines, &["BeginAnew", "Ok"]), having(&lines, &["Release", "Ok"]));
    assert!(begun >= 1 && released >= 1, "{begun} times anew, {released} times released:\n{lines:#?}");
}

/// A pause would come as the path does, six seconds after the lane's first bytes or later.
#[test]
fn bbr_begins_anew_while_a_path_is_silent() {
    let events = "[[event]]\nat = 6.5\npath = 1\ndown = true\n[[event]]\nat = 7.5\npath = 1\ndown = false\n";
    let Some(lines) = relay_s_renewals("20M", events) else { return };
    assert!(having(&lines, &["BeginAnew", "Ok", "the path is silent"]) >= 1, "{lines:#?}");
}

/// Cubic takes each loss for a queue: its lanes carry less and less, and new ones take their places.
#[test]
fn worn_lanes_are_relieved() {
    if !possible() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let scenario = dir.path().join("worn.toml");
    let (one, _) = SMALL.rsplit_once("[[path]]").unwrap();
    let lossy = one.replace("rate-mbit = 20\nrtt-ms = 20", "rate-mbit = 100\nrtt-ms = 40\nloss = 0.03");
    std::fs::write(&scenario, lossy).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_plait"));
    command.args(["lab", "run", "--runs", "1", "--size", "60M", "--lane-cc", "cubic", "--log", "debug"]);
    let output = command.arg("--logs").arg(dir.path()).arg(&scenario).output().unwrap();
    // The lab compares the file.
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let log = |role: &str| std::fs::read_to_string(dir.path().join(format!("{role}.log"))).unwrap();
    let lines = |role: &str, words: &str| log(role).lines().filter(|line| line.contains(words)).count();
    let relieved = lines("downstream", "a new lane relieves a worn one");
    assert!(relieved >= 3, "{relieved} lanes relieved:\n{}", log("downstream"));
    // They were closed in order.
    let lost = lines("upstream", "the lane was lost") + lines("upstream", "in the middle of a transfer");
    assert!(lost * 5 <= relieved, "{lost} lost, {relieved} relieved:\n{}", log("upstream"));
}
