//! What takes how long, in virtual time: deadlines of minutes cost no test a second, and a busy machine is not late.

use std::{io, net::SocketAddr, pin::pin, rc::Rc, time::Duration};

use futures_util::future::join;

use super::{
    CORES, End,
    chain::{Chain, EDGE, keys, relay_address, upstream_address},
    client::Client,
    root::Root,
    scenario::{ClientSpec, File, Framing, Path, RequestSpec, RootFault, Scenario, Survives},
};
use crate::{
    exec::{
        self,
        on_simulator::{self, WORLD, freeze, passed, spawn_in},
    },
    lanes::handshake,
    mp::parked::PARKED_BYTES_MAX,
    net::{
        Congestion, Leg, Socket,
        simulated::{Network, Way},
    },
    wire::{
        frame::{Frame, HEADER_BYTES},
        handshake::{CHALLENGE_BYTES, ClientHandshake},
        key::Key,
        route::{Route, Transport},
        units::{FrameLen, Offset, Seq, TransferId},
    },
};

/// Patience of whoever looks from outside.
const EVER: Duration = Duration::from_secs(900);
/// Between the world and a relay, one way.
const DELAY: Duration = Duration::from_millis(149);
/// From the downstream to the upstream and back: the relay's other leg takes 1 ms.
const ROUND_TRIP: Duration = Duration::from_millis(2 * (149 + 1));
const FILE_BYTES: u64 = 8 << 20;

fn request(range: Option<(u64, u64)>, cancel_at: Option<u64>) -> RequestSpec {
    RequestSpec {
        file: 0,
        range,
        is_http10: false,
        read_bytes: 64 << 10,
        pause: Duration::ZERO,
        stall: None,
        cancel_at,
    }
}

/// Long paths without harm to one upstream, and one file.
fn scenario(paths: usize, parked_bytes_max: usize) -> Rc<Scenario> {
    let path =
        Path { has_relay: true, upstream: 0, delay: DELAY, bytes_per_s: 10e6, segment_bytes: 64 << 10 };
    let file = File {
        len: FILE_BYTES,
        framing: Framing::Fixed,
        has_etag: true,
        takes_ranges: true,
        fault: RootFault::None,
        pause: Duration::ZERO,
    };
    Rc::new(Scenario {
        splicing: 16,
        is_spread: false,
        lanes: (1, 1),
        lanes_max: 1,
        kept_bytes_max: 64 << 20,
        parked_bytes_max,
        upstreams: 1,
        paths: vec![path; paths],
        files: vec![file],
        clients: Vec::new(),
        harm: Vec::new(),
        survives: Survives::Everything,
    })
}

/// Runs `drive` beside such a chain.
fn beside_chain<T>(paths: usize, drive: impl AsyncFnOnce(Rc<Scenario>, Rc<Chain>) -> T) -> T {
    beside(scenario(paths, PARKED_BYTES_MAX), drive)
}

fn beside<T>(scenario: Rc<Scenario>, drive: impl AsyncFnOnce(Rc<Scenario>, Rc<Chain>) -> T) -> T {
    let _end = End;
    let main = async {
        let network = Network::start(scenario.splicing);
        Root::start(&network, &scenario);
        let chain = Chain::start(&network, &scenario);
        // Lanes stand then.
        exec::sleep(10 * ROUND_TRIP).await;
        drive(scenario, chain).await
    };
    on_simulator::simulate(1, CORES, main).0
}

async fn dial(address: SocketAddr) -> Socket {
    Socket::connect(address, Transport::Tcp, &Congestion::Auto(Leg::Client), EVER).await.unwrap()
}

// Strangers.

/// What a stranger says of a hello that is right: so many bytes at once, and the others one by one.
async fn half_a_hello(address: SocketAddr, at_once: usize, pause: Option<Duration>) -> Duration {
    let socket = dial(address).await;
    let began = passed();
    let mut challenge = [0; CHALLENGE_BYTES];
    socket.recv_exact(&mut challenge).await.unwrap();
    let (key, route) = (Key::from_bytes([7; 32]), Route::default());
    let (_, hello) = ClientHandshake::new(&key, &route, [3; 16]).challenge(&challenge).unwrap();
    socket.send_all(&hello[..at_once], false).await.unwrap();
    let drips = async {
        if let Some(pause) = pause {
            for byte in &hello[at_once..hello.len() - 1] {
                exec::sleep(pause).await;
                if socket.send_all(&[*byte], false).await.is_err() {
                    return;
                }
            }
        }
        std::future::pending().await
    };
    let closed = async { while socket.recv_some(&mut [0; 64]).await.is_ok_and(|bytes| bytes > 0) {} };
    futures_util::future::select(pin!(drips), pin!(closed)).await;
    passed() - began
}

