//! Throws received bytes away inside the kernel.
//!
//! A leaf module with `unsafe`: a receive without a buffer has no safe wrapper.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

/// Drops up to `len` received bytes without copying them (tcp(7): MSG_TRUNC). Returns 0 at end of file.
pub(super) fn discard(socket: BorrowedFd<'_>, len: usize) -> io::Result<usize> {
    #[cfg(test)]
    if super::simulated::is_running() {
        return super::simulated::discard(socket, len);
    }
    let flags = libc::MSG_TRUNC | libc::MSG_DONTWAIT;
    // SAFETY: with MSG_TRUNC a TCP socket writes nothing to the buffer, so a null one is never touched.
    let dropped = unsafe { libc::recv(socket.as_raw_fd(), std::ptr::null_mut(), len, flags) };
    usize::try_from(dropped).map_err(|_| io::Error::last_os_error())
}
