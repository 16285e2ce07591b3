//! A whole chain on loopback, each role a process of its own.

use std::{
    fs,
    io::{self, BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

/// What is served: long enough that starting and ending a transfer is nothing beside it.
const FILE_BYTES: u64 = 1_000_000_000;
/// Its name.
pub const FILE_NAME: &str = "film.bin";

/// How lanes go, and what the downstream is told.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Relays side by side; without any the lanes go straight to the upstream.
    pub relays: usize,
    /// Lanes by the kernel's MPTCP.
    pub mptcp: bool,
    /// More flags of the downstream.
    pub downstream: &'static [&'static str],
    /// The downstream keeps what it has fetched.
    pub cache: bool,
}

/// Running roles. They end with it.
#[derive(Debug)]
pub struct Chain {
    roles: Vec<(&'static str, Child)>,
    /// Where clients ask.
    pub entrance: SocketAddr,
    _dir: TempDir,
}

impl Chain {
    /// Starts the roles of `binary`.
    pub fn start(binary: &Path, shape: Shape) -> io::Result<Self> {
        // In memory, where there is such a place: the disk is not what is looked at.
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory)? } else { tempfile::tempdir()? };
        fs::create_dir(dir.path().join("served"))?;
        fs::File::create(dir.path().join("served").join(FILE_NAME))?.set_len(FILE_BYTES)?;
        let key = dir.path().join("key");
        let made = Command::new(binary).arg("keygen").arg(&key).stdout(Stdio::null()).status()?;
        if !made.success() {
            return Err(io::Error::other("plait keygen failed"));
        }
        let mut chain =
            Self { roles: Vec::new(), entrance: SocketAddr::from(([127, 0, 0, 1], 0)), _dir: dir };
        let dir = chain._dir.path().to_owned();
        let flag = |name: &str, value: &Path| format!("--{name}={}", value.display());
        let key = flag("key", &key);
        let root = chain.role(binary, "root", &[flag("dir", &dir.join("served"))])?;
        let upstream = chain.role(binary, "upstream", &[format!("--root=http://{root}"), key.clone()])?;
        let mut downstream = vec![key.clone()];
        let transport = if shape.mptcp { "mptcp:" } else { "" };
        for _ in 0..shape.relays {
            let relay = chain.role(binary, "relay", std::slice::from_ref(&key))?;
            downstream.push(format!("--path={transport}{relay},{upstream}"));
        }
        if shape.relays == 0 {
            downstream.push(format!("--path={transport}{upstream}"));
        }
        downstream.extend(shape.downstream.iter().map(|flag| (*flag).to_owned()));
        if shape.cache {
            downstream.push(flag("cache", &dir.join("cache")));
            downstream.push("--cache-size=2GB".into());
        }
        chain.entrance = chain.role(binary, "downstream", &downstream)?;
        Ok(chain)
    }

    /// Starts one role and waits until it listens.
    fn role(&mut self, binary: &Path, role: &'static str, flags: &[String]) -> io::Result<SocketAddr> {
        let mut child = Command::new(binary)
            .args([role, "--listen=127.0.0.1:0", "--log=warn"])
            .args(flags)
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().ok_or_else(|| io::Error::other("no pipe"))?;
        self.roles.push((role, child));
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let address = line.trim().strip_prefix("listening on ").and_then(|address| address.parse().ok());
        address.ok_or_else(|| io::Error::other(format!("plait {role} does not listen: {line}")))
    }

    /// The process of the first role of this name.
    pub fn pid(&self, role: &str) -> Option<u32> {
        self.roles.iter().find(|(name, _)| *name == role).map(|(_, child)| child.id())
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        for (_, child) in self.roles.iter_mut().rev() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
