//! In: an address and a name. Out: many requests for it over kept connections, answered whole.
//!
//! Called by `main`. The same clients for both caches: one thread on the last CPU, which looks at heads and lets the kernel
//! throw the bodies away (tcp(7): MSG_TRUNC), so that it is the server that limits the rate.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::net::{RecvFlags, recv};

use crate::Outcome;
use crate::load::leave_cpu_to_proxy;

/// Connections, as many as players of a small event.
pub const CONNECTIONS: u64 = 64;
/// Requests over all of them.
pub const COUNT: u64 = 64 * 800;
/// Our answers' heads have 700 bytes, nginx's 300.
const HEAD_BYTES_MAX: usize = 2 << 10;
/// A server that sends nothing for so long is broken.
const STALL_MAX: Duration = Duration::from_secs(20);

/// Asks for `name`, which has `bytes` bytes, [`COUNT`] times.
pub fn ask_all(server: SocketAddr, name: &str, bytes: u64) -> Outcome<()> {
    thread::scope(|scope| {
        let client = scope.spawn(|| {
            leave_cpu_to_proxy();
            converse(server, name, bytes)
        });
        client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// One connection.
struct Client {
    stream: TcpStream,
    /// Of the answer that is on its way; none until its head has come.
    missing: Option<u64>,
    left: u64,
}

fn converse(server: SocketAddr, name: &str, bytes: u64) -> Outcome<()> {
    let request = format!("GET /{name} HTTP/1.1\r\nHost: films\r\n\r\n");
    let ready = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut clients = Vec::new();
    for number in 0..CONNECTIONS {
        let stream = TcpStream::connect(server)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        epoll::add(&ready, &stream, epoll::EventData::new_u64(number), epoll::EventFlags::IN)?;
        (&stream).write_all(request.as_bytes())?;
        clients.push(Client { stream, missing: None, left: COUNT / CONNECTIONS - 1 });
    }
    let mut events = Vec::with_capacity(CONNECTIONS as usize);
    let mut thrown_away = vec![0; bytes as usize];
    let mut unfinished = CONNECTIONS;
    let mut moved_at = Instant::now();
    while unfinished > 0 {
        events.clear();
        let second = rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 };
        epoll::wait(&ready, rustix::buffer::spare_capacity(&mut events), Some(&second))?;
        if !events.is_empty() {
            moved_at = Instant::now();
        } else if moved_at.elapsed() > STALL_MAX {
            return Err("the server sends nothing".into());
        }
        for event in &events {
            let client = &mut clients[event.data.u64() as usize];
            if !client.receive(bytes, &mut thrown_away)? {
                continue;
            }
            client.missing = None;
            if client.left == 0 {
                unfinished -= 1;
                continue;
            }
            client.left -= 1;
            // A request is small, and nothing else waits in the socket.
            (&client.stream).write_all(request.as_bytes())?;
        }
    }
    Ok(())
}

impl Client {
    /// Takes what has come; true once the answer is whole.
    fn receive(&mut self, bytes: u64, thrown_away: &mut [u8]) -> Outcome<bool> {
        if self.missing.is_none() {
            let mut head = [0; HEAD_BYTES_MAX];
            let Some(came) = some(recv(&self.stream, &mut head, RecvFlags::empty()).map(|(came, _)| came))?
            else {
                return Ok(false);
            };
            let end = head[..came].windows(4).position(|end| end == b"\r\n\r\n");
            let Some(end) = end.filter(|_| head.starts_with(b"HTTP/1.1 200 ")) else {
                return Err("what came is no whole head of an answer".into());
            };
            let more = bytes.checked_sub((came - end - 4) as u64);
            self.missing = Some(more.ok_or("the answer is longer than the segment")?);
        }
        while let Some(missing) = self.missing.filter(|&missing| missing > 0) {
            let max = thrown_away.len().min(missing as usize);
            match some(recv(&self.stream, &mut thrown_away[..max], RecvFlags::TRUNC).map(|(_, came)| came))? {
                Some(came) => self.missing = Some(missing - came as u64),
                None => return Ok(false),
            }
        }
        Ok(self.missing == Some(0))
    }
}

/// Bytes that came, none if that would have to be waited for.
fn some(came: rustix::io::Result<usize>) -> Outcome<Option<usize>> {
    match came {
        Ok(0) => Err("the server closed a kept connection".into()),
        Ok(came) => Ok(Some(came)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error.into()),
    }
}
