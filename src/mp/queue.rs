//! `MpQueue` puts frames that arrive in any order on many threads back into sequence, without a lock.
//!
//! Producers bring `(sequence number, value)` in any order; the one consumer takes the values in sequence. The manager of
//! a transfer makes the queue, each leased lane's producer owns a [`Producer`], the consumer task owns the [`Consumer`].
//! The invariant: a sequence number is handed out once, in order, and is never held by more than one slot.
//!
//! ```
//! use plait::mp::queue::{MpQueue, Publish};
//!
//! let (producer, mut consumer) = MpQueue::new(4)?;
//! assert!(matches!(producer.publish(1, "world"), Publish::Published));
//! assert_eq!(consumer.take(), None, "1 waits until 0 is there");
//! assert!(matches!(producer.publish(0, "hello"), Publish::Published));
//! assert!(matches!(producer.publish(0, "late copy"), Publish::Duplicate("late copy")));
//! assert!(matches!(producer.publish(4, "too far ahead"), Publish::WindowFull(_)));
//! assert_eq!((consumer.take(), consumer.take()), (Some("hello"), Some("world")));
//! # Ok::<(), plait::mp::queue::CapacityError>(())
//! ```
//!
//! # How it works
//!
//! The ring has no shared head or tail. The slot of `seq` is `seq & mask`, and its stamp says which sequence number it
//! serves and in which state:
//!
//! ```text
//! EMPTY(seq) ──claim (CAS)──► CLAIMED(seq) ──publish (store)──► FULL(seq) ──take──► EMPTY(seq + capacity)
//! ```
//!
//! A stamp of an earlier lap means "window full", any later state or lap means "duplicate".
//!
//! **Wake the consumer** only for the frame it sleeps on, because waking a thread on another core costs 15-35 µs. It sets
//! the AWAITED bit in the stamp of that very slot while it is EMPTY; the producer's claiming CAS finds the bit. Both sides
//! touch one location, so one of them always sees the other and no fence is needed. A consumer that meets a CLAIMED slot
//! does not sleep: its task asks to be polled again, for the few instructions until the value is there.
//!
//! **Wake a producer** that waits for room only when its slot is free. Two locations are involved (stamp and waiting mask:
//! the store-buffering pattern), so both sides put a SeqCst fence between their store and their load. The
//! consumer looks at the mask every few takes and whenever it finds nothing.

#[cfg(all(test, loom))]
#[path = "queue/loom_model.rs"]
mod loom_model;
#[path = "queue/sync.rs"]
mod sync;
#[cfg(all(test, not(loom)))]
#[path = "queue/tests.rs"]
mod tests;

use std::cmp;
use std::fmt;
use std::future::poll_fn;
use std::mem::MaybeUninit;
use std::task::{Context, Poll};

use sync::{Arc, AtomicBool, AtomicU64, AtomicUsize, AtomicWaker, Ordering, UnsafeCell, fence};

/// Sequence numbers are below 2^48: at the smallest frame of 16 KiB that is 4 EiB, beyond any transfer, and it leaves the
/// stamp's upper bits as head room for `seq + capacity`.
pub const SEQ_END: u64 = 1 << 48;

/// Slots in the largest ring: 2^20 frames of 16 KiB are 16 GiB in flight, beyond any window this program grants, and the
/// ring itself takes 32 MiB then.
pub const CAPACITY_MAX: usize = 1 << 20;

/// Producers that may wait for room at one time: one bit each in a 64-bit mask, so that the consumer learns with a single
/// load whether anybody waits. A transfer leases far fewer lanes.
#[cfg(not(loom))]
pub const WAITERS_MAX: usize = u64::BITS as usize;
/// Few, for loom's table of objects is small.
#[cfg(loom)]
pub const WAITERS_MAX: usize = 2;

/// Takes between two looks at who waits for room: a power of two; the fence it takes costs a sixteenth then.
const ROOM_TAKES: u64 = 16;

