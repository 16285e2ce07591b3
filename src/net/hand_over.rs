//! Leaving a port to another process: sockets that share one by SO_REUSEPORT, and none of whose connections may be lost.
//!
//! In: the listening sockets of this process, and the wish to stop. Out: how long connections may still come to them.
//! [`Listener`](super::Listener) calls it. Closing a listening socket resets what its queue holds, and what is in the middle
//! of its handshake; so new connections are first led past our sockets, by a filter of one instruction, and the old ones
//! waited for. (Since Linux 5.14 net.ipv4.tcp_migrate_req=1 makes the kernel move them; it is off by default.)

use std::{
    fs, io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

/// A handshake that had begun is finished by then: a SYN-ACK that was lost is sent again after 1 s.
const SETTLE: Duration = Duration::from_millis(1500);

/// The sockets of this process on one port.
#[derive(Debug)]
pub(super) struct Port {
    address: SocketAddr,
    /// How many there were at first: they stand before those of a process that came later.
    own: usize,
    /// How many listen still.
    open: Mutex<usize>,
    /// They were inherited: whoever gave them listens on, and so do others, on the same sockets.
    is_lent: bool,
    leaves: OnceLock<Instant>,
}

impl Port {
    pub(super) fn new(address: SocketAddr, own: usize, is_lent: bool) -> Self {
        Self { address, own, open: Mutex::new(own), is_lent, leaves: OnceLock::new() }
    }

    pub(super) fn is_lent(&self) -> bool {
        self.is_lent
    }

    /// This process stops. Connections that come to its sockets until the moment returned are its own to answer.
    pub(super) fn leave(&self, socket: &impl AsFd) -> Instant {
        *self.leaves.get_or_init(|| {
            let now = Instant::now();
            if self.is_lent || self.others(*self.open()) == 0 {
                return now;
            }
            match lead_past(socket, self.own) {
                Ok(()) => {
                    tracing::info!(address = %self.address, "new connections go to the other process on this port");
                    now + SETTLE
                }
                Err(error) => {
                    // Linux knows no such filter for MPTCP. Lanes that are reset so are dialled again at once.
                    tracing::debug!(address = %self.address, %error, "new connections cannot be led to the other process");
                    now
                }
            }
        })
    }

    /// Ends one of the sockets, which also fires an armed poll that holds the open file; not a lent one, on which others
    /// listen: its poll ends with the core.
    pub(super) fn close(&self, socket: &impl AsFd) {
        if self.is_lent {
            return;
        }
        let mut open = self.open();
        // With no more sockets than ours, the filter names none of the other process's once ours are gone, and the kernel
        // spreads connections again. With more it would name one for ever. (A SYN that comes between these two calls is
        // lost.)
        if *open == 1 && self.leaves.get().is_some() && self.others(*open) > self.own {
            detach(socket);
        }
        let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
        *open -= 1;
    }

    fn open(&self) -> MutexGuard<'_, usize> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listening sockets of other processes on this very address.
    fn others(&self, open: usize) -> usize {
        let table = if self.address.is_ipv4() { "/proc/net/tcp" } else { "/proc/net/tcp6" };
        let listening = fs::read_to_string(table).map_or(0, |rows| listening(&rows, self.address));
        listening.saturating_sub(open)
    }
}

/// Rows of /proc/net/tcp (proc(5)) whose socket listens on `address`.
fn listening(rows: &str, address: SocketAddr) -> usize {
    /// TCP_LISTEN.
    const LISTENS: &str = "0A";
    let word = |bytes: &[u8; 4]| format!("{:08X}", u32::from_ne_bytes(*bytes));
    let ip = match address.ip() {
        std::net::IpAddr::V4(ip) => word(&ip.octets()),
        std::net::IpAddr::V6(ip) => ip.octets().as_chunks().0.iter().map(word).collect(),
    };
    let local = format!("{ip}:{:04X}", address.port());
    let is_it = |row: &&str| {
        let mut fields = row.split_ascii_whitespace().skip(1);
        fields.next() == Some(local.as_str()) && fields.nth(1) == Some(LISTENS)
    };
    rows.lines().filter(is_it).count()
}

/// Leads new connections to socket number `own` of the port, counted from 0 in the order in which they listen; where there
/// is none, the kernel chooses as ever (SO_ATTACH_REUSEPORT_CBPF, socket(7)).
fn lead_past(socket: &impl AsFd, own: usize) -> io::Result<()> {
    let number = u32::try_from(own).unwrap_or(u32::MAX);
    let mut code =
        [libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k: number }];
    let program = libc::sock_fprog { len: 1, filter: code.as_mut_ptr() };
    set_option(socket, libc::SO_ATTACH_REUSEPORT_CBPF, &program)
}

fn detach(socket: &impl AsFd) {
    // What is wrong then is only the balance between the cores of the other process.
    if let Err(error) = set_option(socket, libc::SO_DETACH_REUSEPORT_BPF, &1_i32) {
        tracing::warn!(%error, "all new connections go to one core of the other process");
    }
}

fn set_option<T>(socket: &impl AsFd, name: i32, value: &T) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed for the call; `value` is a live T of the size given, which is what the option takes
    // (a program's instructions live as long as the caller's array); the kernel copies all of it.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_sockets_are_counted_by_address() {
        let one = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let at = one.local_addr().unwrap();
        let rows = fs::read_to_string("/proc/net/tcp").unwrap();
        assert_eq!(listening(&rows, at), 1);
        let v6 =
            "  0: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A 00000000";
        assert_eq!(listening(v6, "[::1]:8080".parse().unwrap()), usize::from(cfg!(target_endian = "little")));
        assert_eq!(listening(v6, "[::2]:8080".parse().unwrap()), 0);
        assert_eq!(listening(&v6.replace(" 0A ", " 01 "), "[::1]:8080".parse().unwrap()), 0);
    }
}
