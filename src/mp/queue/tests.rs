//! The queue against a plain oracle, its wake-ups counted, its values' drops counted, and two lanes under load.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use bolero::TypeGenerator;

use super::{
    CAPACITY_MAX, CapacityError, Consumer, MpQueue, Producer, Publish, RoomError, SEQ_END, WAITERS_MAX,
};

fn queue<T>(capacity: usize) -> (Producer<T>, Consumer<T>) {
    MpQueue::new(capacity).expect("a power of two")
}

/// Counts wake-ups.
#[derive(Default)]
struct Bell(AtomicUsize);

impl Bell {
    fn rings(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

/// A value that counts itself while it lives.
struct Counted<'a> {
    id: u32,
    living: &'a AtomicUsize,
}

impl<'a> Counted<'a> {
    fn new(id: u32, living: &'a AtomicUsize) -> Self {
        living.fetch_add(1, Ordering::SeqCst);
        Self { id, living }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        let before = self.living.fetch_sub(1, Ordering::SeqCst);
        assert!(before > 0, "value {} was dropped twice", self.id);
    }
}

#[test]
fn refuses_capacities_that_are_no_ring() {
    for capacity in [0, 3, CAPACITY_MAX * 2, usize::MAX] {
        assert_eq!(MpQueue::<u8>::new(capacity).err(), Some(CapacityError { capacity }));
    }
    assert_eq!(
        CapacityError { capacity: 3 }.to_string(),
        "a queue of 3 frames cannot be made: ask for a power of two from 1 to 1048576"
    );
}

#[test]
fn sequence_numbers_out_of_bounds_are_refused() {
    let (mut producer, _consumer) = queue(4);
    let mut cx = Context::from_waker(Waker::noop());
    for seq in [SEQ_END - 1, SEQ_END, u64::MAX] {
        assert_eq!(producer.publish(seq, ()), Publish::WindowFull(()));
    }
    assert_eq!(producer.poll_room(&mut cx, SEQ_END - 1), Poll::Pending);
    assert_eq!(
        producer.poll_room(&mut cx, SEQ_END),
        Poll::Ready(Err(RoomError::SeqOutOfBounds { seq: SEQ_END }))
    );
}

#[test]
fn only_the_awaited_frame_wakes_the_consumer() {
    let (producer, mut consumer) = queue(4);
    let bell = Arc::new(Bell::default());
    let waker = Waker::from(Arc::clone(&bell));
    let mut cx = Context::from_waker(&waker);
    assert_eq!(consumer.poll_take(&mut cx), Poll::Pending);
    assert_eq!(producer.publish(1, 1), Publish::Published);
    assert_eq!(producer.publish(2, 2), Publish::Published);
    assert_eq!(bell.rings(), 0);
    assert!(!consumer.is_ready());
    assert_eq!(producer.publish(0, 0), Publish::Published);
    assert_eq!(bell.rings(), 1);
    assert!(consumer.is_ready());
    for seq in 0..3 {
        assert_eq!(consumer.poll_take(&mut cx), Poll::Ready(Some(seq)));
    }
    assert_eq!(producer.publish(3, 3), Publish::Published);
    assert_eq!((bell.rings(), consumer.next_seq()), (1, 3), "nobody slept on 3");
}

#[test]
fn only_its_own_slot_wakes_a_waiting_producer() {
    let (mut producer, mut consumer) = queue(2);
    let bell = Arc::new(Bell::default());
    let waker = Waker::from(Arc::clone(&bell));
    let mut cx = Context::from_waker(&waker);
    for seq in 0..2 {
        assert_eq!(producer.publish(seq, seq), Publish::Published);
    }
    assert_eq!(producer.poll_room(&mut cx, 1), Poll::Ready(Ok(())), "a duplicate need not wait");
    assert_eq!(producer.poll_room(&mut cx, 3), Poll::Pending);
    assert_eq!((consumer.take(), bell.rings()), (Some(0), 0));
    assert_eq!((consumer.take(), bell.rings()), (Some(1), 1));
    assert_eq!(producer.poll_room(&mut cx, 3), Poll::Ready(Ok(())));
    assert_eq!(producer.publish(3, 3), Publish::Published);
}

#[test]
fn waiting_places_are_bounded_and_returned() {
    let (producer, _consumer) = queue::<()>(1);
    let mut cx = Context::from_waker(Waker::noop());
    let mut handles = vec![producer; 1];
    for _ in 0..WAITERS_MAX {
        handles.push(handles[0].clone());
    }
    let mut late = handles.swap_remove(0);
    for handle in &mut handles {
        assert_eq!(handle.poll_room(&mut cx, 1), Poll::Pending);
        assert_eq!(handle.poll_room(&mut cx, 2), Poll::Pending, "a handle keeps its place");
    }
    assert_eq!(late.poll_room(&mut cx, 1), Poll::Ready(Err(RoomError::TooManyWaiters)));
    handles.swap_remove(WAITERS_MAX / 2);
    assert_eq!(late.poll_room(&mut cx, 1), Poll::Pending);
}

#[test]
fn closing_ends_both_sides_after_what_is_there() {
    let (mut producer, mut consumer) = queue(2);
    let (bell, room) = (Arc::new(Bell::default()), Arc::new(Bell::default()));
    let (waker, room_waker) = (Waker::from(Arc::clone(&bell)), Waker::from(Arc::clone(&room)));
    let mut cx = Context::from_waker(&waker);
    assert_eq!(consumer.poll_take(&mut cx), Poll::Pending);
    assert_eq!(producer.poll_room(&mut Context::from_waker(&room_waker), 2), Poll::Pending);
    let other = producer.clone();
    drop(other);
    assert_eq!((bell.rings(), producer.is_closed()), (0, false), "one producer is left");
    assert_eq!(producer.publish(0, 'a'), Publish::Published);
    producer.close();
    assert_eq!((bell.rings(), room.rings()), (1, 1));
    assert_eq!(producer.publish(1, 'b'), Publish::Closed('b'));
    assert_eq!(producer.poll_room(&mut cx, 2), Poll::Ready(Err(RoomError::Closed)));
    assert_eq!(consumer.poll_take(&mut cx), Poll::Ready(Some('a')));
    assert_eq!(consumer.poll_take(&mut cx), Poll::Ready(None));
}

#[test]
fn the_consumer_closes_by_leaving_and_the_last_producer_too() {
    let (producer, consumer) = queue(1);
    drop(consumer);
    assert_eq!(producer.publish(0, ()), Publish::Closed(()));
    let (producer, mut consumer) = queue::<()>(1);
    drop(producer);
    assert_eq!(block_on(consumer.next()), None);
}

#[test]
fn values_left_in_the_ring_are_dropped() {
    let living = AtomicUsize::new(0);
    let (producer, mut consumer) = queue(4);
    for seq in [0, 1, 3] {
        assert!(matches!(producer.publish(seq, Counted::new(seq as u32, &living)), Publish::Published));
    }
    drop(consumer.take());
    assert_eq!(living.load(Ordering::SeqCst), 2);
    drop(consumer);
    drop(producer);
    assert_eq!(living.load(Ordering::SeqCst), 0);
}

#[derive(Debug, Clone, TypeGenerator)]
enum Operation {
    /// Offers the frame this far from the consumer's next one, minus [`BEHIND`].
    Publish {
        distance: u8,
    },
    PublishOutOfBounds {
        beyond: u64,
    },
    Take,
    PollTake,
    PollRoom {
        distance: u8,
    },
    CloneProducer,
    DropProducer,
    Close {
        by_consumer: bool,
    },
}

/// How far behind the consumer the generated offers start: late copies.
const BEHIND: u64 = 8;

/// What the queue promises, in the plainest way: a map from number to value.
struct Oracle {
    capacity: u64,
    next: u64,
    values: BTreeMap<u64, u32>,
    closed: bool,
}

impl Oracle {
    fn publish(&mut self, seq: u64, id: u32) -> Publish<u32> {
        if self.closed {
            Publish::Closed(id)
        } else if seq < self.next || self.values.contains_key(&seq) {
            Publish::Duplicate(id)
        } else if seq - self.next >= self.capacity {
            Publish::WindowFull(id)
        } else {
            self.values.insert(seq, id);
            Publish::Published
        }
    }

