//! Pipes and buffers, pooled for the whole process.
//!
//! In: demands for an empty store. Out: a pipe of (if the kernel allows) 1 MiB, or a buffer when pipes have run out.
//! Invariant: what is in the pool is empty; how many pipes exist at once is bounded by the descriptor budget.

use std::{
    os::fd::OwnedFd,
    sync::{
        OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use bytes::BytesMut;
use crossbeam_queue::ArrayQueue;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

/// 1 MiB, what fs.pipe-max-size allows unprivileged users: 256 slots. A smaller pipe costs half as much CPU again.
const PIPE_BYTES: usize = 1 << 20;
/// Below 64 KiB (the kernel hands out two pages once a user has too many pipe pages) a pooled buffer moves more at once.
const PIPE_BYTES_MIN: usize = 64 << 10;
/// Idle pipes kept: more than the lanes that move payload in the same instant on one machine.
const PIPES_IDLE_MAX: usize = 512;
/// A buffer as large as what a socket hands over at once on a fast path; larger ones fall out of the L2 cache.
pub(super) const BUFFER_BYTES: usize = 256 << 10;
/// Idle buffers kept, 16 MiB in all: buffers are the exception, pipes the rule.
const BUFFERS_IDLE_MAX: usize = 64;

/// A pipe that is empty whenever it is in the pool.
#[derive(Debug)]
pub(super) struct Pipe {
    pub(super) read: OwnedFd,
    pub(super) write: OwnedFd,
}

impl Drop for Pipe {
    fn drop(&mut self) {
        stores().pipes_open.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Stores {
    pipes: ArrayQueue<Pipe>,
    buffers: ArrayQueue<BytesMut>,
    pipes_open: AtomicUsize,
    pipes_open_max: AtomicUsize,
    /// Demands for a pipe that got a buffer instead.
    pipes_refused: AtomicU64,
}

/// The pools at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolReport {
    /// Pipes that exist, and how many may.
    pub pipes: (usize, usize),
    /// Of these, those that nobody uses.
    pub pipes_idle: usize,
    /// Buffers that nobody uses.
    pub buffers_idle: usize,
    /// Demands for a pipe since the start that got a buffer instead.
    pub pipes_refused: u64,
}

/// The pools now.
pub fn pool_report() -> PoolReport {
    let stores = stores();
    let open_max = stores.pipes_open_max.load(Ordering::Relaxed);
    PoolReport {
        pipes: (stores.pipes_open.load(Ordering::Relaxed), open_max),
        pipes_idle: stores.pipes.len(),
        buffers_idle: stores.buffers.len(),
        pipes_refused: stores.pipes_refused.load(Ordering::Relaxed),
    }
}

/// Pipes open at once until [`set_descriptor_budget`] is called: 2 of 1024 descriptors each, a quarter of the usual limit.
const PIPES_OPEN_MAX_DEFAULT: usize = 128;

fn stores() -> &'static Stores {
    static STORES: OnceLock<Stores> = OnceLock::new();
    STORES.get_or_init(|| Stores {
        pipes: ArrayQueue::new(PIPES_IDLE_MAX),
        buffers: ArrayQueue::new(BUFFERS_IDLE_MAX),
        pipes_open: AtomicUsize::new(0),
        pipes_open_max: AtomicUsize::new(PIPES_OPEN_MAX_DEFAULT),
        pipes_refused: AtomicU64::new(0),
    })
}

/// Tells the pool how many descriptors the process may open; pipes take at most a quarter of them: without a pipe payload is
/// copied, without a descriptor a connection fails.
pub fn set_descriptor_budget(descriptors: usize) {
    stores().pipes_open_max.store(descriptors / 8, Ordering::Relaxed);
}

/// An empty pipe, or none when the budget, the process's descriptors or the user's pipe pages are used up.
pub(super) fn take_pipe() -> Option<Pipe> {
    let stores = stores();
    stores.pipes.pop().or_else(|| {
        let pipe = make_pipe(stores);
        if pipe.is_none() {
            stores.pipes_refused.fetch_add(1, Ordering::Relaxed);
        }
        pipe
    })
}

fn make_pipe(stores: &Stores) -> Option<Pipe> {
    if stores.pipes_open.fetch_add(1, Ordering::Relaxed) >= stores.pipes_open_max.load(Ordering::Relaxed) {
        stores.pipes_open.fetch_sub(1, Ordering::Relaxed);
        return None;
    }
    let Ok((read, write)) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK) else {
        stores.pipes_open.fetch_sub(1, Ordering::Relaxed);
        return None;
    };
    let pipe = Pipe { read, write };
    // The answer is what was really given: an unprivileged user gets 64 large pipes, then small ones.
    let given = fcntl_setpipe_size(&pipe.write, PIPE_BYTES)
        .or_else(|_| rustix::pipe::fcntl_getpipe_size(&pipe.write));
    (given.unwrap_or(0) >= PIPE_BYTES_MIN).then_some(pipe)
}

/// Empties the pools: what a simulation finds there must not depend on what ran before.
#[cfg(test)]
pub(super) fn forget_idle() {
    close_idle_pipes();
    while stores().buffers.pop().is_some() {}
}

/// Closes the idle pipes, for a process that has no descriptor left for a connection; returns whether there were any.
pub(super) fn close_idle_pipes() -> bool {
    let stores = stores();
    // Bounded: other cores may give pipes back meanwhile.
    (0..PIPES_IDLE_MAX).map_while(|_| stores.pipes.pop()).count() > 0
}

/// Returns an empty pipe.
pub(super) fn give_pipe(pipe: Pipe) {
    // A full pool closes it.
    let _ = stores().pipes.push(pipe);
}

/// An empty buffer with room for [`BUFFER_BYTES`].
pub(super) fn take_buffer() -> BytesMut {
    stores().buffers.pop().unwrap_or_else(|| BytesMut::with_capacity(BUFFER_BYTES))
}

/// Returns a buffer; its content is dropped.
pub(super) fn give_buffer(mut buffer: BytesMut) {
    buffer.clear();
    // One that held a whole frame for want of pipes is not worth keeping.
    if buffer.capacity() > 2 * BUFFER_BYTES {
        return;
    }
    // Splitting may have left it with less room; such a one is not worth keeping.
    if buffer.try_reclaim(BUFFER_BYTES) {
        let _ = stores().buffers.push(buffer);
    }
}
