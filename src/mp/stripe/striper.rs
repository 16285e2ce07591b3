//! Which frame a lane with room takes: a fresh one, another lane's once more, or none.
//!
//! In: turns of lanes, acknowledgements, credit, lanes that come and go. Out: decisions. Called by the upstream's transfer
//! under its lock. Invariants: the pieces cut the body without gap or overlap; a frame is on a lane at most once at a
//! time; [`FRAMES_AHEAD_MAX`] frames and one per lane are outstanding at most; a lost frame comes before fresh bytes.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use thiserror::Error;

use super::{
    lane::{Lane, LaneId},
    model::LaneModel,
    sizer::FRAME_BYTES_MIN,
};
use crate::wire::{
    frame::{FIRST_CREDIT_BYTES, Reading},
    units::{FrameLen, MAX_SEQ, Offset, Seq},
};

/// Half of the downstream's ring of 1024 slots: a lost frame that is sent again behind others always finds its slot.
pub const FRAMES_AHEAD_MAX: u64 = 512;
/// Copies of frames that would arrive late: at most this share of the bytes handed out,
const TAIL_SHARE: f64 = 0.03;
/// or half of that while there are fresh bytes to send, so that the end has its part,
const OVERDUE_SHARE: f64 = TAIL_SHARE / 2.0;
/// or this many bytes, which is one frame of a lane that is not known yet.
const TAIL_BYTES_MIN: u64 = 64 << 10;
/// A copy is worth its bytes only if it comes this much earlier: estimates are not exact to the millisecond.
const COPY_GAIN_SECONDS: f64 = 0.02;
/// and in this proportion.
const COPY_GAIN: f64 = 1.25;
/// Frames looked at for a copy, from the one the client waits for on.
const COPY_CANDIDATES_MAX: usize = 64;
/// In flight on a lane of which nothing is known: a copy of it is in budget.
const COLD_BYTES_MAX: u64 = 64 << 10;
/// Its frames: one fits into the ten segments that TCP begins with, and so is acknowledged after one round trip.
const COLD_FRAME_BYTES: u64 = 12 << 10;
/// Lanes of one transfer reach the upstream within this time of each other.
const ALONE_SECONDS: f64 = 0.5;
/// What the first of them may have queued until then.
const ALONE_QUEUE_SECONDS: f64 = 0.1;
/// A lane that waited this long for the body's source between its turn and its piece was not the bottleneck.
const SOURCE_WAIT_SECONDS: f64 = 0.005;
/// How soon a lane that waits for nothing but a better estimate is looked at again.
const RETRY_SECONDS_MIN: f64 = 0.01;

/// What a lane with room is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Take up to `want` bytes from the body's source and [`Striper::cut`] them.
    Fresh {
        /// Bytes, at least 1.
        want: usize,
    },
    /// Send this frame [`Striper::again`].
    Again {
        /// Which one.
        seq: Seq,
    },
    /// Ask again when something was received, a lane came or went, credit came, or at `until` (time since the transfer's
    /// start).
    Wait {
        /// `None`: time alone changes nothing.
        until: Option<Duration>,
    },
}

/// A frame to be put on a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its number.
    pub seq: Seq,
    /// Where it begins in the body.
    pub offset: Offset,
    /// Its bytes.
    pub len: FrameLen,
}

/// The downstream claims frames that were never sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the downstream acknowledges {claimed} frames of a lane that has carried {sent}")]
pub struct Overcount {
    /// What it claims.
    pub claimed: u64,
    /// What there can be at most.
    pub sent: u64,
}

/// Bytes sent more than once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resent {
    /// Copies of frames that would have arrived late.
    pub tail_bytes: u64,
    /// Frames of lanes that were lost or fell silent.
    pub recovered_bytes: u64,
}

/// A frame not acknowledged yet, or acknowledged behind one that is not.
#[derive(Debug)]
struct Outstanding {
    offset: u64,
    len: u32,
    is_acknowledged: bool,
    /// The lanes it is on, and its number on each.
    carriers: Vec<(LaneId, u64)>,
}

