//! An upstream that breaks the protocol, gives up or vanishes: each ends with the error that says so, in time, and
//! the client never gets a byte that is wrong.

use std::io::{self, Write};

use super::*;
use crate::wire::{
    frame::{Frame, Outcome},
    units::{FrameLen, TransferId},
};

const BODY: &[u8] = b"0123456789abcdefghij";

/// What a script does on lane `nth` after both lanes have joined.
type Script = fn(&mut FarLane, TransferId, usize) -> io::Result<()>;

/// Runs `script` on both lanes of a transfer, and hands `judge` how it ended.
fn ends(script: Script, announced: Option<u64>, judge: fn(&Result<u64, Failure>) -> bool) {
    let _beside = PARKED_BYTES.read();
    for setting in settings() {
        let joined = Arc::new(Mutex::new(std::collections::HashMap::<u64, Tally>::new()));
        let upstream = Upstream::start(9, move |lane, Opening { transfer, nth }| {
            let together = joined.lock().unwrap().entry(transfer.0).or_default().clone();
            together.add(1);
            together.reach(2)?;
            script(lane, transfer, nth)
        });
        setting.run(&[upstream.address], Lanes::cold(2), async move |manager| {
            let (outcome, got) = fetch(&manager, announced).await;
            assert!(judge(&outcome), "{setting}: {outcome:?}");
            assert!(BODY.starts_with(&got), "{setting}: {:?}", String::from_utf8_lossy(&got));
            assert!(got.len() as u64 <= announced.unwrap_or(u64::MAX), "{setting}: more than was announced");
        });
        upstream.assert_no_fault();
    }
}

/// Whether a peer is said to have broken the protocol in this way.
fn protocol(outcome: &Result<u64, Failure>, what: &str) -> bool {
    let reason = match outcome {
        Err(Failure::Transfer(TransferError::Protocol { reason })) => reason,
        Err(Failure::Fetch(FetchError::Aborted { reason })) => reason,
        _ => return false,
    };
    reason.contains("lane over 127.0.0.1:") && reason.contains(what)
}

fn lost(outcome: &Result<u64, Failure>) -> bool {
    matches!(outcome, Err(Failure::Transfer(TransferError::LanesLost { .. })))
}

/// The first lane misbehaves by `evil` after a sane frame; the second waits for what follows.
fn after_a_frame(
    lane: &mut FarLane,
    transfer: TransferId,
    nth: usize,
    evil: impl FnOnce(&mut FarLane) -> io::Result<()>,
) -> io::Result<()> {
    lane.head(transfer)?;
    if nth == 1 {
        return lane.yield_to_cancel(transfer);
    }
    lane.data(transfer, 0, 0, &BODY[..5])?;
    evil(lane)?;
    lane.await_close();
    Ok(())
}

#[test]
fn a_frame_that_comes_twice_is_taken_once() {
    let script: Script = |lane, transfer, nth| {
        lane.head(transfer)?;
        if nth == 0 {
            lane.data(transfer, 0, 0, &BODY[..5])?;
        }
        lane.data_again(transfer, 1, 5, &BODY[5..10])?;
        lane.end(transfer, 2, 10)
    };
    ends(script, Some(10), |outcome| matches!(outcome, Ok(10)));
}

#[test]
fn a_copy_from_another_place() {
    let script: Script = |lane, transfer, nth| {
        after_a_frame(lane, transfer, nth, |lane| lane.data_again(transfer, 1, 4, &BODY[5..10]))
    };
    ends(script, None, |outcome| {
        matches!(outcome, Err(Failure::Transfer(TransferError::Protocol { reason }))
            if reason.contains("frame 1 begins at 4, where 5 follows"))
    });
}

#[test]
fn numbers_that_go_back() {
    let script: Script = |lane, transfer, nth| {
        after_a_frame(lane, transfer, nth, |lane| lane.data(transfer, 0, 5, &BODY[5..9]))
    };
    ends(script, None, |outcome| protocol(outcome, "DATA frame 0 came on a lane whose frames go on at 1"));
}

