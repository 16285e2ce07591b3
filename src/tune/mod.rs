//! Kernel settings that Plait wants: what the profiles of `tuning/` say, what this machine has, and how to change it.
//!
//! In: a profile's name, `/proc/sys`, `/sys`. Out: differences, written settings, a file that restores them, advice.
//! Called by `plait tune` and by the lab, which measures what a profile brings. Rooms: `profile` reads the files,
//! `kernel` reads and writes settings, `saved` keeps what was there before, `advice` looks at everything that is no
//! setting of sysctl(8). Invariant: what was there before is on the disk before anything is changed.

pub mod advice;
pub mod kernel;
pub mod profile;
pub mod saved;

#[cfg(test)]
mod tests;

pub use kernel::Kernel;
pub use profile::{Profile, Setting};
