//! Where a lane goes: the addresses of its hops.
//!
//! In: a `--path` setting, or the route in a hello. Out: a [`PathSpec`] to connect along, a [`Route`] to send. Called by the
//! command line, `lanes`, `relay` and [`super::handshake`]. Invariant: what these types hold is in bounds, contains no white
//! space or control character, prints as it is parsed, and always fits a hello. Names are not resolved here.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use thiserror::Error;

/// 8 hops behind the first: far more than any useful chain, few enough that a loop of relays ends.
pub const MAX_HOPS: usize = 8;

/// RFC 1035 section 2.3.4: a name has at most 255 octets in a message, which is 253 characters of text.
pub const MAX_HOST_BYTES: usize = 253;

/// 255: a hop's text, port included, has a length of one byte in a hello. A name close to [`MAX_HOST_BYTES`] does not fit.
pub const MAX_HOP_BYTES: usize = 255;

/// 1920 bytes: with the hello's own 60 it stays below the 2 KiB that a server reads from a stranger.
pub const MAX_ROUTE_BYTES: usize = 1920;

/// What carries each leg of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum Transport {
    /// One TCP connection per lane and leg.
    #[default]
    Tcp = 0,
    /// The kernel's MPTCP (RFC 8684): a connection of several TCP subflows.
    Mptcp = 1,
}

/// `HOST:PORT` of one hop. Names are lower case; IPv6 addresses are in brackets.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HopAddr {
    host: Host,
    port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Host {
    Name(String),
    V4(Ipv4Addr),
    V6(Ipv6Addr),
}

/// The hops that remain after the one that reads this: at most [`MAX_HOPS`], in order, the upstream last; and what carries
/// the legs to them. No hops: the reader is the upstream.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Route {
    hops: Vec<HopAddr>,
    transport: Transport,
}

/// A path as configured: `[tcp:|mptcp:]HOST:PORT[,HOST:PORT]...`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PathSpec {
    first: HopAddr,
    route: Route,
}

/// A setting that is no path, or a hello's route that is none.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RouteError {
    /// Nothing between two commas, or nothing at all.
    #[error("hop {hop} is empty (write HOST:PORT[,HOST:PORT]..., the upstream last)")]
    EmptyHop {
        /// Which hop, from 1 on.
        hop: usize,
    },
    /// One hop is no address.
    #[error("hop {hop} ({text:?}) {source}")]
    Hop {
        /// Which hop, from 1 on.
        hop: usize,
        /// Its text, shortened.
        text: String,
        /// What is wrong with it.
        source: HopError,
    },
    /// More hops than a route may have.
    #[error("{hops} hops are too many: a path has at most {max}")]
    TooManyHops {
        /// Hops given.
        hops: usize,
        /// Hops allowed.
        max: usize,
    },
    /// The names are too long for a hello, all together.
    #[error(
        "the hops' names need {bytes} bytes together, more than {MAX_ROUTE_BYTES} (use shorter names or addresses)"
    )]
    TooLong {
        /// Bytes needed.
        bytes: usize,
    },
    /// A hello's route wants a transport of another release.
    #[error(
        "the route in the peer's hello has the unknown transport {transport} (run the same release on both)"
    )]
    UnknownTransport {
        /// Its byte.
        transport: u8,
    },
    /// A hello's route ends in the middle of a hop, or goes on after the last.
    #[error("the route in the peer's hello does not have the length it announces")]
    Framing,
}

/// Text that is no `HOST:PORT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum HopError {
    /// No `:PORT`.
    #[error("has no port (write HOST:PORT)")]
    NoPort,
    /// The port is no number from 1 to 65535.
    #[error("has no valid port (1 to 65535)")]
    BadPort,
    /// Nothing before the port.
    #[error("has no host (write HOST:PORT)")]
    NoHost,
    /// A name of more than 253 bytes, or 255 with its port.
    #[error("is too long: a host has at most {MAX_HOST_BYTES} bytes, and {MAX_HOP_BYTES} with its port")]
    TooLong,
    /// More than one colon outside of brackets.
    #[error(
        "has several colons (write an IPv6 address in brackets, [::1]:7000; a transport is `tcp:` or `mptcp:`, before the first hop)"
    )]
    Colons,
    /// The brackets hold no IPv6 address, or do not match.
    #[error("has no IPv6 address in its brackets (write [::1]:7000, without a zone)")]
    BadIpv6,
    /// A character that no host name has.
    #[error("has a character that no host name has, at byte {at}")]
    BadCharacter {
        /// Its index.
        at: usize,
    },
}

