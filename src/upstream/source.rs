//! Where a transfer's body comes from when it passes through a pipe: the root's connection, or a few bytes in memory.
//!
//! In: a connection whose response head was read to its last byte. Out: body bytes in a conduit. Called by `transfer`, for
//! one lane at a time, from whatever core the lane lives on. Invariants: never a byte beyond the body; a pull that is given
//! up leaves what it had gathered for the next one.

use std::{io, sync::Arc, time::Duration};

use bytes::{Buf, Bytes};

use crate::{
    exec::{self, Instant, Interest},
    http::chunked::{ChunkDecoder, ChunkError, ChunkStep},
    net::{Conduit, Filled, Shared, Socket},
};

/// How long the root may be silent. Roots answer from a disk or an object store in well under a second; half a minute
/// lets one fail over, and is less than clients wait.
pub(super) const ROOT_SILENT_MAX: Duration = Duration::from_secs(30);
/// How long a frame that has fewer than a quarter of the wanted bytes waits for more: the timers' granularity. A root
/// that sends faster than 130 Mbit/s then fills frames beyond the smallest size.
const GATHER_TIME_MAX: Duration = Duration::from_millis(1);
/// Looked at for a chunk's line: its size in 16 digits, both line ends, and a little more.
const CHUNK_PEEK_BYTES: usize = 64;

/// How the end of a body is known. RFC 9112 section 6.3.
#[derive(Debug)]
pub(super) enum Remaining {
    /// So many bytes are still to come.
    Fixed(u64),
    /// In chunks.
    Chunked(Chunks),
    /// The root closes the connection.
    UntilClose,
}

/// Where in a chunked body the connection stands.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    decoder: ChunkDecoder,
    /// Content of the current chunk still to come.
    content: u64,
    ended: bool,
}

