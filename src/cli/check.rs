//! `plait check`: everything that a start would find wrong with its settings, and all of it at once.
//!
//! In: a role with its flags. Out: a line for each thing that was looked at, what to change where something is wrong, and a
//! status other than 0 then. Called by the command line. Invariant: nothing is changed, and no client is served; ports are
//! bound for an instant, and an idle cache is locked for one.

use std::{
    fmt::Display,
    fs::{self, File},
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustix::{
    fs::{Access, FlockOperation, access, flock},
    io::Errno,
};

use super::{
    args::{self, Check, CheckedRole, Global, Listen},
    discovery::{self, Discovery},
    roles::{RunError, exec_config, legs, raise_descriptor_limit},
};
use crate::{
    cache::CacheError,
    exec::{self, Core},
    http::{head::Parsed, response::parse_response},
    lanes::{PathStatus, Pool, PoolConfig},
    net::{Listener, Names},
    relay::AllowRule,
    root::files::open_directory,
    upstream::RootOrigin,
    wire::{key_ring::KeyRing, route::PathSpec},
};

/// Reaching a root, and dialling a path over all its hops: what a request waits for its first lane.
const PROBE_DEADLINE: Duration = Duration::from_secs(10);

/// Some settings are wrong.
#[derive(Debug, thiserror::Error)]
#[error("{wrong} of {looked_at} things are wrong: the role would not start, or not serve")]
pub struct CheckError {
    wrong: usize,
    looked_at: usize,
}

/// What was found so far.
#[derive(Default)]
struct Findings {
    wrong: usize,
    looked_at: usize,
}

impl Findings {
    /// Says what came of looking at `what`.
    fn note<T>(&mut self, what: impl Display, outcome: Result<T, impl Display>) -> Option<T> {
        self.looked_at += 1;
        match outcome {
            Ok(found) => {
                println!("ok     {what}");
                Some(found)
            }
            Err(error) => {
                self.wrong += 1;
                println!("WRONG  {what}: {error}");
                None
            }
        }
    }
}

/// Looks at all of it.
pub(super) fn run(global: &Global, check: &Check) -> Result<(), CheckError> {
    let mut findings = Findings::default();
    let config = exec_config(global);
    let known = exec::available_cpus();
    let strange: Vec<_> = config.cpus.iter().filter(|cpu| !known.contains(cpu)).collect();
    let there = if strange.is_empty() {
        Ok(())
    } else {
        Err(format!("this process may not use {strange:?} (change --cores)"))
    };
    if findings.note(format_args!("cores {:?}", config.cpus), there).is_some() {
        // As a start does it: io_uring may be forbidden, memory for its rings may not be locked.
        findings.note(format_args!("executor {}", global.executor), exec::run(&config, |_| async {}));
    }
    congestion(&mut findings, global);
    if let Some(admin) = global.admin {
        port(&mut findings, "admin endpoint", Some(admin.0), false, "--admin");
    }
    match &check.role {
        CheckedRole::Root(args) => {
            listens(&mut findings, &args.listen);
            clients(&mut findings, args.clients.max_connections);
            findings.note(format_args!("directory {}", args.dir.display()), open_directory(&args.dir));
        }
        CheckedRole::Upstream(args) => {
            listens(&mut findings, &args.listen);
            key(&mut findings, &args.key);
            let root = findings.note(format_args!("root {}", args.root), args.root.parse::<RootOrigin>());
            if let Some(RootOrigin::Http(root)) = root.filter(|_| check.probe) {
                findings.note(format_args!("root {root} answers"), reach(&root));
            }
        }
        CheckedRole::Relay(args) => {
            listens(&mut findings, &args.listen);
            key(&mut findings, &args.key);
            if check.probe {
                args.allow.iter().for_each(|rule| next_hop(&mut findings, rule));
                println!(
                    "note   routes come with the lanes: `plait check --probe downstream` dials them through this relay"
                );
            }
        }
        CheckedRole::Downstream(args) => downstream(&mut findings, global, args, check.probe),
    }
    match findings {
        Findings { wrong: 0, .. } => Ok(()),
        Findings { wrong, looked_at } => Err(CheckError { wrong, looked_at }),
    }
}

fn downstream(findings: &mut Findings, global: &Global, args: &args::Downstream, probe: bool) {
    listens(findings, &args.listen);
    clients(findings, args.clients.max_connections);
    let keys = key(findings, &args.paths.key);
    let found = findings.note("paths", Discovery::start(&args.paths));
    let specs = found.map(|(discovery, errors)| {
        for error in errors {
            findings.note("services that DNS names", Err::<(), _>(error));
        }
        let specs = discovery.specs(&Vec::new());
        discovery.services().for_each(|(name, targets)| {
            findings.note(format_args!("targets of srv:{name}: {targets}"), Ok::<_, CheckError>(()));
        });
        specs
    });
    if let Some(dir) = &args.cache {
        findings
            .note(format_args!("cache {}", dir.display()), cache(dir, args.listen.comes_beside_another()));
    }
    if let (true, Some(keys), Some(specs)) = (probe, keys, specs) {
        let (keys, names) = (Arc::new(keys), discovery::names(&args.paths));
        for spec in specs {
            findings
                .note(format_args!("path {spec} leads to an upstream"), dial(global, &keys, names, &spec));
        }
    }
}

fn listens(findings: &mut Findings, listen: &Listen) {
    port(findings, "listens on", listen.listen, listen.take_over, "--listen");
}

fn port(findings: &mut Findings, what: &str, address: Option<SocketAddr>, take_over: bool, flag: &str) {
    let Some(address) = address else {
        println!("note   {what}: a socket that systemd passes (there is no {flag})");
        return;
    };
    let bound = Listener::may_bind(address, take_over)
        .map_err(|error| format!("{error} (change {flag}, unless it is this very role that runs there)"));
    findings.note(format_args!("{what} {address}"), bound);
}

fn key(findings: &mut Findings, path: &Path) -> Option<KeyRing> {
    findings.note(format_args!("key {}", path.display()), KeyRing::load(path))
}

/// A start makes do with fewer.
fn clients(findings: &mut Findings, wanted: u32) {
    let possible = raise_descriptor_limit() / 2;
    if possible < wanted as usize {
        println!("note   {possible} connections of clients instead of {wanted}: `ulimit -n` allows no more");
    } else {
        findings.note(format_args!("{wanted} connections of clients"), Ok::<_, CheckError>(()));
    }
}

/// A name that the kernel does not take falls back at a start, with a warning.
fn congestion(findings: &mut Findings, global: &Global) {
    for (flag, name) in [("--lane-cc", &global.lane_cc), ("--client-cc", &global.client_cc)] {
        if name != "auto" {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
            let set = socket.and_then(|socket| socket.set_tcp_congestion(name.as_bytes()));
            let remedy = |error| format!("{error} (`modprobe tcp_{name}`, or change {flag})");
            findings.note(format_args!("congestion control {name}"), set.map_err(remedy));
        }
    }
}

/// Whether one that is there can be used, and is free, or one that is not there could be made. Nothing in it is made or
/// replaced: what the superuser makes here the role could not open. Whoever takes over waits for one that another process
/// has.
fn cache(dir: &Path, takes_over: bool) -> Result<(), String> {
    if !dir.exists() {
        let parent = dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("."));
        let remedy = |error| format!("cannot be made in {}: {error} (change --cache)", parent.display());
        return access(parent, Access::WRITE_OK | Access::EXEC_OK).map_err(remedy);
    }
    let refused = |path: &Path, source| CacheError::Directory { path: path.to_owned(), source }.to_string();
    // As a directory, whatever it is.
    fs::read_dir(dir).map_err(|error| refused(dir, error))?;
    let (objects, unnamed) = (dir.join("objects"), dir.join("unnamed"));
    for place in [dir, &objects, &unnamed] {
        match access(place, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK) {
            Err(Errno::NOENT) => {}
            usable => usable.map_err(|error| refused(place, error.into()))?,
        }
    }
    let path = dir.join("lock");
    let lock = match File::options().read(true).write(true).open(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        opened => opened.map_err(|error| refused(&path, error))?,
    };
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) if takes_over => Ok(()),
        Err(Errno::WOULDBLOCK) => {
            let taken = CacheError::Taken { path: dir.to_owned() };
            Err(format!("{taken}, unless it is this very role that runs there"))
        }
        locked => locked.map_err(|error| refused(&path, error.into())),
    }
}

