//! In: one connection's worth of bytes. Out: what it costs to forward them: plait's relay, HAProxy, and no proxy.
//!
//! Called by `main` and, for the cost that it compares with, by `merge`. The clock starts when the connection stands
//! on both sides, handshake included, for every competitor.

use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use socket2::SockRef;

use super::{Bench, Contest, Findings};
use crate::Outcome;
use crate::lane;
use crate::load::{LARGE_BYTES, Library, Line, MB, VIDEO_BYTES};
use crate::namespace::Network;
use crate::peers::{Executor, Haproxy, HaproxyServer, Plait, Role, Setting};
use crate::report::{Cell, Goal, Sample, Target, print_cells};

/// 200 MB pass in a tenth of a second: more of them per round give percentiles a meaning.
const SMALL_PER_ROUND: u32 = 4;
/// How long a proxy may take to connect onwards.
const CONNECT_S_MAX: u64 = 5;

enum Via {
    Nothing,
    Haproxy(HaproxyServer),
    Plait { relay: Role, key: PathBuf },
}

/// A running competitor.
pub struct RelayPeer {
    source: TcpListener,
    via: Via,
}

impl RelayPeer {
    fn direct() -> Outcome<Self> {
        Ok(Self { source: listen()?, via: Via::Nothing })
    }

    fn haproxy(kind: Haproxy, library: &Library) -> Outcome<Self> {
        let source = listen()?;
        let server = HaproxyServer::start(kind, source.local_addr()?, library.dir())?;
        server.process.pin_to_first_cpu()?;
        Ok(Self { source, via: Via::Haproxy(server) })
    }

    /// A `plait relay` of one thread.
    pub fn plait(executor: Executor, control: Option<&'static str>, library: &Library) -> Outcome<Self> {
        Self::plait_with(executor, control, library, &[])
    }

    /// The same with flags.
    pub fn plait_with(
        executor: Executor,
        control: Option<&'static str>,
        library: &Library,
        flags: &[&str],
    ) -> Outcome<Self> {
        let source = listen()?;
        let plait = Plait::new(library.dir())?;
        let next = source.local_addr()?.to_string();
        let flags = [&["--allow", &next], flags].concat();
        let relay = plait.relay_with(Setting::single(executor, control), &flags)?;
        Ok(Self { source, via: Via::Plait { relay, key: plait.key().to_owned() } })
    }

    /// A new connection through it.
    pub fn connect(&self) -> Outcome<Line> {
        let entrance = match &self.via {
            Via::Nothing => self.source.local_addr()?,
            Via::Haproxy(server) => server.address,
            Via::Plait { relay, key } => return lane::open(relay.address, &self.source, key),
        };
        let sink = TcpStream::connect(entrance)?;
        let (source, _) =
            self.source.accept().map_err(|error| format!("the proxy did not connect: {error}"))?;
        Line::new(source, sink)
    }

    /// Moves the file once and compares it. A proxy that does not connect is no loss of bytes.
    pub fn verified(self, label: &str, library: &Library, findings: &mut Findings) -> Outcome<Self> {
        let line = self.connect()?;
        findings.verified(label, line.verify(library))?;
        Ok(self)
    }

    /// Moves `bytes` bytes over a new connection.
    pub fn transfer(&self, bytes: u64) -> Outcome<Sample> {
        let line = self.connect()?;
        let before_ns = self.cpu_ns()?;
        let taken = line.blast(bytes)?;
        let cpu_ns = self.cpu_ns()?.zip(before_ns).map(|(after_ns, before_ns)| after_ns - before_ns);
        Ok(Sample { taken, cpu_ns })
    }

    /// The same from a file, as an upstream sends it.
    pub fn transfer_of_file(&self, bytes: u64, library: &Library) -> Outcome<Sample> {
        let line = self.connect()?;
        let before_ns = self.cpu_ns()?;
        let taken = line.blast_video(bytes, library)?;
        let cpu_ns = self.cpu_ns()?.zip(before_ns).map(|(after_ns, before_ns)| after_ns - before_ns);
        Ok(Sample { taken, cpu_ns })
    }

    /// CPU time of the proxy so far, if there is one.
    pub fn cpu_ns(&self) -> Outcome<Option<u64>> {
        match &self.via {
            Via::Nothing => Ok(None),
            Via::Haproxy(server) => server.process.cpu_ns().map(Some),
            Via::Plait { relay, .. } => relay.process.cpu_ns().map(Some),
        }
    }
}

fn listen() -> Outcome<TcpListener> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    SockRef::from(&listener).set_read_timeout(Some(Duration::from_secs(CONNECT_S_MAX)))?;
    Ok(listener)
}

/// A competitor, or why it is none.
struct Entry {
    label: String,
    peer: Outcome<RelayPeer>,
}

impl Entry {
    /// Starts nothing by itself: takes what was started, and lets it show that it loses no byte.
    fn new(label: String, peer: Outcome<RelayPeer>, library: &Library, findings: &mut Findings) -> Self {
        let peer = peer.and_then(|peer| peer.verified(&label, library, findings));
        Self { label, peer }
    }
}

