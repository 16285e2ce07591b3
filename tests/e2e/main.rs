//! The whole chain from the outside: one process per role, clients that users have, and what they receive.
//!
//! Each test starts processes of its own on ports of the kernel's choice, so that all may run at once.

mod ahead;
mod bad_roots;
mod browser;
mod cache;
mod cache_rules;
mod chain;
mod client;
mod content;
mod dashboard;
mod discovery;
mod disk;
mod documents;
mod doors;
mod download;
mod failures;
mod gate;
mod hand_over;
mod hostile;
mod integrity;
mod killed;
mod limits;
mod load;
mod lost_files;
mod media;
#[path = "../missing/mod.rs"]
mod missing;
mod mptcp;
mod name_server;
mod observe;
mod open_length;
mod operate;
mod orchestrators;
mod passing;
mod players;
mod process;
mod prometheus;
mod reload;
mod revalidation;
mod roots;
#[allow(dead_code, reason = "the tests of `lanes` and `mp` use the rest")]
#[path = "../../src/lanes/tests/scripted.rs"]
mod scripted;
mod semantics;
mod settings;
mod shared_fetch;
mod smuggling;
mod spans;
mod stopping;
mod survive;
mod top;
mod viewers;

// Where `scripted` finds it.
use plait::wire;
