//! The lab: a client, relays behind emulated paths, and a server.
//!
//! ```text
//!          ┌─ link of path 0 ─ relay 0 ─ veth ─┐
//!  client ─┤                                   ├─ server
//!          └─ link of path 1 ─ relay 1 ─ veth ─┘
//! ```
//!
//! In: a [`Scenario`]. Out: hosts with addresses and routes, and running links. Called by the chain, the command line
//! and the benchmark. Invariants: the address that a client's connection comes from decides its path, in both
//! directions and whatever it connects to; everything ends with the [`Lab`], and with the process.
//!
//! Relays forward (for direct connections and MPTCP subflows) and are hosts of their own (for Plait's relays).

use std::{
    fs::{self, OpenOptions},
    io,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::Arc,
};

use super::{
    host::Host,
    ip::Batch,
    link::Link,
    role::RoleProcess,
    scenario::{Event, Scenario},
    shape::Counters,
    timeline::{Paths, Timeline},
};

/// Settings of every host unless others are asked for: `tuning/wan-long-fat.conf`.
const TUNED: &[(&str, &str)] = &[
    ("net.ipv4.tcp_rmem", "4096 131072 67108864"),
    ("net.ipv4.tcp_wmem", "4096 65536 67108864"),
    ("net.ipv4.tcp_slow_start_after_idle", "0"),
];
/// What every host needs.
const SETTINGS: &[(&str, &str)] = &[
    // A run must not learn from the one before.
    ("net.ipv4.tcp_no_metrics_save", "1"),
    // Packets come in on paths that are not the way back by destination.
    ("net.ipv4.conf.all.rp_filter", "0"),
    ("net.ipv4.conf.default.rp_filter", "0"),
    ("net.ipv4.ip_forward", "1"),
    // The calibration pings without CAP_NET_RAW.
    ("net.ipv4.ping_group_range", "0 0"),
];
/// The same, where the kernel has them: no IPv6, whose router solicitations would cross the links.
const SETTINGS_OPTIONAL: &[(&str, &str)] = &[
    ("net.ipv6.conf.all.disable_ipv6", "1"),
    ("net.ipv6.conf.default.disable_ipv6", "1"),
    ("net.mptcp.enabled", "1"),
];
/// Packets that a TUN device keeps for the emulator: 15 MB, a tenth of a second at more than 1 Gbit/s. With the
/// default of 500 the device drops bursts before the emulated queue sees them.
const TUN_QUEUE_PACKETS: usize = 10_000;
/// What the kernel has for routes and sockets: built in, or loaded by now.
const CONTROLS_AVAILABLE: &str = "/proc/sys/net/ipv4/tcp_available_congestion_control";
/// Routing table of path 0's source address; the others follow.
const TABLE_FIRST: usize = 100;

/// Why there is no lab.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// This user may not make namespaces.
    #[error("cannot make a network namespace: {source}; {remedy}")]
    Namespace {
        /// What the kernel says.
        source: io::Error,
        /// What has to change.
        remedy: String,
    },
    /// TUN devices are not to be had.
    #[error("cannot open /dev/net/tun: {source}; {remedy}")]
    Tun {
        /// What the kernel says.
        source: io::Error,
        /// What has to change.
        remedy: &'static str,
    },
    /// The routes are to have a congestion control that the kernel does not know.
    #[error(
        "this kernel has no congestion control {name}, only {available}: load it as root (modprobe tcp_{name}), or choose \
         another (--lane-cc, or what the scenario says)"
    )]
    NoCongestionControl {
        /// What was asked for.
        name: String,
        /// Those that it has.
        available: String,
    },
    /// A program that the lab needs failed.
    #[error("{0}")]
    Program(String),
    /// Anything else that the kernel refused.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// What the kernel says.
        source: io::Error,
    },
}

/// An emulated network that runs.
#[derive(Debug)]
pub struct Lab {
    scenario: Scenario,
    client: Host,
    relays: Vec<Host>,
    server: Host,
    paths: Arc<Paths>,
    has_mptcp: bool,
}

impl Lab {
    /// Builds the network of `scenario`. Its events wait for [`Lab::play`].
    ///
    /// # Errors
    /// Something is missing on this machine; the text says what, and what to do.
    pub fn build(scenario: &Scenario) -> Result<Self, LabError> {
        Self::build_tuned(scenario, TUNED)
    }

