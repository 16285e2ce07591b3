//! `cargo xtask flamegraph`: perf(1) on a role of a running chain, drawn by inferno.

use std::{
    fs::File,
    io::{self, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use inferno::{collapse::Collapse, collapse::perf::Folder, flamegraph};

use crate::chain::{Chain, FILE_NAME, Shape};

/// Not a divisor of anything that happens every millisecond.
const SAMPLES_PER_SECOND: &str = "999";
/// Clients, so that the role always has work.
const CLIENTS: usize = 2;

/// What can be recorded: a name, the role, and the chain it stands in.
const GRAPHS: &[(&str, &str, Shape)] = &[
    ("relay", "relay", Shape { relays: 1, mptcp: false, downstream: &[], cache: false }),
    ("upstream", "upstream", Shape { relays: 2, mptcp: false, downstream: &[], cache: false }),
    (
        "downstream-miss",
        "downstream",
        Shape { relays: 2, mptcp: false, downstream: &["--placement=local"], cache: false },
    ),
    (
        "downstream-spread",
        "downstream",
        Shape { relays: 2, mptcp: false, downstream: &["--placement=spread"], cache: false },
    ),
    ("downstream-hit", "downstream", Shape { relays: 2, mptcp: false, downstream: &[], cache: true }),
    ("downstream-mptcp", "downstream", Shape { relays: 0, mptcp: true, downstream: &[], cache: false }),
];

/// Why there is no graph.
#[derive(Debug, thiserror::Error)]
pub enum FlamegraphError {
    /// Nobody knows this one.
    #[error("there is no graph '{0}'")]
    Unknown(String),
    /// Something could not be run, read or written.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the kernel says.
        source: io::Error,
    },
    /// A program ended with an error.
    #[error("{0} failed, see above")]
    Failed(&'static str),
}

fn doing(what: impl Into<String>) -> impl FnOnce(io::Error) -> FlamegraphError {
    let what = what.into();
    |source| FlamegraphError::Io { what, source }
}

/// Draws `names`, or all, into `output`.
pub fn draw(names: &[String], seconds: u32, output: &Path, binary: &Path) -> Result<(), FlamegraphError> {
    if let Some(unknown) = names.iter().find(|name| !GRAPHS.iter().any(|(known, ..)| known == name)) {
        return Err(FlamegraphError::Unknown(unknown.clone()));
    }
    for (name, role, shape) in
        GRAPHS.iter().filter(|(name, ..)| names.is_empty() || names.iter().any(|n| n == name))
    {
        println!("{name}: recording for {seconds} s");
        let chain =
            Chain::start(binary, *shape).map_err(doing(format!("a chain of {}", binary.display())))?;
        let svg = output.join(format!("{name}.svg"));
        record(&chain, role, seconds, &svg, &title(name))?;
        println!("wrote {}", svg.display());
    }
    Ok(())
}

/// What is seen, by which commit, on what.
fn title(name: &str) -> String {
    let first_line = |program: &str, arguments: &[&str]| {
        let output =
            Command::new(program).args(arguments).output().map(|output| output.stdout).unwrap_or_default();
        String::from_utf8_lossy(&output).lines().next().map(str::to_owned)
    };
    let known = |line: Option<String>| line.unwrap_or_else(|| "unknown".to_owned());
    let commit = known(first_line("git", &["describe", "--always"]));
    // The graphs themselves are no change: each is written before the next one's title.
    let is_changed = first_line("git", &["status", "--porcelain", "--", ":/", ":(exclude,top)flamegraphs"]);
    let dirty = if is_changed.is_some() { "-dirty" } else { "" };
    let kernel = known(first_line("uname", &["-r"]));
    let cores = thread::available_parallelism().map_or(0, usize::from);
    format!(
        "plait {name}, commit {commit}{dirty}, Linux {kernel}, {cores} cores: cargo xtask flamegraph {name}"
    )
}

/// Clients that ask again and again, until dropped.
struct Load(Vec<Child>);

impl Load {
    fn start(chain: &Chain) -> io::Result<Self> {
        let url = format!("http://{}/{FILE_NAME}", chain.entrance);
        let script = r#"while curl -sSo /dev/null "$0"; do :; done"#;
        let mut load = Self(Vec::new());
        for _ in 0..CLIENTS {
            use std::os::unix::process::CommandExt;
            // A group of its own: the shell's curl ends with it.
            load.0.push(Command::new("sh").args(["-c", script, &url]).process_group(0).spawn()?);
        }
        Ok(load)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // `kill` is a builtin of every shell: no call without a safe wrapper is needed.
            let _ = Command::new("sh").args(["-c", &format!("kill -KILL -{}", child.id())]).status();
            let _ = child.wait();
        }
    }
}

fn record(chain: &Chain, role: &str, seconds: u32, svg: &Path, title: &str) -> Result<(), FlamegraphError> {
    let pid = chain.pid(role).unwrap_or_default().to_string();
    let dir = tempfile::tempdir().map_err(doing("a directory for perf's samples"))?;
    let samples = dir.path().join("perf.data");
    let load = Load::start(chain).map_err(doing("curl"))?;
    // The first transfer fills caches and warms lanes.
    thread::sleep(Duration::from_secs(3));
    let recorded = Command::new("perf")
        .args(["record", "-q", "-F", SAMPLES_PER_SECOND, "--call-graph", "dwarf,8192", "-p", &pid, "-o"])
        .arg(&samples)
        .args(["--", "sleep", &seconds.to_string()])
        .status()
        .map_err(doing("perf (Debian: linux-perf)"))?;
    drop(load);
    if !recorded.success() {
        return Err(FlamegraphError::Failed(
            "perf record (as root, or with sysctl kernel.perf_event_paranoid at 1 or less)",
        ));
    }
    let mut script = Command::new("perf")
        .args(["script", "--no-inline", "-i"])
        .arg(&samples)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(doing("perf script"))?;
    let text = script.stdout.take().ok_or(FlamegraphError::Failed("perf script"))?;
    let mut folded = Vec::new();
    Folder::default().collapse(BufReader::new(text), &mut folded).map_err(doing("perf's samples"))?;
    if !script.wait().map_err(doing("perf script"))?.success() {
        return Err(FlamegraphError::Failed("perf script"));
    }
    let mut options = flamegraph::Options::default();
    options.title = title.to_owned();
    options.count_name = "samples".into();
    options.min_width = 0.1;
    let file = File::create(svg).map_err(doing(svg.display().to_string()))?;
    flamegraph::from_reader(&mut options, folded.as_slice(), file).map_err(doing(svg.display().to_string()))
}
