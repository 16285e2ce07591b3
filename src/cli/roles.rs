//! Starts the role that a command names: binds, reads keys, starts the cores, waits for SIGTERM.
//!
//! Invariant: everything that can be wrong with the settings is found before the first core runs, and said in one line
//! that names the flag.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use clap::CommandFactory;
use futures_util::future::Either;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::sync::watch;

use super::{
    admin::Admin,
    args::{
        self, Arguments, Clients, Command, CpuList, DRAIN, Get, Global, Keygen, Listen, Paths, RELAY_DRAIN,
        Strangers,
    },
    attach::Attachment,
    cache::{self, CacheOrderError},
    check::{self, CheckError},
    discovery::{self, Discovery},
    get::{self, GetError},
    lab::{self, LabRunError},
    path_file::PathsError,
    service::Service,
    signals::{Reload, end_with_reader, stop_signal},
    top::{self, TopError},
    tune::{self, TuneError},
    up,
};
use crate::{
    cache::{CacheError, slot::Slot},
    downstream,
    exec::{self, Core},
    http::{accept::Limits, server::Deadlines},
    lanes::{PathStatus, PoolConfig, door::Door},
    mp::manager::{Load, Manager, ManagerConfig, PathSet, Placement},
    mp::{
        crew::{DESERTED_MAX, LaneCounts},
        parked,
        stripe::LANES_MAX,
    },
    net::{self, BoundSocket, InheritError, Legs, Listener, Names},
    observe::Sources,
    relay,
    root::{self, Root},
    upstream::{self, Upstream},
    wire::{
        key::Key,
        key_file::{self, KeyFileError},
        key_ring::KeyRing,
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
    /// The address of the admin endpoint cannot be listened on.
    #[error("cannot listen on {address}: {source} (change --admin)")]
    Admin {
        /// What --admin says.
        address: SocketAddr,
        /// What the kernel says.
        source: io::Error,
    },
    /// The sockets that the process was started with cannot be used.
    #[error(transparent)]
    Inherit(#[from] InheritError),
    /// There is no address.
    #[error("no address to listen on: name one with --listen (or let systemd pass a socket)")]
    NoListen,
    /// The key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// The cores did not start.
    #[error(transparent)]
    Start(#[from] exec::StartError),
    /// The paths cannot be used.
    #[error(transparent)]
    Paths(#[from] PathsError),
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
    /// There is nothing to show.
    #[error(transparent)]
    Top(#[from] TopError),
    /// Settings of a role are wrong.
    #[error(transparent)]
    Check(CheckError),
    /// Kernel settings are not as wanted.
    #[error(transparent)]
    Tune(#[from] TuneError),
    /// The manual pages cannot be written.
    #[error("cannot write manual pages to {dir}: {source}", dir = .dir.display())]
    Man {
        /// Where to.
        dir: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// Signals cannot be caught.
    #[error("cannot catch signals: {0}")]
    Signals(#[source] io::Error),
}

/// Runs the command to its end.
pub(super) fn run(arguments: Arguments) -> Result<(), RunError> {
    let Arguments { command, global } = arguments;
    if command.only_prints() {
        end_with_reader()?;
    }
    match command {
        Command::Keygen(keygen) => keys(&keygen),
        Command::Top(args) => Ok(top::run(&args)?),
        Command::Check(args) => Ok(check::run(&global, &args)?),
        Command::Relay(args) => {
            let keys = Arc::new(KeyRing::load(&args.key)?);
            let port = Listeners::open(&args.listen, &global, Transport::Mptcp)?;
            let relay = Arc::new(relay::Relay {
                keys: keys.clone(),
                legs: legs(&global),
                door: door(&args.strangers),
                allow: args.allow,
                local: port.1.ip().is_loopback(),
            });
            let reload: Reload = Box::new(move || reload_keys(&keys, &args.key));
            let doors = vec![("relay", relay.door.clone())];
            let sources = Sources { role: "relay", doors, ..Sources::default() };
            let drain = args.listen.drain(RELAY_DRAIN);
            serve(&global, port, reload, sources, move |_, listener, shutdown| {
                relay::serve(relay.clone(), listener, drain, shutdown)
            })
        }
        Command::Root(args) => {
            let limits = limits(&args.clients, args.clients.max_connections, args.listen.drain(DRAIN));
            let root = Arc::new(open_root(&args.dir, limits)?);
            let legs = legs(&global);
            let port = Listeners::open(&args.listen, &global, Transport::Tcp)?;
            let clients = vec![("root", root.limits().clone())];
            let sources = Sources { role: "root", clients, clients_at: Some(port.1), ..Sources::default() };
            serve(&global, port, nothing_to_reload(), sources, move |_, listener, stopped| {
                root::serve(root.clone(), listener, legs.clone(), stopped)
            })
        }
        Command::Upstream(args) => {
            let keys = Arc::new(KeyRing::load(&args.key)?);
            let upstream = open_upstream(&args, keys.clone(), &global)?;
            let reload: Reload = Box::new(move || reload_keys(&keys, &args.key));
            let port = Listeners::open(&args.listen, &global, Transport::Mptcp)?;
            let doors = vec![("upstream", upstream.door().clone())];
            let sources =
                Sources { role: "upstream", doors, upstream: Some(upstream.clone()), ..Sources::default() };
            let drain = args.listen.drain(DRAIN);
            serve(&global, port, reload, sources, move |_, listener, stopped| {
                upstream::serve(upstream.clone(), listener, drain, stopped)
            })
        }
        Command::Downstream(args) => {
            let (fabric, discovery) = Fabric::new(&args.paths, &global)?;
            parked::bound(usize::try_from(args.max_parked.0).unwrap_or(usize::MAX));
            let limits = limits(&args.clients, PER_ADDRESS_MAX, args.listen.drain(DRAIN));
            let legs = legs(&global);
            let keys = fabric.config.keys.clone();
            let mut read_paths_again = discovery.follow(fabric.paths.clone());
            let reload: Reload = Box::new(move || {
                reload_keys(&keys, &args.paths.key);
                read_paths_again();
            });
            let attachment = args
                .cache
                .map(|dir| Attachment::open(dir, args.cache_size.0, args.listen.comes_beside_another()))
                .transpose()?;
            let slot = attachment.as_ref().map_or_else(Slot::default, Attachment::slot);
            let port = Listeners::open(&args.listen, &global, Transport::Tcp)?;
            let front = port.1;
            // The viewers of the one that it takes over from use the same paths.
            let filler = if args.listen.take_over { 0 } else { args.warm_up.0 };
            attachment.as_ref().map_or(Ok(()), |attachment| attachment.announce(front))?;
            let sources = Sources {
                role: "downstream",
                paths: Some(fabric.watch()),
                clients: vec![("downstream", limits.clone())],
                cache: slot.clone(),
                clients_at: Some(front),
                ..Sources::default()
            };
            serve_once_ready(&global, port, reload, sources, move |core, listener, stopped| {
                if let (Core(0), Some(attachment)) = (core, &attachment) {
                    exec::spawn(attachment.clone().complete(front, stopped.clone()));
                }
                let manager = fabric.manager();
                let (slot, legs, limits) = (slot.clone(), legs.clone(), limits.clone());
                let serving = downstream::serve(manager.clone(), slot, listener, legs, limits, stopped);
                let ready = async move {
                    manager.first_lanes().await;
                    // One core's lanes are enough: they go where they are needed.
                    if core == Core(0) {
                        manager.warm_up(filler).await;
                    }
                };
                (serving, ready)
            })
        }
        Command::Cache(command) => Ok(cache::run(&command)?),
        Command::Get(args) => run_get(&global, args),
        Command::Up(args) => up::run(&global, args),
        Command::Lab(command) => Ok(lab::run(&global, command)?),
        Command::Tune(command) => Ok(tune::run(&command, global.cores.as_ref())?),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "plait", &mut io::stdout());
            Ok(())
        }
        Command::Man { dir } => std::fs::create_dir_all(&dir)
            .and_then(|()| clap_mangen::generate_to(Arguments::command(), &dir))
            .map_err(|source| RunError::Man { dir, source }),
    }
}

/// Connections of one client address to a downstream, unless --max-per-address says otherwise: the viewers behind one
/// address translator, and far from all that a process can hold.
const PER_ADDRESS_MAX: u32 = 4096;

/// What the flags say, as far as the descriptors go: half of them are for clients, the others for lanes, pipes and files.
fn limits(clients: &Clients, per_address_max: u32, finish: Duration) -> Limits {
    let wanted = clients.max_connections as usize;
    let total = wanted.min(raise_descriptor_limit() / 2);
    if total < wanted {
        tracing::info!(
            "at most {total} client connections at once: `ulimit -n` allows no more than twice that"
        );
    }
    let seconds = |number: u32| Duration::from_secs(number.into());
    let deadlines = Deadlines {
        request: seconds(clients.request_timeout),
        idle: seconds(clients.idle_timeout),
        stall: seconds(clients.stall_timeout),
        finish,
    };
    let per_address = clients.max_per_address.unwrap_or(per_address_max);
    Limits::new(total, per_address as usize, deadlines)
}

/// Opens the directory of `--dir`.
pub(super) fn open_root(dir: &Path, limits: Limits) -> Result<Root, RunError> {
    Root::open(dir, limits).map_err(|source| RunError::Directory { path: dir.to_owned(), source })
}

/// The upstream of `--root`: a URL, or a directory.
fn open_upstream(
    args: &args::Upstream,
    keys: Arc<KeyRing>,
    global: &Global,
) -> Result<Arc<Upstream>, RunError> {
    let kept_bytes_max = usize::try_from(args.max_kept.0).unwrap_or(usize::MAX);
    let door = door(&args.strangers);
    let (root, legs) = (args.root.parse()?, legs(global));
    Ok(Arc::new(Upstream::new(root, keys, legs, door, kept_bytes_max, global.placement)?))
}

/// What the flags say, as far as the descriptors go: a relay's lane has two, and pipes while it moves something.
fn door(strangers: &Strangers) -> Arc<Door> {
    let wanted = strangers.max_lanes as usize;
    let lanes = wanted.min(raise_descriptor_limit() / 3);
    if lanes < wanted {
        tracing::info!("at most {lanes} lanes at once: `ulimit -n` allows no more than three times that");
    }
    let per_address = strangers.max_lanes_per_address.map_or(lanes, |max| max as usize);
    Door::with_lanes(strangers.max_hellos as usize, lanes, per_address)
}

/// Everything that the managers of all cores are made of.
#[derive(Clone)]
pub(super) struct Fabric {
    /// Managers follow it.
    paths: watch::Sender<PathSet>,
    config: PoolConfig,
    counts: Arc<LaneCounts>,
    placement: Placement,
    load: Load,
}

impl Fabric {
    /// With the paths that there are now, and what can follow them.
    fn new(flags: &Paths, global: &Global) -> Result<(Self, Discovery), RunError> {
        let keys = Arc::new(KeyRing::load(&flags.key)?);
        let (discovery, errors) = Discovery::start(flags)?;
        let specs = discovery.specs(&Vec::new());
        for error in &errors {
            tracing::warn!("{error}; it is asked again");
        }
        let lanes = Lanes { per_path: flags.lanes.map(usize::from), max: flags.lanes_max.into() };
        let mut fabric = Self::of(specs, keys, lanes, global);
        fabric.config.names = discovery::names(flags);
        Ok((fabric, discovery))
    }

    pub(super) fn of(specs: Vec<PathSpec>, keys: Arc<KeyRing>, lanes: Lanes, global: &Global) -> Self {
        let (least, most) = lanes.per_path.map_or((1, LANES_MAX.min(lanes.max)), |fixed| (fixed, fixed));
        Self {
            counts: LaneCounts::new(least, most, least < most && legs(global).lane.is_paced()),
            paths: watch::Sender::new(specs.into_iter().map(PathStatus::new).map(Arc::new).collect()),
            config: PoolConfig {
                keys,
                congestion: legs(global).lane,
                names: Names::System,
                lanes_warm: least,
                lanes_max: lanes.max.max(least),
            },
            placement: global.placement,
            load: Load::new(exec_config(global).cpus.len()),
        }
    }

    /// The paths as they are now.
    pub(super) fn paths(&self) -> PathSet {
        self.paths.borrow().clone()
    }

    /// The paths as they change.
    pub(super) fn watch(&self) -> watch::Receiver<PathSet> {
        self.paths.subscribe()
    }

    /// The manager of this core, with its pools.
    pub(super) fn manager(&self) -> Rc<Manager> {
        let config = ManagerConfig { placement: self.placement, deserted_max: DESERTED_MAX };
        let (paths, counts) = (self.paths.subscribe(), self.counts.clone());
        Manager::start(paths, self.config.clone(), counts, config, self.load.clone())
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
    let cores = Global { cores: Some(CpuList(config.cpus.clone())), ..global.clone() };
    let (fabric, _) = Fabric::new(&args.paths, &cores)?;
    raise_descriptor_limit();
    let stopped = stop_signal(None)?;
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
                let paths = fabric.paths();
                let getting = get::get(&manager, &paths, &args.target, &args.output);
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

/// `plait keygen`.
fn keys(Keygen { file, add, drop_old }: &Keygen) -> Result<(), RunError> {
    let shown = file.display();
    if *add {
        key_file::add_key(file)?;
        println!(
            "{shown} has a new key and the old one: copy it to the upstream, the relays, then the downstream, each followed by a SIGHUP"
        );
    } else if *drop_old {
        key_file::drop_old_key(file)?;
        println!("{shown} has the new key only: copy it to every host, each followed by a SIGHUP");
    } else {
        Key::generate()?.save_new(file)?;
        println!("wrote {shown}: give every role of the chain this file by --key");
    }
    Ok(())
}

/// Reads the key file again; a wrong one changes nothing.
fn reload_keys(keys: &KeyRing, path: &Path) {
    match keys.reload(path) {
        Ok(()) => {
            let ids: Vec<_> = keys.keys().iter().map(|key| key.key_id().to_string()).collect();
            tracing::info!(?ids, "the keys were read again");
        }
        Err(error) => tracing::error!("{error}; the keys stay as they are"),
    }
}

pub(super) fn legs(global: &Global) -> Legs {
    Legs::from_flags(&global.lane_cc, &global.client_cc)
}

/// The cores to run on, as `--cores` says.
pub(super) fn exec_config(global: &Global) -> exec::Config {
    let cpus = global.cores.as_ref().map_or_else(exec::available_cpus, |list| list.0.clone());
    exec::Config { backend: global.executor, cpus }
}

/// Raises the limit of open files to what the administrator allows, tells the pipe pool, and returns it.
pub(super) fn raise_descriptor_limit() -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current < limit.maximum || limit.maximum.is_none() {
        let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
        if setrlimit(Resource::Nofile, raised).is_ok() {
            limit = raised;
        }
    }
    let descriptors = limit.current.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
    net::set_descriptor_budget(descriptors);
    descriptors
}

/// One listening socket per core, to be taken by its core.
#[derive(Clone)]
pub(super) struct Listeners(Arc<Mutex<Vec<Option<BoundSocket>>>>);

impl Listeners {
    pub(super) fn bind(
        address: SocketAddr,
        cores: usize,
        transport: Transport,
    ) -> Result<(Self, SocketAddr), RunError> {
        let (sockets, address) = Listener::bind(address, cores, transport)
            .map_err(|source| RunError::Listen { address, source })?;
        Ok((Self::of(sockets), address))
    }

    /// Those that the process was started with, or else those of the flags. Lanes may come by MPTCP, clients come by TCP.
    fn open(
        &Listen { listen, take_over, .. }: &Listen,
        global: &Global,
        transport: Transport,
    ) -> Result<(Self, SocketAddr), RunError> {
        let cores = exec_config(global).cpus.len();
        if let Some((sockets, address)) = Listener::inherited(cores)? {
            return Ok((Self::of(sockets), address));
        }
        let address = listen.ok_or(RunError::NoListen)?;
        if !take_over {
            return Self::bind(address, cores, transport);
        }
        let (sockets, address) = Listener::join(address, cores, transport)
            .map_err(|source| RunError::Listen { address, source })?;
        Ok((Self::of(sockets), address))
    }

    pub(super) fn of(sockets: Vec<BoundSocket>) -> Self {
        Self(Arc::new(Mutex::new(sockets.into_iter().map(Some).collect())))
    }

    pub(super) fn take(&self, core: Core) -> Option<Listener> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)[core.0].take().map(Listener::new)
    }
}

/// For a role all of whose settings are flags: a signal that is meant for others must not end it.
fn nothing_to_reload() -> Reload {
    Box::new(|| tracing::info!("SIGHUP: there are no settings to read again"))
}

/// Runs `role` on every core until SIGTERM, and says where it listens.
fn serve<F, Fut>(
    global: &Global,
    port: (Listeners, SocketAddr),
    reload: Reload,
    sources: Sources,
    role: F,
) -> Result<(), RunError>
where
    F: Fn(Core, Listener, watch::Receiver<bool>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + 'static,
{
    serve_once_ready(global, port, reload, sources, move |core, listener, stopped| {
        (role(core, listener, stopped), std::future::ready(()))
    })
}

/// The same for a role that serves at once, but says so once the second of its futures is over on every core.
fn serve_once_ready<F, Fut, Ready>(
    global: &Global,
    (listeners, address): (Listeners, SocketAddr),
    reload: Reload,
    sources: Sources,
    role: F,
) -> Result<(), RunError>
where
    F: Fn(Core, Listener, watch::Receiver<bool>) -> (Fut, Ready) + Send + Sync + 'static,
    Fut: Future<Output = ()> + 'static,
    Ready: Future<Output = ()> + 'static,
{
    let config = exec_config(global);
    raise_descriptor_limit();
    net::payload_move();
    let admin = Admin::open(global, sources)?;
    let stopped = stop_signal(Some(reload))?;
    tracing::info!(executor = %config.backend, cpus = ?config.cpus, "started");
    let service = Service::new(config.cpus.len());
    let admin = Arc::new(admin);
    exec::run(&config, move |core| {
        admin.iter().for_each(|admin| admin.start(core, &stopped));
        let begun = listeners.take(core).map(|listener| role(core, listener, stopped.clone()));
        let (service, admin) = (service.clone(), admin.clone());
        async move {
            let Some((serving, ready)) = begun else { return };
            exec::spawn(async move {
                ready.await;
                service.started(core, || {
                    println!("listening on {address}");
                    admin.iter().for_each(Admin::announce);
                });
            });
            serving.await;
        }
    })?;
    Ok(())
}
