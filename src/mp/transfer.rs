//! What the producers of a transfer (on any core) and its one consumer share.
//!
//! In: heads, ends and losses, told by producers. Out: the state the consumer decides on. Called by `producer`,
//! `consumer` and `manager`. Invariants: the first head and the first end win; `live` counts the lanes that may still
//! bring frames, so `live == 0` with a frame missing is a truncation and nothing else; bytes parked stay below the
//! window of the transfer and the budget of the process.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    task::Context,
    time::Duration,
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use tokio::sync::Notify;

use super::{parked, upload::RequestBody, window::Crowding};
use crate::{
    net::Conduit,
    wire::{
        frame::{FIRST_CREDIT_BYTES, Outcome},
        units::TransferId,
    },
};

/// Bytes parked for one transfer at most: 500 Mbit/s at 300 ms is 19 MB, and a path a few times slower than the others
/// keeps that much waiting again.
pub const WINDOW_BYTES: usize = 64 << 20;
/// Frames in the ring: with 64 KiB frames, which a lane of 25 Mbit/s sends, it spans the whole window.
pub const WINDOW_FRAMES: usize = 1024;
/// Bytes handed over ahead while the client is the bottleneck: a full pipe for each of two lanes. More would only move
/// the queue from the sockets, where it holds the sender back, into pipes.
const AHEAD_OF_BLOCKED_CLIENT_BYTES: usize = 2 << 20;

/// How a transfer ended by the upstream's word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Complete, aborted or cancelled.
    pub outcome: Outcome,
    /// DATA frames over all lanes.
    pub frames: u64,
    /// Body bytes over all lanes.
    pub bytes: u64,
    /// Why, if aborted.
    pub reason: String,
}

/// What stands in a slot of the ring.
#[derive(Debug)]
pub enum Parcel {
    /// A frame of this tap of the consumer's core; its bytes may still be in the socket.
    Tapped {
        /// Index of the tap.
        tap: usize,
    },
    /// A whole frame in conduits, from a lane of another core.
    Handed(Box<HandedFrame>),
}

/// A whole frame, off its lane.
#[derive(Debug)]
pub struct HandedFrame {
    /// Where in the body it begins.
    pub offset: u64,
    /// Its bytes, in order.
    pub conduits: Vec<Conduit>,
    /// Their sum.
    pub len: usize,
}

#[derive(Debug, Default)]
struct State {
    head: Option<Bytes>,
    total: Option<(u64, u64)>,
    end: Option<End>,
    failure: Option<String>,
    /// Why its upstream is given up, although lanes to it may stand.
    deserted: Option<String>,
    last_loss: Option<String>,
}

/// See the module's description.
pub struct Transfer {
    id: TransferId,
    request: Bytes,
    /// The request's body, until a lane takes it.
    body: Mutex<Option<RequestBody>>,
    /// Frames of it that were sent.
    body_frames: AtomicU64,
    /// An OPEN was sent, or begun.
    opened: AtomicBool,
    state: Mutex<State>,
    /// Counts changes of `state` and `live`, so that the consumer looks only when there is something new.
    changes: AtomicU32,
    consumer: AtomicWaker,
    /// Lanes that may still bring frames, and dials that may still bring lanes.
    live: AtomicUsize,
    /// Instance of the upstream process that runs it; 0 until the first lane.
    instance: AtomicU64,
    /// It can be continued over another upstream.
    may_move: AtomicBool,
    cancelled: AtomicBool,
    completed: AtomicBool,
    over: Notify,
    next: AtomicU64,
    client_blocked: AtomicBool,
    parked: AtomicUsize,
    /// Most frames that one was ahead of the one waited for.
    depth: AtomicU64,
    /// The body's bytes below this may be sent; every lane tells the upstream.
    credit: AtomicU64,
    credited: Notify,
    pub(super) crowding: Crowding,
    /// Longest round trip of its lanes.
    round_trip_us: AtomicU64,
    /// Whole second copies of frames whose first copy had not all come. There are at most as many as lanes and frames in
    /// the ring, and their bytes count as parked.
    spares: Mutex<BTreeMap<u64, HandedFrame>>,
    spares_len: AtomicUsize,
    /// Lanes that carry it.
    seated: AtomicUsize,
    /// A lane did not come because all were busy.
    was_busy: AtomicBool,
    /// Body bytes that the sink has taken.
    taken: AtomicU64,
    /// Producers on other cores that wait for room.
    held_back: AtomicUsize,
    room: Notify,
}

