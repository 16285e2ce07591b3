//! Key files: the only part of `wire` that touches the system.
//!
//! In: a path. Out: its [`Key`]s, or a new file with one. Called by every role at start and at SIGHUP, and by `plait
//! keygen`. Invariants: a key that others could have read or replaced is not used; an existing file is never overwritten,
//! but for a rotation, which replaces it as a whole and keeps the key that is in use.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::key::{KEY_BYTES, KEYS_MAX, Key, KeyError};

/// 4 KiB: a key file has 77 bytes, or twice that; what is larger is some other file, and is not read.
const MAX_KEY_FILE_BYTES: u64 = 4096;

/// Read or write permission for group or others (chmod(1)).
const SHARED_ACCESS: u32 = 0o066;
/// The same for a credential that the service manager has handed over (systemd.exec(5), LoadCredential=): what looks like a
/// group's permission to read is the mask of an access list that names one user.
const SHARED_ACCESS_CREDENTIAL: u32 = 0o026;

/// What would let others read or change the file, in the directory that the service manager made, or elsewhere.
fn shared_access(path: &Path, credentials: Option<&OsStr>) -> u32 {
    let is_credential =
        credentials.is_some_and(|dir| !dir.is_empty() && path.parent() == Some(Path::new(dir)));
    if is_credential { SHARED_ACCESS_CREDENTIAL } else { SHARED_ACCESS }
}

/// A key that cannot be used or made. All are settings for a person to mend: name the file, the cause and the remedy.
#[derive(Debug, Error)]
pub enum KeyFileError {
    /// The file cannot be opened or read.
    #[error("cannot read the key file {path}: {source}{}", if source.kind() == io::ErrorKind::NotFound { " (make it with `plait keygen FILE` and copy it to every host)" } else { "" })]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A directory, a device, a FIFO.
    #[error("the key file {path} is not a regular file (make one with `plait keygen FILE`)")]
    NotRegular {
        /// The file.
        path: PathBuf,
    },
    /// Group or others may read or write it.
    #[error("the key file {path} has mode {mode:04o}: others can read or change it (run `chmod 600 {path}`)")]
    Shared {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// More than 4 KiB.
    #[error(
        "the file {path} is larger than {MAX_KEY_FILE_BYTES} bytes, so it is no key file (make one with `plait keygen FILE`)"
    )]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// Its text is no key.
    #[error("the key file {path} cannot be used: {source}")]
    Text {
        /// The file.
        path: PathBuf,
        /// What is wrong with the text.
        source: KeyError,
    },
    /// The new file cannot be written.
    #[error("cannot make the key file {path}: {source}{}", if source.kind() == io::ErrorKind::AlreadyExists { " (an old key is never overwritten: name another file, or remove this one)" } else { "" })]
    Create {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A rotation that is not finished.
    #[error(
        "the key file {path} has two keys already: remove the old one first (`plait keygen --drop-old {path}`), once every host uses the new one"
    )]
    TwoKeys {
        /// The file.
        path: PathBuf,
    },
    /// The system has no randomness to give.
    #[error("cannot make a key: the system gives no random bytes: {0}")]
    Random(#[from] getrandom::Error),
}

impl Key {
    /// Makes a new key of the system's randomness (getrandom(2)).
    pub fn generate() -> Result<Self, KeyFileError> {
        let mut bytes = [0; KEY_BYTES];
        getrandom::fill(&mut bytes)?;
        Ok(Self::from_bytes(bytes))
    }

    /// Reads the keys in the file `path`, which may be a symbolic link: the newest first, at least one. Blocks on the file
    /// system: not for a core.
    pub fn load_all(path: &Path) -> Result<Vec<Self>, KeyFileError> {
        let read_error = |source| KeyFileError::Read { path: path.to_owned(), source };
        // O_NONBLOCK: opening a FIFO would wait for a writer before its type could be refused. All checks are made on
        // the open file, so that it cannot be exchanged between check and use.
        let file =
            OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(read_error)?;
        let metadata = file.metadata().map_err(read_error)?;
        if !metadata.is_file() {
            return Err(KeyFileError::NotRegular { path: path.to_owned() });
        }
        let mode = metadata.mode() & 0o7777;
        let credentials = std::env::var_os("CREDENTIALS_DIRECTORY");
        if mode & shared_access(path, credentials.as_deref()) != 0 {
            return Err(KeyFileError::Shared { path: path.to_owned(), mode });
        }
        let mut text = Vec::new();
        file.take(MAX_KEY_FILE_BYTES + 1).read_to_end(&mut text).map_err(read_error)?;
        if text.len() as u64 > MAX_KEY_FILE_BYTES {
            return Err(KeyFileError::TooLarge { path: path.to_owned() });
        }
        let text_error = |source| KeyFileError::Text { path: path.to_owned(), source };
        let text = std::str::from_utf8(&text).map_err(|_| text_error(KeyError::NotAKeyFile))?;
        Key::parse_all(text).map_err(text_error)
    }

    /// Writes the key to the new file `path`, which only its owner can read (mode 0600) and which must not exist yet.
    pub fn save_new(&self, path: &Path) -> Result<(), KeyFileError> {
        let create_error = |source| KeyFileError::Create { path: path.to_owned(), source };
        let file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(create_error)?;
        write_and_sync(file, &self.to_text()).map_err(|source| {
            // The half-written file is ours, and it would refuse the next try. Whether it goes is not worth a second error.
            let _ = std::fs::remove_file(path);
            create_error(source)
        })
    }
}

