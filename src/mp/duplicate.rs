//! A copy in memory of a body on its way to a client, for the cache, where nobody knows how long the body will be.
//!
//! In: conduits whose first bytes are about to be sent. Out: all bytes, once the body has come to its end. Fed by the
//! consumer, asked for by `downstream`. Invariant: a duplicate is all that was sent, or nothing; one that grows too long or
//! cannot be made is given up and holds up nobody.

use std::{
    cell::{Cell, RefCell},
    sync::atomic::{AtomicUsize, Ordering},
};

use bytes::BytesMut;

use crate::net::Conduit;

/// Of one body: a segment of 6 s at 10 Mbit/s, and any playlist. What is longer is sent and not kept.
const BYTES_MAX: usize = 8 << 20;
/// Of all bodies that are copied at the same time in this process.
const ALL_BYTES_MAX: usize = 256 << 20;

static ALL_BYTES: AtomicUsize = AtomicUsize::new(0);

/// See the module's description.
pub struct Duplicate {
    /// None once it was given up.
    bytes: RefCell<Option<BytesMut>>,
    /// Bytes at the front of the consumer's conduit that are in it already.
    ahead: Cell<usize>,
    counted: Cell<usize>,
}

impl Duplicate {
    /// Of a body whose first byte is still to come.
    pub(super) fn new() -> Self {
        Self { bytes: RefCell::new(Some(BytesMut::new())), ahead: Cell::new(0), counted: Cell::new(0) }
    }

    /// Copies from the front of `conduit`. Returns how many of its bytes may be sent.
    pub(super) fn copy_front(&self, conduit: &mut Conduit) -> usize {
        let mut kept = self.bytes.borrow_mut();
        let Some(bytes) = &mut *kept else { return conduit.len() };
        if self.ahead.get() == 0 {
            match append(conduit, bytes) {
                Some(copied) if self.count(copied, bytes.len()) => self.ahead.set(copied),
                _ => {
                    // Its share is for others from now on: the body may go on for hours.
                    *kept = None;
                    self.uncount();
                    return conduit.len();
                }
            }
        }
        self.ahead.get()
    }

    /// So many bytes of the conduit were sent.
    pub(super) fn sent(&self, bytes: usize) {
        self.ahead.set(self.ahead.get().saturating_sub(bytes));
    }

    /// Whether it is still made.
    pub fn is_kept(&self) -> bool {
        self.bytes.borrow().is_some()
    }

    /// What was sent until now, if all of it was copied.
    pub fn take(&self) -> Option<BytesMut> {
        self.bytes.take()
    }

    fn count(&self, more: usize, len: usize) -> bool {
        self.counted.set(self.counted.get() + more);
        ALL_BYTES.fetch_add(more, Ordering::Relaxed) + more <= ALL_BYTES_MAX && len <= BYTES_MAX
    }

    fn uncount(&self) {
        ALL_BYTES.fetch_sub(self.counted.take(), Ordering::Relaxed);
    }
}

impl Drop for Duplicate {
    fn drop(&mut self) {
        self.uncount();
    }
}

/// Copies what it can from the front of `conduit` behind `bytes`; none if that is nothing.
fn append(conduit: &mut Conduit, bytes: &mut BytesMut) -> Option<usize> {
    let mut twin = Conduit::new();
    let copied = conduit.tee_to(&mut twin).ok().filter(|&copied| copied > 0)?;
    twin.read_to(bytes).ok()?;
    Some(copied)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(text: &[u8]) -> Conduit {
        let mut conduit = Conduit::new();
        assert_eq!(conduit.put(text).unwrap(), text.len());
        conduit
    }

    #[test]
    fn bytes_are_copied_once_however_they_are_sent() {
        let duplicate = Duplicate::new();
        let mut conduit = filled(b"one two");
        assert_eq!(duplicate.copy_front(&mut conduit), 7);
        conduit.skip(3);
        duplicate.sent(3);
        // More has come behind what is copied.
        assert_eq!(conduit.put(b" three").unwrap(), 6);
        assert_eq!(duplicate.copy_front(&mut conduit), 4);
        conduit.skip(4);
        duplicate.sent(4);
        assert_eq!(duplicate.copy_front(&mut conduit), 6);
        assert_eq!(duplicate.take().unwrap(), b"one two three"[..]);
    }

    #[test]
    fn one_that_is_too_long_is_given_up_and_all_may_be_sent() {
        let duplicate = Duplicate::new();
        let piece = vec![0; 64 << 10];
        for _ in 0..BYTES_MAX / piece.len() {
            let mut conduit = filled(&piece);
            assert_eq!(duplicate.copy_front(&mut conduit), piece.len());
            duplicate.sent(piece.len());
        }
        assert!(duplicate.is_kept());
        assert_eq!(duplicate.copy_front(&mut filled(b"x")), 1);
        assert!(!duplicate.is_kept());
        assert_eq!(duplicate.counted.get(), 0, "what is given up leaves room for others");
        assert_eq!(duplicate.take(), None);
    }
}
