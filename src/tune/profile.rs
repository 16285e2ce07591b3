//! The profiles of `tuning/`, in the format of sysctl.d(5).
//!
//! In: text. Out: keys and values. No I/O: the files are part of the binary.

use std::str::FromStr;

/// A named list of kernel settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// As the file in `tuning/` is called, without `.conf`.
    pub name: &'static str,
    /// The file: keys, values and, in comments, the reasons.
    pub text: &'static str,
}

/// One line of a profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// As sysctl(8) writes it, with dots.
    pub key: String,
    /// As the kernel shows it, with single spaces.
    pub value: String,
}

/// A line that sysctl.d(5) does not know.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: '{text}' is not of the form key = value")]
pub struct SyntaxError {
    /// From 1.
    line: usize,
    text: String,
}

/// All of them.
pub const PROFILES: &[Profile] = &[
    Profile { name: "wan-long-fat", text: include_str!("../../tuning/wan-long-fat.conf") },
    Profile { name: "wan-lossy", text: include_str!("../../tuning/wan-lossy.conf") },
    Profile { name: "lan-100g", text: include_str!("../../tuning/lan-100g.conf") },
    Profile { name: "edge-many-clients", text: include_str!("../../tuning/edge-many-clients.conf") },
];

impl Profile {
    /// What it sets, in the order of the file.
    pub fn settings(&self) -> Result<Vec<Setting>, SyntaxError> {
        parse(self.text)
    }
}

impl FromStr for Profile {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let names = || PROFILES.iter().map(|profile| profile.name).collect::<Vec<_>>().join(", ");
        let found = PROFILES.iter().find(|profile| profile.name == name).copied();
        found.ok_or_else(|| format!("there is no profile '{name}'; there are {}", names()))
    }
}

/// Reads lines of `key = value`; what begins with # or ; is a comment.
///
/// # Errors
/// Another line, or a key that could lead out of `/proc/sys`.
pub fn parse(text: &str) -> Result<Vec<Setting>, SyntaxError> {
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
    let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with(['#', ';']));
    lines
        .map(|(number, line)| {
            let setting = line.split_once('=').map(|(key, value)| (key.trim(), unspaced(value)));
            match setting {
                Some((key, value)) if is_key(key) && !value.is_empty() => {
                    Ok(Setting { key: key.to_owned(), value })
                }
                _ => Err(SyntaxError { line: number, text: line.to_owned() }),
            }
        })
        .collect()
}

/// The kernel separates numbers by tabs, people by spaces.
pub(super) fn unspaced(value: &str) -> String {
    value.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn is_key(key: &str) -> bool {
    let word = |word: &str| {
        !word.is_empty()
            && word
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b':' | b'@'))
    };
    key.contains('.') && key.split('.').all(word)
}
