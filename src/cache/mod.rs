//! The downstream's cache: responses of the root in files, fresh as RFC 9111 says, any range of them.
//!
//! In: keys, heads, and bytes on their way to a client. Out: objects that can be sent, or the duty to fetch. Called by
//! `downstream` on every core; one cache is shared by all. Inside: `control` and `freshness` decide what may be reused,
//! `object` who fetches which bytes and who waits for them, `fill` copies what passes, `writer` brings it to the disk as
//! `record` and body, `index` says what has to go.
//!
//! Invariants: a byte is served only if it was written before its record said so; versions of a response are never
//! mixed; an error of the disk costs a piece of the cache, never an answer.

pub mod console;
pub mod control;
pub mod eras;
pub mod fill;
pub mod freshness;
pub mod index;
pub mod object;
pub mod playlist;
pub mod ranges;
pub mod record;
mod scan;
pub mod sequence;
pub mod slot;
mod writer;

use std::{
    collections::{HashMap, hash_map::Entry as Vacancy},
    fmt,
    fs::{self, File},
    io,
    net::IpAddr,
    ops::Range,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderValue, header::HOST};
use rustix::{
    fs::{FlockOperation, flock},
    process::{Resource, getrlimit},
};
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, watch};

use crate::{http::request::RequestHead, net::Conduit};
use control::Directives;
use eras::Eras;
use freshness::Verdict;
use index::Index;
use object::Object;
use playlist::{Next, Programme, Segment};
use record::{BODY_OFFSET, Meta, Record, SLOT_BYTES};
use sequence::Sequences;
use writer::{Shelf, Writer};

/// How long what was stored may be lost if the machine crashes; the kernel keeps dirty pages as long.
const SYNC_EVERY: Duration = Duration::from_secs(30);
/// Objects kept open at most, each one descriptor; an eighth of what the process may have if that is less.
const OPEN_MAX: u64 = 1024;
/// Variants of one URL (RFC 9111 section 4.1): what clients may make of `Accept-Encoding` and the like has an end.
const VARIANTS_MAX: u128 = 8;

/// What an object is stored under: 128 bits of the SHA-256 of its URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub u128);

impl Key {
    /// Of a URL as [`url()`] writes it.
    pub fn of(url: &str) -> Self {
        let digest = Sha256::digest(url.as_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&digest[..16]);
        Self(u128::from_be_bytes(bytes))
    }

    /// Where the variants of the URL with this key may be, this key first.
    fn variants(self) -> impl Iterator<Item = Self> {
        (0..VARIANTS_MAX).map(move |number| Self(self.0 ^ number))
    }

