//! What must be reached: the one place with targets. In: measured rows. Out: verdicts.
//!
//! The goals speak of Plait as it comes (lanes chosen by itself) with warm lanes; one lane on each path stands beside.
//! Invariant: a goal is reached only by transfers that were measured to their end, and over MPTCP where it speaks of
//! MPTCP.

use serde::Serialize;

use crate::columns::Column::{self, Direct, KernelMptcp, MptcpLane, OnePath, ParallelAuto, ParallelOne};
use crate::columns::Warmth::{self, Cold, Warm};
use crate::row::Row;

/// What is compared with what.
#[derive(Clone, Copy)]
enum Measure {
    /// Goodput ÷ what all links together can deliver.
    Share,
    /// Goodput ÷ that of the best path alone: the better of one plain connection and Plait with one warm lane.
    BestPath,
    /// Goodput ÷ that of one plain connection over the best path.
    Direct,
    /// Cold goodput ÷ warm goodput.
    ColdToWarm,
    /// Time to the first byte.
    FirstByte,
    /// The MPTCP lane's goodput ÷ that of a plain connection over the kernel's MPTCP.
    Mptcp,
}

/// A goal of one row.
struct Target {
    scenario: &'static str,
    cc: &'static str,
    measure: Measure,
    at_least: f64,
}

const fn target(scenario: &'static str, cc: &'static str, measure: Measure, at_least: f64) -> Target {
    Target { scenario, cc, measure, at_least }
}

/// Goals of single rows.
const TARGETS: &[Target] = &[
    target("two-equal", "bbr", Measure::Share, 0.97),
    target("two-equal", "cubic", Measure::Share, 0.99),
    target("uneven", "bbr", Measure::Share, 0.96),
    target("uneven", "cubic", Measure::Share, 0.98),
    target("far-apart", "bbr", Measure::Share, 0.95),
    target("far-apart", "cubic", Measure::Share, 0.98),
    target("lossy", "bbr", Measure::Share, 0.92),
    target("lossy-cubic", "cubic", Measure::Share, 0.45),
    target("one-bad", "cubic", Measure::BestPath, 1.5),
    target("second-half-lost", "bbr", Measure::BestPath, 0.98),
    target("second-far", "bbr", Measure::BestPath, 0.98),
    target("second-dead-slow", "bbr", Measure::BestPath, 0.98),
    target("four-mixed", "bbr", Measure::Share, 0.93),
    target("policed", "bbr", Measure::Share, 0.85),
];

/// The first byte over warm lanes comes after so many round trips of the fastest path, and so many milliseconds.
const FIRST_BYTE_ROUND_TRIPS: f64 = 1.2;
const FIRST_BYTE_REST_MS: f64 = 5.0;

impl Measure {
    fn describe(self) -> &'static str {
        match self {
            Self::Share => "share of all links",
            Self::BestPath => "÷ best path alone",
            Self::Direct => "÷ direct",
            Self::ColdToWarm => "cold ÷ warm",
            Self::FirstByte => "first byte, ms",
            Self::Mptcp => "MPTCP lane ÷ kernel MPTCP",
        }
    }

    /// The figure for `column`, one of Plait's parallel ones.
    fn value(self, row: &Row, column: Column) -> Option<f64> {
        let mbit = row.mbit(column, Warm);
        match self {
            Self::Share => Some(mbit? / row.capacity_mbit),
            Self::BestPath => Some(mbit? / row.mbit(Direct, Cold)?.max(row.mbit(OnePath, Warm)?)),
            Self::Direct => Some(mbit? / row.mbit(Direct, Cold)?),
            Self::ColdToWarm => Some(row.mbit(column, Cold)? / mbit?),
            Self::FirstByte => Some(row.cell(column, Warm)?.first_byte_s()?.median * 1e3),
            Self::Mptcp => Some(row.mbit(MptcpLane, Warm)? / row.mbit(KernelMptcp, Cold)?),
        }
    }

    /// The figure of a cold MPTCP lane. Everywhere else the columns of the table say it.
    fn cold_to_cold(self, row: &Row) -> Option<f64> {
        match self {
            Self::Mptcp => Some(row.mbit(MptcpLane, Cold)? / row.mbit(KernelMptcp, Cold)?),
            _ => None,
        }
    }

    /// The cell whose rate makes the figure better. The first byte comes long before any deadline.
    fn praises(self, column: Column) -> Option<(Column, Warmth)> {
        match self {
            Self::Share | Self::BestPath | Self::Direct => Some((column, Warm)),
            Self::ColdToWarm => Some((column, Cold)),
            Self::FirstByte => None,
            Self::Mptcp => Some((MptcpLane, Warm)),
        }
    }

    /// The cells whose rates make it worse.
    fn divides_by(self, column: Column) -> Vec<(Column, Warmth)> {
        match self {
            Self::Share | Self::FirstByte => vec![],
            Self::BestPath => vec![(Direct, Cold), (OnePath, Warm)],
            Self::Direct => vec![(Direct, Cold)],
            Self::ColdToWarm => vec![(column, Warm)],
            Self::Mptcp => vec![(KernelMptcp, Cold)],
        }
    }
}

