//! The door of a port that takes lanes: how many strangers may stand before it, and what becomes of those it refuses.
//!
//! In: accepted connections, and how their handshakes ended. Out: a place for each hello, and log lines with counts. Called
//! by relay and upstream, one door for all cores of a role. Invariants: at most `hellos_max` hellos are awaited at
//! once and begin within a second, a quarter of them from one address; however many strangers are refused, the log grows
//! by a line per kind and ten seconds.

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use super::handshake::HandshakeFailed;
use crate::{
    exec::{self, Instant},
    net::{Admission, Seat, Tally, Told},
    wire::handshake::HandshakeError,
};

/// A hello keeps its place at least so long, however soon it ends: that bounds their rate.
const PLACE_TIME_MIN: Duration = Duration::from_secs(1);
/// One address may have this part of the places: lanes of a relay, or of many downstreams behind one address, come in
/// hundreds when they are dialled anew, and one flooding host must not keep out the others.
const ADDRESS_PART: usize = 4;

/// Why somebody was refused, as the log counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// There are too many hellos already.
    Crowd,
    /// Something else than a hello, or none in time.
    NoHello,
    /// Another release, or one that claims to be older than it is.
    Version,
    /// Another key.
    Key,
    /// A hello that was damaged, forged or recorded on another connection.
    NotAuthentic,
    /// A key holder's route that must not be served.
    Route,
}

impl Wrong {
    const KINDS: usize = 6;

    fn of(error: &HandshakeFailed) -> Self {
        match error {
            HandshakeFailed::Refused(HandshakeError::Version { .. }) => Self::Version,
            HandshakeFailed::Refused(HandshakeError::KeyMismatch { .. }) => Self::Key,
            HandshakeFailed::Refused(HandshakeError::NotAuthentic { .. }) => Self::NotAuthentic,
            HandshakeFailed::Refused(HandshakeError::Route(_)) => Self::Route,
            _ => Self::NoHello,
        }
    }
}

/// See the module's description.
#[derive(Debug)]
pub struct Door {
    hellos: Arc<Admission>,
    refused: [Tally; Wrong::KINDS],
}

/// The place of one hello that is awaited.
#[derive(Debug)]
pub struct Knock {
    seat: Seat,
    began: Instant,
}

impl Door {
    /// Room for `hellos_max` hellos at once and per second.
    pub fn new(hellos_max: usize) -> Arc<Self> {
        let per_address = hellos_max.div_ceil(ADDRESS_PART);
        Arc::new(Self {
            hellos: Admission::new(hellos_max, per_address),
            refused: std::array::from_fn(|_| Tally::new()),
        })
    }

    /// A place for the hello of `peer`; without one the connection is to be closed.
    pub fn knock(&self, peer: SocketAddr) -> Option<Knock> {
        match self.hellos.admit(peer.ip()) {
            Ok(seat) => Some(Knock { seat, began: Instant::now() }),
            Err(crowded) => {
                let error = format_args!("too many hellos at once: {crowded} (raise --max-hellos?)");
                self.refused(Some(peer), Wrong::Crowd, &error);
                None
            }
        }
    }

    /// The handshake with `peer` failed.
    pub fn failed(&self, peer: Option<SocketAddr>, error: &HandshakeFailed) {
        self.refused(peer, Wrong::of(error), error);
    }

    /// `peer` was refused.
    pub fn refused(&self, peer: Option<SocketAddr>, wrong: Wrong, error: &dyn fmt::Display) {
        if let Some(Told { since, total }) = self.refused[wrong as usize].count() {
            let peer = peer.map(tracing::field::display);
            tracing::warn!(peer, ?wrong, since, total, "refused: {error}");
        }
    }
}

impl Knock {
    /// The hello has come, or will not.
    pub fn answered(self) {
        let left = PLACE_TIME_MIN.saturating_sub(self.began.elapsed());
        if !left.is_zero() {
            exec::spawn(async move {
                exec::sleep(left).await;
                drop(self.seat);
            });
        }
    }
}
