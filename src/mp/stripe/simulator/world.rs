//! Two hosts and the paths between them, in virtual time: the real striper, sizers and credit window, and what stands
//! for sockets, producers and client.
//!
//! In: a [`Spec`]. Out: a [`Report`], or a panic where an invariant breaks. Invariants checked here: frames cut the body
//! without gap, every byte reaches the client once and in order, bytes handed out and parked stay below the credit, nobody
//! asks for turns in a loop, and every transfer ends.

use std::{collections::VecDeque, time::Duration};

use super::{
    event::{Events, What},
    lane::Lane,
    path::{Path, PathSpec},
    random::Random,
    receiver::Receiver,
    spec::{Fault, Report, Spec},
};
use crate::{
    exec::Instant,
    mp::stripe::{FRAME_BYTES_MAX, Striper, Turn},
    wire::{frame::Reading, units::FrameLen},
};

/// As in `mp::producer`: a lane left unread for the client's sake says so after this long.
const HELD_BACK_SECONDS: f64 = 0.05;
/// As in `mp::producer`: on shorter paths acknowledgements are gathered.
const SHORT_ROUND_TRIP_SECONDS: f64 = 0.005;
const FRAMES_UNTOLD_MAX: u64 = 16;
/// After which a lane without another frame tells.
const SHORT_GAP_SECONDS: f64 = 0.001;
/// As in `upstream::transfer`: bounds of the pauses between two looks for silent lanes.
const WATCH_SECONDS: (f64, f64) = (0.02, 0.2);
/// Turns that a lane may ask for in a second without anything having happened.
const IDLE_TURNS_MAX: f64 = 110.0;

/// See the module's description.
pub(super) struct World<'a> {
    spec: &'a Spec,
    random: Random,
    paths: Vec<Path>,
    lanes: Vec<Lane>,
    now: f64,
    began: f64,
    events: Events,
    striper: Striper,
    receiver: Receiver,
    /// The credit that has reached the upstream.
    granted: u64,
    /// What a connection calls the transfer's frame 0: what came before is of an earlier transfer.
    first_key: u64,
    /// Where each frame begins and how long it is.
    frames: Vec<(u64, u64)>,
    bytes: u64,
    /// Lanes that wait for the root, and how much they want.
    source: VecDeque<(usize, u64)>,
    turns: u64,
    credits: u64,
    joined: u64,
    instant: Instant,
}

impl<'a> World<'a> {
    pub(super) fn new(spec: &'a Spec) -> Self {
        let paths: Vec<_> = spec.paths.iter().cloned().map(Path::new).collect();
        let lanes = spec.paths.iter().enumerate();
        let lanes = lanes.flat_map(|(path, spec)| (0..spec.lanes).map(move |_| Lane::new(path))).collect();
        let instant = Instant::now();
        Self {
            spec,
            random: Random::new(spec.seed),
            paths,
            lanes,
            now: 0.0,
            began: 0.0,
            events: Events::default(),
            striper: Striper::new(),
            receiver: Receiver::new(spec.first_window, spec.client_rate, instant),
            granted: spec.first_window,
            first_key: 0,
            frames: Vec::new(),
            bytes: 0,
            source: VecDeque::new(),
            turns: 0,
            credits: 0,
            joined: 0,
            instant,
        }
    }

