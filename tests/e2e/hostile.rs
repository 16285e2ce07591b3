//! Peers that hold the key and lie: what they do costs the transfer it is about, and nothing else. The process goes on, on
//! the one core that it has here, its memory does not move, and honest clients are served beside it.

use std::{
    fs,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::{
    chain::{Ground, text},
    client::{Client, ask},
    content::content,
    process::{DEADLINE, Process, Settings},
    scripted::{FarLane, Upstream, key},
    wire::{
        frame::{Frame, HEADER_BYTES, Reading},
        handshake::{CHALLENGE_BYTES, ClientHandshake, Progress},
        route::{PathSpec, Route},
        units::{FrameLen, MAX_BODY_BYTES, MAX_SEQ, Offset, Seq, TransferId},
    },
};

/// How long a flood lasts: many turns of everything else on a busy machine.
const FLOOD: Duration = Duration::from_secs(2);
/// What a process may grow by beside it: pools and allocators of a debug build, and nothing that grows with the flood.
const GROWTH_BYTES_MAX: u64 = 48 << 20;
const GOOD: &[u8] = b"film";

/// Ground whose key the test knows.
pub(crate) fn ground() -> Ground {
    let ground = Ground::new();
    fs::write(ground.key(), key().to_text()).unwrap();
    ground.store("good", GOOD);
    ground
}

fn one_core(executor: &'static str) -> Settings {
    Settings { executor, cores: "0".into(), ..Settings::default() }
}

/// Asks for something good, again and again, until `done`; each answer must be right.
fn is_served(address: SocketAddr, done: impl Fn() -> bool) {
    loop {
        let answer = ask(address, "GET", "/good", "");
        assert!(answer.body == GOOD, "{}: {}", answer.status(), answer.text());
        if done() {
            return;
        }
    }
}

fn grown(process: &Process, before: u64) -> u64 {
    process.peak_resident_bytes().saturating_sub(before)
}

// A hostile upstream.

/// What it does with a transfer, until that fails.
type Script = fn(&mut FarLane, TransferId) -> io::Result<()>;

/// An upstream that does as `script` says for whatever is not `/good`.
fn upstream(script: Script) -> Upstream {
    Upstream::of_lanes(9, move |mut lane| {
        loop {
            match lane.next()? {
                (Frame::Open { transfer, .. }, head) if head.starts_with(b"GET /good") => {
                    lane.head(transfer)?;
                    lane.data(transfer, 0, 0, GOOD)?;
                    lane.end(transfer, 1, GOOD.len() as u64)?;
                }
                (Frame::Open { transfer, .. }, _) => script(&mut lane, transfer)?,
                (Frame::Ping { token }, _) => lane.send(Frame::Pong { token }, b"")?,
                _ => {}
            }
        }
    })
}

/// Runs `clients` that ask for what is bad beside one that asks for what is good. How did they end?
fn beside_upstream(clients: usize, script: Script) -> Vec<io::Result<u16>> {
    let mut outcomes = Vec::new();
    for executor in ["tokio-uring", "glommio"] {
        let (ground, upstream) = (ground(), upstream(script));
        let more = ["--lanes", "1"].map(String::from);
        let paths = [upstream.address.to_string()];
        let (downstream, address) = ground.start_downstream(&one_core(executor), &paths, &more);
        is_served(address, || true);
        let before = downstream.resident_bytes();
        let bad: Vec<_> = (0..clients)
            .map(|_| {
                let stream = TcpStream::connect(address).unwrap();
                let mut client = Client::over(stream.try_clone().unwrap());
                client.request("GET", "/bad", "");
                let outcome = thread::spawn(move || client.answer("GET").map(|answer| answer.status()));
                (stream, outcome)
            })
            .collect();
        let until = Instant::now() + FLOOD;
        is_served(address, || Instant::now() > until);
        let grown = grown(&downstream, before);
        assert!(grown < GROWTH_BYTES_MAX, "{executor}: {} MiB more", grown >> 20);
        for (stream, outcome) in bad {
            // Whoever still waits gives up; that is its right at any time.
            let _ = stream.shutdown(std::net::Shutdown::Both);
            outcomes.push(outcome.join().unwrap());
        }
        is_served(address, || true);
    }
    outcomes
}

/// Frames in one write, so that the victim never finds its socket empty.
fn batch(frame: impl Fn(u64) -> Frame, payload: &[u8], from: u64) -> Vec<u8> {
    (from..from + 500).flat_map(|number| [frame(number).encode().as_slice(), payload].concat()).collect()
}

fn byte(transfer: TransferId, seq: u64, again: bool) -> Frame {
    Frame::Data { transfer, seq: Seq(seq), offset: Offset(seq), len: FrameLen(1), again }
}

#[test]
fn an_upstream_that_says_nothing_but_totals() {
    let outcomes = beside_upstream(1, |lane, transfer| {
        lane.head(transfer)?;
        loop {
            lane.stream.write_all(&batch(|_| Frame::Total { transfer, frames: 9, bytes: 99 }, b"", 0))?;
        }
    });
    assert!(outcomes.iter().all(Result::is_err), "{outcomes:?}");
}

#[test]
fn an_upstream_that_sends_the_same_frame_for_ever() {
    let outcomes = beside_upstream(1, |lane, transfer| {
        lane.head(transfer)?;
        lane.stream.write_all(&batch(|seq| byte(transfer, seq, false), b"x", 0))?;
        loop {
            lane.stream.write_all(&batch(|_| byte(transfer, 0, true), b"x", 0))?;
        }
    });
    assert!(outcomes.iter().all(Result::is_err), "{outcomes:?}");
}

// Those that bring something, or may yet, have time until their deadlines, which `simulation::timed` waits for. Here their
// clients leave before; none may have taken what came for the whole.

/// Frames of one byte, in order and without an end: slow, and nothing worse.
#[test]
fn an_upstream_that_sends_byte_by_byte() {
    let outcomes = beside_upstream(2, |lane, transfer| {
        lane.head(transfer)?;
        for from in (0..).step_by(500) {
            lane.stream.write_all(&batch(|seq| byte(transfer, seq, false), b"x", from))?;
        }
        Ok(())
    });
    assert!(outcomes.iter().all(Result::is_err), "{outcomes:?}");
}

/// The first byte never comes, and thousands behind it do: each waits in a place of its own.
#[test]
fn an_upstream_that_leaves_out_the_first_byte() {
    let outcomes = beside_upstream(100, |lane, transfer| {
        lane.head(transfer)?;
        for from in (1..100_000).step_by(500) {
            lane.stream.write_all(&batch(|seq| byte(transfer, seq, false), b"x", from))?;
        }
        Ok(())
    });
    assert!(outcomes.iter().all(Result::is_err), "{outcomes:?}");
}

#[test]
fn an_upstream_whose_head_drips() {
    let outcomes = beside_upstream(20, |lane, transfer| {
        let frame = Frame::Head { transfer, head_len: FrameLen(64 << 10) };
        lane.stream.write_all(&frame.encode())?;
        loop {
            lane.stream.write_all(b"H")?;
            thread::sleep(Duration::from_millis(1));
        }
    });
    // Who is told in time gets a 5xx.
    assert!(outcomes.iter().all(|outcome| !matches!(outcome, Ok(..500))), "{outcomes:?}");
}

// A hostile downstream.

/// A lane to a real upstream or relay, whose near end is the test.
pub(crate) struct NearLane(pub(crate) TcpStream);

impl NearLane {
    pub(crate) fn open(first: SocketAddr, route: &Route) -> Self {
        Self::over(TcpStream::connect(first).unwrap(), route).unwrap()
    }

    /// Over a connection that stands; an error is what the other side says against it.
    pub(crate) fn over(mut stream: TcpStream, route: &Route) -> Result<Self, String> {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut challenge = [0; CHALLENGE_BYTES];
        stream.read_exact(&mut challenge).unwrap();
        let key = key();
        let (mut reply, hello) = ClientHandshake::new(&key, route, [5; 16]).challenge(&challenge).unwrap();
        stream.write_all(&hello).unwrap();
        let mut bytes = Vec::new();
        while let Progress::NeedMore(more) = reply.reply(&bytes).map_err(|error| error.to_string())? {
            bytes.resize(more, 0);
            stream.read_exact(&mut bytes).unwrap();
        }
        Ok(Self(stream))
    }

    pub(crate) fn request(&mut self, transfer: TransferId, target: &str) {
        let head = format!("GET {target} HTTP/1.1\r\nhost: h\r\n\r\n");
        let frame = Frame::Open { transfer, head_len: FrameLen(head.len() as u32) };
        self.0.write_all(&[frame.encode().as_slice(), head.as_bytes()].concat()).unwrap();
    }

    fn say(&mut self, frame: &Frame) {
        self.0.write_all(&frame.encode()).unwrap();
    }

    /// Whether the other side ends the lane. What comes before is thrown away.
    fn ends(mut self) -> bool {
        match io::copy(&mut self.0, &mut io::sink()) {
            Ok(_) => true,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}

/// An upstream of one core, and a downstream through which honest clients go.
struct Victim {
    upstream: Process,
    at: SocketAddr,
    address: SocketAddr,
    /// The downstream and the root.
    _others: [Process; 2],
    _ground: Ground,
    before: u64,
}

impl Victim {
    fn start(executor: &'static str) -> Self {
        let ground = ground();
        ground.store("large", &content(100_000_000));
        let (root, root_at) = ground.start_root(&Settings::default());
        let (key, url) = (ground.key(), format!("http://{root_at}"));
        let args = ["upstream", "--listen", "127.0.0.1:0", "--root", &url, "--key", text(&key)];
        let args = args.iter().chain(&["--max-kept", "8M"]);
        let (upstream, at) = Process::role("upstream", &one_core(executor), args);
        let (downstream, address) = ground.start_downstream(&Settings::default(), &[at.to_string()], &[]);
        is_served(address, || true);
        let before = upstream.resident_bytes();
        Self { upstream, at, address, _others: [downstream, root], _ground: ground, before }
    }

    fn lane(&self) -> NearLane {
        NearLane::open(self.at, &Route::default())
    }

    fn assert_small(&self, what: &str) {
        let grown = grown(&self.upstream, self.before);
        assert!(grown < GROWTH_BYTES_MAX, "{what}: {} MiB more", grown >> 20);
    }
}

/// Writes `bytes` until it is told to stop, or the lane is closed.
fn flood(lane: NearLane, bytes: Vec<u8>, stop: &Arc<AtomicBool>) -> JoinHandle<()> {
    let stop = stop.clone();
    lane.0.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    thread::spawn(move || {
        let mut at = 0;
        while !stop.load(Ordering::SeqCst) {
            match (&lane.0).write(&bytes[at..]) {
                Ok(sent) => at = (at + sent) % bytes.len(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    })
}

#[test]
fn a_downstream_that_floods_its_lane() {
    for executor in ["tokio-uring", "glommio"] {
        let victim = Victim::start(executor);
        let transfer = TransferId(77);
        let credit =
            Frame::Credit { transfer, frames: 0, reading: Reading::Eager, limit: Offset(1), next: 0 };
        for (what, frame, has_transfer) in [
            ("PING whose answers nobody reads", Frame::Ping { token: 1 }, false),
            ("CANCEL of nothing", Frame::Cancel { transfer }, false),
            ("CREDIT for nothing", credit, false),
            ("CREDIT that is none", credit, true),
        ] {
            let stop = Arc::new(AtomicBool::new(false));
            let floods: Vec<_> = (0..2)
                .map(|number| {
                    let mut lane = victim.lane();
                    if has_transfer {
                        lane.request(if number == 0 { transfer } else { TransferId(78) }, "/large");
                    }
                    flood(lane, batch(|_| frame, b"", 0), &stop)
                })
                .collect();
            let until = Instant::now() + FLOOD / 2;
            is_served(victim.address, || Instant::now() > until);
            stop.store(true, Ordering::SeqCst);
            floods.into_iter().for_each(|flood| flood.join().unwrap());
            victim.assert_small(&format!("{executor}: {what}"));
        }
    }
}

/// It is granted everything and hears of nothing: what is sent and kept for it is bounded, whether it reads or not.
#[test]
fn a_downstream_that_acknowledges_nothing() {
    let victim = Victim::start("tokio-uring");
    let lanes: Vec<_> = (0..8)
        .map(|number| {
            let (mut lane, transfer) = (victim.lane(), TransferId(number));
            lane.request(transfer, "/large");
            let limit = Offset(MAX_BODY_BYTES);
            lane.say(&Frame::Credit { transfer, frames: 0, reading: Reading::Eager, limit, next: 0 });
            lane
        })
        .collect();
    let mut readers = Vec::new();
    for lane in lanes.iter().step_by(2) {
        let mut stream = lane.0.try_clone().unwrap();
        readers.push(thread::spawn(move || io::copy(&mut stream, &mut io::sink()).unwrap_or(0)));
    }
    let until = Instant::now() + FLOOD;
    is_served(victim.address, || Instant::now() > until);
    victim.assert_small("frames that nobody acknowledges");
    for lane in &lanes {
        lane.0.shutdown(std::net::Shutdown::Both).unwrap();
    }
    let taken: u64 = readers.into_iter().map(|reader| reader.join().unwrap()).sum();
    // 8 MB are kept for all of them; copies of them may have been sent again.
    assert!(taken < 40 << 20, "{taken} bytes were sent without an acknowledgement");
}

#[test]
fn a_downstream_that_acknowledges_what_was_never_sent() {
    let victim = Victim::start("tokio-uring");
    let (mut lane, transfer) = (victim.lane(), TransferId(1));
    lane.request(transfer, "/large");
    let limit = Offset(MAX_BODY_BYTES);
    lane.say(&Frame::Credit { transfer, frames: MAX_SEQ, reading: Reading::Eager, limit, next: 0 });
    assert!(lane.ends());
    victim.upstream.wait_for_log("the downstream broke the protocol");
    is_served(victim.address, || true);
}

/// Requests that stop in the middle, and ones that are taken back at once.
#[test]
fn a_downstream_that_opens_and_does_not_mean_it() {
    let victim = Victim::start("tokio-uring");
    let mut half = victim.lane();
    half.say(&Frame::Open { transfer: TransferId(1), head_len: FrameLen(64 << 10) });
    half.0.write_all(b"GET /").unwrap();
    let mut lane = victim.lane();
    let mut answers = lane.0.try_clone().unwrap();
    let answers = thread::spawn(move || io::copy(&mut answers, &mut io::sink()).unwrap_or(0));
    for number in 2..1000 {
        lane.request(TransferId(number), "/large");
        lane.say(&Frame::Cancel { transfer: TransferId(number) });
    }
    is_served(victim.address, || true);
    lane.0.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(answers.join().unwrap() >= 998 * HEADER_BYTES as u64, "not every OPEN has its END");
    victim.assert_small("requests that are taken back");
    assert!(half.ends(), "a request that stops in the middle keeps its lane");
    victim.upstream.wait_for_log("request did not arrive within");
}

// A hostile neighbour on a relay.

#[test]
fn a_relay_carries_others_beside_a_trickle_of_bytes() {
    for executor in ["tokio-uring", "glommio"] {
        let ground = ground();
        let (_upstream, upstream_at) = ground.start_upstream(&Settings::default(), text(&ground.files()));
        let (relay, relay_at) = ground.start_relay(&one_core(executor));
        let path = format!("{relay_at},{upstream_at}");
        let (_downstream, address) =
            ground.start_downstream(&Settings::default(), std::slice::from_ref(&path), &[]);
        is_served(address, || true);
        let before = relay.resident_bytes();
        let route = path.parse::<PathSpec>().unwrap().route().clone();
        let stop = Arc::new(AtomicBool::new(false));
        let trickles: Vec<_> = (0..4)
            .map(|_| {
                let (lane, stop) = (NearLane::open(relay_at, &route), stop.clone());
                thread::spawn(move || {
                    let cancel = Frame::Cancel { transfer: TransferId(1) }.encode();
                    for byte in cancel.iter().cycle() {
                        if stop.load(Ordering::SeqCst) || (&lane.0).write_all(&[*byte]).is_err() {
                            return;
                        }
                    }
                })
            })
            .collect();
        let until = Instant::now() + FLOOD;
        is_served(address, || Instant::now() > until);
        stop.store(true, Ordering::SeqCst);
        trickles.into_iter().for_each(|trickle| trickle.join().unwrap());
        let grown = grown(&relay, before);
        assert!(grown < GROWTH_BYTES_MAX, "{executor}: {} MiB more", grown >> 20);
    }
}
