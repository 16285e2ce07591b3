//! How long TCP waits before it tries a silent path again.
//!
//! A leaf module with `unsafe`: this option has no safe wrapper.

use std::{
    io,
    mem::size_of,
    os::fd::{AsRawFd, BorrowedFd},
};

/// linux/tcp.h, since Linux 6.15; libc does not know it yet.
const TCP_RTO_MAX_MS: libc::c_int = 44;
/// The least that the kernel takes.
const RETRANSMISSION_TIMEOUT_MAX_MS: libc::c_int = 1000;

/// Retransmission timeouts of the connection double up to a second, and not to two minutes: a path that was silent is used again
/// at most a second after it is back. With the usual 15 tries (net.ipv4.tcp_retries2) a silent connection is given up after 14 s.
///
/// # Errors
/// Those of setsockopt(2): the kernel does not know the option. A silent path is tried again after as long as it was silent, then.
pub(super) fn bound(socket: BorrowedFd<'_>) -> io::Result<()> {
    let milliseconds = RETRANSMISSION_TIMEOUT_MAX_MS;
    let (value, len) =
        (std::ptr::from_ref(&milliseconds).cast(), size_of::<libc::c_int>() as libc::socklen_t);
    // SAFETY: the kernel reads `len` bytes from `value`, an integer that long, and keeps no pointer.
    let outcome =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, TCP_RTO_MAX_MS, value, len) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
