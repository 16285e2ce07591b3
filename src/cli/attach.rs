//! Brings a cache to a downstream, at its start or later: two processes never have the same directory, and one that takes over
//! from another serves before the other has let the directory go.
//!
//! In: what `--cache` says. Out: a slot with a cache in it, or one that gets it. Called by the command line.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use tokio::sync::watch;

use crate::{
    cache::{Cache, CacheError, console, slot::Slot},
    exec,
};

/// How often it is looked whether the process before has gone: what is asked for meanwhile goes to the root.
const LOOK: Duration = Duration::from_millis(250);

/// A directory that is to become the cache of this process.
#[derive(Clone)]
pub(super) struct Attachment {
    dir: PathBuf,
    bytes_max: u64,
    slot: Slot,
}

impl Attachment {
    /// Opens the cache in `dir`. If another process still has it, that is an error unless this one `takes_over`; if a disk
    /// that was mounted read-only, which is what the kernel does after errors, is all that is wrong, viewers are served on
    /// without it.
    ///
    /// # Errors
    /// Those of [`Cache::open`].
    pub(super) fn open(dir: PathBuf, bytes_max: u64, takes_over: bool) -> Result<Self, CacheError> {
        let slot = match Cache::open(&dir, bytes_max) {
            Ok(cache) => Slot::of(cache),
            Err(error @ CacheError::Taken { .. }) if takes_over => {
                tracing::info!("{error}; serving without a cache until that process has gone");
                Slot::awaited()
            }
            Err(error) if error.is_read_only() => {
                tracing::error!("{error}; serving on without a cache until a restart");
                Slot::default()
            }
            Err(error) => return Err(error),
        };
        Ok(Self { dir, bytes_max, slot })
    }

    /// Where the cache is, or will be.
    pub(super) fn slot(&self) -> Slot {
        self.slot.clone()
    }

    /// Lets the operator ask the cache, if it is there; `front` is where clients connect.
    ///
    /// # Errors
    /// The directory takes no socket.
    pub(super) fn announce(&self, front: SocketAddr) -> Result<(), CacheError> {
        self.slot.get().map_or(Ok(()), |cache| self.serve_console(cache, front))
    }

    fn serve_console(&self, cache: &Arc<Cache>, front: SocketAddr) -> Result<(), CacheError> {
        console::serve(cache, &self.dir, front)
            .map_err(|source| CacheError::Directory { path: self.dir.clone(), source })
    }

    /// Waits for the directory, if another process has it, and begins to use it. Ends with a process that stops: the next
    /// one gets it.
    pub(super) async fn complete(self, front: SocketAddr, mut stopping: watch::Receiver<bool>) {
        if !self.slot.is_awaiting() {
            return;
        }
        while exec::timeout(LOOK, stopping.wait_for(|stops| *stops)).await.is_err() {
            let attachment = self.clone();
            match exec::blocking(move || attachment.try_again(front)).await {
                Ok(()) => return tracing::info!(dir = %self.dir.display(), "the cache is in use from now on"),
                Err(CacheError::Taken { .. }) => {}
                Err(error) => return tracing::error!("{error}; serving on without a cache until a restart"),
            }
        }
    }

    fn try_again(&self, front: SocketAddr) -> Result<(), CacheError> {
        let cache = Cache::open(&self.dir, self.bytes_max)?;
        self.slot.put(&cache).map_err(|source| CacheError::Directory { path: self.dir.clone(), source })?;
        // From here on the cache is in use, whether the operator can ask it or not.
        if let Err(error) = console::serve(&cache, &self.dir, front) {
            tracing::error!("{}: no socket for `plait cache` until a restart: {error}", self.dir.display());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_cache_without_a_console_is_in_use() {
        let dir = tempfile::tempdir().unwrap();
        // No socket can stand here.
        fs::create_dir_all(console::path(dir.path()).join("taken")).unwrap();
        let attachment = Attachment { dir: dir.path().to_owned(), bytes_max: 1 << 20, slot: Slot::awaited() };
        attachment.try_again(([127, 0, 0, 1], 80).into()).unwrap();
        assert!(attachment.slot.get().is_some());
    }
}