/// Stamp bit: a producer owns the slot and is writing its value.
const CLAIMED: u64 = 1;
/// Stamp bit: the value is there.
const FULL: u64 = 2;
/// Stamp bit: the consumer sleeps until this slot is full.
const AWAITED: u64 = 4;
/// The sequence number sits above the three state bits.
const SEQ_SHIFT: u32 = 3;

/// The capacity asked for cannot be a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a queue of {capacity} frames cannot be made: ask for a power of two from 1 to {max}", max = CAPACITY_MAX)]
pub struct CapacityError {
    /// The number of slots that was asked for.
    pub capacity: usize,
}

/// Why there is no room to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RoomError {
    /// One side closed the queue: stop sending.
    #[error("the queue is closed: the transfer has ended on this side")]
    Closed,
    /// No window ever reaches this sequence number: the peer that numbered the frame is at fault.
    #[error("sequence number {seq} is not below {end}: the sender numbers frames wrongly", end = SEQ_END)]
    SeqOutOfBounds {
        /// The number that was asked for.
        seq: u64,
    },
    /// [`WAITERS_MAX`] other producers have waited for room: use fewer lanes for one transfer.
    #[error("more than {max} producers wait on one queue: lease fewer lanes for a transfer", max = WAITERS_MAX)]
    TooManyWaiters,
}

/// What became of a frame that was offered; every refusal gives the value back.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a refused frame comes back in here"]
pub enum Publish<T> {
    /// The queue has it.
    Published,
    /// The slot still belongs to an earlier lap: the frame is a whole capacity or more ahead of the consumer (or numbered
    /// beyond [`SEQ_END`]). Wait for [`Producer::room`], or treat it as a fault of the sender.
    WindowFull(T),
    /// A copy of this frame was published, or taken, before: the first one wins.
    Duplicate(T),
    /// One side closed the queue.
    Closed(T),
}

/// The ring that a [`Producer`] and the [`Consumer`] share; see the module's documentation.
pub struct MpQueue<T> {
    slots: Box<[Slot<T>]>,
    mask: u64,
    closed: AtomicBool,
    /// Living [`Producer`] handles; the last one closes the queue.
    producers: AtomicUsize,
    /// Which `waiters` belong to a handle.
    waiters_leased: AtomicU64,
    waiters: Box<[Waiter]>,
    consumer: AtomicWaker,
    /// Bit i: `waiters[i]` sleeps. The consumer reads it at every take.
    waiting: OwnLine<AtomicU64>,
}

/// 32 bytes for a value of 16: two to a cache line. Padding to a line, or spreading neighbours over lines, measured no
/// faster across cores (the trailing consumer profits from the neighbour it fetched along) and slower on one.
#[repr(C, align(32))]
struct Slot<T> {
    stamp: AtomicU64,
    value: UnsafeCell<MaybeUninit<T>>,
}

/// Keeps a word away from its neighbours: 128 bytes, as adjacent lines are prefetched in pairs.
#[repr(align(128))]
struct OwnLine<T>(T);

/// Where one producer waits for room.
struct Waiter {
    /// Which frame it wants to place.
    seq: AtomicU64,
    waker: AtomicWaker,
}

// SAFETY: the queue moves values between threads and never shares a reference to one: a value is reached only by the
// producer whose claim succeeded, then by the one consumer, so `T: Send` is all that is needed.
unsafe impl<T: Send> Send for MpQueue<T> {}
// SAFETY: as above; all other fields are Sync themselves.
unsafe impl<T: Send> Sync for MpQueue<T> {}

const fn stamp_of(seq: u64, state: u64) -> u64 {
    seq << SEQ_SHIFT | state
}

