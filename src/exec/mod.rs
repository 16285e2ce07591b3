//! The narrow waist under everything that waits: one pinned thread per core, each with its own executor.
//!
//! In: a list of cores, a backend and one entry function. Out: that function runs once on every core, and from inside
//! it [`spawn`], [`post`], [`sleep`], [`timeout`], [`yield_now`], [`blocking`] and [`Watch`] work. Everything above
//! this room is written against these names; nothing above knows which backend runs.
//!
//! Invariant: a task never leaves the core it was spawned on. Work crosses cores only as a closure through [`post`].

mod affinity;
mod budget;
mod effort;
mod mail;
mod on_glommio;
#[cfg(test)]
pub(crate) mod on_simulator;
mod on_tokio_uring;
mod patience;

use std::{
    cell::RefCell,
    fmt,
    future::Future,
    io,
    os::fd::RawFd,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

pub use budget::Budget;
pub use effort::Effort;
use futures_util::future::select;
pub use mail::{Mail, MailFull, Mesh};
#[cfg(test)]
pub use on_simulator::Instant;
pub use patience::Patience;
/// The clock of everything that a simulation may run in virtual time.
#[cfg(not(test))]
pub use std::time::Instant;

/// Which executor runs on each core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Backend {
    /// tokio-uring: a tokio current-thread runtime whose readiness comes from an io_uring.
    #[default]
    TokioUring,
    /// glommio: an io_uring executor of its own.
    Glommio,
    /// Virtual time, on one thread.
    #[cfg(test)]
    #[value(skip)]
    Simulator,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Backend::TokioUring => "tokio-uring",
            Backend::Glommio => "glommio",
            #[cfg(test)]
            Backend::Simulator => "simulator",
        })
    }
}

/// What [`run`] needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// The executor of every core.
    pub backend: Backend,
    /// CPU numbers as the kernel counts them; one thread is started for each and pinned to it, unless it has to share it
    /// with other processes: then the kernel may place it on any of these. Not empty.
    pub cpus: Vec<usize>,
}

/// Why the cores could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// `--cores` names no CPU.
    #[error("no CPU to run on: name at least one with --cores")]
    NoCpu,
    /// The kernel does not offer this CPU to the process.
    #[error("CPU {cpu} is not available to this process (available: {available}); change --cores")]
    NoSuchCpu {
        /// What was asked for.
        cpu: usize,
        /// What the affinity mask of the process offers.
        available: String,
    },
    /// The executor refused to start.
    #[error(
        "{backend} could not start on CPU {cpu}: {source} (io_uring may be disabled: see `sysctl kernel.io_uring_disabled`, or the limit of locked memory too low: see `ulimit -l`)"
    )]
    Executor {
        /// Which executor.
        backend: Backend,
        /// On which CPU.
        cpu: usize,
        /// What it said.
        source: io::Error,
    },
}

/// The CPUs that the affinity mask of this process allows, in rising order.
pub fn available_cpus() -> Vec<usize> {
    core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect()
}

/// A core of this process: its index in [`Config::cpus`], not the kernel's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Core(pub usize);

struct Here {
    backend: Backend,
    core: Core,
    mesh: Mesh,
    cpus: Arc<[usize]>,
}

thread_local! {
    static HERE: RefCell<Option<Here>> = const { RefCell::new(None) };
}

/// Runs `entry` once on every core and returns when all have ended.
///
/// # Errors
/// [`StartError`] when a CPU does not exist or an executor cannot be made; `entry` is dropped on the cores that run
/// already.
pub fn run<F, Fut>(config: &Config, entry: F) -> Result<(), StartError>
where
    F: Fn(Core) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + 'static,
{
    let available = available_cpus();
    if config.cpus.is_empty() {
        return Err(StartError::NoCpu);
    }
    for &cpu in &config.cpus {
        if !available.contains(&cpu) {
            let available = available.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
            return Err(StartError::NoSuchCpu { cpu, available });
        }
    }
    let mesh = Mesh::new(config.cpus.len());
    let entry = Arc::new(entry);
    let backend = config.backend;
    let cpus: Arc<[usize]> = config.cpus.clone().into();
    let threads: Vec<_> = config
        .cpus
        .iter()
        .enumerate()
        .map(|(index, &cpu)| {
            let (mesh, entry, cpus) = (mesh.clone(), entry.clone(), cpus.clone());
            let started = std::thread::Builder::new().name(format!("plait-core-{index}")).spawn(move || {
                affinity::settle(cpu, &cpus);
                run_core(backend, (cpu, cpus), Core(index), mesh, entry)
            });
            (cpu, started)
        })
        .collect();
    let mut outcome = Ok(());
    for (cpu, thread) in threads {
        let ended = match thread {
            Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(source) => Err(StartError::Executor { backend, cpu, source }),
        };
        outcome = outcome.and(ended);
    }
    outcome
}

