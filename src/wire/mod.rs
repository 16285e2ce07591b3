//! What two Plait processes say to each other on a lane, as bytes and nothing else.
//!
//! In: bytes that an I/O layer read from a lane. Out: typed frames, bytes to write. `lanes`, `upstream`, `relay` and
//! `downstream` call it. Invariant: no I/O, no clock, no randomness of its own, and no length or count from the network is
//! used before it was checked against a bound.
//!
//! While a transfer owns a lane, [`frame_check`] judges the order of its [`frame`]s.

pub mod frame;
pub mod frame_check;
pub mod key;
pub mod key_file;
pub mod reason;
pub mod route;
pub mod units;