impl<T> MpQueue<T> {
    /// Makes a queue of `capacity` slots and hands out its two ends. All memory is taken here.
    ///
    /// # Errors
    ///
    /// [`CapacityError`] unless `capacity` is a power of two from 1 to [`CAPACITY_MAX`].
    #[expect(clippy::new_ret_no_self, reason = "the queue is only ever held through its two ends")]
    pub fn new(capacity: usize) -> Result<(Producer<T>, Consumer<T>), CapacityError> {
        if !capacity.is_power_of_two() || capacity > CAPACITY_MAX {
            return Err(CapacityError { capacity });
        }
        let slot = |index| Slot {
            stamp: AtomicU64::new(stamp_of(index as u64, 0)),
            value: UnsafeCell::new(MaybeUninit::uninit()),
        };
        let queue = Arc::new(Self {
            slots: (0..capacity).map(slot).collect(),
            mask: capacity as u64 - 1,
            closed: AtomicBool::new(false),
            producers: AtomicUsize::new(1),
            waiters_leased: AtomicU64::new(0),
            waiters: (0..WAITERS_MAX).map(|_| Waiter::new()).collect(),
            consumer: AtomicWaker::new(),
            waiting: OwnLine(AtomicU64::new(0)),
        });
        Ok((Producer { queue: Arc::clone(&queue), waiter: None }, Consumer { queue, next: 0 }))
    }

    #[inline(always)]
    fn slot(&self, seq: u64) -> &Slot<T> {
        // SAFETY: `mask` is the slots' number less one, so the index is in bounds.
        unsafe { self.slots.get_unchecked((seq & self.mask) as usize) }
    }

    #[inline(always)]
    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn has_room(&self, seq: u64) -> bool {
        self.slot(seq).stamp.load(Ordering::Acquire) >> SEQ_SHIFT >= seq
    }

    /// Closes and wakes everybody. A sleeper registers its waker before it looks at `closed`, so it sees one or the other.
    fn close(&self) {
        if !self.closed.swap(true, Ordering::AcqRel) {
            self.consumer.wake();
            self.waiters.iter().for_each(|waiter| waiter.waker.wake());
        }
    }

    /// Wakes the producers whose frame has room now, that is those that wait for `last` or an earlier one.
    #[cold]
    fn wake_producers(&self, last: u64) {
        let mut waiting = self.waiting.0.load(Ordering::Acquire);
        while waiting != 0 {
            let index = waiting.trailing_zeros() as usize;
            waiting &= waiting - 1;
            let waiter = &self.waiters[index];
            if waiter.seq.load(Ordering::Relaxed) <= last {
                // The bit goes first: a waiter that sets it again meanwhile is woken once too often, never too rarely.
                self.waiting.0.fetch_and(!(1 << index), Ordering::AcqRel);
                waiter.waker.wake();
            }
        }
    }

    fn lease_waiter(&self) -> Option<usize> {
        let leased = self
            .waiters_leased
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |leased| {
                (leased.trailing_ones() < WAITERS_MAX as u32).then(|| leased | (leased + 1))
            })
            .ok()?;
        Some(leased.trailing_ones() as usize)
    }

    fn return_waiter(&self, index: usize) {
        self.waiting.0.fetch_and(!(1 << index), Ordering::AcqRel);
        drop(self.waiters[index].waker.take());
        self.waiters_leased.fetch_and(!(1 << index), Ordering::AcqRel);
    }
}

impl<T> Drop for MpQueue<T> {
    fn drop(&mut self) {
        for slot in &self.slots {
            if slot.stamp.load(Ordering::Acquire) & FULL != 0 {
                // SAFETY: FULL says that a value was written and not taken; `&mut self` says that nobody else is left.
                slot.value.with_mut(|value| unsafe { (*value).assume_init_drop() });
            }
        }
    }
}

impl<T> fmt::Debug for MpQueue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MpQueue")
            .field("capacity", &self.slots.len())
            .field("closed", &self.is_closed())
            .finish()
    }
}

impl Waiter {
    fn new() -> Self {
        Self { seq: AtomicU64::new(0), waker: AtomicWaker::new() }
    }
}

/// The end that a lane's producer puts frames in. Clone it for each lane; when the last one is dropped the queue closes.
#[derive(Debug)]
pub struct Producer<T> {
    queue: Arc<MpQueue<T>>,
    /// Leased at the first wait for room: most producers never wait.
    waiter: Option<usize>,
}

