//! `cargo bench --bench link [NAME]`: what the link emulator can do on this machine.
//!
//! In: nothing. Out: a line for each check: measured, what it has to reach, and whether it does. Needs root and iproute2.

mod pair;

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use plait::lab::shape::Shape;
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use socket2::{Domain, Socket, Type};

use pair::{Pair, RIGHT};

const PORT: u16 = 7777;
/// More than a tenth of a second of what comes at 500 Mbit/s, with the kernel's own share.
const RECEIVE_BYTES: usize = 16 << 20;
/// How far an idle link may be from the asked delay.
const DELAY_OFF_US_MAX: i64 = 1000;
/// How far the loss may be from the asked one, as a share of it.
const LOSS_OFF_MAX: f64 = 0.1;
/// A clean flow's least share of the rate: 0.965 is what headers leave.
const CLEAN_SHARE_MIN: f64 = 0.94;
/// How far reno may be from Mathis' formula.
const MATHIS_OFF_MAX: f64 = 0.25;

fn main() {
    if !std::env::args().any(|flag| flag == "--bench") {
        // `cargo test --all-targets` runs this program, too, and must not wait for minutes.
        println!("nothing measured: run `cargo bench --bench link`, or add --bench");
        return;
    }
    let wanted: Vec<String> = std::env::args().skip(1).filter(|name| !name.starts_with("--")).collect();
    let checks: [(&str, fn()); 6] = [
        ("delay", idle_delay),
        ("loss", loss),
        ("clean", clean_flows),
        ("mathis", mathis),
        ("policer", policer),
        ("four", four_links),
    ];
    for (name, check) in checks {
        if wanted.is_empty() || wanted.iter().any(|wanted| name.contains(wanted.as_str())) {
            check();
        }
    }
}

/// What stands behind a figure that has to reach something.
fn verdict(is_reached: bool) -> &'static str {
    if is_reached { "reached" } else { "MISSED" }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A queue of one round trip's worth, at least 25 ms.
fn shape(rate_mbit: f64, one_way: Duration) -> Shape {
    let queue_ms = (2 * one_way).max(ms(25)).as_millis() as f64;
    Shape::clean(rate_mbit, one_way, (rate_mbit * 125.0 * queue_ms) as u64)
}

fn build(name: &str, forward: Shape, backward: Shape, cpu: Option<usize>) -> Pair {
    Pair::build(name, forward, backward, cpu)
        .unwrap_or_else(|error| panic!("no link (are you root?): {error}"))
}

fn idle_delay() {
    for rate_mbit in [10.0, 500.0] {
        let shape = shape(rate_mbit, ms(25));
        let pair = build("delay", shape, shape, None);
        let server = pair.right.run(|| UdpSocket::bind((RIGHT, PORT))).expect("binds");
        let client = pair.left.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).expect("binds");
        client.connect((RIGHT, PORT)).expect("connects");
        let pings = 100;
        thread::spawn(move || {
            for _ in 0..pings {
                let mut datagram = [0; 64];
                let (len, from) = server.recv_from(&mut datagram).expect("receives");
                server.send_to(&datagram[..len], from).expect("sends");
            }
        });
        let mut excess: Vec<i64> = (0..pings)
            .map(|_| {
                let sent = Instant::now();
                client.send(&[7; 56]).expect("sends");
                client.recv(&mut [0; 64]).expect("comes back");
                sent.elapsed().as_micros() as i64 - 50_000
            })
            .collect();
        // Too early is as wrong as too late.
        excess.sort_unstable_by_key(|off_us| off_us.abs());
        let [median, p99, worst] = [pings / 2, pings * 99 / 100 - 1, pings - 1].map(|at| excess[at]);
        let is_within = |off_us: i64| verdict(off_us.abs() <= DELAY_OFF_US_MAX);
        println!(
            "delay   {rate_mbit} Mbit/s, RTT 50 ms, idle: {median:+} us median ({}), {p99:+} us p99 \
             ({}), {worst:+} us worst ({}); limit {DELAY_OFF_US_MAX} either way",
            is_within(median),
            is_within(p99),
            is_within(worst)
        );
    }
}

