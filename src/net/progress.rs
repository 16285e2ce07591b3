//! Waits for a peer that takes what is sent to it, however slowly, and gives up on one that takes nothing.
//!
//! In: a socket that has refused bytes. Out: room to write, or the verdict that the peer stalls. Called by whatever
//! moves bytes to a peer. Invariant: a wait that follows a wait, with no byte sent in between, begins with a pause, so
//! that no caller spins.

use std::{io, time::Duration};

use super::Socket;
use crate::exec::{self, Instant, Interest};

/// How often a wait looks whether the peer moves: the verdict is late by at most two of these parts of the deadline.
const LOOKS_PER_DEADLINE: u32 = 4;
/// Between two tries while the socket says that it has room and takes nothing.
pub(super) const MEMORY_PAUSE: Duration = Duration::from_millis(5);

impl Socket {
    /// Waits for room after a send that found none.
    ///
    /// Where the host's TCP memory is used up, tcp(7), the poll sees room that sending does not find: without a pause the
    /// two would take turns for ever.
    ///
    /// # Errors
    /// Those of the poll; an error of the connection counts as room, so that the next send shows it.
    pub async fn room(&self) -> io::Result<()> {
        if self.room_seen_at.get().is_some() {
            exec::sleep(MEMORY_PAUSE).await;
        }
        self.while_sending(self.ready(Interest::Write)).await?;
        if self.room_seen_at.get().is_none() {
            self.room_seen_at.set(Some(Instant::now()));
        }
        Ok(())
    }

    /// Sends all of `bytes`, to a peer that may be slow, but not stalled.
    ///
    /// # Errors
    /// The connection's, or those of [`Socket::writable_within`].
    pub async fn send_within(&self, mut bytes: &[u8], more: bool, stall_max: Duration) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.try_send(bytes, more) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.writable_within(stall_max).await?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// [`Socket::room`] with a deadline. A socket reports room only once a good part of its buffer is free, which a slow
    /// peer may need long for; so what counts is whether the peer acknowledges anything.
    ///
    /// # Errors
    /// `TimedOut` when the peer acknowledged nothing, or the kernel took nothing, for `stall_max`; otherwise those of the
    /// poll.
    pub async fn writable_within(&self, stall_max: Duration) -> io::Result<()> {
        let stalled = |who: &str| {
            let text = format!("{who} took nothing for {} s", stall_max.as_secs_f32());
            Err(io::Error::new(io::ErrorKind::TimedOut, text))
        };
        if self.room_seen_at.get().is_some_and(|since| since.elapsed() > stall_max) {
            return stalled("this host's TCP memory is used up (see tcp_mem in tcp(7)): the kernel");
        }
        let look = stall_max / LOOKS_PER_DEADLINE;
        let mut seen = None;
        let mut looks_without_progress = 0;
        loop {
            match exec::timeout(look, self.room()).await {
                Ok(room) => return room,
                Err(exec::Elapsed) => {
                    let acknowledged = self.tcp_info().ok().map(|info| info.acknowledged_bytes);
                    looks_without_progress =
                        if seen == Some(acknowledged) { looks_without_progress + 1 } else { 0 };
                    seen = Some(acknowledged);
                    if looks_without_progress >= LOOKS_PER_DEADLINE {
                        return stalled("the peer");
                    }
                }
            }
        }
    }
}
