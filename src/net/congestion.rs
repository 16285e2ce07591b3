//! Congestion control per leg.
//!
//! In: what the flags say and who the peer is. Out: TCP_CONGESTION set on a socket. Called when a socket is connected
//! or accepted. BBR keeps a lossy long path full but costs 2 to 5 times the CPU of reno on a local leg, because it
//! paces; so local legs are not paced unless a flag says so.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd,
    sync::{Mutex, PoisonError},
};

use socket2::{Domain, SockRef, Socket, Type};

use super::bbr;

/// Which congestion control a leg gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Congestion {
    /// By the distance of the peer.
    Auto(Leg),
    /// This one, by the kernel's name, for such a leg.
    Named(Leg, String),
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leg {
    /// Between two Plait processes: BBR, except on loopback.
    Lane,
    /// Towards a client: BBR, except on loopback and in private networks.
    Client,
}

/// The congestion control of both kinds of leg.
#[derive(Clone, Debug)]
pub struct Legs {
    /// Lanes: `--lane-cc`.
    pub lane: Congestion,
    /// Clients: `--client-cc`.
    pub client: Congestion,
}

impl Default for Legs {
    fn default() -> Self {
        Self { lane: Congestion::Auto(Leg::Lane), client: Congestion::Auto(Leg::Client) }
    }
}

impl Legs {
    /// From the values of the flags; `auto` or a name of the kernel's.
    pub fn from_flags(lane: &str, client: &str) -> Self {
        let leg = |text: &str, leg| {
            if text == "auto" { Congestion::Auto(leg) } else { Congestion::Named(leg, text.into()) }
        };
        Self { lane: leg(lane, Leg::Lane), client: leg(client, Leg::Client) }
    }
}

/// Names to try in order, until the kernel takes one.
const LONG: &[&str] = &["bbr", "cubic", "reno"];
const SHORT: &[&str] = &["cubic", "reno"];

impl Congestion {
    /// Sets it on `socket`, whose peer is `peer`. Where the kernel refuses, the next best is taken and a warning is
    /// logged once for each name.
    pub fn apply(&self, socket: &Socket, peer: IpAddr) {
        let named;
        let wanted: &[&str] = match self {
            Congestion::Auto(leg) if is_near(peer, *leg) => SHORT,
            Congestion::Auto(_) => LONG,
            Congestion::Named(_, name) => {
                named = [name.as_str()];
                &named
            }
        };
        for name in wanted {
            match socket.set_tcp_congestion(name.as_bytes()) {
                Ok(()) => {
                    if *name != "bbr" && self.paces(peer) {
                        // Where the kernel cannot, a lane sends in bursts.
                        let _ = bbr::pace(socket.as_fd());
                    }
                    return;
                }
                Err(error) => warn_once(name, &error),
            }
        }
    }
}

impl Congestion {
    /// Whether what does not pace by itself, as BBR does, is to: a lane that goes on with a large window sends it at once
    /// otherwise, and the queue in front of the path loses what it cannot hold.
    fn paces(&self, peer: IpAddr) -> bool {
        let (Congestion::Auto(leg) | Congestion::Named(leg, _)) = self;
        *leg == Leg::Lane && !is_near(peer, *leg)
    }

    /// Whether distant peers get BBR, which paces by what it has measured: see [`LaneCount`](crate::mp::stripe::LaneCount).
    pub fn is_paced(&self) -> bool {
        let Ok(socket) = Socket::new(Domain::IPV4, Type::STREAM, None) else { return false };
        self.apply(&socket, DISTANT);
        socket.tcp_congestion().is_ok_and(|name| name.starts_with(b"bbr"))
    }
}

/// An address of documentation (RFC 5737): nowhere near.
const DISTANT: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1));

/// Connections that `listener` accepts begin without pacing, also where BBR is the host's default. Once BBR has begun on a
/// connection the kernel goes on pacing it, whatever takes BBR's place (sk_pacing_status is never taken back); to
/// begin with it later costs nothing.
pub(super) fn begin_unpaced(listener: &impl AsFd) {
    let listener = SockRef::from(listener);
    // A kernel that has neither keeps its default.
    let _ = SHORT.iter().any(|name| listener.set_tcp_congestion(name.as_bytes()).is_ok());
}

fn warn_once(name: &str, error: &std::io::Error) {
    static WARNED: Mutex<Option<HashSet<String>>> = Mutex::new(None);
    let mut warned = WARNED.lock().unwrap_or_else(PoisonError::into_inner);
    if warned.get_or_insert_default().insert(name.to_owned()) {
        tracing::warn!(
            "congestion control {name} is not available here: {error} (load it with `modprobe tcp_{name}` and name it \
             in net.ipv4.tcp_allowed_congestion_control); the next best is used"
        );
    }
}

fn is_near(peer: IpAddr, leg: Leg) -> bool {
    match peer.to_canonical() {
        peer if peer.is_loopback() => true,
        _ if leg == Leg::Lane => false,
        IpAddr::V4(peer) => peer.is_private() || peer.is_link_local() || peer == Ipv4Addr::UNSPECIFIED,
        IpAddr::V6(peer) => {
            peer.is_unique_local() || peer.is_unicast_link_local() || peer == Ipv6Addr::UNSPECIFIED
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_local_legs_are_near() {
        for (peer, lane, client) in [
            ("127.0.0.1", true, true),
            ("::1", true, true),
            ("::ffff:127.0.0.1", true, true),
            ("10.1.2.3", false, true),
            ("192.168.0.1", false, true),
            ("fd00::1", false, true),
            ("203.0.113.7", false, false),
            ("2001:db8::1", false, false),
        ] {
            let peer: IpAddr = peer.parse().unwrap();
            assert_eq!(is_near(peer, Leg::Lane), lane, "{peer} as a lane");
            assert_eq!(is_near(peer, Leg::Client), client, "{peer} as a client");
        }
    }

    #[test]
    fn a_name_is_set_and_a_wrong_one_is_survived() {
        let socket = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let before = socket.tcp_congestion().unwrap();
        Congestion::Named(Leg::Lane, "no-such".into()).apply(&socket, Ipv4Addr::LOCALHOST.into());
        assert_eq!(socket.tcp_congestion().unwrap(), before);
        Congestion::Named(Leg::Lane, "reno".into()).apply(&socket, Ipv4Addr::LOCALHOST.into());
        assert!(socket.tcp_congestion().unwrap().starts_with(b"reno"));
        assert!(!Congestion::Named(Leg::Lane, "reno".into()).is_paced());
        let has_bbr = socket.set_tcp_congestion(b"bbr").is_ok();
        assert_eq!(Congestion::Auto(Leg::Lane).is_paced(), has_bbr);
    }
}
