//! What must hold in every world, and how much the worlds of the transfer table must carry.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    thread,
};

use super::{
    path::{Congestion, PathSpec},
    spec::{Report, Spec, Weather, long_spec, many_windows, random_spec},
};
use crate::mp::stripe::Resent;
use Congestion::{Bbr, Cubic};

const SEEDS: u64 = 10_000;
/// Of those that take a hundredth of a second and more each.
const LONG_SEEDS: u64 = 120;
/// Names the one seed to run.
const SEED: &str = "PLAIT_STRIPE_SEED";
/// Copies of frames: as in the striper.
const COPIES_SHARE: f64 = 0.03;
const COPIES_BYTES_MIN: f64 = 65_536.0;
/// Of those that hold up the window.
const HELD_UP_SHARE: f64 = 0.1;

/// What a small body may lose, besides a round trip, where copies of what slow lanes took at first have used up the budget, or
/// a burst has overflowed a queue.
const SLACK_SECONDS: f64 = 0.5;

/// Runs `check` for every seed, on all cores, and says how to run one again that fails.
fn for_seeds(seeds: u64, check: impl Fn(u64) + Sync) {
    if let Some(seed) = std::env::var(SEED).ok().and_then(|seed| seed.parse().ok()) {
        return check(seed);
    }
    let workers = thread::available_parallelism().map_or(1, usize::from);
    let work = |worker| {
        for seed in (worker as u64..seeds).step_by(workers) {
            catch_unwind(AssertUnwindSafe(|| check(seed))).unwrap_or_else(|panic| {
                eprintln!("to see it again: {SEED}={seed} cargo test --lib stripe::simulator");
                resume_unwind(panic)
            });
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|worker| scope.spawn(move || work(worker))).collect();
        workers.into_iter().for_each(|worker| worker.join().unwrap_or_else(|panic| resume_unwind(panic)));
    });
}

/// Seconds that the best path takes alone.
fn best_alone(spec: &Spec) -> f64 {
    (0..spec.paths.len()).map(|path| spec.only(path).run().seconds).fold(f64::INFINITY, f64::min)
}

/// Each kind keeps to its own share.
fn assert_copies_are_few(spec: &Spec, resent: Resent) {
    let most = |share| COPIES_BYTES_MIN + spec.bytes as f64 * share;
    assert!(resent.tail_bytes as f64 <= most(COPIES_SHARE), "{resent:?} of {}", spec.bytes);
    assert!(resent.held_up_bytes as f64 <= most(HELD_UP_SHARE), "{resent:?} of {}", spec.bytes);
    // No share bounds these, as nothing else can be sent meanwhile; there are few such worlds.
    assert!(resent.stuck_bytes as f64 <= most(HELD_UP_SHARE), "{resent:?} of {}", spec.bytes);
}

fn check(seed: u64) {
    let spec = random_spec(seed);
    let Report { seconds, resent, .. } = spec.run();
    assert_copies_are_few(&spec, resent);
    if Weather::of(seed) == Weather::Fair {
        // A burst that overflows a queue is now and then taken for silence.
        let recovered = resent.recovered_bytes + resent.late_bytes;
        assert!(recovered as f64 <= 0.3 * spec.bytes as f64, "{resent:?} of {}", spec.bytes);
        let best = best_alone(&spec);
        let longest = spec.paths.iter().map(|path| path.round_trip).fold(0.0, f64::max);
        assert!(
            seconds <= 1.05 * best + longest + SLACK_SECONDS,
            "{seconds:.3} s, and {best:.3} s over the best path"
        );
    }
}

/// The rest is asserted inside: frames cut the body, each byte arrives once and in order, memory is bounded, nobody asks
/// in a loop, every transfer ends.
#[test]
fn ten_thousand_worlds() {
    for_seeds(SEEDS, check);
}

/// Handed out, and parked, is what the credit allows: asserted inside, and here the body is many times that.
#[test]
fn bodies_of_many_windows_stay_within_the_credit() {
    for_seeds(100, |seed| _ = many_windows(seed).run());
}

