//! One direction of an emulated link, decided packet by packet.
//!
//! In: packets with the time at which they came. Out: those that survive, at the time at which they are due. Called by
//! the link's thread, and by tests in virtual time. A packet walks policer → queue → bottleneck → loss → delay. What is
//! a TSO super-packet outside is a row of segments in here; each is queued, lost and delayed on its own.
//!
//! Invariants: no I/O and no clock (times are nanoseconds since a moment of the caller's choice; those of arrivals never
//! go back, deliveries may look ahead); packets leave in the order in which they came; what waits is bounded by the
//! shape's queue, what flies by its rate times its delay.

mod drift;
mod loss;
mod policer;
#[cfg(test)]
mod tests;

use std::{collections::VecDeque, ops::Range, time::Duration};

use fastrand::Rng;

use self::{drift::Drift, loss::Loss, policer::Policer};
use super::shape::{Counters, Shape};

pub use self::policer::Flow;

/// A packet that leaves later than this after it was due was held up by the machine, not by the shape.
pub const LATE_NS: u64 = 2_000_000;

/// What the shaper has to know of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Packets on the wire: more than one for a TSO super-packet, never zero.
    pub segments: u16,
    /// Bytes of each of them but the last, IP and TCP headers included.
    pub segment_bytes: u32,
    /// Bytes of the last one.
    pub last_bytes: u32,
    /// The TCP connection it belongs to.
    pub flow: Option<Flow>,
}

impl Arrival {
    fn bytes(&self, index: u16) -> u32 {
        if index + 1 < self.segments { self.segment_bytes } else { self.last_bytes }
    }
}

/// Neighbouring segments of one packet that are due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery<P> {
    /// The packet they are part of.
    pub packet: P,
    /// Which of its segments.
    pub segments: Range<u16>,
}

/// One direction of a link. `P` is the packet's own content, which the shaper hands through; it is cloned once for each
/// segment, so it is to be a cheap handle.
#[derive(Debug)]
pub struct Shaper<P> {
    shape: Shape,
    down: bool,
    policer: Option<Policer>,
    loss: Loss,
    drift: Drift,
    rng: Rng,
    queue: VecDeque<Segment<P>>,
    queued_bytes: u64,
    /// When the bottleneck will have sent the first of the queue, or had sent the last one that there was.
    sent_ns: u64,
    flying: VecDeque<(u64, Segment<P>)>,
    /// Number of the last packet that was offered.
    number: u64,
    counters: Counters,
}

#[derive(Debug)]
struct Segment<P> {
    packet: P,
    /// Tells segments of one packet from those of another.
    number: u64,
    index: u16,
    bytes: u32,
}

impl<P: Clone> Shaper<P> {
    /// An empty link. `shape` has passed [`Shape::check`]; equal seeds make equal decisions.
    pub fn new(shape: Shape, seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        Self {
            shape,
            down: false,
            policer: shape.flow_mbit.map(Policer::new),
            loss: Loss::new(shape.loss, shape.burst, &mut rng),
            drift: Drift::new(&mut rng),
            rng,
            queue: VecDeque::new(),
            queued_bytes: 0,
            sent_ns: 0,
            flying: VecDeque::new(),
            number: 0,
            counters: Counters::default(),
        }
    }

    /// Takes a packet that came at `now_ns`, or as many of its first segments as the policer and the queue have room
    /// for.
    pub fn offer(&mut self, now_ns: u64, packet: P, arrival: &Arrival) {
        self.advance(now_ns);
        if self.down {
            self.counters.dropped_outage += u64::from(arrival.segments);
            return;
        }
        let allowed =
            self.policer.as_mut().map_or(arrival.segments, |policer| policer.admit(now_ns, arrival));
        self.counters.dropped_policer += u64::from(arrival.segments - allowed);
        self.number += 1;
        for index in 0..allowed {
            let bytes = arrival.bytes(index);
            if self.queue.is_empty() {
                self.sent_ns = self.sent_ns.max(now_ns) + self.sending_ns(bytes);
            } else if self.queued_bytes + u64::from(bytes) > self.shape.queue_bytes {
                self.counters.dropped_queue += u64::from(allowed - index);
                break;
            }
            self.queued_bytes += u64::from(bytes);
            self.queue.push_back(Segment { packet: packet.clone(), number: self.number, index, bytes });
        }
    }

