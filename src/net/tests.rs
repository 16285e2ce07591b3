//! Bytes survive every way through this room, on both executors.

use std::{
    cell::Cell,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    thread,
    time::{Duration, Instant},
};

use socket2::SockRef;

use super::*;
use crate::{
    exec::{self, Backend, Interest},
    wire::route::Transport,
};

fn on_each<Fut: Future<Output = ()> + 'static>(entry: fn() -> Fut) {
    for backend in [Backend::TokioUring, Backend::Glommio] {
        let cpus = vec![exec::available_cpus()[0]];
        exec::run(&exec::Config { backend, cpus }, move |_| entry())
            .unwrap_or_else(|error| panic!("{error}"));
    }
}

/// A connected pair: ours, and a blocking one for a thread that plays the peer.
fn pair() -> (Socket, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    (Socket::new(OwnedFd::from(listener.accept().unwrap().0)).unwrap(), peer)
}

/// Bytes that differ at every offset a mistake could shift them by.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

#[test]
fn pump_moves_every_byte_and_ends() {
    on_each(|| async {
        let (near, mut writer) = pair();
        let (far, mut reader) = pair();
        let sent = pattern(20_000_000);
        let copy = sent.clone();
        let writing = thread::spawn(move || writer.write_all(&copy).unwrap());
        let reading = thread::spawn(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).unwrap();
            all
        });
        let moved = Cell::new(0);
        pump(&near, &far, &moved).await.unwrap();
        assert_eq!(moved.get(), sent.len() as u64);
        let got = exec::blocking(move || {
            writing.join().unwrap();
            reading.join().unwrap()
        })
        .await;
        assert!(got == sent, "the bytes differ");
    });
}

#[test]
fn a_conduit_of_either_kind_keeps_order_and_count() {
    on_each(|| async {
        for splices in [true, false] {
            let (near, mut writer) = pair();
            let fd = near.as_fd().try_clone_to_owned().unwrap();
            let near = Socket::on_this_core(shared::Shared::new(fd, Transport::Tcp, splices));
            let (far, mut reader) = pair();
            let sent = pattern(300_000);
            writer.write_all(&sent).unwrap();
            drop(writer);
            let mut conduit = Conduit::new();
            assert_eq!(conduit.put(b"head").unwrap(), 4);
            let mut total = 4;
            loop {
                match conduit.fill(&near, 70_001).unwrap() {
                    Filled::Bytes(n) => {
                        assert!(n <= 70_001);
                        total += n;
                    }
                    Filled::SourceEmpty => near.ready(Interest::Read).await.unwrap(),
                    Filled::Full | Filled::EndOfFile if conduit.is_empty() => break,
                    Filled::Full | Filled::EndOfFile => {}
                }
                while !conduit.is_empty() {
                    if conduit.drain(&far, 9_999).unwrap() == Drained::Blocked {
                        far.ready(Interest::Write).await.unwrap();
                    }
                }
            }
            assert_eq!(total, 4 + sent.len());
            drop(far);
            let mut got = Vec::new();
            reader.read_to_end(&mut got).unwrap();
            assert!(&got[..4] == b"head" && got[4..] == sent[..], "the bytes differ (splices: {splices})");
        }
    });
}

/// A pipe's slots run out before its bytes: one slot per segment, however small.
#[test]
fn a_pipe_full_of_small_segments_says_so() {
    on_each(|| async {
        let (near, mut writer) = UnixStream::pair().unwrap();
        let near = Socket::new(near.into()).unwrap();
        let mut conduit = Conduit::new();
        let mut inside = 0;
        let full = loop {
            writer.write_all(b"x").unwrap();
            match conduit.fill(&near, 1 << 20).unwrap() {
                Filled::Bytes(n) => inside += n,
                other => break other,
            }
        };
        assert_eq!((full, conduit.len()), (Filled::Full, inside));
        assert!(inside < 1 << 20, "{inside}");
        let (far, mut reader) = pair();
        while !conduit.is_empty() {
            conduit.drain(&far, usize::MAX).unwrap();
        }
        assert_eq!(conduit.fill(&near, 1 << 20).unwrap(), Filled::Bytes(1));
        let mut got = vec![0; inside];
        reader.read_exact(&mut got).unwrap();
    });
}

#[test]
fn a_conduit_goes_to_a_file() {
    on_each(|| async {
        let (near, mut writer) = pair();
        let sent = pattern(100_000);
        writer.write_all(&sent).unwrap();
        drop(writer);
        let mut file = tempfile::tempfile().unwrap();
        let mut offset = 7;
        let mut conduit = Conduit::new();
        loop {
            match conduit.fill(&near, usize::MAX >> 1).unwrap() {
                Filled::Bytes(_) => {
                    offset = conduit.drain_to_file(file.as_fd(), offset).unwrap();
                }
                Filled::SourceEmpty => near.ready(Interest::Read).await.unwrap(),
                Filled::EndOfFile | Filled::Full => break,
            }
        }
        assert_eq!(offset, 7 + sent.len() as u64);
        let mut got = Vec::new();
        file.read_to_end(&mut got).unwrap();
        assert!(got[..7] == [0; 7] && got[7..] == sent[..]);
    });
}

#[test]
fn pipes_come_back_empty() {
    on_each(|| async {
        let (near, mut writer) = pair();
        writer.write_all(b"secret of another transfer").unwrap();
        near.ready(Interest::Read).await.unwrap();
        let mut conduit = Conduit::new();
        conduit.fill(&near, 100).unwrap();
        // Dropped with bytes inside: its pipe must not be seen again.
        drop(conduit);
        writer.write_all(b"abc").unwrap();
        near.ready(Interest::Read).await.unwrap();
        let mut conduit = Conduit::new();
        assert_eq!(conduit.fill(&near, 100).unwrap(), Filled::Bytes(3));
        let (far, mut reader) = pair();
        conduit.drain(&far, 100).unwrap();
        drop(far);
        let mut got = Vec::new();
        reader.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"abc");
    });
}

