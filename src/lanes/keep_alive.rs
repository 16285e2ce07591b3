//! Finds out lanes of which only one end is left.
//!
//! A host that has lost its process, or was started anew, while the path was silent could not say so: its FIN or reset was lost,
//! and is not repeated for long. It does say so when it is asked. Called for new lanes by the pool and by the upstream.
//! Invariant: an end that waits without anything to send does not wait for ever.

use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

use crate::net::Socket;

/// Where a transfer waits: as often as TCP repeats what was not acknowledged on lanes, so that a silent lane is found out as
/// soon as a busy one.
pub(crate) const ASK_OFTEN: Duration = Duration::from_secs(1);
/// Where only a descriptor is held: the downstream's pings, every 15 s, leave nothing to ask on lanes that are idle and well.
pub(crate) const ASK_SELDOM: Duration = Duration::from_secs(20);
/// A host that answers nothing is given up after a quarter of a minute (or five): as long as TCP's usual 15 tries take on lanes.
const TRIES: u32 = 14;

/// Has the kernel ask the peer for a sign of life each time the connection was silent for `pause`.
pub(crate) fn keep_alive(socket: &Socket, pause: Duration) {
    let keepalive = TcpKeepalive::new().with_time(pause).with_interval(pause).with_retries(TRIES);
    // Kernels that cannot for MPTCP ask after two hours.
    let _ = SockRef::from(socket).set_tcp_keepalive(&keepalive);
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream},
        sync::Arc,
    };

    use super::*;
    use crate::exec::{self, Backend, Config, available_cpus};

    #[test]
    fn the_kernel_asks() {
        let listener = Arc::new(TcpListener::bind(("127.0.0.1", 0)).unwrap());
        let cpus = available_cpus()[..1].to_vec();
        exec::run(&Config { backend: Backend::TokioUring, cpus }, move |_| {
            let listener = listener.clone();
            async move {
                let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                let socket = Socket::new(near.into()).unwrap();
                keep_alive(&socket, ASK_OFTEN);
                let socket = SockRef::from(&socket);
                assert!(socket.keepalive().unwrap());
                assert_eq!(socket.tcp_keepalive_time().unwrap(), ASK_OFTEN);
                assert_eq!(socket.tcp_keepalive_interval().unwrap(), ASK_OFTEN);
            }
        })
        .unwrap();
    }
}