    /// The same, with other settings of the kernel in every host, keys as sysctl(8) names them; those that a network
    /// namespace does not have (`fs.`, most of `net.core.`) are passed over.
    ///
    /// # Errors
    /// Those of [`Lab::build`], and a value that the kernel does not take.
    pub fn build_tuned(scenario: &Scenario, tuned: &[(&str, &str)]) -> Result<Self, LabError> {
        let client = first_host()?;
        let host = |name: &str| client.sibling(name).map_err(doing("cannot make one more network namespace"));
        let server = host("server")?;
        let relays = (0..scenario.paths.len())
            .map(|path| host(&format!("relay {}", path + 1)))
            .collect::<Result<Vec<_>, _>>()?;
        for host in relays.iter().chain([&client, &server]) {
            host.sysctl(SETTINGS, SETTINGS_OPTIONAL).map_err(doing("the lab's network"))?;
            host.sysctl(&[], tuned).map_err(doing("the lab's network"))?;
        }
        let mut links = Vec::new();
        for (path, (emulated, relay)) in scenario.paths.iter().zip(&relays).enumerate() {
            let near = client.tun(&format!("path{path}")).map_err(doing("a TUN device of the client"))?;
            let far = relay.tun("client").map_err(doing("a TUN device of a relay"))?;
            let shape = emulated.shape();
            let link = Link::start(&format!("lab-path{path}"), near, far, shape, shape, None)
                .map_err(doing("an emulated link"))?;
            links.push(link);
        }
        let has_mptcp = Path::new("/proc/sys/net/mptcp").exists();
        let paths = Arc::new(Paths::new(links, scenario.paths.clone()));
        let lab = Self { scenario: scenario.clone(), client, relays, server, paths, has_mptcp };
        lab.connect_hosts()?;
        lab.set_congctl(scenario.congctl())?;
        Ok(lab)
    }

    /// Devices and addresses; routes are [`Lab::set_congctl`]'s.
    fn connect_hosts(&self) -> Result<(), LabError> {
        let (mut client, mut server) = (Batch::default(), Batch::default());
        client.line("link set lo up");
        server.line("link set lo up");
        for path in 0..self.paths() {
            let mut relay = Batch::default();
            relay.line("link set lo up");
            relay.line(format!("link add server type veth peer name relay{path} netns $PEER"));
            relay.line(format!("link set client up txqueuelen {TUN_QUEUE_PACKETS}"));
            relay.line("link set server up");
            relay.line(format!("addr add {}/24 dev client noprefixroute", self.relay_address(path)));
            relay.line(format!("addr add {}/24 dev server", self.relay_back_address(path)));
            relay.line(format!("route add default via {} dev server", self.server_address(path)));
            relay.run(&self.relays[path], Some(self.server.net()))?;

            client.line(format!("link set path{path} up txqueuelen {TUN_QUEUE_PACKETS}"));
            let source = self.client_address(path);
            client.line(format!("addr add {source}/24 dev path{path} noprefixroute"));
            let table = TABLE_FIRST + path;
            client.line(format!("rule add from {source} table {table} priority {table}"));
            server.line(format!("link set relay{path} up"));
            server.line(format!("addr add {}/24 dev relay{path} noprefixroute", self.server_address(path)));
        }
        if self.has_mptcp {
            // The connection begins on any path; the client adds a subflow from each other address it has.
            let limits = format!("mptcp limits set subflows {0} add_addr_accepted {0}", self.paths());
            client.line(&limits);
            for path in 0..self.paths() {
                client
                    .line(format!("mptcp endpoint add {} dev path{path} subflow", self.client_address(path)));
            }
            server.line(&limits);
            let mut relay = Batch::default();
            relay.line(&limits);
            for host in &self.relays {
                relay.run(host, None)?;
            }
        }
        client.run(&self.client, None)?;
        server.run(&self.server, None)
    }

    /// What was built.
    pub fn scenario(&self) -> &Scenario {
        &self.scenario
    }

    /// Where the downstream and direct clients live.
    pub fn client(&self) -> &Host {
        &self.client
    }

    /// Where the root and the upstream live.
    pub fn server(&self) -> &Host {
        &self.server
    }

    /// The relay of a path, counted from 0.
    pub fn relay(&self, path: usize) -> &Host {
        &self.relays[path]
    }

    /// Number of paths.
    pub fn paths(&self) -> usize {
        self.paths.links.len()
    }

    /// The client's address on a path. A connection that is bound to it takes this path, whatever it connects to.
    pub fn client_address(&self, path: usize) -> IpAddr {
        address(18, path, 1)
    }

    /// The relay's address, as the client sees it.
    pub fn relay_address(&self, path: usize) -> IpAddr {
        address(18, path, 2)
    }

