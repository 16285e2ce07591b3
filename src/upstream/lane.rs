//! One lane at the upstream's end: transfers one after the other until the downstream closes it.
//!
//! In: an authenticated connection. Out: for every OPEN the response's head, the frames this lane pulls, and one END.
//! Runs as one task of the core that accepted the lane. Invariants: a lane pulls its next frame only when it has room; a
//! frame that was begun is finished or the lane is closed.

use std::{
    cell::Cell,
    future::Future,
    io,
    os::fd::AsFd,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{FutureExt, pin_mut, select_biased};
use tokio::sync::watch;

use super::{
    Upstream,
    fetch::fetch,
    registry::Opened,
    source::Intake,
    transfer::{Ending, Piece, Transfer},
};
use crate::{
    exec,
    mp::stripe::FrameSizer,
    net::{Conduit, Drained, Socket, sendfile},
    wire::{
        frame::{Frame, FrameError, HEADER_BYTES, Kind, Outcome},
        reason::Reason,
        units::{FrameLen, TransferId},
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

/// Why a lane ended, other than by the downstream's wish.
#[derive(Debug, thiserror::Error)]
pub(super) enum LaneError {
    /// The connection failed, or stalled.
    #[error("the lane was lost: {0}")]
    Lost(#[from] io::Error),
    /// The downstream closed it with a transfer on it.
    #[error("the downstream closed the lane in the middle of a transfer")]
    Closed,
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
    /// The frame that was begun cannot be completed.
    #[error("upstream: a file became shorter while it was sent")]
    FileShrank,
}

/// Reads frame headers; a read that is given up loses nothing.
#[derive(Default)]
struct Headers {
    bytes: [u8; HEADER_BYTES],
    received: usize,
}

impl Headers {
    /// The next header; `None` when the downstream closed the lane between two frames.
    async fn next(&mut self, socket: &Socket) -> Result<Option<Frame>, LaneError> {
        while self.received < HEADER_BYTES {
            match socket.recv_some(&mut self.bytes[self.received..]).await? {
                0 if self.received == 0 => return Ok(None),
                0 => return Err(LaneError::Closed),
                n => self.received += n,
            }
        }
        self.received = 0;
        Ok(Some(Frame::decode(&self.bytes)?))
    }
}

/// Serves the lane until the downstream closes it, or until `shutdown` turns true and no transfer is on it.
///
/// # Errors
/// [`LaneError`]: the lane is to be closed.
pub(super) async fn run(
    upstream: &Arc<Upstream>,
    socket: &Socket,
    shutdown: &mut watch::Receiver<bool>,
) -> Result<(), LaneError> {
    let mut headers = Headers::default();
    let mut sizer = FrameSizer::default();
    socket.bind_late(sizer.size());
    let mut has_carried = false;
    loop {
        let frame = {
            let (next, stop) = (headers.next(socket).fuse(), stopped(shutdown).fuse());
            pin_mut!(next, stop);
            select_biased! {
                frame = next => frame?,
                () = stop => {
                    if has_carried {
                        linger(socket).await;
                    }
                    return Ok(());
                }
            }
        };
        match frame {
            None => return Ok(()),
            Some(Frame::Open { transfer, head_len }) => {
                let mut head = vec![0; head_len.as_usize()];
                exec::timeout(OPEN_DEADLINE, socket.recv_exact(&mut head))
                    .await
                    .map_err(|exec::Elapsed| LaneError::OpenDeadline)??;
                has_carried = true;
                open(upstream, socket, &mut headers, &mut sizer, transfer, head).await?;
            }
            Some(Frame::Ping { token }) => send(socket, &Frame::Pong { token }.encode(), false).await?,
            // It crossed the END.
            Some(Frame::Cancel { .. } | Frame::Credit { .. }) => {}
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

/// Answers one OPEN.
async fn open(
    upstream: &Arc<Upstream>,
    socket: &Socket,
    headers: &mut Headers,
    sizer: &mut FrameSizer,
    id: TransferId,
    head: Vec<u8>,
) -> Result<(), LaneError> {
    let transfer = match upstream.registry.open(id, &upstream.pool) {
        Opened::Ended(ending) => return send_end(socket, id, &ending).await,
        Opened::Busy => {
            let reason = Reason::new("upstream: busy, too many transfers at once");
            let ending = Ending { outcome: Outcome::Aborted, frames: 0, bytes: 0, reason };
            return send_end(socket, id, &ending).await;
        }
        Opened::Started(transfer) => {
            exec::spawn(fetch(upstream.clone(), transfer.clone(), head));
            transfer
        }
        Opened::Joined(transfer) => transfer,
    };
    let membership = Membership { upstream, transfer: &transfer, has_pulled: Cell::new(false) };
    let (listener, writer) =
        (listen(socket, headers, &transfer).fuse(), write(socket, sizer, &membership).fuse());
    pin_mut!(listener, writer);
    select_biased! {
        lost = listener => Err(lost),
        outcome = writer => outcome,
    }
}

/// A lane's part in a transfer. Dropped before the transfer has ended, the lane counts as lost.
struct Membership<'a> {
    upstream: &'a Upstream,
    transfer: &'a Transfer,
    has_pulled: Cell<bool>,
}

impl Drop for Membership<'_> {
    fn drop(&mut self) {
        self.upstream.registry.leave(self.transfer, self.has_pulled.get());
    }
}

/// What the downstream says while a transfer is on the lane; returns when the lane is lost.
async fn listen(socket: &Socket, headers: &mut Headers, transfer: &Transfer) -> LaneError {
    loop {
        match headers.next(socket).await {
            Ok(Some(Frame::Cancel { transfer: id })) if id == transfer.id() => {
                transfer.end(Outcome::Cancelled, "");
            }
            Ok(Some(Frame::Credit { transfer: id, limit })) if id == transfer.id() => transfer.grant(limit.0),
            // Of a transfer before this one.
            Ok(Some(Frame::Cancel { .. } | Frame::Credit { .. })) => {}
            Ok(Some(other)) => {
                return LaneError::Protocol { kind: other.kind(), state: "carries a transfer" };
            }
            Ok(None) => return LaneError::Closed,
            Err(error) => return error,
        }
    }
}

/// Sends head, frames and end.
async fn write(socket: &Socket, sizer: &mut FrameSizer, lane: &Membership<'_>) -> Result<(), LaneError> {
    let transfer = lane.transfer;
    let head = {
        let mut watch = transfer.watch();
        let known = watch.wait_for(|state| state.head.is_some() || state.ending.is_some()).await;
        // The wait fails only when the transfer is gone, which `lane` holds.
        known.ok().and_then(|state| state.head.clone())
    };
    if let Some(head) = head {
        let frame = Frame::Head { transfer: transfer.id(), head_len: FrameLen(head.len() as u32) };
        let mut message = Vec::with_capacity(HEADER_BYTES + head.len());
        message.extend_from_slice(&frame.encode());
        message.extend_from_slice(&head);
        send(socket, &message, false).await?;
    }
    let mut intake = Intake::default();
    let mut unsent_max = 0;
    let mut turn = 0;
    // Bytes of the frame before, and since when the lane has been busy with them.
    let mut carried: Option<(usize, Instant)> = None;
    loop {
        if let Some(ending) = transfer.ending() {
            return send_end(socket, transfer.id(), &ending).await;
        }
        if !socket.has_room()? {
            turn = 0;
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
        if turn >= TURN_BYTES_MAX {
            turn = 0;
            exec::yield_now().await;
        }
        let left = transfer.credit_left();
        if left == 0 {
            // The client takes less than comes: what it has not taken must not pile up on the way.
            unless_ended(transfer, transfer.credited()).await;
            carried = None;
            turn = 0;
            continue;
        }
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(sizer.size());
        let pulled = unless_ended(transfer, transfer.pull(want, &mut intake)).await;
        lane.has_pulled.set(lane.has_pulled.get() || !intake.conduit.is_empty());
        let Some(Some(piece)) = pulled else {
            // About to end on another core.
            exec::yield_now().await;
            continue;
        };
        lane.has_pulled.set(true);
        let since = Instant::now();
        send_piece(socket, transfer, piece, &mut intake.conduit).await?;
        carried = Some((piece.len.as_usize(), since));
        turn += u64::from(piece.len.0);
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
    piece: Piece,
    conduit: &mut Conduit,
) -> Result<(), LaneError> {
    let Piece { seq, offset, len } = piece;
    send(socket, &Frame::Data { transfer: transfer.id(), seq, offset, len }.encode(), true).await?;
    if let Some(body) = transfer.file() {
        let len = u64::from(len.0);
        let sent = sendfile(socket, body.file.as_fd(), body.start + offset.0, len, STALL_MAX).await?;
        if sent < len {
            transfer.end(Outcome::Aborted, &LaneError::FileShrank.to_string());
            return Err(LaneError::FileShrank);
        }
        return Ok(());
    }
    while !conduit.is_empty() {
        if let Drained::Blocked = conduit.drain(socket, usize::MAX)? {
            socket.writable_within(STALL_MAX).await?;
        }
    }
    Ok(())
}

async fn send_end(socket: &Socket, transfer: TransferId, ending: &Ending) -> Result<(), LaneError> {
    let &Ending { outcome, frames, bytes, ref reason } = ending;
    let reason_len = FrameLen(reason.len() as u32);
    let mut message = Frame::End { transfer, outcome, frames, bytes, reason_len }.encode().to_vec();
    message.extend_from_slice(reason.as_str().as_bytes());
    send(socket, &message, false).await
}

/// Sends all of `bytes` to a downstream that may be slow, but not stalled.
async fn send(socket: &Socket, mut bytes: &[u8], more: bool) -> Result<(), LaneError> {
    while !bytes.is_empty() {
        match socket.try_send(bytes, more) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                socket.writable_within(STALL_MAX).await?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
