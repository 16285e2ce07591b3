//! How many lanes each path should have, as the transfers of all cores have found it out.
//!
//! In: paths that come and go, looks at the lanes of the one transfer that may try other numbers. Out: numbers. Called by
//! manager and crew. Invariant: one transfer at a time tries, and its right goes back when it is dropped.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering};

use super::Place;
use crate::{exec::Instant, lanes::PathStatus, mp::stripe::LaneCount};

/// How many lanes each path should have: fixed, or learned by the transfers of all cores.
#[derive(Debug)]
pub struct LaneCounts {
    least: usize,
    most: usize,
    is_paced: bool,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    /// One for each path that was asked for and not forgotten.
    paths: Vec<(Arc<PathStatus>, LaneCount)>,
    /// One transfer at a time tries numbers: several would take each other's effect for their own.
    is_probing: bool,
}

/// The right of one transfer to try other numbers of lanes.
pub(super) struct Probe {
    counts: Arc<LaneCounts>,
    began: Instant,
}

impl LaneCounts {
    /// Each path begins at `least` lanes and goes up to `most`; equal numbers are fixed. `is_paced`: lanes use BBR.
    pub fn new(least: usize, most: usize, is_paced: bool) -> Arc<Self> {
        Arc::new(Self { least, most, is_paced, counts: Mutex::default() })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lanes that a new transfer should have on `path`.
    pub(in crate::mp) fn wanted(&self, path: &Arc<PathStatus>) -> usize {
        self.counts().of(path).map_or(self.least, |count| count.learned())
    }

    /// The path is in use: what is learned of it is kept until it is forgotten.
    pub(in crate::mp) fn remember(&self, path: &Arc<PathStatus>) {
        let mut counts = self.counts();
        if counts.of(path).is_none() {
            counts.paths.push((path.clone(), LaneCount::new(self.least, self.most, self.is_paced)));
        }
    }

    /// The path is no longer in use.
    pub(in crate::mp) fn forget(&self, path: &Arc<PathStatus>) {
        let mut counts = self.counts();
        counts.paths.retain(|(known, _)| !Arc::ptr_eq(known, path));
    }

    /// Whether another number is being tried on the path of `place`, or soon will be.
    pub(in crate::mp) fn is_trying(&self, place: &Place) -> bool {
        self.counts().of(&place.path).is_some_and(|count| count.is_trying(place.is_starved()))
    }

    pub(super) fn probe(self: &Arc<Self>) -> Option<Probe> {
        let is_taken = std::mem::replace(&mut self.counts().is_probing, true);
        (!is_taken).then(|| Probe { counts: self.clone(), began: Instant::now() })
    }
}

impl Counts {
    fn of(&mut self, path: &Arc<PathStatus>) -> Option<&mut LaneCount> {
        self.paths.iter_mut().find(|(known, _)| Arc::ptr_eq(known, path)).map(|(_, count)| count)
    }
}

impl Probe {
    /// Looks at the path of `place`; returns how many lanes it should have, if it is still in use.
    pub(super) fn sample(&self, place: &Place, by_network: bool) -> Option<usize> {
        let (received, may_gain) = (place.bytes.load(Ordering::Relaxed), place.is_starved());
        let round_trip = place.path.round_trip();
        let mut counts = self.counts.counts();
        let count = counts.of(&place.path)?;
        Some(count.sample(self.began.elapsed(), received, by_network, may_gain, round_trip))
    }

    /// Whether lanes of the path of `place` carry less the older they are; see [`LaneCount::wears_out`].
    pub(super) fn wears_out(&self, place: &Place) -> bool {
        self.counts.counts().of(&place.path).is_some_and(|count| count.wears_out())
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let Counts { paths, is_probing } = &mut *self.counts.counts();
        for (_, count) in paths {
            count.restart();
        }
        *is_probing = false;
    }
}
