//! The timers of a core, rung by its ring.
//!
//! In: how long to wait. Out: a wake-up then. Called by the waist on tokio-uring. tokio's own timers wake their thread by an
//! eventfd whenever one is set that is due before all others, even by that thread itself: a write(2) and a turn of the
//! loop for nothing, four times in every answer. Here the ring is told, with the next submission. Invariants: nobody is
//! woken early; a timer that is taken back costs at most one ring for nobody.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use io_uring::{cqueue, opcode, types::Timespec};
use tokio_uring::{OneshotOutputTransform, UnsubmittedOneshot};

/// What timers are rounded up to: those of one millisecond ring together.
const TICK: Duration = Duration::from_millis(1);
/// No ring is set for longer; whoever waits longer is rung for once more. Far beyond every deadline here.
const RING_MAX: Duration = Duration::from_secs(3600);

thread_local! {
    static TIMERS: RefCell<Timers> = RefCell::new(Timers::new(Instant::now()));
}

/// Milliseconds since the core's first timer.
type Tick = u64;

struct Timers {
    began: Instant,
    /// Who waits, by tick and number.
    waiting: BTreeMap<(Tick, u64), Waker>,
    /// Of the next timer.
    number: u64,
    /// When the ring is going to ring. Each is earlier than those before it when it is added, so that there are few.
    rings: BTreeSet<Tick>,
}

impl Timers {
    fn new(began: Instant) -> Self {
        Self { began, waiting: BTreeMap::new(), number: 0, rings: BTreeSet::new() }
    }

    /// The last tick that is over.
    fn tick(&self, now: Instant) -> Tick {
        now.saturating_duration_since(self.began).as_millis().try_into().unwrap_or(Tick::MAX)
    }

    /// The first tick that is not before `time` from `now`.
    fn due(&self, now: Instant, time: Duration) -> Tick {
        let since = now.saturating_duration_since(self.began).saturating_add(time);
        since.as_nanos().div_ceil(TICK.as_nanos()).try_into().unwrap_or(Tick::MAX)
    }

    /// The ring to set so that the first who waits is not forgotten, if there is none yet.
    fn ring(&mut self, now: Instant) -> Option<(Tick, Duration)> {
        let &(first, _) = self.waiting.keys().next()?;
        if self.rings.first().is_some_and(|&ring| ring <= first) {
            return None;
        }
        let since = now.saturating_duration_since(self.began);
        let wait = Duration::from_millis(first).saturating_sub(since).min(RING_MAX);
        let tick = self.due(now, wait);
        // A ring that is set already comes no later than this.
        self.rings.insert(tick).then_some((tick, wait))
    }

    /// Takes out those who need wait no longer.
    fn take_due(&mut self, now: Instant) -> BTreeMap<(Tick, u64), Waker> {
        let next = (self.tick(now).saturating_add(1), 0);
        let later = self.waiting.split_off(&next);
        std::mem::replace(&mut self.waiting, later)
    }
}

/// The future of a wait; see the module's description.
pub(super) struct Sleep {
    time: Duration,
    /// Once it was polled.
    place: Option<(Tick, u64)>,
}

impl Sleep {
    /// Waits for `time` from the first poll on.
    pub(super) fn new(time: Duration) -> Self {
        Self { time, place: None }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let (now, time) = (Instant::now(), self.time);
        // Wakers that are of no more use are dropped outside: one may own the task that owns another timer.
        let (ring, waker, is_over) = TIMERS.with_borrow_mut(|timers| {
            let place = *self.place.get_or_insert_with(|| {
                timers.number += 1;
                (timers.due(now, time), timers.number)
            });
            if time.is_zero() || timers.tick(now) >= place.0 {
                return (None, timers.waiting.remove(&place), true);
            }
            let replaced = match timers.waiting.get_mut(&place) {
                Some(waker) if waker.will_wake(cx.waker()) => None,
                Some(waker) => Some(std::mem::replace(waker, cx.waker().clone())),
                None => timers.waiting.insert(place, cx.waker().clone()),
            };
            (timers.ring(now), replaced, false)
        });
        if let Some((tick, wait)) = ring {
            set_ring(tick, wait);
        }
        drop(waker);
        if is_over { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            // At the end of a thread its timers may be gone first. The waker is dropped outside, as above.
            let waker = TIMERS.try_with(|timers| timers.borrow_mut().waiting.remove(&place));
            drop(waker);
        }
    }
}

