//! One lane at the upstream's end: transfers one after the other until the downstream closes it.
//!
//! In: an authenticated connection. Out: for every OPEN the response's head, the frames this lane pulls, and one END.
//! Runs as one task of the core that accepted the lane. Invariants: a lane pulls its next frame only when it has room; a
//! frame that was begun is finished or the lane is closed.

use std::{future::Future, io, os::fd::AsFd, sync::Arc, time::Duration};

use futures_util::{FutureExt, pin_mut, select_biased};
use tokio::sync::watch;

use super::{
    Upstream,
    fetch::fetch,
    registry::Opened,
    source::View,
    transfer::{Ending, Payload, Transfer},
    upload::{Inlet, PIECE_BYTES_MAX, upload},
};
use crate::{
    exec::{self, Budget, Core, Effort, Instant},
    lanes::census::Counted,
    mp::stripe::{FrameSizer, LaneId, LaneModel, Overcount, Piece, Turn},
    net::{Drained, MptcpState, Socket, sendfile},
    wire::{
        frame::{Frame, FrameError, HEADER_BYTES, Kind, Outcome},
        reason::Reason,
        units::{FrameLen, Offset, TransferId},
    },
};

/// A lane that takes nothing for so long is closed. The downstream gives up a client that takes nothing for 120 s, so
/// this fires only where the downstream itself hangs or is gone without a word.
const STALL_MAX: Duration = Duration::from_secs(180);
/// How long a lane that is closed at the end of the process may still be told something.
const LINGER: Duration = Duration::from_secs(3);
/// A request's head follows its frame header at once; this bounds a downstream that stops in between.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);
/// Moved without once waiting before other tasks get their turn, so that the lanes of one core share a fast root.
const TURN_BYTES_MAX: u64 = 1 << 20;

// BBR learns nothing from a lone packet that is smaller than others (its acknowledgement may have been delayed), but takes the lane
// for a busy one from then on: if it has not measured the round trip for ten seconds it pauses for 0.2 s with the next
// acknowledgement (PROBE_RTT; FLAG_ACK_MAYBE_DELAYED in Linux's net/ipv4/tcp_input.c). So on a lane that has rested nothing small goes
// just before a transfer's first bytes.

/// A head goes alone if no body is there after so long.
const HEAD_ALONE_AFTER: Duration = Duration::from_millis(2);
/// A lane that has carried nothing for so long is not the one whose END the downstream waits for.
const RESTED_AFTER: Duration = Duration::from_secs(1);

