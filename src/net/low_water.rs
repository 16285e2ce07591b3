//! When received bytes make a socket readable.
//!
//! A leaf module with `unsafe`: this option has no safe wrapper.

use std::{
    io,
    mem::size_of,
    os::fd::{AsRawFd, BorrowedFd},
};

/// Data make the socket readable only from `bytes` on (SO_RCVLOWAT, socket(7)); the end of the stream, an error or a
/// receive window that closes do so at once.
pub(super) fn set_low_water(socket: BorrowedFd<'_>, bytes: libc::c_int) -> io::Result<()> {
    let (value, len) = (std::ptr::from_ref(&bytes).cast(), size_of::<libc::c_int>() as libc::socklen_t);
    // SAFETY: the kernel reads `len` bytes from `value`, an integer that long, and keeps no pointer.
    let outcome =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVLOWAT, value, len) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
