//! The cache of the downstream: what it answers by itself, what it asks the root for, and what it survives.

use std::{
    fs,
    io::Write,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant, SystemTime},
};

use crate::{
    chain::{Chain, Ground, Plan, Root, text},
    client::{Answer, Client, ask},
    content::content,
    process::{DEADLINE, Settings},
    roots::{After, Asked, ScriptedRoot},
};

/// A root that answers single ranges and conditions of one file, and can be told to change it.
pub(crate) struct Film {
    pub(crate) root: ScriptedRoot,
    version: std::sync::Arc<AtomicUsize>,
}

pub(crate) const LENGTH: usize = 3_000_000;

/// The bytes of a version of the film.
pub(crate) fn film(version: usize) -> Vec<u8> {
    content(LENGTH + version)
}

impl Film {
    pub(crate) fn start(headers: &'static str) -> Self {
        let version = std::sync::Arc::new(AtomicUsize::new(0));
        let now = version.clone();
        let root = ScriptedRoot::start(move |asked, stream| {
            let version = now.load(Ordering::SeqCst);
            serve_film(asked, stream, &film(version), &format!("\"v{version}\""), headers)
        });
        Self { root, version }
    }

    pub(crate) fn change(&self) {
        self.version.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.root.asked()
    }
}

pub(crate) fn serve_film(
    asked: &Asked,
    stream: &mut std::net::TcpStream,
    film: &[u8],
    etag: &str,
    headers: &str,
) -> std::io::Result<After> {
    if asked.header("if-none-match") == Some(etag) {
        write!(stream, "HTTP/1.1 304 Not Modified\r\nETag: {etag}\r\n{headers}\r\n")?;
        return Ok(After::Keep);
    }
    let fits = asked.header("if-range").is_none_or(|tag| tag == etag);
    let range = asked.header("range").filter(|_| fits).and_then(|range| {
        let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
        let last = last.parse().unwrap_or(film.len() - 1).min(film.len() - 1);
        Some((first.parse::<usize>().ok()?, last))
    });
    let (status, span, content_range) = match range {
        Some((first, last)) => {
            let header = format!("Content-Range: bytes {first}-{last}/{}\r\n", film.len());
            ("206 Partial Content", first..last + 1, header)
        }
        None => ("200 OK", 0..film.len(), String::new()),
    };
    let length = span.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: video/mp4\r\nContent-Length: {length}\r\n{content_range}ETag: {etag}\r\n{headers}\r\n"
    )?;
    if !asked.line.starts_with("HEAD") {
        stream.write_all(&film[span])?;
    }
    Ok(After::Keep)
}

/// A chain with a cache before this root.
pub(crate) fn chain(root: Root, settings: Settings) -> Chain {
    let ground = Ground::new();
    ground.store("f.mp4", &film(0));
    start_on(ground, root, settings)
}

pub(crate) fn start_on(ground: Ground, root: Root, settings: Settings) -> Chain {
    let downstream = vec!["--cache".to_owned(), text(&cache_dir(&ground)).to_owned()];
    Plan { root, settings, downstream, ..Plan::default() }.start_on(ground)
}

pub(crate) fn cache_dir(ground: &Ground) -> PathBuf {
    ground.scratch("cache")
}

fn film_chain(film: &Film) -> Chain {
    chain(Root::At(film.root.address), Settings::default())
}

pub(crate) fn get(chain: &Chain, headers: &str) -> Answer {
    ask(chain.address, "GET", "/f.mp4", headers)
}

pub(crate) fn status(answer: &Answer) -> &str {
    answer.header("cache-status").unwrap_or("")
}

#[track_caller]
pub(crate) fn check(answer: &Answer, film: &[u8], span: std::ops::Range<usize>) {
    let whole = span == (0..film.len());
    assert!(answer.status() == 206 || (whole && answer.status() == 200), "{:?}", answer.head);
    assert!(answer.body == film[span.clone()], "{span:?} brought {} other bytes", answer.body.len());
}

