//! Opens what a request names, and nothing outside the directory that is served.
//!
//! In: the directory and a decoded, relative path. Out: a regular file with its length and age, or the reason why there
//! is none. Called by the root role and by an upstream that reads files itself.
//!
//! Invariant: every path is resolved beneath the directory, so that neither `..` nor a symbolic link leads out, whoever
//! changes the tree meanwhile: by the kernel (openat2(2), RESOLVE_BENEATH), or step by step where a sandbox refuses
//! openat2, as systemd's DynamicUser= does. Links inside the tree work if they are relative.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    time::{Duration, SystemTime},
};

use cap_primitives::fs::{OpenOptions, OpenOptionsExt};
use http::StatusCode;
use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, fstat, openat2, statat},
    io::Errno,
};

use crate::{
    http::{
        file_response::FileFacts,
        problem::{Problem, Side},
    },
    net::{Tally, Told},
};

/// What a directory answers with.
pub const INDEX: &str = "index.html";
/// How often a path is resolved again when the tree changed meanwhile: openat2(2) answers EAGAIN then, and one more
/// try nearly always succeeds.
const RESOLVE_TRIES: u32 = 8;

/// A regular file, open for reading.
#[derive(Debug)]
pub struct OpenFile {
    /// The open file.
    pub fd: OwnedFd,
    /// Its length and age when it was opened.
    pub facts: FileFacts,
    /// The directory answered with its index page, which decides the content type.
    pub is_index: bool,
}

/// Why a path gives no file. The texts follow the name of the side at fault; see [`OpenError::problem`].
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Nothing there, nothing that is a file, or something outside the directory.
    #[error("the root has no such file (check the address)")]
    NotFound,
    /// A directory with an index page was named without its slash: relative links would lead astray.
    #[error("this is a directory: its address ends in a slash")]
    LacksSlash,
    /// The process may not read it.
    #[error("it may not read this file (check the permissions)")]
    Forbidden,
    /// The process has no descriptor or memory left, or the tree changes faster than a path can be resolved.
    #[error("it cannot open a file now: {0} (too many open files: raise `ulimit -n` there)")]
    Exhausted(io::Error),
    /// The disk or the kernel failed.
    #[error("it cannot read this file: {0}")]
    Broken(io::Error),
}

/// Opens the directory that is served.
///
/// # Errors
/// Names the directory: it does not exist, or is no directory.
pub fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let named = |error: Errno| {
        let error = io::Error::from(error);
        io::Error::new(error.kind(), format!("cannot serve {}: {error}", path.display()))
    };
    let dir = rustix::fs::open(path, flags, Mode::empty()).map_err(named)?;
    // What refuses every path is found out here and not at the first request.
    beneath(dir.as_fd(), Path::new("."), flags).map_err(named)?;
    Ok(dir)
}

/// Opens `path`, as [`relative_path`](crate::http::target::relative_path) gives it, beneath `dir`. The path `.` and one
/// that ends in a slash name a directory's index page.
///
/// # Errors
/// [`OpenError`] tells what a client is to be told.
pub fn open(dir: BorrowedFd<'_>, path: &Path) -> Result<OpenFile, OpenError> {
    open_by(beneath, dir, path)
}

/// A way to resolve a path.
type Way = fn(BorrowedFd<'_>, &Path, OFlags) -> Result<OwnedFd, Errno>;

fn open_by(way: Way, dir: BorrowedFd<'_>, path: &Path) -> Result<OpenFile, OpenError> {
    let bytes = path.as_os_str().as_encoded_bytes();
    let wants_index = bytes == b"." || bytes.ends_with(b"/");
    let named = if wants_index { path.join(INDEX) } else { path.to_owned() };
    // O_NONBLOCK, because opening a FIFO would wait for its writer; regular files ignore it.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = way(dir, &named, flags)?;
    let stat = fstat(&fd)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        FileType::Directory if !wants_index && statat(&fd, INDEX, AtFlags::empty()).is_ok() => {
            return Err(OpenError::LacksSlash);
        }
        _ => return Err(OpenError::NotFound),
    }
    Ok(OpenFile {
        fd,
        facts: FileFacts {
            len: u64::try_from(stat.st_size).unwrap_or(0),
            modified: time(stat.st_mtime, stat.st_mtime_nsec as u64),
        },
        is_index: wants_index,
    })
}

fn beneath(dir: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let mut outcome = Err(Errno::AGAIN);
    for _ in 0..RESOLVE_TRIES {
        outcome = openat2(dir, path, flags, Mode::empty(), resolve);
        match outcome {
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(Errno::NOSYS) => return step_by_step(dir, path, flags),
            _ => break,
        }
    }
    outcome
}

/// The same with a system call for each part of the path.
fn step_by_step(dir: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let dir = File::from(dir.try_clone_to_owned().map_err(errno)?);
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(flags.bits().cast_signed());
    cap_primitives::fs::open(&dir, path, &options).map(OwnedFd::from).map_err(errno)
}

/// What leads out of the directory has no number.
fn errno(error: io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::XDEV, Errno::from_raw_os_error)
}

/// Logs what keeps `path` from being sent, if that is the host's fault: now and then, since clients ask as often as they like.
pub fn complain(error: &OpenError, path: &Path) {
    static UNSENT: Tally = Tally::new();
    if !matches!(error, OpenError::Exhausted(_) | OpenError::Broken(_)) {
        return;
    }
    if let Some(Told { since, .. }) = UNSENT.count() {
        tracing::warn!(path = %path.display(), since, "a file cannot be sent: {error}");
    }
}

