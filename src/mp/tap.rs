//! A lane's socket shared by its producer and the consumer of the same core.
//!
//! In: the length of each frame whose header the producer has read. Out: its bytes, either straight from the socket
//! (when the consumer wants that frame already) or from the conduits in which the producer parked them. Invariants: of
//! one frame at a time there are bytes left in the socket, the newest, which need not have the highest number; while the consumer reads the socket the producer does not touch it;
//! of a frame that is abandoned, because another lane brought it sooner, the producer throws the rest away.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::{Future, poll_fn},
    io,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use super::crew::Place;
use crate::{
    lanes::PathStatus,
    net::{Conduit, Filled, Socket},
};

struct TappedFrame {
    seq: u64,
    offset: u64,
    len: usize,
    parked: VecDeque<Conduit>,
}

/// See the module's description.
pub struct Tap {
    socket: Rc<Socket>,
    path: Arc<PathStatus>,
    place: Arc<Place>,
    frames: RefCell<VecDeque<TappedFrame>>,
    /// Bytes of frame `current` that are still in the socket.
    unread: Cell<usize>,
    /// The newest frame.
    current: Cell<u64>,
    /// Bytes that are waited for at once.
    batch: Cell<usize>,
    /// The consumer reads the newest frame from the socket.
    taken: Cell<bool>,
    /// The lane is lost: what is unread will never come.
    dead: Cell<bool>,
    /// Why, if the consumer was the one to see it.
    lost: Cell<Option<io::Error>>,
    producer: Cell<Option<Waker>>,
    consumer: Cell<Option<Waker>>,
}

impl Tap {
    /// A tap on `socket` without frames; what is read is counted in `path` and `place`.
    pub fn new(socket: Rc<Socket>, path: Arc<PathStatus>, place: Arc<Place>) -> Rc<Self> {
        Rc::new(Self {
            socket,
            path,
            place,
            frames: RefCell::default(),
            unread: Cell::new(0),
            current: Cell::new(0),
            batch: Cell::new(1),
            taken: Cell::new(false),
            dead: Cell::new(false),
            lost: Cell::new(None),
            producer: Cell::new(None),
            consumer: Cell::new(None),
        })
    }

    /// The lane's socket.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Bytes of the newest frame that are still in the socket.
    pub fn unread(&self) -> usize {
        self.unread.get()
    }

    /// The newest frame.
    #[cfg(test)]
    pub fn current(&self) -> u64 {
        self.current.get()
    }

    /// `bytes` were read from the socket.
    pub fn read(&self, bytes: usize) {
        self.unread.set(self.unread.get() - bytes);
        self.path.received(bytes);
        self.place.received(bytes);
    }

    // The producer's side.

    /// Frame `seq` of `len` bytes at `offset` stands at the front of the socket. The frame before it has been read to its
    /// end.
    pub fn offer(&self, seq: u64, offset: u64, len: usize) {
        debug_assert_eq!(self.unread.get(), 0, "a frame is offered while the one before it is in the socket");
        self.frames.borrow_mut().push_back(TappedFrame { seq, offset, len, parked: VecDeque::new() });
        self.unread.set(len);
        self.current.set(seq);
    }

    /// From now on `bytes` are waited for at once.
    pub fn set_batch(&self, bytes: usize) {
        self.batch.set(bytes);
    }

    /// Resolves when the next batch of the newest frame, or its end, may be in the socket.
    pub async fn batch_ready(&self) -> io::Result<()> {
        self.socket.readable_by(self.batch.get().min(self.unread.get())).await
    }

    /// Nobody wants what the socket still has of the newest frame: it was abandoned.
    pub fn is_unwanted(&self) -> bool {
        self.unread.get() > 0 && self.place(self.current.get()).is_none()
    }

    /// What the consumer met when it read the socket.
    pub fn take_loss(&self) -> Option<io::Error> {
        self.lost.take()
    }

    /// The consumer reads the socket itself.
    pub fn is_taken(&self) -> bool {
        self.taken.get()
    }

