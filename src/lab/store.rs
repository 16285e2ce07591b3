//! A directory in memory that vanishes with the processes that use it.
//!
//! In: names and contents. Out: files below a descriptor. Called by the chain, for the file that is served and the key.
//! Invariant: the file system is mounted nowhere, so that nothing of it is left when this process is killed.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use rustix::{
    fs::{Mode, OFlags, mkdirat, openat},
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    },
    thread::UnshareFlags,
};

use super::host::{Host, unshare};

/// The directory.
#[derive(Debug)]
pub struct Store(OwnedFd);

impl Store {
    /// An empty one, for processes of `host`'s user.
    ///
    /// # Errors
    /// The kernel is older than 5.2 or allows no mounts here.
    pub fn new(host: &Host) -> io::Result<Self> {
        let mut fds = host.run(|| {
            // A user namespace gives rights over mount namespaces that are made inside only.
            unshare(UnshareFlags::NEWNS)?;
            let tmpfs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
            fsconfig_set_string(tmpfs.as_fd(), "mode", "0700")?;
            fsconfig_create(tmpfs.as_fd())?;
            let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
            Ok([Some(fsmount(tmpfs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?), None])
        })?;
        fds.pop().map(Self).ok_or_else(|| io::Error::other("no file system was made"))
    }

    /// A new directory `dir` with a file of `bytes` bytes that do not repeat within a frame, the same ones every time.
    ///
    /// # Errors
    /// It exists, or memory is short.
    pub fn generate(&self, dir: &str, name: &str, bytes: u64) -> io::Result<()> {
        mkdirat(&self.0, dir, Mode::RWXU)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let mut file = File::from(openat(&self.0, format!("{dir}/{name}"), flags, Mode::RUSR | Mode::WUSR)?);
        let mut random = fastrand::Rng::with_seed(bytes);
        let mut chunk = vec![0; 1 << 20];
        let mut left = bytes;
        while left > 0 {
            random.fill(&mut chunk);
            let part = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            file.write_all(&chunk[..part])?;
            left -= part as u64;
        }
        Ok(())
    }

    /// The directory.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// What this process calls `name`.
    pub fn path(&self, name: &str) -> PathBuf {
        use std::os::fd::AsRawFd;
        PathBuf::from(format!("/proc/self/fd/{}/{name}", self.0.as_raw_fd()))
    }
}
