//! The check against a plain oracle, and each rule by itself. Fuzz it with
//! `cargo bolero test wire::frame_check::tests::agrees_with_the_oracle`.

use super::super::frame::tests::{Draw, frame_in_bounds};
use super::super::units::FrameLen;
use super::*;

const ID: TransferId = TransferId(7);

fn head() -> Frame {
    Frame::Head { transfer: ID, head_len: FrameLen(100) }
}

fn data(seq: u64, offset: u64, len: u32) -> Frame {
    Frame::Data { transfer: ID, seq: Seq(seq), offset: Offset(offset), len: FrameLen(len), again: false }
}

fn end(outcome: Outcome, frames: u64, bytes: u64) -> Frame {
    Frame::End { transfer: ID, outcome, frames, bytes, reason_len: FrameLen(0) }
}

/// Feeds `frames` to a fresh check with a consumer that waits for frame 0; all but the last must pass.
fn verdict(frames: &[Frame]) -> Result<(), FrameCheckError> {
    let mut check = FrameCheck::new(ID);
    let (last, first) = frames.split_last().expect("at least one frame");
    for frame in first {
        check.accept(frame, Seq(0)).unwrap_or_else(|error| panic!("{frame:?}: {error}"));
    }
    check.accept(last, Seq(0))
}

#[test]
fn a_lanes_share_of_a_transfer_passes() {
    let share = [head(), data(0, 0, 10), data(1, 10, 5), Frame::Pong { token: 1 }, data(4, 40, 1)];
    assert_eq!(verdict(&share), Ok(()));
    let mut check = FrameCheck::new(ID);
    for frame in share {
        check.accept(&frame, Seq(0)).unwrap();
        assert!(!check.is_ended());
    }
    check.accept(&end(Outcome::Complete, 6, 100), Seq(0)).unwrap();
    assert!(check.is_ended());
}

#[test]
fn a_lane_may_carry_nothing_of_a_transfer() {
    assert_eq!(verdict(&[end(Outcome::Complete, 0, 0)]), Ok(()));
    assert_eq!(verdict(&[end(Outcome::Complete, 3, 3000)]), Ok(()));
    assert_eq!(verdict(&[head(), end(Outcome::Cancelled, 0, 0)]), Ok(()));
}

#[test]
fn each_broken_rule_is_named() {
    assert_eq!(
        verdict(&[Frame::Ping { token: 1 }]),
        Err(FrameCheckError::WrongDirection { kind: Kind::Ping })
    );
    let other = Frame::Head { transfer: TransferId(8), head_len: FrameLen(1) };
    let wrong = FrameCheckError::WrongTransfer { kind: Kind::Head, found: TransferId(8), expected: ID };
    assert_eq!(verdict(&[other]), Err(wrong));
    assert_eq!(verdict(&[head(), head()]), Err(FrameCheckError::SecondHead));
    assert_eq!(verdict(&[data(0, 0, 1), head()]), Err(FrameCheckError::HeadAfterData));
    let total = Frame::Total { transfer: ID, frames: 2, bytes: 9 };
    assert_eq!(verdict(&[total, total]), Err(FrameCheckError::SecondTotal));
    let done = end(Outcome::Aborted, 0, 0);
    for (late, kind) in [(head(), Kind::Head), (data(0, 0, 1), Kind::Data), (done, Kind::End)] {
        assert_eq!(verdict(&[done, late]), Err(FrameCheckError::AfterEnd { kind }));
    }
    let again = FrameCheckError::SeqNotIncreasing { found: Seq(3), expected: Seq(4) };
    assert_eq!(verdict(&[data(3, 30, 1), data(3, 31, 1)]), Err(again));
}

#[test]
fn frames_neither_overlap_nor_leave_gaps() {
    let max = u64::from(MAX_FRAME_BYTES);
    let mismatch = |seq, found, min, max| {
        Err(FrameCheckError::OffsetMismatch {
            seq: Seq(seq),
            found: Offset(found),
            min: Offset(min),
            max: Offset(max),
        })
    };
    assert_eq!(verdict(&[data(0, 1, 1)]), mismatch(0, 1, 0, 0));
    assert_eq!(verdict(&[data(0, 0, 10), data(1, 9, 1)]), mismatch(1, 9, 10, 10));
    assert_eq!(verdict(&[data(0, 0, 10), data(1, 11, 1)]), mismatch(1, 11, 10, 10));
    assert_eq!(verdict(&[data(0, 0, 10), data(3, 11, 1)]), mismatch(3, 11, 12, 10 + 2 * max));
    assert_eq!(verdict(&[data(0, 0, 10), data(3, 12, 1)]), Ok(()));
    assert_eq!(verdict(&[data(0, 0, 10), data(3, 10 + 2 * max, 1)]), Ok(()));
    assert_eq!(
        verdict(&[data(0, 0, 10), data(3, 11 + 2 * max, 1)]),
        mismatch(3, 11 + 2 * max, 12, 10 + 2 * max)
    );
}

#[test]
fn totals_that_contradict_the_lane_are_refused() {
    let share = [data(0, 0, 10), data(2, 20, 10)];
    for (frames, bytes, fits) in
        [(3, 30, true), (4, 31, true), (3, 31, false), (4, 30, false), (2, 20, false), (2, 30, false)]
    {
        let complete = verdict(&[share[0], share[1], end(Outcome::Complete, frames, bytes)]);
        assert_eq!(complete.is_ok(), fits, "{frames} frames, {bytes} bytes");
        assert_eq!(verdict(&[share[0], share[1], end(Outcome::Aborted, frames, bytes)]), Ok(()));
    }
}

