//! The waist on tokio-uring: readiness is a one-shot POLL_ADD, timers are the ring's, tasks are tokio's.
//!
//! Called only by `exec`. Invariant: at most one POLL_ADD is in flight per descriptor and [`Interest`]. Splice itself
//! is not sent through the ring: `IORING_OP_SPLICE` always goes to a kernel worker thread.

mod timers;

use std::{
    cell::RefCell,
    future::Future,
    io,
    os::fd::RawFd,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use io_uring::{cqueue, opcode, squeue, types};
use tokio_uring::{InFlightOneshot, OneshotOutputTransform, UnsubmittedOneshot};

use super::Interest;

/// Submission entries: a core arms at most a few polls per connection between two turns, and a full queue is flushed.
const SUBMISSION_ENTRIES: u32 = 1024;
/// Completion entries: one per armed poll can fire in the same turn; the kernel keeps what overflows.
const COMPLETION_ENTRIES: u32 = 8192;

/// Runs `main` to its end on this thread.
pub(super) fn run(main: impl Future<Output = ()>) -> io::Result<()> {
    let mut ring = tokio_uring::uring_builder();
    // Completions are processed when this thread enters the kernel anyway, not by an interrupt of its own.
    ring.setup_coop_taskrun().setup_cqsize(COMPLETION_ENTRIES);
    let runtime =
        tokio_uring::Runtime::new(tokio_uring::builder().entries(SUBMISSION_ENTRIES).uring_builder(&ring))?;
    runtime.block_on(main);
    Ok(())
}

pub(super) fn spawn(task: impl Future<Output = ()> + 'static) {
    tokio_uring::spawn(task);
}

pub(super) async fn sleep(time: Duration) {
    timers::Sleep::new(time).await;
}

pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(failed) => std::panic::resume_unwind(failed.into_panic()),
    }
}

/// A NOP through the ring: tokio's own yield would not flush the submission queue, and tasks whose poll still stands
/// in it would wait for as long as this one keeps yielding.
pub(super) async fn yield_now() {
    let _ = UnsubmittedOneshot::new((), Outcome, opcode::Nop::new().build()).submit().await;
}

struct Outcome;

impl OneshotOutputTransform for Outcome {
    type Output = io::Result<()>;
    type StoredData = ();

    fn transform_oneshot_output(self, (): (), entry: cqueue::Entry) -> Self::Output {
        if entry.result() < 0 { Err(io::Error::from_raw_os_error(-entry.result())) } else { Ok(()) }
    }
}

type Armed = InFlightOneshot<(), Outcome>;

pub(super) struct Watch {
    fd: RawFd,
    armed: RefCell<[Option<Armed>; 3]>,
}

impl Watch {
    pub(super) fn new(fd: RawFd) -> Self {
        Self { fd, armed: RefCell::default() }
    }

    pub(super) fn poll_ready(&self, interest: Interest, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let slot = &mut self.armed.borrow_mut()[interest.slot()];
        let poll = slot.get_or_insert_with(|| {
            let entry: squeue::Entry = opcode::PollAdd::new(types::Fd(self.fd), interest.poll_mask()).build();
            UnsubmittedOneshot::new((), Outcome, entry).submit()
        });
        let outcome = Pin::new(poll).poll(cx);
        if outcome.is_ready() {
            *slot = None;
        }
        outcome
    }
}
