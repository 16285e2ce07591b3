//! The consumer: takes frames from the MPQueue in order and moves them to their sink.
//!
//! In: parcels of the ring, and bytes still in the sockets of tapped lanes. Out: the body, in order, in a [`Sink`].
//! Runs in the task that serves the client. Invariants: a frame that is next and whose lane is on this core goes
//! straight from the lane's socket through one pipe to the client; [`Consumer::run`] returns `Ok` only if every byte
//! that END announced has been given to the sink.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    io,
    num::NonZeroU64,
    os::fd::OwnedFd,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::Instant,
};

use super::{
    queue,
    tap::{Front, Tap},
    transfer::{End, Parcel, Transfer},
    window::Window,
};
use crate::{
    exec::{self, Interest},
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

/// Where the body goes.
pub enum Sink<'a> {
    /// To a client that knows the length.
    Plain(&'a Socket),
    /// To a client by chunked transfer coding, RFC 9112 §7.1.
    Chunked(&'a Socket),
    /// To a file, from an offset on.
    File {
        /// Open for writing.
        file: OwnedFd,
        /// Where the next byte goes.
        offset: u64,
    },
}

/// What the consumer is waiting for, and since when; watched by a deadline outside.
#[derive(Debug)]
pub struct Progress {
    moved_at: Cell<Instant>,
    on_client: Cell<bool>,
}

impl Progress {
    fn moved(&self) {
        self.moved_at.set(Instant::now());
    }

    /// When the last byte moved.
    pub fn moved_at(&self) -> Instant {
        self.moved_at.get()
    }

    /// True while the client is waited for, false while the lanes are.
    pub fn on_client(&self) -> bool {
        self.on_client.get()
    }
}

/// See the module's description. Dropping it gives the transfer up.
pub struct Consumer {
    transfer: Arc<Transfer>,
    ring: queue::Consumer<Parcel>,
    /// Taps of the lanes on this core; grows as lanes join.
    taps: Rc<RefCell<Vec<Rc<Tap>>>>,
    conduit: Conduit,
    progress: Rc<Progress>,
    next: u64,
    bytes: u64,
    window: Window,
    /// Length of the body by its head, if known.
    announced: Option<u64>,
    turn: usize,
    seen: u32,
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.transfer.finish();
    }
}

enum Next {
    Parcel(Parcel),
    End(End),
}

impl Consumer {
    pub(super) fn new(
        transfer: Arc<Transfer>,
        ring: queue::Consumer<Parcel>,
        taps: Rc<RefCell<Vec<Rc<Tap>>>>,
    ) -> Self {
        let progress = Rc::new(Progress { moved_at: Cell::new(Instant::now()), on_client: Cell::new(false) });
        Self {
            transfer,
            ring,
            taps,
            conduit: Conduit::new(),
            progress,
            next: 0,
            bytes: 0,
            window: Window::new(Instant::now()),
            announced: None,
            turn: 0,
            seen: 0,
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

    /// Body bytes given to the sink.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Moves the body to `sink` and returns its length. `announced` is its Content-Length, if known.
    ///
    /// # Errors
    /// [`TransferError`] when the body could not be completed.
    pub async fn run(&mut self, mut sink: Sink<'_>, announced: Option<u64>) -> Result<u64, TransferError> {
        self.progress.moved();
        self.announced = announced;
        loop {
            match self.next_parcel().await? {
                Next::End(end) => {
                    if end.bytes != self.bytes {
                        return Err(TransferError::Totals { got: self.bytes, announced: end.bytes });
                    }
                    if let Some(announced) = announced.filter(|&announced| announced != self.bytes) {
                        return Err(TransferError::Length { got: self.bytes, announced });
                    }
                    if let Sink::Chunked(client) = &sink {
                        client.send_all(chunked::LAST_CHUNK, false).await.map_err(TransferError::Client)?;
                    }
                    self.transfer.complete();
                    return Ok(self.bytes);
                }
                Next::Parcel(parcel) => {
                    let len = self.emit(parcel, &mut sink, announced).await?;
                    self.bytes += len as u64;
                    self.next += 1;
                    self.transfer.advance(self.next);
                    if self.turn > TURN_BYTES_MAX {
                        self.turn = 0;
                        exec::yield_now().await;
                    }
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
        poll_fn(|cx| {
            self.transfer.register(cx);
            let (changes, live) = (self.transfer.changes(), self.transfer.live());
            // Taken after `live` was read: what a lane published before it was done is seen here.
            if let Poll::Ready(Some(parcel)) = self.ring.poll_take(cx) {
                return Poll::Ready(Ok(Next::Parcel(parcel)));
            }
            if changes == self.seen {
                return Poll::Pending;
            }
            self.seen = changes;
            self.judge(live)
        })
        .await
    }

    /// No frame is there: is it the end, a failure, or still to come?
    fn judge(&self, live: usize) -> Poll<Result<Next, TransferError>> {
        if let Some(reason) = self.transfer.failure() {
            return Poll::Ready(Err(TransferError::Protocol { reason }));
        }
        let end = self.transfer.end();
        match &end {
            Some(End { outcome: Outcome::Complete, frames, .. }) if *frames == self.next => {}
            Some(End { outcome: Outcome::Aborted, reason, .. }) => {
                return Poll::Ready(Err(TransferError::Aborted { reason: reason.clone() }));
            }
            Some(End { outcome: Outcome::Cancelled, .. }) => {
                return Poll::Ready(Err(TransferError::Aborted {
                    reason: "the transfer was cancelled".into(),
                }));
            }
            _ if live > 0 => return Poll::Pending,
            _ => {
                let reason = self.transfer.last_loss().unwrap_or_else(|| "each ended early".into());
                return Poll::Ready(Err(TransferError::LanesLost { reason }));
            }
        }
        match end {
            Some(end) => Poll::Ready(Ok(Next::End(end))),
            None => Poll::Pending,
        }
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
        let tap = match &parcel {
            Parcel::Tapped { tap } => Some(self.taps.borrow()[*tap].clone()),
            Parcel::Handed(_) => None,
        };
        let len = match (&parcel, &tap) {
            (Parcel::Handed(frame), _) => frame.len,
            (_, Some(tap)) => tap.front_len(),
            (Parcel::Tapped { .. }, None) => 0,
        };
        // Not one byte more than the head announced: it would be taken for the next response.
        if let Some(announced) = announced.filter(|&announced| self.bytes + len as u64 > announced) {
            return Err(TransferError::Length { got: self.bytes + len as u64, announced });
        }
        if let Sink::Chunked(client) = sink {
            // A frame has at least one byte: FrameCheck saw to it.
            if let Some(size) = NonZeroU64::new(len as u64) {
                client.send_all(&chunked::chunk_header(size), true).await.map_err(TransferError::Client)?;
            }
        }
        match parcel {
            Parcel::Handed(mut frame) => {
                for conduit in &mut frame.conduits {
                    self.emit_parked(conduit, sink).await?;
                }
            }
            Parcel::Tapped { .. } => {
                if let Some(tap) = tap {
                    self.emit_tapped(&tap, sink).await?;
                }
            }
        }
        if let Sink::Chunked(client) = sink {
            client.send_all(chunked::CHUNK_END, false).await.map_err(TransferError::Client)?;
        }
        Ok(len)
    }

    async fn emit_tapped(&mut self, tap: &Tap, sink: &mut Sink<'_>) -> Result<(), TransferError> {
        loop {
            match tap.front() {
                Front::Parked(mut conduit) => self.emit_parked(&mut conduit, sink).await?,
                Front::InSocket => self.emit_from_socket(tap, sink).await?,
                Front::Finished => {
                    tap.finish_front();
                    return Ok(());
                }
            }
        }
    }

    async fn emit_parked(&mut self, conduit: &mut Conduit, sink: &mut Sink<'_>) -> Result<(), TransferError> {
        while !conduit.is_empty() {
            let moved = self.drain(conduit, sink).await?;
            self.transfer.unpark(moved);
        }
        Ok(())
    }

    /// The short cut: lane socket → one pipe → client.
    async fn emit_from_socket(&mut self, tap: &Tap, sink: &mut Sink<'_>) -> Result<(), TransferError> {
        tap.take_over();
        let lost = |error: io::Error| TransferError::LanesLost { reason: error.to_string() };
        let mut conduit = std::mem::take(&mut self.conduit);
        while tap.unread() > 0 {
            match conduit.fill(tap.socket(), tap.unread()).map_err(lost)? {
                Filled::Bytes(n) => tap.read(n),
                Filled::Full => {}
                Filled::SourceEmpty => {
                    self.starve();
                    tap.readable().await.map_err(lost)?;
                }
                Filled::EndOfFile => return Err(lost(io::ErrorKind::UnexpectedEof.into())),
            }
            while !conduit.is_empty() {
                self.drain(&mut conduit, sink).await?;
            }
        }
        self.conduit = conduit;
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
            Sink::Plain(client) | Sink::Chunked(client) => loop {
                match conduit.drain(client, usize::MAX).map_err(TransferError::Client)? {
                    Drained::Bytes(n) => break n,
                    Drained::Blocked => {
                        self.progress.on_client.set(true);
                        self.transfer.set_client_blocked(true);
                        client.ready(Interest::Write).await.map_err(TransferError::Client)?;
                    }
                }
            },
        };
        self.progress.moved();
        self.turn += moved;
        let limit = self.window.taken(moved as u64, self.transfer.round_trip(), self.progress.moved_at());
        // Once all of the body may come there is nothing to add, and the upstream may close the lanes behind it.
        if let Some(limit) = limit.filter(|_| self.announced.is_none_or(|len| self.transfer.credit() < len)) {
            self.transfer.grant(limit);
        }
        Ok(moved)
    }
}
