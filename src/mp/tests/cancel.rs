//! What becomes of the lanes: returned warm, used again, or closed when they are not in step.

use std::{
    io,
    time::{Duration, Instant},
};

use super::*;
use crate::{
    mp::parked,
    wire::frame::{Frame, Outcome},
};

const BODY: &[u8] = b"0123456789";

/// Sends a body of two frames, one on each of two lanes.
fn halves(lane: &mut FarLane, opening: Opening) -> io::Result<()> {
    let Opening { transfer, nth } = opening;
    lane.head(transfer)?;
    lane.data(transfer, nth as u64, 5 * nth as u64, &BODY[5 * nth..][..5])
}

/// Waits until `holds`, or fails with `what`.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "{what}");
        exec::sleep(Duration::from_millis(2)).await;
    }
}

#[test]
fn a_late_end_leaves_the_lane_warm() {
    let _beside = PARKED_BYTES.read();
    for setting in settings() {
        let (joined, late, ended) = (Tally::default(), Tally::default(), Tally::default());
        let (may_end, has_ended) = (late.clone(), ended.clone());
        let upstream = Upstream::start(9, move |lane, opening| {
            joined.add(1);
            joined.reach(if joined.get() <= 2 { 2 } else { 4 })?;
            halves(lane, opening)?;
            if opening.nth == 1 {
                may_end.reach(1)?;
            }
            lane.end(opening.transfer, 2, 10)?;
            has_ended.add(1);
            Ok(())
        });
        let accepted = Arc::new(Mutex::new(0));
        let (log, address) = (accepted.clone(), upstream.address);
        setting.run(&[address], Lanes::cold(2), async move |manager| {
            fetch_whole(&manager, BODY).await;
            late.add(1);
            until("both ends are sent", || ended.get() == 2).await;
            // Long enough for a lane of another core to take its END and to be shelved.
            exec::sleep(Duration::from_millis(200)).await;
            fetch_whole(&manager, BODY).await;
            *log.lock().unwrap() = 1;
        });
        assert_eq!((*accepted.lock().unwrap(), upstream.accepted()), (1, 2), "{setting}");
        upstream.assert_no_fault();
    }
}

#[test]
fn a_lane_whose_end_never_comes_is_closed_although_the_body_is_whole() {
    let _beside = PARKED_BYTES.read();
    for setting in settings() {
        let joined = Tally::default();
        let upstream = Upstream::start(9, move |lane, opening| {
            joined.add(1);
            joined.reach(2)?;
            halves(lane, opening)?;
            if opening.nth == 0 {
                return lane.end(opening.transfer, 2, 10);
            }
            lane.await_close();
            Err(io::ErrorKind::BrokenPipe.into())
        });
        let closed = upstream.closed.clone();
        setting.run(&[upstream.address], Lanes::cold(2), async move |manager| {
            fetch_whole(&manager, BODY).await;
            let started = Instant::now();
            while closed.get() == 0 {
                assert!(started.elapsed() < Duration::from_secs(8), "{setting}: the lane is never closed");
                exec::sleep(Duration::from_millis(20)).await;
            }
        });
        upstream.assert_no_fault();
    }
}

/// Fetches, and drops the transfer in the middle of its first body.
async fn give_up(manager: &Rc<Manager>) {
    let mut incoming = manager.fetch(request()).await.unwrap();
    let client = Client::new();
    let run = incoming.consumer.run(Sink::Plain(&client.socket), Some(10));
    assert!(exec::timeout(Duration::from_millis(50), run).await.is_err(), "the body never ends");
    drop(incoming);
    drop(client);
}

#[test]
fn a_cancelled_transfer_gives_its_lanes_back_warm() {
    let _alone = PARKED_BYTES.write();
    for setting in settings() {
        let joined = Tally::default();
        let cancelled = Tally::default();
        let told = cancelled.clone();
        let upstream = Upstream::start(9, move |lane, Opening { transfer, nth }| {
            joined.add(1);
            let first = joined.get() <= 2;
            joined.reach(if first { 2 } else { 4 })?;
            if !first {
                halves(lane, Opening { transfer, nth })?;
                return lane.end(transfer, 2, 10);
            }
            lane.head(transfer)?;
            // Nobody sends frame 0, and a frame that was begun is finished after CANCEL has come.
            let body = vec![1; 2 << 20];
            lane.data(transfer, 1 + nth as u64, 1 + (nth * body.len()) as u64, &body)?;
            lane.send(data(transfer, 3 + nth as u64, (1 + (nth + 2) * body.len()) as u64, 4000), &[2; 10])?;
            lane.await_cancel(transfer)?;
            io::Write::write_all(&mut lane.stream, &[2; 3990])?;
            lane.end_as(transfer, Outcome::Cancelled, "")?;
            told.add(1);
            Ok(())
        });
        setting.run(&[upstream.address], Lanes::cold(2), async move |manager| {
            give_up(&manager).await;
            until("both are told", || cancelled.get() == 2).await;
            exec::sleep(Duration::from_millis(200)).await;
            fetch_whole(&manager, BODY).await;
        });
        upstream.assert_no_fault();
        assert_eq!(upstream.accepted(), 2, "{setting}: lanes were dialled again");
        assert_eq!(parked::bytes(), 0, "{setting}");
    }
}

