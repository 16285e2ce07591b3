//! The chunked transfer coding (RFC 9112 §7.1) without the data: framing bytes come in, lengths go out.
//!
//! The upstream drives the decoder with what it peeks from the root's socket, takes the framing off the socket and
//! splices the data of a chunk without looking at it; the downstream skips request bodies with it and frames answers
//! of unknown length with the encoder. Invariant: the decoder takes every framing byte it was shown, so a caller never
//! waits for a socket that is already readable, and it never takes a byte of data.

use std::num::NonZeroU64;
use std::ops::Deref;

use super::head::{MAX_BODY_BYTES, MAX_HEADERS};

/// 1 KiB for the extensions of one chunk: nobody sends any, and what is dropped need not be kept for long.
pub const MAX_CHUNK_EXTENSION_BYTES: usize = 1024;

/// 16 hexadecimal digits and CRLF: what a size line has besides extensions.
const SIZE_LINE_BYTES: usize = 18;

/// 8 KiB for the trailer section: room for a signature or a digest; it is checked and dropped.
pub const MAX_TRAILER_BYTES: usize = 8 * 1024;

/// What ends the data of a chunk.
pub const CHUNK_END: &[u8] = b"\r\n";

/// The last chunk without trailers: the body is complete.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Takes the framing off a chunked body.
#[derive(Debug)]
pub struct ChunkDecoder {
    state: State,
    /// Framing bytes of an unfinished size line or trailer section; never longer than its bound.
    line: Vec<u8>,
    /// Bytes of data that were announced so far.
    total: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size,
    DataEnd,
    Trailer,
    Done,
    Failed(ChunkError),
}

/// What the shown bytes were. `taken` of them are framing: take them off the socket before anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkStep {
    /// All of them, and the line is not over: show the bytes behind them.
    NeedMore {
        /// Framing bytes, all that were shown.
        taken: usize,
    },
    /// Behind `taken` bytes, `size` bytes of data follow; then come back.
    Data {
        /// Framing bytes.
        taken: usize,
        /// Bytes of data, 1 to `MAX_BODY_BYTES`.
        size: u64,
    },
    /// Behind `taken` bytes the body is complete and the next message may follow.
    End {
        /// Framing bytes.
        taken: usize,
    },
}

/// Why a chunked body is broken. Whose fault it is, the caller knows: the words fit behind the name of a side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// Not hexadecimal digits, control bytes, or a bare LF.
    #[error("the size line of a chunk is malformed")]
    SizeLine,
    /// More than [`MAX_CHUNK_EXTENSION_BYTES`] behind a chunk size.
    #[error("the extensions of a chunk are longer than 1 KiB")]
    ExtensionTooLong,
    /// A chunk, or all of them together.
    #[error("the chunked body is longer than 2^60 bytes")]
    BodyTooLong,
    /// The data was longer or shorter than announced.
    #[error("the data of a chunk does not end in CRLF where its size says")]
    DataEnd,
    /// More than [`MAX_TRAILER_BYTES`].
    #[error("the trailer section is longer than 8 KiB")]
    TrailerTooLong,
    /// Not header lines.
    #[error("the trailer section is malformed")]
    Trailer,
}

impl Default for ChunkDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl ChunkDecoder {
    /// Before the first chunk.
    pub fn new() -> Self {
        Self { state: State::Size, line: Vec::new(), total: 0 }
    }

    /// Looks at bytes that start where the framing continues: at the start of the body, behind what the last step
    /// took, or behind the data that it announced. After [`ChunkStep::End`] it takes nothing
    /// more, after an error it repeats the error.
    ///
    /// # Errors
    /// See [`ChunkError`]; the connection is of no more use.
    pub fn step(&mut self, shown: &[u8]) -> Result<ChunkStep, ChunkError> {
        self.take_framing(shown).inspect_err(|&error| self.state = State::Failed(error))
    }

    fn take_framing(&mut self, shown: &[u8]) -> Result<ChunkStep, ChunkError> {
        let mut taken = 0;
        loop {
            if self.state == State::Done {
                return Ok(ChunkStep::End { taken });
            }
            let rest = &shown[taken..];
            let line_end = rest.iter().position(|&byte| byte == b'\n').map(|at| at + 1);
            let piece = &rest[..line_end.unwrap_or(rest.len())];
            self.check_room(piece)?;
            self.line.extend_from_slice(piece);
            taken += piece.len();
            if line_end.is_none() {
                return Ok(ChunkStep::NeedMore { taken });
            }
            if let Some(size) = self.finish_line()? {
                return Ok(ChunkStep::Data { taken, size });
            }
        }
    }

