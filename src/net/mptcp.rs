//! What the kernel says of MPTCP: whether it is there, and how a connection stands.
//!
//! In: a descriptor. Out: its subflows, or the fact that it fell back to plain TCP; and one [`TcpInfo`] for all its
//! subflows. A leaf module with `unsafe`: the options of SOL_MPTCP have no safe wrapper. Layouts: linux/mptcp.h; older
//! kernels fill in less, which shows in the length they return.
//!
//! Facts of Linux 6.18: a socket that fell back keeps its protocol, but answers SOL_MPTCP with EOPNOTSUPP and all of TCP's
//! options as a TCP socket does. On one that did not, TCP_INFO is the first subflow's alone; FIONREAD, SIOCOUTQNSD, poll,
//! TCP_CONGESTION, TCP_NODELAY and (since 6.9) TCP_NOTSENT_LOWAT work on the connection as a whole.

use std::{
    io,
    mem::{offset_of, size_of},
    os::fd::{AsRawFd, BorrowedFd},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket as RawSocket, Type};

use super::{TcpInfo, tcp_info::RawTcpInfo};

/// Why this host has no MPTCP.
#[derive(Debug, thiserror::Error)]
pub enum MptcpMissing {
    /// Not built in.
    #[error("this kernel is built without MPTCP (CONFIG_MPTCP)")]
    Kernel,
    /// Built in and switched off.
    #[error("MPTCP is switched off on this host (switch it on with `sysctl -w net.mptcp.enabled=1`)")]
    Disabled,
    /// Another reason: a sandbox, most likely.
    #[error("no MPTCP socket can be made: {0}")]
    Refused(#[source] io::Error),
}

impl From<io::Error> for MptcpMissing {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOPROTOOPT) => Self::Disabled,
            Some(libc::EPROTONOSUPPORT | libc::EINVAL) => Self::Kernel,
            _ => Self::Refused(error),
        }
    }
}

/// Whether MPTCP sockets can be made here.
///
/// # Errors
/// [`MptcpMissing`] says what to do about it.
pub fn mptcp_available() -> Result<(), MptcpMissing> {
    stream_socket(Domain::IPV4).map(drop)
}

/// A new MPTCP socket.
pub(super) fn stream_socket(domain: Domain) -> Result<RawSocket, MptcpMissing> {
    Ok(RawSocket::new(domain, Type::STREAM, Some(Protocol::MPTCP))?)
}

/// How an MPTCP connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MptcpState {
    /// So many subflows stand. The path manager adds them once the connection does, as `ip mptcp endpoint` says.
    Subflows(usize),
    /// The other side, or something on the way, does not speak MPTCP: this is plain TCP.
    FellBack,
}

const SOL_MPTCP: libc::c_int = 284;
const MPTCP_INFO: libc::c_int = 1;
const MPTCP_TCPINFO: libc::c_int = 2;
const MPTCP_INFO_FLAG_FALLBACK: u32 = 1;
/// linux/sockios.h: bytes accepted and not sent yet.
const SIOCOUTQNSD: libc::Ioctl = 0x894B;
/// Subflows looked at: more than the kernel's path manager makes (8 beside the first).
const SUBFLOWS_MAX: usize = 16;

/// `struct mptcp_info` up to the fields read here.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct RawMptcpInfo {
    /// Without the first.
    subflows: u8,
    limits: [u8; 5],
    flags: u32,
    token: u32,
    write_seq: u64,
    snd_una: u64,
    rcv_nxt: u64,
    local_addresses: [u8; 2],
    csum_enabled: u8,
    retransmits: u32,
    bytes_retrans: u64,
    bytes_sent: u64,
    bytes_received: u64,
    /// Since 6.5.
    bytes_acked: u64,
    /// With the first, if it stands. Since 6.7.
    subflows_total: u8,
}

/// `struct mptcp_subflow_data` and the samples behind it.
#[repr(C)]
struct RawSubflows {
    size_subflow_data: u32,
    num_subflows: u32,
    size_kernel: u32,
    size_user: u32,
    samples: [RawTcpInfo; SUBFLOWS_MAX],
}

const SUBFLOW_DATA_BYTES: usize = offset_of!(RawSubflows, samples);

