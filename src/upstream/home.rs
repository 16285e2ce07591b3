//! On which core the lanes of a transfer meet.
//!
//! In: transfers as they begin, lanes as they join them. Out: a core for each lane. The kernel gives connections to cores by
//! chance; lanes of one transfer that live on different ones share the root's connection and their striper across cores,
//! which costs a tenth of a fast transfer's time. So they move to the core where it began, unless that is busier with
//! transfers than another, or is known to have no time left for so much. Called by `registry` and the lanes. Invariant: a
//! transfer counts for its core until it is dropped.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use crate::{
    exec::{self, Core, Effort},
    mp::manager::Placement,
};

/// How much more than the idlest core may run is no reason to move: moving a lane costs about as much as waking a core.
const UNEVEN_PART: usize = 4;

/// The cores of an upstream.
#[derive(Debug)]
pub(super) struct Homes {
    placement: Placement,
    /// One for each core of the process, once they run.
    cores: OnceLock<Box<[Load]>>,
}

#[derive(Debug, Default)]
struct Load {
    /// Transfers whose home it is.
    transfers: AtomicUsize,
    /// The last of them that took long enough to tell left it no time.
    saturated: AtomicBool,
}

/// The home of one transfer.
#[derive(Debug)]
pub(super) struct Home {
    homes: Arc<Homes>,
    core: Core,
    spreads: bool,
    /// Lanes that were given a core.
    lanes: AtomicUsize,
}

impl Homes {
    pub(super) fn new(placement: Placement) -> Arc<Self> {
        Arc::new(Self { placement, cores: OnceLock::new() })
    }

    /// For a transfer that begins on `here`, a core of this process.
    pub(super) fn choose(self: &Arc<Self>, here: Core) -> Home {
        let loads = self.cores.get_or_init(|| (0..exec::cores()).map(|_| Load::default()).collect());
        let transfers = |core: Core| loads[core.0].transfers.load(Ordering::Relaxed);
        let others = (1..loads.len()).map(|step| Core((here.0 + step) % loads.len()));
        let idlest = others.min_by_key(|&core| transfers(core)).unwrap_or(here);
        let least = transfers(idlest);
        let core = if transfers(here) > least + least / UNEVEN_PART { idlest } else { here };
        loads[core.0].transfers.fetch_add(1, Ordering::Relaxed);
        let spreads = match self.placement {
            Placement::Local => false,
            Placement::Spread => true,
            Placement::Auto => loads[core.0].saturated.load(Ordering::Relaxed),
        };
        Home { homes: self.clone(), core, spreads, lanes: AtomicUsize::new(0) }
    }

    /// Of a process with so many cores.
    #[cfg(test)]
    pub(super) fn of(placement: Placement, cores: usize) -> Arc<Self> {
        let homes = Self::new(placement);
        homes.cores.set((0..cores).map(|_| Load::default()).collect()).unwrap();
        homes
    }

    fn loads(&self) -> &[Load] {
        self.cores.get().map_or(&[], |loads| loads)
    }
}

impl Home {
    /// The core for the next lane; the first one begins the transfer.
    pub(super) fn next(&self) -> Core {
        let number = self.lanes.fetch_add(1, Ordering::Relaxed);
        let step = if self.spreads { number } else { 0 };
        Core((self.core.0 + step) % self.homes.loads().len().max(1))
    }

    /// What the transfer's first lane has left its core, once it is over.
    pub(super) fn note(&self, effort: &Effort) {
        if let (Some(saturated), Some(load)) = (effort.has_saturated(), self.homes.loads().get(self.core.0)) {
            load.saturated.store(saturated, Ordering::Relaxed);
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Some(load) = self.homes.loads().get(self.core.0) {
            load.transfers.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lanes(home: &Home, count: usize) -> Vec<usize> {
        (0..count).map(|_| home.next().0).collect()
    }

    #[test]
    fn lanes_meet_where_the_transfer_began() {
        let homes = Homes::of(Placement::Auto, 4);
        assert_eq!(lanes(&homes.choose(Core(2)), 3), [2, 2, 2]);
        let busy: Vec<_> = (0..4).map(|core| homes.choose(Core(core))).collect();
        assert_eq!(lanes(&homes.choose(Core(3)), 2), [3, 3], "all are equally busy");
        drop(busy);
    }

    #[test]
    fn a_transfer_goes_to_the_idlest_core_where_that_is_worth_it() {
        let homes = Homes::of(Placement::Local, 3);
        let first = homes.choose(Core(1));
        let second = homes.choose(Core(1));
        assert_eq!((first.next(), second.next()), (Core(1), Core(2)));
        let third = homes.choose(Core(1));
        assert_eq!(third.next(), Core(0));
        drop(second);
        assert_eq!(homes.choose(Core(0)).next(), Core(2));
        // One more than four is not worth a move, two are.
        let all: Vec<_> = (0..12).map(|_| homes.choose(Core(0))).collect();
        let count = |core: usize| homes.cores.get().unwrap()[core].transfers.load(Ordering::Relaxed);
        assert_eq!(count(0) + count(1) + count(2), 14);
        assert!((4..=6).contains(&count(0)) && count(1).abs_diff(count(2)) <= 1);
        drop((first, third, all));
        assert_eq!((count(0), count(1), count(2)), (0, 0, 0));
    }

    #[test]
    fn lanes_spread_when_asked_to_or_when_their_home_has_no_time_left() {
        assert_eq!(lanes(&Homes::of(Placement::Spread, 2).choose(Core(1)), 4), [1, 0, 1, 0]);
        let homes = Homes::of(Placement::Auto, 3);
        homes.cores.get().unwrap()[1].saturated.store(true, Ordering::Relaxed);
        assert_eq!(lanes(&homes.choose(Core(1)), 4), [1, 2, 0, 1]);
        assert_eq!(lanes(&homes.choose(Core(0)), 2), [0, 0]);
    }
}
