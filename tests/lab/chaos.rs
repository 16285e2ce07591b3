//! Clients in a loop with random ranges, some of which go away in the middle, while relays are killed, frozen and started
//! anew, and paths vanish, shrink and lose packets. Every byte is checked, and that nothing is left over afterwards.
//!
//! `PLAIT_CHAOS_SECONDS` says how long (20), `PLAIT_CHAOS_SEED` which faults and ranges (printed; timing varies all the same).
//! `PLAIT_CHAOS_LOGS` names a directory for the logs of the roles, `PLAIT_LOG=debug` makes them long. `PLAIT_CHAOS_BINARY` names
//! another binary than cargo's: a long run needs one that no build replaces.

use std::{
    env, fs,
    io::{self, ErrorKind, Read, Write},
    net::TcpStream,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use fastrand::Rng;
use plait::lab::{
    Lab, Scenario,
    chain::{Chain, ChainOptions, Content, Role, RoleProcess},
    host::Host,
    scenario::Event,
    shape::Direction,
};

use crate::{SMALL, possible};

const CLIENTS: u64 = 20;
const FILE_BYTES: usize = 20_000_000;
/// A few seconds of what each of twenty clients gets of 40 Mbit/s.
const RANGE_BYTES_MAX: usize = 1_000_000;
/// Faults last so long at most: far below the 30 s for which a transfer waits for lanes, also where they meet.
const FAULT_MS_MAX: u64 = 3000;
/// No byte for so long: the longest that a transfer is kept without lanes, and some more.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// Load without faults, before anything is counted: pools of pipes and lanes are full then.
const WARM_UP: Duration = Duration::from_secs(5);
/// Lanes whose other end has gone are found by their pings, half a minute later; those that nobody needs any more are closed after
/// a minute, at the next ping.
const SETTLE_LIMIT: Duration = Duration::from_secs(150);
/// Where the downstream says how it is, on the client's host.
const ADMIN: &str = "127.0.0.1:9500";
/// What may be more afterwards: a few lanes, and sockets about to close.
const MORE_DESCRIPTORS: usize = 24;
const MORE_RESIDENT_BYTES: u64 = 48 << 20;

/// What clients saw.
#[derive(Debug, Default)]
struct Seen {
    whole: AtomicU64,
    cancelled: AtomicU64,
    /// Told by an answer that no path or lane is to be had: 502 to 504.
    refused: AtomicU64,
    bytes: AtomicU64,
}

/// What a role has of the system.
#[derive(Clone, Copy, Debug)]
struct Holdings {
    descriptors: usize,
    /// Of the pipes among them, those that nothing uses (not asked of the root): the pool keeps as many as were once needed.
    pipes_idle: usize,
    threads: usize,
    resident_bytes: u64,
}

impl Holdings {
    fn of(role: &RoleProcess, lab: &Lab) -> Self {
        let proc = format!("/proc/{}", role.pid().expect("the role runs"));
        let descriptors: Vec<_> = fs::read_dir(format!("{proc}/fd")).unwrap().flatten().collect();
        let status = fs::read_to_string(format!("{proc}/status")).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let resident_kb: u64 = resident.trim().strip_suffix(" kB").unwrap().parse().unwrap();
        Self {
            descriptors: descriptors.len(),
            pipes_idle: match role.role() {
                Role::Downstream => pipes_idle(lab.client()),
                Role::Upstream => pipes_idle(lab.server()),
                Role::Relay(path) => pipes_idle(lab.relay(path)),
                _ => 0,
            },
            threads: fs::read_dir(format!("{proc}/task")).unwrap().count(),
            resident_bytes: resident_kb << 10,
        }
    }

    fn in_use(&self) -> usize {
        self.descriptors.saturating_sub(2 * self.pipes_idle)
    }

    fn is_about(&self, before: &Self) -> bool {
        self.in_use() <= before.in_use() + MORE_DESCRIPTORS
            && self.threads <= before.threads
            && self.resident_bytes <= before.resident_bytes + MORE_RESIDENT_BYTES
    }
}

/// What the metrics of the role on `host` say.
fn pipes_idle(host: &Host) -> usize {
    let mut stream = host.connect(None, ADMIN.parse().unwrap(), SILENCE_LIMIT).unwrap();
    stream.set_read_timeout(Some(SILENCE_LIMIT)).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {ADMIN}\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("plait_pipes_idle "));
    line.and_then(|number| number.parse::<f64>().ok())
        .map(|number| number as usize)
        .unwrap_or_else(|| panic!("no idle pipes in {text}"))
}