    /// Refuses bytes before they are kept.
    fn check_room(&self, piece: &[u8]) -> Result<(), ChunkError> {
        let len = self.line.len() + piece.len();
        match self.state {
            State::Size if len > SIZE_LINE_BYTES + MAX_CHUNK_EXTENSION_BYTES => {
                Err(ChunkError::ExtensionTooLong)
            }
            State::DataEnd
                if !CHUNK_END.starts_with(&self.line) || !CHUNK_END[self.line.len()..].starts_with(piece) =>
            {
                Err(ChunkError::DataEnd)
            }
            State::Trailer if len > MAX_TRAILER_BYTES => Err(ChunkError::TrailerTooLong),
            State::Failed(error) => Err(error),
            _ => Ok(()),
        }
    }

    /// `line` has just got its line feed. Returns the size of a chunk whose data follows.
    fn finish_line(&mut self) -> Result<Option<u64>, ChunkError> {
        match self.state {
            State::Size => {
                let size = parse_size_line(&self.line)?;
                self.line.clear();
                self.total = self
                    .total
                    .checked_add(size)
                    .filter(|&total| total <= MAX_BODY_BYTES)
                    .ok_or(ChunkError::BodyTooLong)?;
                if size > 0 {
                    self.state = State::DataEnd;
                    return Ok(Some(size));
                }
                self.state = State::Trailer;
            }
            State::DataEnd => {
                self.line.clear();
                self.state = State::Size;
            }
            State::Trailer => {
                if !self.line.ends_with(b"\r\n") {
                    return Err(ChunkError::Trailer);
                }
                if self.line == b"\r\n" || self.line.ends_with(b"\r\n\r\n") {
                    check_trailer(&self.line)?;
                    self.line = Vec::new();
                    self.state = State::Done;
                }
            }
            State::Done | State::Failed(_) => {}
        }
        Ok(None)
    }
}

/// httparse takes an empty size as 0 and any byte in an extension; both are ways to smuggle.
fn parse_size_line(line: &[u8]) -> Result<u64, ChunkError> {
    let Some(text) = line.strip_suffix(b"\r\n") else { return Err(ChunkError::SizeLine) };
    let control = |byte: &u8| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f;
    if !text.first().is_some_and(u8::is_ascii_hexdigit) || text.iter().any(control) {
        return Err(ChunkError::SizeLine);
    }
    match httparse::parse_chunk_size(line) {
        Ok(httparse::Status::Complete((len, size))) if len == line.len() => Ok(size),
        _ => Err(ChunkError::SizeLine),
    }
}

/// The trailers are dropped, yet what cannot be read as header lines may be an attempt at smuggling.
fn check_trailer(section: &[u8]) -> Result<(), ChunkError> {
    let mut storage = [httparse::EMPTY_HEADER; MAX_HEADERS];
    match httparse::parse_headers(section, &mut storage) {
        Ok(httparse::Status::Complete((len, _))) if len == section.len() => Ok(()),
        _ => Err(ChunkError::Trailer),
    }
}

/// The size line of a chunk, at most 18 bytes, ready to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHeader {
    bytes: [u8; SIZE_LINE_BYTES],
    len: usize,
}

/// Encodes the header of a chunk of `size` bytes of data; [`CHUNK_END`] goes behind the data. A size of zero would end
/// the body, which only [`LAST_CHUNK`] may do.
pub fn chunk_header(size: NonZeroU64) -> ChunkHeader {
    let digits = (u64::BITS - size.leading_zeros()).div_ceil(4) as usize;
    let mut bytes = [0; SIZE_LINE_BYTES];
    for (at, byte) in bytes[..digits].iter_mut().enumerate() {
        let digit = (size.get() >> (4 * (digits - 1 - at))) & 0xf;
        *byte = b"0123456789abcdef"[digit as usize];
    }
    bytes[digits..digits + CHUNK_END.len()].copy_from_slice(CHUNK_END);
    ChunkHeader { bytes, len: digits + CHUNK_END.len() }
}

impl Deref for ChunkHeader {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
#[path = "chunked_tests.rs"]
mod tests;
