//! `plait up`: the whole chain in one process, over real sockets on loopback.
//!
//! In: a directory, or none. Out: a root, an upstream, relays and a downstream that work as they do on hosts of their
//! own, and a live line per path. Each role runs on every core.

use std::{
    io::IsTerminal,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::{join, join_all};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::sync::watch;

use super::{
    admin::Admin,
    args::{Global, HELLOS_MAX, KEPT_BYTES_MAX, Up},
    roles::{Fabric, Lanes, Listeners, RunError, exec_config, legs, open_root, raise_descriptor_limit},
    sample,
    signals::stop_signal,
};
use crate::{
    cache::slot::Slot,
    downstream,
    exec::{self, Core},
    http::{accept::Limits, server::Deadlines},
    lanes::{PathStatus, door::Door},
    net,
    observe::{AdminAddress, Sources},
    relay::{self, Relay},
    root,
    upstream::{self, RootOrigin, Upstream},
    wire::{
        key::Key,
        key_ring::KeyRing,
        route::{HopAddr, PathSpec, Route, Transport},
    },
};

/// Where the dashboard is if that is free, so that a page that stays open finds the next chain again.
const DASHBOARD: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8081);
/// How often the live lines are drawn.
const REDRAW: Duration = Duration::from_secs(1);
/// Lanes of a path that may stand on a core: the same as `plait downstream`.
const LANES_MAX: usize = 256;
/// Files named in the greeting; a library may have thousands.
const FILES_SHOWN_MAX: usize = 6;

/// Runs the chain until SIGINT or SIGTERM.
pub(super) fn run(global: &Global, args: Up) -> Result<(), RunError> {
    let config = exec_config(global);
    let cores = config.cpus.len();
    // Everybody is on this machine; half the descriptors are for lanes, pipes and files.
    let clients_max = raise_descriptor_limit() / 2;
    let limits = Limits::new(clients_max, clients_max, Deadlines::default());
    net::payload_move();
    let dir = match args.dir {
        Some(dir) => dir,
        None => sample::library()?,
    };
    let stopped = stop_signal(None)?;
    let keys = Arc::new(KeyRing::of(Key::generate()?));
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let (clients, front) = Listeners::bind(args.listen, cores, Transport::Tcp)?;
    let (roots, root_at) = Listeners::bind(anywhere, cores, Transport::Tcp)?;
    let (upstreams, upstream_at) = Listeners::bind(anywhere, cores, Transport::Mptcp)?;
    let relays = (0..args.paths)
        .map(|_| Listeners::bind(anywhere, cores, Transport::Mptcp))
        .collect::<Result<Vec<_>, _>>()?;
    let specs = relays
        .iter()
        .map(|(_, at)| {
            // One hop never exceeds a route's bounds.
            let rest = Route::new(vec![HopAddr::from(upstream_at)]).unwrap_or_default();
            PathSpec::new(HopAddr::from(*at), rest)
        })
        .collect();
    let lanes = Lanes { per_path: None, max: LANES_MAX };
    let fabric = Fabric::of(specs, keys.clone(), lanes, global);
    // Counted apart, though on this machine they are the same clients.
    let root_limits = Limits::new(clients_max, clients_max, Deadlines::default());
    let root = Arc::new(open_root(&dir, root_limits)?);
    let (legs, drain) = (legs(global), Deadlines::default().finish);
    let upstream = Arc::new(Upstream::new(
        RootOrigin::Http(root_at.to_string().into()),
        keys.clone(),
        legs.clone(),
        Door::new(HELLOS_MAX as usize),
        KEPT_BYTES_MAX,
        global.placement,
    )?);
    let relay = Arc::new(Relay {
        keys,
        legs: legs.clone(),
        door: Door::new(HELLOS_MAX as usize),
        allow: Vec::new(),
        local: true,
    });

    let sources = Sources {
        role: "up",
        paths: Some(fabric.watch()),
        clients: vec![("downstream", limits.clone()), ("root", root.limits().clone())],
        doors: vec![("upstream", upstream.door().clone()), ("relay", relay.door.clone())],
        upstream: Some(upstream.clone()),
        clients_at: Some(front),
        library: shown_files(&dir),
        ..Sources::default()
    };
    let admin = match global.admin {
        Some(_) => Admin::open(global, sources)?,
        // A second chain on this machine has its dashboard elsewhere.
        None => Admin::bind(AdminAddress(DASHBOARD), global, sources.clone())
            .or_else(|_| Admin::bind(AdminAddress(anywhere), global, sources))
            .map(Some)?,
    };

    println!("listening on {front}");
    admin.iter().for_each(Admin::announce);
    println!("root {root_at} ← upstream {upstream_at} ← {} relays ← downstream {front}", relays.len());
    println!("serving {}; open in a player or a browser:", dir.display());
    for file in shown_files(&dir) {
        println!("  http://{front}/{file}");
    }
    println!("stop with Ctrl-C");

    let relays: Vec<_> = relays.into_iter().map(|(listeners, _)| listeners).collect();
    exec::run(&config, move |core| {
        admin.iter().for_each(|admin| admin.start(core, &stopped));
        let (fabric, stopped) = (fabric.clone(), stopped.clone());
        let roles = (root.clone(), upstream.clone(), relay.clone(), legs.clone(), limits.clone());
        let ports = (roots.take(core), upstreams.take(core), clients.take(core));
        let relay_ports: Vec<_> = relays.iter().filter_map(|listeners| listeners.take(core)).collect();
        async move {
            let (root, upstream, relay, legs, limits) = roles;
            let (Some(root_port), Some(upstream_port), Some(client_port)) = ports else { return };
            let back = join(
                root::serve(root, root_port, legs.clone(), stopped.clone()),
                upstream::serve(upstream, upstream_port, drain, stopped.clone()),
            );
            let middle =
                relay_ports.into_iter().map(|port| relay::serve(relay.clone(), port, drain, stopped.clone()));
            if core == Core(0) {
                exec::spawn(draw(fabric.paths(), stopped.clone()));
            }
            let front = downstream::serve(
                fabric.manager(),
                Slot::default(),
                client_port,
                legs,
                limits,
                stopped.clone(),
            );
            join(join(back, join_all(middle)), front).await;
        }
    })?;
    println!("stopped");
    Ok(())
}

