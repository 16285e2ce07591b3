//! Starts the role that a command names: binds, reads keys, starts the cores, waits for SIGTERM.
//!
//! Invariant: everything that can be wrong with the settings is found before the first core runs, and said in one line
//! that names the flag.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use rustix::process::{Resource, getrlimit, setrlimit};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};
use tokio::sync::watch;

use super::args::{Arguments, Command, Global, Keygen, Paths};
use crate::{
    exec::{self, Core},
    lanes::{PathStatus, Pool, PoolConfig},
    mp::manager::{Load, Manager, Placement},
    net::{self, Legs, Listener},
    relay,
    wire::{key::Key, key_file::KeyFileError},
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
            serve(&global, args.listen, move |_, listener, shutdown| {
                relay::serve(relay.clone(), listener, shutdown)
            })
        }
        _ => todo!(),
    }
}

fn load_key(path: &Path) -> Result<Arc<Key>, RunError> {
    Ok(Arc::new(Key::load(path)?))
}

fn legs(global: &Global) -> Legs {
    Legs::from_flags(&global.lane_cc, &global.client_cc)
}

/// The cores to run on, as `--cores` says.
fn exec_config(global: &Global) -> exec::Config {
    let cpus = global.cores.as_ref().map_or_else(exec::available_cpus, |list| list.0.clone());
    exec::Config { backend: global.executor, cpus }
}

/// Raises the limit of open files to what the administrator allows, and tells the pipe pool.
fn raise_descriptor_limit() {
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
fn shutdown_signal() -> Result<watch::Receiver<bool>, RunError> {
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
    pub(super) fn bind(address: SocketAddr, cores: usize) -> Result<(Self, SocketAddr), RunError> {
        let (fds, address) =
            Listener::bind(address, cores).map_err(|source| RunError::Listen { address, source })?;
        Ok((Self(Arc::new(Mutex::new(fds.into_iter().map(Some).collect()))), address))
    }

    pub(super) fn take(&self, core: Core) -> Option<Listener> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)[core.0].take().map(Listener::new)
    }
}

/// Binds, says so, and runs `role` on every core until SIGTERM.
fn serve<F, Fut>(global: &Global, address: SocketAddr, role: F) -> Result<(), RunError>
where
    F: Fn(Core, Listener, watch::Receiver<bool>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + 'static,
{
    let config = exec_config(global);
    raise_descriptor_limit();
    net::payload_move();
    let stopped = shutdown_signal()?;
    let (listeners, address) = Listeners::bind(address, config.cpus.len())?;
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
