//! Where the thread of a core runs: on the CPU that it is pinned to, as long as that has time for it.
//!
//! In: the CPU of a core and those of its process; how long its thread ran, and how long it waited to run, as the
//! scheduler counts them. Out: the thread's affinity. A thread that waits for its CPU shares it with another process: then
//! the kernel may move it among the CPUs of its process, which balances what pinned threads cannot; when it no longer
//! waits, it goes back. Called by the executors' threads. Invariant: an idle thread is never woken for this.

use std::{
    cell::{Cell, RefCell},
    fs::File,
    time::{Duration, Instant},
};

use rustix::thread::{CpuSet, sched_setaffinity};

/// Waits of a core's tasks between two looks at the clock: 16 take a busy core a fraction of a millisecond.
const WAITS: u32 = 16;
/// What is judged: several of the scheduler's slices (some 3 ms each), and short enough that a download of a tenth of a
/// second gains by it.
const WINDOW: Duration = Duration::from_millis(10);
/// A window that took longer was mostly idle, and an idle thread has nothing to complain of.
const WINDOW_MAX: Duration = Duration::from_millis(40);
/// A thread that waits for so much of a window shares its CPU. Waking a sleeping thread counts as a wait, too: 15 to 35
/// microseconds, which is less than this unless it sleeps thousands of times a second.
const WAIT_MIN: Duration = Duration::from_millis(2);
/// And so much of the time in which it had something to do.
const SHARED: f64 = 0.25;
/// It has its CPU to itself below this.
const ALONE: f64 = 0.05;
/// So long it must have run, nearly without a wait, before it is pinned again: it loses a window, a five-hundredth of this,
/// if its own CPU is not free yet.
const CALM: Duration = Duration::from_secs(5);

thread_local! {
    static WAITED: Cell<u32> = const { Cell::new(0) };
    static PLACE: RefCell<Option<Place>> = const { RefCell::new(None) };
}

/// The thread of a core, and where it may go.
struct Place {
    own: usize,
    all: CpuSet,
    /// /proc/thread-self/schedstat of this thread: nanoseconds that it ran, and waited to run (Linux
    /// Documentation/scheduler/sched-stats.rst).
    counts: File,
    contest: Contest,
}

/// Pins this thread to `own`, which is one of `cpus`.
pub(super) fn settle(own: usize, cpus: &[usize]) {
    pin(own);
    // A kernel without these counts (CONFIG_SCHED_INFO) leaves the thread where it is.
    if cpus.len() > 1
        && let Ok(counts) = File::open("/proc/thread-self/schedstat")
        && let Some((ran, waited)) = read(&counts)
    {
        let all = set(cpus);
        let contest = Contest::new(Instant::now(), ran, waited);
        PLACE.set(Some(Place { own, all, counts, contest }));
    }
}

/// Lets this thread, which a core has started for what may block, run on all `cpus`: it would be pinned beside its core.
pub(super) fn leave(cpus: &[usize]) {
    thread_local! {
        static HAS_LEFT: Cell<bool> = const { Cell::new(false) };
    }
    if !HAS_LEFT.replace(true) {
        // As in `judge`.
        let _ = sched_setaffinity(None, &set(cpus));
    }
}

fn set(cpus: &[usize]) -> CpuSet {
    let mut set = CpuSet::new();
    cpus.iter().filter(|&&cpu| cpu < CpuSet::MAX_CPU).for_each(|&cpu| set.set(cpu));
    set
}

/// A task of this core waits for something: now and then it is judged whether the thread should move.
pub(super) fn look() {
    let waits = WAITED.get() + 1;
    WAITED.set(waits % WAITS);
    if waits == WAITS {
        PLACE.with_borrow_mut(|place| place.as_mut().map(Place::judge));
    }
}

fn pin(cpu: usize) {
    core_affinity::set_for_current(core_affinity::CoreId { id: cpu });
}

fn read(counts: &File) -> Option<(Duration, Duration)> {
    let mut text = [0; 64];
    let len = rustix::io::pread(counts, &mut text, 0).ok()?;
    let text = str::from_utf8(&text[..len]).ok()?;
    let mut numbers = text.split_ascii_whitespace().map_while(|number| number.parse().ok());
    Some((Duration::from_nanos(numbers.next()?), Duration::from_nanos(numbers.next()?)))
}

