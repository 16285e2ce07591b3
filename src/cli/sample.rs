//! The sample library that `plait up` serves when no directory is given.
//!
//! In: the user's cache directory and the programs on PATH. Out: a directory with `index.html`, `sample.mp4` and an HLS
//! rendition, made once: by ffmpeg, or from the small files that the binary carries. Called by `up`, before a core runs.
//!
//! Invariants: the directory appears under its name only when it is complete; nothing is written where another user
//! could have put something before.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::FlockOperation,
    process::{Pid, PidfdFlags, geteuid, pidfd_open},
};

/// What the finished library is called. A later version of the files takes a new number, so that a library an older
/// plait is serving is never changed under it.
const LIBRARY: &str = "sample-v1";
/// Written last; a library without it was not made by this program, or not to its end.
const VERSION_FILE: &str = "version";
/// What [`VERSION_FILE`] begins with.
const VERSION: &str = "plait sample library 1";
/// Where ffmpeg's complaints go while it works.
const LOG_FILE: &str = "ffmpeg.log";

/// ffmpeg needs 3 to 6 s of CPU time for the video; one that is not done by then, on a machine as busy as that, would
/// only make the user wonder whether anything happens at all.
const FFMPEG_MAX: Duration = Duration::from_secs(60);
/// The last line of a log this long is found; ffmpeg with `-v error` writes a few hundred bytes.
const LOG_BYTES_MAX: usize = 16 * 1024;

/// The page with the player, the same for both kinds of library.
const PAGE: (&str, &[u8]) = ("index.html", include_bytes!("../../assets/sample/index.html"));
/// The files for a machine without ffmpeg: ten seconds, 1.4 MB (`assets/README.md` says how they were made).
const SHIPPED: [(&str, &[u8]); 5] = [
    ("sample.mp4", include_bytes!("../../assets/sample/sample.mp4")),
    ("hls/index.m3u8", include_bytes!("../../assets/sample/hls/index.m3u8")),
    ("hls/segment0.ts", include_bytes!("../../assets/sample/hls/segment0.ts")),
    ("hls/segment1.ts", include_bytes!("../../assets/sample/hls/segment1.ts")),
    ("hls/segment2.ts", include_bytes!("../../assets/sample/hls/segment2.ts")),
];

/// A minute of 1280x720 at about 4 Mbit/s, index first. `ultrafast`: the user waits for it. A key frame every 4 s, so
/// that [`HLS_ARGUMENTS`] can cut there.
const MP4_ARGUMENTS: &str = "-nostdin -v error -y \
    -f lavfi -i testsrc2=size=1280x720:rate=25:duration=60 \
    -f lavfi -i sine=frequency=440:beep_factor=4:sample_rate=48000:duration=60 \
    -c:v libx264 -preset ultrafast -pix_fmt yuv420p -b:v 4M -maxrate 4M -bufsize 8M -g 100 -sc_threshold 0 \
    -c:a aac -b:a 128k -ac 2 -movflags +faststart sample.mp4";
/// The same, uncoded again, in segments of 4 s.
const HLS_ARGUMENTS: &str = "-nostdin -v error -y -i sample.mp4 -c copy -f hls -hls_time 4 -hls_playlist_type vod \
    -hls_segment_filename hls/segment%d.ts hls/index.m3u8";

/// The library cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// The environment names no place for it.
    #[error(
        "no place for the sample library: neither XDG_CACHE_HOME nor HOME names a directory (name one with --dir)"
    )]
    NoCache,
    /// Somebody else could have written there.
    #[error(
        "no sample library: {path} does not belong to this user alone (chmod go-w it, or name a directory with --dir)",
        path = .path.display()
    )]
    NotPrivate {
        /// The directory in question.
        path: PathBuf,
    },
    /// The file system refuses.
    #[error("cannot make the sample library in {path}: {source} (name a directory with --dir)", path = .path.display())]
    Io {
        /// What was to be made.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
}

