//! The body of a request on its way to the upstream, on the one lane of its transfer.
//!
//! In: pieces from whoever reads the client. Out: BODY frames on the lane. Called by the producer, beside the frames that
//! it takes off the lane. Invariants: frames are sent whole or the lane is closed; the last one is sent only if the body is
//! complete.

use std::{io, time::Duration};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::transfer::Transfer;
use crate::{
    net::Socket,
    wire::{
        frame::{Frame, HEADER_BYTES, MAX_REQUEST_BODY_FRAME_BYTES},
        units::{FrameLen, Offset},
    },
};

/// Pieces that wait for the lane: with the 64 KiB that one may have, 256 KiB.
pub const PIECES_MAX: usize = 4;
/// A lane that takes nothing for so long is lost; the upstream stops reading for the root's sake for 30 s at most.
const STALL_MAX: Duration = Duration::from_secs(45);

/// A piece of a request's body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Some bytes.
    Bytes(Bytes),
    /// The body is complete.
    Last,
}

/// A body that is read while it is sent. Its other end, dropped before [`Piece::Last`], cuts it off.
pub type RequestBody = mpsc::Receiver<Piece>;

/// Sends all of `body` on the lane behind `socket`.
///
/// # Errors
/// The lane is lost, or the body is cut off (`UnexpectedEof`): the lane is to be closed.
pub(super) async fn send(socket: &Socket, transfer: &Transfer, body: &mut RequestBody) -> io::Result<()> {
    let mut offset = 0;
    loop {
        let piece = body.recv().await.ok_or(io::ErrorKind::UnexpectedEof)?;
        let (bytes, last) = match piece {
            Piece::Bytes(bytes) => (bytes, false),
            Piece::Last => (Bytes::new(), true),
        };
        let parts = bytes.chunks(MAX_REQUEST_BODY_FRAME_BYTES as usize);
        for part in parts.chain(last.then_some(&[][..])) {
            let (id, len) = (transfer.id(), FrameLen(part.len() as u32));
            let frame = Frame::Body { transfer: id, offset: Offset(offset), len, last };
            let mut message = Vec::with_capacity(HEADER_BYTES + part.len());
            message.extend_from_slice(&frame.encode());
            message.extend_from_slice(part);
            socket.send_within(&message, false, STALL_MAX).await?;
            offset += part.len() as u64;
            transfer.body_moved();
        }
        if last {
            return Ok(());
        }
    }
}
