use super::*;
use crate::mp::stripe::model::RateSample;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn fresh(striper: &mut Striper, lane: LaneId, len: u32, now: Duration) -> Piece {
    match striper.turn(lane, len as usize, now) {
        Turn::Fresh { want } => striper.cut(lane, FrameLen(want as u32), now).unwrap(),
        other => panic!("{other:?} at {now:?}"),
    }
}

#[test]
fn one_lane_carries_all_in_order() {
    let mut striper = Striper::new();
    striper.set_length(Some(10_000));
    let lane = striper.join(LaneModel::default(), ms(0));
    assert_eq!(
        fresh(&mut striper, lane, 6000, ms(0)),
        Piece { seq: Seq(0), offset: Offset(0), len: FrameLen(6000) }
    );
    assert_eq!(
        fresh(&mut striper, lane, 6000, ms(0)),
        Piece { seq: Seq(1), offset: Offset(6000), len: FrameLen(4000) }
    );
    assert_eq!(striper.turn(lane, 6000, ms(0)), Turn::Wait { until: None });
    assert_eq!(striper.received(lane, 1, Reading::Eager, ms(50)), Ok(vec![Seq(0)]));
    assert_eq!(striper.received(lane, 3, Reading::Eager, ms(50)), Err(Overcount { claimed: 3, sent: 2 }));
    striper.end_of_body();
    assert!(!striper.is_delivered());
    assert_eq!(striper.received(lane, 2, Reading::Eager, ms(60)), Ok(vec![Seq(1)]));
    assert!(striper.is_delivered());
    assert_eq!(striper.totals(), (2, 10_000));
}

#[test]
fn a_lost_lanes_frames_come_first_and_in_order() {
    let mut striper = Striper::new();
    let (a, b) = (striper.join(LaneModel::default(), ms(0)), striper.join(LaneModel::default(), ms(0)));
    for _ in 0..3 {
        fresh(&mut striper, a, 1000, ms(0));
    }
    striper.received(a, 1, Reading::Eager, ms(40)).unwrap();
    assert!(striper.leave(a, ms(50)).rate().is_some());
    for seq in [1, 2] {
        assert_eq!(striper.turn(b, 1000, ms(50)), Turn::Again { seq: Seq(seq) });
        assert_eq!(striper.again(b, Seq(seq), ms(50)).unwrap().offset, Offset(1000 * seq));
        assert_eq!(striper.again(b, Seq(seq), ms(50)), None, "twice on one lane");
    }
    assert!(matches!(striper.turn(b, 1000, ms(50)), Turn::Fresh { .. }));
    assert_eq!(striper.resent().recovered_bytes, 2000);
}

/// A striper with two lanes that carry 100 kB/s and 90 kB/s over 50 ms.
fn two_known_lanes() -> (Striper, LaneId, LaneId, Duration) {
    let mut striper = Striper::new();
    let lanes = [10_000, 9_000].map(|len| {
        let lane = striper.join(LaneModel::default(), ms(0));
        for frame in 0..10 {
            fresh(&mut striper, lane, len, ms(100 * frame));
            striper.received(lane, frame + 1, Reading::Eager, ms(100 * frame + 50)).unwrap();
        }
        lane
    });
    (striper, lanes[0], lanes[1], ms(1000))
}

/// Bytes that a lane of 10 MB/s and 50 ms is given before it has to wait, a second into the transfer.
fn taken_at_once(model: LaneModel, is_alone: bool) -> u64 {
    const FRAME: u32 = 100_000;
    let mut striper = Striper::new();
    striper.grant(u64::MAX);
    if !is_alone {
        striper.join(LaneModel::default(), ms(0));
    }
    let lane = striper.join(model, ms(0));
    for frame in 0..100 {
        striper.cut(lane, FrameLen(FRAME), ms(10 * frame)).unwrap();
        if let Some(arrived) = frame.checked_sub(5) {
            striper.received(lane, arrived + 1, Reading::Eager, ms(10 * frame)).unwrap();
        }
    }
    let (_, before) = striper.totals();
    while let Turn::Fresh { want } = striper.turn(lane, FRAME as usize, ms(1000)) {
        if striper.cut(lane, FrameLen(want as u32), ms(1000)).is_none() || striper.totals().1 > 100_000_000 {
            break;
        }
    }
    striper.totals().1 - before
}

