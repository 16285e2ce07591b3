//! Two hosts and the paths between them, in virtual time: the real striper, sizers and credit window, and what stands
//! for sockets, producers and client.
//!
//! In: a [`Spec`]. Out: a [`Report`], or a panic where an invariant breaks. Invariants checked here: frames cut the body
//! without gap, every byte reaches the client once and in order, parked bytes stay below the credit, nobody asks for turns
//! in a loop, and every transfer ends.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BTreeMap, BinaryHeap, VecDeque},
    time::{Duration, Instant},
};

use super::{
    path::{Connection, Flight, Path, PathSpec},
    random::Random,
};
use crate::{
    mp::{
        stripe::{FRAME_BYTES_MAX, FrameSizer, LaneId, LaneModel, Resent, Striper, Turn},
        window::Window,
    },
    wire::{
        frame::{FIRST_CREDIT_BYTES, Reading},
        units::FrameLen,
    },
};

/// What the client's socket holds.
const CLIENT_BUFFER_BYTES: f64 = 1e6;
/// As in `mp::producer`: a lane left unread for the client's sake says so after this long.
const HELD_BACK_SECONDS: f64 = 0.05;
/// As in `mp::producer`: on shorter paths acknowledgements are gathered.
const SHORT_ROUND_TRIP_SECONDS: f64 = 0.005;
const FRAMES_UNTOLD_MAX: u64 = 16;
/// After which a lane without another frame tells.
const SHORT_GAP_SECONDS: f64 = 0.001;
/// As in `mp::transfer`.
const PARKED_BYTES_MAX: u64 = 64 << 20;
/// As in `upstream::transfer`: bounds of the pauses between two looks for silent lanes.
const WATCH_SECONDS: (f64, f64) = (0.02, 0.2);
/// As in `net::socket`.
const NOT_SENT_BYTES_MIN: usize = 128 << 10;
/// Turns that a lane may ask for in a second without anything having happened.
const IDLE_TURNS_MAX: f64 = 110.0;

/// Something that happens to a lane.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// The connection is lost; another one stands after so many seconds.
    Lost(f64),
    /// The downstream wants nothing fresh of it for so many seconds.
    Rest(f64),
}

/// A world and what is asked of it.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    pub(super) paths: Vec<PathSpec>,
    /// A transfer of this size goes before the measured one, if not 0.
    pub(super) warm_up: u64,
    pub(super) bytes: u64,
    /// The head tells the length.
    pub(super) is_length_known: bool,
    /// Bytes per second that the client takes, and that the root gives.
    pub(super) client_rate: f64,
    pub(super) source_rate: f64,
    /// Seconds since the measured transfer's start, the path, and what happens to its first lane.
    pub(super) faults: Vec<(f64, usize, Fault)>,
    pub(super) seed: u64,
}

/// How the measured transfer went.
#[derive(Clone, Debug)]
pub(super) struct Report {
    /// From its start to the client's last byte.
    pub(super) seconds: f64,
    pub(super) resent: Resent,
    pub(super) parked_max: u64,
    pub(super) turns: u64,
    pub(super) frames: u64,
}

impl Spec {
    /// 200 MB over warm lanes, as the transfer table has it.
    pub(super) fn table(paths: Vec<PathSpec>, seed: u64) -> Self {
        Self {
            paths,
            warm_up: 100_000_000,
            bytes: 200_000_000,
            is_length_known: true,
            client_rate: f64::INFINITY,
            source_rate: f64::INFINITY,
            faults: Vec::new(),
            seed,
        }
    }

    /// The same with one path only.
    pub(super) fn only(&self, path: usize) -> Self {
        let faults =
            self.faults.iter().filter(|(_, at, _)| *at == path).map(|(at, _, fault)| (*at, 0, *fault));
        Self { paths: vec![self.paths[path].clone()], faults: faults.collect(), ..self.clone() }
    }

    /// Runs it.
    pub(super) fn run(&self) -> Report {
        let mut world = World::new(self);
        if self.warm_up > 0 {
            world.transfer(self.warm_up, false);
        }
        world.transfer(self.bytes, true)
    }
}

enum What {
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

struct Event {
    at: f64,
    serial: u64,
    what: What,
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

/// A lane: both ends.
struct Lane {
    path: usize,
    connection: Connection,
    sizer: FrameSizer,
    model: LaneModel,
    /// Since the request is at the upstream.
    id: Option<LaneId>,
    is_alive: bool,
    not_sent: usize,
    /// Bytes of the frame before, and since when the lane is busy with them.
    carried: Option<(usize, f64)>,
    wake_at: f64,
    waits_for_source: bool,
    /// Whole frames in the socket at the downstream: sequence number and length.
    readable: VecDeque<(u64, u64)>,
    frames: u64,
    told: (u64, u64, bool),
    rests: bool,
    held_back_since: Option<f64>,
    will_tell: bool,
    credit_at: f64,
}

impl Lane {
    fn new(path: usize) -> Self {
        Self {
            path,
            connection: Connection::new(),
            sizer: FrameSizer::default(),
            model: LaneModel::default(),
            id: None,
            is_alive: true,
            not_sent: NOT_SENT_BYTES_MIN,
            carried: None,
            wake_at: f64::NAN,
            waits_for_source: false,
            readable: VecDeque::new(),
            frames: 0,
            told: (0, FIRST_CREDIT_BYTES, false),
            rests: false,
            held_back_since: None,
            will_tell: false,
            credit_at: 0.0,
        }
    }