#[test]
fn an_offset_that_does_not_follow() {
    let script: Script = |lane, transfer, nth| {
        after_a_frame(lane, transfer, nth, |lane| lane.data(transfer, 1, 6, &BODY[6..9]))
    };
    ends(script, None, |outcome| protocol(outcome, "begins at offset 6, where only 5 to 5 can be"));
}

#[test]
fn a_frame_of_another_transfer() {
    let script: Script = |lane, transfer, nth| {
        let other = TransferId(transfer.0 ^ 1);
        after_a_frame(lane, transfer, nth, |lane| lane.data(other, 1, 5, &BODY[5..9]))
    };
    ends(script, None, |outcome| protocol(outcome, "on a lane that carries transfer"));
}

#[test]
fn a_frame_far_beyond_every_window() {
    let script: Script = |lane, transfer, nth| {
        after_a_frame(lane, transfer, nth, |lane| lane.data(transfer, 1 << 40, 1 << 41, b"x"))
    };
    ends(script, None, |outcome| protocol(outcome, "frames ahead of"));
}

#[test]
fn data_behind_the_end() {
    // The next transfer on this lane must not take it for its own; this one may be complete by then.
    let script: Script = |lane, transfer, _| {
        lane.head(transfer)?;
        lane.end(transfer, 0, 0)?;
        lane.data(transfer, 0, 0, b"x")
    };
    ends(script, None, |outcome| matches!(outcome, Ok(0)));
}

#[test]
fn totals_that_this_lane_contradicts() {
    let script: Script =
        |lane, transfer, nth| after_a_frame(lane, transfer, nth, |lane| lane.end(transfer, 1, 6));
    ends(script, None, |outcome| protocol(outcome, "END claims 1 frames and 6 bytes"));
}

#[test]
fn totals_that_only_the_sum_of_lanes_contradicts() {
    let script: Script = |lane, transfer, nth| {
        lane.head(transfer)?;
        if nth == 0 {
            lane.data(transfer, 0, 0, &BODY[..5])?;
            lane.data(transfer, 1, 5, &BODY[5..10])?;
            lane.end(transfer, 2, 10)
        } else {
            // Fits what this lane saw, and says that a frame is still to come, which never does.
            lane.end(transfer, 3, 11)
        }
    };
    // Whichever END came first is believed: either the body is whole, or a frame is missing.
    ends(script, Some(10), |outcome| matches!(outcome, Ok(10)) || lost(outcome));
}

#[test]
fn bytes_that_only_the_sum_of_lanes_contradicts() {
    let script: Script = |lane, transfer, nth| {
        lane.head(transfer)?;
        if nth == 1 {
            lane.data(transfer, 1, 5, &BODY[5..10])?;
            return lane.yield_to_cancel(transfer);
        }
        lane.data(transfer, 0, 0, &BODY[..5])?;
        // The other lane's frame might have this length.
        lane.end(transfer, 2, 11)
    };
    ends(script, None, |outcome| {
        matches!(outcome, Err(Failure::Transfer(TransferError::Totals { got: 10, announced: 11 })))
    });
}

#[test]
fn garbage_instead_of_a_header() {
    let script: Script =
        |lane, transfer, nth| after_a_frame(lane, transfer, nth, |lane| lane.stream.write_all(&[0xAA; 32]));
    ends(script, None, |outcome| protocol(outcome, "carries nonsense"));
}

#[test]
fn a_head_that_is_too_long() {
    let script: Script = |lane, transfer, _| {
        let mut header = Frame::Head { transfer, head_len: FrameLen(64 * 1024) }.encode();
        header[7] = 1;
        lane.stream.write_all(&header)?;
        lane.await_close();
        Ok(())
    };
    ends(script, None, |outcome| protocol(outcome, "announces 65537 payload bytes, more than 65536"));
}

