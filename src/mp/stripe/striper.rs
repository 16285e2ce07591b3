//! Which frame a lane with room takes: a fresh one, another lane's once more, or none.
//!
//! In: turns of lanes, acknowledgements, credit, lanes that come and go. Out: decisions. Called by the upstream's transfer
//! under its lock. Invariants: the pieces cut the body without gap or overlap; a frame is on a lane at most once at a
//! time; [`FRAMES_AHEAD_MAX`] frames are outstanding at most; a lost frame comes before fresh bytes.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use thiserror::Error;

use super::{
    lane::{Lane, LaneId},
    model::LaneModel,
};
use crate::wire::{
    frame::{FIRST_CREDIT_BYTES, Reading},
    units::{FrameLen, MAX_SEQ, Offset, Seq},
};

mod choice;
mod late;
mod word;

/// Frames outstanding at most, with one more for each lane that may be about to cut one. They fit into the downstream's
/// ring of 1024 slots once all before the first outstanding frame are taken: a lost frame that is sent again behind others
/// always finds its slot.
pub const FRAMES_AHEAD_MAX: u64 = 960;
/// But as many as this however many lanes there are, or they would wait for each other.
const FRAMES_AHEAD_MIN: u64 = 64;
/// A lane that waited this long for the body's source between its turn and its piece was not the bottleneck.
const SOURCE_WAIT_SECONDS: f64 = 0.005;
/// Pauses that lanes have now and then are taken for faults while that costs no more than this share of what was handed out:
/// a viewer waits for what is noticed late.
const FALSE_ALARM_SHARE: f64 = 0.005;

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
#[error("the downstream acknowledges {claimed} frames where there were {sent}")]
pub struct Overcount {
    /// What it claims.
    pub claimed: u64,
    /// What there can be at most.
    pub sent: u64,
}

