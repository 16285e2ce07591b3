//! `cargo bench --bench transfer`: how fast one file comes over bad networks: one plain connection, Plait's parallel lanes,
//! MPTCP, and what else is installed.
//!
//! Prints Markdown; the same, JSON and SVG charts go to `target/transfer`. The networks are emulated (`plait::lab`) and
//! calibrated before anything is measured. Exits 1 if somebody lost or changed a byte, or if the calibration is bad.
//!
//! `calibration` checks the emulator, `rounds` alternates the columns, `roles` and `peers` carry the file, `client` watches it arrive, `measure` counts what
//! that took, `goals` knows what must be reached, `report` prints and draws.

mod calibration;
mod cell;
mod client;
mod columns;
mod goals;
mod measure;
mod origin;
mod pattern;
mod peers;
mod roles;
// Shared with the other benchmark, which also asks for memory and wakeups.
#[allow(dead_code)]
#[path = "../dataplane/processes.rs"]
mod processes;
mod report;
mod rounds;
mod row;

use std::error::Error;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant, SystemTime};

use clap::{Parser, ValueEnum};
use plait::lab::{Lab, Scenario};
use tempfile::TempDir;

use crate::calibration::{Calibrated, calibrated};
use crate::columns::Column;
use crate::report::Run;
use crate::rounds::Plan;
use crate::row::Row;

/// Failures are sentences for the table's reader; nothing here decides by their kind.
pub type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Smaller files measure slow start and luck: over lossy cubic a short one varies fivefold.
const SIZE_BYTES: u64 = 200_000_000;
/// Fewer runs make no median worth a claim.
const RUNS: u32 = 5;
/// Whoever has not come to an end by then has 27 Mbit/s or less, and its rate is known well enough.
const DEADLINE_S: u64 = 60;

const QUICK_SIZE_BYTES: u64 = 30_000_000;
const QUICK_RUNS: u32 = 2;
const QUICK_DEADLINE_S: u64 = 8;
const QUICK_COLUMNS: &[Column] =
    &[Column::Direct, Column::AriaOne, Column::KernelMptcp, Column::ParallelAuto];
const QUICK_ROWS: &[(&str, &str)] = &[("two-equal", "bbr"), ("lossy", "bbr"), ("policed", "bbr")];
/// No transfer begins later, so that all is over within 5 minutes.
const QUICK_LIMIT: Duration = Duration::from_secs(265);

