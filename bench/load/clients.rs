//! Clients: slow ones that check every byte, and ones that keep a connection and say nothing.
//!
//! In: where to ask. Out: what went wrong. Called by `main`. Invariant: a slow client holds back: its receive buffer is
//! small, and it reads no faster than its rate.

use std::{
    fs::File,
    io::{BufWriter, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};

use crate::Outcome;

/// A client reads so often.
const TICK: Duration = Duration::from_millis(250);
/// Room for two reads at 64 KiB/s; the kernel doubles it.
const RECEIVE_BUFFER_BYTES: usize = 32 << 10;
/// A read that takes longer is a stall, and counts as an error.
const SILENT_MAX: Duration = Duration::from_secs(30);
/// Each slow client is a thread with nothing on its stack.
const STACK_BYTES: usize = 128 << 10;

/// Raises the soft limit of descriptors to the hard one, for this process and those it starts; returns it.
pub fn raise_descriptor_limit() -> Outcome<u64> {
    let hard = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard })?;
    Ok(hard.unwrap_or(1 << 20))
}

/// What slow clients take.
#[derive(Clone, Copy, Debug)]
pub struct Slow {
    /// Bytes a second.
    pub rate: u64,
    /// Length of each file.
    pub bytes: u64,
}

/// Slow clients at work.
pub struct Running {
    threads: Vec<JoinHandle<Result<(), String>>>,
    standing: Arc<AtomicUsize>,
}

/// Word `index` of file `number`: no two files share a stretch.
fn word(number: u32, index: u64) -> [u8; 8] {
    (index ^ u64::from(number) << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()
}

impl Slow {
    /// Writes file `number` below `dir`.
    pub fn store(self, dir: &Path, number: u32) -> Outcome<()> {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(dir.join(number.to_string()))?);
        (0..self.bytes / 8).try_for_each(|index| file.write_all(&word(number, index)))?;
        Ok(file.flush()?)
    }

    /// Starts `count` clients of the server at `address`, so many a second.
    pub fn start(self, address: SocketAddr, count: u32, per_s: u32) -> Running {
        let (began, standing) = (Instant::now(), Arc::new(AtomicUsize::new(0)));
        let client = |number| {
            let standing = standing.clone();
            let work = move || {
                thread::sleep((Duration::from_secs(1) / per_s * number).saturating_sub(began.elapsed()));
                self.take(address, number, &standing).map_err(|error| format!("client {number}: {error}"))
            };
            thread::Builder::new().stack_size(STACK_BYTES).spawn(work).expect("a thread for each client")
        };
        Running { threads: (0..count).map(client).collect(), standing }
    }

    /// One client: asks, takes at its rate, checks.
    fn take(self, address: SocketAddr, number: u32, standing: &AtomicUsize) -> Outcome<()> {
        let mut stream = connect(address, number, Some(RECEIVE_BUFFER_BYTES))?;
        write!(stream, "GET /{number} HTTP/1.1\r\nHost: load\r\n\r\n")?;
        let length = read_head(&mut stream)?;
        if length != self.bytes {
            return Err(format!("the answer has {length} bytes").into());
        }
        standing.fetch_add(1, Ordering::Relaxed);
        let outcome = self.take_body(&mut stream, number);
        standing.fetch_sub(1, Ordering::Relaxed);
        outcome
    }

    fn take_body(self, stream: &mut TcpStream, number: u32) -> Outcome<()> {
        let mut buffer = vec![0; (self.rate * TICK.as_millis() as u64 / 1000 / 8 * 8).max(8) as usize];
        let (began, mut ticks, mut index) = (Instant::now(), 0, 0);
        while index < self.bytes / 8 {
            thread::sleep((TICK * ticks).saturating_sub(began.elapsed()));
            let part = buffer.len().min((self.bytes - 8 * index) as usize);
            stream.read_exact(&mut buffer[..part])?;
            for found in buffer[..part].as_chunks::<8>().0 {
                if *found != word(number, index) {
                    return Err(format!("wrong bytes at {}", 8 * index).into());
                }
                index += 1;
            }
            ticks += 1;
        }
        Ok(())
    }
}

impl Running {
    /// Clients in the middle of their file.
    pub fn standing(&self) -> usize {
        self.standing.load(Ordering::Relaxed)
    }

    /// Waits for all, and tells what went wrong.
    pub fn finish(self) -> Vec<String> {
        let outcome = |client: JoinHandle<Result<(), String>>| {
            client.join().unwrap_or_else(|_| Err("a client panicked".to_owned())).err()
        };
        self.threads.into_iter().filter_map(outcome).collect()
    }
}

/// Connections that have had an answer, and say nothing.
pub struct Idle(Vec<TcpStream>);

impl Idle {
    /// Opens `count` of them.
    pub fn open(address: SocketAddr, count: u32) -> Outcome<Self> {
        let open = |number| {
            let mut stream = connect(address, number, None)?;
            ask_head(&mut stream)?;
            Ok(stream)
        };
        Ok(Self((0..count).map(open).collect::<Outcome<_>>()?))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Asks on each once more; returns how many had no answer.
    pub fn ask_again(&mut self) -> usize {
        self.0.iter_mut().filter_map(|stream| ask_head(stream).err()).count()
    }
}

fn ask_head(stream: &mut TcpStream) -> Outcome<()> {
    write!(stream, "HEAD /0 HTTP/1.1\r\nHost: load\r\n\r\n")?;
    read_head(stream).map(drop)
}

/// From one of a few hundred loopback addresses: one alone has not ports enough.
pub fn connect(address: SocketAddr, number: u32, receive_buffer: Option<usize>) -> Outcome<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    if let Some(bytes) = receive_buffer {
        socket.set_recv_buffer_size(bytes)?;
    }
    let source = IpAddr::from(Ipv4Addr::new(127, 0, 1, (number % 250) as u8 + 1));
    socket.bind(&SocketAddr::new(source, 0).into())?;
    socket.connect(&address.into())?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(SILENT_MAX))?;
    Ok(stream)
}

/// Reads a head to its end and not beyond; returns the length that it announces.
fn read_head(stream: &mut TcpStream) -> Outcome<u64> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > 8 << 10 {
            return Err("the head does not end".into());
        }
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let (status, rest) = head.split_once("\r\n").unwrap_or_default();
    if !status.starts_with("http/1.1 200") {
        return Err(status.to_owned().into());
    }
    let length = rest.lines().find_map(|line| line.strip_prefix("content-length:"));
    Ok(length.ok_or("no length")?.trim().parse()?)
}
