//! What two Plait processes say to each other on a lane, as bytes and nothing else.
//!
//! In: bytes that an I/O layer read from a lane, random nonces that it drew. Out: typed frames, a route, bytes to write.
//! `lanes`, `upstream`, `relay` and `downstream` call it. Invariant: no I/O (except [`key_file`], at start), no clock, no
//! randomness of its own, and no length or count from the network is used before it was checked against a bound.
//!
//! A lane's life: a [`handshake`], proved by a [`key`] (of a [`key_ring`]) and carrying a [`route`]; then [`frame`]s, whose order
//! [`frame_check`] judges while a transfer owns the lane. The first of them may ask for [`filler`].

pub mod filler;
pub mod frame;
pub mod frame_check;
pub mod handshake;
pub mod key;
pub mod key_file;
pub mod key_ring;
pub mod path_source;
pub mod reason;
pub mod route;
pub mod units;