/// Reads an option of SOL_MPTCP into `value`; returns how many bytes the kernel knew.
///
/// # Safety
/// Any bytes must be a valid `T`.
unsafe fn read_option<T>(socket: BorrowedFd<'_>, option: libc::c_int, value: &mut T) -> io::Result<usize> {
    let mut len = size_of::<T>() as libc::socklen_t;
    let value: *mut T = value;
    // SAFETY: the kernel writes at most `len` bytes to `value`, which is that large and may hold any; the descriptor is
    // borrowed, so open.
    let outcome = unsafe { libc::getsockopt(socket.as_raw_fd(), SOL_MPTCP, option, value.cast(), &mut len) };
    if outcome == 0 { Ok(len as usize) } else { Err(io::Error::last_os_error()) }
}

fn info(socket: BorrowedFd<'_>) -> io::Result<(RawMptcpInfo, usize)> {
    let mut info = RawMptcpInfo::default();
    // SAFETY: all fields are integers.
    let len = unsafe { read_option(socket, MPTCP_INFO, &mut info) }?;
    Ok((info, len))
}

/// How the connection `socket` stands, which was made as an MPTCP one.
///
/// # Errors
/// Those of getsockopt(2).
pub fn state(socket: BorrowedFd<'_>) -> io::Result<MptcpState> {
    match info(socket) {
        Ok((info, _)) if info.flags & MPTCP_INFO_FLAG_FALLBACK != 0 => Ok(MptcpState::FellBack),
        Ok((info, len)) => {
            let total = if len > offset_of!(RawMptcpInfo, subflows_total) {
                info.subflows_total
            } else {
                info.subflows.saturating_add(1)
            };
            Ok(MptcpState::Subflows(total.into()))
        }
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(MptcpState::FellBack),
        Err(error) => Err(error),
    }
}

/// A sample of a whole MPTCP connection: the round trip of its shortest subflow, the sums of the rest.
///
/// # Errors
/// Those of getsockopt(2).
pub(super) fn tcp_info(socket: BorrowedFd<'_>) -> io::Result<TcpInfo> {
    let mut raw = RawSubflows {
        size_subflow_data: SUBFLOW_DATA_BYTES as u32,
        num_subflows: 0,
        size_kernel: 0,
        size_user: size_of::<RawTcpInfo>() as u32,
        samples: [RawTcpInfo::default(); SUBFLOWS_MAX],
    };
    // SAFETY: all fields are integers.
    match unsafe { read_option(socket, MPTCP_TCPINFO, &mut raw) } {
        // It fell back.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return TcpInfo::of(socket),
        outcome => outcome?,
    };
    let known = SUBFLOWS_MAX.min(raw.num_subflows as usize);
    let samples = || raw.samples[..known].iter().map(TcpInfo::from);
    let (info, len) = info(socket)?;
    Ok(TcpInfo {
        is_app_limited: samples().all(|sample| sample.is_app_limited),
        rtt: samples().map(|sample| sample.rtt).filter(|rtt| !rtt.is_zero()).min().unwrap_or(Duration::ZERO),
        rtt_min: samples()
            .map(|sample| sample.rtt_min)
            .filter(|rtt| !rtt.is_zero())
            .min()
            .unwrap_or(Duration::ZERO),
        out_of_order: samples().map(|sample| sample.out_of_order).sum(),
        delivery_rate: samples().map(|sample| sample.delivery_rate).sum(),
        congestion_window: samples().map(|sample| sample.congestion_window).sum(),
        segment_bytes: samples().map(|sample| sample.segment_bytes).min().unwrap_or(0),
        retransmitted: samples().map(|sample| sample.retransmitted).sum(),
        not_sent_bytes: not_sent(socket)?,
        unacknowledged: samples().map(|sample| sample.unacknowledged).sum(),
        acknowledged_bytes: if len > offset_of!(RawMptcpInfo, bytes_acked) {
            info.bytes_acked
        } else {
            samples().map(|sample| sample.acknowledged_bytes).sum()
        },
        received_bytes: samples().map(|sample| sample.received_bytes).sum(),
        sent_bytes: samples().map(|sample| sample.sent_bytes).sum(),
        since_acknowledged: samples().map(|sample| sample.since_acknowledged).min().unwrap_or_default(),
        is_recovering_from_timeout: known > 0 && samples().all(|sample| sample.is_recovering_from_timeout),
    })
}

fn not_sent(socket: BorrowedFd<'_>) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one int, which outlives the call.
    let outcome = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCOUTQNSD, &mut bytes) };
    if outcome == 0 { Ok(bytes.unsigned_abs()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests;
