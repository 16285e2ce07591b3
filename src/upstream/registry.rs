//! Which transfers run, and which have ended not long ago.
//!
//! In: the OPENs of all lanes on all cores. Out: the one transfer that each belongs to. Called by the lanes. Invariant:
//! the first OPEN of an id starts its transfer, every later one joins it or learns how it ended; both lists are bounded.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    home::Homes,
    keep::Keep,
    root_pool::RootPool,
    transfer::{Ending, Transfer},
};
use crate::{
    exec::Core,
    wire::{frame::Outcome, units::TransferId},
};

/// Transfers at once: every one holds a lane, and a process has at most some ten thousand descriptors.
const RUNNING_MAX: usize = 65_536;
/// Endings kept for lanes whose OPEN comes late, by a round trip or two: even at ten thousand transfers a second they
/// are remembered for 6 s. They take about 8 MiB when full.
const ENDED_MAX: usize = 65_536;

/// See the module's description.
#[derive(Debug)]
pub(super) struct Registry {
    lists: Mutex<Lists>,
    keep: Arc<Keep>,
    homes: Arc<Homes>,
}

#[derive(Debug, Default)]
struct Lists {
    /// With the number of lanes that carry each.
    running: HashMap<TransferId, (Arc<Transfer>, usize)>,
    ended: HashMap<TransferId, Arc<Ending>>,
    ended_in_order: VecDeque<TransferId>,
}

impl Lists {
    /// Whether it is this transfer that runs under its id, and not one that began anew after it was forgotten.
    fn runs(&self, transfer: &Transfer) -> bool {
        self.running.get(&transfer.id()).is_some_and(|(running, _)| std::ptr::eq(&**running, transfer))
    }
}

/// What an OPEN led to.
#[derive(Debug)]
pub(super) enum Opened {
    /// A new transfer: whoever asked fetches it.
    Started(Arc<Transfer>),
    /// One that runs.
    Joined(Arc<Transfer>),
    /// It is over.
    Ended(Arc<Ending>),
    /// There are too many.
    Busy,
}

impl Opened {
    /// The core that the lane should be on; none if it does not matter.
    pub(super) fn core(&self) -> Option<Core> {
        match self {
            Self::Started(transfer) | Self::Joined(transfer) => Some(transfer.home().next()),
            Self::Ended(_) | Self::Busy => None,
        }
    }
}

impl Registry {
    /// No transfers yet; what they keep counts in `keep`, and they live on the cores of `homes`.
    pub(super) fn new(keep: Arc<Keep>, homes: Arc<Homes>) -> Self {
        Self { lists: Mutex::default(), keep, homes }
    }

    fn lists(&self) -> MutexGuard<'_, Lists> {
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts one more lane, which lives on core `here`, on transfer `id`. A lane on a transfer [leaves](Self::leave) it later.
    pub(super) fn open(self: &Arc<Self>, id: TransferId, here: Core, pool: &Arc<RootPool>) -> Opened {
        let mut lists = self.lists();
        if let Some((transfer, lanes)) = lists.running.get_mut(&id) {
            *lanes += 1;
            return Opened::Joined(transfer.clone());
        }
        if let Some(ending) = lists.ended.get(&id) {
            return Opened::Ended(ending.clone());
        }
        if lists.running.len() >= RUNNING_MAX {
            return Opened::Busy;
        }
        let transfer = Arc::new(Transfer::new(
            id,
            self.clone(),
            pool.clone(),
            self.keep.share(),
            self.homes.choose(here),
        ));
        lists.running.insert(id, (transfer.clone(), 1));
        Opened::Started(transfer)
    }

    /// Moves a transfer that runs to those that have ended.
    pub(super) fn retire(&self, transfer: &Transfer, ending: Arc<Ending>) {
        let id = transfer.id();
        let mut lists = self.lists();
        if !lists.runs(transfer) {
            return;
        }
        lists.running.remove(&id);
        if lists.ended_in_order.len() >= ENDED_MAX
            && let Some(oldest) = lists.ended_in_order.pop_front()
        {
            lists.ended.remove(&oldest);
        }
        lists.ended.insert(id, ending);
        lists.ended_in_order.push_back(id);
    }

    /// Transfers that run, bytes that all transfers keep, and how many they may.
    pub(super) fn load(&self) -> (usize, usize, usize) {
        (self.lists().running.len(), self.keep.used(), self.keep.max())
    }

    /// A lane has left `transfer`; returns whether it was the last.
    pub(super) fn leave(&self, transfer: &Transfer) -> bool {
        let is_last = {
            let mut lists = self.lists();
            if !lists.runs(transfer) {
                return false;
            }
            let Some((_, lanes)) = lists.running.get_mut(&transfer.id()) else { return false };
            *lanes = lanes.saturating_sub(1);
            let is_last = *lanes == 0;
            if is_last && !transfer.has_frames() {
                // Forgotten and not ended: the OPEN of a slower lane may be on its way and begins anew.
                lists.running.remove(&transfer.id());
            }
            is_last
        };
        if is_last && !transfer.has_frames() {
            transfer.end(Outcome::Aborted, "upstream: all lanes of the transfer were lost");
        }
        is_last
    }
}
