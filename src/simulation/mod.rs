//! The whole chain in virtual time: root, upstreams, relays, the downstream and its clients, and somebody who does harm.
//!
//! In: a seed. Out: nothing, or a panic that says which invariant broke and how to run that seed again. Everything that a
//! byte passes is what ships (`http`, `upstream`, `relay`, `lanes`, `mp`, `downstream`, and `net` with its pipes, splices and
//! tees): `exec` runs it on one thread in an order and a time that the seed chooses ([`crate::exec::on_simulator`]), and
//! `net` gives it sockets whose other ends only this simulation holds ([`crate::net::simulated`]). A model of the state
//! machines alone would be quicker and would miss what is between them: tasks that are cancelled in the middle, wake-ups
//! that are lost, lanes that are given back out of step. What the seed harms: see [`scenario::Harm`].
//!
//! Invariants, for every request: the client gets the bytes of the file, in order, each once; what is cut off is seen to be
//! (a reset, or less than was announced), never taken for the end; it ends. Whenever one path is left in peace, or all are
//! silent for no more than five seconds, it gets all of them. The upstream lets go of no frame that the downstream has not
//! got ([`ledger`]). And when all is over: no transfer, frame, lane or task is left.
//!
//! What it has found, and which faults that were put in on purpose it sees: bench/results/2026-11-26-simulation.md.
//!
//! Not simulated: the cache, several threads (the ring has loom for that), kernel TCP below the byte stream.

mod chain;
mod client;
mod harm;
pub(crate) mod ledger;
mod root;
mod scenario;
mod tests;
mod timed;

use std::{ops::AddAssign, rc::Rc, time::Duration};

use futures_util::future::join_all;

use self::{chain::Chain, client::Client, root::Root, scenario::Scenario};
use crate::{
    exec::{self, on_simulator},
    mp::parked,
    net::simulated::Network,
};

/// Cores of the downstream, all on this thread.
const CORES: usize = 2;
/// After the last answer: lanes that nobody needs are closed, transfers that nobody waits for have ended.
const QUIET_TIME: Duration = Duration::from_secs(100);

/// How a run went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    steps: u64,
    bytes: u64,
    complete: u32,
    broken: u32,
    refused: u32,
    cancelled: u32,
    /// In virtual time, to the nanosecond: the same seed takes the same.
    took: Duration,
}

impl AddAssign for Report {
    fn add_assign(&mut self, other: Self) {
        self.steps += other.steps;
        self.bytes += other.bytes;
        self.complete += other.complete;
        self.broken += other.broken;
        self.refused += other.refused;
        self.cancelled += other.cancelled;
        self.took += other.took;
    }
}

/// Runs one seed.
pub(super) fn run(seed: u64) -> Report {
    let scenario = Rc::new(Scenario::of(seed));
    ledger::keep(true);
    let _end = End;
    let (mut report, steps) = on_simulator::simulate(seed, CORES, live(scenario));
    report.steps = steps;
    report
}

/// Of a run, also by a panic: the next one on this thread is another.
struct End;

impl Drop for End {
    fn drop(&mut self) {
        ledger::keep(false);
        parked::simulate(None);
        Network::stop();
    }
}

async fn live(scenario: Rc<Scenario>) -> Report {
    let network = Network::start(scenario.splicing);
    Root::start(&network, &scenario);
    let chain = Chain::start(&network, &scenario);
    exec::spawn(chain.clone().watch());
    exec::spawn(harm::harm(chain.clone()));
    let clients = scenario.clients.iter().map(|spec| Client::new(&scenario, spec).run());
    let mut report = Report::default();
    for told in join_all(clients).await {
        report.bytes += told.bytes;
        report.complete += told.complete;
        report.broken += told.broken;
        report.refused += told.refused;
        report.cancelled += told.cancelled;
    }
    exec::sleep(scenario.harm_ends().saturating_sub(on_simulator::passed())).await;
    exec::sleep(QUIET_TIME).await;
    chain.assert_nothing_is_left();
    report.took = on_simulator::passed();
    report
}
