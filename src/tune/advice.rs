//! What no profile can say: network cards, limits of the process, congestion control, MPTCP.
//!
//! In: `/sys`, `/proc`, and what ethtool(8) and ip(8) print. Out: lines, each with what is there, what would be better and
//! the command for it. Nothing is changed: cards differ too much for that.

use std::{
    fmt, fs,
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

/// Everything, for a process on `cpus`; `nic` restricts it to one network card.
pub fn all(cpus: &[usize], nic: Option<&str>) -> Vec<Advice> {
    let mut list = Vec::new();
    for name in nics(Path::new("/sys/class/net")) {
        if nic.is_none_or(|nic| nic == name) {
            list.extend(queues(Path::new("/sys/class/net"), &name, cpus));
            list.extend(interrupts(&name, cpus));
            list.extend(card(&name));
        }
    }
    list.extend(limits());
    list.extend(congestion_control());
    list.extend(mptcp());
    list
}

/// Interfaces with hardware, or what a hypervisor calls so.
pub(super) fn nics(class: &Path) -> Vec<String> {
    let entries = fs::read_dir(class).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .filter(|entry| entry.path().join("device").exists())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// Entries of `dir` whose name begins with `prefix`.
fn entries(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    let found = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<_> = found
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    paths
}

/// The hexadecimal mask of `cpus`, in the comma-separated words of 32 bits that the kernel reads.
pub(super) fn mask(cpus: &[usize]) -> String {
    let words = cpus.iter().max().map_or(1, |&last| last / 32 + 1);
    let mut bits = vec![0_u32; words];
    for &cpu in cpus {
        bits[cpu / 32] |= 1 << (cpu % 32);
    }
    let words: Vec<_> = bits.iter().rev().map(|word| format!("{word:08x}")).collect();
    words.join(",").trim_start_matches(['0', ',']).to_owned()
}

/// Fewer queues than cores: the kernel can spread packets itself (receive packet steering).
pub(super) fn queues(class: &Path, name: &str, cpus: &[usize]) -> Option<Advice> {
    let receive = entries(&class.join(name).join("queues"), "rx-");
    let steered = receive.iter().any(|queue| {
        let mask = fs::read_to_string(queue.join("rps_cpus")).unwrap_or_default();
        mask.chars().any(|digit| digit.is_ascii_hexdigit() && digit != '0')
    });
    if receive.is_empty() {
        return None;
    }
    let now = format!(
        "{} for {} cores, receive packet steering {}",
        receive.len(),
        cpus.len(),
        if steered { "on" } else { "off" }
    );
    let todo = (receive.len() < cpus.len() && !steered).then(|| {
        format!(
            "ethtool -L {name} combined {} if the card can; otherwise: for q in {}/queues/rx-*; do echo {} > $q/rps_cpus; done",
            cpus.len(),
            class.join(name).display(),
            mask(cpus)
        )
    });
    Some(advice(format!("{name}: receive queues"), now, todo))
}

/// Every queue's interrupt on a core of its own, of those that Plait runs on.
fn interrupts(name: &str, cpus: &[usize]) -> Option<Advice> {
    let numbers = entries(&Path::new("/sys/class/net").join(name).join("device/msi_irqs"), "");
    let mut lists: Vec<String> = numbers
        .iter()
        .filter_map(|path| path.file_name()?.to_str())
        .filter_map(|irq| fs::read_to_string(format!("/proc/irq/{irq}/effective_affinity_list")).ok())
        .map(|list| list.trim().to_owned())
        .collect();
    if lists.is_empty() {
        return None;
    }
    let total = lists.len();
    lists.sort();
    lists.dedup();
    let crowded = lists.len() == 1 && total > 1 && cpus.len() > 1;
    let todo = crowded.then(|| {
        format!(
            "run irqbalance, or write one CPU to each of /proc/irq/N/smp_affinity_list (N: ls /sys/class/net/{name}/device/msi_irqs)"
        )
    });
    Some(advice(format!("{name}: {total} interrupts"), format!("on CPUs {}", lists.join(" ")), todo))
}

/// What ethtool(8) knows.
fn card(name: &str) -> Vec<Advice> {
    let Some(rings) = output("ethtool", &["-g", name]) else {
        let todo = Some("install ethtool and ask again".to_owned());
        return vec![advice(format!("{name}: ring sizes and offloads"), "unknown", todo)];
    };
    let offloads = output("ethtool", &["-k", name]).unwrap_or_default();
    rings_of(name, &rings).into_iter().chain(offloads_of(name, &offloads)).collect()
}

/// Standard output of `program`, if it could be run. An administrator's program may not be on the user's PATH.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    let output = Command::new(program).args(arguments).env("PATH", path).output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Bursts of long fat paths need all the room that the card has.
pub(super) fn rings_of(name: &str, text: &str) -> Vec<Advice> {
    // `Pre-set maximums:` come first, `Current hardware settings:` after them.
    let (most, now) = text.split_once("Current hardware settings:").unwrap_or((text, ""));
    let value = |text: &str, key: &str| -> Option<u64> {
        text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok())
    };
    [("RX:", "rx"), ("TX:", "tx")]
        .iter()
        .filter_map(|(key, flag)| {
            let (most, now) = (value(most, key)?, value(now, key)?);
            let todo = (now < most).then(|| format!("ethtool -G {name} {flag} {most}"));
            Some(advice(format!("{name}: {flag} ring"), format!("{now} of {most} packets"), todo))
        })
        .collect()
}

/// Without these the CPU cuts and joins every packet.
pub(super) fn offloads_of(name: &str, text: &str) -> Vec<Advice> {
    let offloads = [
        ("tcp-segmentation-offload:", "tso"),
        ("generic-segmentation-offload:", "gso"),
        ("generic-receive-offload:", "gro"),
    ];
    offloads
        .iter()
        .filter_map(|(key, flag)| {
            let state = text.lines().find_map(|line| line.trim().strip_prefix(key))?.trim();
            let todo = (state == "off").then(|| format!("ethtool -K {name} {flag} on"));
            Some(advice(format!("{name}: {flag}"), state, todo))
        })
        .collect()
}

fn limits() -> Vec<Advice> {
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
    if !rustix::process::geteuid().is_root()
        && let Some(pages) = fs::read_to_string("/proc/sys/fs/pipe-user-pages-soft")
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok())
    {
        let short = pages != 0 && pages < PIPE_PAGES_MIN;
        let todo = short.then(|| "plait tune apply edge-many-clients, as root".to_owned());
        list.push(advice("pages of pipes for this user", pages.to_string(), todo));
    }
    list
}

