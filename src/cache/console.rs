//! Answers the operator: a Unix socket in the cache's directory, which only the cache's own user may open.
//!
//! In: one line, a command. Out: lines, ended by the end of the connection; now and then one that says how far it is, which
//! [`ask`] keeps to itself. Called by `plait cache`. Runs on a thread of its own, so that reading a million records holds up
//! no client.

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
    time::{Duration, Instant, SystemTime},
};

use super::{Cache, Key};

/// A command is one URL and a word.
const COMMAND_BYTES_MAX: u64 = 64 << 10;
/// An operator's terminal may stand still for a while; a hung one is left.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// How often an operator hears how far a long command is.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);
/// How often it is looked whether the cache was looked through.
const SCAN_CHECK: Duration = Duration::from_millis(20);
/// Before how far it is, and of how much: no line of an answer begins so.
const PROGRESS: &str = "progress ";

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
pub fn path(dir: &Path) -> PathBuf {
    dir.join("console")
}

/// Asks the process that has the cache in `dir`, and writes what it says to `out`. `progress` hears how many objects have
/// been looked at, and of how many; 0 of 0 while the process finds out what there is.
///
/// # Errors
/// Nobody has the cache, or this user may not ask.
pub fn ask(
    dir: &Path,
    order: &Order,
    out: &mut impl Write,
    progress: impl FnMut(u64, u64),
) -> io::Result<()> {
    let mut stream = UnixStream::connect(path(dir))?;
    stream.write_all(order.to_line().as_bytes())?;
    read_lines(BufReader::new(stream), out, progress)
}

fn read_lines(
    mut lines: impl BufRead,
    out: &mut impl Write,
    mut progress: impl FnMut(u64, u64),
) -> io::Result<()> {
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line)? > 0 {
        let told = std::str::from_utf8(&line).ok().and_then(|line| line.strip_prefix(PROGRESS));
        match told.and_then(|told| told.trim_end().split_once(' ')) {
            Some((done, all)) => progress(done.parse().unwrap_or(0), all.parse().unwrap_or(0)),
            None => out.write_all(&line)?,
        }
        line.clear();
    }
    Ok(())
}

/// Goes through all objects, and says now and then how far it is.
struct Walk<'a, W: Write> {
    cache: &'a Cache,
    out: &'a mut W,
    told_at: Instant,
}

impl<W: Write> Walk<'_, W> {
    fn tell(&mut self, done: usize, all: usize) -> io::Result<()> {
        if self.told_at.elapsed() >= PROGRESS_EVERY {
            self.told_at = Instant::now();
            writeln!(self.out, "{PROGRESS}{done} {all}")?;
            self.out.flush()?;
        }
        Ok(())
    }

    /// Calls `look` with the key, URL, length, bytes that are there and remaining freshness of each object.
    fn run(
        mut self,
        mut look: impl FnMut(&mut W, Key, (String, u64, u64, i64)) -> io::Result<()>,
    ) -> io::Result<()> {
        // What was not come upon yet is meant, too. An operator who leaves ends it at the next word.
        while !self.cache.is_scanned() {
            thread::sleep(SCAN_CHECK);
            self.tell(0, 0)?;
        }
        let keys = self.cache.keys();
        for (done, &key) in keys.iter().enumerate() {
            self.tell(done, keys.len())?;
            if let Some(object) = self.cache.describe(key, SystemTime::now()) {
                look(self.out, key, object)?;
            }
        }
        Ok(())
    }
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
    let purge_all = |out: &mut BufWriter<&UnixStream>, named: &str, prefix| {
        let mut gone = 0;
        let walk = Walk { cache: &cache, out, told_at: Instant::now() };
        walk.run(|_, key, (url, ..)| {
            gone += usize::from(is_url(&url, named, prefix) && cache.forget(key));
            Ok(())
        })?;
        writeln!(out, "{gone} purged")
    };
    match Order::from_line(line.trim_end()) {
        Some(Order::List) => {
            let walk = Walk { cache: &cache, out: &mut out, told_at: Instant::now() };
            walk.run(|out, _, (url, len, present, ttl_s)| {
                let percent = present.saturating_mul(100) / len.max(1);
                writeln!(out, "{present:>14} {percent:>3}% {ttl_s:>8} s  {url}")
            })?;
        }
        Some(Order::Stat) => {
            let (objects, bytes, bytes_max) = cache.totals();
            writeln!(out, "objects {objects}\nbytes {bytes}\nbytes-max {bytes_max}\nlistening {front}")?;
        }
        // On whatever host.
        Some(Order::Purge(path)) if path.starts_with('/') => purge_all(&mut out, &path, false)?,
        // Where it is follows from its URL.
        Some(Order::Purge(url)) => writeln!(out, "{} purged", cache.purge_url(&as_stored(&url)))?,
        Some(Order::PurgePrefix(prefix)) => purge_all(&mut out, &as_stored(&prefix), true)?,
        None => writeln!(out, "no such command")?,
    }
    out.flush()
}

/// A URL with or without `http://` as HOST[:PORT]/PATH, the host in lower case; a path as it is.
fn as_stored(url: &str) -> String {
    let url = url.strip_prefix("http://").unwrap_or(url);
    let (host, path) = url.split_at(url.find('/').unwrap_or(url.len()));
    host.to_ascii_lowercase() + path
}

/// Whether the stored `known`, HOST[:PORT]/PATH, is (or begins as) `named`: the same, or a path, which is meant on every
/// host.
fn is_url(known: &str, named: &str, prefix: bool) -> bool {
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
    fn how_far_it_is_does_not_come_into_the_answer() {
        let said = b"progress 0 0\n   12 100%  a/f\nprogress 7 9\n3 purged\n";
        let (mut out, mut heard) = (Vec::new(), Vec::new());
        read_lines(&said[..], &mut out, |done, all| heard.push((done, all))).unwrap();
        assert_eq!(out, b"   12 100%  a/f\n3 purged\n");
        assert_eq!(heard, [(0, 0), (7, 9)]);
    }

    #[test]
    fn urls_are_meant_with_and_without_host() {
        assert_eq!(as_stored("http://A.b:80/F?x"), "a.b:80/F?x");
        assert_eq!([as_stored("A.b"), as_stored("/F")], ["a.b", "/F"]);
        assert!(is_url("a:80/f?x", "a:80/f?x", false) && is_url("a:80/f", "/f", false));
        assert!(is_url("a:80/f/g", "a:80/f", true) && is_url("a:80/f/g", "/f", true));
        assert!(!is_url("a:80/f/g", "/f", false) && !is_url("b/f", "a/f", false));
    }
}
