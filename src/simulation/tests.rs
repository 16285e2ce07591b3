//! Runs seeds: a few in every build, as many as one likes by hand.

use std::{
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use tracing_subscriber::fmt::{format::Writer, time::FormatTime};

use super::{Report, run, scenario::Scenario};
use crate::exec::on_simulator::passed;

/// In real time; the longest seeds take five seconds, on a busy machine many times that.
const SEED_TIME_MAX: Duration = Duration::from_secs(300);
/// Seeds that one test of every build runs.
const SEEDS: u64 = 10;

fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// Ends the process where a seed does not come back: some task goes round without ever waiting.
struct Watchdog(Arc<AtomicU64>);

impl Watchdog {
    fn over(seed: u64) -> Self {
        let current = Arc::new(AtomicU64::new(seed));
        let watched = Arc::downgrade(&current);
        thread::spawn(move || {
            let mut before = u64::MAX;
            while let Some(current) = watched.upgrade() {
                let seed = current.load(Ordering::Relaxed);
                if seed == before {
                    eprintln!("seed {seed} is not through after {SEED_TIME_MAX:?}. {}", again(seed));
                    std::process::abort();
                }
                before = seed;
                drop(current);
                thread::sleep(SEED_TIME_MAX);
            }
        });
        Self(current)
    }
}

fn again(seed: u64) -> String {
    format!(
        "Run it again:\n    PLAIT_SEED={seed} cargo test --lib simulation::tests::one_seed -- --nocapture --ignored"
    )
}

/// Runs them all, also behind those that fail, and then fails if any did.
fn run_all(seeds: Range<u64>) -> Report {
    let (mut total, mut failed) = (Report::default(), Vec::new());
    let watchdog = Watchdog::over(seeds.start);
    for seed in seeds {
        watchdog.0.store(seed, Ordering::Relaxed);
        match catch_unwind(AssertUnwindSafe(|| run(seed))) {
            Ok(report) => total += report,
            Err(_) => {
                eprintln!("{:?}", Scenario::of(seed));
                eprintln!("seed {seed} failed. {}", again(seed));
                failed.push(seed);
            }
        }
    }
    assert!(failed.is_empty(), "of these seeds, {} failed: {failed:?}", failed.len());
    total
}

struct VirtualTime;

impl FormatTime for VirtualTime {
    fn format_time(&self, writer: &mut Writer<'_>) -> std::fmt::Result {
        write!(writer, "{:.6}", passed().as_secs_f64())
    }
}

/// `PLAIT_SEED=n`, with a log to standard error.
#[test]
#[ignore = "runs the seed that PLAIT_SEED names"]
fn one_seed() {
    let seed = from_environment("PLAIT_SEED").unwrap_or(0);
    let filter = tracing_subscriber::EnvFilter::new("debug,plait::net::socket=info");
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let log = log.with_timer(VirtualTime).with_ansi(false).finish();
    tracing::subscriber::with_default(log, || {
        eprintln!("{:#?}", Scenario::of(seed));
        run_all(seed..seed + 1);
        eprintln!("{:?}", run(seed));
    });
}

/// `PLAIT_SEEDS=n` seeds from `PLAIT_SEED` on.
#[test]
#[ignore = "runs as many seeds as PLAIT_SEEDS says"]
fn many_seeds() {
    let first = from_environment("PLAIT_SEED").unwrap_or(0);
    let count = from_environment("PLAIT_SEEDS").unwrap_or(1000);
    let began = std::time::Instant::now();
    let total = run_all(first..first + count);
    eprintln!("{count} seeds from {first} on took {:?}: {total:?}", began.elapsed());
}

#[test]
fn the_same_seed_runs_the_same() {
    for seed in 0..20 {
        assert_eq!(run(seed), run(seed), "seed {seed}");
    }
}

/// Four processes where the tests run side by side.
fn part(number: u64) {
    run_all(number * SEEDS..(number + 1) * SEEDS);
}

#[test]
fn every_request_is_answered_in_full_or_visibly_not_1() {
    part(0);
}

#[test]
fn every_request_is_answered_in_full_or_visibly_not_2() {
    part(1);
}

#[test]
fn every_request_is_answered_in_full_or_visibly_not_3() {
    part(2);
}

#[test]
fn every_request_is_answered_in_full_or_visibly_not_4() {
    part(3);
}

/// Lanes that were given up with a frame in them that nobody had read were not closed.
#[test]
fn has_failed_1144() {
    run_all(1144..1145);
}

/// All paths were silent for longer than a dial lasts, and the request was told so although it had time for another.
#[test]
fn has_failed_33784_and_104059() {
    run_all(33784..33785);
    run_all(104059..104060);
}

/// The same while other lanes stood, which carried something: a request that waited for one more was not dialled for again.
#[test]
fn has_failed_79691() {
    run_all(79691..79692);
}

/// The path was silent for longer than the relay waits for a hello, and then back; the lane was not dialled again.
#[test]
fn has_failed_49914_and_64515() {
    run_all(49914..49915);
    run_all(64515..64516);
}

/// Lanes that were allowed the same bytes, and had to wait for each other, kept more of them than all may.
#[test]
fn has_failed_53521() {
    run_all(53521..53522);
}

/// A transfer whose upstream had died waited ten seconds for a busy lane, although the path that was down had a new upstream soon.
#[test]
fn has_failed_9002463() {
    run_all(9002463..9002464);
}

/// No more could be parked, and the frame that the client waited for was sent behind later ones again and again.
#[test]
fn has_failed_203135() {
    run_all(203135..203136);
}