    /// Runs one transfer of `bytes`, which is the measured one or goes before.
    pub(super) fn transfer(&mut self, bytes: u64, is_measured: bool) -> Report {
        let spec = self.spec;
        self.began = self.now;
        self.bytes = bytes;
        let is_kept =
            |what: &What| matches!(what, What::Acknowledged { .. } | What::Back { .. } | What::Rested { .. });
        self.events.retain(is_kept);
        self.striper = Striper::new();
        self.striper.set_length(spec.is_length_known.then_some(bytes));
        self.receiver = Receiver::new(spec.first_window, spec.client_rate, self.at(self.now));
        self.granted = spec.first_window;
        self.striper.grant(spec.first_window);
        self.first_key += self.frames.len() as u64;
        self.frames.clear();
        self.source.clear();
        (self.turns, self.credits, self.joined) = (0, 0, 0);
        if is_measured {
            self.paths.iter_mut().for_each(|path| path.begin(self.now));
            for fault in 0..spec.faults.len() {
                self.schedule(self.now + spec.faults[fault].0, What::Fault(fault));
            }
        }
        // The request reaches the upstream over each path in its time.
        for lane in 0..self.lanes.len() {
            self.lanes[lane].restart();
            if self.lanes[lane].is_alive {
                self.open(lane);
            }
        }
        self.schedule(self.now + WATCH_SECONDS.0, What::Watch);
        let deadline = self.deadline();
        let mut finished_at = None;
        while !self.striper.is_delivered() || finished_at.is_none() {
            let event = self.events.next().expect("somebody does something");
            assert!(event.at >= self.now);
            self.now = event.at;
            assert!(self.now < deadline, "the transfer does not end: {:?}", self.striper);
            self.happen(event.what);
            if finished_at.is_none() && self.receiver.next_offset == bytes {
                finished_at = Some(self.now);
            }
        }
        let seconds = self.now - self.began;
        let live = self.lanes.len() as f64;
        // Whatever happens asks each lane that waits; time alone asks at most a hundred times a second.
        let frames = self.frames.len() as u64;
        let happened = self.credits + self.joined + frames + 10 * spec.faults.len() as u64 + 5;
        let idle = IDLE_TURNS_MAX * seconds * live;
        assert!(
            self.turns as f64 <= idle + happened as f64 * (live + 1.0),
            "{} turns for {happened} events in {seconds} s",
            self.turns
        );
        for lane in self.lanes.iter_mut().filter(|lane| lane.is_alive) {
            if let Some(id) = lane.id {
                lane.model = self.striper.leave(id, Duration::from_secs_f64(seconds));
            }
        }
        Report {
            seconds: finished_at.expect("the body was received") - self.began,
            resent: self.striper.resent(),
        }
    }

    /// Far beyond what anything should take.
    fn deadline(&self) -> f64 {
        let slowest = |path: &PathSpec| {
            path.rate.min(path.connection_rate) * (1.0 - path.loss).powi(8) / (1.0 + 1e3 * path.loss)
        };
        let rates = self.spec.paths.iter().map(slowest).chain([self.spec.client_rate, self.spec.source_rate]);
        let round_trip = self.spec.paths.iter().map(|path| path.round_trip).fold(0.0, f64::max);
        let faults = self.spec.faults.iter().map(|(at, _, fault)| match fault {
            Fault::Lost(seconds) | Fault::Rest(seconds) => at + seconds,
        });
        let changes = self.spec.paths.iter().filter_map(|path| Some(path.changes.last()?.0));
        let last = faults.chain(changes).fold(0.0, f64::max);
        let rate = rates.fold(f64::INFINITY, f64::min);
        self.now + 120.0 + 2.0 * last + 400.0 * round_trip + 10.0 * self.bytes as f64 / rate
    }

    fn schedule(&mut self, at: f64, what: What) {
        self.events.schedule(at.max(self.now), what);
    }

    fn at(&self, seconds: f64) -> Instant {
        self.instant + Duration::from_secs_f64(seconds)
    }

    /// As the striper counts.
    fn since_began(&self) -> Duration {
        Duration::from_secs_f64(self.now - self.began)
    }

    /// The downstream opens the transfer on a lane.
    fn open(&mut self, lane: usize) {
        let half = self.paths[self.lanes[lane].path].spec.round_trip / 2.0;
        self.schedule(self.now + half, What::Open { lane });
    }

    fn wake(&mut self, lane: usize, at: f64) {
        let at = at.max(self.now);
        self.lanes[lane].wake_at = at;
        self.schedule(at, What::Wake { lane });
    }

