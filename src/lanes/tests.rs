//! Pools over real connections to a scripted upstream, on both executors.

mod moving;
pub(crate) mod scripted;

use std::{
    future::Future,
    io::{self, Write},
    net::TcpListener,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt;
use scripted::*;

use super::*;
use crate::{
    exec::{self, Backend, Config, Instant, available_cpus},
    net::{Legs, Names},
    wire::{
        frame::{Frame, Kind, Outcome},
        key_ring::KeyRing,
        units::{FrameLen, TransferId},
    },
};

/// Runs `drive` on one core of each executor.
fn on_each<Fut: Future<Output = ()> + 'static>(drive: impl Fn() -> Fut + Send + Sync + 'static) {
    let drive = Arc::new(drive);
    for backend in [Backend::TokioUring, Backend::Glommio] {
        let drive = drive.clone();
        let cpus = vec![available_cpus()[0]];
        let outcome = exec::run(&Config { backend, cpus }, move |_| {
            let drive = drive.clone();
            async move {
                let driven = exec::timeout(2 * PATIENCE, drive()).await;
                driven.unwrap_or_else(|exec::Elapsed| panic!("{backend}: the test hangs"));
            }
        });
        outcome.unwrap_or_else(|error| panic!("{backend}: {error}"));
    }
}

fn pool(path: &str, lanes_warm: usize, lanes_max: usize) -> Rc<Pool> {
    let path = Arc::new(PathStatus::new(path.parse().unwrap()));
    let (congestion, names) = (Legs::default().lane, Names::System);
    Pool::new(
        path,
        PoolConfig { keys: Arc::new(KeyRing::of(key())), congestion, names, lanes_warm, lanes_max },
    )
}

/// Waits until `holds`, or fails with `what`.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "{what}");
        exec::sleep(Duration::from_millis(2)).await;
    }
}

/// An upstream that answers pings.
fn idle_upstream() -> Upstream {
    Upstream::start(9, |_, _| Ok(()))
}

#[test]
fn the_lane_used_last_is_leased_first() {
    on_each(|| async {
        let upstream = idle_upstream();
        let pool = pool(&upstream.address.to_string(), 0, 4);
        let (first, second) =
            (pool.lease_next(|| true).await.unwrap(), pool.lease_next(|| true).await.unwrap());
        let (one, two) = (Rc::as_ptr(first.socket()), Rc::as_ptr(second.socket()));
        assert_eq!(pool.path().report().leased, 2);
        second.give_back();
        first.give_back();
        let (newest, oldest) = (pool.lease_idle(None).unwrap(), pool.lease_idle(Some(9)).unwrap());
        assert_eq!((Rc::as_ptr(newest.socket()), Rc::as_ptr(oldest.socket())), (one, two));
        assert!(pool.lease_idle(None).is_none());
        newest.give_back();
        assert!(pool.lease_idle(Some(8)).is_none(), "a lane to another process");
        assert_eq!((upstream.accepted(), pool.path().report().lanes), (2, 2));
    });
}

#[test]
fn a_path_is_tried_once_its_first_lanes_are_idle_or_cannot_be_had() {
    on_each(|| async {
        let upstream = idle_upstream();
        let two = pool(&upstream.address.to_string(), 2, 4);
        exec::spawn(two.clone().keep());
        two.tried().await;
        let lanes = [two.lease_idle(None), two.lease_idle(None)];
        assert!(lanes.iter().all(Option::is_some));
        assert!(!two.path().round_trip().is_zero());
        two.close();
        // Nobody listens there any more.
        let nowhere = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
        let none = pool(&nowhere.to_string(), 1, 4);
        exec::spawn(none.clone().keep());
        none.tried().await;
        assert!(none.lease_idle(None).is_none());
        assert!(none.path().report().down);
        none.close();
        // Who wants none waits for none.
        let idle = pool(&nowhere.to_string(), 0, 4);
        exec::spawn(idle.clone().keep());
        idle.tried().await;
        idle.close();
    });
}

