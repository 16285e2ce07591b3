//! In: what to compare. Out: running proxies and roots: plait's roles, HAProxy, nginx.
//!
//! Called by the scenarios. Invariant: every competitor gets one thread and otherwise its defaults, except for what
//! its label says.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use clap::ValueEnum;

use crate::Outcome;
use crate::processes::Process;

/// What HAProxy does with bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Haproxy {
    /// `option splice-request` and `splice-response` with `tune.pipesize 1048576`.
    SpliceBigPipe,
    /// The two options alone.
    Splice,
    /// Neither: recv and send through its buffers.
    Copy,
}

impl Haproxy {
    /// Name in the tables.
    pub fn label(self) -> &'static str {
        match self {
            Self::SpliceBigPipe => "HAProxy, splice, 1 MiB pipe",
            Self::Splice => "HAProxy, splice, as it comes",
            Self::Copy => "HAProxy, no splice",
        }
    }
}

/// A running HAProxy in TCP mode.
pub struct HaproxyServer {
    /// The process whose CPU time counts.
    pub process: Process,
    /// Where it takes connections.
    pub address: SocketAddr,
    statistics: PathBuf,
}

impl HaproxyServer {
    /// Starts one that forwards to `backend`; its files go to `dir`.
    pub fn start(kind: Haproxy, backend: SocketAddr, dir: &Path) -> Outcome<Self> {
        let stem = unique("haproxy");
        let (config, statistics) = (dir.join(format!("{stem}.cfg")), dir.join(format!("{stem}.sock")));
        let address = free_address()?;
        let pipe_size = if kind == Haproxy::SpliceBigPipe { "tune.pipesize 1048576" } else { "" };
        let splice = match kind {
            Haproxy::Copy => "",
            Haproxy::Splice | Haproxy::SpliceBigPipe => "option splice-request\n    option splice-response",
        };
        fs::write(
            &config,
            format!(
                "global
    nbthread 1
    stats socket {statistics}
    {pipe_size}
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    {splice}
listen relay
    bind {address}
    server next {backend}
",
                statistics = statistics.display()
            ),
        )?;
        let mut command = Command::new("haproxy");
        let mut process = Process::start(kind.label(), command.arg("-db").arg("-f").arg(&config), dir)?;
        // It answers once it polls, and it binds all its sockets before.
        process.wait_until(|| ask(&statistics).is_ok())?;
        Ok(Self { process, address, statistics })
    }

    /// How many bytes went out by splice so far, by its own account.
    pub fn spliced_bytes(&self) -> Outcome<u64> {
        let answer = ask(&self.statistics)?;
        // Older versions, 2.6 among them, misspell it.
        let names = ["TotalSplicedBytesOut:", "TotalSplicdedBytesOut:"];
        let line = answer.lines().find_map(|line| names.iter().find_map(|name| line.strip_prefix(name)));
        Ok(line.ok_or("HAProxy does not count spliced bytes")?.trim().parse()?)
    }
}

fn ask(statistics: &Path) -> Outcome<String> {
    let mut socket = UnixStream::connect(statistics)?;
    socket.write_all(b"show info\n")?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    if answer.is_empty() { Err("HAProxy did not answer".into()) } else { Ok(answer) }
}

/// A running nginx that serves files with sendfile.
pub struct NginxRoot {
    /// Ends with this guard.
    _process: Process,
    /// Where it takes requests.
    pub address: SocketAddr,
    sent: PathBuf,
}

impl NginxRoot {
    /// Bytes of bodies that it has sent so far.
    pub fn sent_bytes(&self) -> Outcome<u64> {
        let lines = fs::read_to_string(&self.sent)?;
        Ok(lines.lines().map(str::parse::<u64>).sum::<Result<u64, _>>()?)
    }

    /// Starts one that serves `root`.
    pub fn start(root: &Path) -> Outcome<Self> {
        let prefix = root.join(unique("nginx"));
        fs::create_dir(&prefix)?;
        let address = free_address()?;
        let config = prefix.join("nginx.conf");
        fs::write(
            &config,
            // One process: a worker would drop to a user who may not enter the temporary directory.
            format!(
                "daemon off; master_process off; pid {prefix}/pid; error_log stderr;
events {{ }}
http {{
    log_format sent '$body_bytes_sent'; access_log {prefix}/sent sent;
    sendfile on; default_type application/octet-stream;
    client_body_temp_path {prefix}; proxy_temp_path {prefix}; fastcgi_temp_path {prefix};
    uwsgi_temp_path {prefix}; scgi_temp_path {prefix};
    server {{ listen {address}; location / {{ root {root}; }} }}
}}
",
                prefix = prefix.display(),
                root = root.display()
            ),
        )?;
        let mut command = Command::new("nginx");
        command.arg("-e").arg("stderr").arg("-p").arg(&prefix).arg("-c").arg(&config);
        let mut process = Process::start("nginx", &mut command, root)?;
        process.wait_until(|| TcpStream::connect(address).is_ok())?;
        Ok(Self { _process: process, address, sent: prefix.join("sent") })
    }
}

