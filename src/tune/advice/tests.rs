use std::{collections::HashMap, fs, os::unix::fs::symlink, path::Path};

use super::{Advice, Machine, mptcp, nic};

/// A machine of files and of texts.
struct Fake {
    root: tempfile::TempDir,
    said: HashMap<String, String>,
}

impl Fake {
    fn new() -> Self {
        Self { root: tempfile::tempdir().unwrap(), said: HashMap::new() }
    }

    fn file(&self, absolute: &str, text: &str) -> &Self {
        let path = self.root.path().join(absolute.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    /// What `command` prints.
    fn says(&mut self, command: &str, text: &str) -> &mut Self {
        self.said.insert(command.to_owned(), text.to_owned());
        self
    }

    fn look<T>(&self, look: impl FnOnce(&Machine<'_>) -> T) -> T {
        let run = |program: &str, arguments: &[&str]| {
            let command = [&[program], arguments].concat().join(" ");
            self.said.get(&command).cloned()
        };
        look(&Machine { root: self.root.path(), run: &run })
    }

    fn cards(&self, cpus: &[usize]) -> Vec<Advice> {
        self.look(|machine| nic::all(machine, cpus, None))
    }
}

/// The one about `about`.
fn one(list: &[Advice], about: &str) -> Advice {
    let found = list.iter().find(|advice| advice.about == about);
    found.unwrap_or_else(|| panic!("nothing about {about}: {list:?}")).clone()
}

const CHANNELS: &str = "Channel parameters for eth0:\nPre-set maximums:\nRX:\t\tn/a\nTX:\t\tn/a\nOther:\t\t1\n\
     Combined:\t8\nCurrent hardware settings:\nRX:\t\tn/a\nTX:\t\tn/a\nOther:\t\t1\nCombined:\t1\n";

/// A card with one queue, whose packets are steered as `rps` says.
fn one_queue(rps: &str) -> Fake {
    let fake = Fake::new();
    fake.file("/sys/class/net/lo/queues/rx-0/rps_cpus", "0\n")
        .file("/sys/class/net/eth0/device/vendor", "")
        .file("/sys/class/net/eth0/queues/rx-0/rps_cpus", rps);
    fake
}

#[test]
fn few_queues_call_for_more_or_for_steering() {
    let queues = |fake: &Fake, cpus: &[usize]| one(&fake.cards(cpus), "eth0: receive queues");
    let mut fake = one_queue("00,00000000\n");
    let found = queues(&fake, &[0, 1, 2, 33]);
    assert_eq!(found.now, "1 for 4 cores, receive packet steering off");
    let (more, steer) = (found.todo.as_deref().unwrap().split_once(" if the card can; otherwise: ")).unwrap();
    assert_eq!(more, "ethtool -L eth0 combined 4");
    assert_eq!(steer, "for q in /sys/class/net/eth0/queues/rx-*; do echo 2,00000007 > $q/rps_cpus; done");
    assert_eq!(queues(&fake, &[0]).todo, None);

    // The card says how many it could have.
    fake.says("ethtool -l eth0", CHANNELS);
    assert_eq!(queues(&fake, &[0, 1, 2, 3]).now, "1 of 8 for 4 cores, receive packet steering off");
    assert_eq!(queues(&fake, &[0, 1, 2, 3]).todo.unwrap(), "ethtool -L eth0 combined 4");
    let all: Vec<_> = (0..16).collect();
    assert_eq!(queues(&fake, &all).todo.unwrap(), "ethtool -L eth0 combined 8");
    fake.says("ethtool -l eth0", &CHANNELS.replace("Combined:\t8", "Combined:\t1"));
    assert!(queues(&fake, &[0, 1]).todo.unwrap().starts_with("for q in "), "it has all that it can have");
    fake.says("ethtool -l eth0", "netlink error: Operation not supported\n");
    assert_eq!(queues(&fake, &[0, 1]).now, "1 for 2 cores, receive packet steering off");
}

#[test]
fn packets_are_steered_to_the_cores_of_plait_and_to_no_others() {
    let queues = |rps: &str, cpus: &[usize]| one(&one_queue(rps).cards(cpus), "eth0: receive queues");
    assert_eq!(queues("00,0000000f\n", &[0, 1, 2, 3]).todo, None);
    let few = queues("1\n", &[0, 1, 2, 3]);
    assert!(few.todo.unwrap().contains("echo f > $q/rps_cpus"), "one core does it all");
    let astray = queues("2,000000f0\n", &[4, 5, 6]);
    assert!(astray.now.ends_with("also to CPUs 7 33, where Plait does not run"), "{astray:?}");
    assert!(astray.todo.unwrap().contains("echo 70 > $q/rps_cpus"));
    // Also where there are queues enough.
    assert!(queues("2\n", &[0]).todo.unwrap().contains("echo 1 > $q/rps_cpus"));
}

/// A card with interrupts `24..` on these CPUs; one more is for its settings.
fn interrupts(dir: &str, cpus: &[&str]) -> Fake {
    let fake = one_queue("0\n");
    for (number, list) in (24..).zip(cpus) {
        fake.file(&format!("{dir}/{number}"), "msix\n")
            .file(&format!("/proc/irq/{number}/effective_affinity_list"), &format!("{list}\n"))
            .file(&format!("/proc/irq/{number}/eth0-input.{number}/x"), "");
    }
    fake.file(&format!("{dir}/90"), "msix\n")
        .file("/proc/irq/90/effective_affinity_list", "9\n")
        .file("/proc/irq/90/virtio2-config/x", "");
    fake
}

#[test]
fn interrupts_belong_on_the_cores_of_plait() {
    const OWN: &str = "/sys/class/net/eth0/device/msi_irqs";
    let look =
        |fake: &Fake, cpus: &[usize], count| one(&fake.cards(cpus), &format!("eth0: {count} interrupts"));
    let spread = interrupts(OWN, &["0", "1"]);
    assert_eq!(look(&spread, &[0, 1], 2).todo, None);
    let astray = look(&spread, &[0, 3], 2);
    assert_eq!(astray.now, "on CPUs 0 1; Plait runs on 0 3");
    let todo = astray.todo.unwrap();
    assert!(todo.starts_with("set -- 0 3; for irq in 24 25; do echo $1 > /proc/irq/$irq/smp_"), "{todo}");
    let crowded = interrupts(OWN, &["2", "2", "2"]);
    assert!(look(&crowded, &[1, 2], 3).todo.unwrap().starts_with("set -- 1 2; for irq in 24 25 26; "));
    assert_eq!(look(&crowded, &[2], 3).todo, None, "there is no other core");
    assert_eq!(look(&interrupts(OWN, &["0-3"]), &[0, 1, 2, 3], 1).todo, None);

    // The interrupts of a virtual card are those of the PCI device below it.
    let fake = interrupts("/sys/devices/pci0/msi_irqs", &["5"]);
    let device = fake.root.path().join("sys/class/net/eth0/device");
    fs::remove_dir_all(&device).unwrap();
    fs::create_dir_all(fake.root.path().join("sys/devices/pci0/virtio2")).unwrap();
    symlink(Path::new("../../../devices/pci0/virtio2"), device).unwrap();
    assert_eq!(look(&fake, &[0], 1).now, "on CPUs 5; Plait runs on 0");
}

/// The command that is advised does what it says.
#[test]
fn interrupts_are_dealt_out_in_turns() {
    let todo = one(
        &interrupts("/sys/class/net/eth0/device/msi_irqs", &["7", "7", "7"]).cards(&[0, 1]),
        "eth0: 3 interrupts",
    );
    let (script, _) = todo.todo.as_deref().unwrap().split_once(" (").unwrap();
    let script = script.replace("echo $1 > /proc/irq/$irq/smp_affinity_list", "echo $irq $1");
    let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "24 0\n25 1\n26 0\n");
}

#[test]
fn cards_are_read_as_ethtool_prints_them() {
    let mut fake = one_queue("0\n");
    assert!(one(&fake.cards(&[0]), "eth0: ring sizes, offloads, queues that it could have").todo.is_some());
    fake.says(
        "ethtool -g eth0",
        "Ring parameters for eth0:\nPre-set maximums:\nRX:\t\t4096\nRX Mini:\tn/a\nTX:\t\t4096\n\
         Current hardware settings:\nRX:\t\t512\nRX Mini:\tn/a\nTX:\t\t4096\n",
    );
    fake.says(
        "ethtool -k eth0",
        "Features for eth0:\ntcp-segmentation-offload: on\ngeneric-segmentation-offload: on\n\
         generic-receive-offload: off\n",
    );
    let todos: Vec<_> = fake.cards(&[0]).into_iter().filter_map(|advice| advice.todo).collect();
    assert_eq!(todos, ["ethtool -G eth0 rx 4096", "ethtool -K eth0 gro on"]);
    fake.says("ethtool -g eth0", "netlink error: Operation not supported\n").says("ethtool -k eth0", "");
    assert_eq!(fake.cards(&[0]).len(), 1, "only its queues are known");
    assert!(fake.look(|machine| nic::all(machine, &[0], Some("eth1"))).is_empty());
}

#[test]
fn mptcp_is_told_of_the_addresses_that_there_are() {
    const ADDRESSES: &str = "ip -o address show up scope global";
    let mut fake = Fake::new();
    let all = |fake: &Fake| fake.look(mptcp::all);
    assert!(all(&fake)[0].now.starts_with("this kernel has none"));
    fake.file("/proc/sys/net/mptcp/enabled", "0\n");
    assert!(all(&fake)[0].todo.as_deref().unwrap().starts_with("sysctl -w net.mptcp.enabled=1"));
    fake.file("/proc/sys/net/mptcp/enabled", "1\n");
    assert!(all(&fake)[0].todo.as_deref().unwrap().starts_with("install iproute2"));

    fake.says(
        ADDRESSES,
        "2: eth0    inet 192.0.2.7/24 brd 192.0.2.255 scope global eth0\\       valid_lft forever\n\
         2: eth0    inet6 2001:db8::7/64 scope global dynamic \\       valid_lft 86391sec\n\
         2: eth0    inet6 2001:db8::77/64 scope global temporary dynamic \\       valid_lft 86391sec\n\
         5: wwan0    inet 198.51.100.9/30 scope global wwan0\\       valid_lft forever\n",
    )
    .says("ip mptcp endpoint show", "192.0.2.7 id 1 subflow dev eth0 \n")
    .says("ip mptcp limits show", "add_addr_accepted 0 subflows 2 \n");
    let found = all(&fake);
    let endpoints = one(&found, "MPTCP endpoints");
    assert_eq!(endpoints.now, "on, 1 endpoints");
    let (_, commands) = endpoints.todo.as_deref().unwrap().rsplit_once("): ").unwrap();
    assert_eq!(commands, "ip mptcp endpoint add 198.51.100.9 dev wwan0 subflow");
    let limits = one(&found, "MPTCP limits");
    assert_eq!(limits.now, "2 subflows beside the first, 0 announced addresses");
    assert!(limits.todo.unwrap().starts_with("ip mptcp limits set subflows 2 add_addr_accepted 2 "));

    fake.says("ip mptcp endpoint show", "192.0.2.7 id 1 subflow dev eth0 \n198.51.100.9 id 2 signal\n")
        .says("ip mptcp limits show", "add_addr_accepted 2 subflows 2 \n");
    assert!(all(&fake).iter().all(|advice| advice.todo.is_none()), "{:?}", all(&fake));

    // One line: nothing can be added.
    fake.says(ADDRESSES, "2: eth0    inet 192.0.2.7/24 brd 192.0.2.255 scope global eth0\n")
        .says("ip mptcp endpoint show", "")
        .says("ip mptcp limits show", "add_addr_accepted 0 subflows 2 \n");
    assert!(all(&fake).iter().all(|advice| advice.todo.is_none()), "{:?}", all(&fake));
}
