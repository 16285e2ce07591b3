//! One lane at the downstream's end: reads frame headers, sends requests, answers to its pool.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use super::{
    PathStatus,
    census::{Counted, End},
};
use crate::{
    exec::{self, Budget, Instant},
    net::{Socket, keep_alive::ASK_OFTEN},
    wire::{
        frame::{Frame, FrameError, HEADER_BYTES, Reading},
        handshake::Accepted,
        units::{Offset, Seq, TransferId},
    },
};

/// Why a lane is of no more use.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
    /// The connection failed.
    #[error("lane over {path} was lost: {source}")]
    Lost {
        /// The path as on the command line.
        path: String,
        /// What the kernel says.
        source: io::Error,
    },
    /// The upstream's side closed it.
    #[error("lane over {path} was closed by the other side")]
    Closed {
        /// The path as on the command line.
        path: String,
    },
    /// What came is not Plait's protocol.
    #[error("lane over {path} carries nonsense: {source}")]
    Frame {
        /// The path as on the command line.
        path: String,
        /// What is wrong with it.
        source: FrameError,
    },
    /// The right frames in a wrong order.
    #[error("lane over {path} broke the protocol: {what}")]
    Protocol {
        /// The path as on the command line.
        path: String,
        /// What was not expected.
        what: String,
    },
    /// No answer in time.
    #[error("lane over {path} gave no answer within {} ms", .deadline.as_millis())]
    Deadline {
        /// The path as on the command line.
        path: String,
        /// How long it was waited for.
        deadline: Duration,
    },
}

/// Transfers given up one after the other, none of whose ENDs has come: a lane that is so far behind is of no use.
pub(super) const STALE_MAX: usize = 16;

/// 1 MiB: a window that was opened by so much carries 50 Mbit/s over 100 ms.
const WARM: u32 = 20;
/// 8 MiB: what has carried more is no warmer, and the one used last is the best.
const WARMTH_MAX: u32 = 23;

/// A lane. Dropping it closes the connection.
pub struct Lane {
    pub(super) socket: Rc<Socket>,
    pub(super) path: Arc<PathStatus>,
    counted: Counted,
    /// Of the upstream process at the far end; lanes of one transfer share it.
    pub(super) instance: u64,
    /// A leg behind the first hop was to be MPTCP and is plain TCP.
    pub(super) fell_back: bool,
    /// A header that has arrived in part; survives a read that is cancelled.
    pub(super) partial: RefCell<([u8; HEADER_BYTES], usize)>,
    pub(super) quiet_since: Cell<Instant>,
    /// When the last transfer on it ended, or when it was made.
    pub(super) unused_since: Cell<Instant>,
    /// What it has received in all when it was given back last, as a power of two; 0 for one that has carried nothing.
    pub(super) warmth: Cell<u32>,
    /// Transfers whose ENDs have not come yet, although nobody waits for them, and the payload of the first one's current
    /// frame that is still in the socket.
    pub(super) stale: RefCell<VecDeque<TransferId>>,
    pub(super) stale_payload: Cell<usize>,
    /// All that is left of those transfers is their ENDs: their bodies were delivered.
    only_ends_left: Cell<bool>,
    /// The pool's keeper hears when the other side closes it.
    pub(super) is_watched: Cell<bool>,
}

impl Lane {
    /// A lane over an authenticated connection.
    pub(super) fn new(socket: Socket, path: Arc<PathStatus>, accepted: Accepted) -> Self {
        let Accepted { instance, fell_back } = accepted;
        path.lane_opened(instance);
        socket.keep_alive(ASK_OFTEN);
        let counted = Counted::new(End::Downstream, path.name().to_owned(), &socket);
        Self::of(Rc::new(socket), path, counted, (instance, fell_back))
    }

    /// A lane that its path counts already.
    pub(super) fn of(
        socket: Rc<Socket>,
        path: Arc<PathStatus>,
        counted: Counted,
        (instance, fell_back): (u64, bool),
    ) -> Self {
        let lane = Self {
            socket,
            path,
            counted,
            instance,
            fell_back,
            partial: RefCell::new(([0; HEADER_BYTES], 0)),
            quiet_since: Cell::new(Instant::now()),
            unused_since: Cell::new(Instant::now()),
            warmth: Cell::new(0),
            stale: RefCell::default(),
            stale_payload: Cell::new(0),
            only_ends_left: Cell::new(true),
            is_watched: Cell::new(false),
        };
        lane.look_at_mptcp();
        lane
    }

    /// Tells the path how an MPTCP lane stands: the path manager adds and drops subflows at any time.
    fn look_at_mptcp(&self) {
        if let Some(state) = self.socket.mptcp() {
            self.path.mptcp(state, self.fell_back);
        }
    }

    /// The connection.
    pub fn socket(&self) -> &Rc<Socket> {
        &self.socket
    }

