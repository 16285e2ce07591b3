//! `cargo bench --bench cache`: the downstream's cache next to nginx proxy_cache, and what players get of it, on this machine.
//!
//! Prints Markdown: one table per question, then the goals. Next to nginx everything runs over loopback in a network
//! namespace of its own; both caches stand before the same nginx root, nginx's directly, plait's behind an upstream. Each
//! cache has one thread for clients, on the first CPU; plait's writing threads are counted, too. `fill` compares what it
//! costs to store, `objects` starts with a full directory, `film` plays over emulated long paths, which are calibrated before.
//! Exits 1 if that is bad.

#[path = "../transfer/calibration.rs"]
mod calibration;
mod fill;
mod film;
#[allow(dead_code)]
#[path = "../dataplane/load.rs"]
mod load;
#[allow(dead_code)]
#[path = "../dataplane/namespace.rs"]
mod namespace;
mod nginx;
mod objects;
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
    path::{Path, PathBuf},
    process::ExitCode,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use clap::{Parser, ValueEnum};

use crate::{
    load::{Answer, Library, VIDEO_BYTES, VIDEO_NAME, timed_get_aside},
    nginx::NginxCache,
    peers::{Executor, NginxRoot, Plait, Role, Setting},
    processes::Process,
    report::{Cell, Goal, Sample, Spread, Target, print_cells, print_goals},
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
/// The root's log has the line of an answer shortly after its last byte.
const LOG_LIMIT: Duration = Duration::from_secs(2);
/// Fewer rounds make no median worth a claim.
const ROUNDS: u32 = 5;
/// A look: are there figures at all?
const ROUNDS_QUICK: u32 = 1;

/// A table of the output.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Question {
    /// Hits of 200 MB, next to nginx.
    Hit,
    /// Hits of 64 KiB over many connections, next to nginx.
    Segments,
    /// The first byte of a miss, with and without a cache.
    FirstByte,
    /// Misses that are stored, next to nginx.
    Fill,
    /// Fifty clients of one cold object.
    Crowd,
    /// The start with a million objects.
    Objects,
    /// An HLS film over long paths; needs the lab (see README).
    Film,
}

/// Those that need both caches.
const NEXT_TO_NGINX: [Question; 5] =
    [Question::Hit, Question::Segments, Question::FirstByte, Question::Fill, Question::Crowd];

/// The downstream's cache next to nginx proxy_cache.
#[derive(Parser)]
struct Flags {
    /// Alternating runs per competitor [default: 5, with --quick 1]
    #[arg(long)]
    rounds: Option<u32>,
    /// One round, fewer objects, shorter films: whether it works, no figures
    #[arg(long)]
    quick: bool,
    /// Tables to print [default: all]
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Question>,
    /// Given by `cargo bench`; without it nothing is measured
    #[arg(long)]
    bench: bool,
}

impl Flags {
    fn wants(&self, question: Question) -> bool {
        self.only.is_empty() || self.only.contains(&question)
    }

    fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.quick { ROUNDS_QUICK } else { ROUNDS }).max(1)
    }
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    if !flags.bench {
        // `cargo test --all-targets` runs this program, too, and must not wait for minutes.
        println!("nothing measured: run `cargo bench --bench cache`, or add --bench");
        return ExitCode::SUCCESS;
    }
    match run(&flags) {
        Ok((goals, is_valid)) => {
            print_goals(&goals);
            if is_valid { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// The goals, and whether the emulator was good enough for those of the film.
fn run(flags: &Flags) -> Outcome<(Vec<Goal>, bool)> {
    let dir = load::directory()?;
    // A cache is on a disk: files in memory have small pages, which sendfile takes one by one.
    let disk = tempfile::TempDir::with_prefix("plait-bench-cache-")?;
    processes::clean_up_on_signal(vec![dir.path().to_owned(), disk.path().to_owned()])?;
    println!("## cache\n\n{} alternating rounds.", flags.rounds());
    let (mut goals, mut is_valid) = (Vec::new(), true);
    if flags.only != [Question::Film] {
        goals = namespace::run_in("reno", |network| {
            println!("\nNetwork of what follows: {}.", network.describe());
            in_one_network(flags, dir, disk.path())
        })?;
    }
    if flags.wants(Question::Film) {
        let (of_film, is_calibrated) = film::run(&disk.path().join("film-cache"), flags.quick)?;
        goals.extend(of_film);
        is_valid = is_calibrated;
    }
    Ok((goals, is_valid))
}

/// What is compared.
struct Ring {
    /// With `--cache`.
    plait: Role,
    /// What it stores.
    plait_dir: PathBuf,
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
        let plait_dir = disk.join("plait-cache");
        let cache = plait_dir.to_str().ok_or("the directory's name is no text")?;
        Ok(Self {
            // Neither writes an access log.
            plait: plait.downstream_with(
                setting,
                &path,
                &["--cache", cache, "--cache-size", "12GiB", "--log", "info,access=off"],
            )?,
            plait_dir,
            bare: plait.downstream(setting, &path)?,
            nginx: NginxCache::start(disk, root.address)?,
            _upstream: upstream,
            root,
        })
    }

    /// Both caches, in the order of [`LABELS`].
    fn peers(&self) -> [(SocketAddr, &Process); 2] {
        [(self.plait.address, &self.plait.process), (self.nginx.address, &self.nginx.process)]
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

/// Everything but the film.
fn in_one_network(flags: &Flags, dir: tempfile::TempDir, disk: &Path) -> Outcome<Vec<Goal>> {
    let mut goals = Vec::new();
    if NEXT_TO_NGINX.iter().any(|&question| flags.wants(question)) {
        goals.extend(beside_nginx(flags, dir, disk)?);
    }
    if flags.wants(Question::Objects) {
        goals.extend(objects::run(&disk.join("many"), flags.rounds(), flags.quick)?);
    }
    Ok(goals)
}

const LABELS: [&str; 2] = ["plait", "nginx proxy_cache"];

fn beside_nginx(flags: &Flags, dir: tempfile::TempDir, disk: &Path) -> Outcome<Vec<Goal>> {
    let mut goals = Vec::new();
    let rounds = flags.rounds();
    let library = Library::create(dir, false)?;
    std::fs::write(library.dir().join(SEGMENT_NAME), vec![0x47; SEGMENT_BYTES as usize])?;
    let ring = Ring::start(library.dir(), disk)?;
    let peers = ring.peers();
    for (address, _) in peers {
        for _ in 0..2 {
            Answer::begin(address, VIDEO_NAME)?.verify(&library)?;
        }
    }
    if flags.wants(Question::Hit) {
        goals.extend(hit(&peers, rounds)?);
    }
    if flags.wants(Question::Segments) {
        goals.push(segments(&peers, rounds)?);
    }
    if flags.wants(Question::FirstByte) {
        goals.push(first_byte(&ring, rounds)?);
    }
    if flags.wants(Question::Fill) {
        goals.extend(fill::run(&ring, rounds)?);
    }
    if flags.wants(Question::Crowd) {
        goals.push(crowd(&ring, if flags.quick { rounds } else { rounds.max(ROUNDS) })?);
    }
    Ok(goals)
}

fn hit(peers: &[(SocketAddr, &Process); 2], rounds: u32) -> Outcome<[Goal; 2]> {
    let [ours, theirs] = contest(rounds, LABELS, HITS_PER_ROUND * VIDEO_BYTES, |index| {
        let (address, process) = peers[index];
        sample(process, || {
            (0..HITS_PER_ROUND).try_for_each(|_| timed_get_aside(address, VIDEO_NAME, VIDEO_BYTES).map(drop))
        })
    });
    let note = format!("{HITS_PER_ROUND} of them, one after the other.");
    print_cells("hit, 200 MB", &[note], &[&ours, &theirs])?;
    Ok([
        Goal::ratio(
            "hit, 200 MB: throughput ÷ nginx",
            ours.throughput(),
            theirs.throughput(),
            Target::AtLeast(1.0),
        ),
        Goal::ratio("hit, 200 MB: CPU ÷ nginx", ours.cpu_per_gb(), theirs.cpu_per_gb(), Target::AtMost(1.0)),
    ])
}

fn segments(peers: &[(SocketAddr, &Process); 2], rounds: u32) -> Outcome<Goal> {
    let bytes = requests::COUNT * SEGMENT_BYTES;
    let [ours, theirs] = contest(rounds, LABELS, bytes, |index| {
        let (address, process) = peers[index];
        sample(process, || requests::ask_all(address, SEGMENT_NAME, SEGMENT_BYTES))
    });
    let note = format!("{} requests over {} kept connections.", requests::COUNT, requests::CONNECTIONS);
    print_cells("hit, 64 KiB segments", &[note], &[&ours, &theirs])?;
    Ok(Goal::ratio(
        "hit, 64 KiB segments: requests/s ÷ nginx",
        ours.throughput(),
        theirs.throughput(),
        Target::AtLeast(1.2),
    ))
}

fn first_byte(ring: &Ring, rounds: u32) -> Outcome<Goal> {
    let mut firsts = ["with --cache", "without"].map(|label| Cell::new(label, SEGMENT_BYTES));
    for _ in 0..rounds {
        match first_bytes([ring.plait.address, ring.bare.address]) {
            Ok(samples) => firsts.iter_mut().zip(samples).for_each(|(cell, sample)| cell.push(Ok(sample))),
            Err(error) => firsts[0].push(Err(error)),
        }
    }
    print_cells("miss: time to first byte", &[], &firsts.iter().collect::<Vec<_>>())?;
    Ok(Goal::ratio(
        "miss: time to first byte ÷ without a cache",
        firsts[0].seconds(),
        firsts[1].seconds(),
        Target::AtMost(1.05),
    ))
}

/// Each round has an object of its own.
fn crowd(ring: &Ring, rounds: u32) -> Outcome<Goal> {
    let (mut fetched, mut seconds) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (address, name) = (ring.plait.address, cold(VIDEO_NAME));
        let before = ring.root.sent_bytes()?;
        let began = Instant::now();
        thread::scope(|scope| {
            let clients: Vec<_> = (0..CROWD)
                .map(|_| {
                    scope.spawn(|| {
                        Answer::begin(address, &name).and_then(|answer| answer.discard(VIDEO_BYTES))
                    })
                })
                .collect();
            clients
                .into_iter()
                .try_for_each(|client| client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        })?;
        seconds.push(began.elapsed().as_secs_f64());
        let logged_by = Instant::now() + LOG_LIMIT;
        let bytes = loop {
            let bytes = ring.root.sent_bytes()? - before;
            if bytes >= VIDEO_BYTES || Instant::now() > logged_by {
                break bytes;
            }
            thread::sleep(QUIET_LOOK);
        };
        fetched.push(bytes as f64 / VIDEO_BYTES as f64);
    }
    let shown =
        |values: &[f64]| Spread::of(values.iter().copied()).map_or("–".to_owned(), |spread| spread.show(3));
    println!("\n### {CROWD} clients, one cold 200 MB object\n");
    println!("| bytes from the root ÷ its size, median (min–max) | seconds until all have it | objects |");
    println!("| --- | --- | --- |\n| {} | {} | {rounds} |", shown(&fetched), shown(&seconds));
    Ok(Goal::new(
        format!("{CROWD} clients, one cold 200 MB object: bytes from the root ÷ its size"),
        Spread::of(fetched.into_iter()).map(|spread| spread.median),
        Target::AtMost(1.02),
    ))
}
