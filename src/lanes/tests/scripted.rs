//! A scripted upstream: real connections and handshakes, and whatever frames a test wants to send.
//!
//! In: what to do with each OPEN. Out: an address for paths, and how many connections came. Each lane has a thread with
//! a blocking socket; between transfers it answers pings.

use std::{
    collections::HashMap,
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use crate::wire::{
    frame::{Frame, HEADER_BYTES, Outcome},
    handshake::{Progress, ServerHandshake},
    key::Key,
    route::Route,
    units::{FrameLen, Offset, Seq, TransferId},
};

/// Far beyond any wait of a test that passes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn key() -> Key {
    Key::from_bytes([7; 32])
}

/// The upstream's end of a lane.
pub(crate) struct FarLane {
    pub(crate) stream: TcpStream,
    /// From 0 in order of acceptance.
    pub(crate) number: usize,
    /// Hops that the hello still named.
    pub(crate) route: Route,
}

/// An OPEN that came.
#[derive(Clone, Copy)]
pub(crate) struct Opening {
    pub(crate) transfer: TransferId,
    /// Which lane of the transfer this is, in order of the OPENs.
    pub(crate) nth: usize,
}

impl FarLane {
    /// The listening side of the handshake.
    pub(crate) fn shake(mut stream: TcpStream, number: usize, instance: u64) -> Option<Self> {
        stream.set_nodelay(true).ok()?;
        let key = key();
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce).ok()?;
        let (mut server, challenge) = ServerHandshake::new(std::slice::from_ref(&key), nonce);
        stream.write_all(&challenge).ok()?;
        let mut bytes = Vec::new();
        loop {
            match server.hello(&bytes).ok()? {
                Progress::Done(hello) => {
                    let route = hello.route().clone();
                    stream.write_all(&hello.accept(instance)).ok()?;
                    return Some(Self { stream, number, route });
                }
                Progress::NeedMore(more) => {
                    bytes.resize(more, 0);
                    stream.read_exact(&mut bytes).ok()?;
                }
            }
        }
    }

    pub(crate) fn next(&mut self) -> io::Result<(Frame, Vec<u8>)> {
        let mut header = [0; HEADER_BYTES];
        self.stream.read_exact(&mut header)?;
        let frame = Frame::decode(&header).map_err(io::Error::other)?;
        let mut payload = vec![0; frame.payload_len().as_usize()];
        self.stream.read_exact(&mut payload)?;
        Ok((frame, payload))
    }

    pub(crate) fn send(&mut self, frame: Frame, payload: &[u8]) -> io::Result<()> {
        self.stream.write_all(&frame.encode())?;
        self.stream.write_all(payload)
    }

    pub(crate) fn head(&mut self, transfer: TransferId) -> io::Result<()> {
        let head = b"HTTP/1.1 200 OK\r\n\r\n";
        self.send(Frame::Head { transfer, head_len: FrameLen(head.len() as u32) }, head)
    }

    /// Piece number `seq` of `body`, cut as `pieces` say.
    pub(crate) fn piece(&mut self, transfer: TransferId, body: &[u8], piece: Piece) -> io::Result<()> {
        let Piece { seq, start, end } = piece;
        self.data(transfer, seq, start as u64, &body[start..end])
    }

    pub(crate) fn data(
        &mut self,
        transfer: TransferId,
        seq: u64,
        offset: u64,
        bytes: &[u8],
    ) -> io::Result<()> {
        self.send(data(transfer, seq, offset, bytes.len()), bytes)
    }

    /// The same, sent over another lane before.
    pub(crate) fn data_again(
        &mut self,
        transfer: TransferId,
        seq: u64,
        offset: u64,
        bytes: &[u8],
    ) -> io::Result<()> {
        let len = FrameLen(bytes.len() as u32);
        self.send(Frame::Data { transfer, seq: Seq(seq), offset: Offset(offset), len, again: true }, bytes)
    }

    pub(crate) fn end(&mut self, transfer: TransferId, frames: u64, bytes: u64) -> io::Result<()> {
        let outcome = Outcome::Complete;
        self.send(Frame::End { transfer, outcome, frames, bytes, reason_len: FrameLen(0) }, b"")
    }

    pub(crate) fn end_as(&mut self, transfer: TransferId, outcome: Outcome, reason: &str) -> io::Result<()> {
        let reason_len = FrameLen(reason.len() as u32);
        self.send(Frame::End { transfer, outcome, frames: 0, bytes: 0, reason_len }, reason.as_bytes())
    }

    /// Waits for CANCEL, without answering it.
    pub(crate) fn await_cancel(&mut self, transfer: TransferId) -> io::Result<()> {
        loop {
            match self.next()?.0 {
                Frame::Cancel { transfer: given_up } if given_up == transfer => return Ok(()),
                Frame::Credit { .. } => {}
                other => return Err(io::Error::other(format!("{other:?} instead of CANCEL"))),
            }
        }
    }

    /// Waits for CANCEL and ends the transfer.
    pub(crate) fn yield_to_cancel(&mut self, transfer: TransferId) -> io::Result<()> {
        self.await_cancel(transfer)?;
        self.end_as(transfer, Outcome::Cancelled, "")
    }

    /// Waits until the other side closes the lane.
    pub(crate) fn await_close(&mut self) {
        while matches!(self.stream.read(&mut [0; 4096]), Ok(1..)) {}
    }
}