    fn happen(&mut self, what: What) {
        match what {
            What::Acknowledged { lane, flight } => {
                let path = self.lanes[lane].path;
                let sharing = self.lanes.iter().filter(|lane| lane.path == path && lane.is_alive).count();
                self.lanes[lane].connection.acknowledged(&flight, &mut self.paths[path], sharing, self.now);
                self.transmit(lane);
                if self.lanes[lane].carried.is_some() {
                    self.pull(lane);
                }
            }
            What::Delivered { lane, frames } => {
                if self.lanes[lane].is_alive {
                    for key in frames {
                        let Some(seq) = key.checked_sub(self.first_key) else { continue };
                        let len = self.frames[seq as usize].1;
                        self.lanes[lane].readable.push_back((seq, len));
                        self.lanes[lane].connection.unread += len as f64;
                    }
                    self.read(lane);
                    self.advance();
                }
            }
            What::Credit { lane, frames, reading, limit, next } => {
                if let Some(id) = self.lanes[lane].id.filter(|_| self.lanes[lane].is_alive) {
                    self.credits += 1;
                    self.granted = self.granted.max(limit);
                    self.striper.grant(limit);
                    let now = self.since_began();
                    self.striper.received(id, frames, reading, now).expect("the downstream does not lie");
                    self.striper.waits_for(next as u32).expect("the downstream does not lie");
                    self.stir();
                }
            }
            What::Wake { lane } => {
                if self.lanes[lane].wake_at == self.now {
                    self.pull(lane);
                }
            }
            What::Source => self.take_from_source(),
            What::Watch => self.watch(),
            What::Client => {
                self.receiver.is_client_blocked = false;
                self.advance();
            }
            What::Tell { lane } => {
                self.lanes[lane].will_tell = false;
                self.tell(lane, false);
            }
            What::HeldBack { lane } => {
                let since = self.lanes[lane].held_back_since;
                if since.is_some_and(|since| self.now - since >= HELD_BACK_SECONDS) {
                    self.tell(lane, true);
                    self.lanes[lane].held_back_since = Some(self.now);
                    self.schedule(self.now + HELD_BACK_SECONDS, What::HeldBack { lane });
                }
            }
            What::Fault(fault) => self.fault(fault),
            What::Back { path } => {
                self.lanes.push(Lane::new(path));
                self.open(self.lanes.len() - 1);
            }
            What::Open { lane } => {
                if self.lanes[lane].is_alive {
                    let (model, now) = (self.lanes[lane].model.clone(), self.since_began());
                    self.lanes[lane].id = Some(self.striper.join(model, now));
                    self.joined += 1;
                    self.pull(lane);
                }
            }
            What::Rested { lane } => {
                self.lanes[lane].rests = false;
                self.tell(lane, false);
            }
        }
    }

    fn fault(&mut self, fault: usize) {
        let (_, path, fault) = self.spec.faults[fault];
        let Some(lane) = self.lanes.iter().position(|lane| lane.path == path && lane.is_alive) else {
            return;
        };
        match fault {
            Fault::Lost(seconds) => {
                self.lanes[lane].is_alive = false;
                if let Some(id) = self.lanes[lane].id {
                    self.striper.leave(id, self.since_began());
                }
                self.schedule(self.now + seconds, What::Back { path });
                self.advance();
                self.urge();
            }
            Fault::Rest(seconds) => {
                self.lanes[lane].rests = true;
                self.tell(lane, false);
                self.schedule(self.now + seconds, What::Rested { lane });
            }
        }
    }

    fn watch(&mut self) {
        let (has_changed, next) = self.striper.check(self.since_began());
        let pause = next.map_or(WATCH_SECONDS.1, |next| next.as_secs_f64() + self.began - self.now);
        self.schedule(self.now + pause.clamp(WATCH_SECONDS.0, WATCH_SECONDS.1), What::Watch);
        if has_changed {
            self.urge();
        }
    }