impl PathSpec {
    /// A path from its parts; all its legs have the transport of `route`.
    pub fn new(first: HopAddr, route: Route) -> Self {
        Self { first, route }
    }

    /// What carries each leg.
    pub fn transport(&self) -> Transport {
        self.route.transport
    }

    /// The hop to connect to.
    pub fn first(&self) -> &HopAddr {
        &self.first
    }

    /// The hops behind it, which go into the hello.
    pub fn route(&self) -> &Route {
        &self.route
    }

    /// All hops in order, at least one, the upstream last.
    pub fn hops(&self) -> impl Iterator<Item = &HopAddr> {
        std::iter::once(&self.first).chain(&self.route.hops)
    }
}

impl FromStr for PathSpec {
    type Err = RouteError;

    fn from_str(text: &str) -> Result<Self, RouteError> {
        let (transport, hops) = if let Some(hops) = text.strip_prefix("mptcp:") {
            (Transport::Mptcp, hops)
        } else {
            (Transport::Tcp, text.strip_prefix("tcp:").unwrap_or(text))
        };
        let count = hops.split(',').count();
        if count > MAX_HOPS + 1 {
            return Err(RouteError::TooManyHops { hops: count, max: MAX_HOPS + 1 });
        }
        let mut parsed = hops.split(',').enumerate().map(|(index, text)| parse_hop(index + 1, text));
        let first = parsed.next().unwrap_or(Err(RouteError::EmptyHop { hop: 1 }))?;
        let route = Route::new(parsed.collect::<Result<_, _>>()?)?.over(transport);
        Ok(Self { first, route })
    }
}

impl fmt::Display for PathSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.transport() == Transport::Mptcp {
            f.write_str("mptcp:")?;
        }
        write!(f, "{}", self.first)?;
        self.route.hops.iter().try_for_each(|hop| write!(f, ",{hop}"))
    }
}

impl Route {
    /// A route over `hops`, the upstream last, by TCP.
    pub fn new(hops: Vec<HopAddr>) -> Result<Self, RouteError> {
        if hops.len() > MAX_HOPS {
            return Err(RouteError::TooManyHops { hops: hops.len(), max: MAX_HOPS });
        }
        let route = Self { hops, transport: Transport::Tcp };
        match route.encode().len() {
            bytes if bytes > MAX_ROUTE_BYTES => Err(RouteError::TooLong { bytes }),
            _ => Ok(route),
        }
    }

    /// The same hops by `transport`.
    pub fn over(self, transport: Transport) -> Self {
        Self { transport, ..self }
    }

    /// What carries each leg.
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// The hops, the upstream last.
    pub fn hops(&self) -> &[HopAddr] {
        &self.hops
    }

    /// Whether the reader of this route is the upstream.
    pub fn is_empty(&self) -> bool {
        self.hops.is_empty()
    }

    /// For a relay: the hop to connect to, and the route to send there. `None` at the upstream.
    pub fn split_first(&self) -> Option<(&HopAddr, Route)> {
        let (next, rest) = self.hops.split_first()?;
        Some((next, Self { hops: rest.to_vec(), transport: self.transport }))
    }

    /// As in a hello: a transport byte, a count byte, then each hop's length byte and text.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![self.transport as u8, self.hops.len() as u8];
        for hop in &self.hops {
            let text = hop.to_string();
            bytes.push(text.len() as u8);
            bytes.extend_from_slice(text.as_bytes());
        }
        bytes
    }

    /// The reverse of [`Route::encode`], for bytes that may say anything.
    pub fn decode(bytes: &[u8]) -> Result<Self, RouteError> {
        let &[transport, count, ref rest @ ..] = bytes else { return Err(RouteError::Framing) };
        let transport = match transport {
            0 => Transport::Tcp,
            1 => Transport::Mptcp,
            transport => return Err(RouteError::UnknownTransport { transport }),
        };
        let (count, mut rest) = (usize::from(count), rest);
        if count > MAX_HOPS {
            return Err(RouteError::TooManyHops { hops: count, max: MAX_HOPS });
        }
        let mut hops = Vec::with_capacity(count);
        for hop in 1..=count {
            let (&len, tail) = rest.split_first().ok_or(RouteError::Framing)?;
            let (text, tail) = tail.split_at_checked(usize::from(len)).ok_or(RouteError::Framing)?;
            // What is not ASCII is no host name either, and is refused as such.
            hops.push(parse_hop(hop, &String::from_utf8_lossy(text))?);
            rest = tail;
        }
        if !rest.is_empty() {
            return Err(RouteError::Framing);
        }
        Ok(Self::new(hops)?.over(transport))
    }
}