/// Why a lane ended, other than by the downstream's wish.
#[derive(Debug, thiserror::Error)]
pub(super) enum LaneError {
    /// The connection failed, or stalled.
    #[error("the lane was lost: {0}")]
    Lost(#[from] io::Error),
    /// The downstream closed it with a transfer on it.
    #[error("the downstream closed the lane in the middle of a transfer")]
    Closed,
    /// The same, and nothing of the transfer was on its way on it: another lane has taken its place.
    #[error("the lane was relieved")]
    Relieved,
    /// What came is no frame.
    #[error("the downstream sent nonsense: {0}")]
    Frame(#[from] FrameError),
    /// A frame that does not belong here.
    #[error("the downstream broke the protocol: {kind} while the lane {state}")]
    Protocol {
        /// What came.
        kind: Kind,
        /// What the lane was doing.
        state: &'static str,
    },
    /// A request that stops in the middle.
    #[error("the downstream's request did not arrive within {} s", OPEN_DEADLINE.as_secs())]
    OpenDeadline,
    /// An acknowledgement of what was never sent.
    #[error("the downstream broke the protocol: {0}")]
    Overcount(#[from] Overcount),
    /// The frame that was begun cannot be completed.
    #[error("upstream: a file became shorter while it was sent")]
    FileShrank,
}

/// Reads frame headers; a read that is given up loses nothing.
#[derive(Default)]
struct Headers {
    bytes: [u8; HEADER_BYTES],
    received: usize,
    /// Payload of a BODY frame that is still in the socket.
    payload: usize,
}

impl Headers {
    /// The next header, behind what was not taken of the payload before it; `None` when the downstream closed the lane
    /// between two frames.
    async fn next(&mut self, socket: &Socket) -> Result<Option<Frame>, LaneError> {
        while self.payload > 0 {
            match socket.discard(self.payload).await? {
                0 => return Err(LaneError::Closed),
                n => self.payload -= n,
            }
        }
        while self.received < HEADER_BYTES {
            match socket.recv_some(&mut self.bytes[self.received..]).await? {
                0 if self.received == 0 => return Ok(None),
                0 => return Err(LaneError::Closed),
                n => self.received += n,
            }
        }
        self.received = 0;
        let frame = Frame::decode(&self.bytes)?;
        if let Frame::Body { len, .. } = frame {
            self.payload = len.as_usize();
        }
        Ok(Some(frame))
    }

    /// Some of the payload of a BODY frame, of which there must be some.
    async fn piece(&mut self, socket: &Socket) -> Result<Vec<u8>, LaneError> {
        let mut piece = vec![0; self.payload.min(PIECE_BYTES_MAX)];
        match socket.recv_some(&mut piece).await? {
            0 => Err(LaneError::Closed),
            n => {
                self.payload -= n;
                piece.truncate(n);
                Ok(piece)
            }
        }
    }
}

/// A lane between two transfers, or with one that has not begun on it: all that another core needs to go on.
#[derive(Debug, Default)]
pub(super) struct Course {
    sizer: FrameSizer,
    model: LaneModel,
    has_carried: bool,
    /// It was moved for this.
    opening: Option<Opening>,
}

impl Course {
    /// Of a lane that has just been accepted.
    pub(super) fn of(socket: &Socket) -> Self {
        let spans_paths = matches!(socket.mptcp(), Some(MptcpState::Subflows(_)));
        let peer = socket.peer().ok().map(|peer| peer.ip().to_canonical());
        Self { model: LaneModel::new(spans_paths, peer), ..Self::default() }
    }
}

#[derive(Debug)]
struct Opening {
    transfer: TransferId,
    head: Vec<u8>,
    opened: Opened,
}

/// Serves the lane until the downstream closes it, or until `shutdown` turns true and no transfer is on it; or until its next
/// transfer is on another core, which is to go on with the course.
///
/// # Errors
/// [`LaneError`]: the lane is to be closed.
pub(super) async fn run(
    upstream: &Arc<Upstream>,
    socket: &Socket,
    counted: &Counted,
    shutdown: &mut watch::Receiver<bool>,
    mut course: Course,
) -> Result<Option<(Core, Course)>, LaneError> {
    let mut headers = Headers::default();
    socket.bind_late(course.sizer.size());
    let mut budget = Budget::default();
    loop {
        if let Some(opening) = course.opening.take() {
            course.has_carried = true;
            counted.in_use.set(true);
            match open(upstream, (socket, counted), &mut headers, &mut course, opening).await {
                Err(LaneError::Relieved) => return Ok(None),
                outcome => outcome?,
            }
            counted.in_use.set(false);
        }
        budget.spend().await;
        let frame = {
            let (next, stop) = (headers.next(socket).fuse(), stopped(shutdown).fuse());
            pin_mut!(next, stop);
            select_biased! {
                frame = next => frame?,
                () = stop => {
                    if course.has_carried {
                        linger(socket).await;
                    }
                    return Ok(None);
                }
            }
        };
        match frame {
            None => return Ok(None),
            Some(Frame::Open { transfer, head_len }) => {
                let mut head = vec![0; head_len.as_usize()];
                exec::timeout(OPEN_DEADLINE, socket.recv_exact(&mut head))
                    .await
                    .map_err(|exec::Elapsed| LaneError::OpenDeadline)??;
                let opened = upstream.registry.open(transfer, exec::core(), &upstream.pool);
                let core = opened.core();
                course.opening = Some(Opening { transfer, head, opened });
                if let Some(core) = core.filter(|core| *core != exec::core()) {
                    return Ok(Some((core, course)));
                }
            }
            Some(Frame::Ping { token }) => send(socket, &Frame::Pong { token }.encode(), false).await?,
            // It crossed the END.
            Some(Frame::Cancel { .. } | Frame::Credit { .. } | Frame::Body { .. }) => {}
            Some(other) => return Err(LaneError::Protocol { kind: other.kind(), state: "is idle" }),
        }
    }
}

/// Lets the last frames arrive: a credit that met a closed socket would be answered by a reset, which destroys them.
async fn linger(socket: &Socket) {
    socket.finish();
    let gone = async { while socket.discard(HEADER_BYTES).await.is_ok_and(|bytes| bytes > 0) {} };
    let _ = exec::timeout(LINGER, gone).await;
}

/// Resolves when the process is to end.
async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    if shutdown.wait_for(|stop| *stop).await.is_err() {
        // Nobody is left to say it.
        std::future::pending::<()>().await;
    }
}

/// Answers one OPEN. `course` is what the lane learned so far.
async fn open(
    upstream: &Arc<Upstream>,
    (socket, counted): (&Socket, &Counted),
    headers: &mut Headers,
    Course { sizer, model, .. }: &mut Course,
    Opening { transfer: id, head, opened }: Opening,
) -> Result<(), LaneError> {
    let mut effort = None;
    // The lane that starts a transfer is the one that brings the request's body, if there is one.
    let mut inlet = None;
    let transfer = match opened {
        Opened::Ended(ending) => return send_end(socket, id, &ending, false).await,
        Opened::Busy => {
            let reason = Reason::new("upstream: busy, too many transfers at once");
            let ending = Ending { outcome: Outcome::Aborted, frames: 0, bytes: 0, reason };
            return send_end(socket, id, &ending, false).await;
        }
        Opened::Started(transfer) => {
            tracing::debug!(transfer = %id, "a transfer begins");
            effort = Some(Effort::begin());
            let (lane_end, root_end) = upload();
            inlet = Some(lane_end);
            exec::spawn(fetch(upstream.clone(), transfer.clone(), head, root_end));
            let guarded = transfer.clone();
            exec::spawn(async move { guarded.guard().await });
            transfer
        }
        Opened::Joined(transfer) => transfer,
    };
    let lane = transfer.join(model.clone());
    let membership = Membership { upstream, transfer: &transfer, lane, model };
    let (listener, writer) = (
        listen(socket, headers, &transfer, membership.lane, inlet).fuse(),
        write((socket, counted), sizer, &transfer, membership.lane).fuse(),
    );
    pin_mut!(listener, writer);
    let outcome = select_biased! {
        lost = listener => Err(lost),
        outcome = writer => outcome,
    };
    if let Some(effort) = effort {
        transfer.home().note(&effort);
    }
    outcome
}

/// A lane's part in a transfer. What a lane that is lost has carried is sent again by the others.
struct Membership<'a> {
    upstream: &'a Upstream,
    transfer: &'a Transfer,
    lane: LaneId,
    model: &'a mut LaneModel,
}

impl Drop for Membership<'_> {
    fn drop(&mut self) {
        let is_last = self.upstream.registry.leave(self.transfer);
        *self.model = self.transfer.leave(self.lane, is_last);
    }
}

