//! A scripted root, scripted lanes, and a real upstream on all cores in between, on both executors.
//!
//! In: what the root does with a request, what the lanes do with the upstream. Out: what came on each lane.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, mpsc},
    thread,
};

use super::super::*;
use crate::{
    exec::{Backend, Config, available_cpus},
    http::response::{Parsed, parse_response},
    net::BoundSocket,
    wire::{
        frame::{Frame, HEADER_BYTES, Outcome, Reading},
        frame_check::FrameCheck,
        handshake::{CHALLENGE_BYTES, ClientHandshake, HandshakeError, Progress},
        key::Key,
        route::{Route, Transport},
        units::{FrameLen, MAX_BODY_BYTES, Offset, Seq, TransferId},
    },
};

pub(super) const BACKENDS: [Backend; 2] = [Backend::TokioUring, Backend::Glommio];

/// Far beyond any wait of a test that passes.
pub(super) const TEST_DEADLINE: Duration = Duration::from_secs(20);

pub(super) fn key() -> Key {
    Key::from_bytes([7; 32])
}

pub(super) fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|n| (n ^ (n >> 8) ^ (n >> 16)) as u8).collect()
}

/// Reads one request head; none when the peer closes.
fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()
}

/// A root that runs `script` for every request with the number of its connection; it closes when that returns false.
pub(super) fn root(
    script: impl Fn(usize, &mut TcpStream, &str) -> bool + Send + Sync + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let script = Arc::new(script);
    thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let (mut stream, script) = (stream.unwrap(), script.clone());
            thread::spawn(move || {
                while let Some(head) = read_request(&mut stream) {
                    if !script(number, &mut stream, &head) {
                        break;
                    }
                }
            });
        }
    });
    address
}

/// Transfers of tests that pass have ended when the upstream stops.
const DRAIN: Duration = Duration::from_secs(10);

/// Runs `drive` against an upstream of `root`, once on each executor.
pub(super) fn with_upstream(root: SocketAddr, drive: impl Fn(SocketAddr)) {
    with_upstream_of(&format!("http://{root}"), drive);
}

/// The same with any `--root`.
pub(super) fn with_upstream_of(root: &str, drive: impl Fn(SocketAddr)) {
    with_upstream_placed(root, Placement::Auto, drive);
}

/// The same with any placement.
pub(super) fn with_upstream_placed(root: &str, placement: Placement, drive: impl Fn(SocketAddr)) {
    for backend in BACKENDS {
        let cpus = available_cpus();
        let (listeners, address) =
            Listener::bind((std::net::Ipv4Addr::LOCALHOST, 0).into(), cpus.len(), Transport::Tcp).unwrap();
        let listeners: Arc<Vec<Mutex<Option<BoundSocket>>>> =
            Arc::new(listeners.into_iter().map(|fd| Mutex::new(Some(fd))).collect());
        let upstream = Upstream::new(
            root.parse().unwrap(),
            Arc::new(KeyRing::of(key())),
            Legs::default(),
            Door::new(1000),
            1 << 30,
            placement,
        )
        .unwrap();
        let upstream = Arc::new(upstream);
        let (stop, stopped) = watch::channel(false);
        let cores = thread::spawn(move || {
            exec::run(&Config { backend, cpus }, move |core| {
                let listener = listeners[core.0].lock().unwrap().take().unwrap();
                let (upstream, stopped) = (upstream.clone(), stopped.clone());
                async move { serve(upstream, Listener::new(listener), DRAIN, stopped).await }
            })
        });
        // A panic of a core says more than what it leads to at the lanes.
        let driven = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drive(address)));
        let _ = stop.send(true);
        cores.join().unwrap_or_else(|_| panic!("{backend}: a core panicked")).unwrap();
        driven.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }
}

/// The downstream's end of a lane.
pub(super) struct TestLane {
    pub(super) stream: TcpStream,
    pub(super) instance: u64,
    /// DATA frames of the running transfer.
    received: u64,
    /// Does not say what it has.
    pub(super) is_silent: bool,
}

/// All that came for one OPEN.
pub(super) struct Answer {
    pub(super) head: Option<String>,
    pub(super) frames: Vec<(u64, u64, Vec<u8>)>,
    pub(super) outcome: Outcome,
    pub(super) totals: (u64, u64),
    pub(super) reason: String,
}

impl Answer {
    pub(super) fn body(&self) -> Vec<u8> {
        body_of(self.frames.clone())
    }

    /// Status and Content-Length of the head, which must be whole.
    pub(super) fn head(&self) -> (u16, Option<u64>) {
        let bytes = self.head.as_deref().unwrap().as_bytes();
        let Ok(Parsed::Complete { head, len }) = parse_response(bytes) else { panic!("no head") };
        assert_eq!(len, bytes.len());
        assert!(!head.headers.contains_key("connection"));
        let length =
            head.headers.get("content-length").map(|length| length.to_str().unwrap().parse().unwrap());
        // It says that the end of the body will be known for certain, and no more than that.
        let in_chunks = head.headers.get("transfer-encoding");
        assert!(in_chunks.is_none_or(|coding| coding == "chunked" && length.is_none()));
        (head.status.as_u16(), length)
    }
}

/// Puts frames in order and checks that they cut the body without gap or overlap; of those that were sent again one counts.
pub(super) fn body_of(mut frames: Vec<(u64, u64, Vec<u8>)>) -> Vec<u8> {
    frames.sort();
    frames.dedup();
    let mut body = Vec::new();
    for (expected, (seq, offset, payload)) in frames.into_iter().enumerate() {
        assert_eq!((seq, offset), (expected as u64, body.len() as u64));
        body.extend_from_slice(&payload);
    }
    body
}