/// `--executor`.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Executor {
    /// The default.
    TokioUring,
    /// The other.
    Glommio,
}

impl Executor {
    /// Name on plait's command line and in the tables.
    pub fn label(self) -> &'static str {
        match self {
            Self::TokioUring => "tokio-uring",
            Self::Glommio => "glommio",
        }
    }
}

/// How plait's roles are started: the global flags.
#[derive(Clone, Copy)]
pub struct Setting<'a> {
    /// `--executor`.
    pub executor: Executor,
    /// `--placement local|spread|auto`.
    pub placement: &'a str,
    /// `--cores`.
    pub cores: &'a str,
    /// `--lane-cc` and `--client-cc`; `None` leaves both to plait.
    pub control: Option<&'a str>,
}

impl<'a> Setting<'a> {
    /// One thread, as HAProxy gets.
    pub fn single(executor: Executor, control: Option<&'a str>) -> Self {
        Self { executor, placement: "local", cores: "0", control }
    }
}

/// A running role of plait.
pub struct Role {
    /// The process whose CPU time counts.
    pub process: Process,
    /// Where it listens.
    pub address: SocketAddr,
}

/// plait's roles, started with one key.
pub struct Plait<'a> {
    dir: &'a Path,
    key: PathBuf,
}

impl<'a> Plait<'a> {
    /// Makes a key with `plait keygen`; the roles' logs go to `dir`.
    pub fn new(dir: &'a Path) -> Outcome<Self> {
        let key = dir.join(unique("key"));
        let output = Command::new(env!("CARGO_BIN_EXE_plait")).arg("keygen").arg(&key).output()?;
        if !output.status.success() || !key.exists() {
            return Err(format!(
                "`plait keygen` made no key ({}): {}",
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            )
            .into());
        }
        Ok(Self { dir, key })
    }

    /// The key file.
    pub fn key(&self) -> &Path {
        &self.key
    }

    /// `plait relay`, allowed to forward to `next`.
    pub fn relay(&self, setting: Setting<'_>, next: Option<SocketAddr>) -> Outcome<Role> {
        let allow = next.map(|next| next.to_string());
        let allow = allow.as_ref().map_or(vec![], |next| vec!["--allow", next]);
        self.start("relay", setting, true, &allow)
    }

    /// The same with flags, forwarding to anybody.
    pub fn relay_with(&self, setting: Setting<'_>, flags: &[&str]) -> Outcome<Role> {
        self.start("relay", setting, true, flags)
    }

    /// `plait upstream` in front of a directory or an http:// URL.
    pub fn upstream(&self, setting: Setting<'_>, root: &str) -> Outcome<Role> {
        self.start("upstream", setting, true, &["--root", root])
    }

    /// `plait root`.
    pub fn root(&self, setting: Setting<'_>, dir: &str) -> Outcome<Role> {
        self.start("root", setting, false, &["--dir", dir])
    }

    /// `plait downstream` with one lane on each of `paths`.
    pub fn downstream(&self, setting: Setting<'_>, paths: &[String]) -> Outcome<Role> {
        self.downstream_with(setting, paths, &[])
    }

    /// The same with more flags.
    pub fn downstream_with(&self, setting: Setting<'_>, paths: &[String], more: &[&str]) -> Outcome<Role> {
        let mut arguments = vec!["--lanes", "1"];
        for path in paths {
            arguments.extend(["--path", path]);
        }
        arguments.extend(more);
        self.start("downstream", setting, true, &arguments)
    }

    fn start(&self, role: &str, setting: Setting<'_>, has_lanes: bool, arguments: &[&str]) -> Outcome<Role> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_plait"));
        command.args([role, "--listen", "127.0.0.1:0", "--executor", setting.executor.label()]);
        command.args(["--placement", setting.placement, "--cores", setting.cores]).args(arguments);
        if has_lanes {
            command.arg("--key").arg(&self.key);
            if let Some(control) = setting.control {
                command.args(["--lane-cc", control, "--client-cc", control]);
            }
        }
        let mut process = Process::start(&format!("plait {role}"), &mut command, self.dir)?;
        let address = process.listening_on()?;
        Ok(Role { process, address })
    }
}

/// An address that was free a moment ago, for servers that cannot pick one and say so.
pub fn free_address() -> Outcome<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn unique(stem: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{stem}-{}", COUNT.fetch_add(1, Ordering::Relaxed))
}
