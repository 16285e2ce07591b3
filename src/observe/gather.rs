//! Makes a snapshot: reads the shared counters, and asks every core for its lanes.
//!
//! In: [`Sources`]. Out: a [`Snapshot`]. Called by the admin endpoint, on a core. Invariant: a core that does not answer in
//! time is left out; nobody waits for it.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::future::join_all;
use tokio::sync::{oneshot, watch};

use super::{
    process,
    snapshot::{
        CacheReport, ClientsReport, DoorReport, LaneOnCore, PathOnWire, PoolsReport, Snapshot,
        UpstreamSnapshot,
    },
};
use crate::{
    cache::slot::Slot,
    exec::{self, Core},
    http::accept::Limits,
    lanes::{
        PathStatus,
        census::{self, Census},
        door::Door,
    },
    mp::{
        manager::{Manager, PathSet},
        parked,
    },
    net,
    upstream::Upstream,
    wire::route::Transport,
};

/// A core that moves payload answers within a few milliseconds; one that does not within this time hangs.
const CENSUS_DEADLINE: Duration = Duration::from_millis(500);

/// Where figures come from; a role fills in what it has.
#[derive(Clone, Default)]
pub struct Sources {
    /// The command.
    pub role: &'static str,
    /// Name of the executor.
    pub executor: String,
    /// Paths of a downstream, as they change.
    pub paths: Option<watch::Receiver<PathSet>>,
    /// What clients may take and took, by role.
    pub clients: Vec<(&'static str, Limits)>,
    /// The downstream's cache.
    pub cache: Slot,
    /// Who asks to be let in, by role.
    pub doors: Vec<(&'static str, Arc<Door>)>,
    /// The upstream.
    pub upstream: Option<Arc<Upstream>>,
    /// Where clients are served.
    pub clients_at: Option<SocketAddr>,
    /// Files that are known to be there.
    pub library: Vec<String>,
}

impl Sources {
    /// Whether paths are all that it serves from, and none of them has a lane. A cache serves what it has.
    pub(super) fn has_no_way(&self) -> bool {
        let paths = self.paths.as_ref().filter(|_| self.cache.get().is_none()).map(|paths| paths.borrow());
        paths.is_some_and(|paths| paths.iter().all(|path| path.live_instance().is_none()))
    }

    /// All figures now.
    pub async fn gather(&self) -> Snapshot {
        let pools = net::pool_report();
        let mut snapshot = Snapshot {
            version: env!("CARGO_PKG_VERSION").into(),
            role: self.role.into(),
            executor: self.executor.clone(),
            now_s: seconds(SystemTime::now()),
            started_s: seconds(process::started()),
            cores: process::cores(),
            process: process::report(),
            pools: PoolsReport {
                pipes: pools.pipes.0 as u64,
                pipes_max: pools.pipes.1 as u64,
                pipes_idle: pools.pipes_idle as u64,
                buffers_idle: pools.buffers_idle as u64,
                pipes_refused: pools.pipes_refused,
            },
            parked_bytes: parked::bytes() as u64,
            parked_bytes_max: parked::bytes_max() as u64,
            clients: self.clients.iter().map(|(role, limits)| ((*role).into(), clients(limits))).collect(),
            cache: self.cache.get().map(|cache| {
                let (objects, bytes, bytes_max) = cache.totals();
                CacheReport { objects: objects as u64, bytes, bytes_max }
            }),
            doors: self.doors.iter().map(|(role, door)| ((*role).into(), door_report(door))).collect(),
            upstream: self.upstream.as_ref().map(|upstream| upstream_report(upstream)),
            clients_at: self.clients_at.map(|address| address.to_string()),
            library: self.library.clone(),
            limits: net::Limit::ALL.map(|limit| (limit.name().to_owned(), limit.hits())).into(),
            ..Snapshot::default()
        };
        let censuses = join_all((0..exec::cores()).map(|core| ask(Core(core)))).await;
        for (core, census) in censuses.into_iter().enumerate() {
            let Some(census) = census else { continue };
            snapshot.lanes.extend(census.lanes.into_iter().map(|lane| LaneOnCore { core, lane }));
            for (end, totals) in census.totals {
                snapshot.ends.entry(end.name().into()).or_default().add(&totals);
            }
        }
        // Read last: asking the cores makes them look whether their lanes are still there.
        if let Some(paths) = &self.paths {
            snapshot.paths = paths.borrow().iter().map(|path| path_report(path)).collect();
        }
        snapshot
    }
}

/// The lanes of `core`. Those of a downstream are looked at on the way: an idle lane whose relay is gone is dialled again at
/// once, and not when its next ping is due.
async fn ask(core: Core) -> Option<Census> {
    let (send, receive) = oneshot::channel();
    let letter = Box::new(move || {
        Manager::look();
        // Whoever has given up does not need it.
        let _ = send.send(census::take());
    });
    exec::post(core, letter).ok()?;
    exec::timeout(CENSUS_DEADLINE, receive).await.ok()?.ok()
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

fn clients(limits: &Limits) -> ClientsReport {
    let (connections, connections_max, turned_away) = limits.connections();
    ClientsReport {
        connections: connections as u64,
        connections_max: connections_max as u64,
        turned_away,
        traffic: limits.traffic().report(),
    }
}

fn door_report(door: &Door) -> DoorReport {
    let (hellos, hellos_max) = door.hellos();
    let refused: BTreeMap<_, _> =
        door.refusals().map(|(wrong, total)| (wrong.name().to_owned(), total)).collect();
    DoorReport { hellos: hellos as u64, hellos_max: hellos_max as u64, refused }
}

fn upstream_report(upstream: &Upstream) -> UpstreamSnapshot {
    let figures = upstream.report();
    UpstreamSnapshot {
        transfers: figures.transfers as u64,
        kept_bytes: figures.kept_bytes as u64,
        kept_bytes_max: figures.kept_bytes_max as u64,
        root_requests: figures.root_requests,
        root_failures: figures.root_failures,
        root_first_byte: figures.root_first_byte,
    }
}

fn path_report(path: &PathStatus) -> PathOnWire {
    let report = path.report();
    PathOnWire {
        name: report.name,
        hops: path.spec().hops().map(ToString::to_string).collect(),
        mptcp: path.spec().transport() == Transport::Mptcp,
        down: report.down,
        lanes: report.lanes as u64,
        leased: report.leased as u64,
        lanes_opened: report.lanes_opened,
        dials_failed: report.dials_failed,
        received_bytes: report.bytes,
        parked_bytes: report.parked_bytes,
        frames: report.frames,
        frames_again: report.frames_again,
        rtt_s: report.round_trip.as_secs_f64(),
        subflows: report.subflows as u64,
        fell_back: report.fell_back,
    }
}
