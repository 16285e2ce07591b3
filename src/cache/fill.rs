//! The end of a fetch: its bytes go to the client that waits for them, if there is one, and into the cache.
//!
//! In: conduits with the next bytes of the span. Out: the same bytes, spliced to the attached client as if there were no
//! cache, and their copies (tee(2)) to the writer. Called by `mp`'s consumer. Invariants: an attached client is held up
//! neither by the disk (what the writer cannot take now is not stored) nor by other readers; other readers are not held
//! up by it (if they wait and it takes nothing, it is let go and reads from the file like them).

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    io,
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use tokio::sync::Notify;

use super::{
    Cache, Debut,
    object::{Lead, Object, Seat},
};
use crate::{
    exec::{self, Interest},
    net::{Conduit, Drained, Limit, Socket},
};

/// Copies are written when so many bytes have gathered: a system call's cost is small next to copying them.
const GATHER_BYTES: usize = 256 << 10;
/// Nobody waits for them, and they come fast: as many as a pipe holds, so that a disk that pauses costs no byte of the copy.
const GATHER_ALONE_BYTES: usize = 1 << 20;
/// What comes no faster than [`GATHER_BYTES`] in so long is 10 MB/s or less: of such fetches there may be thousands, and each
/// keeps what it gathers in the kernel's memory.
const GATHER_ALONE_TIME: Duration = Duration::from_millis(25);
/// Or when the first of them has waited so long for the others, and others wait for it.
const GATHER_TIME_MAX: Duration = Duration::from_millis(10);
/// Between two looks at a writer that has no room because of other fetches, or at clients that are given way to.
const PAUSE: Duration = Duration::from_millis(10);

/// The last bytes wait so long for a writer without room: a kernel that is told to slow down sleeps 0.2 s at a time.
const SETTLE_MAX: Duration = Duration::from_secs(2);

/// Nobody wants the rest of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nobody waits for the rest")]
pub struct Unwanted;

/// The client that takes a fetch's bytes directly; shared by the task that serves it and the fetch, on one core.
pub struct Attachment {
    client: RefCell<Option<Rc<Socket>>>,
    position: Cell<u64>,
    until: u64,
    failed: RefCell<Option<io::Error>>,
    seat: Cell<Option<Seat>>,
    moved_at: Cell<Instant>,
    blocked: Cell<bool>,
    changed: Notify,
    fetch: Arc<Notify>,
}

impl Attachment {
    /// The client behind `socket` wants the bytes from `span.start` to `span.end` of the fetch.
    pub fn new(socket: Rc<Socket>, span: std::ops::Range<u64>, lead: &Lead) -> Rc<Self> {
        Rc::new(Self {
            client: RefCell::new(Some(socket)),
            position: Cell::new(span.start),
            until: span.end,
            failed: RefCell::new(None),
            seat: Cell::new(None),
            moved_at: Cell::new(Instant::now()),
            blocked: Cell::new(false),
            changed: Notify::new(),
            fetch: lead.wake.clone(),
        })
    }

    /// The first byte that the client was not given.
    pub fn position(&self) -> u64 {
        self.position.get()
    }

    /// Since when the client has taken nothing, if it is waited for.
    pub fn blocked_since(&self) -> Option<Instant> {
        self.blocked.get().then(|| self.moved_at.get())
    }

    /// From now on not one byte is sent to the client.
    pub fn detach(&self) {
        if self.client.take().is_some() {
            self.blocked.set(false);
            self.changed.notify_waiters();
            self.fetch.notify_waiters();
        }
    }

    /// The client goes on as a reader, without a moment in which nobody wants the fetch.
    fn seat(&self, lead: &Lead) {
        self.seat.set(lead.seat(self.position.get()));
        self.detach();
    }

    /// The client's seat among the readers, if the fetch has let it go.
    pub fn take_seat(&self) -> Option<Seat> {
        self.seat.take()
    }

    /// Waits until the fetch sends no more: it has sent everything, or ended, or let the client go.
    ///
    /// # Errors
    /// The client's connection is of no more use.
    pub async fn detached(&self) -> io::Result<()> {
        until(&self.changed, || self.client.borrow().is_none()).await;
        self.failed.take().map_or(Ok(()), Err)
    }

    fn sent(&self, bytes: u64) {
        self.position.set(self.position.get() + bytes);
        self.moved_at.set(Instant::now());
        self.blocked.set(false);
        if self.position.get() >= self.until {
            self.detach();
        }
    }
}

/// Waits until `holds`, looking whenever `changed` is told.
pub async fn until(changed: &Notify, mut holds: impl FnMut() -> bool) {
    loop {
        let mut told = pin!(changed.notified());
        // Registered before the condition is read, so that no change falls between.
        told.as_mut().enable();
        if holds() {
            return;
        }
        told.await;
    }
}

/// Tells when nobody wants the rest of a fetch, while the root is silent and [`Fill::take`] is not called.
pub struct Vigil {
    object: Arc<Object>,
    course: u64,
    wake: Arc<Notify>,
    attachment: Option<Rc<Attachment>>,
}

