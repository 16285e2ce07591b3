//! A gate before a port: forwards TCP connections, counts them and their bytes, and can be pointed elsewhere.
//!
//! Tests put one before a relay: its port stays when the relay is started anew, and what it counts shows which paths
//! are used and whether a lane was dialled again.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::Instant,
};

use crate::process::DEADLINE;

/// What has passed so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Connections that were accepted.
    pub connections: usize,
    /// Connections that stand now.
    pub standing: usize,
    /// Bytes towards the client of the connection: a lane's payload.
    pub back_bytes: u64,
}

struct State {
    target: Option<SocketAddr>,
    passed: Passed,
    /// The sides of the client of all connections, those that are over included.
    near: Vec<TcpStream>,
    stopping: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state.lock().unwrap());
        self.changed.notify_all();
        result
    }
}

/// See the module's description.
pub struct Gate {
    /// Where to connect.
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

impl Gate {
    /// A gate to `target`.
    pub fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state =
            State { target: Some(target), passed: Passed::default(), near: Vec::new(), stopping: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let served = shared.clone();
        thread::spawn(move || {
            for near in listener.incoming() {
                let (target, stopping) = {
                    let state = served.state.lock().unwrap();
                    (state.target, state.stopping)
                };
                if stopping {
                    return;
                }
                // A dead target looks like a dead port behind a balancer: the connection ends at once.
                if let (Ok(near), Some(far)) = (near, target.and_then(|at| TcpStream::connect(at).ok())) {
                    pass(near, far, &served);
                }
            }
        });
        Self { address, shared }
    }

    /// Leads new connections elsewhere.
    pub fn lead_to(&self, target: SocketAddr) {
        self.shared.change(|state| state.target = Some(target));
    }

    /// Ends all connections, by a reset or in order, as if the other side had.
    pub fn cut(&self, by_reset: bool) {
        for near in self.shared.change(|state| std::mem::take(&mut state.near)) {
            // Those that are over have nothing left to end.
            let _ = if by_reset {
                rustix::net::connect_unspec(&near).map_err(std::io::Error::from)
            } else {
                near.shutdown(Shutdown::Both)
            };
        }
    }

    pub fn passed(&self) -> Passed {
        self.shared.state.lock().unwrap().passed
    }

    /// Waits until what has passed is as `wanted`.
    pub fn wait(&self, what: &str, wanted: impl Fn(&Passed) -> bool) {
        let until = Instant::now() + DEADLINE;
        let mut state = self.shared.state.lock().unwrap();
        while !wanted(&state.passed) {
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{what} did not happen at the gate: {:?}", state.passed);
            state = self.shared.changed.wait_timeout(state, left).unwrap().0;
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.shared.change(|state| state.stopping = true);
        // Wakes the acceptor, which then sees that it should stop.
        let _ = TcpStream::connect(self.address);
    }
}

fn pass(near: TcpStream, far: TcpStream, shared: &Arc<Shared>) {
    for stream in [&near, &far] {
        let _ = stream.set_nodelay(true);
    }
    shared.change(|state| {
        state.passed.connections += 1;
        state.passed.standing += 1;
        state.near.push(near.try_clone().unwrap());
    });
    let (mut from_near, mut to_far) = (near.try_clone().unwrap(), far.try_clone().unwrap());
    thread::spawn(move || {
        copy(&mut from_near, &mut to_far, |_| {});
    });
    let shared = shared.clone();
    thread::spawn(move || {
        let (mut from_far, mut to_near) = (far, near);
        copy(&mut from_far, &mut to_near, |bytes| {
            shared.change(|state| state.passed.back_bytes += bytes as u64);
        });
        shared.change(|state| state.passed.standing -= 1);
    });
}

/// Copies until one side ends, then ends both: a lane has no half.
fn copy(from: &mut TcpStream, to: &mut TcpStream, count: impl Fn(usize)) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
        count(read);
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
