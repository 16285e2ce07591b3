//! Everything that a command starts ends with it.
//!
//! Called between fork and exec of a command, by [`Host::contained`](super::host::Host::contained): a shell has
//! children of its own, which would keep a namespace alive after it. Invariant: system calls only.

use std::io;

use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    process::{Pid, WaitOptions, waitpid},
    thread::UnshareFlags,
};

use super::host::{die_with, unshare};

/// Makes the caller's future program the first process of a PID namespace: when it ends, the kernel kills the others.
/// The caller's own process stays behind, waits for it, and ends with its status.
///
/// # Errors
/// No such namespace, or no process.
pub(super) fn contain() -> io::Result<()> {
    unshare(UnshareFlags::NEWPID | UnshareFlags::NEWNS)?;
    // SAFETY: this process has one thread, a copy of the one that called fork before; both copies go on with system
    // calls only.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // The parent is outside of this namespace, where it has no number.
            die_with(None)?;
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
            // In a container /proc may be masked, and then not be mounted anew: ps(1) fails, nothing else.
            let _ = mount("proc", "/proc", "proc", MountFlags::NOSUID | MountFlags::NODEV, None);
            Ok(())
        }
        pid => stay_behind(pid),
    }
}

fn stay_behind(pid: i32) -> ! {
    // SAFETY: closes what belongs to the program (whoever waits for its exec or its output must not wait for this
    // process), lets the keyboard's signals reach the program alone, and leaves without running the parent's handlers.
    unsafe {
        libc::close_range(0, libc::c_uint::MAX, 0);
        for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGTSTP] {
            libc::signal(signal, libc::SIG_IGN);
        }
    }
    let status = loop {
        match waitpid(Pid::from_raw(pid), WaitOptions::empty()) {
            Ok(Some((_, status))) => {
                break status.exit_status().unwrap_or(128 + status.terminating_signal().unwrap_or(0));
            }
            Err(rustix::io::Errno::INTR) => {}
            _ => break 1,
        }
    };
    // SAFETY: ends this process.
    unsafe { libc::_exit(status) }
}
