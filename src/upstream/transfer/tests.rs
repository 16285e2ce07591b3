//! What a transfer keeps of its body, and for how long.

use bytes::Bytes;

use super::{
    super::{home::Homes, keep::Keep},
    *,
};
use crate::{exec::Core, mp::manager::Placement};

const BODY: &[u8] = b"0123456789abcdefghij";

fn transfer() -> (Arc<Transfer>, LaneId) {
    let keep = Keep::new(1 << 30);
    let homes = Homes::of(Placement::Auto, 1);
    let home = homes.choose(Core(0));
    let registry = Arc::new(Registry::new(keep.clone(), homes));
    let transfer = Arc::new(Transfer::new(TransferId(1), registry, Arc::default(), keep.share(), home));
    transfer.begin(Vec::new(), Source::Memory(Bytes::from_static(BODY)));
    let lane = transfer.join(LaneModel::default());
    (transfer, lane)
}

/// The next frame, of five bytes.
fn fresh(transfer: &Transfer, lane: LaneId) -> (Piece, Conduit) {
    let fresh = transfer.fresh(lane, 5, &mut View::default()).now_or_never();
    let Some(Some((piece, Payload::Conduit(conduit)))) = fresh else { panic!("memory needs no wait") };
    (piece, conduit)
}

fn kept(transfer: &Transfer) -> Vec<u64> {
    let mut kept: Vec<_> = transfer.board().kept.keys().map(|seq| seq.0).collect();
    kept.sort_unstable();
    kept
}

#[test]
fn frames_are_kept_until_the_downstream_has_them() {
    let (transfer, lane) = transfer();
    let other = transfer.join(LaneModel::default());
    for (seq, lane) in [(0, lane), (1, lane), (2, other), (3, lane)] {
        assert_eq!(fresh(&transfer, lane).0.seq, Seq(seq));
    }
    assert_eq!(kept(&transfer), [0, 1, 2, 3]);
    transfer.received(lane, (2, 0), Reading::Eager, 0).unwrap();
    assert_eq!(kept(&transfer), [2, 3]);
    transfer.received(other, (1, 0), Reading::Eager, 0).unwrap();
    assert!(transfer.received(other, (2, 0), Reading::Eager, 0).is_err(), "it carried one");
    assert_eq!((kept(&transfer), transfer.ending()), (vec![3], None));
    transfer.received(lane, (3, 0), Reading::Eager, 0).unwrap();
    assert!(kept(&transfer).is_empty());
    let ending = transfer.ending().expect("all is delivered");
    assert_eq!((ending.outcome, ending.frames, ending.bytes), (Outcome::Complete, 4, 20));
}

#[test]
fn what_a_lost_lane_has_brought_is_not_kept_once_another_says_so() {
    let (transfer, lost) = transfer();
    let other = transfer.join(LaneModel::default());
    let [first, second] = [(); 2].map(|()| fresh(&transfer, lost).0.seq);
    transfer.leave(lost, false);
    transfer.received(other, (0, 1), Reading::Eager, 0).unwrap();
    assert_eq!(kept(&transfer), [second.0]);
    assert!(transfer.again(other, first).is_none(), "the downstream has it");
    assert!(transfer.received(other, (0, 3), Reading::Eager, 0).is_err(), "there were two");
}

#[test]
fn a_lost_lanes_frames_are_sent_again_as_they_were_until_somebody_has_them() {
    let (transfer, lost) = transfer();
    let other = transfer.join(LaneModel::default());
    let (first, _) = fresh(&transfer, lost);
    let (second, _) = fresh(&transfer, lost);
    transfer.received(lost, (1, 0), Reading::Eager, 0).unwrap();
    transfer.leave(lost, false);
    assert!(transfer.again(other, first.seq).is_none(), "the downstream has it");
    // And once more, should the second lane be lost as well.
    let third = transfer.join(LaneModel::default());
    for lane in [other, third] {
        let Some((piece, Payload::Conduit(mut conduit))) = transfer.again(lane, second.seq) else {
            panic!("it is kept");
        };
        assert_eq!((piece.seq, piece.offset, conduit.len()), (second.seq, second.offset, 5));
        let copy = tempfile::tempfile().unwrap();
        conduit.drain_to_file(std::os::fd::AsFd::as_fd(&copy), 0).unwrap();
        let mut bytes = [0; 5];
        std::os::unix::fs::FileExt::read_exact_at(&copy, &mut bytes, 0).unwrap();
        assert_eq!(bytes, BODY[5..10]);
        if lane == other {
            transfer.leave(other, false);
        }
    }
}

#[test]
fn nothing_is_kept_of_a_transfer_that_was_given_up() {
    let (transfer, lane) = transfer();
    let (piece, _) = fresh(&transfer, lane);
    assert!(transfer.end(Outcome::Cancelled, ""));
    assert!(kept(&transfer).is_empty());
    assert!(transfer.again(lane, piece.seq).is_none());
}
