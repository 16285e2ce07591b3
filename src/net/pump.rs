//! Moves a byte stream from one socket to another until it ends: all that a relay does once a lane stands.
//!
//! Invariant: demand-driven. While the destination is blocked nothing is read, and only that one side is waited for;
//! polling both ends wakes ten times more often.

use std::{cell::Cell, io};

use super::{Conduit, Drained, Filled, Socket};
use crate::exec::{self, Budget, Interest};

/// Asked of one splice: as much as a full pipe may hold when its slots carry 32 KiB fragments (loopback, LRO).
const FILL_BYTES_MAX: usize = 8 << 20;
/// Moved without once waiting before other tasks get their turn: a few milliseconds of memory bandwidth.
const TURN_BYTES_MAX: usize = 16 << 20;

/// Moves everything from `source` to `destination` and then finishes the sending side of `destination`. Adds to
/// `moved` as bytes leave.
///
/// # Errors
/// The first error of either side.
pub async fn pump(source: &Socket, destination: &Socket, moved: &Cell<u64>) -> io::Result<()> {
    let mut conduit = Conduit::new();
    let (mut bytes, mut budget) = (0, Budget::default());
    loop {
        match conduit.fill(source, FILL_BYTES_MAX)? {
            Filled::Bytes(_) | Filled::Full => budget.spend().await,
            Filled::SourceEmpty => {
                destination.while_sending(source.ready(Interest::Read)).await?;
                bytes = 0;
                continue;
            }
            Filled::EndOfFile => {
                destination.finish();
                return Ok(());
            }
        }
        while !conduit.is_empty() {
            match conduit.drain(destination, usize::MAX)? {
                Drained::Bytes(n) => {
                    moved.set(moved.get() + n as u64);
                    bytes += n;
                }
                Drained::Blocked => {
                    destination.room().await?;
                    bytes = 0;
                }
            }
        }
        if bytes > TURN_BYTES_MAX {
            exec::yield_now().await;
            bytes = 0;
        }
    }
}
