//! The shaper in virtual time: no test here sees a clock.

use super::*;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;
const WIRE: u32 = 1500;

fn arrival(segments: u16) -> Arrival {
    Arrival { segments, segment_bytes: WIRE, last_bytes: WIRE, flow: None }
}

/// 12 Mbit/s: a packet of 1500 bytes takes one millisecond.
fn shape(delay_ms: u64, queue_packets: u64) -> Shape {
    Shape::clean(12.0, Duration::from_millis(delay_ms), queue_packets * u64::from(WIRE))
}

/// Everything that comes out until `end_ns`, with the time, looked at every `step_ns`.
fn drain(shaper: &mut Shaper<u32>, from_ns: u64, end_ns: u64, step_ns: u64) -> Vec<(u64, u32, u16)> {
    let mut out = Vec::new();
    for now_ns in (from_ns..=end_ns).step_by(step_ns as usize) {
        while let Some(Delivery { packet, segments }) = shaper.deliver(now_ns) {
            out.extend(segments.map(|index| (now_ns, packet, index)));
        }
    }
    out
}

#[test]
fn a_lone_packet_is_late_by_sending_and_delay() {
    let mut shaper = Shaper::new(shape(50, 10), 1);
    shaper.offer(3 * MS, 7, &arrival(1));
    assert_eq!(shaper.next_ns(), Some(54 * MS), "known before the bottleneck has sent it");
    assert_eq!(shaper.deliver(54 * MS - 1), None);
    assert_eq!(shaper.next_ns(), Some(54 * MS));
    assert_eq!(shaper.deliver(54 * MS), Some(Delivery { packet: 7, segments: 0..1 }));
    assert_eq!(shaper.next_ns(), None);
    assert_eq!(shaper.counters(), Counters { packets: 1, bytes: 1500, ..Counters::default() });
}

#[test]
fn a_super_packet_comes_out_at_the_rate_of_the_bottleneck() {
    let mut shaper = Shaper::new(shape(10, 100), 1);
    shaper.offer(0, 1, &arrival(40));
    let out = drain(&mut shaper, 0, SECOND, MS);
    let expected: Vec<_> = (0..40).map(|index| (u64::from(index + 11) * MS, 1, index)).collect();
    assert_eq!(out, expected);
}

#[test]
fn what_is_due_together_leaves_together() {
    let mut shaper = Shaper::new(shape(10, 100), 1);
    shaper.offer(0, 1, &arrival(4));
    shaper.offer(0, 2, &arrival(2));
    assert_eq!(shaper.deliver(13 * MS), Some(Delivery { packet: 1, segments: 0..3 }));
    assert_eq!(shaper.deliver(13 * MS), None);
    assert_eq!(shaper.deliver(SECOND), Some(Delivery { packet: 1, segments: 3..4 }));
    assert_eq!(
        shaper.deliver(SECOND),
        Some(Delivery { packet: 2, segments: 0..2 }),
        "never two packets in one"
    );
    assert_eq!(shaper.counters().late, 3);
}

#[test]
fn a_full_queue_drops_the_tail_of_a_super_packet() {
    let mut shaper = Shaper::new(shape(0, 10), 1);
    shaper.offer(0, 1, &arrival(40));
    shaper.offer(2 * MS, 2, &arrival(40));
    let out: Vec<_> =
        drain(&mut shaper, 0, SECOND, MS).into_iter().map(|(_, packet, index)| (packet, index)).collect();
    let expected: Vec<_> = (0..10).map(|index| (1, index)).chain([(2, 0), (2, 1)]).collect();
    assert_eq!(out, expected);
    assert_eq!(shaper.counters().dropped_queue, 30 + 38);
}

#[test]
fn an_empty_queue_takes_a_packet_of_any_size() {
    let mut shaper = Shaper::new(shape(0, 0), 1);
    shaper.offer(0, 1, &arrival(2));
    assert_eq!(drain(&mut shaper, 0, SECOND, MS), [(MS, 1, 0)]);
}

#[test]
fn a_new_rate_holds_for_what_already_waits() {
    let mut shaper = Shaper::new(shape(0, 100), 1);
    shaper.offer(0, 1, &arrival(3));
    shaper.set(MS / 2, Shape { rate_mbit: 6.0, ..shape(0, 100) });
    let times: Vec<_> =
        drain(&mut shaper, 0, SECOND, MS / 2).into_iter().map(|(now_ns, ..)| now_ns).collect();
    assert_eq!(times, [3 * MS / 2, 7 * MS / 2, 11 * MS / 2], "half of the first was still to be sent");
}

