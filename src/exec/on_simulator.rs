//! The waist in virtual time, for tests: every task of every simulated process on one thread, in an order that a seed chooses.
//!
//! In: a seed and a main future. Out: the same run for the same seed. Called by `exec` and by the simulator of the whole
//! chain. Descriptors are real ones of the kernel's, in pairs between whose ends only the simulated network moves bytes:
//! their readiness changes by system calls of this thread alone, so it is as reproducible as the rest.
//!
//! Invariants: one task runs at a time; time passes while tasks run, a little at a time, and when none can run it jumps to
//! the next timer; a process that is frozen runs nothing, one that is killed leaves nothing behind.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    fmt,
    future::Future,
    io,
    ops::{Add, AddAssign, Sub},
    os::fd::{BorrowedFd, RawFd},
    pin::{Pin, pin},
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Backend, Core, HERE, Here, Interest, Mesh};

/// A run that takes more steps goes round in circles: the longest ones of honest seeds take a twentieth.
const STEPS_MAX: u64 = 20_000_000;
/// Time that a task takes for one step, at most: what a few system calls take.
const STEP_TIME_MAX: Duration = Duration::from_micros(8);
/// How much later than asked for a timer goes off, at most: the granularity that `exec::sleep` promises.
const TIMER_LATE_MAX: Duration = Duration::from_millis(1);

/// A simulated operating system process, or the world outside of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Process(pub(crate) u32);

/// The network, the clients and the one who does harm.
pub(crate) const WORLD: Process = Process(0);

thread_local! {
    static RUN: RefCell<Option<Rc<Run>>> = const { RefCell::new(None) };
}

struct Run {
    began: std::time::Instant,
    passed_ns: Cell<u64>,
    random: RefCell<fastrand::Rng>,
    tasks: RefCell<BTreeMap<u64, Rc<Task>>>,
    /// Tasks, timers and watches that were ever made.
    made: Cell<u64>,
    ready: Arc<Ready>,
    /// Tasks that let all others go first.
    yielded: RefCell<Vec<Waker>>,
    timers: RefCell<BTreeMap<(u64, u64), Waker>>,
    waits: RefCell<BTreeMap<WaitKey, Wait>>,
    armed: RefCell<Armed>,
    process: Cell<Process>,
    frozen: RefCell<BTreeSet<Process>>,
    killed: RefCell<BTreeSet<Process>>,
    steps: Cell<u64>,
}

struct Task {
    process: Process,
    future: RefCell<Option<Pin<Box<dyn Future<Output = ()>>>>>,
}

/// Tasks to be polled. A waker may be dropped or used anywhere, so this is what it holds.
#[derive(Default)]
struct Ready(Mutex<BTreeSet<u64>>);

struct Wakes {
    ready: Arc<Ready>,
    task: u64,
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.ready.set().insert(self.task);
    }
}

