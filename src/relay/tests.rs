//! Rules of `--allow`, and chains of real relays to a scripted upstream on both executors.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    thread,
    time::Instant,
};

use super::*;
use crate::{
    exec::{Backend, Config, available_cpus},
    lanes::tests::scripted::*,
    wire::{
        handshake::{CHALLENGE_BYTES, ClientHandshake, HandshakeError, Progress},
        key::Key,
        route::Transport,
    },
};

/// Runs `drive` against `count` relays, each with `allow`, on each executor.
fn with_relays(count: usize, allow: &[&str], drive: impl Fn(&[SocketAddr])) {
    for backend in [Backend::TokioUring, Backend::Glommio] {
        let (descriptors, addresses): (Vec<_>, Vec<_>) = (0..count)
            .map(|_| {
                let (mut fds, address) =
                    Listener::bind(([127, 0, 0, 1], 0).into(), 1, Transport::Tcp).unwrap();
                (fds.remove(0), address)
            })
            .unzip();
        let allow = allow.iter().map(|rule| rule.parse().unwrap()).collect();
        let relay = Arc::new(Relay {
            keys: Arc::new(KeyRing::of(key())),
            legs: Legs::default(),
            door: Door::new(1000),
            allow,
            local: true,
        });
        let (stop, stopped) = watch::channel(false);
        let descriptors = std::sync::Mutex::new(Some(descriptors));
        let core = thread::spawn(move || {
            exec::run(&Config { backend, cpus: vec![available_cpus()[0]] }, move |_| {
                let descriptors = descriptors.lock().unwrap().take().unwrap();
                let (relay, stopped) = (relay.clone(), stopped.clone());
                async move {
                    let relays = descriptors
                        .into_iter()
                        .map(|fd| serve(relay.clone(), Listener::new(fd), PATIENCE, stopped.clone()));
                    futures_util::future::join_all(relays).await;
                }
            })
        });
        drive(&addresses);
        let _ = stop.send(true);
        core.join().unwrap_or_else(|_| panic!("{backend}: a core panicked")).unwrap();
    }
}

