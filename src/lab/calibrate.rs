//! Whether the emulator does what it is asked for on this machine now.
//!
//! In: nothing. Out: a [`Calibration`], about 15 s later. Called by `plait lab calibrate` and before every benchmark.
//! The kernel's own ping replies and TCP are the yardstick: nothing of Plait runs here.

use std::{
    fmt,
    io::{self, Write},
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::net::{RecvFlags, recv};
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    host::Host,
    scenario::{EmulatedPath, Lanes, Scenario},
    topology::{Lab, LabError},
};

/// Pings per path; their median counts, the worst is shown.
const PINGS: u16 = 21;
const PING_GAP: Duration = Duration::from_millis(20);
/// How far a ping may be from the asked round trip.
const PING_OFF_MS_MAX: f64 = 1.0;
/// A clean flow's least share of the rate: 0.965 is what headers leave.
const CLEAN_SHARE_MIN: f64 = 0.94;
/// How far reno may be from Mathis' formula.
const MATHIS_OFF_MAX: f64 = 0.25;
/// Share of packets that may leave the emulator more than 2 ms late.
const LATE_SHARE_MAX: f64 = 0.01;
/// Slow start is over after two seconds.
const WARM_UP: Duration = Duration::from_secs(2);
/// Reno loses some 30 packets per path in this time: their mean over four paths is within 10 % of the truth.
const MEASURED: Duration = Duration::from_secs(10);
/// The clean path, and four lossy ones.
const CLEAN: EmulatedPath = path(100.0, 50.0, 0.0);
const LOSSY: EmulatedPath = path(200.0, 40.0, 0.01);
const LOSSY_PATHS: usize = 4;
/// Payload of a full packet: 1500 less 20 (IP), 20 (TCP) and 12 (timestamps).
const MSS: f64 = 1448.0;
const PORT: u16 = 5001;

const fn path(rate_mbit: f64, rtt_ms: f64, loss: f64) -> EmulatedPath {
    EmulatedPath { rate_mbit, rtt_ms, loss, burst: 1.0, jitter_ms: 0.0, queue_ms: None, flow_mbit: None }
}

/// One check.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    /// What was checked.
    pub what: String,
    /// What was seen.
    pub seen: String,
    /// What must be.
    pub bound: String,
    /// Whether it is.
    pub good: bool,
}

/// The result of all checks.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    /// The checks.
    pub checks: Vec<Check>,
}

impl Calibration {
    /// Whether results of a lab on this machine count.
    pub fn good(&self) -> bool {
        self.checks.iter().all(|check| check.good)
    }

    fn check(&mut self, what: impl Into<String>, seen: String, bound: String, good: bool) {
        self.checks.push(Check { what: what.into(), seen, bound, good });
    }
}

impl fmt::Display for Calibration {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Check { what, seen, bound, good } in &self.checks {
            writeln!(out, "{:4} {what:<46} {seen:<34} must be {bound}", if *good { "ok" } else { "BAD" })?;
        }
        Ok(())
    }
}

