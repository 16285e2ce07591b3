//! Lanes of a path take turns, so that BBR never pauses in the middle of a transfer.
//!
//! BBR lets a connection that has not seen a shorter round trip for ten seconds carry next to nothing for 200 ms and a round
//! trip (PROBE_RTT, draft-cardwell-iccrg-bbr-congestion-control-00, section 4.3.5): 4 % of 2 × 50 Mbit/s at 100 ms, and a stall of
//! 0.4 s for the client. One that is idle when the ten seconds are over measures anew as it goes on, without a pause. So a
//! lane rests in time, and another one goes on for it with the rate that it had before its own rest.
//!
//! In: what the lanes of a path are and carry, at each look of the crew. Out: which of them rest, and whether one more is
//! wanted. No I/O, no clock. Invariants: a lane rests only while another one carries in its place,
//! but for one look in which what it has on its way arrives; what brings less is given up for the rest of the transfer.

use std::time::Duration;

/// A lane hands over so long before its pause is due: four round trips, in which what it has on its way arrives, and this.
const LEAD: Duration = Duration::from_millis(300);
const LEAD_ROUND_TRIPS: u32 = 4;
/// A lane to go on is sought so long before that: a dial takes two to four round trips, and slow start six or seven.
const SPARE_LEAD: Duration = Duration::from_millis(500);
const SPARE_LEAD_ROUND_TRIPS: u32 = 10;
/// A lane that is cold has come far enough in slow start once it brings this share of what the other one does: it has doubled
/// twice by the time that one falls silent.
const TRAINED_SHARE: f64 = 0.05;
/// After so long, and two round trips, the path is to carry
const SETTLED_AFTER: Duration = Duration::from_millis(300);
/// this share of what it did, over so long: less than what frames of lanes that share a path do to each other.
const RATE_LEAST: f64 = 0.75;
const MEASURE: Duration = Duration::from_millis(700);
/// On longer paths a lane seldom goes on in time for another one: far-apart (50 and 300 ms) carried 0.93 of its links with turns on
/// both, 0.945 without any.
const ROUND_TRIP_MAX: Duration = Duration::from_millis(160);
/// Slots of lanes that were lost at rest: a quarter of all.
const UNUSED_MAX: u32 = 16;

/// One lane at a look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seated {
    /// Its slot.
    pub number: usize,
    /// It carries fresh frames.
    pub is_eager: bool,
    /// It would go on at the rate that it had once.
    pub is_warm: bool,
    /// When BBR will pause, unless the lane is idle then; `None` if it has carried nothing yet. Since the transfer's start.
    pub pause_at: Option<Duration>,
    /// What it has brought.
    pub bytes: u64,
}

impl Seated {
    /// If it begins now, it begins with a new measurement, and may carry for ten seconds.
    fn is_rested(&self, now: Duration) -> bool {
        self.pause_at.is_none_or(|at| at <= now)
    }
}

/// What is to become of the path's lanes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Order {
    /// Slots whose lanes rest.
    pub resting: u64,
    /// Lanes that carry, besides those that the path should have.
    pub besides: isize,
    /// One more lane is wanted, to rest at first.
    pub seats: bool,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Steady,
    /// `next` was cold, and has brought so much before it was to carry beside `old`.
    Training {
        old: usize,
        next: usize,
        bytes: [u64; 2],
        until: Duration,
    },
    /// `old` rests, `next` goes on once the path is free.
    Handing {
        old: usize,
        next: usize,
    },
    /// `next` carries: whether as much as before is seen from `since` on.
    Watching {
        old: usize,
        next: usize,
        since: Duration,
        bytes: Option<u64>,
        before: f64,
    },
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Turns {
    state: State,
    order: Order,
    given_up: bool,
    /// What had come over the path, at looks since [`MEASURE`] ago.
    looks: Vec<(Duration, u64)>,
}

fn bit(number: usize) -> u64 {
    1 << number
}

impl Turns {
    /// Of a path none of whose lanes has carried yet. `takes_part`: its lanes use BBR, and there may be more of them than are needed.
    pub(super) fn new(takes_part: bool) -> Self {
        Self { state: State::Steady, order: Order::default(), given_up: !takes_part, looks: Vec::new() }
    }

    /// Nothing will change any more, and nothing rests.
    pub(super) fn are_over(&self) -> bool {
        self.given_up && self.order == Order::default()
    }