/// Why a body cannot be had to its end. The root is at fault.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    /// It closed too early.
    #[error("closed the connection {missing} bytes before the end of the body")]
    Truncated {
        /// Bytes that the head had announced.
        missing: u64,
    },
    /// It closed inside a chunked body.
    #[error("closed the connection before the last chunk")]
    ChunksTruncated,
    /// Chunked, but wrong.
    #[error("sent a broken body: {0}")]
    Chunk(#[from] ChunkError),
    /// It sends nothing any more.
    #[error("sent nothing for {} s in the middle of the body", ROOT_SILENT_MAX.as_secs())]
    Silent,
    /// The connection failed.
    #[error("lost the connection in the middle of the body: {0}")]
    Io(#[from] io::Error),
}

/// See the module's description.
#[derive(Debug)]
pub(super) enum Source {
    /// The rest of these bytes.
    Memory(Bytes),
    /// A root's connection.
    Root(RootBody),
    /// Nothing any more.
    Spent,
}

/// A body on a root's connection.
#[derive(Debug)]
pub(super) struct RootBody {
    pub(super) connection: Shared,
    remaining: Remaining,
    /// The connection is of use after the body's end.
    pub(super) keep_alive: bool,
    /// `HOST:PORT`, for errors.
    pub(super) root: Arc<str>,
    /// What went wrong behind bytes that still had to be sent; the kernel says it only once.
    failed: Option<BodyError>,
}

/// The root's connection with readiness on a lane's core; kept from frame to frame.
#[derive(Default)]
pub(super) struct View(Option<Socket>);

enum Step {
    Bytes,
    NothingNow,
    Full,
    End,
}

impl Source {
    /// Moves bytes into `gathered` until it has `want`: what is there, at least one byte unless the body has ended. Returns
    /// whether it has.
    ///
    /// # Errors
    /// [`BodyError`]; the body cannot be completed then.
    pub(super) async fn pull(
        &mut self,
        want: usize,
        gathered: &mut Conduit,
        view: &mut View,
    ) -> Result<bool, BodyError> {
        match self {
            Source::Memory(bytes) => {
                let moved = gathered.put(&bytes[..bytes.len().min(want)])?;
                bytes.advance(moved);
                Ok(bytes.is_empty())
            }
            Source::Root(body) => body.pull(want, gathered, view).await,
            Source::Spent => Ok(true),
        }
    }
}

impl RootBody {
    /// A body that begins with the next byte of `connection`.
    pub(super) fn new(connection: Shared, remaining: Remaining, keep_alive: bool, root: Arc<str>) -> Self {
        Self { connection, remaining, keep_alive, root, failed: None }
    }

    /// Length of the whole body, if it is known before it has come.
    pub(super) fn length(&self) -> Option<u64> {
        match &self.remaining {
            Remaining::Fixed(bytes) => Some(*bytes),
            Remaining::Chunked(_) | Remaining::UntilClose => None,
        }
    }

    /// Nothing of the body is left to come.
    pub(super) fn is_complete(&self) -> bool {
        match &self.remaining {
            Remaining::Fixed(remaining) => *remaining == 0,
            Remaining::Chunked(chunks) => chunks.ended,
            Remaining::UntilClose => false,
        }
    }

    async fn pull(&mut self, want: usize, conduit: &mut Conduit, view: &mut View) -> Result<bool, BodyError> {
        if self.is_complete() {
            // A pull that was given up had gathered the rest.
            return Ok(true);
        }
        if conduit.is_empty()
            && let Some(error) = self.failed.take()
        {
            return Err(error);
        }
        let connection = view.0.get_or_insert_with(|| Socket::on_this_core(self.connection.clone()));
        let mut gathering_until = None;
        while conduit.len() < want {
            let step = match self.step(want - conduit.len(), conduit, connection) {
                Err(error) if !conduit.is_empty() => {
                    self.failed = Some(error);
                    break;
                }
                step => step?,
            };
            match step {
                Step::Bytes if self.is_complete() => return Ok(true),
                Step::Bytes => {}
                Step::End => return Ok(true),
                Step::Full => break,
                Step::NothingNow if conduit.is_empty() => {
                    match exec::timeout(ROOT_SILENT_MAX, connection.ready(Interest::Read)).await {
                        Ok(ready) => ready?,
                        Err(exec::Elapsed) => return Err(BodyError::Silent),
                    }
                }
                Step::NothingNow if conduit.len() >= want / 4 => break,
                Step::NothingNow => {
                    let now = Instant::now();
                    let until = *gathering_until.get_or_insert(now + GATHER_TIME_MAX);
                    let left = until.saturating_duration_since(now);
                    match exec::timeout(left, connection.ready(Interest::Read)).await {
                        Ok(ready) => ready?,
                        Err(exec::Elapsed) => break,
                    }
                }
            }
        }
        Ok(false)
    }

    /// One system call's worth of body; never waits.
    fn step(&mut self, max: usize, conduit: &mut Conduit, connection: &Socket) -> Result<Step, BodyError> {
        let due = match &mut self.remaining {
            Remaining::Fixed(0) => return Ok(Step::End),
            Remaining::Fixed(remaining) => *remaining,
            Remaining::UntilClose => u64::MAX,
            Remaining::Chunked(chunks) => match chunks.next_chunk(connection)? {
                Step::Bytes => chunks.content,
                other => return Ok(other),
            },
        };
        let max = usize::try_from(due).map_or(max, |due| due.min(max));
        let moved = match conduit.fill(connection, max)? {
            Filled::Bytes(moved) => moved as u64,
            Filled::Full => return Ok(Step::Full),
            Filled::SourceEmpty => return Ok(Step::NothingNow),
            Filled::EndOfFile => {
                return match &self.remaining {
                    Remaining::UntilClose => Ok(Step::End),
                    Remaining::Fixed(missing) => Err(BodyError::Truncated { missing: *missing }),
                    Remaining::Chunked(_) => Err(BodyError::ChunksTruncated),
                };
            }
        };
        match &mut self.remaining {
            Remaining::Fixed(remaining) => *remaining -= moved,
            Remaining::Chunked(chunks) => chunks.content -= moved,
            Remaining::UntilClose => {}
        }
        Ok(Step::Bytes)
    }
}

impl Chunks {
    /// Takes what stands between two chunks off the connection: `Bytes` when content follows it.
    fn next_chunk(&mut self, connection: &Socket) -> Result<Step, BodyError> {
        while !self.ended && self.content == 0 {
            let mut seen = [0; CHUNK_PEEK_BYTES];
            let n = match connection.try_peek(&mut seen) {
                Ok(0) => return Err(BodyError::ChunksTruncated),
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Step::NothingNow),
                Err(error) => return Err(error.into()),
            };
            let step = self.decoder.step(&seen[..n])?;
            let (ChunkStep::NeedMore { taken } | ChunkStep::Data { taken, .. } | ChunkStep::End { taken }) =
                step;
            // These bytes were seen, so they are there.
            connection.try_recv(&mut seen[..taken])?;
            match step {
                ChunkStep::NeedMore { .. } => {}
                ChunkStep::Data { size, .. } => self.content = size,
                ChunkStep::End { .. } => self.ended = true,
            }
        }
        Ok(if self.ended { Step::End } else { Step::Bytes })
    }
}