#[test]
fn a_warm_lane_that_only_waits_for_an_end_comes_before_a_cold_one() {
    on_each(|| async {
        for complete in [true, false] {
            let upstream = idle_upstream();
            let pool = pool(&upstream.address.to_string(), 2, 2);
            exec::spawn(pool.clone().keep());
            // The second is shelved behind the first, by the keeper's own task: it is there when the first can be leased
            // a second time.
            until("two lanes stand", || pool.path().report().lanes == 2).await;
            let mut found = Vec::new();
            while found.len() < 2 {
                found.extend(pool.lease_idle(None));
                exec::sleep(Duration::from_millis(2)).await;
            }
            let used = found.pop().unwrap();
            let address = used.socket().local().unwrap();
            // Closed, and so replaced by a cold one.
            drop(found);
            until("a cold lane", || upstream.accepted() == 3 && pool.path().report().lanes == 2).await;
            // It is pinged before it is shelved.
            exec::sleep(Duration::from_millis(200)).await;
            assert!(used.abandon(TransferId(7), 0, complete));
            used.give_back();
            let next = pool.lease_idle(None).unwrap();
            assert_eq!(next.socket().local().unwrap() == address, complete);
            // Who asks again trusts neither kind.
            next.give_back();
            pool.close_quiet_since(Instant::now());
            assert!(pool.lease_idle(None).is_none());
            pool.close();
        }
    });
}

#[test]
fn the_lane_that_has_carried_much_comes_before_the_one_used_last() {
    const FRAME: usize = 500_000;
    on_each(|| async {
        let upstream = Upstream::of_lanes(9, |mut lane| {
            while let Ok((Frame::Open { transfer, .. }, _)) = lane.next() {
                lane.head(transfer)?;
                for seq in 0..3 {
                    lane.data(transfer, seq, seq * FRAME as u64, &vec![1; FRAME])?;
                }
                lane.end(transfer, 3, 3 * FRAME as u64)?;
            }
            Ok(())
        });
        let pool = pool(&upstream.address.to_string(), 0, 2);
        let (warm, other) =
            (pool.lease_next(|| true).await.unwrap(), pool.lease_next(|| true).await.unwrap());
        let address = warm.socket().local().unwrap();
        warm.open(TransferId(1), b"GET", None).await.unwrap();
        loop {
            let frame = warm.next_frame().await.unwrap();
            warm.discard(frame.payload_len().as_usize()).await.unwrap();
            if frame.kind() == Kind::End {
                break;
            }
        }
        warm.give_back();
        other.give_back();
        let found = pool.lease_idle(None).unwrap();
        assert_eq!(found.socket().local().unwrap(), address);
        assert!(pool.lease_warm(None).is_none(), "the other one is cold");
        found.give_back();
        assert!(pool.lease_warm(Some(8)).is_none(), "a lane to another process");
        let found = pool.lease_warm(Some(9)).unwrap();
        assert_eq!(found.socket().local().unwrap(), address);
    });
}

#[test]
fn no_more_lanes_stand_than_may() {
    on_each(|| async {
        let upstream = idle_upstream();
        let pool = pool(&upstream.address.to_string(), 0, 2);
        let served = Rc::new(std::cell::Cell::new(0));
        // All at once, before any dial has begun.
        let requests = (0..6).map(|_| {
            let (pool, served) = (pool.clone(), served.clone());
            async move {
                let lane = pool.lease_next(|| true).await.unwrap();
                assert!(pool.path().report().leased <= 2);
                exec::yield_now().await;
                lane.give_back();
                served.set(served.get() + 1);
            }
        });
        futures_util::future::join_all(requests).await;
        assert_eq!((served.get(), upstream.accepted()), (6, 2));
    });
}

