//! An emulated path and the TCP connections over it: a fluid bottleneck that chunks pass one after the other.
//!
//! In: what paths are like, chunks of bytes that a connection wants to send. Out: when each arrives, and when TCP hears of
//! it. Called by the world. A lost packet costs no bytes here but time: its chunk arrives round trips later, and what was
//! sent after it waits for it (head-of-line blocking), as a lane's reader sees it.

use std::collections::VecDeque;

use super::random::Random;

const SEGMENT_BYTES: f64 = 1448.0;
/// Linux begins with ten segments.
const FIRST_WINDOW_BYTES: f64 = 10.0 * SEGMENT_BYTES;
/// Retransmission timeouts on Linux are not shorter than this.
const TIMEOUT_SECONDS_MIN: f64 = 0.2;
/// What the kernel at the downstream takes of a lane that is not read.
const RECEIVE_BUFFER_BYTES: f64 = 6e6;
/// Nobody's packet is lost more often than this.
const ATTEMPTS_MAX: i32 = 6;
/// Share of the bandwidth-delay product that BBR has in flight: the path is full, its queue is not.
const BBR_WINDOW: f64 = 1.15;

/// How the connections of a path look for their rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Congestion {
    /// Knows the rate, and loss does not matter to it.
    Bbr,
    /// Fills the queue, and takes three tenths off its window after loss.
    Cubic,
}

/// What a path is like.
#[derive(Clone, Debug)]
pub(super) struct PathSpec {
    /// Bytes per second; later changes in `changes`.
    pub(super) rate: f64,
    /// Seconds since the measured transfer's start, and the rate from then on; 0 is an outage.
    pub(super) changes: Vec<(f64, f64)>,
    /// Seconds, without queue.
    pub(super) round_trip: f64,
    /// Seconds that a chunk may come later.
    pub(super) jitter: f64,
    /// Bytes that the bottleneck's drop-tail queue holds.
    pub(super) queue: f64,
    /// Share of packets lost.
    pub(super) loss: f64,
    pub(super) congestion: Congestion,
    /// Bytes per second that a policer lets a single connection have.
    pub(super) connection_rate: f64,
    pub(super) lanes: usize,
}

impl PathSpec {
    /// A clean path with a queue of one bandwidth-delay product.
    pub(super) fn new(mbit: f64, round_trip_ms: f64, congestion: Congestion) -> Self {
        let (rate, round_trip) = (mbit * 125_000.0, round_trip_ms / 1e3);
        Self {
            rate,
            changes: Vec::new(),
            round_trip,
            jitter: 0.0,
            queue: (rate * round_trip).max(64e3),
            loss: 0.0,
            congestion,
            connection_rate: f64::INFINITY,
            lanes: 1,
        }
    }

    /// Bytes that move as one: small enough for slow start to be seen, large enough for ten thousand runs.
    fn chunk(&self) -> f64 {
        (self.rate * (self.round_trip / 16.0).max(0.001)).clamp(4.0 * SEGMENT_BYTES, 64e3)
    }
}

/// A path at work.
#[derive(Debug)]
pub(super) struct Path {
    pub(super) spec: PathSpec,
    /// When the bottleneck is through with what it has.
    free_at: f64,
    /// Bytes that were sent and not acknowledged.
    in_flight: f64,
    /// Those that are still to come or have come, in the world's time.
    changes: Vec<(f64, f64)>,
}

impl Path {
    pub(super) fn new(spec: PathSpec) -> Self {
        Self { spec, free_at: 0.0, in_flight: 0.0, changes: Vec::new() }
    }

    /// The measured transfer begins.
    pub(super) fn begin(&mut self, now: f64) {
        self.changes = self.spec.changes.iter().map(|(at, rate)| (now + at, *rate)).collect();
    }

    /// The rate at `at`, and until when it holds.
    fn rate_at(&self, at: f64) -> (f64, f64) {
        let passed = self.changes.partition_point(|(from, _)| *from <= at);
        let rate = if passed == 0 { self.spec.rate } else { self.changes[passed - 1].1 };
        (rate, self.changes.get(passed).map_or(f64::INFINITY, |(from, _)| *from))
    }

    /// When what is sent at `at` in either direction can leave: not during an outage, and after one only as a
    /// retransmission timer says, which has doubled meanwhile.
    pub(super) fn leaves(&self, at: f64, random: &mut Random) -> f64 {
        match self.rate_at(at) {
            (0.0, until) => until + random.up_to((until - at) / 2.0),
            _ => at,
        }
    }

    /// When the last of `bytes` that come at `at` leaves the bottleneck.
    fn carry(&mut self, at: f64, bytes: f64) -> f64 {
        let (mut at, mut left) = (at.max(self.free_at), bytes);
        loop {
            let (rate, until) = self.rate_at(at);
            if at + left / rate <= until {
                self.free_at = at + left / rate;
                return self.free_at;
            }
            left -= (until - at) * rate;
            at = until;
        }
    }
}

/// A chunk on its way.
pub(super) struct Flight {
    pub(super) bytes: f64,
    /// When its bytes can be read, and when the sender hears of them.
    pub(super) delivered_at: f64,
    pub(super) acknowledged_at: f64,
    is_lost: bool,
    sent_at: f64,
}