    fn take(&mut self) -> Option<u32> {
        let id = self.values.remove(&self.next)?;
        self.next += 1;
        Some(id)
    }

    fn seq(&self, distance: u8) -> u64 {
        (self.next + u64::from(distance) % (2 * self.capacity + 2 * BEHIND)).saturating_sub(BEHIND)
    }
}

fn ids(published: Publish<Counted<'_>>) -> Publish<u32> {
    match published {
        Publish::Published => Publish::Published,
        Publish::WindowFull(value) => Publish::WindowFull(value.id),
        Publish::Duplicate(value) => Publish::Duplicate(value.id),
        Publish::Closed(value) => Publish::Closed(value.id),
    }
}

fn agrees_with_the_oracle(capacity: usize, operations: &[Operation]) {
    let living = AtomicUsize::new(0);
    let mut oracle = Oracle { capacity: capacity as u64, next: 0, values: BTreeMap::new(), closed: false };
    let (producer, mut consumer) = queue(capacity);
    let mut producers = vec![producer];
    let mut cx = Context::from_waker(Waker::noop());
    for (id, operation) in (0..).zip(operations) {
        let producer = producers.last_mut();
        match (operation, producer) {
            (Operation::Publish { distance }, Some(producer)) => {
                let seq = oracle.seq(*distance);
                let outcome = ids(producer.publish(seq, Counted::new(id, &living)));
                assert_eq!(outcome, oracle.publish(seq, id));
            }
            (Operation::PublishOutOfBounds { beyond }, Some(producer)) => {
                let outcome =
                    ids(producer.publish(SEQ_END.saturating_add(*beyond), Counted::new(id, &living)));
                assert_eq!(outcome, oracle.publish(SEQ_END.saturating_add(*beyond), id));
            }
            (Operation::Take, _) => {
                assert_eq!(consumer.is_ready(), oracle.values.contains_key(&oracle.next));
                assert_eq!(consumer.take().map(|value| value.id), oracle.take());
            }
            (Operation::PollTake, _) => {
                let outcome = consumer.poll_take(&mut cx).map(|value| value.map(|value| value.id));
                let expected = match oracle.take() {
                    Some(id) => Poll::Ready(Some(id)),
                    None if oracle.closed => Poll::Ready(None),
                    None => Poll::Pending,
                };
                assert_eq!(outcome, expected);
            }
            (Operation::PollRoom { distance }, Some(producer)) => {
                let seq = oracle.seq(*distance);
                let expected = match () {
                    () if oracle.closed => Poll::Ready(Err(RoomError::Closed)),
                    () if seq < oracle.next + oracle.capacity => Poll::Ready(Ok(())),
                    () => Poll::Pending,
                };
                assert_eq!(producer.poll_room(&mut cx, seq), expected);
            }
            (Operation::CloneProducer, Some(producer))
                if producer.queue.producers.load(Ordering::SeqCst) < 4 =>
            {
                let copy = producer.clone();
                producers.push(copy);
            }
            (Operation::DropProducer, Some(_)) => {
                producers.pop();
                oracle.closed |= producers.is_empty();
            }
            (Operation::Close { by_consumer: true }, _) => {
                consumer.close();
                oracle.closed = true;
            }
            (Operation::Close { by_consumer: false }, Some(producer)) => {
                producer.close();
                oracle.closed = true;
            }
            _ => {}
        }
        assert_eq!(consumer.next_seq(), oracle.next);
        assert_eq!(consumer.is_closed(), oracle.closed);
        assert_eq!(living.load(Ordering::SeqCst), oracle.values.len());
    }
    drop(producers);
    drop(consumer);
    assert_eq!(living.load(Ordering::SeqCst), 0);
}

#[test]
fn random_operations_agree_with_a_map() {
    let lists = if cfg!(miri) { 20 } else { 2000 };
    bolero::check!()
        .with_iterations(lists)
        .with_type::<(u8, Vec<Operation>)>()
        .for_each(|(capacity_log2, operations)| agrees_with_the_oracle(1 << (capacity_log2 % 5), operations));
}

/// Two lanes share the numbers unevenly, sleep for room and wake a consumer that sleeps: no frame is lost, none comes
/// twice, and nobody sleeps for good (the test would hang).
#[test]
fn two_lanes_under_load_lose_nothing() {
    let frames: u64 = match () {
        () if cfg!(miri) => 300,
        () if cfg!(debug_assertions) => 200_000,
        () => 3_000_000,
    };
    for capacity in [2, 64] {
        let (producer, mut consumer) = queue(capacity);
        thread::scope(|scope| {
            for lane in 0..2 {
                let mut producer = producer.clone();
                scope.spawn(move || {
                    for seq in (0..frames).filter(|seq| seq / 3 % 2 == lane) {
                        let mut value = Box::new(seq);
                        loop {
                            match producer.publish(seq, value) {
                                Publish::Published => break,
                                Publish::WindowFull(back) => value = back,
                                refused => panic!("frame {seq} of lane {lane}: {refused:?}"),
                            }
                            block_on(producer.room(seq)).expect("the consumer lives");
                        }
                    }
                });
            }
            drop(producer);
            for seq in 0..frames {
                assert_eq!(block_on(consumer.next()).as_deref(), Some(&seq));
            }
            assert_eq!(block_on(consumer.next()), None);
        });
    }
}

/// Both lanes offer every frame: exactly one copy of each is taken.
#[test]
fn two_lanes_race_with_copies() {
    let frames: u64 = match () {
        () if cfg!(miri) => 200,
        () if cfg!(debug_assertions) => 50_000,
        () => 1_000_000,
    };
    let (producer, mut consumer) = queue(64);
    let won = AtomicUsize::new(0);
    thread::scope(|scope| {
        for lane in 0..2_u64 {
            let mut producer = producer.clone();
            let won = &won;
            scope.spawn(move || {
                for seq in 0..frames {
                    block_on(producer.room(seq)).expect("the consumer lives");
                    match producer.publish(seq, Box::new(seq << 1 | lane)) {
                        Publish::Published => _ = won.fetch_add(1, Ordering::SeqCst),
                        Publish::Duplicate(copy) => assert_eq!(*copy, seq << 1 | lane),
                        refused => panic!("frame {seq} of lane {lane}: {refused:?}"),
                    }
                }
            });
        }
        drop(producer);
        for seq in 0..frames {
            assert_eq!(block_on(consumer.next()).map(|value| *value >> 1), Some(seq));
        }
        assert_eq!(block_on(consumer.next()), None);
    });
    assert_eq!(won.into_inner() as u64, frames);
}