#[test]
fn who_waits_longest_is_served_first() {
    on_each(|| async {
        let upstream = idle_upstream();
        let pool = pool(&upstream.address.to_string(), 0, 1);
        let lane = pool.lease_next(|| true).await.unwrap();
        let order = Rc::new(std::cell::RefCell::new(Vec::new()));
        let mut waiters: Vec<_> = (0..5)
            .map(|number| {
                let (pool, order) = (pool.clone(), order.clone());
                async move {
                    let lane = pool.lease_next(|| true).await.unwrap();
                    order.borrow_mut().push(number);
                    lane.give_back();
                }
                .boxed_local()
            })
            .collect();
        for waiter in &mut waiters {
            assert!(waiter.now_or_never().is_none(), "there is no second lane");
        }
        // The third has no patience: its turn goes to the next.
        drop(waiters.remove(2));
        lane.give_back();
        futures_util::future::join_all(waiters).await;
        assert_eq!((&*order.borrow(), upstream.accepted()), (&vec![0, 1, 3, 4], 1));
        assert!(pool.lease_idle(None).is_some(), "the lane stands");
    });
}

#[test]
fn a_dial_goes_on_for_the_next_when_its_waiter_gives_up() {
    on_each(|| async {
        let upstream = idle_upstream();
        let pool = pool(&upstream.address.to_string(), 0, 4);
        let waiter = pool.lease_next(|| true);
        assert!(waiter.now_or_never().is_none());
        until("the dial ends", || pool.path().report().lanes == 1).await;
        assert!(pool.lease_idle(None).is_some());
        assert_eq!(upstream.accepted(), 1);
    });
}

#[test]
fn every_waiter_hears_that_the_path_is_down() {
    on_each(|| async {
        let address = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
        // Also those for whom no dial was started, since no more lanes may stand.
        let pool = pool(&address.to_string(), 0, 2);
        let errors = futures_util::future::join_all((0..5).map(|_| pool.lease_next(|| true))).await;
        for outcome in errors {
            let error = outcome.err().expect("there is no upstream").to_string();
            assert!(error.starts_with(&format!("path {address}: cannot connect to {address}")), "{error}");
        }
        assert!(pool.path().report().down);
    });
}

#[test]
fn a_hop_with_another_key_is_named_with_the_remedy() {
    on_each(|| async {
        let upstream = Upstream::of_connections(TcpListener::bind(("127.0.0.1", 0)).unwrap(), |stream, _| {
            other_key_server(stream)
        });
        let pool = pool(&upstream.address.to_string(), 0, 2);
        let error = pool.lease_next(|| true).await.err().unwrap().to_string();
        let wanted = format!("path {}: the peer refused the lane: key mismatch", upstream.address);
        assert!(error.starts_with(&wanted) && error.contains("--key"), "{error}");
    });
}

/// What a listening side with another key does.
fn other_key_server(mut stream: std::net::TcpStream) -> io::Result<()> {
    use crate::wire::handshake::{ServerHandshake, bad_key_reply};
    use std::io::{Read, Write};
    let key = crate::wire::key::Key::from_bytes([8; 32]);
    let (_, challenge) = ServerHandshake::new(std::slice::from_ref(&key), [1; 16]);
    stream.write_all(&challenge)?;
    let _ = stream.read(&mut [0; 2048])?;
    stream.write_all(&bad_key_reply())
}

#[test]
fn a_path_that_comes_up_later_gets_its_lanes() {
    on_each(|| async {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let pool = pool(&address.to_string(), 2, 4);
        exec::spawn(pool.clone().keep());
        until("a failed dial", || pool.path().report().down).await;
        let listener = TcpListener::bind(address).unwrap();
        let _upstream = Upstream::of_connections(listener, |stream, number| {
            let Some(mut lane) = FarLane::shake(stream, number, 9) else { return Ok(()) };
            while let Frame::Ping { token } = lane.next()?.0 {
                lane.send(Frame::Pong { token }, b"")?;
            }
            Ok(())
        });
        until("two lanes", || pool.path().report().lanes == 2).await;
        let report = pool.path().report();
        assert!(!report.down && report.round_trip > Duration::ZERO, "{report:?}");
        pool.close();
    });
}

