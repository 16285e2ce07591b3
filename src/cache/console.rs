//! Answers the operator: a Unix socket in the cache's directory, which only the cache's own user may open.
//!
//! In: one line, a command. Out: lines, ended by the end of the connection. Called by `plait cache`. Runs on a thread of its
//! own, so that reading a million records holds up no client.

use std::{
    fs, io,
    io::{BufRead, BufReader, BufWriter, Read, Write},
    net::SocketAddr,
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    thread,
    time::{Duration, SystemTime},
};

use super::Cache;

/// A command is one URL and a word.
const COMMAND_BYTES_MAX: u64 = 64 << 10;
/// An operator's terminal may stand still for a while; a hung one is left.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Every object, one a line.
    List,
    /// Totals.
    Stat,
    /// Forget one URL.
    Purge(String),
    /// Forget every URL that begins so.
    PurgePrefix(String),
}

impl Order {
    fn to_line(&self) -> String {
        match self {
            Self::List => "ls\n".into(),
            Self::Stat => "stat\n".into(),
            Self::Purge(url) => format!("purge {url}\n"),
            Self::PurgePrefix(prefix) => format!("purge-prefix {prefix}\n"),
        }
    }

    fn from_line(line: &str) -> Option<Self> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        Some(match (word, rest) {
            ("ls", "") => Self::List,
            ("stat", "") => Self::Stat,
            ("purge", url) if !url.is_empty() => Self::Purge(url.into()),
            ("purge-prefix", prefix) if !prefix.is_empty() => Self::PurgePrefix(prefix.into()),
            _ => return None,
        })
    }
}

/// Where the socket of a cache is.
fn path(dir: &Path) -> PathBuf {
    dir.join("console")
}

/// Asks the process that has the cache in `dir`, and writes what it says to `out`.
///
/// # Errors
/// Nobody has the cache, or this user may not ask.
pub fn ask(dir: &Path, order: &Order, out: &mut impl Write) -> io::Result<()> {
    let mut stream = UnixStream::connect(path(dir))?;
    stream.write_all(order.to_line().as_bytes())?;
    io::copy(&mut stream, out)?;
    Ok(())
}

/// Answers on a thread for as long as `cache` is in use. `front` is where clients connect.
///
/// # Errors
/// The socket cannot be made.
pub fn serve(cache: &Arc<Cache>, dir: &Path, front: SocketAddr) -> io::Result<()> {
    let path = path(dir);
    // The directory is locked: whoever made it is gone.
    let _ = fs::remove_file(&path);
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    let cache = Arc::downgrade(cache);
    thread::Builder::new().name("plait-console".into()).spawn(move || {
        for stream in listener.incoming().flatten() {
            if let Err(error) = answer(&cache, front, &stream) {
                tracing::debug!(%error, "an operator is gone");
            }
        }
    })?;
    Ok(())
}

fn answer(cache: &Weak<Cache>, front: SocketAddr, stream: &UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE_MAX))?;
    stream.set_write_timeout(Some(IDLE_MAX))?;
    let mut line = String::new();
    BufReader::new(stream.take(COMMAND_BYTES_MAX)).read_line(&mut line)?;
    let mut out = BufWriter::new(stream);
    let Some(cache) = cache.upgrade() else { return Ok(()) };
    match Order::from_line(line.trim_end()) {
        Some(Order::List) => {
            for key in cache.keys() {
                let Some((url, len, present, ttl_s)) = cache.describe(key, SystemTime::now()) else {
                    continue;
                };
                let percent = present.saturating_mul(100) / len.max(1);
                writeln!(out, "{present:>14} {percent:>3}% {ttl_s:>8} s  {url}")?;
            }
        }
        Some(Order::Stat) => {
            let (objects, bytes, bytes_max) = cache.totals();
            writeln!(out, "objects {objects}\nbytes {bytes}\nbytes-max {bytes_max}\nlistening {front}")?;
        }
        Some(Order::Purge(url)) => {
            let gone = cache.purge(|known| is_url(known, &url, false));
            writeln!(out, "{gone} purged")?;
        }
        Some(Order::PurgePrefix(prefix)) => {
            let gone = cache.purge(|known| is_url(known, &prefix, true));
            writeln!(out, "{gone} purged")?;
        }
        None => writeln!(out, "no such command")?,
    }
    out.flush()
}

/// Whether the stored `known`, HOST[:PORT]/PATH, is (or begins as) `named`: the same with or without `http://`, or a path,
/// which is meant on every host.
fn is_url(known: &str, named: &str, prefix: bool) -> bool {
    let named = named.strip_prefix("http://").unwrap_or(named);
    let known =
        if named.starts_with('/') { known.find('/').map_or("", |slash| &known[slash..]) } else { known };
    if prefix { known.starts_with(named) } else { known == named }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_travel_as_lines() {
        let purge = |url: &str| Order::Purge(url.into());
        for order in [Order::List, Order::Stat, purge("a/b c"), Order::PurgePrefix("/x".into())] {
            assert_eq!(Order::from_line(order.to_line().trim_end()), Some(order));
        }
        for wrong in ["", "ls x", "purge", "purge-prefix ", "rm /"] {
            assert_eq!(Order::from_line(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn urls_are_meant_with_and_without_host() {
        assert!(is_url("a:80/f?x", "http://a:80/f?x", false) && is_url("a:80/f", "/f", false));
        assert!(is_url("a:80/f/g", "a:80/f", true) && is_url("a:80/f/g", "/f", true));
        assert!(!is_url("a:80/f/g", "/f", false) && !is_url("b/f", "a/f", false));
    }
}
