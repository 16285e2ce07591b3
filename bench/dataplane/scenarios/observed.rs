//! In: a relay that is scraped every second and logs, and one that does neither. Out: what the difference costs.
//!
//! Called by `main`. Twice: CPU time per byte of both by turns, where a hundredth drowns in the noise of most machines; and
//! the CPU time of one scrape after the other of a relay that does nothing else, which is exact. A relay logs nothing per
//! request.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

use super::relay::RelayPeer;
use super::{Bench, Findings};
use crate::Outcome;
use crate::load::{LARGE_BYTES, VIDEO_BYTES, leave_cpu_to_proxy};
use crate::namespace::Network;
use crate::peers::{Executor, free_address};
use crate::report::{Cell, Goal, Spread, Target, print_cells};

/// 4 GB pass in about a second: a scrape falls into each transfer.
const BYTES: u64 = 2 * LARGE_BYTES;
/// Pairs of transfers per round: single ones differ by a fifth.
const PAIRS_PER_ROUND: u32 = 4;
/// As Prometheus is often told; its own default is a minute.
const SCRAPE_EVERY: Duration = Duration::from_secs(1);
/// Lanes through the relay while it is scraped; each is one at either end. A core tells of 256.
const LANES: [usize; 2] = [2, 256];
/// Enough for a 99th percentile.
const SCRAPES: u32 = 300;
const SCRAPES_QUICK: u32 = 100;
/// An endpoint that is silent for so long is broken.
const SILENT_MAX: Duration = Duration::from_secs(5);
/// Of a core.
const GOAL_PERCENT: f64 = 1.0;

/// Metrics and logs of a relay.
pub fn run(bench: &Bench, network: &Network, findings: &mut Findings) -> Outcome<()> {
    for &executor in &bench.executors {
        let admin = free_address()?;
        let start = |flags: &[&str]| RelayPeer::plait_with(executor, Some("reno"), &bench.library, flags);
        let bare = start(&["--log", "off"])?;
        let observed = start(&["--admin", &admin.to_string(), "--log", "info", "--log-format", "json"])?;
        let [bare, observed] = [("without", bare), ("with", observed)].map(|(label, relay)| {
            relay.verified(&format!("relay {label} metrics and logs"), &bench.library, findings)
        });
        let (bare, observed) = (bare?, observed?);
        findings.goals.push(per_byte(bench, network, executor, [&bare, &observed], admin)?);
        drop(bare);
        findings.goals.extend(per_scrape(bench, executor, &observed, admin)?);
    }
    Ok(())
}

/// Both by turns, one of them scraped all the time.
fn per_byte(
    bench: &Bench,
    network: &Network,
    executor: Executor,
    relays: [&RelayPeer; 2],
    admin: SocketAddr,
) -> Outcome<Goal> {
    let bytes = if bench.quick { VIDEO_BYTES } else { BYTES };
    let pairs = bench.rounds * PAIRS_PER_ROUND;
    let labels = ["without", "with"].map(|label| format!("{label}, {}", executor.label()));
    let mut cells = labels.map(|label| Cell::new(label, bytes));
    let mut ratios = Vec::new();
    let scraped_ms = thread::scope(|scope| -> Outcome<Histogram<u64>> {
        let (stop, stopped) = channel::<()>();
        let scraper = scope.spawn(move || {
            leave_cpu_to_proxy();
            let mut taken = Histogram::new(3)?;
            while stopped.recv_timeout(SCRAPE_EVERY) == Err(RecvTimeoutError::Timeout) {
                taken.record(u64::try_from(scrape(admin)?.as_micros())?)?;
            }
            Ok(taken)
        });
        for pair in 0..pairs as usize {
            let mut cpu_ns = [0.0; 2];
            for turn in 0..2 {
                let index = (pair + turn) % 2;
                let sample = relays[index].transfer(bytes)?;
                cpu_ns[index] = sample.cpu_ns.unwrap_or_default() as f64;
                cells[index].push(Ok(sample));
            }
            ratios.push(cpu_ns[1] / cpu_ns[0]);
        }
        drop(stop);
        scraper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    let ratio = Spread::of(ratios.into_iter());
    let shown = ratio.as_ref().map_or("–".to_owned(), |ratio| ratio.show(3));
    let notes = [
        format!("Network: {}. Scraped every {} s, logs as JSON.", network.describe(), SCRAPE_EVERY.as_secs()),
        format!("CPU with ÷ without, of {pairs} pairs: {shown}."),
        format!(
            "{} scrapes beside transfers: p50 {:.1} ms, p99 {:.1} ms until the answer is whole.",
            scraped_ms.len(),
            scraped_ms.value_at_quantile(0.5) as f64 / 1000.0,
            scraped_ms.value_at_quantile(0.99) as f64 / 1000.0
        ),
    ];
    let title = format!("relay with and without metrics and logs, {}", executor.label());
    print_cells(&title, &notes, &cells.iter().collect::<Vec<_>>())?;
    Ok(Goal::new(
        format!("relay, {}: CPU with metrics and logs ÷ without, median of {pairs} pairs", executor.label()),
        ratio.map(|ratio| ratio.median),
        Target::AtMost(1.0 + GOAL_PERCENT / 100.0),
    ))
}

/// A relay that does nothing but answer.
fn per_scrape(bench: &Bench, executor: Executor, relay: &RelayPeer, admin: SocketAddr) -> Outcome<Vec<Goal>> {
    let scrapes = if bench.quick { SCRAPES_QUICK } else { SCRAPES };
    println!("\nScrapes one after the other of an idle relay, {scrapes} each; CPU of the relay.\n");
    println!("| lanes, both ends | CPU ms, p50 | p99 | max | % of a core at one a second, p99 |");
    println!("| --- | --- | --- | --- | --- |");
    let (mut lanes, mut goals) = (Vec::new(), Vec::new());
    for count in LANES {
        while lanes.len() < count {
            lanes.push(relay.connect()?);
        }
        let mut cpu_us = Histogram::<u64>::new(3)?;
        for _ in 0..scrapes {
            let before = relay.cpu_ns()?.ok_or("a relay's CPU time is not counted")?;
            scrape(admin)?;
            let after = relay.cpu_ns()?.ok_or("a relay's CPU time is not counted")?;
            cpu_us.record((after - before) / 1000)?;
        }
        let ms = |us: u64| us as f64 / 1000.0;
        let p99 = ms(cpu_us.value_at_quantile(0.99));
        // A millisecond in a second is a tenth of a percent.
        let percent = p99 / SCRAPE_EVERY.as_secs_f64() / 10.0;
        println!(
            "| {} | {:.2} | {p99:.2} | {:.2} | {percent:.2} |",
            2 * count,
            ms(cpu_us.value_at_quantile(0.5)),
            ms(cpu_us.max())
        );
        goals.push(Goal::new(
            format!(
                "relay, {}: p99 of a scrape a second, {} lanes, % of a core",
                executor.label(),
                2 * count
            ),
            Some(percent),
            Target::AtMost(GOAL_PERCENT),
        ));
    }
    Ok(goals)
}

/// How long one takes.
fn scrape(admin: SocketAddr) -> Outcome<Duration> {
    let began = Instant::now();
    let mut stream = TcpStream::connect(admin)?;
    stream.set_read_timeout(Some(SILENT_MAX))?;
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if !answer.starts_with("HTTP/1.1 200 ") || !answer.contains("plait_lanes") {
        return Err(format!("no metrics: {}", answer.lines().next().unwrap_or_default()).into());
    }
    Ok(began.elapsed())
}