    /// Takes out what is due at `now_ns`: the next run of neighbouring segments. None: nothing more is due.
    pub fn deliver(&mut self, now_ns: u64) -> Option<Delivery<P>> {
        self.advance(now_ns);
        let first = self.pop_due(now_ns, |_| true)?;
        let mut end = first.index + 1;
        while self.pop_due(now_ns, |next| next.number == first.number && next.index == end).is_some() {
            end += 1;
        }
        Some(Delivery { packet: first.packet, segments: first.index..end })
    }

    /// The earliest time at which [`Shaper::deliver`] may have something. None: the link is empty.
    pub fn next_ns(&self) -> Option<u64> {
        if let Some((due_ns, _)) = self.flying.front() {
            return Some(*due_ns);
        }
        let delay = self.shape.delay.saturating_sub(self.shape.jitter);
        (!self.queue.is_empty()).then(|| self.sent_ns + nanoseconds(delay))
    }

    /// Changes the shape. What waits for the bottleneck leaves at the new rate, and meets the new loss and delay; what
    /// flies keeps its time, unless it would be overtaken. A queue that has become too long drains, nothing is dropped.
    pub fn set(&mut self, now_ns: u64, shape: Shape) {
        self.advance(now_ns);
        let left_ns = self.sent_ns.saturating_sub(now_ns);
        self.sent_ns = now_ns + (left_ns as f64 * self.shape.rate_mbit / shape.rate_mbit) as u64;
        if (shape.loss, shape.burst) != (self.shape.loss, self.shape.burst) {
            self.loss = Loss::new(shape.loss, shape.burst, &mut self.rng);
        }
        if shape.flow_mbit != self.shape.flow_mbit {
            self.policer = shape.flow_mbit.map(Policer::new);
        }
        self.shape = shape;
    }

    /// Begins or ends an outage: everything inside is dropped, and everything that comes until its end.
    pub fn outage(&mut self, now_ns: u64, down: bool) {
        self.advance(now_ns);
        self.down = down;
        if down {
            self.counters.dropped_outage += (self.queue.len() + self.flying.len()) as u64;
            self.queue.clear();
            self.queued_bytes = 0;
            self.sent_ns = now_ns;
            self.flying.clear();
        }
    }

    /// What has been done so far. `refused` is not known in here.
    pub fn counters(&self) -> Counters {
        Counters { queued_bytes: self.queued_bytes, ..self.counters }
    }

    /// Lets the bottleneck send until `now_ns`.
    fn advance(&mut self, now_ns: u64) {
        while self.sent_ns <= now_ns
            && let Some(segment) = self.queue.pop_front()
        {
            let sent_ns = self.sent_ns;
            self.queued_bytes -= u64::from(segment.bytes);
            self.counters.packets += 1;
            self.counters.bytes += u64::from(segment.bytes);
            if self.loss.takes_next(&mut self.rng) {
                self.counters.dropped_loss += 1;
            } else {
                self.fly(sent_ns, segment);
            }
            if let Some(next) = self.queue.front() {
                self.sent_ns = sent_ns + self.sending_ns(next.bytes);
            }
        }
    }

    fn fly(&mut self, sent_ns: u64, segment: Segment<P>) {
        let drift = self.drift.at(sent_ns, &mut self.rng) * self.shape.jitter.as_nanos() as f64;
        let delay_ns = nanoseconds(self.shape.delay).saturating_add_signed(drift as i64);
        let last_ns = self.flying.back().map_or(0, |(due_ns, _)| *due_ns);
        self.flying.push_back((last_ns.max(sent_ns + delay_ns), segment));
    }

    fn pop_due(&mut self, now_ns: u64, wanted: impl Fn(&Segment<P>) -> bool) -> Option<Segment<P>> {
        self.flying.front().filter(|(due_ns, next)| *due_ns <= now_ns && wanted(next))?;
        let (due_ns, segment) = self.flying.pop_front()?;
        self.counters.late += u64::from(now_ns - due_ns > LATE_NS);
        Some(segment)
    }

    fn sending_ns(&self, bytes: u32) -> u64 {
        (f64::from(bytes) * 8_000.0 / self.shape.rate_mbit) as u64
    }
}

/// A shape's delays end at [`DELAY_MAX`](super::shape::DELAY_MAX): they fit.
fn nanoseconds(delay: Duration) -> u64 {
    delay.as_nanos() as u64
}
