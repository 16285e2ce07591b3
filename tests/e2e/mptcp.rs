//! Paths of the kernel's MPTCP: with subflows over two addresses, with one, and with none because it fell back.
//!
//! Second subflows need a network namespace of the test's own (root) and `ip mptcp`; where something is missing, a note
//! says what is not tested.

use std::{fs, io, process::Command, thread, time::Instant};

use rustix::thread::UnshareFlags;

use crate::{
    chain::{Chain, Ground, Plan, Root, text},
    client::{ask, plait_get},
    content::{content, hash, hash_file},
    gate::Gate,
    missing::{installed, skipped},
    process::{DEADLINE, Process, Settings, run},
};

const EXECUTORS: [&str; 2] = ["tokio-uring", "glommio"];
const ENABLED: &str = "/proc/sys/net/mptcp/enabled";
const BIG: usize = 40_000_000;

fn switched_on() -> bool {
    let on = fs::read_to_string(ENABLED).is_ok_and(|text| text.trim() == "1");
    if !on {
        skipped("this kernel has no MPTCP, or it is switched off");
    }
    on
}

fn ip(args: &str) {
    let output = run(Command::new("ip").args(args.split(' ')));
    assert!(output.status.success(), "ip {args}: {output:?}");
}

/// Runs `work` in a network namespace of its thread's own, with what it starts; or not at all, with a note.
fn in_own_network(work: impl FnOnce() + Send) {
    if !switched_on() || !installed("ip") {
        return;
    }
    let worker = || {
        // SAFETY: NEWNET touches no file descriptor table and no memory; the namespace is the thread's.
        if let Err(error) = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) } {
            return skipped(format_args!("no network namespace: {error}"));
        }
        ip("link set lo up");
        work();
    };
    thread::scope(|scope| {
        scope.spawn(worker).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

fn debug(executor: &'static str) -> Settings {
    Settings { executor, log: "debug", ..Settings::default() }
}

/// The file comes whole, by the downstream and by `plait get`.
fn check(chain: &Chain, wanted: &str) {
    assert_eq!(hash(&ask(chain.address, "GET", "/f", "").body), wanted);
    let file = chain.ground.scratch("got");
    let output = plait_get(chain, "/f", &file);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(hash_file(&file), wanted);
    fs::remove_file(file).unwrap();
}

#[test]
fn a_lane_of_two_subflows_direct_and_through_a_relay() {
    in_own_network(|| {
        let limits = Command::new("ip").args(["mptcp", "limits", "set", "subflows", "2"]).output();
        if !limits.is_ok_and(|output| output.status.success()) {
            return skipped("subflows: `ip mptcp` is not there");
        }
        ip("mptcp endpoint add 127.0.0.2 dev lo subflow");
        let bytes = content(BIG);
        for (executor, depth) in EXECUTORS.into_iter().flat_map(|executor| [(executor, 0), (executor, 1)]) {
            let settings = debug(executor);
            let plan = Plan {
                paths: 1,
                depth,
                transport: "mptcp:",
                root: Root::Directory,
                settings,
                ..Plan::default()
            };
            let chain = plan.start(|ground| ground.store("f", &bytes));
            check(&chain, &hash(&bytes));
            // The path manager takes its time; a lane that is given back is looked at again.
            let until = Instant::now() + DEADLINE;
            while !chain.downstream.log().contains("subflows=2 fallback=false") {
                assert!(Instant::now() < until, "no second subflow:\n{}", chain.downstream.log());
                ask(chain.address, "HEAD", "/f", "");
            }
            assert!(!chain.downstream.log().contains("fell back"), "{}", chain.downstream.log());
        }
    });
}

#[test]
fn one_subflow_and_copied_payload() {
    if !switched_on() {
        return;
    }
    let bytes = content(BIG);
    for (executor, no_splice) in EXECUTORS.into_iter().flat_map(|name| [(name, false), (name, true)]) {
        let settings = Settings { no_splice, ..debug(executor) };
        let chain = Plan { transport: "mptcp:", settings, ..Plan::default() }
            .start(|ground| ground.store("f", &bytes));
        check(&chain, &hash(&bytes));
        chain.downstream.wait_for_log("subflows=1 fallback=false");
        chain.relays[0][0].wait_for_log("near=Some(Subflows(1)) far=Some(Subflows(1))");
        chain.relays[0][0].wait_for_log("payload from MPTCP sockets");
    }
}

/// A gate is plain TCP on both sides.
#[test]
fn a_fallback_of_any_leg_is_reported_and_carries_the_bytes() {
    if !switched_on() {
        return;
    }
    let bytes = content(BIG);
    for executor in EXECUTORS {
        let settings = debug(executor);
        let ground = Ground::new();
        ground.store("f", &bytes);
        let (_upstream, upstream) = ground.start_upstream(&settings, text(&ground.files()));
        let (relay, relay_at) = ground.start_relay(&settings);
        let (before_relay, before_upstream) = (Gate::to(relay_at), Gate::to(upstream));
        let fetch = |path: String| -> Process {
            let lanes = ["--lanes".to_owned(), "3".to_owned()];
            let (downstream, address) = ground.start_downstream(&settings, &[path], &lanes);
            assert_eq!(hash(&ask(address, "GET", "/f", "").body), hash(&bytes));
            downstream
        };
        let first = fetch(format!("mptcp:{},{upstream}", before_relay.address));
        first.wait_for_log("MPTCP fell back to plain TCP on the leg to the first hop");
        relay.wait_for_log("near=None far=Some(Subflows(1))");
        let second = fetch(format!("mptcp:{relay_at},{}", before_upstream.address));
        second.wait_for_log("MPTCP fell back to plain TCP on the leg behind the first hop");
        second.wait_for_log("subflows=1 fallback=true");
        relay.wait_for_log(&format!("a lane goes on to {} by plain TCP", before_upstream.address));
        // Said once for the path, not for each of its lanes.
        let log = second.log();
        assert_eq!(log.matches("fell back to plain TCP").count(), 1, "{log}");
    }
}

#[test]
fn without_mptcp_the_path_is_refused_and_tcp_works_on() {
    in_own_network(|| {
        fs::write(ENABLED, "0").unwrap_or_else(|error: io::Error| panic!("{ENABLED}: {error}"));
        let bytes = content(BIG);
        let chain = Plan { settings: debug("tokio-uring"), ..Plan::default() }
            .start(|ground| ground.store("f", &bytes));
        check(&chain, &hash(&bytes));
        chain.relays[0][0].wait_for_log("only plain TCP is accepted: MPTCP is switched off on this host");
        let key = chain.ground.key();
        let path = format!("mptcp:{}", chain.paths[0]);
        let output =
            run(chain.settings.plait().args(["get", "/f", "-o", "f", "--key", text(&key), "--path", &path]));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success());
        assert!(said.contains(&format!("path {path}: MPTCP is switched off on this host")), "{said}");
    });
}