/// Names of files to try, playlists and videos first.
fn shown_files(dir: &Path) -> Vec<String> {
    let mut files: Vec<String> = ["", "hls"]
        .iter()
        .filter_map(|sub| Some((sub, std::fs::read_dir(dir.join(sub)).ok()?)))
        .flat_map(|(sub, entries)| {
            entries.flatten().filter_map(move |entry| {
                let name = entry.file_name().into_string().ok()?;
                let shown = [".mp4", ".m3u8", ".webm", ".mpd"].iter().any(|ending| name.ends_with(ending));
                shown.then(|| if sub.is_empty() { name } else { format!("{sub}/{name}") })
            })
        })
        .collect();
    files.sort();
    files.truncate(FILES_SHOWN_MAX);
    files
}

/// One line per path: redrawn in place on a terminal, printed while bytes move elsewhere.
async fn draw(paths: Vec<Arc<PathStatus>>, mut stopped: watch::Receiver<bool>) {
    let terminal = std::io::stdout().is_terminal();
    let screen = MultiProgress::new();
    let lines: Vec<_> = paths
        .iter()
        .map(|_| {
            let line = screen.add(ProgressBar::no_length());
            if let Ok(style) = ProgressStyle::with_template("{msg}") {
                line.set_style(style);
            }
            line
        })
        .collect();
    let mut before = vec![0; paths.len()];
    let mut drawn = Instant::now();
    while exec::timeout(REDRAW, stopped.wait_for(|stop| *stop)).await.is_err() {
        let seconds = drawn.elapsed().as_secs_f64();
        drawn = Instant::now();
        for ((path, before), line) in paths.iter().zip(&mut before).zip(&lines) {
            let report = path.report();
            let moved = report.bytes - *before;
            *before = report.bytes;
            let text = format!(
                "path {}: {:8.1} Mbit/s, RTT {:.1} ms, {} lanes ({} in use){}{}",
                report.name,
                moved as f64 * 8e-6 / seconds,
                report.round_trip.as_secs_f64() * 1e3,
                report.lanes,
                report.leased,
                report.mptcp(),
                if report.down { ", DOWN" } else { "" },
            );
            if terminal {
                line.set_message(text);
            } else if moved > 0 {
                println!("{text}");
            }
        }
    }
    for line in lines {
        line.finish_and_clear();
    }
}