/// The decisions of one transfer; see the module's description.
#[derive(Debug)]
pub struct Striper {
    length: Option<u64>,
    limit: u64,
    has_ended: bool,
    /// The first frame of `outstanding`: the lowest not acknowledged.
    base: u64,
    outstanding: VecDeque<Outstanding>,
    next_offset: u64,
    /// Frames to be sent again.
    lost: BTreeSet<u64>,
    lanes: Vec<Lane>,
    lanes_joined: u32,
    resent: Resent,
}

impl Default for Striper {
    fn default() -> Self {
        Self::new()
    }
}

impl Striper {
    /// A transfer without lanes, nothing of which was handed out.
    pub fn new() -> Self {
        Self {
            length: None,
            limit: FIRST_CREDIT_BYTES,
            has_ended: false,
            base: 0,
            outstanding: VecDeque::new(),
            next_offset: 0,
            lost: BTreeSet::new(),
            lanes: Vec::new(),
            lanes_joined: 0,
            resent: Resent::default(),
        }
    }

    /// The body has so many bytes, as its head says; `None` if it does not say.
    pub fn set_length(&mut self, bytes: Option<u64>) {
        self.length = bytes;
    }

    /// Bytes of the body below `limit` may be handed out; a smaller limit than before changes nothing.
    pub fn grant(&mut self, limit: u64) {
        self.limit = self.limit.max(limit);
    }

    /// A lane takes part from now on.
    pub fn join(&mut self, model: LaneModel, now: Duration) -> LaneId {
        let id = LaneId(self.lanes_joined);
        self.lanes_joined += 1;
        self.lanes.push(Lane::new(id, model, now.as_secs_f64()));
        id
    }

    /// The lane is lost or done: what nobody acknowledged of it is sent again. Returns what it learned.
    pub fn leave(&mut self, lane: LaneId, now: Duration) -> LaneModel {
        let Some(index) = self.lanes.iter().position(|known| known.id == lane) else {
            return LaneModel::default();
        };
        let gone = self.lanes.swap_remove(index);
        for sent in &gone.sent {
            if let Some(frame) = self.outstanding_mut(sent.seq) {
                frame.carriers.retain(|(carrier, _)| *carrier != lane);
            }
        }
        self.lose(gone.sent.iter().map(|sent| sent.seq));
        self.find_silent(now.as_secs_f64());
        gone.model
    }

    /// What a lane with room is to do; `size` is what its [`super::FrameSizer`] says, in bytes.
    pub fn turn(&mut self, lane: LaneId, size: usize, now: Duration) -> Turn {
        let now = now.as_secs_f64();
        let Some(index) = self.index(lane) else { return Turn::Wait { until: None } };
        self.lanes[index].has_asked = true;
        if self.lanes[index].is_silent() {
            return Turn::Wait { until: None };
        }
        if self.rests(index, now) {
            return Turn::Wait { until: None };
        }
        if let Some(seq) = self.lost_for(index, now) {
            return Turn::Again { seq: Seq(seq) };
        }
        if let Copy::Now(seq) = self.copy_for(index, now, Need::Overdue) {
            return Turn::Again { seq: Seq(seq) };
        }
        let fresh_left = self.fresh_left();
        if fresh_left > 0 {
            if let Some(want) = self.fresh_for(index, size.max(1) as u64, fresh_left, now) {
                self.lanes[index].asked_at = now;
                return Turn::Fresh { want: want as usize };
            }
            self.lanes[index].idles();
            let retry = now + self.retry_seconds(index);
            return Turn::Wait { until: Some(Duration::from_secs_f64(retry)) };
        }
        self.lanes[index].idles();
        match self.copy_for(index, now, Need::Late) {
            Copy::Now(seq) => Turn::Again { seq: Seq(seq) },
            Copy::At(until) => Turn::Wait { until: Some(Duration::from_secs_f64(until)) },
            Copy::Never => Turn::Wait { until: None },
        }
    }

