//! `plait get`: one file over all paths, with a progress bar, continued where it stopped.
//!
//! In: a target and paths. Out: a file that is either whole or absent: what has come so far stands in `FILE.part`, and
//! `FILE.part.etag` says which version it is a part of, so that two versions are never mixed. Invariant: only one process
//! at a time writes to a `FILE.part`, the one that has it locked.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{
    HeaderValue, Method, StatusCode,
    header::{ACCEPT, IF_RANGE, RANGE, USER_AGENT},
};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use rustix::fs::{FlockOperation, flock};

use crate::{
    exec,
    http::{
        continuation::strong_validator,
        range::ContentRange,
        request::RequestHead,
        response::{self, Framing, Parsed, ResponseHead},
    },
    lanes::PathStatus,
    mp::{
        consumer::{Consumer, Sink, TransferError},
        fetch_error::FetchError,
        manager::{Incoming, Manager},
        progress::Progress,
    },
};

/// A transfer that brings nothing for this long is given up (what has come stays in the partial file).
const STALL_MAX: Duration = Duration::from_secs(60);
/// So many upstreams may die under one download.
const CONTINUED_MAX: usize = 8;
/// So many downloads to the same file may end between opening its partial file and locking it; one is not likely.
const OPENED_MAX: usize = 8;
/// How often the bar is drawn.
const REDRAW: Duration = Duration::from_millis(200);

