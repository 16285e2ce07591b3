//! In: an address and a name. Out: many requests for it over kept connections, answered whole.
//!
//! Called by `main`. The same clients for both caches: blocking threads, one for each connection.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use crate::Outcome;

/// Connections, as many as players of a small event.
pub const CONNECTIONS: u64 = 64;
/// Requests over all of them.
pub const COUNT: u64 = 64 * 400;

/// Asks for `name`, which has `bytes` bytes, [`COUNT`] times.
pub fn ask_all(server: SocketAddr, name: &str, bytes: u64) -> Outcome<()> {
    thread::scope(|scope| {
        let clients: Vec<_> =
            (0..CONNECTIONS).map(|_| scope.spawn(|| converse(server, name, bytes))).collect();
        clients
            .into_iter()
            .try_for_each(|client| client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

fn converse(server: SocketAddr, name: &str, bytes: u64) -> Outcome<()> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let request = format!("GET /{name} HTTP/1.1\r\nHost: films\r\n\r\n");
    let mut received = vec![0; 256 << 10];
    for _ in 0..COUNT / CONNECTIONS {
        stream.write_all(request.as_bytes())?;
        let (mut known, mut whole) = (0, None);
        while whole.is_none_or(|whole| known < whole) {
            match stream.read(&mut received[known..])? {
                0 => return Err("the server closed a kept connection".into()),
                came => known += came,
            }
            if whole.is_none() {
                let end = received[..known].windows(4).position(|bytes| bytes == b"\r\n\r\n");
                whole = end.map(|end| end + 4 + bytes as usize);
            }
        }
        if !received.starts_with(b"HTTP/1.1 200 ") || whole != Some(known) {
            return Err(format!("an answer of {known} bytes is no whole segment").into());
        }
    }
    Ok(())
}
