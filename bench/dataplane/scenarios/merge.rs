//! In: a file that comes over two lanes. Out: what a downstream pays to put it together, next to what plait's own
//! relay pays to forward it.
//!
//! Called by `main`. The upstream reads the file itself; both lanes go straight to it.

use super::relay::RelayPeer;
use super::{Bench, Contest, Findings, all_cores};
use crate::Outcome;
use crate::load::{Answer, LARGE_BYTES, LARGE_NAME, Library, MB, VIDEO_BYTES, VIDEO_NAME, timed_get_aside};
use crate::namespace::Network;
use crate::peers::{Executor, Plait, Role, Setting};
use crate::report::{Goal, Sample, Target, print_cells};

/// Downstream with two direct paths of one lane each, and its upstream.
pub struct Pair {
    /// Whose CPU time and memory count.
    pub downstream: Role,
    _upstream: Role,
}

impl Pair {
    /// Starts both; the upstream, which is not measured, stands aside on the last CPU, as the relay's source does.
    pub fn start(setting: Setting<'_>, library: &Library) -> Outcome<Self> {
        let plait = Plait::new(library.dir())?;
        let last = all_cores();
        let last = last.rsplit(['-', ',']).next().unwrap_or("0");
        let upstream =
            plait.upstream(Setting { cores: last, ..setting }, &library.dir().display().to_string())?;
        let path = upstream.address.to_string();
        let downstream = plait.downstream(setting, &[path.clone(), path])?;
        Ok(Self { downstream, _upstream: upstream })
    }

    fn transfer(&self, name: &str, bytes: u64) -> Outcome<Sample> {
        let before_ns = self.downstream.process.cpu_ns()?;
        let taken = timed_get_aside(self.downstream.address, name, bytes)?;
        Ok(Sample { taken, cpu_ns: Some(self.downstream.process.cpu_ns()? - before_ns) })
    }
}

/// Scenario B.
pub fn run(bench: &Bench, network: &Network, findings: &mut Findings) -> Outcome<()> {
    let library = &bench.library;
    let all_cores = all_cores();
    let placements = [("local", "0", 1.4), ("spread", all_cores.as_str(), 2.2)];
    let mut relays = Vec::new();
    let mut pairs = Vec::new();
    for &executor in &bench.executors {
        let label = format!("plait relay, {}", executor.label());
        let relay = RelayPeer::plait(executor, Some("reno"), library);
        let relay = relay.and_then(|relay| relay.verified(&label, library, findings));
        relays.push((label, relay));
        for (placement, cores, limit) in placements {
            let label = format!("downstream, 2 lanes, {placement}, {}", executor.label());
            let pair = start_verified(executor, placement, cores, library)
                .and_then(|(pair, outcome)| findings.verified(&label, outcome).map(|()| pair));
            pairs.push((label, limit, pair));
        }
    }
    let sizes = [(VIDEO_BYTES, VIDEO_NAME), (LARGE_BYTES, LARGE_NAME)];
    for &(bytes, name) in if bench.quick { &sizes[..1] } else { &sizes[..] } {
        let mut contest = Contest::of(bytes);
        for (label, relay) in &relays {
            contest.enter(label, relay, move |relay| relay.transfer_of_file(bytes, library));
        }
        for (label, _, pair) in &pairs {
            contest.enter(label, pair, move |pair| pair.transfer(name, bytes));
        }
        let cells = contest.run(bench.rounds);
        let notes = [format!(
            "Network: {}. One client, one request at a time; all bytes come from files by sendfile.",
            network.describe()
        )];
        let title = format!("reassembly of two lanes, {} MB", bytes / MB);
        print_cells(&title, &notes, &cells.iter().collect::<Vec<_>>())?;
        let (relay_cells, pair_cells) = cells.split_at(relays.len());
        for (index, ((label, limit, _), cell)) in pairs.iter().zip(pair_cells).enumerate() {
            let relay = &relay_cells[index / placements.len()];
            let what = format!("{label}, {} MB: CPU s/GB ÷ own relay", bytes / MB);
            let target = Target::AtMost(*limit);
            findings.goals.push(Goal::ratio(what, cell.cpu_per_gb(), relay.cpu_per_gb(), target));
        }
    }
    Ok(())
}

fn start_verified(
    executor: Executor,
    placement: &str,
    cores: &str,
    library: &Library,
) -> Outcome<(Pair, Outcome<()>)> {
    let setting = Setting { executor, placement, cores, control: Some("reno") };
    let pair = Pair::start(setting, library)?;
    let outcome =
        Answer::begin(pair.downstream.address, VIDEO_NAME).and_then(|answer| answer.verify(library));
    Ok((pair, outcome))
}
