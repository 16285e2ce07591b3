//! What one frame costs on its way through the `MpQueue`, next to crossbeam's `ArrayQueue` and a `Mutex<BTreeMap>`.
//!
//! `cargo bench --bench mpqueue [-- --quick]` prints a Markdown table. Competitors alternate within a run. A run is timed in
//! batches and stands for its median batch, so that a thread which loses its core for a while spoils a few batches and not
//! the figure. Every value that is moved is checked.

use std::collections::BTreeMap;
use std::hint::{black_box, spin_loop};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::Instant;

use clap::Parser;
use core_affinity::CoreId;
use crossbeam_queue::ArrayQueue;
use hdrhistogram::Histogram;
use plait::mp::queue::{MpQueue, Publish};

/// Slots: about the frames of 64 KiB in flight that fill 500 Mbit/s at 1 s, and the same for every bounded competitor.
const CAPACITY: usize = 1024;
/// Frames per timed batch: long against the clock's 30 ns, short against a scheduler's slice of milliseconds.
const BATCH: u64 = 1024;
/// The cross-core goal of the project, MpQueue over ArrayQueue.
const TARGET: f64 = 0.70;

/// Cost per frame of the ring next to other queues.
#[derive(Parser)]
struct Flags {
    /// Fewer and shorter runs, for a look.
    #[arg(long)]
    quick: bool,
    /// Passed by cargo, ignored.
    #[arg(long, hide = true)]
    bench: bool,
}

/// 16 bytes, as a pool handle and a length would be; the second word lets the consumer check the first.
type Value = (u64, u64);

const fn value(seq: u64) -> Value {
    (seq, !seq)
}

/// How producers number the frames they bring.
#[derive(Clone, Copy, PartialEq)]
enum Order {
    /// One thread does both sides.
    OneThread,
    /// One producer thread, in order.
    TwoThreads,
    /// Two producer threads, each with every second run of 8 frames.
    TwoLanes,
}

/// Frames in a row that one of two lanes brings.
const STRIPE: u64 = 8;

/// Asks for the core by number: the crate's list of cores holds only those of the calling thread, which a parent's pin
/// has cut down to one.
fn pin(core: usize) {
    assert!(
        core_affinity::set_for_current(CoreId { id: core }),
        "cannot pin to core {core}: two cores are needed"
    );
}

/// Times `frames` frames from `put` to `take`, in picoseconds per frame and batch.
fn time<P: Fn(u64) -> bool + Sync>(
    order: Order,
    frames: u64,
    put: P,
    mut take: impl FnMut(u64) -> Option<Value>,
) -> Histogram<u64> {
    let mut batches = histogram();
    let lanes = match order {
        Order::OneThread => 0,
        Order::TwoThreads => 1,
        Order::TwoLanes => 2,
    };
    let start = Barrier::new(lanes as usize + 1);
    thread::scope(|scope| {
        for lane in 0..lanes {
            let (put, start) = (&put, &start);
            scope.spawn(move || {
                pin(1);
                start.wait();
                for seq in (0..frames).filter(|seq| lanes == 1 || seq / STRIPE % 2 == lane) {
                    let mut refusals = 0_u32;
                    while !put(seq) {
                        refusals += 1;
                        wait_a_little(refusals);
                    }
                }
            });
        }
        pin(0);
        start.wait();
        let mut since = Instant::now();
        for seq in 0..frames {
            if lanes == 0 {
                assert!(put(seq), "frame {seq} was refused by an empty queue");
            }
            let mut misses = 0_u32;
            let taken = loop {
                match take(seq) {
                    Some(taken) => break taken,
                    None => misses += 1,
                }
                wait_a_little(misses);
            };
            assert_eq!(black_box(taken), value(seq), "frames came out of order");
            if (seq + 1) % BATCH == 0 {
                let now = Instant::now();
                batches.saturating_record((now - since).as_nanos() as u64 * 1000 / BATCH);
                since = now;
            }
        }
    });
    batches
}

/// Spins, and lets another thread run once it has taken long: two lanes share a core here.
fn wait_a_little(rounds: u32) {
    if rounds.is_multiple_of(4096) { thread::yield_now() } else { spin_loop() }
}

