//! Multipath.
