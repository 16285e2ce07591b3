//! Finds out at the start which objects there are, from nothing but names, sizes and times of their files.
//!
//! In: the directory. Out: keys and weights, while clients are served already. Records are read when their object is asked for. Invariant: what an object
//! weighs is what its file takes on the disk, so the account is right however the process ended.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use super::{Key, record::BODY_OFFSET};

/// Directories are read by so many threads: waiting for the disk, not computing, takes the time.
const THREADS: usize = 8;
/// stat(2) counts in these.
const BLOCK_BYTES: u64 = 512;

struct Found {
    key: Key,
    bytes: u64,
    modified: i64,
}

/// Calls `found` with the objects of one directory after the other, those stored last the last, from several threads.
pub(super) fn objects(objects: &Path, found: impl Fn(Vec<(Key, u64)>) + Sync) -> io::Result<()> {
    let mut foreign = 0;
    let mut dirs = Vec::new();
    for entry in fs::read_dir(objects)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() { dirs.push(entry.path()) } else { foreign += 1 }
    }
    let (dirs, foreign) = (Mutex::new(dirs), AtomicUsize::new(foreign));
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some(dir) = lock(&dirs).pop() {
                    let (mut objects, others) = read_dir(&dir);
                    objects.sort_unstable_by_key(|object| object.modified);
                    found(objects.into_iter().map(|Found { key, bytes, .. }| (key, bytes)).collect());
                    foreign.fetch_add(others, Ordering::Relaxed);
                }
            });
        }
    });
    let foreign = foreign.into_inner();
    if foreign > 0 {
        tracing::warn!(foreign, dir = %objects.display(), "cache: files that are not of a cache are left alone");
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The objects of one directory, and how many other things are in it.
fn read_dir(dir: &PathBuf) -> (Vec<Found>, usize) {
    let Ok(entries) = fs::read_dir(dir) else { return (Vec::new(), 1) };
    let (mut objects, mut foreign) = (Vec::new(), 0);
    for entry in entries.flatten() {
        let key = entry.file_name().to_str().and_then(Key::from_name);
        match (key, entry.metadata()) {
            (Some(key), Ok(facts)) if facts.is_file() => {
                objects.push(Found { key, bytes: body_bytes(&facts), modified: facts.mtime() });
            }
            _ => foreign += 1,
        }
    }
    (objects, foreign)
}

/// Bytes of the body that a file has on the disk.
pub(super) fn body_bytes(facts: &fs::Metadata) -> u64 {
    (facts.blocks() * BLOCK_BYTES).min(facts.size().saturating_sub(BODY_OFFSET))
}