/// Each executor, with and without splice.
pub(crate) fn each_setting(check: impl Fn(Settings)) {
    for settings in [
        Settings::default(),
        Settings { executor: "glommio", placement: "spread", ..Settings::default() },
        Settings { no_splice: true, ..Settings::default() },
    ] {
        check(settings);
    }
}

#[test]
fn the_second_answer_comes_from_the_cache() {
    each_setting(|settings| {
        let film_root = Film::start("Cache-Control: max-age=60\r\n");
        let chain = chain(Root::At(film_root.root.address), settings);
        let first = get(&chain, "");
        check(&first, &film(0), 0..LENGTH);
        let way = status(&first).strip_prefix("plait; fwd=uri-miss; fwd-status=200; stored; ttl=");
        // Its Date has whole seconds, one of which may have ended.
        assert!(matches!(way, Some("60" | "59")), "{}", status(&first));
        for (headers, span) in [
            ("", 0..LENGTH),
            ("Range: bytes=0-1\r\n", 0..2),
            ("Range: bytes=1000000-\r\n", 1_000_000..LENGTH),
            ("Range: bytes=-7\r\n", LENGTH - 7..LENGTH),
        ] {
            let again = get(&chain, headers);
            check(&again, &film(0), span);
            assert!(status(&again).starts_with("plait; hit"), "{headers}: {}", status(&again));
            assert!(again.header("age").is_some());
        }
        assert_eq!(get(&chain, "If-None-Match: \"v0\"\r\n").status(), 304);
        assert_eq!(get(&chain, "Range: bytes=9999999-\r\n").status(), 416);
        let head = ask(chain.address, "HEAD", "/f.mp4", "");
        assert_eq!(head.header("content-length"), Some(LENGTH.to_string().as_str()));
        assert_eq!(film_root.asked().len(), 1, "{:?}", film_root.asked());
    });
}

#[test]
fn only_missing_bytes_are_fetched() {
    let film_root = Film::start("Cache-Control: max-age=60\r\n");
    let chain = film_chain(&film_root);
    check(&get(&chain, "Range: bytes=1000000-1499999\r\n"), &film(0), 1_000_000..1_500_000);
    check(&get(&chain, "Range: bytes=2000000-2099999\r\n"), &film(0), 2_000_000..2_100_000);
    // Over what is there, and three gaps.
    check(&get(&chain, ""), &film(0), 0..LENGTH);
    let asked: Vec<_> =
        film_root.asked().iter().map(|asked| asked.header("range").map(str::to_owned)).collect();
    let wanted = [
        "bytes=1000000-1499999",
        "bytes=2000000-2099999",
        "bytes=0-999999",
        "bytes=1500000-1999999",
        "bytes=2100000-2999999",
    ];
    assert_eq!(asked, wanted.map(|range| Some(range.to_owned())));
    assert!(film_root.asked()[2..].iter().all(|asked| asked.header("if-range") == Some("\"v0\"")));
    let again = get(&chain, "");
    check(&again, &film(0), 0..LENGTH);
    assert!(status(&again).starts_with("plait; hit"));
}

#[test]
fn versions_are_never_mixed() {
    let film_root = Film::start("Cache-Control: max-age=60\r\n");
    let chain = film_chain(&film_root);
    check(&get(&chain, "Range: bytes=0-999999\r\n"), &film(0), 0..1_000_000);
    film_root.change();
    // The head promises the old version, whose rest is gone.
    let mut client = Client::connect(chain.address);
    client.request("GET", "/f.mp4", "");
    let head = client.head().unwrap();
    assert!(client.body(&head).is_err(), "an answer of two versions looks whole");
    // From then on there is the new one.
    check(&get(&chain, "Range: bytes=500-1999\r\n"), &film(1), 500..2000);
    check(&get(&chain, ""), &film(1), 0..LENGTH + 1);
}

