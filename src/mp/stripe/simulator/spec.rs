//! Worlds: those of the transfer table, and random ones.

use super::{
    path::{Congestion, PathSpec},
    random::Random,
    world::World,
};
use crate::{mp::stripe::Resent, wire::frame::FIRST_CREDIT_BYTES};

/// Ten thousand runs of more would take minutes.
const BYTES_MAX: f64 = 3e6;

/// Long enough for what a start costs not to count.
const LONG_SECONDS: f64 = 20.0;

/// Something that happens to a lane.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// The connection is lost; another one stands after so many seconds.
    Lost(f64),
    /// The downstream wants nothing fresh of it for so many seconds.
    Rest(f64),
}

/// A world and what is asked of it.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    pub(super) paths: Vec<PathSpec>,
    /// A transfer of this size goes before the measured one, if not 0.
    pub(super) warm_up: u64,
    pub(super) bytes: u64,
    /// Credit that the measured transfer begins with.
    pub(super) first_window: u64,
    /// The head tells the length.
    pub(super) is_length_known: bool,
    /// Bytes per second that the client takes, and that the root gives.
    pub(super) client_rate: f64,
    pub(super) source_rate: f64,
    /// Seconds since the measured transfer's start, the path, and what happens to its first lane.
    pub(super) faults: Vec<(f64, usize, Fault)>,
    pub(super) seed: u64,
}

/// How the measured transfer went.
#[derive(Clone, Debug)]
pub(super) struct Report {
    /// From its start to the client's last byte.
    pub(super) seconds: f64,
    pub(super) resent: Resent,
}

impl Spec {
    /// 200 MB over warm lanes, as the transfer table has it.
    pub(super) fn table(paths: Vec<PathSpec>, seed: u64) -> Self {
        Self {
            paths,
            warm_up: 100_000_000,
            bytes: 200_000_000,
            first_window: FIRST_CREDIT_BYTES,
            is_length_known: true,
            client_rate: f64::INFINITY,
            source_rate: f64::INFINITY,
            faults: Vec::new(),
            seed,
        }
    }

    /// The same with one path only.
    pub(super) fn only(&self, path: usize) -> Self {
        let faults =
            self.faults.iter().filter(|(_, at, _)| *at == path).map(|(at, _, fault)| (*at, 0, *fault));
        Self { paths: vec![self.paths[path].clone()], faults: faults.collect(), ..self.clone() }
    }

    /// Runs it: once more for the warm-up, if there is one.
    pub(super) fn run(&self) -> Report {
        let mut world = World::new(self);
        if self.warm_up > 0 {
            world.transfer(self.warm_up, false);
        }
        world.transfer(self.bytes, true)
    }
}

/// What may go wrong in a world.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Weather {
    /// Paths without loss or jitter, lanes warm, the length known, client and root fast.
    Fair,
    /// Loss and jitter besides.
    Rough,
    /// Rates change, paths fail, lanes are lost or rest, client and root are slow, lengths are unknown, lanes cold.
    Stormy,
}

impl Weather {
    pub(super) fn of(seed: u64) -> Self {
        [Self::Fair, Self::Rough, Self::Stormy][(seed % 3) as usize]
    }
}

/// The world of a seed.
pub(super) fn random_spec(seed: u64) -> Spec {
    let (random, weather) = (&mut Random::new(!seed), Weather::of(seed));
    let seconds = random.magnitude(0.3, 4.0);
    let count = 1 + random.below(4);
    let paths: Vec<_> = (0..count).map(|_| random_path(random, weather, seconds)).collect();
    let rate: f64 = paths.iter().map(|path| path.rate).sum();
    let bytes = (rate * seconds).clamp(1.0, BYTES_MAX) as u64;
    let mut spec = Spec {
        paths,
        warm_up: if weather == Weather::Fair { 2 * bytes } else { bytes },
        bytes,
        first_window: FIRST_CREDIT_BYTES << (2 * random.below(2)),
        is_length_known: true,
        client_rate: f64::INFINITY,
        source_rate: f64::INFINITY,
        faults: Vec::new(),
        seed,
    };
    if weather == Weather::Stormy {
        if random.chance(0.5) {
            spec.warm_up = 0;
        }
        spec.is_length_known = random.chance(0.7);
        if random.chance(0.2) {
            spec.client_rate = rate * random.magnitude(0.05, 2.0);
        }
        if random.chance(0.2) {
            spec.source_rate = rate * random.magnitude(0.05, 2.0);
        }
        for _ in 0..random.below(4) {
            let fault = if random.chance(0.5) {
                Fault::Lost(random.up_to(2.0))
            } else {
                Fault::Rest(random.up_to(2.0))
            };
            spec.faults.push((random.up_to(seconds), random.below(count), fault));
        }
    }
    spec
}

/// A stormy world with a body that is many windows as they begin: credit is what keeps it off the downstream. What
/// happens where less may be parked is for the whole chain's simulation to show, which gives up lanes then.
pub(super) fn many_windows(seed: u64) -> Spec {
    let bytes = Random::new(seed).between(16e6, 48e6) as u64;
    Spec { bytes, first_window: FIRST_CREDIT_BYTES, ..random_spec(3 * seed + 2) }
}

/// A fair world of several paths with a body that takes all of them [`LONG_SECONDS`], and each alone longer.
pub(super) fn long_spec(seed: u64) -> Spec {
    let random = &mut Random::new(!seed);
    let count = 2 + random.below(3);
    let paths: Vec<_> = (0..count).map(|_| random_path(random, Weather::Fair, LONG_SECONDS)).collect();
    let rate: f64 = paths.iter().map(|path| path.rate).sum();
    let bytes = (rate * LONG_SECONDS) as u64;
    Spec { warm_up: bytes / 5, bytes, ..Spec::table(paths, seed) }
}

fn random_path(random: &mut Random, weather: Weather, seconds: f64) -> PathSpec {
    let congestion = if random.chance(0.5) { Congestion::Bbr } else { Congestion::Cubic };
    let mut path = PathSpec::new(random.magnitude(1.0, 300.0), random.magnitude(1.0, 300.0), congestion);
    path.queue = (path.rate * path.round_trip * random.magnitude(0.3, 4.0)).max(64e3);
    if random.chance(0.1) {
        path.queue = path.queue.max(path.rate * random.up_to(2.0));
    }
    // A clean path has one lane: see `LaneCount`.
    if weather != Weather::Fair && random.chance(0.3) {
        path.lanes = 1 + random.below(4);
    }
    if weather != Weather::Fair {
        if random.chance(0.4) {
            path.loss = random.magnitude(1e-4, 0.03);
        }
        if random.chance(0.05) {
            path.loss = random.up_to(0.5);
        }
        if random.chance(0.5) {
            path.jitter = path.round_trip * random.magnitude(0.01, 0.5);
        }
    }
    if weather == Weather::Stormy {
        let mut at = 0.0;
        for _ in 0..random.below(3) {
            at += random.up_to(seconds);
            let rate = if random.chance(0.4) { 0.0 } else { path.rate * random.magnitude(0.05, 2.0) };
            path.changes.push((at, rate));
            if rate == 0.0 {
                at += random.magnitude(0.05, 8.0);
                path.changes.push((at, path.rate));
            }
        }
    }
    path
}
