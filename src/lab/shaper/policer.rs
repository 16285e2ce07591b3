//! A limit for every TCP connection of its own, as some providers set it.
//!
//! In: packets with the connection they belong to. Out: how many of their segments pass. Invariant: at most
//! [`FLOWS_MAX`] connections are remembered, and forgetting one never lets it exceed its rate.

use std::collections::HashMap;

use super::Arrival;

/// Depth of a bucket, as time at the rate: policers are configured with 50 ms to 1.5 s; a round trip of a long path
/// lets a single connection come near its rate.
const DEPTH_MS: f64 = 100.0;
/// Ten packets: a bucket that is not as deep as one super-packet's beginning would stop a slow connection for good.
const DEPTH_BYTES_MIN: f64 = 15_000.0;
/// Connections that are over a tenth of a second's worth of data at once: no test needs so many.
const FLOWS_MAX: usize = 16_384;

/// One direction of a TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Source and destination address; IPv4 uses the first eight bytes.
    pub addresses: [u8; 32],
    /// Source and destination port.
    pub ports: [u8; 4],
}

/// A token bucket for each connection. What is not TCP passes.
#[derive(Debug)]
pub struct Policer {
    bytes_per_ns: f64,
    depth_bytes: f64,
    buckets: HashMap<Flow, Bucket>,
}

#[derive(Debug)]
struct Bucket {
    bytes: f64,
    filled_ns: u64,
}

impl Policer {
    /// At most `flow_mbit` for each connection.
    pub fn new(flow_mbit: f64) -> Self {
        let depth_bytes = (flow_mbit * 125.0 * DEPTH_MS).max(DEPTH_BYTES_MIN);
        Self { bytes_per_ns: flow_mbit / 8_000.0, depth_bytes, buckets: HashMap::new() }
    }

    /// How many of the packet's first segments its connection may still send.
    pub fn admit(&mut self, now_ns: u64, arrival: &Arrival) -> u16 {
        let Some(flow) = arrival.flow else { return arrival.segments };
        if self.buckets.len() >= FLOWS_MAX && !self.buckets.contains_key(&flow) {
            let (rate, depth) = (self.bytes_per_ns, self.depth_bytes);
            // A full bucket is as good as none.
            self.buckets.retain(|_, bucket| bucket.level(now_ns, rate) < depth);
            if self.buckets.len() >= FLOWS_MAX {
                return 0;
            }
        }
        let fresh = Bucket { bytes: self.depth_bytes, filled_ns: now_ns };
        let bucket = self.buckets.entry(flow).or_insert(fresh);
        bucket.bytes = bucket.level(now_ns, self.bytes_per_ns).min(self.depth_bytes);
        bucket.filled_ns = now_ns;
        for index in 0..arrival.segments {
            let left = bucket.bytes - f64::from(arrival.bytes(index));
            if left < 0.0 {
                return index;
            }
            bucket.bytes = left;
        }
        arrival.segments
    }
}

impl Bucket {
    fn level(&self, now_ns: u64, bytes_per_ns: f64) -> f64 {
        self.bytes + (now_ns - self.filled_ns) as f64 * bytes_per_ns
    }
}
