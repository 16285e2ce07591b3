//! A connection that is not bound to a core: what several cores use in turn, or what waits in a pool for any core.
//!
//! In: a [`Socket`](super::Socket), which belongs to one core because its readiness does. Out: the same connection for
//! another core. Invariant: the connection is closed in order when its last handle goes, whatever core holds it.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use rustix::net::Shutdown;

use crate::wire::route::Transport;

/// A handle of a connection; clones share it. Who may read or write when is the holders' agreement.
#[derive(Clone, Debug)]
pub struct Shared(Arc<Connection>);

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
