//! The waist on glommio: tasks, timers and the thread pool are glommio's, readiness is an epoll instance in its ring.
//!
//! Called only by `exec`. Invariant: when [`run`] returns, every future spawned on the core has been dropped.
//!
//! glommio frees a task when its join handle and its last waker are gone and takes both to be on its own thread; a
//! waker that another thread drops at that moment would be a use after free. So no join handle outlives the spawn of a
//! task here: what is to be cancelled is listed apart, and the future given to `exec` is not glommio's main future.

mod readiness;

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::Future,
    io,
    os::fd::{AsFd, OwnedFd, RawFd},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    rc::Rc,
    sync::{Arc, Barrier},
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{AbortHandle, abortable, join_all},
};
use glommio::{
    GlommioError, LocalExecutorBuilder, Placement, PoolPlacement, ReactorErrorKind, TaskQueueHandle,
    timer::Timer,
};
use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::oneshot;

use readiness::{Readiness, readable};

pub(super) use readiness::Watch;

/// Entries of each of glommio's three rings. One poll of the epoll instance and one per yielding task stand there; what
/// does not fit waits in a queue of glommio's. So many completions in one turn preempt it, see [`PREEMPTION`].
const RING_ENTRIES: usize = 1024;

/// Registered buffers for disk access, which `exec` does not do: the least that glommio takes, because each of the three
/// rings counts them against the limit of locked memory (its default, 10 MiB, is beyond the usual limit of 8).
const REGISTERED_BUFFERS_BYTES: usize = 64 * 1024;

/// Never, in effect. When glommio 0.9 sees a preemption before the first task of a turn has run, it goes to sleep over
/// runnable tasks (glommio/glommio#53, in no release yet); with 1 ms the tests hung in one run of three, and the default
/// of 100 ms leaves the race in. Nothing here needs the timer: who yields leaves glommio's queue and enters the ring.
/// A wake from another thread whose eventfd write comes late can still preempt at that point; the core then sleeps until
/// its next event.
const PREEMPTION: Duration = Duration::from_secs(3600);

/// Threads of a core for what may block. They are made at the start and sleep until used; 4 let a disk read go ahead of
/// up to three name resolutions that hang until their time-out of seconds.
const BLOCKING_THREADS: usize = 4;

/// 10 years: an instant that far ahead can be computed, and no proxy sleeps longer.
const SLEEP_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// What runs on this thread.
struct Core {
    readiness: Rc<Readiness>,
    /// Never read, so a poll of it fires at once: the ring's NOP.
    always_readable: OwnedFd,
    tasks: RefCell<Tasks>,
    /// Whether the pool was given work.
    has_blocked: Cell<bool>,
}

#[derive(Default)]
struct Tasks {
    spawned: u64,
    alive: BTreeMap<u64, AbortHandle>,
    ending: bool,
}

thread_local! {
    static CORE: RefCell<Option<Rc<Core>>> = const { RefCell::new(None) };
}

fn core() -> Rc<Core> {
    CORE.with_borrow(Option::clone).expect("called on a core's thread, inside exec::run")
}

/// Runs `main` to its end on this thread, drops all other tasks and waits for the work given to [`blocking`].
pub(super) fn run(main: impl Future<Output = ()> + 'static) -> io::Result<()> {
    // Where the kernel refuses io_uring altogether glommio panics; this says why.
    drop(io_uring::IoUring::new(1)?);
    let executor = LocalExecutorBuilder::new(Placement::Unbound) // the thread is pinned already
        .ring_depth(RING_ENTRIES)
        .io_memory(REGISTERED_BUFFERS_BYTES)
        .preempt_timer(PREEMPTION)
        .blocking_thread_pool_placement(PoolPlacement::Unbound(BLOCKING_THREADS))
        .make()
        .map_err(refusal)?;
    let core = Rc::new(Core {
        readiness: Rc::new(Readiness::new()?),
        always_readable: eventfd(1, EventfdFlags::CLOEXEC)?,
        tasks: RefCell::default(),
        has_blocked: Cell::new(false),
    });
    let outcome = executor.run(async move {
        CORE.set(Some(core.clone()));
        spawn(core.readiness.clone().serve());
        let (ended, end) = oneshot::channel();
        start(async move {
            let _ = ended.send(AssertUnwindSafe(main).catch_unwind().await);
        });
        let outcome = end.await;
        core.end().await;
        CORE.set(None);
        outcome
    });
    match outcome {
        Ok(Ok(())) => Ok(()),
        Ok(Err(panic)) => resume_unwind(panic),
        Err(_) => unreachable!("main sends its outcome before it ends"),
    }
}