fn mpqueue(order: Order, frames: u64) -> Histogram<u64> {
    let (producer, mut consumer) = MpQueue::new(CAPACITY).expect("a power of two");
    let put = |seq| match producer.publish(seq, value(seq)) {
        Publish::Published => true,
        Publish::WindowFull(_) => false,
        refused => panic!("frame {seq}: {refused:?}"),
    };
    time(order, frames, put, |_| consumer.take())
}

fn array_queue(order: Order, frames: u64) -> Histogram<u64> {
    let queue = ArrayQueue::new(CAPACITY);
    time(order, frames, |seq| queue.push(value(seq)).is_ok(), |_| queue.pop())
}

fn locked_map(order: Order, frames: u64) -> Histogram<u64> {
    let map = Mutex::new((0_u64, BTreeMap::new()));
    let put = |seq| {
        let mut guard = map.lock().expect("no holder panics");
        let room = seq < guard.0 + CAPACITY as u64;
        if room {
            guard.1.insert(seq, value(seq));
        }
        room
    };
    let take = |seq| {
        let mut guard = map.lock().expect("no holder panics");
        let taken = guard.1.remove(&seq)?;
        guard.0 = seq + 1;
        Some(taken)
    };
    time(order, frames, put, take)
}

/// One line of the table and all its runs.
struct Row {
    name: &'static str,
    order: Order,
    run: fn(Order, u64) -> Histogram<u64>,
    /// The median batch of each run.
    medians: Vec<f64>,
    batches: Histogram<u64>,
}

impl Row {
    fn new(name: &'static str, order: Order, run: fn(Order, u64) -> Histogram<u64>) -> Self {
        let batches = histogram();
        Self { name, order, run, medians: Vec::new(), batches }
    }

    fn median_ns(&self) -> f64 {
        self.medians[self.medians.len() / 2]
    }
}

fn main() {
    let flags = Flags::parse();
    let (runs, frames) = if flags.quick { (5, 200 * BATCH) } else { (15, 1000 * BATCH) };
    let mut rows = Vec::new();
    for order in [Order::OneThread, Order::TwoThreads, Order::TwoLanes] {
        rows.push(Row::new("MpQueue", order, mpqueue));
        if order != Order::TwoLanes {
            rows.push(Row::new("crossbeam ArrayQueue", order, array_queue));
        }
        rows.push(Row::new("Mutex<BTreeMap>", order, locked_map));
    }
    for _ in 0..runs {
        for row in &mut rows {
            let batches = (row.run)(row.order, frames);
            row.medians.push(ns(batches.value_at_quantile(0.5)));
            row.batches.add(&batches).expect("all have the same bounds");
        }
    }
    println!(
        "ns per frame, {runs} alternating runs of {frames} frames; a run counts as its median batch of {BATCH}\n"
    );
    println!("| threads | queue | median | min-max of runs | batches p10 | p90 | p99 |");
    println!("| --- | --- | ---: | ---: | ---: | ---: | ---: |");
    for row in &mut rows {
        row.medians.sort_by(f64::total_cmp);
        let threads = match row.order {
            Order::OneThread => "one",
            Order::TwoThreads => "two, cores 0 and 1",
            Order::TwoLanes => "two producers out of order",
        };
        let quantile = |quantile| ns(row.batches.value_at_quantile(quantile));
        println!(
            "| {threads} | {} | {:.1} | {:.1}-{:.1} | {:.1} | {:.1} | {:.1} |",
            row.name,
            row.median_ns(),
            row.medians[0],
            row.medians[runs - 1],
            quantile(0.1),
            quantile(0.9),
            quantile(0.99),
        );
    }
    let cross =
        |name| rows.iter().find(|row| row.order == Order::TwoThreads && row.name == name).map(Row::median_ns);
    if let (Some(ours), Some(theirs)) = (cross("MpQueue"), cross("crossbeam ArrayQueue")) {
        println!("\ncross-core MPQueue / ArrayQueue = {:.2} (target <= {TARGET:.2})", ours / theirs);
    }
}

/// Picoseconds per frame, up to a millisecond: what takes longer counts as that.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 1_000_000_000, 3).expect("3 significant digits are allowed")
}

fn ns(picoseconds: u64) -> f64 {
    picoseconds as f64 / 1000.0
}