    /// The next `len` bytes of the body go on `lane`. `None` if numbers or offsets cannot express it: the body is too long.
    pub fn cut(&mut self, lane: LaneId, len: FrameLen, now: Duration) -> Option<Piece> {
        let seq = self.base + self.outstanding.len() as u64;
        let offset = Offset(self.next_offset);
        let end = offset.next(len)?;
        if seq >= MAX_SEQ {
            return None;
        }
        self.next_offset = end.0;
        let mut frame =
            Outstanding { offset: offset.0, len: len.0, is_acknowledged: false, carriers: Vec::new() };
        if let Some(index) = self.index(lane) {
            let (now, lane) = (now.as_secs_f64(), &mut self.lanes[index]);
            if now - lane.asked_at > SOURCE_WAIT_SECONDS {
                lane.idles();
            }
            frame.carriers.push((lane.id, lane.send(seq, u64::from(len.0), now)));
        } else {
            // The lane left between its turn and now.
            self.lost.insert(seq);
        }
        self.outstanding.push_back(frame);
        Some(Piece { seq: Seq(seq), offset, len })
    }

    /// [`Turn::Again`] is followed: the frame goes on `lane` now. `None` if it need not any more.
    pub fn again(&mut self, lane: LaneId, seq: Seq, now: Duration) -> Option<Piece> {
        let index = self.index(lane)?;
        let place = seq.0.checked_sub(self.base)?;
        let frame = self.outstanding.get_mut(place as usize)?;
        if frame.is_acknowledged || frame.carriers.iter().any(|(carrier, _)| *carrier == lane) {
            return None;
        }
        let bytes = u64::from(frame.len);
        let number = self.lanes[index].send(seq.0, bytes, now.as_secs_f64());
        frame.carriers.push((lane, number));
        if self.lost.remove(&seq.0) {
            self.resent.recovered_bytes += bytes;
        } else {
            self.resent.tail_bytes += bytes;
        }
        Some(Piece { seq, offset: Offset(frame.offset), len: FrameLen(frame.len) })
    }

    /// `frames` DATA frames of `lane` have arrived since it joined. `reading`: how the downstream reads the lane
    /// now; silence of a paused one means nothing. Returns the frames acknowledged for the first time, whose bytes need not
    /// be kept.
    ///
    /// # Errors
    /// [`Overcount`]: the downstream lies, nothing it says can be trusted.
    pub fn received(
        &mut self,
        lane: LaneId,
        frames: u64,
        reading: Reading,
        now: Duration,
    ) -> Result<Vec<Seq>, Overcount> {
        let Some(index) = self.index(lane) else { return Ok(Vec::new()) };
        let now = now.as_secs_f64();
        let lane = &mut self.lanes[index];
        let sent = lane.frames_acknowledged + lane.sent.len() as u64;
        if frames > sent {
            return Err(Overcount { claimed: frames, sent });
        }
        if lane.is_paused() && reading != Reading::Paused {
            lane.resumes(now);
        }
        lane.reading = reading;
        let count = frames.saturating_sub(lane.frames_acknowledged) as usize;
        if count == 0 {
            return Ok(Vec::new());
        }
        let acknowledged = lane.acknowledge(count, now);
        if lane.silent_since.take().is_some() {
            // It goes on: what nobody has taken over yet arrives here.
            for sent in &lane.sent {
                self.lost.remove(&sent.seq);
            }
        }
        let mut first = Vec::new();
        for seq in acknowledged {
            if let Some(frame) = self.outstanding_mut(seq) {
                frame.is_acknowledged = true;
                frame.carriers.clear();
                self.lost.remove(&seq);
                first.push(Seq(seq));
            }
        }
        while self.outstanding.front().is_some_and(|frame| frame.is_acknowledged) {
            self.outstanding.pop_front();
            self.base += 1;
        }
        Ok(first)
    }

    /// Nothing fresh remains: the totals are final.
    pub fn end_of_body(&mut self) {
        self.has_ended = true;
    }

    /// Frames and bytes handed out.
    pub fn totals(&self) -> (u64, u64) {
        (self.base + self.outstanding.len() as u64, self.next_offset)
    }