impl Ready {
    fn set(&self) -> std::sync::MutexGuard<'_, BTreeSet<u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which watch, and for what.
type WaitKey = (u64, usize);

enum Wait {
    Armed(Waker),
    /// Nobody has asked since.
    Fired,
}

/// What poll(2) is asked, and for which waits.
#[derive(Default)]
struct Armed {
    asked: Vec<PollFd<'static>>,
    watches: Vec<WaitKey>,
}

fn run_here() -> Option<Rc<Run>> {
    RUN.try_with(|run| run.try_borrow().ok().and_then(|run| run.clone())).ok().flatten()
}

fn run() -> Rc<Run> {
    run_here().expect("called inside of a simulation")
}

/// Runs `main` in the world, with room for mail between `cores`, and returns its output and how many steps that took.
/// Whatever else runs then is dropped.
pub(crate) fn simulate<T>(seed: u64, cores: usize, main: impl Future<Output = T>) -> (T, u64) {
    let this = Rc::new(Run {
        began: std::time::Instant::now(),
        passed_ns: Cell::new(0),
        random: RefCell::new(fastrand::Rng::with_seed(seed)),
        tasks: RefCell::default(),
        made: Cell::new(0),
        ready: Arc::default(),
        yielded: RefCell::default(),
        timers: RefCell::default(),
        waits: RefCell::default(),
        armed: RefCell::default(),
        process: Cell::new(WORLD),
        frozen: RefCell::default(),
        killed: RefCell::default(),
        steps: Cell::new(0),
    });
    RUN.set(Some(this.clone()));
    HERE.set(Some(Here {
        backend: Backend::Simulator,
        core: Core(0),
        mesh: Mesh::new(cores),
        cpus: Arc::default(),
    }));
    // Also after a panic: the next run on this thread is another.
    let _end = End(this.clone());
    let output = this.drive(main);
    (output, this.steps.get())
}

struct End(Rc<Run>);

impl Drop for End {
    fn drop(&mut self) {
        let tasks: BTreeSet<Process> = self.0.tasks.borrow().values().map(|task| task.process).collect();
        tasks.into_iter().for_each(|process| self.0.kill(process));
        self.0.kill(WORLD);
        RUN.set(None);
        HERE.set(None);
    }
}

impl Run {
    fn number(&self) -> u64 {
        self.made.set(self.made.get() + 1);
        self.made.get()
    }

    fn drive<T>(&self, main: impl Future<Output = T>) -> T {
        let mut main = pin!(main);
        let (main_number, mut first) = (self.number(), true);
        let main_waker = self.waker(main_number);
        loop {
            self.fire_timers();
            let Some(next) = self.next_task(main_number, first) else {
                self.wait_for_more();
                continue;
            };
            first = false;
            self.steps.set(self.steps.get() + 1);
            assert!(self.steps.get() < STEPS_MAX, "it goes round in circles");
            if next == main_number {
                self.process.set(WORLD);
                if let Poll::Ready(output) = main.as_mut().poll(&mut Context::from_waker(&main_waker)) {
                    return output;
                }
            } else {
                self.poll_task(next);
            }
            let step = self.random.borrow_mut().u64(..STEP_TIME_MAX.as_nanos() as u64);
            self.passed_ns.set(self.passed_ns.get() + step);
        }
    }

    fn waker(&self, task: u64) -> Waker {
        Arc::new(Wakes { ready: self.ready.clone(), task }).into()
    }

    /// Any of the tasks that can run.
    fn next_task(&self, main: u64, first: bool) -> Option<u64> {
        if first {
            return Some(main);
        }
        let mut ready = self.ready.set();
        let (tasks, frozen) = (self.tasks.borrow(), self.frozen.borrow());
        ready.retain(|number| *number == main || tasks.contains_key(number));
        let runnable: Vec<u64> = ready
            .iter()
            .copied()
            .filter(|number| tasks.get(number).is_none_or(|task| !frozen.contains(&task.process)))
            .collect();
        let next = self.random.borrow_mut().choice(runnable)?;
        ready.remove(&next);
        Some(next)
    }

    fn poll_task(&self, number: u64) {
        let Some(task) = self.tasks.borrow().get(&number).cloned() else { return };
        // Taken out: a task may end its own process.
        let Some(mut future) = task.future.take() else { return };
        self.process.set(task.process);
        let waker = self.waker(number);
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(()) => {
                self.tasks.borrow_mut().remove(&number);
                drop(future);
            }
            Poll::Pending => *task.future.borrow_mut() = Some(future),
        }
    }

    fn fire_timers(&self) {
        let now = self.passed_ns.get();
        loop {
            let mut timers = self.timers.borrow_mut();
            match timers.first_entry() {
                Some(timer) if timer.key().0 <= now => timer.remove().wake(),
                _ => return,
            }
        }
    }

    /// No task can run: those that have yielded may again, then those whose descriptors are ready, then time jumps.
    fn wait_for_more(&self) {
        let any_ready = self.look_at_descriptors();
        let yielded = std::mem::take(&mut *self.yielded.borrow_mut());
        if any_ready || !yielded.is_empty() {
            yielded.into_iter().for_each(Waker::wake);
            return;
        }
        let next = self.timers.borrow().first_key_value().map(|((at, _), _)| *at);
        self.passed_ns.set(next.expect("nothing can happen any more"));
    }