    /// Takes what the socket has of the newest frame into conduits; never waits. Returns how many bytes, or none when
    /// the socket is empty.
    ///
    /// # Errors
    /// `UnexpectedEof` when the lane ends in the middle of the frame, or the connection's error.
    pub fn park(&self) -> io::Result<Option<usize>> {
        let mut frames = self.frames.borrow_mut();
        let newest = frames.iter_mut().rfind(|frame| frame.seq == self.current.get());
        let Some(TappedFrame { parked: frame, .. }) = newest else { return Ok(None) };
        let mut parked = 0;
        while self.unread.get() > 0 {
            if frame.is_empty() {
                frame.push_back(Conduit::new());
            }
            let Some(conduit) = frame.back_mut() else { break };
            match conduit.fill(&self.socket, self.unread.get())? {
                Filled::Bytes(n) => {
                    self.read(n);
                    parked += n;
                }
                Filled::Full => frame.push_back(Conduit::new()),
                Filled::SourceEmpty => break,
                Filled::EndOfFile => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        if frame.back().is_some_and(Conduit::is_empty) {
            frame.pop_back();
        }
        if parked > 0
            && let Some(consumer) = self.consumer.take()
        {
            consumer.wake();
        }
        Ok((parked > 0).then_some(parked))
    }

    /// No byte will come any more.
    pub fn close(&self) {
        self.dead.set(true);
        if let Some(consumer) = self.consumer.take() {
            consumer.wake();
        }
    }

    /// Wakes the producer at the next change made by the consumer.
    pub fn register_producer(&self, cx: &Context<'_>) {
        self.producer.set(Some(cx.waker().clone()));
    }

    // The consumer's side.

    /// Wakes the producer.
    pub fn wake_producer(&self) {
        if let Some(producer) = self.producer.take() {
            producer.wake();
        }
    }

    /// Offset and length of frame `seq`.
    pub fn place(&self, seq: u64) -> Option<(u64, usize)> {
        self.frames.borrow().iter().find(|frame| frame.seq == seq).map(|frame| (frame.offset, frame.len))
    }

    /// Whether frame `seq` is here and not all of it has come.
    pub fn is_incomplete(&self, seq: u64) -> bool {
        self.unread.get() > 0 && self.current.get() == seq && self.place(seq).is_some()
    }

    /// The next bytes of frame `seq`.
    pub fn front(&self, seq: u64) -> Front {
        let mut frames = self.frames.borrow_mut();
        match frames.iter_mut().find(|frame| frame.seq == seq) {
            None => Front::Finished,
            Some(frame) => match frame.parked.pop_front() {
                Some(conduit) => Front::Parked(conduit),
                None if self.current.get() == seq && self.unread.get() > 0 => Front::InSocket,
                None => Front::Finished,
            },
        }
    }

    /// The consumer reads the newest frame from the socket from now on.
    pub fn take_over(&self) {
        self.taken.set(true);
    }

    /// Frame `seq` is emitted to its end, or the rest of it came over another lane. Returns the bytes that had been parked
    /// in vain.
    pub fn finish(&self, seq: u64) -> usize {
        let mut frames = self.frames.borrow_mut();
        let mut in_vain = 0;
        if let Some(at) = frames.iter().position(|frame| frame.seq == seq)
            && let Some(frame) = frames.remove(at)
        {
            in_vain = frame.parked.iter().map(Conduit::len).sum();
        }
        drop(frames);
        self.taken.set(false);
        self.wake_producer();
        in_vain
    }

    /// Whether the lane is lost.
    pub fn is_dead(&self) -> bool {
        self.dead.get()
    }

    /// Whether the lane is lost and nothing of it is waited for.
    pub fn is_spent(&self) -> bool {
        self.dead.get() && self.frames.borrow().is_empty()
    }

    /// The consumer found the lane lost.
    pub fn lose(&self, error: io::Error) {
        self.lost.set(Some(error));
        self.dead.set(true);
        self.taken.set(false);
        self.wake_producer();
    }

    /// Resolves when the socket is readable or the lane is lost.
    pub async fn readable(&self) -> io::Result<()> {
        let ready = self.batch_ready();
        let mut ready = std::pin::pin!(ready);
        poll_fn(|cx| {
            if self.dead.get() {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            self.consumer.set(Some(cx.waker().clone()));
            ready.as_mut().poll(cx)
        })
        .await
    }
}

/// What [`Tap::front`] found.
pub enum Front {
    /// These bytes come next.
    Parked(Conduit),
    /// The rest is still in the socket.
    InSocket,
    /// The frame has no more bytes.
    Finished,
}
