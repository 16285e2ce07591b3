//! Finds out connections of which only one end is left.
//!
//! A host that has lost its process, or was started anew, while the path was silent could not say so: its FIN or reset was lost,
//! and is not repeated for long. It does say so when it is asked. Called through [`Socket::keep_alive`](super::Socket::keep_alive)
//! for both ends of every lane. Invariant: an end that waits without anything to send does not wait for ever.

use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

/// Where a transfer waits: as often as TCP repeats what was not acknowledged on lanes, so that a silent lane is found out as
/// soon as a busy one.
pub(crate) const ASK_OFTEN: Duration = Duration::from_secs(1);
/// Where only descriptors are held: the downstream's pings, every 15 s, leave nothing to ask on lanes that are idle and well.
pub(crate) const ASK_SELDOM: Duration = Duration::from_secs(20);
/// A host that answers nothing is given up after a quarter of a minute (or five): as long as TCP's usual 15 tries take on lanes.
const TRIES: u32 = 14;

/// tcp(7): TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT.
pub(super) fn ask(socket: &SockRef<'_>, pause: Duration) {
    let keepalive = TcpKeepalive::new().with_time(pause).with_interval(pause).with_retries(TRIES);
    if let Err(error) = socket.set_tcp_keepalive(&keepalive) {
        // Kernels that cannot for MPTCP ask after two hours.
        tracing::debug!(%error, "lanes whose other end has vanished without a word are found out late");
    }
}
