//! `plait lab`: the real roles on emulated networks.
//!
//! In: a scenario. Out: a live view and a result, or a shell in the client's host, or a calibration. Everything that is
//! started ends with this process.

use std::{
    io::{IsTerminal, Write},
    path::PathBuf,
    process::ExitStatus,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use signal_hook::consts::{SIGINT, SIGQUIT};

use super::args::{Global, LabChain, LabCommand, LabRun, LabTuning, LabVia};
use crate::lab::{
    Lab, LabError, Scenario,
    calibrate::calibrate,
    chain::{Chain, ChainOptions, Content, FILE_NAME, Role, Via},
    fetch::{Fetched, fetch},
    scenario::ScenarioError,
    shape::Counters,
    timeline::Happened,
};

/// How often the live lines are drawn.
const REDRAW: Duration = Duration::from_millis(500);

/// Why `plait lab` ends without a result.
#[derive(Debug, thiserror::Error)]
pub enum LabRunError {
    /// The scenario is of no use.
    #[error(transparent)]
    Scenario(#[from] ScenarioError),
    /// The lab cannot be built, or what runs in it failed.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// The binary does not know where it is.
    #[error("cannot find this program's own file: {0}")]
    Own(#[source] std::io::Error),
    /// The shell does not start.
    #[error("cannot start {shell}: {source} (set SHELL)")]
    Shell {
        /// What SHELL says.
        shell: String,
        /// What the kernel says.
        source: std::io::Error,
    },
    /// The shell ended with an error, which is its user's business.
    #[error("the shell ended with {0}")]
    ShellEnded(ExitStatus),
    /// A file of the scenario's directory is asked for, and which one is not said.
    #[error("--dir {dir}: name the file to download (--file NAME)", dir = .0.display())]
    NoFile(PathBuf),
    /// Results on this machine would not count.
    #[error("the emulator is not good enough on this machine now: stop what else runs, or use more cores")]
    Calibration,
}

/// Runs the command to its end.
pub(super) fn run(global: &Global, command: LabCommand) -> Result<(), LabRunError> {
    match command {
        LabCommand::List => list(),
        LabCommand::Calibrate => {
            let result = calibrate()?;
            print!("{result}");
            if result.good() { Ok(()) } else { Err(LabRunError::Calibration) }
        }
        LabCommand::Run(args) => transfer(global, &args),
        LabCommand::Shell(args) => shell(global, &args),
    }
}

fn list() -> Result<(), LabRunError> {
    let scenarios = Scenario::built_in()?;
    let texts = scenarios
        .iter()
        .map(|scenario| format!("{:18} {}\n{}", scenario.name, scenario.stands_for, describe(scenario)));
    // `| head` closes the pipe: it has seen enough.
    let _ = std::io::stdout().write_all(texts.collect::<String>().as_bytes());
    Ok(())
}

/// A line per path.
fn describe(scenario: &Scenario) -> String {
    let mut text = String::new();
    for (index, path) in scenario.paths.iter().enumerate() {
        text += &format!("  path {}: {} Mbit/s, RTT {} ms", index + 1, path.rate_mbit, path.rtt_ms);
        if path.loss > 0.0 {
            text += &format!(", {} % loss", path.loss * 100.0);
        }
        if path.burst > 1.0 {
            text += &format!(" in bursts of {}", path.burst);
        }
        if path.jitter_ms > 0.0 {
            text += &format!(", jitter {} ms", path.jitter_ms);
        }
        if let Some(flow_mbit) = path.flow_mbit {
            text += &format!(", {flow_mbit} Mbit/s per connection");
        }
        text.push('\n');
    }
    text
}

/// The lab of `args`, with the roles running.
fn start(global: &Global, args: &LabChain) -> Result<(Lab, Chain), LabRunError> {
    let scenario = Scenario::load(&args.scenario)?;
    println!("{}: {}", scenario.name, scenario.stands_for);
    print!("{}", describe(&scenario));
    let lab = match &args.tuning {
        None => Lab::build(&scenario)?,
        Some(LabTuning { settings }) => {
            let settings = settings.iter().map(|set| (set.key.as_str(), set.value.as_str()));
            Lab::build_tuned(&scenario, &Vec::from_iter(settings))?
        }
    };
    let mut options = ChainOptions::new(&lab, std::env::current_exe().map_err(LabRunError::Own)?);
    options.content = match &args.dir {
        Some(dir) => Content::Directory(dir.clone()),
        None => Content::Generated(args.size.0),
    };
    if global.lane_cc != "auto" {
        options.lane_cc.clone_from(&global.lane_cc);
        lab.set_congctl(&global.lane_cc)?;
    }
    options.logs.clone_from(&args.logs);
    options.lanes = args.lanes.or(options.lanes);
    options.via = match args.via {
        LabVia::Relays => Via::Relays,
        LabVia::Direct => Via::Direct,
        LabVia::Mptcp => Via::Mptcp,
    };
    if options.via == Via::Mptcp {
        // One path of this kind is all of them.
        options.paths.truncate(1);
    }
    // What is shown of a role that fails: its warnings. Files are for all of it.
    let log = if args.logs.is_none() && global.log == "info" { "warn" } else { &global.log };
    options.flags.push(("all".into(), format!("--log={log}")));
    options.flags.extend(args.flags.iter().map(|flag| (flag.role.clone(), flag.flag.clone())));
    let chain = Chain::start(&lab, &options)?;
    Ok((lab, chain))
}

fn shell(global: &Global, args: &LabChain) -> Result<(), LabRunError> {
    let (lab, chain) = start(global, args)?;
    let _timeline = chain.play(&lab);
    let shell = std::env::var("SHELL").unwrap_or_else(|_| "/bin/sh".into());
    let file = if args.dir.is_some() { "" } else { FILE_NAME };
    println!("through Plait:    http://{}/{file}", chain.entrance());
    for path in 0..lab.paths() {
        println!("plain TCP, path {}: http://{}/{file}", path + 1, chain.root_address(&lab, path));
    }
    println!("this is {shell} on the client's host; everything ends with it");
    // The keyboard's signals are for the shell and its children; handlers do not survive their exec.
    for signal in [SIGINT, SIGQUIT] {
        // Without it the lab ends together with what was interrupted.
        let _ = signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)));
    }
    let ended = lab
        .client()
        .contained(&shell)
        .env("PLAIT_LAB", &lab.scenario().name)
        .env("PLAIT_URL", format!("http://{}/{file}", chain.entrance()))
        .status()
        .map_err(|source| LabRunError::Shell { shell, source })?;
    if ended.success() { Ok(()) } else { Err(LabRunError::ShellEnded(ended)) }
}