impl Transfer {
    /// A transfer without lanes. `request` is the payload of every OPEN.
    pub fn new(id: TransferId, request: Bytes) -> Arc<Self> {
        Arc::new(Self {
            id,
            request,
            body: Mutex::default(),
            body_frames: AtomicU64::new(0),
            opened: AtomicBool::new(false),
            state: Mutex::default(),
            changes: AtomicU32::new(1),
            consumer: AtomicWaker::new(),
            live: AtomicUsize::new(0),
            instance: AtomicU64::new(0),
            may_move: AtomicBool::new(false),
            cancelled: AtomicBool::new(false),
            completed: AtomicBool::new(false),
            over: Notify::new(),
            next: AtomicU64::new(0),
            client_blocked: AtomicBool::new(false),
            parked: AtomicUsize::new(0),
            depth: AtomicU64::new(0),
            credit: AtomicU64::new(FIRST_CREDIT_BYTES),
            credited: Notify::new(),
            crowding: Crowding::default(),
            round_trip_us: AtomicU64::new(0),
            spares: Mutex::default(),
            spares_len: AtomicUsize::new(0),
            seated: AtomicUsize::new(0),
            was_busy: AtomicBool::new(false),
            taken: AtomicU64::new(0),
            held_back: AtomicUsize::new(0),
            room: Notify::new(),
        })
    }

    /// Its number on the lanes.
    pub fn id(&self) -> TransferId {
        self.id
    }

    /// The request's head, as every lane sends it.
    pub fn request(&self) -> &Bytes {
        &self.request
    }

    /// The body that the one lane of this transfer is to bring behind its OPEN.
    pub(super) fn set_body(&self, body: RequestBody) {
        *self.body.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
    }

