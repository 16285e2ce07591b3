//! A store for bytes on their way from one descriptor to another: a pipe, or a buffer where splice is of no use.
//!
//! In: bytes of a socket or of memory. Out: the same bytes, in order, to a socket or file. Called by the pumps of the
//! relay, by the upstream's sequencer, and by the producers and the consumer of `mp`.
//!
//! Invariant: `len` is the number of bytes inside; a conduit returns its pipe to the pool only when it is empty.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::OnceLock,
};

use bytes::{Buf, BufMut, BytesMut};
use rustix::{
    fs::{Mode, OFlags},
    io::ioctl_fionread,
    pipe::{SpliceFlags, splice, tee},
};

use super::{
    Socket,
    pipe::{Pipe, give_buffer, give_pipe, take_buffer, take_pipe},
    splice_probe::{PayloadMove, payload_move},
};

/// So few bytes are copied into memory of just their size: a pipe or a pooled buffer for each tiny frame would let a peer
/// that sends nothing else take all there are.
const SMALL_BYTES_MAX: usize = 4 << 10;

/// How [`Conduit::fill`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// This many bytes came in, at least one.
    Bytes(usize),
    /// The source has nothing now.
    SourceEmpty,
    /// There is no more room inside. A pipe may be full long before its size in bytes: a slot holds one fragment of a
    /// received packet, which may be 1448 bytes or less.
    Full,
    /// The source has ended.
    EndOfFile,
}

/// How [`Conduit::drain`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// This many bytes left, at least one.
    Bytes(usize),
    /// The destination takes nothing now.
    Blocked,
}

/// See the module's description.
#[derive(Debug)]
pub struct Conduit {
    store: Store,
    len: usize,
}

#[derive(Debug)]
enum Store {
    /// Nothing taken yet, or everything given back.
    None,
    Pipe(Pipe),
    Buffer(BytesMut),
}

impl Default for Conduit {
    fn default() -> Self {
        Self::new()
    }
}

impl Conduit {
    /// An empty conduit; its store is taken from the pool at the first byte.
    pub const fn new() -> Self {
        Self { store: Store::None, len: 0 }
    }

    /// Bytes inside.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True when nothing is inside.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// `max`: no more than so many bytes are to come.
    fn open(&mut self, splice_works: bool, max: usize) {
        if let Store::None = self.store {
            if max <= SMALL_BYTES_MAX {
                self.store = Store::Buffer(BytesMut::with_capacity(max));
                return;
            }
            let pipe = if splice_works && payload_move() == PayloadMove::Splice { take_pipe() } else { None };
            self.store = pipe.map_or_else(|| Store::Buffer(take_buffer()), Store::Pipe);
        }
    }

    /// Takes up to `max` bytes that `source` has now; never waits.
    ///
    /// # Errors
    /// Those of the source.
    pub fn fill(&mut self, source: &Socket, max: usize) -> io::Result<Filled> {
        self.open(source.splices(), max);
        let filled = match &mut self.store {
            Store::Pipe(pipe) => fill_pipe(pipe, self.len == 0, source.as_fd(), max)?,
            Store::Buffer(buffer) => fill_buffer(buffer, source, max)?,
            Store::None => Filled::Full,
        };
        match filled {
            Filled::Bytes(n) => self.len += n,
            // Idle connections hold no store.
            _ if self.len == 0 => self.close(),
            _ => {}
        }
        Ok(filled)
    }

    /// Puts `bytes` behind what is inside; returns how many fitted.
    ///
    /// # Errors
    /// Those of write(2) to the pipe, except that it is full.
    pub fn put(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.open(true, usize::MAX);
        let put = match &mut self.store {
            Store::Pipe(pipe) => match rustix::io::write(&pipe.write, bytes) {
                Err(rustix::io::Errno::AGAIN) => 0,
                outcome => outcome?,
            },
            Store::Buffer(buffer) => {
                let fits = bytes.len().min(room(buffer));
                buffer.put_slice(&bytes[..fits]);
                fits
            }
            Store::None => 0,
        };
        self.len += put;
        Ok(put)
    }

