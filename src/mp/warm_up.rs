//! The transfer that goes before the first client's: filler over all paths, so that lanes are past slow start, and windows and numbers
//! of lanes known, when that client comes.
//!
//! In: a manager whose first lanes stand. Out: warm lanes. Called once by a downstream that starts, before it says that it listens.
//! Invariants: it is bounded in bytes and in time; it gives way to any client, and its failure is nobody's error; no client sees a byte of it.

use std::{pin::pin, rc::Rc, time::Duration};

use futures_util::future::{Either, select};

use super::{
    consumer::Sink,
    manager::{Figures, Manager},
};
use crate::{
    exec::{self, Instant},
    wire::filler,
};

/// Longer is not waited for, unless slow start may not be over: the numbers of lanes of policed paths are found in seven seconds.
const TIME_USUAL: Duration = Duration::from_secs(8);
/// Slow start to 500 Mbit/s, with a round trip for the first request.
const TIME_ROUND_TRIPS: u32 = 14;
/// And never longer, so that who starts a downstream is not kept waiting for one path.
const TIME_MAX: Duration = Duration::from_secs(16);
/// What is under way when it ends is waited for, or the first client would have to wait for it: a round trip of the longest path, and
/// a queue in front of it.
const SETTLE_MAX: Duration = Duration::from_secs(3);
/// Between two looks whether a client has come: what it costs is a tenth of what a viewer notices.
const LOOK_PAUSE: Duration = Duration::from_millis(20);
/// On paths that are all as short as this slow start takes less time than anybody notices.
const SHORT_ROUND_TRIP: Duration = Duration::from_millis(5);
/// The rate is measured over so long, or so many round trips, in which slow start grows fourfold.
const MEASURE_MIN: Duration = Duration::from_millis(300);
const MEASURE_ROUND_TRIPS: u32 = 2;
/// It grows if a measurement has so much more than the best one before.
const GROWTH_MIN: f64 = 1.1;
/// It stands still if so many in a row have not.
const STILL: usize = 3;
const OK: &[u8] = b"HTTP/1.1 200 ";

impl Manager {
    /// Warms the lanes of this core with up to `bytes` of filler. Ends early when the rate stands still, when a client comes, or after
    /// a few seconds.
    pub async fn warm_up(self: &Rc<Self>, bytes: u64) {
        if bytes > 0 && self.longest_round_trip() >= SHORT_ROUND_TRIP {
            self.fill(bytes).await;
        }
    }

    /// The same on paths of any length; returns why it ended.
    pub(super) async fn fill(self: &Rc<Self>, bytes: u64) -> String {
        let began = Instant::now();
        let outcome = match select(pin!(self.fetch_filler(bytes)), pin!(self.time_is_up())).await {
            Either::Left((outcome, _)) => outcome,
            Either::Right(((), _)) => "it takes too long".into(),
        };
        tracing::info!(outcome, ms = began.elapsed().as_millis(), "the lanes have carried filler");
        let at_rest = exec::timeout(SETTLE_MAX, self.lanes_rest());
        select(pin!(at_rest), pin!(self.others_come(0))).await;
        outcome
    }

    async fn time_is_up(&self) {
        exec::sleep(TIME_USUAL).await;
        // A long path's first lane may have come late.
        let wanted = TIME_MAX.min(TIME_ROUND_TRIPS * self.longest_round_trip());
        exec::sleep(wanted.saturating_sub(TIME_USUAL)).await;
    }

    /// Returns what has become of it.
    async fn fetch_filler(self: &Rc<Self>, bytes: u64) -> String {
        let mut incoming = match self.fetch(filler::request(bytes)).await {
            Ok(incoming) => incoming,
            Err(error) => return error.to_string(),
        };
        if !incoming.head.starts_with(OK) {
            let answer = String::from_utf8_lossy(&incoming.head);
            let status = answer.lines().next().unwrap_or_default();
            return format!("upstream: it has no filler, but {status} (is it older?)");
        }
        let figures = incoming.figures();
        let moved = pin!(incoming.consumer.run(Sink::Nowhere, Some(bytes)));
        let (still, others) = (pin!(self.stands_still(&figures)), pin!(self.others_come(1)));
        match select(moved, select(still, others)).await {
            Either::Left((Ok(_), _)) => "all bytes have come".into(),
            Either::Left((Err(error), _)) => error.to_string(),
            Either::Right((Either::Left(_), _)) => "the rate stands still".into(),
            Either::Right((Either::Right(_), _)) => "a client has come".into(),
        }
    }

    /// Resolves when lanes bring no more than before, and no other numbers of them are tried.
    async fn stands_still(&self, figures: &Figures) {
        let received = || figures.places.iter().map(|place| place.share().bytes).sum();
        let (mut before, mut best, mut still): (u64, f64, usize) = (received(), 0.0, 0);
        while still < STILL {
            let began = Instant::now();
            exec::sleep(MEASURE_MIN.max(MEASURE_ROUND_TRIPS * self.longest_round_trip())).await;
            let now: u64 = received();
            let rate = (now - before) as f64 / began.elapsed().as_secs_f64();
            let grows = rate > best * GROWTH_MIN;
            let tries = figures.places.iter().any(|place| self.counts().is_trying(place));
            (before, best) = (now, best.max(rate));
            still = if grows || tries { 0 } else { still + 1 };
        }
    }

    /// Resolves when all lanes are back, with nothing on its way to them.
    async fn lanes_rest(&self) {
        while !self.is_at_rest() {
            exec::sleep(LOOK_PAUSE).await;
        }
    }

    /// Resolves when other transfers than `own` run, or have been begun since, on whatever core.
    async fn others_come(&self, own: usize) {
        let (begun, _) = self.traffic();
        while self.traffic() == (begun, own) {
            exec::sleep(LOOK_PAUSE).await;
        }
    }
}
