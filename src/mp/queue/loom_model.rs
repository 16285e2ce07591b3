//! Every interleaving (with bounded preemptions) of a few threads on a tiny queue. A wake-up that is lost shows as a
//! deadlock, a slot that two threads touch at once as loom's own panic.

use loom::future::block_on;
use loom::thread;

use super::{Consumer, MpQueue, Producer, Publish, RoomError};

/// Two preemptions: loom's authors advise 2 or 3; with 3 the room model alone runs for minutes.
fn model(body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(body);
}

fn queue<T>(capacity: usize) -> (Producer<T>, Consumer<T>) {
    MpQueue::new(capacity).expect("a power of two")
}

#[test]
fn values_are_handed_over_in_order() {
    model(|| {
        let (producer, mut consumer) = queue(2);
        let lane = thread::spawn(move || {
            assert_eq!(producer.publish(1, Box::new(11)), Publish::Published);
            assert_eq!(producer.publish(0, Box::new(10)), Publish::Published);
        });
        assert_eq!(block_on(consumer.next()).as_deref(), Some(&10));
        assert_eq!(block_on(consumer.next()).as_deref(), Some(&11));
        assert_eq!(block_on(consumer.next()), None);
        lane.join().expect("the lane ends");
    });
}

#[test]
fn one_of_two_copies_wins() {
    model(|| {
        let (producer, mut consumer) = queue(2);
        let other = producer.clone();
        let lane = thread::spawn(move || other.publish(0, 1) == Publish::Published);
        let mine = producer.publish(0, 2) == Publish::Published;
        let theirs = lane.join().expect("the lane ends");
        assert!(mine != theirs);
        assert_eq!(consumer.take(), Some(if mine { 2 } else { 1 }));
        assert_eq!(consumer.take(), None);
    });
}

#[test]
fn a_sleeping_consumer_is_woken_by_either_of_two_lanes() {
    model(|| {
        let (producer, mut consumer) = queue(2);
        let other = producer.clone();
        let lane = thread::spawn(move || assert_eq!(other.publish(0, 0), Publish::Published));
        let late = thread::spawn(move || assert_eq!(producer.publish(1, 1), Publish::Published));
        assert_eq!(block_on(consumer.next()), Some(0));
        assert_eq!(block_on(consumer.next()), Some(1));
        lane.join().expect("the lane ends");
        late.join().expect("the lane ends");
    });
}

#[test]
fn a_producer_that_met_a_full_window_waits_for_room() {
    model(|| {
        let (mut producer, mut consumer) = queue(1);
        let lane = thread::spawn(move || {
            for seq in 0..2 {
                if let Publish::WindowFull(value) = producer.publish(seq, seq) {
                    block_on(producer.room(seq)).expect("the consumer lives");
                    assert_eq!(producer.publish(seq, value), Publish::Published);
                }
            }
        });
        for seq in 0..2 {
            assert_eq!(block_on(consumer.next()), Some(seq));
        }
        lane.join().expect("the lane ends");
    });
}

/// The consumer takes once, finds nothing more and then does something else for long: the waiter must be awake by then.
#[test]
fn a_consumer_that_finds_nothing_wakes_who_waits_for_its_slot() {
    model(|| {
        let (mut producer, mut consumer) = queue(2);
        assert_eq!(producer.publish(0, 0), Publish::Published);
        let lane = thread::spawn(move || block_on(producer.room(2)));
        assert_eq!(consumer.take(), Some(0));
        assert_eq!(consumer.take(), None);
        assert_eq!(lane.join().expect("the lane ends"), Ok(()));
    });
}

#[test]
fn two_producers_wait_for_different_slots() {
    model(|| {
        let (mut producer, mut consumer) = queue(2);
        let mut other = producer.clone();
        assert_eq!(producer.publish(0, 0), Publish::Published);
        assert_eq!(producer.publish(1, 1), Publish::Published);
        let near = thread::spawn(move || block_on(producer.room(2)));
        let far = thread::spawn(move || block_on(other.room(3)));
        assert_eq!(consumer.take(), Some(0));
        assert_eq!(consumer.take(), Some(1));
        assert_eq!(near.join().expect("the lane ends"), Ok(()));
        assert_eq!(far.join().expect("the lane ends"), Ok(()));
    });
}

/// A wait that was given up leaves its bit behind; a later wait of the same handle must not be taken for it.
#[test]
fn a_wait_given_up_does_not_hide_the_next() {
    model(|| {
        let (mut producer, mut consumer) = queue(1);
        assert_eq!(producer.publish(0, 0), Publish::Published);
        let lane = thread::spawn(move || {
            block_on(std::future::poll_fn(|cx| {
                let _ = producer.poll_room(cx, 2);
                std::task::Poll::Ready(())
            }));
            block_on(producer.room(1))
        });
        assert_eq!(consumer.take(), Some(0));
        assert_eq!(lane.join().expect("the lane ends"), Ok(()));
    });
}

#[test]
fn the_last_producer_ends_a_sleeping_consumer_after_its_frame() {
    model(|| {
        let (producer, mut consumer) = queue(2);
        let other = producer.clone();
        let lane = thread::spawn(move || assert_eq!(producer.publish(0, 0), Publish::Published));
        let idle = thread::spawn(move || drop(other));
        assert_eq!(block_on(consumer.next()), Some(0));
        assert_eq!(block_on(consumer.next()), None);
        lane.join().expect("the lane ends");
        idle.join().expect("the lane ends");
    });
}

#[test]
fn a_consumer_that_leaves_wakes_who_waits_for_room() {
    model(|| {
        let (mut producer, consumer) = queue(1);
        assert_eq!(producer.publish(0, Box::new(0)), Publish::Published);
        let lane = thread::spawn(move || {
            let room = block_on(producer.room(1));
            (room, producer.publish(1, Box::new(1)))
        });
        drop(consumer);
        let (room, published) = lane.join().expect("the lane ends");
        assert_eq!(room, Err(RoomError::Closed));
        assert_eq!(published, Publish::Closed(Box::new(1)));
    });
}
