//! Listening sockets: one per core on the same address (SO_REUSEPORT, socket(7)), so that the kernel spreads
//! connections and no core waits for another.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use rustix::{io::Errno, net::SocketFlags};
use socket2::{Domain, Protocol, Socket as RawSocket, Type};

use super::{Socket, Tally, Told, mptcp, pipe::close_idle_pipes};
use crate::{
    exec::{self, Interest, Watch},
    wire::route::Transport,
};

/// Connections waiting to be accepted: net.core.somaxconn's default, which caps it anyway.
const BACKLOG: i32 = 4096;
/// How long accepting rests when the process has no descriptor or memory left: long enough not to spin, short enough
/// that a client does not give up.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);

/// Times that accepting rested, in this process.
static EXHAUSTED: Tally = Tally::new();

/// A listening socket on this core.
pub struct Listener {
    watch: Watch,
    fd: OwnedFd,
}

impl Listener {
    /// Binds `address` once for each of `cores` and returns the descriptors and the address, with the port the kernel
    /// chose where it was 0. [`Transport::Mptcp`] takes both kinds of peers, or plain TCP only where the kernel has no
    /// MPTCP.
    ///
    /// # Errors
    /// Those of bind(2): the address is in use or not this machine's.
    pub fn bind(
        mut address: SocketAddr,
        cores: usize,
        transport: Transport,
    ) -> io::Result<(Vec<OwnedFd>, SocketAddr)> {
        let mut listeners = Vec::with_capacity(cores);
        // A probe without SO_REUSEPORT: another process of the same user on this address would silently share it.
        if address.port() != 0 {
            let probe = RawSocket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
            probe.set_reuse_address(true)?;
            probe.bind(&address.into())?;
        }
        for _ in 0..cores {
            let socket = listening_socket(Domain::for_address(address), transport)?;
            socket.set_reuse_address(true)?;
            socket.set_reuse_port(true)?;
            socket.set_nonblocking(true)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            address = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
            listeners.push(socket.into());
        }
        Ok((listeners, address))
    }

    /// Takes over one of the descriptors of [`Listener::bind`] on this core.
    pub fn new(fd: OwnedFd) -> Self {
        Self { watch: Watch::new(fd.as_raw_fd()), fd }
    }

    /// The next connection.
    ///
    /// # Errors
    /// Only when the listening socket itself is of no more use; a lack of descriptors is waited out.
    pub async fn accept(&self) -> io::Result<Socket> {
        loop {
            match rustix::net::accept_with(&self.fd, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok(fd) => match Socket::new(fd) {
                    Ok(socket) => return Ok(socket),
                    Err(error) => tracing::debug!(%error, "a connection was gone before it was accepted"),
                },
                Err(Errno::AGAIN) => self.watch.ready(Interest::Read).await?,
                Err(Errno::MFILE | Errno::NFILE) if close_idle_pipes() => {}
                Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                    if let Some(Told { since, .. }) = EXHAUSTED.count() {
                        tracing::warn!(%error, since, "no connection can be accepted now: raise `ulimit -n` or lower the load");
                    }
                    // They wait in the backlog meanwhile; a poll would say at once that they are there.
                    exec::sleep(EXHAUSTED_PAUSE).await;
                }
                // accept(2): errors of the new connection; the listener goes on.
                Err(
                    Errno::CONNABORTED
                    | Errno::INTR
                    | Errno::PROTO
                    | Errno::NETDOWN
                    | Errno::NETUNREACH
                    | Errno::HOSTDOWN
                    | Errno::HOSTUNREACH
                    | Errno::PERM
                    | Errno::TIMEDOUT,
                ) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn listening_socket(domain: Domain, transport: Transport) -> io::Result<RawSocket> {
    if transport == Transport::Mptcp {
        match mptcp::stream_socket(domain) {
            Ok(socket) => return Ok(socket),
            Err(missing) => tracing::debug!("only plain TCP is accepted: {missing}"),
        }
    }
    RawSocket::new(domain, Type::STREAM, Some(Protocol::TCP))
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Fires the armed poll, which holds the open file.
        let _ = rustix::net::shutdown(&self.fd, rustix::net::Shutdown::Both);
    }
}