    /// The server's address on a path. A connection to it takes this path unless its source says otherwise.
    pub fn server_address(&self, path: usize) -> IpAddr {
        address(19, path, 1)
    }

    /// The links, by path. Forward is from the client to the server: requests; backward is what is downloaded.
    pub fn links(&self) -> &[Link] {
        &self.paths.links
    }

    /// What the links have done so far, by path: forward, backward.
    pub fn counters(&self) -> Vec<[Counters; 2]> {
        self.paths.links.iter().map(Link::stats).collect()
    }

    /// Whether kernel MPTCP is there and set up: endpoints, limits, routes.
    pub fn has_mptcp(&self) -> bool {
        self.has_mptcp
    }

    /// Sets the congestion control of connections that do not choose one (`congctl` of the routes), from now on.
    ///
    /// # Errors
    /// The kernel has no such congestion control.
    pub fn set_congctl(&self, name: &str) -> Result<(), LabError> {
        // Not asked before: the kernel loads a module when root sets such a route.
        self.replace_routes(name).map_err(|error| {
            let available = fs::read_to_string(CONTROLS_AVAILABLE).unwrap_or_default();
            no_congestion_control(name, &available).unwrap_or(error)
        })
    }

    fn replace_routes(&self, name: &str) -> Result<(), LabError> {
        let (mut client, mut server) = (Batch::default(), Batch::default());
        for path in 0..self.paths() {
            let (near, far) = (self.client_address(path), self.server_address(path));
            let (relay, relay_back) = (self.relay_address(path), self.relay_back_address(path));
            let mut back = Batch::default();
            back.line(format!("route replace {} dev client src {relay} congctl {name}", net(18, path)));
            back.run(&self.relays[path], None)?;

            let table = TABLE_FIRST + path;
            let device = format!("dev path{path} src {near} congctl {name}");
            client.line(format!("route replace {} {device}", net(18, path)));
            client.line(format!("route replace {} via {relay} {device}", net(19, path)));
            client.line(format!("route replace {} {device} table {table}", net(18, path)));
            client.line(format!("route replace default via {relay} {device} table {table}"));
            let device = format!("dev relay{path} src {far} congctl {name}");
            server.line(format!("route replace {} {device}", net(19, path)));
            server.line(format!("route replace {} via {relay_back} {device}", net(18, path)));
        }
        client.run(&self.client, None)?;
        server.run(&self.server, None)
    }

    /// The relay's address on the server's side.
    fn relay_back_address(&self, path: usize) -> IpAddr {
        address(19, path, 2)
    }

    /// Applies the change of one event now. It holds until the end of a [`Timeline`], if there is one.
    pub fn apply(&self, event: &Event) {
        self.paths.apply(event);
    }

    /// Starts the clock of the scenario's events. They stop, and the paths are as they were, when the guard is dropped.
    /// What happens to relays happens with [`Chain::play`](super::chain::Chain::play) only.
    pub fn play(&self) -> Timeline {
        self.play_with(Vec::new())
    }

    pub(super) fn play_with(&self, roles: Vec<Arc<RoleProcess>>) -> Timeline {
        Timeline::start(self.paths.clone(), roles, self.scenario.events.clone())
    }

    /// What keeps a lab from running on this machine, if anything does.
    pub fn missing() -> Option<LabError> {
        first_host().err()
    }
}

/// The client's host; before that, whatever can be found missing is looked for.
fn first_host() -> Result<Host, LabError> {
    if let Err(source) = OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        return Err(no_tun(source));
    }
    Host::new("client").map_err(|source| no_namespace(source, |path| fs::read_to_string(path).ok()))
}

fn no_tun(source: io::Error) -> LabError {
    let remedy = match source.kind() {
        io::ErrorKind::PermissionDenied => {
            "allow it to everybody, as most distributions do (chmod 0666 /dev/net/tun), or run as root"
        }
        _ => "load the module (modprobe tun); in a container, pass the device in (--device /dev/net/tun)",
    };
    LabError::Tun { source, remedy }
}

/// With the switch of the kernel's, as `read` from its file, that forbids namespaces to this user.
fn no_namespace(source: io::Error, read: impl Fn(&str) -> Option<String>) -> LabError {
    let is = |path: &str, value: &str| read(path).is_some_and(|text| text.trim() == value);
    let switch = if is("/proc/sys/user/max_user_namespaces", "0") {
        "sysctl user.max_user_namespaces is 0: set it to 1000"
    } else if is("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        "sysctl kernel.unprivileged_userns_clone is 0: set it to 1"
    } else if is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") {
        "sysctl kernel.apparmor_restrict_unprivileged_userns is 1: set it to 0"
    } else {
        "in a container, add the capabilities SYS_ADMIN and NET_ADMIN, or a seccomp profile that allows unshare"
    };
    LabError::Namespace { source, remedy: format!("run as root, or allow user namespaces ({switch})") }
}

