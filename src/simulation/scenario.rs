//! What a seed stands for: hosts and links, files, clients, and what befalls them.
//!
//! In: a seed. Out: a [`Scenario`], all of it drawn before the run. No I/O.

use std::time::Duration;

use fastrand::Rng;

use crate::mp::parked::PARKED_BYTES_MAX;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// See the module's description.
#[derive(Debug)]
pub(super) struct Scenario {
    /// In how many of 16 connections splice works.
    pub(super) splicing: u8,
    /// Lanes are spread over both cores.
    pub(super) is_spread: bool,
    /// Lanes per path and transfer, least and most, and of a path on a core.
    pub(super) lanes: (usize, usize),
    pub(super) lanes_max: usize,
    pub(super) kept_bytes_max: usize,
    pub(super) parked_bytes_max: usize,
    pub(super) upstreams: usize,
    pub(super) paths: Vec<Path>,
    pub(super) files: Vec<File>,
    pub(super) clients: Vec<ClientSpec>,
    pub(super) harm: Vec<(Duration, Harm)>,
    /// What must come whole whatever happens.
    pub(super) survives: Survives,
}

/// Which requests what happens must do no harm to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Survives {
    Everything,
    /// Those whose rest can be asked for elsewhere.
    WhatCanBeContinued,
    /// Any may fail, visibly.
    Nothing,
}

#[derive(Clone, Debug)]
pub(super) struct Path {
    pub(super) has_relay: bool,
    pub(super) upstream: usize,
    pub(super) delay: Duration,
    pub(super) bytes_per_s: f64,
    pub(super) segment_bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Fixed,
    Chunked,
    UntilClose,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RootFault {
    None,
    /// It says nothing for a while, once it has sent so much.
    Pause(u64, Duration),
    /// It closes in the middle.
    Truncate(u64),
    /// It resets the connection in the middle.
    Reset(u64),
}

#[derive(Clone, Debug)]
pub(super) struct File {
    pub(super) len: u64,
    pub(super) framing: Framing,
    pub(super) has_etag: bool,
    pub(super) takes_ranges: bool,
    pub(super) fault: RootFault,
    /// The root's pause between two pieces of 48 KiB.
    pub(super) pause: Duration,
}

#[derive(Clone, Debug)]
pub(super) struct ClientSpec {
    pub(super) begins: Duration,
    pub(super) requests: Vec<RequestSpec>,
}

#[derive(Clone, Debug)]
pub(super) struct RequestSpec {
    pub(super) file: usize,
    /// First and last byte.
    pub(super) range: Option<(u64, u64)>,
    pub(super) is_http10: bool,
    /// Bytes read at once, and the pause behind them.
    pub(super) read_bytes: usize,
    pub(super) pause: Duration,
    /// It takes nothing for a while once it has so much.
    pub(super) stall: Option<(u64, Duration)>,
    /// It goes away once it has so much.
    pub(super) cancel_at: Option<u64>,
}

/// Which directions of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ways {
    Up,
    Down,
    Both,
}

/// What somebody does to the chain. `near` picks the leg before the relay, if there is one.
#[derive(Clone, Debug)]
pub(super) enum Harm {
    /// One connection is reset.
    ResetLane {
        path: usize,
        near: bool,
        pick: usize,
    },
    /// All connections are.
    ResetPath {
        path: usize,
        near: bool,
    },
    /// Nothing comes through.
    Silence {
        path: usize,
        near: bool,
        ways: Ways,
        time: Duration,
    },
    /// Nothing comes through anywhere.
    SilenceAll {
        time: Duration,
    },
    /// The link's rate changes by this factor.
    Rate {
        path: usize,
        factor: f64,
    },
    /// kill -9, and a new process after a while.
    KillRelay {
        path: usize,
        time: Duration,
    },
    /// SIGSTOP and SIGCONT.
    FreezeRelay {
        path: usize,
        time: Duration,
    },
    KillUpstream {
        upstream: usize,
        time: Duration,
    },
    FreezeUpstream {
        upstream: usize,
        time: Duration,
    },
    /// The path is taken out of the configuration, and put back.
    RemovePath {
        path: usize,
        time: Duration,
    },
}

impl Harm {
    fn time(&self) -> Duration {
        match self {
            Self::ResetLane { .. } | Self::ResetPath { .. } | Self::Rate { .. } => Duration::ZERO,
            Self::Silence { time, .. }
            | Self::SilenceAll { time }
            | Self::KillRelay { time, .. }
            | Self::FreezeRelay { time, .. }
            | Self::KillUpstream { time, .. }
            | Self::FreezeUpstream { time, .. }
            | Self::RemovePath { time, .. } => *time,
        }
    }
}

