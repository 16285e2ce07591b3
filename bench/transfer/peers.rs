//! Everybody else's columns: one plain connection, curl, aria2c, kernel MPTCP, HAProxy.
//!
//! In: a column. Out: the sample of one transfer. Called by `rounds`. Their servers (`plait root`, which is a plain
//! sendfile server to them, HAProxy, an MPTCP server of the bench's own) run as long as the row does and send with the
//! row's congestion control, so that every column has the same.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::Outcome;
use crate::cell::Sample;
use crate::client::Download;
use crate::columns::Column;
use crate::measure::{CpuByRole, Ground};
use crate::origin::MptcpOrigin;
use crate::pattern::{self, FILE_NAME};
use crate::processes::{Finished, Process};

/// Ports on hosts that nobody else has.
const ROOT_PORT: u16 = 8000;
const MPTCP_PORT: u16 = 8001;
const HAPROXY_PORT: u16 = 8002;
/// What a program may take beyond its own deadline before it is killed.
const GRACE: Duration = Duration::from_secs(2);
/// Status with which curl says that its --max-time is over.
const CURL_TIMED_OUT: &str = "28";

/// The peers' servers of one row.
pub struct Peers<'a> {
    ground: &'a Ground<'a>,
    root: Process,
    haproxy: Outcome<Process>,
    mptcp: Outcome<MptcpOrigin>,
}

impl<'a> Peers<'a> {
    /// Starts the servers. Which of them is missing matters only to its column.
    pub fn start(ground: &'a Ground<'a>) -> Outcome<Self> {
        let file = ground.dir.join(FILE_NAME);
        let mptcp = MptcpOrigin::start(ground.lab.server(), MPTCP_PORT, file, &ground.row.cc);
        Ok(Self { ground, root: start_root(ground)?, haproxy: start_haproxy(ground), mptcp })
    }

    /// Why `column` cannot be measured, if it cannot.
    pub fn absence(&self, column: Column) -> Option<String> {
        match column {
            Column::Curl => missing("curl", "--version"),
            Column::AriaOne | Column::AriaEight => missing("aria2c", "--version"),
            Column::Haproxy => {
                missing("haproxy", "-v").or_else(|| Some(self.haproxy.as_ref().err()?.to_string()))
            }
            Column::KernelMptcp => no_mptcp().or_else(|| Some(self.mptcp.as_ref().err()?.to_string())),
            _ => None,
        }
    }

    /// One transfer.
    pub fn transfer(&self, column: Column) -> Outcome<Sample> {
        let ground = self.ground;
        let best = ground.row.best_path();
        let source = Some(ground.lab.client_address(best));
        let server = |port| SocketAddr::new(ground.lab.server_address(best), port);
        let own = |server: SocketAddr, protocol| {
            let download = crate::client::Request { source, ..ground.request(server, protocol) }.run()?;
            Ok((download, CpuByRole::new()))
        };
        ground.measure(
            || self.cpu_by_role(column),
            || match column {
                Column::Curl => self.curl(ground.lab.client_address(best), server(ROOT_PORT)),
                Column::AriaOne => self.aria2c(1),
                Column::AriaEight => self.aria2c(8),
                Column::KernelMptcp => {
                    let (download, mut cpu) = own(server(MPTCP_PORT), Protocol::MPTCP)?;
                    let origin = self.mptcp.as_ref().ok().and_then(MptcpOrigin::cpu_ns);
                    cpu.extend(origin.map(|ns| ("root", ns)));
                    Ok((download, cpu))
                }
                Column::Haproxy => {
                    own(SocketAddr::new(ground.lab.relay_address(best), HAPROXY_PORT), Protocol::TCP)
                }
                _ => own(server(ROOT_PORT), Protocol::TCP),
            },
        )
    }

    fn cpu_by_role(&self, column: Column) -> Outcome<CpuByRole> {
        let mut cpu = CpuByRole::new();
        if column != Column::KernelMptcp {
            cpu.insert("root", self.root.cpu_ns()?);
        }
        if let (Column::Haproxy, Ok(haproxy)) = (column, &self.haproxy) {
            cpu.insert("relays", haproxy.cpu_ns()?);
        }
        Ok(cpu)
    }

    fn curl(&self, source: IpAddr, server: SocketAddr) -> Outcome<(Download, CpuByRole)> {
        let mut command = self.ground.lab.client().command("curl");
        command.args(["--disable", "--noproxy", "*", "--silent", "--show-error", "--output", "/dev/null"]);
        command.arg("--interface").arg(source.to_string());
        command.arg("--max-time").arg(self.ground.deadline.as_secs_f64().to_string());
        command.args(["--write-out", "%{exitcode} %{size_download} %{time_total} %{time_starttransfer}"]);
        command.arg(format!("http://{server}/{FILE_NAME}"));
        let finished = self.run("curl", &mut command)?;
        let fields: Vec<&str> = finished.stdout.split_whitespace().collect();
        let &[status, bytes, seconds, first_byte_s] = fields.as_slice() else {
            return Err(finished.trouble.unwrap_or(format!("curl printed `{}`", finished.stdout)).into());
        };
        let download = Download {
            bytes: bytes.parse()?,
            seconds: seconds.parse()?,
            first_byte_s: Some(first_byte_s.parse()?),
            stall_s: None,
            is_complete: status != CURL_TIMED_OUT,
            mptcp: None,
        };
        match finished.trouble {
            Some(trouble) if download.is_complete => Err(trouble.into()),
            None if download.bytes != self.ground.bytes => {
                Err(format!("LOST BYTES: curl took {} of {}", download.bytes, self.ground.bytes).into())
            }
            _ => Ok((download, CpuByRole::from([("client", finished.cpu_ns)]))),
        }
    }

