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
    io,
    net::{IpAddr, Ipv4Addr},
};

use super::{
    host::Host,
    link::Link,
    scenario::{Event, Scenario},
    shape::Counters,
};

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
    links: Vec<Link>,
}

impl Lab {
    /// Builds the network of `scenario`. Its events wait for [`Lab::play`].
    ///
    /// # Errors
    /// Something is missing on this machine; the text says what, and what to do.
    pub fn build(scenario: &Scenario) -> Result<Self, LabError> {
        let _ = scenario;
        Err(LabError::Program("not built yet".into()))
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
        self.links.len()
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
        &self.links
    }

    /// What the links have done so far, by path: forward, backward.
    pub fn counters(&self) -> Vec<[Counters; 2]> {
        self.links.iter().map(Link::stats).collect()
    }

    /// Whether kernel MPTCP is there and set up: endpoints, limits, routes.
    pub fn has_mptcp(&self) -> bool {
        false
    }

    /// Sets the congestion control of connections that do not choose one (`congctl` of the routes), from now on.
    ///
    /// # Errors
    /// The kernel has no such congestion control.
    pub fn set_congctl(&self, name: &str) -> Result<(), LabError> {
        let _ = name;
        Ok(())
    }

    /// Applies the change of one event now.
    pub fn apply(&self, event: &Event) {
        let _ = event;
    }

    /// Starts the clock of the scenario's events. They stop, and the paths are as they were, when the guard is dropped.
    pub fn play(&self) -> Timeline<'_> {
        Timeline { lab: self }
    }
}

/// Events that are happening.
#[derive(Debug)]
pub struct Timeline<'a> {
    lab: &'a Lab,
}

impl Drop for Timeline<'_> {
    fn drop(&mut self) {
        let _ = self.lab;
    }
}

/// Addresses are of 198.18.0.0/15, which is set aside for measuring network devices (RFC 2544): no private network, so
/// that Plait treats the peers as distant ones.
fn address(net: u8, path: usize, host: u8) -> IpAddr {
    // PATHS_MAX is far below.
    IpAddr::V4(Ipv4Addr::new(198, net, u8::try_from(path).unwrap_or(u8::MAX), host))
}
