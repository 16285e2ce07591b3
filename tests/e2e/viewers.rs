//! Viewers who keep a chain busy for as long as a test looks at it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::client::Client;

/// Viewers who take films slowly, one time after the other, until they are dropped: some 8 MB a second each. They ask for
/// them past a cache, which would otherwise have all at once.
pub struct Viewers {
    enough: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Viewers {
    /// One for each target; all of these are so long.
    pub fn of(address: SocketAddr, targets: &[&'static str], length: usize) -> Self {
        let enough = Arc::new(AtomicBool::new(false));
        let watch = |enough: Arc<AtomicBool>, target: &'static str| {
            move || {
                while !enough.load(Relaxed) {
                    let mut client = Client::connect(address);
                    client.request("GET", target, "Cache-Control: no-store\r\n");
                    assert_eq!(client.head().unwrap().status, 200);
                    for _ in 0..length / 1_000_000 {
                        client.some(1_000_000).unwrap();
                        if !enough.load(Relaxed) {
                            thread::sleep(Duration::from_millis(120));
                        }
                    }
                }
            }
        };
        let threads = targets.iter().map(|target| thread::spawn(watch(enough.clone(), target))).collect();
        Self { enough, threads }
    }

    /// They see it to its end.
    pub fn leave(mut self) {
        self.enough.store(true, Relaxed);
        self.threads.drain(..).for_each(|viewer| viewer.join().unwrap());
    }
}

impl Drop for Viewers {
    fn drop(&mut self) {
        self.enough.store(true, Relaxed);
    }
}