/// What the downstream says while a transfer is on the lane; returns when the lane is lost.
async fn listen(
    socket: &Socket,
    headers: &mut Headers,
    transfer: &Transfer,
    lane: LaneId,
    mut inlet: Option<Inlet>,
) -> LaneError {
    let mut budget = Budget::default();
    loop {
        budget.spend().await;
        match headers.next(socket).await {
            Ok(Some(Frame::Cancel { transfer: id })) if id == transfer.id() => {
                transfer.end(Outcome::Cancelled, "");
                // What follows belongs to the next transfer.
                std::future::pending::<()>().await;
            }
            Ok(Some(Frame::Credit { transfer: id, frames, reading, limit, next })) if id == transfer.id() => {
                if let Err(error) = transfer.received(lane, (frames, next), reading, limit.0) {
                    return error.into();
                }
            }
            Ok(Some(Frame::Body { transfer: id, offset, last, .. })) if id == transfer.id() => {
                if let Err(error) = take_body(socket, headers, &mut inlet, offset, last).await {
                    return error;
                }
            }
            // Of a transfer before this one.
            Ok(Some(Frame::Cancel { .. } | Frame::Credit { .. } | Frame::Body { .. })) => {}
            Ok(Some(other)) => {
                return LaneError::Protocol { kind: other.kind(), state: "carries a transfer" };
            }
            Ok(None) if transfer.is_spent(lane) => return LaneError::Relieved,
            Ok(None) => return LaneError::Closed,
            Err(error) => return error,
        }
    }
}