/// Datagrams of 1472 bytes in bursts that the queue holds: so many that a standard deviation is a third of the limit.
fn loss() {
    for (loss, burst, sent) in [(0.01, None, 100_000_u32), (0.05, None, 100_000), (0.02, Some(5.0), 500_000)]
    {
        let forward = Shape { loss, burst, ..shape(500.0, ms(25)) };
        let pair = build("loss", forward, forward, None);
        let server = pair.right.run(|| UdpSocket::bind((RIGHT, PORT))).expect("binds");
        server.set_read_timeout(Some(ms(500))).expect("sets");
        // What the receiver is too slow for is no loss of the link's.
        set_socket_recv_buffer_size_force(&server, RECEIVE_BYTES).expect("root may");
        let client = pair.left.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).expect("binds");
        client.connect((RIGHT, PORT)).expect("connects");
        let counter = thread::spawn(move || {
            let mut got = 0;
            while server.recv(&mut [0; 1500]).is_ok() {
                got += 1;
            }
            got
        });
        for datagram in 0..sent {
            client.send(&[7; 1472]).expect("sends");
            if datagram % 20 == 0 {
                thread::sleep(Duration::from_micros(500));
            }
        }
        let got: u32 = counter.join().expect("counts");
        let stats = pair.link.stats()[0];
        let counted = stats.dropped_loss as f64 / stats.packets as f64;
        let seen = 1.0 - f64::from(got) / f64::from(sent);
        let is_within = |seen: f64| verdict((seen / loss - 1.0).abs() <= LOSS_OFF_MAX);
        println!(
            "loss    {loss} burst {burst:?}: {counted:.4} by the counters ({}), {seen:.4} at the receiver ({}); limit {:.0} \
             % of it either way; queue drops {}, late {}",
            is_within(counted),
            is_within(seen),
            LOSS_OFF_MAX * 100.0,
            stats.dropped_queue,
            stats.late
        );
    }
}

/// Bytes a second that `flows` TCP flows bring once `warm_up` has passed.
fn flow(pair: &Pair, control: &str, flows: usize, warm_up: Duration, measured: Duration) -> f64 {
    let listener = pair.right.run(|| TcpListener::bind((RIGHT, PORT))).expect("binds");
    let ends: Vec<(TcpStream, TcpStream)> = (0..flows)
        .map(|_| {
            let socket = pair.left.run(|| Socket::new(Domain::IPV4, Type::STREAM, None)).expect("a socket");
            socket.set_tcp_congestion(control.as_bytes()).expect("the kernel has it");
            socket.connect(&SocketAddr::from((RIGHT, PORT)).into()).expect("connects");
            (socket.into(), listener.accept().expect("accepts").0)
        })
        .collect();
    let received = AtomicU64::new(0);
    thread::scope(|scope| {
        for (mut sink, mut source) in ends.iter().map(|(sink, source)| (sink, source)) {
            scope.spawn(move || while sink.write(&[7; 1 << 17]).is_ok() {});
            let received = &received;
            scope.spawn(move || {
                let mut buffer = vec![0; 1 << 18];
                while let Ok(len @ 1..) = source.read(&mut buffer) {
                    received.fetch_add(len as u64, Relaxed);
                }
            });
        }
        thread::sleep(warm_up);
        let (before, began) = (received.load(Relaxed), Instant::now());
        thread::sleep(measured);
        let rate = (received.load(Relaxed) - before) as f64 / began.elapsed().as_secs_f64();
        for (sink, source) in &ends {
            let _ = sink.shutdown(Shutdown::Both);
            let _ = source.shutdown(Shutdown::Both);
        }
        rate
    })
}

