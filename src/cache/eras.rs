//! Which records can be trusted after the machine has crashed.
//!
//! While the machine runs, what was written is what is read, even if the process was killed. After a crash of the machine
//! the disk may hold a record and not the bytes that it names. So every record says in which boot and epoch it was
//! written, and an epoch counts as safe once syncfs(2) has returned after its end: one call for all objects together, where
//! fdatasync(2) for each would cost a segment more than its transfer.
//!
//! In: the time now and then. Out: the era of a new record, and whether an old one is trusted. Invariant: the list of safe
//! epochs is replaced whole, and only after the sync.

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use super::record::Era;

/// Boots remembered. What was not confirmed since as many boots is fetched again.
const BOOTS_MAX: usize = 64;

/// See the module's description.
pub struct Eras {
    dir: PathBuf,
    boot: u128,
    /// Safe epochs of other boots, and their order, the newest first.
    others: Vec<(u128, u64)>,
    trusted: HashMap<u128, u64>,
    /// Held for reading while a record is written.
    epoch: RwLock<u64>,
    dirty: AtomicBool,
    syncing: Mutex<()>,
}

impl Eras {
    /// Reads the list of `dir`, in the kernel's boot `boot`.
    ///
    /// # Errors
    /// Those of replacing the list: the directory is not writable.
    pub fn open(dir: &Path, boot: u128) -> io::Result<Self> {
        // A list that cannot be read leaves the cache empty, never wrong.
        let text = fs::read_to_string(dir.join(LIST)).unwrap_or_default();
        let lines = text.lines().filter_map(|line| {
            let (boot, epoch) = line.split_once(' ')?;
            Some((u128::from_str_radix(boot, 16).ok()?, epoch.parse().ok()?))
        });
        let (here, others): (Vec<_>, Vec<_>) = lines.take(BOOTS_MAX).partition(|&(known, _)| known == boot);
        let safe = here.first().map_or(0, |&(_, epoch)| epoch);
        let eras = Self {
            dir: dir.to_owned(),
            boot,
            trusted: others.iter().copied().collect(),
            others,
            epoch: RwLock::new(safe + 1),
            dirty: AtomicBool::new(true),
            syncing: Mutex::new(()),
        };
        eras.put_list(safe)?;
        Ok(eras)
    }

    /// Whether what a record of `era` says holds.
    pub fn trusts(&self, era: Era) -> bool {
        era.boot == self.boot || self.trusted.get(&era.boot).is_some_and(|&safe| era.epoch <= safe)
    }

    /// Lets `write` put records with the era of now on the disk.
    pub fn writing<T>(&self, write: impl FnOnce(Era) -> T) -> T {
        let epoch = self.epoch.read().unwrap_or_else(PoisonError::into_inner);
        self.dirty.store(true, Ordering::Relaxed);
        write(Era { boot: self.boot, epoch: *epoch })
    }

    /// Makes everything safe that was written before, if anything was.
    ///
    /// # Errors
    /// Those of syncfs(2) and of replacing the list; then nothing more is safe than before.
    pub fn sync(&self) -> io::Result<()> {
        let _one = self.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = {
            let mut epoch = self.epoch.write().unwrap_or_else(PoisonError::into_inner);
            if !self.dirty.swap(false, Ordering::Relaxed) {
                return Ok(());
            }
            *epoch += 1;
            *epoch - 1
        };
        let synced = rustix::fs::syncfs(File::open(&self.dir)?).map_err(io::Error::from);
        let listed = synced.and_then(|()| self.put_list(ended));
        if listed.is_err() {
            self.dirty.store(true, Ordering::Relaxed);
        }
        listed
    }

    fn put_list(&self, safe: u64) -> io::Result<()> {
        let lines = [(self.boot, safe)].into_iter().chain(self.others.iter().copied()).take(BOOTS_MAX);
        let text: String = lines.map(|(boot, epoch)| format!("{boot:032x} {epoch}\n")).collect();
        let new = self.dir.join("eras.new");
        fs::write(&new, text)?;
        File::open(&new)?.sync_all()?;
        fs::rename(new, self.dir.join(LIST))
    }
}

/// The name of the list.
const LIST: &str = "eras";

/// The kernel's boot; a random one where it does not say, which trusts nothing that is older.
pub fn boot() -> u128 {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    u128::from_str_radix(&id.trim().replace('-', ""), 16).unwrap_or_else(|_| fastrand::u128(..))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_crash_only_synced_records_are_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let era = |eras: &Eras| eras.writing(|era| era);
        let first = Eras::open(dir.path(), 1).unwrap();
        let early = era(&first);
        assert!(first.trusts(early));
        first.sync().unwrap();
        let late = era(&first);
        assert!(first.trusts(late));
        drop(first);
        // The process starts anew: all is as it was.
        let again = Eras::open(dir.path(), 1).unwrap();
        assert!(again.trusts(early) && again.trusts(late));
        assert!(era(&again).epoch >= late.epoch);
        drop(again);
        // The machine starts anew.
        let second = Eras::open(dir.path(), 2).unwrap();
        assert!(second.trusts(early) && !second.trusts(late));
        era(&second);
        second.sync().unwrap();
        let third = Eras::open(dir.path(), 3).unwrap();
        assert!(third.trusts(early) && !third.trusts(late));
        assert!(!third.trusts(Era { boot: 9, epoch: 0 }));
    }

    #[test]
    fn a_list_of_nonsense_trusts_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(LIST), b"x\n1\nzz 5\n\xff").unwrap();
        let eras = Eras::open(dir.path(), 7).unwrap();
        assert!(!eras.trusts(Era { boot: 1, epoch: 0 }));
        assert!(boot() != 0);
    }
}
