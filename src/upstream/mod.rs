//! The upstream: fetches from the root, cuts the body into frames and stripes them over the lanes.
//!
//! In: lanes of downstreams, over relays or direct. Out: requests to the root; the responses, framed, on the lanes. A body
//! walks `fetch` (its head only) → `source` (root to pipe) → `transfer` (its number) → `lane` (pipe to lane). Called by the
//! command line, once per core with the same [`Upstream`].
//!
//! Invariant: nothing is fetched, and nothing but one bounded hello is stored, for a peer that has not authenticated.

mod directory;
mod fetch;
mod lane;
mod registry;
mod root_pool;
mod source;
mod transfer;

#[cfg(test)]
mod tests;

use std::{cell::Cell, io, os::fd::OwnedFd, path::Path, rc::Rc, sync::Arc, time::Duration};

use tokio::sync::watch;

use self::{lane::LaneError, registry::Registry, root_pool::RootPool};
use crate::{
    exec,
    lanes::handshake::{self, HandshakeFailed},
    net::{Legs, Listener, Socket},
    root::files::open_directory,
    wire::{handshake::Refusal, key_ring::KeyRing, reason::Reason, route::HopAddr},
};

/// Transfers that run get this long after SIGTERM.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);
/// How often it is looked whether they have ended.
const DRAIN_LOOK: Duration = Duration::from_millis(20);

/// Where the upstream has its answers from.
#[derive(Debug)]
pub enum RootOrigin {
    /// `HOST:PORT` of an HTTP/1.1 server.
    Http(Arc<str>),
    /// A directory whose files the upstream reads itself.
    Dir(OwnedFd),
}

/// `--root` is of no use.
#[derive(Debug, thiserror::Error)]
pub enum RootOriginError {
    /// Another scheme, most likely https.
    #[error(
        "--root '{text}': only http:// is spoken to the root (put the upstream next to it, or a TLS proxy between)"
    )]
    Scheme {
        /// What was given.
        text: String,
    },
    /// More than a host and a port.
    #[error("--root '{text}': write http://HOST:PORT without user, path or query")]
    NotOnlyHost {
        /// What was given.
        text: String,
    },
    /// No URL, and no directory.
    #[error("--root: {source} (write http://HOST:PORT or a directory)")]
    Directory {
        /// Names the directory.
        source: io::Error,
    },
}

impl std::str::FromStr for RootOrigin {
    type Err = RootOriginError;

    /// Reads the value of `--root`: `http://HOST[:PORT]`, or a directory, which is opened.
    fn from_str(text: &str) -> Result<Self, RootOriginError> {
        if !text.contains("://") {
            let opened = open_directory(Path::new(text));
            return opened.map(RootOrigin::Dir).map_err(|source| RootOriginError::Directory { source });
        }
        let other = || RootOriginError::NotOnlyHost { text: text.to_owned() };
        let uri: ::http::Uri = text.parse().map_err(|_| other())?;
        if uri.scheme_str() != Some("http") {
            return Err(RootOriginError::Scheme { text: text.to_owned() });
        }
        let authority = uri.authority().ok_or_else(other)?;
        if authority.as_str().contains('@') || !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(other());
        }
        Ok(Self::Http(format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80)).into()))
    }
}

/// An upstream, shared by its cores.
#[derive(Debug)]
pub struct Upstream {
    root: RootOrigin,
    keys: Arc<KeyRing>,
    legs: Legs,
    /// Tells the downstream which lanes lead to this process.
    instance: u64,
    registry: Arc<Registry>,
    pool: Arc<RootPool>,
}

/// Why a connection is no lane, or no longer one.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("{0}")]
    Hello(#[from] HandshakeFailed),
    #[error(
        "downstream: this is the upstream, but the route goes on to {next} (name the upstream as the last hop of --path)"
    )]
    RouteGoesOn { next: HopAddr },
    #[error("{0}")]
    Lane(#[from] LaneError),
}

impl From<io::Error> for ServeError {
    fn from(error: io::Error) -> Self {
        LaneError::from(error).into()
    }
}

impl Upstream {
    /// An upstream of `root` with a new instance number.
    ///
    /// # Errors
    /// The kernel has no randomness for the instance's number.
    pub fn new(root: RootOrigin, keys: Arc<KeyRing>, legs: Legs) -> Result<Self, getrandom::Error> {
        let instance = getrandom::u64()?;
        Ok(Self { root, keys, legs, instance, registry: Arc::default(), pool: Arc::default() })
    }
}

/// Serves lanes on this core until `shutdown` turns true; then transfers that run may finish.
pub async fn serve(upstream: Arc<Upstream>, listener: Listener, mut shutdown: watch::Receiver<bool>) {
    let running = Rc::new(Cell::new(0_usize));
    while let Some(socket) = listener.next(&mut shutdown).await {
        let (upstream, running, shutdown) = (upstream.clone(), running.clone(), shutdown.clone());
        exec::spawn(async move {
            running.set(running.get() + 1);
            serve_lane(upstream, socket, shutdown).await;
            running.set(running.get() - 1);
        });
    }
    drop(listener);
    let drained = async {
        while running.get() > 0 {
            exec::sleep(DRAIN_LOOK).await;
        }
    };
    if exec::timeout(DRAIN_DEADLINE, drained).await.is_err() {
        tracing::warn!(
            lanes = running.get(),
            "transfers were cut off: they did not end within {DRAIN_DEADLINE:?}"
        );
    }
}

/// Authenticates one connection and serves it as a lane until it ends; what went wrong is logged with the peer's name.
pub async fn serve_lane(upstream: Arc<Upstream>, socket: Socket, mut shutdown: watch::Receiver<bool>) {
    let peer = socket.peer().ok();
    if let Err(error) = authenticate_and_run(&upstream, &socket, &mut shutdown).await {
        tracing::info!(peer = peer.map(tracing::field::display), "{error}");
    }
}

async fn authenticate_and_run(
    upstream: &Arc<Upstream>,
    socket: &Socket,
    shutdown: &mut watch::Receiver<bool>,
) -> Result<(), ServeError> {
    socket.set_congestion(&upstream.legs.lane, socket.peer()?.ip());
    let hello = handshake::receive(socket, &upstream.keys).await?;
    if let Some((next, _)) = hello.route().split_first() {
        let error = ServeError::RouteGoesOn { next: next.clone() };
        let refusal = hello.refuse(Refusal::NotAllowed, &Reason::new(&error.to_string()));
        socket.send_all(&refusal, false).await?;
        socket.finish();
        return Err(error);
    }
    socket.send_all(&hello.accept(upstream.instance), false).await?;
    tracing::debug!(mptcp = ?socket.mptcp(), "a lane stands");
    Ok(lane::run(upstream, socket, shutdown).await?)
}