    /// The next transfer begins.
    fn restart(&mut self) {
        let old = std::mem::replace(self, Self::new(self.path));
        self.is_alive = old.is_alive;
        self.connection = old.connection;
        self.connection.unread = 0.0;
        self.sizer = old.sizer;
        self.model = old.model;
        self.not_sent = old.not_sent;
        self.rests = old.rests;
    }
}

/// The client's side of the transfer.
struct Receiver {
    next: u64,
    next_offset: u64,
    parked: BTreeMap<u64, u64>,
    parked_bytes: u64,
    parked_max: u64,
    window: Window,
    limit: u64,
    /// Bytes in the client's socket, and when that was so.
    client: (f64, f64),
    client_rate: f64,
    is_client_blocked: bool,
}

/// See the module's description.
struct World<'a> {
    spec: &'a Spec,
    random: Random,
    paths: Vec<Path>,
    lanes: Vec<Lane>,
    now: f64,
    began: f64,
    events: BinaryHeap<Reverse<Event>>,
    serial: u64,
    striper: Striper,
    receiver: Receiver,
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
    waits: BTreeMap<(usize, &'static str), f64>,
    idle: Vec<Option<(f64, &'static str)>>,
}

impl<'a> World<'a> {
    fn new(spec: &'a Spec) -> Self {
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
            events: BinaryHeap::new(),
            serial: 0,
            striper: Striper::new(),
            receiver: Receiver::new(instant, spec.client_rate),
            first_key: 0,
            frames: Vec::new(),
            bytes: 0,
            source: VecDeque::new(),
            turns: 0,
            credits: 0,
            joined: 0,
            instant,
            waits: BTreeMap::new(),
            idle: vec![],
        }
    }

    fn transfer(&mut self, bytes: u64, is_measured: bool) -> Report {
        let spec = self.spec;
        self.began = self.now;
        self.bytes = bytes;
        let is_kept =
            |what: &What| matches!(what, What::Acknowledged { .. } | What::Back { .. } | What::Rested { .. });
        self.events.retain(|Reverse(event)| is_kept(&event.what));
        self.striper = Striper::new();
        self.striper.set_length(spec.is_length_known.then_some(bytes));
        self.receiver = Receiver::new(self.at(self.now), spec.client_rate);
        if let Ok(first) = std::env::var("FIRST") {
            let first: u64 = first.parse::<u64>().unwrap() << 20;
            self.receiver.window = Window::with_size(first, self.at(self.now));
            self.receiver.limit = first;
            self.striper.grant(first);
        }
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
            let Reverse(event) = self.events.pop().expect("somebody does something");
            assert!(event.at >= self.now);
            self.now = event.at;
            assert!(
                self.now < deadline,
                "the transfer does not end: {} {:?}",
                self.striper.dump(self.now - self.began),
                self.lanes
                    .iter()
                    .map(|l| (
                        l.is_alive,
                        l.rests,
                        l.path,
                        l.connection.has_room(l.not_sent as f64),
                        l.waits_for_source,
                        l.readable.len(),
                        l.held_back_since,
                        l.told,
                        l.frames
                    ))
                    .collect::<Vec<_>>()
            );
            self.happen(event.what);
            if finished_at.is_none() && self.receiver.next_offset == bytes {
                finished_at = Some(self.now);
            }
        }
        if !self.waits.is_empty() {
            eprintln!("WAITS {:?}", self.waits);
            self.waits.clear();
            self.idle.clear();
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
            parked_max: self.receiver.parked_max,
            turns: self.turns,
            frames,
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
        self.serial += 1;
        self.events.push(Reverse(Event { at: at.max(self.now), serial: self.serial, what }));
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
                self.lanes[lane].connection.acknowledged(&flight, &self.paths[path], sharing, self.now);
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
            What::Credit { lane, frames, reading, limit } => {
                if let Some(id) = self.lanes[lane].id.filter(|_| self.lanes[lane].is_alive) {
                    self.credits += 1;
                    self.striper.grant(limit);
                    let now = self.since_began();
                    self.striper.received(id, frames, reading, now).expect("the downstream does not lie");
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
            if let Some((bytes, since)) = lane.carried.take() {
                lane.sizer.carried(bytes, Duration::from_secs_f64(self.now - since));
                let size = lane.sizer.size();
                if size >= 2 * lane.not_sent || size <= lane.not_sent / 2 {
                    lane.not_sent = size.max(NOT_SENT_BYTES_MIN);
                }
            }
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
                    if std::env::var_os("TRACE").is_some() {
                        let (taken, r) = (self.striper.totals().1, &self.receiver);
                        let why = if taken == self.bytes {
                            "tail"
                        } else if taken >= r.limit {
                            "credit"
                        } else {
                            "ecf"
                        };
                        *self.waits.entry((index, why)).or_insert(0.0) += 0.0;
                        if self.idle.len() <= index {
                            self.idle.resize(index + 1, None);
                        }
                        if self.idle[index].is_none() {
                            self.idle[index] = Some((self.now, why));
                        }
                        if std::env::var_os("TRACE").is_some_and(|v| v == "2") {
                            eprintln!(
                                "{:.3} lane {index} waits {why} until {:?} {}",
                                self.now - self.began,
                                until,
                                self.striper.dump(self.now - self.began)
                            );
                        }
                    }
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
        if let Some(Some((since, why))) = self.idle.get_mut(index).map(|i| i.take()) {
            *self.waits.entry((index, why)).or_insert(0.0) += self.now - since;
        }
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
        loop {
            let lane = &mut self.lanes[index];
            let Some(&(seq, len)) = lane.readable.front() else { break };
            let receiver = &mut self.receiver;
            if seq >= receiver.next && !receiver.parked.contains_key(&seq) {
                let has_window = seq == receiver.next || receiver.parked_bytes + len <= PARKED_BYTES_MAX;
                if receiver.is_client_blocked || !has_window {
                    if lane.held_back_since.is_none() {
                        lane.held_back_since = Some(self.now);
                        self.schedule(self.now + HELD_BACK_SECONDS, What::HeldBack { lane: index });
                    }
                    return;
                }
                receiver.parked.insert(seq, len);
                receiver.parked_bytes += len;
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
        let limit = self.receiver.limit;
        loop {
            while let Some(drained_at) = self.receiver.take_next(self.now, &self.frames) {
                let (round_trip, at) = (self.round_trip_max(), self.at(self.now));
                let receiver = &mut self.receiver;
                let len = self.frames[receiver.next as usize - 1].1;
                if let Some(limit) = receiver.window.taken(len, Duration::from_secs_f64(round_trip), at) {
                    receiver.limit = limit;
                }
                if receiver.is_client_blocked {
                    self.schedule(drained_at, What::Client);
                }
            }
            let next = self.receiver.next;
            let held = (0..self.lanes.len()).filter(|&lane| self.lanes[lane].held_back_since.is_some());
            for lane in held.collect::<Vec<_>>() {
                self.read(lane);
            }
            if self.receiver.is_client_blocked || !self.receiver.parked.contains_key(&next) {
                break;
            }
        }
        let receiver = &mut self.receiver;
        receiver.parked_max = receiver.parked_max.max(receiver.parked_bytes);
        // A lane that waited for the root may have taken a frame meanwhile.
        let most = receiver.limit + (self.lanes.len() * FRAME_BYTES_MAX) as u64;
        assert!(receiver.next_offset + receiver.parked_bytes <= most, "more is parked than was let go");
        if receiver.limit > limit {
            (0..self.lanes.len()).for_each(|lane| self.tell(lane, false));
        }
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
        let (at, frames, limit) = (lane.credit_at, lane.frames, self.receiver.limit);
        self.schedule(at, What::Credit { lane: index, frames, reading, limit });
    }
}

impl Receiver {
    fn new(now: Instant, client_rate: f64) -> Self {
        Self {
            next: 0,
            next_offset: 0,
            parked: BTreeMap::new(),
            parked_bytes: 0,
            parked_max: 0,
            window: Window::new(now),
            limit: FIRST_CREDIT_BYTES,
            client: (0.0, 0.0),
            client_rate,
            is_client_blocked: false,
        }
    }

    /// The next frame goes to the client, if it is there and the client takes it. Returns when the client would have taken
    /// enough of what it has.
    fn take_next(&mut self, now: f64, frames: &[(u64, u64)]) -> Option<f64> {
        if self.is_client_blocked {
            return None;
        }
        let len = self.parked.remove(&self.next)?;
        assert_eq!(frames[self.next as usize], (self.next_offset, len), "in order, and once");
        self.parked_bytes -= len;
        self.next += 1;
        self.next_offset += len;
        let (before, at) = self.client;
        let left = if self.client_rate.is_finite() { before - (now - at) * self.client_rate } else { 0.0 };
        let held = left.max(0.0) + len as f64;
        self.client = (held, now);
        self.is_client_blocked = self.client_rate.is_finite() && held > CLIENT_BUFFER_BYTES;
        Some(now + (held - CLIENT_BUFFER_BYTES / 2.0) / self.client_rate)
    }
}
