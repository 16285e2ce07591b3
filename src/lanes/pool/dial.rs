//! How a lane comes to be: names, connections, the handshake over all hops.
//!
//! In: a place in the pool. Out: a lane that stands, or what is wrong and with which hop. Invariant: each wait has a
//! deadline; what was begun and is not needed is closed.

use std::{net::SocketAddr, pin::pin, time::Duration};

use futures_util::future::{Either, select};

use super::{DialError, Place, Pool};
use crate::{
    exec::{self, Instant},
    lanes::{Lane, handshake},
    net::{ConnectError, ResolveError, Socket},
};

/// Connecting one hop: three lost SYNs (a second each) and a long round trip.
const CONNECT_DEADLINE: Duration = Duration::from_secs(4);
/// A second connection is tried beside the first after so long without an answer, or two round trips: TCP repeats a SYN after a
/// second only, and a path that was out is to be used again as soon as it is back.
const SECOND_TRY_MIN: Duration = Duration::from_millis(500);
/// The handshake over all hops: as much again for each relay's own connect, bounded by what a viewer waits.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(8);

impl Pool {
    /// A new lane. What fails is logged where it makes a difference: if the path was up.
    pub(super) async fn dial(&self, mut place: Place) -> Result<Lane, DialError> {
        let mut connected = self.connect().await;
        if matches!(&connected, Err(DialError::Handshake { source, .. }) if source.is_worth_another_try()) {
            connected = self.connect().await;
        }
        let lane = connected.inspect_err(|error| {
            if self.path.failed() {
                tracing::warn!("{error}; the path is tried again, others carry the load");
            }
        })?;
        place.stands = true;
        Ok(lane)
    }

    async fn connect(&self) -> Result<Lane, DialError> {
        let path = || self.path.name().to_owned();
        let spec = self.path.spec();
        let addresses = self.config.names.addresses(spec.first()).await;
        let addresses = addresses.map_err(|source| DialError::Resolve { path: path(), source })?;
        let mut outcome = None;
        for address in addresses {
            match self.connect_to(address).await {
                Ok(socket) => {
                    let began = Instant::now();
                    let accepted =
                        handshake::open(&socket, &self.config.keys, spec.route(), HANDSHAKE_DEADLINE)
                            .await
                            .map_err(|source| DialError::Handshake { path: path(), source })?;
                    self.path.shook_hands(began.elapsed());
                    return Ok(Lane::new(socket, self.path.clone(), accepted));
                }
                Err(source) => outcome = Some(DialError::Connect { path: path(), source }),
            }
        }
        Err(outcome.unwrap_or_else(|| DialError::Resolve {
            path: path(),
            source: ResolveError::Empty { name: spec.first().to_string() },
        }))
    }

    /// Connects to the first hop, if need be in two tries side by side.
    async fn connect_to(&self, address: SocketAddr) -> Result<Socket, ConnectError> {
        let connect = || {
            let transport = self.path.spec().transport();
            Socket::connect(address, transport, &self.config.congestion, CONNECT_DEADLINE)
        };
        let pause = SECOND_TRY_MIN.max(2 * self.path.round_trip());
        match select(pin!(connect()), pin!(exec::sleep(pause))).await {
            Either::Left((outcome, _)) => outcome,
            Either::Right(((), first)) => match select(first, pin!(connect())).await {
                Either::Left((outcome, _)) => outcome,
                Either::Right((Ok(second), _)) => Ok(second),
                Either::Right((Err(_), first)) => first.await,
            },
        }
    }
}
