//! A whole chain of real processes on loopback, one per role.
//!
//! In: how many paths, how many relays each has, which root, which executor, which placement. Out: the address that
//! clients use, and the handles of all processes. Invariant: every port is the kernel's choice, and every process and
//! file is gone when the chain is dropped.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use tempfile::TempDir;

use crate::{
    process::{Process, Settings},
    roots::nginx,
};

/// Who stores the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Root {
    /// `plait root`.
    Plait,
    /// nginx.
    Nginx,
    /// The upstream reads them itself.
    Directory,
    /// Something that listens here already; the files of the chain are of no use to it.
    At(SocketAddr),
}

/// How a chain is to be built.
#[derive(Clone, Debug)]
pub struct Plan {
    pub paths: usize,
    /// Relays of each path.
    pub depth: usize,
    /// What each path begins with: `mptcp:`, or nothing for TCP.
    pub transport: &'static str,
    pub root: Root,
    pub settings: Settings,
    /// More arguments of the downstream.
    pub downstream: Vec<String>,
    /// More paths of the downstream, besides those of the chain's own relays.
    pub more_paths: Vec<SocketAddr>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            paths: 2,
            depth: 1,
            transport: "",
            root: Root::Plait,
            settings: Settings::default(),
            downstream: Vec::new(),
            more_paths: Vec::new(),
        }
    }
}

/// A key file and a directory to serve.
pub struct Ground {
    dir: TempDir,
}

impl Ground {
    pub fn new() -> Self {
        let ground = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(ground.files()).unwrap();
        let made = Settings::default().plait().arg("keygen").arg(ground.key()).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        ground
    }

    /// The served directory.
    pub fn files(&self) -> PathBuf {
        self.dir.path().join("files")
    }

    /// The pre-shared key.
    pub fn key(&self) -> PathBuf {
        self.dir.path().join("key")
    }

    /// A name for a file of the test's own, which is not served.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Stores a file to be served, an hour old: one that has just changed has no strong date (RFC 9110 section 8.8.2.2).
    pub fn store(&self, name: &str, content: &[u8]) {
        let path = self.files().join(name);
        fs::write(&path, content).unwrap();
        let hour_ago = SystemTime::now() - Duration::from_secs(3600);
        fs::File::options().write(true).open(&path).unwrap().set_modified(hour_ago).unwrap();
    }

    pub fn start_root(&self, settings: &Settings) -> (Process, SocketAddr) {
        let files = self.files();
        Process::role("root", settings, ["root", "--listen", "127.0.0.1:0", "--dir", text(&files)])
    }

    pub fn start_upstream(&self, settings: &Settings, root: &str) -> (Process, SocketAddr) {
        let key = self.key();
        let args = ["upstream", "--listen", "127.0.0.1:0", "--root", root, "--key", text(&key)];
        Process::role("upstream", settings, args)
    }

    pub fn start_relay(&self, settings: &Settings) -> (Process, SocketAddr) {
        let key = self.key();
        Process::role("relay", settings, ["relay", "--listen", "127.0.0.1:0", "--key", text(&key)])
    }

    pub fn start_downstream(
        &self,
        settings: &Settings,
        paths: &[String],
        more: &[String],
    ) -> (Process, SocketAddr) {
        let key = self.key();
        let mut args = vec!["downstream", "--listen", "127.0.0.1:0", "--key", text(&key)];
        for path in paths {
            args.extend(["--path", path]);
        }
        args.extend(more.iter().map(String::as_str));
        Process::role("downstream", settings, args)
    }
}

/// A running chain.
pub struct Chain {
    // Fields are dropped in this order: whoever asks first goes first, so that nobody logs the loss of another.
    pub downstream: Process,
    /// Where clients connect.
    pub address: SocketAddr,
    /// By path, in order from the downstream.
    pub relays: Vec<Vec<Process>>,
    pub upstream: Process,
    pub upstream_address: SocketAddr,
    /// None for a directory and a root that is the test's own.
    pub root: Option<Process>,
    /// `--path` of every path.
    pub paths: Vec<String>,
    pub settings: Settings,
    pub ground: Ground,
}

impl Plan {
    /// Starts the chain; `fill` puts the files there.
    pub fn start(self, fill: impl FnOnce(&Ground)) -> Chain {
        let ground = Ground::new();
        fill(&ground);
        self.start_on(ground)
    }

    /// Starts the chain on files that are there.
    pub fn start_on(self, ground: Ground) -> Chain {
        let settings = self.settings;
        let (root, root_name) = match self.root {
            Root::Plait => {
                let (root, address) = ground.start_root(&settings);
                (Some(root), format!("http://{address}"))
            }
            Root::Nginx => {
                let (root, address) = nginx(&ground);
                (Some(root), format!("http://{address}"))
            }
            Root::Directory => (None, text(&ground.files()).to_owned()),
            Root::At(address) => (None, format!("http://{address}")),
        };
        let (upstream, upstream_address) = ground.start_upstream(&settings, &root_name);
        let mut relays = Vec::new();
        let mut paths = Vec::new();
        for _ in 0..self.paths {
            let (chained, hops): (Vec<_>, Vec<_>) =
                (0..self.depth).map(|_| ground.start_relay(&settings)).unzip();
            relays.push(chained);
            let hops = hops.iter().chain([&upstream_address]).map(SocketAddr::to_string);
            paths.push(format!("{}{}", self.transport, hops.collect::<Vec<_>>().join(",")));
        }
        paths.extend(self.more_paths.iter().map(|first| format!("{first},{upstream_address}")));
        let (downstream, address) = ground.start_downstream(&settings, &paths, &self.downstream);
        Chain { downstream, address, relays, upstream, upstream_address, root, paths, settings, ground }
    }
}

impl Chain {
    /// The URL of a target, such as `/film.mp4`.
    pub fn url(&self, target: &str) -> String {
        format!("http://{}{target}", self.address)
    }
}

/// Temporary paths are plain text.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