    /// Wakes all who wait for a descriptor that is ready; whether there were any.
    fn look_at_descriptors(&self) -> bool {
        let Armed { asked, watches } = &mut *self.armed.borrow_mut();
        let ready = poll(asked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap_or(0);
        let mut left = ready;
        let mut index = 0;
        while left > 0 {
            if asked[index].revents().is_empty() {
                index += 1;
                continue;
            }
            left -= 1;
            asked.swap_remove(index);
            let wait = self.waits.borrow_mut().insert(watches.swap_remove(index), Wait::Fired);
            if let Some(Wait::Armed(waker)) = wait {
                waker.wake();
            }
        }
        ready > 0
    }

    fn spawn(&self, process: Process, future: impl Future<Output = ()> + 'static) {
        if self.killed.borrow().contains(&process) {
            return;
        }
        let number = self.number();
        let task = Rc::new(Task { process, future: RefCell::new(Some(Box::pin(future))) });
        self.tasks.borrow_mut().insert(number, task);
        self.ready.set().insert(number);
    }

    fn kill(&self, process: Process) {
        self.killed.borrow_mut().insert(process);
        self.frozen.borrow_mut().remove(&process);
        let dying: Vec<Rc<Task>> = self
            .tasks
            .borrow_mut()
            .extract_if(.., |_, task| task.process == process)
            .map(|task| task.1)
            .collect();
        // What its tasks start as they go is its own.
        let killer = self.process.replace(process);
        for task in dying {
            let future = task.future.take();
            drop(future);
        }
        self.process.set(killer);
    }
}

/// Opens the mail of `core` in the process that calls.
pub(crate) fn open_mail(core: Core) {
    let mesh = super::mesh();
    spawn(async move { mesh.deliver(core).await });
}

/// A letter whose tasks belong to the process that writes it, whoever opens it.
pub(super) fn signed(letter: super::Mail) -> super::Mail {
    let process = run().process.get();
    Box::new(move || {
        let run = run();
        let opener = run.process.replace(process);
        letter();
        run.process.set(opener);
    })
}

/// A process that runs nothing yet.
pub(crate) fn new_process() -> Process {
    Process(run().number() as u32)
}

/// Starts a task of `process`; nothing if that was killed.
pub(crate) fn spawn_in(process: Process, future: impl Future<Output = ()> + 'static) {
    run().spawn(process, future);
}

/// Ends `process`: its tasks are dropped where they are, which closes its connections.
pub(crate) fn kill(process: Process) {
    run().kill(process);
}

/// Stops or continues `process`, as SIGSTOP and SIGCONT do.
pub(crate) fn freeze(process: Process, is_frozen: bool) {
    let run = run();
    if is_frozen {
        run.frozen.borrow_mut().insert(process);
    } else {
        run.frozen.borrow_mut().remove(&process);
    }
}

/// Tasks of `process` that have not ended.
pub(crate) fn tasks_of(process: Process) -> usize {
    run().tasks.borrow().values().filter(|task| task.process == process).count()
}

/// The seed's random numbers.
pub(crate) fn random<T>(draw: impl FnOnce(&mut fastrand::Rng) -> T) -> T {
    draw(&mut run().random.borrow_mut())
}

/// Virtual time since the begin of the run.
pub(crate) fn passed() -> Duration {
    Duration::from_nanos(run().passed_ns.get())
}

/// Fills `bytes` by the seed, if a simulation runs on this thread.
pub(super) fn fill_random(bytes: &mut [u8]) -> bool {
    let run = run_here();
    if let Some(run) = &run {
        run.random.borrow_mut().fill(bytes);
    }
    run.is_some()
}

pub(super) fn spawn(task: impl Future<Output = ()> + 'static) {
    let run = run();
    run.spawn(run.process.get(), task);
}

pub(super) fn sleep(time: Duration) -> impl Future<Output = ()> {
    Sleep { time: Some(time), key: None }
}

/// The time counts from the first poll, as it does on the executors.
struct Sleep {
    time: Option<Duration>,
    key: Option<(u64, u64)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let run = run();
        if let Some(time) = self.time.take() {
            let late = run.random.borrow_mut().u64(..TIMER_LATE_MAX.as_nanos() as u64);
            let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
            let at = run.passed_ns.get().saturating_add(time).saturating_add(late);
            self.key = Some((at, run.number()));
        }
        match self.key {
            Some(key) if key.0 > run.passed_ns.get() => {
                run.timers.borrow_mut().insert(key, cx.waker().clone());
                Poll::Pending
            }
            _ => Poll::Ready(()),
        }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let (Some(run), Some(key)) = (run_here(), self.key) {
            run.timers.borrow_mut().remove(&key);
        }
    }
}