/// One TCP connection's sending side.
#[derive(Debug)]
pub(super) struct Connection {
    window: f64,
    in_flight: f64,
    is_in_slow_start: bool,
    /// The window is not cut again before.
    cut_until: f64,
    /// Frames not sent yet, and what is left of each.
    unsent: VecDeque<(u64, f64)>,
    unsent_bytes: f64,
    /// When the newest byte can be read.
    delivered_at: f64,
    /// When the policer lets the next chunk pass.
    policed_until: f64,
    /// Bytes delivered that the downstream has not read.
    pub(super) unread: f64,
}

impl Connection {
    pub(super) fn new() -> Self {
        Self {
            window: FIRST_WINDOW_BYTES,
            in_flight: 0.0,
            is_in_slow_start: true,
            cut_until: 0.0,
            unsent: VecDeque::new(),
            unsent_bytes: 0.0,
            delivered_at: 0.0,
            policed_until: 0.0,
            unread: 0.0,
        }
    }

    pub(super) fn push(&mut self, seq: u64, bytes: f64) {
        self.unsent.push_back((seq, bytes));
        self.unsent_bytes += bytes;
    }

    /// As poll(2) sees it with TCP_NOTSENT_LOWAT.
    pub(super) fn has_room(&self, lowat: f64) -> bool {
        2.0 * self.unsent_bytes < lowat
    }

    /// The next chunk, if the windows allow one.
    ///
    /// Returns the chunk and the frames that are complete with it.
    pub(super) fn transmit(
        &mut self,
        path: &mut Path,
        now: f64,
        random: &mut Random,
    ) -> Option<(Flight, Vec<u64>)> {
        let is_closed = self.in_flight >= self.window || self.in_flight + self.unread >= RECEIVE_BUFFER_BYTES;
        if is_closed || self.unsent.is_empty() {
            return None;
        }
        let (mut bytes, mut complete) = (0.0, Vec::new());
        while let Some((seq, left)) = self.unsent.front_mut() {
            let part = left.min(path.spec.chunk() - bytes);
            bytes += part;
            *left -= part;
            if *left > 0.0 {
                break;
            }
            complete.push(*seq);
            self.unsent.pop_front();
        }
        self.unsent_bytes -= bytes;
        self.in_flight += bytes;
        path.in_flight += bytes;
        let PathSpec { connection_rate, queue: queue_max, round_trip, jitter, loss, congestion, .. } =
            path.spec;
        let policed = self.policed_until.max(now) + bytes / connection_rate;
        self.policed_until = policed;
        // As if senders paced: what a round trip holds is no queue.
        let overflows = path.in_flight > queue_max + round_trip * path.rate_at(now).0;
        if overflows && congestion == Congestion::Cubic {
            // At once, and not a round trip later: nothing here forgets what the queue dropped.
            self.cut(now, round_trip + (path.free_at - now).max(0.0));
        }
        let packets = (bytes / SEGMENT_BYTES).ceil() as i32;
        let mut attempts = 1;
        if overflows || (loss > 0.0 && random.chance(1.0 - (1.0 - loss).powi(packets))) {
            attempts = 2;
            while attempts < ATTEMPTS_MAX && random.chance(loss) {
                attempts += 1;
            }
        }
        let leaves = path.leaves(policed, random);
        let queue = (path.free_at - now).max(0.0);
        let mut arrival = path.carry(leaves, bytes) + round_trip / 2.0 + random.up_to(jitter);
        for attempt in 1..attempts {
            // Fast retransmission finds the first two; then the timer does, twice as late each time.
            let timeout = TIMEOUT_SECONDS_MIN.max(1.5 * round_trip) * f64::from(1 << attempt) / 4.0;
            arrival += if attempt <= 2 { round_trip + queue } else { timeout };
        }
        self.delivered_at = self.delivered_at.max(arrival);
        let flight = Flight {
            bytes,
            delivered_at: self.delivered_at,
            acknowledged_at: arrival + round_trip / 2.0,
            is_lost: attempts > 1,
            sent_at: now,
        };
        Some((flight, complete))
    }

    /// Loss, once for all that is on its way.
    fn cut(&mut self, now: f64, round_trip: f64) {
        if now >= self.cut_until {
            self.cut_until = now + round_trip;
            self.is_in_slow_start = false;
            self.window = (0.7 * self.window).max(2.0 * SEGMENT_BYTES);
        }
    }

    /// TCP hears that a chunk has arrived. `lanes` share the path.
    pub(super) fn acknowledged(&mut self, flight: &Flight, path: &mut Path, lanes: usize, now: f64) {
        self.in_flight -= flight.bytes;
        path.in_flight -= flight.bytes;
        let round_trip = path.spec.round_trip;
        let rate = path.rate_at(now).0.max(path.spec.rate / 100.0) / lanes as f64;
        let product = rate.min(path.spec.connection_rate) * round_trip;
        match path.spec.congestion {
            Congestion::Bbr => {
                let full = (BBR_WINDOW * product).max(4.0 * SEGMENT_BYTES);
                self.window = (self.window + flight.bytes).min(full);
            }
            Congestion::Cubic if flight.is_lost => {
                self.cut(now, now - flight.sent_at);
            }
            Congestion::Cubic if self.is_in_slow_start => self.window += flight.bytes,
            Congestion::Cubic => {
                // A segment each round trip, or as much as brings the window back within 25 of them.
                let step = SEGMENT_BYTES.max(0.015 * self.window);
                self.window += step * flight.bytes / self.window;
            }
        }
        self.window = self.window.min(64e6);
    }
}