    fn from_name(name: &str) -> Option<Self> {
        let valid = name.len() == 32 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if valid { u128::from_str_radix(name, 16).ok().map(Self) } else { None }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Host and target of a request. RFC 9111 section 2: "the primary cache key is composed of the request method and target
/// URI"; the method is always GET, the scheme always http.
pub fn url(request: &RequestHead) -> String {
    let host = request.headers.get(HOST).map_or(&b""[..], HeaderValue::as_bytes);
    let mut url = String::with_capacity(host.len() + request.target().len());
    url.push_str(&String::from_utf8_lossy(host));
    url.make_ascii_lowercase();
    url.push_str(request.target());
    url
}

/// Why a directory cannot be used as a cache.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// It cannot be made, read or written.
    #[error("cannot use {path} as a cache: {source} (change --cache)", path = .path.display())]
    Directory {
        /// What --cache says.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// Another process has it.
    #[error("{path} is the cache of another process (give each downstream its own --cache)", path = .path.display())]
    Taken {
        /// What --cache says.
        path: PathBuf,
    },
}

impl CacheError {
    /// The directory's file system takes no writes (EROFS).
    pub fn is_read_only(&self) -> bool {
        matches!(self, Self::Directory { source, .. } if source.kind() == io::ErrorKind::ReadOnlyFilesystem)
    }
}

/// How the answer to a request that others waited for turned out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Asked {
    /// It is an object now, or failed: look again.
    #[default]
    LookAgain,
    /// It is not for the cache: each asks for itself.
    Uncacheable,
}

/// Who asks the root for an object that is not there, or is stale. Dropped, it tells those who wait to look again.
pub struct Asking {
    cache: Arc<Cache>,
    key: Key,
    outcome: watch::Sender<Asked>,
}

impl Asking {
    /// Tells those who wait that the answer is not for the cache.
    pub fn is_uncacheable(&self) {
        self.outcome.send_replace(Asked::Uncacheable);
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.cache.asking().remove(&self.key);
    }
}

/// A new object that others wait for, and that nobody finds yet. Dropped, it is found, and they look again.
pub struct Debut {
    object: Arc<Object>,
    asking: Asking,
}

impl Debut {
    /// Of the object that the root's answer has become.
    pub fn new(object: Arc<Object>, asking: Asking) -> Self {
        Self { object, asking }
    }
}

impl Drop for Debut {
    fn drop(&mut self) {
        self.asking.cache.publish(&self.object);
    }
}

/// A client that waits for the root.
pub struct Waiting(Arc<Cache>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.clients_waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Tells the index of `cache` what is on the disk, while clients are served.
fn scan_for(cache: &Weak<Cache>) {
    let Some(dir) = cache.upgrade().map(|cache| cache.shelf.objects.clone()) else { return };
    let began = Instant::now();
    let outcome = scan::objects(&dir, |found| {
        let Some(cache) = cache.upgrade() else { return };
        let ((), evicted) = cache.shelf.index(|index| {
            for (key, bytes) in found {
                index.restore(key, bytes);
            }
        });
        cache.writer.remove(evicted);
    });
    let Some(cache) = cache.upgrade() else { return };
    if let Err(error) = outcome {
        cache.shelf.complain("the cache cannot be looked through", &error);
    }
    cache.is_scanned.store(true, Ordering::Release);
    let (objects, bytes, _) = cache.totals();
    let ms = began.elapsed().as_millis();
    tracing::info!(objects, mb = bytes / 1_000_000, dir = %dir.display(), ms, "the cache was looked through");
}

/// Whether the root is being asked already.
pub enum Turn {
    /// No: ask it.
    Yours(Asking),
    /// Yes: wait for this to change or end.
    Others(watch::Receiver<Asked>),
}

/// See the module's description.
pub struct Cache {
    shelf: Arc<Shelf>,
    writer: Writer,
    asking: Mutex<HashMap<Key, watch::Receiver<Asked>>>,
    programme: Mutex<Programme>,
    sequences: Mutex<Sequences>,
    clients_waiting: AtomicUsize,
    /// The index knows all that there is.
    is_scanned: AtomicBool,
    /// The syncing thread ends with it.
    _alive: Sender<()>,
    /// Locked for this process, for as long as any thread of this cache may write to the directory.
    _lock: Arc<OwnedFd>,
}

impl Cache {
    /// Opens the cache in `dir`, which may be new, and finds out what is in it. At most `bytes_max` of the disk are used.
    ///
    /// # Errors
    /// [`CacheError`] names the directory.
    pub fn open(dir: &Path, bytes_max: u64) -> Result<Arc<Self>, CacheError> {
        let refused = |source| CacheError::Directory { path: dir.to_owned(), source };
        fs::create_dir_all(dir).map_err(refused)?;
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(dir.join("lock"))
            .map_err(refused)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| CacheError::Taken { path: dir.to_owned() })?;
        let (objects, unnamed) = (dir.join("objects"), dir.join("unnamed"));
        fs::create_dir_all(&objects).map_err(refused)?;
        // What never got a name is of no use.
        let _ = fs::remove_dir_all(&unnamed);
        fs::create_dir_all(&unnamed).map_err(refused)?;
        let eras = Eras::open(dir, eras::boot()).map_err(refused)?;
        let descriptors = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
        let index = Index::new(bytes_max, OPEN_MAX.min(descriptors / 8) as usize);
        let shelf = Shelf::new(objects, unnamed, index, eras);
        let writer = Writer::start(shelf.clone()).map_err(refused)?;
        let (alive, ends) = channel::<()>();
        let lock = Arc::new(OwnedFd::from(lock));
        let (synced, locked) = (shelf.clone(), lock.clone());
        thread::Builder::new()
            .name("plait-cache-sync".into())
            .spawn(move || {
                while ends.recv_timeout(SYNC_EVERY) == Err(RecvTimeoutError::Timeout) {
                    if let Err(error) = synced.eras.sync() {
                        synced.complain("the disk cannot be synced", &error);
                    }
                }
                drop(locked);
            })
            .map_err(refused)?;
        let asking = Mutex::default();
        let cache = Arc::new(Self {
            shelf,
            writer,
            asking,
            programme: Mutex::default(),
            sequences: Mutex::default(),
            clients_waiting: AtomicUsize::new(0),
            is_scanned: AtomicBool::new(false),
            _alive: alive,
            _lock: lock,
        });
        let scanned = Arc::downgrade(&cache);
        let scan = thread::Builder::new().name("plait-cache-scan".into());
        scan.spawn(move || scan_for(&scanned)).map_err(refused)?;
        Ok(cache)
    }

    fn asking(&self) -> MutexGuard<'_, HashMap<Key, watch::Receiver<Asked>>> {
        self.asking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The object of `url` that `is_meant`, fresh or stale.
    pub fn find(&self, key: Key, url: &str, is_meant: impl Fn(&Meta) -> bool) -> Option<Arc<Object>> {
        // A place that is free ends the row.
        let mut variants = key.variants().map_while(|variant| self.find_variant(variant, url));
        variants.find(|object| is_meant(&object.meta()))
    }

    /// The key under which a response is to be stored that answers the requests which `is_meant` tells: in the place of
    /// the one that answers them now, in a free one, or else in that of the one that came first.
    pub fn place(&self, key: Key, url: &str, is_meant: impl Fn(&Meta) -> bool) -> Key {
        let (mut oldest, mut came_at) = (key, None);
        for variant in key.variants() {
            let Some(object) = self.find_variant(variant, url) else { return variant };
            let meta = object.meta();
            if is_meant(&meta) {
                return variant;
            }
            if came_at.is_none_or(|came_at| meta.received_at < came_at) {
                (oldest, came_at) = (variant, Some(meta.received_at));
            }
        }
        oldest
    }

    /// The object that comes first under this key, if it is of `url` and open. It does not count as asked for.
    pub fn find_open(&self, key: Key, url: &str) -> Option<Arc<Object>> {
        let object = self.shelf.index(|index| index.peek(&key)).0?.upgrade()?;
        (object.meta().url == url).then_some(object)
    }

    /// Whether `url` is fresh and there, or coming, or asked for.
    pub fn expects(&self, url: &str) -> bool {
        let key = Key::of(url);
        let comes = |object: Arc<Object>| {
            let verdict = object.meta().freshness.verdict(&Directives::default(), SystemTime::now());
            verdict == Verdict::Fresh && (object.is_whole() || object.is_growing())
        };
        self.asking().contains_key(&key) || self.find_open(key, url).is_some_and(comes)
    }

    /// What is under this key is sent to a client.
    pub fn was_asked_for(&self, key: Key) {
        self.shelf.index(|index| drop(index.get(&key)));
    }

    fn find_variant(&self, key: Key, url: &str) -> Option<Arc<Object>> {
        let object = match self.shelf.index(|index| index.get(&key)).0 {
            Some(entry) => match entry.object.upgrade() {
                Some(object) => object,
                None => self.load(key)?,
            },
            None if self.is_scanned() => return None,
            None => {
                // It may be one of those that were not come upon yet.
                let bytes = scan::body_bytes(&fs::metadata(self.shelf.path(key)).ok()?);
                let (_, evicted) = self.shelf.index(|index| index.restore(key, bytes));
                self.writer.remove(evicted);
                self.load(key)?
            }
        };
        // A collision of 128 bits, if it ever happens, is a miss.
        (object.meta().url == url).then_some(object)
    }

    fn load(&self, key: Key) -> Option<Arc<Object>> {
        let object = match self.read(key) {
            Ok(Some(object)) => object,
            outcome => {
                match outcome {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        self.shelf.complain("an object cannot be read", &error);
                    }
                    _ => self.shelf.complain("an object is damaged or was not brought to the disk", &key),
                }
                self.forget(key);
                return None;
            }
        };
        // Another core may have been faster.
        let (first, evicted) =
            self.shelf.index(|index| match index.get(&key).map(|entry| entry.object.upgrade()) {
                Some(Some(first)) => Some(first),
                Some(None) => {
                    index.opened(key, &object);
                    Some(object)
                }
                None => None,
            });
        self.writer.remove(evicted);
        first
    }