#[test]
fn a_shorter_delay_does_not_overtake() {
    let mut shaper = Shaper::new(shape(100, 100), 1);
    shaper.offer(0, 1, &arrival(1));
    shaper.set(2 * MS, shape(5, 100));
    shaper.offer(2 * MS, 2, &arrival(1));
    assert_eq!(drain(&mut shaper, 0, SECOND, MS), [(101 * MS, 1, 0), (101 * MS, 2, 0)]);
}

#[test]
fn an_outage_drops_what_is_inside_and_what_comes() {
    let mut shaper = Shaper::new(shape(50, 100), 1);
    shaper.offer(0, 1, &arrival(10));
    shaper.outage(5 * MS, true);
    assert_eq!(shaper.next_ns(), None);
    shaper.offer(6 * MS, 2, &arrival(4));
    shaper.outage(7 * MS, false);
    shaper.offer(8 * MS, 3, &arrival(1));
    assert_eq!(drain(&mut shaper, 0, SECOND, MS), [(59 * MS, 3, 0)]);
    assert_eq!(shaper.counters().dropped_outage, 14);
}

/// Offers `packets` super-packets of ten segments, one every 20 ms, and returns for each segment whether it came.
fn survivors(shape: Shape, seed: u64, packets: u32) -> Vec<bool> {
    let mut shaper = Shaper::new(shape, seed);
    let mut came = vec![false; packets as usize * 10];
    for number in 0..packets {
        let now_ns = u64::from(number) * 20 * MS;
        shaper.offer(now_ns, number, &arrival(10));
        while let Some(Delivery { packet, segments }) = shaper.deliver(now_ns + 19 * MS) {
            segments.for_each(|index| came[packet as usize * 10 + usize::from(index)] = true);
        }
    }
    came
}

#[test]
fn the_asked_share_is_lost_in_runs_of_the_asked_length() {
    for (loss, burst, mean) in [
        (0.0, None, 0.0),
        (0.001, None, 1.0),
        (0.01, None, 1.0 / 0.99),
        (0.5, None, 2.0),
        (0.02, Some(1.0), 1.0),
        (0.02, Some(8.0), 8.0),
        (0.9, Some(1.0), 9.0),
    ] {
        let came = survivors(Shape { loss, burst, ..shape(0, 100) }, 42, 100_000);
        let lost = came.iter().filter(|came| !**came).count() as f64;
        let runs = came.windows(2).filter(|pair| pair[0] && !pair[1]).count() as f64;
        let share = lost / came.len() as f64;
        assert!((share - loss).abs() <= loss * 0.05, "{loss} {burst:?}: {share} was lost");
        assert!(
            loss == 0.0 || (lost / runs - mean).abs() <= mean * 0.05,
            "{loss} {burst:?}: runs of {}",
            lost / runs
        );
    }
    assert!(!survivors(Shape { loss: 1.0, ..shape(0, 100) }, 42, 1000).contains(&true));
}

#[test]
fn jitter_drifts_within_its_bounds() {
    let jitter = Duration::from_millis(5);
    let mut shaper = Shaper::new(Shape { jitter, ..shape(20, 100) }, 9);
    let (mut extremes, mut before) = ((u64::MAX, 0), None);
    for number in 0..20_000 {
        let now_ns = number * 10 * MS;
        shaper.offer(now_ns, 0, &arrival(1));
        let due_ns = shaper.next_ns().map_or(0, |_| {
            shaper.advance(now_ns + 2 * MS);
            shaper.next_ns().expect("it flies") - now_ns - MS
        });
        assert!((15 * MS..=25 * MS).contains(&due_ns), "{due_ns} ns");
        let step = before.map_or(0, |before: u64| before.abs_diff(due_ns));
        assert!(step <= MS, "a step of {step} ns within 10 ms is no drift");
        before = Some(due_ns);
        extremes = (extremes.0.min(due_ns), extremes.1.max(due_ns));
        assert!(shaper.deliver(now_ns + 30 * MS).is_some() || shaper.next_ns().is_some());
        while shaper.deliver(now_ns + 9 * MS).is_some() {}
    }
    assert!(extremes.0 < 16 * MS && extremes.1 > 24 * MS, "{extremes:?}");
}

