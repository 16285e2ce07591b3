//! The keys that are valid now: one, or during a rotation two.
//!
//! In: a key file, read at the start and again at SIGHUP. Out: the keys, newest first. Shared by all cores of a role. The
//! newest one is used for dialling, each for answering, so that hosts may get a new file one after the other, those that
//! answer before those that dial: upstream, relays, downstream. Invariants: there is always a key; a file that is wrong
//! changes nothing; lanes that stand are not touched.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use super::key::Key;
use super::key_file::KeyFileError;

/// See the module's description.
#[derive(Debug)]
pub struct KeyRing(RwLock<Arc<[Key]>>);

impl KeyRing {
    /// With one key.
    pub fn of(key: Key) -> Self {
        Self(RwLock::new(Arc::new([key])))
    }

    /// With the keys in the file `path`. Blocks on the file system.
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub fn load(path: &Path) -> Result<Self, KeyFileError> {
        Ok(Self(RwLock::new(Key::load_all(path)?.into())))
    }

    /// Reads the keys again. Blocks on the file system.
    ///
    /// # Errors
    /// [`KeyFileError`]; the keys are the same as before.
    pub fn reload(&self, path: &Path) -> Result<(), KeyFileError> {
        let keys = Key::load_all(path)?.into();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = keys;
        Ok(())
    }

    /// The keys now, newest first, at least one.
    pub fn keys(&self) -> Arc<[Key]> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
