//! `plait::mp::queue` by itself, for loom and Miri; see this crate's Cargo.toml for the commands.

#[path = "../../../src/mp/queue.rs"]
pub mod queue;
