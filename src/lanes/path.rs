//! What is known of a path, shared by all cores: counters for the live view and the round-trip time for decisions.

use std::{
    sync::{
        Once,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use crate::{exec::Core, net::MptcpState, wire::route::PathSpec};

/// From this round trip on slow start takes longer than anything that happens between cores.
const LONG_ROUND_TRIP: Duration = Duration::from_millis(5);

/// None for a core beyond the 64th: its lanes serve it alone.
fn bit(core: Core) -> u64 {
    u32::try_from(core.0).ok().and_then(|core| 1u64.checked_shl(core)).unwrap_or(0)
}

/// A configured path and its figures. Counters are statistics: no decision needs them exact.
#[derive(Debug)]
pub struct PathStatus {
    name: String,
    spec: PathSpec,
    bytes: AtomicU64,
    frames: AtomicU64,
    frames_again: AtomicU64,
    parked_bytes: AtomicU64,
    lanes_opened: AtomicU64,
    dials_failed: AtomicU64,
    lanes: AtomicUsize,
    leased: AtomicUsize,
    /// Of the upstream process that the newest lane has reached; 0 before the first.
    instance: AtomicU64,
    round_trip_us: AtomicU64,
    down: AtomicBool,
    /// A bit for each of the first 64 cores where an idle lane stands that has carried a transfer.
    warm_cores: AtomicU64,
    /// Of the MPTCP lane looked at last; 0 for plain TCP.
    subflows: AtomicUsize,
    fell_back: AtomicBool,
    fallback_warned: Once,
}

/// [`PathStatus`] at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathReport {
    /// The path as on the command line.
    pub name: String,
    /// Payload bytes received over it since the start.
    pub bytes: u64,
    /// DATA frames received over it since the start.
    pub frames: u64,
    /// Of these, those that another lane had carried before.
    pub frames_again: u64,
    /// Of the payload bytes, those that were parked because an earlier frame was missing.
    pub parked_bytes: u64,
    /// Lanes that have come up since the start.
    pub lanes_opened: u64,
    /// Dials that have failed since the start.
    pub dials_failed: u64,
    /// Lanes that stand now.
    pub lanes: usize,
    /// Lanes that carry a transfer now.
    pub leased: usize,
    /// Last measured round trip to the upstream; zero before the first.
    pub round_trip: Duration,
    /// The last dial failed and no lane stands.
    pub down: bool,
    /// Subflows of the MPTCP lane looked at last; 0 for plain TCP, and before the first.
    pub subflows: usize,
    /// That lane was to be MPTCP, but a leg of it is plain TCP.
    pub fell_back: bool,
}

impl PathReport {
    /// What MPTCP made of the path, to be put behind its other figures; nothing for a path of plain TCP.
    pub fn mptcp(&self) -> String {
        match (self.fell_back, self.subflows) {
            (true, 0) => ", fell back to TCP".to_owned(),
            (true, subflows) => format!(", MPTCP x{subflows}, fell back to TCP behind the first hop"),
            (false, 0) => String::new(),
            (false, subflows) => format!(", MPTCP x{subflows}"),
        }
    }
}

impl PathStatus {
    /// A path of which nothing is known yet.
    pub fn new(spec: PathSpec) -> Self {
        Self {
            name: spec.to_string(),
            spec,
            bytes: AtomicU64::new(0),
            frames: AtomicU64::new(0),
            frames_again: AtomicU64::new(0),
            parked_bytes: AtomicU64::new(0),
            lanes_opened: AtomicU64::new(0),
            dials_failed: AtomicU64::new(0),
            lanes: AtomicUsize::new(0),
            leased: AtomicUsize::new(0),
            instance: AtomicU64::new(0),
            round_trip_us: AtomicU64::new(0),
            down: AtomicBool::new(false),
            warm_cores: AtomicU64::new(0),
            subflows: AtomicUsize::new(0),
            fell_back: AtomicBool::new(false),
            fallback_warned: Once::new(),
        }
    }

    /// The path as on the command line.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it leads.
    pub fn spec(&self) -> &PathSpec {
        &self.spec
    }

    /// The last measured round trip; zero when unknown.
    pub fn round_trip(&self) -> Duration {
        Duration::from_micros(self.round_trip_us.load(Relaxed))
    }

    /// The upstream process that its lanes lead to, as far as any stand.
    pub fn live_instance(&self) -> Option<u64> {
        (self.lanes.load(Relaxed) > 0).then(|| self.instance.load(Relaxed))
    }

    /// Whether its lanes lead to another upstream process than `instance`. A path without lanes may lead to any.
    pub fn leads_elsewhere(&self, instance: u64) -> bool {
        self.live_instance().is_some_and(|there| there != instance)
    }

    /// Whether a lane is free whose congestion window has grown, on a path that is so long that this is worth something.
    pub fn has_warm_lane(&self) -> bool {
        self.round_trip() >= LONG_ROUND_TRIP && self.warm_cores.load(Relaxed) != 0
    }

    /// Where a client of core `here` should have its lane: on a long path a congestion window that has grown is worth more
    /// than the hop to another core.
    pub fn core_of_warm_lane(&self, here: Core) -> Core {
        let warm = self.warm_cores.load(Relaxed);
        if self.round_trip() < LONG_ROUND_TRIP || warm == 0 || warm & bit(here) != 0 {
            return here;
        }
        Core(warm.trailing_zeros() as usize)
    }

    /// Whether an idle lane of core `here` is warm.
    pub(super) fn set_warm(&self, here: Core, is_warm: bool) {
        if is_warm {
            self.warm_cores.fetch_or(bit(here), Relaxed);
        } else {
            self.warm_cores.fetch_and(!bit(here), Relaxed);
        }
    }

    /// Counts payload that arrived.
    pub fn received(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// Counts a frame that arrives; `again` says that another lane has carried it before.
    pub fn frame(&self, again: bool) {
        self.frames.fetch_add(1, Relaxed);
        if again {
            self.frames_again.fetch_add(1, Relaxed);
        }
    }

    /// Counts payload that was parked.
    pub fn parked(&self, bytes: usize) {
        self.parked_bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// Lanes that carry a transfer now, or stand by in one.
    pub fn leased(&self) -> usize {
        self.leased.load(Relaxed)
    }

    /// Learns from one ping. A busy core makes pings late, never early: the shortest one is the path's, and it is
    /// forgotten slowly, in case the path has really become longer.
    pub(super) fn measured(&self, round_trip: Duration) {
        let measured_us = (round_trip.as_micros() as u64).max(1);
        let kept_us = match self.round_trip_us.load(Relaxed) {
            0 => measured_us,
            known_us => measured_us.min(known_us + known_us / 8 + 1),
        };
        self.round_trip_us.store(kept_us, Relaxed);
    }

    /// A handshake took so long, which is one to two round trips and the way of a relay to its next hop: better than to
    /// take a path that was not pinged yet for a short one.
    pub(super) fn shook_hands(&self, time: Duration) {
        let time_us = (time.as_micros() as u64).max(1);
        // What pings have found is better.
        let _ = self.round_trip_us.compare_exchange(0, time_us, Relaxed, Relaxed);
    }

    /// Learns how an MPTCP lane stands; `behind` says that a leg behind the first hop fell back. The first fallback is
    /// worth a warning.
    pub(super) fn mptcp(&self, state: MptcpState, behind: bool) {
        let subflows = match state {
            MptcpState::Subflows(subflows) => subflows,
            MptcpState::FellBack => 0,
        };
        let fell_back = behind || state == MptcpState::FellBack;
        if self.subflows.swap(subflows, Relaxed) != subflows {
            tracing::debug!(path = self.name, subflows, fallback = fell_back, "MPTCP has changed");
        }
        self.fell_back.store(fell_back, Relaxed);
        if fell_back {
            let leg = if state == MptcpState::FellBack {
                "to the first hop"
            } else {
                "behind the first hop (the relays' logs say which)"
            };
            self.fallback_warned.call_once(|| {
                tracing::warn!(
                    "path {}: MPTCP fell back to plain TCP on the leg {leg}: the other side's host, or something on the \
                     way, does not let MPTCP through",
                    self.name
                );
            });
        }
    }

    pub(super) fn lane_opened(&self, instance: u64) {
        self.instance.store(instance, Relaxed);
        self.lanes.fetch_add(1, Relaxed);
        self.lanes_opened.fetch_add(1, Relaxed);
        self.down.store(false, Relaxed);
    }

    /// A lane is counted out on one core while it is on its way to another.
    pub(super) fn lane_moves(&self) {
        self.lanes.fetch_add(1, Relaxed);
    }

    pub(super) fn lane_closed(&self) {
        self.lanes.fetch_sub(1, Relaxed);
    }

    pub(super) fn lease_began(&self) {
        self.leased.fetch_add(1, Relaxed);
    }

    pub(super) fn lease_ended(&self) {
        self.leased.fetch_sub(1, Relaxed);
    }

    /// Notes that a dial failed; true if the path was up before, so that the failure is worth a warning.
    pub(crate) fn failed(&self) -> bool {
        self.dials_failed.fetch_add(1, Relaxed);
        self.lanes.load(Relaxed) == 0 && !self.down.swap(true, Relaxed)
    }

    /// The figures now.
    pub fn report(&self) -> PathReport {
        PathReport {
            name: self.name.clone(),
            bytes: self.bytes.load(Relaxed),
            frames: self.frames.load(Relaxed),
            frames_again: self.frames_again.load(Relaxed),
            parked_bytes: self.parked_bytes.load(Relaxed),
            lanes_opened: self.lanes_opened.load(Relaxed),
            dials_failed: self.dials_failed.load(Relaxed),
            lanes: self.lanes.load(Relaxed),
            leased: self.leased.load(Relaxed),
            round_trip: self.round_trip(),
            down: self.down.load(Relaxed) && self.lanes.load(Relaxed) == 0,
            subflows: self.subflows.load(Relaxed),
            fell_back: self.fell_back.load(Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_path_leads_to_the_core_with_a_warm_lane() {
        let path = PathStatus::new("127.0.0.1:1".parse().unwrap());
        path.set_warm(Core(2), true);
        assert_eq!(path.core_of_warm_lane(Core(0)), Core(0), "the path is short");
        path.measured(Duration::from_millis(100));
        assert_eq!(path.core_of_warm_lane(Core(0)), Core(2));
        path.set_warm(Core(0), true);
        assert_eq!(path.core_of_warm_lane(Core(0)), Core(0));
        path.set_warm(Core(0), false);
        path.set_warm(Core(2), false);
        path.set_warm(Core(64), true);
        assert_eq!(path.core_of_warm_lane(Core(0)), Core(0));
    }

    #[test]
    fn one_late_ping_does_not_make_a_path_long() {
        let path = PathStatus::new("127.0.0.1:1".parse().unwrap());
        assert_eq!(path.round_trip(), Duration::ZERO);
        path.measured(Duration::from_millis(7));
        path.measured(Duration::from_millis(1));
        path.measured(Duration::from_millis(9));
        assert!(path.round_trip() < Duration::from_millis(2), "{:?}", path.round_trip());
        for _ in 0..40 {
            path.measured(Duration::from_millis(20));
        }
        assert_eq!(path.round_trip(), Duration::from_millis(20));
    }
}
