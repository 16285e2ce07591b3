//! A downstream that is killed again and again, at any point of what a cache does.
//!
//! `PLAIT_KILL_SEED` repeats a run, as far as threads do; `PLAIT_KILL_ROUNDS` makes it longer.

use std::{
    io::Write,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use fastrand::Rng;

use crate::{
    cache::{cache_dir, serve_film},
    chain::{Ground, Plan, Root, text},
    client::Client,
    content::content,
    roots::{After, Asked, ScriptedRoot},
};

/// Three times what the cache holds, so that it evicts all the time.
const LENGTHS: [usize; 8] =
    [200_003, 900_001, 1_500_007, 2_000_000, 3_000_017, 4_500_001, 9_000_005, 14_000_003];
const CACHE_SIZE: &str = "12MB";
const VERSIONS: usize = 4;

/// The versions of a file have the same length, so that only the bytes tell them apart.
fn body(number: usize, version: usize) -> Vec<u8> {
    let mut bytes = content(LENGTHS[number] + version);
    bytes.truncate(LENGTHS[number]);
    bytes
}

struct Library {
    bodies: Vec<Vec<Vec<u8>>>,
    versions: Mutex<[usize; LENGTHS.len()]>,
}

impl Library {
    fn answer(&self, asked: &Asked, stream: &mut std::net::TcpStream) -> std::io::Result<After> {
        let name = asked.line.split(' ').nth(1).and_then(|path| path.strip_prefix('/'));
        let Some(number) = name.and_then(|name| name.strip_suffix(".mp4")?.parse::<usize>().ok()) else {
            write!(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
            return Ok(After::Keep);
        };
        let version = self.versions.lock().unwrap()[number];
        let etag = format!("\"{version}\"");
        serve_film(asked, stream, &self.bodies[number][version], &etag, "Cache-Control: max-age=1\r\n")
    }

    fn change(&self, number: usize) {
        let version = &mut self.versions.lock().unwrap()[number];
        *version = (*version + 1) % VERSIONS;
    }

    /// Asks for a file or a part of it, takes up to `taken` bytes, and checks them against the version that the head names.
    /// The version, if all came.
    fn ask(&self, address: SocketAddr, number: usize, headers: &str, taken: usize) -> Option<usize> {
        let mut client = Client::over(std::net::TcpStream::connect(address).ok()?);
        let request = format!("GET /{number}.mp4 HTTP/1.1\r\nHost: films.example\r\n{headers}\r\n");
        if !client.sends(request.as_bytes()) {
            return None;
        }
        let head = client.head().ok()?;
        if !matches!(head.status, 200 | 206) {
            assert!(matches!(head.status, 502..=504), "{number}, {headers}: {head:?}");
            return None;
        }
        let version: usize = head.header("etag").unwrap().trim_matches('"').parse().unwrap();
        let length: usize = head.header("content-length").unwrap().parse().unwrap();
        let first = head.header("content-range").map_or(0, |range| {
            let first = range.strip_prefix("bytes ").and_then(|range| range.split('-').next());
            first.unwrap().parse().unwrap()
        });
        let wanted = &self.bodies[number][version][first..first + length];
        let mut at = 0;
        while at < length.min(taken) {
            let some = 100_000.min(length.min(taken) - at);
            let bytes = client.some(some).ok()?;
            assert!(
                bytes == wanted[at..at + some],
                "{number}, {headers}: wrong bytes from {first} + {at} on"
            );
            at += some;
        }
        (at == length).then_some(version)
    }
}

fn random_range(random: &mut Rng, number: usize) -> String {
    let first = random.usize(..LENGTHS[number]);
    format!("Range: bytes={first}-{}\r\n", random.usize(first..LENGTHS[number]))
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

#[test]
fn killed_at_any_point_it_serves_no_wrong_byte() {
    let seed = setting("PLAIT_KILL_SEED").unwrap_or_else(|| fastrand::u64(..));
    let rounds = setting("PLAIT_KILL_ROUNDS").unwrap_or(10);
    eprintln!("PLAIT_KILL_SEED={seed}");
    let mut random = Rng::with_seed(seed);
    let all_versions = |number| (0..VERSIONS).map(|version| body(number, version)).collect();
    let bodies = (0..LENGTHS.len()).map(all_versions).collect();
    let library = Arc::new(Library { bodies, versions: Mutex::default() });
    let answers = library.clone();
    let root = ScriptedRoot::start(move |asked, stream| answers.answer(asked, stream));
    let ground = Ground::new();
    let dir = cache_dir(&ground);
    let downstream: Vec<_> = ["--cache", text(&dir), "--cache-size", CACHE_SIZE].map(str::to_owned).into();
    let plan = Plan { root: Root::At(root.address), downstream: downstream.clone(), ..Plan::default() };
    let mut chain = plan.start_on(ground);
    for round in 0..rounds {
        let killed = AtomicBool::new(false);
        thread::scope(|scope| {
            let (address, library, killed) = (chain.address, &library, &killed);
            for _ in 0..4 {
                let mut random = random.fork();
                scope.spawn(move || {
                    while !killed.load(Ordering::SeqCst) {
                        let number = random.usize(..LENGTHS.len());
                        match random.u8(..10) {
                            0 => library.change(number),
                            1 => drop(library.ask(address, number, "", random.usize(..LENGTHS[number]))),
                            2..5 => drop(library.ask(address, number, "", usize::MAX)),
                            _ => {
                                let range = random_range(&mut random, number);
                                library.ask(address, number, &range, usize::MAX);
                            }
                        }
                    }
                });
            }
            thread::sleep(Duration::from_millis(random.u64(5..1000)));
            chain.downstream.kill();
            killed.store(true, Ordering::SeqCst);
        });
        let (process, address) = chain.ground.start_downstream(&chain.settings, &chain.paths, &downstream);
        (chain.downstream, chain.address) = (process, address);
        for number in 0..LENGTHS.len() {
            for headers in ["", &random_range(&mut random, number), "Cache-Control: no-cache\r\n"] {
                // A file that has changed breaks an answer that has begun, visibly; the next one is of the new version.
                let whole = (0..3).find_map(|_| library.ask(chain.address, number, headers, usize::MAX));
                let Some(version) = whole else {
                    panic!("round {round}: {number} is not to be had: {headers}")
                };
                let current = library.versions.lock().unwrap()[number];
                assert!(!headers.contains("no-cache") || version == current, "round {round}: {number}");
            }
        }
    }
}
