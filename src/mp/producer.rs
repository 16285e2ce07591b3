//! A producer: takes the frames of one transfer off one leased lane and puts them into the MPQueue.
//!
//! In: a leased lane and the shared transfer. Out: parcels in the ring, second copies, the head, the totals and the end in
//! the transfer; the lane goes back to its pool when its END has come or nobody waits for it. Tells the upstream what has
//! arrived. Runs as a task on the lane's core.
//!
//! Invariants: a frame is published whole or tapped, never in part; one that came before over another lane is kept only
//! while the other copy is incomplete; whatever happens, `lane_done` is told once.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    io,
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{future::Either, future::select};

use super::{
    batch::Batch,
    crew::Slot,
    jam::Jam,
    looks::Looks,
    queue::{Producer as Ring, Publish},
    tap::Tap,
    transfer::{End, HandedFrame, Parcel, Transfer},
    upload::{self, RequestBody},
};
use crate::{
    exec::{self, Budget, Instant},
    lanes::{LaneError, Lease},
    net::{BATCH_BYTES, Conduit, Filled, Limit},
    wire::{
        frame::{FIRST_CREDIT_BYTES, Frame, Reading},
        frame_check::FrameCheck,
        reason::Reason,
        units::{FrameLen, Offset, Seq},
    },
};

/// The request goes into an empty socket; this bounds a lane that has died silently.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);
/// On a short path so many frames are acknowledged at once, unless the lane falls idle: a system call for each would cost a
/// fast network 2 % of its CPU time, and the upstream waits for none of them.
const FRAMES_UNTOLD_MAX: u64 = 16;
/// A lane that is left unread for the client's sake for so long tells the upstream, which would take it for silent after
/// 200 ms.
const HELD_BACK_MAX: Duration = Duration::from_millis(50);
/// On a short path a frame that is not next stays in the socket this long before it is parked: the frame before it is
/// about to come, and merging from the sockets costs a third less.
const PARK_PATIENCE: Duration = Duration::from_millis(1);
/// Below this round trip a path is short.
const SHORT_ROUND_TRIP: Duration = Duration::from_millis(5);
const IN_THE_WAY: &str =
    "a lane is given up: its frames may not be parked (--max-parked) and keep back what is next";

/// How frames reach the consumer.
pub(super) enum Delivery {
    /// The consumer is on this core and reads from the lane's socket itself: `tap` is number `index` of its `taps`.
    Tapped { tap: Rc<Tap>, index: usize, taps: Rc<RefCell<Vec<Rc<Tap>>>> },
    /// The consumer is on another core: whole frames are handed over in pipes.
    Handed,
}

pub(super) struct Producer {
    lane: Lease,
    transfer: Arc<Transfer>,
    ring: Ring<Parcel>,
    delivery: Delivery,
    check: FrameCheck,
    opened: bool,
    /// The request's body is being sent on the lane: nothing else may be.
    uploads: Rc<Cell<bool>>,
    /// DATA frames that have left the socket.
    frames: u64,
    /// Frames, limit, whether it rests and whether it is left unread, as this lane has told the upstream.
    told: (u64, u64, bool, bool),
    /// Whether it rests, as it would have told the upstream if there was room to.
    rests: bool,
    /// Payload of the current frame that is still in the socket, unless it is a tap's, which counts for itself.
    unread: usize,
    /// The lane's part in its path's share of the transfer.
    slot: Slot,
    batch: Batch,
    budget: Budget,
    looks: Looks,
}

/// What ended the normal course.
enum Stop {
    /// Nobody waits for more: the body is whole, or the transfer was given up.
    Over,
    /// A better lane has long taken its place.
    Relieved,
    /// Somebody who has no lane needs this one more.
    GivenUp,
    /// It keeps back what the client waits for.
    InTheWay,
    Lane(LaneError),
}

/// What became of a frame's claim to its slot.
enum Claim {
    Ours,
    /// Another lane brought it before.
    Duplicate(Parcel),
}

impl From<LaneError> for Stop {
    fn from(error: LaneError) -> Self {
        Stop::Lane(error)
    }
}

impl Producer {
    /// A producer for `lane`, which fills `slot`.
    pub(super) fn new(
        lane: Lease,
        transfer: Arc<Transfer>,
        ring: Ring<Parcel>,
        delivery: Delivery,
        slot: Slot,
    ) -> Self {
        let check = FrameCheck::new(transfer.id());
        let told = (0, FIRST_CREDIT_BYTES, false, false);
        Self {
            lane,
            transfer,
            ring,
            delivery,
            check,
            opened: false,
            uploads: Rc::default(),
            frames: 0,
            told,
            rests: false,
            unread: 0,
            slot,
            batch: Batch::new(Instant::now()),
            budget: Budget::default(),
            looks: Looks::new(Instant::now()),
        }
    }

