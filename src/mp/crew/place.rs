//! What a transfer has of each path: its lanes, how many it should have, and what was learned of the path meanwhile.
//!
//! In: lanes that come and go, and what looks at them show. Out: which of them carry fresh frames, and how many are missing.
//! Called by the crew, and by producers through their [`Slot`]. Invariants: a slot is one lane's or one dial's; the first
//! `wanted` slots carry fresh frames, those of lanes that were replaced left out.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;

use crate::{
    exec::Instant,
    http::account::PathShare,
    lanes::{DialError, PathStatus},
    mp::looks::Verdict,
};

/// One bit each in [`Place::slots`]; as many as `--lanes` allows.
const SLOTS_MAX: usize = 64;
/// Cold lanes of a path replaced in one transfer at most: there is one warm one for each, and both have a slot.
const REPLACED_MAX: u32 = SLOTS_MAX as u32 / 2;
/// A lane that has brought so much in a transfer is warm: as the pool has it.
const WARM_BYTES: u64 = 1 << 20;

/// What the last try to get a lane said of a path: a number of [`Place::outlook`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Outlook {
    /// A lane was seated, or none was tried.
    Open,
    /// No lane could be had.
    Failed,
    /// The same, and nobody has said why: there was no answer in time.
    Unanswered,
    /// The upstream's own host says that no process listens there.
    NobodyThere,
}

/// What a transfer has of one path.
#[derive(Debug)]
pub(in crate::mp) struct Place {
    pub(super) path: Arc<PathStatus>,
    pub(super) outlook: AtomicU8,
    /// A bit for each lane, and each dial that may become one.
    pub(super) slots: AtomicU64,
    /// Lanes.
    pub(super) lanes: AtomicUsize,
    /// Of these, lanes that were cold when they were seated.
    cold: AtomicU64,
    /// Of these, lanes that are to rest because a better one takes their place. Their slots are used again for such only.
    replaced: AtomicU64,
    /// Of these, lanes that are to be closed.
    leaving: AtomicU64,
    /// Of the replaced, lanes that were relieved: they are closed once nothing is on its way on them, if the transfer lasts that long.
    relieved: AtomicU64,
    /// When each slot's lane was seated or relieved, or has brought something since that, milliseconds since `began`.
    since: [AtomicU64; SLOTS_MAX],
    began: Instant,
    /// What each slot's lane has brought.
    carried: [AtomicU64; SLOTS_MAX],
    /// Lanes that carry fresh frames; more are to rest.
    pub(super) wanted: AtomicUsize,
    /// Lanes to be given up for others; whichever sees it first goes.
    pub(super) give_up: AtomicUsize,
    /// The only lane of the transfer, which its slow client leaves idle, is this path's.
    pub(super) is_slow: AtomicBool,
    pub(super) called: Notify,
    /// Payload that has come.
    pub(super) bytes: AtomicU64,
    /// Looks at its lanes that found it starved, less those that found a queue.
    pub(super) starved: AtomicI32,
}

/// Bounds of [`Place::starved`]: it takes a second of looks at one lane to turn the verdict.
const STARVED_MAX: i32 = 5;

impl Place {
    pub(in crate::mp) fn new(path: Arc<PathStatus>, wanted: usize) -> Arc<Self> {
        Arc::new(Self {
            path,
            outlook: AtomicU8::new(Outlook::Open as u8),
            slots: AtomicU64::new(0),
            cold: AtomicU64::new(0),
            replaced: AtomicU64::new(0),
            leaving: AtomicU64::new(0),
            relieved: AtomicU64::new(0),
            since: std::array::from_fn(|_| AtomicU64::new(0)),
            began: Instant::now(),
            carried: std::array::from_fn(|_| AtomicU64::new(0)),
            lanes: AtomicUsize::new(0),
            wanted: AtomicUsize::new(wanted),
            give_up: AtomicUsize::new(0),
            is_slow: AtomicBool::new(false),
            called: Notify::new(),
            bytes: AtomicU64::new(0),
            starved: AtomicI32::new(0),
        })
    }