#[test]
fn stale_answers_are_validated() {
    let film_root = Film::start("Cache-Control: max-age=0\r\n");
    let chain = film_chain(&film_root);
    check(&get(&chain, ""), &film(0), 0..LENGTH);
    let again = get(&chain, "");
    check(&again, &film(0), 0..LENGTH);
    assert!(status(&again).starts_with("plait; fwd=stale; fwd-status=304"), "{}", status(&again));
    film_root.change();
    check(&get(&chain, ""), &film(1), 0..LENGTH + 1);
    let asked = film_root.asked();
    let conditions: Vec<_> = asked.iter().map(|asked| asked.header("if-none-match")).collect();
    assert_eq!(conditions, [None, Some("\"v0\""), Some("\"v0\"")]);
}

#[test]
fn what_must_not_be_stored_is_not() {
    for headers in ["Cache-Control: no-store\r\n", "Cache-Control: private\r\n", "Vary: *\r\n"] {
        let film_root = Film::start(headers);
        let chain = film_chain(&film_root);
        for _ in 0..2 {
            let answer = get(&chain, "");
            check(&answer, &film(0), 0..LENGTH);
            assert!(!status(&answer).contains("stored"), "{headers}");
        }
        assert_eq!(film_root.asked().len(), 2);
    }
    let film_root = Film::start("Cache-Control: max-age=60\r\n");
    let chain = film_chain(&film_root);
    assert_eq!(get(&chain, "Cache-Control: only-if-cached\r\n").status(), 504);
    check(&get(&chain, "Cache-Control: no-store\r\n"), &film(0), 0..LENGTH);
    assert_eq!(get(&chain, "Cache-Control: only-if-cached\r\n").status(), 504);
}

#[test]
fn a_killed_process_leaves_no_wrong_byte() {
    let mut ground = Ground::new();
    let film = content(40_000_000);
    ground.store("f.mp4", &film);
    for round in 0..6 {
        let mut chain = start_on(ground, Root::Plait, Settings::default());
        // What the process before has left, and what is missing.
        check(&get(&chain, "Range: bytes=100000-199999\r\n"), &film, 100_000..200_000);
        let mut client = Client::connect(chain.address);
        client.request("GET", "/f.mp4", "");
        client.head().unwrap();
        let some = 1 + round * 7_000_001;
        assert!(client.some(some).unwrap() == film[..some]);
        chain.downstream.kill();
        ground = chain.ground;
    }
    let chain = start_on(ground, Root::Plait, Settings::default());
    for _ in 0..2 {
        check(&get(&chain, ""), &film, 0..film.len());
    }
}

#[test]
fn a_restart_finds_what_was_stored() {
    let film_root = Film::start("Cache-Control: max-age=600\r\n");
    let mut chain = film_chain(&film_root);
    check(&get(&chain, ""), &film(0), 0..LENGTH);
    chain.downstream.terminate();
    assert!(chain.downstream.wait().success());
    let chain = start_on(chain.ground, Root::At(film_root.root.address), Settings::default());
    let again = get(&chain, "");
    check(&again, &film(0), 0..LENGTH);
    assert!(status(&again).starts_with("plait; hit"), "{}", status(&again));
    assert_eq!(film_root.asked().len(), 1);
}

/// Every file of the cache that belongs to an object.
pub(crate) fn object_files(ground: &Ground) -> Vec<PathBuf> {
    let dirs = fs::read_dir(cache_dir(ground).join("objects")).unwrap();
    dirs.flat_map(|dir| fs::read_dir(dir.unwrap().path()).unwrap()).map(|file| file.unwrap().path()).collect()
}

#[test]
fn damaged_and_foreign_files_are_left_out() {
    let film_root = Film::start("Cache-Control: max-age=600\r\n");
    let mut chain = film_chain(&film_root);
    check(&get(&chain, ""), &film(0), 0..LENGTH);
    chain.downstream.terminate();
    chain.downstream.wait();
    let files = object_files(&chain.ground);
    assert_eq!(files.len(), 1, "{files:?}");
    let mut bytes = fs::read(&files[0]).unwrap();
    bytes[..65536].iter_mut().for_each(|byte| *byte ^= 0x55);
    fs::write(&files[0], bytes).unwrap();
    fs::write(files[0].with_file_name("README"), "mine").unwrap();
    fs::write(cache_dir(&chain.ground).join("objects/README"), "mine").unwrap();
    let chain = start_on(chain.ground, Root::At(film_root.root.address), Settings::default());
    chain.downstream.wait_for_log("files that are not of a cache");
    check(&get(&chain, ""), &film(0), 0..LENGTH);
    chain.downstream.wait_for_log("damaged");
    let again = get(&chain, "");
    check(&again, &film(0), 0..LENGTH);
    assert!(status(&again).starts_with("plait; hit"));
    assert!(files[0].with_file_name("README").exists());
}

