//! In: a hundred clients that read a head and then nothing. Out: the memory of the downstream that serves them.
//!
//! Called by `main`.

use std::thread;
use std::time::{Duration, Instant};

use super::{Bench, Findings, all_cores};
use crate::Outcome;
use crate::load::{Answer, VIDEO_NAME};
use crate::namespace::Network;
use crate::peers::{Executor, Setting};
use crate::report::{Goal, Target};
use crate::scenarios::merge::Pair;

const CLIENTS: usize = 100;
/// When the memory is read, counted from the last client's head.
const SAMPLES_S: [u64; 3] = [5, 10, 20];
const MIB: f64 = 1024.0 * 1024.0;
/// Growth from one sample to the next that is still an allocator's breathing.
const FLAT: f64 = 1.02;

/// Scenario E, memory.
pub fn run(bench: &Bench, network: &Network, findings: &mut Findings) -> Outcome<()> {
    println!("\n### {CLIENTS} stalled clients on a 200 MB file: RSS of the downstream, MiB\n");
    println!("Network: {}.\n", network.describe());
    println!("| | before | after 5 s | 10 s | 20 s |\n| --- | --- | --- | --- | --- |");
    for &executor in &bench.executors {
        let label = format!("downstream, {}", executor.label());
        let what = format!("{label}: RSS with {CLIENTS} stalled clients");
        let memory = measure(bench, executor);
        match &memory {
            Ok(mib) => {
                println!("| {label} | {:.1} | {:.1} | {:.1} | {:.1} |", mib[0], mib[1], mib[2], mib[3]);
            }
            Err(error) => println!("| {label} | {error} | | | |"),
        }
        let memory = memory.ok();
        let most = memory.map(|mib| mib.into_iter().fold(0.0, f64::max));
        let last = memory.map(|mib| mib[3]);
        let middle = memory.map(|mib| mib[2]);
        findings.goals.extend([
            Goal::new(format!("{what}, MiB"), most, Target::AtMost(400.0)),
            Goal::ratio(format!("{what}, 20 s ÷ 10 s"), last, middle, Target::AtMost(FLAT)),
        ]);
    }
    Ok(())
}

/// MiB before the clients come and after each pause.
fn measure(bench: &Bench, executor: Executor) -> Outcome<[f64; 1 + SAMPLES_S.len()]> {
    let cores = all_cores();
    let setting = Setting { executor, placement: "auto", cores: &cores, control: Some("reno") };
    let pair = Pair::start(setting, &bench.library)?;
    let downstream = &pair.downstream;
    let mut mib = [0.0; 1 + SAMPLES_S.len()];
    mib[0] = downstream.process.rss_bytes()? as f64 / MIB;
    let mut clients = Vec::with_capacity(CLIENTS);
    for _ in 0..CLIENTS {
        clients.push(Answer::begin(downstream.address, VIDEO_NAME)?);
    }
    let stalled = Instant::now();
    for (sample, &after_s) in mib[1..].iter_mut().zip(&SAMPLES_S) {
        thread::sleep(Duration::from_secs(after_s).saturating_sub(stalled.elapsed()));
        *sample = downstream.process.rss_bytes()? as f64 / MIB;
    }
    Ok(mib)
}
