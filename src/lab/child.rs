//! Work that only a single-threaded process may do: entering a user namespace, and making things in a network namespace.
//!
//! In: a closure. Out: the descriptors that it made, by SCM_RIGHTS. Called by `host` and `store`. Invariant: the child
//! ends with the closure, is reaped, and never returns into the caller's code.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    io::retry_on_intr,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
    },
    process::{Pid, WaitOptions, waitpid},
};

/// Descriptors that a child hands over at most.
pub const FDS_MAX: usize = 2;
/// Longest text of an error; a longer one is cut.
const TEXT_MAX: usize = 512;

/// Runs `work` in a forked child and returns the descriptors that it makes there.
///
/// `work` runs in a copy of a process whose other threads do not exist: it may make system calls, but must wait for no
/// lock that another thread could have held.
///
/// # Errors
/// What `work` returned (as text, with the kind), or no process or socket could be made.
pub fn run(work: impl FnOnce() -> io::Result<[Option<OwnedFd>; FDS_MAX]>) -> io::Result<Vec<OwnedFd>> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    // SAFETY: the child calls `work`, which keeps to what a forked child may do (see above), sends, and leaves by
    // _exit: no destructor, no output buffer and no exit handler of the parent runs twice.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let sent = answer(&theirs, work());
            // SAFETY: ends the child; nothing else is affected.
            unsafe { libc::_exit(i32::from(sent.is_err())) }
        }
        pid => {
            drop(theirs);
            let received = receive(&ours);
            retry_on_intr(|| waitpid(Pid::from_raw(pid), WaitOptions::empty()))?;
            received
        }
    }
}

fn answer(socket: &OwnedFd, made: io::Result<[Option<OwnedFd>; FDS_MAX]>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    match &made {
        Ok([None, _]) => {
            sendmsg(socket, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL)?;
        }
        Ok([Some(first), second]) => {
            let both = [first.as_fd(), second.as_ref().unwrap_or(first).as_fd()];
            let count = 1 + usize::from(second.is_some());
            ancillary.push(SendAncillaryMessage::ScmRights(&both[..count]));
            sendmsg(socket, &[IoSlice::new(&[0])], &mut ancillary, SendFlags::NOSIGNAL)?;
        }
        Err(error) => {
            // Success is one byte, an error is its number (0: none) and its text.
            let number = error.raw_os_error().unwrap_or(0).to_ne_bytes();
            let text = error.to_string();
            let text = &text.as_bytes()[..text.len().min(TEXT_MAX)];
            sendmsg(
                socket,
                &[IoSlice::new(&number), IoSlice::new(text)],
                &mut ancillary,
                SendFlags::NOSIGNAL,
            )?;
        }
    }
    Ok(())
}

fn receive(socket: &OwnedFd) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut text = [0; size_of::<i32>() + TEXT_MAX];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got =
        retry_on_intr(|| recvmsg(socket, &mut [IoSliceMut::new(&mut text)], &mut ancillary, flags))?.bytes;
    match got {
        0 => Err(io::Error::other("the child ended without an answer")),
        1 => Ok(ancillary
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(fds) => Some(fds),
                _ => None,
            })
            .flatten()
            .collect()),
        _ => {
            let (number, text) = text[..got].split_at(size_of::<i32>().min(got));
            match number.try_into().map(i32::from_ne_bytes) {
                Ok(number) if number != 0 => Err(io::Error::from_raw_os_error(number)),
                _ => Err(io::Error::other(String::from_utf8_lossy(text).into_owned())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read};

    use super::*;

    #[test]
    fn descriptors_and_errors_cross() {
        assert_eq!(run(|| Ok([None, None])).unwrap().len(), 0);
        let made = run(|| Ok([Some(File::open("/proc/version")?.into()), None])).unwrap();
        let mut text = String::new();
        File::from(made.into_iter().next().unwrap()).read_to_string(&mut text).unwrap();
        assert!(text.contains("Linux"), "{text}");
        let error = run(|| Err(io::Error::from_raw_os_error(libc::EPERM))).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        let error = run(|| Err(io::Error::other("no such luck"))).unwrap_err();
        assert_eq!(error.to_string(), "no such luck");
    }
}