/// Builds a lab of its own and measures it.
///
/// # Errors
/// There is no lab on this machine. A bad result is no error; see [`Calibration::good`].
pub fn calibrate() -> Result<Calibration, LabError> {
    let mut paths = vec![CLEAN];
    paths.extend(std::iter::repeat_n(LOSSY, LOSSY_PATHS));
    let lab = Lab::build(&Scenario {
        name: "calibration".into(),
        stands_for: "nothing".into(),
        congctl: Some("reno".into()),
        lanes: Lanes::default(),
        paths,
        events: Vec::new(),
    })?;
    let mut result = Calibration { checks: Vec::new() };
    check_pings(&lab, &mut result)?;
    check_flows(&lab, &mut result)?;
    let counters = lab.counters();
    let sum =
        |part: fn(&super::shape::Counters) -> u64| counters.iter().flatten().map(part).sum::<u64>() as f64;
    let late = sum(|counters| counters.late) / sum(|counters| counters.packets).max(1.0);
    result.check(
        "packets more than 2 ms late",
        format!("{:.2} %", late * 100.0),
        format!("at most {:.0} %", LATE_SHARE_MAX * 100.0),
        late <= LATE_SHARE_MAX,
    );
    Ok(result)
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> LabError {
    move |source| LabError::System { what: format!("calibration: {what}"), source }
}

fn check_pings(lab: &Lab, result: &mut Calibration) -> Result<(), LabError> {
    for index in [0, 1] {
        let (host, source, target) = (lab.client(), lab.client_address(index), lab.relay_address(index));
        let mut taken = ping(host, source, target).map_err(failed("ping"))?;
        taken.sort_by(f64::total_cmp);
        let asked = lab.scenario().paths[index].rtt_ms;
        let median = taken.get(usize::from(PINGS) / 2).copied();
        let worst = taken.last().copied().unwrap_or(f64::NAN);
        result.check(
            format!("ping on the idle path of {asked} ms"),
            median.map_or("most are lost".into(), |median| {
                format!("median {median:.2} ms, worst {worst:.2} ms")
            }),
            format!("within {PING_OFF_MS_MAX} ms"),
            median.is_some_and(|median| (median - asked).abs() <= PING_OFF_MS_MAX),
        );
    }
    Ok(())
}

/// Round trips in ms of the echoes that were answered.
fn ping(host: &Host, source: IpAddr, target: IpAddr) -> io::Result<Vec<f64>> {
    let socket = host.socket(Domain::IPV4, Type::DGRAM, Some(Protocol::ICMPV4))?;
    socket.bind(&SocketAddr::new(source, 0).into())?;
    socket.connect(&SocketAddr::new(target, 0).into())?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut taken = Vec::new();
    for sequence in 0..PINGS {
        // An echo request; the kernel fills in checksum and identifier.
        let [high, low] = sequence.to_be_bytes();
        let sent = Instant::now();
        socket.send(&[8, 0, 0, 0, 0, 0, high, low])?;
        let mut answer = [0; 64];
        loop {
            match rustix::io::retry_on_intr(|| recv(&socket, &mut answer, RecvFlags::empty())) {
                // A late answer to an echo before is none to this one.
                Ok(_) if answer[6..8] != [high, low] => {}
                Ok(_) => {
                    taken.push(sent.elapsed().as_secs_f64() * 1e3);
                    break;
                }
                Err(rustix::io::Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        thread::sleep(PING_GAP);
    }
    Ok(taken)
}

fn check_flows(lab: &Lab, result: &mut Calibration) -> Result<(), LabError> {
    let mbit = measure_flows(lab).map_err(failed("TCP"))?;
    let share = mbit[0] / CLEAN.rate_mbit;
    result.check(
        format!("clean flow of {} Mbit/s, {} ms", CLEAN.rate_mbit, CLEAN.rtt_ms),
        format!("{:.1} Mbit/s, {:.1} %", mbit[0], share * 100.0),
        format!("at least {:.0} %", CLEAN_SHARE_MIN * 100.0),
        share >= CLEAN_SHARE_MIN,
    );
    // Mathis, Semke, Mahdavi, Ott 1997, with an acknowledgement's whole growth per packet, as Linux counts.
    let mathis = MSS * 8e-6 / (LOSSY.rtt_ms / 1e3) * (1.5 / LOSSY.loss).sqrt();
    let mean = mbit[1..].iter().sum::<f64>() / LOSSY_PATHS as f64;
    let off = mean / mathis - 1.0;
    result.check(
        format!("reno at {} % loss, {} ms, mean of {LOSSY_PATHS}", LOSSY.loss * 100.0, LOSSY.rtt_ms),
        format!("{mean:.2} Mbit/s, Mathis {mathis:.2}: {:+.0} %", off * 100.0),
        format!("within {:.0} %", MATHIS_OFF_MAX * 100.0),
        off.abs() <= MATHIS_OFF_MAX,
    );
    Ok(())
}

/// One TCP flow per path, all at once, from the server to the client: payload in Mbit/s after the warm-up.
fn measure_flows(lab: &Lab) -> io::Result<Vec<f64>> {
    let listener = lab.server().socket(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    listener.bind(&SocketAddr::from(([0, 0, 0, 0], PORT)).into())?;
    listener.listen(lab.paths() as i32)?;
    let received: Vec<AtomicU64> = (0..lab.paths()).map(|_| AtomicU64::new(0)).collect();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let mut flows = Vec::new();
        for (path, received) in received.iter().enumerate() {
            let target = SocketAddr::new(lab.server_address(path), PORT);
            let limit = Duration::from_secs(10);
            let connected =
                lab.client().connect(Some(lab.client_address(path)), target, limit).and_then(|client| {
                    let (server, _) = listener.accept()?;
                    Ok((Socket::from(client), server))
                });
            match connected {
                Ok(flow) => flows.push((flow, received)),
                Err(error) => {
                    over.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
        for ((client, mut server), received) in flows {
            let over = &over;
            scope.spawn(move || {
                let zeros = vec![0; 64 << 10];
                while !over.load(Ordering::Relaxed) && server.write_all(&zeros).is_ok() {}
            });
            scope.spawn(move || {
                // Ends with the sender, which ends with `over`.
                let mut nowhere = vec![0; 1 << 20];
                while let Ok((_, got @ 1..)) = recv(&client, &mut nowhere, RecvFlags::TRUNC) {
                    received.fetch_add(got as u64, Ordering::Relaxed);
                }
            });
        }
        thread::sleep(WARM_UP);
        let now = || received.iter().map(|bytes| bytes.load(Ordering::Relaxed)).collect::<Vec<_>>();
        let (began, before) = (Instant::now(), now());
        thread::sleep(MEASURED);
        let (seconds, after) = (began.elapsed().as_secs_f64(), now());
        over.store(true, Ordering::Relaxed);
        Ok(before.iter().zip(after).map(|(before, after)| (after - before) as f64 * 8e-6 / seconds).collect())
    })
}
