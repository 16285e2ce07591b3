//! `cargo bench --bench dataplane`: what a byte costs through plait, next to HAProxy and nginx, on this machine.
//!
//! Prints Markdown: one table per scenario, then the goals of the data plane with their targets. Everything runs over
//! loopback, as root in network namespaces of its own (see `namespace`). Exits 1 if a proxy lost or changed a byte.
//!
//! `processes` starts and measures, `peers` knows what to start, `load` moves bytes, `scenarios` alternates the
//! competitors, `report` prints.

mod lane;
// Shared with the cache benchmark, which also has a client that takes slowly.
#[allow(dead_code)]
mod load;
mod namespace;
// Shared with the cache benchmark, which counts what nginx sends.
#[allow(dead_code)]
mod peers;
// Shared with the transfer benchmark, which also waits for processes that end by themselves.
#[allow(dead_code)]
mod processes;
mod report;
mod scenarios;

use std::error::Error;
use std::process::ExitCode;
use std::thread;

use clap::{Parser, ValueEnum};

use crate::load::Library;
use crate::peers::Executor;
use crate::scenarios::{Bench, Findings};

/// Failures are sentences for the table's reader; nothing here decides by their kind.
pub type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Fewer than this many rounds make no median worth a claim.
const ROUNDS: u32 = 5;
const ROUNDS_QUICK: u32 = 3;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// One connection through one proxy.
    Relay,
    /// Two lanes put together by a downstream.
    Merge,
    /// Root to client through every role.
    Chain,
    /// The relay on a host whose default is BBR.
    Bbr,
    /// A hundred clients that stop reading.
    Stalled,
    /// Wakeups of processes with nothing to do.
    Idle,
    /// The relay with and without metrics and logs.
    Observed,
}

/// What a byte costs through plait, next to HAProxy and nginx.
#[derive(Parser)]
struct Flags {
    /// Fewer rounds, 200 MB only
    #[arg(long)]
    quick: bool,
    /// Alternating runs per competitor [default: 5, with --quick 3]
    #[arg(long)]
    rounds: Option<u32>,
    /// Scenarios to run [default: all]
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Scenario>,
    /// Run plait on this executor alone [default: both]
    #[arg(long, value_enum)]
    executor: Option<Executor>,
    /// Given by `cargo bench`; without it nothing is measured
    #[arg(long)]
    bench: bool,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    if !flags.bench {
        // `cargo test --all-targets` runs this program, too, and must not wait for minutes.
        println!("nothing measured: run `cargo bench --bench dataplane`, or add --bench");
        return ExitCode::SUCCESS;
    }
    match run(&flags) {
        Ok(findings) if findings.losses.is_empty() => ExitCode::SUCCESS,
        Ok(findings) => {
            findings.losses.iter().for_each(|loss| eprintln!("{loss}"));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: &Flags) -> Outcome<Findings> {
    let dir = load::directory()?;
    processes::clean_up_on_signal(vec![dir.path().to_owned()])?;
    let wanted = |scenario: Scenario| flags.only.is_empty() || flags.only.contains(&scenario);
    let bench = Bench {
        library: Library::create(dir, wanted(Scenario::Merge) && !flags.quick)?,
        rounds: flags.rounds.unwrap_or(if flags.quick { ROUNDS_QUICK } else { ROUNDS }).max(1),
        quick: flags.quick,
        executors: flags.executor.map_or(vec![Executor::TokioUring, Executor::Glommio], |only| vec![only]),
    };
    print_setting(&bench);
    let mut findings = Findings::default();
    let reno = [
        Scenario::Relay,
        Scenario::Merge,
        Scenario::Chain,
        Scenario::Stalled,
        Scenario::Idle,
        Scenario::Observed,
    ];
    for (control, scenarios) in [("reno", &reno[..]), ("bbr", &[Scenario::Bbr])] {
        let scenarios: Vec<Scenario> =
            scenarios.iter().copied().filter(|&scenario| wanted(scenario)).collect();
        if scenarios.is_empty() {
            continue;
        }
        let bench = &bench;
        findings.extend(namespace::run_in(control, |network| {
            let mut findings = Findings::default();
            for scenario in scenarios {
                let outcome = match scenario {
                    Scenario::Relay => scenarios::relay::run(bench, network, &mut findings),
                    Scenario::Bbr => scenarios::relay::run_bbr(bench, network, &mut findings),
                    Scenario::Merge => scenarios::merge::run(bench, network, &mut findings),
                    Scenario::Chain => scenarios::chain::run(bench, network, &mut findings),
                    Scenario::Stalled => scenarios::stalled::run(bench, network, &mut findings),
                    Scenario::Idle => scenarios::idle::run(bench, network, &mut findings),
                    Scenario::Observed => scenarios::observed::run(bench, network, &mut findings),
                };
                if let Err(error) = outcome {
                    println!("\nscenario given up: {error}");
                }
            }
            findings
        }));
    }
    report::print_goals(&findings.goals);
    Ok(findings)
}

fn print_setting(bench: &Bench) {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("## dataplane\n");
    println!(
        "Linux {}, {cores} cores, load before {}; {} alternating rounds. CPU time is that of the process under test: \
         the sum of its threads' run time (/proc/PID/task/*/schedstat, ns). A lone relay has the \
         first CPU, its source and sink the last one; elsewhere nobody is pinned but plait's own cores. MB = 10⁶ bytes.",
        kernel.trim(),
        load.split(' ').next().unwrap_or_default(),
        bench.rounds
    );
}
