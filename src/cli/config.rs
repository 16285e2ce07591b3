//! `--config FILE`: settings of a command from a TOML file, under the names of the flags.
//!
//! In: the arguments of the process, and the file that they name. Out: the arguments with those of the file behind them.
//! Called before the arguments are parsed. Invariants: what is said by a flag or the environment wins; a key that is no flag
//! of the command is an error.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use clap::{ArgMatches, CommandFactory, parser::ValueSource};

use super::args::Arguments;

/// 64 KiB: what is larger is some other file, and is not read.
const CONFIG_BYTES_MAX: u64 = 64 << 10;
/// A key that is no nearer to a flag's name than this is not taken for a slip of the pen.
const SIMILAR_MIN: f64 = 0.7;
/// What a file cannot say: it would be another file, or no start.
const NOT_IN_FILES: [&str; 3] = ["config", "help", "version"];

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read {path}: {source} (change --config)", path = .path.display())]
    Read {
        /// What --config says.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// It is some other file.
    #[error("{path} is larger than {CONFIG_BYTES_MAX} bytes (change --config)", path = .path.display())]
    TooLarge {
        /// What --config says.
        path: PathBuf,
    },
    /// It is no TOML.
    #[error("{path}: {source}", path = .path.display())]
    Syntax {
        /// What --config says.
        path: PathBuf,
        /// Where and what.
        source: toml::de::Error,
    },
    /// A key is no flag of the command.
    #[error("{path}: '{key}' is no flag of {command}{nearest}", path = .path.display(), nearest = hint(.nearest.as_deref()))]
    Key {
        /// What --config says.
        path: PathBuf,
        /// As written.
        key: String,
        /// The command.
        command: String,
        /// What may be meant.
        nearest: Option<String>,
    },
    /// A value is neither text, number, truth, nor a list of these.
    #[error("{path}: '{key}' has a value of another kind than its flag takes", path = .path.display())]
    Value {
        /// What --config says.
        path: PathBuf,
        /// As written.
        key: String,
    },
}

fn hint(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!(" (is {name} meant?)"))
}

/// The arguments of the process, with those of the file that they or PLAIT_CONFIG name.
///
/// # Errors
/// [`ConfigError`].
pub(super) fn arguments(given: Vec<OsString>) -> Result<Vec<OsString>, ConfigError> {
    // What is missing or wrong is found when all are together.
    let mut grammar = Arguments::command().ignore_errors(true);
    grammar.build();
    let Ok(matches) = grammar.clone().try_get_matches_from(&given) else { return Ok(given) };
    let (mut command, mut inner) = (&grammar, &matches);
    let mut file = path_in(inner);
    while let Some((name, deeper)) = inner.subcommand()
        && let Some(found) = command.find_subcommand(name)
    {
        (command, inner) = (found, deeper);
        file = path_in(inner).or(file);
    }
    let Some(path) = file.filter(|_| inner.subcommand_name().is_none()) else { return Ok(given) };
    let more = read(&path, command, inner)?;
    Ok(given.into_iter().chain(more).collect())
}

fn path_in(matches: &ArgMatches) -> Option<PathBuf> {
    matches.try_get_one::<PathBuf>("config").ok().flatten().cloned()
}

/// The flags of the file that are not given otherwise.
fn read(path: &Path, command: &clap::Command, given: &ArgMatches) -> Result<Vec<OsString>, ConfigError> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(CONFIG_BYTES_MAX + 1).read_to_string(&mut text))
        .map_err(|source| ConfigError::Read { path: path.into(), source })?;
    if text.len() as u64 > CONFIG_BYTES_MAX {
        return Err(ConfigError::TooLarge { path: path.into() });
    }
    let table: toml::Table =
        text.parse().map_err(|source| ConfigError::Syntax { path: path.into(), source })?;
    let known = || command.get_arguments().filter_map(|arg| Some((arg.get_long()?, arg.get_id())));
    let mut flags = Vec::new();
    for (key, value) in table {
        let found = known().find(|(long, _)| *long == key && !NOT_IN_FILES.contains(long));
        let Some((_, id)) = found else {
            return Err(ConfigError::Key {
                path: path.into(),
                nearest: similar(&key, known().map(|(long, _)| long)),
                command: command.get_bin_name().unwrap_or(command.get_name()).to_owned(),
                key,
            });
        };
        if !matches!(
            given.value_source(id.as_str()),
            Some(ValueSource::CommandLine | ValueSource::EnvVariable)
        ) {
            let written = flags_of(&key, value);
            flags.extend(written.ok_or_else(|| ConfigError::Value { path: path.into(), key })?);
        }
    }
    Ok(flags)
}