/// One request after the other until `over`; the connection is kept while answers are whole.
fn client(lab: &Lab, chain: &Chain, content: &[u8], seed: u64, over: &AtomicBool, seen: &Seen) {
    let mut random = Rng::with_seed(seed);
    let mut connection = None;
    while !over.load(Relaxed) {
        let stream = connection.take().unwrap_or_else(|| {
            let stream = lab.client().connect(None, chain.entrance(), SILENCE_LIMIT).unwrap();
            stream.set_read_timeout(Some(SILENCE_LIMIT)).unwrap();
            stream
        });
        let start = random.usize(..content.len());
        let len = random.usize(1..=RANGE_BYTES_MAX.min(content.len() - start));
        let wanted = &content[start..start + len];
        let leave_after = (random.u8(..5) == 0).then(|| random.usize(..len));
        connection = ask(stream, start, wanted, leave_after, seen)
            .unwrap_or_else(|error| panic!("bytes {start} to {}: {error}", start + len));
    }
}

/// Asks for what must be `wanted`; goes away after `leave_after` bytes, if that is said. Returns the connection if it can be
/// used again.
fn ask(
    mut stream: TcpStream,
    start: usize,
    wanted: &[u8],
    leave_after: Option<usize>,
    seen: &Seen,
) -> io::Result<Option<TcpStream>> {
    let wrong = |text: String| io::Error::new(ErrorKind::InvalidData, text);
    let last = start + wanted.len() - 1;
    write!(stream, "GET /f HTTP/1.1\r\nHost: h\r\nRange: bytes={start}-{last}\r\n\r\n")?;
    let mut head = Vec::new();
    let broken = |error: io::Error, place: &str| io::Error::new(error.kind(), format!("{place}: {error}"));
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).map_err(|error| broken(error, "in the head"))?;
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).to_lowercase();
    let status = head.split(' ').nth(1).unwrap_or_default();
    if let "502" | "503" | "504" = status {
        seen.refused.fetch_add(1, Relaxed);
        thread::sleep(Duration::from_millis(100));
        return Ok(None);
    }
    if status != "206" || !head.contains(&format!("content-length: {}\r\n", wanted.len())) {
        return Err(wrong(format!("for {} bytes: {head}", wanted.len())));
    }
    let mut taken = 0;
    let mut block = vec![0; 64 << 10];
    let until = leave_after.unwrap_or(wanted.len());
    while taken < until {
        let most = block.len().min(wanted.len() - taken);
        let got = stream
            .read(&mut block[..most])
            .map_err(|error| broken(error, &format!("behind byte {taken}")))?;
        if got == 0 {
            return Err(wrong(format!("the body ended after {taken} of {} bytes", wanted.len())));
        }
        if block[..got] != wanted[taken..taken + got] {
            return Err(wrong(format!("other bytes behind {taken}")));
        }
        taken += got;
    }
    seen.bytes.fetch_add(taken as u64, Relaxed);
    let (count, again) = match leave_after {
        Some(_) => (&seen.cancelled, None),
        None => (&seen.whole, Some(stream)),
    };
    count.fetch_add(1, Relaxed);
    Ok(again)
}

/// Breaks path number `path` (from 0) again and again until `over`, and leaves it in order. Returns how often.
fn trouble(lab: &Lab, chain: &Chain, path: usize, seed: u64, over: &AtomicBool) -> [u32; 6] {
    let mut random = Rng::with_seed(seed);
    let relay = chain.processes().iter().find(|role| role.role() == Role::Relay(path)).unwrap();
    let calm = &lab.scenario().paths[path];
    let event = |text: &str| -> Event {
        let text = format!("{SMALL}[[event]]\nat = 0\npath = {}\n{text}", path + 1);
        Scenario::parse("chaos.toml", &text).unwrap().events.remove(0)
    };
    let mut counts = [0; 6];
    while !over.load(Relaxed) {
        thread::sleep(Duration::from_millis(random.u64(100..2000)));
        let fault = random.usize(..counts.len());
        counts[fault] += 1;
        let down = |is_down, direction| Event { direction, ..event(&format!("down = {is_down}")) };
        match fault {
            0 => relay.kill(),
            1 => relay.freeze(),
            2 => lab.apply(&down(true, None)),
            3 => lab.apply(&down(true, Some(Direction::Forward))),
            4 => lab.apply(&down(true, Some(Direction::Backward))),
            _ => {
                let rate_mbit = random.u32(1..100);
                lab.apply(&event(&format!(
                    "rate-mbit = {rate_mbit}\nloss = 0.0{}\nrtt-ms = 60",
                    random.u8(..10)
                )));
            }
        }
        thread::sleep(Duration::from_millis(random.u64(50..FAULT_MS_MAX)));
        relay.thaw();
        relay.start_again().unwrap();
        lab.apply(&down(false, None));
        let back = format!("rate-mbit = {}\nloss = 0\nrtt-ms = {}", calm.rate_mbit, calm.rtt_ms);
        lab.apply(&event(&back));
    }
    counts
}