impl HopAddr {
    /// The host without brackets, as getaddrinfo(3) takes it.
    pub fn host(&self) -> String {
        match &self.host {
            Host::Name(name) => name.clone(),
            Host::V4(address) => address.to_string(),
            Host::V6(address) => address.to_string(),
        }
    }

    /// 1 to 65535.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The socket address if the host is a literal IP address, so that no resolver is needed.
    pub fn socket_addr(&self) -> Option<std::net::SocketAddr> {
        match &self.host {
            Host::Name(_) => None,
            Host::V4(address) => Some((*address, self.port).into()),
            Host::V6(address) => Some((*address, self.port).into()),
        }
    }
}

impl From<std::net::SocketAddr> for HopAddr {
    /// For an address that a socket reported, which has a port. An IPv6 zone is dropped.
    fn from(address: std::net::SocketAddr) -> Self {
        let host = match address.ip() {
            std::net::IpAddr::V4(address) => Host::V4(address),
            std::net::IpAddr::V6(address) => Host::V6(address),
        };
        Self { host, port: address.port() }
    }
}

impl FromStr for HopAddr {
    type Err = HopError;

    fn from_str(text: &str) -> Result<Self, HopError> {
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (address, rest) = rest.split_once(']').ok_or(HopError::BadIpv6)?;
            let address = address.parse().map_err(|_| HopError::BadIpv6)?;
            (Host::V6(address), rest.strip_prefix(':').ok_or(HopError::NoPort)?)
        } else {
            let (host, port) = text.split_once(':').ok_or(HopError::NoPort)?;
            if port.contains(':') {
                return Err(HopError::Colons);
            }
            (Host::parse_unbracketed(host)?, port)
        };
        // u16's parser takes a sign, and as many zeros as there are.
        if port.len() > 5 || !port.bytes().all(|b| b.is_ascii_digit()) {
            return Err(HopError::BadPort);
        }
        let port = port.parse().ok().filter(|&port| port > 0).ok_or(HopError::BadPort)?;
        let hop = Self { host, port };
        match hop.to_string().len() {
            bytes if bytes > MAX_HOP_BYTES => Err(HopError::TooLong),
            _ => Ok(hop),
        }
    }
}

impl fmt::Display for HopAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Name(name) => write!(f, "{name}:{}", self.port),
            Host::V4(address) => write!(f, "{address}:{}", self.port),
            Host::V6(address) => write!(f, "[{address}]:{}", self.port),
        }
    }
}

impl Host {
    /// A name or an IPv4 address. Underscores are taken: names of containers have them.
    fn parse_unbracketed(text: &str) -> Result<Self, HopError> {
        if text.is_empty() {
            return Err(HopError::NoHost);
        }
        if text.len() > MAX_HOST_BYTES {
            return Err(HopError::TooLong);
        }
        let is_allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
        if let Some(at) = text.bytes().position(|b| !is_allowed(b)) {
            return Err(HopError::BadCharacter { at });
        }
        Ok(text.parse().map_or_else(|_| Self::Name(text.to_ascii_lowercase()), Self::V4))
    }
}

/// Hop number `hop`, from 1 on.
fn parse_hop(hop: usize, text: &str) -> Result<HopAddr, RouteError> {
    /// Enough of a bad hop to recognise it by.
    const SHOWN_CHARS: usize = 64;
    if text.is_empty() {
        return Err(RouteError::EmptyHop { hop });
    }
    let shown = || text.chars().take(SHOWN_CHARS).collect();
    text.parse().map_err(|source| RouteError::Hop { hop, text: shown(), source })
}

#[cfg(test)]
mod tests;
