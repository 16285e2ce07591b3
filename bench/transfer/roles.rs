//! Plait's columns: the real roles in the lab's hosts, started afresh for every round.
//!
//! In: a column. Out: running processes that carry the file as often as they are asked. Called by `rounds`.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use plait::lab::chain::{Chain, ChainOptions, Content, Role, Via};
use plait::observe::Snapshot;
use socket2::Protocol;

use crate::Outcome;
use crate::cell::Sample;
use crate::client::Mptcp;
use crate::columns::Column;
use crate::measure::{CpuByRole, Ground};

/// Where the downstream tells how its MPTCP lane stands; its host is its own.
const ADMIN_PORT: u16 = 8081;
/// It answers within milliseconds, or never.
const ADMIN_DEADLINE: Duration = Duration::from_secs(2);
/// A lane is given back within a round trip of the last byte, unless it breaks.
const GIVEN_BACK_MAX: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Plait's processes for one column, started for one round.
pub struct Roles<'a> {
    column: Column,
    ground: &'a Ground<'a>,
    chain: Chain,
}

impl<'a> Roles<'a> {
    /// Starts them, and waits until all of them listen.
    pub fn start(column: Column, ground: &'a Ground<'a>) -> Outcome<Self> {
        if column == Column::MptcpLane && !ground.lab.has_mptcp() {
            return Err("this kernel has no MPTCP".into());
        }
        Ok(Self { column, ground, chain: Chain::start(ground.lab, &options(column, ground))? })
    }

    /// One transfer.
    pub fn transfer(&self) -> Outcome<Sample> {
        let cpu = || cpu_by_role(&self.chain);
        let mut sample = self.ground.measure(cpu, || {
            let download = self.ground.request(self.chain.entrance(), Protocol::TCP).run();
            let download = download.map_err(|error| with_logs(&self.chain, &error.to_string()))?;
            Ok((download, CpuByRole::new()))
        })?;
        if self.column == Column::MptcpLane {
            sample.download.mptcp = Some(self.mptcp(sample.download.is_complete)?);
        }
        Ok(sample)
    }

    /// What the downstream says of its lane. It counts subflows when a transfer gives the lane back, which one that was cut
    /// off does not; a fallback is known from the handshake on.
    fn mptcp(&self, is_complete: bool) -> Outcome<Mptcp> {
        let begin = Instant::now();
        loop {
            let snapshot = self.snapshot()?;
            let [path] = snapshot.paths.as_slice() else {
                return Err("the downstream has not one path, but an MPTCP lane".into());
            };
            let is_back = path.leased == 0;
            if is_back || !is_complete || begin.elapsed() > GIVEN_BACK_MAX {
                let has_looked = is_back && is_complete && !path.fell_back;
                let subflows = has_looked.then_some(path.subflows as usize);
                return Ok(Mptcp { subflows, fell_back: path.fell_back });
            }
            thread::sleep(LOOK_AGAIN);
        }
    }

    fn snapshot(&self) -> Outcome<Snapshot> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ADMIN_PORT));
        let mut stream = self.ground.lab.client().connect(None, address, ADMIN_DEADLINE)?;
        stream.set_read_timeout(Some(ADMIN_DEADLINE))?;
        write!(stream, "GET /state.json HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("/state.json has no end of its head")?;
        if !head.starts_with("HTTP/1.1 200") {
            return Err(format!("/state.json: {}", head.lines().next().unwrap_or_default()).into());
        }
        Ok(serde_json::from_str(body)?)
    }
}

fn options(column: Column, ground: &Ground<'_>) -> ChainOptions {
    let mut options = ChainOptions::new(ground.lab, PathBuf::from(env!("CARGO_BIN_EXE_plait")));
    options.content = Content::Directory(ground.dir.to_owned());
    options.lane_cc = ground.row.cc.clone();
    options.lanes = None;
    match column {
        Column::OnePath => {
            options.lanes = Some(1);
            options.paths = vec![ground.row.best_path()];
        }
        Column::ParallelOne => options.lanes = Some(1),
        Column::MptcpLane => {
            options.via = Via::Mptcp;
            options.flags = vec![("downstream".into(), format!("--admin={ADMIN_PORT}"))];
            options.lanes = Some(1);
            options.paths = vec![ground.row.best_path()];
        }
        Column::ParallelUnwarmed => options.flags = vec![("downstream".into(), "--warm-up=0".into())],
        _ => {}
    }
    options
}

fn cpu_by_role(chain: &Chain) -> Outcome<CpuByRole> {
    let mut cpu = CpuByRole::new();
    for process in chain.processes() {
        let name = match process.role() {
            Role::Root => "root",
            Role::Upstream => "upstream",
            Role::Relay(_) => "relays",
            Role::Downstream => "downstream",
        };
        *cpu.entry(name).or_default() += process.cpu_ns()?;
    }
    Ok(cpu)
}

/// A failure with what each role last complained about.
fn with_logs(chain: &Chain, error: &str) -> String {
    let mut text = error.to_owned();
    for process in chain.processes() {
        let log = process.log();
        if let Some(line) = log.lines().rfind(|line| line.contains("WARN") || line.contains("ERROR")) {
            text += &format!("; {:?}: {line}", process.role());
        }
    }
    text
}