/// Why ffmpeg made no video; the shipped files are used then.
#[derive(Debug, thiserror::Error)]
enum FfmpegError {
    #[error("it cannot be run: {0}")]
    Run(#[from] io::Error),
    #[error("it was not done within {0:?}")]
    Deadline(Duration),
    #[error("it ended with {status}: {log}")]
    Failed { status: ExitStatus, log: String },
    #[error("it ended without an error, but made no {0}")]
    Nothing(&'static str),
}

/// The directory of the library, in the user's cache; made at the first call, which can take some seconds.
pub(super) fn library() -> Result<PathBuf, SampleError> {
    let absolute = |path: PathBuf| path.is_absolute().then_some(path);
    // XDG Base Directory Specification 0.8: a relative path there is invalid and to be ignored.
    let cache = env::var_os("XDG_CACHE_HOME")
        .and_then(|path| absolute(path.into()))
        .or_else(|| env::home_dir().and_then(absolute).map(|home| home.join(".cache")))
        .ok_or(SampleError::NoCache)?;
    library_in(&cache, &env::var_os("PATH").unwrap_or_default(), FFMPEG_MAX)
}

/// The library beneath `cache`, made with an ffmpeg on `search` (as PATH is written) if one is there and is done within
/// `ffmpeg_max`.
fn library_in(cache: &Path, search: &OsStr, ffmpeg_max: Duration) -> Result<PathBuf, SampleError> {
    let home = cache.join("plait");
    let library = home.join(LIBRARY);
    private_directory(&home)?;
    // Of two that start at once the second waits here and then finds the library complete.
    let _lock = lock(&home)?;
    if is_complete(&library) {
        return Ok(library);
    }
    let partial = home.join(format!("{LIBRARY}.partial"));
    for left_over in [&partial, &library] {
        remove(left_over).map_err(io_error(left_over))?;
    }
    let kind = fill(&partial, search, ffmpeg_max).map_err(io_error(&partial))?;
    fs::write(partial.join(VERSION_FILE), format!("{VERSION}, {kind}\n")).map_err(io_error(&partial))?;
    fs::rename(&partial, &library).map_err(io_error(&library))?;
    Ok(library)
}

fn io_error(path: &Path) -> impl Fn(io::Error) -> SampleError + use<> {
    let path = path.to_owned();
    move |source| SampleError::Io { path: path.clone(), source }
}

/// Makes `home`, or checks that nobody but this user can have written there.
fn private_directory(home: &Path) -> Result<(), SampleError> {
    DirBuilder::new().recursive(true).mode(0o700).create(home).map_err(io_error(home))?;
    // It may have been there before.
    let now = fs::symlink_metadata(home).map_err(io_error(home))?;
    let ours = now.is_dir() && now.uid() == geteuid().as_raw() && now.mode() & 0o022 == 0;
    if ours { Ok(()) } else { Err(SampleError::NotPrivate { path: home.to_owned() }) }
}

fn lock(home: &Path) -> Result<File, SampleError> {
    let path = home.join("lock");
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.map_err(io_error(&path))?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive).map_err(|error| io_error(&path)(error.into()))?;
    Ok(file)
}

fn is_complete(library: &Path) -> bool {
    fs::read_to_string(library.join(VERSION_FILE)).is_ok_and(|version| version.starts_with(VERSION))
}

fn remove(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes `partial` with everything but the version file; says in a word where it came from.
fn fill(partial: &Path, search: &OsStr, ffmpeg_max: Duration) -> io::Result<&'static str> {
    empty(partial)?;
    let Some(ffmpeg) = find_program("ffmpeg", search) else {
        tracing::info!("no ffmpeg on PATH: the sample library is the small one that plait carries");
        return write_shipped(partial);
    };
    tracing::info!(seconds_max = ffmpeg_max.as_secs(), "making a sample video with ffmpeg, this one time");
    match run_ffmpeg(&ffmpeg, partial, Instant::now() + ffmpeg_max, ffmpeg_max) {
        Ok(()) => Ok("made with ffmpeg"),
        Err(error) => {
            tracing::warn!(
                "{}: {error}; the sample library is the small one that plait carries",
                ffmpeg.display()
            );
            remove(partial)?;
            empty(partial)?;
            write_shipped(partial)
        }
    }
}

fn empty(partial: &Path) -> io::Result<()> {
    fs::create_dir(partial)?;
    fs::create_dir(partial.join("hls"))?;
    fs::write(partial.join(PAGE.0), PAGE.1)
}

fn write_shipped(partial: &Path) -> io::Result<&'static str> {
    for (name, bytes) in SHIPPED {
        fs::write(partial.join(name), bytes)?;
    }
    Ok("as shipped")
}

/// The first executable file called `name` in `search`. Relative entries do not count: they would run what lies in the
/// directory that plait happens to be started in.
fn find_program(name: &str, search: &OsStr) -> Option<PathBuf> {
    let runs = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    env::split_paths(search).filter(|entry| entry.is_absolute()).map(|entry| entry.join(name)).find(runs)
}

fn run_ffmpeg(
    ffmpeg: &Path,
    partial: &Path,
    deadline: Instant,
    allowed: Duration,
) -> Result<(), FfmpegError> {
    let log = partial.join(LOG_FILE);
    for (arguments, makes) in [(MP4_ARGUMENTS, "sample.mp4"), (HLS_ARGUMENTS, "hls/index.m3u8")] {
        let mut child = Command::new(ffmpeg)
            .args(arguments.split_whitespace().map(OsString::from))
            .current_dir(partial)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()?;
        let ended = ends_before(&child, deadline);
        if !matches!(ended, Ok(true)) {
            // It may have ended just now; then there is nothing to kill.
            let _ = child.kill();
        }
        let status = child.wait()?;
        if !ended? {
            return Err(FfmpegError::Deadline(allowed));
        }
        if !status.success() {
            return Err(FfmpegError::Failed { status, log: last_line(&log) });
        }
        if fs::metadata(partial.join(makes)).map_or(0, |made| made.len()) == 0 {
            return Err(FfmpegError::Nothing(makes));
        }
    }
    Ok(fs::remove_file(log)?)
}

/// Waits until `child` has ended or `deadline` is there; true if it has ended.
fn ends_before(child: &Child, deadline: Instant) -> io::Result<bool> {
    let Ok(number) = i32::try_from(child.id()) else { return Err(io::ErrorKind::InvalidData.into()) };
    let Some(pid) = Pid::from_raw(number) else { return Err(io::ErrorKind::InvalidData.into()) };
    // The child has not been waited for, so its number cannot have gone to another process.
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    loop {
        let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now()))
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn last_line(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let tail = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LOG_BYTES_MAX)..]).into_owned();
    tail.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing").trim().to_owned()
}

#[cfg(test)]
mod tests;
