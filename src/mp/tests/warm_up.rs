//! Filler that is fetched before the first client comes.

use std::{cell::Cell, io, time::Instant};

use futures_util::future::join;

use super::*;
use crate::wire::{
    filler,
    frame::{Frame, Outcome},
    units::{FrameLen, TransferId},
};

const FILLER: usize = 100_000;
const BODY: &[u8] = b"of the film";

/// Answers who asks for filler by `script`, and others with [`BODY`].
fn upstream(script: impl Fn(&mut FarLane, TransferId) -> io::Result<()> + Send + Sync + 'static) -> Upstream {
    Upstream::of_lanes(9, move |mut lane| {
        loop {
            let (transfer, open) = match lane.next()? {
                (Frame::Open { transfer, .. }, open) => (transfer, open),
                (Frame::Ping { token }, _) => {
                    lane.send(Frame::Pong { token }, b"")?;
                    continue;
                }
                _ => continue,
            };
            match filler::asked(&open) {
                Some(bytes) if bytes == FILLER as u64 => script(&mut lane, transfer)?,
                Some(bytes) => return Err(io::Error::other(format!("asked for {bytes}"))),
                None => {
                    lane.head(transfer)?;
                    lane.data(transfer, 0, 0, BODY)?;
                    lane.end(transfer, 1, BODY.len() as u64)?;
                }
            }
        }
    })
}

#[test]
fn the_first_client_gets_the_lane_that_was_warmed() {
    let _beside = PARKED_BYTES.read();
    for setting in settings() {
        let filled = Tally::default();
        let has_filled = filled.clone();
        let upstream = upstream(move |lane, transfer| {
            lane.head(transfer)?;
            lane.data(transfer, 0, 0, &vec![0; FILLER])?;
            lane.end(transfer, 1, FILLER as u64)?;
            has_filled.add(1);
            Ok(())
        });
        setting.run(&[upstream.address], Lanes::cold(1), async |manager| {
            assert_eq!(manager.fill(FILLER as u64).await, "all bytes have come");
            fetch_whole(&manager, BODY).await;
        });
        assert_eq!((filled.get(), upstream.accepted()), (1, 1), "{setting}: filled, lanes");
        upstream.assert_no_fault();
    }
}

#[test]
fn an_upstream_without_filler_is_no_hindrance() {
    let _beside = PARKED_BYTES.read();
    for setting in settings() {
        let upstream = upstream(|lane, transfer| {
            let head = b"HTTP/1.1 400 Bad Request\r\n\r\n";
            lane.send(Frame::Head { transfer, head_len: FrameLen(head.len() as u32) }, head)?;
            lane.data(transfer, 0, 0, b"no request")?;
            lane.end(transfer, 1, 10)
        });
        setting.run(&[upstream.address], Lanes::cold(1), async |manager| {
            let outcome = manager.fill(FILLER as u64).await;
            assert_eq!(outcome, "upstream: it has no filler, but HTTP/1.1 400 Bad Request (is it older?)");
            fetch_whole(&manager, BODY).await;
        });
        upstream.assert_no_fault();
    }
}

/// Sends a little filler, and no more; ends as it is cancelled, once `may_end` has come to 1.
fn trickle(begun: &Tally, cancelled: &Tally, may_end: &Tally) -> Upstream {
    let (begun, cancelled, may_end) = (begun.clone(), cancelled.clone(), may_end.clone());
    upstream(move |lane, transfer| {
        lane.head(transfer)?;
        lane.data(transfer, 0, 0, &[0; 1000])?;
        begun.add(1);
        lane.await_cancel(transfer)?;
        cancelled.add(1);
        may_end.reach(1)?;
        lane.end_as(transfer, Outcome::Cancelled, "")
    })
}

/// Waits for the first step of `tally`.
async fn reached(tally: &Tally, setting: Setting, what: &str) {
    let started = Instant::now();
    while tally.get() == 0 {
        assert!(started.elapsed() < PATIENCE, "{setting}: {what}");
        exec::sleep(Duration::from_millis(2)).await;
    }
}

#[test]
fn it_gives_way_to_a_client() {
    let _beside = PARKED_BYTES.read();
    for setting in settings() {
        let (begun, cancelled, may_end) = (Tally::default(), Tally::default(), Tally::default());
        let upstream = trickle(&begun, &cancelled, &may_end);
        setting.run(&[upstream.address], Lanes::cold(1), async move |manager| {
            may_end.add(1);
            let client = async {
                reached(&begun, setting, "no filler").await;
                fetch_whole(&manager, BODY).await;
            };
            let (outcome, ()) = join(manager.fill(FILLER as u64), client).await;
            assert_eq!(outcome, "a client has come", "{setting}");
            reached(&cancelled, setting, "the filler goes on").await;
        });
        upstream.assert_no_fault();
    }
}

#[test]
fn it_ends_when_the_rate_stands_still_and_waits_for_its_lanes() {
    let _beside = PARKED_BYTES.read();
    for setting in settings() {
        let (begun, cancelled, may_end) = (Tally::default(), Tally::default(), Tally::default());
        let upstream = trickle(&begun, &cancelled, &may_end);
        setting.run(&[upstream.address], Lanes::cold(1), async move |manager| {
            let is_over = Cell::new(false);
            let filler = async {
                let outcome = manager.fill(FILLER as u64).await;
                is_over.set(true);
                outcome
            };
            let watch = async {
                reached(&cancelled, setting, "the filler goes on").await;
                // Time enough to miss what is under way.
                exec::sleep(Duration::from_millis(300)).await;
                assert!(!is_over.get(), "{setting}: END has not come yet");
                may_end.add(1);
            };
            let (outcome, ()) = join(filler, watch).await;
            assert_eq!(outcome, "the rate stands still", "{setting}");
        });
        upstream.assert_no_fault();
    }
}