    /// Runs to the lane's END. The transfer was told of the lane by `lane_expected`.
    pub(super) async fn run(mut self) {
        let transfer = self.transfer.clone();
        let outcome = self.carry().await;
        if let Delivery::Tapped { tap, .. } = &self.delivery
            && !matches!(outcome, Ok(()))
        {
            tap.close();
        }
        match outcome {
            // It answered before it had all of the request.
            Ok(()) if self.uploads.get() => transfer.lane_done(None),
            Ok(()) => {
                self.lane.give_back();
                transfer.lane_done(None);
            }
            Err(Stop::Over) => {
                self.let_go();
                transfer.lane_done(None);
            }
            // Dropped, which closes it: nobody cancels the transfer, whose other lanes carry on.
            Err(Stop::GivenUp) => {
                tracing::debug!(transfer = %transfer.id(), path = self.lane.path().name(), "a lane is given up for others");
                transfer.lane_done(None);
            }
            Err(Stop::Relieved) => {
                self.lane.close();
                transfer.lane_done(None);
            }
            Err(Stop::InTheWay) => {
                tracing::info!(transfer = %transfer.id(), path = self.lane.path().name(), "{IN_THE_WAY}");
                transfer.lane_done(None);
            }
            Err(Stop::Lane(error)) => {
                tracing::info!(transfer = %transfer.id(), "{error}");
                match error {
                    LaneError::Frame { .. } | LaneError::Protocol { .. } => transfer.fail(error.to_string()),
                    _ => {}
                }
                transfer.lane_done(Some(error.to_string()));
            }
        }
    }

    /// Gives the lane back before its END: what still comes is thrown away.
    fn let_go(self) {
        let unread = self.unread
            + match &self.delivery {
                Delivery::Tapped { tap, .. } => tap.unread(),
                Delivery::Handed => 0,
            };
        let complete = self.transfer.is_over() && !self.transfer.is_cancelled();
        // A lane that cannot take the word is dropped, which closes it.
        let may_speak = !self.uploads.get();
        if !self.opened || (may_speak && self.lane.abandon(self.transfer.id(), unread, complete)) {
            self.lane.give_back();
        }
    }

    async fn carry(&mut self) -> Result<(), Stop> {
        if self.transfer.is_over() {
            return Err(Stop::Over);
        }
        self.transfer.set_opened();
        {
            // It would be given a megabyte before it could say so.
            let rests = self.slot.rests().then(|| Frame::Credit {
                transfer: self.transfer.id(),
                frames: 0,
                reading: Reading::Resting,
                limit: Offset(self.transfer.credit()),
                next: self.transfer.next() as u32,
            });
            let open = self.lane.open(self.transfer.id(), self.transfer.request(), rests.as_ref());
            let deadline =
                LaneError::Deadline { path: self.lane.path().name().to_owned(), deadline: OPEN_DEADLINE };
            exec::timeout(OPEN_DEADLINE, open).await.map_err(|exec::Elapsed| deadline)??;
        }
        self.opened = true;
        if let Some(body) = self.transfer.take_body() {
            self.upload(body);
        }
        loop {
            let frame = self.next_frame().await?;
            self.budget.spend().await;
            self.check
                .accept(&frame, Seq(self.transfer.next()))
                .map_err(|error| self.lane.protocol(error))?;
            match frame {
                Frame::Head { head_len, .. } => {
                    let head = self.payload(head_len).await?;
                    self.transfer.set_head(Bytes::from(head));
                }
                Frame::Data { seq, offset, len, again, .. } => {
                    self.lane.path().frame(again);
                    self.slot.carries(len.as_usize());
                    self.transfer.ahead(seq.0, offset.0 + len.as_usize() as u64);
                    self.deliver(seq.0, offset.0, len.as_usize()).await?;
                    self.frames += 1;
                    self.batch.frame(len.as_usize(), self.lane.path().round_trip(), Instant::now());
                }
                Frame::Total { frames, bytes, .. } => self.transfer.set_total(frames, bytes),
                Frame::End { outcome, frames, bytes, reason_len, .. } => {
                    let reason = self.reason(reason_len).await?;
                    self.transfer.set_end(End { outcome, frames, bytes, reason });
                    return Ok(());
                }
                other => {
                    return Err(self.lane.protocol(format_args!("{} in a transfer", other.kind())).into());
                }
            }
        }
    }

