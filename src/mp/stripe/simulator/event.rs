//! What is going to happen, in order.
//!
//! In: events with their moments. Out: the next one. Called by the world. Invariant: events of one moment happen in the
//! order in which they were scheduled.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
};

use super::path::Flight;
use crate::wire::frame::Reading;

pub(super) enum What {
    /// A chunk with the ends of frames can be read at the downstream.
    Delivered {
        lane: usize,
        frames: Vec<u64>,
    },
    /// TCP's acknowledgement is at the upstream.
    Acknowledged {
        lane: usize,
        flight: Flight,
    },
    /// A CREDIT frame is at the upstream.
    Credit {
        lane: usize,
        frames: u64,
        reading: Reading,
        limit: u64,
        next: u64,
    },
    /// The request is at the upstream.
    Open {
        lane: usize,
    },
    /// A lane wanted to be asked again.
    Wake {
        lane: usize,
    },
    /// The root has the bytes that a lane waits for.
    Source,
    /// Looks for silent lanes.
    Watch,
    /// The client has taken some.
    Client,
    /// A short path's lane tells what has arrived.
    Tell {
        lane: usize,
    },
    /// A lane has been left unread for long.
    HeldBack {
        lane: usize,
    },
    Fault(usize),
    /// A lane stands again.
    Back {
        path: usize,
    },
    /// A lane need not rest any more.
    Rested {
        lane: usize,
    },
}

pub(super) struct Event {
    pub(super) at: f64,
    serial: u64,
    pub(super) what: What,
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Event {}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Event {
    fn cmp(&self, other: &Self) -> Ordering {
        self.at.total_cmp(&other.at).then(self.serial.cmp(&other.serial))
    }
}

/// What is still to happen.
#[derive(Default)]
pub(super) struct Events {
    events: BinaryHeap<Reverse<Event>>,
    scheduled: u64,
}

impl Events {
    pub(super) fn schedule(&mut self, at: f64, what: What) {
        self.scheduled += 1;
        self.events.push(Reverse(Event { at, serial: self.scheduled, what }));
    }

    pub(super) fn next(&mut self) -> Option<Event> {
        self.events.pop().map(|Reverse(event)| event)
    }

    pub(super) fn retain(&mut self, keeps: impl Fn(&What) -> bool) {
        self.events.retain(|Reverse(event)| keeps(&event.what));
    }
}
