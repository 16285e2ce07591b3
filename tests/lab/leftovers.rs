//! Nothing of a lab is left, however it ends.

use std::{
    collections::HashSet,
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::possible;

/// What takes milliseconds on a quiet machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// So slow that a download is not over before the test is.
const SLOW: &str = r#"
name = "slow"
stands-for = "nothing: runs until it is ended"
[[path]]
rate-mbit = 1
rtt-ms = 20
[[path]]
rate-mbit = 1
rtt-ms = 20
"#;

/// A running lab, and everything that belongs to it.
struct Running {
    lab: Child,
    processes: Vec<u32>,
    networks: HashSet<PathBuf>,
    _dir: tempfile::TempDir,
}

/// Starts `plait lab WORD` with `shell` as SHELL, waits for a line with `ready` in it, and takes stock.
fn start(word: &str, shell: &str, ready: &str) -> Running {
    let dir = tempfile::tempdir().unwrap();
    let (scenario, script) = (dir.path().join("slow.toml"), dir.path().join("shell"));
    fs::write(&scenario, SLOW).unwrap();
    fs::write(&script, shell).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let mut lab = Command::new(env!("CARGO_BIN_EXE_plait"))
        .args(["lab", word, "--size", "100M", "--role-flag", "all=--cores=0"])
        .arg(scenario)
        .env("SHELL", script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(lab.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains(ready)), "plait lab {word} never said '{ready}'");
    // It must not fail for want of a reader.
    thread::spawn(move || lines.for_each(drop));
    let processes = descendants(lab.id());
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    let networks: HashSet<_> =
        processes.iter().filter_map(|&pid| network(pid)).filter(|net| *net != own).collect();
    // Client, two relays, server; the root, the upstream, two relays, the downstream.
    assert!(processes.len() >= 5 && networks.len() == 4, "{processes:?} {networks:?}");
    Running { lab, processes, networks, _dir: dir }
}

impl Running {
    /// Waits until neither a process nor a network is left.
    fn assert_gone(&self) {
        let until = Instant::now() + DEADLINE;
        loop {
            let left: Vec<_> = all_processes()
                .into_iter()
                .filter(|&pid| {
                    network(pid).is_some_and(|net| self.networks.contains(&net)) || self.holds(pid)
                })
                .collect();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < until, "left of {:?}: {left:?}", self.processes);
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Whether the process has a descriptor of one of the networks.
    fn holds(&self, pid: u32) -> bool {
        let Ok(fds) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
        fds.flatten()
            .filter_map(|fd| fs::read_link(fd.path()).ok())
            .any(|target| self.networks.contains(&target))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.lab.kill();
        let _ = self.lab.wait();
    }
}

fn all_processes() -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}

/// The network namespace of a process that lives; a zombie has none.
fn network(pid: u32) -> Option<PathBuf> {
    fs::read_link(Path::new("/proc").join(pid.to_string()).join("ns/net")).ok()
}

fn descendants(ancestor: u32) -> Vec<u32> {
    let all: Vec<_> = all_processes().into_iter().filter_map(|pid| Some((pid, parent(pid)?))).collect();
    let mut found = vec![ancestor];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(all.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| pid));
        next += 1;
    }
    found.split_off(1)
}

#[test]
fn a_killed_run_leaves_nothing() {
    if !possible() {
        return;
    }
    let mut running = start("run", "", "run 1 of");
    running.lab.kill().unwrap();
    running.lab.wait().unwrap();
    running.assert_gone();
}

/// Also what the shell's user has put into the background and let go.
const SHELL: &str =
    "#!/bin/sh\nsleep 1000 &\nsetsid sleep 1000 &\n(sleep 1000 & sleep 1000) &\necho started\nread line\n";

#[test]
fn a_killed_shell_leaves_nothing() {
    if !possible() {
        return;
    }
    let mut running = start("shell", SHELL, "started");
    running.lab.kill().unwrap();
    running.lab.wait().unwrap();
    running.assert_gone();
}

#[test]
fn a_shell_takes_its_background_with_it() {
    if !possible() {
        return;
    }
    let mut running = start("shell", SHELL, "started");
    drop(running.lab.stdin.take());
    // Its last command finds the end of input, which is status 1.
    assert!(!running.lab.wait().unwrap().success());
    running.assert_gone();
}
