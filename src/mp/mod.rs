//! Multipath.

pub mod stripe;
