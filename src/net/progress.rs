//! Waits for a peer that takes what is sent to it, however slowly, and gives up on one that takes nothing.
//!
//! In: a socket that is blocked for writing. Out: room to write, or the verdict that the peer stalls. Called by
//! whatever delivers a response.

use std::{io, time::Duration};

use super::Socket;
use crate::exec::{self, Interest};

/// How often a wait looks whether the peer moves: the verdict is late by at most two of these parts of the deadline.
const LOOKS_PER_DEADLINE: u32 = 4;

impl Socket {
    /// Waits for room to write. A socket reports room only once a good part of its buffer is free, which a slow peer
    /// may need long for; so what counts is whether the peer acknowledges anything.
    ///
    /// # Errors
    /// `TimedOut` when the peer acknowledged nothing for `stall_max`; otherwise those of the poll.
    pub async fn writable_within(&self, stall_max: Duration) -> io::Result<()> {
        let look = stall_max / LOOKS_PER_DEADLINE;
        let mut seen = None;
        let mut looks_without_progress = 0;
        loop {
            match exec::timeout(look, self.ready(Interest::Write)).await {
                Ok(ready) => return ready,
                Err(exec::Elapsed) => {
                    let acknowledged = self.tcp_info().ok().map(|info| info.acknowledged_bytes);
                    looks_without_progress =
                        if seen == Some(acknowledged) { looks_without_progress + 1 } else { 0 };
                    seen = Some(acknowledged);
                    if looks_without_progress >= LOOKS_PER_DEADLINE {
                        return Err(io::Error::new(
                            io::ErrorKind::TimedOut,
                            format!("the peer took nothing for {} s", stall_max.as_secs_f32()),
                        ));
                    }
                }
            }
        }
    }
}