#[test]
fn bytes_that_come_while_a_transfer_is_given_up_are_not_counted_for_ever() {
    let _alone = PARKED_BYTES.write();
    for setting in settings() {
        let upstream = Upstream::start(9, move |lane, Opening { transfer, nth }| {
            lane.head(transfer)?;
            // A flood that is never next, up to the cancel.
            let body = vec![1; 30_000];
            lane.stream.set_nonblocking(true)?;
            let mut seq = 1 + nth as u64;
            loop {
                let mut header = [0; 32];
                match lane.stream.peek(&mut header) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    _ => break,
                }
                if seq > 600 {
                    thread::sleep(Duration::from_millis(1));
                    continue;
                }
                lane.stream.set_nonblocking(false)?;
                lane.data(transfer, seq, seq * body.len() as u64, &body)?;
                lane.stream.set_nonblocking(true)?;
                seq += 2;
            }
            lane.stream.set_nonblocking(false)?;
            lane.yield_to_cancel(transfer)
        });
        setting.run(&[upstream.address], Lanes::cold(2), async move |manager| {
            for pause_us in [0, 300, 1000, 3000, 7000, 500, 2000, 0] {
                let mut incoming = manager.fetch(request()).await.unwrap();
                let client = Client::new();
                let run = incoming.consumer.run(Sink::Plain(&client.socket), None);
                assert!(exec::timeout(Duration::from_micros(pause_us), run).await.is_err());
                drop(incoming);
                exec::sleep(Duration::from_millis(20)).await;
            }
            exec::sleep(Duration::from_millis(100)).await;
        });
        assert_eq!(parked::bytes(), 0, "{setting}");
    }
}

#[test]
fn a_lane_that_does_not_end_a_cancelled_transfer_is_closed() {
    let _beside = PARKED_BYTES.read();
    for setting in settings() {
        let upstream = Upstream::start(9, move |lane, Opening { transfer, .. }| {
            lane.head(transfer)?;
            lane.await_cancel(transfer)?;
            lane.await_close();
            Err(io::ErrorKind::BrokenPipe.into())
        });
        let closed = upstream.closed.clone();
        setting.run(&[upstream.address], Lanes::cold(2), async move |manager| {
            give_up(&manager).await;
            let started = Instant::now();
            while closed.get() < 2 {
                assert!(started.elapsed() < Duration::from_secs(7), "{setting}: they are not closed");
                exec::sleep(Duration::from_millis(20)).await;
            }
            assert!(started.elapsed() > Duration::from_secs(4), "{setting}: they had no time");
        });
        upstream.assert_no_fault();
    }
}

#[test]
fn lanes_to_two_upstreams_are_never_mixed() {
    let _beside = PARKED_BYTES.read();
    for setting in settings() {
        let opened = Arc::new(Mutex::new(std::collections::HashMap::<u64, Vec<u64>>::new()));
        let upstreams = [21, 22].map(|instance| {
            let opened = opened.clone();
            Upstream::start(instance, move |lane, Opening { transfer, nth }| {
                opened.lock().unwrap().entry(transfer.0).or_default().push(instance);
                lane.head(transfer)?;
                if nth == 0 {
                    lane.data(transfer, 0, 0, BODY)?;
                }
                lane.end(transfer, 1, 10)
            })
        });
        let paths = [upstreams[0].address, upstreams[1].address];
        let lanes = Lanes { per_path: 2, warm: 2, max: 8 };
        setting.run(&paths, lanes, async move |manager| {
            for _ in 0..20 {
                fetch_whole(&manager, BODY).await;
            }
        });
        let opened = opened.lock().unwrap();
        assert!(opened.len() == 20, "{setting}: {opened:?}");
        for (transfer, instances) in opened.iter() {
            assert!(instances.windows(2).all(|two| two[0] == two[1]), "{setting}: {transfer}: {instances:?}");
        }
    }
}

#[test]
fn lanes_that_died_unseen_are_replaced_by_fresh_ones() {
    let _beside = PARKED_BYTES.read();
    const IDLE: usize = 6;
    for setting in settings() {
        // As behind a relay that was restarted: old lanes look alive until they are used.
        let restarted = Tally::default();
        let old = Arc::new(Mutex::new(std::collections::HashSet::new()));
        let (after, forgotten) = (restarted.clone(), old.clone());
        let upstream = Upstream::of_lanes(9, move |mut lane| {
            if after.get() == 0 {
                forgotten.lock().unwrap().insert(lane.number);
            }
            loop {
                match lane.next()?.0 {
                    Frame::Ping { token } => lane.send(Frame::Pong { token }, b"")?,
                    Frame::Open { .. } if forgotten.lock().unwrap().contains(&lane.number) => return Ok(()),
                    Frame::Open { transfer, .. } => {
                        lane.head(transfer)?;
                        lane.data(transfer, 0, 0, BODY)?;
                        lane.end(transfer, 1, 10)?;
                    }
                    _ => {}
                }
            }
        });
        let lanes = Lanes { per_path: 1, warm: IDLE, max: 16 };
        setting.run(&[upstream.address], lanes, async move |manager| {
            let wanted = IDLE * available_cpus().len().min(2);
            until("all lanes stand", || old.lock().unwrap().len() >= wanted).await;
            // Their pings pass.
            exec::sleep(Duration::from_millis(100)).await;
            restarted.add(1);
            fetch_whole(&manager, BODY).await;
        });
        upstream.assert_no_fault();
    }
}