impl<T> Producer<T> {
    /// Offers frame `seq`. Never blocks and takes no lock; the frame the consumer sleeps on wakes it.
    ///
    /// A frame published while the other side closes may stay untaken; it is dropped with the queue.
    #[inline]
    pub fn publish(&self, seq: u64, value: T) -> Publish<T> {
        if self.queue.is_closed() {
            return Publish::Closed(value);
        }
        if seq >= SEQ_END {
            return Publish::WindowFull(value);
        }
        let slot = self.queue.slot(seq);
        let mut stamp = slot.stamp.load(Ordering::Acquire);
        loop {
            match (stamp >> SEQ_SHIFT).cmp(&seq) {
                cmp::Ordering::Less => return Publish::WindowFull(value),
                cmp::Ordering::Equal if stamp & (CLAIMED | FULL) == 0 => {}
                cmp::Ordering::Equal | cmp::Ordering::Greater => return Publish::Duplicate(value),
            }
            // Goes round at most twice: only the consumer's AWAITED bit leaves the slot empty.
            match slot.stamp.compare_exchange_weak(
                stamp,
                stamp | CLAIMED,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => break,
                Err(now) => stamp = now,
            }
        }
        // SAFETY: the CAS from EMPTY(seq) made this thread the slot's only owner until it is FULL: other producers need
        // EMPTY, the consumer needs FULL. Its acquire side orders the previous lap's read before this write.
        slot.value.with_mut(|cell| unsafe {
            (*cell).write(value);
        });
        slot.stamp.store(stamp_of(seq, FULL), Ordering::Release);
        // The bit came with the claim; the consumer never sets it later.
        if stamp & AWAITED != 0 {
            self.queue.consumer.wake();
        }
        Publish::Published
    }

    /// Waits until frame `seq` is inside the window (or a duplicate): `publish` will not answer `WindowFull` then.
    ///
    /// Wakes the task of the latest call only; a handle waits for one frame at a time.
    ///
    /// # Errors
    ///
    /// [`RoomError`]: the queue closed, the number is out of bounds, or too many producers wait.
    pub fn poll_room(&mut self, cx: &mut Context<'_>, seq: u64) -> Poll<Result<(), RoomError>> {
        if seq >= SEQ_END {
            return Poll::Ready(Err(RoomError::SeqOutOfBounds { seq }));
        }
        if self.queue.is_closed() {
            return Poll::Ready(Err(RoomError::Closed));
        }
        if self.queue.has_room(seq) {
            return Poll::Ready(Ok(()));
        }
        let Some(index) = self.waiter.or_else(|| self.queue.lease_waiter()) else {
            return Poll::Ready(Err(RoomError::TooManyWaiters));
        };
        self.waiter = Some(index);
        let waiter = &self.queue.waiters[index];
        waiter.seq.store(seq, Ordering::Relaxed);
        waiter.waker.register(cx.waker());
        self.queue.waiting.0.fetch_or(1 << index, Ordering::AcqRel);
        // Pairs with the fence in `announce_room`: either the consumer sees the bit and the number, or this thread sees the room.
        fence(Ordering::SeqCst);
        let outcome = if self.queue.is_closed() {
            Err(RoomError::Closed)
        } else if self.queue.has_room(seq) {
            Ok(())
        } else {
            return Poll::Pending;
        };
        self.queue.waiting.0.fetch_and(!(1 << index), Ordering::AcqRel);
        Poll::Ready(outcome)
    }

    /// Like [`Producer::poll_room`], to be awaited. Dropping the future is safe.
    ///
    /// # Errors
    ///
    /// As [`Producer::poll_room`].
    pub async fn room(&mut self, seq: u64) -> Result<(), RoomError> {
        poll_fn(|cx| self.poll_room(cx, seq)).await
    }

    /// Closes the queue for both sides: the consumer still takes what is next and there, then ends.
    pub fn close(&self) {
        self.queue.close();
    }

    /// Whether either side closed the queue.
    pub fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    /// How many frames the window holds: those from the consumer's next one on.
    pub fn capacity(&self) -> usize {
        self.queue.slots.len()
    }
}

impl<T> Clone for Producer<T> {
    fn clone(&self) -> Self {
        self.queue.producers.fetch_add(1, Ordering::Relaxed);
        Self { queue: Arc::clone(&self.queue), waiter: None }
    }
}

