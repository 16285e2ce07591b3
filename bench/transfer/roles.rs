//! Plait's columns: the real roles in the lab's hosts, started afresh for every round.
//!
//! In: a column. Out: the sample of a first transfer through fresh processes (cold) and of a second through the same
//! (warm). Called by `rounds`.

use std::path::PathBuf;

use plait::lab::chain::{Chain, ChainOptions, Content, Role, Via};
use plait::wire::route::PathSpec;
use socket2::Protocol;

use crate::Outcome;
use crate::cell::Sample;
use crate::columns::Column;
use crate::measure::{CpuByRole, Ground};

/// Why `column` cannot be measured, if it cannot.
pub fn absence(column: Column, ground: &Ground<'_>) -> Option<String> {
    if column != Column::MptcpLane {
        return None;
    }
    if !ground.lab.has_mptcp() {
        return Some("this kernel has no MPTCP".to_owned());
    }
    let example = "mptcp:127.0.0.1:1";
    example.parse::<PathSpec>().err().map(|error| error.to_string())
}

/// Runs a round: cold, then warm. After a failed cold transfer there is no warm one.
pub fn round(column: Column, ground: &Ground<'_>) -> Outcome<(Sample, Outcome<Sample>)> {
    let options = options(column, ground);
    let chain = Chain::start(ground.lab, &options)?;
    let transfer = || {
        let cpu = || cpu_by_role(&chain);
        ground.measure(cpu, || {
            let download = ground.request(chain.entrance(), Protocol::TCP).run();
            let download = download.map_err(|error| with_logs(&chain, &error.to_string()))?;
            Ok((download, CpuByRole::new()))
        })
    };
    Ok((transfer()?, transfer()))
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

/// A failure with the last line that each role logged.
fn with_logs(chain: &Chain, error: &str) -> String {
    let mut text = error.to_owned();
    for process in chain.processes() {
        if let Some(line) = process.log().lines().last() {
            text += &format!("; {:?}: {line}", process.role());
        }
    }
    text
}
