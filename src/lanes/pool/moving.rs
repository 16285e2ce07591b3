//! Warm lanes that go where they are needed.
//!
//! In: a core whose client has no warm lane of a path, and one that has. Out: the lane, leased on the first. Called by the
//! crews, for long paths. Invariants: only lanes on which next to nothing is under way move; a pool that takes one in has room
//! for it.

use std::rc::Rc;

use tokio::sync::oneshot;

use super::{
    super::{Lane, packed::PackedLane},
    Draining, Lease, Place, Pool,
};
use crate::exec::{self, Core};

impl Pool {
    /// A warm lane to `instance` (to any, if none is named) that is idle on `core`, whose pool of this path `find` finds there;
    /// none if it has none, or there is no room here.
    pub async fn lease_from(
        self: &Rc<Self>,
        core: Core,
        instance: Option<u64>,
        find: impl FnOnce() -> Option<Rc<Self>> + Send + 'static,
    ) -> Option<Lease> {
        if !self.has_place() || self.closing.get() {
            return None;
        }
        let mut place = Place::take(self);
        let (send, receive) = oneshot::channel();
        // Who asked may have gone: the lane is closed then.
        let letter = move || drop(send.send(find().and_then(|pool| pool.part_with(instance))));
        let answer = match exec::post(core, Box::new(letter)) {
            // No answer: that core has ended.
            Ok(()) => receive.await.ok().flatten(),
            Err(_) => None,
        };
        let Some(lane) = answer.and_then(PackedLane::unpack) else {
            drop(place);
            // Others may have found no room meanwhile.
            self.dial_if_awaited();
            return None;
        };
        place.stands = true;
        tracing::debug!(path = self.path.name(), from = core.0, "a warm lane has come from another core");
        Some(self.lease(Rc::new(lane)))
    }

    /// Gives away the lane that [`Pool::lease_warm`] would lease. One that has only the END of a transfer to bring goes, too: its
    /// next client has come sooner than that.
    fn part_with(&self, instance: Option<u64>) -> Option<PackedLane> {
        let fits = |lane: &Lane| lane.is_warm() && instance.is_none_or(|wanted| wanted == lane.instance());
        let lane = {
            let (mut idle, mut draining) = (self.idle.borrow_mut(), self.draining.borrow_mut());
            let shelved = idle.iter().enumerate().filter(|(_, lane)| fits(lane) && lane.is_quiet());
            let shelved = shelved.map(|(found, lane)| (lane.warmth(), found)).max();
            let ends = |drained: &Draining| fits(&drained.lane) && drained.lane.only_ends_left();
            let ending = draining.iter().enumerate().filter(|(_, drained)| ends(drained));
            let ending = ending.map(|(found, drained)| (drained.lane.warmth(), found)).max();
            match (shelved, ending) {
                (Some((shelved, found)), ending) if ending.is_none_or(|(ending, _)| ending <= shelved) => {
                    idle.remove(found)
                }
                (_, Some((_, found))) => {
                    let Draining { lane, taken } = draining.remove(found);
                    // Its task looks for this first, and leaves the lane alone.
                    taken.notify_one();
                    lane
                }
                _ => return None,
            }
        };
        self.note_warmth();
        let packed = PackedLane::pack(&lane);
        drop(lane);
        // Another one takes its place if this core has too few now.
        self.lane_gone();
        Some(packed)
    }
}
