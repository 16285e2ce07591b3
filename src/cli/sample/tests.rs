//! The library is made once, whole, and also where ffmpeg is missing, broken or hangs.

use std::io::Write;

use super::*;

/// Longer than any of the ffmpegs below need on a busy machine.
const PATIENT: Duration = Duration::from_secs(60);

/// A directory to search, with an `ffmpeg` that is this shell script. `cp` by another process: a file that this one has
/// open for writing in any thread could not be executed.
fn search_with(directory: &Path, script: &str) -> OsString {
    let mut copy = Command::new("sh")
        .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
        .arg(directory.join("ffmpeg"))
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    copy.stdin.take().unwrap().write_all(format!("#!/bin/sh\n{script}\n").as_bytes()).unwrap();
    assert!(copy.wait().unwrap().success());
    directory.as_os_str().to_owned()
}

/// An ffmpeg that writes a line into `runs` and then `made` into the file it is to make.
fn counting(runs: &Path) -> String {
    format!("for last; do :; done\necho made > \"$last\"\necho run >> '{}'", runs.display())
}

fn assert_is_shipped(library: &Path) {
    for (name, bytes) in SHIPPED.iter().chain([&PAGE]) {
        assert!(fs::read(library.join(name)).unwrap() == *bytes, "{name} differs");
    }
    assert!(is_complete(library));
    assert!(!library.join(LOG_FILE).exists());
}

/// Types of the boxes at the top level of an MP4, in order (ISO/IEC 14496-12 §4.2).
fn boxes(mut mp4: &[u8]) -> Vec<String> {
    let mut kinds = Vec::new();
    while !mp4.is_empty() {
        let size = u32::from_be_bytes(mp4[..4].try_into().unwrap()) as usize;
        kinds.push(String::from_utf8(mp4[4..8].to_vec()).unwrap());
        mp4 = &mp4[size..];
    }
    kinds
}

#[test]
fn the_shipped_video_starts_to_play_before_it_is_whole() {
    let kinds = boxes(SHIPPED[0].1);
    let at = |kind: &str| kinds.iter().position(|other| other == kind).expect(kind);
    assert!(at("ftyp") < at("moov") && at("moov") < at("mdat"), "{kinds:?}");
}

#[test]
fn the_shipped_playlist_names_the_shipped_segments() {
    let playlist = std::str::from_utf8(SHIPPED[1].1).unwrap();
    let named: Vec<_> = playlist.lines().filter(|line| !line.starts_with('#')).collect();
    let shipped: Vec<_> = SHIPPED[2..].iter().map(|(name, _)| name.trim_start_matches("hls/")).collect();
    assert_eq!(named, shipped);
    assert!(playlist.contains("#EXT-X-ENDLIST"));
    for (name, segment) in &SHIPPED[2..] {
        assert!(segment.len() % 188 == 0 && segment[0] == 0x47, "{name} is no transport stream");
    }
    assert!(SHIPPED.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() < 1_500_000);
}

#[test]
fn without_ffmpeg_the_shipped_files_are_served() {
    let cache = tempfile::tempdir().unwrap();
    let library = library_in(cache.path(), OsStr::new(""), PATIENT).unwrap();
    assert_eq!(library, cache.path().join("plait/sample-v1"));
    assert_is_shipped(&library);
}

