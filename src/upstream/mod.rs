//! The upstream: fetches from the root, cuts the body into frames and stripes them over the lanes.
//!
//! In: lanes of downstreams, over relays or direct. Out: requests to the root; the responses, framed, on the lanes. A body
//! walks `fetch` (its head only) → `source` (root to pipe) → `transfer` (its number) → `lane` (pipe to lane). Called by the
//! command line, once per core with the same [`Upstream`].
//!
//! Invariant: nothing is fetched, and nothing but one bounded hello is stored, for a peer that has not authenticated.

mod directory;
mod fetch;
mod filler;
mod home;
mod keep;
mod lane;
mod registry;
mod root_pool;
mod source;
mod transfer;
mod upload;
mod with_body;

#[cfg(test)]
mod tests;

use std::{
    future::Future,
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    path::Path,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::watch;

use self::{home::Homes, keep::Keep, lane::Course, registry::Registry, root_pool::RootPool};
use crate::{
    exec::{self, Core, MailFull},
    http::traffic::{Histogram, HistogramReport, TIME_BOUNDS_S},
    lanes::{
        census::{Counted, End},
        door::{Door, Knock, Wrong},
        handshake::{self, HandshakeFailed},
    },
    mp::manager::Placement,
    net::{Crowded, Legs, Listener, Seat, Shared, Socket, keep_alive::ASK_SELDOM},
    root::files::open_directory,
    wire::{handshake::Refusal, key_ring::KeyRing, reason::Reason, route::HopAddr},
};

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
    door: Arc<Door>,
    /// Tells the downstream which lanes lead to this process.
    instance: u64,
    registry: Arc<Registry>,
    pool: Arc<RootPool>,
    figures: RootFigures,
    /// Connections on all cores.
    present: AtomicUsize,
    /// Some core has said that it waits no longer for them; they go with it, and the others find nobody left.
    cuts_off: AtomicBool,
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
    #[error("upstream: too many lanes: {0} (start it with a higher --max-lanes or --max-lanes-per-address)")]
    Crowded(#[source] Crowded),
    #[error("the lane was lost: {0}")]
    Lost(#[from] io::Error),
}

impl Upstream {
    /// An upstream of `root` with a new instance number. The frames of all transfers that nobody has acknowledged take
    /// `kept_bytes_max` and a few KiB each; `placement` says whether the lanes of one meet on a core.
    ///
    /// # Errors
    /// The kernel has no randomness for the instance's number.
    pub fn new(
        root: RootOrigin,
        keys: Arc<KeyRing>,
        legs: Legs,
        door: Arc<Door>,
        kept_bytes_max: usize,
        placement: Placement,
    ) -> Result<Self, getrandom::Error> {
        let mut instance = [0; 8];
        exec::fill_random(&mut instance)?;
        let registry = Arc::new(Registry::new(Keep::new(kept_bytes_max), Homes::new(placement)));
        let instance = u64::from_be_bytes(instance);
        let figures = RootFigures {
            requests: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            first_byte: Histogram::new(TIME_BOUNDS_S),
        };
        Ok(Self {
            root,
            keys,
            legs,
            door,
            instance,
            registry,
            pool: Arc::default(),
            figures,
            present: AtomicUsize::new(0),
            cuts_off: AtomicBool::new(false),
        })
    }
}

#[cfg(test)]
impl Upstream {
    /// Transfers that run, and bytes of frames that are kept.
    pub(crate) fn load(&self) -> (usize, usize) {
        let (transfers, kept, _) = self.registry.load();
        (transfers, kept)
    }
}

/// What an upstream does, at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UpstreamReport {
    /// Transfers that run.
    pub transfers: usize,
    /// Bytes of frames that nobody has acknowledged.
    pub kept_bytes: usize,
    /// How many there may be.
    pub kept_bytes_max: usize,
    /// Requests to the root since the start.
    pub root_requests: u64,
    /// Of those, the ones without an answer of use.
    pub root_failures: u64,
    /// From the request to the head of the root's answer, seconds.
    pub root_first_byte: HistogramReport,
}

/// How the root answers, since the start.
#[derive(Debug)]
struct RootFigures {
    requests: AtomicU64,
    failures: AtomicU64,
    first_byte: Histogram,
}

impl Upstream {
    /// Who asks to be let in.
    pub fn door(&self) -> &Arc<Door> {
        &self.door
    }

    /// What it does now.
    pub fn report(&self) -> UpstreamReport {
        let (transfers, kept_bytes, kept_bytes_max) = self.registry.load();
        UpstreamReport {
            transfers,
            kept_bytes,
            kept_bytes_max,
            root_requests: self.figures.requests.load(Ordering::Relaxed),
            root_failures: self.figures.failures.load(Ordering::Relaxed),
            root_first_byte: self.figures.first_byte.report(),
        }
    }
}

/// Counts a connection until this is dropped, on whatever core.
struct Present {
    upstream: Arc<Upstream>,
    /// Once it is a lane.
    seat: Option<Seat>,
}

impl Present {
    fn new(upstream: Arc<Upstream>) -> Self {
        upstream.present.fetch_add(1, Ordering::Relaxed);
        Self { upstream, seat: None }
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        self.upstream.present.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves lanes on this core until `shutdown` turns true; then transfers that run have `drain` to finish.
pub async fn serve(
    upstream: Arc<Upstream>,
    listener: Listener,
    drain: Duration,
    mut shutdown: watch::Receiver<bool>,
) {
    while let Some(socket) = listener.next(&mut shutdown).await {
        // Without a peer it is gone already.
        let Ok(peer) = socket.peer() else { continue };
        let Some(knock) = upstream.door.knock(peer) else { continue };
        exec::spawn(serve_lane(upstream.clone(), socket, peer, knock, shutdown.clone()));
    }
    drop(listener);
    // Those of other cores, too: their lanes may come here for a transfer.
    let drained = async {
        while upstream.present.load(Ordering::Relaxed) > 0 {
            exec::sleep(DRAIN_LOOK).await;
        }
    };
    if exec::timeout(drain, drained).await.is_err() && !upstream.cuts_off.swap(true, Ordering::Relaxed) {
        tracing::warn!(
            lanes = upstream.present.load(Ordering::Relaxed),
            "transfers were cut off: they did not end within {drain:?}"
        );
    }
}

/// Authenticates one connection and serves it as a lane until it ends; what went wrong is logged with the peer's name.
pub(crate) fn serve_lane(
    upstream: Arc<Upstream>,
    socket: Socket,
    peer: SocketAddr,
    knock: Knock,
    shutdown: watch::Receiver<bool>,
) -> impl Future<Output = ()> {
    // Counted before the task runs: nobody who drains may overlook it.
    let mut present = Present::new(upstream.clone());
    async move {
        socket.set_congestion(&upstream.legs.lane, peer.ip());
        socket.bound_backoff();
        match authenticate(&upstream, &socket, peer, knock).await {
            Ok(seat) => {
                present.seat = Some(seat);
                socket.spare_pauses();
                let counted = Counted::new(End::Upstream, name(peer), &socket);
                let course = Course::of(&socket);
                // In a box: a stranger costs no room for it.
                Box::pin(live(present, (socket, counted), peer, shutdown, course)).await;
            }
            Err(ServeError::Hello(error)) => upstream.door.failed(Some(peer), &error),
            Err(error @ ServeError::RouteGoesOn { .. }) => {
                upstream.door.refused(Some(peer), Wrong::Route, &error);
            }
            // The door has told it.
            Err(ServeError::Crowded(_)) => {}
            Err(error @ ServeError::Lost(_)) => tracing::info!(%peer, "{error}"),
        }
    }
}

/// The peer as the census names it.
fn name(peer: SocketAddr) -> String {
    peer.ip().to_canonical().to_string()
}

async fn authenticate(
    upstream: &Arc<Upstream>,
    socket: &Socket,
    peer: SocketAddr,
    knock: Knock,
) -> Result<Seat, ServeError> {
    let hello = knock.hear(pin!(handshake::receive(socket, &upstream.keys))).await?;
    let admitted = match hello.route().split_first() {
        Some((next, _)) => Err(ServeError::RouteGoesOn { next: next.clone() }),
        None => upstream.door.admit_lane(peer).map_err(ServeError::Crowded),
    };
    let seat = match admitted {
        Ok(seat) => seat,
        Err(error) => {
            let refusal = hello.refuse(Refusal::NotAllowed, &Reason::new(&error.to_string()));
            socket.send_all(&refusal, false).await?;
            socket.finish();
            return Err(error);
        }
    };
    socket.send_all(&hello.accept(upstream.instance), false).await?;
    socket.keep_alive(ASK_SELDOM);
    tracing::debug!(mptcp = ?socket.mptcp(), "a lane stands");
    Ok(seat)
}

/// Serves a lane on this core until it ends, or goes on on another one.
async fn live(
    present: Present,
    (socket, counted): (Socket, Counted),
    peer: SocketAddr,
    mut shutdown: watch::Receiver<bool>,
    course: Course,
) {
    match lane::run(&present.upstream, &socket, &counted, &mut shutdown, course).await {
        Ok(None) => {}
        Ok(Some((core, course))) => {
            let connection = socket.share();
            drop((socket, counted));
            go_on(core, present, connection, peer, shutdown, course);
        }
        Err(error) => tracing::info!(%peer, "{error}"),
    }
}

/// Has a lane go on on `core`, or here if that is too busy to read its mail.
fn go_on(
    core: Core,
    present: Present,
    connection: Shared,
    peer: SocketAddr,
    shutdown: watch::Receiver<bool>,
    course: Course,
) {
    #[cfg(test)]
    tests::MOVES.fetch_add(1, Ordering::Relaxed);
    let arrive = move || {
        let socket = Socket::on_this_core(connection);
        let counted = Counted::moved(End::Upstream, name(peer), &socket);
        exec::spawn(live(present, (socket, counted), peer, shutdown, course));
    };
    if let Err(MailFull(letter)) = exec::post(core, Box::new(arrive)) {
        letter();
    }
}