/// If `name` is not among those that are `available`, which is what the file of the kernel says.
fn no_congestion_control(name: &str, available: &str) -> Option<LabError> {
    let mut all = available.split_whitespace();
    // No file, no verdict.
    let is_missing = !available.trim().is_empty() && !all.any(|one| one == name);
    is_missing.then(|| LabError::NoCongestionControl {
        name: name.to_owned(),
        available: available.split_whitespace().collect::<Vec<_>>().join(", "),
    })
}

fn doing(what: &'static str) -> impl FnOnce(io::Error) -> LabError {
    move |source| LabError::System { what: what.to_owned(), source }
}

/// Addresses are of 198.18.0.0/15, which is set aside for measuring network devices (RFC 2544): no private network, so
/// that Plait treats the peers as distant ones. 198.18.PATH.0/24 is between client and relay, 198.19.PATH.0/24 between
/// relay and server.
fn address(net: u8, path: usize, host: u8) -> IpAddr {
    // PATHS_MAX is far below.
    IpAddr::V4(Ipv4Addr::new(198, net, u8::try_from(path).unwrap_or(u8::MAX), host))
}

fn net(net: u8, path: usize) -> String {
    format!("{}/24", address(net, path, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the user reads where the kernel says `error` to a new namespace, and its switches stand like this.
    fn forbidden(switches: &[(&str, &str)]) -> String {
        let read = |path: &str| {
            let name = path.strip_prefix("/proc/sys/")?.replace('/', ".");
            switches.iter().find(|(switch, _)| *switch == name).map(|(_, value)| format!("{value}\n"))
        };
        no_namespace(io::Error::from_raw_os_error(libc::EPERM), read).to_string()
    }

    #[test]
    fn the_switch_that_forbids_namespaces_is_named() {
        for (switch, value, remedy) in [
            ("user.max_user_namespaces", "0", "user.max_user_namespaces is 0: set it to 1000"),
            ("kernel.unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone is 0: set it to 1"),
            (
                "kernel.apparmor_restrict_unprivileged_userns",
                "1",
                "kernel.apparmor_restrict_unprivileged_userns is 1: set it to 0",
            ),
        ] {
            let text = forbidden(&[(switch, value)]);
            let whole = format!(
                "cannot make a network namespace: Operation not permitted (os error 1); run as root, or allow user \
                 namespaces (sysctl {remedy})"
            );
            assert_eq!(text, whole);
        }
    }

    #[test]
    fn where_no_switch_forbids_namespaces_it_is_a_container() {
        let open = [
            ("user.max_user_namespaces", "1000"),
            ("kernel.unprivileged_userns_clone", "1"),
            ("kernel.apparmor_restrict_unprivileged_userns", "0"),
        ];
        for text in [forbidden(&open), forbidden(&[])] {
            assert!(text.contains("SYS_ADMIN and NET_ADMIN") && !text.contains("sysctl"), "{text}");
        }
    }

    #[test]
    fn a_device_that_is_closed_or_not_there_has_its_own_remedy() {
        let text = |code| no_tun(io::Error::from_raw_os_error(code)).to_string();
        let closed = text(libc::EACCES);
        assert!(closed.starts_with("cannot open /dev/net/tun: Permission denied"), "{closed}");
        assert!(closed.contains("chmod 0666 /dev/net/tun") && closed.contains("run as root"), "{closed}");
        for missing in [text(libc::ENOENT), text(libc::ENODEV)] {
            assert!(missing.contains("modprobe tun"), "{missing}");
            assert!(missing.contains("--device /dev/net/tun"), "{missing}");
        }
    }

    #[test]
    fn a_missing_congestion_control_is_named_with_its_module() {
        let text = no_congestion_control("bbr", "reno cubic\n").unwrap().to_string();
        assert!(text.contains("no congestion control bbr, only reno, cubic: "), "{text}");
        assert!(text.contains("modprobe tcp_bbr"), "{text}");
        // Something else was wrong.
        assert!(no_congestion_control("bbr", "reno bbr cubic\n").is_none());
        assert!(no_congestion_control("bbr", "").is_none());
    }
}