fn transfer(global: &Global, args: &LabRun) -> Result<(), LabRunError> {
    let target = match (&args.file, &args.chain.dir) {
        (Some(file), _) => format!("/{}", file.trim_start_matches('/')),
        (None, None) => format!("/{FILE_NAME}"),
        (None, Some(dir)) => return Err(LabRunError::NoFile(dir.clone())),
    };
    let (lab, chain) = start(global, &args.chain)?;
    for run in 1..=args.runs {
        // The first one finds the lanes cold.
        let cold = if run == 1 { ", cold" } else { "" };
        println!("run {run} of {}{cold}:", args.runs);
        let before = (lab.counters(), cpu_seconds(&chain)?);
        let timeline = chain.play(&lab);
        let fetched =
            watched(&lab, |received| fetch(lab.client(), None, chain.entrance(), &target, received))?;
        let happened = timeline.end();
        print_result(&lab, &fetched, &before, &cpu_seconds(&chain)?);
        print_events(&happened, &fetched);
    }
    Ok(())
}

/// CPU time of each role so far.
fn cpu_seconds(chain: &Chain) -> Result<Vec<(Role, f64)>, LabError> {
    let processes = chain.processes().iter();
    processes.map(|process| Ok((process.role(), process.cpu_ns()? as f64 * 1e-9))).collect()
}

fn print_result(
    lab: &Lab,
    fetched: &Fetched,
    (counters, cpu): &(Vec<[Counters; 2]>, Vec<(Role, f64)>),
    cpu_after: &[(Role, f64)],
) {
    let share = fetched.mbit() / lab.scenario().goodput_mbit_max();
    println!(
        "  {:.2} s, {:.1} Mbit/s, {share:.3} of 0.965 x {} Mbit/s; first byte {:.0} ms, longest stall {:.0} ms",
        fetched.taken.as_secs_f64(),
        fetched.mbit(),
        lab.scenario().rate_mbit_sum(),
        fetched.first_byte.as_secs_f64() * 1e3,
        fetched.longest_stall.as_secs_f64() * 1e3,
    );
    let gigabytes = fetched.bytes as f64 * 1e-9;
    let roles = cpu
        .iter()
        .zip(cpu_after)
        .map(|((role, before), (_, after))| format!("{role} {:.2}", (after - before) / gigabytes));
    println!("  CPU s/GB: {}", roles.collect::<Vec<_>>().join(", "));
    let mut wire = 0;
    for (index, (before, after)) in counters.iter().zip(lab.counters()).enumerate() {
        let (before, after) = (before[1], after[1]);
        wire += after.bytes - before.bytes;
        println!(
            "  path {}: {:.1} Mbit/s on the wire; {}",
            index + 1,
            (after.bytes - before.bytes) as f64 * 8e-6 / fetched.taken.as_secs_f64(),
            drops(&before, &after)
        );
    }
    println!("  bytes on the wire / delivered: {:.3}", wire as f64 / fetched.bytes as f64);
}

