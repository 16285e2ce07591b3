//! In: the congestion control that a scenario wants. Out: the scenario, run by a thread that lives in a network
//! namespace of its own whose default is that control; or on the host's network, with the reason.
//!
//! Called by `main`. Invariant: only the calling scenario's thread (and what it starts) changes its network; the host's
//! settings are never written.

use std::fs;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::thread;

use rustix::thread::UnshareFlags;

const DEFAULT_CONTROL: &str = "/proc/sys/net/ipv4/tcp_congestion_control";

/// Where a scenario ran; printed above its table.
pub struct Network {
    /// What new sockets use for congestion control, as the kernel says.
    pub control: String,
    /// Why this is the host's network and not a namespace of its own.
    pub host_because: Option<String>,
}

impl Network {
    /// One line for the report.
    pub fn describe(&self) -> String {
        match &self.host_because {
            None => format!("own network namespace, {}", self.control),
            Some(reason) => format!("the host's network, {} (no namespace: {reason})", self.control),
        }
    }
}

/// Runs `work` in a fresh network namespace that has a loopback device and `control` as its default. Without the
/// right to make one (CAP_SYS_ADMIN), or on a kernel that refuses `control` there, runs it on the host's network.
pub fn run_in<T: Send>(control: &str, work: impl FnOnce(&Network) -> T + Send) -> T {
    let inside = thread::scope(|scope| {
        let worker = scope.spawn(|| match enter(control) {
            Ok(()) => Ok(work(&Network { control: default_control(), host_because: None })),
            Err(reason) => Err((reason, work)),
        });
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    inside.unwrap_or_else(|(reason, work)| {
        work(&Network { control: default_control(), host_because: Some(reason.to_string()) })
    })
}

/// The default of the calling thread's network.
fn default_control() -> String {
    fs::read_to_string(DEFAULT_CONTROL).map_or_else(|error| error.to_string(), |name| name.trim().to_owned())
}

/// Moves the calling thread into a new network namespace: unshare(2), `lo` up, default control set.
fn enter(control: &str) -> io::Result<()> {
    // SAFETY: NEWNET alone touches no file descriptor table and no memory; the namespace is per thread.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
    bring_loopback_up()?;
    // A namespace inherits the host's default, and a control that is no unprivileged user's choice may not be
    // written there even when it is already in force.
    if default_control() != control {
        fs::write(DEFAULT_CONTROL, control)?;
    }
    Ok(())
}

/// SIOCSIFFLAGS on `lo` (netdevice(7)): `ip` need not be installed.
fn bring_loopback_up() -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let mut name = [0; libc::IFNAMSIZ];
    name[0] = b'l' as libc::c_char;
    name[1] = b'o' as libc::c_char;
    let flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    let request =
        libc::ifreq { ifr_name: name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags } };
    // SAFETY: the kernel only reads one `ifreq`, which outlives the call; its name ends in NUL.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