#[test]
fn a_cache_has_one_process_and_a_usable_directory() {
    let film_root = Film::start("");
    let chain = film_chain(&film_root);
    let key = chain.ground.key();
    let run = |dir: &str, size: &str| {
        let args = ["downstream", "--listen", "127.0.0.1:0", "--key", text(&key), "--path", &chain.paths[0]];
        let mut command = chain.settings.plait();
        command.args(args).args(["--cache", dir, "--cache-size", size]);
        crate::process::run(&mut command)
    };
    for (dir, size, wanted) in [
        (text(&cache_dir(&chain.ground)), "1GiB", "another process"),
        ("/proc/nothing", "1GiB", "/proc/nothing"),
        ("/tmp", "12", "cache-size"),
    ] {
        let output = run(dir, size);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(wanted), "{said}");
    }
}

#[test]
fn several_ranges_in_one_answer() {
    let film_root = Film::start("Cache-Control: max-age=60\r\n");
    let chain = film_chain(&film_root);
    check(&get(&chain, "Range: bytes=0-999999\r\n"), &film(0), 0..1_000_000);
    // The last part is still to be fetched.
    let answer = get(&chain, "Range: bytes=1000-1009, -10, 500000-500999, 2000000-2000001\r\n");
    assert_eq!(answer.status(), 206);
    let kind = answer.header("content-type").unwrap();
    let boundary = kind.strip_prefix("multipart/byteranges; boundary=").unwrap();
    let mut wanted = Vec::new();
    for span in [1000..1010, LENGTH - 10..LENGTH, 500_000..501_000, 2_000_000..2_000_002] {
        let (first, last) = (span.start, span.end - 1);
        wanted.extend(format!(
            "\r\n--{boundary}\r\nContent-Type: video/mp4\r\nContent-Range: bytes {first}-{last}/{LENGTH}\r\n\r\n"
        ).into_bytes());
        wanted.extend(&film(0)[span]);
    }
    wanted.extend(format!("\r\n--{boundary}--\r\n").into_bytes());
    assert!(answer.body == wanted, "{}", answer.body.len());
}

/// Nothing is fresh for longer than the root says, by whatever clock it does.
#[test]
fn a_roots_clock_may_be_wrong_by_a_day() {
    let (now, day) = (SystemTime::now(), Duration::from_secs(86_400));
    for date in [now - day, now + day] {
        let date = httpdate::fmt_http_date(date);
        let film_root = Film::start(format!("Date: {date}\r\nCache-Control: max-age=1\r\n").leak());
        let chain = film_chain(&film_root);
        (0..2).for_each(|_| check(&get(&chain, ""), &film(0), 0..LENGTH));
        film_root.change();
        wait_until("the next version", || get(&chain, "").body == film(1));
    }
}

#[test]
fn players_of_other_origins_may_read() {
    let film_root = Film::start("Cache-Control: max-age=60\r\n");
    for chain in [film_chain(&film_root), Plan::default().start(|ground| ground.store("f.mp4", &film(0)))] {
        let preflight = "Origin: https://player.example\r\nAccess-Control-Request-Method: GET\r\n\
                         Access-Control-Request-Headers: range\r\n";
        let mut client = Client::connect(chain.address);
        let head = {
            client.request("OPTIONS", "/f.mp4", preflight);
            client.head().unwrap()
        };
        assert_eq!(head.status, 204);
        assert_eq!(head.header("access-control-allow-origin"), Some("*"));
        assert_eq!(head.header("access-control-allow-headers"), Some("range"));
        for _ in 0..2 {
            let answer = client
                .ask("GET", "/f.mp4", "Origin: https://player.example\r\nRange: bytes=0-1\r\n")
                .unwrap();
            check(&answer, &film(0), 0..2);
            assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
            assert!(answer.header("access-control-expose-headers").unwrap().contains("Content-Range"));
        }
        // Any other OPTIONS is the root's to answer.
        assert!(matches!(client.ask("OPTIONS", "/f.mp4", "").unwrap().status(), 200 | 405));
    }
}

