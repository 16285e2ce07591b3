//! Network cards: receive queues, the CPUs that serve them, rings, offloads.
//!
//! In: a [`Machine`] and the CPUs of `--cores`. Out: advice. Invariant: a command that is printed can be run as it is: names,
//! numbers and CPUs are those of this machine.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{Advice, Machine, advice};

/// What each card could do better.
pub(super) fn all(machine: &Machine<'_>, cpus: &[usize], only: Option<&str>) -> Vec<Advice> {
    let names = nics(machine).into_iter().filter(|name| only.is_none_or(|only| only == name));
    names.flat_map(|name| card(machine, &name, cpus)).collect()
}

fn card(machine: &Machine<'_>, name: &str, cpus: &[usize]) -> Vec<Advice> {
    let channels = (machine.run)("ethtool", &["-l", name]).unwrap_or_default();
    let mut list: Vec<_> = queues(machine, name, cpus, queues_max(&channels)).into_iter().collect();
    list.extend(interrupts(machine, name, cpus));
    match (machine.run)("ethtool", &["-g", name]) {
        None => {
            let todo = Some("install ethtool and ask again".to_owned());
            list.push(advice(
                format!("{name}: ring sizes, offloads, queues that it could have"),
                "unknown",
                todo,
            ));
        }
        Some(rings) => {
            list.extend(rings_of(name, &rings));
            list.extend(offloads_of(name, &(machine.run)("ethtool", &["-k", name]).unwrap_or_default()));
        }
    }
    list
}

/// Interfaces with hardware, or what a hypervisor calls so.
fn nics(machine: &Machine<'_>) -> Vec<String> {
    let entries = fs::read_dir(machine.path("/sys/class/net")).into_iter().flatten().flatten();
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
fn mask(cpus: &[usize]) -> String {
    let words = cpus.iter().max().map_or(1, |&last| last / 32 + 1);
    let mut bits = vec![0_u32; words];
    for &cpu in cpus {
        bits[cpu / 32] |= 1 << (cpu % 32);
    }
    let words: Vec<_> = bits.iter().rev().map(|word| format!("{word:08x}")).collect();
    words.join(",").trim_start_matches(['0', ',']).to_owned()
}

/// The CPUs of such a mask.
fn cpus_of_mask(mask: &str) -> Vec<usize> {
    let digits = mask.chars().rev().filter_map(|digit| digit.to_digit(16)).enumerate();
    digits
        .flat_map(|(place, bits)| {
            (0..4).filter(move |bit| bits & 1 << bit != 0).map(move |bit| 4 * place + bit)
        })
        .collect()
}

/// The CPUs of a list such as `0-3,8`.
fn cpus_of_list(list: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse::<usize>().ok()?..=last.trim().parse::<usize>().ok()?)
    };
    list.split(',').filter_map(range).flatten().collect()
}

/// Those of `found` that are not among `cpus`, in order, each once.
fn outside(mut found: Vec<usize>, cpus: &[usize]) -> Vec<usize> {
    found.retain(|cpu| !cpus.contains(cpu));
    found.sort_unstable();
    found.dedup();
    found
}

/// As people write them: `0 1 5`.
fn shown(cpus: &[usize]) -> String {
    cpus.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// The most that the card can have, as `ethtool -l` says: combined ones, or such as only receive.
fn queues_max(text: &str) -> Option<usize> {
    let (most, _) = text.split_once("Current hardware settings:")?;
    let value = |key: &str| {
        most.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok()).filter(|&count| count > 0)
    };
    value("Combined:").or_else(|| value("RX:"))
}

