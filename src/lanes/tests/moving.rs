//! Warm lanes that go from one core to another.

use std::{
    cell::RefCell,
    net::SocketAddr,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::*;
use crate::exec::Core;

const FRAME: usize = 500_000;
/// Enough to be warm.
const FRAMES: u64 = 3;

thread_local! {
    static POOL: RefCell<Option<Rc<Pool>>> = const { RefCell::new(None) };
}

fn pool_here() -> Option<Rc<Pool>> {
    POOL.with(|pool| pool.borrow().clone())
}

fn new_pool_here(path: &Arc<PathStatus>) -> Rc<Pool> {
    let (congestion, names) = (Legs::default().lane, Names::System);
    let keys = Arc::new(KeyRing::of(key()));
    let pool = Pool::new(path.clone(), PoolConfig { keys, congestion, names, lanes_warm: 0, lanes_max: 1 });
    POOL.set(Some(pool.clone()));
    pool
}

fn two_cpus() -> Option<Vec<usize>> {
    let mut cpus = available_cpus();
    if cpus.len() < 2 {
        println!("not tested: there is one CPU");
        return None;
    }
    cpus.truncate(2);
    Some(cpus)
}

async fn transfer(lane: &Lane, number: u64) {
    lane.open(TransferId(number), b"GET", None).await.unwrap();
    loop {
        let frame = lane.next_frame().await.unwrap();
        lane.discard(frame.payload_len().as_usize()).await.unwrap();
        if frame.kind() == Kind::End {
            return;
        }
    }
}

#[test]
fn a_warm_lane_goes_on_on_another_core() {
    let Some(cpus) = two_cpus() else { return };
    for backend in [Backend::TokioUring, Backend::Glommio] {
        let upstream = Arc::new(Upstream::of_lanes(9, |mut lane| {
            while let Ok((Frame::Open { transfer, .. }, _)) = lane.next() {
                lane.head(transfer)?;
                for seq in 0..FRAMES {
                    lane.data(transfer, seq, seq * FRAME as u64, &vec![1; FRAME])?;
                }
                lane.end(transfer, FRAMES, FRAMES * FRAME as u64)?;
            }
            Ok(())
        }));
        let path = Arc::new(PathStatus::new(upstream.address.to_string().parse().unwrap()));
        let (step, address) = (Arc::new(AtomicUsize::new(0)), Arc::new(OnceLock::<SocketAddr>::new()));
        let config = Config { backend, cpus: cpus.clone() };
        exec::run(&config, move |core| {
            let (upstream, path, step, address) =
                (upstream.clone(), path.clone(), step.clone(), address.clone());
            async move {
                let pool = new_pool_here(&path);
                if core == Core(1) {
                    let lane = pool.lease_next(|| true).await.unwrap();
                    transfer(&lane, 1).await;
                    address.set(lane.socket().local().unwrap()).unwrap();
                    lane.give_back();
                    step.store(1, Ordering::SeqCst);
                    until("the other core is done", || step.load(Ordering::SeqCst) == 2).await;
                    assert!(pool.lease_idle(None).is_none(), "it is not here any more");
                    // Its place is free.
                    drop(pool.lease_next(|| true).await.unwrap());
                    return;
                }
                until("a warm lane", || step.load(Ordering::SeqCst) == 1).await;
                assert!(pool.lease_from(Core(1), Some(8), pool_here).await.is_none(), "to another process");
                let lane = pool.lease_from(Core(1), Some(9), pool_here).await.unwrap();
                assert_eq!(lane.socket().local().unwrap(), *address.get().unwrap());
                assert_eq!((path.report().lanes, upstream.accepted()), (1, 1));
                for number in 2..5 {
                    transfer(&lane, number).await;
                }
                assert!(
                    pool.lease_from(Core(1), None, pool_here).await.is_none(),
                    "there is no room for more"
                );
                lane.give_back();
                let lane = pool.lease_warm(Some(9)).expect("it is as warm as before");
                assert!(pool.lease_from(Core(1), None, pool_here).await.is_none(), "nothing is left there");
                drop(lane);
                until("it is closed", || upstream.closed.get() == 1 && path.report().lanes == 0).await;
                step.store(2, Ordering::SeqCst);
                upstream.assert_no_fault();
            }
        })
        .unwrap();
    }
}

#[test]
fn a_warm_lane_that_has_an_end_to_bring_goes_on_on_another_core() {
    let Some(cpus) = two_cpus() else { return };
    for backend in [Backend::TokioUring, Backend::Glommio] {
        // 1: the body of the first transfer was delivered; 2: its lane has moved; 3: it has carried the next one.
        let step = Arc::new(AtomicUsize::new(0));
        let reached = |step: &AtomicUsize, least| step.load(Ordering::SeqCst) >= least;
        let seen = step.clone();
        let upstream = Arc::new(Upstream::of_lanes(9, move |mut lane| {
            while let Ok((Frame::Open { transfer, .. }, _)) = lane.next() {
                lane.head(transfer)?;
                for seq in 0..FRAMES {
                    lane.data(transfer, seq, seq * FRAME as u64, &vec![1; FRAME])?;
                }
                if transfer == TransferId(1) {
                    assert!(matches!(lane.next(), Ok((Frame::Cancel { .. }, _))));
                    while !reached(&seen, 2) {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
                lane.end(transfer, FRAMES, FRAMES * FRAME as u64)?;
            }
            Ok(())
        }));
        let path = Arc::new(PathStatus::new(upstream.address.to_string().parse().unwrap()));
        let config = Config { backend, cpus: cpus.clone() };
        exec::run(&config, move |core| {
            let (upstream, path, step) = (upstream.clone(), path.clone(), step.clone());
            async move {
                let pool = new_pool_here(&path);
                if core == Core(1) {
                    let lane = pool.lease_next(|| true).await.unwrap();
                    lane.open(TransferId(1), b"GET", None).await.unwrap();
                    for _ in 0..=FRAMES {
                        let frame = lane.next_frame().await.unwrap();
                        lane.discard(frame.payload_len().as_usize()).await.unwrap();
                    }
                    assert!(lane.abandon(TransferId(1), 0, true) && lane.is_stale());
                    lane.give_back();
                    step.store(1, Ordering::SeqCst);
                    until("the other core is done", || reached(&step, 3)).await;
                    assert!(pool.lease_idle(None).is_none(), "it is not here any more");
                    return;
                }
                until("a delivered body", || reached(&step, 1)).await;
                let lane = pool.lease_from(Core(1), Some(9), pool_here).await.unwrap();
                assert!(lane.is_stale());
                step.store(2, Ordering::SeqCst);
                for number in 2..5 {
                    transfer(&lane, number).await;
                }
                assert_eq!((path.report().lanes, upstream.accepted()), (1, 1));
                drop(lane);
                until("it is closed", || upstream.closed.get() == 1 && path.report().lanes == 0).await;
                step.store(3, Ordering::SeqCst);
                upstream.assert_no_fault();
            }
        })
        .unwrap();
    }
}