/// Silence, a hello that stops, and one that drips: each costs a place for two seconds at most.
#[test]
fn hellos_that_never_end_are_closed_within_two_seconds() {
    beside_chain(1, async |_, _| {
        for address in [relay_address(0), upstream_address(0)] {
            for (at_once, pause) in [(0, None), (30, None), (0, Some(Duration::from_millis(50)))] {
                let took = half_a_hello(address, at_once, pause).await;
                // It is told across the leg, and the leg has been waited for.
                let least = Duration::from_secs(2);
                let most = least + ROUND_TRIP + Duration::from_millis(20);
                assert!((least..most).contains(&took), "{address}, {at_once} bytes: {took:?}");
            }
        }
    });
}

// Upstreams that hold the key and lie.

/// The far end of a lane, after its OPEN has come.
struct Lie {
    socket: Socket,
    transfer: TransferId,
}

impl Lie {
    async fn say(&self, frame: Frame, payload: &[u8]) -> io::Result<()> {
        self.socket.send_all(&frame.encode(), false).await?;
        self.socket.send_all(payload, false).await
    }

    async fn byte(&self, seq: u64) -> io::Result<()> {
        let (transfer, len) = (self.transfer, FrameLen(1));
        self.say(Frame::Data { transfer, seq: Seq(seq), offset: Offset(seq), len, again: false }, b"x").await
    }

    async fn head(&self) -> io::Result<()> {
        let head = b"HTTP/1.1 200 OK\r\n\r\n";
        let (transfer, head_len) = (self.transfer, FrameLen(head.len() as u32));
        self.say(Frame::Head { transfer, head_len }, head).await
    }

    /// Answers pings, as something does that lives.
    async fn live(&self) -> io::Result<()> {
        loop {
            if let Frame::Ping { token } = frame(&self.socket).await? {
                self.say(Frame::Pong { token }, b"").await?;
            }
        }
    }
}

async fn frame(socket: &Socket) -> io::Result<Frame> {
    let mut header = [0; HEADER_BYTES];
    socket.recv_exact(&mut header).await?;
    let frame = Frame::decode(&header).map_err(io::Error::other)?;
    socket.recv_exact(&mut vec![0; frame.payload_len().as_usize()]).await?;
    Ok(frame)
}

async fn lie(socket: Socket, script: impl AsyncFn(&Lie) -> io::Result<()>) -> io::Result<()> {
    let hello = handshake::receive(&socket, &keys()).await.map_err(io::Error::other)?;
    socket.send_all(&hello.accept(1), false).await?;
    loop {
        match frame(&socket).await? {
            Frame::Ping { token } => socket.send_all(&Frame::Pong { token }.encode(), false).await?,
            Frame::Open { transfer, .. } => {
                let lie = Lie { socket, transfer };
                script(&lie).await?;
                return lie.live().await;
            }
            _ => {}
        }
    }
}

/// What a client gets from a downstream whose only upstream does so, and after how long it knows that this is all.
fn ask_liar(
    script: impl AsyncFn(&Lie) -> io::Result<()> + Clone + 'static,
) -> (Vec<u8>, io::Result<()>, Duration) {
    beside_chain(1, async |_, chain| {
        let accept = move |socket: Socket, _: SocketAddr| {
            let script = script.clone();
            spawn_in(WORLD, async move {
                // The end of the lane is the end of the lie.
                let _ = lie(socket, script).await;
            });
        };
        chain.replace_upstream(Rc::new(accept));
        // By then its lanes stand.
        exec::sleep(Duration::from_secs(30)).await;
        let client = dial(EDGE.parse().unwrap()).await;
        let began = passed();
        client.send_all(b"GET /0 HTTP/1.1\r\nHost: v\r\nConnection: close\r\n\r\n", false).await.unwrap();
        let (mut got, mut some) = (Vec::new(), [0; 4096]);
        let outcome = exec::timeout(EVER, async {
            loop {
                match client.recv_some(&mut some).await {
                    Ok(0) => return Ok(()),
                    Ok(bytes) => got.extend_from_slice(&some[..bytes]),
                    Err(error) => return Err(error),
                }
            }
        });
        let outcome = outcome.await.expect("the client is never told");
        (got, outcome, passed() - began)
    })
}

/// A status above 499 says it; so does a reset, and chunks without a last one.
fn assert_visible(got: &[u8], outcome: &io::Result<()>) {
    let text = String::from_utf8_lossy(got);
    let is_refusal = text.starts_with("HTTP/1.1 5");
    let is_cut = outcome.is_err() || !text.ends_with("0\r\n\r\n");
    assert!(is_refusal || (text.starts_with("HTTP/1.1 200") && is_cut), "{outcome:?}: {text}");
}

#[test]
fn a_first_byte_that_never_comes_fails_the_transfer_in_time() {
    let (got, outcome, took) = ask_liar(async |lie: &Lie| {
        lie.head().await?;
        for seq in 1..1000 {
            lie.byte(seq).await?;
        }
        Ok(())
    });
    assert_visible(&got, &outcome);
    // 40 s without progress, looked at every 5 s.
    assert!(took < Duration::from_secs(40 + 5 + 5), "{took:?}");
}