/// A key and its value as one flag, several, or none.
fn flags_of(key: &str, value: toml::Value) -> Option<Vec<OsString>> {
    let one = |value: &OsStr| {
        let mut flag = OsString::from(format!("--{key}="));
        flag.push(value);
        flag
    };
    Some(match value {
        toml::Value::String(text) => vec![one(text.as_ref())],
        toml::Value::Integer(number) => vec![one(number.to_string().as_ref())],
        toml::Value::Boolean(true) => vec![format!("--{key}").into()],
        toml::Value::Boolean(false) => Vec::new(),
        toml::Value::Array(values) => {
            let mut flags = Vec::new();
            for value in values.into_iter().filter(|value| !value.is_array() && !value.is_bool()) {
                flags.extend(flags_of(key, value)?);
            }
            flags
        }
        _ => return None,
    })
}

fn similar<'a>(key: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let plain = key.trim_start_matches('-').replace('_', "-");
    names
        .filter(|name| !NOT_IN_FILES.contains(name))
        .map(|name| (strsim::jaro_winkler(&plain, name), name))
        .filter(|(likeness, _)| *likeness >= SIMILAR_MIN)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, name)| name.to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn with(file: &str, flags: &str) -> Result<Vec<String>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plait.toml");
        fs::write(&path, file).unwrap();
        let given = format!("plait {flags} --config {}", path.display());
        let given: Vec<OsString> = given.split(' ').map(OsString::from).collect();
        let known = given.len();
        let all = arguments(given).map_err(|error| error.to_string())?;
        Ok(all[known..].iter().map(|flag| flag.to_string_lossy().into_owned()).collect())
    }

    #[test]
    fn a_file_fills_in_what_is_not_given() {
        let file =
            "key = \"k\"\nlisten = \"127.0.0.1:1\"\npath = [\"a:1\", \"b:2\"]\nlanes = 3\ntake-over = true\n";
        let flags = with(file, "downstream --listen 127.0.0.1:9 --lanes=2").unwrap();
        assert_eq!(flags, ["--key=k", "--path=a:1", "--path=b:2", "--take-over"]);
        assert_eq!(with("log = \"warn\"\n", "--log debug relay").unwrap(), [""; 0]);
        assert_eq!(with("log = \"warn\"\n", "relay").unwrap(), ["--log=warn"]);
        assert_eq!(with("take-over = false\n", "relay").unwrap(), [""; 0]);
        assert_eq!(with("runs = 1\n", "lab run two-equal").unwrap(), ["--runs=1"]);
    }

    #[test]
    fn an_unknown_key_names_the_nearest_right_one() {
        let error = with("cache_size = \"1GiB\"\n", "downstream").unwrap_err();
        assert!(
            error.ends_with("'cache_size' is no flag of plait downstream (is cache-size meant?)"),
            "{error}"
        );
        let error = with("lisen = \"1\"\n", "relay").unwrap_err();
        assert!(error.contains("is listen meant?"), "{error}");
        let error = with("zzz = 1\n", "relay").unwrap_err();
        assert!(error.ends_with("is no flag of plait relay"), "{error}");
        assert!(with("config = \"x\"\n", "relay").is_err(), "no file in a file");
    }

    #[test]
    fn what_is_no_setting_is_an_error() {
        assert!(with("listen = {}\n", "relay").unwrap_err().contains("another kind"));
        assert!(with("listen = \n", "relay").unwrap_err().contains("line 1"));
    }
}
