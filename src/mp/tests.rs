//! Managers, pools, producers and consumers as they are, between a scripted upstream and a client that is a socket:
//! on both executors, with all lanes on the client's core and spread over two.

mod cancel;
mod crowding;
mod hostile;
mod order;
mod parking;
mod warm_up;

use std::{
    fmt,
    future::Future,
    io::Read,
    net::{SocketAddr, TcpListener, TcpStream},
    rc::Rc,
    sync::{Arc, Mutex, RwLock, mpsc},
    thread,
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::{Barrier, watch};

use super::{
    consumer::{Sink, TransferError},
    crew::LaneCounts,
    fetch_error::{FetchError, NoLaneCause},
    manager::{Load, Manager, ManagerConfig, Placement},
};
use crate::{
    exec::{self, Backend, Config, available_cpus},
    lanes::{PathStatus, PoolConfig, tests::scripted::*},
    net::{Legs, Names, Socket},
    wire::key_ring::KeyRing,
};

/// Tests that look at the process's count of parked bytes run alone, all others side by side.
static PARKED_BYTES: RwLock<()> = RwLock::new(());

/// One way to run a test.
#[derive(Clone, Copy)]
struct Setting {
    backend: Backend,
    placement: Placement,
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.backend, self.placement)
    }
}

fn settings() -> impl Iterator<Item = Setting> {
    [Backend::TokioUring, Backend::Glommio].into_iter().flat_map(|backend| {
        [Placement::Local, Placement::Spread].map(|placement| Setting { backend, placement })
    })
}

/// Sizes of pools.
#[derive(Clone, Copy)]
struct Lanes {
    per_path: usize,
    warm: usize,
    max: usize,
}

impl Lanes {
    /// Exactly this many lanes per path for a transfer, none before it is asked for.
    fn cold(per_path: usize) -> Self {
        Self { per_path, warm: 0, max: 16 }
    }
}

impl Setting {
    /// Runs `drive` on core 0 of two cores with managers over `paths`.
    fn run<Fut: Future<Output = ()> + 'static>(
        self,
        paths: &[SocketAddr],
        lanes: Lanes,
        drive: impl FnOnce(Rc<Manager>) -> Fut + Send + 'static,
    ) {
        let mut cpus = available_cpus();
        cpus.truncate(2);
        let load = Load::new(cpus.len());
        let started = Arc::new(Barrier::new(cpus.len()));
        let (stop, stopped) = watch::channel(false);
        let paths: Vec<_> = paths
            .iter()
            .map(|address| Arc::new(PathStatus::new(address.to_string().parse().unwrap())))
            .collect();
        let config = PoolConfig {
            keys: Arc::new(KeyRing::of(key())),
            congestion: Legs::default().lane,
            names: Names::System,
            lanes_warm: lanes.warm,
            lanes_max: lanes.max,
        };
        let counts = LaneCounts::new(lanes.per_path, lanes.per_path, false);
        let (_paths, paths) = watch::channel(paths);
        let driver = Mutex::new(Some((drive, stop)));
        let outcome = exec::run(&Config { backend: self.backend, cpus }, move |core| {
            let (paths, pool_config) = (paths.clone(), config.clone());
            let (load, counts) = (load.clone(), counts.clone());
            let (started, mut stopped) = (started.clone(), stopped.clone());
            let driver = if core.0 == 0 { driver.lock().unwrap().take() } else { None };
            async move {
                let config =
                    ManagerConfig { placement: self.placement, deserted_max: Duration::from_secs(1) };
                let manager = Manager::start(paths, pool_config, counts, config, load);
                started.wait().await;
                if let Some((drive, _stop)) = driver {
                    // Twice what the scripts wait, so that they can say what they missed.
                    let driven = exec::timeout(2 * PATIENCE, drive(manager.clone())).await;
                    driven.unwrap_or_else(|exec::Elapsed| panic!("{self}: the test hangs"));
                } else {
                    // Fails when the driver ends, which is what is waited for.
                    let _ = stopped.wait_for(|stop| *stop).await;
                }
                manager.close().await;
            }
        });
        outcome.unwrap_or_else(|error| panic!("{self}: {error}"));
    }
}

/// A client on the other end of a real connection, which collects what comes.
struct Client {
    socket: Socket,
    reader: thread::JoinHandle<Vec<u8>>,
}

impl Client {
    fn new() -> Self {
        let (go, start) = mpsc::channel();
        go.send(()).unwrap();
        Self::reading_after(start)
    }

    /// Reads nothing until told.
    fn reading_after(start: mpsc::Receiver<()>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let mut far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (near, _) = listener.accept().unwrap();
        let reader = thread::spawn(move || {
            let mut bytes = Vec::new();
            // A sender that is gone means that the test has failed.
            if start.recv().is_ok() {
                far.read_to_end(&mut bytes).expect("the client's connection is reset");
            }
            bytes
        });
        Self { socket: Socket::new(near.into()).unwrap(), reader }
    }

    /// Closes the connection; returns all that had come.
    async fn finish(self) -> Vec<u8> {
        drop(self.socket);
        let reader = self.reader;
        exec::blocking(move || reader.join().unwrap()).await
    }
}

/// What became of a request.
#[derive(Debug)]
enum Failure {
    Fetch(FetchError),
    Transfer(TransferError),
}

fn request() -> Bytes {
    Bytes::from_static(b"GET / HTTP/1.1\r\n\r\n")
}

/// Fetches a body to a client: how it ended, and what the client has.
async fn fetch(manager: &Rc<Manager>, announced: Option<u64>) -> (Result<u64, Failure>, Vec<u8>) {
    let mut incoming = match manager.fetch(request()).await {
        Ok(incoming) => incoming,
        Err(error) => return (Err(Failure::Fetch(error)), Vec::new()),
    };
    let client = Client::new();
    let moved = incoming.consumer.run(Sink::Plain(&client.socket), announced).await;
    drop(incoming);
    (moved.map_err(Failure::Transfer), client.finish().await)
}

/// Fetches a body that must come whole.
async fn fetch_whole(manager: &Rc<Manager>, body: &[u8]) {
    let (outcome, got) = fetch(manager, Some(body.len() as u64)).await;
    assert_eq!(outcome.expect("the transfer fails"), body.len() as u64);
    assert_same(&got, body);
}

/// Equal, without printing megabytes.
#[track_caller]
fn assert_same(got: &[u8], wanted: &[u8]) {
    let differ = got.iter().zip(wanted).position(|(a, b)| a != b);
    assert_eq!((got.len(), differ), (wanted.len(), None), "first different byte");
}
