//! The consumer: takes frames from the MPQueue in order and moves them to their sink.
//!
//! In: parcels of the ring, and bytes still in the sockets of tapped lanes. Out: the body, in order, in a [`Sink`].
//! Runs in the task that serves the client. Invariants: a frame that is next and whose lane is on this core goes
//! straight from the lane's socket through one pipe to the client; [`Consumer::run`] returns `Ok` only if every byte
//! that END announced has been given to the sink.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    io,
    num::NonZeroU64,
    os::fd::OwnedFd,
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
};

use super::{
    duplicate::Duplicate,
    progress::Progress,
    queue,
    tap::{Front, Tap},
    transfer::{End, HandedFrame, Parcel, Transfer},
    window::{Usual, Window},
};
use crate::{
    cache::fill::{Fill, Unwanted},
    exec::{self, Budget, Instant},
    http::chunked,
    net::{Conduit, Drained, Filled, Socket},
    wire::frame::Outcome,
};

/// Moved without once waiting before other tasks of the core get their turn: a few milliseconds of memory bandwidth.
const TURN_BYTES_MAX: usize = 16 << 20;

/// Why the body did not come to its end. The bytes given to the sink until then are right, but not all.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The upstream gave it up.
    #[error("upstream: {reason}")]
    Aborted {
        /// What it said.
        reason: String,
    },
    /// No lane is left that could bring the missing frames.
    #[error("lanes: all were lost before the end ({reason})")]
    LanesLost {
        /// What the last one said.
        reason: String,
    },
    /// A peer broke the protocol.
    #[error("upstream: {reason}")]
    Protocol {
        /// How.
        reason: String,
    },
    /// The frames do not add up to what END says.
    #[error("upstream: the body ended after {got} of {announced} bytes")]
    Totals {
        /// Bytes received.
        got: u64,
        /// Bytes END announces.
        announced: u64,
    },
    /// The body is longer or shorter than its own head says.
    #[error("root: the body has {got} bytes, its head announced {announced}")]
    Length {
        /// Bytes received.
        got: u64,
        /// Content-Length.
        announced: u64,
    },
    /// The client is gone.
    #[error("client: {0}")]
    Client(#[source] io::Error),
    /// It was for the cache, and nobody waits for the rest.
    #[error("client: {0}")]
    Unwanted(#[from] Unwanted),
    /// The file cannot be written.
    #[error("file: {0}")]
    File(#[source] io::Error),
    /// Nothing moved for too long.
    #[error("{side}: no progress for {seconds} s")]
    Stalled {
        /// Who did not act: `client` or `lanes`.
        side: &'static str,
        /// The bound.
        seconds: u64,
    },
}

impl TransferError {
    /// Whether the rest may be had over another upstream, or from this one when it is asked again.
    pub fn may_be_continued(&self) -> bool {
        matches!(self, Self::LanesLost { .. } | Self::Aborted { .. })
    }
}

/// Where the body goes.
pub enum Sink<'a> {
    /// To a client that knows the length.
    Plain(&'a Socket),
    /// To a client by chunked transfer coding, RFC 9112 §7.1.
    Chunked(&'a Socket),
    /// Into the cache, and to the client that waits for it.
    Fill(&'a mut Fill),
    /// To a file, from an offset on.
    File {
        /// Open for writing.
        file: OwnedFd,
        /// Where the next byte goes.
        offset: u64,
    },
    /// Nobody wants it.
    Nowhere,
}

/// See the module's description. Dropping it gives the transfer up.
pub struct Consumer {
    transfer: Arc<Transfer>,
    ring: queue::Consumer<Parcel>,
    /// Taps of the lanes on this core; grows as lanes join.
    taps: Rc<RefCell<Vec<Rc<Tap>>>>,
    conduit: Conduit,
    progress: Rc<Progress>,
    /// Made of what a client is sent.
    duplicate: Option<Rc<Duplicate>>,
    next: u64,
    bytes: u64,
    /// When the body was asked for.
    began: Instant,
    window: Window,
    usual: Arc<Usual>,
    /// Length of the body by its head, if known.
    announced: Option<u64>,
    turn_bytes: usize,
    budget: Budget,
    /// Changes of the transfer that were judged, and what was next then.
    seen: (u32, u64),
}

impl Drop for Consumer {
    fn drop(&mut self) {
        let time = self.progress.moved_at().duration_since(self.began);
        self.usual.learn(self.given(), time, self.transfer.round_trip());
        self.transfer.finish();
    }
}

enum Next {
    Parcel(Parcel),
    /// Nothing: the body has so many bytes.
    End {
        bytes: u64,
    },
}

/// How reading a frame from its lane ended.
enum FromSocket {
    /// With its last byte.
    Whole,
    /// The rest came over another lane: here is all of it.
    Superseded(HandedFrame),
}

impl Consumer {
    pub(super) fn new(
        transfer: Arc<Transfer>,
        ring: queue::Consumer<Parcel>,
        taps: Rc<RefCell<Vec<Rc<Tap>>>>,
        (usual, running): (Arc<Usual>, usize),
    ) -> Self {
        let now = Instant::now();
        let first_window = usual.first(running);
        transfer.grant(first_window);
        let progress = Rc::new(Progress::new(now));
        Self {
            transfer,
            ring,
            taps,
            conduit: Conduit::new(),
            progress,
            duplicate: None,
            next: 0,
            bytes: 0,
            began: now,
            window: Window::new(first_window, now),
            usual,
            announced: None,
            turn_bytes: 0,
            budget: Budget::default(),
            seen: (0, 0),
        }
    }

    /// The transfer it consumes.
    pub fn transfer(&self) -> &Arc<Transfer> {
        &self.transfer
    }

    /// For a deadline that runs beside [`Consumer::run`].
    pub fn progress(&self) -> Rc<Progress> {
        self.progress.clone()
    }

    /// From now on copies what clients are sent.
    pub fn duplicate(&mut self) -> Rc<Duplicate> {
        self.duplicate.insert(Rc::new(Duplicate::new())).clone()
    }

    /// Body bytes given to the sink.
    pub fn given(&self) -> u64 {
        self.progress.given()
    }

    /// Moves the body to `sink` and returns its length. `announced` is its Content-Length, if known.
    ///
    /// # Errors
    /// [`TransferError`] when the body could not be completed.
    pub async fn run(&mut self, mut sink: Sink<'_>, announced: Option<u64>) -> Result<u64, TransferError> {
        self.progress.begins();
        self.announced = announced;
        loop {
            match self.next_parcel().await? {
                Next::End { bytes } => {
                    if bytes != self.bytes {
                        return Err(TransferError::Totals { got: self.bytes, announced: bytes });
                    }
                    if let Some(announced) = announced.filter(|&announced| announced != self.bytes) {
                        return Err(TransferError::Length { got: self.bytes, announced });
                    }
                    if let Sink::Chunked(client) = &sink {
                        self.send_framing(client, chunked::LAST_CHUNK, false).await?;
                    }
                    self.transfer.complete();
                    return Ok(self.bytes);
                }
                Next::Parcel(parcel) => {
                    let len = self.emit(parcel, &mut sink, announced).await?;
                    self.bytes += len as u64;
                    self.next += 1;
                    self.transfer.advance(self.next);
                    #[cfg(test)]
                    crate::simulation::ledger::has_given(self.transfer.id(), self.next);
                    if self.turn_bytes > TURN_BYTES_MAX {
                        self.turn_bytes = 0;
                        exec::yield_now().await;
                    }
                    self.budget.spend().await;
                }
            }
        }
    }

    /// The parcel that is next, or the end if all have come.
    async fn next_parcel(&mut self) -> Result<Next, TransferError> {
        if let Some(parcel) = self.ring.take() {
            return Ok(Next::Parcel(parcel));
        }
        self.starve();
        self.transfer.crowding.set_waiting(true);
        let next = poll_fn(|cx| {
            self.transfer.register(cx);
            let (changes, live) = (self.transfer.changes(), self.transfer.live());
            // Taken after `live` was read: what a lane published before it was done is seen here.
            if let Poll::Ready(Some(parcel)) = self.ring.poll_take(cx) {
                return Poll::Ready(Ok(Next::Parcel(parcel)));
            }
            // The totals may have come before the last frame: each frame may be the one that completes the body.
            if (changes, self.next) == self.seen {
                return Poll::Pending;
            }
            self.seen = (changes, self.next);
            self.judge(live)
        })
        .await;
        self.transfer.crowding.set_waiting(false);
        next
    }

    /// No frame is there: is it the end, a failure, or still to come?
    fn judge(&self, live: usize) -> Poll<Result<Next, TransferError>> {
        match self.transfer.total() {
            Some((frames, bytes)) if frames == self.next => return Poll::Ready(Ok(Next::End { bytes })),
            _ => {}
        }
        match self.hopeless(live) {
            Some(error) => Poll::Ready(Err(error)),
            None => Poll::Pending,
        }
    }

    /// Why what is missing will not come, if it will not.
    fn hopeless(&self, live: usize) -> Option<TransferError> {
        if let Some(reason) = self.transfer.failure() {
            return Some(TransferError::Protocol { reason });
        }
        match self.transfer.end() {
            Some(End { outcome: Outcome::Aborted, reason, .. }) => {
                return Some(TransferError::Aborted { reason });
            }
            Some(End { outcome: Outcome::Cancelled, .. }) => {
                return Some(TransferError::Aborted { reason: "the transfer was cancelled".into() });
            }
            _ => {}
        }
        if let Some(reason) = self.transfer.deserted() {
            return Some(TransferError::LanesLost { reason });
        }
        if live > 0 {
            return None;
        }
        let reason = self.transfer.last_loss().unwrap_or_else(|| "each ended early".into());
        Some(TransferError::LanesLost { reason })
    }

    /// The lanes are waited for: let them park what is not next.
    fn starve(&self) {
        self.progress.on_client.set(false);
        self.transfer.set_client_blocked(false);
        self.transfer.wake_held_back();
        for tap in self.taps.borrow().iter() {
            tap.wake_producer();
        }
    }

    async fn emit(
        &mut self,
        parcel: Parcel,
        sink: &mut Sink<'_>,
        announced: Option<u64>,
    ) -> Result<usize, TransferError> {
        let (offset, len) = match &parcel {
            Parcel::Handed(frame) => (frame.offset, frame.len),
            Parcel::Tapped { tap } => {
                let tap = self.taps.borrow()[*tap].clone();
                tap.place(self.next).unwrap_or_default()
            }
        };
        if offset != self.bytes {
            let reason = format!("frame {} begins at {offset}, where {} follows", self.next, self.bytes);
            return Err(TransferError::Protocol { reason });
        }
        // Not one byte more than the head announced: it would be taken for the next response.
        if let Some(announced) = announced.filter(|&announced| self.bytes + len as u64 > announced) {
            return Err(TransferError::Length { got: self.bytes + len as u64, announced });
        }
        if let Sink::Chunked(client) = sink {
            // A frame has at least one byte: FrameCheck saw to it.
            if let Some(size) = NonZeroU64::new(len as u64) {
                self.send_framing(client, &chunked::chunk_header(size), true).await?;
            }
        }
        match parcel {
            Parcel::Handed(mut frame) => {
                for conduit in &mut frame.conduits {
                    self.emit_parked(conduit, sink).await?;
                }
            }
            Parcel::Tapped { tap } => {
                let tap = self.taps.borrow()[tap].clone();
                self.emit_tapped(&tap, len, sink).await?;
            }
        }
        if let Some(spare) = self.transfer.take_spare(self.next) {
            self.transfer.unpark(spare.len);
        }
        if let Sink::Chunked(client) = sink {
            self.send_framing(client, chunked::CHUNK_END, false).await?;
        }
        Ok(len)
    }

    async fn emit_tapped(&mut self, tap: &Tap, len: usize, sink: &mut Sink<'_>) -> Result<(), TransferError> {
        let seq = self.next;
        let mut emitted = 0;
        loop {
            match tap.front(seq) {
                Front::Parked(mut conduit) => {
                    emitted += conduit.len();
                    self.emit_parked(&mut conduit, sink).await?;
                }
                Front::InSocket => match self.emit_from_socket(tap, &mut emitted, sink).await? {
                    FromSocket::Whole => {}
                    FromSocket::Superseded(spare) => {
                        self.emit_rest(spare, emitted, len, sink).await?;
                        break;
                    }
                },
                Front::Finished => break,
            }
        }
        let in_vain = tap.finish(seq);
        if in_vain > 0 {
            self.transfer.unpark(in_vain);
        }
        Ok(())
    }

    /// What follows the first `emitted` bytes of a frame of `len`, from its other copy.
    async fn emit_rest(
        &mut self,
        spare: HandedFrame,
        emitted: usize,
        len: usize,
        sink: &mut Sink<'_>,
    ) -> Result<(), TransferError> {
        if (spare.offset, spare.len) != (self.bytes, len) {
            let reason = format!("frame {} came twice and differed", self.next);
            return Err(TransferError::Protocol { reason });
        }
        let mut skip = emitted;
        for mut conduit in spare.conduits {
            let skipped = skip.min(conduit.len());
            conduit.skip(skipped);
            self.transfer.unpark(skipped);
            skip -= skipped;
            self.emit_parked(&mut conduit, sink).await?;
        }
        Ok(())
    }

    async fn emit_parked(&mut self, conduit: &mut Conduit, sink: &mut Sink<'_>) -> Result<(), TransferError> {
        while !conduit.is_empty() {
            let moved = self.drain(conduit, sink).await?;
            self.transfer.unpark(moved);
        }
        Ok(())
    }

    /// The short cut: lane socket → one pipe → client. Where the lane is lost, or slow, and another brings the frame as
    /// well, that one's copy is taken. `emitted` counts what has left.
    async fn emit_from_socket(
        &mut self,
        tap: &Tap,
        emitted: &mut usize,
        sink: &mut Sink<'_>,
    ) -> Result<FromSocket, TransferError> {
        tap.take_over();
        let mut conduit = std::mem::take(&mut self.conduit);
        while tap.unread() > 0 {
            if let Some(spare) = self.transfer.take_spare(self.next) {
                self.conduit = conduit;
                return Ok(FromSocket::Superseded(spare));
            }
            let filled = if tap.is_dead() {
                Ok(Filled::SourceEmpty)
            } else {
                conduit.fill(tap.socket(), tap.unread())
            };
            match filled {
                Ok(Filled::Bytes(n)) => {
                    tap.read(n);
                    #[cfg(test)]
                    crate::simulation::ledger::has_read(self.transfer.id(), self.next, tap.unread());
                    *emitted += n;
                }
                Ok(Filled::Full) => {}
                Ok(Filled::SourceEmpty) => {
                    self.starve();
                    self.more_of_frame(tap).await?;
                }
                Ok(Filled::EndOfFile) => tap.lose(io::ErrorKind::UnexpectedEof.into()),
                Err(error) => tap.lose(error),
            }
            while !conduit.is_empty() {
                self.drain(&mut conduit, sink).await?;
            }
        }
        self.conduit = conduit;
        Ok(FromSocket::Whole)
    }

    /// Waits for more of the frame that is next: in the tap's socket, or over another lane.
    async fn more_of_frame(&self, tap: &Tap) -> Result<(), TransferError> {
        let mut readable = pin!(tap.readable());
        poll_fn(|cx| {
            self.transfer.register(cx);
            let live = self.transfer.live();
            if self.transfer.has_spare(self.next) {
                return Poll::Ready(Ok(()));
            }
            if !tap.is_dead() && readable.as_mut().poll(cx).is_ready() {
                // An error shows again when the socket is read.
                return Poll::Ready(Ok(()));
            }
            match self.hopeless(live) {
                Some(error) => Poll::Ready(Err(error)),
                None => Poll::Pending,
            }
        })
        .await
    }

    /// Waits until the client takes more.
    async fn client_room(&self, client: &Socket) -> Result<(), TransferError> {
        self.progress.on_client.set(true);
        self.transfer.set_client_blocked(true);
        client.room().await.map_err(TransferError::Client)
    }

    /// Sends what stands between chunks; it is the client, too, who is waited for then.
    async fn send_framing(&self, client: &Socket, mut bytes: &[u8], more: bool) -> Result<(), TransferError> {
        while !bytes.is_empty() {
            match client.try_send(bytes, more) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.client_room(client).await?,
                Err(error) => return Err(TransferError::Client(error)),
            }
        }
        Ok(())
    }

    /// Moves what the sink takes of `conduit`, at least one byte.
    async fn drain(&mut self, conduit: &mut Conduit, sink: &mut Sink<'_>) -> Result<usize, TransferError> {
        let moved = match sink {
            Sink::File { file, offset } => {
                use std::os::fd::AsFd;
                let len = conduit.len();
                *offset = conduit.drain_to_file(file.as_fd(), *offset).map_err(TransferError::File)?;
                len
            }
            Sink::Fill(fill) => loop {
                match fill.take(conduit)? {
                    Drained::Bytes(n) => break n,
                    Drained::Blocked => {
                        self.progress.on_client.set(true);
                        self.transfer.set_client_blocked(true);
                        fill.room().await;
                    }
                }
            },
            Sink::Nowhere => {
                let len = conduit.len();
                conduit.skip(len);
                len
            }
            Sink::Plain(client) | Sink::Chunked(client) => {
                let max = self.duplicate.as_ref().map_or(usize::MAX, |copy| copy.copy_front(conduit));
                loop {
                    match conduit.drain(client, max).map_err(TransferError::Client)? {
                        Drained::Bytes(n) => {
                            self.duplicate.as_ref().inspect(|copy| copy.sent(n));
                            break n;
                        }
                        Drained::Blocked => self.client_room(client).await?,
                    }
                }
            }
        };
        self.progress.moved();
        self.progress.given.set(self.given() + moved as u64);
        self.turn_bytes += moved;
        self.transfer.add_taken(moved as u64);
        let was_full = self.transfer.crowding.was_full();
        let limit =
            self.window.taken(moved as u64, was_full, self.transfer.round_trip(), self.progress.moved_at());
        // Once all of the body may come there is nothing to add, and the upstream may close the lanes behind it.
        if let Some(limit) = limit.filter(|_| self.announced.is_none_or(|len| self.transfer.credit() < len)) {
            self.transfer.grant(limit);
        }
        Ok(moved)
    }
}
