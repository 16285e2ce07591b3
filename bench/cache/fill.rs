//! In: both caches. Out: what it costs to fill them on a miss, per byte that passes and per byte that is stored.
//!
//! Called by `main`. A cache that passes bytes on faster than the disk takes them, and leaves out what the disk cannot take,
//! looks cheap per byte that passes: so the share that is stored is counted, and the goal is for clients that take no more
//! than a disk writes. Invariant: no sample pays for bytes that another one left to be written (syncfs(2) before each).

use std::{
    cell::RefCell,
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::Path,
};

use crate::{
    LABELS, Outcome, Ring, cold, contest,
    load::{Answer, MB, VIDEO_BYTES, VIDEO_NAME, aside, timed_get_aside},
    report::{Cell, Goal, Spread, Target, print_cells},
    sample,
};

/// Of a client: an edge behind 800 Mbit/s, and less than any disk for a cache writes.
const PACE_BYTES_PER_S: u64 = 100 * MB;
/// Less than this of what passes, and CPU time per byte that passes says nothing about storing it.
const STORED_MIN: f64 = 0.98;

/// One cache at one pace.
struct Filled {
    cell: Cell,
    /// Of what passed, the share that is on the disk.
    stored: Option<Spread>,
    /// CPU seconds per GB on the disk.
    cpu_per_gb_stored: Option<Spread>,
}

/// Both paces.
pub fn run(ring: &Ring, rounds: u32) -> Outcome<Vec<Goal>> {
    let paced = fill(ring, rounds, Some(PACE_BYTES_PER_S))?;
    let title = format!("miss, 200 MB, filling the cache, clients take {} MB/s", PACE_BYTES_PER_S / MB);
    print(&title, &paced)?;
    let unpaced = fill(ring, rounds, None)?;
    print("miss, 200 MB, filling the cache, clients take all they get", &unpaced)?;

    let [ours, theirs] = &paced;
    let stored = |filled: &Filled| filled.stored.as_ref().map(|spread| spread.median);
    let cost = |filled: &Filled| filled.cpu_per_gb_stored.as_ref().map(|spread| spread.median);
    let what = format!("miss, 200 MB at {} MB/s", PACE_BYTES_PER_S / MB);
    let least = stored(ours).zip(stored(theirs)).map(|(ours, theirs)| ours.min(theirs));
    Ok(vec![
        Goal::new(format!("{what}: share stored, the lesser one"), least, Target::AtLeast(STORED_MIN)),
        Goal::ratio(
            format!("{what}: CPU ÷ nginx filling"),
            ours.cell.cpu_per_gb(),
            theirs.cell.cpu_per_gb(),
            Target::AtMost(0.6),
        ),
        Goal::ratio(
            "miss, 200 MB unpaced: CPU per byte stored ÷ nginx filling",
            cost(&unpaced[0]),
            cost(&unpaced[1]),
            Target::AtMost(0.6),
        ),
    ])
}

fn fill(ring: &Ring, rounds: u32, pace: Option<u64>) -> Outcome<[Filled; 2]> {
    let (peers, dirs) = (ring.peers(), [&ring.plait_dir, &ring.nginx.dir]);
    // Of each sample: bytes on the disk, CPU time.
    let costs = RefCell::new([const { Vec::<(f64, f64)>::new() }; 2]);
    let cells = contest(rounds, LABELS, VIDEO_BYTES, |index| {
        let (address, process) = peers[index];
        rustix::fs::syncfs(File::open(dirs[index])?)?;
        let before = bytes_on_disk(dirs[index])?;
        let sample = sample(process, || match pace {
            None => timed_get_aside(address, &cold(VIDEO_NAME), VIDEO_BYTES).map(drop),
            Some(pace) => aside(|| Answer::begin(address, &cold(VIDEO_NAME))?.discard_at(VIDEO_BYTES, pace)),
        })?;
        let stored = bytes_on_disk(dirs[index])?.saturating_sub(before);
        costs.borrow_mut()[index].push((stored as f64, sample.cpu_ns.unwrap_or_default() as f64));
        Ok(sample)
    });
    let mut costs = costs.into_inner().into_iter();
    Ok(cells.map(|cell| {
        let costs = costs.next().unwrap_or_default();
        let stored = Spread::of(costs.iter().map(|(stored, _)| stored / VIDEO_BYTES as f64));
        // ns per byte and s per GB are the same number.
        let per_gb = costs.iter().filter(|(stored, _)| *stored > 0.0).map(|(stored, cpu_ns)| cpu_ns / stored);
        Filled { cell, stored, cpu_per_gb_stored: Spread::of(per_gb) }
    }))
}

fn print(title: &str, both: &[Filled; 2]) -> Outcome<()> {
    let note = "CPU time until all is written.".to_owned();
    print_cells(title, &[note], &both.iter().map(|filled| &filled.cell).collect::<Vec<_>>())?;
    println!("\n| | share stored, median (min–max) | CPU s per GB stored, median (min–max) |");
    println!("| --- | --- | --- |");
    for (label, filled) in LABELS.iter().zip(both) {
        let shown =
            |spread: &Option<Spread>| spread.as_ref().map_or("–".to_owned(), |spread| spread.show(3));
        println!("| {label} | {} | {} |", shown(&filled.stored), shown(&filled.cpu_per_gb_stored));
    }
    Ok(())
}

/// Bytes that the disk holds of the files below `dir`; a file may go while they are counted.
fn bytes_on_disk(dir: &Path) -> Outcome<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        // 512-byte units, inode(7).
        bytes += match entry.metadata() {
            Ok(facts) if facts.is_dir() => bytes_on_disk(&entry.path())?,
            Ok(facts) => facts.blocks() * 512,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error.into()),
        };
    }
    Ok(bytes)
}
