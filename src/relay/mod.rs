//! The relay: authenticates a lane, connects it to its next hop and forwards it byte for byte by splice.
//!
//! In: connections of downstreams or relays. Out: connections to the next hop that the hello names. Invariants: nothing
//! is connected before the hello is verified and its next hop allowed; when one side of a lane ends, so does the other.

use std::{
    cell::Cell,
    fmt, io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    rc::Rc,
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt, future::select, pin_mut};
use tokio::sync::watch;

use crate::{
    exec,
    lanes::{
        census::{Counted, End},
        door::{Door, Knock, Wrong},
        handshake,
    },
    net::{
        ConnectError, Crowded, Legs, Listener, MptcpState, ResolveError, Socket, keep_alive::ASK_SELDOM,
        pump, resolve,
    },
    wire::{
        handshake::{Accepted, Refusal, VerifiedHello},
        key_ring::KeyRing,
        reason::Reason,
        route::{HopAddr, Route},
    },
};

/// Connecting the next hop: less than the downstream waits for the whole handshake.
const CONNECT_DEADLINE: Duration = Duration::from_secs(4);
/// The handshake with the hops behind: below the downstream's own bound, so that it hears which hop is at fault.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(6);
/// How long a side that has been told the end may still say something before its connection is closed.
const LINGER: Duration = Duration::from_secs(3);
/// A lane that was silent is closed once the end has arrived; looked at so often.
const LINGER_LOOK: Duration = Duration::from_millis(20);
/// Thrown away at once then: it says no more than a few credits.
const LINGER_BYTES: usize = 4 << 10;

/// A rule of `--allow`: `HOST:PORT`, where either may be `*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowRule {
    host: Option<String>,
    port: Option<u16>,
}

/// `--allow` is not `HOST:PORT`.
#[derive(Debug, thiserror::Error)]
#[error("'{text}' is no rule for --allow: write HOST:PORT, where HOST or PORT may be *")]
pub struct AllowRuleError {
    text: String,
}

impl FromStr for AllowRule {
    type Err = AllowRuleError;

    fn from_str(text: &str) -> Result<Self, AllowRuleError> {
        let error = || AllowRuleError { text: text.to_owned() };
        let (host, port) = text.rsplit_once(':').ok_or_else(error)?;
        if host.is_empty() {
            return Err(error());
        }
        let host = (host != "*").then(|| host.to_owned());
        let port = if port == "*" { None } else { Some(port.parse().map_err(|_| error())?) };
        Ok(Self { host, port })
    }
}

impl fmt::Display for AllowRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.host.as_deref().unwrap_or("*"))?;
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => f.write_str(":*"),
        }
    }
}

impl AllowRule {
    /// The host that it names, as in a route; None for any.
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// Whether this very host is written there, not only `*`.
    fn names(&self, hop: &HopAddr) -> bool {
        self.host.is_some() && self.allows(hop)
    }

    fn allows(&self, hop: &HopAddr) -> bool {
        self.host.as_deref().is_none_or(|host| host.eq_ignore_ascii_case(&hop.host()))
            && self.port.is_none_or(|port| port == hop.port())
    }
}

/// A relay's settings, shared by its cores.
#[derive(Debug)]
pub struct Relay {
    /// The pre-shared keys.
    pub keys: Arc<KeyRing>,
    /// Congestion control; both legs of a relay are lanes.
    pub legs: Legs,
    /// Bounds strangers.
    pub door: Arc<Door>,
    /// Next hops allowed; empty: every host. This one's loopback and link-local addresses only where a rule names them.
    pub allow: Vec<AllowRule>,
    /// The relay itself listens on loopback: who can reach it can reach this host's loopback anyway.
    pub local: bool,
}

