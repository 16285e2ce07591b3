//! Multipath: one response over many lanes, put together again in order.
//!
//! A byte's walk: [`manager`] opens a transfer, whose [`crew`] leases lanes; a `producer` per lane takes frames off it
//! and publishes them in the [`queue`]; the [`consumer`] takes them in order and moves them to the client. [`transfer`]
//! is what they share, `share` when one gives a lane up for another, `jam` when it gives one up for its own sake, `window`
//! how far the upstream may be ahead of the client, `batch` how often a producer wakes, `looks` what it sees of its path,
//! `tap` how a producer and the consumer of the same core share a lane's socket; [`progress`] is what others see of the
//! consumer; `warm_up` is the transfer that goes before the first client's; `upstreams` says which upstream a transfer begins with, [`fetch_error`] why there is no response.

mod batch;
pub mod consumer;
pub mod crew;
pub mod duplicate;
pub mod fetch_error;
mod jam;
mod looks;
pub mod manager;
pub mod parked;
mod producer;
pub mod progress;
pub mod queue;
mod share;
pub mod stripe;
mod tap;
pub mod transfer;
pub mod upload;
mod upstreams;
mod warm_up;
mod window;

#[cfg(test)]
mod tests;
