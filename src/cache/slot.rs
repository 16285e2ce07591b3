//! Where the cores of a process find its cache, which may come after they have begun to serve.
//!
//! In: a cache, from the start or once the process before has let its directory go; and URLs that were changed meanwhile. Out:
//! the cache, to whoever asks. Called by `downstream` on every core. Invariant: what was changed before the cache came is
//! not in it when it is found.

use std::{
    collections::HashSet,
    fs, io, mem,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use super::{Cache, Key};

/// URLs remembered as changed, 2 MiB of them: hundreds a second for as long as a process drains. With more, all of the cache
/// is forgotten.
const CHANGED_MAX: usize = 1 << 16;

/// See the module's description. One of its clones for each core.
#[derive(Clone, Default)]
pub struct Slot(Option<Arc<Place>>);

#[derive(Default)]
struct Place {
    cache: OnceLock<Arc<Cache>>,
    changed: Mutex<Changed>,
}

/// What has to be forgotten before the cache is found.
#[derive(Default)]
struct Changed {
    keys: HashSet<Key>,
    /// There were more.
    too_many: bool,
}

impl Changed {
    fn is_empty(&self) -> bool {
        self.keys.is_empty() && !self.too_many
    }
}

impl Slot {
    /// With the cache in it.
    pub fn of(cache: Arc<Cache>) -> Self {
        Self(Some(Arc::new(Place { cache: cache.into(), ..Place::default() })))
    }

    /// A cache is to come. (One by default is for a process that has none.)
    pub fn awaited() -> Self {
        Self(Some(Arc::default()))
    }

    /// The cache, if it is there.
    pub fn get(&self) -> Option<&Arc<Cache>> {
        self.0.as_ref()?.cache.get()
    }

    /// Whether one is to come.
    pub fn is_awaiting(&self) -> bool {
        self.0.is_some() && self.get().is_none()
    }

    /// Forgets all variants of the URL with this key, now or when the cache comes.
    pub fn forget_url(&self, key: Key) {
        let Some(place) = &self.0 else { return };
        // It is asked for once more behind the lock, where it cannot come.
        if place.cache.get().is_none() {
            let mut changed = place.changed();
            if place.cache.get().is_none() {
                changed.too_many |= changed.keys.len() >= CHANGED_MAX;
                if !changed.too_many {
                    changed.keys.insert(key);
                }
                return;
            }
        }
        if let Some(cache) = place.cache.get() {
            cache.forget_url(key);
        }
    }

    /// Puts the cache that was awaited in its place. May take a while; not for a core.
    ///
    /// # Errors
    /// What was changed meanwhile cannot be removed from the disk, so that the cache must not be used.
    pub fn put(&self, cache: &Arc<Cache>) -> io::Result<()> {
        let Some(place) = &self.0 else { return Ok(()) };
        loop {
            let changed = {
                let mut changed = place.changed();
                if changed.is_empty() {
                    // Nobody else puts one here.
                    let _ = place.cache.set(cache.clone());
                    return Ok(());
                }
                mem::take(&mut *changed)
            };
            cache.drop_changed(&changed)?;
        }
    }
}

impl Place {
    fn changed(&self) -> MutexGuard<'_, Changed> {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cache {
    /// Removes files themselves: the index may not know of them yet, and a job for that may find no room.
    fn drop_changed(&self, changed: &Changed) -> io::Result<()> {
        if changed.too_many {
            fs::remove_dir_all(&self.shelf.objects)?;
            fs::create_dir_all(&self.shelf.objects)?;
            for key in self.keys() {
                self.forget(key);
            }
        }
        for variant in changed.keys.iter().flat_map(|key| key.variants()) {
            match fs::remove_file(self.shelf.path(variant)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            self.forget(variant);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A cache in which files stand for these URLs.
    fn cache(dir: &std::path::Path, urls: &[&str]) -> Arc<Cache> {
        let cache = Cache::open(dir, 1 << 30).unwrap();
        for url in urls {
            let path = cache.shelf.path(Key::of(url));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "film").unwrap();
        }
        cache
    }

    fn holds(cache: &Cache, url: &str) -> bool {
        cache.shelf.path(Key::of(url)).exists()
    }

    #[test]
    fn what_was_changed_before_the_cache_came_is_not_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let slot = Slot::awaited();
        slot.forget_url(Key::of("changed"));
        let cache = cache(dir.path(), &["changed", "kept"]);
        assert!(slot.get().is_none());
        slot.put(&cache).unwrap();
        assert!(slot.get().is_some() && !holds(&cache, "changed") && holds(&cache, "kept"));
    }

    #[test]
    fn nothing_is_believed_after_more_changes_than_can_be_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let slot = Slot::awaited();
        (0..=CHANGED_MAX as u128).for_each(|number| slot.forget_url(Key(number << 8)));
        slot.forget_url(Key::of("changed"));
        let cache = cache(dir.path(), &["changed", "kept"]);
        slot.put(&cache).unwrap();
        assert!(!holds(&cache, "changed") && !holds(&cache, "kept"));
        assert!(slot.0.as_ref().unwrap().changed().keys.len() <= CHANGED_MAX);
    }

    #[test]
    fn a_process_without_a_cache_remembers_nothing() {
        let slot = Slot::default();
        slot.forget_url(Key::of("changed"));
        assert!(slot.get().is_none());
    }
}