/// Services and containers have no privileges, and without them only some algorithms may be chosen.
fn congestion_control() -> Option<Advice> {
    let allowed = fs::read_to_string("/proc/sys/net/ipv4/tcp_allowed_congestion_control").ok()?;
    let todo = (!allowed.split_whitespace().any(|name| name == "bbr")).then(|| {
        format!("modprobe tcp_bbr; sysctl net.ipv4.tcp_allowed_congestion_control=\"{} bbr\"", allowed.trim())
    });
    Some(advice("congestion control for services", allowed.trim(), todo))
}

/// Kernel MPTCP needs to be told which addresses to use; a path over relays needs none of this.
fn mptcp() -> Vec<Advice> {
    match fs::read_to_string("/proc/sys/net/mptcp/enabled") {
        Err(_) => {
            vec![advice("MPTCP", "this kernel has none; only paths of the form mptcp:... need it", None)]
        }
        Ok(text) if text.trim() == "0" => {
            vec![advice(
                "MPTCP",
                "off",
                Some("sysctl -w net.mptcp.enabled=1 (for paths of the form mptcp:...)".into()),
            )]
        }
        Ok(_) => {
            let endpoints = output("ip", &["mptcp", "endpoint", "show"]).unwrap_or_default();
            let count = endpoints.lines().count();
            let todo = (count == 0).then(|| {
                "for paths of the form mptcp:... with more than one local address: ip mptcp endpoint add ADDRESS dev NIC subflow".to_owned()
            });
            vec![advice("MPTCP", format!("on, {count} endpoints"), todo)]
        }
    }
}
