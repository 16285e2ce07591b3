//! `plait cache`: asks the downstream that has a cache directory what is in it, and changes that.
//!
//! In: a command. Out: lines on standard output. `warm` is a client like any other: it downloads from the downstream and
//! throws the bytes away.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};

use super::args::{CacheCommand, CacheOrder};
use crate::cache::console::{self, Order};

/// More than the downstream itself waits for the root.
const SILENT_MAX: Duration = Duration::from_secs(60);
/// The downstream's heads are smaller.
const HEAD_BYTES_MAX: u64 = 64 << 10;

/// Why a command on a cache has failed.
#[derive(Debug, thiserror::Error)]
pub enum CacheOrderError {
    /// No process answers for the directory.
    #[error(
        "no running downstream has {path} as its cache: {source} (start one with --cache {path}, as the same user)",
        path = .path.display()
    )]
    Nobody {
        /// What --cache says.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// A URL could not be fetched.
    #[error("{url}: {source}")]
    Warm {
        /// Which.
        url: String,
        /// Why.
        source: io::Error,
    },
}

/// Runs one command.
pub(super) fn run(command: &CacheCommand) -> Result<(), CacheOrderError> {
    let dir = &command.cache;
    match &command.order {
        CacheOrder::Ls => tell(dir, &Order::List),
        CacheOrder::Stat => tell(dir, &Order::Stat),
        CacheOrder::Purge { url, prefix: false } => tell(dir, &Order::Purge(url.clone())),
        CacheOrder::Purge { url, prefix: true } => tell(dir, &Order::PurgePrefix(url.clone())),
        CacheOrder::Warm { urls } => {
            let front = front(dir)?;
            for url in urls {
                warm(&front, url).map_err(|source| CacheOrderError::Warm { url: url.clone(), source })?;
            }
            Ok(())
        }
    }
}

fn tell(dir: &Path, order: &Order) -> Result<(), CacheOrderError> {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} objects") {
        bar.set_style(style);
    }
    let progress = |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    };
    let told = console::ask(dir, order, &mut io::stdout().lock(), progress);
    bar.finish_and_clear();
    told.map_err(|source| CacheOrderError::Nobody { path: dir.to_owned(), source })
}

/// Where the downstream listens.
fn front(dir: &Path) -> Result<String, CacheOrderError> {
    let nobody = |source| CacheOrderError::Nobody { path: dir.to_owned(), source };
    let mut said = Vec::new();
    console::ask(dir, &Order::Stat, &mut said, |_, _| ()).map_err(nobody)?;
    let said = String::from_utf8_lossy(&said);
    let front = said.lines().find_map(|line| line.strip_prefix("listening "));
    front
        .map(|front| front.replace("0.0.0.0:", "127.0.0.1:").replace("[::]:", "[::1]:"))
        .ok_or_else(|| nobody(io::ErrorKind::InvalidData.into()))
}

/// Downloads a URL from the downstream and throws it away.
fn warm(front: &str, url: &str) -> io::Result<()> {
    let named = url.strip_prefix("http://").unwrap_or(url);
    let (host, path) = named.split_at(named.find('/').unwrap_or(named.len()));
    let host = if host.is_empty() { front } else { host };
    let path = if path.is_empty() { "/" } else { path };
    if !named.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "write it as an escaped http:// address"));
    }
    let mut stream = TcpStream::connect(front)?;
    stream.set_read_timeout(Some(SILENT_MAX))?;
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut reader = BufReader::new(stream);
    let (mut status, mut length) = (String::new(), None);
    let mut head = reader.by_ref().take(HEAD_BYTES_MAX);
    head.read_line(&mut status)?;
    loop {
        let mut line = String::new();
        if head.read_line(&mut line)? == 0 || line.trim_end().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse::<u64>().ok();
        }
    }
    let status = status.trim_end().strip_prefix("HTTP/1.1 ").unwrap_or("no answer").to_owned();
    if !status.starts_with("200") {
        return Err(io::Error::other(status));
    }
    let bar = length.map_or_else(ProgressBar::no_length, ProgressBar::new);
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {msg}") {
        bar.set_style(style);
    }
    bar.set_message(url.to_owned());
    let moved = io::copy(&mut bar.wrap_read(reader), &mut io::sink())?;
    bar.finish_and_clear();
    if length.is_some_and(|length| length != moved) {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the answer broke off"));
    }
    println!("{moved:>14}  {url}");
    Ok(())
}
