//! Players that people watch with: hls.js and shaka-player in headless Chromium, from a page of another origin.
//!
//! The page (`tests/players/player.html`) plays, switches renditions and seeks, and tells at the end what it has seen.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc::{Receiver, channel},
};

use percent_encoding::percent_decode_str;
use serde_json::Value;

use crate::{
    chain::{Ground, Plan, text},
    client::{aria2c, ask, curl},
    content::content,
    missing::{installed, skipped},
    process::{DEADLINE, Process, run},
    roots::{After, ScriptedRoot},
};

#[path = "../players/library.rs"]
mod library;

use library::{CHROMIUM_FLAGS, make_library};

/// Where `.ci/packages` puts them.
fn of_npm(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/players").join(path)
}

/// The server of the page, on an origin of its own, and what the page reports.
fn page_of(script: PathBuf) -> (ScriptedRoot, Receiver<Value>) {
    let (reports, reported) = channel();
    let root = ScriptedRoot::start(move |asked, stream| {
        let target = asked.line.split(' ').nth(1).unwrap();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let file = match path {
            "/player.html" => of_npm("player.html"),
            "/player.js" => script.clone(),
            "/report" => {
                let report = percent_decode_str(query).decode_utf8().unwrap();
                reports.send(serde_json::from_str(&report).unwrap()).unwrap();
                stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n")?;
                return Ok(After::Keep);
            }
            _ => {
                stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
                return Ok(After::Keep);
            }
        };
        let body = fs::read(file)?;
        let kind = if path.ends_with("html") { "text/html" } else { "text/javascript" };
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes())?;
        stream.write_all(&body)?;
        Ok(After::Keep)
    });
    (root, reported)
}

fn chromium(url: &str, profile: &Path) -> Process {
    let mut command = Command::new("chromium");
    command.args(CHROMIUM_FLAGS).arg("--disable-background-timer-throttling");
    if rustix::process::geteuid().is_root() {
        // Its sandbox refuses root.
        command.arg("--no-sandbox");
    }
    command.arg(format!("--user-data-dir={}", text(profile))).arg(url);
    Process::start("chromium", &mut command).ends_with_sigterm()
}

fn watch(player: &str, script: &str) {
    let script = of_npm(script);
    if !installed("chromium") || !installed("ffmpeg") {
        return;
    }
    if !script.is_file() {
        skipped(format_args!("there is no {} (npm ci --prefix tests/players)", script.display()));
        return;
    }
    let ground = Ground::new();
    if !make_library(&ground.files().join("film"), ["300k", "900k"]) {
        return;
    }
    let cache = ground.scratch("cache");
    let downstream = vec!["--cache".to_owned(), text(&cache).to_owned()];
    let chain = Plan { downstream, ..Plan::default() }.start_on(ground);
    let (page, reported) = page_of(script);
    let film = chain.url("/film/master.m3u8");
    let url = format!("http://{}/player.html?player={player}&url={film}", page.address);
    let browser = chromium(&url, &chain.ground.scratch("profile"));
    let report = reported
        .recv_timeout(2 * DEADLINE)
        .unwrap_or_else(|_| panic!("the page reports nothing; the browser says:\n{}", browser.log()));
    eprintln!("{player}: {report}");
    assert_eq!(report["failed"], Value::Null, "{report}");
    assert_eq!(report["steps"].as_array().unwrap().len(), 7, "{report}");
    assert_eq!(report["starved"], 0, "playback stood still for want of bytes: {report}");
    // A range was allowed by a preflight, and its place may be read.
    let whole = fs::metadata(chain.ground.files().join("film/master.m3u8")).unwrap().len();
    let part = serde_json::json!([206, 2, format!("bytes 0-1/{whole}")]);
    assert_eq!(report["part"], part, "{report}");
    // The browser's own cache answers some; what came here was not refused.
    assert!(report["frames"].as_u64().unwrap() > 100, "{report}");
}

#[test]
fn hls_js_plays_switches_and_seeks() {
    watch("hls", "node_modules/hls.js/dist/hls.min.js");
}

#[test]
fn shaka_player_plays_switches_and_seeks() {
    watch("shaka", "node_modules/shaka-player/dist/shaka-player.compiled.js");
}