#[test]
fn a_lane_alone_is_given_more_but_not_all() {
    let beside_another = taken_at_once(LaneModel::default(), false);
    let alone = taken_at_once(LaneModel::default(), true);
    assert!(alone > beside_another, "{alone} bytes, beside another {beside_another}");
    assert!(alone < 10_000_000, "{alone} bytes: a second of what the lane carries");
}

/// A model whose acknowledgements have paused for so many seconds.
fn paused(seconds: f64) -> LaneModel {
    far_and_paused(0.05, seconds)
}

fn far_and_paused(round_trip: f64, seconds: f64) -> LaneModel {
    let mut model = LaneModel::default();
    model.saw_rate(RateSample { bytes: 1e6, seconds: 1.0, since_last: 1.0, is_floor: false });
    model.saw_round_trip(round_trip, 1000.0, 1.0);
    model.saw_stall(seconds, 1.0);
    model
}

#[test]
fn a_lane_that_pauses_leaves_the_first_frame_to_one_that_does_not() {
    let mut striper = Striper::new();
    let lanes = [0.3, 0.0].map(|seconds| striper.join(paused(seconds), ms(0)));
    assert_eq!(striper.turn(lanes[0], 16_000, ms(1)), Turn::Wait { until: Some(ms(3)) });
    fresh(&mut striper, lanes[1], 16_000, ms(2));
    fresh(&mut striper, lanes[0], 16_000, ms(3));
}

#[test]
fn a_lane_that_is_far_away_leaves_the_first_frame_to_a_near_one_that_pauses() {
    let mut striper = Striper::new();
    let lanes = [(1.0, 0.0), (0.1, 1.0)].map(|(far, pause)| striper.join(far_and_paused(far, pause), ms(0)));
    assert!(matches!(striper.turn(lanes[0], 16_000, ms(1)), Turn::Wait { .. }));
    fresh(&mut striper, lanes[1], 16_000, ms(2));
}

#[test]
fn the_first_frame_is_not_left_to_a_lane_that_does_not_ask_or_is_no_better() {
    let mut striper = Striper::new();
    let lanes = [0.3, 0.0].map(|seconds| striper.join(paused(seconds), ms(0)));
    assert!(matches!(striper.turn(lanes[0], 16_000, ms(1)), Turn::Wait { .. }));
    fresh(&mut striper, lanes[0], 16_000, ms(22));

    let mut striper = Striper::new();
    let lanes = [0.31, 0.3].map(|seconds| striper.join(paused(seconds), ms(0)));
    fresh(&mut striper, lanes[0], 16_000, ms(1));
}

#[test]
fn what_a_lane_over_several_paths_needs_is_left_to_the_kernel() {
    let taken = taken_at_once(LaneModel::new(true, None), false);
    assert!(taken > 20_000_000, "{taken} bytes: the window is the bound");
}

#[test]
fn a_lost_frame_is_taken_by_a_lane_even_where_all_together_would_be_faster() {
    let (mut striper, a, b, now) = two_known_lanes();
    // A frame of seconds cannot be shared.
    let gone = striper.join(LaneModel::default(), now);
    assert!(matches!(striper.turn(gone, 500_000, now), Turn::Fresh { .. }));
    let lost = striper.cut(gone, FrameLen(500_000), now).unwrap().seq;
    striper.leave(gone, now);
    let takers = [a, b].map(|lane| striper.turn(lane, 16_000, now) == Turn::Again { seq: lost });
    assert!(takers.contains(&true), "or all wait for each other");
}

#[test]
fn what_a_lost_lane_has_brought_is_not_sent_again() {
    let (mut striper, a, b, now) = two_known_lanes();
    let first = fresh(&mut striper, a, 10_000, now).seq;
    let second = fresh(&mut striper, a, 10_000, now).seq;
    // A fifth of a second of work for the other one.
    fresh(&mut striper, b, 9_000, now);
    let third = fresh(&mut striper, b, 9_000, now).seq;
    striper.leave(a, now + ms(10));
    let Turn::Wait { until: Some(until) } = striper.turn(b, 9_000, now + ms(10)) else {
        panic!("the word is not awaited");
    };
    assert!(until > now + ms(30) && until <= now + ms(100), "{until:?}: a round trip, and no idleness");
    assert_eq!(striper.waits_for(second.0 as u32), Ok(vec![first]));
    assert_eq!(striper.waits_for(first.0 as u32), Ok(vec![]), "an older word, late");
    assert_eq!(striper.turn(b, 9_000, until), Turn::Again { seq: second });
    striper.again(b, second, until).unwrap();
    assert_eq!(striper.resent().recovered_bytes, 10_000);
    assert_eq!(striper.waits_for(third.0 as u32), Ok(vec![]), "nothing is lost any more");
    let rest = vec![Seq(third.0 - 1), third, second];
    assert_eq!(striper.received(b, 13, Reading::Eager, now + ms(400)), Ok(rest));
    assert_eq!(striper.waits_for(third.0 as u32 + 2), Err(Overcount { claimed: 25, sent: 24 }));
}

