//! The body of a request on its way from a lane to the root.
//!
//! In: the payload of BODY frames, from the one lane that carries the transfer. Out: pieces for `fetch`. Invariants: pieces
//! leave in order and without gap; at most [`PIECES_MAX`] of them wait, and the lane is not read meanwhile; a body is
//! complete only if its lane has said so.

use std::time::Duration;

use tokio::sync::mpsc;

use crate::{exec, wire::units::Offset};

/// Pieces of at most [`PIECE_BYTES_MAX`] that wait for the root: 256 KiB, what a socket holds.
const PIECES_MAX: usize = 16;
/// What is taken off a lane at once.
pub(super) const PIECE_BYTES_MAX: usize = 16 << 10;
/// How long the downstream may send nothing: it gives up a client that sends nothing for 10 s, and a path that is gone for
/// a moment is repeated over by then.
const SILENT_MAX: Duration = Duration::from_secs(40);

#[derive(Debug)]
enum Piece {
    Bytes(Vec<u8>),
    Last,
}

/// Where a lane puts what comes.
#[derive(Debug)]
pub(super) struct Inlet {
    pieces: mpsc::Sender<Piece>,
    next: u64,
}

/// A body that is coming.
#[derive(Debug)]
pub(super) struct Upload {
    pieces: mpsc::Receiver<Piece>,
}

/// The body does not come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Cut {
    /// The lane was lost, or the transfer given up.
    #[error("the request's body was cut off")]
    Lost,
    /// Nothing came.
    #[error("nothing of the request's body came for {} s", SILENT_MAX.as_secs())]
    Silent,
}

/// Both ends for one transfer.
pub(super) fn upload() -> (Inlet, Upload) {
    let (sender, receiver) = mpsc::channel(PIECES_MAX);
    (Inlet { pieces: sender, next: 0 }, Upload { pieces: receiver })
}

impl Inlet {
    /// Whether the body goes on at `offset`.
    pub(super) fn goes_on_at(&self, offset: Offset) -> bool {
        self.next == offset.0
    }

    /// Hands a piece on; waits while too many wait. One that nobody wants is dropped.
    pub(super) async fn give(&mut self, piece: Vec<u8>) {
        self.next += piece.len() as u64;
        let _ = self.pieces.send(Piece::Bytes(piece)).await;
    }

    /// The body is complete.
    pub(super) async fn finish(self) {
        let _ = self.pieces.send(Piece::Last).await;
    }
}

impl Upload {
    /// The next piece; none once all have come.
    ///
    /// # Errors
    /// [`Cut`]: the rest will not come.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<u8>>, Cut> {
        match exec::timeout(SILENT_MAX, self.pieces.recv()).await {
            Ok(Some(Piece::Bytes(bytes))) => Ok(Some(bytes)),
            Ok(Some(Piece::Last)) => Ok(None),
            Ok(None) => Err(Cut::Lost),
            Err(exec::Elapsed) => Err(Cut::Silent),
        }
    }
}