fn run_core<F, Fut>(
    backend: Backend,
    (cpu, cpus): (usize, Arc<[usize]>),
    core: Core,
    mesh: Mesh,
    entry: Arc<F>,
) -> Result<(), StartError>
where
    F: Fn(Core) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + 'static,
{
    HERE.with(|here| *here.borrow_mut() = Some(Here { backend, core, mesh: mesh.clone(), cpus }));
    let inbox = mesh.clone();
    let main = async move {
        let closing = inbox.clone();
        spawn(async move { inbox.deliver(core).await });
        select(pin!(entry(core)), pin!(closing.closed())).await;
    };
    let outcome = match backend {
        Backend::TokioUring => on_tokio_uring::run(main),
        Backend::Glommio => on_glommio::run(main),
        #[cfg(test)]
        Backend::Simulator => unreachable!("a simulation is begun by on_simulator::simulate"),
    };
    if outcome.is_err() {
        mesh.close();
    }
    HERE.with(|here| *here.borrow_mut() = None);
    outcome.map_err(|source| StartError::Executor { backend, cpu, source })
}

fn here<T>(read: impl FnOnce(&Here) -> T) -> T {
    HERE.with(|here| read(here.borrow().as_ref().expect("called on a core's thread, inside exec::run")))
}

fn backend() -> Backend {
    here(|here| here.backend)
}

/// The core this task runs on.
pub fn core() -> Core {
    here(|here| here.core)
}

/// How many cores run.
pub fn cores() -> usize {
    here(|here| here.mesh.cores())
}

/// The mesh of this run: a handle that may leave the executor's threads.
pub fn mesh() -> Mesh {
    here(|here| here.mesh.clone())
}

/// Starts a task on this core. It ends with its future, or with the executor.
pub fn spawn(task: impl Future<Output = ()> + 'static) {
    match backend() {
        Backend::TokioUring => on_tokio_uring::spawn(task),
        Backend::Glommio => on_glommio::spawn(task),
        #[cfg(test)]
        Backend::Simulator => on_simulator::spawn(task),
    }
}

/// Sends a closure to `core`, which runs it between two of its tasks; it may [`spawn`] there.
///
/// # Errors
/// [`MailFull`] gives the closure back when the core's bounded inbox is full.
pub fn post(core: Core, letter: Mail) -> Result<(), MailFull> {
    #[cfg(test)]
    let letter = if backend() == Backend::Simulator { on_simulator::signed(letter) } else { letter };
    here(|here| here.mesh.clone()).post(core, letter)
}

/// Waits for `time`; granularity is about 1 ms.
pub async fn sleep(time: Duration) {
    match backend() {
        Backend::TokioUring => on_tokio_uring::sleep(time).await,
        Backend::Glommio => on_glommio::sleep(time).await,
        #[cfg(test)]
        Backend::Simulator => on_simulator::sleep(time).await,
    }
}

/// The time given to [`timeout`] is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the deadline has passed")]
pub struct Elapsed;

/// Waits for `future`, at most for `time`. The future is dropped when the time is over.
pub async fn timeout<F: Future>(time: Duration, future: F) -> Result<F::Output, Elapsed> {
    let (mut future, mut bell) = (pin!(future), pin!(sleep(time)));
    std::future::poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Ok(output));
        }
        bell.as_mut().poll(cx).map(|()| Err(Elapsed))
    })
    .await
}