/// Hands the payload of a BODY frame on to the root, as fast as that takes it.
async fn take_body(
    socket: &Socket,
    headers: &mut Headers,
    inlet: &mut Option<Inlet>,
    offset: Offset,
    last: bool,
) -> Result<(), LaneError> {
    let wrong = |state| Err(LaneError::Protocol { kind: Kind::Body, state });
    match inlet {
        None => return wrong("brings no body, or has brought all of it"),
        Some(inlet) if !inlet.goes_on_at(offset) => return wrong("is elsewhere in the request's body"),
        Some(inlet) => {
            while headers.payload > 0 {
                let piece = headers.piece(socket).await?;
                inlet.give(piece).await;
            }
        }
    }
    if last && let Some(inlet) = inlet.take() {
        inlet.finish().await;
    }
    Ok(())
}

/// Sends head, frames and end.
async fn write(
    (socket, counted): (&Socket, &Counted),
    sizer: &mut FrameSizer,
    transfer: &Transfer,
    lane: LaneId,
) -> Result<(), LaneError> {
    let head = {
        let mut watch = transfer.watch();
        let known = watch.wait_for(|state| state.head.is_some() || state.ending.is_some()).await;
        // The wait fails only when the transfer is gone, which the caller holds.
        known.ok().and_then(|state| state.head.clone())
    };
    let mut view = View::default();
    let mut first = None;
    if let Some(head) = head {
        let frame = Frame::Head { transfer: transfer.id(), head_len: FrameLen(head.len() as u32) };
        let mut message = Vec::with_capacity(HEADER_BYTES + head.len());
        message.extend_from_slice(&frame.encode());
        message.extend_from_slice(&head);
        let piece = next_piece(transfer, lane, sizer.size(), &mut view);
        first = exec::timeout(HEAD_ALONE_AFTER, piece).await.ok().flatten();
        send(socket, &message, first.is_some()).await?;
    }
    let mut has_total = false;
    let mut unsent_max = 0;
    let mut turn_bytes = 0;
    // Bytes of the frame before, and since when the lane has been busy with them.
    let mut carried: Option<(usize, Instant)> = None;
    let mut carried_at = Instant::now();
    loop {
        if let Some(ending) = transfer.ending() {
            // The totals are there: no client waits for this one.
            let waits =
                has_total && ending.outcome != Outcome::Aborted && carried_at.elapsed() > RESTED_AFTER;
            return send_end(socket, transfer.id(), &ending, waits).await;
        }
        if !has_total && let Some((frames, bytes)) = transfer.totals_if_final() {
            has_total = true;
            send(socket, &Frame::Total { transfer: transfer.id(), frames, bytes }.encode(), false).await?;
        }
        if !socket.has_room()? {
            turn_bytes = 0;
            match unless_ended(transfer, socket.writable_within(STALL_MAX)).await {
                Some(room) => room?,
                None => continue,
            }
            // Readiness may be stale.
            if !socket.has_room()? {
                continue;
            }
        }
        if let Some((bytes, since)) = carried.take() {
            sizer.carried(bytes, since.elapsed());
            // A fast lane sends what it accepts within a frame's time anyway, and sleeps less often with more.
            if sizer.size() >= 2 * unsent_max || sizer.size() <= unsent_max / 2 {
                unsent_max = sizer.size();
                socket.bind_late(unsent_max);
            }
        }
        if turn_bytes >= TURN_BYTES_MAX {
            turn_bytes = 0;
            exec::yield_now().await;
        }
        let next = match first.take() {
            None => socket.while_sending(next_piece(transfer, lane, sizer.size(), &mut view)).await,
            first => first,
        };
        let Some(next) = next else {
            // The time spent here is not the lane's.
            turn_bytes = 0;
            continue;
        };
        let since = Instant::now();
        let (len, again) = (next.piece.len, next.again);
        send_piece(socket, transfer, next).await?;
        counted.down.set(counted.down.get() + u64::from(len.0));
        if again {
            counted.resent.set(counted.resent.get() + u64::from(len.0));
        }
        carried = Some((len.as_usize(), since));
        carried_at = Instant::now();
        turn_bytes += u64::from(len.0);
    }
}