/// Bytes sent more than once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resent {
    /// Copies of frames that would have arrived late, at the end of the body or to try a lane.
    pub tail_bytes: u64,
    /// Copies of frames that held up the window.
    pub held_up_bytes: u64,
    /// Copies of those that were stuck, beyond what may be spent on the others.
    pub stuck_bytes: u64,
    /// Copies of frames whose lanes were late.
    pub late_bytes: u64,
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
    /// When the first lane with room could have begun the body.
    first_asked_at: Option<f64>,
    /// Frames to be sent again.
    lost: BTreeSet<u64>,
    /// Until when the downstream's word is awaited on which of them have arrived.
    word_by: f64,
    lanes: Vec<Lane>,
    lanes_joined: u32,
    resent: Resent,
    /// Bytes that others were given in pauses which were no faults.
    false_alarm_bytes: u64,
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
            first_asked_at: None,
            lost: BTreeSet::new(),
            word_by: 0.0,
            lanes: Vec::new(),
            lanes_joined: 0,
            resent: Resent::default(),
            false_alarm_bytes: 0,
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
    pub fn join(&mut self, mut model: LaneModel, now: Duration) -> LaneId {
        model.inherits(self.lanes.iter().map(|lane| &lane.model));
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
        if self.lose(gone.sent.iter().map(|sent| sent.seq)) {
            self.await_word(&gone, now.as_secs_f64());
        }
        self.doubt_pauses(now.as_secs_f64());
        self.find_silent(now.as_secs_f64());
        gone.model
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
                lane.idles(now);
            }
            frame.carriers.push((lane.id, lane.send(seq, u64::from(len.0), now)));
            if lane.is_trial {
                self.lost.insert(seq);
            }
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
        let is_held_up = !self.is_at_end() && self.fresh_left() == 0;
        let place = seq.0.checked_sub(self.base)?;
        let is_stuck = is_held_up
            && place > 0
            && self.copy_bytes_left() < u64::from(self.outstanding.get(place as usize)?.len);
        let is_late = self.are_late(&self.outstanding.get(place as usize)?.carriers, now.as_secs_f64());
        let frame = self.outstanding.get_mut(place as usize)?;
        if frame.is_acknowledged || frame.carriers.iter().any(|(carrier, _)| *carrier == lane) {
            return None;
        }
        let bytes = u64::from(frame.len);
        let lives = |id| self.lanes.iter().any(|lane| lane.id == id && !lane.is_silent());
        let spent = match frame.carriers.iter().any(|(carrier, _)| lives(*carrier)) {
            true if is_late => &mut self.resent.late_bytes,
            true if is_stuck => &mut self.resent.stuck_bytes,
            true if is_held_up => &mut self.resent.held_up_bytes,
            true => &mut self.resent.tail_bytes,
            false => &mut self.resent.recovered_bytes,
        };
        *spent += bytes;
        self.lost.remove(&seq.0);
        frame.carriers.push((lane, self.lanes[index].send(seq.0, bytes, now.as_secs_f64())));
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
        if (lane.is_silent() || lane.is_late(now)) && LaneModel::is_habit(lane.overdue(now)) {
            self.false_alarm_bytes += self.taken_over(index);
        }
        let lane = &mut self.lanes[index];
        let acknowledged = lane.acknowledge(count, now);
        if lane.silent_since.take().is_some() {
            // It goes on: what nobody has taken over yet arrives here.
            for sent in &lane.sent {
                self.lost.remove(&sent.seq);
            }
        }
        Ok(self.settle(acknowledged.into_iter()))
    }

    /// Bytes on the lane that others carry, too, or have brought.
    fn taken_over(&self, index: usize) -> u64 {
        let is_twofold = |seq: u64| {
            let place = seq.checked_sub(self.base);
            let frame = place.and_then(|place| self.outstanding.get(place as usize));
            frame.is_none_or(|frame| frame.is_acknowledged || frame.carriers.len() > 1)
        };
        self.lanes[index].sent.iter().filter(|sent| is_twofold(sent.seq)).map(|sent| sent.len).sum()
    }

    /// These frames have arrived; returns those of which that was not known.
    fn settle(&mut self, seqs: impl Iterator<Item = u64>) -> Vec<Seq> {
        let mut first = Vec::new();
        for seq in seqs {
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
        first
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
        let spares_habits = self.spares_habits();
        let next = self.lanes.iter().filter_map(|lane| lane.silent_at(spares_habits)).reduce(f64::min);
        // A lane that is overdue but not called silent waits for a healthy one.
        let next = next.map(|at| Duration::from_secs_f64(if at > now { at } else { now + 0.1 }));
        (has_changed, next)
    }

    /// What was sent more than once so far.
    pub fn resent(&self) -> Resent {
        self.resent
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

    /// Whether the lane carries nothing fresh, and nothing that was sent on it is still on its way.
    pub fn is_spent(&self, lane: LaneId) -> bool {
        self.lane(lane).is_none_or(|lane| lane.reading == Reading::Resting && lane.sent.is_empty())
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

    /// A frame that is next is read at once unless the client takes nothing, and then no lane is given up. So a lane that was
    /// called paused, has nothing before that frame, and still stands when another one goes, may have been cut off before it could
    /// say that it is read again.
    fn doubt_pauses(&mut self, now: f64) {
        let next = self.base;
        let is_next = |lane: &Lane| lane.sent.front().is_some_and(|oldest| oldest.seq <= next);
        for lane in self.lanes.iter_mut().filter(|lane| lane.is_paused() && is_next(lane)) {
            lane.reading = Reading::Eager;
            lane.resumes(now);
        }
    }

    /// Whether pauses as lanes have them now and then have cost enough.
    fn spares_habits(&self) -> bool {
        self.false_alarm_bytes as f64 > FALSE_ALARM_SHARE * self.next_offset as f64
    }

    /// Calls lanes silent that are, if another one proves that the downstream is not.
    fn find_silent(&mut self, now: f64) -> bool {
        let spares_habits = self.spares_habits();
        if !self.lanes.iter().any(|lane| lane.is_healthy(spares_habits, now)) {
            return false;
        }
        let mut has_changed = false;
        for index in 0..self.lanes.len() {
            let lane = &mut self.lanes[index];
            if lane.silent_at(spares_habits).is_none_or(|at| at > now) {
                continue;
            }
            lane.silent_since = Some(now);
            let seqs: Vec<u64> = lane.sent.iter().map(|sent| sent.seq).collect();
            self.lose(seqs.into_iter());
            has_changed = true;
        }
        has_changed
    }
}

#[cfg(test)]
#[path = "striper_tests.rs"]
mod tests;
