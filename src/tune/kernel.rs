//! `/proc/sys`, or a directory like it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::profile::{Setting, unspaced};

/// Where settings are read and written.
#[derive(Clone, Debug)]
pub struct Kernel {
    sysctl: PathBuf,
}

/// What this machine has for a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// What is asked for.
    Same,
    /// Something else.
    Other(String),
    /// The kernel, or this network namespace, has no such key.
    Missing,
}

impl Kernel {
    /// The running one.
    pub fn running() -> Self {
        Self::at(Path::new("/proc/sys"))
    }

    /// A directory that is laid out like `/proc/sys`.
    pub fn at(sysctl: &Path) -> Self {
        Self { sysctl: sysctl.to_owned() }
    }

    fn path(&self, key: &str) -> PathBuf {
        self.sysctl.join(key.replace('.', "/"))
    }

    /// Compares.
    ///
    /// # Errors
    /// Those of read(2), except that there is no such file.
    pub fn look(&self, setting: &Setting) -> io::Result<Found> {
        match fs::read_to_string(self.path(&setting.key)) {
            Ok(text) if unspaced(&text) == setting.value => Ok(Found::Same),
            Ok(text) => Ok(Found::Other(unspaced(&text))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Found::Missing),
            Err(error) => Err(error),
        }
    }

    /// Writes.
    ///
    /// # Errors
    /// Those of open(2) and write(2): EACCES and EPERM where the user may not, EINVAL for a value that this kernel does
    /// not take, ENOENT also for a queueing discipline or congestion control that it does not have.
    pub fn set(&self, setting: &Setting) -> io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).truncate(true).open(self.path(&setting.key))?;
        io::Write::write_all(&mut file, setting.value.as_bytes())
    }
}
