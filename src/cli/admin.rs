//! `--admin`: binds the endpoint and starts it on the first core.
//!
//! Invariant: an address that cannot be bound is a wrong setting, found before the first core runs.

use std::net::SocketAddr;

use tokio::sync::watch;

use super::{
    args::Global,
    roles::{Listeners, RunError},
};
use crate::{
    exec::{self, Core},
    net::Listener,
    observe::{self, AdminAddress, Sources},
    wire::route::Transport,
};

/// The endpoint of a role, bound.
#[derive(Clone)]
pub(super) struct Admin {
    listeners: Listeners,
    address: SocketAddr,
    sources: Sources,
}

impl Admin {
    /// Binds what `--admin` says, if anything.
    pub(super) fn open(global: &Global, sources: Sources) -> Result<Option<Self>, RunError> {
        global.admin.map(|address| Self::bind(address, global, sources)).transpose()
    }

    /// Binds `address`.
    pub(super) fn bind(
        AdminAddress(address): AdminAddress,
        global: &Global,
        mut sources: Sources,
    ) -> Result<Self, RunError> {
        sources.executor = global.executor.to_string();
        let bound = Listener::bind(address, 1, Transport::Tcp);
        let (sockets, address) = bound.map_err(|source| RunError::Admin { address, source })?;
        Ok(Self { listeners: Listeners::of(sockets), address, sources })
    }

    /// Says where it is.
    pub(super) fn announce(&self) {
        println!("dashboard and metrics on http://{}/", self.address);
        if !self.address.ip().is_loopback() {
            tracing::warn!("--admin {}: whoever can reach it sees who asks for what", self.address);
        }
    }

    /// Answers on the first core until `stopping`.
    pub(super) fn start(&self, core: Core, stopping: &watch::Receiver<bool>) {
        if core == Core(0)
            && let Some(listener) = self.listeners.take(core)
        {
            exec::spawn(observe::serve(self.sources.clone(), listener, self.address, stopping.clone()));
        }
    }
}