#[test]
fn a_head_that_drips_fails_the_transfer_in_time() {
    let (got, outcome, took) = ask_liar(async |lie: &Lie| {
        let (transfer, head_len) = (lie.transfer, FrameLen(64 << 10));
        lie.socket.send_all(&Frame::Head { transfer, head_len }.encode(), false).await?;
        loop {
            lie.socket.send_all(b"H", false).await?;
            exec::sleep(Duration::from_millis(10)).await;
        }
    });
    assert_visible(&got, &outcome);
    assert!(got.starts_with(b"HTTP/1.1 504"), "{}", String::from_utf8_lossy(&got));
    // That of a head, 45 s.
    assert!(took < Duration::from_secs(45 + 5), "{took:?}");
}

/// Slow, and nothing worse: each byte arrives.
#[test]
fn bytes_that_come_one_by_one_arrive() {
    const BYTES: u64 = 300;
    let (got, outcome, took) = ask_liar(async |lie: &Lie| {
        lie.head().await?;
        for seq in 0..BYTES {
            lie.byte(seq).await?;
            exec::sleep(Duration::from_secs(1)).await;
        }
        Ok(())
    });
    assert_visible(&got, &outcome);
    let content = got.iter().filter(|&&byte| byte == b'x').count() as u64;
    assert!(content >= BYTES, "{content} bytes of {BYTES}");
    assert!(took < Duration::from_secs(BYTES + 40 + 5 + 5), "{took:?}");
}

// Clients that go away.

/// From the moment at which a client leaves until no lane is leased, and until the next client, who comes at once, has an
/// answer over the same two lanes: that takes a round trip by itself, and what the first one has left on its way another.
#[test]
fn a_client_that_goes_away_frees_its_lanes_within_a_round_trip() {
    beside_chain(2, async |scenario, chain| {
        let ask = async |range, cancel_at| {
            let spec = ClientSpec { begins: Duration::ZERO, requests: vec![request(range, cancel_at)] };
            Client::new(&scenario, &spec).run().await
        };
        // Lanes are warm then.
        assert_eq!(ask(None, None).await.complete, 1);
        for round in 0..5 {
            assert_eq!(ask(None, Some(2 << 20)).await.cancelled, 1);
            let left_at = passed();
            while chain.leased() > 0 {
                exec::sleep(Duration::from_millis(1)).await;
            }
            let free_after = passed() - left_at;
            assert_eq!(ask(Some((0, 999)), None).await.complete, 1);
            let answered_after = passed() - left_at;
            eprintln!("round {round}: free after {free_after:?}, the next answer after {answered_after:?}");
            assert!(free_after < ROUND_TRIP, "{free_after:?}");
            assert!(answered_after < 2 * ROUND_TRIP + Duration::from_millis(100), "{answered_after:?}");
        }
    });
}

// Bounds.

/// How long the last of three answers takes where `harm` comes for good when so many bytes of 1,000 should have come, and no
/// more than `bound` may wait for others.
fn took_with(bound: usize, permille: u32, harm: impl Fn(&Chain)) -> Duration {
    beside(scenario(2, bound), async |scenario, chain| {
        let ask = async || {
            let spec = ClientSpec { begins: Duration::ZERO, requests: vec![request(None, None)] };
            let began = passed();
            assert_eq!(Client::new(&scenario, &spec).run().await.complete, 1);
            passed() - began
        };
        // Lanes are warm then.
        ask().await;
        let undisturbed = ask().await;
        let harm = async {
            exec::sleep(undisturbed * permille / 1000).await;
            harm(&chain);
        };
        let (took, ()) = join(ask(), harm).await;
        eprintln!("{bound} bytes, harmed at {permille} of 1,000: {took:?}, undisturbed {undisturbed:?}");
        took
    })
}

/// Bounds, and when harm comes.
const TIGHT: [(usize, u32); 5] =
    [(64 << 10, 300), (256 << 10, 400), (256 << 10, 600), (1 << 20, 500), (1 << 20, 700)];

/// Frames of a path that stands still are sent again over the other one, behind frames that may not be parked.
#[test]
fn what_is_next_comes_although_no_more_may_wait() {
    let frozen = TIGHT.map(|(bound, at)| took_with(bound, at, |chain| freeze(chain.relay(0).unwrap(), true)));
    // What stands in the way is given up after so long.
    assert!(frozen.iter().max() > Some(&Duration::from_secs(3)), "nothing stood in the way");
}

/// The same, and what the downstream says still comes through: that it does not read, of a lane that it does read, would keep
/// the upstream from sending anything again.
#[test]
fn what_is_next_comes_although_its_path_is_mute_and_no_more_may_wait() {
    let mute =
        TIGHT.map(|(bound, at)| took_with(bound, at, |chain| chain.legs[0].near.silence(Way::Down, true)));
    assert!(mute.iter().max() > Some(&Duration::from_secs(3)), "nothing stood in the way");
}
