//! placeholder
pub mod control;
pub mod freshness;
pub mod ranges;