    /// The body, for the lane that brings it; or back, if none did.
    pub(super) fn take_body(&self) -> Option<RequestBody> {
        self.body.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// A frame of the request's body was sent.
    pub(super) fn body_moved(&self) {
        self.body_frames.fetch_add(1, Ordering::Relaxed);
    }

    /// Frames of the request's body that were sent.
    pub(super) fn body_frames(&self) -> u64 {
        self.body_frames.load(Ordering::Relaxed)
    }

    /// A lane sends the OPEN: from now on the upstream may have it.
    pub(super) fn set_opened(&self) {
        self.opened.store(true, Ordering::SeqCst);
    }

    /// Whether the upstream may have the OPEN.
    pub(super) fn was_opened(&self) -> bool {
        self.opened.load(Ordering::SeqCst)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.consumer.wake();
    }

    // The producers' side.

    /// A lane, or a dial that may become one, is about to join. Every call is followed by one [`Transfer::lane_done`].
    pub fn lane_expected(&self) {
        self.live.fetch_add(1, Ordering::SeqCst);
    }

    /// True if a lane to `instance` may carry this transfer: all its lanes lead to one process.
    pub fn claim_instance(&self, instance: u64) -> bool {
        let claimed = self.instance.compare_exchange(0, instance, Ordering::SeqCst, Ordering::SeqCst);
        claimed.is_ok() || claimed == Err(instance)
    }

    /// The upstream process that runs it, once the first lane has joined.
    pub fn instance(&self) -> Option<u64> {
        Some(self.instance.load(Ordering::SeqCst)).filter(|&instance| instance != 0)
    }

    /// Whether any lane has joined.
    pub fn had_lane(&self) -> bool {
        self.instance().is_some()
    }

    /// A lane carries it from now on, or does so no more.
    pub(super) fn seat(&self, is_seated: bool) {
        let step = if is_seated { 1 } else { usize::MAX };
        self.seated.fetch_add(step, Ordering::SeqCst);
    }

    /// Lanes that carry it now.
    pub fn seated(&self) -> usize {
        self.seated.load(Ordering::SeqCst)
    }

    /// A lane was waited for in vain, because all carry something.
    pub(super) fn set_busy(&self) {
        self.was_busy.store(true, Ordering::SeqCst);
    }

    /// Whether a lane was missing because all were busy.
    pub(super) fn was_busy(&self) -> bool {
        self.was_busy.load(Ordering::SeqCst)
    }

    /// The root's response head has come on some lane.
    pub fn set_head(&self, head: Bytes) {
        self.state().head.get_or_insert(head);
        self.changed();
    }

    /// TOTAL has come on some lane: the body has so many frames and bytes.
    pub fn set_total(&self, frames: u64, bytes: u64) {
        self.state().total.get_or_insert((frames, bytes));
        self.changed();
    }

    /// END has come on some lane.
    pub fn set_end(&self, end: End) {
        self.state().end.get_or_insert(end);
        self.changed();
    }

    /// A lane's frames are all published, or it is lost for the `loss` given.
    pub fn lane_done(&self, loss: Option<String>) {
        if let Some(loss) = loss {
            self.state().last_loss = Some(loss);
        }
        self.live.fetch_sub(1, Ordering::SeqCst);
        self.changed();
    }

    /// A whole second copy of frame `seq`, whose bytes were counted as parked. The first one that comes is kept.
    pub fn add_spare(&self, seq: u64, frame: HandedFrame) {
        let unwanted = {
            let mut spares = self.spares();
            if seq < self.next() || spares.contains_key(&seq) {
                Some(frame)
            } else {
                spares.insert(seq, frame);
                self.spares_len.store(spares.len(), Ordering::SeqCst);
                None
            }
        };
        match unwanted {
            Some(frame) => self.unpark(frame.len),
            None => self.changed(),
        }
    }

    fn spares(&self) -> MutexGuard<'_, BTreeMap<u64, HandedFrame>> {
        self.spares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A peer broke the protocol: the transfer cannot be trusted any more.
    pub fn fail(&self, reason: String) {
        self.state().failure.get_or_insert(reason);
        self.changed();
    }

    /// Its upstream is given up: whoever can goes on over another.
    pub fn desert(&self, reason: String) {
        self.state().deserted.get_or_insert(reason);
        self.changed();
    }

    /// Whether it can be continued over another upstream, so that waiting for this one is not all that is left.
    pub fn may_move(&self) -> bool {
        self.may_move.load(Ordering::SeqCst)
    }

    /// The sequence number the consumer waits for.
    pub fn next(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// Frame `seq` arrives, with the body's bytes below `end`.
    pub(super) fn ahead(&self, seq: u64, end: u64) {
        self.crowding.arrives(end, self.taken(), self.credit());
        let ahead = seq.saturating_sub(self.next());
        if ahead > self.depth.load(Ordering::Relaxed) {
            self.depth.fetch_max(ahead, Ordering::Relaxed);
        }
    }

    /// How many frames ahead of the one waited for a frame has come at most.
    pub fn reorder_depth(&self) -> u64 {
        self.depth.load(Ordering::Relaxed)
    }

    /// A frame went into conduits.
    pub fn park(&self, bytes: usize) {
        parked::add(bytes);
        self.parked.fetch_add(bytes, Ordering::SeqCst);
        // The consumer may have gone in this instant: then nobody else takes these bytes out of the count.
        if self.is_over() {
            self.forget_parked();
        }
    }

    fn forget_parked(&self) {
        let left = self.parked.swap(0, Ordering::SeqCst);
        parked::take(left);
    }

    /// True while the client takes less than the lanes bring.
    pub fn is_client_blocked(&self) -> bool {
        self.client_blocked.load(Ordering::SeqCst)
    }

    /// Whether another `bytes` may be parked.
    pub fn has_window(&self, bytes: usize) -> bool {
        self.parked.load(Ordering::SeqCst) + bytes <= WINDOW_BYTES
            && parked::bytes() + bytes <= parked::bytes_max()
    }

    fn may_hand_over(&self, seq: u64, bytes: usize) -> bool {
        let ahead = self.parked.load(Ordering::SeqCst) + bytes;
        seq == self.next.load(Ordering::SeqCst)
            || (self.has_window(bytes)
                && (!self.is_client_blocked() || ahead <= AHEAD_OF_BLOCKED_CLIENT_BYTES))
    }

    /// Waits until frame `seq` may leave its lane's socket although it is handed to another core.
    pub async fn room_to_hand_over(&self, seq: u64, bytes: usize) {
        while !self.may_hand_over(seq, bytes) {
            let room = self.room.notified();
            self.held_back.fetch_add(1, Ordering::SeqCst);
            let _leave = Leave(&self.held_back);
            let mut room = std::pin::pin!(room);
            room.as_mut().enable();
            if !self.may_hand_over(seq, bytes) {
                room.await;
            }
        }
    }

    /// A lane with this round trip joins.
    pub fn lane_round_trip(&self, round_trip: Duration) {
        self.round_trip_us.fetch_max(round_trip.as_micros() as u64, Ordering::Relaxed);
    }

    /// The limit that the upstream is to be told.
    pub fn credit(&self) -> u64 {
        self.credit.load(Ordering::SeqCst)
    }

    /// Waits until the limit is beyond `known`.
    pub async fn credited_beyond(&self, known: u64) {
        loop {
            let mut notified = std::pin::pin!(self.credited.notified());
            notified.as_mut().enable();
            if self.credit() > known {
                return;
            }
            notified.await;
        }
    }

    /// Whether the transfer was given up.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }

    /// Whether no more lanes are of use: it was given up, or its last byte has come.
    pub fn is_over(&self) -> bool {
        self.is_cancelled() || self.completed.load(Ordering::SeqCst)
    }

    /// Waits until the transfer is given up.
    pub async fn cancelled(&self) {
        self.over_when(Self::is_cancelled).await;
    }

    /// Waits until no more lanes are of use.
    pub async fn over(&self) {
        self.over_when(Self::is_over).await;
    }

    async fn over_when(&self, condition: impl Fn(&Self) -> bool) {
        loop {
            let mut notified = std::pin::pin!(self.over.notified());
            // Registered before the condition is read, so that no change falls between.
            notified.as_mut().enable();
            if condition(self) {
                return;
            }
            notified.await;
        }
    }

    // The consumer's side.

    /// The consumer is gone. A transfer that is not complete is given up: its producers cancel it upstream and return
    /// their lanes; after a complete one they only await their END.
    pub(super) fn finish(&self) {
        if !self.completed.load(Ordering::SeqCst) {
            self.cancelled.store(true, Ordering::SeqCst);
        }
        self.over.notify_waiters();
        // What is still counted as parked goes with the conduits.
        self.forget_parked();
    }

    /// What is missing can be asked for from any upstream.
    pub fn let_move(&self) {
        self.may_move.store(true, Ordering::SeqCst);
    }

    /// The last byte has been given to the sink.
    pub(super) fn complete(&self) {
        self.completed.store(true, Ordering::SeqCst);
    }

    /// Longest round trip of the lanes that have joined.
    pub fn round_trip(&self) -> Duration {
        Duration::from_micros(self.round_trip_us.load(Ordering::Relaxed))
    }

    /// Takes the second copy of frame `seq`, if there is one.
    pub fn take_spare(&self, seq: u64) -> Option<HandedFrame> {
        if self.spares_len.load(Ordering::SeqCst) == 0 {
            return None;
        }
        let mut spares = self.spares();
        let spare = spares.remove(&seq);
        self.spares_len.store(spares.len(), Ordering::SeqCst);
        spare
    }

    /// Whether there is a second copy of frame `seq`.
    pub fn has_spare(&self, seq: u64) -> bool {
        self.spares_len.load(Ordering::SeqCst) > 0 && self.spares().contains_key(&seq)
    }

    /// Raises the limit of what may be sent.
    pub fn grant(&self, limit: u64) {
        self.credit.store(limit, Ordering::SeqCst);
        self.credited.notify_waiters();
    }

    /// Wakes `cx` at the next change.
    pub fn register(&self, cx: &Context<'_>) {
        self.consumer.register(cx.waker());
    }

    /// A number that differs whenever something changed.
    pub fn changes(&self) -> u32 {
        self.changes.load(Ordering::SeqCst)
    }

    /// Lanes that may still bring frames.
    pub fn live(&self) -> usize {
        self.live.load(Ordering::SeqCst)
    }

    /// The head, once it has come.
    pub fn head(&self) -> Option<Bytes> {
        self.state().head.clone()
    }

    /// Frames and bytes of the whole body, once they are known.
    pub fn total(&self) -> Option<(u64, u64)> {
        let state = self.state();
        let complete = state.end.as_ref().filter(|end| end.outcome == Outcome::Complete);
        state.total.or(complete.map(|end| (end.frames, end.bytes)))
    }

    /// The end, once it is known.
    pub fn end(&self) -> Option<End> {
        self.state().end.clone()
    }

    /// Why the transfer cannot be trusted any more.
    pub fn failure(&self) -> Option<String> {
        self.state().failure.clone()
    }

    /// Why its upstream was given up.
    pub fn deserted(&self) -> Option<String> {
        self.state().deserted.clone()
    }

    /// What the last lost lane said.
    pub fn last_loss(&self) -> Option<String> {
        self.state().last_loss.clone()
    }

    /// The consumer now waits for frame `next`.
    pub fn advance(&self, next: u64) {
        self.next.store(next, Ordering::SeqCst);
    }

    /// Parked bytes have left their conduits.
    pub fn unpark(&self, bytes: usize) {
        // After the end they may have been taken out of the count already.
        let less = |parked: usize| Some(parked.saturating_sub(bytes));
        let counted = self.parked.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).unwrap_or(0);
        parked::take(counted.min(bytes));
        self.wake_held_back();
    }

    /// The sink has taken `bytes` more.
    pub(super) fn add_taken(&self, bytes: u64) {
        self.taken.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Body bytes that the sink has taken.
    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// The client takes nothing (or takes again).
    pub fn set_client_blocked(&self, blocked: bool) {
        if self.client_blocked.load(Ordering::Relaxed) != blocked {
            self.client_blocked.store(blocked, Ordering::SeqCst);
        }
    }

    /// Wakes producers on other cores that wait for room, if there are any.
    pub fn wake_held_back(&self) {
        if self.held_back.load(Ordering::SeqCst) > 0 {
            self.room.notify_waiters();
        }
    }
}

struct Leave<'a>(&'a AtomicUsize);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
