//! Finds out once whether this kernel (or sandbox) splices between TCP sockets and pipes.
//!
//! Out: [`payload_move`], which the start of every role logs, and per socket whether its protocol can be spliced.

use std::{
    io,
    io::Write,
    net::{TcpListener, TcpStream},
    os::fd::BorrowedFd,
    sync::OnceLock,
};

use rustix::pipe::{SpliceFlags, pipe, splice};
use socket2::SockRef;

/// How payload moves through this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadMove {
    /// By splice(2) and sendfile(2); it never enters user memory.
    Splice,
    /// Through pooled buffers, because splice was refused or `PLAIT_NO_SPLICE` is set.
    Copy,
}

/// The answer of the probe, made at the first call.
pub fn payload_move() -> PayloadMove {
    static ANSWER: OnceLock<PayloadMove> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        if std::env::var_os("PLAIT_NO_SPLICE").is_some_and(|value| value != "0") {
            tracing::info!("payload is copied through buffers: PLAIT_NO_SPLICE is set");
            return PayloadMove::Copy;
        }
        match probe() {
            Ok(()) => {
                tracing::info!("payload moves by splice");
                PayloadMove::Splice
            }
            Err(error) => {
                tracing::warn!(%error, "payload is copied through buffers: splice was refused (expect 4 times the CPU)");
                PayloadMove::Copy
            }
        }
    })
}

/// Sends one byte socket → pipe → socket over loopback.
fn probe() -> io::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let mut near = TcpStream::connect(listener.local_addr()?)?;
    let far = listener.accept()?.0;
    let (read, write) = pipe()?;
    near.write_all(b"x")?;
    if splice(&far, None, &write, None, 1, SpliceFlags::MOVE)? == 1
        && splice(&read, None, &far, None, 1, SpliceFlags::MOVE)? == 1
    {
        return Ok(());
    }
    Err(io::Error::other("splice moved nothing"))
}

/// Whether `socket` itself can be spliced: plain TCP can; MPTCP sockets get their answer with MPTCP lanes.
pub(super) fn splices(socket: BorrowedFd<'_>) -> bool {
    !matches!(SockRef::from(&socket).protocol(), Ok(Some(socket2::Protocol::MPTCP)))
}