#[test]
fn a_lane_without_work_sends_what_is_lost_at_once() {
    let (mut striper, a, b, now) = two_known_lanes();
    let lost = fresh(&mut striper, a, 10_000, now).seq;
    striper.leave(a, now + ms(10));
    assert_eq!(striper.turn(b, 9_000, now + ms(10)), Turn::Again { seq: lost });
}

#[test]
fn what_holds_up_the_window_is_copied_by_a_lane_without_work() {
    let (mut striper, a, b, now) = two_known_lanes();
    striper.resent.tail_bytes = u64::MAX / 2;
    // `b` goes on until the window is closed; `a` brings its second frame far later, and is in time.
    fresh(&mut striper, a, 50_000, now);
    let Piece { seq: stuck, .. } = fresh(&mut striper, a, 9_000, now);
    striper.limit = striper.next_offset + 9_000;
    let rest = fresh(&mut striper, b, 9_000, now);
    striper.received(b, 11, Reading::Eager, now + ms(150)).unwrap();
    assert!(rest.seq > stuck);
    assert_eq!(striper.turn(b, 9_000, now + ms(160)), Turn::Again { seq: stuck });
    striper.again(b, stuck, now + ms(160)).unwrap();
    assert_eq!(striper.resent().held_up_bytes, 9_000);
}

/// Two lanes, of which the first was given seconds of work when it was thought to be quick; it closes the window. Copies have
/// cost enough.
fn a_collapsed_lane() -> (Striper, LaneId, [Seq; 30], Duration) {
    let (mut striper, a, b, now) = two_known_lanes();
    striper.resent.held_up_bytes = u64::MAX / 2;
    let stuck = [(); 30].map(|()| striper.cut(a, FrameLen(10_000), now).unwrap().seq);
    striper.limit = striper.next_offset;
    (striper, b, stuck, now)
}

#[test]
fn what_stands_on_a_collapsed_lane_is_copied_although_copies_have_cost_enough() {
    let (mut striper, b, stuck, mut now) = a_collapsed_lane();
    let mut copied = Vec::new();
    for frames in 11..13 {
        let Turn::Again { seq } = striper.turn(b, 9_000, now) else { panic!("after {copied:?}") };
        copied.push(striper.again(b, seq, now).unwrap().seq);
        now += ms(100);
        striper.received(b, frames, Reading::Eager, now).unwrap();
    }
    // Those that `b` brings a second sooner.
    let first = stuck.iter().position(|seq| *seq == copied[0]).unwrap();
    assert!((5..25).contains(&first), "{copied:?} of {stuck:?}");
    assert_eq!(copied, stuck[first..first + copied.len()]);
    let resent = striper.resent();
    assert_eq!(resent.stuck_bytes, 10_000 * copied.len() as u64, "{resent:?}");
}

#[test]
fn what_is_not_there_for_long_is_copied_again_whatever_the_estimates_are() {
    let (mut striper, b, stuck, mut now) = a_collapsed_lane();
    // As if the lane were quick.
    let quick = RateSample { bytes: 1e9, seconds: 1.0, since_last: 10.0, is_floor: true };
    (0..20).for_each(|_| striper.lanes[0].model.saw_rate(quick));
    assert!(!matches!(striper.turn(b, 9_000, now), Turn::Again { .. }));
    now += ms(510);
    let (quick, [_, first, second, ..]) = (striper.lanes[0].id, stuck);
    striper.received(quick, 11, Reading::Eager, now).unwrap();
    assert_eq!(striper.turn(b, 9_000, now), Turn::Again { seq: first });
    striper.again(b, first, now).unwrap();
    // By yet another lane once that copy is as old; before, the next one.
    let c = striper.join(striper.lanes[1].model.clone(), now);
    assert_eq!(striper.turn(c, 9_000, now), Turn::Again { seq: second });
    now += ms(510);
    striper.received(quick, 11, Reading::Eager, now).unwrap();
    assert_eq!(striper.turn(c, 9_000, now), Turn::Again { seq: first });
}