    /// Nothing fresh remains.
    pub fn is_body_ended(&self) -> bool {
        self.has_ended
    }

    /// Whether the whole body was handed out and every frame of it acknowledged.
    pub fn is_delivered(&self) -> bool {
        self.has_ended && self.outstanding.is_empty()
    }

    /// Looks for lanes that have gone silent. Returns whether any lane's turn may have changed, and when to look again
    /// (`None`: nothing is in flight).
    pub fn check(&mut self, now: Duration) -> (bool, Option<Duration>) {
        let now = now.as_secs_f64();
        let has_changed = self.find_silent(now);
        let next = self.lanes.iter().filter_map(Lane::silent_at).reduce(f64::min);
        // A lane that is overdue but not called silent waits for a healthy one.
        let next = next.map(|at| Duration::from_secs_f64(at.max(now + 0.1)));
        (has_changed, next)
    }

    /// What was sent more than once so far.
    pub fn resent(&self) -> Resent {
        self.resent
    }

    #[cfg(test)]
    pub(super) fn dump(&self, now: f64) -> String {
        self.lanes
            .iter()
            .map(|l| {
                format!(
                    "[{:?} fl {} rate {:.0} rtt {:.3} stall {:.3} arr {:.3} due {:.3} sil {:?} {}]",
                    l.id.0,
                    l.in_flight(),
                    l.model.rate().unwrap_or(0.),
                    l.model.round_trip().unwrap_or(0.),
                    l.silent_at().unwrap_or(0.),
                    l.arrival(0, now).unwrap_or(0.),
                    0,
                    l.silent_since,
                    l.sent.len()
                )
            })
            .collect::<Vec<_>>()
            .join(" ")
            + &format!(
                " base {} out {} next {} limit {} lost {:?} front {:?}",
                self.base,
                self.outstanding.len(),
                self.next_offset,
                self.limit,
                self.lost,
                self.outstanding.front()
            )
    }
    fn index(&self, lane: LaneId) -> Option<usize> {
        self.lanes.iter().position(|known| known.id == lane)
    }

    /// The frame if nobody has acknowledged it.
    fn outstanding_mut(&mut self, seq: u64) -> Option<&mut Outstanding> {
        let place = seq.checked_sub(self.base)? as usize;
        self.outstanding.get_mut(place).filter(|frame| !frame.is_acknowledged)
    }

    fn lane(&self, id: LaneId) -> Option<&Lane> {
        self.lanes.iter().find(|lane| lane.id == id)
    }

    /// These frames are to be sent again, unless a lane that is not silent has them.
    fn lose(&mut self, seqs: impl Iterator<Item = u64>) -> bool {
        let mut has_lost = false;
        for seq in seqs {
            let Some(place) = seq.checked_sub(self.base) else { continue };
            let frame = &self.outstanding[place as usize];
            let is_carried =
                frame.carriers.iter().any(|(id, _)| self.lane(*id).is_some_and(|lane| !lane.is_silent()));
            if !frame.is_acknowledged && !is_carried {
                has_lost |= self.lost.insert(seq);
            }
        }
        has_lost
    }

    /// Calls lanes silent that are, if another one proves that the downstream is not.
    fn find_silent(&mut self, now: f64) -> bool {
        if !self.lanes.iter().any(|lane| lane.is_healthy(now)) {
            return false;
        }
        let mut has_changed = false;
        for index in 0..self.lanes.len() {
            let lane = &mut self.lanes[index];
            if lane.silent_at().is_none_or(|at| at > now) {
                continue;
            }
            #[cfg(test)]
            if std::env::var_os("TRACE").is_some() {
                eprintln!(
                    "SILENT {now:.3} lane {:?} in flight {} front {:?} silent at {:?} model {:?}",
                    lane.id,
                    lane.in_flight(),
                    lane.sent.front(),
                    lane.silent_at(),
                    lane.model
                );
            }
            lane.silent_since = Some(now);
            let seqs: Vec<u64> = lane.sent.iter().map(|sent| sent.seq).collect();
            self.lose(seqs.into_iter());
            has_changed = true;
        }
        has_changed
    }

