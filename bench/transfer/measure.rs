//! In: one transfer. Out: its sample: what the client saw, what the processes used, what the links carried.
//!
//! Called by `roles` and `peers`. Invariant: a transfer runs alone, with the scenario's events from its first moment.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use plait::lab::Lab;
use socket2::Protocol;

use crate::Outcome;
use crate::cell::Sample;
use crate::client::{Download, Request};
use crate::row::Row;

/// CPU time by role, in nanoseconds.
pub type CpuByRole = BTreeMap<&'static str, u64>;

/// What all transfers of a row have in common.
pub struct Ground<'a> {
    pub lab: &'a Lab,
    pub row: &'a Row,
    /// Holds the file; also takes logs, configurations and what aria2c writes.
    pub dir: &'a Path,
    pub bytes: u64,
    /// When a transfer is cut off.
    pub deadline: Duration,
}

impl<'a> Ground<'a> {
    /// A request of the bench's own client for the file.
    pub fn request(&self, server: std::net::SocketAddr, protocol: Protocol) -> Request<'a> {
        Request {
            host: self.lab.client(),
            server,
            source: None,
            protocol,
            bytes: self.bytes,
            deadline: self.deadline,
        }
    }

    /// Runs `transfer`. `cpu` reads what each role has used since it was started; `transfer` adds what ended with it.
    pub fn measure(
        &self,
        cpu: impl Fn() -> Outcome<CpuByRole>,
        transfer: impl FnOnce() -> Outcome<(Download, CpuByRole)>,
    ) -> Outcome<Sample> {
        let (cpu_before, links_before) = (cpu()?, self.lab.counters());
        let events = self.lab.play();
        let (download, mut cpu_ns) = transfer()?;
        drop(events);
        if download.bytes == 0 {
            return Err(format!("nothing came within {} s", download.seconds).into());
        }
        for (role, after) in cpu()? {
            let used = after.saturating_sub(cpu_before.get(role).copied().unwrap_or(0));
            *cpu_ns.entry(role).or_default() += used;
        }
        let (mut wire_bytes, mut packets, mut late) = (Vec::new(), 0, 0);
        for (before, after) in links_before.iter().zip(self.lab.counters()) {
            let [_, to_client] = after;
            wire_bytes.push(to_client.bytes - before[1].bytes);
            for (before, after) in before.iter().zip(after) {
                packets += after.packets - before.packets;
                late += after.late - before.late;
            }
        }
        Ok(Sample {
            round: 0,
            download,
            cpu_s: cpu_ns.into_iter().map(|(role, ns)| (role, ns as f64 / 1e9)).collect(),
            wire_bytes,
            late: late as f64 / packets.max(1) as f64,
        })
    }
}
