//! The door of a port that takes lanes: how many strangers may stand before it, how many lanes behind it, and what becomes of
//! those it refuses.
//!
//! In: accepted connections, and how their handshakes ended. Out: a place for each hello, and log lines with counts. Called
//! by relay and upstream, one door for all cores of a role. Invariants: at most `hellos_max` hellos are awaited at
//! once, a quarter of them from one address, and as many are verified within a second; where all places are taken, who has
//! said nothing for the longest time makes room for who has just come; however many strangers are refused, the log grows by
//! a line per kind and ten seconds.

use std::{
    collections::VecDeque,
    fmt,
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::Poll,
    time::Duration,
};

use futures_util::task::AtomicWaker;

use super::handshake::HandshakeFailed;
use crate::{
    exec::{self, Instant},
    net::{Admission, Crowded, Seat, Tally, Told},
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
    /// There are too many hellos already, or lanes.
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

    /// In the order of their numbers.
    const ALL: [Self; Self::KINDS] =
        [Self::Crowd, Self::NoHello, Self::Version, Self::Key, Self::NotAuthentic, Self::Route];

    /// As metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Crowd => "crowd",
            Self::NoHello => "no-hello",
            Self::Version => "version",
            Self::Key => "key",
            Self::NotAuthentic => "not-authentic",
            Self::Route => "route",
        }
    }

    fn of(error: &HandshakeFailed) -> Self {
        match error {
            HandshakeFailed::Refused(HandshakeError::Version { .. }) => Self::Version,
            HandshakeFailed::Refused(HandshakeError::KeyMismatch { .. }) => Self::Key,
            HandshakeFailed::Refused(HandshakeError::NotAuthentic { .. }) => Self::NotAuthentic,
            HandshakeFailed::Refused(HandshakeError::Route(_)) => Self::Route,
            HandshakeFailed::Displaced => Self::Crowd,
            _ => Self::NoHello,
        }
    }
}

/// See the module's description.
#[derive(Debug)]
pub struct Door {
    hellos: Arc<Admission>,
    lanes: Arc<Admission>,
    /// Who is awaited, in order of arrival, among some whose hello has come or will not: those leave when they are the
    /// first. So there are never more than begin in the time that a hello may take.
    awaited: Mutex<VecDeque<Weak<Stranger>>>,
    refused: [Tally; Wrong::KINDS],
}

/// Whose hello is awaited.
#[derive(Debug)]
struct Stranger {
    /// Its place; none once the hello has come, or somebody else has it.
    seat: Mutex<Option<Seat>>,
    began: Instant,
    /// Woken when somebody else has it.
    displaced: AtomicWaker,
}