fn route(hops: &[SocketAddr]) -> Route {
    Route::new(hops.iter().map(|&hop| hop.into()).collect()).unwrap()
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn challenge(stream: &mut TcpStream) -> [u8; CHALLENGE_BYTES] {
    let mut challenge = [0; CHALLENGE_BYTES];
    stream.read_exact(&mut challenge).unwrap();
    challenge
}

/// Opens a lane over all of `hops` as a downstream does.
fn open(hops: &[SocketAddr], key: &Key) -> Result<(TcpStream, u64), HandshakeError> {
    let mut stream = connect(hops[0]);
    let challenge = challenge(&mut stream);
    let route = route(&hops[1..]);
    let (mut awaiting, hello) = ClientHandshake::new(key, &route, [3; 16]).challenge(&challenge)?;
    stream.write_all(&hello).unwrap();
    let mut bytes = Vec::new();
    loop {
        match awaiting.reply(&bytes)? {
            Progress::Done(accepted) => return Ok((stream, accepted.instance)),
            Progress::NeedMore(more) => {
                bytes.resize(more, 0);
                stream.read_exact(&mut bytes).map_err(|_| awaiting.closed())?;
            }
        }
    }
}

fn refused(hops: &[SocketAddr]) -> String {
    open(hops, &key()).expect_err("a lane stands").to_string()
}

/// The relay closes without a word; returns after how long.
fn closed_after(stream: &mut TcpStream) -> Duration {
    let started = Instant::now();
    let mut rest = Vec::new();
    // A reset is as good as an end.
    let _ = stream.read_to_end(&mut rest);
    assert_eq!(rest, b"", "no answer");
    let waited = started.elapsed();
    assert!(waited < PATIENCE, "it is never closed");
    waited
}

#[test]
fn bytes_pass_both_ways_through_chains() {
    const LEN: usize = 5_000_000;
    for relays in 0..=3 {
        with_relays(relays, &[], |addresses| {
            let upstream = Upstream::of_lanes(77, |mut lane| {
                assert!(lane.route.is_empty(), "the upstream is the end of the route");
                let mut sender = lane.stream.try_clone()?;
                let down = thread::spawn(move || sender.write_all(&Random(2).bytes(LEN)));
                let mut up = vec![0; LEN];
                lane.stream.read_exact(&mut up)?;
                assert!(up == Random(1).bytes(LEN));
                down.join().unwrap()?;
                lane.stream.write_all(b"all")?;
                lane.await_close();
                Ok(())
            });
            let hops: Vec<_> = addresses.iter().copied().chain([upstream.address]).collect();
            let (mut lane, instance) = open(&hops, &key()).unwrap();
            assert_eq!(instance, 77);
            let mut sender = lane.try_clone().unwrap();
            let up = thread::spawn(move || sender.write_all(&Random(1).bytes(LEN)).unwrap());
            let mut down = vec![0; LEN + 3];
            lane.read_exact(&mut down).unwrap();
            up.join().unwrap();
            assert!(down[..LEN] == Random(2).bytes(LEN) && &down[LEN..] == b"all");
            // The end of one side is the end of the other.
            lane.shutdown(Shutdown::Write).unwrap();
            upstream.closed.reach(1).unwrap();
            assert_eq!(lane.read(&mut [0]).unwrap_or(0), 0);
            upstream.assert_no_fault();
        });
    }
}

#[test]
fn the_far_ends_close_reaches_the_downstream() {
    with_relays(2, &[], |addresses| {
        let upstream = Upstream::of_lanes(1, |mut lane| lane.stream.write_all(b"last words"));
        let (mut lane, _) = open(&[addresses[0], addresses[1], upstream.address], &key()).unwrap();
        let mut words = Vec::new();
        lane.read_to_end(&mut words).unwrap();
        assert_eq!(words, b"last words");
    });
}

/// Whoever has vanished without a word is found out: the kernel's timer of either end is one that asks.
#[test]
fn both_ends_of_a_lane_are_asked_whether_they_live() {
    with_relays(1, &[], |addresses| {
        let upstream = Upstream::of_lanes(1, |mut lane| {
            lane.await_close();
            Ok(())
        });
        let (lane, _) = open(&[addresses[0], upstream.address], &key()).unwrap();
        // Rows of proc(5): number, local, remote, state, queues, timer; 2 is keepalive's.
        let asks = |is_end: &dyn Fn(&str, &str) -> bool| {
            let rows = std::fs::read_to_string("/proc/net/tcp").unwrap();
            let rows = rows.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
            rows.filter(|row| row[3] == "01" && is_end(row[1], row[2])).any(|row| row[5].starts_with("02:"))
        };
        let port = |address: SocketAddr| format!(":{:04X}", address.port());
        let (relay, client) = (port(addresses[0]), port(lane.local_addr().unwrap()));
        let next = port(upstream.address);
        let started = Instant::now();
        // What was just sent has a timer of its own until it is acknowledged.
        let asks_both = || {
            asks(&|local, remote| local.ends_with(&relay) && remote.ends_with(&client))
                && asks(&|_, remote| remote.ends_with(&next))
        };
        while !asks_both() {
            assert!(started.elapsed() < PATIENCE, "an end is not asked");
            thread::sleep(Duration::from_millis(10));
        }
    });
}

/// The near end of an idle lane, which only looks at it when it needs one, may hear of its end late.
#[test]
fn a_relay_with_idle_lanes_stops_before_they_are_closed() {
    let (mut lanes, mut asked_at) = (Vec::new(), None);
    let lanes_and_time = std::cell::RefCell::new((&mut lanes, &mut asked_at));
    with_relays(1, &[], |addresses| {
        let upstream = Upstream::of_lanes(1, |mut lane| {
            lane.await_close();
            Ok(())
        });
        let (lane, _) = open(&[addresses[0], upstream.address], &key()).unwrap();
        let (lanes, asked_at) = &mut *lanes_and_time.borrow_mut();
        if let Some(before) = asked_at.replace(Instant::now()) {
            assert!(before.elapsed() < LINGER, "the first executor's relay waited for its idle lane");
        }
        lanes.push(lane);
    });
    assert!(asked_at.is_some_and(|before| before.elapsed() < LINGER), "it waited for its idle lane");
    for mut lane in lanes {
        assert_eq!(lane.read(&mut [0]).unwrap(), 0, "the end has arrived");
    }
}

#[test]
fn refusals_name_the_hop_and_the_remedy() {
    with_relays(1, &["*:1"], |addresses| {
        let upstream = Upstream::of_lanes(1, |_| Ok(()));
        let hop = upstream.address;
        let text = refused(&[addresses[0], hop]);
        assert!(text.contains(&format!("start the relay with --allow {hop}")), "{text}");
        assert_eq!(upstream.accepted(), 0, "nothing is connected before the rule is looked at");
    });
    with_relays(2, &[], |addresses| {
        let text = refused(&addresses[..1]);
        assert!(text.contains("the route ends here") && text.contains("--path"), "{text}");
        let text = refused(addresses);
        assert!(text.contains(&format!("next hop {}", addresses[1])) && text.contains("--path"), "{text}");
        let gone = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
        let error = open(&[addresses[0], addresses[1], gone], &key()).expect_err("a lane stands");
        assert!(matches!(error, HandshakeError::NobodyThere { .. }), "{error}");
        assert!(error.to_string().contains(&format!("cannot connect to {gone}")), "{error}");
        let error = open(&[addresses[0], gone], &Key::from_bytes([1; 32])).expect_err("a lane stands");
        assert!(error.to_string().contains("start it with the same --key file"), "{error}");
    });
}

#[test]
fn hellos_that_are_none_are_closed_in_time() {
    with_relays(1, &[], |addresses| {
        let upstream = Upstream::of_lanes(1, |_| Ok(()));
        // Silence, and half of a hello.
        let (key, route) = (key(), route(&[upstream.address]));
        for said in [0, 30] {
            let mut lane = connect(addresses[0]);
            let challenge = challenge(&mut lane);
            let (_, hello) = ClientHandshake::new(&key, &route, [3; 16]).challenge(&challenge).unwrap();
            lane.write_all(&hello[..said]).unwrap();
            let waited = closed_after(&mut lane);
            assert!((1500..5000).contains(&waited.as_millis()), "{said}: {waited:?}");
        }
        // A recorded hello, one that announces too much, and no hello at all.
        let mut recorded = connect(addresses[0]);
        let (_, hello) =
            ClientHandshake::new(&key, &route, [3; 16]).challenge(&challenge(&mut recorded)).unwrap();
        let mut oversized = hello.clone();
        oversized[6..8].copy_from_slice(&[0xff; 2]);
        for wrong in [hello, oversized, b"GET / HTTP/1.1\r\n\r\n".repeat(9)] {
            let mut lane = connect(addresses[0]);
            challenge(&mut lane);
            lane.write_all(&wrong).unwrap();
            let waited = closed_after(&mut lane);
            assert!(waited < Duration::from_millis(1500), "{waited:?}");
        }
        assert_eq!(upstream.accepted(), 0);
    });
}

#[test]
fn rules_are_parsed_and_matched() {
    let hop = |text: &str| text.parse::<HopAddr>().unwrap();
    for (rule, at, allowed) in [
        ("10.0.0.1:7000", "10.0.0.1:7000", true),
        ("10.0.0.1:7000", "10.0.0.1:7001", false),
        ("10.0.0.1:*", "10.0.0.1:7001", true),
        ("*:7000", "upstream.example:7000", true),
        ("Upstream.example:7000", "upstream.example:7000", true),
        ("*:7000", "upstream.example:22", false),
    ] {
        assert_eq!(rule.parse::<AllowRule>().unwrap().allows(&hop(at)), allowed, "{rule} for {at}");
    }
    for wrong in ["", ":", "host", ":7000", "host:", "host:65536", "host:x"] {
        assert!(wrong.parse::<AllowRule>().is_err(), "{wrong}");
    }
}

#[test]
fn own_addresses_are_known() {
    for (address, own) in [
        ("127.0.0.1:1", true),
        ("169.254.169.254:80", true),
        ("[::1]:1", true),
        ("[::ffff:127.0.0.1]:1", true),
        ("0.0.0.0:1", true),
        ("[fe80::1]:1", true),
        ("10.0.0.1:1", false),
        ("192.0.2.1:1", false),
    ] {
        assert_eq!(is_own(&address.parse().unwrap()), own, "{address}");
    }
}