    /// Frames are to be sent again: lanes that wait for the root have something better to do.
    fn urge(&mut self) {
        while let Some((lane, _)) = self.source.pop_front() {
            self.lanes[lane].waits_for_source = false;
        }
        self.stir();
    }

    /// Some lane's turn may have changed.
    fn stir(&mut self) {
        let first = self.random.below(self.lanes.len());
        for lane in (first..self.lanes.len()).chain(0..first) {
            self.pull(lane);
        }
    }

    /// A lane takes what it has room for.
    fn pull(&mut self, index: usize) {
        let now = self.since_began();
        loop {
            let lane = &mut self.lanes[index];
            let has_room = lane.connection.has_room(lane.not_sent as f64);
            let Some(id) = lane.id.filter(|_| lane.is_alive && !lane.waits_for_source) else { return };
            if !has_room || self.striper.is_delivered() {
                return;
            }
            lane.has_carried(self.now);
            self.turns += 1;
            match self.striper.turn(id, lane.sizer.size(), now) {
                Turn::Fresh { want } => {
                    assert!(want > 0);
                    lane.waits_for_source = true;
                    self.source.push_back((index, want as u64));
                    if self.source.len() == 1 {
                        self.take_from_source();
                    }
                    return;
                }
                Turn::Again { seq } => {
                    let piece = self.striper.again(id, seq, now).expect("or it would ask for ever");
                    assert_eq!((piece.offset.0, u64::from(piece.len.0)), self.frames[seq.0 as usize]);
                    self.send(index, seq.0, piece.len.as_usize());
                }
                Turn::Wait { until } => {
                    if let Some(until) = until {
                        assert!(until > now, "a wait for the past");
                        self.wake(index, self.began + until.as_secs_f64());
                    }
                    return;
                }
            }
        }
    }

    /// The first lane that waits for the root takes what there is, when there is something.
    fn take_from_source(&mut self) {
        let Some(&(index, want)) = self.source.front() else { return };
        let taken = self.striper.totals().1;
        let left = self.bytes - taken;
        let there = ((self.now - self.began) * self.spec.source_rate).min(1e15) as u64;
        let least = want.min(left).min(16 << 10);
        if there < taken + least {
            let at = self.began + (taken + least + 1) as f64 / self.spec.source_rate;
            self.schedule(at, What::Source);
            return;
        }
        self.source.pop_front();
        self.lanes[index].waits_for_source = false;
        let len = want.min(left).min(there - taken);
        if len > 0 {
            let (id, now) = (self.lanes[index].id.expect("it has asked"), self.since_began());
            let piece = self.striper.cut(id, FrameLen(len as u32), now).expect("the body is short");
            assert_eq!(
                (piece.seq.0, piece.offset.0),
                (self.frames.len() as u64, taken),
                "no gap, no overlap"
            );
            let most = self.granted + self.pending_bytes_max();
            assert!(taken + len <= most, "byte {} is handed out, and may be below {most}", taken + len);
            self.frames.push((taken, len));
            if taken + len == self.bytes {
                self.striper.end_of_body();
            }
            self.send(index, piece.seq.0, len as usize);
        }
        if taken + len == self.bytes {
            // Nothing is left for those behind.
            self.urge();
        }
        self.pull(index);
        if !self.source.is_empty() {
            self.take_from_source();
        }
    }

    fn send(&mut self, index: usize, seq: u64, bytes: usize) {
        let lane = &mut self.lanes[index];
        lane.carried = Some((bytes, self.now));
        lane.connection.push(self.first_key + seq, bytes as f64);
        self.transmit(index);
    }