#[test]
fn a_pause_is_taken_for_a_fault_again_only_where_that_costs_little() {
    let (mut striper, a, b, mut now) = two_known_lanes();
    let frames_before = striper.lanes[0].frames_acknowledged;
    let mut patience = Vec::new();
    for round in 1..=3 {
        let late = fresh(&mut striper, a, 10_000, now).seq;
        let silent_at = striper.check(now).1.unwrap() + ms(1);
        patience.push(silent_at.as_secs_f64() - striper.lanes[0].sent[0].due);
        assert!(striper.check(silent_at).0);
        if round == 2 {
            assert_eq!(striper.turn(b, 9_000, silent_at), Turn::Again { seq: late });
            striper.again(b, late, silent_at).unwrap();
            assert_eq!(striper.received(b, 11, Reading::Eager, silent_at + ms(150)), Ok(vec![late]));
        }
        // It goes on, half a second late.
        now += ms(650);
        striper.received(a, frames_before + round, Reading::Eager, now).unwrap();
    }
    assert!(patience[1] < 0.5, "{patience:?}: a pause, but nothing was sent twice");
    assert!(patience[2] > 0.7, "{patience:?}: 10 kB of 120 were sent twice");
}

/// When the first frame on the first lane is due.
fn due(striper: &Striper) -> Duration {
    Duration::from_secs_f64(striper.lanes[0].sent[0].due)
}

#[test]
fn what_the_client_waits_for_is_copied_before_its_late_lane_is_called_silent() {
    let (mut striper, a, b, now) = two_known_lanes();
    let [first, second] = [0, 0].map(|_| fresh(&mut striper, a, 2_000, now).seq);
    let due = due(&striper);
    assert!(matches!(striper.turn(b, 2_000, due + ms(40)), Turn::Fresh { .. }), "as late as any may be");
    let late = due + ms(60);
    assert!(!striper.check(late).0, "nobody is silent");
    assert_eq!(striper.turn(b, 2_000, late), Turn::Again { seq: first });
    striper.again(b, first, late).unwrap();
    assert_eq!(striper.resent(), Resent { late_bytes: 2_000, ..Resent::default() });
    // As late itself: the two would send each other's frames in vain.
    assert_eq!(striper.late_for(0, late.as_secs_f64()), None);
    assert!(second > first && striper.late_for(1, late.as_secs_f64()).is_none(), "the budget is spent");
    // The other one's own copy has come.
    striper.received(b, 11, Reading::Eager, late + ms(80)).unwrap();
    assert_eq!(striper.late_for(1, late.as_secs_f64() + 0.08), Some(second.0), "one after the other");
}

#[test]
fn copies_for_a_late_lane_are_rationed_once_they_were_in_vain() {
    let (mut striper, a, b, now) = two_known_lanes();
    striper.cut(b, FrameLen(10_000_000), now).unwrap();
    let seqs = [0; 4].map(|_| striper.cut(a, FrameLen(2_000), now).unwrap().seq);
    let late = due(&striper) + ms(60);
    let copied = |striper: &mut Striper, late: Duration| {
        let copied = seqs.iter().filter(|seq| {
            striper.late_for(1, late.as_secs_f64()) == Some(seq.0) && striper.again(b, **seq, late).is_some()
        });
        copied.count()
    };
    assert_eq!(copied(&mut striper, late), 4, "a few bytes of ten million");
    // It goes on, and all that was copied has come twice.
    striper.received(a, 14, Reading::Eager, late).unwrap();
    assert_eq!(striper.false_alarm_bytes, 8_000);
    striper.false_alarm_bytes = 1_000_000;
    let seqs = [0; 4].map(|_| striper.cut(a, FrameLen(2_000), late).unwrap().seq);
    let late = due(&striper) + ms(60);
    let mut times = 0;
    for step in 0..30 {
        let now = late + ms(10 * step);
        if let Some(seq) = striper.late_for(1, now.as_secs_f64()) {
            assert!(seqs.contains(&Seq(seq)));
            striper.again(b, Seq(seq), now).unwrap();
            times += 1;
        }
    }
    assert_eq!(times, 2, "one for each fifth of a second");
}