/// How fast one file comes over bad networks, through Plait and its peers.
#[derive(Parser)]
struct Flags {
    /// A look within 5 minutes: 3 scenarios, 4 columns, 2 runs of 30 MB
    #[arg(long)]
    quick: bool,
    /// Scenario to run: a name, or a TOML file; repeatable [default: all that have a goal]
    #[arg(long, value_name = "NAME")]
    scenario: Vec<String>,
    /// Alternating runs [default: 5, with --quick 2]
    #[arg(long)]
    runs: Option<u32>,
    /// Size of the file, in bytes or as in 200MB [default: 200MB, with --quick 30MB]
    #[arg(long, value_parser = size)]
    size: Option<u64>,
    /// Columns to measure [default: all, with --quick four]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "LIST")]
    columns: Vec<Column>,
    /// When a transfer is cut off, in seconds [default: 60, with --quick 8]
    #[arg(long, value_name = "SECONDS")]
    deadline: Option<u64>,
    /// Prints scenarios, columns and the expected duration, and measures nothing
    #[arg(long)]
    list: bool,
    /// Given by `cargo bench`; without it nothing is measured
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    if !flags.bench && !flags.list {
        // `cargo test --all-targets` runs this program, too, and must not wait for hours.
        println!("nothing measured: run `cargo bench --bench transfer`, or add --bench");
        return ExitCode::SUCCESS;
    }
    match run(&flags) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// True: the calibration was good and every byte was right.
fn run(flags: &Flags) -> Outcome<bool> {
    let (runs, size_bytes, deadline_s, columns) = if flags.quick {
        (QUICK_RUNS, QUICK_SIZE_BYTES, QUICK_DEADLINE_S, QUICK_COLUMNS)
    } else {
        (RUNS, SIZE_BYTES, DEADLINE_S, Column::value_variants())
    };
    let plan = Plan {
        columns: if flags.columns.is_empty() { columns.to_vec() } else { flags.columns.clone() },
        runs: flags.runs.unwrap_or(runs).max(1),
        bytes: flags.size.unwrap_or(size_bytes).max(1),
        deadline: Duration::from_secs(flags.deadline.unwrap_or(deadline_s).max(1)),
        until: flags.quick.then(|| Instant::now() + QUICK_LIMIT),
    };
    let scenarios = scenarios(flags)?;
    if flags.list {
        list(&plan, &scenarios);
        return Ok(true);
    }
    let dir = content(plan.bytes)?;
    processes::clean_up_on_signal(vec![dir.path().to_owned()])?;
    let target = target_directory();
    let mut run = circumstances(flags, &plan)?;
    announce(&plan, &scenarios);
    for (index, (scenario, cc)) in scenarios.iter().enumerate() {
        eprint!("[{}/{}] ", index + 1, scenarios.len());
        match measure(&plan, scenario, cc, dir.path()) {
            Ok(row) => run.rows.push(row),
            Err(error) => {
                eprintln!("given up: {error}");
                run.given_up.push(format!("{}, {cc}: {error}", scenario.name));
            }
        }
        // After each row: hours of measuring must not be lost with the last of them.
        report::write(&run, &target)?;
    }
    print!("{}", report::markdown(&run));
    eprintln!("written to {}: transfer.md, transfer.json, *.svg", target.display());
    let failures = run.rows.iter().flat_map(|row| &row.cells).flat_map(|cell| &cell.failures);
    let is_lossless = !failures.into_iter().any(|failure| failure.contains(" BYTES: "));
    Ok(run.invalid.is_none() && is_lossless)
}

fn measure(plan: &Plan, scenario: &Scenario, cc: &str, dir: &Path) -> Outcome<Row> {
    let row = Row::new(scenario, cc);
    let minutes = plan.estimate(&row).as_secs_f64() / 60.0;
    eprintln!("{} ({}), about {minutes:.0} min", row.name(), row.describe_paths());
    let lab = Lab::build(scenario)?;
    lab.set_congctl(cc)?;
    let mut row = rounds::run(plan, &lab, row, dir)?;
    (row.own_verdict, row.verdicts) = goals::judge(&row);
    Ok(row)
}

/// What to run: scenarios with their congestion controls.
fn scenarios(flags: &Flags) -> Outcome<Vec<(Scenario, String)>> {
    let chosen = !flags.scenario.is_empty();
    let scenarios = if chosen {
        flags.scenario.iter().map(|name| Scenario::load(name)).collect::<Result<_, _>>()?
    } else {
        Scenario::built_in()?
    };
    let is_wanted = |scenario: &str, cc: &str| match (chosen, flags.quick) {
        (true, _) => true,
        (false, true) => QUICK_ROWS.contains(&(scenario, cc)),
        (false, false) => goals::is_in_table(scenario, cc),
    };
    let each_control = |scenario: &Scenario| {
        scenario.lanes.cc.iter().map(|cc| (scenario.clone(), cc.clone())).collect::<Vec<_>>()
    };
    let rows = scenarios.iter().flat_map(each_control);
    Ok(rows.filter(|(scenario, cc)| is_wanted(&scenario.name, cc)).collect())
}

fn list(plan: &Plan, scenarios: &[(Scenario, String)]) {
    println!("| scenario, congestion control | paths | stands for | about |\n| --- | --- | --- | --- |");
    for (scenario, cc) in scenarios {
        let row = Row::new(scenario, cc);
        let minutes = plan.estimate(&row).as_secs_f64() / 60.0;
        println!("| {} | {} | {} | {minutes:.0} min |", row.name(), row.describe_paths(), row.stands_for);
    }
    println!("\n| column | carried by |\n| --- | --- |");
    for column in Column::value_variants() {
        if let Some(value) = column.to_possible_value() {
            let help = value.get_help().map(ToString::to_string).unwrap_or_default();
            println!("| {} | {help} |", value.get_name());
        }
    }
    announce(plan, scenarios);
}

fn announce(plan: &Plan, scenarios: &[(Scenario, String)]) {
    let total: Duration = scenarios.iter().map(|(scenario, cc)| plan.estimate(&Row::new(scenario, cc))).sum();
    let minutes = total.as_secs() / 60;
    eprintln!("{} rows, about {} h {:02} min", scenarios.len(), minutes / 60, minutes % 60);
}

/// Calibrates, and notes where and when.
fn circumstances(flags: &Flags, plan: &Plan) -> Outcome<Run> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let load_before = read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned();
    let Calibrated { checks, invalid } = calibrated()?;
    Ok(Run {
        date: httpdate::fmt_http_date(SystemTime::now()),
        kernel: read("/proc/sys/kernel/osrelease"),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        load_before,
        command: command_line(),
        commit: commit(),
        size_bytes: plan.bytes,
        runs: plan.runs,
        is_quick: flags.quick,
        deadline_s: plan.deadline.as_secs(),
        calibration: checks,
        invalid,
        rows: Vec::new(),
        given_up: Vec::new(),
    })
}

fn command_line() -> String {
    let arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let arguments: Vec<String> = arguments.collect();
    let separator = if arguments.is_empty() { "" } else { " -- " };
    format!("cargo bench --bench transfer{separator}{}", arguments.join(" "))
}

/// The commit, marked if files were changed since.
fn commit() -> Option<String> {
    let describe = ["describe", "--always", "--dirty=, changed", "--exclude=*"];
    let output = Command::new("git").args(describe).current_dir(env!("CARGO_MANIFEST_DIR")).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A directory with the file that everybody carries; in memory, where there is /dev/shm.
fn content(bytes: u64) -> Outcome<TempDir> {
    let dir = TempDir::with_prefix_in("plait-transfer-", "/dev/shm")
        .or_else(|_| TempDir::with_prefix("plait-transfer-"))?;
    pattern::write(bytes, File::create(dir.path().join(pattern::FILE_NAME))?)?;
    Ok(dir)
}

/// `target/transfer` beside what cargo built.
fn target_directory() -> PathBuf {
    // .../target/release/plait
    let built = Path::new(env!("CARGO_BIN_EXE_plait")).ancestors().nth(2);
    built.unwrap_or(Path::new("target")).join("transfer")
}

fn size(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.strip_suffix("MB") {
        Some(digits) => (digits, 1_000_000),
        None => (text, 1),
    };
    let bytes = digits.trim().parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
    bytes.ok_or_else(|| format!("'{text}' is no size: write for example 200MB, or bytes"))
}
