//! In: a host of the lab and an address. Out: when which bytes came.
//!
//! Called by `roles` and `peers`. One blocking HTTP/1.1 GET on one connection, as a browser makes it, on a socket that
//! belongs to the client's namespace. Invariant: every byte is compared with the content; the clock runs from connect to
//! the last byte, and at the deadline the transfer is cut off and says how far it came.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use plait::lab::host::Host;
use plait::net::{MptcpState, mptcp_state};
use serde::Serialize;
use socket2::{Domain, Protocol, SockRef, Type};

use crate::Outcome;
use crate::pattern::{Check, FILE_NAME};

/// Longest response head that is taken.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Large enough that system calls do not count, small enough that a read does not hide a stall.
const READ_BYTES: usize = 256 * 1024;

/// What came.
#[derive(Clone, Debug, Serialize)]
pub struct Download {
    /// Bytes of the body.
    pub bytes: u64,
    /// From connect to the last byte, or to the deadline.
    pub seconds: f64,
    /// From connect to the first byte of the body, where the client can tell.
    pub first_byte_s: Option<f64>,
    /// The longest wait for more bytes after the first, where the client can tell.
    pub stall_s: Option<f64>,
    /// False: the deadline cut it off.
    pub is_complete: bool,
    /// What became of MPTCP, where it was asked for.
    pub mptcp: Option<Mptcp>,
}

/// How a connection stood that was to be MPTCP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Mptcp {
    /// The most that stood at once. None: it fell back, or nobody has looked.
    pub subflows: Option<usize>,
    /// It, or a leg of it, was plain TCP.
    pub fell_back: bool,
}

impl Mptcp {
    /// Looks once more.
    fn observe(&mut self, state: MptcpState) {
        match state {
            MptcpState::Subflows(subflows) => self.subflows = self.subflows.max(Some(subflows)),
            MptcpState::FellBack => self.fell_back = true,
        }
    }
}

/// How to ask.
pub struct Request<'a> {
    /// Where the client lives.
    pub host: &'a Host,
    /// Whom it asks.
    pub server: SocketAddr,
    /// Address to connect from: the path that the connection takes.
    pub source: Option<IpAddr>,
    /// TCP or MPTCP.
    pub protocol: Protocol,
    /// Length that the answer must have.
    pub bytes: u64,
    /// When the transfer is cut off.
    pub deadline: Duration,
}

impl Request<'_> {
    /// Downloads the file.
    pub fn run(&self) -> Outcome<Download> {
        let socket = self.host.socket(Domain::for_address(self.server), Type::STREAM, Some(self.protocol))?;
        if let Some(source) = self.source {
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        let begin = Instant::now();
        socket
            .connect_timeout(&self.server.into(), self.deadline)
            .map_err(|error| format!("no connection to {}: {error}", self.server))?;
        socket.set_tcp_nodelay(true)?;
        Reading { stream: socket.into(), begin, deadline: begin + self.deadline }.run(self)
    }
}

/// A connection with the times that count.
struct Reading {
    stream: TcpStream,
    begin: Instant,
    deadline: Instant,
}

impl Reading {
    fn run(mut self, request: &Request<'_>) -> Outcome<Download> {
        let server = request.server;
        let head = format!("GET /{FILE_NAME} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n");
        self.stream.write_all(head.as_bytes())?;
        let first = self.read_head(request.bytes)?;
        let mut last = Instant::now();
        let mut first_byte = (!first.is_empty()).then(|| last - self.begin);
        let mut check = Check::default();
        check.take(&first)?;
        let mut stall = Duration::ZERO;
        let mut block = vec![0; READ_BYTES];
        let mut is_complete = true;
        let mut mptcp = (request.protocol == Protocol::MPTCP).then(Mptcp::default);
        while check.taken < request.bytes {
            let received = self.read(&mut block)?;
            let now = Instant::now();
            if let Some(mptcp) = &mut mptcp {
                mptcp.observe(mptcp_state(self.stream.as_fd())?);
            }
            match first_byte {
                Some(_) => stall = stall.max(now - last),
                None => first_byte = received.map(|_| now - self.begin),
            }
            last = now;
            match received {
                Some(0) => {
                    return Err(format!(
                        "LOST BYTES: the answer ended after {} of {}",
                        check.taken, request.bytes
                    )
                    .into());
                }
                Some(received) => check.take(&block[..received])?,
                None => {
                    is_complete = false;
                    // A reset instead of a farewell: MPTCP would go on taking data for up to a minute.
                    SockRef::from(&self.stream).set_linger(Some(Duration::ZERO))?;
                    break;
                }
            }
        }
        Ok(Download {
            bytes: check.taken,
            seconds: (last - self.begin).as_secs_f64(),
            first_byte_s: first_byte.map(|taken| taken.as_secs_f64()),
            stall_s: Some(stall.as_secs_f64()),
            is_complete,
            mptcp,
        })
    }

    /// Reads the head and checks it. Returns the bytes that came behind it.
    fn read_head(&mut self, bytes: u64) -> Outcome<Vec<u8>> {
        let mut received = Vec::with_capacity(HEAD_BYTES_MAX);
        loop {
            let before = received.len();
            received.resize(HEAD_BYTES_MAX, 0);
            let taken = self.read(&mut received[before..])?.ok_or("no answer before the deadline")?;
            received.truncate(before + taken);
            if taken == 0 {
                return Err(format!("the server closed after {before} bytes of a head").into());
            }
            let mut headers = [httparse::EMPTY_HEADER; 64];
            let mut response = httparse::Response::new(&mut headers);
            let httparse::Status::Complete(head) = response.parse(&received)? else { continue };
            let length =
                response.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
            let length = length.map_or("no".into(), |header| String::from_utf8_lossy(header.value));
            if response.code != Some(200) || length != bytes.to_string() {
                let status = response.code.unwrap_or_default();
                return Err(format!(
                    "the answer is {status} with {length} bytes instead of 200 with {bytes}"
                )
                .into());
            }
            return Ok(received.split_off(head));
        }
    }

    /// One read; `None` at the deadline.
    fn read(&mut self, block: &mut [u8]) -> Outcome<Option<usize>> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(block) {
                Ok(received) => return Ok(Some(received)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Ok(None);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}