#[test]
fn a_frame_far_ahead_is_refused_and_one_far_behind_is_not() {
    let wanted = Seq(1000);
    let at = |seq: u64| FrameCheck::new(ID).accept(&data(seq, seq, 1), wanted);
    assert_eq!(at(1000 + MAX_SEQ_AHEAD), Ok(()));
    let found = Seq(1001 + MAX_SEQ_AHEAD);
    assert_eq!(at(found.0), Err(FrameCheckError::SeqTooFarAhead { found, wanted }));
    assert_eq!(at(5), Ok(()));
}

#[test]
fn an_error_changes_nothing() {
    let mut check = FrameCheck::new(ID);
    check.accept(&data(0, 0, 10), Seq(0)).unwrap();
    check.accept(&data(1, 11, 10), Seq(0)).unwrap_err();
    check.accept(&data(1, 10, 10), Seq(0)).unwrap();
}

/// The rules again, over the whole history and with arithmetic that cannot overflow.
fn oracle(history: &[Frame], frame: &Frame, next_wanted: u64) -> bool {
    let is_data = |f: &&Frame| matches!(f, Frame::Data { again: false, .. });
    let last = history.iter().rev().find(is_data);
    let (last_seq, last_end) = match last {
        Some(Frame::Data { seq, offset, len, .. }) => {
            (i128::from(seq.0), i128::from(offset.0) + i128::from(len.0))
        }
        _ => (-1, 0),
    };
    let between = |seq: u64| i128::from(seq) - last_seq - 1;
    let place_fits = |seq: u64, at: u64| {
        let hole = i128::from(at) - last_end;
        between(seq) >= 0 && hole >= between(seq) && hole <= between(seq) * i128::from(MAX_FRAME_BYTES)
    };
    let ended = history.iter().any(|f| matches!(f, Frame::End { .. }));
    match *frame {
        Frame::Pong { .. } => true,
        Frame::Head { transfer, .. } => transfer == ID && history.is_empty(),
        Frame::Total { transfer, frames, bytes } => {
            let is_first = !history.iter().any(|f| matches!(f, Frame::Total { .. }));
            transfer == ID && !ended && is_first && place_fits(frames, bytes)
        }
        Frame::Data { transfer, seq, again: true, .. } => {
            let ahead = i128::from(seq.0) - i128::from(next_wanted);
            transfer == ID && !ended && ahead <= i128::from(MAX_SEQ_AHEAD)
        }
        Frame::Data { transfer, seq, offset, .. } => {
            let ahead = i128::from(seq.0) - i128::from(next_wanted);
            transfer == ID && !ended && ahead <= i128::from(MAX_SEQ_AHEAD) && place_fits(seq.0, offset.0)
        }
        Frame::End { transfer, outcome, frames, bytes, .. } => {
            transfer == ID && !ended && (outcome != Outcome::Complete || place_fits(frames, bytes))
        }
        Frame::Open { .. }
        | Frame::Cancel { .. }
        | Frame::Credit { .. }
        | Frame::Body { .. }
        | Frame::Ping { .. } => false,
    }
}

/// Turns a draw into a frame that mostly is plausible next: small steps from where the lane is.
fn next_frame(choice: u8, draw: Draw, seq: u64, offset: u64) -> Frame {
    let (_, _, len, step, slack) = draw;
    let len = 1 + len % 4;
    match choice % 16 {
        0 => frame_in_bounds(draw),
        1 => head(),
        2 => Frame::Pong { token: step },
        3 => end(Outcome::Aborted, 0, 0),
        4 => end(Outcome::Complete, (seq + step % 4).saturating_sub(1), offset + slack % 4),
        5 => data((seq + step % 4).saturating_sub(2), offset, len),
        6 => data(seq + MAX_SEQ_AHEAD + step % 3, offset + MAX_SEQ_AHEAD + step % 3, len),
        7 => data(seq + 1, offset + u64::from(MAX_FRAME_BYTES) + slack % 3 - 1, len),
        8 => Frame::Data {
            transfer: TransferId(ID.0 + step % 2),
            seq: Seq(seq),
            offset: Offset(offset),
            len: FrameLen(len),
            again: step % 5 == 0,
        },
        9 => Frame::Total { transfer: ID, frames: seq + step % 2, bytes: offset + slack % 4 },
        _ => data(seq + step % 3, offset + step % 3 + slack % 2, len),
    }
}

#[test]
fn agrees_with_the_oracle() {
    bolero::check!().with_type::<(u8, Vec<(u8, Draw)>)>().for_each(|(lag, draws)| {
        let mut check = FrameCheck::new(ID);
        let mut history = Vec::new();
        let (mut seq, mut offset) = (0, 0);
        for &(choice, draw) in draws {
            let frame = next_frame(choice, draw, seq, offset);
            let next_wanted = seq.saturating_sub(u64::from(lag % 4));
            let verdict = check.accept(&frame, Seq(next_wanted));
            assert_eq!(
                verdict.is_ok(),
                oracle(&history, &frame, next_wanted),
                "{verdict:?} for {frame:?} after {history:?}, consumer at {next_wanted}"
            );
            if verdict.is_err() || matches!(frame, Frame::Pong { .. }) {
                continue;
            }
            if let Frame::Data { seq: s, offset: o, len, again: false, .. } = frame {
                (seq, offset) = (s.0 + 1, o.0 + u64::from(len.0));
            }
            history.push(frame);
        }
    });
}
