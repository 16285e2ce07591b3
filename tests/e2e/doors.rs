//! Bounds at the ports of relays and upstreams, for strangers and for who holds the key: each is exceeded here, and harms
//! nobody else.

use std::{
    io::Read,
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use crate::{
    chain::text,
    client::ask,
    content::content,
    hostile::NearLane,
    limits::{connect_from, eventually},
    process::{DEADLINE, Process, Settings},
    scripted::Upstream,
    wire::route::PathSpec,
};

/// A role that takes lanes, with these flags more.
fn lane_role(ground: &crate::chain::Ground, role: &str, flags: &[&str]) -> (Process, SocketAddr) {
    let (key, files) = (ground.key(), ground.files());
    let mut args = vec![role, "--listen", "127.0.0.1:0", "--key", text(&key)];
    if role == "upstream" {
        args.extend(["--root", text(&files)]);
    }
    args.extend(flags);
    Process::role(role, &Settings::default(), args)
}

/// Whether a stranger is spoken to: the challenge comes at once, or the connection ends.
fn is_challenged(stranger: &mut TcpStream) -> bool {
    stranger.set_read_timeout(Some(DEADLINE)).unwrap();
    match stranger.read(&mut [0; 24]) {
        Ok(bytes) => bytes > 0,
        Err(error) => {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
            false
        }
    }
}

#[test]
fn hellos_beyond_the_bound_are_turned_away() {
    let ground = crate::chain::Ground::new();
    ground.store("f", b"film");
    for role in ["relay", "upstream"] {
        let (process, address) = lane_role(&ground, role, &["--max-hellos", "8"]);
        let half_open = |source: u8| {
            let mut stranger = connect_from([127, 0, 0, source], address);
            is_challenged(&mut stranger).then_some(stranger)
        };
        // Two of each address, eight in all; they keep their places for two seconds, unless others need them.
        let begun = Instant::now();
        let mut first: Vec<_> = (2..6).flat_map(|source| [half_open(source), half_open(source)]).collect();
        let (third, ninth) = (half_open(2), half_open(7));
        if begun.elapsed() < Duration::from_millis(1500) {
            assert!(first.iter().all(Option::is_some), "{role}: hellos within the bound");
            assert!(third.is_none(), "{role}: one more of an address than may be");
            process.wait_for_log("too many hellos at once");
        }
        assert!(ninth.is_some(), "{role}: strangers who say nothing keep out who has just come");
        let mut oldest = first.remove(0).expect("challenged");
        assert_eq!(oldest.read(&mut [0; 24]).unwrap_or(0), 0, "{role}: the oldest makes room");
        // Silence ends in time, and makes room.
        for mut stranger in first.into_iter().flatten() {
            assert_eq!(stranger.read(&mut [0; 24]).unwrap_or(0), 0, "{role}: a stranger is kept");
        }
        eventually("no place becomes free", || half_open(7));
    }
}

/// Lanes that stand, of who holds the key.
#[test]
fn lanes_beyond_the_bounds_are_refused() {
    let ground = crate::hostile::ground();
    let upstream = Upstream::of_lanes(1, |mut lane| {
        lane.await_close();
        Ok(())
    });
    for role in ["relay", "upstream"] {
        let flags = ["--max-lanes", "3", "--max-lanes-per-address", "2"];
        let (process, address) = lane_role(&ground, role, &flags);
        let behind = if role == "relay" { format!(",{}", upstream.address) } else { String::new() };
        let path: PathSpec = format!("{address}{behind}").parse().unwrap();
        let lane = |source: u8| NearLane::over(connect_from([127, 0, 0, source], address), path.route());
        let refusal = |source: u8| lane(source).err().expect("a lane stands");
        let first = lane(2).unwrap();
        let _second = lane(2).unwrap();
        let told = refusal(2);
        assert!(told.contains("this address has 2 already"), "{role}: {told}");
        assert!(told.contains("--max-lanes-per-address"), "{role}: {told}");
        let _third = lane(3).unwrap();
        let told = refusal(4);
        assert!(told.contains("all 3 places are taken"), "{role}: {told}");
        process.wait_for_log("too many lanes");
        drop(first);
        eventually("no place becomes free", || lane(4).ok());
    }
}

/// What strangers cost who say nothing: memory, and time of others.
#[test]
fn half_open_hellos_are_cheap() {
    const BYTES_EACH_MAX: u64 = 4 << 10;
    // Memory comes to the process in pieces of this size, and what it had may have been all but used up.
    const HUGE_PAGE_BYTES: u64 = 2 << 20;
    let strangers = crate::load::clients_possible(2 * 4000 + 200) / 2 - 100;
    let ground = crate::chain::Ground::new();
    let bytes = content(3_000_000);
    ground.store("f", &bytes);
    let (upstream, upstream_at) = lane_role(&ground, "upstream", &["--max-hellos", "100000"]);
    let (relay, relay_at) = lane_role(&ground, "relay", &["--max-hellos", "100000"]);
    let path = format!("{relay_at},{upstream_at}");
    let (_downstream, address) = ground.start_downstream(&Settings::default(), &[path], &[]);
    assert!(ask(address, "GET", "/f", "").body == bytes);
    for (process, port) in [(&relay, relay_at), (&upstream, upstream_at)] {
        let connect = |number: usize| connect_from([127, 0, 1, (number % 200) as u8], port);
        // What the first ones cost is in part what the process needs whoever comes.
        let first = strangers / 4;
        let mut crowd: Vec<_> = (0..first).map(connect).collect();
        assert!(ask(address, "GET", "/f", "").body == bytes);
        let before = process.peak_resident_bytes();
        crowd.extend((first..strangers).map(connect));
        assert!(ask(address, "GET", "/f", "").body == bytes);
        let grown = process.peak_resident_bytes().saturating_sub(before).saturating_sub(HUGE_PAGE_BYTES);
        let more = (strangers - first) as u64;
        eprintln!("{more} strangers more: {} bytes each", grown / more);
        assert!(grown / more < BYTES_EACH_MAX, "{grown} bytes for {more}");
        // All are gone by themselves after their two seconds, and there is a line for them now and then.
        for mut stranger in crowd {
            stranger.set_read_timeout(Some(DEADLINE)).unwrap();
            let mut said = Vec::new();
            let _ = stranger.read_to_end(&mut said);
            assert!(said.len() <= 24);
        }
        let lines = process.log().matches("refused: ").count();
        assert!((1..10).contains(&lines), "{}", process.log());
    }
}

/// A relay that others can reach does not connect them to its own host, by whatever name, unless a rule names it.
#[test]
fn routes_to_the_relays_own_host_are_refused() {
    let ground = crate::chain::Ground::new();
    ground.store("f", b"film");
    let settings = Settings::default();
    let (_upstream, upstream_at) = lane_role(&ground, "upstream", &[]);
    let port = upstream_at.port();
    let key = ground.key();
    let rule = format!("localhost:{port}");
    let rows: [(&[&str], &[&str], u16); 3] = [
        (
            &[],
            &["127.0.0.1", "localhost", "127.1", "0.0.0.0", "[::ffff:127.0.0.1]", "[::1]", "169.254.1.1"],
            502,
        ),
        (&["--allow", "*:*"], &["127.0.0.1", "localhost", "2130706433", "[::ffff:7f00:1]"], 502),
        (&["--allow", &rule], &["localhost"], 200),
    ];
    for (allow, hosts, status) in rows {
        let args = ["relay", "--listen", "0.0.0.0:0", "--key", text(&key)];
        let (relay, relay_at) = Process::role("relay", &settings, args.iter().chain(allow));
        for host in hosts {
            let path = format!("127.0.0.1:{},{host}:{port}", relay_at.port());
            let (_downstream, address) = ground.start_downstream(&settings, &[path], &[]);
            let answer = ask(address, "GET", "/f", "");
            assert_eq!(answer.status(), status, "{allow:?} {host}: {}", answer.text());
            if status != 200 {
                assert!(answer.text().contains("is not an allowed next hop"), "{host}: {}", answer.text());
            }
        }
        if status != 200 {
            relay.wait_for_log("wrong=Route");
        }
    }
}
