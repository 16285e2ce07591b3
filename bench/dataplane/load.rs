//! In: sockets. Out: bytes pushed into one and pulled from another, timed; the same source and sink for every peer.
//!
//! Called by the scenarios. In a measured pass the source sends one block that stays in its cache, over and over (a
//! sendfile from tmpfs is slower: a fragment per 4 KiB page), and the sink discards with MSG_TRUNC, so that the proxy
//! between them dominates. Invariant: a measured pass counts every byte, and the verifying pass before it sends the
//! whole file and hashes every byte.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::RecvFlags;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::Outcome;

/// A megabyte as the tables mean it.
pub const MB: u64 = 1_000_000;
/// Size of the file that every scenario moves.
pub const VIDEO_BYTES: u64 = 200 * MB;
/// Size of the large transfer.
pub const LARGE_BYTES: u64 = 2_000 * MB;
/// Name of the 200 MB file below the root directory.
pub const VIDEO_NAME: &str = "video.bin";
/// Name of the 2 GB file below the root directory, if asked for.
pub const LARGE_NAME: &str = "large.bin";
/// No transfer over loopback rests this long unless a proxy lost bytes.
const STALL_S_MAX: u64 = 20;
/// Upper bound of one receive; far above what a socket can hold, so that each call empties it.
const SINK_BYTES: usize = 16 << 20;
/// 1 MiB: large enough that system calls do not count, small enough for the second-level cache.
const BLOCK_BYTES: usize = 1 << 20;
/// What a paced client takes at a time: five milliseconds at 100 MB/s.
const PACED_READ_BYTES: u64 = 512 << 10;
/// Longest response head the client takes.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// A directory in memory, where there is /dev/shm.
pub fn directory() -> Outcome<TempDir> {
    Ok(TempDir::with_prefix_in("plait-bench-", "/dev/shm")
        .or_else(|_| TempDir::with_prefix("plait-bench-"))?)
}

/// A directory with the files that the roots serve.
pub struct Library {
    dir: TempDir,
    video: File,
    sha256: [u8; 32],
}

impl Library {
    /// Writes the 200 MB file into `dir`, and the 2 GB one if `large`. No two stretches of the first are alike, so
    /// that bytes out of place change its hash.
    pub fn create(dir: TempDir, large: bool) -> Outcome<Self> {
        let path = dir.path().join(VIDEO_NAME);
        let mut file = File::create(&path)?;
        let mut hasher = Sha256::new();
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut block = Vec::with_capacity(MB as usize);
        for _ in 0..VIDEO_BYTES / MB {
            block.clear();
            while block.len() < MB as usize {
                // xorshift64 (Marsaglia, 2003): any period beyond the file will do.
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                block.extend_from_slice(&state.to_le_bytes());
            }
            hasher.update(&block);
            file.write_all(&block)?;
        }
        let video = File::open(&path)?;
        if large {
            let mut file = File::create(dir.path().join(LARGE_NAME))?;
            for _ in 0..LARGE_BYTES / VIDEO_BYTES {
                std::io::copy(&mut File::open(&path)?, &mut file)?;
            }
        }
        Ok(Self { dir, video, sha256: hasher.finalize().into() })
    }

    /// The directory; also holds the configuration and the logs of the peers.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

/// Both ends of a connection through a proxy: what goes into `source` comes out of `sink`.
pub struct Line {
    source: TcpStream,
    sink: TcpStream,
}

impl Line {
    /// Bounds every wait on the two ends.
    pub fn new(source: TcpStream, sink: TcpStream) -> Outcome<Self> {
        source.set_write_timeout(Some(Duration::from_secs(STALL_S_MAX)))?;
        sink.set_read_timeout(Some(Duration::from_secs(STALL_S_MAX)))?;
        Ok(Self { source, sink })
    }

    /// Moves `bytes` bytes from memory and says how long it took.
    pub fn blast(&self, bytes: u64) -> Outcome<Duration> {
        self.timed(bytes, || send_block(&self.source, bytes))
    }

