//! One row of the table: a scenario with one congestion control, and what was measured in it.

use plait::lab::Scenario;
use plait::lab::scenario::EmulatedPath;
use serde::Serialize;

use crate::cell::Cell;
use crate::columns::{Column, Warmth};
use crate::goals::Verdict;

/// One path, as the scenario says.
#[derive(Clone, Debug, Serialize)]
pub struct PathFacts {
    pub rate_mbit: f64,
    pub rtt_ms: f64,
    pub loss: f64,
    /// Limit of each connection.
    pub flow_mbit: Option<f64>,
}

impl PathFacts {
    /// About what one loss-driven connection gets: the formula of Mathis et al. (1997) where loss is the limit.
    fn one_connection_mbit(&self) -> f64 {
        const SEGMENT_BITS: f64 = 1448.0 * 8.0;
        let link = self.flow_mbit.unwrap_or(f64::INFINITY).min(self.rate_mbit);
        let by_loss = SEGMENT_BITS / (self.rtt_ms / 1e3) * (1.5 / self.loss).sqrt() / 1e6;
        if self.loss > 0.0 { link.min(by_loss) } else { link }
    }

    fn describe(&self) -> String {
        let mut text = format!("{} Mbit/s, {} ms", self.rate_mbit, self.rtt_ms);
        if self.loss > 0.0 {
            text += &format!(", {} % loss", self.loss * 100.0);
        }
        if let Some(limit) = self.flow_mbit {
            text += &format!(", each connection at most {limit} Mbit/s");
        }
        text
    }
}

/// A scenario with one congestion control.
#[derive(Serialize)]
pub struct Row {
    pub scenario: String,
    /// The real-world link.
    pub stands_for: String,
    /// Congestion control of lanes, and of what peers receive from.
    pub cc: String,
    pub paths: Vec<PathFacts>,
    /// What all links together can deliver: 0.965 × the sum of their rates.
    pub capacity_mbit: f64,
    pub cells: Vec<Cell>,
    /// The goal of this row alone.
    pub own_verdict: Option<Verdict>,
    /// The goals of every row.
    pub verdicts: Vec<Verdict>,
}

impl Row {
    /// A row without measurements.
    pub fn new(scenario: &Scenario, cc: &str) -> Self {
        let facts = |path: &EmulatedPath| PathFacts {
            rate_mbit: path.rate_mbit,
            rtt_ms: path.rtt_ms,
            loss: path.loss,
            flow_mbit: path.flow_mbit,
        };
        Self {
            scenario: scenario.name.clone(),
            stands_for: scenario.stands_for.clone(),
            cc: cc.to_owned(),
            paths: scenario.paths.iter().map(facts).collect(),
            capacity_mbit: scenario.goodput_mbit_max(),
            cells: Vec::new(),
            own_verdict: None,
            verdicts: Vec::new(),
        }
    }

    /// What the row is called in tables.
    pub fn name(&self) -> String {
        format!("{}, {}", self.scenario, self.cc)
    }

    /// The paths in words, equal ones counted.
    pub fn describe_paths(&self) -> String {
        let mut parts: Vec<(usize, String)> = Vec::new();
        for path in &self.paths {
            let text = path.describe();
            match parts.last_mut() {
                Some((count, last)) if *last == text => *count += 1,
                _ => parts.push((1, text)),
            }
        }
        let part = |(count, text): &(usize, String)| {
            if *count == 1 { text.clone() } else { format!("{count} × ({text})") }
        };
        parts.iter().map(part).collect::<Vec<_>>().join(" + ")
    }

    /// The path that one plain connection does best on; of equal ones that with the shortest round trip, then the first.
    pub fn best_path(&self) -> usize {
        let order = |&one: &usize, &other: &usize| {
            let (one, other) = (&self.paths[one], &self.paths[other]);
            let by_rate = one.one_connection_mbit().total_cmp(&other.one_connection_mbit());
            by_rate.then(other.rtt_ms.total_cmp(&one.rtt_ms))
        };
        // Of equal ones max_by takes the last.
        (0..self.paths.len()).rev().max_by(order).unwrap_or(0)
    }

    /// Round trip of the fastest path.
    pub fn rtt_min_s(&self) -> f64 {
        self.paths.iter().map(|path| path.rtt_ms / 1e3).fold(f64::INFINITY, f64::min)
    }

    /// Round trip of the slowest path.
    pub fn rtt_max_s(&self) -> f64 {
        self.paths.iter().map(|path| path.rtt_ms / 1e3).fold(0.0, f64::max)
    }

    /// About what a column gets, for an estimate of how long the table takes. BBR does not care for moderate loss.
    pub fn expected_mbit(&self, column: Column) -> f64 {
        let one = |path: &PathFacts| {
            let link = path.flow_mbit.unwrap_or(f64::INFINITY).min(path.rate_mbit);
            if self.cc == "bbr" { link } else { path.one_connection_mbit() }
        };
        let (best, sum) = (one(&self.paths[self.best_path()]), self.paths.iter().map(one).sum::<f64>());
        match column {
            Column::Direct | Column::Curl | Column::Haproxy | Column::OnePath => best,
            Column::AriaOne | Column::KernelMptcp | Column::MptcpLane | Column::ParallelOne => sum,
            Column::AriaEight | Column::ParallelAuto | Column::ParallelUnwarmed => {
                (8.0 * sum).min(self.capacity_mbit)
            }
        }
    }

    /// One cell, if it is in this run.
    pub fn cell(&self, column: Column, warmth: Warmth) -> Option<&Cell> {
        self.cells.iter().find(|cell| cell.column == column && cell.warmth == warmth)
    }

    /// Median goodput of one cell.
    pub fn mbit(&self, column: Column, warmth: Warmth) -> Option<f64> {
        Some(self.cell(column, warmth)?.mbit()?.median)
    }

    /// What a cell is called here.
    pub fn label(&self, cell: &Cell) -> String {
        let label = cell.column.label(self.paths.len());
        match (cell.column.is_plait(), cell.warmth) {
            (true, Warmth::Cold) => format!("{label}, cold"),
            (true, Warmth::Warm) => format!("{label}, warm"),
            (false, _) => label,
        }
    }

    /// What makes the rate of a cell another than its column promises; empty if nothing does.
    pub fn doubts(&self, cell: &Cell) -> String {
        let runs = cell.samples.len();
        let mut doubts = Vec::new();
        if cell.fell_back() > 0 {
            doubts.push(format!("**{} of {runs} FELL BACK TO TCP**", cell.fell_back()));
        } else if self.paths.len() > 1 && cell.subflows().is_some_and(|(fewest, _)| fewest < 2) {
            doubts.push("**ONE SUBFLOW ONLY**".to_owned());
        }
        if cell.cut_off() > 0 {
            doubts.push(format!("{} of {runs} cut off", cell.cut_off()));
        }
        doubts.iter().map(|doubt| format!(", {doubt}")).collect()
    }

    /// The best of the installed programs.
    pub fn best_peer(&self) -> Option<(&Cell, f64)> {
        let programs = [Column::Curl, Column::Haproxy, Column::AriaOne, Column::AriaEight];
        let peers = self.cells.iter().filter(|cell| programs.contains(&cell.column));
        let measured = peers.filter_map(|cell| Some((cell, cell.mbit()?.median)));
        measured.max_by(|one, other| one.1.total_cmp(&other.1))
    }
}