/// Looks again and again until something holds that happens behind the clients' backs.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < until, "{what} did not happen");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A root of playlists and segments that says nothing of freshness.
fn hls_root() -> ScriptedRoot {
    ScriptedRoot::start(|asked, stream| {
        let path = asked.line.split(' ').nth(1).unwrap();
        let (kind, body) = match path.strip_prefix("/s").and_then(|name| name.strip_suffix(".ts")) {
            Some(number) => ("video/mp2t", content(500_000 + number.parse::<usize>().unwrap())),
            None => {
                let segments: String = (0..8).map(|number| format!("#EXTINF:60,\ns{number}.ts\n")).collect();
                let end = if path == "/live.m3u8" { "" } else { "#EXT-X-ENDLIST\n" };
                let text = format!("#EXTM3U\n#EXT-X-TARGETDURATION:60\n{segments}{end}");
                ("application/vnd.apple.mpegurl", text.into_bytes())
            }
        };
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nETag: \"{path}\"\r\n\r\n"
        )?;
        stream.write_all(&body)?;
        Ok(After::Keep)
    })
}

#[test]
fn playlists_are_fresh_for_as_long_as_they_are_true() {
    let root = hls_root();
    let chain = chain(Root::At(root.address), Settings::default());
    for (path, ttl) in [("/live.m3u8", 25..=30), ("/vod.m3u8", 3500..=3600)] {
        wait_until("the playlist's lifetime", || {
            let answer = ask(chain.address, "GET", path, "");
            let known = status(&answer).split("ttl=").nth(1).and_then(|ttl| ttl.parse::<u64>().ok());
            known.is_some_and(|known| ttl.contains(&known))
        });
    }
}

#[test]
fn the_next_segments_are_there_before_they_are_asked_for() {
    let root = hls_root();
    let chain = chain(Root::At(root.address), Settings::default());
    let fetched = |name: &str| root.asked().iter().filter(|asked| asked.line.contains(name)).count();
    // Its text is read when it has been written.
    wait_until("the playlist's lifetime", || {
        status(&ask(chain.address, "GET", "/vod.m3u8", "")).contains("ttl=3")
    });
    check(&ask(chain.address, "GET", "/s0.ts", ""), &content(500_000), 0..500_000);
    for number in 1..8 {
        let name = format!("/s{number}.ts");
        wait_until("the segment's fetch", || fetched(&name) > 0);
        let length = 500_000 + number;
        // Nothing is fetched ahead of who asks like this.
        wait_until("the segment", || {
            ask(chain.address, "GET", &name, "Cache-Control: only-if-cached\r\n").status() == 200
        });
        check(&ask(chain.address, "GET", &name, ""), &content(length), 0..length);
        assert_eq!(fetched(&name), 1, "{name}");
    }
    assert_eq!(fetched("/s8.ts"), 0);
}