/// Between `least` and `most`, small values as likely as large ones.
fn spread(random: &mut Rng, least: f64, most: f64) -> f64 {
    least * (most / least).powf(random.f64())
}

fn some_time(random: &mut Rng, least_s: f64, most_s: f64) -> Duration {
    Duration::from_secs_f64(spread(random, least_s, most_s))
}

fn one_in(random: &mut Rng, n: u32) -> bool {
    random.u32(..n) == 0
}

impl Scenario {
    pub(super) fn of(seed: u64) -> Self {
        // Not the numbers that the run itself draws.
        let random = &mut Rng::with_seed(seed ^ 0x5ca1_ab1e);
        let upstreams = if one_in(random, 4) { 2 } else { 1 };
        let paths: Vec<Path> =
            (0..random.usize(1..=4).max(upstreams)).map(|path| Path::of(random, path % upstreams)).collect();
        let files: Vec<File> = (0..random.usize(1..=3)).map(|_| File::of(random)).collect();
        let clients: Vec<_> = (0..random.usize(1..=3)).map(|_| ClientSpec::of(random, &files)).collect();
        let least = random.usize(1..=2);
        let most = if random.bool() { least } else { 6 };
        let lanes_max = if one_in(random, 3) { most } else { 16 };
        let (harm, survives) = harm(random, &paths, upstreams, &clients);
        Self {
            splicing: [16, 16, 8, 0][random.usize(..4)],
            is_spread: one_in(random, 3),
            lanes: (least, most),
            lanes_max,
            kept_bytes_max: spread(random, 128.0 * KIB as f64, 64.0 * MIB as f64) as usize,
            parked_bytes_max: parked_bytes_max(seed),
            upstreams,
            paths,
            files,
            clients,
            harm,
            survives,
        }
    }

    /// When the last harm is over.
    pub(super) fn harm_ends(&self) -> Duration {
        self.harm.iter().map(|(at, harm)| *at + harm.time()).max().unwrap_or_default()
    }
}

/// Drawn by itself, so that all else of a seed is as it was before there was this.
fn parked_bytes_max(seed: u64) -> usize {
    let random = &mut Rng::with_seed(seed ^ 0x009a_2ed8);
    let is_bounded = one_in(random, 4);
    if is_bounded { spread(random, KIB as f64, 4.0 * MIB as f64) as usize } else { PARKED_BYTES_MAX }
}

impl Path {
    fn of(random: &mut Rng, upstream: usize) -> Self {
        Self {
            has_relay: !one_in(random, 4),
            upstream,
            delay: some_time(random, 0.000_05, 0.15),
            bytes_per_s: spread(random, 100e3, 20e6),
            segment_bytes: if one_in(random, 8) { random.usize(200..4000) } else { 64 << 10 },
        }
    }
}

impl File {
    /// Whether its root keeps its word.
    pub(super) fn is_honest(&self) -> bool {
        matches!(self.fault, RootFault::None | RootFault::Pause(..))
    }

    /// Whether the rest of it can be asked for, and be known to be that.
    pub(super) fn can_be_continued(&self) -> bool {
        self.framing == Framing::Fixed && self.has_etag && self.takes_ranges
    }

    fn of(random: &mut Rng) -> Self {
        let len = match random.u32(..40) {
            0..=3 => 0,
            4..=11 => random.u64(1..2000),
            12..=31 => random.u64(2000..150 * KIB),
            32..=38 => random.u64(150 * KIB..1500 * KIB),
            // Beyond the credit that a transfer begins with.
            _ => random.u64(4 * MIB..8 * MIB),
        };
        let framing = match random.u32(..10) {
            0..=5 => Framing::Fixed,
            6..=7 => Framing::Chunked,
            _ => Framing::UntilClose,
        };
        let at = random.u64(..=len);
        let fault = match random.u32(..20) {
            0 => RootFault::Pause(at, some_time(random, 0.1, 20.0)),
            1 if framing != Framing::UntilClose && at < len => RootFault::Truncate(at),
            2 if at < len => RootFault::Reset(at),
            _ => RootFault::None,
        };
        let pause = if one_in(random, 6) { some_time(random, 0.001, 0.05) } else { Duration::ZERO };
        Self { len, framing, has_etag: !one_in(random, 4), takes_ranges: !one_in(random, 5), fault, pause }
    }
}

