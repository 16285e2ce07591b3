//! In: one file. Out: an HTTP/1.1 server for it that speaks MPTCP, in the server's namespace.
//!
//! Called by `peers`, because no installed server listens with IPPROTO_MPTCP and the kernel's own MPTCP is a column.
//! Invariant: nothing but sendfile (std's copy from a file to a socket) touches the payload; one thread per connection,
//! and the bench opens one at a time.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;

use plait::lab::host::Host;
use rustix::net::Shutdown;
use socket2::{Domain, Protocol, Socket, Type};

use crate::Outcome;

/// Connections that may wait for `accept`; the bench opens one at a time.
const BACKLOG: i32 = 16;

/// A running server; ends with this guard.
pub struct MptcpOrigin {
    listener: Socket,
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
        thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                let file = file.clone();
                thread::spawn(move || {
                    // A client that was cut off at its deadline is no news.
                    let _ = answer(stream, &file);
                });
            }
        });
        Ok(Self { listener })
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
