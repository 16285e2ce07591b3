//! Which lanes stand on this core, for whoever looks.
//!
//! In: lanes of all three roles, as they come and go. Out: a [`Census`] when somebody asks for one, made on the core
//! that is asked. Called by the roles, and by `observe`. Invariant: a lane pays for being counted only while somebody
//! looks: its connection is sampled then, and what it counts meanwhile is plain cells of its core.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    ops::Deref,
    rc::Rc,
};

use serde::{Deserialize, Serialize};

use crate::net::{Glimpse, Socket, TcpInfo};

/// Lanes of a core that are described one by one; a sample takes a few microseconds, so that a census takes one or two
/// milliseconds at most. All are counted.
const DESCRIBED_MAX: usize = 256;

/// Whose end of which leg a lane is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// The downstream's, along a path.
    Downstream,
    /// A relay's, towards the downstream.
    RelayNear,
    /// A relay's, towards the upstream.
    RelayFar,
    /// The upstream's.
    Upstream,
}

impl End {
    /// As metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Downstream => "downstream",
            Self::RelayNear => "relay-near",
            Self::RelayFar => "relay-far",
            Self::Upstream => "upstream",
        }
    }
}

/// A lane that stands on this core. What is not of its end's business stays zero.
#[derive(Debug)]
pub struct Standing {
    end: End,
    peer: String,
    number: usize,
    connection: Glimpse,
    /// It came up on this core, and not on another one that it was moved from.
    is_new: bool,
    /// It carries a transfer.
    pub in_use: Cell<bool>,
    /// Bytes towards the upstream (relay).
    pub up: Cell<u64>,
    /// Bytes towards the downstream (relay), payload in frames (upstream).
    pub down: Cell<u64>,
    /// Of those, what was sent again because another lane did not bring it (upstream).
    pub resent: Cell<u64>,
}

/// One lane of a [`Census`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LaneReport {
    /// Whose end of it this is.
    pub end: End,
    /// The path, next hop or address that it leads to.
    pub peer: String,
    /// The lowest number that was free among the lanes to this peer on this core when it came up.
    pub number: usize,
    /// It carries a transfer.
    pub in_use: bool,
    /// Smoothed round trip of this leg, seconds.
    pub rtt_s: f64,
    /// What the kernel delivered at last, bytes per second.
    pub delivery_rate: u64,
    /// Congestion window, segments.
    pub congestion_window: u32,
    /// Segments sent again.
    pub retransmitted: u32,
    /// Segments received out of order.
    pub out_of_order: u32,
    /// Bytes that have left, those sent again included.
    pub sent_bytes: u64,
    /// Bytes that have come, in order.
    pub received_bytes: u64,
    /// Name of the congestion control.
    pub congestion_control: String,
}

/// All lanes of an end, those that are gone included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndTotals {
    /// Lanes that stand.
    pub standing: u64,
    /// Lanes that have come up since the start.
    pub opened: u64,
    /// See [`Standing::up`].
    pub up_bytes: u64,
    /// See [`Standing::down`].
    pub down_bytes: u64,
    /// See [`Standing::resent`].
    pub resent_bytes: u64,
}

impl EndTotals {
    /// Adds those of another core.
    pub fn add(&mut self, other: &Self) {
        self.standing += other.standing;
        self.opened += other.opened;
        self.up_bytes += other.up_bytes;
        self.down_bytes += other.down_bytes;
        self.resent_bytes += other.resent_bytes;
    }
}

/// The lanes of one core.
#[derive(Clone, Debug, Default)]
pub struct Census {
    /// The first 256.
    pub lanes: Vec<LaneReport>,
    /// All.
    pub totals: BTreeMap<End, EndTotals>,
}

#[derive(Default)]
struct Register {
    /// Per end and peer, by number.
    standing: BTreeMap<(End, String), Vec<Option<Rc<Standing>>>>,
    /// Of lanes that are gone; `standing` is not used.
    gone: BTreeMap<End, EndTotals>,
}

thread_local! {
    static REGISTER: RefCell<Register> = RefCell::default();
}

/// Counts a lane for as long as it is held.
#[derive(Debug)]
pub struct Counted(Rc<Standing>);

impl Deref for Counted {
    type Target = Standing;

    fn deref(&self) -> &Standing {
        &self.0
    }
}

impl Counted {
    /// A lane of this core over `socket` stands.
    pub fn new(end: End, peer: String, socket: &Socket) -> Self {
        Self::standing(end, peer, socket, true)
    }

    /// A lane that stood on another core has come to this one.
    pub fn moved(end: End, peer: String, socket: &Socket) -> Self {
        Self::standing(end, peer, socket, false)
    }

    fn standing(end: End, peer: String, socket: &Socket, is_new: bool) -> Self {
        REGISTER.with_borrow_mut(|register| {
            let lanes = register.standing.entry((end, peer.clone())).or_default();
            let number = lanes.iter().position(Option::is_none).unwrap_or(lanes.len());
            let standing = Rc::new(Standing {
                end,
                peer,
                number,
                connection: socket.share().glimpse(),
                is_new,
                in_use: Cell::new(false),
                up: Cell::new(0),
                down: Cell::new(0),
                resent: Cell::new(0),
            });
            let entry = Some(standing.clone());
            match lanes.get_mut(number) {
                Some(free) => *free = entry,
                None => lanes.push(entry),
            }
            Self(standing)
        })
    }
}

impl Standing {
    fn count(&self, totals: &mut EndTotals) {
        totals.opened += u64::from(self.is_new);
        totals.up_bytes += self.up.get();
        totals.down_bytes += self.down.get();
        totals.resent_bytes += self.resent.get();
    }

    fn report(&self) -> Option<LaneReport> {
        let (info, congestion_control) = self.connection.look()?;
        let TcpInfo { rtt, delivery_rate, congestion_window, retransmitted, out_of_order, .. } = info;
        Some(LaneReport {
            end: self.end,
            peer: self.peer.clone(),
            number: self.number,
            in_use: self.in_use.get(),
            rtt_s: rtt.as_secs_f64(),
            delivery_rate,
            congestion_window,
            retransmitted,
            out_of_order,
            sent_bytes: info.sent_bytes,
            received_bytes: info.received_bytes,
            congestion_control,
        })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        // At the end of a thread its register may be gone first.
        let _ = REGISTER.try_with(|register| {
            let mut register = register.borrow_mut();
            self.0.count(register.gone.entry(self.0.end).or_default());
            let key = (self.0.end, self.0.peer.clone());
            if let Some(lanes) = register.standing.get_mut(&key) {
                lanes[self.0.number] = None;
                while lanes.last().is_some_and(Option::is_none) {
                    lanes.pop();
                }
                if lanes.is_empty() {
                    register.standing.remove(&key);
                }
            }
        });
    }
}

/// The lanes of the core that calls.
pub fn take() -> Census {
    REGISTER.with_borrow(|register| {
        let mut totals = register.gone.clone();
        let standing = || register.standing.values().flatten().flatten();
        for lane in standing() {
            let totals = totals.entry(lane.end).or_default();
            lane.count(totals);
            totals.standing += 1;
        }
        let lanes = standing().take(DESCRIBED_MAX).filter_map(|lane| lane.report()).collect();
        Census { lanes, totals }
    })
}
