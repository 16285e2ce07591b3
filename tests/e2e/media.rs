//! Real players' readers: ffmpeg decodes through the chain exactly what it decodes from the disk.

use std::{path::Path, process::Command};

use crate::{
    chain::{Chain, Ground, Plan, text},
    missing::installed,
    process::{Settings, run},
};

/// Makes a film of 10 s with a key frame each second and its index at the end, as cameras write it, and an HLS rendition.
/// The encoders are those that every build of ffmpeg has.
fn make_films(dir: &Path) {
    let source = ["-f", "lavfi", "-i", "testsrc2=size=320x240:rate=25:duration=10"]
        .into_iter()
        .chain(["-f", "lavfi", "-i", "sine=frequency=440:duration=10"])
        .chain(["-shortest", "-g", "25", "-b:v", "1M"]);
    let film = dir.join("film.mp4");
    ffmpeg(source.clone().chain(["-c:v", "mpeg4", "-c:a", "aac", text(&film)]));
    let (parts, playlist) = (dir.join("part-%02d.ts"), dir.join("film.m3u8"));
    ffmpeg(
        source
            .chain([
                "-c:v",
                "mpeg2video",
                "-c:a",
                "mp2",
                "-f",
                "hls",
                "-hls_time",
                "2",
                "-hls_list_size",
                "0",
            ])
            .chain(["-hls_segment_filename", text(&parts), text(&playlist)]),
    );
}

/// Runs ffmpeg and returns what it wrote; panics with what it says if it fails.
fn ffmpeg<'a>(args: impl IntoIterator<Item = &'a str>) -> String {
    let mut command = Command::new("ffmpeg");
    command.args(["-nostdin", "-hide_banner", "-v", "error", "-xerror", "-y"]).args(args);
    let output = run(&mut command);
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// MD5 of every decoded frame behind `seek` seconds.
fn frames(input: &str, seek: &str) -> String {
    let frames = ffmpeg(["-ss", seek, "-i", input, "-map", "0:v", "-f", "framemd5", "-"]);
    assert!(frames.lines().filter(|line| !line.starts_with('#')).count() > 20, "{frames}");
    frames
}

fn with_films(settings: Settings, check: impl Fn(&Chain)) {
    if !installed("ffmpeg") || !installed("ffprobe") {
        return;
    }
    let chain = Plan { settings, ..Plan::default() }.start(|ground| make_films(&ground.files()));
    check(&chain);
}

fn check_film(settings: Settings, name: &str) {
    with_films(settings, |chain| {
        let local = chain.ground.files().join(name);
        let url = chain.url(&format!("/{name}"));
        for seek in ["0", "3.2", "7.96"] {
            assert_eq!(frames(&url, seek), frames(text(&local), seek), "{name} from {seek} s");
        }
    });
}

#[test]
fn a_film_with_seeking() {
    check_film(Settings::default(), "film.mp4");
}

#[test]
fn a_film_with_seeking_on_glommio() {
    check_film(Settings { executor: "glommio", placement: "spread", ..Settings::default() }, "film.mp4");
}

#[test]
fn an_hls_rendition_with_seeking() {
    check_film(Settings::default(), "film.m3u8");
}

#[test]
fn an_hls_rendition_with_seeking_on_glommio() {
    check_film(Settings { executor: "glommio", placement: "local", ..Settings::default() }, "film.m3u8");
}

#[test]
fn films_with_seeking_through_the_cache() {
    if !installed("ffmpeg") {
        return;
    }
    let ground = Ground::new();
    make_films(&ground.files());
    let downstream = vec!["--cache".to_owned(), text(&ground.scratch("cache")).to_owned()];
    let chain = Plan { downstream, ..Plan::default() }.start_on(ground);
    // Cold, in parts, and whole from the disk.
    for seek in ["7.96", "3.2", "0", "3.2"] {
        for name in ["film.mp4", "film.m3u8"] {
            let local = chain.ground.files().join(name);
            let url = chain.url(&format!("/{name}"));
            assert_eq!(frames(&url, seek), frames(text(&local), seek), "{name} from {seek} s");
        }
    }
}

#[test]
fn ffprobe_reads_a_film() {
    with_films(Settings::default(), |chain| {
        let probe = |input: &str| {
            let output = run(Command::new("ffprobe").args([
                "-v",
                "error",
                "-show_streams",
                "-show_entries",
                "format=duration,size,format_name",
                input,
            ]));
            assert!(output.status.success(), "ffprobe {input}: {output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        let local = chain.ground.files().join("film.mp4");
        let probed = probe(&chain.url("/film.mp4"));
        assert_eq!(probed, probe(text(&local)));
        assert!(probed.contains("duration=10."), "{probed}");
    });
}
