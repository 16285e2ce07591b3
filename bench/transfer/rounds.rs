//! In: a row and its columns. Out: the row with its cells filled.
//!
//! Called by `main`. Invariants: columns alternate within a round and their order rotates from round to round, so that
//! noise hits all of them; a transfer begins when nothing of the one before is on the links any more; a failed transfer is
//! recorded and the rest goes on.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use plait::lab::Lab;

use crate::cell::{Cell, Sample};
use crate::columns::{Column, Warmth};
use crate::measure::Ground;
use crate::peers::Peers;
use crate::roles;
use crate::row::Row;
use crate::{Outcome, goals};

/// A link that carried nothing for this long, and for a round trip, is empty.
const QUIET_MIN: Duration = Duration::from_millis(200);
/// Lanes may ping each other forever: after this long it is the next column's turn anyway.
const QUIET_WAIT_MAX: Duration = Duration::from_secs(10);

/// What is measured in each row.
pub struct Plan {
    pub columns: Vec<Column>,
    pub runs: u32,
    pub bytes: u64,
    /// When a transfer is cut off.
    pub deadline: Duration,
    /// No transfer begins after this.
    pub until: Option<Instant>,
}

impl Plan {
    /// The columns of one row, in the order of its table.
    pub fn columns_of(&self, row: &Row) -> Vec<Column> {
        let mut columns = self.columns.clone();
        columns.sort_unstable();
        columns.dedup();
        columns
            .retain(|&column| column != Column::OnePath || goals::asks_for_best_path(&row.scenario, &row.cc));
        columns
    }

    /// About how long the row takes.
    pub fn estimate(&self, row: &Row) -> Duration {
        /// Starting processes, waiting for empty links.
        const OVERHEAD_S: f64 = 1.5;
        let seconds = |column: &Column| {
            let transfers = if column.is_plait() { 2.0 } else { 1.0 };
            let taken_s = self.bytes as f64 * 8e-6 / row.expected_mbit(*column);
            transfers * (taken_s.min(self.deadline.as_secs_f64()) + OVERHEAD_S)
        };
        let round_s: f64 = self.columns_of(row).iter().map(seconds).sum();
        Duration::from_secs_f64(round_s * f64::from(self.runs))
    }

    fn is_over(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() > until)
    }
}

/// Measures one row in `lab`, whose congestion control is the row's.
pub fn run(plan: &Plan, lab: &Lab, mut row: Row, dir: &Path) -> Outcome<Row> {
    let columns = plan.columns_of(&row);
    let mut cells: Vec<Cell> = Vec::new();
    for &column in &columns {
        cells.push(Cell::new(column, Warmth::Cold));
        if column.is_plait() {
            cells.push(Cell::new(column, Warmth::Warm));
        }
    }
    {
        let ground = Ground { lab, row: &row, dir, bytes: plan.bytes, deadline: plan.deadline };
        let peers = Peers::start(&ground)?;
        for cell in &mut cells {
            cell.absent = peers.absence(cell.column).or_else(|| roles::absence(cell.column, &ground));
        }
        for round in 1..=plan.runs {
            let first = round as usize % columns.len().max(1);
            for &column in columns[first..].iter().chain(&columns[..first]) {
                let present = |cell: &Cell| cell.column == column && cell.absent.is_none();
                if plan.is_over() || !cells.iter().any(present) {
                    continue;
                }
                wait_until_quiet(lab, &row);
                let (cold, warm) = if column.is_plait() {
                    match roles::round(column, &ground) {
                        Ok((cold, warm)) => (Ok(cold), Some(warm)),
                        Err(error) => (Err(error), None),
                    }
                } else {
                    (peers.transfer(column), None)
                };
                for (warmth, sample) in [(Warmth::Cold, Some(cold)), (Warmth::Warm, warm)] {
                    let cell = cells.iter_mut().find(|cell| cell.column == column && cell.warmth == warmth);
                    if let (Some(cell), Some(sample)) = (cell, sample) {
                        record(&row, cell, round, sample);
                    }
                }
            }
        }
    }
    row.cells = cells;
    Ok(row)
}

fn record(row: &Row, cell: &mut Cell, round: u32, sample: Outcome<Sample>) {
    let label = row.label(cell);
    match sample {
        Ok(sample) => {
            let cut_off = if sample.download.is_complete { "" } else { " (cut off)" };
            eprintln!("  round {round}: {label}: {:.1} Mbit/s{cut_off}", sample.mbit());
            cell.samples.push(Sample { round, ..sample });
        }
        Err(error) => {
            eprintln!("  round {round}: {label}: FAILED: {error}");
            cell.failures.push(format!("round {round}: {error}"));
        }
    }
}

/// Waits until the links have carried nothing for a while.
fn wait_until_quiet(lab: &Lab, row: &Row) {
    let quiet = QUIET_MIN.max(Duration::from_secs_f64(row.rtt_max_s()));
    let begin = Instant::now();
    let packets = || -> u64 { lab.counters().iter().flatten().map(|counters| counters.packets).sum() };
    let mut before = packets();
    while begin.elapsed() < QUIET_WAIT_MAX {
        thread::sleep(quiet);
        let now = packets();
        if now == before {
            return;
        }
        before = now;
    }
}
