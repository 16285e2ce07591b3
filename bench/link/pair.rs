//! Two hosts, each a network namespace, with one emulated link between them.
//!
//! In: shapes. Out: threads inside either host. Called by the bench and by the test of the link. Invariant: nothing is
//! left behind; namespaces and devices go with their descriptors.

use std::{
    fs::{self, File},
    io::{self, Write},
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, OwnedFd},
    process::{Command, Stdio},
    thread,
};

use plait::lab::{link::Link, shape::Shape, tun};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

/// The hosts' addresses: every pair has the same, in namespaces of its own.
pub const LEFT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub const RIGHT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// The same over IPv6: the IPv4 address in a private prefix.
pub fn v6(address: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d] = address.octets();
    Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
}

/// The link, and the hosts at its ends.
pub struct Pair {
    pub link: Link,
    pub left: Host,
    pub right: Host,
}

/// A network namespace, which lives as long as this descriptor.
pub struct Host(File);

impl Pair {
    /// Builds both hosts. Errors where the caller may not (no CAP_SYS_ADMIN) or `ip` is missing.
    pub fn build(name: &str, forward: Shape, backward: Shape, cpu: Option<usize>) -> io::Result<Self> {
        let (left, a) = Host::build(LEFT)?;
        let (right, b) = Host::build(RIGHT)?;
        let link = Link::start(name, a, b, forward, backward, cpu)?;
        Ok(Self { link, left, right })
    }
}

impl Host {
    fn build(address: Ipv4Addr) -> io::Result<(Self, OwnedFd)> {
        let build = || {
            // SAFETY: NEWNET alone touches no file descriptor table and no memory; the namespace is per thread.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
            let device = tun::open("wan")?;
            ip(&format!(
                "link set lo up\nlink set wan up txqueuelen 10000\n\
                 address add {address}/30 dev wan\naddress add {}/64 dev wan nodad\n",
                v6(address)
            ))?;
            for (name, value) in [
                ("tcp_rmem", "4096 131072 67108864"),
                ("tcp_wmem", "4096 16384 67108864"),
                ("tcp_no_metrics_save", "1"),
            ] {
                fs::write(format!("/proc/sys/net/ipv4/{name}"), value)?;
            }
            Ok((Self(File::open("/proc/thread-self/ns/net")?), device))
        };
        thread::scope(|scope| scope.spawn(build).join().expect("builds without a panic"))
    }

    /// Runs `work` on a thread inside this host.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("the namespace is ours");
            work()
        };
        thread::scope(|scope| {
            scope.spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

fn ip(batch: &str) -> io::Result<()> {
    let mut child = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn()?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(batch.as_bytes())?;
    }
    if child.wait()?.success() { Ok(()) } else { Err(io::Error::other("ip -batch failed")) }
}
