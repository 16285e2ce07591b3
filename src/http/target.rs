//! From the target of a request to a path below the served directory.
//!
//! The root role and an upstream with `--root DIR` call it before they open the file with openat2 and
//! `RESOLVE_BENEATH`, which is the second wall (symbolic links); this is the first. Invariant: the path is relative,
//! and every component of it is a plain name, or it is `.` alone.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use http::StatusCode;
use percent_encoding::percent_decode;

use super::problem::{Problem, Side};

/// Why a target names no file, by the client's fault; the answer is 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Not origin-form.
    #[error("client: the path does not start with a slash")]
    NotAbsolute,
    /// `%` without two hexadecimal digits behind it.
    #[error("client: the path has a % that is not followed by two hexadecimal digits (write % as %25)")]
    Escape,
    /// NUL, encoded or not: no file name holds one.
    #[error("client: the path has a NUL byte")]
    Nul,
    /// `%2F`: no file name holds a slash, and proxies disagree about whether it separates.
    #[error("client: the path has an encoded slash (%2F)")]
    EncodedSlash,
    /// `..`, encoded or not.
    #[error("client: the path has a .. segment")]
    Parent,
}

impl TargetError {
    /// The answer for the client.
    pub fn problem(&self) -> Problem {
        Problem::from_error(StatusCode::BAD_REQUEST, Side::Client, self)
    }
}

/// Drops the query, decodes the percent escapes and returns the path relative to the served directory.
///
/// Empty and `.` segments collapse as they do in a file system, but a trailing slash stays, so that `/a.mp4/` does not
/// open `a.mp4`. Bytes need not be UTF-8; a backslash is a byte like any other. `/` gives `.`. Names longer than the
/// file system takes are left to the open call (ENAMETOOLONG is 404: there is no such file).
///
/// # Errors
/// See [`TargetError`].
pub fn relative_path(target: &str) -> Result<PathBuf, TargetError> {
    let path = target.split('?').next().unwrap_or(target);
    let path = path.strip_prefix('/').ok_or(TargetError::NotAbsolute)?;
    let mut relative = PathBuf::new();
    for segment in path.split('/') {
        check_escapes(segment.as_bytes())?;
        let decoded: Vec<u8> = percent_decode(segment.as_bytes()).collect();
        match decoded.as_slice() {
            b"" | b"." => continue,
            b".." => return Err(TargetError::Parent),
            name if name.contains(&0) => return Err(TargetError::Nul),
            name if name.contains(&b'/') => return Err(TargetError::EncodedSlash),
            _ => relative.push(OsString::from_vec(decoded)),
        }
    }
    if relative.as_os_str().is_empty() {
        relative.push(".");
    } else if path.ends_with('/') {
        relative.push("");
    }
    Ok(relative)
}

/// percent_encoding leaves a malformed escape as it is; two readers could then disagree about the name.
fn check_escapes(segment: &[u8]) -> Result<(), TargetError> {
    let mut rest = segment;
    while let Some(at) = rest.iter().position(|&byte| byte == b'%') {
        match rest[at + 1..] {
            [high, low, ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => rest = &rest[at + 3..],
            _ => return Err(TargetError::Escape),
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "target_tests.rs"]
mod tests;
