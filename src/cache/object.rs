//! One stored response: which of its bytes are there, which are on their way, and who waits for them.
//!
//! In: spans that are fetched, written, lost; readers that come and go. Out: for each reader the next step, for each fetch
//! whether it is still wanted. Shared by all cores. No I/O besides the descriptor it holds. Invariants: bytes are
//! [present](Step::Present) only after they were written to the file; all bytes of one object are of one version of the
//! response; a byte is fetched by one fetch at a time.

use std::{
    io,
    ops::Range,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use tokio::sync::Notify;

use super::{
    Key,
    ranges::Spans,
    record::{BODY_OFFSET, Era, Meta, Record},
};

/// How far a fetch may be ahead of its fastest reader when no client takes its bytes directly: two seconds of the
/// fastest video, so that a film whose viewers leave was not fetched in vain.
pub const AHEAD_BYTES: u64 = 16 << 20;
/// Who is farther behind is no reader of the fetch any more. More than it may be ahead, by what it takes at a time, or the
/// fastest reader would lose it while both wait for the disk.
const BEHIND_BYTES: u64 = 2 * AHEAD_BYTES;
/// A reader waits for a fetch that is this far before it; one that has longer to go is not waited for.
const JOIN_BYTES: u64 = 4 << 20;
/// What a fetch that nobody reads any more may still bring: the rest of a segment that a player has left.
const FINISH_BYTES: u64 = 1 << 20;

static OBJECTS_MADE: AtomicU64 = AtomicU64::new(0);

/// A fetch of a span.
struct Course {
    id: u64,
    /// The first byte that was not yet handed on to be written.
    at: u64,
    end: u64,
    /// The furthest byte that a reader wants soon.
    wanted: u64,
    readers: usize,
    wake: Arc<Notify>,
}

struct State {
    meta: Arc<Meta>,
    present: Spans,
    /// Handed to the writer, not yet written.
    pending: Spans,
    courses: Vec<Course>,
    courses_begun: u64,
    /// Nothing more is written: the disk refused, or another object has its place.
    abandoned: bool,
    sequence: u64,
    /// Bytes that the last record names.
    recorded_bytes: u64,
}

/// See the module's description.
pub struct Object {
    key: Key,
    /// Of its kind in this process.
    number: u64,
    len: u64,
    state: Mutex<State>,
    changed: Notify,
    file: OnceLock<OwnedFd>,
    /// A name leads to the file.
    named: AtomicBool,
    /// A playlist that was read.
    was_read: AtomicBool,
    comes_whole: AtomicBool,
    /// Held while a record is written, so that records of one file go in order.
    recording: Mutex<()>,
}

/// What a reader does next.
pub enum Step {
    /// Send these bytes from the file.
    Present(Range<u64>),
    /// Wait for [`Object::changed`]: somebody fetches the byte.
    Coming,
    /// Fetch these bytes: nobody else does from now on.
    Missing(Lead),
    /// The byte cannot be had for this object any more.
    Lost,
}

/// The duty to fetch a span. Dropped, it ends the fetch: whoever waits for it looks again.
pub struct Lead {
    object: Arc<Object>,
    course: u64,
    /// What to fetch.
    pub span: Range<u64>,
    /// Told when the fetch should look at [`Lead::demand`] again.
    pub wake: Arc<Notify>,
}

/// A reader of a fetch; counts as one until dropped.
pub struct Seat {
    object: Arc<Object>,
    course: u64,
}

/// What a fetch is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Readers, besides the client that takes the bytes directly.
    pub readers: usize,
    /// Bytes that may be fetched now without such a client.
    pub until: u64,
}

impl Object {
    /// A new one, of which nothing is there yet.
    pub fn new(key: Key, len: u64, meta: Meta) -> Arc<Self> {
        Self::with(key, len, meta, Spans::default(), 0, None)
    }

    /// One that is on the disk.
    pub fn restored(key: Key, record: Record, file: OwnedFd) -> Arc<Self> {
        Self::with(key, record.len, record.meta, record.present, record.sequence, Some(file))
    }

