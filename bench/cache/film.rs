//! In: emulated paths. Out: how long players wait for the first byte of each segment of an HLS film.
//!
//! Called by `main`. The chain runs in the lab (`plait::lab`) with a cache that has never seen the film. One player asks as
//! it plays: it holds a segment and a half. One fills its buffer at once. One does not ask for the playlist, so that nobody
//! knows what it will want, and nothing is fetched ahead: the difference is what prefetch brings. All of them check every
//! byte. Invariant: a film is asked for by one player.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use plait::lab::{
    Lab, Scenario,
    chain::{Chain, ChainOptions, Content},
};

use crate::{
    Outcome,
    calibration::{self, Calibrated, calibrated},
    load,
    report::{Goal, Spread, Target},
};

/// The paths that the goal is about.
const SCENARIO: &str = r#"
name = "film"
stands-for = "two consumer lines, and a root on another continent"
[[path]]
rate-mbit = 50
rtt-ms = 150
[[path]]
rate-mbit = 50
rtt-ms = 150
"#;
/// 5 Mbit/s: 1080p.
const SEGMENT_BYTES: usize = 1_250_000;
/// What one segment plays.
const SEGMENT_TIME: Duration = Duration::from_secs(2);
/// A player that plays asks for the next segment when it has less than this.
const HELD: Duration = Duration::from_secs(3);
/// The goal is for those after the second one.
const SEGMENTS_BEFORE: usize = 2;
const FIRST_BYTE_GOAL_MS: f64 = 5.0;
/// A segment that takes longer is lost: ten times what one lane takes.
const SILENT_MAX: Duration = Duration::from_secs(20);
/// Longest head that the players take.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// When a player asks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Habit {
    Plays,
    Fills,
    FillsWithoutPlaylist,
}

impl Habit {
    const ALL: [Self; 3] = [Self::Plays, Self::Fills, Self::FillsWithoutPlaylist];

    fn label(self) -> &'static str {
        match self {
            Self::Plays => "holds 3 s",
            Self::Fills => "fills 30 s at once",
            Self::FillsWithoutPlaylist => "the same, nothing fetched ahead",
        }
    }

    /// Films and segments of each: 27 waits of who plays take a minute, the others are as fast as the paths.
    fn size(self, quick: bool) -> (usize, usize) {
        match (self, quick) {
            (Self::Plays, false) => (3, 11),
            (_, false) => (3, 15),
            (_, true) => (1, 4),
        }
    }
}

/// What the players of one habit saw.
struct Seen {
    /// Microseconds, of the segments that the goal is about.
    first_bytes_us: Histogram<u64>,
    /// Until a film was there, in seconds.
    films_s: Vec<f64>,
}