/// Fewer queues than cores: the card may have more, or the kernel can spread packets itself (receive packet steering), to the
/// cores that Plait runs on and to no others.
fn queues(machine: &Machine<'_>, name: &str, cpus: &[usize], most: Option<usize>) -> Option<Advice> {
    let dir = format!("/sys/class/net/{name}/queues");
    let receive = entries(&machine.path(&dir), "rx-");
    if receive.is_empty() {
        return None;
    }
    let masks = receive.iter().map(|queue| fs::read_to_string(queue.join("rps_cpus")).unwrap_or_default());
    let steered: Vec<_> = masks.flat_map(|mask| cpus_of_mask(&mask)).collect();
    let is_short = receive.len() < cpus.len();
    let unsteered = cpus.iter().filter(|cpu| !steered.contains(cpu)).count();
    let astray = outside(steered.clone(), cpus);
    let now = format!(
        "{}{} for {} cores, receive packet steering {}",
        receive.len(),
        most.map_or(String::new(), |most| format!(" of {most}")),
        cpus.len(),
        match (steered.is_empty(), astray.is_empty()) {
            (true, _) => "off".to_owned(),
            (false, true) => "on".to_owned(),
            (false, false) => format!("also to CPUs {}, where Plait does not run", shown(&astray)),
        }
    );
    let more = format!("ethtool -L {name} combined {}", most.unwrap_or(cpus.len()).min(cpus.len()));
    let steer = format!("for q in {dir}/rx-*; do echo {} > $q/rps_cpus; done", mask(cpus));
    let todo = match most {
        Some(most) if is_short && most > receive.len() => Some(more),
        None if is_short && steered.is_empty() => Some(format!("{more} if the card can; otherwise: {steer}")),
        _ if !astray.is_empty() || is_short && unsteered > 0 => Some(steer),
        _ => None,
    };
    Some(advice(format!("{name}: receive queues"), now, todo))
}

/// Interrupts of the card's queues, by number. Where a virtual device sits on a PCI device, that one has them.
fn interrupts_of(machine: &Machine<'_>, name: &str) -> Vec<u32> {
    let device = machine.path(&format!("/sys/class/net/{name}/device"));
    let dirs = [device.join("msi_irqs"), device.join("../msi_irqs")];
    let found = dirs.iter().map(|dir| entries(dir, "")).find(|found| !found.is_empty()).unwrap_or_default();
    let mut numbers: Vec<u32> =
        found.iter().filter_map(|path| path.file_name()?.to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    // The directory of an interrupt has one named after who asked for it. Those for the card's settings are rare.
    numbers.retain(|irq| {
        let actions = fs::read_dir(machine.path(&format!("/proc/irq/{irq}"))).into_iter().flatten().flatten();
        let mut actions = actions.filter(|entry| entry.path().is_dir());
        actions.any(|action| {
            let action = action.file_name().to_string_lossy().to_ascii_lowercase();
            !["config", "async", "ctrl", "mgmnt", "misc"].iter().any(|rare| action.contains(rare))
        })
    });
    numbers
}

/// Every queue's interrupt on one of the cores that Plait runs on, and not all of them on the same.
fn interrupts(machine: &Machine<'_>, name: &str, cpus: &[usize]) -> Option<Advice> {
    let numbers = interrupts_of(machine, name);
    let on = |irq: &u32| {
        let list = machine.read(&format!("/proc/irq/{irq}/effective_affinity_list")).ok()?;
        Some(cpus_of_list(&list)).filter(|cpus| !cpus.is_empty())
    };
    let (numbers, mut serving): (Vec<_>, Vec<_>) =
        numbers.iter().filter_map(|irq| Some((irq.to_string(), on(irq)?))).unzip();
    if numbers.is_empty() {
        return None;
    }
    let mut all: Vec<_> = serving.concat();
    all.sort_unstable();
    all.dedup();
    serving.sort_unstable();
    serving.dedup();
    let crowded = serving.len() == 1 && serving[0].len() == 1 && numbers.len() > 1 && cpus.len() > 1;
    let astray = outside(all.clone(), cpus);
    let todo = (crowded || !astray.is_empty()).then(|| {
        format!(
            "set -- {}; for irq in {}; do echo $1 > /proc/irq/$irq/smp_affinity_list; set -- \"$@\" $1; shift; done (irqbalance, if it runs, undoes this)",
            shown(cpus),
            numbers.join(" ")
        )
    });
    let mut now = format!("on CPUs {}", shown(&all));
    if !astray.is_empty() {
        now += &format!("; Plait runs on {}", shown(cpus));
    }
    Some(advice(format!("{name}: {} interrupts", numbers.len()), now, todo))
}

/// Bursts of long fat paths need all the room that the card has.
fn rings_of(name: &str, text: &str) -> Vec<Advice> {
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
fn offloads_of(name: &str, text: &str) -> Vec<Advice> {
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