fn flow(port: u8) -> Option<Flow> {
    Some(Flow { addresses: [1; 32], ports: [0, port, 0, 80] })
}

#[test]
fn every_connection_has_its_own_limit() {
    // 1.2 Mbit/s each: 100 packets a second after the first 100 ms worth of them.
    let mut shaper = Shaper::new(Shape { flow_mbit: Some(1.2), ..shape(0, 1000) }, 1);
    let mut passed = [0; 3];
    for ms in 0..10_000 {
        for (connection, passed) in passed.iter_mut().enumerate() {
            let flow = if connection < 2 { flow(connection as u8) } else { None };
            if ms % 4 == 0 {
                shaper.offer(ms * MS, connection as u32, &Arrival { flow, ..arrival(1) });
                *passed += drain(&mut shaper, ms * MS, (ms + 4) * MS, MS).len();
            }
        }
    }
    assert_eq!(passed[2], 2500, "what is no TCP is not policed");
    assert!((1000..=1011).contains(&passed[0]) && (1000..=1011).contains(&passed[1]), "{passed:?}");
    assert_eq!(shaper.counters().dropped_policer, 7500 - passed.iter().sum::<usize>() as u64);
}

/// Whatever comes and however the shape changes: order is kept, every segment is counted exactly once, the queue never
/// holds more than it may, and the bottleneck never carries more than its rate allows.
#[test]
fn no_input_breaks_the_invariants() {
    type Step = (u8, u16, u8, u8);
    bolero::check!().with_type::<(u64, Vec<Step>)>().with_iterations(3_000).for_each(|(seed, steps)| {
        let mut shape = shape(5, 20);
        let mut shaper = Shaper::new(shape, *seed);
        let (mut now_ns, mut offered, mut delivered, mut last) = (0, 0, 0, None);
        let mut budget_bytes = f64::from(WIRE);
        for (number, (kind, pause, size, value)) in steps.iter().enumerate() {
            now_ns += u64::from(*pause) * 1000;
            budget_bytes += f64::from(*pause) * shape.rate_mbit / 8.0;
            match kind % 8 {
                0 => {
                    shape = Shape {
                        rate_mbit: f64::from(*size) + 0.5,
                        delay: Duration::from_millis(u64::from(*value)),
                        jitter: Duration::from_millis(u64::from(*value % 16)),
                        loss: f64::from(*value) / 255.0,
                        burst: (value % 2 == 0).then_some(3.0),
                        flow_mbit: (value % 3 == 0).then_some(1.0),
                        queue_bytes: u64::from(*size) * 500,
                    };
                    shape.check().expect("is in bounds");
                    shaper.set(now_ns, shape);
                }
                1 => shaper.outage(now_ns, value % 2 == 0),
                _ => {
                    let segments = u16::from(*size % 45) + 1;
                    let last_bytes = 40 + u32::from(*value);
                    let waiting = shaper.queued_bytes;
                    shaper.offer(
                        now_ns,
                        number as u32,
                        &Arrival { last_bytes, flow: flow(*value % 4), ..arrival(segments) },
                    );
                    offered += u64::from(segments);
                    assert!(shaper.queued_bytes <= shape.queue_bytes.max(waiting).max(u64::from(WIRE)));
                }
            }
            while let Some(Delivery { packet, segments }) = shaper.deliver(now_ns) {
                assert!(!segments.is_empty());
                let first = (packet, segments.start);
                assert!(last.is_none_or(|last| last < first), "{first:?} comes after {last:?}");
                last = Some((packet, segments.end - 1));
                delivered += u64::from(segments.end - segments.start);
            }
            let done = shaper.counters();
            let inside = (shaper.queue.len() + shaper.flying.len()) as u64;
            let dropped = done.dropped_queue + done.dropped_loss + done.dropped_outage + done.dropped_policer;
            assert_eq!(offered, delivered + dropped + inside);
            assert!(
                done.bytes as f64 <= budget_bytes,
                "{} bytes within the time of {budget_bytes}",
                done.bytes
            );
            assert_eq!(
                shaper.queued_bytes,
                shaper.queue.iter().map(|segment| u64::from(segment.bytes)).sum::<u64>()
            );
            assert_eq!(shaper.next_ns().is_none(), inside == 0);
        }
    });
}
