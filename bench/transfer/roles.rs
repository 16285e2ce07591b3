//! Plait's columns: the real roles in the lab's hosts, started afresh for every round.
//!
//! In: a column. Out: running processes that carry the file as often as they are asked. Called by `rounds`.

use std::path::PathBuf;

use plait::lab::chain::{Chain, ChainOptions, Content, Role, Via};
use socket2::Protocol;

use crate::Outcome;
use crate::cell::Sample;
use crate::columns::Column;
use crate::measure::{CpuByRole, Ground};

/// Plait's processes for one column, started for one round.
pub struct Roles<'a> {
    ground: &'a Ground<'a>,
    chain: Chain,
}

impl<'a> Roles<'a> {
    /// Starts them, and waits until all of them listen.
    pub fn start(column: Column, ground: &'a Ground<'a>) -> Outcome<Self> {
        if column == Column::MptcpLane && !ground.lab.has_mptcp() {
            return Err("this kernel has no MPTCP".into());
        }
        Ok(Self { ground, chain: Chain::start(ground.lab, &options(column, ground))? })
    }

    /// One transfer.
    pub fn transfer(&self) -> Outcome<Sample> {
        let cpu = || cpu_by_role(&self.chain);
        self.ground.measure(cpu, || {
            let download = self.ground.request(self.chain.entrance(), Protocol::TCP).run();
            let download = download.map_err(|error| with_logs(&self.chain, &error.to_string()))?;
            Ok((download, CpuByRole::new()))
        })
    }
}

fn options(column: Column, ground: &Ground<'_>) -> ChainOptions {
    let mut options = ChainOptions::new(ground.lab, PathBuf::from(env!("CARGO_BIN_EXE_plait")));
    options.content = Content::Directory(ground.dir.to_owned());
    options.lane_cc = ground.row.cc.clone();
    match column {
        Column::OnePath => {
            options.lanes = Some(1);
            options.paths = vec![ground.row.best_path()];
        }
        Column::ParallelOne => options.lanes = Some(1),
        Column::MptcpLane => {
            options.via = Via::Mptcp;
            options.lanes = Some(1);
            options.paths = vec![ground.row.best_path()];
        }
        _ => options.lanes = None,
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
