//! Roles that are asked to stop while something runs that takes long: how long they wait for it, and what ends the wait.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use crate::{
    chain::text,
    client::Client,
    content::content,
    hostile::{NearLane, ground},
    process::{Process, Settings},
    scripted,
    wire::{
        frame::Frame,
        route::{PathSpec, Route},
        units::TransferId,
    },
};

/// Many times what sockets hold, so that whoever takes nothing of it has never got all.
const BIG: usize = 100_000_000;

/// A role of a chain with something that does not end by itself, as long as `_busy` lives.
struct Busy {
    role: Process,
    _busy: Box<dyn std::any::Any>,
}

fn busy(executor: &'static str, drain_timeout: &str) -> [Busy; 3] {
    let settings = Settings { executor, ..Settings::default() };
    let drain = ["--drain-timeout", drain_timeout];
    let role = |name: &str, more: &[&str]| {
        Process::role(name, &settings, [&[name, "--listen", "127.0.0.1:0"], &drain[..], more].concat())
    };

    // A client in the middle of an answer that it does not take.
    let tree = ground();
    tree.store("large", &content(BIG));
    let (files, key) = (tree.files(), tree.key());
    let (files, key) = (text(&files), text(&key));
    let (behind, at) = tree.start_upstream(&settings, files);
    let (downstream, address) = role("downstream", &["--key", key, "--path", &at.to_string()]);
    let mut client = Client::connect(address);
    client.request("GET", "/large", "");
    assert_eq!(client.head().unwrap().status, 200);

    // A downstream's lane with a transfer that it does not take.
    let (upstream, at) = role("upstream", &["--key", key, "--root", files]);
    let mut lane = NearLane::open(at, &Route::default());
    lane.request(TransferId(1), "/large");
    lane.0.peek(&mut [0]).unwrap();

    // A lane on which something moves all the time; one that is silent has no transfer.
    let (relay, at) = role("relay", &["--key", key]);
    let chatty = scripted::Upstream::of_lanes(1, |mut lane| {
        loop {
            lane.send(Frame::Pong { token: 1 }, b"")?;
        }
    });
    let path: PathSpec = format!("{at},{}", chatty.address).parse().unwrap();
    let listening = NearLane::open(at, path.route());
    let mut stream = listening.0.try_clone().unwrap();
    thread::spawn(move || io::copy(&mut stream, &mut io::sink()));

    [
        Busy { role: downstream, _busy: Box::new((client, behind, tree)) },
        Busy { role: upstream, _busy: Box::new(lane) },
        Busy { role: relay, _busy: Box::new((listening, chatty)) },
    ]
}

#[test]
fn what_runs_is_cut_off_at_the_drain_timeout() {
    for executor in ["tokio-uring", "glommio"] {
        let mut busy = busy(executor, "2");
        let asked_at = Instant::now();
        busy.iter().for_each(|busy| busy.role.terminate());
        for Busy { role, .. } in &mut busy {
            assert_eq!(role.wait().code(), Some(0), "{executor}: {}", role.log());
            assert!(asked_at.elapsed() >= Duration::from_secs(2), "{executor}: {}", role.log());
        }
        for (Busy { role, .. }, told) in busy.iter().zip([
            "an answer was not taken within 2 s of the stop: its connection is reset",
            "transfers were cut off: they did not end within 2s",
            "lanes in use were cut off: they did not end within 2s",
        ]) {
            role.wait_for_log(told);
        }
    }
}

#[test]
fn a_second_signal_ends_a_role_at_once() {
    for executor in ["tokio-uring", "glommio"] {
        for Busy { mut role, _busy } in busy(executor, "3600") {
            role.terminate();
            // Two signals that come at once are one.
            role.wait_for_log("stopping");
            role.terminate();
            assert_eq!(role.wait().code(), Some(130), "{executor}: {}", role.log());
        }
    }
}