#[test]
fn an_operator_sees_purges_and_warms() {
    let film_root = Film::start("Cache-Control: max-age=600\r\n");
    let chain = film_chain(&film_root);
    let dir = cache_dir(&chain.ground);
    let tell = |args: &[&str]| {
        let output =
            crate::process::run(chain.settings.plait().args(["cache", "--cache", text(&dir)]).args(args));
        assert!(output.status.success(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(tell(&["stat"]).starts_with("objects 0\n"));
    // By the name that the client of these tests uses.
    tell(&["warm", "http://films.example/f.mp4", "http://films.example/g.mp4"]);
    assert!(status(&get(&chain, "")).starts_with("plait; hit"));
    let listed = tell(&["ls"]);
    assert!(listed.contains("100%") && listed.contains("films.example/f.mp4"), "{listed}");
    assert_eq!(tell(&["purge", "http://films.example/f.mp4"]), "1 purged\n");
    assert!(!status(&get(&chain, "")).starts_with("plait; hit"));
    assert_eq!(tell(&["purge", "--prefix", "/"]), "2 purged\n");
    assert_eq!(tell(&["purge", "--prefix", "/"]), "0 purged\n");
    wait_until("the removal of the files", || object_files(&chain.ground).is_empty());
    let nobody = crate::process::run(chain.settings.plait().args(["cache", "--cache", "/nowhere", "stat"]));
    assert!(!nobody.status.success());
}

#[test]
fn the_cache_stays_within_its_bound() {
    let ground = Ground::new();
    let names: Vec<_> = (0..20).map(|number| format!("{number}.ts")).collect();
    for (number, name) in names.iter().enumerate() {
        ground.store(name, &content(1_000_000 + number));
    }
    let dir = cache_dir(&ground);
    let downstream = ["--cache", text(&dir), "--cache-size", "5MB"].map(str::to_owned).to_vec();
    let chain = Plan { downstream, ..Plan::default() }.start_on(ground);
    for _ in 0..2 {
        for (number, name) in names.iter().enumerate() {
            let answer = ask(chain.address, "GET", &format!("/{name}"), "");
            assert!(answer.body == content(1_000_000 + number), "{name}");
        }
    }
    wait_until("the removal of the files", || {
        let files = object_files(&chain.ground);
        let bytes = |file: &PathBuf| fs::metadata(file).map_or(0, |facts| facts.blocks() * 512);
        files.iter().map(bytes).sum::<u64>() <= 5_000_000 && !files.is_empty()
    });
}

#[test]
fn a_disk_that_refuses_costs_no_answer() {
    let film_root = Film::start("Cache-Control: max-age=600\r\n");
    let chain = film_chain(&film_root);
    fs::remove_dir(cache_dir(&chain.ground).join("unnamed")).unwrap();
    for _ in 0..3 {
        check(&get(&chain, ""), &film(0), 0..LENGTH);
        check(&get(&chain, "Range: bytes=7-70000\r\n"), &film(0), 7..70_001);
    }
    chain.downstream.wait_for_log("cannot be written");
    assert_eq!(chain.downstream.log().matches("serving on without it").count(), 1);
}

/// Each encoding is kept by itself, up to a bound; one that is purged or changed takes the others with it.
#[test]
fn variants_are_kept_side_by_side() {
    let root = ScriptedRoot::start(|asked, stream| {
        let encoding = asked.header("accept-encoding").unwrap_or("none").to_owned();
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nETag: \"{encoding}\"\r\nCache-Control: max-age=600\r\n\
             Vary: Accept-Encoding\r\n\r\n{encoding}",
            encoding.len()
        )?;
        Ok(After::Keep)
    });
    let ground = Ground::new();
    let cache = vec!["--cache".to_owned(), text(&ground.scratch("cache")).to_owned()];
    let chain = Plan { root: Root::At(root.address), downstream: cache, ..Plan::default() }.start_on(ground);
    let get = |encoding: &str| {
        let answer = ask(chain.address, "GET", "/list.m3u8", &format!("Accept-Encoding: {encoding}\r\n"));
        assert_eq!(answer.text(), encoding);
    };
    let asked = || root.asked().len();
    for _ in 0..3 {
        ["gzip", "br", "identity"].into_iter().for_each(get);
    }
    assert_eq!(asked(), 3, "one for each");
    // Whoever says something else every time cannot fill the cache, and takes only the oldest places.
    (0..20).for_each(|number| get(&format!("x{number}")));
    assert_eq!(asked(), 23);
    get("x19");
    assert_eq!(asked(), 23);
    get("gzip");
    assert_eq!(asked(), 24, "it has made room");
    // Success of an unsafe method is about all of them.
    assert_eq!(ask(chain.address, "DELETE", "/list.m3u8", "").status(), 200);
    ["gzip", "x19"].into_iter().for_each(get);
    assert_eq!(asked(), 27);
}
