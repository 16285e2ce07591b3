//! Moves a range of a file to a socket without bringing it into user memory.
//!
//! In: a file and a range. Out: its bytes on the socket. Called by the root role, by the cache's hits and by an upstream
//! that reads files itself. Invariant: never more than the range, and a short count only where the file ended.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use rustix::io::Errno;

use super::{
    PayloadMove, Socket,
    pipe::{BUFFER_BYTES, give_buffer, take_buffer},
    splice_probe::payload_move,
};
use crate::exec;

/// Moved without once waiting before other tasks get their turn: a few milliseconds of memory bandwidth.
const TURN_BYTES_MAX: u64 = 16 << 20;

/// Sends `len` bytes of `file` from `offset` on and returns how many were sent: fewer than `len` only when the file
/// ended first.
///
/// # Errors
/// `TimedOut` when the peer took nothing for `stall_max`; otherwise those of the connection or of the disk.
pub async fn sendfile(
    socket: &Socket,
    file: BorrowedFd<'_>,
    offset: u64,
    len: u64,
    stall_max: Duration,
) -> io::Result<u64> {
    let mut sent = 0;
    sendfile_counting(socket, file, (offset, len), stall_max, &mut sent).await.map(|()| sent)
}

/// The same, which counts in `sent` what was sent, also where it fails.
///
/// # Errors
/// Those of [`sendfile`].
pub async fn sendfile_counting(
    socket: &Socket,
    file: BorrowedFd<'_>,
    range: (u64, u64),
    stall_max: Duration,
    sent: &mut u64,
) -> io::Result<()> {
    send_range(socket, file, range, stall_max, payload_move() == PayloadMove::Copy, sent).await
}

/// [`sendfile_counting`], told whether to copy through a buffer.
async fn send_range(
    socket: &Socket,
    file: BorrowedFd<'_>,
    (offset, len): (u64, u64),
    stall_max: Duration,
    mut copies: bool,
    sent: &mut u64,
) -> io::Result<()> {
    let mut turn = 0;
    while *sent < len {
        let position = offset + *sent;
        let max = (len - *sent).min(TURN_BYTES_MAX) as usize;
        let outcome = if copies {
            copy_some(socket, file, position, max)
        } else {
            // The kernel advances its own copy of the position.
            rustix::fs::sendfile(socket.as_fd(), file, Some(&mut position.clone()), max)
        };
        match outcome {
            Ok(0) => break,
            Ok(n) => {
                socket.took();
                *sent += n as u64;
                turn += n as u64;
            }
            Err(Errno::AGAIN) => {
                socket.writable_within(stall_max).await?;
                turn = 0;
            }
            Err(Errno::INTR) => {}
            // sendfile(2): this file system or socket cannot; the manual names read and write as the way out.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) if !copies => copies = true,
            Err(error) => return Err(error.into()),
        }
        if turn >= TURN_BYTES_MAX {
            exec::yield_now().await;
            turn = 0;
        }
    }
    Ok(())
}