    fn with(
        key: Key,
        len: u64,
        meta: Meta,
        present: Spans,
        sequence: u64,
        file: Option<OwnedFd>,
    ) -> Arc<Self> {
        let state = State {
            meta: Arc::new(meta),
            recorded_bytes: present.total(),
            present,
            pending: Spans::default(),
            courses: Vec::new(),
            courses_begun: 0,
            abandoned: false,
            sequence,
        };
        Arc::new(Self {
            key,
            number: OBJECTS_MADE.fetch_add(1, Ordering::Relaxed),
            len,
            state: Mutex::new(state),
            changed: Notify::new(),
            named: AtomicBool::new(file.is_some()),
            file: file.map_or_else(OnceLock::new, OnceLock::from),
            was_read: AtomicBool::new(false),
            comes_whole: AtomicBool::new(false),
            recording: Mutex::new(()),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it is stored under.
    pub fn key(&self) -> Key {
        self.key
    }

    /// Differs between all objects of this process.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Length of the whole.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the whole is no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What is known of it.
    pub fn meta(&self) -> Arc<Meta> {
        self.state().meta.clone()
    }

    /// The root has confirmed it.
    pub fn set_meta(&self, meta: Meta) {
        self.state().meta = Arc::new(meta);
    }

    /// The file, once it exists.
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.get().map(AsFd::as_fd)
    }

    /// The file has been made.
    pub(super) fn set_file(&self, file: OwnedFd) {
        let _ = self.file.set(file);
    }

    /// Bytes that are there.
    pub fn present_bytes(&self) -> u64 {
        self.state().present.total()
    }

    /// Whether the root has sent all of it where a part was asked for: it may be asked for nothing else.
    pub fn comes_whole(&self) -> bool {
        self.comes_whole.load(Ordering::Relaxed)
    }

    /// The root has ignored a range.
    pub fn set_comes_whole(&self) {
        self.comes_whole.store(true, Ordering::Relaxed);
    }

    /// True for the first who asks.
    pub fn is_first_reading(&self) -> bool {
        !self.was_read.swap(true, Ordering::Relaxed)
    }

    /// All bytes; blocks while the disk reads.
    ///
    /// # Errors
    /// Those of the disk, or `UnexpectedEof` if not all are there.
    pub fn read_all(&self) -> io::Result<Vec<u8>> {
        let file = self.file().ok_or(io::ErrorKind::NotFound)?;
        let mut bytes = vec![0; usize::try_from(self.len).map_err(|_| io::ErrorKind::OutOfMemory)?];
        let mut known = 0;
        while known < bytes.len() {
            match rustix::io::pread(file, &mut bytes[known..], BODY_OFFSET + known as u64)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => known += read,
            }
        }
        Ok(bytes)
    }

    /// Why the byte at `position` cannot be read from the file; none if it can. Blocks while the disk reads.
    pub fn unreadable(&self, position: u64) -> Option<io::Error> {
        let Some(file) = self.file() else { return Some(io::ErrorKind::NotFound.into()) };
        match rustix::io::pread(file, &mut [0], BODY_OFFSET + position) {
            // Somebody has cut the file off.
            Ok(0) => Some(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => None,
            Err(error) => Some(error.into()),
        }
    }

    /// Told of every change; look again after it.
    pub fn changed(&self) -> &Notify {
        &self.changed
    }

    /// How far the bytes from `position` on are there or on their way.
    pub fn comes_until(&self, position: u64) -> u64 {
        let state = self.state();
        let mut at = position;
        loop {
            let coming = |course: &&Course| course.at <= at && at < course.end;
            let course = || state.courses.iter().find(coming).map(|course| course.end);
            match state.present.end_of(at).or_else(|| state.pending.end_of(at)).or_else(course) {
                Some(end) => at = end,
                None => return at,
            }
        }
    }

    /// What a reader of `span` does next. `seat` keeps the fetch that it waits for alive. `joins` says that parts of
    /// different answers of the root may be joined (RFC 9111 section 3.4: both have the same strong validator).
    pub fn step(self: &Arc<Self>, span: Range<u64>, seat: &mut Option<Seat>, joins: bool) -> Step {
        let mut state = self.state();
        let position = span.start;
        let mut left = None;
        if let Some(held) = seat {
            match state.courses.iter_mut().find(|course| course.id == held.course) {
                Some(course) if course.serves(position, joins) => {
                    course.want(position);
                }
                _ => left = seat.take(),
            }
        }
        let step = state.step(self, span, seat, &mut left, joins);
        drop(state);
        drop(left);
        step
    }
}

impl Course {
    /// Whether a reader at `position` is one of this fetch's: not far before it, and not so far behind that the fetch would
    /// be kept waiting for it.
    fn serves(&self, position: u64, joins: bool) -> bool {
        position < self.end
            && (!joins || position.saturating_sub(self.at) <= JOIN_BYTES)
            && position.saturating_add(BEHIND_BYTES) > self.at
    }

    fn want(&mut self, position: u64) {
        let wanted = position.saturating_add(AHEAD_BYTES);
        // Only worth a wake-up when it moves a good deal.
        if wanted >= self.wanted.saturating_add(AHEAD_BYTES / 8) {
            self.wanted = wanted;
            self.wake.notify_waiters();
        }
    }
}

impl State {
    /// A seat that is given up goes to `left`: its drop takes the lock.
    fn step(
        &mut self,
        object: &Arc<Object>,
        span: Range<u64>,
        seat: &mut Option<Seat>,
        left: &mut Option<Seat>,
        joins: bool,
    ) -> Step {
        let position = span.start;
        if let Some(end) = self.present.end_of(position) {
            // A part at a time, so that the fetch hears how far this reader is.
            let end = end.min(span.end).min(position + AHEAD_BYTES / 2);
            return Step::Present(position..end);
        }
        if self.pending.end_of(position).is_some() {
            return Step::Coming;
        }
        let near = |course: &Course| position - course.at <= JOIN_BYTES || !joins;
        let coming = |course: &&mut Course| course.at <= position && position < course.end && near(course);
        if let Some(course) = self.courses.iter_mut().filter(coming).max_by_key(|course| course.at) {
            if seat.as_ref().is_none_or(|seat| seat.course != course.id) {
                course.readers += 1;
                if let Some(before) = seat.replace(Seat { object: object.clone(), course: course.id }) {
                    *left = Some(before);
                }
                course.want(position);
                course.wake.notify_waiters();
            }
            return Step::Coming;
        }
        if !joins {
            return Step::Lost;
        }
        let bounds = self.courses.iter().map(|course| course.at).filter(|&at| at > position);
        let end = bounds.chain(self.present.next_start(position)).chain([span.end]).min().unwrap_or(span.end);
        Step::Missing(self.begin(object, position..end))
    }

    fn begin(&mut self, object: &Arc<Object>, span: Range<u64>) -> Lead {
        self.courses_begun += 1;
        let (id, wake) = (self.courses_begun, Arc::new(Notify::new()));
        self.courses.push(Course {
            id,
            at: span.start,
            end: span.end,
            wanted: span.start + AHEAD_BYTES,
            readers: 0,
            wake: wake.clone(),
        });
        Lead { object: object.clone(), course: id, span, wake }
    }

    fn leave(&mut self, id: u64) {
        if let Some(course) = self.courses.iter_mut().find(|course| course.id == id) {
            course.readers -= 1;
            course.wake.notify_waiters();
        }
    }
}

impl Object {
    /// A fetch whose answer has begun already.
    pub fn begin(self: &Arc<Self>, span: Range<u64>) -> Lead {
        self.state().begin(self, span)
    }

    /// Whether anybody but a directly attached client wants what a fetch still brings.
    pub(super) fn wants(&self, course: u64) -> bool {
        let state = self.state();
        let course = state.courses.iter().find(|known| known.id == course);
        course
            .is_some_and(|course| course.readers > 0 || course.end.saturating_sub(course.at) <= FINISH_BYTES)
    }

    /// Whether all of it is there or about to be.
    pub fn is_whole(&self) -> bool {
        let state = self.state();
        !state.abandoned && state.present.total() + state.pending.total() == self.len
    }

    /// Whether written bytes are of use.
    pub fn is_stored(&self) -> bool {
        !self.state().abandoned
    }

    /// The writer has written a span, or has not. Returns the bytes that are there, if the object is still stored.
    pub(super) fn written(&self, span: Range<u64>, there: bool) -> Option<u64> {
        let bytes = {
            let mut state = self.state();
            state.pending.remove(span.clone());
            if there && !state.abandoned {
                // What would be one span too many stays on the disk unrecorded and is fetched again if wanted.
                state.present.insert(span);
            }
            (!state.abandoned).then(|| state.present.total())
        };
        self.changed.notify_waiters();
        bytes
    }

    /// Nothing more is written of it.
    pub(super) fn abandon(&self) {
        self.state().abandoned = true;
        self.changed.notify_waiters();
    }

    /// Bytes that no record names yet, of `there`.
    pub(super) fn unrecorded(&self, there: u64) -> u64 {
        there.saturating_sub(self.state().recorded_bytes)
    }

    /// The bytes that are there, if a record of them is of use.
    pub(super) fn settling(&self) -> Option<u64> {
        let state = self.state();
        (!state.abandoned && self.file.get().is_some()).then(|| state.present.total())
    }

    /// Lets `write` put the record of now on the disk.
    pub(super) fn with_record<T>(&self, era: Era, write: impl FnOnce(&Record) -> T) -> T {
        let _recording = self.recording.lock().unwrap_or_else(PoisonError::into_inner);
        let record = {
            let mut state = self.state();
            state.sequence += 1;
            state.recorded_bytes = state.present.total();
            Record {
                era,
                sequence: state.sequence,
                len: self.len,
                meta: (*state.meta).clone(),
                present: state.present.clone(),
            }
        };
        write(&record)
    }

    pub(super) fn is_named(&self) -> bool {
        self.named.load(Ordering::SeqCst)
    }

    pub(super) fn set_named(&self) {
        self.named.store(true, Ordering::SeqCst);
    }

    /// Whether some fetch is running.
    pub fn is_growing(&self) -> bool {
        let state = self.state();
        !state.courses.is_empty() || !state.pending.is_empty()
    }
}

impl Lead {
    /// The object it is for.
    pub fn object(&self) -> &Arc<Object> {
        &self.object
    }

    /// The bytes before `at` have been handed on: to the writer if `stored`, else nowhere.
    pub fn hand_on(&self, at: u64, stored: bool) {
        {
            let mut state = self.object.state();
            let Some(course) = state.courses.iter_mut().find(|course| course.id == self.course) else {
                return;
            };
            let span = course.at..at;
            course.at = at;
            if stored {
                // One too many: then it is waited for no longer, and fetched again.
                state.pending.insert(span);
            }
        }
        if !stored {
            self.object.changed.notify_waiters();
        }
    }

    /// What it is wanted for; none if the bytes behind `at` come from elsewhere or nobody waits for them.
    pub fn demand(&self, at: u64) -> Option<Demand> {
        let state = self.object.state();
        let course = state.courses.iter().find(|course| course.id == self.course)?;
        // A fetch that began later has been here.
        if state.present.end_of(at).is_some() && at < course.end {
            return None;
        }
        let remaining = course.end.saturating_sub(at);
        match course.readers {
            0 if remaining > FINISH_BYTES => None,
            0 => Some(Demand { readers: 0, until: course.end }),
            readers => Some(Demand { readers, until: course.wanted }),
        }
    }

    /// Its number among the fetches of its object.
    pub(super) fn course(&self) -> u64 {
        self.course
    }

    /// Ends the fetch; whoever waits for it looks again.
    pub fn end(&self) {
        self.object.state().courses.retain(|course| course.id != self.course);
        self.object.changed.notify_waiters();
    }

    /// A seat for one more reader, who is at `position`.
    pub fn seat(&self, position: u64) -> Option<Seat> {
        let mut state = self.object.state();
        let course = state.courses.iter_mut().find(|course| course.id == self.course)?;
        course.readers += 1;
        course.want(position);
        Some(Seat { object: self.object.clone(), course: self.course })
    }

    /// Readers besides the client that takes the bytes directly.
    pub fn readers(&self) -> usize {
        let state = self.object.state();
        state.courses.iter().find(|course| course.id == self.course).map_or(0, |course| course.readers)
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.end();
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.object.state().leave(self.course);
    }
}

#[cfg(test)]
#[path = "object_tests.rs"]
mod tests;
