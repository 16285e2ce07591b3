//! In: roles with nothing to do. Out: how often each one wakes up.
//!
//! Called by `main`.

use std::thread;
use std::time::Duration;

use super::chain::Chain;
use super::{Bench, Findings, all_cores};
use crate::Outcome;
use crate::load::{VIDEO_BYTES, VIDEO_NAME, timed_get};
use crate::namespace::Network;
use crate::peers::{Plait, Setting};
use crate::report::{Goal, Target};

/// A wakeup per second shows as ten.
const WATCH_S: u64 = 10;
/// What a transfer leaves behind (closing connections, warm lanes) settles within this.
const SETTLE_S: u64 = 3;
/// One stray wakeup in the ten seconds is no poll loop.
const STRAY_PER_S: f64 = 0.1;

/// Scenario E, wakeups.
pub fn run(bench: &Bench, network: &Network, findings: &mut Findings) -> Outcome<()> {
    let cores = all_cores();
    println!("\n### idle: wakeups per second\n");
    println!("Network: {}. Voluntary context switches over {WATCH_S} s.\n", network.describe());
    println!("| | wakeups/s |\n| --- | --- |");
    for &executor in &bench.executors {
        let setting = Setting { executor, placement: "auto", cores: &cores, control: Some("reno") };
        let plait = Plait::new(bench.library.dir());
        let alone = plait.and_then(|plait| plait.relay(setting, None));
        let chain = Chain::plait(setting, &bench.library);
        let chain = chain.and_then(|chain| {
            timed_get(chain.entrance, VIDEO_NAME, VIDEO_BYTES)?;
            Ok(chain)
        });
        let mut watched = Vec::new();
        match &alone {
            Ok(relay) => watched.push(("relay without lanes", &relay.process)),
            Err(error) => println!("| relay without lanes, {} | {error} |", executor.label()),
        }
        match &chain {
            Ok(chain) => watched.extend(chain.roles.iter().map(|(name, role)| (*name, &role.process))),
            Err(error) => println!("| chain with warm lanes, {} | {error} |", executor.label()),
        }
        thread::sleep(Duration::from_secs(if watched.is_empty() { 0 } else { SETTLE_S }));
        let before = watched.iter().map(|(_, process)| process.sleeps()).collect::<Outcome<Vec<u64>>>()?;
        thread::sleep(Duration::from_secs(if watched.is_empty() { 0 } else { WATCH_S }));
        let mut without_lanes = None;
        for ((name, process), before) in watched.iter().zip(before) {
            let per_second = (process.sleeps()? - before) as f64 / WATCH_S as f64;
            println!("| {name}, {} | {per_second:.1} |", executor.label());
            if alone.as_ref().is_ok_and(|relay| std::ptr::eq(&relay.process, *process)) {
                without_lanes = Some(per_second);
            }
        }
        // The other roles ping: their rows are there to be compared with the interval.
        findings.goals.push(Goal::new(
            format!("idle relay without lanes, {}: wakeups/s", executor.label()),
            without_lanes,
            Target::AtMost(STRAY_PER_S),
        ));
    }
    Ok(())
}