#[test]
fn lanes_are_kept_warm_and_replaced_when_lost() {
    on_each(|| async {
        let upstream = idle_upstream();
        let pool = pool(&upstream.address.to_string(), 3, 4);
        exec::spawn(pool.clone().keep());
        let leased = || pool.path().report();
        until("three lanes", || leased().lanes == 3).await;
        until("shelved", || {
            let found: Vec<_> = std::iter::from_fn(|| pool.lease_idle(None)).collect();
            let count = found.len();
            found.into_iter().for_each(Lease::give_back);
            count == 3
        })
        .await;
        assert_eq!(upstream.accepted(), 3);
        // A lease that is dropped closes its lane, and another is dialled.
        drop(pool.lease_idle(None).unwrap());
        until("a fourth connection", || upstream.accepted() == 4 && leased().lanes == 3).await;
        pool.close();
        until("all are closed", || upstream.closed.get() == 4).await;
        assert!(pool.lease_next(|| true).await.is_err(), "a closed pool dials no more");
    });
}

#[test]
fn a_lane_on_loan_is_closed_when_it_comes_back_to_a_closed_pool() {
    on_each(|| async {
        let upstream = idle_upstream();
        let pool = pool(&upstream.address.to_string(), 0, 4);
        let lane = pool.lease_next(|| true).await.unwrap();
        pool.close();
        assert_eq!(upstream.closed.get(), 0);
        lane.give_back();
        until("it is closed", || upstream.closed.get() == 1).await;
        assert_eq!(pool.path().report().lanes, 0);
    });
}

#[test]
fn a_lane_on_loan_that_is_dropped_is_closed_whoever_holds_its_socket() {
    on_each(|| async {
        let upstream = idle_upstream();
        let pool = pool(&upstream.address.to_string(), 0, 1);
        let lane = pool.lease_next(|| true).await.unwrap();
        let held = lane.socket().clone();
        drop(lane);
        until("the upstream sees the end", || upstream.closed.get() == 1).await;
        drop(held);
    });
}

#[test]
fn a_wrong_answer_to_a_ping_closes_the_lane_without_a_storm_of_dials() {
    on_each(|| async {
        let upstream = Upstream::of_lanes(9, |mut lane| {
            let (Frame::Ping { token }, _) = lane.next()? else { return Err(io::Error::other("no ping")) };
            lane.send(Frame::Pong { token: token ^ 1 }, b"")?;
            lane.await_close();
            Ok(())
        });
        let pool = pool(&upstream.address.to_string(), 1, 4);
        exec::spawn(pool.clone().keep());
        until("the lane is closed", || upstream.closed.get() >= 1).await;
        assert!(pool.lease_idle(None).is_none());
        // Pauses of 250 ms, 500 ms, ... follow.
        exec::sleep(Duration::from_secs(1)).await;
        let dials = upstream.accepted();
        assert!((2..=4).contains(&dials), "{dials} dials in a second");
        upstream.assert_no_fault();
        pool.close();
    });
}

#[test]
fn an_idle_lane_that_the_other_side_closed_is_not_leased() {
    on_each(|| async {
        let hang_up = Tally::default();
        let told = hang_up.clone();
        let upstream = Upstream::of_lanes(9, move |_lane| told.reach(1));
        let pool = pool(&upstream.address.to_string(), 0, 4);
        let lanes = [pool.lease_next(|| true).await.unwrap(), pool.lease_next(|| true).await.unwrap()];
        lanes.into_iter().for_each(Lease::give_back);
        hang_up.add(1);
        until("both are closed", || upstream.closed.get() == 2).await;
        until("that is seen", || pool.lease_idle(None).is_none()).await;
        assert_eq!(pool.path().report().lanes, 0);
    });
}

#[test]
fn an_idle_lane_that_the_other_side_closes_is_replaced_at_once() {
    on_each(|| async {
        let hang_up = Tally::default();
        let told = hang_up.clone();
        // Answers the pings of a new lane, and nothing later.
        let upstream = Upstream::of_lanes(9, move |mut lane| {
            for _ in 0..3 {
                let (Frame::Ping { token }, _) = lane.next()? else {
                    return Err(io::Error::other("no ping"));
                };
                lane.send(Frame::Pong { token }, b"")?;
            }
            told.reach(1)
        });
        let pool = pool(&upstream.address.to_string(), 2, 4);
        exec::spawn(pool.clone().keep());
        until("two lanes", || pool.path().report().lanes == 2).await;
        let before = Instant::now();
        hang_up.add(1);
        // Those that come later are closed as soon as they stand.
        until("all are replaced", || upstream.closed.get() >= 2 && upstream.accepted() >= 4).await;
        assert!(
            before.elapsed() < Duration::from_secs(7),
            "they were found by a ping, which is due after 7.5 s"
        );
        upstream.assert_no_fault();
        pool.close();
    });
}

