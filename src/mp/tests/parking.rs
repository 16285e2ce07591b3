//! Frames that are not next: parked so that their lane keeps flowing, within the window.

use std::{
    io::{self, Write},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use super::*;
use crate::wire::frame::{Frame, Reading};
use crate::{
    mp::{parked, transfer::WINDOW_BYTES},
    net::Limit,
};

const MIB: usize = 1 << 20;

/// Waits until `count` has not changed for a while: whatever moves it is blocked.
async fn settled(count: impl Fn() -> usize) -> usize {
    let started = Instant::now();
    let mut last = (count(), Instant::now());
    while last.1.elapsed() < Duration::from_millis(400) {
        assert!(started.elapsed() < PATIENCE, "nothing ever blocks");
        exec::sleep(Duration::from_millis(10)).await;
        let now = count();
        if now != last.0 {
            last = (now, Instant::now());
        }
    }
    last.0
}

/// The first frame on one lane, which `begin` holds back, all others on another. Returns the bytes that were written
/// on the fast lane so far.
fn unequal(body: Arc<Vec<u8>>, begin: Tally) -> (Upstream, Arc<AtomicUsize>) {
    let written = Arc::new(AtomicUsize::new(0));
    let count = written.clone();
    let joined = Tally::default();
    let upstream = Upstream::start(9, move |lane, Opening { transfer, nth }| {
        joined.add(1);
        joined.reach(2)?;
        lane.head(transfer)?;
        let pieces = cut(body.len(), || MIB);
        let frames = pieces.len() as u64;
        if nth == 0 {
            begin.reach(1)?;
            lane.piece(transfer, &body, pieces[0])?;
        } else {
            for piece in &pieces[1..] {
                lane.piece(transfer, &body, *piece)?;
                count.fetch_add(piece.end - piece.start, Ordering::SeqCst);
            }
        }
        lane.end(transfer, frames, body.len() as u64)
    });
    (upstream, written)
}

#[test]
fn a_stalled_lane_does_not_throttle_the_others() {
    let _alone = PARKED_BYTES.write();
    // Far beyond what the socket buffers of both ends hold.
    let body = Arc::new(Random(1).bytes(25 * MIB));
    for setting in settings() {
        let begin = Tally::default();
        let (upstream, written) = unequal(body.clone(), begin.clone());
        let wanted = body.clone();
        setting.run(&[upstream.address], Lanes::cold(2), async move |manager| {
            let watched = async {
                let all = wanted.len() - MIB;
                let started = Instant::now();
                while written.load(Ordering::SeqCst) < all {
                    assert!(
                        started.elapsed() < Duration::from_secs(10),
                        "{setting}: the fast lane is held back"
                    );
                    exec::sleep(Duration::from_millis(5)).await;
                }
                begin.add(1);
            };
            futures_util::future::join(watched, fetch_whole(&manager, &wanted)).await;
        });
        upstream.assert_no_fault();
        assert_eq!(parked::bytes(), 0, "{setting}");
    }
}

#[test]
fn a_lane_far_ahead_stops_at_the_window() {
    let _alone = PARKED_BYTES.write();
    let body = Arc::new(Random(2).bytes(WINDOW_BYTES + 40 * MIB));
    for setting in settings() {
        let begin = Tally::default();
        let (upstream, written) = unequal(body.clone(), begin.clone());
        let wanted = body.clone();
        setting.run(&[upstream.address], Lanes::cold(2), async move |manager| {
            let watched = async {
                let sent = settled(|| written.load(Ordering::SeqCst)).await;
                let parked = parked::bytes();
                assert!(parked <= WINDOW_BYTES, "{setting}: {parked} bytes are parked");
                assert!(parked > WINDOW_BYTES - 2 * MIB, "{setting}: only {parked} bytes are parked");
                assert!(sent < wanted.len() - MIB, "{setting}: nothing held the lane back");
                assert!(Limit::Parked.hits() > 0, "{setting}: nobody was told so");
                begin.add(1);
            };
            futures_util::future::join(watched, fetch_whole(&manager, &wanted)).await;
        });
        upstream.assert_no_fault();
        assert_eq!(parked::bytes(), 0, "{setting}");
    }
}

#[test]
fn a_frame_may_fill_the_slots_of_many_pipes() {
    use std::io::Write;
    let _alone = PARKED_BYTES.write();
    let body = Arc::new(Random(3).bytes(4 * MIB));
    for setting in settings() {
        let (sent, joined) = (Tally::default(), Tally::default());
        let bytes = body.clone();
        let upstream = Upstream::start(9, move |lane, Opening { transfer, nth }| {
            joined.add(1);
            joined.reach(2)?;
            lane.head(transfer)?;
            let pieces = cut(bytes.len(), || MIB);
            if nth == 0 {
                sent.reach(1)?;
                lane.piece(transfer, &bytes, pieces[0])?;
            } else {
                for Piece { seq, start, end } in &pieces[1..] {
                    lane.send(data(transfer, *seq, *start as u64, end - start), b"")?;
                    for (number, segment) in bytes[*start..*end].chunks(700).enumerate() {
                        lane.stream.write_all(segment)?;
                        if number % 8 == 0 {
                            thread::sleep(Duration::from_micros(50));
                        }
                    }
                }
                sent.add(1);
            }
            lane.end(transfer, 4, bytes.len() as u64)
        });
        let wanted = body.clone();
        setting.run(&[upstream.address], Lanes::cold(2), async move |manager| {
            fetch_whole(&manager, &wanted).await;
        });
        upstream.assert_no_fault();
        assert_eq!(parked::bytes(), 0, "{setting}");
    }
}

#[test]
fn a_client_that_reads_nothing_is_not_served_from_memory() {
    let _alone = PARKED_BYTES.write();
    /// On the first lane: more than the sockets of a client hold.
    const FIRST: usize = 20;
    let body = Arc::new(Random(4).bytes(48 * MIB));
    for setting in settings() {
        let written = Arc::new(AtomicUsize::new(0));
        let (joined, client_is_full) = (Tally::default(), Tally::default());
        let (bytes, count, go_on) = (body.clone(), written.clone(), client_is_full.clone());
        let upstream = Upstream::start(9, move |lane, Opening { transfer, nth }| {
            joined.add(1);
            joined.reach(2)?;
            lane.head(transfer)?;
            let pieces = cut(bytes.len(), || MIB);
            let share = if nth == 0 { &pieces[..FIRST] } else { &pieces[FIRST..] };
            if nth == 1 {
                go_on.reach(1)?;
            }
            for piece in share {
                lane.piece(transfer, &bytes, *piece)?;
                count.fetch_add(piece.end - piece.start, Ordering::SeqCst);
            }
            lane.end(transfer, pieces.len() as u64, bytes.len() as u64)
        });
        let wanted = body.clone();
        setting.run(&[upstream.address], Lanes::cold(2), async move |manager| {
            let mut incoming = manager.fetch(request()).await.unwrap();
            let (go, start) = mpsc::channel();
            let client = Client::reading_after(start);
            let watched = async {
                settled(|| written.load(Ordering::SeqCst)).await;
                let before = parked::bytes();
                client_is_full.add(1);
                let sent = settled(|| written.load(Ordering::SeqCst)).await;
                let parked = parked::bytes();
                assert!(
                    parked <= before.max(3 * MIB),
                    "{setting}: {parked} bytes are parked, before {before}"
                );
                assert!(sent < wanted.len(), "{setting}: nothing held the lanes back");
                go.send(()).unwrap();
            };
            let moved = incoming.consumer.run(Sink::Plain(&client.socket), Some(wanted.len() as u64));
            let ((), moved) = futures_util::future::join(watched, moved).await;
            assert_eq!(moved.unwrap(), wanted.len() as u64);
            drop(incoming);
            assert_same(&client.finish().await, &wanted);
        });
        upstream.assert_no_fault();
        assert_eq!(parked::bytes(), 0, "{setting}");
    }
}

/// Reads what the downstream says of the lane until it says how it reads it.
fn hears(lane: &mut FarLane, wanted: Reading) -> io::Result<()> {
    loop {
        if matches!(lane.next()?.0, Frame::Credit { reading, .. } if reading == wanted) {
            return Ok(());
        }
    }
}

#[test]
fn a_lane_that_is_read_again_says_so_although_its_frame_is_not_whole() {
    let _alone = PARKED_BYTES.write();
    /// On the first lane: more than the sockets of a client hold.
    const FIRST: usize = 20;
    /// The last frame: more than is handed to another core while the client takes nothing.
    const LAST_BYTES: usize = 3 * MIB;
    let body = Arc::new(Random(6).bytes(FIRST * MIB + LAST_BYTES));
    for setting in settings() {
        let [joined, full, paused, eager] = [(); 4].map(|()| Tally::default());
        let (bytes, is_full, is_paused, is_eager) =
            (body.clone(), full.clone(), paused.clone(), eager.clone());
        let written = Arc::new(AtomicUsize::new(0));
        let count = written.clone();
        let upstream = Upstream::start(9, move |lane, Opening { transfer, nth }| {
            joined.add(1);
            joined.reach(2)?;
            lane.head(transfer)?;
            let mut pieces = cut(FIRST * MIB, || MIB);
            pieces.push(Piece { seq: FIRST as u64, start: FIRST * MIB, end: bytes.len() });
            if nth == 0 {
                for piece in &pieces[..FIRST] {
                    lane.piece(transfer, &bytes, *piece)?;
                    count.fetch_add(piece.end - piece.start, Ordering::SeqCst);
                }
            } else {
                is_full.reach(1)?;
                let (start, middle) = (FIRST * MIB, FIRST * MIB + MIB / 16);
                lane.send(data(transfer, FIRST as u64, start as u64, LAST_BYTES), &bytes[start..middle])?;
                hears(lane, Reading::Paused)?;
                is_paused.add(1);
                hears(lane, Reading::Eager)?;
                is_eager.add(1);
                lane.stream.write_all(&bytes[middle..])?;
            }
            lane.end(transfer, pieces.len() as u64, bytes.len() as u64)
        });
        let wanted = body.clone();
        setting.run(&[upstream.address], Lanes::cold(2), async move |manager| {
            let mut incoming = manager.fetch(request()).await.unwrap();
            let (go, start) = mpsc::channel();
            let client = Client::reading_after(start);
            let watched = async {
                let reached = |tally: &Tally, what: &str| {
                    let (tally, what) = (tally.clone(), format!("{setting}: {what}"));
                    async move {
                        let started = Instant::now();
                        while tally.get() == 0 {
                            assert!(started.elapsed() < PATIENCE, "{what}");
                            exec::sleep(Duration::from_millis(5)).await;
                        }
                    }
                };
                // Whoever came before would be taken while there is room.
                settled(|| written.load(Ordering::SeqCst)).await;
                full.add(1);
                reached(&paused, "the lane is not said to be paused").await;
                go.send(()).unwrap();
                reached(&eager, "nobody says that the lane is read again").await;
            };
            let moved = incoming.consumer.run(Sink::Plain(&client.socket), Some(wanted.len() as u64));
            let ((), moved) = futures_util::future::join(watched, moved).await;
            assert_eq!(moved.unwrap(), wanted.len() as u64);
            drop(incoming);
            assert_same(&client.finish().await, &wanted);
        });
        upstream.assert_no_fault();
    }
}