    /// A look at the path, over which `received` bytes have come. `by_network`: the client takes what comes. `may_seat`: there
    /// are lanes to be had for those who have some.
    pub(super) fn look(
        &mut self,
        now: Duration,
        round_trip: Duration,
        received: u64,
        (by_network, may_seat): (bool, bool),
        lanes: &[Seated],
    ) -> Order {
        self.order.seats = false;
        if self.given_up || (round_trip > ROUND_TRIP_MAX && self.order == Order::default()) {
            return self.order;
        }
        self.looks.retain(|&(at, _)| now - at <= MEASURE);
        self.looks.push((now, received));
        if !by_network {
            self.looks.clear();
        }
        // Slots whose lanes have gone while they rested stay unused, as others would have to make way.
        let seated = lanes.iter().fold(0, |seated, lane| seated | bit(lane.number));
        self.given_up |= (self.order.resting & !seated).count_ones() > UNUSED_MAX;
        let is_carried =
            matches!(self.state, State::Handing { .. }) || lanes.iter().any(|lane| lane.is_eager);
        if !is_carried || self.given_up {
            self.order = Order::default();
            self.state = State::Steady;
            return self.order;
        }
        let find = |number| lanes.iter().find(|lane| lane.number == number);
        match self.state {
            State::Steady => self.steady(now, round_trip, (by_network, may_seat), lanes),
            State::Training { old, next, bytes: [old_bytes, next_bytes], until } => {
                match (find(old), find(next)) {
                    (Some(before), Some(after)) => {
                        let (old_brings, next_brings) =
                            (before.bytes.saturating_sub(old_bytes), after.bytes.saturating_sub(next_bytes));
                        let is_trained =
                            next_brings as f64 >= TRAINED_SHARE * old_brings as f64 && next_brings > 0;
                        let is_late = now >= until;
                        if is_trained || is_late {
                            self.order.besides = 0;
                            if is_trained {
                                self.order.resting |= bit(old);
                                self.watch((old, next), now, round_trip);
                            } else {
                                self.order.resting |= bit(next);
                                self.state = State::Steady;
                                self.given_up = true;
                            }
                        } else {
                            self.state =
                                State::Training { old, next, bytes: [before.bytes, after.bytes], until };
                        }
                    }
                    _ => self.calm(),
                }
            }
            State::Handing { old, next } => {
                self.order.resting &= !bit(next);
                self.order.besides = 0;
                self.watch((old, next), now, round_trip);
            }
            State::Watching { .. } if !by_network => self.calm(),
            State::Watching { old, next, since, bytes: None, before } if now >= since => {
                self.state = State::Watching { old, next, since: now, bytes: Some(received), before };
            }
            State::Watching { old, next, since, bytes: Some(bytes), before } if now >= since + MEASURE => {
                let rate = (received - bytes) as f64 / (now - since).as_secs_f64();
                self.calm();
                if rate < RATE_LEAST * before {
                    self.order.resting = (self.order.resting & !bit(old)) | bit(next);
                    self.given_up = true;
                }
            }
            State::Watching { .. } => {}
        }
        self.order
    }

    fn steady(
        &mut self,
        now: Duration,
        round_trip: Duration,
        (by_network, may_seat): (bool, bool),
        lanes: &[Seated],
    ) {
        let lead = LEAD + round_trip * LEAD_ROUND_TRIPS;
        let sought = lead + SPARE_LEAD + round_trip * SPARE_LEAD_ROUND_TRIPS;
        let carrying = lanes.iter().filter(|lane| lane.is_eager);
        let Some((old, pause_at)) = carrying
            .filter_map(|lane| Some((lane, lane.pause_at?)))
            // One that is pausing, or has begun to, is too late.
            .filter(|&(_, at)| at > now + round_trip)
            .min_by_key(|&(_, at)| at)
        else {
            return;
        };
        if !by_network || pause_at > now + sought {
            return;
        }
        let mut spares: Vec<_> = lanes.iter().filter(|lane| !lane.is_eager).collect();
        spares.sort_by_key(|lane| !lane.is_warm);
        let Some(next) = spares.iter().find(|lane| lane.is_rested(now)).map(|lane| lane.number) else {
            self.order.seats = spares.is_empty() && may_seat;
            return;
        };
        // It is not to begin because another one rests.
        self.order.resting |= bit(next);
        let Some(next) = lanes.iter().find(|lane| lane.number == next) else { return };
        if !next.is_warm {
            self.order.resting &= !bit(next.number);
            self.order.besides = 1;
            self.state = State::Training {
                old: old.number,
                next: next.number,
                bytes: [old.bytes, next.bytes],
                until: pause_at - round_trip,
            };
        } else if pause_at <= now + lead {
            self.order.resting |= bit(old.number);
            self.order.besides = -1;
            self.state = State::Handing { old: old.number, next: next.number };
        }
    }

    fn watch(&mut self, (old, next): (usize, usize), now: Duration, round_trip: Duration) {
        let before = self.rate().unwrap_or(0.0);
        let since = now + SETTLED_AFTER + 2 * round_trip;
        self.state = State::Watching { old, next, since, bytes: None, before };
    }

    fn calm(&mut self) {
        self.order.besides = 0;
        self.state = State::Steady;
    }

