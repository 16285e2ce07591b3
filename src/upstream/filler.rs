//! Bytes of no meaning, for downstreams that warm their lanes. See [`wire::filler`](crate::wire::filler).
//!
//! In: how many. Out: an answer with so many zeros, from a file in memory that is one hole. Called by `fetch`. Invariant: the root
//! hears nothing of it.

use std::{io, os::fd::OwnedFd, sync::OnceLock};

use ::http::{Method, StatusCode};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::{fetch::Answer, transfer::FileBody};
use crate::{
    http::problem::{Problem, Side},
    wire::filler::FILLER_BYTES_MAX,
};

/// The answer to who asked for `len` bytes, [`FILLER_BYTES_MAX`] at most.
pub(super) fn answer(len: u64) -> Answer {
    match hole() {
        Ok(file) => {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {len}\r\n\r\n");
            Answer::File(head.into_bytes(), FileBody { file, start: 0, len })
        }
        Err(error) => {
            let problem =
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, Side::Upstream, format!("no filler: {error}"));
            Answer::problem(&problem, &Method::GET)
        }
    }
}

/// One for the process: older kernels give it pages as it is read.
fn hole() -> io::Result<OwnedFd> {
    static HOLE: OnceLock<OwnedFd> = OnceLock::new();
    if let Some(hole) = HOLE.get() {
        return hole.try_clone();
    }
    let made = memfd_create("plait-filler", MemfdFlags::CLOEXEC)?;
    ftruncate(&made, FILLER_BYTES_MAX)?;
    HOLE.get_or_init(|| made).try_clone()
}