    /// Moves up to `max` bytes to `destination`; never waits. There must be bytes inside.
    ///
    /// # Errors
    /// Those of the destination.
    pub fn drain(&mut self, destination: &Socket, max: usize) -> io::Result<Drained> {
        let outcome = match &mut self.store {
            Store::Pipe(pipe) => {
                let max = max.min(self.len);
                splice(
                    &pipe.read,
                    None,
                    destination.as_fd(),
                    None,
                    max,
                    SpliceFlags::NONBLOCK | SpliceFlags::MOVE,
                )
                .map_err(io::Error::from)
            }
            Store::Buffer(buffer) => {
                let end = max.min(buffer.len());
                destination.try_send(&buffer[..end], false).inspect(|&n| buffer.advance(n))
            }
            Store::None => Ok(0),
        };
        let moved = match outcome {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Drained::Blocked),
            outcome => self.left(outcome?)?,
        };
        destination.took();
        Ok(Drained::Bytes(moved))
    }

    /// Moves everything inside to `file` at `offset`, waiting for the disk.
    ///
    /// # Errors
    /// Those of the file: a full disk, most of all. What had not been written then is lost with the conduit.
    pub fn drain_to_file(&mut self, file: BorrowedFd<'_>, mut offset: u64) -> io::Result<u64> {
        while self.len > 0 {
            let moved = match &mut self.store {
                Store::Pipe(pipe) => {
                    splice(&pipe.read, None, file, Some(&mut offset), self.len, SpliceFlags::MOVE)?
                }
                Store::Buffer(buffer) => {
                    let n = rustix::io::pwrite(file, buffer, offset)?;
                    buffer.advance(n);
                    offset += n as u64;
                    n
                }
                Store::None => 0,
            };
            self.left(moved)?;
        }
        Ok(offset)
    }

    /// A second conduit with the same bytes. Pages are shared by tee(2); where no pipe is to be had, both are in memory
    /// afterwards.
    ///
    /// # Errors
    /// Those of tee(2) and read(2).
    pub fn duplicate(&mut self) -> io::Result<Self> {
        if let Store::Pipe(pipe) = &self.store
            && let Some(second) = take_pipe()
        {
            let shared = match tee(&pipe.read, &second.write, self.len, SpliceFlags::NONBLOCK) {
                Err(rustix::io::Errno::AGAIN) => 0,
                shared => shared?,
            };
            let copy = Self { store: Store::Pipe(second), len: shared };
            // A smaller pipe has fewer slots than the bytes take.
            if shared == self.len {
                return Ok(copy);
            }
        }
        self.move_to_memory()?;
        let Store::Buffer(bytes) = &self.store else { return Ok(Self::new()) };
        Ok(Self { store: Store::Buffer(bytes.clone()), len: self.len })
    }

    /// Copies bytes from the front of this conduit behind those in `copy`, and leaves them here. Pages are shared by tee(2),
    /// so a copy that is not emptied keeps memory of the socket's. Returns how many: 0 says that `copy` has no room.
    ///
    /// # Errors
    /// Those of tee(2), read(2) and write(2).
    pub fn tee_to(&mut self, copy: &mut Self) -> io::Result<usize> {
        if let Store::Pipe(pipe) = &self.store {
            copy.open(true, usize::MAX);
            match &copy.store {
                Store::Pipe(second) => {
                    let shared = match tee(&pipe.read, &second.write, self.len, SpliceFlags::NONBLOCK) {
                        Err(rustix::io::Errno::AGAIN) => 0,
                        shared => shared?,
                    };
                    copy.len += shared;
                    return Ok(shared);
                }
                _ if !copy.is_empty() => return Ok(0),
                _ => {}
            }
            self.move_to_memory()?;
        }
        match &self.store {
            Store::Buffer(bytes) => copy.put(bytes),
            _ => Ok(0),
        }
    }

    /// Moves bytes from the front of this conduit behind those in `into`. Returns how many: 0 says that `into` has no room.
    ///
    /// # Errors
    /// Those of splice(2) and write(2).
    pub fn pour(&mut self, into: &mut Self) -> io::Result<usize> {
        if into.is_empty() {
            std::mem::swap(self, into);
            return Ok(into.len);
        }
        let moved = match (&mut self.store, &into.store) {
            (Store::Pipe(from), Store::Pipe(to)) => {
                let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
                let moved = match splice(&from.read, None, &to.write, None, self.len, flags) {
                    Err(rustix::io::Errno::AGAIN) => 0,
                    moved => moved?,
                };
                into.len += moved;
                moved
            }
            (Store::Buffer(bytes), _) => {
                let moved = into.put(bytes)?;
                bytes.advance(moved);
                moved
            }
            _ => 0,
        };
        if moved > 0 { self.left(moved) } else { Ok(0) }
    }

    /// Of bytes in memory.
    pub fn of(bytes: BytesMut) -> Self {
        Self { len: bytes.len(), store: Store::Buffer(bytes) }
    }

    /// Moves all bytes behind those in `into`.
    ///
    /// # Errors
    /// Those of read(2).
    pub fn read_to(mut self, into: &mut BytesMut) -> io::Result<()> {
        self.move_to_memory()?;
        if let Store::Buffer(bytes) = &self.store {
            into.extend_from_slice(bytes);
        }
        self.skip(self.len);
        Ok(())
    }

    fn move_to_memory(&mut self) -> io::Result<()> {
        let Store::Pipe(pipe) = &self.store else { return Ok(()) };
        let mut bytes = BytesMut::zeroed(self.len);
        let mut filled = 0;
        while filled < self.len {
            match rustix::io::read(&pipe.read, &mut bytes[filled..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => filled += n,
            }
        }
        if let Store::Pipe(pipe) = std::mem::replace(&mut self.store, Store::Buffer(bytes)) {
            give_pipe(pipe);
        }
        Ok(())
    }

    /// Throws the first `bytes` away, or all if there are fewer.
    pub fn skip(&mut self, bytes: usize) {
        let mut left = bytes.min(self.len);
        while left > 0 {
            let moved = match &mut self.store {
                Store::Pipe(pipe) => {
                    let flags = SpliceFlags::NONBLOCK;
                    nowhere()
                        .and_then(|nowhere| splice(&pipe.read, None, nowhere, None, left, flags).ok())
                        .or_else(|| read_away(pipe, left))
                        .unwrap_or(0)
                }
                Store::Buffer(buffer) => {
                    buffer.advance(left);
                    left
                }
                Store::None => 0,
            };
            if moved == 0 {
                return;
            }
            left -= moved;
            self.len -= moved;
        }
        if self.len == 0 {
            self.close();
        }
    }

    /// Accounts for `moved` bytes that left.
    fn left(&mut self, moved: usize) -> io::Result<usize> {
        if moved == 0 {
            return Err(io::Error::new(
                io::ErrorKind::WriteZero,
                "the destination took no bytes and gave no reason",
            ));
        }
        self.len -= moved;
        if self.len == 0 {
            self.close();
        }
        Ok(moved)
    }

    fn close(&mut self) {
        match std::mem::replace(&mut self.store, Store::None) {
            Store::Pipe(pipe) => give_pipe(pipe),
            Store::Buffer(buffer) => give_buffer(buffer),
            Store::None => {}
        }
    }
}

