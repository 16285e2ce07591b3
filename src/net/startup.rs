//! Ends the STARTUP of BBR where the kernel does not see that the path is full.
//!
//! STARTUP sends 2.9 times what was delivered, until three round trips have brought no more (draft-cardwell-iccrg-bbr-congestion-
//! control-00, section 4.3.2). The kernel leaves out those in which the connection had too little to send now and then,
//! and every lane of a transfer is one, as its window holds more than there is to send. Two lanes over 2 x (100 Mbit/s, 150 ms)
//! went on for two seconds behind the moment at which they had found the rate; the queue in front of the path dropped 9,000 packets
//! meanwhile. So the pace is bounded by what the path has delivered, once it has brought no more for a round trip and holds
//! what is sent too much. The queue empties, the connection has enough to send, and the kernel sees the rest by itself.
//!
//! In: when bytes are sent, and what the kernel says of the connection. Out: the bound of its pace. Called by `renewal`. No
//! I/O, no clock. Invariant: the bound is lifted once BBR has settled, which it does within three round trips of enough to send.

use std::time::Duration;

use super::{TcpInfo, bbr::BbrInfo};
use crate::exec::Instant;

/// The kernel is asked so often: each round trip of short paths, at the cost of some microseconds.
const LOOK: Duration = Duration::from_millis(10);
/// Shorter paths are left alone: STARTUP is over before it is noticed, and a late acknowledgement looks like a queue.
const LONG_ROUND_TRIP: Duration = Duration::from_millis(5);
/// What brings less than so much more in a round trip has found the path's rate: bbr_full_bw_thresh of net/ipv4/tcp_bbr.c.
const GROWTH_MIN: f64 = 1.25;
/// A round trip with a queue takes longer; so many of the shortest ones are waited for at most, or a queue that grows as fast as
/// time passes would never be noticed.
const PATIENCE: f64 = 1.5;
/// Round trips of so many of the shortest ones, and this, are those with a queue; jitter is less.
const QUEUED_RATIO: f64 = 1.25;
const QUEUED_MIN: Duration = Duration::from_millis(5);
/// So much more than the path holds is under way, if there is a queue.
const OVERFULL: f64 = 1.5;
/// What a path with a queue is given of its rate: a queue that takes a round trip is empty after four.
const EMPTYING: f64 = 0.75;

/// See the module's description. The default is that of a connection that has just been made.
#[derive(Debug, Default)]
pub(super) struct Startup {
    looked: Option<Instant>,
    /// The rate that was found last which was more than the one before, bytes a second, and when.
    best: u64,
    grew: Option<Instant>,
    bound: Option<u64>,
}

/// What a look led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// BBR still starts; the pace is to be bounded by so many bytes a second, if that is new.
    Starting(Option<u64>),
    /// BBR has settled, or the path is short; true if there is a bound, which is to be lifted.
    Settled(bool),
}

impl Startup {
    /// Bytes are sent. Returns whether the kernel is to be asked how the connection stands.
    pub(super) fn sends(&mut self, now: Instant) -> bool {
        let looks = self.looked.is_none_or(|looked| now.saturating_duration_since(looked) >= LOOK);
        if looks {
            self.looked = Some(now);
        }
        looks
    }