impl Place {
    fn judge(&mut self) {
        let now = Instant::now();
        if !self.contest.is_due(now) {
            return;
        }
        let Some((ran, waited)) = read(&self.counts) else { return };
        match self.contest.judge(now, ran, waited) {
            Some(Move::Roam) => {
                // The kernel refuses only CPUs that were taken away meanwhile; then everything stays.
                let _ = sched_setaffinity(None, &self.all);
                tracing::debug!(
                    cpu = self.own,
                    "the CPU is shared with others: the kernel may place its thread elsewhere"
                );
            }
            Some(Move::Return) => {
                pin(self.own);
                tracing::debug!(cpu = self.own, "nothing waits any more: the thread is pinned again");
            }
            None => {}
        }
    }
}

/// Where a thread should go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    /// To whatever CPU of its process is free.
    Roam,
    /// Back to its own.
    Return,
}

/// Whether a thread has its CPU to itself. No I/O, and no clock of its own.
#[derive(Debug)]
struct Contest {
    /// When the window began, and the counts then.
    began: Instant,
    ran: Duration,
    waited: Duration,
    /// Of a thread that roams: how long it has run since it last had to wait.
    roams: Option<Duration>,
}

impl Contest {
    fn new(began: Instant, ran: Duration, waited: Duration) -> Self {
        Self { began, ran, waited, roams: None }
    }

    /// Whether the window is over.
    fn is_due(&self, now: Instant) -> bool {
        now - self.began >= WINDOW
    }

    /// Ends the window, with the counts as they are now.
    fn judge(&mut self, now: Instant, ran: Duration, waited: Duration) -> Option<Move> {
        let length = now - self.began;
        let run = ran.saturating_sub(self.ran);
        let wait = waited.saturating_sub(self.waited);
        (self.began, self.ran, self.waited) = (now, ran, waited);
        if length > WINDOW_MAX || (run + wait).is_zero() {
            return None;
        }
        let share = wait.div_duration_f64(run + wait);
        match &mut self.roams {
            None => {
                let is_shared = wait >= WAIT_MIN && share >= SHARED;
                self.roams = is_shared.then_some(Duration::ZERO);
                is_shared.then_some(Move::Roam)
            }
            Some(calm) => {
                *calm = if share < ALONE { *calm + run } else { Duration::ZERO };
                let is_alone = *calm >= CALM;
                if is_alone {
                    self.roams = None;
                }
                is_alone.then_some(Move::Return)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Windows of (length, run, wait) in milliseconds, and what is decided at the end of each.
    struct Windows {
        contest: Contest,
        now: Instant,
        ran: Duration,
        waited: Duration,
    }

    impl Windows {
        fn new() -> Self {
            let now = Instant::now();
            Self { contest: Contest::new(now, MS, MS), now, ran: MS, waited: MS }
        }

        fn pass(&mut self, length: u32, run: u32, wait: u32) -> Option<Move> {
            self.now += length * MS;
            self.ran += run * MS;
            self.waited += wait * MS;
            self.contest.judge(self.now, self.ran, self.waited)
        }
    }

    #[test]
    fn a_thread_that_waits_roams_until_it_waits_no_more() {
        let mut windows = Windows::new();
        assert_eq!(windows.pass(10, 8, 1), None, "a little waiting");
        assert_eq!(windows.pass(10, 4, 3), Some(Move::Roam));
        assert_eq!(windows.pass(10, 4, 3), None, "it roams already");
        for _ in 0..199 {
            assert_eq!(windows.pass(25, 25, 0), None);
        }
        assert_eq!(windows.pass(10, 4, 3), None, "not calm yet, after all");
        for _ in 0..199 {
            assert_eq!(windows.pass(25, 25, 1), None);
        }
        assert_eq!(windows.pass(25, 25, 1), Some(Move::Return));
        assert_eq!(windows.pass(10, 4, 3), Some(Move::Roam));
    }

    #[test]
    fn an_idle_thread_is_left_alone() {
        let mut windows = Windows::new();
        assert_eq!(windows.pass(10_000, 5, 9), None, "rare wake-ups over ten seconds");
        assert_eq!(windows.pass(10, 1, 1), None, "wake-ups on a CPU that sleeps");
        assert_eq!(windows.pass(10, 0, 0), None);
        assert!(!windows.contest.is_due(windows.now + 9 * MS));
        assert!(windows.contest.is_due(windows.now + 10 * MS));
    }

    #[test]
    fn counts_of_this_thread_are_read() {
        let counts = File::open("/proc/thread-self/schedstat").unwrap();
        let (before, _) = read(&counts).unwrap();
        let until = Instant::now() + 20 * MS;
        while Instant::now() < until {}
        assert!(read(&counts).unwrap().0 > before);
    }
}
