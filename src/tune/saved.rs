//! What the kernel had before a profile was applied.
//!
//! The file is one of sysctl.d(5): `sysctl -p FILE` restores it, too.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use super::profile::{Setting, SyntaxError, parse};

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    /// Reading or writing failed.
    #[error("{path}: {source} (name another file with --saved)", path = .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// Somebody changed it.
    #[error("{path}: {source}", path = .path.display())]
    Syntax {
        /// Which.
        path: PathBuf,
        /// Where.
        source: SyntaxError,
    },
}

/// What the file says; nothing if there is none.
///
/// # Errors
/// It cannot be read, or is no list of settings.
pub fn load(path: &Path) -> Result<Vec<Setting>, SavedError> {
    match fs::read_to_string(path) {
        Ok(text) => parse(&text).map_err(|source| SavedError::Syntax { path: path.to_owned(), source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(SavedError::File { path: path.to_owned(), source }),
    }
}

/// Adds `found` to the file. A key that it has already stays: what an earlier profile set is not what was there before.
///
/// # Errors
/// It cannot be read or written; then it is as it was.
pub fn add(path: &Path, found: &[Setting]) -> Result<(), SavedError> {
    let mut all = load(path)?;
    for setting in found {
        if !all.iter().any(|saved| saved.key == setting.key) {
            all.push(setting.clone());
        }
    }
    let mut text =
        String::from("# What the kernel had before `plait tune apply`; `plait tune revert` restores it.\n");
    for Setting { key, value } in &all {
        text += &format!("{key} = {value}\n");
    }
    replace(path, &text).map_err(|source| SavedError::File { path: path.to_owned(), source })
}

/// All or nothing, also when the power fails.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(dir)?;
    let new = path.with_extension("new");
    // 0644: the values are no secret, and nobody else may say what root restores.
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    fs::File::open(dir)?.sync_all()
}

/// Ends what [`add`] began: everything is restored.
///
/// # Errors
/// Those of unlink(2).
pub fn forget(path: &Path) -> Result<(), SavedError> {
    fs::remove_file(path).map_err(|source| SavedError::File { path: path.to_owned(), source })
}
