//! Which objects there are, what they weigh, and which one goes when there are too many bytes.
//!
//! In: objects that were found, stored, asked for. Out: those that have to go. No I/O. Called under the cache's lock.
//! Eviction is S3-FIFO's idea as quick_cache has it: an object enters a small queue, reaches the main one only if it is
//! asked for again, and a ghost list remembers who was sent away too soon; so a scan over everything pushes out little.

use std::{
    hash::RandomState,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use quick_cache::{Lifecycle, OptionsBuilder, Weighter, unsync};

use super::{Key, object::Object};

/// The weight of an object counts blocks of the disk.
const BLOCK_BYTES: u64 = 4096;
/// Two slots of a record, at least one block each, and the inode.
const RECORD_BLOCKS: u64 = 3;
/// Objects are expected to have 1 MiB, a segment; more small ones only make tables grow.
const USUAL_BYTES: u64 = 1 << 20;

/// The main queue's share, as the S3-FIFO paper has it.
const HOT_SHARE: f64 = 0.9;

/// One object.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Bytes of its body on the disk.
    pub bytes: u64,
    /// The object while somebody holds it.
    pub object: Weak<Object>,
    /// It is being stored now: what grows is not sent away before it is whole.
    pub growing: bool,
}

#[derive(Clone)]
struct Blocks;

impl Weighter<Key, Entry> for Blocks {
    fn weight(&self, _: &Key, entry: &Entry) -> u64 {
        entry.bytes.div_ceil(BLOCK_BYTES) + RECORD_BLOCKS
    }
}

#[derive(Clone, Default)]
struct Evicted(Arc<Mutex<Vec<Key>>>);

impl Lifecycle<Key, Entry> for Evicted {
    type RequestState = ();

    fn is_pinned(&self, _: &Key, entry: &Entry) -> bool {
        entry.growing
    }

    fn on_evict(&self, (): &mut (), key: Key, _: Entry) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(key);
    }
}

/// See the module's description.
pub struct Index {
    entries: unsync::Cache<Key, Entry, Blocks, RandomState, Evicted>,
    /// Objects kept open, so that a hit opens no file.
    open: unsync::Cache<Key, Arc<Object>>,
    evicted: Evicted,
}

impl Index {
    /// For so many bytes on the disk, and so many open files.
    pub fn new(bytes_max: u64, open_max: usize) -> Self {
        let evicted = Evicted::default();
        let options = OptionsBuilder::new()
            .estimated_items_capacity((bytes_max / USUAL_BYTES).clamp(1024, 1 << 20) as usize)
            .weight_capacity((bytes_max / BLOCK_BYTES).max(1))
            .hot_allocation(HOT_SHARE)
            .build()
            .expect("both capacities are set");
        let entries = unsync::Cache::with_options(options, Blocks, RandomState::new(), evicted.clone());
        Self { entries, open: unsync::Cache::new(open_max.max(1)), evicted }
    }

    /// Adds one that was found on the disk, unless it is known; `false` if there is no room for it.
    pub fn restore(&mut self, key: Key, bytes: u64) -> bool {
        if self.entries.contains_key(&key) {
            return true;
        }
        self.entries.insert(key, Entry { bytes, object: Weak::new(), growing: false });
        self.entries.contains_key(&key)
    }

    /// The object by that key, which counts as asked for.
    pub fn get(&mut self, key: &Key) -> Option<Entry> {
        let found = self.entries.get(key).cloned();
        if found.is_some() {
            self.open.get(key);
        }
        found
    }

    /// Remembers that the object is open.
    pub fn opened(&mut self, key: Key, object: &Arc<Object>) {
        if let Some(mut entry) = self.entries.peek_mut(&key) {
            entry.object = Arc::downgrade(object);
        }
        self.open.insert(key, object.clone());
    }

    /// A new object, in place of any other by that key.
    pub fn insert(&mut self, key: Key, object: &Arc<Object>) {
        self.entries.insert(key, Entry { bytes: 0, object: Arc::downgrade(object), growing: true });
        self.open.insert(key, object.clone());
    }

    /// The object has so many bytes now. False if it has no place here any more: another one has taken it, or all that
    /// could go has gone and there is still no room.
    pub fn resize(&mut self, key: &Key, object: &Object, bytes: u64, growing: bool) -> bool {
        if !self.holds(key, object) {
            return false;
        }
        if let Some(mut entry) = self.entries.peek_mut(key) {
            (entry.bytes, entry.growing) = (bytes, growing);
        }
        self.entries.weight() <= self.entries.capacity() && self.entries.contains_key(key)
    }

    /// Whether it is this object that the key leads to.
    pub fn holds(&self, key: &Key, object: &Object) -> bool {
        self.entries.peek(key).is_some_and(|entry| std::ptr::eq(entry.object.as_ptr(), object))
    }

    /// Forgets what the key leads to.
    pub fn remove(&mut self, key: &Key) -> bool {
        self.open.remove(key);
        self.entries.remove(key).is_some()
    }

    /// Whether the key leads anywhere.
    pub fn contains(&self, key: &Key) -> bool {
        self.entries.contains_key(key)
    }

    /// The keys that had to go since the last call. Their objects are closed when nobody uses them any more.
    pub fn take_evicted(&mut self) -> Vec<Key> {
        let evicted = std::mem::take(&mut *self.evicted.0.lock().unwrap_or_else(PoisonError::into_inner));
        for key in &evicted {
            self.open.remove(key);
        }
        evicted
    }

    /// Objects, bytes they take on the disk, and bytes they may take.
    pub fn totals(&self) -> (usize, u64, u64) {
        let bytes = |blocks: u64| blocks * BLOCK_BYTES;
        (self.entries.len(), bytes(self.entries.weight()), bytes(self.entries.capacity()))
    }

    /// All keys.
    pub fn keys(&self) -> Vec<Key> {
        self.entries.iter().map(|(key, _)| *key).collect()
    }

    /// The object under a key, if somebody holds it, without counting as asked for.
    pub fn peek(&self, key: &Key) -> Option<Weak<Object>> {
        self.entries.peek(key).map(|entry| entry.object.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> Key {
        Key(u128::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_0c5d_1234_5677))
    }

    #[test]
    fn what_goes_is_told_and_the_bound_holds() {
        let mut index = Index::new(100 * 64 * 1024, 4);
        let mut gone = Vec::new();
        for number in 0..1000 {
            index.restore(key(number), 52 << 10);
            gone.extend(index.take_evicted());
            let (objects, bytes, _) = index.totals();
            assert!(bytes <= 100 * 64 * 1024);
            assert_eq!(objects + gone.len(), number as usize + 1);
        }
        assert!(gone.iter().all(|key| !index.contains(key)));
        assert!(index.totals().0 >= 90, "{:?}", index.totals());
    }

    #[test]
    fn a_scan_leaves_what_is_asked_for_again_and_again() {
        let mut index = Index::new(1000 * 64 * 1024, 4);
        for number in 0..500 {
            index.restore(key(number), 52 << 10);
        }
        for _ in 0..3 {
            (0..500).for_each(|number| drop(index.get(&key(number))));
        }
        for number in 10_000..20_000 {
            index.restore(key(number), 52 << 10);
        }
        let kept = (0..500).filter(|&number| index.contains(&key(number))).count();
        assert!(kept >= 450, "{kept} of 500");
    }

    #[test]
    fn one_that_is_too_large_goes_at_once() {
        let mut index = Index::new(1 << 20, 4);
        assert!(!index.restore(key(1), 2 << 20));
        assert_eq!(index.take_evicted(), [key(1)]);
    }
}