/// 20 s and longer: nothing but the longest round trip is allowed for besides the twentieth.
#[test]
fn worse_paths_cost_long_bodies_a_twentieth_at_most() {
    for_seeds(LONG_SEEDS, |seed| {
        let spec = long_spec(seed);
        let Report { seconds, resent } = spec.run();
        // Most such worlds have none, and the worst 1.3 %: here all of them together keep to the tail's share.
        let copies = resent.tail_bytes + resent.held_up_bytes + resent.stuck_bytes + resent.late_bytes;
        let copies_max = COPIES_BYTES_MIN + spec.bytes as f64 * COPIES_SHARE;
        assert!(copies as f64 <= copies_max, "{resent:?} of {}", spec.bytes);
        let longest = spec.paths.iter().map(|path| path.round_trip).fold(0.0, f64::max);
        let fastest = spec.paths.iter().map(|path| path.rate).fold(0.0, f64::max);
        // No path alone is quicker than its rate: most worlds need not be run once more to know.
        let is_quick = |best: f64| seconds <= 1.05 * best + longest;
        if !is_quick(spec.bytes as f64 / fastest) {
            let best = best_alone(&spec);
            assert!(is_quick(best), "{seconds:.3} s, and {best:.3} s over the best path");
        }
    });
}

/// Where loss strikes is chance, so that a single world says little: most must gain.
#[test]
fn other_paths_do_no_harm_where_packets_are_lost() {
    let specs = (0..450).filter(|seed| Weather::of(*seed) == Weather::Rough).map(random_spec);
    let specs = specs.filter(|spec| spec.paths.len() > 1);
    // Long enough for lanes to know what they lose.
    let longer = |spec: Spec| Spec { bytes: 4 * spec.bytes, warm_up: 4 * spec.bytes, ..spec };
    let mut ratios: Vec<_> = specs.map(longer).map(|spec| spec.run().seconds / best_alone(&spec)).collect();
    ratios.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| ratios[(ratios.len() as f64 * share) as usize];
    println!("median {:.3}, p90 {:.3}, p95 {:.3}", at(0.5), at(0.9), at(0.95));
    assert!(at(0.5) < 0.85 && at(0.9) < 1.05 && at(0.95) < 1.2);
}

/// Goodput of 200 MB over warm lanes as a share of the sum of rates; the mean of three.
fn share(paths: &[PathSpec]) -> f64 {
    let rates: f64 = paths.iter().map(|path| path.rate).sum();
    let shares = (0..3).map(|seed| {
        let spec = Spec::table(paths.to_vec(), seed);
        spec.bytes as f64 / spec.run().seconds / rates
    });
    shares.sum::<f64>() / 3.0
}

fn assert_floor(name: &str, share: f64, floor: f64) {
    println!("{name}: {share:.3}");
    assert!(share >= floor, "{name}: {share:.3}, and must be {floor}");
}

#[test]
fn good_paths_add_up() {
    for (congestion, floors) in [(Bbr, [0.985, 0.98, 0.97]), (Cubic, [0.98, 0.97, 0.96])] {
        let path = |mbit, ms| PathSpec::new(mbit, ms, congestion);
        assert_floor("2 x 50M/100ms", share(&[path(50.0, 100.0), path(50.0, 100.0)]), floors[0]);
        assert_floor("80M/40ms + 20M/200ms", share(&[path(80.0, 40.0), path(20.0, 200.0)]), floors[1]);
        assert_floor("50M/50ms + 50M/300ms", share(&[path(50.0, 50.0), path(50.0, 300.0)]), floors[2]);
    }
}

#[test]
fn lossy_paths_nearly_add_up() {
    let lossy = |loss, ms| PathSpec { loss, ..PathSpec::new(100.0, ms, Bbr) };
    // One of them alone comes to 0.89 here.
    assert_floor("2 x 100M/150ms, 0.5 %", share(&[lossy(0.005, 150.0), lossy(0.005, 150.0)]), 0.8);
    let mixed = [20.0, 60.0, 120.0, 200.0].map(|ms| lossy(0.001, ms));
    assert_floor("4 x 100M/20-200ms, 0.1 %", share(&mixed), 0.84);
}

#[test]
fn a_terrible_second_path_does_no_harm() {
    let good = PathSpec::new(50.0, 100.0, Bbr);
    let alone = share(std::slice::from_ref(&good));
    for (name, bad) in [
        ("half lost", PathSpec { loss: 0.5, ..good.clone() }),
        ("ten times the round trip", PathSpec::new(50.0, 1000.0, Bbr)),
        ("1 Mbit/s", PathSpec::new(1.0, 100.0, Bbr)),
    ] {
        let rates = 1.0 + bad.rate / good.rate;
        assert_floor(name, share(&[good.clone(), bad]) * rates / alone, 0.98);
    }
}

#[test]
fn a_lane_that_recovers_is_used_again() {
    let steady = PathSpec::new(50.0, 50.0, Bbr);
    let changes = vec![(2.0, steady.rate / 50.0), (6.0, steady.rate)];
    // Of 200 MB, the second path cannot carry the 25 MB of 4 s.
    assert_floor("4 s of 1 Mbit/s", share(&[steady.clone(), PathSpec { changes, ..steady }]), 0.84);
}
