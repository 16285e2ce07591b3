//! One response on its way from the root into the lanes that joined it.
//!
//! In: the response's head and body from `fetch`, demands for the next frame from the lanes, on whatever core each lives.
//! Out: the head, numbered frames, and how it all ended. Invariants: the frames handed out cut the body without gap or
//! overlap; a transfer ends once, and no frame is handed out afterwards.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use tokio::sync::{Mutex as AsyncMutex, watch};

use super::{
    registry::Registry,
    root_pool::RootPool,
    source::{Intake, Source},
};
use crate::{
    net::Shared,
    wire::{
        frame::{FIRST_CREDIT_BYTES, Outcome},
        reason::Reason,
        units::{FrameLen, Offset, Seq, TransferId},
    },
};

/// How a transfer ended, as its END frames say it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ending {
    pub(super) outcome: Outcome,
    /// Frames handed out.
    pub(super) frames: u64,
    /// Bytes in them.
    pub(super) bytes: u64,
    /// Empty unless aborted.
    pub(super) reason: Reason,
}

/// What all lanes wait for.
#[derive(Debug, Default)]
pub(super) struct State {
    /// The response's head, once it is known.
    pub(super) head: Option<Arc<[u8]>>,
    /// Nothing comes after this.
    pub(super) ending: Option<Arc<Ending>>,
}

/// A range of a file as a body.
#[derive(Debug)]
pub(super) struct FileBody {
    pub(super) file: OwnedFd,
    /// Where the body begins in the file.
    pub(super) start: u64,
    /// Bytes of the body.
    pub(super) len: u64,
}

/// The next frame, whose bytes are in the lane's conduit, or in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) seq: Seq,
    pub(super) offset: Offset,
    pub(super) len: FrameLen,
}

#[derive(Debug)]
enum Body {
    Stream(AsyncMutex<Source>),
    File(FileBody),
}

#[derive(Debug, Clone, Copy, Default)]
struct Totals {
    frames: u64,
    bytes: u64,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Transfer {
    id: TransferId,
    registry: Arc<Registry>,
    pool: Arc<RootPool>,
    state: watch::Sender<State>,
    body: OnceLock<Body>,
    /// Closed at once when the transfer fails, whatever core reads it.
    root: OnceLock<Shared>,
    totals: Mutex<Totals>,
    /// Bytes of the body that may be handed out: what the client has taken, and a window.
    credit: watch::Sender<u64>,
}

impl Transfer {
    pub(super) fn new(id: TransferId, registry: Arc<Registry>, pool: Arc<RootPool>) -> Self {
        Self {
            id,
            registry,
            pool,
            state: watch::Sender::default(),
            body: OnceLock::new(),
            root: OnceLock::new(),
            totals: Mutex::default(),
            credit: watch::Sender::new(FIRST_CREDIT_BYTES),
        }
    }

    pub(super) fn id(&self) -> TransferId {
        self.id
    }

    /// The downstream lets the body's bytes below `limit` go; credit is never taken back.
    pub(super) fn grant(&self, limit: u64) {
        self.credit.send_if_modified(|credit| {
            let more = limit > *credit;
            *credit = limit.max(*credit);
            more
        });
    }

    /// How many more bytes may be handed out now. Lanes that ask at once may exceed it by a frame each.
    pub(super) fn credit_left(&self) -> u64 {
        self.credit.borrow().saturating_sub(self.totals().bytes)
    }

    /// Resolves when there is credit.
    pub(super) async fn credited(&self) {
        // The sender is `self`, so the wait cannot fail.
        let _ = self.credit.subscribe().wait_for(|credit| *credit > self.totals().bytes).await;
    }

