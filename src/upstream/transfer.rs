//! One response on its way from the root into the lanes that joined it.
//!
//! In: the response's head and body from `fetch`, demands for the next frame and acknowledgements from the lanes, on
//! whatever core each lives. Out: the head, numbered frames, and how it all ended. Invariants: the frames handed out cut the
//! body without gap or overlap; a frame's bytes are kept until the downstream has them; a transfer ends once, and no frame
//! is handed out afterwards.

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use futures_util::{FutureExt, pin_mut, select_biased};
use tokio::sync::{Mutex as AsyncMutex, Notify, futures::Notified, watch};

use super::{
    home::Home,
    keep::{Held, Share},
    registry::Registry,
    root_pool::RootPool,
    source::{Source, View},
};
use crate::{
    exec::{self, Instant},
    mp::stripe::{LaneId, LaneModel, Overcount, Piece, Striper, Turn},
    net::{Conduit, Limit, Shared},
    wire::{
        frame::{Outcome, Reading},
        reason::Reason,
        units::{FrameLen, Seq, TransferId},
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

#[derive(Debug)]
enum Body {
    Stream(AsyncMutex<Stream>),
    File(FileBody),
}

/// A body that is pulled through conduits.
#[derive(Debug)]
struct Stream {
    source: Source,
    /// Pulled, and in no frame yet.
    gathered: Conduit,
}

/// Where the bytes of a frame are that a lane is to send.
#[derive(Debug)]
pub(super) enum Payload {
    /// In the transfer's file.
    File,
    /// In here.
    Conduit(Conduit),
}

/// What lanes, acknowledgements and losses change.
#[derive(Debug)]
struct Board {
    striper: Striper,
    /// Frames of a stream that nobody has acknowledged. Their number is bounded by the striper's, their bytes by the credit
    /// and by what all transfers may keep.
    kept: HashMap<Seq, (Conduit, Held)>,
    /// When the last lane left.
    deserted_since: Option<Instant>,
}

/// How long a transfer that has begun waits for a lane when it has none: paths that vanish together come back together,
/// after the seconds that a router needs to start again.
const DESERTED_MAX: Duration = Duration::from_secs(30);
/// Bounds of the pauses between two looks for lanes that have gone silent: a tenth of what a viewer notices, and often
/// enough to see that the last lane has left.
const WATCH_PAUSE_MIN: Duration = Duration::from_millis(20);
const WATCH_PAUSE_MAX: Duration = Duration::from_millis(200);

/// Between two looks whether a transfer may keep more: its own acknowledgements stir it, those of others do not.
const KEEP_PAUSE: Duration = Duration::from_millis(20);

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
    board: Mutex<Board>,
    share: Share,
    home: Home,
    began: Instant,
    /// Some lane's turn may have changed.
    stirred: Notify,
    /// Frames are to be sent again: lanes that wait for the root have something better to do.
    urgent: Notify,
}

impl Transfer {
    pub(super) fn new(
        id: TransferId,
        registry: Arc<Registry>,
        pool: Arc<RootPool>,
        share: Share,
        home: Home,
    ) -> Self {
        Self {
            id,
            registry,
            pool,
            state: watch::Sender::default(),
            body: OnceLock::new(),
            root: OnceLock::new(),
            board: Mutex::new(Board { striper: Striper::new(), kept: HashMap::new(), deserted_since: None }),
            share,
            home,
            began: Instant::now(),
            stirred: Notify::new(),
            urgent: Notify::new(),
        }
    }

    pub(super) fn id(&self) -> TransferId {
        self.id
    }

    /// Where its lanes are to be.
    pub(super) fn home(&self) -> &Home {
        &self.home
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Time since the transfer began, as its decisions count it.
    pub(super) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// A lane takes part from now on; `model` is what it learned in transfers before.
    pub(super) fn join(&self, model: LaneModel) -> LaneId {
        let mut board = self.board();
        board.deserted_since = None;
        board.striper.join(model, self.now())
    }

    /// A lane is lost or done: what it carried and nobody has is for the others. Returns what it learned.
    pub(super) fn leave(&self, lane: LaneId, is_last: bool) -> LaneModel {
        let model = {
            let mut board = self.board();
            board.deserted_since = is_last.then(Instant::now);
            board.striper.leave(lane, self.now())
        };
        self.urgent.notify_waiters();
        self.stirred.notify_waiters();
        model
    }

    /// The downstream has `frames` of this lane and waits for number `next` (the lower half of it), and lets the body's bytes
    /// below `limit` go.
    ///
    /// # Errors
    /// The downstream claims more than was sent.
    pub(super) fn received(
        &self,
        lane: LaneId,
        (frames, next): (u64, u32),
        reading: Reading,
        limit: u64,
    ) -> Result<(), Overcount> {
        let (released, is_delivered) = {
            let mut board = self.board();
            board.striper.grant(limit);
            let mut seqs = board.striper.received(lane, frames, reading, self.now())?;
            seqs.append(&mut board.striper.waits_for(next)?);
            #[cfg(test)]
            crate::simulation::ledger::let_go(self.id, &seqs);
            let released: Vec<_> = seqs.iter().filter_map(|seq| board.kept.remove(seq)).collect();
            (released, board.striper.is_delivered())
        };
        // Emptying pipes takes a system call each: not with the lock held.
        drop(released);
        if is_delivered {
            self.end(Outcome::Complete, "");
        }
        self.stirred.notify_waiters();
        Ok(())
    }

    /// Whether `lane` rests, and has brought all that was sent on it.
    pub(super) fn is_spent(&self, lane: LaneId) -> bool {
        self.board().striper.is_spent(lane)
    }

    /// What `lane`, which has room, is to do; `size` is the size that its frames should have.
    pub(super) fn turn(&self, lane: LaneId, size: usize) -> Turn {
        let turn = self.board().striper.turn(lane, size, self.now());
        match turn {
            Turn::Fresh { want } if self.file().is_none() => match self.share.allowed(want) {
                Some(want) => Turn::Fresh { want },
                None => {
                    Limit::Kept.hit();
                    Turn::Wait { until: Some(self.now() + KEEP_PAUSE) }
                }
            },
            turn => turn,
        }
    }

    /// Resolves when the outcome of [`Transfer::turn`] may have changed. To be [enabled](Notified::enable) before that is
    /// called.
    pub(super) fn stirred(&self) -> Notified<'_> {
        self.stirred.notified()
    }

    /// Resolves when frames are to be sent again.
    pub(super) fn urgent(&self) -> Notified<'_> {
        self.urgent.notified()
    }

    /// Frames and bytes in all, once nothing fresh remains.
    pub(super) fn totals_if_final(&self) -> Option<(u64, u64)> {
        let board = self.board();
        board.striper.is_body_ended().then(|| board.striper.totals())
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
        let length = match &source {
            Source::Root(body) => {
                let _ = self.root.set(body.connection.clone());
                body.length()
            }
            Source::Memory(bytes) => Some(bytes.len() as u64),
            Source::Spent => Some(0),
        };
        let stream = Stream { source, gathered: Conduit::new() };
        let _ = self.body.set(Body::Stream(AsyncMutex::new(stream)));
        self.publish(head, length);
        if length == Some(0) {
            self.release();
        }
    }

    /// Publishes the head; the lanes send ranges of `file`.
    pub(super) fn begin_file(&self, head: Vec<u8>, file: FileBody) {
        let len = file.len;
        let _ = self.body.set(Body::File(file));
        self.publish(head, Some(len));
    }

    fn publish(&self, head: Vec<u8>, length: Option<u64>) {
        self.board().striper.set_length(length);
        self.state.send_modify(|state| state.head = Some(head.into()));
        if length == Some(0) {
            self.board().striper.end_of_body();
            self.end(Outcome::Complete, "");
        } else if self.ending().is_some() {
            // It was cancelled meanwhile, when there was no connection to close yet.
            self.close_root();
        }
    }

    /// Ends the transfer, unless it has ended already; returns whether this call did it.
    pub(super) fn end(&self, outcome: Outcome, reason: &str) -> bool {
        let (frames, bytes) = self.board().striper.totals();
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
        let kept = std::mem::take(&mut self.board().kept);
        drop(kept);
        let resent = self.board().striper.resent();
        tracing::debug!(transfer = %self.id, ?outcome, frames, bytes, ?resent, "a transfer has ended");
        if outcome == Outcome::Aborted {
            tracing::info!(transfer = %self.id, frames, bytes, "a transfer was aborted: {reason}");
        }
        if outcome != Outcome::Complete {
            self.close_root();
        }
        true
    }

    /// Closes the root's connection, unless its body was read to the end: then it is somebody else's already.
    fn close_root(&self) {
        if let Some(root) = self.root.get()
            && !self.board().striper.is_body_ended()
        {
            root.close();
        }
    }

    /// Gives the root's connection back after a body that was read to its end.
    fn release(&self) {
        if let Some(Body::Stream(stream)) = self.body.get()
            && let Ok(mut stream) = stream.try_lock()
        {
            keep_connection(&mut stream.source, &self.pool);
        }
    }

    /// Whether a frame was handed out.
    pub(super) fn has_frames(&self) -> bool {
        self.board().striper.totals().0 > 0
    }

    /// The file that the frames' bytes are in, if they are not pulled through a conduit.
    pub(super) fn file(&self) -> Option<&FileBody> {
        match self.body.get() {
            Some(Body::File(file)) => Some(file),
            _ => None,
        }
    }

    /// A fresh frame of about `want` bytes for `lane`; `None` when there is none now, because the transfer has ended or is
    /// about to. May be dropped: nothing is lost.
    pub(super) async fn fresh(&self, lane: LaneId, want: usize, view: &mut View) -> Option<(Piece, Payload)> {
        match self.body.get()? {
            Body::File(file) => {
                let mut board = self.board();
                let len = (file.len - board.striper.totals().1).min(want as u64);
                let len = FrameLen(u32::try_from(len).ok().filter(|&len| len > 0)?);
                let piece = board.striper.cut(lane, len, self.now())?;
                if board.striper.totals().1 == file.len {
                    board.striper.end_of_body();
                    drop(board);
                    self.stirred.notify_waiters();
                }
                Some((piece, Payload::File))
            }
            Body::Stream(stream) => self.pull(&mut *stream.lock().await, lane, want, view).await,
        }
    }

    async fn pull(
        &self,
        stream: &mut Stream,
        lane: LaneId,
        want: usize,
        view: &mut View,
    ) -> Option<(Piece, Payload)> {
        if self.ending().is_some() || self.board().striper.is_body_ended() {
            return None;
        }
        // Others have kept theirs while this lane waited for the source.
        let want = self.share.allowed(want)?;
        let Stream { source, gathered } = stream;
        let is_last = match source.pull(want, gathered, view).await {
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
        let frame = self.cut(std::mem::take(gathered), lane);
        if frame.is_err() {
            self.end(
                Outcome::Aborted,
                "upstream: a frame cannot be kept, or the body is longer than a transfer can be",
            );
            return None;
        }
        if is_last {
            // First, so that nobody closes a connection that is the pool's.
            let is_delivered = {
                let mut board = self.board();
                board.striper.end_of_body();
                board.striper.is_delivered()
            };
            keep_connection(source, &self.pool);
            if is_delivered {
                self.end(Outcome::Complete, "");
            }
            self.stirred.notify_waiters();
        }
        frame.ok().flatten()
    }

    /// Makes a frame of all of `bytes` and keeps a copy; none of no bytes.
    fn cut(&self, mut bytes: Conduit, lane: LaneId) -> Result<Option<(Piece, Payload)>, Unkept> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let copy = bytes.duplicate().map_err(|_| Unkept)?;
        let len = FrameLen(u32::try_from(bytes.len()).map_err(|_| Unkept)?);
        let mut board = self.board();
        let piece = board.striper.cut(lane, len, self.now()).ok_or(Unkept)?;
        board.kept.insert(piece.seq, (copy, self.share.hold(len.as_usize())));
        Ok(Some((piece, Payload::Conduit(bytes))))
    }

    /// Frame `seq` once more, for `lane`; `None` if somebody has it meanwhile.
    pub(super) fn again(&self, lane: LaneId, seq: Seq) -> Option<(Piece, Payload)> {
        let mut board = self.board();
        if self.file().is_some() {
            let piece = board.striper.again(lane, seq, self.now())?;
            return Some((piece, Payload::File));
        }
        let copy = board.kept.get_mut(&seq)?.0.duplicate();
        match copy {
            Ok(copy) => {
                board.striper.again(lane, seq, self.now()).map(|piece| (piece, Payload::Conduit(copy)))
            }
            Err(error) => {
                drop(board);
                self.end(Outcome::Aborted, &format!("upstream: a kept frame cannot be read: {error}"));
                None
            }
        }
    }

    /// Runs beside the lanes until the transfer has ended: finds lanes that have gone silent, and that none is left.
    pub(super) async fn guard(&self) {
        loop {
            let pause = {
                let mut board = self.board();
                let deserted = board.deserted_since.is_some_and(|since| since.elapsed() > DESERTED_MAX);
                let (changed, until) = board.striper.check(self.now());
                drop(board);
                if deserted {
                    self.end(Outcome::Aborted, "upstream: all lanes of the transfer were lost");
                }
                if changed {
                    self.urgent.notify_waiters();
                    self.stirred.notify_waiters();
                }
                until.map_or(WATCH_PAUSE_MAX, |until| until.saturating_sub(self.now()))
            };
            let (pause, ended) =
                (exec::sleep(pause.clamp(WATCH_PAUSE_MIN, WATCH_PAUSE_MAX)).fuse(), self.ended().fuse());
            pin_mut!(pause, ended);
            select_biased! {
                () = ended => return,
                () = pause => {}
            }
        }
    }
}

/// A frame was pulled that cannot be sent.
struct Unkept;

fn keep_connection(source: &mut Source, pool: &RootPool) {
    if let Source::Root(body) = std::mem::replace(source, Source::Spent)
        && body.keep_alive
        && body.is_complete()
    {
        pool.give(body.connection);
    }
}

#[cfg(test)]
mod tests;
