//! A producer: takes the frames of one transfer off one leased lane and puts them into the MPQueue.
//!
//! In: a leased lane and the shared transfer. Out: parcels in the ring, the head and the end in the transfer; the lane
//! goes back to its pool when its END has come, also after a cancel. Runs as a task on the lane's core.
//!
//! Invariants: one OPEN is sent and exactly one END awaited; a frame is published whole or tapped, never in part;
//! whatever happens, `lane_done` is told once.

use std::{
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
    queue::{Producer as Ring, Publish},
    tap::Tap,
    transfer::{End, HandedFrame, Parcel, Transfer},
};
use crate::{
    exec::{self, Interest},
    lanes::{LaneError, Lease},
    net::{Conduit, Filled},
    wire::{
        frame::{FIRST_CREDIT_BYTES, Frame},
        frame_check::FrameCheck,
        reason::Reason,
        units::{FrameLen, Seq},
    },
};

/// After a cancel, or once the body is whole, END must come within this time or the lane is closed: a round trip of the
/// longest path and the time that what is in flight needs on a slow one.
const END_DEADLINE: Duration = Duration::from_secs(5);
/// On a short path a frame that is not next stays in the socket this long before it is parked: the frame before it is
/// about to come, and merging from the sockets costs a third less.
const PARK_PATIENCE: Duration = Duration::from_millis(1);
/// Below this round trip a path is short.
const SHORT_ROUND_TRIP: Duration = Duration::from_millis(5);

/// How frames reach the consumer.
pub(super) enum Delivery {
    /// The consumer is on this core and reads from the lane's socket itself: `tap` is number `index` of its taps.
    Tapped { tap: Rc<Tap>, index: usize },
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
    /// The limit that this lane has told the upstream.
    credit: u64,
    /// Payload of the current frame that is still in the socket (handed delivery; a tap counts for itself).
    unread: usize,
}

/// What ended the normal course.
enum Stop {
    Cancelled,
    Lane(LaneError),
}

impl From<LaneError> for Stop {
    fn from(error: LaneError) -> Self {
        Stop::Lane(error)
    }
}

