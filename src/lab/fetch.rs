//! One download as a client sees it: how fast, when it began, when it stood still.
//!
//! In: a host, an address and a target. Out: a [`Fetched`]. Called by the command line and the benchmark.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use rustix::net::{RecvFlags, recv};

use super::{host::Host, topology::LabError};

/// A minute without a byte is a failure: the longest outage and the worst back-off of TCP's are shorter.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// More than any answer's head here.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// What one call takes off the socket at most.
const CHUNK_BYTES: usize = 1 << 20;

/// Shorter pauses between two arrivals are not worth a line.
const STALL_MIN: Duration = Duration::from_millis(100);
/// Stalls that are kept: more than a download of ten minutes has.
const STALLS_MAX: usize = 6000;

/// A time without a byte.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stall {
    /// From the beginning of the connect to the last byte before it.
    pub after: Duration,
    /// Until the next one came.
    pub lasted: Duration,
}

/// What a client experienced.
#[derive(Clone, Debug, PartialEq)]
pub struct Fetched {
    /// Bytes of the body.
    pub bytes: u64,
    /// From the beginning of the connect to the last byte.
    pub taken: Duration,
    /// From the beginning of the connect to the first byte of the answer.
    pub first_byte: Duration,
    /// The longest time between two arrivals of bytes.
    pub longest_stall: Duration,
    /// Those of 100 ms or more, in order; 6000 at most.
    pub stalls: Vec<Stall>,
}

impl Fetched {
    /// Goodput in Mbit/s.
    pub fn mbit(&self) -> f64 {
        self.bytes as f64 * 8e-6 / self.taken.as_secs_f64()
    }

    /// The longest stall that touches the time from `from` to `until`, since the beginning.
    pub fn longest_stall_within(&self, from: Duration, until: Duration) -> Duration {
        let touches = |stall: &&Stall| stall.after < until && stall.after + stall.lasted > from;
        self.stalls.iter().filter(touches).map(|stall| stall.lasted).max().unwrap_or_default()
    }
}

/// Downloads `target` from `server` with a client inside `host`, bound to `source` where given. `received` is kept up
/// to date for a live view. The body is thrown away by the kernel; only its length is checked.
///
/// # Errors
/// No connection, no success, a short body, or no byte for a minute.
pub fn fetch(
    host: &Host,
    source: Option<IpAddr>,
    server: SocketAddr,
    target: &str,
    received: &AtomicU64,
) -> Result<Fetched, LabError> {
    let failed = |source| LabError::System { what: format!("download of {target} from {server}"), source };
    let began = Instant::now();
    let mut stream = host.connect(source, server, SILENCE_LIMIT).map_err(failed)?;
    receive(&mut stream, began, server, target, received).map_err(failed)
}

fn receive(
    stream: &mut TcpStream,
    began: Instant,
    server: SocketAddr,
    target: &str,
    received: &AtomicU64,
) -> io::Result<Fetched> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE_LIMIT))?;
    write!(stream, "GET {target} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n")?;
    let (length, mut bytes, first_byte) = read_head(stream, began)?;
    let (mut last, mut longest_stall) = (Instant::now(), Duration::ZERO);
    let mut stalls = Vec::new();
    received.store(bytes, Ordering::Relaxed);
    let mut nowhere = vec![0; CHUNK_BYTES];
    while bytes < length {
        // MSG_TRUNC: TCP throws the bytes away instead of copying them.
        let got = rustix::io::retry_on_intr(|| recv(&*stream, &mut nowhere, RecvFlags::TRUNC))?.1;
        if got == 0 {
            let text = format!("the answer ended after {bytes} of {length} bytes");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        let now = Instant::now();
        longest_stall = longest_stall.max(now - last);
        if now - last >= STALL_MIN && stalls.len() < STALLS_MAX {
            stalls.push(Stall { after: last - began, lasted: now - last });
        }
        last = now;
        bytes += got as u64;
        received.store(bytes, Ordering::Relaxed);
    }
    Ok(Fetched { bytes, taken: last - began, first_byte, longest_stall, stalls })
}

/// The length of the body, how much of it came with the head, and when the first byte came.
fn read_head(stream: &mut TcpStream, began: Instant) -> io::Result<(u64, u64, Duration)> {
    let mut head = Vec::with_capacity(HEAD_BYTES_MAX);
    let mut first_byte = None;
    let wrong = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    while head.len() < HEAD_BYTES_MAX {
        let mut chunk = [0; 4096];
        let got = stream.read(&mut chunk)?;
        if got == 0 {
            return Err(wrong("the answer ended within its head".into()));
        }
        first_byte.get_or_insert_with(|| began.elapsed());
        head.extend_from_slice(&chunk[..got]);
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut response = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(end) =
            response.parse(&head).map_err(|error| wrong(format!("no HTTP answer: {error}")))?
        else {
            continue;
        };
        if response.code != Some(200) {
            return Err(wrong(format!("the answer is {:?}", response.code.unwrap_or(0))));
        }
        let length =
            response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
        let length = length.and_then(|header| str::from_utf8(header.value).ok()?.trim().parse().ok());
        let length = length.ok_or_else(|| wrong("the answer has no length".into()))?;
        return Ok((length, (head.len() - end) as u64, first_byte.unwrap_or_default()));
    }
    Err(wrong("the answer's head is too long".into()))
}
