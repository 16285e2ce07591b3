//! Idle lanes that the other side closes.
//!
//! In: hang-ups of the lanes on the shelf. Out: a pool without them. Called by [`Pool::keep`], for as long as it has nothing
//! else to do. A relay or upstream that stops waits for its lanes to be closed, and a request that takes a dead one from
//! the shelf has to look for another. Invariant: one poll a lane, armed once and for all: it costs a transfer nothing.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::{Context, Poll},
};

use super::Pool;
use crate::{exec::Interest, lanes::lane::Lane};

impl Lane {
    /// Whether the other side has closed it; the task is woken then. From now on it is watched.
    fn has_hung_up(&self, cx: &mut Context<'_>) -> bool {
        self.is_watched.set(true);
        pin!(self.socket().ready(Interest::HangUp)).poll(cx).is_ready()
    }
}

impl Pool {
    /// Resolves when idle lanes were closed by the other side, and are gone from the shelf.
    pub(super) async fn hung_up(&self) {
        poll_fn(|cx| {
            let hung_up: Vec<_> =
                self.idle.borrow_mut().extract_if(.., |lane| lane.has_hung_up(cx)).collect();
            if hung_up.is_empty() {
                return Poll::Pending;
            }
            self.note_warmth();
            for lane in hung_up {
                tracing::debug!(path = self.path.name(), "an idle lane was closed by the other side");
                drop(lane);
                self.lane_gone();
            }
            Poll::Ready(())
        })
        .await;
    }
}