/// Rows in the order of `entries`.
fn contest(entries: &[Entry], bytes: u64, rounds: u32) -> Vec<Cell> {
    let mut contest = Contest::of(bytes);
    for Entry { label, peer } in entries {
        contest.enter(label, peer, move |peer| peer.transfer(bytes));
    }
    contest.run(rounds)
}

/// What HAProxy says about how much it spliced: an option that is set is not yet a splice.
fn splice_notes(entries: &[Entry], bytes: u64) -> Vec<String> {
    let mut notes = Vec::new();
    for Entry { label, peer } in entries {
        if let Ok(RelayPeer { via: Via::Haproxy(server), .. }) = peer {
            notes.push(match server.spliced_bytes() {
                Ok(spliced) => format!("{label}: {:.1} %", 100.0 * spliced as f64 / bytes as f64),
                Err(error) => format!("{label}: {error}"),
            });
        }
    }
    if notes.is_empty() { notes } else { vec![format!("Bytes that left by splice: {}.", notes.join("; "))] }
}

fn entries(
    bench: &Bench,
    peers: &[Haproxy],
    settings: &[(Executor, Option<&'static str>)],
    findings: &mut Findings,
) -> Vec<Entry> {
    let library = &bench.library;
    let mut entries = Vec::new();
    for &kind in peers {
        let peer = RelayPeer::haproxy(kind, library);
        entries.push(Entry::new(kind.label().to_owned(), peer, library, findings));
    }
    for &(executor, control) in settings {
        let flags = control.map_or(String::new(), |control| format!(", --lane-cc {control}"));
        let label = format!("plait relay, {}{flags}", executor.label());
        entries.push(Entry::new(label, RelayPeer::plait(executor, control, library), library, findings));
    }
    entries.push(Entry::new("no proxy".to_owned(), RelayPeer::direct(), library, findings));
    entries
}

/// Scenario A: CPU per byte, in a network with reno.
pub fn run(bench: &Bench, network: &Network, findings: &mut Findings) -> Outcome<()> {
    let kinds = [Haproxy::SpliceBigPipe, Haproxy::Splice, Haproxy::Copy];
    let settings: Vec<_> = bench.executors.iter().map(|&executor| (executor, Some("reno"))).collect();
    let entries = entries(bench, &kinds, &settings, findings);
    let mut moved = VIDEO_BYTES;
    let sizes = [(VIDEO_BYTES, bench.rounds * SMALL_PER_ROUND), (LARGE_BYTES, bench.rounds)];
    for &(bytes, rounds) in if bench.quick { &sizes[..1] } else { &sizes[..] } {
        let cells = contest(&entries, bytes, rounds);
        moved += bytes * u64::from(rounds);
        let mut notes = vec![format!("Network: {}. One connection.", network.describe())];
        notes.extend(splice_notes(&entries, moved));
        print_cells(&format!("relay, {} MB", bytes / MB), &notes, &cells.iter().collect::<Vec<_>>())?;
        for (cell, executor) in cells[kinds.len()..].iter().zip(&bench.executors) {
            let what = format!("relay CPU s/GB, {}, {} MB", executor.label(), bytes / MB);
            let ours = cell.cpu_per_gb();
            findings.goals.extend([
                Goal::ratio(
                    format!("{what} ÷ {}", Haproxy::SpliceBigPipe.label()),
                    ours,
                    cells[0].cpu_per_gb(),
                    Target::AtMost(1.0),
                ),
                Goal::ratio(
                    format!("{what} ÷ {}", Haproxy::Splice.label()),
                    ours,
                    cells[1].cpu_per_gb(),
                    Target::AtMost(0.65),
                ),
            ]);
        }
    }
    Ok(())
}

/// Scenario D: throughput where the host's default is BBR and the client is local. Congestion control is left to
/// plait: choosing it per leg is what is measured.
pub fn run_bbr(bench: &Bench, network: &Network, findings: &mut Findings) -> Outcome<()> {
    if network.control != "bbr" {
        println!("\n### relay where the default is BBR\n\nnot possible: {}", network.describe());
        return Ok(());
    }
    let kinds = [Haproxy::SpliceBigPipe, Haproxy::Splice];
    let settings: Vec<_> = bench.executors.iter().map(|&executor| (executor, None)).collect();
    let entries = entries(bench, &kinds, &settings, findings);
    let cells = contest(&entries, VIDEO_BYTES, bench.rounds);
    let notes = [format!("Network: {}. One connection, local at both ends.", network.describe())];
    print_cells("relay where the default is BBR, 200 MB", &notes, &cells.iter().collect::<Vec<_>>())?;
    let best = cells[..kinds.len()].iter().filter_map(Cell::throughput).max_by(f64::total_cmp);
    for (cell, executor) in cells[kinds.len()..].iter().zip(&bench.executors) {
        let what = format!("relay under BBR, {}: MB/s ÷ the faster HAProxy splice", executor.label());
        findings.goals.push(Goal::ratio(what, cell.throughput(), best, Target::AtLeast(1.5)));
    }
    Ok(())
}