    /// `connections` on each path, pieces as small as it offers.
    fn aria2c(&self, connections: usize) -> Outcome<(Download, CpuByRole)> {
        let ground = self.ground;
        let paths = ground.lab.paths();
        let output = ground.dir.join("aria2c.out");
        let mut command = ground.lab.client().command("aria2c");
        command.args(["--no-conf", "--quiet", "--allow-overwrite=true", "--file-allocation=none"]);
        command.args(["--min-split-size=1M", "--disk-cache=0", "--no-netrc", "--all-proxy="]);
        command.arg(format!("--max-connection-per-server={connections}"));
        command.arg(format!("--split={}", connections * paths));
        command.arg(format!("--dir={}", ground.dir.display())).arg("--out=aria2c.out");
        for path in 0..paths {
            let server = SocketAddr::new(ground.lab.server_address(path), ROOT_PORT);
            command.arg(format!("http://{server}/{FILE_NAME}"));
        }
        let begin = Instant::now();
        let finished = self.run("aria2c", &mut command)?;
        let seconds = begin.elapsed().as_secs_f64();
        let outcome = self.judge_output(&output, &finished);
        for file in [output.clone(), PathBuf::from(format!("{}.aria2", output.display()))] {
            // Not there is fine: the control file goes with the last byte.
            let _ = fs::remove_file(file);
        }
        let (bytes, is_complete) = outcome?;
        let download =
            Download { bytes, seconds, first_byte_s: None, stall_s: None, is_complete, mptcp: None };
        Ok((download, CpuByRole::from([("client", finished.cpu_ns)])))
    }

    /// What aria2c wrote: bytes, and whether that is all. Of a part, which has holes, the blocks count.
    fn judge_output(&self, output: &PathBuf, finished: &Finished) -> Outcome<(u64, bool)> {
        if !finished.in_time {
            const BLOCK_BYTES: u64 = 512;
            return Ok(((fs::metadata(output)?.blocks() * BLOCK_BYTES).min(self.ground.bytes), false));
        }
        if let Some(trouble) = &finished.trouble {
            return Err(trouble.clone().into());
        }
        pattern::check(self.ground.bytes, File::open(output)?)??;
        Ok((self.ground.bytes, true))
    }

    fn run(&self, name: &str, command: &mut Command) -> Outcome<Finished> {
        // curl keeps the deadline itself.
        let grace = if name == "curl" { GRACE } else { Duration::ZERO };
        Process::start(name, command, self.ground.dir)?.finish(self.ground.deadline + grace)
    }
}

fn start_root(ground: &Ground<'_>) -> Outcome<Process> {
    let mut command = ground.lab.server().command(env!("CARGO_BIN_EXE_plait"));
    command.arg("root").arg("--listen").arg(SocketAddr::from((Ipv4Addr::UNSPECIFIED, ROOT_PORT)).to_string());
    command.arg("--dir").arg(ground.dir).args(["--client-cc", &ground.row.cc]);
    let mut root = Process::start("plait root", &mut command, ground.dir)?;
    root.listening_on()?;
    Ok(root)
}

/// HAProxy on the best path's relay host, as fast as it can be: splice with 1 MiB pipes.
fn start_haproxy(ground: &Ground<'_>) -> Outcome<Process> {
    let path = ground.row.best_path();
    let (config, statistics) = (ground.dir.join("haproxy.cfg"), ground.dir.join("haproxy.sock"));
    fs::write(
        &config,
        format!(
            "global
    stats socket {statistics}
    tune.pipesize 1048576
defaults
    mode tcp
    timeout connect 10s
    timeout client 1h
    timeout server 1h
    option splice-request
    option splice-response
listen relay
    bind {address}:{HAPROXY_PORT}
    server root {server}:{ROOT_PORT}
",
            statistics = statistics.display(),
            address = ground.lab.relay_address(path),
            server = ground.lab.server_address(path),
        ),
    )?;
    let mut command = ground.lab.relay(path).command("haproxy");
    let mut process = Process::start("HAProxy", command.arg("-db").arg("-f").arg(&config), ground.dir)?;
    // It answers once it polls, and it binds all its sockets before.
    process.wait_until(|| UnixStream::connect(&statistics).is_ok())?;
    Ok(process)
}

/// Says so if `program` cannot be started.
fn missing(program: &str, argument: &str) -> Option<String> {
    let mut command = Command::new(program);
    command.arg(argument).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().err().map(|_| format!("{program} is not installed"))
}

fn no_mptcp() -> Option<String> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP));
    socket.err().map(|error| format!("this kernel has no MPTCP: {error}"))
}