    /// The path it runs along.
    pub fn path(&self) -> &Arc<PathStatus> {
        &self.path
    }

    /// Which upstream process is at the far end.
    pub fn instance(&self) -> u64 {
        self.instance
    }

    /// Since when nothing was asked of it, not even an answer to a ping.
    pub(super) fn quiet_since(&self) -> Instant {
        self.quiet_since.get()
    }

    /// Since when it has carried nothing; pings do not count.
    pub(super) fn unused_since(&self) -> Instant {
        self.unused_since.get()
    }

    /// Nothing has arrived and the peer has not closed.
    pub(super) fn is_quiet(&self) -> bool {
        self.partial.borrow().1 == 0 && self.socket.is_quiet()
    }

    /// It was used, or has answered.
    pub(super) fn touch(&self) {
        self.look_at_mptcp();
        self.quiet_since.set(Instant::now());
    }

    /// It is leased.
    pub(super) fn lease_began(&self) {
        self.path.lease_began();
        self.counted.in_use.set(true);
    }

    /// It is leased no more.
    pub(super) fn lease_ended(&self) {
        self.path.lease_ended();
        self.counted.in_use.set(false);
    }

    /// A transfer was on it.
    pub(super) fn has_carried(&self) {
        self.touch();
        self.unused_since.set(self.quiet_since.get());
        // An error shows at the next read.
        let received = self.socket.tcp_info().map_or(0, |info| info.received_bytes);
        self.warmth.set(received.max(2).ilog2().min(WARMTH_MAX));
    }

    /// How far its congestion window has grown, as the power of two of what it has carried: slow start doubles both.
    pub(super) fn warmth(&self) -> u32 {
        self.warmth.get()
    }

    /// Whether it has carried so much that a new one would take several round trips to come so far.
    pub fn is_warm(&self) -> bool {
        self.warmth() >= WARM
    }

    /// Names the path in an error of the connection.
    pub fn lost(&self, source: io::Error) -> LaneError {
        let path = self.path.name().to_owned();
        match source.kind() {
            io::ErrorKind::UnexpectedEof => LaneError::Closed { path },
            _ => LaneError::Lost { path, source },
        }
    }

    /// Names the path in an error of the protocol.
    pub fn protocol(&self, what: impl ToString) -> LaneError {
        LaneError::Protocol { path: self.path.name().to_owned(), what: what.to_string() }
    }

    /// The next frame's header, behind what is left of the transfer before. May be dropped and called again: no byte is
    /// lost.
    ///
    /// # Errors
    /// [`LaneError`]: the lane must not be used any more.
    pub async fn next_frame(&self) -> Result<Frame, LaneError> {
        self.catch_up().await?;
        self.read_frame().await
    }

    /// The next frame's header if it has come; never waits.
    ///
    /// # Errors
    /// [`LaneError`]: the lane must not be used any more.
    pub fn try_next_frame(&self) -> Result<Option<Frame>, LaneError> {
        if self.is_stale() { Ok(None) } else { self.try_read_frame() }
    }

    fn try_read_frame(&self) -> Result<Option<Frame>, LaneError> {
        let (header, have) = &mut *self.partial.borrow_mut();
        match self.socket.try_recv(&mut header[*have..]) {
            Ok(0) => return Err(LaneError::Closed { path: self.path.name().to_owned() }),
            Ok(n) => *have += n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(self.lost(error)),
        }
        if *have < HEADER_BYTES {
            return Ok(None);
        }
        *have = 0;
        Frame::decode(header)
            .map(Some)
            .map_err(|source| LaneError::Frame { path: self.path.name().to_owned(), source })
    }

    async fn read_frame(&self) -> Result<Frame, LaneError> {
        loop {
            if let Some(frame) = self.try_read_frame()? {
                return Ok(frame);
            }
            self.socket.ready(exec::Interest::Read).await.map_err(|error| self.lost(error))?;
        }
    }

    /// Nobody waits for the rest of `transfer` any more; `unread` bytes of its current frame are still in the socket, and
    /// little more is to come if its body is `complete`. The
    /// upstream is told, and the lane may carry the next transfer at once: what is left of this one is thrown away when it
    /// comes. False if the lane cannot take even that: it is to be closed.
    pub fn abandon(&self, transfer: TransferId, unread: usize, complete: bool) -> bool {
        self.only_ends_left.set(complete && (self.only_ends_left.get() || !self.is_stale()));
        // Of a transfer behind a stale one nothing has been read yet.
        if !self.is_stale() {
            self.stale_payload.set(unread);
        }
        self.stale.borrow_mut().push_back(transfer);
        self.stale.borrow().len() <= STALE_MAX && self.try_send_frame(&Frame::Cancel { transfer })
    }

    /// Whether something of a transfer before is still to come.
    pub fn is_stale(&self) -> bool {
        !self.stale.borrow().is_empty() || self.stale_payload.get() > 0
    }