    fn read(&self, key: Key) -> io::Result<Option<Arc<Object>>> {
        let file = File::options().read(true).write(true).open(self.shelf.path(key))?;
        let mut slots = vec![0; 2 * SLOT_BYTES];
        let mut known = 0;
        while known < slots.len() {
            match rustix::io::pread(&file, &mut slots[known..], known as u64)? {
                0 => break,
                read => known += read,
            }
        }
        let (first, second) = slots.split_at(SLOT_BYTES);
        let Some(record) = Record::newest([first, second], |era| self.shelf.eras.trusts(era)) else {
            return Ok(None);
        };
        // A file that somebody has cut off.
        let end = record.present.iter().last().map_or(0, |span| span.end);
        if file.metadata()?.len() < BODY_OFFSET + end && end > 0 {
            return Ok(None);
        }
        Ok(Some(Object::restored(key, record, file.into())))
    }

    /// Forgets what the key leads to. Readers of it go on.
    pub fn forget(&self, key: Key) -> bool {
        let (held, mut evicted) = self.shelf.index(|index| index.remove(&key));
        evicted.push(key);
        self.writer.remove(evicted);
        held
    }

    /// Forgets all variants of the URL with this key.
    pub fn forget_url(&self, key: Key) {
        for variant in key.variants() {
            self.forget(variant);
        }
    }

