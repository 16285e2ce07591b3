//! A film through emulated long paths, in the player that most people watch with.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::Stdio,
    sync::mpsc::channel,
    thread,
    time::Duration,
};

use plait::lab::{
    Lab, Scenario,
    chain::{Chain, ChainOptions, Content},
};
use serde_json::Value;

use crate::{
    missing::{installed, skipped},
    possible,
};

#[path = "../players/library.rs"]
mod library;

use library::{CHROMIUM_FLAGS, make_library};

/// Playing, switching and seeking takes some 15 s; decoding without a graphics card beside other tests, more.
const DEADLINE: Duration = Duration::from_secs(120);

/// hls.js over two paths of 50 Mbit/s and 100 ms, a rendition of 6 Mbit/s among two: plays, switches and seeks, and playback
/// never stands still for want of bytes.
#[test]
fn hls_js_plays_switches_and_seeks_far_away() {
    let of_npm = |path: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/players").join(path);
    let script: PathBuf = of_npm("node_modules/hls.js/dist/hls.min.js");
    if !possible() {
        return;
    }
    if !installed("chromium") || !installed("ffmpeg") {
        return;
    }
    if !script.is_file() {
        skipped("there is no hls.js (bash .ci/packages)");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let served = dir.path().join("served");
    fs::create_dir(&served).unwrap();
    if !make_library(&served.join("film"), ["400k", "6000k"]) {
        return;
    }
    fs::copy(of_npm("player.html"), served.join("player.html")).unwrap();
    fs::copy(script, served.join("player.js")).unwrap();

    let lab = Lab::build(&Scenario::load("two-equal").unwrap()).unwrap();
    let mut options = ChainOptions::new(&lab, env!("CARGO_BIN_EXE_plait").into());
    options.content = Content::Directory(served);
    let cache = format!("--cache={}", dir.path().join("cache").display());
    options.flags.push(("downstream".into(), cache));
    let chain = Chain::start(&lab, &options).unwrap();

    let mut command = lab.client().command("chromium");
    command.args(CHROMIUM_FLAGS).args(["--no-sandbox", "--enable-logging=stderr", "--log-level=0"]);
    command.arg(format!("--user-data-dir={}", dir.path().join("profile").display()));
    command.arg(format!("http://{}/player.html?player=hls&url=/film/master.m3u8", chain.entrance()));
    let mut browser = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let (tell, told) = channel();
    let said = BufReader::new(browser.stderr.take().unwrap());
    thread::spawn(move || said.lines().map_while(Result::ok).try_for_each(|line| tell.send(line)));
    let mut log = Vec::new();
    let report = loop {
        let Ok(line) = told.recv_timeout(DEADLINE) else { break None };
        // [...:INFO:CONSOLE(1)] "report {...} end", source: ...
        if let Some((_, rest)) = line.split_once("\"report ")
            && let Some((report, _)) = rest.rsplit_once(" end\"")
        {
            break Some(serde_json::from_str::<Value>(report).unwrap());
        }
        log.push(line);
    };
    browser.kill().unwrap();
    browser.wait().unwrap();
    let Some(report) = report else {
        panic!("the page reports nothing; the browser says:\n{}", log.join("\n"))
    };
    eprintln!("{report}");
    assert_eq!(report["failed"], Value::Null, "{report}");
    assert_eq!(report["steps"].as_array().unwrap().len(), 7, "{report}");
    assert_eq!(report["starved"], 0, "playback stood still for want of bytes: {report}");
    assert!(report["frames"].as_u64().unwrap() > 100, "{report}");
}