/// Lets every other ready task and the kernel's completions go first.
///
/// A loop that may never block (a fast source into a fast sink) calls this after a bounded amount of work.
pub async fn yield_now() {
    match backend() {
        Backend::TokioUring => on_tokio_uring::yield_now().await,
        Backend::Glommio => on_glommio::yield_now().await,
        #[cfg(test)]
        Backend::Simulator => on_simulator::yield_now().await,
    }
}

/// Runs a closure that may block (name resolution, a slow disk) on a thread that is not a core.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let cpus = here(|here| here.cpus.clone());
    let elsewhere = move || {
        affinity::leave(&cpus);
        work()
    };
    match backend() {
        Backend::TokioUring => on_tokio_uring::blocking(elsewhere).await,
        Backend::Glommio => on_glommio::blocking(elsewhere).await,
        #[cfg(test)]
        Backend::Simulator => elsewhere(),
    }
}

/// Fills `bytes` with randomness that nobody can guess: the kernel's, except in a simulation.
///
/// # Errors
/// The kernel has none.
pub fn fill_random(bytes: &mut [u8]) -> Result<(), getrandom::Error> {
    #[cfg(test)]
    if on_simulator::fill_random(bytes) {
        return Ok(());
    }
    getrandom::fill(bytes)
}

/// What to wait for on a descriptor. poll(2) names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// POLLIN: data, end of file or an error can be read.
    Read,
    /// POLLOUT: there is room to write, or an error to see.
    Write,
    /// POLLRDHUP: the peer closed its sending side, or the connection is gone. Pending data does not fire it.
    HangUp,
}

impl Interest {
    fn slot(self) -> usize {
        self as usize
    }

    fn poll_mask(self) -> u32 {
        let mask = match self {
            Interest::Read => libc::POLLIN,
            Interest::Write => libc::POLLOUT,
            Interest::HangUp => libc::POLLRDHUP,
        };
        mask as u32
    }
}

/// Readiness of one descriptor on this core.
///
/// At most one task waits for each [`Interest`] at a time. A wait that is dropped stays armed inside the `Watch` and
/// is used by the next one, so cancelling costs nothing; readiness may therefore be stale, and the caller tries its
/// system call again after every wake (level-triggered semantics, spurious wake-ups allowed).
///
/// Before a `Watch` with an armed wait is dropped its owner makes the descriptor ready for good (shutdown(2) does for
/// sockets): an armed poll holds the open file until it fires.
pub struct Watch {
    inner: Inner,
}

enum Inner {
    TokioUring(on_tokio_uring::Watch),
    Glommio(on_glommio::Watch),
    #[cfg(test)]
    Simulator(on_simulator::Watch),
}

impl Watch {
    /// Watches `fd`, which stays open at least as long as the `Watch`.
    pub fn new(fd: RawFd) -> Self {
        let inner = match backend() {
            Backend::TokioUring => Inner::TokioUring(on_tokio_uring::Watch::new(fd)),
            Backend::Glommio => Inner::Glommio(on_glommio::Watch::new(fd)),
            #[cfg(test)]
            Backend::Simulator => Inner::Simulator(on_simulator::Watch::new(fd)),
        };
        Self { inner }
    }

    /// Resolves when the descriptor may be ready.
    ///
    /// # Errors
    /// Only what the kernel says of the poll itself (EBADF, ENOMEM); the descriptor's own errors make it ready.
    pub fn ready(&self, interest: Interest) -> Ready<'_> {
        affinity::look();
        Ready { watch: self, interest }
    }
}

/// Future of [`Watch::ready`].
#[must_use = "a wait does nothing unless it is awaited"]
pub struct Ready<'a> {
    watch: &'a Watch,
    interest: Interest,
}

impl Future for Ready<'_> {
    type Output = io::Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &self.watch.inner {
            Inner::TokioUring(watch) => watch.poll_ready(self.interest, cx),
            Inner::Glommio(watch) => watch.poll_ready(self.interest, cx),
            #[cfg(test)]
            Inner::Simulator(watch) => watch.poll_ready(self.interest, cx),
        }
    }
}

#[cfg(test)]
mod tests;
