//! In: a 200 MB file at a root. Out: how long a client waits for it through every role, next to nginx behind three
//! HAProxies.
//!
//! Called by `main`. The clock runs from the client's connect to its last byte; nothing is pinned: each process may
//! use the whole machine.

use std::net::SocketAddr;

use super::{Bench, Contest, Findings, all_cores};
use crate::Outcome;
use crate::load::{Answer, Library, VIDEO_BYTES, VIDEO_NAME, timed_get};
use crate::namespace::Network;
use crate::peers::{Executor, Haproxy, HaproxyServer, NginxRoot, Plait, Role, Setting};
use crate::report::{Cell, Goal, Sample, Target, print_cells};

/// Hops of the chain that plait is compared with: its upstream, a relay, its downstream.
const HOPS: usize = 3;

/// How plait's two relays stand.
#[derive(Clone, Copy)]
enum Shape {
    /// Two paths of one relay each, as `plait up` starts them.
    Parallel,
    /// One path through both.
    Series,
}

impl Shape {
    fn label(self) -> &'static str {
        match self {
            Self::Parallel => "2 relays side by side",
            Self::Series => "2 relays in a row",
        }
    }
}

/// A running chain; its parts end with it.
pub struct Chain {
    /// Where clients ask.
    pub entrance: SocketAddr,
    _nginx: Option<NginxRoot>,
    _hops: Vec<HaproxyServer>,
    /// plait's processes, by role.
    pub roles: Vec<(&'static str, Role)>,
}

impl Chain {
    fn haproxy(kind: Haproxy, library: &Library) -> Outcome<Self> {
        let nginx = NginxRoot::start(library.dir())?;
        let mut entrance = nginx.address;
        let mut hops = Vec::new();
        for _ in 0..HOPS {
            let hop = HaproxyServer::start(kind, entrance, library.dir())?;
            entrance = hop.address;
            hops.push(hop);
        }
        Ok(Self { entrance, _nginx: Some(nginx), _hops: hops, roles: Vec::new() })
    }

    /// plait's five processes with two paths, as `plait up` arranges them.
    pub fn plait(setting: Setting<'_>, library: &Library) -> Outcome<Self> {
        Self::plait_in(Shape::Parallel, setting, library)
    }

    fn plait_in(shape: Shape, setting: Setting<'_>, library: &Library) -> Outcome<Self> {
        let plait = Plait::new(library.dir())?;
        let root = plait.root(setting, &library.dir().display().to_string())?;
        let upstream = plait.upstream(setting, &format!("http://{}", root.address))?;
        let last = plait.relay(setting, Some(upstream.address))?;
        let (first, paths) = match shape {
            Shape::Parallel => {
                let other = plait.relay(setting, Some(upstream.address))?;
                let path = |relay: &Role| format!("{},{}", relay.address, upstream.address);
                let paths = vec![path(&other), path(&last)];
                (other, paths)
            }
            Shape::Series => {
                let first = plait.relay(setting, Some(last.address))?;
                let path = format!("{},{},{}", first.address, last.address, upstream.address);
                (first, vec![path])
            }
        };
        let downstream = plait.downstream(setting, &paths)?;
        Ok(Self {
            entrance: downstream.address,
            _nginx: None,
            _hops: Vec::new(),
            roles: vec![
                ("root", root),
                ("upstream", upstream),
                ("relay", first),
                ("relay", last),
                ("downstream", downstream),
            ],
        })
    }

    fn transfer(&self) -> Outcome<Sample> {
        Ok(Sample { taken: timed_get(self.entrance, VIDEO_NAME, VIDEO_BYTES)?, cpu_ns: None })
    }

    fn verify(&self, library: &Library) -> Outcome<()> {
        Answer::begin(self.entrance, VIDEO_NAME)?.verify(library)
    }
}

/// Scenario C.
pub fn run(bench: &Bench, network: &Network, findings: &mut Findings) -> Outcome<()> {
    let library = &bench.library;
    let cores = all_cores();
    let kinds = [Haproxy::SpliceBigPipe, Haproxy::Splice];
    let shapes = [Shape::Parallel, Shape::Series];
    let mut chains = Vec::new();
    for kind in kinds {
        chains.push((format!("nginx behind {HOPS} × {}", kind.label()), Chain::haproxy(kind, library)));
    }
    let each: Vec<(Executor, Shape)> =
        bench.executors.iter().flat_map(|&executor| shapes.map(|shape| (executor, shape))).collect();
    for &(executor, shape) in &each {
        let setting = Setting { executor, placement: "auto", cores: &cores, control: Some("reno") };
        let label = format!("plait, {}, {}", shape.label(), executor.label());
        chains.push((label, Chain::plait_in(shape, setting, library)));
    }
    let chains: Vec<(String, Outcome<Chain>)> = chains
        .into_iter()
        .map(|(label, chain)| {
            let verified =
                chain.and_then(|chain| findings.verified(&label, chain.verify(library)).map(|()| chain));
            (label, verified)
        })
        .collect();
    let mut contest = Contest::of(VIDEO_BYTES);
    for (label, chain) in &chains {
        contest.enter(label, chain, Chain::transfer);
    }
    let cells = contest.run(bench.rounds);
    let notes = [format!("Network: {}. Connect to last byte.", network.describe())];
    print_cells("whole chain, 200 MB", &notes, &cells.iter().collect::<Vec<_>>())?;
    let best = cells[..kinds.len()].iter().filter_map(Cell::seconds).min_by(f64::total_cmp);
    for ((_, shape), (cell, (label, _))) in
        each.iter().zip(cells[kinds.len()..].iter().zip(&chains[kinds.len()..]))
    {
        let what = format!("whole chain: {label}: time ÷ the faster nginx behind {HOPS} HAProxy splice hops");
        // The goal speaks of `plait up`'s arrangement; the other is there to see what a hop costs.
        if matches!(shape, Shape::Parallel) {
            findings.goals.push(Goal::ratio(what, cell.seconds(), best, Target::AtMost(1.0)));
        }
    }
    Ok(())
}