/// From the beginning and from a place that it seeks to, with a cache that has nothing and one that has it.
#[test]
fn mpv_plays_and_seeks() {
    if !installed("mpv") || !installed("ffmpeg") {
        return;
    }
    let ground = Ground::new();
    let film = ground.files().join("film");
    if !make_library(&film, ["300k", "900k"]) {
        return;
    }
    // mpv 0.35 does not seek in HLS with fMP4, from a disk neither.
    let hls = ["-f", "hls", "-hls_time", "2", "-hls_list_size", "0", "film.m3u8"];
    for output in [&["film.mp4"][..], &hls] {
        let mut copy = Command::new("ffmpeg");
        copy.current_dir(&film).args(["-nostdin", "-v", "error", "-i", "1/list.m3u8", "-c", "copy"]);
        let copied = run(copy.args(output));
        assert!(copied.status.success(), "{copied:?}");
    }
    let cache = vec!["--cache".to_owned(), text(&ground.scratch("cache")).to_owned()];
    let chain = Plan { downstream: cache, ..Plan::default() }.start_on(ground);
    for (number, (file, start)) in [
        ("film.mp4", "0"),
        ("film.mp4", "21"),
        ("film.mp4", "5"),
        ("master.m3u8", "0"),
        ("film.m3u8", "0"),
        ("film.m3u8", "17"),
    ]
    .into_iter()
    .enumerate()
    {
        let shown = chain.ground.scratch(&format!("shown-{number}"));
        let played = run(Command::new("mpv")
            .args(["--no-config", "--no-terminal", "--ao=null", "--vo=image", "--untimed", "--frames=60"])
            .args([&format!("--vo-image-outdir={}", text(&shown)), &format!("--start={start}")])
            .arg(chain.url(&format!("/film/{file}"))));
        assert!(played.status.success(), "{file} from {start} s: {played:?}");
        let pictures = fs::read_dir(&shown).unwrap().count();
        assert!(pictures >= 50, "{file} from {start} s: {pictures} pictures");
    }
}

/// What shaka-player asks before it asks for a range, with and without a cache.
#[test]
fn a_preflight_for_ranges_is_answered_beside_the_root() {
    for cache in [false, true] {
        let ground = Ground::new();
        let dir = ground.scratch("cache");
        let downstream = if cache { vec!["--cache".to_owned(), text(&dir).to_owned()] } else { Vec::new() };
        let root = ScriptedRoot::start(|_, _| Ok(After::Reset));
        let chain = Plan { downstream, root: crate::chain::Root::At(root.address), ..Plan::default() }
            .start_on(ground);
        let asked = "Origin: https://player.example\r\nAccess-Control-Request-Method: GET\r\n\
                     Access-Control-Request-Headers: range\r\n";
        let answer = ask(chain.address, "OPTIONS", "/film.mp4", asked);
        assert_eq!(answer.status(), 204);
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
        assert_eq!(answer.header("access-control-allow-headers"), Some("range"));
        assert!(root.asked().is_empty(), "the root was asked: {:?}", root.asked());
    }
}

/// Many parts at once, cold and warm: what comes is the file.
#[test]
fn curl_and_aria2c_with_many_ranges() {
    let film = content(24_000_001);
    let ground = Ground::new();
    ground.store("film.mp4", &film);
    let cache = vec!["--cache".to_owned(), text(&ground.scratch("cache")).to_owned()];
    let chain = Plan { downstream: cache, ..Plan::default() }.start_on(ground);
    let url = chain.url("/film.mp4");
    for round in ["cold", "warm"] {
        let path = chain.ground.scratch(round);
        if installed("aria2c") {
            aria2c(&url, &path);
            assert!(fs::read(&path).unwrap() == film, "aria2c, {round}");
        }
        // Out of order, overlapping, one byte, the last ones.
        let ranges = ["5000000-5999999", "0-1", "0-99999", "5500000-9000000", "12345678-12345678", "-1000"];
        let mut args = vec!["--parallel".to_owned(), "--parallel-immediate".to_owned()];
        for (number, range) in ranges.iter().enumerate() {
            let part = chain.ground.scratch(&format!("{round}-{number}"));
            // `--next` begins a request with options of its own.
            let next = if number == 0 { None } else { Some("--next".to_owned()) };
            args.extend(next);
            args.extend(["-f", "-r", range, "-o", text(&part), &url].map(str::to_owned));
        }
        let output = curl(args.iter().map(String::as_str));
        assert!(output.status.success(), "{output:?}");
        for (number, range) in ranges.iter().enumerate() {
            let (first, last) = range.split_once('-').unwrap();
            let span = match first.parse::<usize>() {
                Ok(first) => first..last.parse::<usize>().unwrap() + 1,
                Err(_) => film.len() - last.parse::<usize>().unwrap()..film.len(),
            };
            let part = fs::read(chain.ground.scratch(&format!("{round}-{number}"))).unwrap();
            assert!(part == film[span], "curl, {round}, bytes {range}");
        }
    }
}