    /// Starts to send the request's body.
    fn upload(&self, mut body: RequestBody) {
        let (socket, transfer) = (self.lane.socket().clone(), self.transfer.clone());
        let uploads = self.uploads.clone();
        uploads.set(true);
        exec::spawn(async move {
            let sending = pin!(upload::send(&socket, &transfer, &mut body));
            let over = pin!(transfer.over());
            match select(sending, over).await {
                Either::Left((Ok(()), _)) => uploads.set(false),
                // Whoever reads the lane finds out.
                Either::Left((Err(_), _)) => socket.abort(),
                Either::Right(_) => {}
            }
        });
    }

    /// The next frame, unless nobody waits for it any more. The upstream hears what has arrived before this waits, and of
    /// every new credit while it does.
    async fn next_frame(&mut self) -> Result<Frame, Stop> {
        loop {
            let is_short = self.lane.path().round_trip() < SHORT_ROUND_TRIP;
            if !is_short {
                self.look();
            }
            if !is_short || self.frames - self.told.0 >= FRAMES_UNTOLD_MAX {
                self.tell(false);
            }
            self.lane.set_slow(self.slot.is_slow());
            if self.transfer.is_over() {
                return Err(Stop::Over);
            }
            if let Some(frame) = self.lane.try_next_frame()? {
                return Ok(frame);
            }
            self.tell(false);
            if let Some(frame) = self.frame_or_word().await? {
                return Ok(frame);
            }
        }
    }

    /// Waits for a frame; none: there is new credit, or the crew has a word.
    async fn frame_or_word(&self) -> Result<Option<Frame>, Stop> {
        let credited = pin!(self.transfer.credited_beyond(self.told.1));
        let over = pin!(self.transfer.over());
        let called = pin!(self.slot.called(self.lane.is_slow(), self.rests));
        match select(pin!(self.lane.next_frame()), select(over, select(credited, called))).await {
            Either::Left((frame, _)) => Ok(Some(frame?)),
            Either::Right((Either::Left(_), _)) => Err(Stop::Over),
            Either::Right((Either::Right((Either::Left(_), _)), _)) => Ok(None),
            Either::Right((Either::Right((Either::Right(_), _)), _)) if self.slot.is_leaving() => {
                Err(Stop::Relieved)
            }
            Either::Right((Either::Right((Either::Right(_), _)), _)) if self.slot.is_given_up() => {
                Err(Stop::GivenUp)
            }
            Either::Right((Either::Right((Either::Right(_), _)), _)) => Ok(None),
        }
    }

    /// Tells the upstream what it does not know. `paused`: this lane is left unread for the client's sake. A lane that is
    /// read again must say so, or its silence would mean nothing to the upstream for ever.
    fn tell(&mut self, paused: bool) {
        let news @ (frames, limit, rests, _) =
            (self.frames, self.transfer.credit(), self.slot.rests(), paused);
        self.rests = rests;
        if self.uploads.get() || (!paused && news == self.told) {
            return;
        }
        let reading = match (paused, rests) {
            (true, _) => Reading::Paused,
            (false, true) => Reading::Resting,
            (false, false) => Reading::Eager,
        };
        // A socket without room takes it the next time.
        let next = Seq(self.transfer.next());
        if self.lane.credit(self.transfer.id(), frames, reading, limit, next) {
            self.told = news;
        }
    }

    /// Tells the crew, now and then, what limits the lane.
    fn look(&mut self) {
        let now = Instant::now();
        if !self.looks.is_due(now) {
            return;
        }
        if let Ok(info) = self.lane.socket().tcp_info()
            && let Some(verdict) = self.looks.saw(now, &info)
        {
            self.slot.place().looked(verdict);
        }
    }

    /// A payload that follows its header at once; one that does not, and that nobody waits for, costs the lane.
    async fn payload(&self, len: FrameLen) -> Result<Vec<u8>, LaneError> {
        let payload = pin!(self.lane.payload(len.as_usize()));
        match select(payload, pin!(self.transfer.over())).await {
            Either::Left((payload, _)) => payload,
            Either::Right(_) => Err(self.lane.lost(io::ErrorKind::TimedOut.into())),
        }
    }

    async fn reason(&self, len: FrameLen) -> Result<String, LaneError> {
        let bytes = self.payload(len).await?;
        let reason = Reason::decode(&bytes).map_err(|error| self.lane.protocol(error))?;
        Ok(reason.as_str().to_owned())
    }

