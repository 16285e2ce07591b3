//! Lanes that have filled the window while the client waits get a larger one.

use std::{io, time::Duration};

use super::*;
use crate::{
    mp::parked,
    wire::frame::{FIRST_CREDIT_BYTES, Frame},
};

const WINDOW: usize = FIRST_CREDIT_BYTES as usize;
/// More than twice what the first window allows.
const BODY: usize = 3 * WINDOW;
/// What the second lane brings: of it, the last part only once the client waits.
const PART: usize = WINDOW / 16;

/// Reads what the downstream says of the lane until it allows `bytes` of the body.
fn hears_of(lane: &mut FarLane, bytes: usize) -> io::Result<()> {
    loop {
        if matches!(lane.next()?.0, Frame::Credit { limit, .. } if limit.0 >= bytes as u64) {
            return Ok(());
        }
    }
}

/// Two frames of a byte are missing. With the first one next to nothing is taken: by what the client took, the window would not
/// grow.
#[test]
fn a_window_that_lanes_have_filled_grows_as_the_missing_frame_comes() {
    let _alone = PARKED_BYTES.write();
    let body = Arc::new(Random(8).bytes(BODY));
    for setting in settings() {
        let [joined, waits, filled, grown] = [(); 4].map(|()| Tally::default());
        let (client_waits, is_filled) = (waits.clone(), filled.clone());
        let bytes = body.clone();
        let upstream = Upstream::start(9, move |lane, Opening { transfer, nth }| {
            joined.add(1);
            joined.reach(2)?;
            lane.head(transfer)?;
            let missing = [0, 1].map(|at| Piece { seq: at as u64, start: at, end: at + 1 });
            let others = cut(BODY - 2, || PART);
            let others: Vec<_> = others
                .iter()
                .map(|piece| Piece { seq: piece.seq + 2, start: piece.start + 2, end: piece.end + 2 })
                .collect();
            let window = others.partition_point(|piece| piece.end <= WINDOW);
            if nth == 0 {
                is_filled.reach(1)?;
                lane.piece(transfer, &bytes, missing[0])?;
                hears_of(lane, 2 * WINDOW)?;
                grown.add(1);
                lane.piece(transfer, &bytes, missing[1])?;
            } else {
                for (at, piece) in others.iter().enumerate() {
                    if at == window - 1 {
                        client_waits.reach(1)?;
                    } else if at == window {
                        grown.reach(1)?;
                    }
                    lane.piece(transfer, &bytes, *piece)?;
                }
            }
            lane.end(transfer, 2 + others.len() as u64, BODY as u64)
        });
        let wanted = body.clone();
        setting.run(&[upstream.address], Lanes::cold(2), async move |manager| {
            let watched = async {
                let parked = async |bytes: usize| {
                    while parked::bytes() < bytes {
                        exec::sleep(Duration::from_millis(5)).await;
                    }
                    // The consumer runs on this core, and waits by then; the window is older than a round trip.
                    exec::sleep(Duration::from_millis(100)).await;
                };
                parked(WINDOW - 4 * PART).await;
                waits.add(1);
                parked(WINDOW - 2 * PART).await;
                filled.add(1);
            };
            futures_util::future::join(watched, fetch_whole(&manager, &wanted)).await;
        });
        upstream.assert_no_fault();
        assert_eq!(parked::bytes(), 0, "{setting}");
    }
}