impl OpenError {
    /// What the client is told. A role that can redirect handles [`OpenError::LacksSlash`] before.
    pub fn problem(&self) -> Problem {
        let (status, side) = match self {
            OpenError::NotFound | OpenError::LacksSlash => (StatusCode::NOT_FOUND, Side::Client),
            OpenError::Forbidden => (StatusCode::FORBIDDEN, Side::Root),
            OpenError::Exhausted(_) => (StatusCode::SERVICE_UNAVAILABLE, Side::Root),
            OpenError::Broken(_) => (StatusCode::INTERNAL_SERVER_ERROR, Side::Root),
        };
        Problem::new(status, side, self)
    }
}

impl From<Errno> for OpenError {
    fn from(error: Errno) -> Self {
        match error {
            // XDEV: the path leads out of the directory. NXIO: a socket, or a device without a driver. INVAL: a name
            // that this file system cannot hold.
            Errno::NOENT
            | Errno::NOTDIR
            | Errno::XDEV
            | Errno::LOOP
            | Errno::NAMETOOLONG
            | Errno::NXIO
            | Errno::NODEV
            | Errno::INVAL => OpenError::NotFound,
            Errno::ACCESS | Errno::PERM => OpenError::Forbidden,
            Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN => OpenError::Exhausted(error.into()),
            error => OpenError::Broken(error.into()),
        }
    }
}

fn time(seconds: i64, nanoseconds: u64) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let start = if seconds < 0 { SystemTime::UNIX_EPOCH - whole } else { SystemTime::UNIX_EPOCH + whole };
    start + Duration::from_nanos(nanoseconds)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::{fd::AsFd, unix::fs::symlink, unix::net::UnixListener},
    };

    use super::*;

    #[test]
    fn only_regular_files_beneath_the_directory_are_opened() {
        let outer = tempfile::tempdir().unwrap();
        let tree = outer.path().join("tree");
        fs::create_dir_all(tree.join("sub/empty")).unwrap();
        fs::write(outer.path().join("secret"), "secret").unwrap();
        fs::write(tree.join("film.mp4"), "0123456789").unwrap();
        fs::write(tree.join("sub/index.html"), "page").unwrap();
        fs::write(tree.join("a b\n\u{e4}"), "odd").unwrap();
        symlink("../film.mp4", tree.join("sub/inside")).unwrap();
        symlink("sub", tree.join("dirlink")).unwrap();
        symlink("../secret", tree.join("out")).unwrap();
        symlink(outer.path().join("secret"), tree.join("out-absolute")).unwrap();
        symlink("..", tree.join("up")).unwrap();
        symlink("loop", tree.join("loop")).unwrap();
        symlink("/proc/self/cwd", tree.join("magic")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            tree.join("fifo"),
            FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let _socket = UnixListener::bind(tree.join("socket")).unwrap();
        let dir = open_directory(&tree).unwrap();
        let outcome = |path: &str, way: Way| match open_by(way, dir.as_fd(), Path::new(path)) {
            Ok(file) => format!("{} bytes", file.facts.len),
            Err(error) => format!("{error:?}"),
        };
        let too_long = "n".repeat(300);
        for (path, wanted) in [
            ("film.mp4", "10 bytes"),
            ("sub/", "4 bytes"),
            ("sub/inside", "10 bytes"),
            ("sub/../film.mp4", "10 bytes"),
            ("dirlink/index.html", "4 bytes"),
            ("a b\n\u{e4}", "3 bytes"),
            ("sub", "LacksSlash"),
            ("sub/empty", "NotFound"),
            ("sub/empty/", "NotFound"),
            (".", "NotFound"),
            ("film.mp4/", "NotFound"),
            ("film.mp4/x", "NotFound"),
            ("missing", "NotFound"),
            ("../secret", "NotFound"),
            ("/etc/passwd", "NotFound"),
            ("sub/../../secret", "NotFound"),
            ("out", "NotFound"),
            ("out-absolute", "NotFound"),
            ("up/secret", "NotFound"),
            ("loop", "NotFound"),
            ("magic/film.mp4", "NotFound"),
            ("fifo", "NotFound"),
            ("socket", "NotFound"),
            (&too_long, "NotFound"),
        ] {
            for (way, named) in [(beneath as Way, "at once"), (step_by_step, "step by step")] {
                assert_eq!(outcome(path, way), wanted, "{path:?} {named}");
            }
        }
    }

    #[test]
    fn a_directory_that_cannot_be_served_is_named() {
        let error = open_directory(Path::new("/no/such/tree")).unwrap_err();
        assert!(error.to_string().starts_with("cannot serve /no/such/tree: No such file"), "{error}");
    }

    #[test]
    fn errors_of_the_kernel_become_answers() {
        for (error, answer) in [
            (Errno::NOENT, "client: the root has no such file (check the address) (404)"),
            (Errno::ACCESS, "root: it may not read this file (check the permissions) (403)"),
            (Errno::IO, "root: it cannot read this file: Input/output error (os error 5) (500)"),
        ] {
            assert_eq!(OpenError::from(error).problem().to_string(), answer);
        }
        assert_eq!(OpenError::from(Errno::MFILE).problem().status, StatusCode::SERVICE_UNAVAILABLE);
    }

    #[test]
    fn times_before_1970_are_kept() {
        assert_eq!(time(-1, 500_000_000), SystemTime::UNIX_EPOCH - Duration::from_millis(500));
    }
}