    /// Whether others carry what this lane need not: one that is to rest works on while no other is in order.
    fn rests(&self, index: usize, now: f64) -> bool {
        self.lanes[index].reading == Reading::Resting
            && self.lanes.iter().any(|lane| lane.reading == Reading::Eager && lane.is_healthy(now))
    }

    /// Fresh bytes that may be handed out now.
    fn fresh_left(&self) -> u64 {
        if self.has_ended || self.outstanding.len() as u64 >= FRAMES_AHEAD_MAX {
            return 0;
        }
        self.limit.min(self.length.unwrap_or(u64::MAX)).saturating_sub(self.next_offset)
    }

    /// The lowest lost frame that this lane should take: the others take those before it.
    fn lost_for(&self, index: usize, now: f64) -> Option<u64> {
        let lane = &self.lanes[index];
        let mut before = 0;
        for &seq in self.lost.iter().take(COPY_CANDIDATES_MAX) {
            let frame = &self.outstanding[(seq - self.base) as usize];
            let len = u64::from(frame.len);
            if frame.carriers.iter().all(|(carrier, _)| *carrier != lane.id) {
                let soonest = self.others(index).filter_map(|other| other.arrival(before + len, now));
                let Some(soonest) = soonest.reduce(f64::min) else { return Some(seq) };
                // If not, a lane that brings it sooner will ask.
                let is_soon = |arrival| arrival <= soonest + COPY_GAIN_SECONDS;
                return lane.arrival(len, now).is_some_and(is_soon).then_some(seq);
            }
            before += len;
        }
        None
    }

    /// How many fresh bytes the lane should take, of `left` that may be handed out.
    fn fresh_for(&self, index: usize, size: u64, left: u64, now: f64) -> Option<u64> {
        let lane = &self.lanes[index];
        let want = size.min(left);
        if !lane.is_known() {
            let is_cold = self.lanes.len() > 1 && lane.in_flight() >= COLD_BYTES_MAX;
            return (!is_cold).then_some(want.min(COLD_FRAME_BYTES));
        }
        let remaining = self.length.map(|length| length - self.next_offset);
        let Some(others_remaining) = self.others_need(index, remaining.unwrap_or(u64::MAX) as f64, now)
        else {
            // No other is known, yet.
            let most = self.alone_bytes(lane, now);
            return (lane.in_flight() < most).then_some(want);
        };
        // What the others could carry until they have to wait for this frame.
        let frames = self.base + self.outstanding.len() as u64;
        let frame_mean = self.next_offset.checked_div(frames).unwrap_or(size).max(1);
        let window = (self.limit - self.base_offset()).min(FRAMES_AHEAD_MAX * frame_mean);
        let others_window = self.others_need(index, window as f64, now).unwrap_or(f64::INFINITY);
        let deadline = others_window.min(others_remaining);
        let smallest = want.min(FRAME_BYTES_MIN as u64);
        let in_time = [want, want / 2, want / 4]
            .into_iter()
            .map(|want| want.max(smallest))
            .find(|&want| lane.arrival(want, now).is_some_and(|arrival| arrival <= deadline));
        // Whatever the estimates say, the lane that brings a frame first waits for nobody: or all could wait for each other.
        in_time.or_else(|| self.is_first(index, smallest, now).then_some(smallest))
    }

    /// What a known lane may have in flight while no other is known: at the start of a transfer faster ones may be about
    /// to join.
    fn alone_bytes(&self, lane: &Lane, now: f64) -> u64 {
        let (Some(rate), Some(round_trip)) = (lane.model.rate(), lane.model.round_trip()) else { return 0 };
        if now > ALONE_SECONDS {
            return u64::MAX;
        }
        // Slow start doubles the rate each round trip, and it is known one later.
        let bytes = rate * (4.0 * round_trip + ALONE_QUEUE_SECONDS);
        (bytes as u64).max(2 * FRAME_BYTES_MIN as u64)
    }

