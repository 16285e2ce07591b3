//! Many clients at once, and clients that behave badly next to ones that do not.

use std::{
    io,
    net::{SocketAddr, TcpStream},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use crate::{
    chain::Plan,
    client::{Answer, Client, ask},
    content::{content, hash},
    process::{DEADLINE, Settings},
};

const BIG: usize = 200_000_000;
/// Clients that take nothing, each of a file of [`BIG`] bytes. Without credit the kernel kept up to 70 MB for each in the
/// sockets of a chain of two paths with one relay each, and fifty filled `tcp_mem` for everybody on the host.
const STALLED: usize = 100;
/// What a downstream may take for them: 4 MiB each, and 100 MiB for itself.
const RESIDENT_BYTES_MAX: u64 = (100 << 20) + (STALLED as u64) * (4 << 20);

/// As many as the machine lets: each takes two descriptors here (its socket is read through one and written through
/// the same) and some in every role, and the roles raise their own limit.
pub fn clients_possible(wanted: usize) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    let allowed = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    let possible = usize::try_from(allowed.unwrap_or(u64::MAX)).unwrap_or(usize::MAX).saturating_sub(100);
    if possible < wanted {
        eprintln!("note: {possible} clients instead of {wanted}: raise `ulimit -n`");
    }
    wanted.min(possible)
}

/// Asks, and comes again when it is told that there is no lane yet (503), or no answer yet (504): on a busy machine lanes
/// are dialled, and the root is reached, more slowly than the crowd comes.
fn patient(mut client: Client, address: SocketAddr, target: &str) -> io::Result<Answer> {
    loop {
        let answer = client.ask("GET", target, "")?;
        if !matches!(answer.status(), 503 | 504) {
            return Ok(answer);
        }
        thread::sleep(Duration::from_secs(1));
        client = Client::over(TcpStream::connect(address)?);
    }
}

/// All clients at once, each 1 MB, a file of three.
fn check_many(settings: Settings, paths: usize) {
    let files: Vec<_> = (0..3).map(|number| content(1_000_000 + number)).collect();
    let hashes: Vec<_> = files.iter().map(|file| hash(file)).collect();
    let chain = Plan { paths, settings, ..Plan::default() }.start(|ground| {
        for (number, file) in files.iter().enumerate() {
            ground.store(&number.to_string(), file);
        }
    });
    let (address, clients) = (chain.address, clients_possible(500));
    // All stand before the first asks.
    let connected: Vec<_> = (0..clients).map(|_| Client::connect(address)).collect();
    let (tell, told) = mpsc::channel();
    for (number, client) in connected.into_iter().enumerate() {
        let tell = tell.clone();
        let fetch = move || {
            let outcome = match patient(client, address, &format!("/{}", number % 3)) {
                Ok(answer) if answer.status() == 200 => Ok(hash(&answer.body)),
                Ok(answer) => Err(format!("{}: {}", answer.status(), answer.text())),
                Err(error) => Err(error.to_string()),
            };
            // Nobody listens any more when the test has failed.
            let _ = tell.send((number, outcome));
        };
        thread::Builder::new().stack_size(256 << 10).spawn(fetch).unwrap();
    }
    for _ in 0..clients {
        let (number, outcome) = told.recv_timeout(2 * DEADLINE).expect("a client has no answer");
        assert_eq!(outcome.as_ref(), Ok(&hashes[number % 3]), "client {number}");
    }
}

#[test]
fn five_hundred_clients() {
    check_many(Settings::default(), 2);
}

#[test]
fn five_hundred_clients_on_glommio() {
    check_many(Settings { executor: "glommio", ..Settings::default() }, 2);
}

#[test]
fn five_hundred_clients_spread_over_cores() {
    check_many(Settings { placement: "spread", ..Settings::default() }, 1);
}

/// More clients than lanes: who comes later waits, and nobody is turned away.
#[test]
fn clients_wait_for_the_only_lane() {
    let bytes = content(300_000);
    let plan = Plan { downstream: vec!["--lanes-max".into(), "1".into()], paths: 1, ..Plan::default() };
    let chain = plan.start(|ground| ground.store("f", &bytes));
    let address = chain.address;
    let clients: Vec<_> =
        (0..50).map(|_| thread::spawn(move || Client::connect(address).ask("GET", "/f", ""))).collect();
    for client in clients {
        let answer = client.join().unwrap().unwrap();
        assert_eq!((answer.status(), answer.body == bytes), (200, true), "{}", answer.body.len());
    }
}

#[test]
fn stalled_clients_cost_nobody_else() {
    let bytes = content(BIG);
    let wanted = hash(&bytes);
    for executor in ["tokio-uring", "glommio"] {
        let settings = Settings { executor, ..Settings::default() };
        let chain = Plan { settings, ..Plan::default() }.start(|ground| ground.store("f", &bytes));
        let alone = Instant::now();
        assert_eq!(hash(&ask(chain.address, "GET", "/f", "").body), wanted);
        let alone = alone.elapsed();
        let stalled: Vec<_> = (0..STALLED)
            .map(|_| {
                let mut client = Client::connect(chain.address);
                client.request("GET", "/f", "");
                client.head().unwrap();
                client
            })
            .collect();
        let beside = Instant::now();
        assert_eq!(hash(&ask(chain.address, "GET", "/f", "").body), wanted);
        let beside = beside.elapsed();
        // Other tests run at the same time, so that only a client which waits for another is seen here.
        assert!(
            beside < alone * 5 + DEADLINE / 6,
            "{executor}: {beside:?} beside stalled clients, {alone:?} alone"
        );
        let resident = chain.downstream.resident_bytes();
        assert!(resident < RESIDENT_BYTES_MAX, "{executor}: {} MiB are resident", resident >> 20);
        // Whoever stalled goes on where it was.
        let mut client = stalled.into_iter().next().unwrap();
        assert!(client.some(BIG).unwrap() == bytes, "{executor}: a client that stalled received other bytes");
    }
}

#[test]
fn clients_that_go_away_leave_nothing() {
    let bytes = content(20_000_000);
    let chain = Plan::default().start(|ground| ground.store("f", &bytes));
    for round in 0..50 {
        let mut client = Client::connect(chain.address);
        client.request("GET", "/f", "");
        // Some before the head, some behind it, some with bytes unread.
        if round % 3 > 0 {
            client.head().unwrap();
        }
        if round % 3 > 1 {
            client.some(round * 20_000).unwrap();
        }
    }
    assert_eq!(hash(&ask(chain.address, "GET", "/f", "").body), hash(&bytes));
}
