//! A lane's socket shared by its producer and the consumer of the same core.
//!
//! In: the length of each frame whose header the producer has read. Out: its bytes, either straight from the socket
//! (when the consumer wants that frame already) or from the conduits in which the producer parked them. Invariants:
//! frames are taken in the order they were offered; only the newest one can have bytes left in the socket; while the
//! consumer reads the socket the producer does not touch it.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::{Future, poll_fn},
    io,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use crate::{
    exec::Interest,
    lanes::PathStatus,
    net::{Conduit, Filled, Socket},
};

struct TappedFrame {
    len: usize,
    parked: VecDeque<Conduit>,
}

/// See the module's description.
pub struct Tap {
    socket: Rc<Socket>,
    path: Arc<PathStatus>,
    frames: RefCell<VecDeque<TappedFrame>>,
    /// Bytes of the newest frame that are still in the socket.
    unread: Cell<usize>,
    /// The consumer reads the newest frame from the socket.
    taken: Cell<bool>,
    /// The lane is lost: what is unread will never come.
    dead: Cell<bool>,
    producer: Cell<Option<Waker>>,
    consumer: Cell<Option<Waker>>,
}

impl Tap {
    /// A tap on `socket` without frames.
    pub fn new(socket: Rc<Socket>, path: Arc<PathStatus>) -> Rc<Self> {
        Rc::new(Self {
            socket,
            path,
            frames: RefCell::default(),
            unread: Cell::new(0),
            taken: Cell::new(false),
            dead: Cell::new(false),
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

    /// `bytes` were read from the socket.
    pub fn read(&self, bytes: usize) {
        self.unread.set(self.unread.get() - bytes);
        self.path.received(bytes);
    }

    // The producer's side.

    /// A frame of `len` bytes stands at the front of the socket. The frame before it has been read to its end.
    pub fn offer(&self, len: usize) {
        debug_assert_eq!(self.unread.get(), 0, "a frame is offered while the one before it is in the socket");
        self.frames.borrow_mut().push_back(TappedFrame { len, parked: VecDeque::new() });
        self.unread.set(len);
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
        let Some(TappedFrame { parked: frame, .. }) = frames.back_mut() else { return Ok(None) };
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

    /// Length of the oldest frame.
    pub fn front_len(&self) -> usize {
        self.frames.borrow().front().map_or(0, |frame| frame.len)
    }

    /// The next bytes of the oldest frame.
    pub fn front(&self) -> Front {
        let mut frames = self.frames.borrow_mut();
        let newest = frames.len() == 1;
        match frames.front_mut() {
            None => Front::Finished,
            Some(frame) => match frame.parked.pop_front() {
                Some(conduit) => Front::Parked(conduit),
                None if newest && self.unread.get() > 0 => Front::InSocket,
                None => Front::Finished,
            },
        }
    }

    /// The consumer reads the newest frame from the socket from now on.
    pub fn take_over(&self) {
        self.taken.set(true);
    }

    /// The oldest frame is emitted to its end.
    pub fn finish_front(&self) {
        self.frames.borrow_mut().pop_front();
        self.taken.set(false);
        self.wake_producer();
    }

    /// Resolves when the socket is readable or the lane is lost.
    pub async fn readable(&self) -> io::Result<()> {
        let ready = self.socket.ready(Interest::Read);
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