    /// Forgets this object, if it is still the one that its key leads to.
    pub fn forget_object(&self, object: &Object) {
        if self.shelf.index(|index| index.holds(&object.key(), object)).0 {
            self.forget(object.key());
        }
    }

    /// A new object takes the place of what was there by its key.
    pub fn publish(&self, object: &Arc<Object>) {
        let ((), evicted) = self.shelf.index(|index| index.insert(object.key(), object));
        self.writer.remove(evicted);
    }

    /// A new object takes the place by its key, if that is free. Otherwise nothing of it will be stored.
    pub fn publish_in_free_place(&self, object: &Arc<Object>) {
        let ((), evicted) = self.shelf.index(|index| {
            if !index.contains(&object.key()) {
                index.insert(object.key(), object);
            }
        });
        self.writer.remove(evicted);
    }

    /// The file of an object does not give a byte that was written to it: nothing in that file is trusted any more.
    pub fn lose(&self, object: &Object, error: &io::Error) {
        self.shelf.complain("the file of an object has lost bytes", error);
        object.abandon();
        self.forget_object(object);
    }

    /// Writes down what is known of an object after it has changed, or after a fetch has ended.
    pub fn record(&self, object: &Arc<Object>) {
        if !self.writer.record(object) {
            // Without its record nobody would find it, and it would count as growing for ever.
            object.abandon();
            self.forget_object(object);
        }
    }

    /// Asks for the turn to ask the root for `key`.
    pub fn turn(self: &Arc<Self>, key: Key) -> Turn {
        match self.asking().entry(key) {
            Vacancy::Occupied(others) => Turn::Others(others.get().clone()),
            Vacancy::Vacant(place) => {
                let (outcome, told) = watch::channel(Asked::LookAgain);
                place.insert(told);
                Turn::Yours(Asking { cache: self.clone(), key, outcome })
            }
        }
    }

    /// Objects, bytes they take on the disk, and bytes they may take.
    pub fn totals(&self) -> (usize, u64, u64) {
        self.shelf.index(|index| index.totals()).0
    }

    /// All keys of now.
    pub fn keys(&self) -> Vec<Key> {
        self.shelf.index(|index| index.keys()).0
    }

    /// URL, length, bytes that are there, and seconds until it is stale.
    pub fn describe(&self, key: Key, now: SystemTime) -> Option<(String, u64, u64, i64)> {
        let open = self.shelf.index(|index| index.peek(&key)).0?;
        let object = match open.upgrade() {
            Some(object) => object,
            None => self.read(key).ok()??,
        };
        let meta = object.meta();
        Some((meta.url.clone(), object.len(), object.present_bytes(), meta.freshness.ttl_s(now)))
    }

    /// Whether the index knows all that there is on the disk.
    pub fn is_scanned(&self) -> bool {
        self.is_scanned.load(Ordering::Acquire)
    }

    /// Forgets all variants of a URL, as [`url()`] writes it. Returns how many there were.
    pub fn purge_url(&self, url: &str) -> usize {
        let is_there = |variant: &Key| self.find_variant(*variant, url).is_some();
        Key::of(url).variants().filter(|variant| is_there(variant) && self.forget(*variant)).count()
    }

    /// Remembers what a playlist of `host` asks players to fetch.
    pub fn learn(&self, host: &str, segments: Vec<Segment>) {
        self.programme.lock().unwrap_or_else(PoisonError::into_inner).learn(host, segments);
    }

    /// What to fetch ahead now that the segment under `key` with this span is asked for. `caught_up`: it was fetched ahead, and is
    /// not there yet.
    pub fn next_segments(&self, key: Key, span: &Range<u64>, caught_up: bool) -> Next {
        let mut programme = self.programme.lock().unwrap_or_else(PoisonError::into_inner);
        programme.next(key, span, caught_up, Instant::now())
    }

    /// A client asks for a range of what is under `key`: whether it goes on where its last one has ended.
    pub fn reads_on(&self, key: Key, client: IpAddr, span: &Range<u64>) -> bool {
        let mut sequences = self.sequences.lock().unwrap_or_else(PoisonError::into_inner);
        sequences.reads_on(key, client, span)
    }

    /// A client waits for the root, until what is returned is dropped.
    pub fn client_waits(self: &Arc<Self>) -> Waiting {
        self.clients_waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(self.clone())
    }

    /// How many do.
    fn clients_waiting(&self) -> usize {
        self.clients_waiting.load(Ordering::Relaxed)
    }

    fn has_room_to_write(&self) -> bool {
        self.writer.has_room()
    }

    fn write(&self, object: &Arc<Object>, offset: u64, bytes: Conduit, wake: &Arc<Notify>) {
        self.writer.write(object, offset, bytes, wake);
    }
}