/// Lets the clients run for `time`, beside what `beside` does until it is told to end.
fn load<T: Send>(
    (lab, chain, content): (&Lab, &Chain, &[u8]),
    seed: u64,
    time: Duration,
    beside: impl FnOnce(&AtomicBool) -> T + Send,
) -> (Seen, T) {
    let (seen, over) = (Seen::default(), AtomicBool::new(false));
    let outcome = thread::scope(|scope| {
        let (seen, over) = (&seen, &over);
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| scope.spawn(move || client(lab, chain, content, seed ^ number << 32, over, seen)))
            .collect();
        let beside = scope.spawn(|| beside(over));
        let until = Instant::now() + time;
        // A client ends before the others only by what it has found.
        while Instant::now() < until && !clients.iter().any(|client| client.is_finished()) {
            thread::sleep(Duration::from_millis(50));
        }
        over.store(true, Relaxed);
        let outcome = beside.join();
        clients.into_iter().for_each(|client| client.join().unwrap());
        outcome.unwrap()
    });
    (seen, outcome)
}

#[test]
fn clients_get_their_bytes_whatever_happens_to_paths_and_relays() {
    if !possible() {
        return;
    }
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("PLAIT_CHAOS_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
    let seconds = number("PLAIT_CHAOS_SECONDS").unwrap_or(20);
    println!("PLAIT_CHAOS_SEED={seed} PLAIT_CHAOS_SECONDS={seconds}");
    let mut content = vec![0; FILE_BYTES];
    Rng::with_seed(seed).fill(&mut content);
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), &content).unwrap();
    let lab = Lab::build(&Scenario::parse("small.toml", SMALL).unwrap()).unwrap();
    let binary = env::var_os("PLAIT_CHAOS_BINARY").unwrap_or_else(|| env!("CARGO_BIN_EXE_plait").into());
    let mut options = ChainOptions::new(&lab, binary.into());
    options.content = Content::Directory(dir.path().to_owned());
    for role in ["downstream", "upstream", "relay"] {
        options.flags.push((role.into(), format!("--admin={ADMIN}")));
    }
    options.logs = env::var_os("PLAIT_CHAOS_LOGS").map(Into::into);
    let chain = Chain::start(&lab, &options).unwrap();
    let ground = (&lab, &chain, &content[..]);

    load(ground, seed, WARM_UP, |_| ());
    let holdings = || chain.processes().iter().map(|role| Holdings::of(role, &lab)).collect::<Vec<_>>();
    let before = holdings();
    let (seen, counts) = load(ground, seed + 1, Duration::from_secs(seconds), |over| {
        thread::scope(|scope| {
            let other = scope.spawn(|| trouble(&lab, &chain, 1, seed + 3, over));
            [trouble(&lab, &chain, 0, seed + 2, over), other.join().unwrap()]
        })
    });
    println!(
        "{seen:?}; kills, freezes, outages (both ways, to server, to client), changes per path: {counts:?}"
    );
    assert!(seen.whole.load(Relaxed) > 0, "nothing came");
    // In order again, everybody is served.
    let (seen, ()) = load(ground, seed + 4, WARM_UP, |_| ());
    assert!(seen.whole.load(Relaxed) > 0, "{seen:?} once all is in order again");
    assert_eq!(seen.refused.load(Relaxed), 0, "once all is in order again");

    let until = Instant::now() + SETTLE_LIMIT;
    let mut after = holdings();
    while !after.iter().zip(&before).all(|(after, before)| after.is_about(before)) && Instant::now() < until {
        thread::sleep(Duration::from_millis(500));
        after = holdings();
    }
    for ((role, before), after) in chain.processes().iter().zip(&before).zip(&after) {
        println!("{}: {before:?} before, {after:?} after", role.role());
        assert!(after.is_about(before), "{}: {before:?} before, {after:?} after", role.role());
    }
}