impl Vigil {
    /// Resolves when nobody wants the rest.
    pub async fn unwanted(&self) {
        let attached = || self.attachment.as_ref().is_some_and(|client| client.client.borrow().is_some());
        until(&self.wake, || !attached() && !self.object.wants(self.course)).await;
    }
}

/// See the module's description. Dropping it hands over what has gathered and ends the fetch.
pub struct Fill {
    cache: Arc<Cache>,
    lead: Lead,
    attachment: Option<Rc<Attachment>>,
    /// Others are let in once the client has been given its first bytes, if they are there: it does not wait for what that
    /// costs.
    debut: Rc<Cell<Option<Debut>>>,
    /// Copies on their way to the writer, from `handed` on.
    gathered: Conduit,
    gathering_since: Instant,
    /// The first byte that was not handed on.
    handed: u64,
    /// Bytes at the front of the consumer's conduit that have been copied, or never will be.
    copied: usize,
    /// It was begun before anybody asked: it waits while clients wait for the root, unless one waits for it.
    gives_way: bool,
}

impl Fill {
    /// For the span of `lead`, whose first bytes come now.
    pub fn new(cache: Arc<Cache>, lead: Lead, attachment: Option<Rc<Attachment>>) -> Self {
        let handed = lead.span.start;
        Self {
            cache,
            lead,
            attachment,
            debut: Rc::default(),
            gathered: Conduit::new(),
            gathering_since: Instant::now(),
            handed,
            copied: 0,
            gives_way: false,
        }
    }

    /// The same, giving way to clients that wait for other bytes.
    pub fn giving_way(mut self) -> Self {
        self.gives_way = true;
        self
    }

    /// The same, of an object that nobody finds yet: until the first bytes come, or what is in the cell is taken.
    pub fn with_debut(mut self, debut: Rc<Cell<Option<Debut>>>) -> Self {
        self.debut = debut;
        self
    }

    /// Stores a body that is there already, all of what `lead` is to bring.
    pub fn with_all(cache: Arc<Cache>, lead: Lead, body: BytesMut) {
        let mut fill = Self::new(cache, lead, None);
        // Dropped, it hands over what has gathered.
        fill.gathered = Conduit::of(body);
    }

    /// What is filled.
    pub fn object(&self) -> &Arc<Object> {
        self.lead.object()
    }

    /// Bytes that the whole fetch brings.
    pub fn len(&self) -> u64 {
        self.lead.span.end - self.lead.span.start
    }

    /// Whether it brings none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tells when nobody wants the rest.
    pub fn vigil(&self) -> Vigil {
        Vigil {
            object: self.object().clone(),
            course: self.lead.course(),
            wake: self.lead.wake.clone(),
            attachment: self.attachment.clone(),
        }
    }

    fn must_give_way(&self) -> bool {
        // Its one reader is the task that began it.
        self.gives_way && self.cache.clients_waiting() > 0 && self.lead.readers() <= 1
    }

    /// The first byte that has not come yet.
    fn position(&self) -> u64 {
        self.handed + self.gathered.len() as u64
    }

    fn client(&self) -> Option<Rc<Socket>> {
        self.attachment.as_ref()?.client.borrow().clone()
    }

    /// True while it is the client that is waited for and not the root.
    pub fn is_attached(&self) -> bool {
        self.attachment.as_ref().is_some_and(|attachment| attachment.client.borrow().is_some())
    }

    /// Moves some of `conduit` on; never waits.
    ///
    /// # Errors
    /// [`Unwanted`] when nobody needs the rest, or the copies cannot be made and others need them.
    pub fn take(&mut self, conduit: &mut Conduit) -> Result<Drained, Unwanted> {
        let taken = self.take_for_all(conduit);
        self.debut.take();
        taken
    }

    fn take_for_all(&mut self, conduit: &mut Conduit) -> Result<Drained, Unwanted> {
        while let Some(client) = self.client() {
            let must_store = self.lead.readers() > 0 && !self.cache.has_room_to_write();
            if self.copied == 0 && !must_store {
                self.copied = self.copy(conduit);
            }
            let Some(attachment) = &self.attachment else { break };
            if self.copied == 0 {
                // Others need every byte on the disk, which has to catch up: from here on this client reads like them.
                attachment.seat(&self.lead);
                break;
            }
            match conduit.drain(&client, self.copied) {
                Ok(Drained::Bytes(moved)) => {
                    self.copied -= moved;
                    attachment.sent(moved as u64);
                    return Ok(Drained::Bytes(moved));
                }
                Ok(Drained::Blocked) if self.lead.readers() == 0 => {
                    attachment.blocked.set(true);
                    return Ok(Drained::Blocked);
                }
                Ok(Drained::Blocked) => attachment.seat(&self.lead),
                Err(error) => {
                    attachment.failed.replace(Some(error));
                    attachment.detach();
                }
            }
        }
        if self.copied > 0 {
            let before = conduit.len();
            conduit.skip(std::mem::take(&mut self.copied));
            return Ok(Drained::Bytes(before - conduit.len()));
        }
        self.take_for_the_disk(conduit)
    }