    /// A view of head and ending that can be waited on.
    pub(super) fn watch(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// How it ended, if it has.
    pub(super) fn ending(&self) -> Option<Arc<Ending>> {
        self.state.borrow().ending.clone()
    }

    /// Resolves when it has ended.
    pub(super) async fn ended(&self) {
        // The sender is `self`, so the wait cannot fail.
        let _ = self.watch().wait_for(|state| state.ending.is_some()).await;
    }

    /// Publishes the head; the lanes may pull from `source`.
    pub(super) fn begin(&self, head: Vec<u8>, source: Source) {
        if let Source::Root(body) = &source {
            let _ = self.root.set(body.connection.clone());
        }
        let is_empty = match &source {
            Source::Memory(bytes) => bytes.is_empty(),
            Source::Root(body) => body.is_complete(),
            Source::Spent => true,
        };
        let _ = self.body.set(Body::Stream(AsyncMutex::new(source)));
        self.publish(head, is_empty);
        if is_empty {
            self.release();
        }
    }

    /// Publishes the head; the lanes send ranges of `file`.
    pub(super) fn begin_file(&self, head: Vec<u8>, file: FileBody) {
        let is_empty = file.len == 0;
        let _ = self.body.set(Body::File(file));
        self.publish(head, is_empty);
    }

    fn publish(&self, head: Vec<u8>, is_empty: bool) {
        self.state.send_modify(|state| state.head = Some(head.into()));
        if is_empty {
            self.end(Outcome::Complete, "");
        } else if self.ending().is_some() {
            // It was cancelled meanwhile, when there was no connection to close yet.
            self.close_root();
        }
    }

    /// Ends the transfer, unless it has ended already; returns whether this call did it.
    pub(super) fn end(&self, outcome: Outcome, reason: &str) -> bool {
        let Totals { frames, bytes } = *self.totals();
        let ending = Arc::new(Ending { outcome, frames, bytes, reason: Reason::new(reason) });
        let first = self.state.send_if_modified(|state| {
            let first = state.ending.is_none();
            if first {
                state.ending = Some(ending.clone());
            }
            first
        });
        if !first {
            return false;
        }
        self.registry.retire(self, ending);
        if outcome == Outcome::Aborted {
            tracing::info!(transfer = %self.id, frames, bytes, "a transfer was aborted: {reason}");
        }
        if outcome != Outcome::Complete {
            self.close_root();
        }
        true
    }

    fn close_root(&self) {
        if let Some(root) = self.root.get() {
            root.close();
        }
    }

    /// Gives the root's connection back after a body that was read to its end.
    fn release(&self) {
        if let Some(Body::Stream(source)) = self.body.get()
            && let Ok(mut source) = source.try_lock()
        {
            keep_connection(&mut source, &self.pool);
        }
    }

    fn totals(&self) -> std::sync::MutexGuard<'_, Totals> {
        self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a frame was handed out.
    pub(super) fn has_frames(&self) -> bool {
        self.totals().frames > 0
    }

    /// The file that the frames' bytes are in, if they are not pulled through a conduit.
    pub(super) fn file(&self) -> Option<&FileBody> {
        match self.body.get() {
            Some(Body::File(file)) => Some(file),
            _ => None,
        }
    }

    /// The next frame, of at most `want` bytes; `None` when there is none now, because the transfer has ended or is about
    /// to. The bytes of a frame that is not of a file are in the conduit of `intake`.
    ///
    /// Dropping the future loses what it had taken; the next pull notices and aborts the transfer.
    pub(super) async fn pull(&self, want: usize, intake: &mut Intake) -> Option<Piece> {
        match self.body.get()? {
            Body::File(file) => {
                let (piece, is_last) = {
                    let mut totals = self.totals();
                    let len = (file.len - totals.bytes).min(want as u64);
                    let piece = if len == 0 { None } else { take(&mut totals, len) };
                    (piece, totals.bytes == file.len)
                };
                if is_last {
                    self.end(Outcome::Complete, "");
                }
                piece
            }
            Body::Stream(source) => self.pull_stream(&mut *source.lock().await, want, intake).await,
        }
    }

    async fn pull_stream(&self, source: &mut Source, want: usize, intake: &mut Intake) -> Option<Piece> {
        if self.ending().is_some() {
            return None;
        }
        if let Source::Root(body) = source
            && body.taken
        {
            self.end(Outcome::Aborted, "upstream: a lane was lost with a part of the body");
            return None;
        }
        let is_last = match source.pull(want, intake).await {
            Ok(is_last) => is_last,
            Err(error) => {
                let name = match source {
                    Source::Root(body) => body.root.clone(),
                    _ => Arc::default(),
                };
                self.end(Outcome::Aborted, &format!("root {name} {error}"));
                return None;
            }
        };
        let len = intake.conduit.len() as u64;
        let piece = if len == 0 { None } else { Some(take(&mut self.totals(), len)) };
        if let Some(None) = piece {
            self.end(Outcome::Aborted, "root: the body is longer than a transfer can carry");
            return None;
        }
        if let Source::Root(body) = source {
            body.taken = false;
        }
        if is_last && self.end(Outcome::Complete, "") {
            keep_connection(source, &self.pool);
        }
        piece.flatten()
    }
}

/// Numbers the next `len` bytes; `None` beyond what the numbers can express.
fn take(totals: &mut Totals, len: u64) -> Option<Piece> {
    let (seq, offset) = (Seq(totals.frames), Offset(totals.bytes));
    let len = FrameLen(u32::try_from(len).ok()?);
    let (next_seq, next_offset) = (seq.next()?, offset.next(len)?);
    *totals = Totals { frames: next_seq.0, bytes: next_offset.0 };
    Some(Piece { seq, offset, len })
}

fn keep_connection(source: &mut Source, pool: &RootPool) {
    if let Source::Root(body) = std::mem::replace(source, Source::Spent)
        && body.keep_alive
        && body.is_complete()
    {
        pool.give(body.connection);
    }
}