/// Sends up to `max` bytes through a pooled buffer; what the socket did not take is read again later, so that a client
/// that stalls holds no buffer. 0 is the end of the file.
fn copy_some(socket: &Socket, file: BorrowedFd<'_>, position: u64, max: usize) -> Result<usize, Errno> {
    let mut buffer = take_buffer();
    buffer.resize(max.min(BUFFER_BYTES), 0);
    let outcome = rustix::io::pread(file, &mut buffer[..], position).and_then(|read| match read {
        0 => Ok(0),
        read => {
            let sent = socket.try_send(&buffer[..read], read < max);
            sent.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
        }
    });
    give_buffer(buffer);
    outcome
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read, Write},
        net::{TcpListener, TcpStream},
        thread,
    };

    use super::*;
    use crate::exec::{Backend, Config, available_cpus, run};

    /// Sends a range of `content` on a core; returns what sendfile said and what the peer received.
    fn deliver(content: &[u8], offset: u64, len: u64, copies: bool) -> (u64, Vec<u8>) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        let delivery = deliver_file(&file, offset, len, copies);
        assert_eq!(delivery.error, None);
        (delivery.sent, delivery.received)
    }

    struct Delivery {
        /// Its number.
        error: Option<i32>,
        /// As counted.
        sent: u64,
        received: Vec<u8>,
    }

    /// The same of a file.
    fn deliver_file(file: &File, offset: u64, len: u64, copies: bool) -> Delivery {
        let file = file.try_clone().unwrap();
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let reader = thread::spawn(move || {
            let mut received = Vec::new();
            TcpStream::connect(address).unwrap().read_to_end(&mut received).unwrap();
            received
        });
        let peer = listener.accept().unwrap().0;
        let (tell, told) = std::sync::mpsc::channel();
        let config = Config { backend: Backend::TokioUring, cpus: vec![available_cpus()[0]] };
        run(&config, move |_| {
            let (peer, file, tell) = (peer.try_clone().unwrap(), file.try_clone().unwrap(), tell.clone());
            async move {
                let socket = Socket::new(peer.into()).unwrap();
                let (stall_max, mut sent) = (Duration::from_secs(20), 0);
                let outcome =
                    send_range(&socket, file.as_fd(), (offset, len), stall_max, copies, &mut sent).await;
                tell.send((outcome.err().and_then(|error| error.raw_os_error()), sent)).unwrap();
            }
        })
        .unwrap();
        let (error, sent) = told.recv().unwrap();
        Delivery { error, sent, received: reader.join().unwrap() }
    }

    #[test]
    fn ranges_arrive_whole_by_sendfile_and_by_copies() {
        let content: Vec<u8> = (0..40_000_000u32).map(|n| (n ^ (n >> 8) ^ (n >> 16)) as u8).collect();
        for copies in [false, true] {
            for (offset, len) in [(0, content.len()), (1, 1), (0, 0), (65_537, 20_000_001)] {
                let (sent, received) = deliver(&content, offset as u64, len as u64, copies);
                assert_eq!(sent, len as u64, "copies: {copies}");
                assert!(received == content[offset..offset + len], "{offset}+{len}, copies: {copies}");
            }
        }
    }

    #[test]
    fn a_file_that_ends_early_gives_a_short_count() {
        for copies in [false, true] {
            assert_eq!(deliver(b"0123456789", 4, 100, copies), (6, b"456789".to_vec()), "copies: {copies}");
        }
    }

    /// The kernel's own file that cannot be read everywhere: this process's memory behind the end of a mapping. sendfile(2)
    /// takes no offset as large as an address.
    #[test]
    fn bytes_before_one_that_cannot_be_read_are_counted() {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let span = |line: &str| {
            let (start, end) = line.split(' ').next()?.split_once('-')?;
            Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
        };
        let lines: Vec<_> = maps.lines().collect();
        let before_a_gap = |pair: &&[&str]| {
            let is_file = pair[0].contains("/") && pair[0].contains(" r");
            is_file && span(pair[0]).zip(span(pair[1])).is_some_and(|(this, next)| this.1 < next.0)
        };
        let end = span(lines.windows(2).find(before_a_gap).expect("a gap")[0]).unwrap().1;
        let memory = File::open("/proc/self/mem").unwrap();
        let delivery = deliver_file(&memory, end - 4096, 8192, true);
        assert_eq!(delivery.error, Some(Errno::IO.raw_os_error()));
        assert_eq!((delivery.sent, delivery.received.len()), (4096, 4096));
    }

    #[test]
    fn a_peer_that_takes_nothing_is_given_up() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let peer = listener.accept().unwrap().0;
        let file = tempfile::tempfile().unwrap();
        // More than both socket buffers hold; a hole costs no disk.
        file.set_len(1 << 30).unwrap();
        let config = Config { backend: Backend::TokioUring, cpus: vec![available_cpus()[0]] };
        run(&config, move |_| {
            let (peer, file) = (peer.try_clone().unwrap(), file.try_clone().unwrap());
            async move {
                let socket = Socket::new(peer.into()).unwrap();
                let error =
                    sendfile(&socket, file.as_fd(), 0, 1 << 30, Duration::from_millis(80)).await.unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::TimedOut);
                assert!(error.to_string().contains("took nothing for 0.08 s"), "{error}");
            }
        })
        .unwrap();
    }
}