    /// How the connection stands.
    pub(super) fn looks(&mut self, now: Instant, tcp: &TcpInfo, bbr: BbrInfo) -> Look {
        if !bbr.is_starting || (bbr.bandwidth > 0 && bbr.round_trip < LONG_ROUND_TRIP) {
            return Look::Settled(self.bound.take().is_some());
        }
        let rate = bbr.bandwidth as f64;
        if rate >= GROWTH_MIN * self.best as f64 {
            (self.best, self.grew) = (bbr.bandwidth, Some(now));
        }
        let patience = tcp.rtt.min(bbr.round_trip.mul_f64(PATIENCE));
        let grows = self.grew.is_none_or(|grew| now.saturating_duration_since(grew) < patience);
        let under_way = f64::from(tcp.unacknowledged) * f64::from(tcp.segment_bytes);
        let is_overfull = under_way > OVERFULL * rate * bbr.round_trip.as_secs_f64();
        let is_queued = tcp.rtt > bbr.round_trip.mul_f64(QUEUED_RATIO) + QUEUED_MIN;
        let bound = match (self.bound, is_queued) {
            (None, true) if !grows && is_overfull => EMPTYING * rate,
            (None, _) => return Look::Starting(None),
            (Some(_), true) => EMPTYING * rate,
            (Some(_), false) => rate,
        };
        let bound = Some(bound as u64);
        let is_new = self.bound != bound;
        self.bound = bound;
        Look::Starting(bound.filter(|_| is_new))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = LOOK;
    /// 100 Mbit/s.
    const RATE: f64 = 12.5e6;

    /// A connection in a STARTUP that the kernel does not end, over a path of [`RATE`] with an endless queue.
    struct Path {
        startup: Startup,
        now: Instant,
        round_trip: Duration,
        /// What BBR has measured, bytes a second.
        bandwidth: f64,
        queued: f64,
        bound: Option<u64>,
    }

    impl Path {
        fn new(round_trip_ms: u64) -> Self {
            let round_trip = Duration::from_millis(round_trip_ms);
            let bandwidth = 14480.0 / round_trip.as_secs_f64();
            Self {
                startup: Startup::default(),
                now: Instant::now(),
                round_trip,
                bandwidth,
                queued: 0.0,
                bound: None,
            }
        }

        /// The pace is `gain` times what was measured, if it is not bounded; returns the longest queue in seconds.
        fn send(&mut self, time: Duration, gain: f64) -> f64 {
            let (until, mut longest) = (self.now + time, 0.0_f64);
            while self.now < until {
                self.now += STEP;
                assert!(self.startup.sends(self.now));
                let pace =
                    (gain * self.bandwidth).min(self.bound.map_or(f64::INFINITY, |bound| bound as f64));
                self.queued = (self.queued + (pace - RATE) * STEP.as_secs_f64()).max(0.0);
                longest = longest.max(self.queued / RATE);
                // What is sent is measured a round trip later; this comes to the same.
                let grown = 2.0_f64.powf(STEP.as_secs_f64() / self.round_trip.as_secs_f64());
                self.bandwidth = (self.bandwidth * grown).min(RATE).min(pace).max(self.bandwidth);
                if let Look::Starting(Some(bound)) = self.look(pace, true) {
                    self.bound = Some(bound);
                }
            }
            longest
        }

        fn look(&mut self, pace: f64, is_starting: bool) -> Look {
            let rtt = self.round_trip + Duration::from_secs_f64(self.queued / RATE);
            let under_way = pace * self.round_trip.as_secs_f64() + self.queued;
            let tcp = TcpInfo {
                rtt,
                rtt_min: self.round_trip,
                segment_bytes: 1448,
                unacknowledged: (under_way / 1448.0) as u32,
                ..TcpInfo::default()
            };
            let bandwidth = self.bandwidth as u64;
            let bbr = BbrInfo { bandwidth, round_trip: self.round_trip, is_starting };
            self.startup.looks(self.now, &tcp, bbr)
        }
    }

    #[test]
    fn a_startup_that_fills_the_queue_is_held_at_what_the_path_carries() {
        let mut path = Path::new(150);
        let longest = path.send(Duration::from_secs(2), 2.89);
        assert!(longest < 0.7, "a queue of {longest} s");
        path.send(Duration::from_secs(4), 2.89);
        let left = path.queued / RATE;
        assert!(left < 0.05, "a queue of {left} s is left");
        let bound = path.bound.unwrap() as f64;
        assert!((0.99 * RATE..=RATE).contains(&bound), "{bound}");
        assert_eq!(path.look(RATE, false), Look::Settled(true));
        // Without the bound it would be longer than any path's.
        let mut unbounded = Path::new(150);
        unbounded.startup.best = u64::MAX;
        assert!(unbounded.send(Duration::from_secs(2), 2.89) > 1.0);
    }

    #[test]
    fn one_that_grows_or_has_too_little_to_send_or_goes_next_door_is_left_alone() {
        let mut grows = Path::new(150);
        grows.send(Duration::from_millis(900), 2.0);
        assert_eq!(grows.bound, None);
        let mut idles = Path::new(150);
        idles.send(Duration::from_secs(20), 1.0);
        assert_eq!(idles.bound, None);
        assert_eq!(idles.look(RATE, false), Look::Settled(false));
        let mut near = Path::new(1);
        assert_eq!(near.look(RATE, true), Look::Settled(false));
    }
}