/// A frame for a lane.
struct Next {
    piece: Piece,
    payload: Payload,
    /// Another lane has carried it.
    again: bool,
}

/// What a lane with room is to send; `None` after a wait, when everything may be different.
async fn next_piece(transfer: &Transfer, lane: LaneId, size: usize, view: &mut View) -> Option<Next> {
    let (stirred, urgent) = (transfer.stirred(), transfer.urgent());
    pin_mut!(stirred, urgent);
    // Registered before the turn is asked for, so that no change falls between.
    stirred.as_mut().enable();
    urgent.as_mut().enable();
    match transfer.turn(lane, size) {
        Turn::Again { seq } => {
            transfer.again(lane, seq).map(|(piece, payload)| Next { piece, payload, again: true })
        }
        Turn::Fresh { want } => {
            let (fresh, urgent) = (transfer.fresh(lane, want, view).fuse(), urgent.fuse());
            let ended = transfer.ended().fuse();
            pin_mut!(fresh, ended, urgent);
            let piece = select_biased! {
                piece = fresh => piece,
                () = ended => None,
                () = urgent => return None,
            };
            if piece.is_none() {
                // About to end on another core.
                exec::yield_now().await;
            }
            piece.map(|(piece, payload)| Next { piece, payload, again: false })
        }
        Turn::Wait { until } => {
            let stirred = stirred.fuse();
            let ended = transfer.ended().fuse();
            let elapsed = async {
                match until {
                    Some(until) => exec::sleep(until.saturating_sub(transfer.now())).await,
                    None => std::future::pending().await,
                }
            }
            .fuse();
            pin_mut!(stirred, ended, elapsed);
            select_biased! {
                () = ended => {}
                () = stirred => {}
                () = elapsed => {}
            }
            None
        }
    }
}

/// `work`'s output, or nothing if the transfer ends first.
async fn unless_ended<T>(transfer: &Transfer, work: impl Future<Output = T>) -> Option<T> {
    let (work, ended) = (work.fuse(), transfer.ended().fuse());
    pin_mut!(work, ended);
    select_biased! {
        output = work => Some(output),
        () = ended => None,
    }
}

async fn send_piece(
    socket: &Socket,
    transfer: &Transfer,
    Next { piece, payload, again }: Next,
) -> Result<(), LaneError> {
    let Piece { seq, offset, len } = piece;
    send(socket, &Frame::Data { transfer: transfer.id(), seq, offset, len, again }.encode(), true).await?;
    let mut conduit = match (payload, transfer.file()) {
        (Payload::Conduit(conduit), _) => conduit,
        (Payload::File, None) => return Ok(()),
        (Payload::File, Some(body)) => {
            let len = u64::from(len.0);
            let sent = sendfile(socket, body.file.as_fd(), body.start + offset.0, len, STALL_MAX).await?;
            if sent < len {
                transfer.end(Outcome::Aborted, &LaneError::FileShrank.to_string());
                return Err(LaneError::FileShrank);
            }
            return Ok(());
        }
    };
    while !conduit.is_empty() {
        if let Drained::Blocked = conduit.drain(socket, usize::MAX)? {
            socket.writable_within(STALL_MAX).await?;
        }
    }
    Ok(())
}

/// `waits`: up to 0.2 s for the next transfer's first bytes, with which it is then sent (MSG_MORE, tcp(7)).
async fn send_end(
    socket: &Socket,
    transfer: TransferId,
    ending: &Ending,
    waits: bool,
) -> Result<(), LaneError> {
    let &Ending { outcome, frames, bytes, ref reason } = ending;
    let reason_len = FrameLen(reason.len() as u32);
    let mut message = Frame::End { transfer, outcome, frames, bytes, reason_len }.encode().to_vec();
    message.extend_from_slice(reason.as_str().as_bytes());
    send(socket, &message, waits).await
}

/// Sends all of `bytes` to a downstream that may be slow, but not stalled.
async fn send(socket: &Socket, bytes: &[u8], more: bool) -> Result<(), LaneError> {
    Ok(socket.send_within(bytes, more, STALL_MAX).await?)
}
