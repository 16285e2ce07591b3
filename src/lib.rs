//! Plait carries one HTTP response over many parallel, authenticated TCP lanes.
//!
//! The library exists for the `plait` binary, its benchmarks and its tests. Rooms, in the order a byte walks through
//! them: `root` → `upstream` → `relay` → `lanes` → `mp` → `downstream`; `wire` and `http` are free of I/O, `net` and
//! `exec` do all of it.

pub mod cache;
pub mod cli;
pub mod downstream;
pub mod exec;
pub mod http;
pub mod lab;
pub mod lanes;
pub mod mp;
pub mod net;
pub mod observe;
pub mod relay;
pub mod root;
#[cfg(test)]
mod simulation;
pub mod tune;
pub mod upstream;
pub mod wire;