pub(crate) fn data(transfer: TransferId, seq: u64, offset: u64, len: usize) -> Frame {
    Frame::Data { transfer, seq: Seq(seq), offset: Offset(offset), len: FrameLen(len as u32), again: false }
}

/// One frame of a body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) seq: u64,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// Cuts `len` bytes into pieces whose sizes `size` chooses.
pub(crate) fn cut(len: usize, mut size: impl FnMut() -> usize) -> Vec<Piece> {
    let (mut pieces, mut start) = (Vec::new(), 0);
    while start < len {
        let end = len.min(start + size());
        pieces.push(Piece { seq: pieces.len() as u64, start, end });
        start = end;
    }
    pieces
}

/// A number that threads raise and wait for.
#[derive(Clone, Default)]
pub(crate) struct Tally(Arc<(Mutex<usize>, Condvar)>);

impl Tally {
    pub(crate) fn add(&self, more: usize) {
        *self.0.0.lock().unwrap() += more;
        self.0.1.notify_all();
    }

    pub(crate) fn get(&self) -> usize {
        *self.0.0.lock().unwrap()
    }

    /// Waits until the number is `wanted` or more; an error after [`PATIENCE`].
    pub(crate) fn reach(&self, wanted: usize) -> io::Result<()> {
        self.reach_within(wanted, PATIENCE)
    }

    pub(crate) fn reach_within(&self, wanted: usize, time: Duration) -> io::Result<()> {
        let reached = self.0.1.wait_timeout_while(self.0.0.lock().unwrap(), time, |count| *count < wanted);
        if reached.unwrap().1.timed_out() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }
}

pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    /// Lanes that ended.
    pub(crate) closed: Tally,
    /// What lanes ended with, other than that the peer closed them.
    pub(crate) faults: Arc<Mutex<Vec<String>>>,
}

impl Upstream {
    /// Runs `script` for every OPEN; the lane is closed when that fails.
    pub(crate) fn start(
        instance: u64,
        script: impl Fn(&mut FarLane, Opening) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let opened = Mutex::new(HashMap::new());
        Self::of_lanes(instance, move |mut lane| {
            loop {
                match lane.next()?.0 {
                    Frame::Open { transfer, .. } => {
                        let nth = {
                            let mut opened = opened.lock().unwrap();
                            let count = opened.entry(transfer.0).or_insert(0);
                            *count += 1;
                            *count - 1
                        };
                        script(&mut lane, Opening { transfer, nth })?;
                    }
                    Frame::Ping { token } => lane.send(Frame::Pong { token }, b"")?,
                    // It crossed an END.
                    Frame::Cancel { .. } | Frame::Credit { .. } => {}
                    other => return Err(io::Error::other(format!("{other:?} from the downstream"))),
                }
            }
        })
    }

    /// Runs `script` for every lane.
    pub(crate) fn of_lanes(
        instance: u64,
        script: impl Fn(FarLane) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self::of_connections(TcpListener::bind(("127.0.0.1", 0)).unwrap(), move |stream, number| {
            let Some(lane) = FarLane::shake(stream, number, instance) else { return Ok(()) };
            script(lane)
        })
    }

    /// Runs `script` for every connection.
    pub(crate) fn of_connections(
        listener: TcpListener,
        script: impl Fn(TcpStream, usize) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let upstream = Self {
            address: listener.local_addr().unwrap(),
            accepted: Arc::default(),
            closed: Tally::default(),
            faults: Arc::default(),
        };
        let script = Arc::new(script);
        let (accepted, closed, faults) =
            (upstream.accepted.clone(), upstream.closed.clone(), upstream.faults.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { break };
                let number = accepted.fetch_add(1, Ordering::SeqCst);
                let (script, closed, faults) = (script.clone(), closed.clone(), faults.clone());
                thread::spawn(move || {
                    if let Err(error) = script(stream, number)
                        && matches!(error.kind(), io::ErrorKind::Other | io::ErrorKind::TimedOut)
                    {
                        faults.lock().unwrap().push(format!("lane {number}: {error}"));
                    }
                    closed.add(1);
                });
            }
        });
        upstream
    }

    /// Connections so far.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// No script came to a point that it did not expect.
    pub(crate) fn assert_no_fault(&self) {
        assert_eq!(*self.faults.lock().unwrap(), [""; 0]);
    }
}

/// xorshift64*: reproducible, and good enough to cut bodies.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// From 0 to `bound` - 1.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Bytes in which no stretch is like another.
    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(|_| self.next().to_ne_bytes()).collect();
        bytes.truncate(len);
        bytes
    }
}
