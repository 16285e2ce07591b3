//! What one direction of an emulated link does to packets, and what it has done.
//!
//! In: figures of a scenario. Out: a checked [`Shape`] for the shaper. Invariant: a shape that passes [`Shape::check`]
//! bounds the memory that a link can hold.

use std::time::Duration;

use thiserror::Error;

/// The least rate that a link takes. A packet of 1500 bytes needs 1.2 s at it.
pub const RATE_MBIT_MIN: f64 = 0.01;
/// The highest rate that a link takes: one thread cannot carry more.
pub const RATE_MBIT_MAX: f64 = 10_000.0;
/// The longest delay and jitter: longer than any path that TCP survives.
pub const DELAY_MAX: Duration = Duration::from_secs(10);
/// What may be inside one direction, by its shape: queue plus rate times delay. Bounds the emulator's memory.
pub const INSIDE_BYTES_MAX: u64 = 1 << 30;

/// What one direction of a link does: a drop-tail bottleneck, then loss, then delay.
///
/// Bytes are those of IP packets of the device's MTU, headers included: a TSO super-packet counts as the packets that
/// a network card would make of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    /// Rate of the bottleneck in Mbit/s (10^6 bit/s).
    pub rate_mbit: f64,
    /// What may wait for the bottleneck, the packet on its way through it included. What does not fit is dropped. A
    /// single packet always fits into an empty queue.
    pub queue_bytes: u64,
    /// One-way delay after the bottleneck.
    pub delay: Duration,
    /// The delay drifts slowly within `delay` ± `jitter` (not below zero). Packets keep their order.
    pub jitter: Duration,
    /// Share of packets that are lost behind the bottleneck, 0 to 1.
    pub loss: f64,
    /// Mean number of packets lost in a row (Gilbert's model), at least 1. None: each loss is independent of the last.
    pub burst: Option<f64>,
    /// Every TCP connection is policed to this many Mbit/s before the bottleneck. None: no policer.
    pub flow_mbit: Option<f64>,
}

/// Why a [`Shape`] cannot be emulated.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum ShapeError {
    /// The bottleneck's or the policer's rate.
    #[error("{what} of {rate_mbit} Mbit/s: choose {RATE_MBIT_MIN} to {RATE_MBIT_MAX}")]
    Rate {
        /// Which of the two rates.
        what: &'static str,
        /// The rate that was asked for.
        rate_mbit: f64,
    },
    /// The loss is not a share.
    #[error("a loss of {0}: choose 0 to 1 (0.01 is one packet in a hundred)")]
    Loss(f64),
    /// The mean length of a loss burst is below one packet, or not a number.
    #[error("loss bursts of {0} packets: choose 1 to 1000")]
    Burst(f64),
    /// Delay or jitter is too long.
    #[error("{what} of {} ms: choose at most {} ms", .asked.as_millis(), DELAY_MAX.as_millis())]
    Delay {
        /// Delay or jitter.
        what: &'static str,
        /// What was asked for.
        asked: Duration,
    },
    /// Rate, delay and queue together need too much memory.
    #[error(
        "queue, rate and delay let {0} bytes be inside the link: choose smaller ones, {INSIDE_BYTES_MAX} at most"
    )]
    Inside(u64),
}

impl Shape {
    /// A clean direction: no loss, no jitter, no policer.
    pub const fn clean(rate_mbit: f64, delay: Duration, queue_bytes: u64) -> Self {
        Self {
            rate_mbit,
            queue_bytes,
            delay,
            jitter: Duration::ZERO,
            loss: 0.0,
            burst: None,
            flow_mbit: None,
        }
    }

    /// Whether the emulator can do this within its bounds.
    pub fn check(&self) -> Result<(), ShapeError> {
        for (what, rate) in [("a rate", Some(self.rate_mbit)), ("a rate per connection", self.flow_mbit)] {
            if let Some(rate_mbit) = rate
                && !(RATE_MBIT_MIN..=RATE_MBIT_MAX).contains(&rate_mbit)
            {
                return Err(ShapeError::Rate { what, rate_mbit });
            }
        }
        if !(0.0..=1.0).contains(&self.loss) {
            return Err(ShapeError::Loss(self.loss));
        }
        if let Some(burst) = self.burst
            && !(1.0..=1000.0).contains(&burst)
        {
            return Err(ShapeError::Burst(burst));
        }
        for (what, asked) in [("a delay", self.delay), ("a jitter", self.jitter)] {
            if asked > DELAY_MAX {
                return Err(ShapeError::Delay { what, asked });
            }
        }
        let flying = self.rate_mbit * 1e6 / 8.0 * (self.delay + self.jitter).as_secs_f64();
        let inside = self.queue_bytes.saturating_add(flying as u64);
        if inside > INSIDE_BYTES_MAX { Err(ShapeError::Inside(inside)) } else { Ok(()) }
    }
}

/// One of the two directions of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
pub enum Direction {
    /// From the first device, the client's, to the second.
    #[serde(rename = "to-server")]
    Forward,
    /// From the second device to the first.
    #[serde(rename = "to-client")]
    Backward,
}

/// What one direction of a link has done since it was started. Packets are those of the wire, never super-packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets that the bottleneck carried, those included that the loss took behind it.
    pub packets: u64,
    /// Bytes of these packets.
    pub bytes: u64,
    /// Bytes that wait for the bottleneck now: the only figure here that can fall.
    pub queued_bytes: u64,
    /// Packets dropped because the queue was full.
    pub dropped_queue: u64,
    /// Packets lost behind the bottleneck.
    pub dropped_loss: u64,
    /// Packets dropped by an outage.
    pub dropped_outage: u64,
    /// Packets dropped because their TCP connection was over its own rate.
    pub dropped_policer: u64,
    /// Packets that left the emulator more than 2 ms after they were due: the machine was too busy.
    pub late: u64,
    /// Packets that the receiving device did not take: it is down, or the kernel has no memory.
    pub refused: u64,
}
