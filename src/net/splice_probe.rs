//! Finds out once whether this kernel (or sandbox) splices between sockets and pipes.
//!
//! Out: [`payload_move`], which the start of every role logs; and whether MPTCP sockets are a source worth splicing from.

use std::{
    io,
    io::Write,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    io::{Errno, ioctl_fionread},
    pipe::{SpliceFlags, fcntl_setpipe_size, pipe, splice},
};
use socket2::{Domain, Socket as RawSocket, Type};

use super::mptcp;

/// How payload moves through this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadMove {
    /// By splice(2) and sendfile(2); it never enters user memory.
    Splice,
    /// Through pooled buffers, because splice was refused or `PLAIT_NO_SPLICE` is set.
    Copy,
}

/// The answer of the probe, made at the first call.
pub fn payload_move() -> PayloadMove {
    static ANSWER: OnceLock<PayloadMove> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        if std::env::var_os("PLAIT_NO_SPLICE").is_some_and(|value| value != "0") {
            tracing::info!("payload is copied through buffers: PLAIT_NO_SPLICE is set");
            return PayloadMove::Copy;
        }
        match probe() {
            Ok(()) => {
                tracing::info!("payload moves by splice");
                PayloadMove::Splice
            }
            Err(error) => {
                tracing::warn!(%error, "payload is copied through buffers: splice was refused (expect 4 times the CPU)");
                PayloadMove::Copy
            }
        }
    })
}

/// Sends one byte socket → pipe → socket over loopback.
fn probe() -> io::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let mut near = TcpStream::connect(listener.local_addr()?)?;
    let far = listener.accept()?.0;
    let (read, write) = pipe()?;
    near.write_all(b"x")?;
    if splice(&far, None, &write, None, 1, SpliceFlags::MOVE)? == 1
        && splice(&read, None, &far, None, 1, SpliceFlags::MOVE)? == 1
    {
        return Ok(());
    }
    Err(io::Error::other("splice moved nothing"))
}

/// Whether splice(2) takes payload from an MPTCP socket without copying it; the probe is made at the first call.
///
/// Towards an MPTCP socket, splice and sendfile always work and save one of two copies. From one, Linux 6.18 copies
/// into fresh pages, which costs more than a pooled buffer: relaying MPTCP to MPTCP takes 0.55 CPU s/GB so, 0.31 by copies.
pub(super) fn mptcp_splices() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| match mptcp::stream_socket(Domain::IPV4).map_err(io::Error::other).and_then(hands_over_pages) {
        Ok(true) => {
            tracing::info!("payload from MPTCP sockets moves by splice");
            true
        }
        Ok(false) => {
            tracing::info!("payload from MPTCP sockets is copied through buffers: this kernel's splice copies it, too");
            false
        }
        Err(error) => {
            tracing::info!(%error, "payload from MPTCP sockets is copied through buffers: the probe of splice failed");
            false
        }
    })
}

/// More than a pipe of [`PROBE_SLOTS`] holds by single pages, and no more than the kernel puts into one fragment of a
/// packet (32 KiB).
const PROBE_PAGES: usize = 6;
const PROBE_SLOTS: usize = 4;
/// How long the probe waits for its bytes on loopback, and how often it looks.
const PROBE_DEADLINE: Duration = Duration::from_secs(1);
const PROBE_LOOK: Duration = Duration::from_micros(50);

/// Whether splice hands over the pages of received packets. A slot of a pipe then takes a whole fragment; a splice that
/// copies fills each slot with one page of its own.
fn hands_over_pages(listener: RawSocket) -> io::Result<bool> {
    let near = RawSocket::new(Domain::IPV4, Type::STREAM, listener.protocol()?)?;
    listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    listener.listen(1)?;
    near.connect(&listener.local_addr()?)?;
    let far = listener.accept()?.0;
    let page_bytes = rustix::param::page_size();
    let bytes = PROBE_PAGES * page_bytes;
    (&near).write_all(&vec![0; bytes])?;
    let until = Instant::now() + PROBE_DEADLINE;
    while ioctl_fionread(&far)? < bytes as u64 && Instant::now() < until {
        thread::sleep(PROBE_LOOK);
    }
    far.set_nonblocking(true)?;
    let (_read, write) = pipe()?;
    fcntl_setpipe_size(&write, PROBE_SLOTS * page_bytes)?;
    let mut moved = 0;
    // EAGAIN: the pipe is full, or the bytes did not come.
    while moved < bytes {
        match splice(&far, None, &write, None, bytes - moved, SpliceFlags::NONBLOCK | SpliceFlags::MOVE) {
            Err(Errno::AGAIN) | Ok(0) => break,
            more => moved += more?,
        }
    }
    Ok(moved > PROBE_SLOTS * page_bytes)
}

#[cfg(test)]
mod tests {
    use socket2::Protocol;

    use super::*;

    #[test]
    fn a_tcp_socket_hands_over_its_pages() {
        // The kernel puts single pages into packets while it has no larger piece of memory.
        let handed_over = (0..100).any(|_| {
            let listener = RawSocket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
            hands_over_pages(listener).unwrap()
        });
        assert!(handed_over);
    }
}