/// Why the download is not complete.
#[derive(Debug, thiserror::Error)]
pub enum GetError {
    /// The target is no path.
    #[error("'{target}' is no path or URL: write for example /films/a.mp4")]
    Target {
        /// What was given.
        target: String,
    },
    /// No response came.
    #[error("{0}")]
    Fetch(#[from] FetchError),
    /// The answer is not the file.
    #[error("the answer is {status}")]
    Status {
        /// The answer's status.
        status: StatusCode,
    },
    /// The answer makes no sense.
    #[error("upstream: {what}")]
    Answer {
        /// What is wrong with it.
        what: &'static str,
    },
    /// The body did not come to its end.
    #[error("{source} (run the same command again to continue at {kept})")]
    Body {
        /// Why.
        source: TransferError,
        /// Bytes kept.
        kept: HumanBytes,
    },
    /// SIGINT or SIGTERM.
    #[error("interrupted; run the same command again to continue")]
    Interrupted,
    /// Another process has the partial file.
    #[error("another download writes to {path}: wait until it ends, or choose another --output", path = .path.display())]
    Taken {
        /// The partial file.
        path: PathBuf,
    },
    /// A file cannot be written.
    #[error("{path}: {source}")]
    File {
        /// Which one.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
}

/// The partial file and the version it is a part of.
struct Partial {
    /// Locked until the last of its copies is closed: two downloads would write, cut and rename what is the other's.
    file: File,
    path: PathBuf,
    version_path: PathBuf,
    have: u64,
    /// Strong validator of what is there.
    version: Option<HeaderValue>,
}

impl Partial {
    fn open(output: &Path) -> Result<Self, GetError> {
        let beside = |suffix: &str| {
            let mut name = output.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        };
        let (path, version_path) = (beside(".part"), beside(".part.etag"));
        let file = open_locked(&path)?;
        Self { file, path, version_path, have: 0, version: None }.look_again()
    }

    /// Finds out how much is there, and of which version. The file stays locked: an operation that was given up may have a
    /// copy of it yet, so that it could not be locked anew, and nobody else is to have it meanwhile.
    fn look_again(mut self) -> Result<Self, GetError> {
        self.have = self.file.metadata().map_err(self.error())?.len();
        self.version =
            fs::read(&self.version_path).ok().and_then(|bytes| HeaderValue::from_bytes(&bytes).ok());
        if self.version.is_none() && self.have > 0 {
            // Nobody can tell what it is a part of.
            self.restart()?;
        }
        Ok(self)
    }

    fn error(&self) -> impl Fn(io::Error) -> GetError + use<> {
        let path = self.path.clone();
        move |source| GetError::File { path: path.clone(), source }
    }

    fn restart(&mut self) -> Result<(), GetError> {
        self.file.set_len(0).map_err(self.error())?;
        self.have = 0;
        self.version = None;
        Ok(())
    }

    /// Whether a 206 brings all that is missing, and of this version.
    fn is_continued_by(&self, head: &ResponseHead) -> Result<(), GetError> {
        let is_rest = match (ContentRange::of(&head.headers), head.framing(&Method::GET)) {
            (Some(ContentRange::Satisfied { range, complete: Some(complete) }), Ok(Framing::Fixed(len))) => {
                range.first() == self.have && range.last() + 1 == complete && range.len() == len
            }
            _ => false,
        };
        if !is_rest {
            return Err(GetError::Answer { what: "the answer is another range than was asked for" });
        }
        let version = strong_validator(&head.headers).map(|(_, value)| value);
        if version.is_none() || version != self.version {
            return Err(GetError::Answer {
                what: "the rest is of another version than the .part file, or does not say of which: remove that file",
            });
        }
        Ok(())
    }

    /// Remembers which version the bytes to come belong to.
    fn belongs_to(&mut self, head: &ResponseHead) -> Result<(), GetError> {
        self.version = strong_validator(&head.headers).map(|(_, value)| value);
        let outcome = match &self.version {
            Some(version) => fs::write(&self.version_path, version.as_bytes()),
            None => match fs::remove_file(&self.version_path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
        };
        outcome.map_err(|source| GetError::File { path: self.version_path.clone(), source })
    }

    /// Leaves what has come for the next try, and nothing where nothing has come.
    fn abandon(self) {
        if self.file.metadata().is_ok_and(|facts| facts.len() == 0) {
            // It is in nobody's way if it stays.
            let _ = fs::remove_file(&self.version_path);
            // The last: from here on another download may have a partial file of that name.
            let _ = fs::remove_file(&self.path);
        }
    }

    fn finish(self, output: &Path) -> Result<(), GetError> {
        self.file.sync_data().map_err(self.error())?;
        fs::rename(&self.path, output).map_err(|source| GetError::File { path: output.into(), source })?;
        // It says nothing any more.
        let _ = fs::remove_file(&self.version_path);
        Ok(())
    }
}

/// Opens the partial file for this process alone.
fn open_locked(path: &Path) -> Result<File, GetError> {
    let refused = |source| GetError::File { path: path.into(), source };
    for _ in 0..OPENED_MAX {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(refused)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(GetError::Taken { path: path.into() }),
            locked => locked.map_err(|error| refused(error.into()))?,
        }
        // Otherwise the other download ended in between: what was opened is its finished file, or is gone.
        if is_at(&file, path).map_err(refused)? {
            return Ok(file);
        }
    }
    Err(GetError::Taken { path: path.into() })
}

/// Whether `file` is what stands at `path` now.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The path and query of what the user names, and its host.
fn parse_target(target: &str) -> Result<(String, String), GetError> {
    let error = || GetError::Target { target: target.to_owned() };
    let uri: http::Uri = target.parse().map_err(|_| error())?;
    let path = uri.path_and_query().filter(|path| path.as_str().starts_with('/')).ok_or_else(error)?;
    let host = uri.authority().map_or("plait", |authority| authority.as_str());
    Ok((path.as_str().to_owned(), host.to_owned()))
}

fn request(target: &str, host: &str, partial: &Partial) -> Result<RequestHead, GetError> {
    let mut request = RequestHead::new(Method::GET, target, host)
        .map_err(|_| GetError::Target { target: target.to_owned() })?;
    let headers = &mut request.headers;
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("plait/", env!("CARGO_PKG_VERSION"))));
    headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
    if let (1.., Some(version)) = (partial.have, &partial.version)
        && let Ok(range) = HeaderValue::try_from(format!("bytes={}-", partial.have))
    {
        headers.insert(RANGE, range);
        headers.insert(IF_RANGE, version.clone());
    }
    Ok(request)
}

