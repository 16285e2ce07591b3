//! Every way through this room on MPTCP sockets, on sockets that fell back, and on TCP sockets of an MPTCP listener; on
//! both executors. Where the kernel has no MPTCP a note says so.

use std::{
    cell::Cell,
    io::{Read, Seek, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::fd::AsFd,
    thread,
};

use super::*;
use crate::{
    exec::{self, Backend, Config},
    net::{Congestion, Leg, Listener, Socket, pump, sendfile},
    wire::route::Transport::{self, Mptcp, Tcp},
};

#[path = "../../../tests/missing/mod.rs"]
mod missing;

const PATIENCE: Duration = Duration::from_secs(20);

fn on_each<Fut: Future<Output = ()> + 'static>(entry: fn() -> Fut) {
    if let Err(lacking) = mptcp_available() {
        return missing::skipped(lacking);
    }
    for backend in [Backend::TokioUring, Backend::Glommio] {
        let config = Config { backend, cpus: vec![exec::available_cpus()[0]] };
        exec::run(&config, move |_| entry()).unwrap_or_else(|error| panic!("{error}"));
    }
}

/// A connection that was dialled by `dial` and accepted by a listener for `listen`: both ends.
async fn connection(listen: Transport, dial: Transport) -> (Socket, Socket) {
    let here = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let (mut listeners, address) = Listener::bind(here, 1, listen).unwrap();
    let listener = Listener::new(listeners.remove(0));
    let dialled = Socket::connect(address, dial, &Congestion::Auto(Leg::Lane), PATIENCE).await.unwrap();
    let (_runs, mut stopping) = tokio::sync::watch::channel(false);
    let accepted = listener.next(&mut stopping).await.unwrap();
    // MPTCP is agreed on with the first data (RFC 8684 section 3.1).
    dialled.send_all(b"x", false).await.unwrap();
    accepted.recv_exact(&mut [0]).await.unwrap();
    accepted.send_all(b"y", false).await.unwrap();
    dialled.recv_exact(&mut [0]).await.unwrap();
    (dialled, accepted)
}

/// The same connection with blocking calls, for a thread that plays the peer.
fn blocking(socket: &Socket) -> TcpStream {
    let stream = TcpStream::from(socket.as_fd().try_clone_to_owned().unwrap());
    // The mode belongs to the open file: `socket` must not be used any more.
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

#[test]
fn the_kernel_says_what_became_of_a_connection() {
    on_each(|| async {
        let (dialled, accepted) = connection(Mptcp, Mptcp).await;
        assert_eq!(dialled.mptcp(), Some(MptcpState::Subflows(1)));
        assert_eq!(accepted.mptcp(), Some(MptcpState::Subflows(1)));
        let (dialled, accepted) = connection(Tcp, Mptcp).await;
        assert_eq!(dialled.mptcp(), Some(MptcpState::FellBack));
        assert_eq!(accepted.mptcp(), None);
        // A plain peer costs an MPTCP listener nothing: it is a TCP socket, which splices.
        let (dialled, accepted) = connection(Mptcp, Tcp).await;
        assert_eq!((dialled.mptcp(), accepted.mptcp()), (None, None));
        assert!(accepted.splices());
    });
}

#[test]
fn a_relay_moves_every_byte_between_all_kinds() {
    on_each(|| async {
        let kinds = [(Tcp, Tcp), (Mptcp, Mptcp), (Tcp, Mptcp), (Mptcp, Tcp)];
        let sent = pattern(3_000_000);
        for (from, to) in kinds.iter().flat_map(|from| kinds.map(|to| (*from, to))) {
            let (source, near) = connection(from.0, from.1).await;
            let (far, sink) = connection(to.0, to.1).await;
            let (mut writer, mut reader) = (blocking(&source), blocking(&sink));
            let copy = sent.clone();
            let writing = thread::spawn(move || {
                writer.write_all(&copy).unwrap();
                writer.shutdown(std::net::Shutdown::Write).unwrap();
            });
            let reading = thread::spawn(move || {
                let mut all = Vec::new();
                reader.read_to_end(&mut all).unwrap();
                all
            });
            let moved = Cell::new(0);
            pump(&near, &far, &moved).await.unwrap();
            let got = exec::blocking(move || {
                writing.join().unwrap();
                reading.join().unwrap()
            })
            .await;
            assert!(got == sent && moved.get() == sent.len() as u64, "{from:?} to {to:?}: the bytes differ");
        }
    });
}

#[test]
fn files_arrive_whole() {
    on_each(|| async {
        let content = pattern(5_000_000);
        for listen in [Mptcp, Tcp] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&content).unwrap();
            file.rewind().unwrap();
            let (dialled, accepted) = connection(listen, Mptcp).await;
            let mut reader = blocking(&accepted);
            let reading = thread::spawn(move || {
                let mut all = vec![0; 5_000_000];
                reader.read_exact(&mut all).unwrap();
                all
            });
            let len = content.len() as u64;
            assert_eq!(sendfile(&dialled, file.as_fd(), 0, len, PATIENCE).await.unwrap(), len);
            assert!(exec::blocking(move || reading.join().unwrap()).await == content, "{listen:?}");
        }
    });
}

