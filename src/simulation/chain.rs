//! The processes between root and clients, each started, killed and started again as the scenario wants.
//!
//! In: a scenario. Out: the chain, for whoever harms it, and the verdict that nothing is left of it when all is quiet. The
//! processes run the same code as the binary's roles, without listeners: the network hands connections to their tasks.

use std::{cell::RefCell, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use tokio::sync::watch;

use super::{CORES, root, scenario::Scenario};
use crate::{
    downstream,
    exec::{
        self, Core,
        on_simulator::{self, Process, spawn_in},
    },
    http::{
        accept,
        request::RequestHead,
        server::{Deadlines, HttpConnection},
    },
    lanes::{PathStatus, PoolConfig, door::Door},
    mp::{
        crew::{DESERTED_MAX, LaneCounts},
        manager::{Load, Manager, ManagerConfig, PathSet, Placement},
        parked,
    },
    net::{
        Legs, Names, Socket,
        simulated::{Link, Network},
    },
    relay::{self, Relay},
    upstream::{self, Upstream},
    wire::{key::Key, key_ring::KeyRing},
};

/// Where clients ask.
pub(super) const EDGE: &str = "10.0.4.1:80";
/// A transfer may always keep so much, whatever the bound for all.
const KEPT_BYTES_MIN: usize = 64 << 10;
/// How often the bounds are looked at.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// See the module's description.
pub(super) struct Chain {
    pub(super) scenario: Rc<Scenario>,
    network: Rc<Network>,
    pub(super) legs: Vec<PathLegs>,
    relays: RefCell<Vec<Option<Process>>>,
    upstreams: RefCell<Vec<Option<Running>>>,
    downstream: Process,
    paths: watch::Sender<PathSet>,
    all_paths: PathSet,
    _stop: watch::Sender<bool>,
    stopping: watch::Receiver<bool>,
}

/// An upstream's process, and what it shares.
type Running = (Process, Arc<Upstream>);

/// The links of a path: to the relay, and from there on; or one for both where there is no relay.
pub(super) struct PathLegs {
    pub(super) near: Rc<Link>,
    pub(super) far: Rc<Link>,
}

pub(super) fn keys() -> Arc<KeyRing> {
    Arc::new(KeyRing::of(Key::from_bytes([7; 32])))
}

pub(super) fn relay_address(path: usize) -> SocketAddr {
    format!("10.0.1.{}:7000", path + 1).parse().unwrap()
}

/// An upstream has an address for each path, so that each has a link of its own.
pub(super) fn upstream_address(path: usize) -> SocketAddr {
    format!("10.0.2.{}:9000", path + 1).parse().unwrap()
}

impl Chain {
    /// Starts all processes.
    pub(super) fn start(network: &Rc<Network>, scenario: &Rc<Scenario>) -> Rc<Self> {
        let legs = scenario.paths.iter().map(|path| {
            let near = Link::new(path.delay, path.bytes_per_s, path.segment_bytes);
            let far = if path.has_relay {
                Link::new(Duration::from_millis(1), path.bytes_per_s * 2.0, path.segment_bytes)
            } else {
                near.clone()
            };
            PathLegs { near, far }
        });
        let spec = |(number, path): (usize, &super::scenario::Path)| {
            let last = upstream_address(number);
            let text =
                if path.has_relay { format!("{},{last}", relay_address(number)) } else { last.to_string() };
            Arc::new(PathStatus::new(text.parse().unwrap()))
        };
        let all_paths: PathSet = scenario.paths.iter().enumerate().map(spec).collect();
        let (stop, stopping) = watch::channel(false);
        let chain = Rc::new(Self {
            network: network.clone(),
            legs: legs.collect(),
            relays: RefCell::new(vec![None; scenario.paths.len()]),
            upstreams: RefCell::new(vec![None; scenario.upstreams]),
            downstream: on_simulator::new_process(),
            paths: watch::Sender::new(all_paths.clone()),
            all_paths,
            _stop: stop,
            stopping,
            scenario: scenario.clone(),
        });
        (0..scenario.upstreams).for_each(|upstream| chain.start_upstream(upstream));
        (0..scenario.paths.len()).for_each(|path| chain.start_relay(path));
        chain.start_downstream();
        chain
    }

    /// Starts the relay of `path`, unless it runs or there is none.
    pub(super) fn start_relay(&self, path: usize) {
        if !self.scenario.paths[path].has_relay || self.relays.borrow()[path].is_some() {
            return;
        }
        let process = on_simulator::new_process();
        self.relays.borrow_mut()[path] = Some(process);
        let door = Door::new(1000);
        let relay =
            Arc::new(Relay { keys: keys(), legs: Legs::default(), door, allow: Vec::new(), local: false });
        let stopping = self.stopping.clone();
        let accept = move |socket: Socket, peer: SocketAddr| {
            let Some(knock) = relay.door.knock(peer) else { return };
            spawn_in(process, relay::serve_lane(relay.clone(), socket, peer, knock, stopping.clone()));
        };
        self.network.listen(relay_address(path), &self.legs[path].near, Some(Rc::new(accept)));
    }

    /// Ends the relay of `path`; connections to it are refused.
    pub(super) fn kill_relay(&self, path: usize) {
        let process = self.relays.borrow_mut()[path].take();
        if let Some(process) = process {
            self.network.listen(relay_address(path), &self.legs[path].near, None);
            on_simulator::kill(process);
        }
    }

    /// The relay of `path`, if it runs.
    pub(super) fn relay(&self, path: usize) -> Option<Process> {
        self.relays.borrow()[path]
    }

    /// The process of an upstream, if it runs.
    pub(super) fn upstream(&self, upstream: usize) -> Option<Process> {
        self.upstreams.borrow()[upstream].as_ref().map(|(process, _)| *process)
    }

    fn paths_of(&self, upstream: usize) -> impl Iterator<Item = usize> {
        let paths = self.scenario.paths.iter().enumerate();
        paths.filter(move |(_, path)| path.upstream == upstream).map(|(path, _)| path)
    }

    /// Starts an upstream, unless it runs.
    pub(super) fn start_upstream(&self, number: usize) {
        if self.upstreams.borrow()[number].is_some() {
            return;
        }
        let process = on_simulator::new_process();
        let (root, door) = (format!("http://{}", root::ADDRESS), Door::new(1000));
        let kept_bytes_max = self.scenario.kept_bytes_max;
        let upstream = Upstream::new(
            root.parse().unwrap(),
            keys(),
            Legs::default(),
            door.clone(),
            kept_bytes_max,
            Placement::Local,
        )
        .unwrap();
        let upstream = Arc::new(upstream);
        self.upstreams.borrow_mut()[number] = Some((process, upstream.clone()));
        let stopping = self.stopping.clone();
        let accept: Rc<dyn Fn(Socket, SocketAddr)> = Rc::new(move |socket, peer| {
            let Some(knock) = door.knock(peer) else { return };
            spawn_in(process, upstream::serve_lane(upstream.clone(), socket, peer, knock, stopping.clone()));
        });
        for path in self.paths_of(number) {
            self.network.listen(upstream_address(path), &self.legs[path].far, Some(accept.clone()));
        }
    }

    /// Ends an upstream; connections to it are refused.
    pub(super) fn kill_upstream(&self, number: usize) {
        let running = self.upstreams.borrow_mut()[number].take();
        if let Some((process, upstream)) = running {
            for path in self.paths_of(number) {
                self.network.listen(upstream_address(path), &self.legs[path].far, None);
            }
            on_simulator::kill(process);
            drop(upstream);
        }
    }

    /// Puts whatever `accept` does in the place of the only upstream.
    pub(super) fn replace_upstream(&self, accept: Rc<dyn Fn(Socket, SocketAddr)>) {
        self.kill_upstream(0);
        for path in self.paths_of(0) {
            self.network.listen(upstream_address(path), &self.legs[path].far, Some(accept.clone()));
        }
    }

    /// Lanes that a transfer has.
    pub(super) fn leased(&self) -> usize {
        self.all_paths.iter().map(|path| path.leased()).sum()
    }

    /// Takes `path` out of the downstream's configuration, or puts it back.
    pub(super) fn configure(&self, path: usize, is_used: bool) {
        self.paths.send_modify(|paths| {
            paths.retain(|known| !Arc::ptr_eq(known, &self.all_paths[path]));
            if is_used {
                paths.push(self.all_paths[path].clone());
            }
        });
    }

    fn start_downstream(&self) {
        let scenario = &self.scenario;
        parked::simulate(Some(scenario.parked_bytes_max));
        let (least, most) = scenario.lanes;
        let pool_config = PoolConfig {
            keys: keys(),
            congestion: Legs::default().lane,
            names: Names::System,
            lanes_warm: least,
            lanes_max: scenario.lanes_max,
        };
        let placement = if scenario.is_spread { Placement::Spread } else { Placement::Local };
        let config = ManagerConfig { placement, deserted_max: DESERTED_MAX };
        let (network, paths) = (self.network.clone(), self.paths.subscribe());
        let (process, stopping) = (self.downstream, self.stopping.clone());
        spawn_in(process, async move {
            (0..CORES).map(Core).for_each(on_simulator::open_mail);
            // As with BBR, where the number of lanes is found.
            let counts = LaneCounts::new(least, most, least == 1 && most > least);
            let manager = Manager::start(paths, pool_config, counts, config, Load::new(CORES));
            let answer = Rc::new(async move |connection: &mut HttpConnection, request: RequestHead| {
                downstream::answer(&manager, connection, &request).await
            });
            let accept = move |socket: Socket, _: SocketAddr| {
                let (answer, stopping) = (answer.clone(), stopping.clone());
                spawn_in(process, async move {
                    let connection = HttpConnection::new(socket, Deadlines::default(), stopping.clone());
                    accept::converse(connection, stopping, &*answer).await;
                });
            };
            let link = Link::new(Duration::from_millis(2), 100e6, 64 << 10);
            network.listen(EDGE.parse().unwrap(), &link, Some(Rc::new(accept)));
        });
    }

    /// Looks at the bounds now and then, for ever.
    pub(super) async fn watch(self: Rc<Self>) {
        loop {
            for (_, upstream) in self.upstreams.borrow().iter().flatten() {
                let (running, kept) = upstream.load();
                let most = self.scenario.kept_bytes_max + running * KEPT_BYTES_MIN;
                assert!(kept <= most, "{kept} bytes are kept, {most} may be");
            }
            exec::sleep(LOOK_PAUSE).await;
        }
    }

    /// Clients have gone, harm is over, time has passed.
    pub(super) fn assert_nothing_is_left(&self) {
        for (number, running) in self.upstreams.borrow().iter().enumerate() {
            let Some((process, upstream)) = running else { continue };
            assert_eq!(upstream.load(), (0, 0), "transfers that run, and bytes that are kept");
            let lanes: usize = self.paths_of(number).map(|path| self.legs[path].far.connections()).sum();
            assert_eq!(on_simulator::tasks_of(*process), lanes, "tasks of upstream {number}");
        }
        for (path, report) in self.all_paths.iter().map(|path| path.report()).enumerate() {
            assert_eq!(report.leased, 0, "{report:?}");
            assert_eq!(report.lanes, self.scenario.lanes.0, "{report:?}");
            if let Some(relay) = self.relay(path) {
                assert_eq!(on_simulator::tasks_of(relay), report.lanes, "tasks of the relay of path {path}");
            }
        }
        assert_eq!(parked::bytes(), 0, "parked");
        let keepers = self.paths.borrow().len();
        let tasks = on_simulator::tasks_of(self.downstream);
        assert_eq!(tasks, CORES + 1 + keepers, "tasks of the downstream");
    }
}