/// Sends HEAD, one frame of `len` bytes and END.
fn whole_transfer(lane: &mut FarLane, transfer: TransferId, len: usize) -> io::Result<()> {
    lane.head(transfer)?;
    lane.data(transfer, 0, 0, &vec![1; len])?;
    lane.end(transfer, 1, len as u64)
}

#[test]
fn a_lane_given_up_twice_before_its_first_end_is_in_step_afterwards() {
    on_each(|| async {
        let given_up = Tally::default();
        let told = given_up.clone();
        let upstream = Upstream::of_lanes(9, move |mut lane| {
            let (mut opened, mut ended) = (Vec::new(), 0);
            // The first frame comes at once, all else when three were opened.
            while opened.len() < 3 {
                match lane.next()?.0 {
                    Frame::Open { transfer, .. } => {
                        if opened.is_empty() {
                            lane.send(data(transfer, 0, 0, 10), &[0; 4])?;
                        }
                        opened.push(transfer);
                    }
                    Frame::Cancel { transfer } if transfer == opened[ended] => ended += 1,
                    other => return Err(io::Error::other(format!("{other:?}"))),
                }
            }
            told.reach(1)?;
            lane.stream.write_all(&[0; 6])?;
            lane.end_as(opened[0], Outcome::Aborted, "the first")?;
            whole_transfer(&mut lane, opened[1], 300_000)?;
            whole_transfer(&mut lane, opened[2], 5)?;
            lane.await_close();
            Ok(())
        });
        let pool = pool(&upstream.address.to_string(), 0, 1);
        let mut lane = pool.lease_next(|| true).await.unwrap();
        lane.open(TransferId(1), b"GET", None).await.unwrap();
        let first = lane.next_frame().await.unwrap();
        assert_eq!(first, data(TransferId(1), 0, 0, 10));
        for (transfer, unread) in [(1, 10), (2, 0)] {
            assert!(lane.abandon(TransferId(transfer), unread, false) && lane.is_stale());
            lane.give_back();
            lane = pool.lease_idle(None).expect("it is as good as any");
            lane.open(TransferId(transfer + 1), b"GET", None).await.unwrap();
            assert!(lane.try_next_frame().unwrap().is_none(), "the first END has not come");
        }
        given_up.add(1);
        let wanted = FrameLen(b"HTTP/1.1 200 OK\r\n\r\n".len() as u32);
        let head = lane.next_frame().await.unwrap();
        assert_eq!(head, Frame::Head { transfer: TransferId(3), head_len: wanted });
        assert!(!lane.is_stale());
        lane.discard(wanted.as_usize()).await.unwrap();
        assert_eq!(lane.next_frame().await.unwrap(), data(TransferId(3), 0, 0, 5));
        assert_eq!(lane.payload(5).await.unwrap(), [1; 5]);
        assert_eq!(lane.next_frame().await.unwrap().kind(), Kind::End);
        lane.give_back();
        assert_eq!((pool.path().report().lanes, upstream.accepted()), (1, 1));
        upstream.assert_no_fault();
    });
}

#[test]
fn a_lane_given_up_too_often_is_closed() {
    on_each(|| async {
        let upstream = Upstream::of_lanes(9, |mut lane| {
            lane.await_close();
            Ok(())
        });
        let pool = pool(&upstream.address.to_string(), 0, 1);
        let lane = pool.lease_next(|| true).await.unwrap();
        let kept = (0..20).take_while(|&transfer| lane.abandon(TransferId(transfer), 0, false)).count();
        assert_eq!(kept, super::lane::STALE_MAX);
        drop(lane);
        until("it is closed", || upstream.closed.get() == 1).await;
        let fresh = pool.lease_next(|| true).await.unwrap();
        assert!(!fresh.is_stale());
        upstream.assert_no_fault();
    });
}
