//! The root: an HTTP server whose files are patterns, and which fails where the scenario says so.
//!
//! In: requests of upstreams. Out: answers. Runs in the world. Invariant: byte `n` of a file is always the same.

use std::{fmt::Write, io, net::SocketAddr, rc::Rc, sync::LazyLock};

use super::scenario::{File, Framing, RootFault, Scenario};
use crate::{
    exec::{
        self,
        on_simulator::{WORLD, spawn_in},
    },
    net::{
        Socket,
        simulated::{Link, Network},
    },
};

/// Where the root is.
pub(super) const ADDRESS: &str = "10.0.3.1:8000";
/// Written at once.
const PIECE_BYTES: u64 = 48 << 10;

/// All files are parts of this: 12 MiB in which no stretch is like another.
static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = vec![0; 12 << 20];
    fastrand::Rng::with_seed(1).fill(&mut bytes);
    bytes
});

/// Bytes `start..start + len` of file number `file`.
pub(super) fn pattern(file: usize, start: u64, len: usize) -> &'static [u8] {
    let at = file * 1_000_003 + start as usize;
    &BYTES[at..at + len]
}

/// See the module's description.
pub(super) struct Root {
    scenario: Rc<Scenario>,
}

impl Root {
    /// Listens on [`ADDRESS`].
    pub(super) fn start(network: &Network, scenario: &Rc<Scenario>) {
        let root = Rc::new(Self { scenario: scenario.clone() });
        let link = Link::new(std::time::Duration::from_micros(200), 200e6, 64 << 10);
        let accept = move |socket: Socket, _: SocketAddr| {
            let root = root.clone();
            spawn_in(WORLD, async move {
                // Whatever went wrong is seen at the other end.
                let _ = root.serve(&socket).await;
            });
        };
        network.listen(ADDRESS.parse().unwrap(), &link, Some(Rc::new(accept)));
    }

    async fn serve(&self, socket: &Socket) -> io::Result<()> {
        loop {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut bytes = [0; 1];
                if socket.recv_some(&mut bytes).await? == 0 {
                    return Ok(());
                }
                head.push(bytes[0]);
            }
            if !self.answer(socket, &String::from_utf8(head).unwrap().to_ascii_lowercase()).await? {
                return Ok(());
            }
        }
    }

    /// Whether the connection goes on.
    async fn answer(&self, socket: &Socket, request: &str) -> io::Result<bool> {
        let number: usize =
            request.strip_prefix("get /").unwrap().split(' ').next().unwrap().parse().unwrap();
        let file = &self.scenario.files[number];
        let range =
            request.lines().find_map(|line| line.strip_prefix("range: bytes=")).filter(|_| file.takes_ranges);
        let (first, last) = match range.and_then(|range| range.split_once('-')) {
            Some((first, last)) => (first.parse().unwrap(), last.parse::<u64>().unwrap()),
            None => (0, file.len.wrapping_sub(1)),
        };
        let (start, end) = if file.len == 0 { (0, 0) } else { (first, last + 1) };
        socket.send_all(head(file, range.is_some(), start, end).as_bytes(), true).await?;
        let mut at = start;
        while at < end {
            let until = match file.fault {
                RootFault::Pause(position, _)
                | RootFault::Truncate(position)
                | RootFault::Reset(position)
                    if position > at =>
                {
                    position
                }
                _ => u64::MAX,
            };
            let piece = (end - at).min(PIECE_BYTES).min(until - at);
            let bytes = pattern(number, at, piece as usize);
            if file.framing == Framing::Chunked {
                socket.send_all(format!("{piece:x}\r\n").as_bytes(), true).await?;
            }
            socket.send_all(bytes, false).await?;
            if file.framing == Framing::Chunked {
                socket.send_all(b"\r\n", true).await?;
            }
            at += piece;
            match file.fault {
                RootFault::Pause(position, time) if position == at => exec::sleep(time).await,
                RootFault::Truncate(position) if position == at => return Ok(false),
                RootFault::Reset(position) if position == at => {
                    socket.abort();
                    return Ok(false);
                }
                _ => {}
            }
            if !file.pause.is_zero() {
                exec::sleep(file.pause).await;
            }
        }
        if file.framing == Framing::Chunked {
            socket.send_all(b"0\r\n\r\n", false).await?;
        }
        Ok(file.framing != Framing::UntilClose)
    }
}

fn head(file: &File, is_range: bool, start: u64, end: u64) -> String {
    let mut head = String::from(if is_range { "HTTP/1.1 206 OK\r\n" } else { "HTTP/1.1 200 OK\r\n" });
    if is_range {
        let _ = write!(head, "Content-Range: bytes {start}-{}/{}\r\n", end - 1, file.len);
    }
    if file.has_etag {
        head += "ETag: \"v\"\r\n";
    }
    match file.framing {
        Framing::Fixed => {
            let _ = write!(head, "Content-Length: {}\r\n", end - start);
        }
        Framing::Chunked => head += "Transfer-Encoding: chunked\r\n",
        Framing::UntilClose => head += "Connection: close\r\n",
    }
    head + "\r\n"
}