    fn take_for_the_disk(&mut self, conduit: &mut Conduit) -> Result<Drained, Unwanted> {
        let position = self.position();
        let demand = self.lead.demand(position).ok_or(Unwanted)?;
        if !self.object().is_stored() {
            // Nobody can be given anything by way of the disk.
            return Err(Unwanted);
        }
        if position >= demand.until || self.must_give_way() {
            self.hand_over(true);
            return Ok(Drained::Blocked);
        }
        if self.is_due(true) && !self.hand_over(true) {
            return Ok(Drained::Blocked);
        }
        for _ in 0..2 {
            let came = conduit.len();
            self.note_begin();
            match conduit.pour(&mut self.gathered) {
                Ok(0) if self.hand_over(true) => {}
                Ok(0) => return Ok(Drained::Blocked),
                Ok(moved) => {
                    debug_assert!(moved <= came);
                    if self.is_due(true) {
                        self.hand_over(true);
                    }
                    return Ok(Drained::Bytes(moved));
                }
                Err(_) => return Err(Unwanted),
            }
        }
        Err(Unwanted)
    }

    /// Copies from the front of `conduit` what can be copied. Returns how many bytes of it need no more copying; 0 where
    /// others need them and the writer has no room.
    fn copy(&mut self, conduit: &mut Conduit) -> usize {
        // Others need every byte on the disk; for this client alone, what the writer cannot take now is not stored.
        let others_wait = self.lead.readers() > 0;
        if self.is_due(others_wait) && !self.hand_over(others_wait) && others_wait {
            return 0;
        }
        if self.object().is_stored() {
            for _ in 0..2 {
                self.note_begin();
                match conduit.tee_to(&mut self.gathered) {
                    Ok(0) if !self.hand_over(others_wait) && others_wait => return 0,
                    Ok(0) => {}
                    Ok(copied) => {
                        if self.is_due(others_wait) {
                            self.hand_over(others_wait);
                        }
                        return copied;
                    }
                    Err(_) => break,
                };
            }
        }
        self.hand_over(false);
        self.handed += conduit.len() as u64;
        self.lead.hand_on(self.handed, false);
        conduit.len()
    }

    fn note_begin(&mut self) {
        if self.gathered.is_empty() {
            self.gathering_since = Instant::now();
        }
    }

    fn is_due(&self, others_wait: bool) -> bool {
        let (len, time) = (self.gathered.len(), || self.gathering_since.elapsed());
        if others_wait {
            return len >= GATHER_BYTES || (len > 0 && time() >= GATHER_TIME_MAX);
        }
        len >= GATHER_ALONE_BYTES || (len >= GATHER_BYTES && time() >= GATHER_ALONE_TIME)
    }

    /// Gives what has gathered to the writer. If that has no room, false, and it stays if `keeps`, or else is dropped.
    fn hand_over(&mut self, keeps: bool) -> bool {
        let len = self.gathered.len() as u64;
        if len == 0 {
            return true;
        }
        let has_room = self.cache.has_room_to_write();
        if !has_room && keeps {
            return false;
        }
        if !has_room {
            Limit::CacheDisk.hit();
        }
        let bytes = std::mem::take(&mut self.gathered);
        let offset = self.handed;
        self.handed += len;
        self.lead.hand_on(self.handed, has_room);
        if has_room {
            // The writer gives up what the index does not hold.
            self.debut.take();
            self.cache.write(self.object(), offset, bytes, &self.lead.wake);
        }
        has_room
    }

    /// All has come: waits until the writer has room for what has gathered, or until it has had none for long.
    pub async fn settle(&mut self) {
        let patience = Instant::now();
        while !self.hand_over(true) && patience.elapsed() < SETTLE_MAX {
            exec::sleep(PAUSE).await;
        }
    }

    /// Waits until [`Fill::take`] may do more.
    pub async fn room(&mut self) {
        if let Some(client) = self.client() {
            let mut writable = pin!(client.ready(Interest::Write));
            let mut told = pin!(self.lead.wake.notified());
            told.as_mut().enable();
            if self.lead.readers() > 0 || !self.is_attached() {
                return;
            }
            poll_fn(|cx| {
                let woken = writable.as_mut().poll(cx).is_ready() || told.as_mut().poll(cx).is_ready();
                if woken { Poll::Ready(()) } else { Poll::Pending }
            })
            .await;
            return;
        }
        let full = !self.cache.has_room_to_write() || self.must_give_way();
        let position = self.position();
        let lead = &self.lead;
        let wanted = until(&lead.wake, || lead.demand(position).is_none_or(|demand| demand.until > position));
        if full {
            exec::sleep(PAUSE).await;
        } else {
            wanted.await;
        }
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        self.debut.take();
        self.hand_over(false);
        // In this order: the record then says that nothing grows any more.
        self.lead.end();
        self.cache.record(self.lead.object());
        if let Some(attachment) = &self.attachment {
            attachment.detach();
        }
    }
}