/// Why a lane was not forwarded. The side named is the one that must act.
#[derive(Debug, thiserror::Error)]
enum RelayError {
    #[error("downstream: {0}")]
    Hello(#[source] handshake::HandshakeFailed),
    #[error(
        "downstream: the route ends here, but this is a relay (name the upstream as the last hop of --path)"
    )]
    RouteEnds,
    #[error("relay: {hop} is not an allowed next hop (start the relay with --allow {hop})")]
    NotAllowed { hop: HopAddr },
    #[error(
        "relay: too many lanes: {0} (start the relay with a higher --max-lanes or --max-lanes-per-address)"
    )]
    Crowded(#[source] Crowded),
    #[error("relay: {0}")]
    Resolve(#[source] ResolveError),
    #[error("next hop {hop}: {source}")]
    Connect { hop: HopAddr, source: ConnectError },
    #[error("next hop {hop}: {source}")]
    NextHop { hop: HopAddr, source: handshake::HandshakeFailed },
    #[error("lane: {0}")]
    Lane(#[from] io::Error),
}

impl RelayError {
    /// `is_last`: the next hop is the upstream.
    fn refusal(&self, is_last: bool) -> Refusal {
        match self {
            RelayError::RouteEnds | RelayError::NotAllowed { .. } | RelayError::Crowded(_) => {
                Refusal::NotAllowed
            }
            RelayError::Connect { source, .. } if is_last && source.nobody_there() => Refusal::NobodyThere,
            RelayError::NextHop { source, .. } if source.nobody_there() => Refusal::NobodyThere,
            RelayError::Resolve(source) if source.is_unanswered() => Refusal::Unanswered,
            RelayError::Connect { source, .. } if source.is_unanswered() => Refusal::Unanswered,
            RelayError::NextHop { source, .. } if source.is_unanswered() => Refusal::Unanswered,
            _ => Refusal::Unreachable,
        }
    }
}

/// Accepts and forwards lanes on this core until `shutdown` turns true; then lanes in use have `drain` to finish.
pub async fn serve(
    relay: Arc<Relay>,
    listener: Listener,
    drain: Duration,
    mut shutdown: watch::Receiver<bool>,
) {
    let running = Rc::new(Cell::new(0_usize));
    while let Some(socket) = listener.next(&mut shutdown).await {
        // Without a peer it is gone already.
        let Ok(peer) = socket.peer() else { continue };
        let Some(knock) = relay.door.knock(peer) else { continue };
        let (relay, running, shutdown) = (relay.clone(), running.clone(), shutdown.clone());
        exec::spawn(async move {
            running.set(running.get() + 1);
            serve_lane(relay, socket, peer, knock, shutdown).await;
            running.set(running.get() - 1);
        });
    }
    drop(listener);
    let drained = async {
        while running.get() > 0 {
            exec::sleep(Duration::from_millis(20)).await;
        }
    };
    if exec::timeout(drain, drained).await.is_err() {
        tracing::warn!(lanes = running.get(), "lanes in use were cut off: they did not end within {drain:?}");
    }
}

/// Forwards one connection until it ends; what went wrong is logged with the peer's name.
pub(crate) async fn serve_lane(
    relay: Arc<Relay>,
    socket: Socket,
    peer: SocketAddr,
    knock: Knock,
    mut shutdown: watch::Receiver<bool>,
) {
    match forward(&relay, socket, peer, knock, &mut shutdown).await {
        Ok(()) => {}
        Err(RelayError::Hello(error)) => relay.door.failed(Some(peer), &error),
        Err(error @ (RelayError::NotAllowed { .. } | RelayError::RouteEnds)) => {
            relay.door.refused(Some(peer), Wrong::Route, &error);
        }
        // The door has told it.
        Err(RelayError::Crowded(_)) => {}
        Err(error) => tracing::info!(%peer, "{error}"),
    }
}

async fn forward(
    relay: &Relay,
    near: Socket,
    peer: SocketAddr,
    knock: Knock,
    shutdown: &mut watch::Receiver<bool>,
) -> Result<(), RelayError> {
    near.set_congestion(&relay.legs.lane, peer.ip());
    near.bound_backoff();
    let hello = knock.hear(pin!(handshake::receive(&near, &relay.keys))).await.map_err(RelayError::Hello)?;
    let hop = hello.route().hops().first().map(HopAddr::to_string).unwrap_or_default();
    let _seat = match relay.door.admit_lane(peer) {
        Ok(seat) => seat,
        Err(crowded) => return refuse(&near, hello, RelayError::Crowded(crowded)).await,
    };
    // In boxes: for a stranger there is no room for what comes behind.
    let mut connected = Box::pin(connect_next(relay, hello.route())).await;
    if matches!(&connected, Err(RelayError::NextHop { source, .. }) if source.is_worth_another_try()) {
        connected = Box::pin(connect_next(relay, hello.route())).await;
    }
    let far = match connected {
        Ok((far, accepted)) => {
            near.send_all(&hello.pass_on(accepted), false).await?;
            far
        }
        Err(error) => return refuse(&near, hello, error).await,
    };
    // It sends nothing of its own: lanes of a host that has vanished would stay for ever.
    [&near, &far].into_iter().for_each(|end| end.keep_alive(ASK_SELDOM));
    [&near, &far].into_iter().for_each(Socket::spare_pauses);
    tracing::debug!(%peer, near = ?near.mptcp(), far = ?far.mptcp(), "a lane stands");
    let ends = (
        Counted::new(End::RelayNear, peer.ip().to_canonical().to_string(), &near),
        Counted::new(End::RelayFar, hop, &far),
    );
    Box::pin(carry(&near, far, &ends, shutdown)).await
}

/// Tells the near side why there is no lane.
async fn refuse(near: &Socket, hello: VerifiedHello, error: RelayError) -> Result<(), RelayError> {
    let is_last = hello.route().hops().len() == 1;
    let refusal = hello.refuse(error.refusal(is_last), &Reason::new(&error.to_string()));
    near.send_all(&refusal, false).await?;
    near.finish();
    Err(error)
}

async fn connect_next(relay: &Relay, route: &Route) -> Result<(Socket, Accepted), RelayError> {
    let (hop, rest) = route.split_first().ok_or(RelayError::RouteEnds)?;
    let not_allowed = || RelayError::NotAllowed { hop: hop.clone() };
    if !relay.allow.is_empty() && !relay.allow.iter().any(|rule| rule.allows(hop)) {
        return Err(not_allowed());
    }
    let mut addresses = resolve(&hop.to_string()).await.map_err(RelayError::Resolve)?;
    // Whatever name or notation led there, and however wide the rule is.
    if !relay.local && !relay.allow.iter().any(|rule| rule.names(hop)) {
        addresses.retain(|address| !is_own(address));
    }
    let mut outcome = not_allowed();
    for address in addresses {
        match Socket::connect(address, route.transport(), &relay.legs.lane, CONNECT_DEADLINE).await {
            Ok(far) => {
                let opened = handshake::open(&far, &relay.keys, &rest, HANDSHAKE_DEADLINE).await;
                return match opened {
                    Ok(accepted) => Ok(report_fallback(hop, far, accepted)),
                    Err(source) => Err(RelayError::NextHop { hop: hop.clone(), source }),
                };
            }
            Err(source) => outcome = RelayError::Connect { hop: hop.clone(), source },
        }
    }
    Err(outcome)
}

/// Says in the log and to the hop before when the leg to `hop` was to be MPTCP and is plain TCP.
fn report_fallback(hop: &HopAddr, far: Socket, accepted: Accepted) -> (Socket, Accepted) {
    let fell_back = far.mptcp() == Some(MptcpState::FellBack);
    if fell_back {
        tracing::info!("a lane goes on to {hop} by plain TCP: MPTCP fell back");
    }
    (far, Accepted { fell_back: accepted.fell_back || fell_back, ..accepted })
}

/// Addresses that reach this host itself or its link only, which a route must not name unless allowed.
fn is_own(address: &SocketAddr) -> bool {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local() || ip.is_unspecified(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unspecified(),
    }
}

/// Forwards both ways until one side ends. A lane has no half-closed state: the end of one direction is its end.
async fn carry(
    near: &Socket,
    far: Socket,
    (counted, _far): &(Counted, Counted),
    shutdown: &mut watch::Receiver<bool>,
) -> Result<(), RelayError> {
    let (up, down) = (&counted.up, &counted.down);
    let ended = {
        let (upward, downward) = (pump(near, &far, up), pump(&far, near, down));
        let idle_at_shutdown = drained(up, down, shutdown).map(|outcome| outcome.map(|()| true));
        pin_mut!(upward, downward, idle_at_shutdown);
        let lane = select(upward, downward).map(|either| either.factor_first().0.map(|()| false));
        pin_mut!(lane);
        select(lane, idle_at_shutdown).await.factor_first().0
    };
    match ended {
        // What was sent last may still be on its way to the near side. A word from there to a closed socket would be
        // answered by a reset, which destroys it.
        Ok(was_silent) => {
            // Its bytes have all come; an upstream that stops waits for this.
            drop(far);
            near.finish();
            let gone = async { while near.discard(LINGER_BYTES).await.is_ok_and(|bytes| bytes > 0) {} };
            let arrived = async {
                // A lane with a transfer has credits on their way.
                if !was_silent {
                    std::future::pending::<()>().await;
                }
                while !near.is_acknowledged() {
                    exec::sleep(LINGER_LOOK).await;
                }
            };
            let _ = exec::timeout(LINGER, select(pin!(gone), pin!(arrived))).await;
        }
        // The other side must not take a broken lane for a finished one.
        Err(error) => {
            near.abort();
            far.abort();
            return Err(error.into());
        }
    }
    tracing::debug!(up = up.get(), down = down.get(), "a lane ended");
    Ok(())
}

/// After SIGTERM: resolves once the lane has been silent for a moment.
async fn drained(up: &Cell<u64>, down: &Cell<u64>, shutdown: &mut watch::Receiver<bool>) -> io::Result<()> {
    if shutdown.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
    loop {
        let before = (up.get(), down.get());
        exec::sleep(Duration::from_millis(500)).await;
        if before == (up.get(), down.get()) {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests;
