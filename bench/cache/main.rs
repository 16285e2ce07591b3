//! `cargo bench --bench cache`: the downstream's cache next to nginx proxy_cache, on this machine.
//!
//! Prints Markdown: one table per question, then the goals. Everything runs over loopback in a network namespace of its
//! own; both caches stand before the same nginx root, nginx's directly, plait's behind an upstream. Each cache has one
//! thread for clients, on the first CPU; plait's writing threads are counted, too.

#[allow(dead_code)]
#[path = "../dataplane/load.rs"]
mod load;
#[allow(dead_code)]
#[path = "../dataplane/namespace.rs"]
mod namespace;
mod nginx;
#[allow(dead_code)]
#[path = "../dataplane/peers.rs"]
mod peers;
#[allow(dead_code)]
#[path = "../dataplane/processes.rs"]
mod processes;
#[path = "../dataplane/report.rs"]
mod report;
mod requests;

use std::{
    error::Error,
    net::SocketAddr,
    os::unix::fs::MetadataExt,
    path::Path,
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use clap::Parser;

use crate::{
    load::{Answer, Library, VIDEO_BYTES, VIDEO_NAME, timed_get_aside},
    nginx::NginxCache,
    peers::{Executor, NginxRoot, Plait, Role, Setting},
    processes::Process,
    report::{Cell, Goal, Sample, Target, print_cells, print_goals},
};

/// Failures are sentences for the table's reader; nothing here decides by their kind.
pub type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// A segment of the request benchmark.
const SEGMENT_BYTES: u64 = 64 << 10;
/// Its name.
const SEGMENT_NAME: &str = "segment.ts";
/// Hits of the film per round: one takes 60 ms, and what else the machine does meanwhile decides.
const HITS_PER_ROUND: u64 = 10;
/// First bytes that are timed per round: one alone says nothing.
const FIRST_BYTES_PER_ROUND: u32 = 200;
/// A process that has used less than this ...
const QUIET_NS: u64 = 1_000_000;
/// ... in so long has written what it had to,
const QUIET_LOOK: Duration = Duration::from_millis(50);
/// or will not within 5 s.
const QUIET_LOOKS_MAX: u32 = 100;
/// Clients that want the same cold object at once.
const CROWD: usize = 50;

/// The downstream's cache next to nginx proxy_cache.
#[derive(Parser)]
struct Flags {
    /// Alternating runs per competitor
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Given by `cargo bench`; without it nothing is measured
    #[arg(long)]
    bench: bool,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    if !flags.bench {
        // `cargo test --all-targets` runs this program, too, and must not wait for minutes.
        println!("nothing measured: run `cargo bench --bench cache`, or add --bench");
        return ExitCode::SUCCESS;
    }
    match namespace::run_in("reno", |network| {
        println!("## cache\n\nNetwork: {}. {} alternating rounds.", network.describe(), flags.rounds);
        run(flags.rounds.max(1))
    }) {
        Ok(goals) => {
            print_goals(&goals);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// What is compared.
struct Ring {
    /// With `--cache`.
    plait: Role,
    /// Without.
    bare: Role,
    nginx: NginxCache,
    /// Not asked, kept running.
    _upstream: Role,
    root: NginxRoot,
}

impl Ring {
    /// `dir` has what the root serves, `disk` takes what the caches keep.
    fn start(dir: &Path, disk: &Path) -> Outcome<Self> {
        let root = NginxRoot::start(dir)?;
        let plait = Plait::new(dir)?;
        let setting = Setting::single(Executor::TokioUring, Some("reno"));
        let upstream = plait.upstream(setting, &format!("http://{}", root.address))?;
        let path = [upstream.address.to_string()];
        let cache = disk.join("plait-cache");
        let cache = cache.to_str().ok_or("the directory's name is no text")?;
        Ok(Self {
            // Neither writes an access log.
            plait: plait.downstream_with(
                setting,
                &path,
                &["--cache", cache, "--cache-size", "4GiB", "--log", "info,access=off"],
            )?,
            bare: plait.downstream(setting, &path)?,
            nginx: NginxCache::start(disk, root.address)?,
            _upstream: upstream,
            root,
        })
    }
}

/// A name that no cache has seen: the root does not look at the query.
fn cold(name: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{name}?{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// One timed transfer with the CPU time of `process`, which may write to the disk for longer than the client waits.
fn sample(process: &Process, transfer: impl FnOnce() -> Outcome<()>) -> Outcome<Sample> {
    let before = process.cpu_ns()?;
    let begin = Instant::now();
    transfer()?;
    let taken = begin.elapsed();
    let mut used = process.cpu_ns()?;
    for _ in 0..QUIET_LOOKS_MAX {
        thread::sleep(QUIET_LOOK);
        let now = process.cpu_ns()?;
        if now.saturating_sub(used) < QUIET_NS {
            break;
        }
        used = now;
    }
    Ok(Sample { taken, cpu_ns: Some(used.saturating_sub(before)) })
}

/// Bytes that the disk holds of the files below `dir`.
fn bytes_on_disk(dir: &Path) -> Outcome<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        // 512-byte units, inode(7).
        bytes += if entry.file_type()?.is_dir() {
            bytes_on_disk(&entry.path())?
        } else {
            entry.metadata()?.blocks() * 512
        };
    }
    Ok(bytes)
}

/// Both caches by turns; each round begins with the other one.
fn contest(
    rounds: u32,
    labels: [&str; 2],
    bytes: u64,
    transfer: impl Fn(usize) -> Outcome<Sample>,
) -> [Cell; 2] {
    let mut cells = labels.map(|label| Cell::new(label, bytes));
    for round in 0..rounds as usize {
        for turn in 0..2 {
            let index = (round + turn) % 2;
            if cells[index].trouble.is_none() {
                cells[index].push(transfer(index));
            }
        }
    }
    cells
}

/// Median times to the first byte of something that no cache has, of both by turns: the machine is another one after some
/// milliseconds.
fn first_bytes(addresses: [SocketAddr; 2]) -> Outcome<[Sample; 2]> {
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..FIRST_BYTES_PER_ROUND {
        for (address, times) in addresses.iter().zip(&mut times) {
            let begin = Instant::now();
            let answer = Answer::begin(*address, &cold(SEGMENT_NAME))?;
            times.push(begin.elapsed());
            answer.discard(SEGMENT_BYTES)?;
        }
    }
    Ok(times.map(|mut times| {
        times.sort();
        Sample { taken: times[times.len() / 2], cpu_ns: None }
    }))
}

fn run(rounds: u32) -> Outcome<Vec<Goal>> {
    let dir = load::directory()?;
    // A cache is on a disk: files in memory have small pages, which sendfile takes one by one.
    let disk = tempfile::TempDir::with_prefix("plait-bench-cache-")?;
    processes::clean_up_on_signal(vec![dir.path().to_owned(), disk.path().to_owned()])?;
    let library = Library::create(dir, false)?;
    std::fs::write(library.dir().join(SEGMENT_NAME), vec![0x47; SEGMENT_BYTES as usize])?;
    let ring = Ring::start(library.dir(), disk.path())?;
    let peers: [(SocketAddr, &Process); 2] =
        [(ring.plait.address, &ring.plait.process), (ring.nginx.address, &ring.nginx.process)];
    for (address, _) in peers {
        for _ in 0..2 {
            Answer::begin(address, VIDEO_NAME)?.verify(&library)?;
        }
    }
    let mut goals = Vec::new();
    let labels = ["plait", "nginx proxy_cache"];

    let hits = contest(rounds, labels, HITS_PER_ROUND * VIDEO_BYTES, |index| {
        let (address, process) = peers[index];
        sample(process, || {
            (0..HITS_PER_ROUND).try_for_each(|_| timed_get_aside(address, VIDEO_NAME, VIDEO_BYTES).map(drop))
        })
    });
    let note = format!("{HITS_PER_ROUND} of them, one after the other.");
    print_cells("hit, 200 MB", &[note], &hits.iter().collect::<Vec<_>>())?;
    let [ours, theirs] = &hits;
    goals.push(Goal::ratio(
        "hit, 200 MB: throughput ÷ nginx",
        ours.throughput(),
        theirs.throughput(),
        Target::AtLeast(1.0),
    ));
    goals.push(Goal::ratio(
        "hit, 200 MB: CPU ÷ nginx",
        ours.cpu_per_gb(),
        theirs.cpu_per_gb(),
        Target::AtMost(1.0),
    ));

    let bytes = requests::COUNT * SEGMENT_BYTES;
    let many = contest(rounds, labels, bytes, |index| {
        let (address, process) = peers[index];
        sample(process, || requests::ask_all(address, SEGMENT_NAME, SEGMENT_BYTES))
    });
    let note = format!("{} requests over {} kept connections.", requests::COUNT, requests::CONNECTIONS);
    print_cells("hit, 64 KiB segments", &[note], &many.iter().collect::<Vec<_>>())?;
    let [ours, theirs] = &many;
    goals.push(Goal::ratio(
        "hit, 64 KiB segments: requests/s ÷ nginx",
        ours.throughput(),
        theirs.throughput(),
        Target::AtLeast(1.2),
    ));

    let mut firsts = ["with --cache", "without"].map(|label| Cell::new(label, SEGMENT_BYTES));
    for _ in 0..rounds {
        match first_bytes([ring.plait.address, ring.bare.address]) {
            Ok(samples) => firsts.iter_mut().zip(samples).for_each(|(cell, sample)| cell.push(Ok(sample))),
            Err(error) => firsts[0].push(Err(error)),
        }
    }
    print_cells("miss: time to first byte", &[], &firsts.iter().collect::<Vec<_>>())?;
    goals.push(Goal::ratio(
        "miss: time to first byte ÷ without a cache",
        firsts[0].seconds(),
        firsts[1].seconds(),
        Target::AtMost(1.05),
    ));

    let before = bytes_on_disk(disk.path())?;
    let fills = contest(rounds, labels, VIDEO_BYTES, |index| {
        let (address, process) = peers[index];
        sample(process, || timed_get_aside(address, &cold(VIDEO_NAME), VIDEO_BYTES).map(drop))
    });
    // Both have filled as often; nginx stores all that it passes on.
    let kept = (bytes_on_disk(disk.path())? - before) as f64 / f64::from(rounds) / VIDEO_BYTES as f64 - 1.0;
    let note = format!("CPU time until all is written; of the bytes, plait stored {:.1} %.", kept * 100.0);
    print_cells("miss, 200 MB, filling the cache", &[note], &fills.iter().collect::<Vec<_>>())?;
    let [ours, theirs] = &fills;
    goals.push(Goal::ratio(
        "miss, 200 MB: CPU ÷ nginx filling",
        ours.cpu_per_gb(),
        theirs.cpu_per_gb(),
        Target::AtMost(0.6),
    ));

    let name = cold(VIDEO_NAME);
    let before = ring.root.sent_bytes()?;
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CROWD)
            .map(|_| {
                scope.spawn(|| {
                    Answer::begin(ring.plait.address, &name).and_then(|answer| answer.discard(VIDEO_BYTES))
                })
            })
            .collect();
        clients
            .into_iter()
            .try_for_each(|client| client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    let fetched = (ring.root.sent_bytes()? - before) as f64 / VIDEO_BYTES as f64;
    goals.push(Goal::new(
        format!("{CROWD} clients, one cold 200 MB object: bytes from the root ÷ its size"),
        Some(fetched),
        Target::AtMost(1.02),
    ));
    Ok(goals)
}