pub(super) async fn yield_now() {
    let mut has_yielded = false;
    std::future::poll_fn(move |cx| {
        if std::mem::replace(&mut has_yielded, true) {
            return Poll::Ready(());
        }
        run().yielded.borrow_mut().push(cx.waker().clone());
        Poll::Pending
    })
    .await;
}

pub(super) struct Watch {
    number: u64,
    fd: RawFd,
}

impl Watch {
    pub(super) fn new(fd: RawFd) -> Self {
        Self { number: run().number(), fd }
    }

    pub(super) fn poll_ready(&self, interest: Interest, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let run = run();
        let mut waits = run.waits.borrow_mut();
        let key = (self.number, interest.slot());
        match waits.get_mut(&key) {
            Some(Wait::Fired) => {
                waits.remove(&key);
                return Poll::Ready(Ok(()));
            }
            Some(Wait::Armed(waker)) => waker.clone_from(cx.waker()),
            None => {
                waits.insert(key, Wait::Armed(cx.waker().clone()));
                let flags = PollFlags::from_bits_retain(interest.poll_mask() as u16);
                // SAFETY: a watch lives no longer than its descriptor, and takes its waits away when it goes.
                let asked = PollFd::from_borrowed_fd(unsafe { BorrowedFd::borrow_raw(self.fd) }, flags);
                let mut armed = run.armed.borrow_mut();
                armed.asked.push(asked);
                armed.watches.push(key);
            }
        }
        Poll::Pending
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let Some(run) = run_here() else { return };
        let gone: Vec<Wait> =
            (0..3).filter_map(|slot| run.waits.borrow_mut().remove(&(self.number, slot))).collect();
        if gone.iter().any(|wait| matches!(wait, Wait::Armed(_))) {
            let Armed { asked, watches } = &mut *run.armed.borrow_mut();
            for index in (0..watches.len()).rev() {
                if watches[index].0 == self.number {
                    asked.swap_remove(index);
                    watches.swap_remove(index);
                }
            }
        }
    }
}

/// [`std::time::Instant`], which tells virtual time where a simulation runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(std::time::Instant);

impl Instant {
    /// See [`std::time::Instant::now`].
    pub fn now() -> Self {
        match run_here() {
            Some(run) => Self(run.began + Duration::from_nanos(run.passed_ns.get())),
            None => Self(std::time::Instant::now()),
        }
    }

    /// See [`std::time::Instant::elapsed`].
    pub fn elapsed(&self) -> Duration {
        Self::now() - *self
    }

    /// See [`std::time::Instant::duration_since`].
    pub fn duration_since(&self, earlier: Self) -> Duration {
        self.0.duration_since(earlier.0)
    }

    /// See [`std::time::Instant::saturating_duration_since`].
    pub fn saturating_duration_since(&self, earlier: Self) -> Duration {
        self.0.saturating_duration_since(earlier.0)
    }
}

impl fmt::Debug for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, time: Duration) -> Self {
        Self(self.0 + time)
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, time: Duration) {
        self.0 += time;
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;

    fn sub(self, time: Duration) -> Self {
        Self(self.0 - time)
    }
}

impl Sub for Instant {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.0 - earlier.0
    }
}
