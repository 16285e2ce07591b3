//! In: what to compare. Out: one table per scenario and its goals.
//!
//! Called by `main`, on a thread that may have a network of its own. Invariant: competitors alternate within a round,
//! in an order that rotates, so that none is always the first after a pause; each has moved a whole file correctly
//! before it is timed.

pub mod chain;
pub mod idle;
pub mod merge;
pub mod observed;
pub mod relay;
pub mod stalled;

use std::thread;

use crate::Outcome;
use crate::load::Library;
use crate::peers::Executor;
use crate::report::{Cell, Goal, Sample};

/// What all scenarios share.
pub struct Bench {
    /// The files to move.
    pub library: Library,
    /// Alternating runs.
    pub rounds: u32,
    /// 200 MB only.
    pub quick: bool,
    /// Executors to run plait on.
    pub executors: Vec<Executor>,
}

/// What all scenarios add to.
#[derive(Default)]
pub struct Findings {
    /// Rows of the last table.
    pub goals: Vec<Goal>,
    /// Proxies that lost or changed bytes.
    pub losses: Vec<String>,
}

impl Findings {
    /// Adds those of another network.
    pub fn extend(&mut self, other: Self) {
        self.goals.extend(other.goals);
        self.losses.extend(other.losses);
    }

    /// Keeps the name of a competitor whose verifying pass failed; passes the outcome on.
    fn verified(&mut self, label: &str, outcome: Outcome<()>) -> Outcome<()> {
        outcome.inspect_err(|error| self.losses.push(format!("{label}: {error}")))
    }
}

/// One timed transfer through a competitor.
type Transfer<'a> = Box<dyn Fn() -> Outcome<Sample> + 'a>;

/// The rows of one table while they are measured.
struct Contest<'a> {
    cells: Vec<Cell>,
    transfers: Vec<Transfer<'a>>,
    bytes: u64,
}

impl<'a> Contest<'a> {
    /// Of transfers of `bytes` bytes.
    fn of(bytes: u64) -> Self {
        Self { cells: Vec::new(), transfers: Vec::new(), bytes }
    }

    /// Adds a row: a competitor with its transfer, or the reason why it does not compete.
    fn enter<T>(&mut self, label: &str, peer: &'a Outcome<T>, transfer: impl Fn(&T) -> Outcome<Sample> + 'a) {
        let mut cell = Cell::new(label, self.bytes);
        match peer {
            Ok(peer) => self.transfers.push(Box::new(move || transfer(peer))),
            Err(error) => {
                cell.trouble = Some(error.to_string());
                self.transfers.push(Box::new(|| Err("does not compete".into())));
            }
        }
        self.cells.push(cell);
    }

    /// `rounds` samples for each row without trouble.
    fn run(mut self, rounds: u32) -> Vec<Cell> {
        let count = self.cells.len();
        for round in 0..rounds as usize {
            for turn in 0..count {
                let index = (round + turn) % count;
                if self.cells[index].trouble.is_none() {
                    self.cells[index].push(self.transfers[index]());
                }
            }
        }
        self.cells
    }
}

/// `--cores` for the whole machine.
fn all_cores() -> String {
    format!("0-{}", thread::available_parallelism().map_or(1, usize::from) - 1)
}