/// Whether a rule's host has an address; names are looked up for each lane, and by this relay.
fn next_hop(findings: &mut Findings, rule: &AllowRule) {
    let Some(host) = rule.host() else { return };
    // IPv6 addresses may stand in brackets.
    let host = host.trim_matches(['[', ']']);
    let found = (host, 0).to_socket_addrs().map_err(|error| format!("{error} (change --allow)"));
    let found =
        found.and_then(|mut found| found.next().ok_or("its name has no address (change --allow)".into()));
    findings.note(format_args!("next hop {rule} has an address"), found);
}

/// Asks for something by HTTP: anybody may listen on a port.
fn reach(root: &str) -> Result<(), String> {
    let addresses = root.to_socket_addrs().map_err(|error| format!("{error} (change --root)"))?;
    let mut outcome = Err("its name has no address (change --root)".to_owned());
    for address in addresses {
        match TcpStream::connect_timeout(&address, PROBE_DEADLINE) {
            Ok(stream) => {
                return ask(stream, root).map_err(|error| format!("{error} (is it an HTTP server?)"));
            }
            Err(error) => outcome = Err(format!("{error} (is it running?)")),
        }
    }
    outcome
}

/// Any answer will do that does not say that the server cannot serve.
fn ask(mut stream: TcpStream, host: &str) -> Result<(), String> {
    let text = |error: &dyn Display| error.to_string();
    let until = Instant::now() + PROBE_DEADLINE;
    let request = format!("HEAD / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.set_write_timeout(Some(PROBE_DEADLINE)).map_err(|error| text(&error))?;
    stream.write_all(request.as_bytes()).map_err(|error| text(&error))?;
    let mut head = Vec::new();
    loop {
        match parse_response(&head).map_err(|error| text(&error))? {
            Parsed::Complete { head, .. } if head.status.is_server_error() => {
                return Err(format!("it answers {}", head.status));
            }
            Parsed::Complete { .. } => return Ok(()),
            Parsed::Partial => {}
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(format!("no answer within {} s", PROBE_DEADLINE.as_secs()));
        }
        stream.set_read_timeout(Some(left)).map_err(|error| text(&error))?;
        let mut part = [0; 4096];
        match stream.read(&mut part) {
            Ok(0) => return Err(format!("it closes after {} bytes of an answer", head.len())),
            Ok(came) => head.extend_from_slice(&part[..came]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(text(&error)),
        }
    }
}

/// One lane over `spec`, on a core of its own; what the last hop says.
fn dial(global: &Global, keys: &Arc<KeyRing>, names: Names, spec: &PathSpec) -> Result<(), String> {
    let config =
        PoolConfig { keys: keys.clone(), congestion: legs(global).lane, names, lanes_warm: 0, lanes_max: 1 };
    let outcome = Arc::new(Mutex::new(None));
    let (told, spec) = (outcome.clone(), spec.clone());
    let mut cores = exec_config(global);
    cores.cpus.truncate(1);
    let ran = exec::run(&cores, move |_: Core| {
        let (told, config, spec) = (told.clone(), config.clone(), spec.clone());
        async move {
            let pool = Pool::new(Arc::new(PathStatus::new(spec)), config);
            let leased = match exec::timeout(PROBE_DEADLINE, pool.lease_next(|| true)).await {
                Ok(leased) => leased.map(drop).map_err(|error| error.to_string()),
                Err(exec::Elapsed) => Err(format!("no answer within {} s", PROBE_DEADLINE.as_secs())),
            };
            *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(leased);
        }
    });
    ran.map_err(|error| error.to_string())?;
    let outcome = outcome.lock().unwrap_or_else(PoisonError::into_inner).take();
    outcome.unwrap_or_else(|| Err("the dial was cut off".into()))
}

impl From<CheckError> for RunError {
    fn from(error: CheckError) -> Self {
        Self::Check(error)
    }
}
