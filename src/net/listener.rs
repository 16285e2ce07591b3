//! Listening sockets: one per core on the same address (SO_REUSEPORT, socket(7)), so that the kernel spreads
//! connections and no core waits for another; or those that the process was started with (sd_listen_fds(3)).
//!
//! Invariant: no connection that the kernel has accepted for a socket of ours is reset because this process stops.

use std::{
    cell::Cell,
    io,
    net::{SocketAddr, TcpListener},
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use futures_util::{FutureExt, pin_mut, select_biased};
use listenfd::ListenFd;
use rustix::{io::Errno, net::SocketFlags};
use socket2::{Domain, Protocol, Socket as RawSocket, Type};
use tokio::sync::watch;

use super::{Limit, Socket, Tally, Told, congestion, hand_over::Port, mptcp, pipe::close_idle_pipes};
use crate::{
    exec::{self, Interest, Watch},
    wire::route::Transport,
};

/// Connections waiting to be accepted: a crowd that comes within a second. The kernel takes net.core.somaxconn if that is
/// less, 4096 unless somebody has raised it (tuning/edge-many-clients.conf).
const BACKLOG: i32 = 32_768;
/// How long accepting rests when the process has no descriptor or memory left: long enough not to spin, short enough
/// that a client does not give up.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(50);
/// How long binding waits for a port. The kernel takes an io_uring down some 10 ms after its process is gone, later on a
/// busy machine, and what it polls listens until then; who starts a killed process again is faster.
const FREED_WITHIN: Duration = Duration::from_secs(2);
const FREED_PAUSE: Duration = Duration::from_millis(5);

/// Times that accepting rested, in this process.
static EXHAUSTED: Tally = Tally::new();
/// A listening socket, to be taken by a core.
#[derive(Debug)]
pub struct BoundSocket {
    fd: OwnedFd,
    port: Arc<Port>,
}

/// The sockets that the process was started with are of no use.
#[derive(Debug, thiserror::Error)]
pub enum InheritError {
    /// Not a listening TCP socket.
    #[error(
        "a socket that the process was started with cannot be listened on: {0} (ListenStream=HOST:PORT, Accept=no)"
    )]
    Socket(#[from] io::Error),
    /// Each must have a core.
    #[error(
        "the process was started with {sockets} sockets for {cores} cores: give it one, or no more than cores"
    )]
    TooMany {
        /// Sockets given.
        sockets: usize,
        /// `--cores`.
        cores: usize,
    },
    /// They are one role's.
    #[error(
        "the process was started with sockets of different addresses, {one} and {other}: start one process for each"
    )]
    Addresses {
        /// That of the first.
        one: SocketAddr,
        /// That of another.
        other: SocketAddr,
    },
}

/// A listening socket on this core.
pub struct Listener {
    watch: Watch,
    fd: OwnedFd,
    port: Arc<Port>,
    /// Once the process stops: the moment until which connections may still come.
    until: Cell<Option<Instant>>,
}

impl Listener {
    /// Binds `address` once for each of `cores` and returns the sockets and the address, with the port the kernel
    /// chose where it was 0. [`Transport::Mptcp`] takes both kinds of peers, or plain TCP only where the kernel has no
    /// MPTCP.
    ///
    /// # Errors
    /// Those of bind(2): the address is in use, and still is after two seconds, or not this machine's.
    pub fn bind(
        address: SocketAddr,
        cores: usize,
        transport: Transport,
    ) -> io::Result<(Vec<BoundSocket>, SocketAddr)> {
        // A probe without SO_REUSEPORT: another process of the same user on this address would silently share it.
        if address.port() != 0 {
            let probe = RawSocket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
            probe.set_reuse_address(true)?;
            bind_once_free(&probe, address)?;
        }
        Self::join(address, cores, transport)
    }

    /// The same, beside another process that listens there already and is about to stop.
    ///
    /// # Errors
    /// Those of bind(2): the address is in use by another user or without SO_REUSEPORT, or not this machine's.
    pub fn join(
        mut address: SocketAddr,
        cores: usize,
        transport: Transport,
    ) -> io::Result<(Vec<BoundSocket>, SocketAddr)> {
        let mut listeners = Vec::<OwnedFd>::with_capacity(cores);
        for _ in 0..cores {
            let socket = listening_socket(Domain::for_address(address), transport)?;
            bind_beside(&socket, address)?;
            socket.set_nonblocking(true)?;
            socket.listen(BACKLOG)?;
            address = socket.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
            listeners.push(socket.into());
        }
        Ok((with_port(listeners, Port::new(address, cores, false)), address))
    }