impl Drop for Conduit {
    fn drop(&mut self) {
        // Emptying a pipe costs less than making a new one.
        self.skip(self.len);
        // A pipe with bytes in it is closed, never pooled.
        if self.len == 0 {
            self.close();
        }
    }
}

/// Reads up to `max` bytes that nobody wants: for a process that had no descriptor left for [`nowhere`].
fn read_away(pipe: &Pipe, max: usize) -> Option<usize> {
    let mut scratch = [0; 4 << 10];
    let max = max.min(scratch.len());
    rustix::io::read(&pipe.read, &mut scratch[..max]).ok()
}

/// Where bytes go that nobody wants: null(4) frees the pages of a pipe without reading them.
fn nowhere() -> Option<BorrowedFd<'static>> {
    static NOWHERE: OnceLock<Option<OwnedFd>> = OnceLock::new();
    let open = || rustix::fs::open("/dev/null", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).ok();
    NOWHERE.get_or_init(open).as_ref().map(AsFd::as_fd)
}

fn fill_pipe(pipe: &Pipe, empty: bool, source: BorrowedFd<'_>, max: usize) -> io::Result<Filled> {
    let take = || splice(source, None, &pipe.write, None, max, SpliceFlags::NONBLOCK | SpliceFlags::MOVE);
    let outcome = match take() {
        // EAGAIN does not say which side blocked. With data in the source it is the pipe that is full, unless the
        // data came between the two calls: so try once more before deciding.
        Err(rustix::io::Errno::AGAIN) if !empty && ioctl_fionread(source)? > 0 => match take() {
            Err(rustix::io::Errno::AGAIN) => return Ok(Filled::Full),
            outcome => outcome,
        },
        outcome => outcome,
    };
    match outcome {
        Ok(0) => Ok(Filled::EndOfFile),
        Ok(n) => Ok(Filled::Bytes(n)),
        Err(rustix::io::Errno::AGAIN) => Ok(Filled::SourceEmpty),
        Err(error) => Err(error.into()),
    }
}

/// What still fits without growing the buffer.
fn room(buffer: &BytesMut) -> usize {
    buffer.capacity() - buffer.len()
}

fn fill_buffer(buffer: &mut BytesMut, source: &Socket, max: usize) -> io::Result<Filled> {
    let room = max.min(room(buffer));
    if room == 0 {
        return Ok(Filled::Full);
    }
    match source.try_recv_into(buffer, room) {
        Ok(0) => Ok(Filled::EndOfFile),
        Ok(n) => Ok(Filled::Bytes(n)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Filled::SourceEmpty),
        Err(error) => Err(error),
    }
}