impl<T> Drop for Producer<T> {
    fn drop(&mut self) {
        if let Some(index) = self.waiter {
            self.queue.return_waiter(index);
        }
        if self.queue.producers.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.queue.close();
        }
    }
}

/// The one end that frames come out of, in order. Dropping it closes the queue.
#[derive(Debug)]
pub struct Consumer<T> {
    queue: Arc<MpQueue<T>>,
    next: u64,
}

impl<T> Consumer<T> {
    /// Takes the next frame in order if it is there, also after the queue closed.
    #[inline]
    pub fn take(&mut self) -> Option<T> {
        let queue = &*self.queue;
        let slot = queue.slot(self.next);
        if slot.stamp.load(Ordering::Acquire) & !AWAITED != stamp_of(self.next, FULL) {
            self.announce_room();
            return None;
        }
        // SAFETY: FULL(next) was stored after the value was written, and acquired here; producers leave a FULL slot alone
        // and there is one consumer, which frees the slot below, so the value is moved out once.
        let value = slot.value.with_mut(|cell| unsafe { (*cell).assume_init_read() });
        slot.stamp.store(stamp_of(self.next + queue.slots.len() as u64, 0), Ordering::Release);
        self.next += 1;
        if self.next & (ROOM_TAKES.min(queue.slots.len() as u64) - 1) == 0 {
            self.announce_room();
        }
        Some(value)
    }

    /// Wakes the producers that wait for a slot which is free by now. Not at every take: a fence costs as much as all
    /// the rest of it. A waiter is late by [`ROOM_TAKES`] frames at most, and those the ring still holds; a consumer
    /// that has none left comes by here, too, so nobody waits for one that sleeps.
    #[inline]
    fn announce_room(&self) {
        // Pairs with the fence in `poll_room`.
        fence(Ordering::SeqCst);
        if self.queue.waiting.0.load(Ordering::Relaxed) != 0 && self.next > 0 {
            self.queue.wake_producers(self.next - 1 + self.queue.slots.len() as u64);
        }
    }

    /// Waits for the next frame. `None` means the end: the queue is closed and the next frame did not come before.
    ///
    /// Wakes the task of the latest call only.
    pub fn poll_take(&mut self, cx: &mut Context<'_>) -> Poll<Option<T>> {
        if let Some(value) = self.take() {
            return Poll::Ready(Some(value));
        }
        self.queue.consumer.register(cx.waker());
        // Before the stamp is read again: a frame published before the close is seen.
        let closed = self.queue.is_closed();
        let empty = stamp_of(self.next, 0);
        let announced = self.queue.slot(self.next).stamp.compare_exchange(
            empty,
            empty | AWAITED,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        let stamp = announced.unwrap_or_else(|stamp| stamp);
        if stamp & FULL != 0 {
            Poll::Ready(self.take())
        } else if closed {
            Poll::Ready(None)
        } else {
            if stamp & CLAIMED != 0 {
                // The producer is between claim and publication, a few instructions: look again after the other tasks.
                cx.waker().wake_by_ref();
                #[cfg(loom)]
                loom::thread::yield_now();
            }
            Poll::Pending
        }
    }

    /// Like [`Consumer::poll_take`], to be awaited. Dropping the future loses no frame.
    pub async fn next(&mut self) -> Option<T> {
        poll_fn(|cx| self.poll_take(cx)).await
    }

    /// The sequence number that [`Consumer::take`] would hand out next, which is also how many it has handed out.
    pub fn next_seq(&self) -> u64 {
        self.next
    }

    /// Whether the next frame is there to be taken.
    pub fn is_ready(&self) -> bool {
        self.queue.slot(self.next).stamp.load(Ordering::Acquire) & !AWAITED == stamp_of(self.next, FULL)
    }

    /// Closes the queue for both sides: producers are refused and those that wait for room wake up.
    pub fn close(&self) {
        self.queue.close();
    }

    /// Whether either side closed the queue.
    pub fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }
}

impl<T> Drop for Consumer<T> {
    fn drop(&mut self) {
        self.queue.close();
    }
}