/// Has the ring ring after `wait`, which ends at `tick`.
fn set_ring(tick: Tick, wait: Duration) {
    let time = Box::new(Timespec::new().sec(wait.as_secs()).nsec(wait.subsec_nanos()));
    let entry = opcode::Timeout::new(&*time).build();
    // The ring owns the time until it has rung.
    let rung = UnsubmittedOneshot::new(time, Rung, entry).submit();
    tokio_uring::spawn(async move {
        let _ = rung.await;
        ring(tick);
    });
}

fn ring(tick: Tick) {
    let now = Instant::now();
    let (due, next) = TIMERS.with_borrow_mut(|timers| {
        timers.rings.remove(&tick);
        (timers.take_due(now), timers.ring(now))
    });
    due.into_values().for_each(Waker::wake);
    if let Some((tick, wait)) = next {
        set_ring(tick, wait);
    }
}

struct Rung;

impl OneshotOutputTransform for Rung {
    type Output = io::Result<()>;
    type StoredData = Box<Timespec>;

    /// ETIME is what a timer ends with (io_uring_enter(2)); nothing depends on it.
    fn transform_oneshot_output(self, _: Box<Timespec>, _: cqueue::Entry) -> Self::Output {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn wait(timers: &mut Timers, tick: Tick) {
        timers.number += 1;
        timers.waiting.insert((tick, timers.number), Waker::noop().clone());
    }

    #[test]
    fn ticks_are_never_early() {
        let began = Instant::now();
        let timers = Timers::new(began);
        assert_eq!(timers.due(began, Duration::ZERO), 0);
        assert_eq!(timers.due(began, Duration::from_nanos(1)), 1);
        assert_eq!(timers.due(began + MS / 2, MS), 2);
        assert_eq!(timers.tick(began + 2 * MS - Duration::from_nanos(1)), 1);
        assert_eq!(timers.due(began, Duration::MAX), Tick::MAX);
    }

    #[test]
    fn one_ring_serves_all_that_wait_longer() {
        let began = Instant::now();
        let mut timers = Timers::new(began);
        assert_eq!(timers.ring(began), None, "nobody waits");
        wait(&mut timers, 60_000);
        assert_eq!(timers.ring(began), Some((60_000, 60_000 * MS)));
        wait(&mut timers, 5);
        assert_eq!(timers.ring(began), Some((5, 5 * MS)));
        for tick in 5..100 {
            wait(&mut timers, tick);
            assert_eq!(timers.ring(began), None);
        }
        // At 7 ms those of 5 to 7 are due, and the next ring is for 8.
        timers.rings.remove(&5);
        let now = began + 7 * MS;
        assert_eq!(timers.take_due(now).len(), 4);
        assert_eq!(timers.ring(now), Some((8, MS)));
        assert_eq!(timers.rings, [8, 60_000].into());
    }

    #[test]
    fn a_wait_beyond_a_ring_is_rung_for_again() {
        let began = Instant::now();
        let mut timers = Timers::new(began);
        wait(&mut timers, Tick::MAX);
        assert_eq!(timers.ring(began), Some((3_600_000, RING_MAX)));
        assert_eq!(timers.ring(began + MS), None);
        timers.rings.clear();
        assert!(timers.take_due(began + RING_MAX).is_empty());
        assert_eq!(timers.ring(began + RING_MAX), Some((7_200_000, RING_MAX)));
    }
}
