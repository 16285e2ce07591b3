//! A host of the lab: a network namespace that nothing but this process's descriptors keeps alive.
//!
//! In: commands, sockets and devices that are wanted inside. Out: the same, inside. Called by the topology, the chain
//! and the benchmark. Invariant: no file, name or process holds the namespace, so that it vanishes with the last
//! descriptor, also when this process is killed; and whatever runs inside is killed with this process.

use std::{
    ffi::{CString, OsStr},
    fs::File,
    io,
    net::{IpAddr, SocketAddr, TcpStream},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::PathBuf,
    process::Command,
    sync::Arc,
    time::Duration,
};

use rustix::{
    fs::{Mode, OFlags},
    process::{Pid, Signal, getppid, set_parent_process_death_signal},
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space},
};
use socket2::{Domain, Protocol, Socket, Type};

use super::{child, contain, tun};

/// The namespaces of one host.
#[derive(Debug)]
pub struct Host {
    name: String,
    net: Arc<OwnedFd>,
    /// The user namespace that owns it, unless we are root in our own.
    user: Option<Arc<OwnedFd>>,
}

impl Host {
    /// The first host of a lab. As root it gets a network namespace; otherwise, a user namespace of its own as well, in
    /// which we are root.
    ///
    /// # Errors
    /// The kernel allows neither.
    pub fn new(name: &str) -> io::Result<Self> {
        let direct = child::run(|| {
            unshare(UnshareFlags::NEWNET)?;
            Ok([Some(own("net")?), None])
        });
        let fds = match direct {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
                let (uids, gids) = (format!("0 {uid} 1"), format!("0 {gid} 1"));
                child::run(|| {
                    unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNET)?;
                    // Without this an unprivileged user may not map groups: user_namespaces(7).
                    write(c"/proc/self/setgroups", b"deny")?;
                    write(c"/proc/self/uid_map", uids.as_bytes())?;
                    write(c"/proc/self/gid_map", gids.as_bytes())?;
                    Ok([Some(own("net")?), Some(own("user")?)])
                })?
            }
            other => other?,
        };
        Self::of(name, fds, None)
    }

    /// One more host, owned by the same user.
    ///
    /// # Errors
    /// The kernel has no more namespaces for us (`user.max_net_namespaces`).
    pub fn sibling(&self, name: &str) -> io::Result<Self> {
        let fds = child::run(|| {
            self.enter_user()?;
            unshare(UnshareFlags::NEWNET)?;
            Ok([Some(own("net")?), None])
        })?;
        Self::of(name, fds, self.user.clone())
    }

    fn of(name: &str, fds: Vec<OwnedFd>, user: Option<Arc<OwnedFd>>) -> io::Result<Self> {
        let mut fds = fds.into_iter();
        let net = fds.next().ok_or_else(|| io::Error::other("the child made no namespace"))?;
        Ok(Self { name: name.to_owned(), net: Arc::new(net), user: fds.next().map(Arc::new).or(user) })
    }

    /// What errors and thread names call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether we are root here by a user namespace only.
    pub fn is_unprivileged(&self) -> bool {
        self.user.is_some()
    }

    /// Its network namespace.
    pub fn net(&self) -> BorrowedFd<'_> {
        self.net.as_fd()
    }

    /// A command that will run inside. It is killed when **the thread that starts it** ends, which is what the kernel
    /// offers (PR_SET_PDEATHSIG): start it from a thread that lives as long as the command is wanted.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let (net, user) = (self.net.clone(), self.user.clone());
        let parent = rustix::process::getpid();
        let enter = move || {
            enter_both(user.as_deref(), &net)?;
            die_with(Some(parent))
        };
        // SAFETY: the closure makes system calls only.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// The same, and whatever the command starts ends with it, in the background or not. The PID of the child is that
    /// of a process that waits for the command.
    pub fn contained(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.command(program);
        // SAFETY: it makes system calls only.
        unsafe { command.pre_exec(contain::contain) };
        command
    }

    /// Runs `work` in a forked child inside; see [`child::run`].
    ///
    /// # Errors
    /// Those of `work`.
    pub fn run(
        &self,
        work: impl FnOnce() -> io::Result<[Option<OwnedFd>; child::FDS_MAX]>,
    ) -> io::Result<Vec<OwnedFd>> {
        child::run(|| {
            enter_both(self.user.as_deref(), &self.net)?;
            work()
        })
    }

    fn make(&self, work: impl FnOnce() -> io::Result<OwnedFd>) -> io::Result<OwnedFd> {
        let mut fds = self.run(|| Ok([Some(work()?), None]))?;
        fds.pop().ok_or_else(|| io::Error::other("the child made nothing"))
    }

    /// A socket whose network is this host's, for use by this process. `protocol` may be MPTCP.
    ///
    /// # Errors
    /// Those of socket(2).
    pub fn socket(&self, domain: Domain, kind: Type, protocol: Option<Protocol>) -> io::Result<Socket> {
        self.make(|| Socket::new(domain, kind, protocol).map(OwnedFd::from)).map(Socket::from)
    }

    /// Connects from inside; from `source`, where given, which decides the path.
    ///
    /// # Errors
    /// Those of bind(2) and connect(2), or no answer after `limit`.
    pub fn connect(
        &self,
        source: Option<IpAddr>,
        target: SocketAddr,
        limit: Duration,
    ) -> io::Result<TcpStream> {
        let socket = self.socket(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
        if let Some(source) = source {
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        socket.connect_timeout(&target.into(), limit)?;
        Ok(socket.into())
    }

    /// A new TUN device inside, as [`tun::open`] makes it.
    ///
    /// # Errors
    /// Those of [`tun::open`].
    pub fn tun(&self, name: &str) -> io::Result<OwnedFd> {
        self.make(|| tun::open(name))
    }

    /// Writes settings of this host's network, keys as sysctl(8) names them. `optional` ones may be missing in a kernel.
    ///
    /// # Errors
    /// Those of open(2) and write(2), with the name of the key.
    pub fn sysctl(&self, settings: &[(&str, &str)], optional: &[(&str, &str)]) -> io::Result<()> {
        let path = |key: &str| CString::new(format!("/proc/sys/{}", key.replace('.', "/")));
        for (is_optional, list) in [(false, settings), (true, optional)] {
            for &(key, value) in list {
                let path = path(key)?;
                match self.run(|| write(&path, value.as_bytes()).map(|()| [None, None])) {
                    Err(error) if !(is_optional && error.kind() == io::ErrorKind::NotFound) => {
                        let text = format!("cannot set {key} of the lab's {} to {value}: {error}", self.name);
                        return Err(io::Error::new(error.kind(), text));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn enter_user(&self) -> io::Result<()> {
        match &self.user {
            Some(user) => Ok(move_into_link_name_space(user.as_fd(), Some(LinkNameSpaceType::User))?),
            None => Ok(()),
        }
    }
}

/// Lets `command` inherit `fd`, which stays open here as long as `command` exists. Returns the name by which the
/// command can open it.
///
/// # Errors
/// No descriptor is left.
pub fn inherit(command: &mut Command, fd: BorrowedFd<'_>) -> io::Result<PathBuf> {
    let fd = fd.try_clone_to_owned()?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    let keep = move || Ok(rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty())?);
    // SAFETY: the closure makes one system call, on a descriptor that it owns.
    unsafe { command.pre_exec(keep) };
    Ok(path)
}

fn enter_both(user: Option<&OwnedFd>, net: &OwnedFd) -> io::Result<()> {
    // In this order: being root in the user namespace is what gives the right to enter the other.
    if let Some(user) = user {
        move_into_link_name_space(user.as_fd(), Some(LinkNameSpaceType::User))?;
    }
    Ok(move_into_link_name_space(net.as_fd(), Some(LinkNameSpaceType::Network))?)
}

/// Asks the kernel for SIGKILL when the parent ends. After the namespaces: a change of rights clears it.
pub(super) fn die_with(parent: Option<Pid>) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have ended before that.
    if getppid() == parent { Ok(()) } else { Err(io::ErrorKind::Interrupted.into()) }
}

pub(super) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: these flags give the process new namespaces; they close nothing and unshare no descriptor table.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

/// A descriptor of a namespace of this process.
fn own(kind: &str) -> io::Result<OwnedFd> {
    let path: &std::ffi::CStr = if kind == "net" { c"/proc/self/ns/net" } else { c"/proc/self/ns/user" };
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

fn write(path: &std::ffi::CStr, text: &[u8]) -> io::Result<()> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    io::Write::write_all(&mut File::from(file), text)
}