fn refusal(error: GlommioError<()>) -> io::Error {
    let too_low = |limit: &dyn std::fmt::Display, needed: &dyn std::fmt::Display| {
        let text = format!("the limit of locked memory (memlock) is {limit} bytes, glommio wants {needed}");
        io::Error::new(io::ErrorKind::OutOfMemory, text)
    };
    if let GlommioError::ReactorError(ReactorErrorKind::MemLockLimit(limit, needed)) = &error {
        return too_low(limit, needed);
    }
    let error = io::Error::from(error);
    // What comes out of the builder has been an error of I/O on its way, of which the text is left: `MemLockLimit(1/2)`.
    let text = error.to_string();
    let limits =
        text.split_once("MemLockLimit(").and_then(|(_, rest)| rest.split_once(')')?.0.split_once('/'));
    if let Some((limit, needed)) = limits {
        return too_low(&limit, &needed);
    }
    if error.raw_os_error() == Some(libc::ENOMEM) {
        let text = format!("{error}; the rings may exceed the limit of locked memory (memlock)");
        return io::Error::new(io::ErrorKind::OutOfMemory, text);
    }
    error
}

impl Core {
    /// Drops every task and waits until the pool is idle, for a pool thread that answers nobody panics.
    async fn end(&self) {
        let alive: Vec<_> = {
            let mut tasks = self.tasks.borrow_mut();
            tasks.ending = true;
            tasks.alive.values().cloned().collect()
        };
        alive.iter().for_each(AbortHandle::abort);
        while !self.tasks.borrow().alive.is_empty() {
            glommio::executor().yield_now().await;
        }
        if self.has_blocked.get() {
            // All threads meet here, so each has finished what it was given before.
            let barrier = Arc::new(Barrier::new(BLOCKING_THREADS));
            let arrive = || {
                let barrier = barrier.clone();
                glommio::executor().spawn_blocking(move || {
                    barrier.wait();
                })
            };
            join_all((0..BLOCKING_THREADS).map(|_| arrive())).await;
        }
    }
}

/// Takes its task off the list.
struct Listed {
    core: Rc<Core>,
    number: u64,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.core.tasks.borrow_mut().alive.remove(&self.number);
    }
}

/// The task first runs after this returns. Its panic ends it and nothing else.
pub(super) fn spawn(task: impl Future<Output = ()> + 'static) {
    let core = core();
    let (task, handle) = abortable(task);
    let listed = {
        let mut tasks = core.tasks.borrow_mut();
        if tasks.ending {
            return;
        }
        tasks.spawned += 1;
        let number = tasks.spawned;
        tasks.alive.insert(number, handle);
        Listed { core: core.clone(), number }
    };
    start(async move {
        let _listed = listed;
        let _ = AssertUnwindSafe(async move { task.await.ok() }).catch_unwind().await;
    });
}

/// Queues a task and lets go of it: glommio's `spawn_local` would run it inside this call, and its caller may hold
/// what the task borrows.
fn start(task: impl Future<Output = ()> + 'static) {
    let queued = glommio::spawn_local_into(task, TaskQueueHandle::default());
    drop(queued.expect("glommio's default queue always exists").detach());
}

pub(super) async fn sleep(time: Duration) {
    Timer::new(time.min(SLEEP_MAX)).await;
}

pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    core().has_blocked.set(true);
    // glommio would leak the value if nobody waited for it any more, and lose a thread to a panic.
    let (answer, mut answered) = oneshot::channel();
    let guarded = move || drop(answer.send(catch_unwind(AssertUnwindSafe(work))));
    glommio::executor().spawn_blocking(guarded).await;
    match answered.try_recv() {
        Ok(Ok(value)) => value,
        Ok(Err(panic)) => resume_unwind(panic),
        Err(_) => unreachable!("the work is done and has answered"),
    }
}

/// A poll through the ring that fires at once: glommio's own yield does not enter the kernel, so timers, mail and
/// readiness would wait for as long as this task keeps yielding.
pub(super) async fn yield_now() {
    let core = core();
    if readable(core.always_readable.as_fd()).await.is_err() {
        glommio::executor().yield_now().await;
    }
}

impl Watch {
    pub(super) fn new(fd: RawFd) -> Self {
        Self::on(core().readiness.clone(), fd)
    }
}

#[cfg(test)]
mod tests;
