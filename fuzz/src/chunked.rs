//! Chunked bodies, from a root or a client, in whatever pieces they come.

use plait::http::chunked::{ChunkDecoder, ChunkError, ChunkStep};

/// Decodes `body` as a proxy does, from a socket that shows `piece` bytes at a time. Returns where data lies, and where the
/// body ends if it does.
fn decode(body: &[u8], piece: usize) -> Result<(Vec<u8>, Option<usize>), ChunkError> {
    let mut decoder = ChunkDecoder::new();
    let (mut data, mut at, mut owed) = (Vec::new(), 0, 0_u64);
    while at < body.len() {
        let shown = &body[at..body.len().min(at.saturating_add(piece))];
        if owed > 0 {
            let taken = usize::try_from(owed).unwrap_or(usize::MAX).min(shown.len());
            data.extend_from_slice(&shown[..taken]);
            (at, owed) = (at + taken, owed - taken as u64);
            continue;
        }
        match decoder.step(shown)? {
            ChunkStep::NeedMore { taken } => {
                assert_eq!(taken, shown.len(), "framing left in a readable socket");
                at += taken;
            }
            ChunkStep::Data { taken, size } => {
                assert!(size > 0 && taken <= shown.len());
                (at, owed) = (at + taken, size);
            }
            ChunkStep::End { taken } => {
                assert!(taken <= shown.len());
                assert_eq!(decoder.step(b"next"), Ok(ChunkStep::End { taken: 0 }));
                return Ok((data, Some(at + taken)));
            }
        }
    }
    Ok((data, None))
}

/// The first byte is the size of the pieces.
#[test]
fn chunked_bodies() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let Some((&piece, body)) = bytes.split_first() else { return };
        let whole = decode(body, usize::MAX);
        assert_eq!(decode(body, usize::from(piece).max(1)), whole, "cuts change what is read");
        if let Ok((data, Some(end))) = whole {
            assert!(body[..end].ends_with(b"\r\n\r\n") && data.len() + 5 <= end);
            // What stands behind it changes nothing.
            let behind = [&body[..end], b"5\r\nother\r\n0\r\n\r\n"].concat();
            assert_eq!(decode(&behind, usize::MAX), Ok((data, Some(end))));
        }
    });
}