/// `cache` is a directory of a disk; it does not exist yet. False: the calibration was bad.
pub fn run(cache: &Path, quick: bool) -> Outcome<(Vec<Goal>, bool)> {
    println!("\n### an HLS film over 2 × 50 Mbit/s, 150 ms\n");
    let goals = |waits: [Option<f64>; 2]| {
        let what = ["plays", "fills its buffer"].map(|who| {
            format!("HLS at 150 ms, a player that {who}: segment's first byte after the second, p90, ms")
        });
        let goal = |(what, wait)| Goal::new(what, wait, Target::AtMost(FIRST_BYTE_GOAL_MS));
        what.into_iter().zip(waits).map(goal).collect()
    };
    if let Some(missing) = Lab::missing() {
        println!("not measured: {missing}");
        return Ok((goals([None, None]), true));
    }
    let Calibrated { checks, invalid } = calibrated()?;
    if let Some(reason) = &invalid {
        println!("{}", calibration::warning(reason));
    }
    println!("{}", calibration::table(&checks));
    let served = load::directory()?;
    let films = Films::create(served.path(), quick)?;
    let lab = Lab::build(&Scenario::parse("film", SCENARIO)?)?;
    let mut options = ChainOptions::new(&lab, PathBuf::from(env!("CARGO_BIN_EXE_plait")));
    options.content = Content::Directory(served.path().to_owned());
    options.flags.push(("downstream".to_owned(), format!("--cache={}", cache.display())));
    let chain = Chain::start(&lab, &options)?;
    println!(
        "bbr, lanes as they come. Segments of {} MB, {} s each, the first {SEGMENTS_BEFORE} of a film not counted; every \
         film is new to the cache. First byte: from the request, over a kept connection, to the first byte of the body. \
         Goal: p90 ≤ {FIRST_BYTE_GOAL_MS} ms.\n",
        SEGMENT_BYTES as f64 / 1e6,
        SEGMENT_TIME.as_secs()
    );
    println!(
        "| player | first byte, ms p50 | p90 | max | segments | s for a film, median (min–max) | films |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    let mut waits = [None, None];
    for habit in Habit::ALL {
        let mut seen = Seen { first_bytes_us: Histogram::new(3)?, films_s: Vec::new() };
        for name in films.of(habit) {
            let address = chain.entrance();
            let stream = lab.client().connect(None, address, SILENT_MAX)?;
            let mut player = Player::new(stream, address)?;
            player.watch(habit, name, habit.size(quick).1, &mut seen).map_err(|error| {
                let log = chain.processes().iter().map(|process| process.log()).collect::<Vec<_>>();
                format!("{}: {error}\n{}", habit.label(), log.join("\n"))
            })?;
        }
        let ms = |us: u64| us as f64 / 1000.0;
        let waited = &seen.first_bytes_us;
        println!(
            "| {} | {:.1} | {:.1} | {:.1} | {} | {} | {} |",
            habit.label(),
            ms(waited.value_at_quantile(0.5)),
            ms(waited.value_at_quantile(0.9)),
            ms(waited.max()),
            waited.len(),
            Spread::of(seen.films_s.iter().copied()).map_or("–".to_owned(), |spread| spread.show(1)),
            seen.films_s.len()
        );
        if let Some(wait) = waits.get_mut(habit as usize) {
            *wait = Some(ms(waited.value_at_quantile(0.9)));
        }
    }
    Ok((goals(waits), invalid.is_none()))
}

/// What the root serves.
struct Films {
    quick: bool,
}

impl Films {
    /// Writes a playlist and its segments for every film of every habit; no two segments have the same bytes.
    fn create(dir: &Path, quick: bool) -> Outcome<Self> {
        let films = Self { quick };
        for habit in Habit::ALL {
            for film in films.of(habit) {
                fs::create_dir(dir.join(&film))?;
                let mut list =
                    format!("#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:{}\n", SEGMENT_TIME.as_secs());
                for number in 0..habit.size(quick).1 {
                    list += &format!("#EXTINF:{}.0,\n{number}.ts\n", SEGMENT_TIME.as_secs());
                    fs::write(dir.join(&film).join(format!("{number}.ts")), segment(&film, number))?;
                }
                fs::write(dir.join(&film).join("list.m3u8"), list + "#EXT-X-ENDLIST\n")?;
            }
        }
        Ok(films)
    }

    /// Names of the films of a habit.
    fn of(&self, habit: Habit) -> Vec<String> {
        (0..habit.size(self.quick).0).map(|number| format!("{}-{number}", habit as u8)).collect()
    }
}

/// The bytes of a segment.
fn segment(film: &str, number: usize) -> Vec<u8> {
    let seed = film.bytes().fold(number as u64, |seed, byte| seed * 257 + u64::from(byte));
    let mut bytes = vec![0; SEGMENT_BYTES];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// One connection.
struct Player {
    stream: TcpStream,
    host: SocketAddr,
}

impl Player {
    fn new(stream: TcpStream, host: SocketAddr) -> Outcome<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENT_MAX))?;
        Ok(Self { stream, host })
    }

    fn watch(&mut self, habit: Habit, film: String, segments: usize, seen: &mut Seen) -> Outcome<()> {
        if habit != Habit::FillsWithoutPlaylist {
            self.get(&format!("/{film}/list.m3u8"))?;
        }
        let began = Instant::now();
        // Playing begins when the first segment is there.
        let mut plays_since: Option<Instant> = None;
        for number in 0..segments {
            if let (Habit::Plays, Some(since)) = (habit, plays_since) {
                let due = (SEGMENT_TIME * number as u32).saturating_sub(HELD);
                thread::sleep((since + due).saturating_duration_since(Instant::now()));
            }
            let (body, first_byte) = self.get(&format!("/{film}/{number}.ts"))?;
            if body != segment(&film, number) {
                return Err(format!("segment {number} of film {film} has CHANGED BYTES").into());
            }
            plays_since.get_or_insert_with(Instant::now);
            if number >= SEGMENTS_BEFORE {
                seen.first_bytes_us.record(u64::try_from(first_byte.as_micros())?)?;
            }
        }
        seen.films_s.push(began.elapsed().as_secs_f64());
        Ok(())
    }

    /// The body, and when its first byte came, counted from the request.
    fn get(&mut self, target: &str) -> Outcome<(Vec<u8>, Duration)> {
        let asked = Instant::now();
        // A request fits a segment, and nothing waits in the socket.
        self.stream.write_all(format!("GET {target} HTTP/1.1\r\nHost: {}\r\n\r\n", self.host).as_bytes())?;
        let mut received = Vec::new();
        let (head_bytes, length) = loop {
            self.receive(&mut received, HEAD_BYTES_MAX)?;
            let mut headers = [httparse::EMPTY_HEADER; 64];
            let mut response = httparse::Response::new(&mut headers);
            if let httparse::Status::Complete(bytes) = response.parse(&received)? {
                if response.code != Some(200) {
                    return Err(format!("{target} is answered with {:?}", response.code).into());
                }
                let length = response
                    .headers
                    .iter()
                    .find(|header| header.name.eq_ignore_ascii_case("content-length"))
                    .and_then(|header| std::str::from_utf8(header.value).ok()?.parse::<usize>().ok());
                break (bytes, length.ok_or("an answer without a length")?);
            }
        };
        if received.len() == head_bytes {
            self.receive(&mut received, HEAD_BYTES_MAX)?;
        }
        let first_byte = asked.elapsed();
        while received.len() < head_bytes + length {
            let missing = head_bytes + length - received.len();
            self.receive(&mut received, missing)?;
        }
        received.drain(..head_bytes);
        if received.len() > length {
            return Err(format!("{target}: bytes after the end of the answer").into());
        }
        Ok((received, first_byte))
    }

    /// Adds up to `max` bytes.
    fn receive(&mut self, received: &mut Vec<u8>, max: usize) -> Outcome<()> {
        let before = received.len();
        received.resize(before + max, 0);
        let came = self.stream.read(&mut received[before..])?;
        received.truncate(before + came);
        if came == 0 { Err("the server closed a kept connection".into()) } else { Ok(()) }
    }
}
