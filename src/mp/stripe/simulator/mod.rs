//! The striper in random worlds, in virtual time: see `tests` for what must hold.

mod path;
mod random;
mod spec;
mod tests;
mod world;