/// Which side of a bound is good.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
        }
    }
}

/// How a goal came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Judgement {
    Reached,
    Missed,
    /// The figure is good enough, but the deadline cut off transfers that it praises: their tails were not measured.
    CutOff,
    /// Plain TCP was measured where the goal speaks of MPTCP.
    FellBack,
    NotMeasured,
}

/// What was compared, and how it came out.
#[derive(Serialize)]
pub struct Verdict {
    pub goal: &'static str,
    pub bound: Bound,
    /// Plait as it comes.
    pub value: Option<f64>,
    /// Plait with one lane on each path, where that makes a difference.
    pub one_lane_each: Option<f64>,
    /// The same of cold lanes, where a warm one is compared with a peer that is always cold.
    pub cold_to_cold: Option<f64>,
    /// Transfers that it is divided by were cut off: their tails could only have made the figure better.
    pub is_other_cut_off: bool,
    pub judgement: Judgement,
}

impl Verdict {
    fn new(row: &Row, measure: Measure, bound: Bound) -> Self {
        let value = measure.value(row, ParallelAuto);
        let is_cut_off = |&(column, warmth): &(Column, Warmth)| {
            row.cell(column, warmth).is_some_and(|cell| cell.cut_off() > 0)
        };
        let mut compared = measure.praises(ParallelAuto).into_iter().chain(measure.divides_by(ParallelAuto));
        let fell_back = compared
            .any(|(column, warmth)| row.cell(column, warmth).is_some_and(|cell| cell.fell_back() > 0));
        Self {
            goal: measure.describe(),
            bound,
            value,
            one_lane_each: measure.value(row, ParallelOne).filter(|_| !matches!(measure, Measure::Mptcp)),
            cold_to_cold: measure.cold_to_cold(row),
            is_other_cut_off: measure.divides_by(ParallelAuto).iter().any(is_cut_off),
            judgement: match value {
                None => Judgement::NotMeasured,
                Some(_) if fell_back => Judgement::FellBack,
                Some(value) if !bound.holds(value) => Judgement::Missed,
                Some(_) if measure.praises(ParallelAuto).iter().any(is_cut_off) => Judgement::CutOff,
                Some(_) => Judgement::Reached,
            },
        }
    }
}

/// Judges one row: first by its own goal, if it has one, then by those of every row, always in the same order.
pub fn judge(row: &Row) -> (Option<Verdict>, Vec<Verdict>) {
    let own = own(&row.scenario, &row.cc).next();
    let own = own.map(|target| Verdict::new(row, target.measure, Bound::AtLeast(target.at_least)));
    let first_byte_ms = FIRST_BYTE_ROUND_TRIPS * row.rtt_min_s() * 1e3 + FIRST_BYTE_REST_MS;
    let everywhere = [
        (Measure::Direct, Bound::AtLeast(0.98)),
        (Measure::ColdToWarm, Bound::AtLeast(0.94)),
        (Measure::FirstByte, Bound::AtMost(first_byte_ms)),
        (Measure::Mptcp, Bound::AtLeast(0.98)),
    ];
    (own, everywhere.map(|(measure, bound)| Verdict::new(row, measure, bound)).into())
}

/// Whether the table of "Must reach" has this row.
pub fn is_in_table(scenario: &str, cc: &str) -> bool {
    own(scenario, cc).next().is_some()
}

/// Whether a goal of this row asks for Plait on the best path alone.
pub fn asks_for_best_path(scenario: &str, cc: &str) -> bool {
    own(scenario, cc).any(|target| matches!(target.measure, Measure::BestPath))
}

fn own(scenario: &str, cc: &str) -> impl Iterator<Item = &'static Target> {
    TARGETS.iter().filter(move |target| target.scenario == scenario && target.cc == cc)
}