#[test]
fn a_body_longer_than_its_head_announced() {
    let script: Script = |lane, transfer, nth| {
        after_a_frame(lane, transfer, nth, |lane| {
            lane.data(transfer, 1, 5, &BODY[5..20])?;
            lane.end(transfer, 2, 20)
        })
    };
    ends(script, Some(10), |outcome| {
        matches!(outcome, Err(Failure::Transfer(TransferError::Length { got: 20, announced: 10 })))
    });
}

#[test]
fn a_body_shorter_than_its_head_announced() {
    let script: Script =
        |lane, transfer, nth| after_a_frame(lane, transfer, nth, |lane| lane.end(transfer, 1, 5));
    ends(script, Some(10), |outcome| {
        matches!(outcome, Err(Failure::Transfer(TransferError::Length { got: 5, announced: 10 })))
    });
}

#[test]
fn an_upstream_that_gives_up_says_why() {
    let script: Script = |lane, transfer, nth| {
        after_a_frame(lane, transfer, nth, |lane| lane.end_as(transfer, Outcome::Aborted, "root r: it fell"))
    };
    ends(
        script,
        Some(10),
        |outcome| matches!(outcome, Err(Failure::Transfer(TransferError::Aborted { reason })) if reason == "root r: it fell"),
    );
}

#[test]
fn an_upstream_that_gives_up_before_the_head_says_why() {
    let script: Script = |lane, transfer, _| lane.end_as(transfer, Outcome::Aborted, "root r: no answer");
    ends(
        script,
        None,
        |outcome| matches!(outcome, Err(Failure::Fetch(FetchError::Aborted { reason })) if reason == "root r: no answer"),
    );
}

#[test]
fn lanes_closed_in_the_middle_of_a_frame() {
    let script: Script = |lane, transfer, nth| {
        lane.head(transfer)?;
        lane.send(data(transfer, nth as u64, 10 * nth as u64, 10), &BODY[10 * nth..][..4])?;
        Err(io::ErrorKind::BrokenPipe.into())
    };
    ends(script, Some(20), lost);
}

#[test]
fn lanes_closed_in_the_middle_of_a_header() {
    let script: Script = |lane, transfer, nth| {
        lane.head(transfer)?;
        lane.stream.write_all(&data(transfer, nth as u64, 10 * nth as u64, 10).encode()[..17])?;
        Err(io::ErrorKind::BrokenPipe.into())
    };
    ends(script, Some(20), lost);
}

#[test]
fn one_lane_closed_before_the_head_does_no_harm() {
    let script: Script = |lane, transfer, nth| {
        if nth == 0 {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        lane.head(transfer)?;
        lane.data(transfer, 0, 0, BODY)?;
        lane.end(transfer, 1, 20)
    };
    ends(script, Some(20), |outcome| matches!(outcome, Ok(20)));
}

#[test]
fn all_lanes_closed_before_the_head() {
    let script: Script = |_, _, _| Err(io::ErrorKind::BrokenPipe.into());
    ends(script, None, |outcome| matches!(outcome, Err(Failure::Fetch(FetchError::LanesLost { .. }))));
}

#[test]
fn all_lanes_closed_between_frames() {
    let script: Script = |lane, transfer, nth| {
        lane.head(transfer)?;
        lane.data(transfer, nth as u64, 10 * nth as u64, &BODY[10 * nth..][..10])?;
        Err(io::ErrorKind::BrokenPipe.into())
    };
    ends(script, Some(30), lost);
}

#[test]
fn without_an_upstream_the_path_is_named() {
    let _beside = PARKED_BYTES.read();
    for setting in settings() {
        let address = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
        setting.run(&[address], Lanes::cold(2), async move |manager| match fetch(&manager, None).await.0 {
            Err(Failure::Fetch(FetchError::NoLane { cause: NoLaneCause::Refused, reason })) => {
                assert!(reason.contains(&format!("path {address}")), "{reason}");
            }
            other => panic!("{setting}: {other:?}"),
        });
    }
}
