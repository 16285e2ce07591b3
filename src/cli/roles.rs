//! Starts the role that a command names: binds, reads keys, starts the cores, waits for SIGTERM.
//!
//! Invariant: everything that can be wrong with the settings is found before the first core runs, and said in one line
//! that names the flag.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::future::Either;
use rustix::process::{Resource, getrlimit, setrlimit};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};
use tokio::sync::watch;

use super::{
    args::{Arguments, Command, CpuList, Get, Global, Keygen, Paths},
    cache::{self, CacheOrderError},
    get::{self, GetError},
    lab::{self, LabRunError},
    up,
};
use crate::{
    cache::{Cache, CacheError, console},
    downstream,
    exec::{self, Core},
    lanes::{PathStatus, Pool, PoolConfig},
    mp::manager::{Load, Manager, ManagerConfig, Placement},
    mp::{
        crew::{DESERTED_MAX, LaneCounts},
        stripe::LANES_MAX,
    },
    net::{self, Legs, Listener, MptcpMissing},
    relay,
    root::{self, Root},
    upstream::{self, Upstream},
    wire::{
        key::Key,
        key_file::KeyFileError,
        route::{PathSpec, Transport},
    },
};

/// Why a command could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source} (change --listen)")]
    Listen {
        /// What --listen says.
        address: SocketAddr,
        /// What the kernel says.
        source: io::Error,
    },
    /// The key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// The cores did not start.
    #[error(transparent)]
    Start(#[from] exec::StartError),
    /// A path that this host cannot dial must not silently become plain TCP.
    #[error("--path {path}: {source}; or write it without mptcp:, one --path for each way")]
    Mptcp {
        /// The path.
        path: PathSpec,
        /// What is missing.
        source: MptcpMissing,
    },
    /// The directory cannot be served.
    #[error("cannot serve {path}: {source} (change --dir)", path = .path.display())]
    Directory {
        /// What --dir says.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// `--root` is of no use.
    #[error(transparent)]
    Root(#[from] upstream::RootOriginError),
    /// The cache cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A command on a cache has failed.
    #[error(transparent)]
    CacheOrder(#[from] CacheOrderError),
    /// The kernel has no randomness.
    #[error("no randomness: {0}")]
    Random(#[from] getrandom::Error),
    /// The download is not complete.
    #[error(transparent)]
    Get(#[from] GetError),
    /// The sample library cannot be made.
    #[error(transparent)]
    Sample(#[from] super::sample::SampleError),
    /// The lab has no result.
    #[error(transparent)]
    Lab(#[from] LabRunError),
    /// Signals cannot be caught.
    #[error("cannot catch signals: {0}")]
    Signals(#[source] io::Error),
}

/// Runs the command to its end.
pub(super) fn run(arguments: Arguments) -> Result<(), RunError> {
    let Arguments { command, global } = arguments;
    match command {
        Command::Keygen(Keygen { file }) => {
            Key::generate()?.save_new(&file)?;
            println!("wrote {}: give every role of the chain this file by --key", file.display());
            Ok(())
        }
        Command::Relay(args) => {
            let relay = Arc::new(relay::Relay {
                key: load_key(&args.key)?,
                legs: legs(&global),
                allow: args.allow,
                local: args.listen.ip().is_loopback(),
            });
            serve(&global, args.listen, Transport::Mptcp, move |_, listener, shutdown| {
                relay::serve(relay.clone(), listener, shutdown)
            })
        }
        Command::Root(args) => {
            let root = Arc::new(open_root(&args.dir)?);
            let legs = legs(&global);
            serve(&global, args.listen, Transport::Tcp, move |_, listener, stopped| {
                root::serve(root.clone(), listener, legs.clone(), stopped)
            })
        }
        Command::Upstream(args) => {
            let upstream = open_upstream(&args.root, load_key(&args.key)?, legs(&global))?;
            serve(&global, args.listen, Transport::Mptcp, move |_, listener, stopped| {
                upstream::serve(upstream.clone(), listener, stopped)
            })
        }
        Command::Downstream(args) => {
            let fabric = Fabric::new(&args.paths, &global)?;
            let legs = legs(&global);
            let cache = match &args.cache {
                Some(dir) => Some(Cache::open(dir, args.cache_size.0)?),
                None => None,
            };
            let console = cache.clone().zip(args.cache);
            let listening = move |front| match &console {
                Some((cache, dir)) => console::serve(cache, dir, front)
                    .map_err(|source| CacheError::Directory { path: dir.clone(), source }.into()),
                None => Ok(()),
            };
            serve_then(&global, args.listen, Transport::Tcp, listening, move |_, listener, stopped| {
                downstream::serve(fabric.manager(), cache.clone(), listener, legs.clone(), stopped)
            })
        }
        Command::Cache(command) => Ok(cache::run(&command)?),
        Command::Get(args) => run_get(&global, args),
        Command::Up(args) => up::run(&global, args),
        Command::Lab(command) => Ok(lab::run(&global, command)?),
    }
}

/// Opens the directory of `--dir`.
pub(super) fn open_root(dir: &Path) -> Result<Root, RunError> {
    Root::open(dir).map_err(|source| RunError::Directory { path: dir.to_owned(), source })
}

/// The upstream of `--root`: a URL, or a directory.
fn open_upstream(root: &str, key: Arc<Key>, legs: Legs) -> Result<Arc<Upstream>, RunError> {
    Ok(Arc::new(Upstream::new(root.parse()?, key, legs)?))
}

/// Everything that the managers of all cores are made of.
#[derive(Clone)]
pub(super) struct Fabric {
    pub(super) paths: Vec<Arc<PathStatus>>,
    config: PoolConfig,
    counts: Arc<LaneCounts>,
    placement: Placement,
    load: Load,
}

impl Fabric {
    fn new(paths: &Paths, global: &Global) -> Result<Self, RunError> {
        let specs = paths.path.clone();
        if let Some(path) = specs.iter().find(|path| path.transport() == Transport::Mptcp) {
            net::mptcp_available().map_err(|source| RunError::Mptcp { path: path.clone(), source })?;
        }
        let lanes = Lanes { per_path: paths.lanes.map(usize::from), max: paths.lanes_max.into() };
        Ok(Self::of(specs, load_key(&paths.key)?, lanes, global))
    }

    pub(super) fn of(specs: Vec<PathSpec>, key: Arc<Key>, lanes: Lanes, global: &Global) -> Self {
        let (least, most) = lanes.per_path.map_or((1, LANES_MAX.min(lanes.max)), |fixed| (fixed, fixed));
        Self {
            counts: LaneCounts::new(specs.len(), least, most),
            paths: specs.into_iter().map(PathStatus::new).map(Arc::new).collect(),
            config: PoolConfig {
                key,
                congestion: legs(global).lane,
                lanes_warm: least,
                lanes_max: lanes.max.max(least),
            },
            placement: global.placement,
            load: Load::new(exec_config(global).cpus.len()),
        }
    }

    /// The manager of this core, with its pools.
    pub(super) fn manager(&self) -> Rc<Manager> {
        let pools = self.paths.iter().map(|path| Pool::new(path.clone(), self.config.clone())).collect();
        let config = ManagerConfig { placement: self.placement, deserted_max: DESERTED_MAX };
        Manager::start(pools, self.counts.clone(), config, self.load.clone())
    }
}

/// How many lanes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lanes {
    /// Per path and transfer; found out by trying if not given.
    pub(super) per_path: Option<usize>,
    /// Per path and core.
    pub(super) max: usize,
}

fn run_get(global: &Global, args: Get) -> Result<(), RunError> {
    let mut config = exec_config(global);
    // One download has one consumer; other cores are of use only for lanes that are spread.
    if global.placement != Placement::Spread {
        config.cpus.truncate(1);
    }
    let fabric =
        Fabric::new(&args.paths, &Global { cores: Some(CpuList(config.cpus.clone())), ..global.clone() })?;
    raise_descriptor_limit();
    let stopped = shutdown_signal()?;
    let outcome = Arc::new(Mutex::new(None));
    let (result, done) = (outcome.clone(), watch::channel(false));
    let (finish, finished) = done;
    let finish = Arc::new(finish);
    exec::run(&config, move |core| {
        let (fabric, args, result, finish) = (fabric.clone(), args.clone(), result.clone(), finish.clone());
        let (mut stopped, mut finished) = (stopped.clone(), finished.clone());
        async move {
            let manager = fabric.manager();
            if core == Core(0) {
                let getting = get::get(&manager, &fabric.paths, &args.target, &args.output);
                let stop = stopped.wait_for(|stop| *stop);
                futures_util::pin_mut!(getting, stop);
                let got = match futures_util::future::select(getting, stop).await {
                    Either::Left((got, _)) => got,
                    Either::Right(_) => Err(GetError::Interrupted),
                };
                *result.lock().unwrap_or_else(PoisonError::into_inner) = Some(got);
                // The other cores may have ended already.
                let _ = finish.send(true);
            } else {
                let _ = finished.wait_for(|done| *done).await;
            }
        }
    })?;
    let got = outcome.lock().unwrap_or_else(PoisonError::into_inner).take();
    match got {
        Some(Ok(bytes)) => {
            println!("{bytes} bytes");
            Ok(())
        }
        Some(Err(error)) => Err(RunError::Get(error)),
        None => Err(RunError::Get(GetError::Interrupted)),
    }
}

fn load_key(path: &Path) -> Result<Arc<Key>, RunError> {
    Ok(Arc::new(Key::load(path)?))
}

pub(super) fn legs(global: &Global) -> Legs {
    Legs::from_flags(&global.lane_cc, &global.client_cc)
}

/// The cores to run on, as `--cores` says.
pub(super) fn exec_config(global: &Global) -> exec::Config {
    let cpus = global.cores.as_ref().map_or_else(exec::available_cpus, |list| list.0.clone());
    exec::Config { backend: global.executor, cpus }
}

/// Raises the limit of open files to what the administrator allows, and tells the pipe pool.
pub(super) fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current < limit.maximum || limit.maximum.is_none() {
        let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
        if setrlimit(Resource::Nofile, raised).is_ok() {
            limit = raised;
        }
    }
    let descriptors = limit.current.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
    net::set_descriptor_budget(descriptors);
}

/// Turns true at SIGTERM or SIGINT; a second one ends the process at once.
pub(super) fn shutdown_signal() -> Result<watch::Receiver<bool>, RunError> {
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(RunError::Signals)?;
    let (stop, stopped) = watch::channel(false);
    std::thread::spawn(move || {
        for (count, _) in signals.forever().enumerate() {
            if count > 0 {
                std::process::exit(130);
            }
            // Receivers may be gone already; then so is the process, soon.
            let _ = stop.send(true);
        }
    });
    Ok(stopped)
}

/// One listening socket per core, to be taken by its core.
#[derive(Clone)]
pub(super) struct Listeners(Arc<Mutex<Vec<Option<OwnedFd>>>>);

impl Listeners {
    pub(super) fn bind(
        address: SocketAddr,
        cores: usize,
        transport: Transport,
    ) -> Result<(Self, SocketAddr), RunError> {
        let (fds, address) = Listener::bind(address, cores, transport)
            .map_err(|source| RunError::Listen { address, source })?;
        Ok((Self(Arc::new(Mutex::new(fds.into_iter().map(Some).collect()))), address))
    }

    pub(super) fn take(&self, core: Core) -> Option<Listener> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)[core.0].take().map(Listener::new)
    }
}

/// Binds, says so, and runs `role` on every core until SIGTERM. Lanes may come by MPTCP, clients come by TCP.
fn serve<F, Fut>(global: &Global, address: SocketAddr, transport: Transport, role: F) -> Result<(), RunError>
where
    F: Fn(Core, Listener, watch::Receiver<bool>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + 'static,
{
    serve_then(global, address, transport, |_| Ok(()), role)
}

/// The same; `listening` hears of the address before anybody else does.
fn serve_then<F, Fut>(
    global: &Global,
    address: SocketAddr,
    transport: Transport,
    listening: impl FnOnce(SocketAddr) -> Result<(), RunError>,
    role: F,
) -> Result<(), RunError>
where
    F: Fn(Core, Listener, watch::Receiver<bool>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + 'static,
{
    let config = exec_config(global);
    raise_descriptor_limit();
    net::payload_move();
    let stopped = shutdown_signal()?;
    let (listeners, address) = Listeners::bind(address, config.cpus.len(), transport)?;
    listening(address)?;
    println!("listening on {address}");
    tracing::info!(executor = %config.backend, cpus = ?config.cpus, "started");
    exec::run(&config, move |core| {
        let serving = listeners.take(core).map(|listener| role(core, listener, stopped.clone()));
        async move {
            if let Some(serving) = serving {
                serving.await;
            }
        }
    })?;
    Ok(())
}
