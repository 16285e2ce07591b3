//! The striper in random worlds, in virtual time: `tests` says what must hold.

mod event;
mod lane;
mod path;
pub(super) mod random;
mod receiver;
mod spec;
mod tests;
mod world;