/// A line for each thing that happened: how long the client then waited for a byte, or how soon a path was used again.
fn print_events(happened: &[Happened], fetched: &Fetched) {
    for (index, Happened { event, used_again }) in happened.iter().enumerate() {
        if !event.brings_back() {
            let until = happened.get(index + 1).map_or(f64::MAX, |next| next.event.at);
            let moment = |seconds| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
            let stall = fetched.longest_stall_within(moment(event.at), moment(until)).as_secs_f64() * 1e3;
            println!(
                "  path {}, at {} s: longest stall until the next event {stall:.0} ms",
                event.path, event.at
            );
            continue;
        }
        let used_again = used_again.map_or("not used again".to_owned(), |after| {
            format!("carries half of its rate again after {:.0} ms", after.as_secs_f64() * 1e3)
        });
        println!("  path {}, back at {} s: {used_again}", event.path, event.at);
    }
}

/// What did not arrive between two readings.
fn drops(before: &Counters, after: &Counters) -> String {
    let mut text = format!("{} packets", after.packets - before.packets);
    for (what, before, after) in [
        ("lost", before.dropped_loss, after.dropped_loss),
        ("dropped by the queue", before.dropped_queue, after.dropped_queue),
        ("by the policer", before.dropped_policer, after.dropped_policer),
        ("by the outage", before.dropped_outage, after.dropped_outage),
        ("late", before.late, after.late),
    ] {
        if after > before {
            text += &format!(", {} {what}", after - before);
        }
    }
    text
}

/// Runs `work` and draws a line per path meanwhile, if this is a terminal; otherwise, prints one now and then.
fn watched<T: Send>(lab: &Lab, work: impl FnOnce(&AtomicU64) -> T + Send) -> T {
    let received = AtomicU64::new(0);
    let terminal = std::io::stdout().is_terminal();
    let screen = MultiProgress::new();
    let lines: Vec<_> = (0..=lab.paths())
        .map(|_| {
            let line = screen.add(ProgressBar::no_length());
            if let Ok(style) = ProgressStyle::with_template("{msg}") {
                line.set_style(style);
            }
            line
        })
        .collect();
    let mut before = (Instant::now(), 0, lab.counters());
    thread::scope(|scope| {
        let working = scope.spawn(|| work(&received));
        let mut drawn = Instant::now();
        while !working.is_finished() {
            // Short, so that the end is not waited for.
            thread::sleep(Duration::from_millis(10));
            if drawn.elapsed() < REDRAW {
                continue;
            }
            drawn = Instant::now();
            let now = (drawn, received.load(Ordering::Relaxed), lab.counters());
            let seconds = (now.0 - before.0).as_secs_f64();
            let rate = |from: u64, to: u64| (to - from) as f64 * 8e-6 / seconds;
            let mut texts: Vec<_> = before
                .2
                .iter()
                .zip(&now.2)
                .enumerate()
                .map(|(index, (before, now))| {
                    let (before, now) = (before[1], now[1]);
                    let (name, rate) = (index + 1, rate(before.bytes, now.bytes));
                    let (queue, drops) = (now.queued_bytes / 1000, drops(&before, &now));
                    format!("path {name}: {rate:6.1} Mbit/s, queue {queue:4} kB, {drops}")
                })
                .collect();
            let megabytes = now.1 as f64 * 1e-6;
            texts.push(format!("client: {:7.1} Mbit/s, {megabytes:.1} MB", rate(before.1, now.1)));
            if terminal {
                lines.iter().zip(texts).for_each(|(line, text)| line.set_message(text));
            } else {
                println!("  {}", texts.join(" | "));
            }
            before = now;
        }
        lines.iter().for_each(ProgressBar::finish_and_clear);
        working.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
