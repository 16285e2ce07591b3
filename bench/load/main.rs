//! `cargo bench --bench load`: thousands of slow clients, and thousands that say nothing, before a whole chain.
//!
//! Root, upstream, two relays and a downstream without a cache run with what users get, except for the flags that are
//! printed. Each slow client takes a file of its own, at its own rate, and checks every byte. Prints Markdown; exit status 1
//! if a client got anything but its file.

mod clients;
mod hellos;
#[allow(dead_code)]
#[path = "../dataplane/peers.rs"]
mod peers;
#[allow(dead_code)]
#[path = "../dataplane/processes.rs"]
mod processes;

use std::{
    error::Error,
    net::SocketAddr,
    path::Path,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use tempfile::TempDir;

use crate::{
    clients::{Idle, Slow},
    hellos::Flood,
    peers::{Executor, Plait, Role, Setting},
};

/// Failures are sentences for the table's reader; nothing here decides by their kind.
pub type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Slow clients come so many a second: lanes are dialled for them, of which an upstream takes about a thousand a second
/// from one address (`--max-hellos`).
const ARRIVALS_PER_S: u32 = 200;
/// Idle connections are watched so long.
const IDLE_TIME: Duration = Duration::from_secs(10);
const MIB: f64 = 1024.0 * 1024.0;

/// Thousands of slow clients and of idle connections before a whole chain.
#[derive(Parser)]
struct Flags {
    /// Slow clients at once
    #[arg(long, default_value_t = 2000)]
    clients: u32,
    /// What each of them takes, bytes a second
    #[arg(long, default_value_t = 64 << 10)]
    rate: u64,
    /// How long each of them takes
    #[arg(long, default_value_t = 45)]
    seconds: u64,
    /// Idle keep-alive connections afterwards, as far as `ulimit -n` goes
    #[arg(long, default_value_t = 20_000)]
    idle: u32,
    /// Half-open hellos kept up before a relay while transfers run over it
    #[arg(long, default_value_t = 10_000)]
    hellos: u32,
    /// Alternating runs with and without them
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
        println!("nothing measured: run `cargo bench --bench load`, or add --bench");
        return ExitCode::SUCCESS;
    }
    match run(&flags) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(errors) => {
            eprintln!("{errors} clients did not get what they asked for");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// A chain, the downstream first.
struct Chain {
    roles: Vec<(&'static str, Role)>,
}

/// Memory and CPU time of each role at one moment.
type Figures = (Instant, Vec<(u64, u64)>);

impl Chain {
    fn start(dir: &Path, lanes_max: u32, descriptors: u64) -> Outcome<Self> {
        let plait = Plait::new(dir)?;
        let cores = format!("0-{}", thread::available_parallelism()?.get() - 1);
        let setting =
            Setting { executor: Executor::TokioUring, placement: "auto", cores: &cores, control: None };
        let root = plait.root(setting, dir.to_str().ok_or("the directory's name is no text")?)?;
        let upstream = plait.upstream(setting, &format!("http://{}", root.address))?;
        // The first one lets all strangers in that come, the second has the default bound.
        let crowded = plait.relay_with(setting, &["--max-hellos", "100000"])?;
        let relays = [crowded, plait.relay(setting, None)?];
        let paths = relays.each_ref().map(|relay| format!("{},{}", relay.address, upstream.address));
        let lanes_max = lanes_max.to_string();
        let flags = ["--lanes-max", &lanes_max, "--max-per-address", "20000", "--idle-timeout", "600"];
        println!("Downstream: `--lanes 1 {}`; `ulimit -n` is {descriptors}.\n", flags.join(" "));
        let downstream = plait.downstream_with(setting, &paths, &flags)?;
        let [first, second] = relays;
        let roles = vec![
            ("downstream", downstream),
            ("relay 1", first),
            ("relay 2", second),
            ("upstream", upstream),
            ("root", root),
        ];
        Ok(Self { roles })
    }

    fn address(&self) -> SocketAddr {
        self.roles[0].1.address
    }

    fn figures(&self) -> Outcome<Figures> {
        let figure = |(_, role): &(_, Role)| Ok((role.process.rss_bytes()?, role.process.cpu_ns()?));
        Ok((Instant::now(), self.roles.iter().map(figure).collect::<Outcome<_>>()?))
    }

    fn print(&self, what: &str, before: &Figures, from: &Figures, to: &Figures) {
        println!("\n| {what} | RSS before, MiB | RSS, MiB | CPU, % of a core |\n| --- | --- | --- | --- |");
        let span = (to.0 - from.0).as_nanos() as f64;
        for (index, (name, _)) in self.roles.iter().enumerate() {
            let (rss_before, (rss, cpu)) = (before.1[index].0, to.1[index]);
            let share = 100.0 * (cpu - from.1[index].1) as f64 / span;
            println!("| {name} | {:.0} | {:.0} | {share:.1} |", rss_before as f64 / MIB, rss as f64 / MIB);
        }
    }
}

fn run(flags: &Flags) -> Outcome<usize> {
    let descriptors = clients::raise_descriptor_limit()?;
    let dir = TempDir::with_prefix("plait-load-")?;
    processes::clean_up_on_signal(vec![dir.path().to_owned()])?;
    let slow = Slow { rate: flags.rate, bytes: flags.rate * flags.seconds };
    println!(
        "## load\n\n{} clients, {} KiB/s each for {} s, {} a second arrive; each a file of its own, every byte checked.",
        flags.clients,
        flags.rate >> 10,
        flags.seconds,
        ARRIVALS_PER_S
    );
    for number in 0..flags.clients {
        slow.store(dir.path(), number)?;
    }
    let chain = Chain::start(dir.path(), flags.clients, descriptors)?;
    let before = chain.figures()?;

    let running = slow.start(chain.address(), flags.clients, ARRIVALS_PER_S);
    thread::sleep(Duration::from_secs(u64::from(flags.clients / ARRIVALS_PER_S) + 2));
    let (from, standing) = (chain.figures()?, running.standing());
    thread::sleep(Duration::from_secs(
        flags.seconds.saturating_sub(u64::from(flags.clients / ARRIVALS_PER_S) + 6),
    ));
    let (to, still) = (chain.figures()?, running.standing());
    chain.print(&format!("{standing} to {still} slow clients"), &before, &from, &to);
    let errors = running.finish();
    println!("\nErrors: {} of {} clients.", errors.len(), flags.clients);
    errors.iter().take(5).for_each(|error| println!("- {error}"));

    // The downstream takes clients up to half of its descriptors.
    let possible = u32::try_from(descriptors / 2).unwrap_or(u32::MAX).saturating_sub(100);
    let before = chain.figures()?;
    let mut idle = Idle::open(chain.address(), flags.idle.min(possible))?;
    let from = chain.figures()?;
    thread::sleep(IDLE_TIME);
    let to = chain.figures()?;
    chain.print(&format!("{} idle keep-alive connections", idle.len()), &before, &from, &to);
    let idle_errors = idle.ask_again();
    println!("\nErrors: {idle_errors} of {} connections, each asked again.", idle.len());
    drop(idle);
    Ok(errors.len() + idle_errors + beside_hellos(&chain, dir.path(), flags)?)
}

/// Transfers at the rate of an uplink rather than of this machine: what a flood costs them shows in their time, and what it
/// costs the relay in its CPU time.
const UPLINK: Slow = Slow { rate: 10_000_000, bytes: 40_000_000 };
/// So many at once: 320 Mbit/s over both relays.
const UPLINK_CLIENTS: u32 = 4;

fn beside_hellos(chain: &Chain, dir: &Path, flags: &Flags) -> Outcome<usize> {
    for number in 0..UPLINK_CLIENTS {
        UPLINK.store(dir, number)?;
    }
    println!(
        "\n{} half-open hellos before one relay; {UPLINK_CLIENTS} transfers at {} MB/s each over both.\n",
        flags.hellos,
        UPLINK.rate / 1_000_000
    );
    println!(
        "| hellos | seconds | that relay's CPU, s | median s | median CPU, s |\n| --- | --- | --- | --- | --- |"
    );
    let mut errors = 0;
    let places =
        [("none", None), ("all let in (`--max-hellos 100000`)", Some(1)), ("the default bound", Some(2))];
    let mut times = [const { Vec::new() }; 3];
    for _ in 0..flags.rounds.max(1) {
        for (index, (_, relay)) in places.iter().enumerate() {
            let flood = relay.map(|relay| Flood::start(chain.roles[relay].1.address, flags.hellos as usize));
            // Until the crowd is complete.
            thread::sleep(Duration::from_secs(2));
            let watched = &chain.roles[relay.unwrap_or(1)].1.process;
            let (began, cpu) = (Instant::now(), watched.cpu_ns()?);
            errors += UPLINK.start(chain.address(), UPLINK_CLIENTS, 1000).finish().len();
            times[index].push((began.elapsed().as_secs_f64(), (watched.cpu_ns()? - cpu) as f64 / 1e9));
            if let Some(flood) = flood {
                flood.stop()?;
            }
        }
    }
    let shown =
        |values: &[f64]| values.iter().map(|value| format!("{value:.2}")).collect::<Vec<_>>().join(", ");
    let median = |values: &[f64]| {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        sorted[sorted.len() / 2]
    };
    for ((name, _), times) in places.iter().zip(times) {
        let (seconds, cpu): (Vec<_>, Vec<_>) = times.into_iter().unzip();
        println!(
            "| {name} | {} | {} | {:.2} | {:.2} |",
            shown(&seconds),
            shown(&cpu),
            median(&seconds),
            median(&cpu)
        );
    }
    Ok(errors)
}
