//! Receives behind what a buffer holds, without writing zeroes there first.
//!
//! A leaf module with `unsafe`: `BytesMut` cannot be told safely that a part of its spare room was filled. Zeroing all of
//! it first would write 256 KiB for each packet where packets come one by one.

use std::{io, os::fd::BorrowedFd};

use bytes::BytesMut;
use rustix::net::{RecvFlags, recv};

/// Appends up to `max` received bytes, as far as `buffer` has room; 0 is the end of the stream.
pub(super) fn receive(socket: BorrowedFd<'_>, buffer: &mut BytesMut, max: usize) -> io::Result<usize> {
    let room = buffer.spare_capacity_mut();
    let max = max.min(room.len());
    let ((filled, _), _) = recv(socket, &mut room[..max], RecvFlags::DONTWAIT)?;
    let (received, len) = (filled.len(), buffer.len());
    // SAFETY: the kernel has filled the first `received` bytes of the spare room, which begins at `len`.
    unsafe { buffer.set_len(len + received) };
    Ok(received)
}