    /// Whether no other lane would bring a frame of `len` bytes sooner.
    fn is_first(&self, index: usize, len: u64, now: f64) -> bool {
        let arrival = self.lanes[index].arrival(len, now);
        self.others(index)
            .filter_map(|lane| lane.arrival(len, now))
            .all(|other| arrival.is_some_and(|own| own <= other))
    }

    /// Other lanes that fresh bytes may be left to.
    fn others(&self, index: usize) -> impl Iterator<Item = &Lane> {
        let others = self.lanes.iter().enumerate().filter(move |(other, _)| *other != index);
        others.map(|(_, lane)| lane).filter(|lane| lane.takes_part())
    }

    fn base_offset(&self) -> u64 {
        self.outstanding.front().map_or(self.next_offset, |frame| frame.offset)
    }

    /// Seconds until the other lanes could have brought `bytes` more; `None` if none of them is known and alive.
    fn others_need(&self, index: usize, bytes: f64, now: f64) -> Option<f64> {
        // Lanes in the order in which they could first bring something; each adds its rate from then on.
        let mut lanes: Vec<(f64, f64)> =
            self.others(index).filter_map(|lane| Some((lane.arrival(0, now)?, lane.model.rate()?))).collect();
        lanes.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let (first, _) = *lanes.first()?;
        let (mut at, mut rate, mut left) = (first, 0.0, bytes);
        for (start, more) in lanes {
            let carried = rate * (start - at);
            if carried >= left {
                break;
            }
            left -= carried;
            at = start;
            rate += more;
        }
        Some(at + left / rate)
    }

    /// A frame of others that this lane would bring earlier.
    fn copy_for(&self, index: usize, now: f64, need: Need) -> Copy {
        let lane = &self.lanes[index];
        let is_overdue = |lane: &Lane| lane.overdue(now) > 0.0;
        if need == Need::Overdue && !self.lanes.iter().any(is_overdue) {
            return Copy::Never;
        }
        let share = if need == Need::Overdue { OVERDUE_SHARE } else { TAIL_SHARE };
        let budget = TAIL_BYTES_MIN.max((self.next_offset as f64 * share) as u64);
        let mut retry = None;
        for (place, frame) in self.outstanding.iter().enumerate().take(COPY_CANDIDATES_MAX) {
            let is_here = frame.carriers.iter().any(|(carrier, _)| *carrier == lane.id);
            if frame.is_acknowledged || is_here {
                continue;
            }
            let on_time = |(id, _): &(LaneId, u64)| self.lane(*id).is_some_and(|lane| !is_overdue(lane));
            if need == Need::Overdue && frame.carriers.iter().any(on_time) {
                continue;
            }
            let len = u64::from(frame.len);
            if self.resent.tail_bytes + len > budget {
                return Copy::Never;
            }
            let Some(arrival) = lane.arrival(len, now) else { return Copy::Never };
            let remaining = frame
                .carriers
                .iter()
                .filter_map(|(id, number)| self.lane(*id)?.remaining(*number, now))
                .reduce(f64::min);
            let Some(remaining) = remaining else { continue };
            if remaining > arrival * COPY_GAIN + COPY_GAIN_SECONDS {
                return Copy::Now(self.base + place as u64);
            }
            retry.get_or_insert(now + (arrival * COPY_GAIN + COPY_GAIN_SECONDS).max(RETRY_SECONDS_MIN));
        }
        retry.map_or(Copy::Never, Copy::At)
    }

    fn retry_seconds(&self, index: usize) -> f64 {
        let round_trip = self.lanes[index].model.round_trip().unwrap_or(0.1);
        (round_trip / 4.0).max(RETRY_SECONDS_MIN)
    }
}

/// Why [`Striper::copy_for`] looks for a frame.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Need {
    /// The lane has something better to do, unless a frame should long have arrived.
    Overdue,
    /// The lane has nothing else to do.
    Late,
}

/// What [`Striper::copy_for`] found.
enum Copy {
    Now(u64),
    At(f64),
    Never,
}

#[cfg(test)]
#[path = "striper_tests.rs"]
mod tests;
