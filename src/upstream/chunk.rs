//! The lines between the chunks of a body of unknown length (RFC 9112 section 7.1).
//!
//! In: what stands in the connection where a chunk's line is due. Out: the size of the chunk behind it, or the end of the
//! body. Called by `source`, which moves the chunks' content itself. Invariant: no I/O; what is called partial belongs to
//! the line and its trailers to the last byte, so that taking it never takes content.

use thiserror::Error;

/// One line with its extensions, or the trailers: 16 KiB are twice what common servers accept for a head.
pub(super) const CHUNK_LINE_BYTES_MAX: usize = 16 << 10;
/// Trailer fields taken notice of, all to be thrown away; a checksum and a few metrics are what servers send.
const TRAILERS_MAX: usize = 64;

/// What stands before the next content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChunkLine {
    /// More bytes are needed, and all that was given belongs to the line.
    Partial,
    /// A chunk of `content` bytes, at least one, begins behind `line` bytes.
    Chunk {
        /// Bytes of the line.
        line: usize,
        /// Bytes of content behind it.
        content: u64,
    },
    /// The body ends behind `line` bytes, trailers included.
    End {
        /// Bytes of the last line and the trailers.
        line: usize,
    },
}

/// The root does not keep to the chunked coding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum ChunkError {
    /// What stands where the line end of a chunk's content is due is something else.
    #[error("a chunk is longer than its size says")]
    NoLineEnd,
    /// The size is no number, or beyond 2^64.
    #[error("a chunk has no valid size")]
    Size,
    /// What follows the last chunk is no trailer.
    #[error("the trailers of the body are not valid")]
    Trailers,
    /// A line beyond [`CHUNK_LINE_BYTES_MAX`].
    #[error("a chunk's line or the trailers have more than {CHUNK_LINE_BYTES_MAX} bytes")]
    TooLong,
}

/// Reads the line at the start of `bytes`; `first` is true for the first chunk, which no content precedes.
pub(super) fn chunk_line(bytes: &[u8], first: bool) -> Result<ChunkLine, ChunkError> {
    let partial =
        if bytes.len() < CHUNK_LINE_BYTES_MAX { Ok(ChunkLine::Partial) } else { Err(ChunkError::TooLong) };
    let before = if first { 0 } else { 2 };
    if !first && !b"\r\n".starts_with(&bytes[..bytes.len().min(2)]) {
        return Err(ChunkError::NoLineEnd);
    }
    if bytes.len() <= before {
        return partial;
    }
    let (used, content) = match httparse::parse_chunk_size(&bytes[before..]) {
        Ok(httparse::Status::Complete(parsed)) => parsed,
        Ok(httparse::Status::Partial) => return partial,
        Err(_) => return Err(ChunkError::Size),
    };
    let line = before + used;
    if content > 0 {
        return Ok(ChunkLine::Chunk { line, content });
    }
    let mut trailers = [httparse::EMPTY_HEADER; TRAILERS_MAX];
    match httparse::parse_headers(&bytes[line..], &mut trailers) {
        Ok(httparse::Status::Complete((used, _))) => Ok(ChunkLine::End { line: line + used }),
        Ok(httparse::Status::Partial) => partial,
        Err(_) => Err(ChunkError::Trailers),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_to_their_last_byte() {
        for (bytes, first, wanted) in [
            ("5\r\nhello\r\n", true, ChunkLine::Chunk { line: 3, content: 5 }),
            ("\r\n1f4;name=value\r\nxx", false, ChunkLine::Chunk { line: 18, content: 0x1f4 }),
            ("\r\n0\r\n\r\nHTTP/1.1", false, ChunkLine::End { line: 7 }),
            ("0\r\n\r\n", true, ChunkLine::End { line: 5 }),
            ("\r\n0\r\nMD5: x\r\n\r\n", false, ChunkLine::End { line: 15 }),
        ] {
            assert_eq!(chunk_line(bytes.as_bytes(), first), Ok(wanted), "{bytes:?}");
            let (ChunkLine::Chunk { line, .. } | ChunkLine::End { line }) = wanted else { unreachable!() };
            for cut in 0..line {
                assert_eq!(
                    chunk_line(&bytes.as_bytes()[..cut], first),
                    Ok(ChunkLine::Partial),
                    "{bytes:?} cut at {cut}"
                );
            }
        }
    }

    #[test]
    fn nonsense_is_named() {
        let long = format!("5;{}", "x".repeat(CHUNK_LINE_BYTES_MAX));
        for (bytes, first, wanted) in [
            ("hello", true, ChunkError::Size),
            ("x5\r\n", false, ChunkError::NoLineEnd),
            ("\rx", false, ChunkError::NoLineEnd),
            ("11111111111111111\r\n", true, ChunkError::Size),
            ("-1\r\n", true, ChunkError::Size),
            ("0\r\n\x01: x\r\n\r\n", true, ChunkError::Trailers),
            (&long, true, ChunkError::TooLong),
        ] {
            assert_eq!(chunk_line(bytes.as_bytes(), first), Err(wanted), "{bytes:.20}");
        }
    }
}
