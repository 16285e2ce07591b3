//! The handshake's I/O, for both ends; what is said is [`crate::wire::handshake`]'s.
//!
//! In: a fresh connection. Out: an authenticated one, or an error that names the remedy. Invariants: not one byte
//! behind the handshake is taken from the socket; the whole has a deadline; an unauthenticated peer costs the
//! listening side one bounded buffer.

use std::{io, pin::pin, time::Duration};

use crate::{
    exec,
    net::Socket,
    wire::{
        handshake::{
            Accepted, CHALLENGE_BYTES, ClientHandshake, HandshakeError, Progress, ServerHandshake,
            VerifiedHello, bad_key_reply,
        },
        key_ring::KeyRing,
        route::Route,
    },
};

/// From accept to a verified hello. A hello is one segment; who needs longer is no lane.
const HELLO_DEADLINE: Duration = Duration::from_secs(2);

/// Why a connection did not become a lane.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeFailed {
    /// The connection failed in the middle.
    #[error("the connection was lost in the handshake: {0} (is it a Plait port?)")]
    Io(#[from] io::Error),
    /// What was said is not acceptable.
    #[error(transparent)]
    Refused(#[from] HandshakeError),
    /// It took too long.
    #[error("the handshake was not finished within {} ms", .deadline.as_millis())]
    Deadline {
        /// The bound.
        deadline: Duration,
    },
    /// It had said nothing yet when all places were taken and somebody else came.
    #[error("too many hellos at once: one that was awaited made room for another (raise --max-hellos?)")]
    Displaced,
    /// The kernel has no randomness.
    #[error("no randomness for the handshake: {0}")]
    Random(#[from] getrandom::Error),
}

impl HandshakeFailed {
    /// The connection broke or was closed without a word, perhaps because its listener has just stopped, so that another one
    /// reaches whoever took over; or because the path was silent for longer than a hello is waited for, and is not any more.
    pub fn is_worth_another_try(&self) -> bool {
        let broke = |kind| {
            use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
            matches!(kind, ConnectionReset | BrokenPipe | UnexpectedEof)
        };
        match self {
            Self::Io(error) => broke(error.kind()),
            Self::Refused(HandshakeError::Truncated { .. }) => true,
            _ => false,
        }
    }

    /// The upstream's host has answered that no process listens there.
    pub fn nobody_there(&self) -> bool {
        matches!(self, Self::Refused(HandshakeError::NobodyThere { .. }))
    }

    /// The peer, or a hop behind it, has said nothing in time, neither yes nor no.
    pub fn is_unanswered(&self) -> bool {
        matches!(self, Self::Deadline { .. } | Self::Refused(HandshakeError::Unanswered { .. }))
    }
}

fn nonce() -> Result<[u8; 16], HandshakeFailed> {
    let mut nonce = [0; 16];
    exec::fill_random(&mut nonce)?;
    Ok(nonce)
}

/// The opening side: authenticates over all hops of `route` behind this one.
///
/// # Errors
/// [`HandshakeFailed`]; the socket is of no more use then.
pub async fn open(
    socket: &Socket,
    keys: &KeyRing,
    route: &Route,
    deadline: Duration,
) -> Result<Accepted, HandshakeFailed> {
    let (nonce, keys) = (nonce()?, keys.keys());
    let talk = async {
        let mut challenge = [0; CHALLENGE_BYTES];
        socket.recv_exact(&mut challenge).await?;
        let (mut awaiting, hello) = ClientHandshake::new(&keys[0], route, nonce).challenge(&challenge)?;
        socket.send_all(&hello, false).await?;
        let mut more = Vec::new();
        loop {
            match awaiting.reply(&more)? {
                Progress::Done(accepted) => return Ok(accepted),
                Progress::NeedMore(bytes) => {
                    read_more(socket, &mut more, bytes).await?.ok_or_else(|| awaiting.closed())?;
                }
            }
        }
    };
    exec::timeout(deadline, talk).await.unwrap_or(Err(HandshakeFailed::Deadline { deadline }))
}

/// The listening side: challenges and verifies. The caller then sends what `accept` or `refuse` of the hello returns.
///
/// # Errors
/// [`HandshakeFailed`]; a hint was sent to the peer where that helps a person, and the socket is of no more use.
pub async fn receive(socket: &Socket, keys: &KeyRing) -> Result<VerifiedHello, HandshakeFailed> {
    let (nonce, keys) = (nonce()?, keys.keys());
    // Pinned here: by value the timer would hold it two times more, and a stranger has no room for that.
    let talk = pin!(async {
        let (mut server, challenge) = ServerHandshake::new(&keys, nonce);
        socket.send_all(&challenge, false).await?;
        let mut more = Vec::new();
        loop {
            match server.hello(&more) {
                Ok(Progress::Done(hello)) => return Ok(hello),
                Ok(Progress::NeedMore(bytes)) => {
                    read_more(socket, &mut more, bytes).await?.ok_or_else(|| server.closed())?;
                }
                Err(error) => {
                    if let HandshakeError::KeyMismatch { .. } = error {
                        // Nothing depends on its arrival.
                        let _ = socket.try_send(&bad_key_reply(), false);
                        socket.finish();
                    }
                    return Err(error.into());
                }
            }
        }
    });
    exec::timeout(HELLO_DEADLINE, talk)
        .await
        .unwrap_or(Err(HandshakeFailed::Deadline { deadline: HELLO_DEADLINE }))
}

/// Reads exactly `bytes` into `more`, or none if the peer closes.
async fn read_more(socket: &Socket, more: &mut Vec<u8>, bytes: usize) -> io::Result<Option<()>> {
    more.clear();
    more.resize(bytes, 0);
    match socket.recv_exact(more).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        outcome => outcome.map(Some),
    }
}
