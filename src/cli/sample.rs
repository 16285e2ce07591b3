//! The sample library that `plait up` serves when no directory is given.

use std::{io, path::PathBuf};

/// The library cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the sample library in {path}: {source} (name a directory with --dir)", path = .path.display())]
pub struct SampleError {
    path: PathBuf,
    source: io::Error,
}

/// The directory of the library; made at the first call.
pub(super) fn library() -> Result<PathBuf, SampleError> {
    let path = std::env::temp_dir().join("plait-sample");
    std::fs::create_dir_all(&path).map_err(|source| SampleError { path: path.clone(), source })?;
    Ok(path)
}