    fn transmit(&mut self, index: usize) {
        let path = self.lanes[index].path;
        let connection = &mut self.lanes[index].connection;
        let mut flights = Vec::new();
        while let Some(flight) = connection.transmit(&mut self.paths[path], self.now, &mut self.random) {
            flights.push(flight);
        }
        for (flight, frames) in flights {
            if !frames.is_empty() {
                self.schedule(flight.delivered_at, What::Delivered { lane: index, frames });
            }
            self.schedule(flight.acknowledged_at, What::Acknowledged { lane: index, flight });
        }
    }

    /// A lane's producer at the downstream takes the frames it may.
    fn read(&mut self, index: usize) {
        while let Some(&(seq, len)) = self.lanes[index].readable.front() {
            let lane = &mut self.lanes[index];
            if !self.receiver.takes(seq, len) {
                if lane.held_back_since.is_none() {
                    lane.held_back_since = Some(self.now);
                    self.schedule(self.now + HELD_BACK_SECONDS, What::HeldBack { lane: index });
                }
                return;
            }
            lane.readable.pop_front();
            lane.connection.unread -= len as f64;
            lane.frames += 1;
            lane.held_back_since = None;
            self.took(index);
        }
        self.transmit(index);
    }

    /// A frame more is off the lane: the upstream is to hear of it.
    fn took(&mut self, index: usize) {
        let lane = &mut self.lanes[index];
        let is_short = self.paths[lane.path].spec.round_trip < SHORT_ROUND_TRIP_SECONDS;
        if !is_short || lane.frames - lane.told.0 >= FRAMES_UNTOLD_MAX {
            self.tell(index, false);
        } else if !lane.will_tell {
            lane.will_tell = true;
            self.schedule(self.now + SHORT_GAP_SECONDS, What::Tell { lane: index });
        }
    }

    /// Moves what is next to the client, as far as that takes it.
    fn advance(&mut self) {
        let (limit, pending) = (self.receiver.limit, self.pending_bytes_max());
        loop {
            let (round_trip, at) = (Duration::from_secs_f64(self.round_trip_max()), self.at(self.now));
            if let Some(drained_at) = self.receiver.advance(self.now, at, round_trip, &self.frames, pending) {
                self.schedule(drained_at, What::Client);
            }
            for lane in 0..self.lanes.len() {
                if self.lanes[lane].held_back_since.is_some() {
                    self.read(lane);
                }
            }
            if !self.receiver.has_next() {
                break;
            }
        }
        if self.receiver.limit > limit {
            (0..self.lanes.len()).for_each(|lane| self.tell(lane, false));
        }
    }

    /// Bytes that may be handed out beyond the credit: a lane that waited for the root takes what it was told to although
    /// others have taken a frame meanwhile. Nobody waits for a fast one.
    fn pending_bytes_max(&self) -> u64 {
        if self.spec.source_rate.is_infinite() { 0 } else { (self.lanes.len() * FRAME_BYTES_MAX) as u64 }
    }

    fn round_trip_max(&self) -> f64 {
        self.spec.paths.iter().map(|path| path.round_trip).fold(0.0, f64::max)
    }

    /// A CREDIT frame, if there is news.
    fn tell(&mut self, index: usize, is_paused: bool) {
        let lane = &mut self.lanes[index];
        let news = (lane.frames, self.receiver.limit, lane.rests);
        // A lane that is held back has its task elsewhere.
        let is_busy = lane.held_back_since.is_some() && !is_paused;
        if !lane.is_alive || is_busy || (!is_paused && news == lane.told) {
            return;
        }
        lane.told = news;
        let path = &self.paths[lane.path];
        let at = path.leaves(self.now, &mut self.random) + path.spec.round_trip / 2.0;
        lane.credit_at = lane.credit_at.max(at);
        let reading = match (is_paused, lane.rests) {
            (true, _) => Reading::Paused,
            (false, true) => Reading::Resting,
            (false, false) => Reading::Eager,
        };
        let (at, frames) = (lane.credit_at, lane.frames);
        let (limit, next) = (self.receiver.limit, self.receiver.next);
        self.schedule(at, What::Credit { lane: index, frames, reading, limit, next });
    }
}