    /// The same with the video's bytes by sendfile, again and again: what an upstream sends. A page of a file is a
    /// fragment of its own, eight times as many as a block of memory has, and splice pays by the fragment.
    pub fn blast_video(&self, bytes: u64, library: &Library) -> Outcome<Duration> {
        self.timed(bytes, || (0..bytes / VIDEO_BYTES).try_for_each(|_| send_video(&self.source, library)))
    }

    fn timed(&self, bytes: u64, send: impl Fn() -> Outcome<()> + Sync) -> Outcome<Duration> {
        thread::scope(|scope| {
            // Threads of their own, both of them: what is started later must not inherit their CPU.
            let source = scope.spawn(|| {
                leave_cpu_to_proxy();
                send()
            });
            let sink = scope.spawn(|| {
                leave_cpu_to_proxy();
                let begin = Instant::now();
                discard(&self.sink, bytes).map(|()| begin.elapsed())
            });
            let drained = sink.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            if drained.is_err() {
                // Otherwise the source would wait for its own deadline. Already closed is fine.
                let _ = self.source.shutdown(Shutdown::Both);
            }
            let taken = drained?;
            source.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            Ok(taken)
        })
    }

    /// Moves the video and the end of the stream, and compares what came out byte by byte (through its hash).
    pub fn verify(self, library: &Library) -> Outcome<()> {
        thread::scope(|scope| {
            let source = scope.spawn(|| {
                send_video(&self.source, library)?;
                self.source.shutdown(Shutdown::Write)?;
                Ok(())
            });
            let compared = compare(&self.sink, &[], library);
            let _ = self.sink.shutdown(Shutdown::Both);
            let sent: Outcome<()> = source.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            compared.and(sent)
        })
    }
}

/// Moves this thread to the last CPU; the proxy of the relay scenario has the first. Where they meet by chance decides
/// more than what is measured: the CPU time of one and the same proxy is then 0.08 or 0.16 s/GB.
pub fn leave_cpu_to_proxy() {
    if let Some(&last) = core_affinity::get_core_ids().unwrap_or_default().last() {
        core_affinity::set_for_current(last);
    }
}

/// One block, again and again, until `bytes` bytes are in the socket.
fn send_block(mut stream: &TcpStream, bytes: u64) -> Outcome<()> {
    let block = vec![0x5a; BLOCK_BYTES];
    let mut sent = 0;
    while sent < bytes {
        let wanted = (bytes - sent).min(BLOCK_BYTES as u64) as usize;
        match stream.write(&block[..wanted]) {
            Ok(taken) => sent += taken as u64,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(format!("the proxy stopped taking after {sent} bytes: {error}").into()),
        }
    }
    Ok(())
}

/// The whole video, by sendfile(2).
fn send_video(stream: &TcpStream, library: &Library) -> Outcome<()> {
    let mut sent = 0;
    while sent < VIDEO_BYTES {
        let wanted = (VIDEO_BYTES - sent) as usize;
        match rustix::fs::sendfile(stream, &library.video, Some(&mut sent), wanted) {
            Ok(0) => return Err("the source's file is shorter than it was".into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(format!("the proxy stopped taking after {sent} bytes: {error}").into()),
        }
    }
    Ok(())
}

/// Takes exactly `bytes` bytes off the socket without looking at them (MSG_TRUNC, tcp(7)).
fn discard(stream: &TcpStream, bytes: u64) -> Outcome<()> {
    // The kernel writes nothing here, so that these pages never come to exist: the length is all that it uses.
    let mut nowhere = vec![0_u8; SINK_BYTES];
    let mut taken = 0;
    while taken < bytes {
        let wanted = (bytes - taken).min(SINK_BYTES as u64) as usize;
        match rustix::net::recv(stream, &mut nowhere[..wanted], RecvFlags::TRUNC) {
            Ok((_, 0)) => {
                return Err(format!("the proxy ended the stream after {taken} of {bytes} bytes").into());
            }
            Ok((_, received)) => taken += received as u64,
            Err(Errno::INTR) => {}
            Err(error) => {
                return Err(format!("the proxy stalled after {taken} of {bytes} bytes: {error}").into());
            }
        }
    }
    Ok(())
}

/// Hashes `first` and then the socket to the end of its stream and compares with the video.
fn compare(mut stream: &TcpStream, first: &[u8], library: &Library) -> Outcome<()> {
    let mut hasher = Sha256::new();
    hasher.update(first);
    let mut taken = first.len() as u64;
    let mut block = vec![0; 256 * 1024];
    loop {
        match stream.read(&mut block)? {
            0 => break,
            received => {
                hasher.update(&block[..received]);
                taken += received as u64;
            }
        }
    }
    if taken != VIDEO_BYTES {
        return Err(format!("LOST BYTES: {taken} of {VIDEO_BYTES} came through").into());
    }
    if hasher.finalize()[..] != library.sha256 {
        return Err("CHANGED BYTES: the right number came through, with another sha256".into());
    }
    Ok(())
}

/// A GET whose answer's head has been read.
pub struct Answer {
    stream: TcpStream,
    /// What came along with the head.
    first: Vec<u8>,
    length: u64,
}

impl Answer {
    /// Connects, asks for `/name` and reads the head; the connection closes after this answer.
    pub fn begin(server: SocketAddr, name: &str) -> Outcome<Self> {
        let mut stream = TcpStream::connect(server)?;
        stream.set_read_timeout(Some(Duration::from_secs(STALL_S_MAX)))?;
        stream.set_nodelay(true)?;
        write!(stream, "GET /{name} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n")?;
        let mut received = Vec::with_capacity(HEAD_BYTES_MAX);
        loop {
            let before = received.len();
            received.resize(HEAD_BYTES_MAX, 0);
            let taken = stream.read(&mut received[before..])?;
            received.truncate(before + taken);
            if taken == 0 {
                return Err(format!("the server closed after {before} bytes of a head").into());
            }
            let mut headers = [httparse::EMPTY_HEADER; 64];
            let mut response = httparse::Response::new(&mut headers);
            if let httparse::Status::Complete(head) = response.parse(&received)? {
                if response.code != Some(200) {
                    return Err(format!("the server answered {:?}", response.code.unwrap_or_default()).into());
                }
                let length = response
                    .headers
                    .iter()
                    .find(|header| header.name.eq_ignore_ascii_case("content-length"))
                    .and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok())
                    .ok_or("the server sent no Content-Length")?;
                return Ok(Self { stream, first: received.split_off(head), length });
            }
        }
    }

    /// Discards the body. Fails unless it is `bytes` long.
    pub fn discard(self, bytes: u64) -> Outcome<()> {
        let first = self.first.len() as u64;
        if self.length != bytes || first > bytes {
            return Err(format!("the server announced {} bytes instead of {bytes}", self.length).into());
        }
        discard(&self.stream, bytes - first)
    }

    /// The same, no faster than `bytes_per_s`.
    pub fn discard_at(self, bytes: u64, bytes_per_s: u64) -> Outcome<()> {
        let first = self.first.len() as u64;
        if self.length != bytes || first > bytes {
            return Err(format!("the server announced {} bytes instead of {bytes}", self.length).into());
        }
        let began = Instant::now();
        let mut taken = first;
        while taken < bytes {
            let part = PACED_READ_BYTES.min(bytes - taken);
            discard(&self.stream, part)?;
            taken += part;
            let due = Duration::from_secs_f64(taken as f64 / bytes_per_s as f64);
            thread::sleep(due.saturating_sub(began.elapsed()));
        }
        Ok(())
    }

    /// Reads the body to the end of the stream and compares it with the video.
    pub fn verify(self, library: &Library) -> Outcome<()> {
        compare(&self.stream, &self.first, library)
    }
}

/// Time of one GET, connect to last byte.
pub fn timed_get(server: SocketAddr, name: &str, bytes: u64) -> Outcome<Duration> {
    let begin = Instant::now();
    Answer::begin(server, name)?.discard(bytes)?;
    Ok(begin.elapsed())
}

/// The same from the last CPU, as the relay's source and sink.
pub fn timed_get_aside(server: SocketAddr, name: &str, bytes: u64) -> Outcome<Duration> {
    aside(|| timed_get(server, name, bytes))
}

/// Runs `work` in a thread on the last CPU.
pub fn aside<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let client = scope.spawn(|| {
            leave_cpu_to_proxy();
            work()
        });
        client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