/// Downloads `target` to `output`.
///
/// # Errors
/// [`GetError`]; the partial file stays for the next try.
pub(super) async fn get(
    manager: &Rc<Manager>,
    paths: &[Arc<PathStatus>],
    target: &str,
    output: &Path,
) -> Result<u64, GetError> {
    let (target, host) = parse_target(target)?;
    let mut partial = Partial::open(output)?;
    let mut continued = 0;
    let outcome = loop {
        match fetch(manager, paths, &target, &host, &mut partial).await {
            Err(GetError::Body { source, .. })
                if source.may_be_continued() && partial.version.is_some() && continued < CONTINUED_MAX =>
            {
                tracing::info!("{source}; the download goes on from there");
                continued += 1;
                partial = partial.look_again()?;
            }
            outcome => break outcome,
        }
    };
    match outcome {
        Ok(bytes) => partial.finish(output).map(|()| bytes),
        Err(error) => {
            partial.abandon();
            Err(error)
        }
    }
}

/// Brings what is missing of the file and returns its whole length.
async fn fetch(
    manager: &Rc<Manager>,
    paths: &[Arc<PathStatus>],
    target: &str,
    host: &str,
    partial: &mut Partial,
) -> Result<u64, GetError> {
    let mut bytes = Vec::new();
    request(target, host, partial)?.write_head(&mut bytes);
    let Incoming { head, mut consumer, .. } = manager.fetch(Bytes::from(bytes)).await?;
    let head = match response::parse_response(&head) {
        Ok(Parsed::Complete { head, .. }) => head,
        _ => return Err(GetError::Answer { what: "the answer has no valid head" }),
    };
    match head.status {
        StatusCode::OK => partial.restart()?,
        StatusCode::PARTIAL_CONTENT => partial.is_continued_by(&head)?,
        // Everything is there already, or the file has become shorter, which If-Range rules out.
        StatusCode::RANGE_NOT_SATISFIABLE if partial.have > 0 => {
            let have = partial.have;
            if ContentRange::of(&head.headers) != Some(ContentRange::Unsatisfied { complete: have }) {
                return Err(GetError::Answer {
                    what: "the file has another length now: remove the .part file",
                });
            }
            return Ok(have);
        }
        status => return Err(GetError::Status { status }),
    }
    partial.belongs_to(&head)?;
    if partial.version.is_some() {
        consumer.transfer().let_move();
    }
    let announced = match head.framing(&Method::GET) {
        Ok(Framing::Fixed(length)) => Some(length),
        Ok(_) => None,
        Err(_) => return Err(GetError::Answer { what: "the answer's length is contradictory" }),
    };
    let total = announced.map(|length| partial.have + length);
    let file = partial.file.try_clone().map_err(partial.error())?;
    let sink = Sink::File { file: OwnedFd::from(file), offset: partial.have };
    let have = partial.have;
    let outcome = {
        let drawing = draw(paths, have, total, consumer.progress());
        let moving = carry(&mut consumer, sink, announced);
        futures_util::pin_mut!(drawing, moving);
        match futures_util::future::select(moving, drawing).await {
            futures_util::future::Either::Left((outcome, _)) => outcome,
            futures_util::future::Either::Right((never, _)) => match never {},
        }
    };
    match outcome {
        Ok(moved) => Ok(have + moved),
        Err(source) => {
            // The kernel may have taken more than was counted; what was counted is there.
            let kept = have + consumer.given();
            let _ = partial.file.set_len(kept);
            Err(GetError::Body { source, kept: HumanBytes(kept) })
        }
    }
}

async fn carry(
    consumer: &mut Consumer,
    sink: Sink<'_>,
    announced: Option<u64>,
) -> Result<u64, TransferError> {
    let progress = consumer.progress();
    let stalled = async {
        while progress.moved_at().elapsed() < STALL_MAX {
            exec::sleep(Duration::from_secs(5)).await;
        }
    };
    let moving = consumer.run(sink, announced);
    futures_util::pin_mut!(moving, stalled);
    match futures_util::future::select(moving, stalled).await {
        futures_util::future::Either::Left((outcome, _)) => outcome,
        futures_util::future::Either::Right(((), _)) => {
            Err(TransferError::Stalled { side: "lanes", seconds: STALL_MAX.as_secs() })
        }
    }
}

