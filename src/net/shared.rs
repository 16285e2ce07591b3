//! A connection that is not bound to a core: what several cores use in turn, or what waits in a pool for any core.
//!
//! In: a [`Socket`](super::Socket), which belongs to one core because its readiness does. Out: the same connection for
//! another core. Invariant: the connection is closed in order when its last handle goes, whatever core holds it.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Weak},
};

use rustix::net::Shutdown;
use socket2::SockRef;

use super::{TcpInfo, mptcp};
use crate::wire::route::Transport;

/// A handle of a connection; clones share it. Who may read or write when is the holders' agreement.
#[derive(Clone, Debug)]
pub struct Shared(Arc<Connection>);

/// A connection to look at, which it does not keep open.
#[derive(Clone, Debug)]
pub struct Glimpse(Weak<Connection>);

impl Glimpse {
    /// What the kernel has measured of it, and the name of its congestion control; `None` once it is closed.
    ///
    /// To be called on the core that has the connection: there, nobody can close it meanwhile.
    pub fn look(&self) -> Option<(TcpInfo, String)> {
        let shared = Shared(self.0.upgrade()?);
        let congestion = SockRef::from(&shared).tcp_congestion().unwrap_or_default();
        let name = String::from_utf8_lossy(&congestion);
        Some((shared.tcp_info().ok()?, name.trim_end_matches('\0').to_owned()))
    }
}

#[derive(Debug)]
struct Connection {
    fd: OwnedFd,
    transport: Transport,
    splices: bool,
}

impl Drop for Connection {
    fn drop(&mut self) {
        // A wait that some core gave up may still hold the open file; this makes it fire.
        let _ = rustix::net::shutdown(&self.fd, Shutdown::Both);
    }
}

impl AsFd for Shared {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

impl Shared {
    pub(super) fn new(fd: OwnedFd, transport: Transport, splices: bool) -> Self {
        Self(Arc::new(Connection { fd, transport, splices }))
    }

    pub(super) fn transport(&self) -> Transport {
        self.0.transport
    }

    /// A sample of the connection; of all subflows together if it is MPTCP.
    pub(super) fn tcp_info(&self) -> io::Result<TcpInfo> {
        match self.transport() {
            Transport::Tcp => TcpInfo::of(self.as_fd()),
            Transport::Mptcp => mptcp::tcp_info(self.as_fd()),
        }
    }

    /// A handle that does not keep the connection open.
    pub fn glimpse(&self) -> Glimpse {
        Glimpse(Arc::downgrade(&self.0))
    }

    pub(super) fn splices(&self) -> bool {
        self.0.splices
    }

    /// Whether dropping this handle closes the connection.
    pub(super) fn is_sole_owner(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    /// Ends the connection both ways for all handles, without waiting for the last of them to be dropped.
    pub fn close(&self) {
        let _ = rustix::net::shutdown(&self.0.fd, Shutdown::Both);
    }
}
