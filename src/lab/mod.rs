//! Emulated long paths on one machine, without the kernel's sch_netem.
//!
//! In: packets that one network namespace sends into a TUN device. Out: the same packets from another namespace's TUN
//! device, late, fewer, and no faster than the asked rate. Called by `plait lab` and the benchmarks. Rooms, from the
//! bottom up: `shape` says what a direction of a link does, `shaper` decides it packet by packet without I/O or clock,
//! `segment` cuts TSO super-packets, `tun` opens the devices, `link` is the thread that moves packets; `child` and `host`
//! make hosts of namespaces, `scenario` reads what a network is like, `topology` builds it with `ip` and `timeline`;
//! `role` is one role's process (started by `lasting`), `chain` runs all of them, `fetch` is a client of theirs, `calibrate` checks the emulator.

pub mod calibrate;
pub mod chain;
pub mod child;
mod contain;
pub mod fetch;
pub mod host;
pub mod ip;
mod lasting;
pub mod link;
mod punctual;
pub mod role;
pub mod scenario;
pub mod segment;
pub mod shape;
pub mod shaper;
pub mod store;
pub mod timeline;
pub mod topology;
pub mod tun;
pub mod usage;

pub use scenario::Scenario;
pub use topology::{Lab, LabError};
