//! Filler that is fetched before the first client comes.

use std::{io, time::Instant};

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
            manager.fill(FILLER as u64).await;
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
            manager.fill(FILLER as u64).await;
            fetch_whole(&manager, BODY).await;
        });
        upstream.assert_no_fault();
    }
}

#[test]
fn it_gives_way_to_a_client() {
    let _beside = PARKED_BYTES.read();
    for setting in settings() {
        let (begun, cancelled) = (Tally::default(), Tally::default());
        let (has_begun, was_cancelled) = (begun.clone(), cancelled.clone());
        let upstream = upstream(move |lane, transfer| {
            lane.head(transfer)?;
            lane.data(transfer, 0, 0, &[0; 1000])?;
            has_begun.add(1);
            lane.await_cancel(transfer)?;
            was_cancelled.add(1);
            lane.end_as(transfer, Outcome::Cancelled, "")
        });
        setting.run(&[upstream.address], Lanes::cold(1), async move |manager| {
            let (filler, started) = (manager.clone(), Instant::now());
            exec::spawn(async move { filler.fill(FILLER as u64).await });
            while begun.get() == 0 {
                exec::sleep(Duration::from_millis(2)).await;
            }
            fetch_whole(&manager, BODY).await;
            while cancelled.get() == 0 {
                assert!(started.elapsed() < PATIENCE, "{setting}: the filler goes on");
                exec::sleep(Duration::from_millis(2)).await;
            }
        });
        upstream.assert_no_fault();
    }
}