impl Producer {
    pub(super) fn new(lane: Lease, transfer: Arc<Transfer>, ring: Ring<Parcel>, delivery: Delivery) -> Self {
        let check = FrameCheck::new(transfer.id());
        Self { lane, transfer, ring, delivery, check, opened: false, credit: FIRST_CREDIT_BYTES, unread: 0 }
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
            Ok(()) => {
                self.lane.give_back();
                transfer.lane_done(None);
            }
            Err(Stop::Cancelled) => {
                transfer.lane_done(None);
                match exec::timeout(END_DEADLINE, self.wind_up()).await {
                    Ok(Ok(())) => self.lane.give_back(),
                    Ok(Err(error)) => tracing::debug!("{error}"),
                    Err(exec::Elapsed) => tracing::debug!(
                        path = self.lane.path().name(),
                        "a cancelled transfer was not ended in time; its lane is closed"
                    ),
                }
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

    async fn carry(&mut self) -> Result<(), Stop> {
        if self.transfer.is_cancelled() {
            return Err(Stop::Cancelled);
        }
        self.opened = true;
        self.lane.open(self.transfer.id(), self.transfer.request()).await?;
        loop {
            let frame = self.next_frame().await?;
            self.check
                .accept(&frame, Seq(self.transfer.next()))
                .map_err(|error| self.lane.protocol(error))?;
            match frame {
                Frame::Head { head_len, .. } => {
                    let head = self.lane.payload(head_len.as_usize()).await?;
                    self.transfer.set_head(Bytes::from(head));
                }
                Frame::Data { seq, len, .. } => {
                    self.lane.path().frame();
                    self.deliver(seq.0, len.as_usize()).await?;
                }
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

    /// The next frame, unless the transfer is given up; while it is waited for, the upstream hears of every new credit.
    /// Of a body that is whole only END can be missing, and a lane that has died silently would be waited for without
    /// end.
    async fn next_frame(&mut self) -> Result<Frame, Stop> {
        loop {
            let credit = self.transfer.credit();
            if credit > self.credit {
                self.credit = credit;
                // The upstream may have sent all and closed behind it: what has come can still be read, and says more.
                let _ = self.lane.credit(self.transfer.id(), credit).await;
            }
            let credited = pin!(self.transfer.credited_beyond(self.credit));
            let over = pin!(self.transfer.over());
            match select(pin!(self.lane.next_frame()), select(credited, over)).await {
                Either::Left((frame, _)) => return Ok(frame?),
                Either::Right((Either::Left(_), _)) => {}
                Either::Right((Either::Right(_), _)) if self.transfer.is_cancelled() => {
                    return Err(Stop::Cancelled);
                }
                Either::Right((Either::Right(_), _)) => break,
            }
        }
        match exec::timeout(END_DEADLINE, self.lane.next_frame()).await {
            Ok(frame) => Ok(frame?),
            Err(exec::Elapsed) => {
                let path = self.lane.path().name().to_owned();
                Err(LaneError::Deadline { path, deadline: END_DEADLINE }.into())
            }
        }
    }

    async fn reason(&self, len: FrameLen) -> Result<String, LaneError> {
        let bytes = self.lane.payload(len.as_usize()).await?;
        let reason = Reason::decode(&bytes).map_err(|error| self.lane.protocol(error))?;
        Ok(reason.as_str().to_owned())
    }

    async fn deliver(&mut self, seq: u64, len: usize) -> Result<(), Stop> {
        match &self.delivery {
            Delivery::Tapped { tap, index } => {
                let (tap, index) = (Rc::clone(tap), *index);
                tap.offer(len);
                self.publish(seq, Parcel::Tapped { tap: index }).await?;
                self.attend(&tap).await
            }
            Delivery::Handed => {
                self.unread = len;
                self.hand_over(seq, len).await
            }
        }
    }

    /// Puts a parcel in its slot; waits while the slot belongs to a frame of an earlier lap.
    async fn publish(&mut self, seq: u64, mut parcel: Parcel) -> Result<(), Stop> {
        loop {
            parcel = match self.ring.publish(seq, parcel) {
                Publish::Published => return Ok(()),
                Publish::WindowFull(parcel) => parcel,
                Publish::Duplicate(_) => {
                    return Err(self.lane.protocol(format_args!("frame {seq} came twice")).into());
                }
                // The consumer is gone, and says why in the transfer.
                Publish::Closed(_) => return Err(Stop::Cancelled),
            };
            // An error says that the consumer is gone, which publishing again finds out.
            let _ = or_cancelled(&self.transfer, self.ring.room(seq)).await?;
        }
    }

    /// Stays with a tapped frame until its bytes have left the socket: taken by the consumer, or parked by us so that
    /// the lane keeps flowing.
    async fn attend(&self, tap: &Tap) -> Result<(), Stop> {
        let patience =
            if self.lane.path().round_trip() < SHORT_ROUND_TRIP { PARK_PATIENCE } else { Duration::ZERO };
        if !patience.is_zero() {
            let gone = pin!(left_socket(tap));
            let wait = pin!(exec::timeout(patience, gone));
            if or_cancelled(&self.transfer, wait).await?.is_ok() {
                return Ok(());
            }
        }
        while tap.unread() > 0 || tap.is_taken() {
            if !or_cancelled(&self.transfer, self.may_park(tap))
                .await?
                .map_err(|error| self.lane.lost(error))?
            {
                break;
            }
            if let Some(bytes) = tap.park().map_err(|error| self.lane.lost(error))? {
                self.transfer.park(bytes);
            }
        }
        Ok(())
    }

    /// Resolves with true when bytes can be parked, with false when none are left in the socket.
    async fn may_park(&self, tap: &Tap) -> io::Result<bool> {
        let mut readable = pin!(tap.socket().ready(Interest::Read));
        poll_fn(|cx| {
            tap.register_producer(cx);
            if tap.is_taken() {
                // The socket is the consumer's now, and so is its readiness.
                return Poll::Pending;
            }
            if tap.unread() == 0 {
                return Poll::Ready(Ok(false));
            }
            // With a slow client the lanes are not the bottleneck: their own back-pressure is the flow control.
            if self.transfer.is_client_blocked() || !self.transfer.has_window(tap.unread()) {
                return Poll::Pending;
            }
            readable.as_mut().poll(cx).map_ok(|()| true)
        })
        .await
    }

    /// Takes a whole frame off the socket and publishes it for another core.
    async fn hand_over(&mut self, seq: u64, len: usize) -> Result<(), Stop> {
        or_cancelled(&self.transfer, self.transfer.room_to_hand_over(seq, len)).await?;
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
                }
                Filled::Full => conduits.push(Conduit::new()),
                Filled::SourceEmpty => {
                    let ready = self.lane.socket().ready(Interest::Read);
                    or_cancelled(&self.transfer, ready).await?.map_err(|error| self.lane.lost(error))?;
                }
                Filled::EndOfFile => return Err(self.lane.lost(io::ErrorKind::UnexpectedEof.into()).into()),
            }
        }
        self.transfer.park(len);
        self.publish(seq, Parcel::Handed(Box::new(HandedFrame { conduits, len }))).await
    }

    /// Cancels upstream and throws everything away up to END.
    async fn wind_up(&mut self) -> Result<(), LaneError> {
        if !self.opened || self.check.is_ended() {
            return Ok(());
        }
        self.lane.cancel(self.transfer.id()).await?;
        let unread = match &self.delivery {
            Delivery::Tapped { tap, .. } => tap.unread(),
            Delivery::Handed => self.unread,
        };
        self.lane.discard(unread).await?;
        loop {
            let frame = self.lane.next_frame().await?;
            self.lane.discard(frame.payload_len().as_usize()).await?;
            match frame {
                Frame::End { transfer, .. } if transfer == self.transfer.id() => return Ok(()),
                frame if frame.transfer() == Some(self.transfer.id()) => {}
                other => return Err(self.lane.protocol(format_args!("{} while winding up", other.kind()))),
            }
        }
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

/// Waits for `future`, unless the transfer is given up first.
async fn or_cancelled<T>(transfer: &Transfer, future: impl Future<Output = T>) -> Result<T, Stop> {
    match select(pin!(future), pin!(transfer.cancelled())).await {
        Either::Left((value, _)) => Ok(value),
        Either::Right(((), _)) => Err(Stop::Cancelled),
    }
}