/// Puts a new key before the one in the file `path`: from now on it is used for dialling, and both are accepted.
///
/// # Errors
/// [`KeyFileError`]; the file is as it was.
pub fn add_key(path: &Path) -> Result<(), KeyFileError> {
    let old = Key::load_all(path)?;
    if old.len() >= KEYS_MAX {
        return Err(KeyFileError::TwoKeys { path: path.to_owned() });
    }
    let texts = std::iter::once(&Key::generate()?).chain(&old).map(Key::to_text).collect::<String>();
    replace(path, &texts)
}

/// Removes the old key from the file `path`, if it has two.
///
/// # Errors
/// [`KeyFileError`]; the file is as it was.
pub fn drop_old_key(path: &Path) -> Result<(), KeyFileError> {
    let keys = Key::load_all(path)?;
    replace(path, &keys[0].to_text())
}

/// Writes `text` beside the file and puts it in its place with one rename(2): a reader finds the old or the new one, whole.
fn replace(path: &Path, text: &str) -> Result<(), KeyFileError> {
    let create_error = |source| KeyFileError::Create { path: path.to_owned(), source };
    // The file itself, not a link to it.
    let target = path.canonicalize().map_err(create_error)?;
    let mut beside = target.clone().into_os_string();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let owner = std::fs::metadata(&target).map_err(create_error)?;
    let written = || {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
        // A role that runs as another user than who rotates must still be able to read it.
        std::os::unix::fs::fchown(&file, Some(owner.uid()), Some(owner.gid()))?;
        write_and_sync(file, text)?;
        std::fs::rename(&beside, &target)
    };
    written().map_err(|source| {
        if source.kind() != io::ErrorKind::AlreadyExists {
            let _ = std::fs::remove_file(&beside);
        }
        KeyFileError::Create { path: beside.clone(), source }
    })
}

fn write_and_sync(mut file: File, text: &str) -> io::Result<()> {
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn key_file(dir: &tempfile::TempDir, text: impl AsRef<[u8]>, mode: u32) -> PathBuf {
        let path = dir.path().join("key");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn a_saved_key_loads_and_only_its_owner_can_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let key = Key::generate().unwrap();
        key.save_new(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(Key::load_all(&path).unwrap()[0].to_text(), key.to_text());
        let link = dir.path().join("link");
        symlink(&path, &link).unwrap();
        assert_eq!(Key::load_all(&link).unwrap()[0].to_text(), key.to_text());
        assert_ne!(Key::generate().unwrap().to_text(), key.to_text());
    }

    #[test]
    fn a_rotation_keeps_the_key_in_use_and_the_files_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = key_file(&dir, Key::from_bytes([7; KEY_BYTES]).to_text(), 0o600);
        let link = dir.path().join("link");
        symlink(&path, &link).unwrap();
        let texts = || Key::load_all(&path).unwrap().iter().map(Key::to_text).collect::<Vec<_>>();
        let old = texts();
        add_key(&link).unwrap();
        let both = texts();
        assert_eq!((both.len(), &both[1]), (2, &old[0]));
        assert!(matches!(add_key(&path), Err(KeyFileError::TwoKeys { .. })));
        assert_eq!(texts(), both);
        drop_old_key(&path).unwrap();
        assert_eq!(texts(), both[..1]);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(link.is_symlink());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left beside");
    }

    #[test]
    fn an_existing_file_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = key_file(&dir, "precious", 0o600);
        let error = Key::generate().unwrap().save_new(&path).unwrap_err();
        assert!(error.to_string().contains("never overwritten"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_key_that_others_can_reach_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let text = Key::from_bytes([7; KEY_BYTES]).to_text();
        for mode in [0o640, 0o604, 0o620, 0o602, 0o666] {
            let error = Key::load_all(&key_file(&dir, &text, mode)).unwrap_err();
            assert!(matches!(error, KeyFileError::Shared { mode: m, .. } if m == mode), "{mode:o}: {error}");
            let message = error.to_string();
            assert!(message.contains(&format!("{mode:04o}")) && message.contains("chmod 600"), "{message}");
        }
        assert!(Key::load_all(&key_file(&dir, &text, 0o600)).is_ok());
        assert!(Key::load_all(&key_file(&dir, &text, 0o400)).is_ok());
    }

    #[test]
    fn what_is_no_key_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Key::load_all(dir.path()), Err(KeyFileError::NotRegular { .. })));
        let missing = Key::load_all(&dir.path().join("missing")).unwrap_err().to_string();
        assert!(missing.contains("plait keygen FILE"), "{missing}");
        let mut text = Key::from_bytes([7; KEY_BYTES]).to_text();
        text.push_str(&" ".repeat(4096 - text.len()));
        assert!(Key::load_all(&key_file(&dir, &text, 0o600)).is_ok());
        text.push(' ');
        let error = Key::load_all(&key_file(&dir, &text, 0o600)).unwrap_err();
        assert!(matches!(error, KeyFileError::TooLarge { .. }), "{error}");
        for text in [&b"hello"[..], b"\xff\xfe", b""] {
            let error = Key::load_all(&key_file(&dir, text, 0o600)).unwrap_err();
            assert!(matches!(error, KeyFileError::Text { .. }), "{error}");
            assert!(error.to_string().contains("plait keygen FILE"), "{error}");
        }
    }

    #[test]
    fn a_fifo_is_refused_without_waiting_for_a_writer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        assert!(matches!(Key::load_all(&path), Err(KeyFileError::NotRegular { .. })));
    }
}
