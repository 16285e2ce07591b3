//! In: a row and its columns. Out: the row with its cells filled.
//!
//! Called by `main`. Invariants: columns alternate within a round and their order rotates from round to round, so that
//! noise hits all of them; a column begins when nothing of the one before is on the links any more, and so does a warm
//! transfer behind a cold one that was cut off; a failed transfer is recorded and the rest goes on.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use plait::lab::Lab;

use crate::cell::{Cell, Sample};
use crate::columns::{Column, Warmth};
use crate::measure::Ground;
use crate::peers::Peers;
use crate::roles::Roles;
use crate::row::Row;
use crate::{Outcome, goals};

/// A link that carried nothing for this long, and for a round trip, is empty.
const QUIET_MIN: Duration = Duration::from_millis(200);
/// Somebody may send forever: after this long it is the next transfer's turn anyway. Idle lanes stand for a minute.
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
        /// A downstream fetches filler for about so long.
        const FILLER_S: f64 = 5.0;
        let seconds = |column: &Column| {
            let filler_s = if column.has_warm() { FILLER_S } else { 0.0 };
            let transfers = if column.has_warm() { 2.0 } else { 1.0 };
            let taken_s = self.bytes as f64 * 8e-6 / row.expected_mbit(*column);
            filler_s + transfers * (taken_s.min(self.deadline.as_secs_f64()) + OVERHEAD_S)
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
        if column.has_warm() {
            cells.push(Cell::new(column, Warmth::Warm));
        }
    }
    let ground = Ground { lab, row: &row, dir, bytes: plan.bytes, deadline: plan.deadline };
    let peers = Peers::start(&ground)?;
    for cell in &mut cells {
        cell.absent = peers.absence(cell.column);
    }
    for round in 1..=plan.runs {
        let first = round as usize % columns.len().max(1);
        for &column in columns[first..].iter().chain(&columns[..first]) {
            let mut of_column: Vec<&mut Cell> =
                cells.iter_mut().filter(|cell| cell.column == column && cell.absent.is_none()).collect();
            if plan.is_over() || of_column.is_empty() {
                continue;
            }
            wait_until_quiet(lab, &row);
            if column.is_plait() {
                measure_roles(&ground, column, round, &mut of_column);
            } else {
                let _ = of_column[0].record(round, peers.transfer(column), &row);
            }
        }
    }
    drop(peers);
    row.cells = cells;
    Ok(row)
}

/// A cold transfer, and a warm one if that went well. Processes that never started are no column.
fn measure_roles(ground: &Ground<'_>, column: Column, round: u32, cells: &mut [&mut Cell]) {
    let roles = match Roles::start(column, ground) {
        Ok(roles) => roles,
        Err(error) => {
            eprintln!("  {}: {error}", ground.row.label(cells[0]));
            let reason = one_line(&error.to_string());
            for cell in cells {
                if cell.samples.is_empty() {
                    cell.absent = Some(reason.clone());
                } else {
                    cell.failures.push(format!("round {round}: {reason}"));
                }
            }
            return;
        }
    };
    let mut before = After::Complete;
    for cell in cells {
        if before == After::CutOff {
            // What the roles and the queues of the links still held is not the next transfer's.
            wait_until_quiet(ground.lab, ground.row);
        }
        before = cell.record(round, roles.transfer(), ground.row);
        if before == After::Nothing {
            break;
        }
    }
}

/// What a transfer leaves behind.
#[derive(Clone, Copy, PartialEq)]
enum After {
    /// Nothing but warm lanes.
    Complete,
    /// Bytes on the links that nobody wants any more.
    CutOff,
    /// There was none: it failed.
    Nothing,
}

impl Cell {
    /// Keeps a sample, or the reason why there is none.
    fn record(&mut self, round: u32, sample: Outcome<Sample>, row: &Row) -> After {
        let label = row.label(self);
        match sample {
            Ok(sample) => {
                let (after, cut_off) = match sample.download.is_complete {
                    true => (After::Complete, ""),
                    false => (After::CutOff, " (cut off)"),
                };
                eprintln!("  round {round}: {label}: {:.1} Mbit/s{cut_off}", sample.mbit());
                self.samples.push(Sample { round, ..sample });
                after
            }
            Err(error) => {
                eprintln!("  round {round}: {label}: FAILED: {error}");
                self.failures.push(format!("round {round}: {}", one_line(&error.to_string())));
                After::Nothing
            }
        }
    }
}

/// Tables and lists have room for one.
fn one_line(text: &str) -> String {
    text.lines().map(str::trim).collect::<Vec<_>>().join(" ")
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
