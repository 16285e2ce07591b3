//! Writes objects to the disk, on threads of its own: no core waits until the disk has taken a byte.
//!
//! In: jobs. Out: files, and objects that are told what was written. Invariants: at most [`WAITING_MAX`] writes wait, so
//! that a slow disk costs bounded memory; a record names a byte only after it was written; the name of an object leads
//! to the file of the object that the index holds, or nowhere.

use std::{
    fs, io,
    os::fd::BorrowedFd,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use rustix::io::pwrite;
use tokio::sync::Notify;

use super::{
    Key,
    eras::Eras,
    index::Index,
    object::Object,
    record::{BODY_OFFSET, Record},
};
use crate::net::{Conduit, Limit};

/// Writes that wait at most, each a pipe of up to 1 MiB: half of the large pipes that an unprivileged user gets.
const WAITING_MAX: usize = 32;
/// Records and removals that may wait besides; they are small.
const JOBS_MAX: usize = 4096;
/// One thread writes while the other waits for the disk or renames.
const THREADS: usize = 2;
/// Bytes written between two records of an object: what a crash may cost.
const RECORD_EVERY_BYTES: u64 = 16 << 20;

enum Job {
    Write { object: Arc<Object>, offset: u64, bytes: Conduit, wake: Arc<Notify> },
    Record(Arc<Object>),
    Remove(Key),
}

/// What the cores and the writing threads share.
pub(super) struct Shelf {
    pub(super) objects: PathBuf,
    pub(super) unnamed: PathBuf,
    pub(super) index: Mutex<Index>,
    pub(super) eras: Eras,
    waiting: AtomicUsize,
    /// Held while a name changes what it leads to.
    naming: Mutex<()>,
    complained: AtomicBool,
}

impl Shelf {
    pub(super) fn new(objects: PathBuf, unnamed: PathBuf, index: Index, eras: Eras) -> Arc<Self> {
        Arc::new(Self {
            objects,
            unnamed,
            index: Mutex::new(index),
            eras,
            waiting: AtomicUsize::new(0),
            naming: Mutex::new(()),
            complained: AtomicBool::new(false),
        })
    }

    /// What `change` makes of the index, and the keys that had to go for it.
    pub(super) fn index<T>(&self, change: impl FnOnce(&mut Index) -> T) -> (T, Vec<Key>) {
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = change(&mut index);
        let evicted = index.take_evicted();
        (outcome, evicted)
    }

    /// Where the file of `key` is.
    pub(super) fn path(&self, key: Key) -> PathBuf {
        let name = key.to_string();
        self.objects.join(&name[..2]).join(name)
    }

    fn unnamed_path(&self, object: &Object) -> PathBuf {
        self.unnamed.join(format!("{:x}", object.number()))
    }

    /// An error of the disk: it is said once, and the proxy serves on.
    pub(super) fn complain(&self, what: &str, error: &dyn std::fmt::Display) {
        if self.complained.swap(true, Ordering::Relaxed) {
            tracing::debug!(%error, "cache: {what}");
        } else {
            tracing::warn!(%error, "cache: {what}; serving on without it (further ones are logged at level debug)");
        }
    }
}

/// Hands jobs to the threads, which end when it is dropped.
pub(super) struct Writer {
    shelf: Arc<Shelf>,
    jobs: Option<SyncSender<Job>>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Writer {
    pub(super) fn start(shelf: Arc<Shelf>) -> io::Result<Self> {
        let (jobs, taken) = sync_channel(JOBS_MAX);
        let taken = Arc::new(Mutex::new(taken));
        let threads = (0..THREADS)
            .map(|_| {
                let (shelf, taken) = (shelf.clone(), taken.clone());
                thread::Builder::new().name("plait-cache".into()).spawn(move || work(&shelf, &taken))
            })
            .collect::<io::Result<_>>()?;
        Ok(Self { shelf, jobs: Some(jobs), threads })
    }

    /// Whether another write may wait.
    pub(super) fn has_room(&self) -> bool {
        self.shelf.waiting.load(Ordering::Relaxed) < WAITING_MAX
    }

    /// Writes `bytes` of `object` at `offset`; then the object and `wake` are told. The caller has asked for room.
    pub(super) fn write(&self, object: &Arc<Object>, offset: u64, bytes: Conduit, wake: &Arc<Notify>) {
        self.shelf.waiting.fetch_add(1, Ordering::Relaxed);
        let span = offset..offset + bytes.len() as u64;
        let job = Job::Write { object: object.clone(), offset, bytes, wake: wake.clone() };
        if !self.hand_over(job) {
            self.shelf.waiting.fetch_sub(1, Ordering::Relaxed);
            object.written(span, false);
        }
    }

    /// Writes down what there is of `object`; false if too many jobs wait.
    pub(super) fn record(&self, object: &Arc<Object>) -> bool {
        self.hand_over(Job::Record(object.clone()))
    }

    /// Takes the file of `key` away, unless the index leads to a new one by then.
    pub(super) fn remove(&self, keys: Vec<Key>) {
        for key in keys {
            // One that stays behind is found at the next start.
            self.hand_over(Job::Remove(key));
        }
    }

    fn hand_over(&self, job: Job) -> bool {
        self.jobs.as_ref().is_some_and(|jobs| jobs.try_send(job).is_ok())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn work(shelf: &Shelf, jobs: &Mutex<Receiver<Job>>) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match job {
            Ok(Job::Write { object, offset, bytes, wake }) => {
                write(shelf, &object, offset, bytes);
                shelf.waiting.fetch_sub(1, Ordering::Relaxed);
                wake.notify_waiters();
            }
            Ok(Job::Record(object)) => settle(shelf, &object),
            Ok(Job::Remove(key)) => remove(shelf, key),
            Err(_) => return,
        }
    }
}

fn write(shelf: &Shelf, object: &Arc<Object>, offset: u64, mut bytes: Conduit) {
    let span = offset..offset + bytes.len() as u64;
    let outcome = file(shelf, object).and_then(|file| bytes.drain_to_file(file, BODY_OFFSET + offset));
    let Some(there) = object.written(span, outcome.is_ok()) else { return };
    if let Err(error) = outcome {
        Limit::CacheDisk.hit();
        shelf.complain("an object cannot be written", &error);
        give_up(shelf, object);
    } else if object.unrecorded(there) >= RECORD_EVERY_BYTES || !object.is_growing() {
        settle(shelf, object);
    }
}

/// The file of an object; a new one has no name that leads to it yet.
fn file<'a>(shelf: &Shelf, object: &'a Object) -> io::Result<BorrowedFd<'a>> {
    if object.file().is_none() {
        let _naming = shelf.naming.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = object.file() {
            return Ok(file);
        }
        let made =
            fs::File::options().read(true).write(true).create_new(true).open(shelf.unnamed_path(object))?;
        object.set_file(made.into());
    }
    object.file().ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Writes the record, gives the file its name, and tells the index what it weighs.
fn settle(shelf: &Shelf, object: &Arc<Object>) {
    let growing = object.is_growing();
    let Some(there) = object.settling() else {
        // Not one byte of it was written.
        if !growing {
            give_up(shelf, object);
        }
        return;
    };
    let key = object.key();
    let (kept, evicted) = shelf.index(|index| index.resize(&key, object, there, growing));
    for key in evicted {
        remove(shelf, key);
    }
    if !kept {
        return give_up(shelf, object);
    }
    let put = shelf.eras.writing(|era| object.with_record(era, |record| put_record(shelf, object, record)));
    if let Err(error) = put {
        shelf.complain("an object's record cannot be written", &error);
        give_up(shelf, object);
    }
}

fn put_record(shelf: &Shelf, object: &Object, record: &Record) -> io::Result<()> {
    let Some(file) = object.file() else { return Ok(()) };
    let (bytes, mut offset) = (record.encode(), record.offset());
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        let written = pwrite(file, rest, offset)?;
        (rest, offset) = (&rest[written..], offset + written as u64);
    }
    if object.is_named() {
        return Ok(());
    }
    let key = object.key();
    let _naming = shelf.naming.lock().unwrap_or_else(PoisonError::into_inner);
    if !shelf.index(|index| index.holds(&key, object)).0 {
        return fs::remove_file(shelf.unnamed_path(object));
    }
    let path = shelf.path(key);
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::rename(shelf.unnamed_path(object), path)?;
    object.set_named();
    Ok(())
}

/// Forgets an object that cannot be stored.
fn give_up(shelf: &Shelf, object: &Arc<Object>) {
    object.abandon();
    let key = object.key();
    let (held, evicted) = shelf.index(|index| index.holds(&key, object) && index.remove(&key));
    for key in evicted.into_iter().chain(held.then_some(key)) {
        remove(shelf, key);
    }
    if !object.is_named() {
        let _ = fs::remove_file(shelf.unnamed_path(object));
    }
}

fn remove(shelf: &Shelf, key: Key) {
    let _naming = shelf.naming.lock().unwrap_or_else(PoisonError::into_inner);
    if shelf.index(|index| index.contains(&key)).0 {
        return;
    }
    match fs::remove_file(shelf.path(key)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            shelf.complain("an object's file cannot be removed", &error);
        }
        _ => {}
    }
}