    async fn deliver(&mut self, seq: u64, offset: u64, len: usize) -> Result<(), Stop> {
        self.unread = len;
        if seq < self.transfer.next() {
            return self.throw_away().await;
        }
        let Delivery::Tapped { tap, index, taps } = &self.delivery else {
            return self.hand_over(seq, offset, len).await;
        };
        let (tap, index, taps) = (Rc::clone(tap), *index, Rc::clone(taps));
        match self.publish(seq, Parcel::Tapped { tap: index }).await? {
            Claim::Ours => {
                // The consumer is on this core and cannot have looked yet.
                tap.set_batch(self.batch.bytes());
                tap.offer(seq, offset, self.unread);
                self.unread = 0;
                self.attend(&tap).await
            }
            // A whole copy stands in the ring; of one that is incomplete the lane may be dying.
            Claim::Duplicate(_) if !taps.borrow().iter().any(|tap| tap.is_incomplete(seq)) => {
                self.throw_away().await
            }
            Claim::Duplicate(_) => {
                let frame = self.gather(seq, offset, len).await?;
                self.transfer.add_spare(seq, frame);
                Ok(())
            }
        }
    }

    /// Takes the rest of a frame that nobody wants off the socket.
    async fn throw_away(&mut self) -> Result<(), Stop> {
        while self.unread > 0 {
            let discard = self.lane.socket().discard_payload(self.unread);
            match or_over(&self.transfer, discard).await?.map_err(|error| self.lane.lost(error))? {
                0 => return Err(self.lane.lost(io::ErrorKind::UnexpectedEof.into()).into()),
                n => self.unread -= n,
            }
        }
        Ok(())
    }

    /// Puts a parcel in its slot; waits while the slot belongs to a frame of an earlier lap.
    async fn publish(&mut self, seq: u64, mut parcel: Parcel) -> Result<Claim, Stop> {
        loop {
            parcel = match self.ring.publish(seq, parcel) {
                Publish::Published => return Ok(Claim::Ours),
                Publish::WindowFull(parcel) => parcel,
                Publish::Duplicate(parcel) => return Ok(Claim::Duplicate(parcel)),
                // The consumer is gone, and says why in the transfer.
                Publish::Closed(_) => return Err(Stop::Over),
            };
            // An error says that the consumer is gone, which publishing again finds out.
            let _ = or_over(&self.transfer, self.ring.room(seq)).await?;
        }
    }

    /// Stays with a tapped frame until its bytes have left the socket: taken by the consumer, or parked by us so that
    /// the lane keeps flowing, or thrown away because another lane was faster.
    async fn attend(&mut self, tap: &Tap) -> Result<(), Stop> {
        let patience =
            if self.lane.path().round_trip() < SHORT_ROUND_TRIP { PARK_PATIENCE } else { Duration::ZERO };
        if !patience.is_zero() {
            let gone = pin!(left_socket(tap));
            let wait = pin!(exec::timeout(patience, gone));
            if or_over(&self.transfer, wait).await?.is_ok() {
                return Ok(());
            }
        }
        let mut jam = Jam::default();
        while tap.unread() > 0 || tap.is_taken() {
            if let Some(error) = tap.take_loss() {
                return Err(self.lane.lost(error).into());
            }
            if tap.is_unwanted() {
                let discard = self.lane.socket().discard_payload(tap.unread());
                match or_over(&self.transfer, discard).await?.map_err(|error| self.lane.lost(error))? {
                    0 => return Err(self.lane.lost(io::ErrorKind::UnexpectedEof.into()).into()),
                    n => tap.read(n),
                }
                continue;
            }
            let wait = async { exec::timeout(HELD_BACK_MAX, self.may_park(tap)).await };
            let waited = or_over(&self.transfer, wait).await?;
            match waited {
                Ok(may_park) => {
                    if !may_park.map_err(|error| self.lane.lost(error))? {
                        continue;
                    }
                }
                Err(exec::Elapsed) => {
                    // Of one that the consumer reads, silence must mean something to the upstream.
                    let is_full = !tap.is_taken() && !self.transfer.has_window(tap.unread());
                    self.left_unread(is_full, self.transfer.is_client_blocked() || is_full, &mut jam)?;
                    continue;
                }
            }
            if let Some(bytes) = tap.park().map_err(|error| self.lane.lost(error))? {
                self.transfer.park(bytes);
                self.lane.path().parked(bytes);
                #[cfg(test)]
                crate::simulation::ledger::has_read(self.transfer.id(), tap.current(), tap.unread());
            }
        }
        Ok(())
    }