    /// A lane was looked at.
    pub(in crate::mp) fn looked(&self, verdict: Verdict) {
        let step = |score: i32| match verdict {
            Verdict::Queued => Some((score - 1).max(-STARVED_MAX)),
            Verdict::Starved => Some((score + 1).min(STARVED_MAX)),
        };
        // It always steps.
        let _ = self.starved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step);
    }

    /// One of the lanes is to be closed, or none: a word that no lane has heard until the next look is taken back.
    pub(super) fn give_up(&self, one: bool) {
        self.give_up.store(one.into(), Ordering::SeqCst);
        if one {
            self.call();
        }
    }

    /// Lanes that wait for a frame are to see how things stand.
    pub(super) fn call(&self) {
        self.called.notify_waiters();
    }

    /// So many lanes are wanted from now on: those that rest, or go on, hear of it. Returns how many were before.
    pub(super) fn want(&self, lanes: usize) -> usize {
        let before = self.wanted.swap(lanes, Ordering::Relaxed);
        if lanes != before {
            self.call();
        }
        before
    }

    /// The slots whose lanes carry fresh frames.
    fn eager(&self) -> u64 {
        let (unused, wanted) = (self.replaced.load(Ordering::SeqCst), self.wanted.load(Ordering::Relaxed));
        let usable = (0..SLOTS_MAX).map(|number| 1 << number).filter(|bit| unused & bit == 0);
        usable.take(wanted).fold(0, |eager, bit| eager | bit)
    }

    /// Whether it has no lane, and waits for none.
    pub(super) fn is_empty(&self) -> bool {
        self.slots.load(Ordering::SeqCst) == 0
    }

    /// Lanes that it should have and has not. Those that rest do not count: they carry nothing fresh.
    pub(super) fn missing(&self) -> usize {
        (self.eager() & !self.slots.load(Ordering::SeqCst)).count_ones() as usize
    }

    /// Lanes that carry fresh frames and are cold, as far as they may still be replaced.
    fn replaceable(&self) -> u64 {
        if self.replaced.load(Ordering::SeqCst).count_ones() >= REPLACED_MAX {
            return 0;
        }
        let seated = self.eager() & self.slots.load(Ordering::SeqCst) & self.cold.load(Ordering::SeqCst);
        let is_cold = |number: &usize| self.carried[*number].load(Ordering::Relaxed) < WARM_BYTES;
        (0..SLOTS_MAX)
            .filter(|number| seated & (1 << number) != 0)
            .filter(is_cold)
            .fold(0, |cold, number| cold | 1 << number)
    }

    /// Lanes than which a warm one would be better.
    pub(super) fn cold_lanes(&self) -> usize {
        self.replaceable().count_ones() as usize
    }

    /// Lets one cold lane rest, for a warm one that has come in the slot behind; true if there was one.
    pub(super) fn replace_cold(&self) -> bool {
        let candidates = self.replaceable();
        if candidates != 0 {
            self.replaced.fetch_or(1 << candidates.trailing_zeros(), Ordering::SeqCst);
        }
        candidates != 0
    }

    /// The oldest lane that carries fresh frames, if it is as old as that.
    fn oldest(&self, age: Duration) -> Option<usize> {
        let seated = self.eager() & self.slots.load(Ordering::SeqCst);
        let aged = numbers(seated).map(|number| (self.since[number].load(Ordering::Relaxed), number));
        aged.min().filter(|&(since, _)| self.is_over(since, age)).map(|(_, number)| number)
    }

    /// Whether there is one.
    pub(super) fn has_lane_of(&self, age: Duration) -> bool {
        self.oldest(age).is_some()
    }

    /// Relieved lanes that have brought nothing for so long have nothing under way any more: they are to be closed.
    pub(super) fn close_relieved(&self, age: Duration) {
        let relieved = self.relieved.load(Ordering::SeqCst) & self.slots.load(Ordering::SeqCst);
        let aged = numbers(relieved)
            .filter(|&number| self.is_over(self.since[number].load(Ordering::Relaxed), age))
            .fold(0, |aged, number| aged | 1 << number);
        if aged != 0 {
            self.leaving.fetch_or(aged, Ordering::SeqCst);
            self.call();
        }
    }

    fn is_over(&self, since: u64, age: Duration) -> bool {
        self.began.elapsed().saturating_sub(Duration::from_millis(since)) >= age
    }

    fn mark(&self, number: usize) {
        self.since[number].store(self.began.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    pub(super) fn learn(&self, outlook: Outlook) {
        self.outlook.store(outlook as u8, Ordering::SeqCst);
    }

    pub(super) fn dial_failed(&self, error: &DialError) {
        self.learn(match error {
            DialError::Busy { .. } => return,
            error if error.nobody_there(self.path.spec()) => Outlook::NobodyThere,
            error if error.is_unanswered() => Outlook::Unanswered,
            _ => Outlook::Failed,
        });
    }

    pub(super) fn is_at_least(&self, outlook: Outlook) -> bool {
        self.outlook.load(Ordering::SeqCst) >= outlook as u8
    }

    /// Whether the last dial was not answered, which the next one may be.
    pub(in crate::mp) fn may_answer(&self) -> bool {
        self.outlook.load(Ordering::SeqCst) == Outlook::Unanswered as u8
    }

    pub(super) fn is_starved(&self) -> bool {
        self.starved.load(Ordering::Relaxed) > 1
    }

    /// What has come over the path.
    pub(in crate::mp) fn share(&self) -> PathShare {
        PathShare { path: self.path.name().to_owned(), bytes: self.bytes.load(Ordering::Relaxed) }
    }

    /// Payload has come over the path.
    pub(in crate::mp) fn received(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// The numbers of the bits that are set.
fn numbers(slots: u64) -> impl Iterator<Item = usize> {
    (0..SLOTS_MAX).filter(move |number| slots & (1 << number) != 0)
}

pub(in crate::mp) type Places = Vec<Arc<Place>>;

/// One lane's, or dial's, part of a [`Place`].
pub(in crate::mp) struct Slot {
    pub(super) place: Arc<Place>,
    pub(super) number: usize,
}

impl Slot {
    /// The lowest free one that no lane was replaced in; none if all are taken.
    pub(in crate::mp) fn take(place: &Arc<Place>) -> Option<Self> {
        let mut number = 0;
        let lowest = |slots: u64| {
            number = (slots | place.replaced.load(Ordering::SeqCst)).trailing_ones() as usize;
            (number < SLOTS_MAX).then(|| slots | 1 << number)
        };
        let taken = place.slots.fetch_update(Ordering::SeqCst, Ordering::SeqCst, lowest);
        taken.ok().map(|_| Self { place: place.clone(), number })
    }

    /// The lowest free one, for a lane that takes another's place; none if all are taken.
    pub(super) fn take_beside(place: &Arc<Place>) -> Option<Self> {
        let mut number = 0;
        let lowest = |slots: u64| {
            number = (slots | place.eager()).trailing_ones() as usize;
            (number < SLOTS_MAX).then(|| slots | 1 << number)
        };
        let taken = place.slots.fetch_update(Ordering::SeqCst, Ordering::SeqCst, lowest);
        taken.ok().map(|_| Self { place: place.clone(), number })
    }

    /// Relieves the path's oldest lane, if it is as old as that: it rests, and this one carries fresh frames in its place.
    pub(super) fn relieve(&self, age: Duration) -> bool {
        let Some(oldest) = self.place.oldest(age) else { return false };
        self.place.mark(oldest);
        self.place.relieved.fetch_or(1 << oldest, Ordering::SeqCst);
        let swap = |replaced: u64| Some((replaced | 1 << oldest) & !(1 << self.number));
        // It always swaps.
        let _ = self.place.replaced.fetch_update(Ordering::SeqCst, Ordering::SeqCst, swap);
        self.place.call();
        true
    }

    /// The path's part of the transfer.
    pub(in crate::mp) fn place(&self) -> &Arc<Place> {
        &self.place
    }

    /// Its lane is cold: one that is warm may take its place.
    pub(super) fn set_cold(&self) {
        self.place.cold.fetch_or(1 << self.number, Ordering::SeqCst);
    }

    /// Whether the path has more lanes than it should, or better ones: this one is to carry nothing fresh.
    pub(in crate::mp) fn rests(&self) -> bool {
        self.place.eager() & (1 << self.number) == 0
    }

    /// It has a lane, which has carried nothing yet.
    pub(super) fn set_seated(&self) {
        self.place.carried[self.number].store(0, Ordering::Relaxed);
        self.place.mark(self.number);
    }

    /// Its lane brings a frame of so many bytes.
    pub(in crate::mp) fn carries(&self, bytes: usize) {
        self.place.carried[self.number].fetch_add(bytes as u64, Ordering::Relaxed);
        if self.place.relieved.load(Ordering::Relaxed) & (1 << self.number) != 0 {
            self.place.mark(self.number);
        }
    }

    /// Whether this lane is to be closed for somebody who has none; true for one lane of the path only.
    pub(in crate::mp) fn is_given_up(&self) -> bool {
        let less = |lanes: usize| lanes.checked_sub(1);
        self.place.give_up.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok()
    }

    /// Whether this lane is to be closed because a better one has long taken its place.
    pub(in crate::mp) fn is_leaving(&self) -> bool {
        self.place.leaving.load(Ordering::SeqCst) & (1 << self.number) != 0
    }

    /// Whether it is the only lane of a transfer whose client is slow.
    pub(in crate::mp) fn is_slow(&self) -> bool {
        self.place.is_slow.load(Ordering::Relaxed)
    }

    /// Resolves when the crew has something to say: that [`Slot::is_given_up`], perhaps, or that [`Slot::is_slow`] or
    /// [`Slot::rests`] is no longer what the lane knows it to be.
    pub(in crate::mp) async fn called(&self, is_known_slow: bool, is_known_to_rest: bool) {
        let mut called = pin!(self.place.called.notified());
        called.as_mut().enable();
        let is_wanted = self.place.give_up.load(Ordering::SeqCst) == 0 && !self.is_leaving();
        if is_wanted && self.is_slow() == is_known_slow && self.rests() == is_known_to_rest {
            called.await;
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let others = !(1 << self.number);
        self.place.cold.fetch_and(others, Ordering::SeqCst);
        self.place.relieved.fetch_and(others, Ordering::SeqCst);
        self.place.leaving.fetch_and(others, Ordering::SeqCst);
        self.place.slots.fetch_and(others, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(wanted: usize) -> Arc<Place> {
        Place::new(Arc::new(PathStatus::new("127.0.0.1:1".parse().unwrap())), wanted)
    }

    #[test]
    fn the_lowest_slots_are_taken_and_the_others_rest() {
        let place = place(2);
        let slots: Vec<_> = (0..SLOTS_MAX).map(|_| Slot::take(&place).unwrap()).collect();
        assert_eq!(slots.iter().filter(|slot| !slot.rests()).count(), 2);
        assert!(Slot::take(&place).is_none());
        let mut slots = slots;
        drop(slots.remove(1));
        assert_eq!(Slot::take(&place).unwrap().number, 1);
    }

    #[test]
    fn lanes_that_wait_hear_that_they_are_to_go_on_or_to_rest() {
        use futures_util::FutureExt;
        let place = place(1);
        let slots = [(); 2].map(|()| Slot::take(&place).unwrap());
        for (wanted, rests) in [(2, true), (1, false)] {
            let mut called = pin!(slots[1].called(false, rests));
            assert!(called.as_mut().now_or_never().is_none(), "it is known to rest: {rests}");
            assert_eq!(place.want(wanted), 3 - wanted);
            assert!(called.now_or_never().is_some());
            // Also one that begins to wait just then.
            assert!(slots[1].called(false, rests).now_or_never().is_some());
        }
        assert_eq!(place.want(1), 1);
    }

    #[test]
    fn a_lost_lane_is_missed_although_others_rest() {
        let place = place(3);
        let mut slots: Vec<_> = (0..3).map(|_| Slot::take(&place).unwrap()).collect();
        assert_eq!(place.missing(), 0);
        place.wanted.store(1, Ordering::Relaxed);
        assert_eq!(place.missing(), 0);
        drop(slots.remove(0));
        assert_eq!(place.missing(), 1, "the two that are left rest");
        assert_eq!(Slot::take(&place).unwrap().number, 0);
        place.wanted.store(SLOTS_MAX, Ordering::Relaxed);
        assert_eq!(place.missing(), SLOTS_MAX - 2);
    }

    #[test]
    fn a_warm_lane_takes_the_place_of_a_cold_one() {
        let place = place(2);
        let (warm, cold) = (Slot::take(&place).unwrap(), Slot::take(&place).unwrap());
        assert!(!place.replace_cold(), "none is cold");
        cold.set_cold();
        assert_eq!(place.cold_lanes(), 1);
        let third = Slot::take(&place).unwrap();
        assert!(third.rests() && !cold.rests(), "until it has come");
        assert!(place.replace_cold());
        assert!(cold.rests() && !warm.rests() && !third.rests());
        assert_eq!(place.missing(), 0);
        drop(cold);
        assert_eq!(Slot::take(&place).unwrap().number, 3, "what was replaced stays so");
        assert!(!place.replace_cold());
    }

    #[test]
    fn a_lane_that_has_carried_much_is_cold_no_more() {
        let place = place(3);
        let lanes: Vec<_> = (0..3).map(|_| Slot::take(&place).unwrap()).collect();
        lanes.iter().for_each(|lane| lane.set_cold());
        assert_eq!(place.cold_lanes(), 3, "all are replaced at once");
        lanes[1].carries(WARM_BYTES as usize);
        assert_eq!(place.cold_lanes(), 2);
        assert!(place.replace_cold() && place.replace_cold() && !place.replace_cold());
        assert!(!lanes[1].rests());
    }

    #[test]
    fn new_lanes_relieve_the_oldest_ones_and_slots_are_used_again() {
        let place = place(3);
        let seat = |slot: Slot| {
            slot.set_seated();
            slot
        };
        let mut lanes: Vec<_> = (0..3).map(|_| seat(Slot::take(&place).unwrap())).collect();
        let beside = Slot::take_beside(&place).unwrap();
        assert!(!beside.relieve(Duration::from_secs(60)), "none is as old as that");
        drop(beside);
        for round in 0..SLOTS_MAX {
            lanes.iter().enumerate().for_each(|(age, lane)| {
                place.since[lane.number].store(age as u64, Ordering::Relaxed);
            });
            let relief = Slot::take_beside(&place).unwrap();
            assert!(relief.rests() && relief.relieve(Duration::ZERO), "{round}");
            let relief = seat(relief);
            let old = lanes.remove(0);
            assert!(old.rests() && !relief.rests() && lanes.iter().all(|lane| !lane.rests()), "{round}");
            assert_eq!(place.missing(), 0, "{round}");
            assert!(!old.is_leaving(), "its last frames are on their way");
            place.close_relieved(Duration::from_secs(60));
            assert!(!old.is_leaving());
            place.close_relieved(Duration::ZERO);
            assert!(old.is_leaving() && !relief.is_leaving(), "{round}");
            drop(old);
            lanes.push(relief);
        }
        assert!(lanes.iter().all(|lane| lane.number <= 3), "one slot more than lanes is enough");
        drop(lanes.remove(1));
        assert_eq!(place.missing(), 1);
        let other = Slot::take(&place).unwrap();
        assert!(!other.rests(), "a lost one is replaced in its place");
    }

    #[test]
    fn losses_without_a_queue_starve_a_path() {
        let place = place(1);
        assert!(!place.is_starved());
        (0..3).for_each(|_| place.looked(Verdict::Starved));
        assert!(place.is_starved());
        (0..3).for_each(|_| place.looked(Verdict::Queued));
        assert!(!place.is_starved());
    }
}