#[test]
fn copies_for_late_lanes_end_where_they_have_cost_enough() {
    for (frames, last_ones) in [(1, 1 << 20), (10, 2_000_000)] {
        let (mut striper, a, b, now) = two_known_lanes();
        for _ in 0..frames {
            striper.cut(b, FrameLen(10_000_000), now).unwrap();
        }
        let first = striper.cut(a, FrameLen(2_000), now).unwrap().seq;
        let late = (due(&striper) + ms(60)).as_secs_f64();
        // However little there is to be said for rationing.
        let copy = |striper: &mut Striper, spent| {
            striper.resent.late_bytes = spent;
            striper.late_for(1, late + 10.0)
        };
        striper.lanes[1].sent.clear();
        assert_eq!(copy(&mut striper, last_ones - 10_000), Some(first.0), "{frames}0 MB");
        assert_eq!(copy(&mut striper, last_ones + 10_000), None, "{frames}0 MB");
    }
}

#[test]
fn a_pause_that_cannot_be_is_not_believed_for_ever() {
    for is_next in [true, false] {
        let (mut striper, a, b, now) = two_known_lanes();
        let gone = striper.join(LaneModel::default(), now);
        if !is_next {
            fresh(&mut striper, b, 2_000, now);
        }
        let paused = fresh(&mut striper, a, 2_000, now).seq;
        striper.received(b, 10, Reading::Paused, now).unwrap();
        striper.received(a, 10, Reading::Paused, now).unwrap();
        assert!(!striper.check(now + ms(3000)).0, "it is not read, and so not silent");
        striper.leave(gone, now + ms(3000));
        striper.received(b, 10, Reading::Eager, now + ms(3000)).unwrap();
        assert!(!striper.check(now + ms(3100)).0, "it may have been read since");
        let is_called_silent = striper.check(now + ms(3500)).0 && striper.lanes[0].is_silent();
        assert_eq!(is_called_silent, is_next, "where a frame before is missing it may wait");
        if is_next {
            assert_eq!(striper.turn(b, 2_000, now + ms(3500)), Turn::Again { seq: paused });
        }
    }
}

#[test]
fn what_the_client_waits_for_goes_behind_no_later_frame_while_frames_may_not_be_parked() {
    let (mut striper, a, b, now) = two_known_lanes();
    let gone = striper.join(LaneModel::default(), now);
    let next = fresh(&mut striper, gone, 2_000, now).seq;
    fresh(&mut striper, a, 2_000, now);
    fresh(&mut striper, b, 2_000, now);
    striper.received(a, 10, Reading::Paused, now).unwrap();
    striper.leave(gone, now);
    let now = now + ms(20);
    assert_ne!(striper.turn(b, 2_000, now), Turn::Again { seq: next });
    let empty = striper.join(LaneModel::default(), now);
    assert_eq!(striper.turn(empty, 2_000, now), Turn::Again { seq: next });
    // Where all is read it is as good as any.
    striper.received(a, 10, Reading::Eager, now).unwrap();
    assert_eq!(striper.turn(b, 2_000, now + ms(100)), Turn::Again { seq: next });
}

#[test]
fn a_new_lane_is_given_the_patience_of_the_others_of_its_path() {
    let relay = |last| LaneModel::new(false, Some([10, 0, 0, last].into()));
    let mut lane = relay(1);
    let pausing = |stall| {
        let mut model = relay(1);
        let sample = RateSample { bytes: 1e6, seconds: 1.0, since_last: 1.0, is_floor: false };
        model.saw_rate(sample);
        model.saw_stall(stall, 0.0);
        model
    };
    let others = [pausing(0.2), pausing(0.4), pausing(1.1), relay(1)];
    lane.inherits(others.iter());
    assert_eq!(lane.stall(), 0.4);
    let mut elsewhere = relay(2);
    elsewhere.inherits(others.iter());
    assert_eq!(elsewhere.stall(), 0.0);
    let mut known = pausing(0.1);
    known.inherits(others.iter());
    assert_eq!(known.stall(), 0.1);
}