fn clean_flows() {
    for (rate_mbit, rtt_ms, control) in [
        (10.0, 40, "cubic"),
        (50.0, 100, "cubic"),
        (50.0, 100, "bbr"),
        (100.0, 150, "cubic"),
        (100.0, 150, "bbr"),
        (500.0, 20, "cubic"),
        (500.0, 20, "bbr"),
    ] {
        let shape = shape(rate_mbit, ms(rtt_ms / 2));
        let pair = build("clean", shape, shape, None);
        let cpu = cpu_ms("clean");
        let rate = flow(&pair, control, 1, ms(4000), ms(6000));
        let spent = cpu_ms("clean") - cpu;
        let [forward, backward] = pair.link.stats();
        let share = rate * 8e-6 / rate_mbit;
        println!(
            "clean   {rate_mbit} Mbit/s, {rtt_ms} ms, {control}: {share:.3} of the rate ({}; limit {CLEAN_SHARE_MIN}), {spent} \
             ms CPU in 10 s, queue drops {}, late {} of {}",
            verdict(share >= CLEAN_SHARE_MIN),
            forward.dropped_queue,
            forward.late + backward.late,
            forward.packets + backward.packets,
        );
    }
}

fn mathis() {
    for (rtt_ms, loss) in [(20, 0.01), (50, 0.01)] {
        let forward = Shape { loss, ..shape(200.0, ms(rtt_ms / 2)) };
        let backward = shape(200.0, ms(rtt_ms / 2));
        let pair = build("mathis", forward, backward, None);
        let rate = flow(&pair, "reno", 1, ms(2000), ms(30_000));
        let formula = 1448.0 / (rtt_ms as f64 * 1e-3) * (1.5_f64 / loss).sqrt();
        let share = rate / formula;
        println!(
            "mathis  RTT {rtt_ms} ms, loss {loss}, reno: {:.2} Mbit/s, {share:.2} of the formula ({}; limit {} to {})",
            rate * 8e-6,
            verdict((share - 1.0).abs() <= MATHIS_OFF_MAX),
            1.0 - MATHIS_OFF_MAX,
            1.0 + MATHIS_OFF_MAX
        );
    }
}

fn policer() {
    for (control, flows) in [("cubic", 1), ("bbr", 1), ("cubic", 8), ("bbr", 8)] {
        let forward = Shape { flow_mbit: Some(10.0), ..shape(100.0, ms(25)) };
        let pair = build("policer", forward, shape(100.0, ms(25)), None);
        let rate = flow(&pair, control, flows, ms(3000), ms(8000));
        println!(
            "policer 10 Mbit/s each, {flows} {control} flows: {:.2} Mbit/s, policer drops {} of {}",
            rate * 8e-6,
            pair.link.stats()[0].dropped_policer,
            pair.link.stats()[0].packets
        );
    }
}

fn four_links() {
    const RATE_MBIT: f64 = 500.0;
    let shape = shape(RATE_MBIT, ms(10));
    let pairs = [0, 1, 2, 3].map(|number| build(&format!("four-{number}"), shape, shape, Some(0)));
    let before = cpu_ms("four-");
    let rates = thread::scope(|scope| {
        let flows = pairs.each_ref().map(|pair| scope.spawn(|| flow(pair, "cubic", 1, ms(3000), ms(7000))));
        flows.map(|flow| flow.join().expect("runs") * 8e-6)
    });
    let spent = cpu_ms("four-") - before;
    let late: u64 = pairs.iter().flat_map(|pair| pair.link.stats()).map(|counters| counters.late).sum();
    let packets: u64 = pairs.iter().flat_map(|pair| pair.link.stats()).map(|counters| counters.packets).sum();
    let least_mbit = CLEAN_SHARE_MIN * RATE_MBIT;
    println!(
        "four    4 x {RATE_MBIT} Mbit/s, threads on one CPU: {rates:.0?} Mbit/s ({}; limit {least_mbit} each), {spent} ms CPU \
         in 10 s, late {late} of {packets}",
        verdict(rates.iter().all(|&rate| rate >= least_mbit))
    );
}

/// CPU time of this process's threads whose name begins with `name`.
fn cpu_ms(name: &str) -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").expect("procfs is mounted");
    tasks
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok())
        .filter(|stat| stat.split_once('(').is_some_and(|(_, rest)| rest.starts_with(name)))
        .filter_map(|stat| {
            let fields: Vec<u64> = stat
                .rsplit_once(')')?
                .1
                .split(' ')
                .skip(12)
                .take(2)
                .filter_map(|field| field.parse().ok())
                .collect();
            Some(fields.iter().sum::<u64>() * 10)
        })
        .sum()
}
