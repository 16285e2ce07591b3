//! In: a number of objects. Out: how long a downstream takes to start with a cache that has them.
//!
//! Called by `main`. A start looks at names, sizes and times of files and reads none of them, so the files are empty; their
//! names are in the kernel's memory, as after a restart of the process, not of the machine.

use std::{
    fs::{self, File},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use plait::cache::{
    Key,
    console::{self, Order},
};

use crate::{
    Outcome,
    peers::{Executor, Plait, Setting},
    report::{Goal, Spread, Target},
};

const OBJECTS: u32 = 1_000_000;
const OBJECTS_QUICK: u32 = 20_000;
/// A cache that has not looked through its directory by then never will.
const SCAN_MAX: Duration = Duration::from_secs(120);
/// How often it is asked how far it is.
const LOOK: Duration = Duration::from_millis(10);
/// `Start with a million objects in seconds`: of one digit.
const SCAN_GOAL_S: f64 = 9.0;
const LISTEN_GOAL_S: f64 = 1.0;
const MIB: f64 = 1024.0 * 1024.0;

/// Starts `rounds` times. Everything is kept below `dir`, which does not exist yet.
pub fn run(dir: &Path, rounds: u32, quick: bool) -> Outcome<[Goal; 2]> {
    let count = if quick { OBJECTS_QUICK } else { OBJECTS };
    let cache = dir.join("cache");
    let made = Instant::now();
    make(&cache, count)?;
    let made_s = made.elapsed().as_secs_f64();
    let (mut listening, mut scanned, mut cpu, mut memory) = (vec![], vec![], vec![], vec![]);
    for _ in 0..rounds {
        let plait = Plait::new(dir)?;
        let began = Instant::now();
        // Nobody is at the end of this path, and nobody asks for anything.
        let role = plait.downstream_with(
            Setting::single(Executor::TokioUring, None),
            &["127.0.0.1:9".to_owned()],
            &["--cache", cache.to_str().ok_or("the directory's name is no text")?],
        )?;
        listening.push(began.elapsed().as_secs_f64());
        while objects(&cache)? < count {
            if began.elapsed() > SCAN_MAX {
                return Err(format!("of {count} objects, {} were found", objects(&cache)?).into());
            }
            thread::sleep(LOOK);
        }
        scanned.push(began.elapsed().as_secs_f64());
        cpu.push(role.process.cpu_ns()? as f64 / 1e9);
        memory.push(role.process.rss_bytes()? as f64 / MIB);
    }
    println!("\n### start with a cache of {count} objects\n");
    println!("Files without bytes, made in {made_s:.0} s; {rounds} starts, medians (min–max).\n");
    println!("| s until it listens | s until all are found | CPU s | RSS, MiB |\n| --- | --- | --- | --- |");
    let spread = |values: &[f64]| Spread::of(values.iter().copied());
    let shown =
        |values: &[f64], digits| spread(values).map_or("–".to_owned(), |spread| spread.show(digits));
    println!(
        "| {} | {} | {} | {} |",
        shown(&listening, 3),
        shown(&scanned, 2),
        shown(&cpu, 2),
        shown(&memory, 0)
    );
    let goal = |what: &str, values: &[f64], most| {
        let what = format!("start with {count} objects: s until {what}");
        Goal::new(what, spread(values).map(|spread| spread.median), Target::AtMost(most))
    };
    Ok([goal("it listens", &listening, LISTEN_GOAL_S), goal("all are found", &scanned, SCAN_GOAL_S)])
}

/// Names as the cache gives them.
fn make(cache: &Path, count: u32) -> Outcome<()> {
    let objects = cache.join("objects");
    for first in 0..=u8::MAX {
        fs::create_dir_all(objects.join(format!("{first:02x}")))?;
    }
    for number in 0..count {
        let name = Key::of(&format!("films.example/{number}.ts")).to_string();
        File::create(objects.join(&name[..2]).join(name))?;
    }
    Ok(())
}

/// How many objects the process knows that has the cache; none before it answers.
fn objects(cache: &Path) -> Outcome<u32> {
    let mut answer = Vec::new();
    if console::ask(cache, &Order::Stat, &mut answer, |_, _| ()).is_err() {
        return Ok(0);
    }
    let answer = String::from_utf8(answer)?;
    let line = answer.lines().find_map(|line| line.strip_prefix("objects "));
    Ok(line.ok_or("the cache does not say how many objects it has")?.parse()?)
}
