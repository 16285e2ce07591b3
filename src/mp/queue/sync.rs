//! The atomics, cells and wakers the queue is built from: the standard ones, or loom's when the models run.
//!
//! Only `queue` uses it. Both sides offer the same names, so that loom checks the very lines that ship.

#[cfg(not(loom))]
pub(super) use {
    futures_util::task::AtomicWaker,
    std::sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence},
    },
};

#[cfg(loom)]
pub(super) use loom::{
    cell::UnsafeCell,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence},
    },
};

/// The standard cell under loom's access-by-closure interface.
#[cfg(not(loom))]
pub(super) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(loom))]
impl<T> UnsafeCell<T> {
    pub(super) const fn new(value: T) -> Self {
        Self(std::cell::UnsafeCell::new(value))
    }

    /// Hands out the raw pointer; the caller owes the exclusiveness of the access, which loom verifies.
    #[inline(always)]
    pub(super) fn with_mut<R>(&self, access: impl FnOnce(*mut T) -> R) -> R {
        access(self.0.get())
    }
}

/// A waker behind loom's mutex: what `futures_util` promises of its own, which loom cannot look into. (Loom brings one
/// that prints every step.)
#[cfg(loom)]
pub(super) struct AtomicWaker(Mutex<Option<std::task::Waker>>);

#[cfg(loom)]
impl AtomicWaker {
    pub(super) fn new() -> Self {
        Self(Mutex::new(None))
    }

    pub(super) fn register(&self, waker: &std::task::Waker) {
        *self.lock() = Some(waker.clone());
    }

    pub(super) fn wake(&self) {
        if let Some(waker) = self.take() {
            waker.wake();
        }
    }

    pub(super) fn take(&self) -> Option<std::task::Waker> {
        self.lock().take()
    }

    fn lock(&self) -> loom::sync::MutexGuard<'_, Option<std::task::Waker>> {
        self.0.lock().expect("no model panics with the lock held")
    }
}
