//! In: one file. Out: an HTTP/1.1 server for it that speaks MPTCP, in the server's namespace.
//!
//! Called by `peers`, because no installed server listens with IPPROTO_MPTCP and the kernel's own MPTCP is a column.
//! Invariant: nothing but sendfile (std's copy from a file to a socket) touches the payload; one thread per connection,
//! and the bench opens one at a time.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use plait::lab::host::Host;
use rustix::net::Shutdown;
use rustix::time::{ClockId, clock_gettime};
use socket2::{Domain, Protocol, Socket, Type};

use crate::Outcome;

/// Connections that may wait for `accept`; the bench opens one at a time.
const BACKLOG: i32 = 16;
/// An answer ends when its last byte is in the socket, or with the client's reset, which may get lost.
const END_LIMIT: Duration = Duration::from_secs(2);

/// A running server; ends with this guard.
pub struct MptcpOrigin {
    listener: Socket,
    answers: Arc<Answers>,
}

/// The newest of the answers, each of which has a thread of its own.
#[derive(Default)]
struct Answers {
    newest: Mutex<Newest>,
    ended: Condvar,
}

#[derive(Default)]
struct Newest {
    number: u64,
    /// CPU time of its thread. None: it goes on.
    cpu_ns: Option<u64>,
}

impl Answers {
    fn newest(&self) -> MutexGuard<'_, Newest> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another begins. Returns its number.
    fn begin(&self) -> u64 {
        let mut newest = self.newest();
        *newest = Newest { number: newest.number + 1, cpu_ns: None };
        newest.number
    }

    /// That of this number has ended, which was all that the calling thread did.
    fn end(&self, number: u64) {
        let used = clock_gettime(ClockId::ThreadCPUTime);
        let mut newest = self.newest();
        if newest.number == number {
            newest.cpu_ns = Some(used.tv_sec as u64 * 1_000_000_000 + used.tv_nsec as u64);
            self.ended.notify_all();
        }
    }
}

impl MptcpOrigin {
    /// Serves `file` on `port` of every address of `host`, which is what MPTCP's announced addresses need. `cc` is the
    /// congestion control of every subflow.
    pub fn start(host: &Host, port: u16, file: PathBuf, cc: &str) -> Outcome<Self> {
        let listener = host.socket(Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP))?;
        listener.set_reuse_address(true)?;
        // A listener hands its setting on to what it accepts, subflows included.
        listener.set_tcp_congestion(cc.as_bytes())?;
        listener.bind(&std::net::SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
        listener.listen(BACKLOG)?;
        let accepting = TcpListener::from(listener.try_clone()?);
        let answers = Arc::<Answers>::default();
        let of_thread = answers.clone();
        thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                let (file, answers) = (file.clone(), of_thread.clone());
                let number = answers.begin();
                thread::spawn(move || {
                    // A client that was cut off at its deadline is no news.
                    let _ = answer(stream, &file);
                    answers.end(number);
                });
            }
        });
        Ok(Self { listener, answers })
    }

    /// CPU time of the newest answer, in nanoseconds; waits for its end. `None`: it has not noticed yet that its client has
    /// gone.
    pub fn cpu_ns(&self) -> Option<u64> {
        let goes_on = |newest: &mut Newest| newest.cpu_ns.is_none();
        let waiting = self.answers.ended.wait_timeout_while(self.answers.newest(), END_LIMIT, goes_on);
        let (newest, _) = waiting.unwrap_or_else(PoisonError::into_inner);
        newest.cpu_ns
    }
}

impl Drop for MptcpOrigin {
    fn drop(&mut self) {
        // Wakes the accepting thread, which then ends.
        let _ = rustix::net::shutdown(&self.listener, Shutdown::Both);
    }
}

fn answer(mut stream: TcpStream, file: &Path) -> Outcome<()> {
    // The head ends with an empty line; which file it asks for does not matter.
    for line in BufReader::new(&stream).lines() {
        if line?.is_empty() {
            break;
        }
    }
    let mut file = File::open(file)?;
    let bytes = file.metadata()?.len();
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\nConnection: close\r\n\r\n")?;
    std::io::copy(&mut file, &mut stream)?;
    Ok(())
}