    /// Whether [`Listener::bind`] could bind `address`, or [`Listener::join`] where it comes `beside_another`. Nothing
    /// listens: a client whom the kernel gave to this socket would be reset when it closes.
    ///
    /// # Errors
    /// Those of bind(2), as there.
    pub fn may_bind(address: SocketAddr, beside_another: bool) -> io::Result<()> {
        let socket = RawSocket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if beside_another {
            return bind_beside(&socket, address);
        }
        socket.set_reuse_address(true)?;
        bind_once_free(&socket, address)
    }

    /// The sockets that the process was started with, shared out to `cores`, if there are any: LISTEN_FDS and LISTEN_PID
    /// of sd_listen_fds(3).
    ///
    /// # Errors
    /// [`InheritError`].
    pub fn inherited(cores: usize) -> Result<Option<(Vec<BoundSocket>, SocketAddr)>, InheritError> {
        let mut given = ListenFd::from_env();
        let sockets = (0..given.len())
            .filter_map(|index| given.take_tcp_listener(index).transpose())
            .collect::<io::Result<Vec<TcpListener>>>()?;
        let Some(first) = sockets.first() else { return Ok(None) };
        if sockets.len() > cores {
            return Err(InheritError::TooMany { sockets: sockets.len(), cores });
        }
        let address = first.local_addr()?;
        for socket in &sockets {
            let other = socket.local_addr()?;
            if other != address {
                return Err(InheritError::Addresses { one: address, other });
            }
            socket.set_nonblocking(true)?;
        }
        let shared = sockets.iter().cycle().take(cores).map(|socket| Ok(socket.try_clone()?.into()));
        let fds = shared.collect::<io::Result<_>>()?;
        Ok(Some((with_port(fds, Port::new(address, cores, true)), address)))
    }

    /// Takes over one of the sockets on this core.
    pub fn new(BoundSocket { fd, port }: BoundSocket) -> Self {
        Self { watch: Watch::new(fd.as_raw_fd()), fd, port, until: Cell::new(None) }
    }

    /// The next connection; none once `stopping` is true and all that had come before are out. Where another process has
    /// joined the port, new ones go there from then on.
    pub async fn next(&self, stopping: &mut watch::Receiver<bool>) -> Option<Socket> {
        if self.until.get().is_none() {
            // An error says that nobody is left who could ask for it; then there is nobody to serve for either.
            let stops = stopping.wait_for(|stops| *stops).fuse();
            let accepts = self.accept().fuse();
            pin_mut!(stops, accepts);
            select_biased! {
                _ = stops => self.until.set(Some(self.port.leave(&self.fd))),
                accepted = accepts => return usable(accepted),
            }
        }
        if self.port.is_lent() {
            // What comes now is for whoever goes on with the socket.
            return None;
        }
        let left = self.until.get()?.saturating_duration_since(Instant::now());
        usable(exec::timeout(left, self.accept()).await.ok()?)
    }

    /// The next connection.
    ///
    /// # Errors
    /// Only when the listening socket itself is of no more use; a lack of descriptors is waited out.
    async fn accept(&self) -> io::Result<Socket> {
        loop {
            match rustix::net::accept_with(&self.fd, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok(fd) => match Socket::new(fd) {
                    Ok(socket) => return Ok(socket),
                    Err(error) => tracing::debug!(%error, "a connection was gone before it was accepted"),
                },
                Err(Errno::AGAIN) => self.watch.ready(Interest::Read).await?,
                Err(Errno::MFILE | Errno::NFILE) if close_idle_pipes() => {}
                Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                    Limit::Accept.hit();
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

/// Binds, and waits for whoever has just left the address: see [`FREED_WITHIN`].
fn bind_once_free(socket: &RawSocket, address: SocketAddr) -> io::Result<()> {
    let until = Instant::now() + FREED_WITHIN;
    loop {
        match socket.bind(&address.into()) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < until => {
                // No core runs yet.
                thread::sleep(FREED_PAUSE);
            }
            bound => return bound,
        }
    }
}

/// Binds where another socket may listen already.
fn bind_beside(socket: &RawSocket, address: SocketAddr) -> io::Result<()> {
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())
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

fn with_port(fds: Vec<OwnedFd>, port: Port) -> Vec<BoundSocket> {
    let port = Arc::new(port);
    fds.iter().for_each(congestion::begin_unpaced);
    fds.into_iter().map(|fd| BoundSocket { fd, port: port.clone() }).collect()
}

fn usable(accepted: io::Result<Socket>) -> Option<Socket> {
    accepted
        .inspect_err(
            |error| tracing::error!(%error, "the listening socket failed: nobody is accepted any more"),
        )
        .ok()
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.port.close(&self.fd);
    }
}