    /// With a slow client the lanes are not the bottleneck: their own back-pressure is the flow control.
    fn is_held_back(&self, tap: &Tap) -> bool {
        self.transfer.is_client_blocked() || !self.transfer.has_window(tap.unread())
    }

    /// A frame has waited for a while; `is_full`: because no more may be parked. `paused`: its lane is not to be taken for
    /// silent.
    fn left_unread(&mut self, is_full: bool, paused: bool, jam: &mut Jam) -> Result<(), Stop> {
        if is_full {
            Limit::Parked.hit();
        }
        self.lane.set_slow(self.slot.is_slow());
        if self.slot.is_given_up() {
            return Err(Stop::GivenUp);
        }
        let is_jam = is_full && !self.transfer.is_client_blocked();
        if jam.lasts(is_jam, self.transfer.taken(), Instant::now()) {
            return Err(Stop::InTheWay);
        }
        self.tell(paused);
        Ok(())
    }

    /// Resolves with true when bytes can be parked, with false when something else is to be done.
    async fn may_park(&self, tap: &Tap) -> io::Result<bool> {
        let mut readable = pin!(tap.batch_ready());
        poll_fn(|cx| {
            tap.register_producer(cx);
            if tap.is_taken() {
                // The socket is the consumer's now, and so is its readiness.
                return Poll::Pending;
            }
            if tap.unread() == 0 || tap.is_dead() || tap.is_unwanted() {
                return Poll::Ready(Ok(false));
            }
            if self.is_held_back(tap) {
                return Poll::Pending;
            }
            readable.as_mut().poll(cx).map_ok(|()| true)
        })
        .await
    }

    /// Takes a whole frame off the socket and publishes it for another core.
    async fn hand_over(&mut self, seq: u64, offset: u64, len: usize) -> Result<(), Stop> {
        let frame = self.gather(seq, offset, len).await?;
        if let Claim::Duplicate(Parcel::Handed(frame)) =
            self.publish(seq, Parcel::Handed(Box::new(frame))).await?
        {
            self.transfer.add_spare(seq, *frame);
        }
        Ok(())
    }

    /// Takes a whole frame off the socket; its bytes count as parked then.
    async fn gather(&mut self, seq: u64, offset: u64, len: usize) -> Result<HandedFrame, Stop> {
        let mut jam = Jam::default();
        loop {
            let wait = exec::timeout(HELD_BACK_MAX, self.transfer.room_to_hand_over(seq, len));
            if or_over(&self.transfer, wait).await?.is_ok() {
                break;
            }
            self.left_unread(!self.transfer.has_window(len), true, &mut jam)?;
        }
        if self.told.3 {
            self.tell(false);
        }
        let mut conduits = vec![Conduit::new()];
        while self.unread > 0 {
            let last = conduits.len() - 1;
            match conduits[last]
                .fill(self.lane.socket(), self.unread)
                .map_err(|error| self.lane.lost(error))?
            {
                Filled::Bytes(n) => {
                    self.unread -= n;
                    self.lane.path().received(n);
                    self.slot.place().received(n);
                }
                Filled::Full => conduits.push(Conduit::new()),
                Filled::SourceEmpty => {
                    // Nobody can use a part of it.
                    let ready = self.lane.socket().readable_by(BATCH_BYTES.min(self.unread));
                    or_over(&self.transfer, ready).await?.map_err(|error| self.lane.lost(error))?;
                }
                Filled::EndOfFile => return Err(self.lane.lost(io::ErrorKind::UnexpectedEof.into()).into()),
            }
        }
        self.transfer.park(len);
        #[cfg(test)]
        crate::simulation::ledger::has_read(self.transfer.id(), seq, self.unread);
        Ok(HandedFrame { offset, conduits, len })
    }
}

/// Resolves when no byte of the newest frame is left in the socket and the consumer is done with it.
async fn left_socket(tap: &Tap) {
    poll_fn(|cx| {
        tap.register_producer(cx);
        if tap.unread() == 0 && !tap.is_taken() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Waits for `future`, unless nobody waits for more of the transfer first.
async fn or_over<T>(transfer: &Transfer, future: impl Future<Output = T>) -> Result<T, Stop> {
    match select(pin!(future), pin!(transfer.over())).await {
        Either::Left((value, _)) => Ok(value),
        Either::Right(((), _)) => Err(Stop::Over),
    }
}