#[test]
fn a_sample_covers_the_whole_connection() {
    on_each(|| async {
        for listen in [Mptcp, Tcp] {
            let (dialled, accepted) = connection(listen, Mptcp).await;
            dialled.send_all(&[0; 999], false).await.unwrap();
            accepted.recv_exact(&mut [0; 999]).await.unwrap();
            // The acknowledgement comes with the answer.
            accepted.send_all(b"z", false).await.unwrap();
            dialled.recv_exact(&mut [0]).await.unwrap();
            let info = dialled.tcp_info().unwrap();
            assert!(info.rtt > Duration::ZERO && info.congestion_window > 0, "{info:?}");
            // TCP counts the SYN, too.
            assert!((1000..=1001).contains(&info.acknowledged_bytes), "{info:?}");
            assert_eq!(info.not_sent_bytes, 0, "{info:?}");
        }
    });
}

/// Late binding stands on this: TCP_NOTSENT_LOWAT, and poll that obeys it.
#[test]
fn a_lane_that_binds_late_has_room_only_for_little() {
    on_each(|| async {
        for listen in [Mptcp, Tcp] {
            let (dialled, accepted) = connection(listen, Mptcp).await;
            dialled.bind_late(0);
            let mut sent = 0;
            while dialled.has_room().unwrap() {
                sent += dialled.try_send(&[0; 16 << 10], false).unwrap();
                assert!(sent < 64 << 20, "it never has enough");
            }
            let waiting = dialled.tcp_info().unwrap().not_sent_bytes;
            assert!(waiting < 512 << 10, "{waiting} bytes wait to be sent");
            // And it has room again once the peer takes something.
            let mut left = sent;
            while left > 0 {
                left -= accepted.discard(left).await.unwrap();
            }
            exec::timeout(PATIENCE, dialled.ready(exec::Interest::Write)).await.unwrap().unwrap();
            assert!(dialled.has_room().unwrap());
        }
    });
}

#[test]
fn peek_discard_and_the_end_are_tcps() {
    on_each(|| async {
        let (dialled, accepted) = connection(Mptcp, Mptcp).await;
        dialled.send_all(b"0123456789", false).await.unwrap();
        let mut look = [0; 4];
        assert_eq!(accepted.peek(&mut look).await.unwrap(), 4);
        assert_eq!(accepted.discard(3).await.unwrap(), 3);
        accepted.recv_exact(&mut look).await.unwrap();
        assert_eq!(&look, b"3456");
        assert!(!accepted.is_quiet());
        assert_eq!(accepted.discard(100).await.unwrap(), 3);
        assert!(accepted.is_quiet());
        dialled.finish();
        assert_eq!(accepted.discard(1).await.unwrap(), 0);
        accepted.send_all(b"after", false).await.unwrap();
        dialled.recv_exact(&mut look).await.unwrap();
        assert_eq!(&look, b"afte");
    });
}

#[test]
fn an_abort_is_seen_as_a_reset() {
    on_each(|| async {
        for listen in [Mptcp, Tcp] {
            let (dialled, accepted) = connection(listen, Mptcp).await;
            assert!(
                exec::timeout(Duration::from_millis(5), dialled.ready(exec::Interest::Read)).await.is_err()
            );
            dialled.send_all(b"part", false).await.unwrap();
            dialled.abort();
            drop(dialled);
            let mut peer = blocking(&accepted);
            let outcome = exec::blocking(move || {
                let mut got = Vec::new();
                peer.read_to_end(&mut got).map(|_| got)
            })
            .await;
            assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::ConnectionReset, "{listen:?}");
        }
    });
}

#[test]
fn connect_names_the_address_that_refuses() {
    on_each(|| async {
        let free = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let refused = Socket::connect(free, Mptcp, &Congestion::Auto(Leg::Lane), PATIENCE).await;
        let text = refused.err().expect("nobody listens").to_string();
        assert!(text.contains(&free.to_string()) && text.contains("refused"), "{text}");
    });
}

#[test]
fn what_is_missing_is_named() {
    let text = |number| MptcpMissing::from(io::Error::from_raw_os_error(number)).to_string();
    assert!(text(libc::ENOPROTOOPT).contains("net.mptcp.enabled=1"));
    assert!(text(libc::EPROTONOSUPPORT).contains("CONFIG_MPTCP"));
    assert!(text(libc::EPERM).contains("permitted"));
}