    /// Next to nothing stands between the transfer that was on it and the next one.
    pub(super) fn only_ends_left(&self) -> bool {
        self.only_ends_left.get()
    }

    /// Throws away what is left of the transfer before. May be dropped and called again.
    ///
    /// # Errors
    /// [`LaneError`]: the lane must not be used any more.
    pub(super) async fn catch_up(&self) -> Result<(), LaneError> {
        let mut budget = Budget::default();
        loop {
            budget.spend().await;
            while self.stale_payload.get() > 0 {
                let len = self.stale_payload.get();
                match self.socket.discard_payload(len).await.map_err(|error| self.lost(error))? {
                    0 => return Err(LaneError::Closed { path: self.path.name().to_owned() }),
                    n => self.stale_payload.set(len - n),
                }
            }
            let Some(transfer) = self.stale.borrow().front().copied() else { return Ok(()) };
            let frame = self.read_frame().await?;
            if frame.transfer() != Some(transfer) {
                return Err(self.protocol(format_args!("{} before the END of a transfer", frame.kind())));
            }
            self.stale_payload.set(frame.payload_len().as_usize());
            if let Frame::End { .. } = frame {
                self.stale.borrow_mut().pop_front();
            }
        }
    }

    /// Reads the payload of a frame whose bound was checked by its decoding (64 KiB at most for what is read so).
    ///
    /// # Errors
    /// [`LaneError`]: the lane must not be used any more.
    pub async fn payload(&self, len: usize) -> Result<Vec<u8>, LaneError> {
        let mut payload = vec![0; len];
        self.socket.recv_exact(&mut payload).await.map_err(|error| self.lost(error))?;
        Ok(payload)
    }

    /// Throws away `len` bytes of payload.
    ///
    /// # Errors
    /// [`LaneError`]: the lane must not be used any more.
    pub async fn discard(&self, mut len: usize) -> Result<(), LaneError> {
        while len > 0 {
            match self.socket.discard_payload(len).await.map_err(|error| self.lost(error))? {
                0 => return Err(LaneError::Closed { path: self.path.name().to_owned() }),
                n => len -= n,
            }
        }
        Ok(())
    }

    /// Sends OPEN with the request's head behind it, and behind that `word`, which the upstream hears before it sends anything.
    ///
    /// # Errors
    /// [`LaneError`]: the lane must not be used any more.
    pub async fn open(
        &self,
        transfer: TransferId,
        request: &[u8],
        word: Option<&Frame>,
    ) -> Result<(), LaneError> {
        let mut message = Vec::with_capacity(2 * HEADER_BYTES + request.len());
        message.extend_from_slice(
            &Frame::Open { transfer, head_len: crate::wire::units::FrameLen(request.len() as u32) }.encode(),
        );
        message.extend_from_slice(request);
        if let Some(word) = word {
            message.extend_from_slice(&word.encode());
        }
        self.socket.send_all(&message, false).await.map_err(|error| self.lost(error))
    }

    /// Sends CREDIT: `frames` have arrived on this lane, and the bytes of the transfer's body below `limit` may come;
    /// `reading` says how the lane is read, `next` for which frame the client waits. False if the socket has no room for it now.
    pub fn credit(
        &self,
        transfer: TransferId,
        frames: u64,
        reading: Reading,
        limit: u64,
        Seq(next): Seq,
    ) -> bool {
        let (limit, next) = (Offset(limit), next as u32);
        self.try_send_frame(&Frame::Credit { transfer, frames, reading, limit, next })
    }

    /// Sends a frame without payload if the socket has room, which then takes all of it.
    fn try_send_frame(&self, frame: &Frame) -> bool {
        let has_room = self.socket.has_room().unwrap_or(false);
        has_room && matches!(self.socket.try_send(&frame.encode(), false), Ok(HEADER_BYTES))
    }

    /// Sends PING and waits for its PONG; returns the round-trip time, which the path learns, too.
    ///
    /// # Errors
    /// [`LaneError`]: the lane must not be used any more.
    pub(super) async fn ping(&self, deadline: Duration) -> Result<Duration, LaneError> {
        let start = Instant::now();
        let token = u64::from(start.elapsed().subsec_nanos()) ^ self.instance;
        let answer = async {
            self.socket
                .send_all(&Frame::Ping { token }.encode(), false)
                .await
                .map_err(|error| self.lost(error))?;
            match self.next_frame().await? {
                Frame::Pong { token: back } if back == token => Ok(()),
                other => Err(self.protocol(format_args!("{} in answer to a ping", other.kind()))),
            }
        };
        match exec::timeout(deadline, answer).await {
            Ok(answered) => answered?,
            Err(exec::Elapsed) => {
                return Err(LaneError::Deadline { path: self.path.name().to_owned(), deadline });
            }
        }
        let round_trip = start.elapsed();
        self.path.measured(round_trip);
        self.touch();
        Ok(round_trip)
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.path.lane_closed();
    }
}