#[test]
fn discard_peek_and_recv_stay_in_step() {
    on_each(|| async {
        let (near, mut writer) = pair();
        writer.write_all(b"0123456789").unwrap();
        let mut look = [0; 4];
        assert_eq!(near.peek(&mut look).await.unwrap(), 4);
        assert_eq!(near.discard(3).await.unwrap(), 3);
        near.recv_exact(&mut look).await.unwrap();
        assert_eq!(&look, b"3456");
        assert!(!near.is_quiet());
        assert_eq!(near.discard(100).await.unwrap(), 3);
        assert!(near.is_quiet());
        drop(writer);
        assert_eq!(near.discard(1).await.unwrap(), 0);
        assert!(!near.is_quiet());
    });
}

#[test]
fn abort_is_seen_as_a_reset_even_with_a_wait_armed() {
    on_each(|| async {
        let (near, mut peer) = pair();
        assert!(exec::timeout(Duration::from_millis(5), near.ready(Interest::Read)).await.is_err());
        near.send_all(b"part", false).await.unwrap();
        near.abort();
        drop(near);
        let outcome = exec::blocking(move || {
            let mut got = Vec::new();
            peer.read_to_end(&mut got).map(|_| got)
        })
        .await;
        assert_eq!(outcome.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_dropped_socket_ends_in_order_even_with_a_wait_armed() {
    on_each(|| async {
        let (near, mut peer) = pair();
        assert!(exec::timeout(Duration::from_millis(5), near.ready(Interest::Read)).await.is_err());
        near.send_all(b"all", false).await.unwrap();
        drop(near);
        let got = exec::blocking(move || {
            let mut got = Vec::new();
            peer.read_to_end(&mut got).map(|_| got)
        })
        .await;
        assert_eq!(got.unwrap(), b"all");
    });
}

#[test]
fn connect_names_the_address_that_refuses() {
    on_each(|| async {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let congestion = Congestion::Auto(Leg::Lane);
        let refused = Socket::connect(free, Transport::Tcp, &congestion, Duration::from_secs(5)).await;
        let text = refused.err().expect("nobody listens").to_string();
        assert!(text.contains(&free.to_string()) && text.contains("refused"), "{text}");
        let (listeners, address) =
            Listener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), 2, Transport::Tcp).unwrap();
        assert_eq!(listeners.len(), 2);
        let connected =
            Socket::connect(address, Transport::Tcp, &congestion, Duration::from_secs(5)).await.unwrap();
        assert_eq!(connected.peer().unwrap(), address);
        // A second process on the same address is told, although the cores share it.
        assert_eq!(
            Listener::bind(address, 1, Transport::Tcp).unwrap_err().kind(),
            std::io::ErrorKind::AddrInUse
        );
        assert_eq!(Listener::join(address, 1, Transport::Tcp).unwrap().1, address);
    });
}

/// As where a process was killed whose io_uring the kernel has not yet taken down.
#[test]
fn a_port_that_is_about_to_be_free_is_waited_for() {
    // A host of this test's own: elsewhere somebody else could get the port.
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let held = TcpListener::bind((Ipv4Addr::new(127, 98, high, low), 0)).unwrap();
    let address = held.local_addr().unwrap();
    let leaves = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        drop(held);
    });
    assert_eq!(Listener::bind(address, 1, Transport::Tcp).unwrap().1, address);
    leaves.join().unwrap();
}

#[test]
fn tcp_info_knows_the_round_trip() {
    on_each(|| async {
        let (near, mut peer) = pair();
        near.send_all(b"x", false).await.unwrap();
        peer.read_exact(&mut [0]).unwrap();
        peer.write_all(b"y").unwrap();
        near.recv_exact(&mut [0]).await.unwrap();
        let info = near.tcp_info().unwrap();
        assert!(info.rtt > Duration::ZERO && info.rtt < Duration::from_secs(1), "{info:?}");
        assert!(info.congestion_window > 0, "{info:?}");
    });
}

/// As where TCP memory is used up: the poll sees room, and no byte is put there.
#[test]
fn room_that_is_not_used_is_asked_for_with_pauses_and_not_for_ever() {
    on_each(|| async {
        let (socket, _peer) = pair();
        let started = Instant::now();
        for _ in 0..10 {
            socket.room().await.unwrap();
        }
        assert!(started.elapsed() >= 8 * progress::MEMORY_PAUSE);
        let stall_max = Duration::from_millis(200);
        let refused = loop {
            if let Err(error) = socket.writable_within(stall_max).await {
                break error;
            }
        };
        assert!(refused.to_string().contains("tcp_mem"), "{refused}");
        assert!(started.elapsed() >= stall_max);
        // A byte that was taken ends it.
        socket.try_send(b"x", false).unwrap();
        socket.writable_within(stall_max).await.unwrap();
        let mut conduit = Conduit::new();
        conduit.put(b"yz").unwrap();
        assert_eq!(conduit.drain(&socket, usize::MAX).unwrap(), Drained::Bytes(2));
        assert!(socket.room_seen_at.get().is_none());
    });
}

#[test]
fn the_kernel_asks_whether_the_other_end_lives() {
    on_each(|| async {
        let (near, _far) = pair();
        near.keep_alive(keep_alive::ASK_OFTEN);
        let socket = SockRef::from(&near);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), keep_alive::ASK_OFTEN);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), keep_alive::ASK_OFTEN);
    });
}
