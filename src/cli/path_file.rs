//! The paths of `--path` and `--path-file`, read at the start and again at SIGHUP.
//!
//! In: the flags. Out: sources of paths; and, for a set that is in use, the new one, in which a path that stays is the same
//! as before, with its lanes. Called by the command line. Invariant: a file that is wrong changes nothing.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::args::Paths;
use crate::{
    lanes::PathStatus,
    mp::manager::PathSet,
    net::{self, MptcpMissing},
    wire::{
        path_source::{PathSource, PathSourceError},
        route::{PathSpec, Transport},
    },
};

/// 64 KiB are a thousand paths; what is larger is some other file, and is not read.
const PATH_FILE_BYTES_MAX: u64 = 64 << 10;
/// Services that are looked up, all at once.
const SERVICES_MAX: usize = 16;

/// Why the paths cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PathsError {
    /// The file cannot be read.
    #[error("cannot read the path file {path}: {source} (change --path-file)", path = .path.display())]
    Read {
        /// What --path-file says.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// It is some other file.
    #[error("the path file {path} is larger than {PATH_FILE_BYTES_MAX} bytes", path = .path.display())]
    TooLarge {
        /// What --path-file says.
        path: PathBuf,
    },
    /// A line is no path.
    #[error("the path file {path}, line {line}: {source}", path = .path.display())]
    Line {
        /// What --path-file says.
        path: PathBuf,
        /// From 1 on.
        line: usize,
        /// What is wrong with it.
        source: PathSourceError,
    },
    /// Nothing but comments.
    #[error("the path file {path} names no path (write one a line, as --path takes it)", path = .path.display())]
    Empty {
        /// What --path-file says.
        path: PathBuf,
    },
    /// More questions at once than a start should wait for.
    #[error("{services} services are too many: name at most {SERVICES_MAX} by srv:")]
    TooManyServices {
        /// How many there are.
        services: usize,
    },
    /// A path that this host cannot dial must not silently become plain TCP.
    #[error("path {path}: {source}; or write it without mptcp:, one path for each way")]
    Mptcp {
        /// The path.
        path: PathSource,
        /// What is missing.
        source: MptcpMissing,
    },
}

/// All paths that the flags name, those of `--path` first.
///
/// # Errors
/// [`PathsError`]; none of them is to be used.
pub(super) fn read(flags: &Paths) -> Result<Vec<PathSource>, PathsError> {
    let mut sources = flags.path.clone();
    if let Some(file) = &flags.path_file {
        sources.extend(read_file(file)?);
        if sources.is_empty() {
            return Err(PathsError::Empty { path: file.clone() });
        }
    }
    match sources.iter().filter(|source| source.service().is_some()).count() {
        services if services > SERVICES_MAX => return Err(PathsError::TooManyServices { services }),
        _ => {}
    }
    if let Some(path) = sources.iter().find(|path| path.transport() == Transport::Mptcp) {
        net::mptcp_available().map_err(|source| PathsError::Mptcp { path: path.clone(), source })?;
    }
    Ok(sources)
}

fn read_file(path: &Path) -> Result<Vec<PathSource>, PathsError> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(PATH_FILE_BYTES_MAX + 1).read_to_string(&mut text))
        .map_err(|source| PathsError::Read { path: path.to_owned(), source })?;
    if text.len() as u64 > PATH_FILE_BYTES_MAX {
        return Err(PathsError::TooLarge { path: path.to_owned() });
    }
    PathSource::parse_lines(&text).map_err(|(line, source)| PathsError::Line {
        path: path.to_owned(),
        line,
        source,
    })
}

/// The set for `specs`: what is in `known` stays as it is.
pub(super) fn renewed(known: &PathSet, specs: Vec<PathSpec>) -> PathSet {
    let mut known = known.clone();
    specs
        .into_iter()
        .map(|spec| match known.iter().position(|path| *path.spec() == spec) {
            Some(index) => known.swap_remove(index),
            None => Arc::new(PathStatus::new(spec)),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn paths(dir: &tempfile::TempDir, text: &str) -> Result<Vec<String>, PathsError> {
        let file = dir.path().join("paths");
        fs::write(&file, text).unwrap();
        let lines = read_file(&file)?;
        Ok(lines.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_file_has_a_path_on_each_line() {
        let dir = tempfile::tempdir().unwrap();
        let lines = paths(&dir, "# mine\n\n  r1:7001,u:7000  # the first\r\ntcp:u:7000\n#r2:1\n").unwrap();
        assert_eq!(lines, ["r1:7001,u:7000", "u:7000"]);
        assert_eq!(paths(&dir, "").unwrap(), [""; 0]);
        assert!(matches!(paths(&dir, "u:1\n\nnonsense\n"), Err(PathsError::Line { line: 3, .. })));
        let long = "#".repeat(PATH_FILE_BYTES_MAX as usize + 1);
        assert!(matches!(paths(&dir, &long), Err(PathsError::TooLarge { .. })));
    }

    #[test]
    fn what_stays_is_the_same() {
        let specs = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        let before = renewed(&Vec::new(), specs(&["a:1", "b:1", "a:1"]));
        let after = renewed(&before, specs(&["c:1", "a:1", "b:1"]));
        assert!(Arc::ptr_eq(&after[1], &before[0]) && Arc::ptr_eq(&after[2], &before[1]));
        assert_eq!(after[0].name(), "c:1");
        let twice = renewed(&before, specs(&["a:1", "a:1", "a:1"]));
        assert_eq!(twice.iter().filter(|path| before.iter().any(|old| Arc::ptr_eq(old, path))).count(), 2);
    }
}
