//! What no profile can say: network cards, limits of the process, congestion control, MPTCP.
//!
//! In: `/sys`, `/proc`, and what ethtool(8) and ip(8) print. Out: lines, each with what is there, what would be better and
//! the command for it. Nothing is changed: cards differ too much for that. Rooms: `nic` looks at network cards, `mptcp` at
//! what kernel MPTCP is told.

mod mptcp;
mod nic;

#[cfg(test)]
mod tests;

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::{Resource, getrlimit};

/// Descriptors that a process may open: two for each parked frame and one for each client and lane.
const NOFILE_MIN: u64 = 65_536;
/// Locked memory: glommio registers half a megabyte of buffers per core.
const MEMLOCK_BYTES_MIN: u64 = 8 << 20;
/// Pages of pipes that a user who is not root may have: 1 GiB, a thousand pipes of 1 MiB.
const PIPE_PAGES_MIN: u64 = 262_144;

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advice {
    /// Such as `eth0: receive queues`.
    pub about: String,
    /// What is there.
    pub now: String,
    /// What to do, or None if it is as it should be.
    pub todo: Option<String>,
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.todo {
            None => write!(f, "ok    {}: {}", self.about, self.now),
            Some(todo) => write!(f, "todo  {}: {}\n      {todo}", self.about, self.now),
        }
    }
}

fn advice(about: impl Into<String>, now: impl Into<String>, todo: Option<String>) -> Advice {
    Advice { about: about.into(), now: now.into(), todo }
}

/// What is looked at: this machine, or, in tests, files like its own and texts as its programs print them.
pub(super) struct Machine<'a> {
    /// `/`.
    root: &'a Path,
    /// Runs a program; its standard output, or None if there is no such program.
    run: &'a dyn Fn(&str, &[&str]) -> Option<String>,
}

impl Machine<'_> {
    /// A file or directory, from its absolute name.
    fn path(&self, absolute: &str) -> PathBuf {
        self.root.join(absolute.trim_start_matches('/'))
    }

    /// What a file says, without the end of its line.
    fn read(&self, absolute: &str) -> io::Result<String> {
        Ok(fs::read_to_string(self.path(absolute))?.trim().to_owned())
    }
}

/// Everything, for a process on `cpus`; `nic` restricts it to one network card.
pub fn all(cpus: &[usize], nic: Option<&str>) -> Vec<Advice> {
    let machine = Machine { root: Path::new("/"), run: &output };
    let mut list = nic::all(&machine, cpus, nic);
    list.extend(limits(&machine));
    list.extend(congestion_control(&machine));
    list.extend(mptcp::all(&machine));
    list
}

/// Standard output of `program`, if it could be run. An administrator's program may not be on the user's PATH.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    let output = Command::new(program).args(arguments).env("PATH", path).output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn limits(machine: &Machine<'_>) -> Vec<Advice> {
    let mut list = Vec::new();
    let limit = |resource, about: &str, least: u64, unit: &str, todo: &str| {
        let most = getrlimit(resource).maximum;
        let now = most.map_or("unlimited".to_owned(), |most| most.to_string());
        let todo = most.filter(|&most| most < least).map(|_| todo.to_owned());
        advice(about, now, todo.map(|todo| format!("{todo} ({least}{unit} or more)")))
    };
    list.push(limit(
        Resource::Nofile,
        "open files (hard limit)",
        NOFILE_MIN,
        "",
        "LimitNOFILE= in the systemd unit, or /etc/security/limits.conf",
    ));
    list.push(limit(
        Resource::Memlock,
        "locked memory (hard limit), for --executor glommio",
        MEMLOCK_BYTES_MIN,
        " bytes",
        "LimitMEMLOCK= in the systemd unit, or /etc/security/limits.conf",
    ));
    // Root has no such limit, but the one who asks need not be the one who serves.
    let pages = machine.read("/proc/sys/fs/pipe-user-pages-soft").ok();
    if let Some(pages) = pages.and_then(|text| text.parse::<u64>().ok()) {
        let short = pages != 0 && pages < PIPE_PAGES_MIN;
        let todo = short.then(|| "plait tune apply edge-many-clients, as root".to_owned());
        list.push(advice("pages of pipes for users other than root", pages.to_string(), todo));
    }
    list
}

/// Services and containers have no privileges, and without them only some algorithms may be chosen.
fn congestion_control(machine: &Machine<'_>) -> Option<Advice> {
    let allowed = machine.read("/proc/sys/net/ipv4/tcp_allowed_congestion_control").ok()?;
    let todo = (!allowed.split_whitespace().any(|name| name == "bbr")).then(|| {
        format!("modprobe tcp_bbr; sysctl net.ipv4.tcp_allowed_congestion_control=\"{allowed} bbr\"")
    });
    Some(advice("congestion control for services", allowed, todo))
}
