//! How the kernel paces a connection: what BBR has found out, how it is made to begin anew, and what bounds the pace.
//!
//! A leaf module with `unsafe`: TCP_CC_INFO and SO_MAX_PACING_RATE have no safe wrapper.

use std::{
    io,
    mem::size_of,
    os::fd::{AsRawFd, BorrowedFd},
    time::Duration,
};

use socket2::SockRef;

/// `struct tcp_bbr_info` of linux/inet_diag.h.
#[repr(C)]
#[derive(Default)]
struct RawInfo {
    bandwidth_low: u32,
    bandwidth_high: u32,
    min_rtt_us: u32,
    pacing_gain: u32,
    window_gain: u32,
}

/// In STARTUP the pacing gain is 2/ln 2, later 5/4 at most; in 256ths (net/ipv4/tcp_bbr.c, bbr_high_gain and bbr_pacing_gain).
const STARTUP_GAIN_MIN: u32 = 2 * 256;

/// See the module's description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BbrInfo {
    /// What the path carries, bytes a second; 0 if that is not known yet.
    pub(super) bandwidth: u64,
    /// How long an empty path takes.
    pub(super) round_trip: Duration,
    /// It still tries more and more (STARTUP).
    pub(super) is_starting: bool,
}

impl BbrInfo {
    /// Of a TCP connection; `None` if it does not use BBR.
    pub(super) fn of(socket: BorrowedFd<'_>) -> Option<Self> {
        if !SockRef::from(&socket).tcp_congestion().is_ok_and(|name| name.starts_with(b"bbr")) {
            return None;
        }
        let (mut raw, mut len) = (RawInfo::default(), size_of::<RawInfo>() as libc::socklen_t);
        // SAFETY: the kernel writes at most `len` bytes to `raw`, integers as many; the descriptor is borrowed, so open.
        let outcome = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_CC_INFO,
                std::ptr::from_mut(&mut raw).cast(),
                &mut len,
            )
        };
        (outcome == 0 && len as usize >= size_of::<RawInfo>()).then(|| Self {
            bandwidth: u64::from(raw.bandwidth_high) << 32 | u64::from(raw.bandwidth_low),
            round_trip: Duration::from_micros(raw.min_rtt_us.into()),
            // No gain: it waits for the first acknowledgement.
            is_starting: raw.pacing_gain == 0 || raw.pacing_gain >= STARTUP_GAIN_MIN,
        })
    }
}

/// BBR of the connection begins anew, with the congestion window that it has.
///
/// # Errors
/// Those of setsockopt(2): the kernel allows BBR no more.
pub(super) fn begin_anew(socket: BorrowedFd<'_>) -> io::Result<()> {
    let socket = SockRef::from(&socket);
    // Naming the one that it has would change nothing.
    socket.set_tcp_congestion(b"reno")?;
    socket.set_tcp_congestion(b"bbr")
}

/// The connection spreads what it sends over its round trip, also where its congestion control does not ask for that: as fast as its
/// window goes round, and a fifth more, or twice as fast in slow start (net.ipv4.tcp_pacing_ca_ratio and tcp_pacing_ss_ratio,
/// ip-sysctl). The kernel begins with it as soon as there is a bound.
///
/// # Errors
/// Those of setsockopt(2).
pub(super) fn pace(socket: BorrowedFd<'_>) -> io::Result<()> {
    bound_pacing(socket, u64::MAX - 1)
}

/// The connection sends no more than so many bytes a second (SO_MAX_PACING_RATE, socket(7)); `u64::MAX`: as many as it may.
///
/// # Errors
/// Those of setsockopt(2).
pub(super) fn bound_pacing(socket: BorrowedFd<'_>, rate: u64) -> io::Result<()> {
    let (value, len) = (std::ptr::from_ref(&rate).cast(), size_of::<u64>() as libc::socklen_t);
    // SAFETY: the kernel reads `len` bytes from `value`, an integer that long, and keeps no pointer.
    let outcome = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, value, len)
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
        os::fd::AsFd,
        thread,
    };

    use super::*;
    use crate::net::{Congestion, Leg, TcpInfo};

    const BYTES: usize = 8 << 20;

    fn exchange(near: &mut TcpStream, far: &mut TcpStream) {
        let (mut reader, bytes) = (far.try_clone().unwrap(), vec![1; BYTES]);
        let reads = thread::spawn(move || reader.read_exact(&mut vec![0; BYTES]).unwrap());
        near.write_all(&bytes).unwrap();
        reads.join().unwrap();
        // What was acknowledged is known once something has come back.
        far.write_all(b"x").unwrap();
        near.read_exact(&mut [0]).unwrap();
    }

    #[test]
    fn a_connection_begins_anew_with_the_window_that_it_has() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut far = listener.accept().unwrap().0;
        SockRef::from(&near).set_tcp_congestion(b"reno").unwrap();
        assert_eq!(BbrInfo::of(near.as_fd()), None);
        if SockRef::from(&near).set_tcp_congestion(b"bbr").is_err() {
            return eprintln!("left out: this kernel has no BBR, or does not allow it");
        }
        exchange(&mut near, &mut far);
        let window = |near: &TcpStream| TcpInfo::of(near.as_fd()).unwrap().congestion_window;
        let known = BbrInfo::of(near.as_fd()).unwrap();
        assert!(known.bandwidth > 0 && !known.round_trip.is_zero(), "{known:?}");
        let before = window(&near);
        bound_pacing(near.as_fd(), known.bandwidth).unwrap();
        begin_anew(near.as_fd()).unwrap();
        let begun = BbrInfo::of(near.as_fd()).unwrap();
        assert!(begun.is_starting && begun.bandwidth < known.bandwidth, "{begun:?}");
        assert_eq!(window(&near), before);
        exchange(&mut near, &mut far);
        assert!(BbrInfo::of(near.as_fd()).unwrap().bandwidth > 0);
        bound_pacing(near.as_fd(), u64::MAX).unwrap();
        exchange(&mut near, &mut far);
    }

    /// The bound of a connection's pace, bytes a second.
    fn bound(socket: BorrowedFd<'_>) -> u64 {
        let (mut rate, mut len) = (0_u64, size_of::<u64>() as libc::socklen_t);
        // SAFETY: the kernel writes at most `len` bytes to `rate`, an integer that long.
        let outcome = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_MAX_PACING_RATE,
                std::ptr::from_mut(&mut rate).cast(),
                &mut len,
            )
        };
        assert_eq!((outcome, len as usize), (0, size_of::<u64>()));
        rate
    }

    #[test]
    fn lanes_over_networks_are_paced_whatever_controls_them() {
        for (leg, peer, is_paced) in [
            (Leg::Lane, "203.0.113.1", true),
            (Leg::Lane, "10.0.0.1", true),
            (Leg::Lane, "127.0.0.1", false),
            (Leg::Client, "203.0.113.1", false),
        ] {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            Congestion::Named(leg, "reno".into()).apply(&socket, peer.parse().unwrap());
            assert_eq!(bound(socket.as_fd()) != u64::MAX, is_paced, "{leg:?} to {peer}");
        }
    }
}