/// Draws the bar and the rate of every path until it is dropped.
async fn draw(
    paths: &[Arc<PathStatus>],
    have: u64,
    total: Option<u64>,
    progress: Rc<Progress>,
) -> std::convert::Infallible {
    let bar = match total {
        Some(total) => ProgressBar::new(total),
        None => ProgressBar::no_length(),
    };
    let template = match total {
        Some(_) => "{bar:32} {bytes}/{total_bytes} {binary_bytes_per_sec} ETA {eta}  {msg}",
        None => "{spinner} {bytes} {binary_bytes_per_sec}  {msg}",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_position(have);
    bar.reset_eta();
    let mut before: Vec<u64> = paths.iter().map(|path| path.report().bytes).collect();
    let mut drawn = Instant::now();
    loop {
        exec::sleep(REDRAW).await;
        let seconds = drawn.elapsed().as_secs_f64();
        drawn = Instant::now();
        let mut rates = Vec::new();
        for (path, before) in paths.iter().zip(&mut before) {
            let report = path.report();
            let rate = (report.bytes - *before) as f64 * 8e-6 / seconds;
            rates.push(format!("{rate:.0}{}", report.mptcp()));
            *before = report.bytes;
        }
        // What is written, which is less than what has come where bytes were sent twice or an earlier one is missing.
        bar.set_position(have + progress.given());
        bar.set_message(format!("Mbit/s of each path: {}", rates.join(" + ")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        let path = |target: &str| parse_target(target).ok().map(|(path, _)| path);
        assert_eq!(path("/a/b.mp4?x"), Some("/a/b.mp4?x".into()));
        assert_eq!(path("http://host:1/a"), Some("/a".into()));
        assert_eq!(path("http://host"), Some("/".into()));
        assert_eq!(path("a b"), None);
        assert_eq!(path(""), None);
    }

    #[test]
    fn a_part_of_unknown_version_is_not_continued() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("f");
        fs::write(dir.path().join("f.part"), "old").unwrap();
        assert_eq!(Partial::open(&output).unwrap().have, 0);
        fs::write(dir.path().join("f.part"), "old").unwrap();
        fs::write(dir.path().join("f.part.etag"), "\"v1\"").unwrap();
        let partial = Partial::open(&output).unwrap();
        assert_eq!(partial.have, 3);
        let request = request("/f", "h", &partial).unwrap();
        assert_eq!(
            (&request.headers[RANGE], &request.headers[IF_RANGE]),
            (&"bytes=3-".parse().unwrap(), &"\"v1\"".parse().unwrap())
        );
    }

    #[test]
    fn a_partial_file_is_of_one_download_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("f");
        let part = dir.path().join("f.part");
        let first = Partial::open(&output).unwrap();
        first.file.set_len(5).unwrap();
        let refused = Partial::open(&output).err().unwrap().to_string();
        assert!(
            refused.starts_with(&format!("another download writes to {}: ", part.display())),
            "{refused}"
        );
        assert_eq!(fs::metadata(&part).unwrap().len(), 5);
        // A write that was given up has a copy of it.
        let copy = first.file.try_clone().unwrap();
        let first = first.look_again().unwrap();
        drop(copy);
        assert!(matches!(Partial::open(&output), Err(GetError::Taken { .. })));
        first.finish(&output).unwrap();
        let mut next = Partial::open(&output).unwrap();
        next.restart().unwrap();
        next.abandon();
        assert!(!part.exists() && output.exists());
    }

    #[test]
    fn a_finished_file_is_not_taken_for_a_partial_one() {
        let dir = tempfile::tempdir().unwrap();
        let (output, part) = (dir.path().join("f"), dir.path().join("f.part"));
        let first = Partial::open(&output).unwrap();
        // Opened before the other download ends, locked after.
        let late = File::open(&part).unwrap();
        assert!(is_at(&late, &part).unwrap());
        first.finish(&output).unwrap();
        assert!(!is_at(&late, &part).unwrap());
        let _next = Partial::open(&output).unwrap();
        assert!(!is_at(&late, &part).unwrap());
    }
}