impl TestLane {
    pub(super) fn try_open(address: SocketAddr, key: &Key, route: &Route) -> Result<Self, HandshakeError> {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(TEST_DEADLINE)).unwrap();
        let mut challenge = [0; CHALLENGE_BYTES];
        stream.read_exact(&mut challenge).unwrap();
        let (mut awaiting, hello) = ClientHandshake::new(key, route, [3; 16]).challenge(&challenge)?;
        stream.write_all(&hello).unwrap();
        let mut bytes = Vec::new();
        loop {
            match awaiting.reply(&bytes)? {
                Progress::Done(accepted) => {
                    return Ok(Self { stream, instance: accepted.instance, received: 0, is_silent: false });
                }
                Progress::NeedMore(more) => {
                    bytes.resize(more, 0);
                    stream.read_exact(&mut bytes).map_err(|_| awaiting.closed())?;
                }
            }
        }
    }

    pub(super) fn new(address: SocketAddr) -> Self {
        Self::try_open(address, &key(), &Route::default()).unwrap()
    }

    pub(super) fn send(&mut self, frame: Frame) {
        self.stream.write_all(&frame.encode()).unwrap();
    }

    pub(super) fn open(&mut self, transfer: u64, head: &str) {
        self.open_without_credit(transfer, head);
        self.credit(transfer, MAX_BODY_BYTES);
    }

    /// Acknowledges what has come, and lets the body below `limit` come.
    pub(super) fn credit(&mut self, transfer: u64, limit: u64) {
        let (transfer, frames) = (TransferId(transfer), self.received);
        let credit =
            Frame::Credit { transfer, frames, reading: Reading::Eager, limit: Offset(limit), next: 0 };
        // An upstream that has ended needs none.
        let _ = self.stream.write_all(&credit.encode());
    }

    pub(super) fn open_without_credit(&mut self, transfer: u64, head: &str) {
        let head_len = FrameLen(head.len() as u32);
        self.received = 0;
        let mut message = Frame::Open { transfer: TransferId(transfer), head_len }.encode().to_vec();
        message.extend_from_slice(head.as_bytes());
        self.stream.write_all(&message).unwrap();
    }

    /// Reads DATA frames until the lane is silent for a moment; returns their bytes.
    pub(super) fn data_until_silent(&mut self) -> u64 {
        self.stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let mut bytes = 0;
        while let Some((frame, payload)) = self.next() {
            if let Frame::Data { .. } = frame {
                bytes += payload.len() as u64;
            }
        }
        self.stream.set_read_timeout(Some(TEST_DEADLINE)).unwrap();
        bytes
    }

    pub(super) fn next(&mut self) -> Option<(Frame, Vec<u8>)> {
        let mut header = [0; HEADER_BYTES];
        self.stream.read_exact(&mut header).ok()?;
        let frame = Frame::decode(&header).unwrap();
        let mut payload = vec![0; frame.payload_len().as_usize()];
        self.stream.read_exact(&mut payload).unwrap();
        if let Frame::Data { transfer, .. } = frame {
            self.received += 1;
            if !self.is_silent {
                self.credit(transfer.0, 0);
            }
        }
        Some((frame, payload))
    }

    /// Reads until END.
    pub(super) fn answer(&mut self, transfer: u64) -> Answer {
        let mut check = FrameCheck::new(TransferId(transfer));
        let (mut head, mut frames) = (None, Vec::new());
        loop {
            let (frame, payload) = self.next().expect("the upstream closed the lane before END");
            check.accept(&frame, Seq(0)).unwrap();
            match frame {
                Frame::Head { .. } => head = Some(String::from_utf8(payload).unwrap()),
                Frame::Data { seq, offset, .. } => frames.push((seq.0, offset.0, payload)),
                Frame::End { outcome, frames: count, bytes, .. } => {
                    let reason = String::from_utf8(payload).unwrap();
                    return Answer { head, frames, outcome, totals: (count, bytes), reason };
                }
                Frame::Total { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// Reads until END, or until the upstream closes the lane, wherever that is.
    pub(super) fn outcome(&mut self) -> Option<Outcome> {
        let mut header = [0; HEADER_BYTES];
        loop {
            self.stream.read_exact(&mut header).ok()?;
            let frame = Frame::decode(&header).unwrap();
            self.stream.read_exact(&mut vec![0; frame.payload_len().as_usize()]).ok()?;
            if let Frame::End { outcome, .. } = frame {
                return Some(outcome);
            }
        }
    }

    pub(super) fn ask(&mut self, transfer: u64, head: &str) -> Answer {
        self.open(transfer, head);
        self.answer(transfer)
    }
}

pub(super) const GET: &str = "GET /film.mp4 HTTP/1.1\r\nHost: video\r\n\r\n";

/// A request for a file, with `fields`.
pub(super) fn get(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: video\r\n{fields}\r\n")
}

/// A root whose body never ends until the upstream closes; it says when that was.
pub(super) fn endless_root() -> (SocketAddr, mpsc::Receiver<()>) {
    let (closed, told) = mpsc::channel();
    let address = root(move |_, stream, head| {
        if head.contains("/small") {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
            return true;
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n").unwrap();
        while stream.write_all(&[0; 65_536]).is_ok() {}
        closed.send(()).unwrap();
        false
    });
    (address, told)
}