impl Stranger {
    fn leave_seat(&self) -> Option<Seat> {
        self.seat.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn is_awaited(&self) -> bool {
        self.seat.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

/// The place of one hello that is awaited.
#[derive(Debug)]
pub struct Knock {
    stranger: Arc<Stranger>,
}

impl Door {
    /// Room for `hellos_max` hellos at once and per second, and for as many lanes as descriptors allow.
    pub fn new(hellos_max: usize) -> Arc<Self> {
        Self::with_lanes(hellos_max, usize::MAX, usize::MAX)
    }

    /// The same, and for `lanes_max` lanes, of which one address may have `per_address_max`.
    pub fn with_lanes(hellos_max: usize, lanes_max: usize, per_address_max: usize) -> Arc<Self> {
        let per_address = hellos_max.div_ceil(ADDRESS_PART);
        Arc::new(Self {
            hellos: Admission::new(hellos_max, per_address),
            lanes: Admission::new(lanes_max, per_address_max),
            awaited: Mutex::default(),
            refused: std::array::from_fn(|_| Tally::new()),
        })
    }

    fn awaited(&self) -> MutexGuard<'_, VecDeque<Weak<Stranger>>> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hellos that are awaited, and how many may be.
    pub fn hellos(&self) -> (usize, usize) {
        self.hellos.taken()
    }

    /// How many were refused for what since the start.
    pub fn refusals(&self) -> impl Iterator<Item = (Wrong, u64)> {
        Wrong::ALL.into_iter().map(|wrong| (wrong, self.refused[wrong as usize].total()))
    }

    /// A place for the hello of `peer`; without one the connection is to be closed.
    pub fn knock(&self, peer: SocketAddr) -> Option<Knock> {
        let admitted = match self.hellos.admit(peer.ip()) {
            // An honest peer speaks within a round trip: whoever has been silent for the longest is the least likely one.
            Err(Crowded::Total { .. }) if self.displace_oldest() => self.hellos.admit(peer.ip()),
            admitted => admitted,
        };
        match admitted {
            Ok(seat) => {
                let stranger = Arc::new(Stranger {
                    seat: Mutex::new(Some(seat)),
                    began: Instant::now(),
                    displaced: AtomicWaker::new(),
                });
                let mut awaited = self.awaited();
                let is_over =
                    |first: &Weak<Stranger>| first.upgrade().is_none_or(|stranger| !stranger.is_awaited());
                while awaited.front().is_some_and(is_over) {
                    awaited.pop_front();
                }
                awaited.push_back(Arc::downgrade(&stranger));
                Some(Knock { stranger })
            }
            Err(crowded) => {
                let error = format_args!("too many hellos at once: {crowded} (raise --max-hellos?)");
                self.refused(Some(peer), Wrong::Crowd, &error);
                None
            }
        }
    }

    /// A place for the lane of `peer`, whose hello was right; it is free again when it is dropped.
    ///
    /// # Errors
    /// The bound that is reached.
    pub fn admit_lane(&self, peer: SocketAddr) -> Result<Seat, Crowded> {
        self.lanes.admit(peer.ip()).inspect_err(|crowded| {
            let error =
                format_args!("too many lanes: {crowded} (raise --max-lanes or --max-lanes-per-address?)");
            self.refused(Some(peer), Wrong::Crowd, &error);
        })
    }

    /// Frees the place of who has been awaited for the longest time; false if nobody is.
    fn displace_oldest(&self) -> bool {
        let mut awaited = self.awaited();
        while let Some(oldest) = awaited.pop_front() {
            if let Some(stranger) = oldest.upgrade()
                && stranger.leave_seat().is_some()
            {
                stranger.displaced.wake();
                return true;
            }
        }
        false
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
    /// Waits for `hello`, unless the place is needed for others meanwhile. It is pinned by the caller: a stranger has no room
    /// for two copies of it.
    ///
    /// # Errors
    /// Those of `hello`, or [`HandshakeFailed::Displaced`].
    pub async fn hear<T>(
        self,
        mut hello: Pin<&mut impl Future<Output = Result<T, HandshakeFailed>>>,
    ) -> Result<T, HandshakeFailed> {
        let heard = poll_fn(|cx| {
            if let Poll::Ready(heard) = hello.as_mut().poll(cx) {
                return Poll::Ready(heard);
            }
            self.stranger.displaced.register(cx.waker());
            if self.stranger.is_awaited() {
                Poll::Pending
            } else {
                Poll::Ready(Err(HandshakeFailed::Displaced))
            }
        })
        .await;
        let left = PLACE_TIME_MIN.saturating_sub(self.stranger.began.elapsed());
        if let Some(seat) = self.stranger.leave_seat().filter(|_| !left.is_zero()) {
            exec::spawn(async move {
                exec::sleep(left).await;
                drop(seat);
            });
        }
        heard
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::on_simulator::{passed, simulate};

    /// Hellos that end at once, and come as fast as they may: places bound their rate, too.
    #[test]
    fn hellos_beyond_the_rate_are_turned_away() {
        const SECONDS: usize = 5;
        let peer = |host: u8| SocketAddr::from(([192, 0, 2, host], 1));
        let heard = |hosts: std::ops::Range<u8>| async move {
            let door = Door::new(8);
            let mut heard = 0;
            while passed() < Duration::from_secs(SECONDS as u64) {
                for host in hosts.clone() {
                    let Some(knock) = door.knock(peer(host)) else { continue };
                    knock.hear(std::pin::pin!(async { Ok(()) })).await.unwrap();
                    heard += 1;
                }
                exec::sleep(Duration::from_millis(10)).await;
            }
            heard
        };
        for (hosts, per_second) in [(1..2, 2), (1..100, 8)] {
            let (heard, _) = simulate(1, 1, heard(hosts.clone()));
            let bound = per_second * (SECONDS - 1)..=per_second * SECONDS;
            assert!(bound.contains(&heard), "{heard} hellos of {hosts:?} in {SECONDS} s");
        }
    }

    #[test]
    fn who_is_silent_for_the_longest_makes_room() {
        let door = Door::new(4);
        let peer = |host: u8| SocketAddr::from(([192, 0, 2, host], 1));
        let knocks: Vec<_> = (1..5).map(|host| door.knock(peer(host)).unwrap()).collect();
        assert!(door.knock(peer(4)).is_none(), "an address keeps to its part, however full it is");
        // The first one's hello has come: its place is not free before its time.
        let answered = knocks[0].stranger.leave_seat().unwrap();
        let fifth = door.knock(peer(5)).unwrap();
        let is_awaited = |knock: &Knock| knock.stranger.is_awaited();
        assert_eq!(knocks.iter().map(is_awaited).collect::<Vec<_>>(), [false, false, true, true]);
        assert!(is_awaited(&fifth));
        drop(answered);
        assert!(door.knock(peer(6)).is_some());
        assert!(is_awaited(&knocks[2]), "there was room");
        for host in 10..100 {
            assert!(door.knock(peer(host)).is_some());
        }
    }
}