impl ClientSpec {
    fn of(random: &mut Rng, files: &[File]) -> Self {
        let begins = Duration::from_secs_f64(random.f64() * 2.0);
        Self { begins, requests: (0..random.usize(1..=3)).map(|_| RequestSpec::of(random, files)).collect() }
    }
}

impl RequestSpec {
    fn of(random: &mut Rng, files: &[File]) -> Self {
        let file = random.usize(..files.len());
        let len = files[file].len;
        let range = (len > 0 && one_in(random, 3)).then(|| {
            let first = random.u64(..len);
            (first, random.u64(first..len))
        });
        let is_slow = one_in(random, 4);
        Self {
            file,
            range,
            is_http10: one_in(random, 8),
            read_bytes: if is_slow { random.usize(100..40_000) } else { 64 << 10 },
            pause: if is_slow { some_time(random, 0.000_1, 0.02) } else { Duration::ZERO },
            stall: one_in(random, if len > 4 * MIB { 2 } else { 8 })
                .then(|| (random.u64(..=len.min(2 * MIB)), some_time(random, 0.1, 60.0))),
            cancel_at: one_in(random, 8).then(|| random.u64(..=len)),
        }
    }
}

/// What befalls the chain, in order, and which requests must survive it.
fn harm(
    random: &mut Rng,
    paths: &[Path],
    upstreams: usize,
    clients: &[ClientSpec],
) -> (Vec<(Duration, Harm)>, Survives) {
    let mut harm = Vec::new();
    // Most of it while somebody waits.
    let at = |random: &mut Rng| {
        let client = &clients[random.usize(..clients.len())];
        client.begins + some_time(random, 0.002, 4.0)
    };
    let survives = match random.u32(..8) {
        0 => Survives::Everything,
        // One path is left in peace, and so are the upstreams.
        1..=4 if upstreams == 1 => {
            let spared = random.usize(..paths.len());
            for _ in 0..random.usize(1..=8) {
                if paths.len() > 1 {
                    let path = (spared + random.usize(1..paths.len())) % paths.len();
                    harm.push((at(random), to_path(random, path, &paths[path])));
                }
            }
            Survives::Everything
        }
        // One upstream is left in peace, and its paths.
        1..=4 => {
            let spared = random.usize(..upstreams);
            for _ in 0..random.usize(1..=3) {
                let (upstream, time) = (1 - spared, some_time(random, 0.01, 20.0));
                harm.push((at(random), Harm::KillUpstream { upstream, time }));
            }
            Survives::WhatCanBeContinued
        }
        // All vanish at once, and come back.
        5 if upstreams == 1 => {
            harm.push((at(random), Harm::SilenceAll { time: some_time(random, 0.1, 5.0) }));
            Survives::Everything
        }
        _ => {
            for _ in 0..random.usize(1..=8) {
                let (path, upstream) = (random.usize(..paths.len()), random.usize(..upstreams));
                let what = match random.u32(..8) {
                    0 => Harm::KillUpstream { upstream, time: some_time(random, 0.01, 20.0) },
                    1 => Harm::FreezeUpstream { upstream, time: some_time(random, 0.01, 20.0) },
                    2 => Harm::SilenceAll { time: some_time(random, 0.1, 60.0) },
                    _ => to_path(random, path, &paths[path]),
                };
                harm.push((at(random), what));
            }
            Survives::Nothing
        }
    };
    harm.sort_by_key(|(at, _)| *at);
    (harm, survives)
}

fn to_path(random: &mut Rng, path: usize, spec: &Path) -> Harm {
    let (near, time) = (random.bool(), some_time(random, 0.01, 20.0));
    match random.u32(..10) {
        0 | 1 => Harm::ResetLane { path, near, pick: random.usize(..8) },
        2 => Harm::ResetPath { path, near },
        3 | 4 => {
            Harm::Silence { path, near, ways: [Ways::Up, Ways::Down, Ways::Both][random.usize(..3)], time }
        }
        5 => Harm::Rate { path, factor: spread(random, 0.02, 10.0) },
        6 => Harm::RemovePath { path, time },
        7 | 8 if spec.has_relay => Harm::KillRelay { path, time },
        9 if spec.has_relay => Harm::FreezeRelay { path, time },
        _ => Harm::ResetPath { path, near },
    }
}