    /// Of the last looks, in bytes a second.
    fn rate(&self) -> Option<f64> {
        let ((from, before), (to, after)) = (self.looks.first()?, self.looks.last()?);
        (to > from).then(|| (after - before) as f64 / (*to - *from).as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUND_TRIP: Duration = Duration::from_millis(100);
    const LOOK: Duration = Duration::from_millis(100);
    const RATE: f64 = 6e6;

    /// One path with up to two lanes, of which those that carry share `RATE` times `share[number]`.
    struct Path {
        turns: Turns,
        now: Duration,
        received: u64,
        lanes: Vec<Seated>,
        share: [f64; 2],
        by_network: bool,
        order: Order,
    }

    impl Path {
        /// The first lane carries; the second one stands by, if `spare` says so.
        fn new(spare: Option<bool>) -> Self {
            let lane =
                |number, is_warm| Seated { number, is_eager: number == 0, is_warm, pause_at: None, bytes: 0 };
            let lanes = std::iter::once(lane(0, true)).chain(spare.map(|is_warm| lane(1, is_warm))).collect();
            let order = Order::default();
            let (now, by_network) = (Duration::ZERO, true);
            Self { turns: Turns::new(true), now, received: 0, lanes, share: [1.0; 2], by_network, order }
        }

        /// Which slots carry after so many more looks.
        fn after(&mut self, looks: u32) -> Vec<usize> {
            for _ in 0..looks {
                self.now += LOOK;
                for lane in self.lanes.iter_mut().filter(|lane| lane.is_eager) {
                    let bytes = (RATE * self.share[lane.number] * LOOK.as_secs_f64()) as u64;
                    lane.bytes += bytes;
                    self.received += bytes;
                    if lane.pause_at.is_none_or(|at| at <= self.now) {
                        lane.pause_at = Some(self.now + Duration::from_secs(10));
                    }
                }
                let flags = (self.by_network, true);
                self.order = self.turns.look(self.now, ROUND_TRIP, self.received, flags, &self.lanes);
                let wanted = 1_usize.saturating_add_signed(self.order.besides);
                let eager: Vec<_> =
                    (0..64).filter(|slot| self.order.resting & bit(*slot) == 0).take(wanted).collect();
                self.lanes.iter_mut().for_each(|lane| lane.is_eager = eager.contains(&lane.number));
            }
            self.lanes.iter().filter(|lane| lane.is_eager).map(|lane| lane.number).collect()
        }

        /// Looks until something changes, at most 20 s.
        fn change(&mut self) -> Vec<usize> {
            let before = self.after(0);
            (0..200).map(|_| self.after(1)).find(|carry| *carry != before).unwrap_or(before)
        }
    }

    #[test]
    fn warm_lanes_take_turns_before_they_pause() {
        let mut path = Path::new(Some(true));
        assert_eq!(path.after(90), [0]);
        assert_eq!(path.change(), [0; 0], "what is on its way arrives first");
        assert!(path.now + 4 * ROUND_TRIP < path.lanes[0].pause_at.unwrap(), "{:?}", path.now);
        assert_eq!(path.after(1), [1]);
        for next in [0, 1, 0] {
            path.change();
            assert_eq!(path.after(1), [next]);
        }
        assert!(path.now > Duration::from_secs(35), "{:?}", path.now);
    }

    #[test]
    fn a_lane_to_go_on_is_sought_in_time_and_only_while_the_client_takes_what_comes() {
        let mut path = Path::new(None);
        path.after(70);
        assert!(!path.order.seats);
        path.after(20);
        assert!(path.order.seats);
        path.by_network = false;
        path.after(1);
        assert!(!path.order.seats);
    }

    #[test]
    fn a_cold_lane_carries_beside_the_other_one_until_it_brings_something() {
        let mut path = Path::new(Some(false));
        path.share[1] = 0.0;
        assert_eq!(path.change(), [0, 1]);
        assert_eq!(path.after(2), [0, 1]);
        path.share[1] = 0.1;
        assert_eq!(path.after(1), [1]);
    }

    #[test]
    fn a_cold_lane_that_brings_nothing_is_given_up() {
        let mut path = Path::new(Some(false));
        path.share[1] = 0.0;
        assert_eq!(path.change(), [0, 1]);
        assert_eq!(path.change(), [0]);
        assert_eq!(path.after(300), [0]);
    }

    #[test]
    fn a_lane_that_brings_less_gives_way_to_the_one_before() {
        let mut path = Path::new(Some(true));
        path.share[1] = 0.5;
        path.change();
        assert_eq!(path.after(1), [1]);
        assert_eq!(path.change(), [0]);
        assert_eq!(path.after(300), [0]);
    }

    #[test]
    fn a_lane_that_rests_comes_back_when_the_other_one_is_lost() {
        let mut path = Path::new(Some(true));
        path.change();
        assert_eq!(path.after(1), [1]);
        path.lanes.pop();
        assert_eq!(path.after(2), [0]);
    }

    #[test]
    fn on_long_paths_nothing_rests() {
        let mut turns = Turns::new(true);
        let lanes = [0, 1].map(|number| Seated {
            number,
            is_eager: number == 0,
            is_warm: true,
            pause_at: Some(Duration::from_secs(1)),
            bytes: 0,
        });
        let order = turns.look(Duration::ZERO, 2 * ROUND_TRIP, 0, (true, true), &lanes);
        assert_eq!(order, Order::default());
    }
}
