//! Reads the body of a request off a client's connection, piece by piece.
//!
//! In: a connection whose request head was read to its last byte. Out: the content, without the framing of chunks. Called by
//! the downstream for requests whose bodies go on to the root. Invariants: not a byte behind the body is taken; a client
//! that sends too slowly, or too much, is given up.

use std::{io, rc::Rc, time::Duration};

use ::http::StatusCode;
use bytes::Bytes;

use super::{
    chunked::{ChunkDecoder, ChunkError, ChunkStep},
    problem::{Problem, Side},
    request::BodyLen,
};
use crate::{
    exec::{self, Instant},
    net::Socket,
};

/// Read at once: as much as one frame takes.
const PIECE_BYTES_MAX: usize = 64 << 10;
/// Looked at for a chunk's line, as the upstream does.
const CHUNK_PEEK_BYTES: usize = 64;
/// A client must send as much in the time that it has for a head, as long as it is waited for: a lane waits with it, and 13
/// kbit/s are less than any line has.
const BYTES_PER_DEADLINE_MIN: u64 = 16 << 10;
/// Content of a body: what is uploaded to a video root in one request, and an end to what one client may send.
const CONTENT_BYTES_MAX: u64 = 64 << 30;

/// Why a body cannot be had to its end.
#[derive(Debug, thiserror::Error)]
pub enum RequestBodyError {
    /// Nobody is left to be told.
    #[error("the client is gone: {0}")]
    Gone(#[from] io::Error),
    /// Slower than anybody needs to be.
    #[error("the request's body came too slowly: less than {BYTES_PER_DEADLINE_MIN} bytes in {} s", .0.as_secs_f32())]
    Slow(Duration),
    /// Its chunks are malformed.
    #[error("the request's body is broken: {0}")]
    Chunk(#[from] ChunkError),
    /// More than anybody needs to send.
    #[error("the request's body is longer than 64 GiB")]
    TooLong,
}

impl RequestBodyError {
    /// What the client is told, if it is there.
    pub fn problem(&self) -> Option<Problem> {
        let status = match self {
            Self::Gone(_) => return None,
            Self::Slow(_) => StatusCode::REQUEST_TIMEOUT,
            Self::Chunk(_) => StatusCode::BAD_REQUEST,
            Self::TooLong => StatusCode::PAYLOAD_TOO_LARGE,
        };
        Some(Problem::new(status, Side::Client, self))
    }
}

#[derive(Debug)]
enum Remaining {
    Fixed(u64),
    Chunked { decoder: ChunkDecoder, content: u64 },
    Nothing,
}

/// See the module's description.
pub struct BodyReader {
    socket: Rc<Socket>,
    remaining: Remaining,
    deadline: Duration,
    /// What has come, and the time that it was waited for, since that was looked at last.
    came: u64,
    waited: Duration,
    total: u64,
}

impl BodyReader {
    /// For the body that begins with the next byte of `socket`; `deadline` is what a client has for a head.
    ///
    /// # Errors
    /// [`RequestBodyError::TooLong`], before anything is read.
    pub fn new(socket: Rc<Socket>, len: BodyLen, deadline: Duration) -> Result<Self, RequestBodyError> {
        let remaining = match len {
            BodyLen::None => Remaining::Nothing,
            BodyLen::Fixed(bytes) if bytes > CONTENT_BYTES_MAX => return Err(RequestBodyError::TooLong),
            BodyLen::Fixed(bytes) => Remaining::Fixed(bytes),
            BodyLen::Chunked => Remaining::Chunked { decoder: ChunkDecoder::new(), content: 0 },
        };
        Ok(Self { socket, remaining, deadline, came: 0, waited: Duration::ZERO, total: 0 })
    }

    /// The next piece; none once all have come.
    ///
    /// # Errors
    /// [`RequestBodyError`]: the rest will not come, and the connection is of no more use.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RequestBodyError> {
        let began = Instant::now();
        let deadline = self.deadline;
        let piece = match exec::timeout(deadline, self.receive()).await {
            Ok(piece) => piece?,
            Err(exec::Elapsed) => return Err(RequestBodyError::Slow(deadline)),
        };
        let came = piece.as_ref().map_or(0, |piece| piece.len() as u64);
        self.came += came;
        self.total += came;
        self.waited += began.elapsed();
        if self.total > CONTENT_BYTES_MAX {
            return Err(RequestBodyError::TooLong);
        }
        if self.waited > deadline {
            if self.came < BYTES_PER_DEADLINE_MIN && piece.is_some() {
                return Err(RequestBodyError::Slow(deadline));
            }
            (self.came, self.waited) = (0, Duration::ZERO);
        }
        Ok(piece)
    }

    async fn receive(&mut self) -> Result<Option<Bytes>, RequestBodyError> {
        let max = match &mut self.remaining {
            Remaining::Nothing | Remaining::Fixed(0) => return Ok(None),
            Remaining::Fixed(bytes) => *bytes,
            Remaining::Chunked { decoder, content } => {
                if *content == 0 {
                    match next_chunk(&self.socket, decoder).await? {
                        Some(size) => *content = size,
                        None => {
                            self.remaining = Remaining::Nothing;
                            return Ok(None);
                        }
                    }
                }
                *content
            }
        };
        let mut piece = vec![0; max.min(PIECE_BYTES_MAX as u64) as usize];
        let received = self.socket.recv_some(&mut piece).await?;
        if received == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        piece.truncate(received);
        match &mut self.remaining {
            Remaining::Fixed(left) | Remaining::Chunked { content: left, .. } => *left -= received as u64,
            Remaining::Nothing => {}
        }
        Ok(Some(piece.into()))
    }
}

/// Takes what stands before the next chunk's content off the socket; none if that was the end.
async fn next_chunk(socket: &Socket, decoder: &mut ChunkDecoder) -> Result<Option<u64>, RequestBodyError> {
    loop {
        let mut seen = [0; CHUNK_PEEK_BYTES];
        let came = socket.peek(&mut seen).await?;
        if came == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let step = decoder.step(&seen[..came])?;
        let (ChunkStep::NeedMore { taken } | ChunkStep::Data { taken, .. } | ChunkStep::End { taken }) = step;
        // These bytes were seen, so they are there.
        socket.recv_exact(&mut seen[..taken]).await?;
        match step {
            ChunkStep::NeedMore { .. } => {}
            ChunkStep::Data { size, .. } => return Ok(Some(size)),
            ChunkStep::End { .. } => return Ok(None),
        }
    }
}