#[test]
fn a_library_is_made_once() {
    let (cache, programs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let runs = programs.path().join("runs");
    let search = search_with(programs.path(), &counting(&runs));
    let first = library_in(cache.path(), &search, PATIENT).unwrap();
    assert_eq!(fs::read_to_string(first.join("sample.mp4")).unwrap(), "made\n");
    assert_eq!(fs::read_to_string(first.join("hls/index.m3u8")).unwrap(), "made\n");
    assert_eq!(fs::read(first.join(PAGE.0)).unwrap(), PAGE.1);
    assert_eq!(library_in(cache.path(), &search, PATIENT).unwrap(), first);
    assert_eq!(fs::read_to_string(&runs).unwrap(), "run\nrun\n", "once the MP4, once the HLS");
}

#[test]
fn two_that_start_at_once_make_one() {
    let (cache, programs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let runs = programs.path().join("runs");
    let search = search_with(programs.path(), &counting(&runs));
    std::thread::scope(|scope| {
        let make = || library_in(cache.path(), &search, PATIENT).unwrap();
        let other = scope.spawn(make);
        assert_eq!(make(), other.join().unwrap());
    });
    assert_eq!(fs::read_to_string(&runs).unwrap(), "run\nrun\n");
}

#[test]
fn a_library_that_was_not_finished_is_made_again() {
    let cache = tempfile::tempdir().unwrap();
    let home = cache.path().join("plait");
    DirBuilder::new().mode(0o700).create(&home).unwrap();
    for left_over in ["sample-v1", "sample-v1.partial"] {
        fs::create_dir(home.join(left_over)).unwrap();
        fs::write(home.join(left_over).join("sample.mp4"), "half").unwrap();
    }
    assert_is_shipped(&library_in(cache.path(), OsStr::new(""), PATIENT).unwrap());
    assert!(!home.join("sample-v1.partial").exists());
}

#[test]
fn a_failing_ffmpeg_falls_back_to_the_shipped_files() {
    for script in ["echo broken > sample.mp4; echo no such encoder >&2; exit 1", "exit 0", "kill -9 $$"] {
        let (cache, programs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let search = search_with(programs.path(), script);
        assert_is_shipped(&library_in(cache.path(), &search, PATIENT).unwrap());
    }
}

#[test]
fn a_failure_is_told_with_the_last_thing_ffmpeg_said() {
    let (partial, programs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let search = search_with(programs.path(), "printf 'first\\nno such encoder\\n\\n' >&2; exit 3");
    let ffmpeg = find_program("ffmpeg", &search).unwrap();
    let error = run_ffmpeg(&ffmpeg, partial.path(), Instant::now() + PATIENT, PATIENT).unwrap_err();
    assert_eq!(error.to_string(), "it ended with exit status: 3: no such encoder");
}

#[test]
fn a_hanging_ffmpeg_falls_back_to_the_shipped_files() {
    let (cache, programs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let search = search_with(programs.path(), "exec sleep 600");
    let started = Instant::now();
    assert_is_shipped(&library_in(cache.path(), &search, Duration::from_millis(50)).unwrap());
    assert!(started.elapsed() < PATIENT, "it was waited for");
}

#[test]
fn nothing_is_written_where_others_can_write() {
    let cache = tempfile::tempdir().unwrap();
    let home = cache.path().join("plait");
    fs::create_dir(&home).unwrap();
    fs::set_permissions(&home, fs::Permissions::from_mode(0o777)).unwrap();
    let refused = library_in(cache.path(), OsStr::new(""), PATIENT).unwrap_err();
    assert!(matches!(refused, SampleError::NotPrivate { .. }), "{refused}");
    assert_eq!(fs::read_dir(&home).unwrap().count(), 0);

    let (cache, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::os::unix::fs::symlink(elsewhere.path(), cache.path().join("plait")).unwrap();
    let refused = library_in(cache.path(), OsStr::new(""), PATIENT).unwrap_err();
    assert!(matches!(refused, SampleError::NotPrivate { .. }), "{refused}");
    assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
}

#[test]
fn programs_are_looked_for_in_absolute_directories_only() {
    let programs = tempfile::tempdir().unwrap();
    let search = search_with(programs.path(), "exit 0");
    assert_eq!(find_program("ffmpeg", &search), Some(programs.path().join("ffmpeg")));
    assert_eq!(find_program("ffmpeg", OsStr::new("")), None);
    let to_the_top = "../".repeat(env::current_dir().unwrap().components().count() - 1);
    let relative = Path::new(&to_the_top).join(programs.path().strip_prefix("/").unwrap());
    assert!(relative.join("ffmpeg").exists());
    assert_eq!(find_program("ffmpeg", relative.as_os_str()), None);
    fs::set_permissions(programs.path().join("ffmpeg"), fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(find_program("ffmpeg", &search), None);
}
