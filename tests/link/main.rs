//! The emulated link with real kernels' TCP at both ends: what the shaper's own tests cannot see.
//!
//! Nothing here asserts a time; `cargo bench --bench link` and `plait lab calibrate` do. Without the right to make
//! network namespaces, the tests say so and pass.

#[path = "../missing/mod.rs"]
mod missing;
#[path = "../../bench/link/pair.rs"]
mod pair;

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use pair::{LEFT, Pair, RIGHT, v6};
use plait::lab::shape::{Counters, Direction, Shape};

/// Far more than any test here takes, on any machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn build(name: &str, shape: Shape) -> Option<Pair> {
    match Pair::build(name, shape, shape, None) {
        Ok(pair) => Some(pair),
        Err(error) => {
            missing::skipped(format_args!("no namespaces and TUN devices here: {error}"));
            None
        }
    }
}

fn clean() -> Shape {
    Shape::clean(200.0, Duration::from_millis(5), 400_000)
}

/// A byte that a wrong offset shows in.
fn pattern(at: usize) -> u8 {
    (at % 251) as u8 ^ (at >> 16) as u8
}

/// Sends `len` bytes from the left host's listener to the right one, and checks every one of them.
fn transfer(pair: &Pair, address: IpAddr, len: usize) {
    let listener = pair.left.run(|| TcpListener::bind((address, 0))).expect("binds");
    let port = listener.local_addr().expect("is bound").port();
    let mut client = pair.right.run(|| TcpStream::connect((address, port))).expect("connects");
    client.set_read_timeout(Some(PATIENCE)).expect("sets");
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut server, _) = listener.accept().expect("accepts");
            server.set_write_timeout(Some(PATIENCE)).expect("sets");
            server.write_all(&(0..len).map(pattern).collect::<Vec<_>>()).expect("sends");
        });
        let mut got = Vec::new();
        client.read_to_end(&mut got).expect("receives");
        assert_eq!(got.len(), len);
        assert_eq!(got.iter().enumerate().find(|&(at, byte)| *byte != pattern(at)), None);
    });
}

/// Waits until the counters are as `wanted`.
fn until(pair: &Pair, what: &str, wanted: impl Fn(&[Counters; 2]) -> bool) {
    for _ in 0..PATIENCE.as_millis() / 10 {
        if wanted(&pair.link.stats()) {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("{what}: {:?}", pair.link.stats());
}

#[test]
fn tcp_survives_loss_inside_super_packets() {
    let Some(pair) =
        build("loss", Shape { loss: 0.02, burst: Some(2.0), jitter: Duration::from_millis(2), ..clean() })
    else {
        return;
    };
    const LEN: usize = 6 << 20;
    for address in [IpAddr::V4(LEFT), IpAddr::V6(v6(LEFT))] {
        let before = pair.link.stats()[0];
        transfer(&pair, address, LEN);
        let after = pair.link.stats()[0];
        // Counted packet by packet, in whatever bundles the kernel handed them over.
        let packets = after.packets - before.packets;
        assert!(packets >= (LEN / 1448) as u64, "{packets} packets");
        let lost = (after.dropped_loss - before.dropped_loss) as f64 / packets as f64;
        assert!((0.005..0.05).contains(&lost), "{lost} was lost");
    }
    assert_eq!(pair.link.failure(), None);
}

#[test]
fn tcp_survives_a_short_queue() {
    let Some(pair) = build("queue", Shape { queue_bytes: 20_000, ..clean() }) else { return };
    transfer(&pair, IpAddr::V4(LEFT), 6 << 20);
    assert!(pair.link.stats()[0].dropped_queue > 0);
    assert_eq!(pair.link.stats()[0].dropped_loss, 0);
}

#[test]
fn an_outage_and_a_new_shape_take_effect_at_once() {
    let Some(pair) = build("change", clean()) else { return };
    let ear = pair.right.run(|| UdpSocket::bind((RIGHT, 0))).expect("binds");
    ear.set_read_timeout(Some(PATIENCE)).expect("sets");
    let mouth = pair.left.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).expect("binds");
    mouth.connect(ear.local_addr().expect("is bound")).expect("connects");
    let mut heard = [0; 16];

    mouth.send(b"before").expect("sends");
    assert_eq!(ear.recv(&mut heard).expect("hears"), 6);

    pair.link.outage(Direction::Forward, true);
    // Every command is obeyed before the packets that come after it.
    mouth.send(b"lost").expect("sends");
    until(&pair, "one packet is dropped", |stats| stats[0].dropped_outage >= 1);
    pair.link.outage(Direction::Forward, false);
    mouth.send(b"back").expect("sends");
    assert_eq!(ear.recv(&mut heard).expect("hears"), 4);

    pair.link.set(Direction::Forward, Shape { loss: 1.0, ..clean() }).expect("is a shape");
    mouth.send(b"lost").expect("sends");
    until(&pair, "one packet is lost", |stats| stats[0].dropped_loss >= 1);
    assert!(pair.link.set(Direction::Forward, Shape { loss: 1.5, ..clean() }).is_err());
    pair.link.set(Direction::Forward, clean()).expect("is a shape");
    mouth.send(b"at last").expect("sends");
    assert_eq!(ear.recv(&mut heard).expect("hears"), 7);
    assert_eq!(pair.link.stats()[1].dropped_outage, 0, "the other direction is not concerned");
}

#[test]
fn a_device_that_goes_ends_the_link_with_a_reason() {
    let Some(pair) = build("gone", clean()) else { return };
    let deleted = pair.left.run(|| std::process::Command::new("ip").args(["link", "delete", "wan"]).status());
    assert!(deleted.expect("ip runs").success());
    for _ in 0..PATIENCE.as_millis() / 10 {
        if pair.link.failure().is_some() {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("the link does not notice");
}
