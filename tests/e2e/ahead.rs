//! What is fetched before anybody asks for it, and what ends that.

use std::{
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
        mpsc::{channel, sync_channel},
    },
    thread,
    time::Duration,
};

use crate::{
    cache::{cache_dir, chain, check, serve_film, status, wait_until},
    chain::{Chain, Root, text},
    client::{Client, ask},
    content::content,
    process::{DEADLINE, Settings},
    roots::{After, Asked, ScriptedRoot},
};

const FILM: usize = 12_000_000;

/// Bytes of an object that are there, as `plait cache ls` says.
fn present(chain: &Chain, url: &str) -> u64 {
    let dir = cache_dir(&chain.ground);
    let output = crate::process::run(chain.settings.plait().args(["cache", "--cache", text(&dir), "ls"]));
    let listed = String::from_utf8(output.stdout).unwrap();
    let line = listed.lines().find(|line| line.ends_with(url));
    line.map_or(0, |line| line.split_whitespace().next().unwrap().parse().unwrap())
}

fn path(asked: &Asked) -> &str {
    asked.line.split(' ').nth(1).unwrap()
}

#[test]
fn who_reads_on_finds_the_next_bytes_there_and_who_seeks_costs_nothing_more() {
    let film = content(FILM);
    let body = film.clone();
    let root = ScriptedRoot::start(move |asked, stream| {
        serve_film(asked, stream, &body, "\"a\"", "Cache-Control: max-age=600\r\n")
    });
    let chain = chain(Root::At(root.address), Settings::default());
    let mut viewer = Client::connect(chain.address);
    let mut get = |url: &str, first: usize, bytes: usize| {
        let range = format!("Range: bytes={first}-{}\r\n", first + bytes - 1);
        let answer = viewer.ask("GET", url, &range).unwrap();
        check(&answer, &film, first..first + bytes);
        status(&answer).to_owned()
    };
    let fetched = |url: &str| -> Vec<String> {
        let asked = root.asked();
        let asked = asked.iter().filter(|asked| path(asked) == url);
        asked.map(|asked| asked.header("range").unwrap_or("all").to_owned()).collect()
    };
    // All around the film, and then on from one place: what comes behind that is all that is fetched ahead.
    for first in [8_000_000, 1_000_000, 5_000_000, 3_000_000, 10_000_000, 6_000_000, 6_300_000] {
        get("/seeks.mp4", first, 300_000);
    }
    wait_until("the bytes that follow", || fetched("/seeks.mp4").len() > 7);
    let wanted = [8_000_000, 1_000_000, 5_000_000, 3_000_000, 10_000_000, 6_000_000, 6_300_000]
        .map(|first: usize| format!("bytes={first}-{}", first + 299_999));
    let asked = fetched("/seeks.mp4");
    assert_eq!(asked[..7], wanted);
    assert!(asked[7].starts_with("bytes=6600000-"), "{asked:?}");
    let (_, last) = asked[7].split_once('-').unwrap();
    assert!((7_000_000..12_000_000).contains(&last.parse::<usize>().unwrap()), "{asked:?}");
    // From the beginning on.
    for first in [0, 500_000] {
        get("/reads.mp4", first, 500_000);
    }
    wait_until("the bytes that follow", || present(&chain, "/reads.mp4") == 1_000_000 + (2 << 20));
    for first in [1_000_000, 1_500_000, 2_000_000, 2_500_000] {
        assert!(get("/reads.mp4", first, 500_000).starts_with("plait; hit"), "{first}");
    }
}

#[test]
fn what_must_not_be_stored_is_not_kept_ahead() {
    let film = content(FILM);
    let body = film.clone();
    let root = ScriptedRoot::start(move |asked, stream| {
        let (first, _) = asked.header("range").unwrap()["bytes=".len()..].split_once('-').unwrap();
        let is_behind = first.parse::<usize>().unwrap() >= 1_000_000;
        let headers =
            if is_behind { "Cache-Control: no-store\r\n" } else { "Cache-Control: max-age=600\r\n" };
        serve_film(asked, stream, &body, "\"a\"", headers)
    });
    let chain = chain(Root::At(root.address), Settings::default());
    let mut viewer = Client::connect(chain.address);
    let mut get = |first: usize| {
        let range = format!("Range: bytes={first}-{}\r\n", first + 499_999);
        let answer = viewer.ask("GET", "/f.mp4", &range).unwrap();
        check(&answer, &film, first..first + 500_000);
        status(&answer).to_owned()
    };
    get(0);
    get(500_000);
    let asked = |range: &str| root.asked().iter().any(|asked| asked.header("range") == Some(range));
    wait_until("the fetch of the bytes that follow", || asked("bytes=1000000-3097151"));
    // What is there is not for others any more.
    wait_until("the end of the object", || present(&chain, "/f.mp4") == 0);
    assert!(!get(1_000_000).starts_with("plait; hit"));
    assert!(asked("bytes=1000000-1499999"), "{:?}", root.asked());
}

/// A playlist of four segments at `/l.m3u8`, and `segment` at `/sN.ts`.
fn hls(
    asked: &Asked,
    stream: &mut std::net::TcpStream,
    segment: impl Fn(usize) -> usize,
) -> std::io::Result<After> {
    let number = path(asked).strip_prefix("/s").and_then(|name| name.strip_suffix(".ts"));
    let (kind, body) = match number {
        Some(number) => ("video/mp2t", content(segment(number.parse().unwrap()))),
        None => {
            let segments: String = (0..4).map(|number| format!("#EXTINF:60,\ns{number}.ts\n")).collect();
            let text = format!("#EXTM3U\n#EXT-X-TARGETDURATION:60\n{segments}#EXT-X-ENDLIST\n");
            ("application/vnd.apple.mpegurl", text.into_bytes())
        }
    };
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nETag: \"{}\"\r\n\r\n",
        body.len(),
        path(asked)
    )?;
    stream.write_all(&body)?;
    Ok(After::Keep)
}

#[test]
fn what_a_viewer_wishes_for_itself_is_not_wished_for_what_comes_next() {
    let root = ScriptedRoot::start(|asked, stream| hls(asked, stream, |number| 300_000 + number));
    let chain = chain(Root::At(root.address), Settings::default());
    let mut viewer = Client::connect(chain.address);
    assert!(viewer.ask("GET", "/s0.ts", "").unwrap().body == content(300_000));
    wait_for_playlist(&chain);
    // It wants nothing of the root.
    let answer = viewer.ask("GET", "/s0.ts", "Cache-Control: only-if-cached\r\n").unwrap();
    assert!(status(&answer).starts_with("plait; hit"), "{}", status(&answer));
    thread::sleep(Duration::from_secs(1));
    assert!(!root.asked().iter().any(|asked| path(asked) == "/s1.ts"), "{:?}", root.asked());
    let wish = "Cache-Control: no-cache, max-age=0\r\nPragma: no-cache\r\n";
    for _ in 0..2 {
        assert!(viewer.ask("GET", "/s0.ts", wish).unwrap().body == content(300_000));
        wait_until("what comes next", || {
            (1..4).all(|number| present(&chain, &format!("/s{number}.ts")) == 300_000 + number)
        });
    }
    let fetches = fetches(&root);
    assert_eq!(fetches, [3, 1, 1, 1], "{:?}", root.asked());
    let comes_next = |asked: &Asked| path(asked).ends_with(".ts") && path(asked) != "/s0.ts";
    for asked in root.asked().iter().filter(|asked| comes_next(asked)) {
        assert_eq!((asked.header("cache-control"), asked.header("pragma")), (None, None));
    }
}

/// How often the root was asked for each segment, once that has long ended.
fn fetches(root: &ScriptedRoot) -> [usize; 4] {
    root.wait_for_request("/s1.ts");
    // Hundreds of round trips.
    thread::sleep(Duration::from_secs(2));
    let asked = root.asked();
    [0, 1, 2, 3]
        .map(|number| asked.iter().filter(|asked| path(asked) == format!("/s{number}.ts").as_str()).count())
}

#[test]
fn what_the_disk_refuses_is_not_fetched_ahead_again_and_again() {
    let segment = content(300_000);
    let root = ScriptedRoot::start(move |asked, stream| match path(asked) {
        "/l.m3u8" => hls(asked, stream, |_| 0),
        name => serve_film(asked, stream, &segment, &format!("\"{name}\""), "Cache-Control: max-age=600\r\n"),
    });
    let chain = chain(Root::At(root.address), Settings::default());
    wait_for_playlist(&chain);
    std::fs::remove_dir_all(cache_dir(&chain.ground).join("unnamed")).unwrap();
    let mut viewer = Client::connect(chain.address);
    assert!(viewer.ask("GET", "/s0.ts", "").unwrap().body == content(300_000));
    // One more where the disk refuses while the next is asked for.
    assert!(fetches(&root).into_iter().all(|fetches| fetches <= 2), "{:?}", root.asked());
    drop(viewer);
}

#[test]
fn a_root_that_cuts_its_answers_short_is_not_asked_ahead_again_and_again() {
    let segment = content(300_000);
    let root = ScriptedRoot::start(move |asked, stream| {
        if path(asked) != "/s1.ts" {
            return hls(asked, stream, |_| 300_000);
        }
        let first = asked.header("range").and_then(|range| range["bytes=".len()..].split_once('-'));
        let first: usize = first.map_or(0, |(first, _)| first.parse().unwrap());
        let (status, range) = match first {
            0 => ("200 OK", String::new()),
            _ => ("206 Partial Content", format!("Content-Range: bytes {first}-299999/300000\r\n")),
        };
        let length = 300_000 - first;
        write!(stream, "HTTP/1.1 {status}\r\n{range}Content-Length: {length}\r\nETag: \"s1\"\r\n\r\n")?;
        stream.write_all(&segment[first..first + 100])?;
        Ok(After::Close)
    });
    let chain = chain(Root::At(root.address), Settings::default());
    wait_for_playlist(&chain);
    let mut viewer = Client::connect(chain.address);
    assert!(viewer.ask("GET", "/s0.ts", "").unwrap().body == content(300_000));
    let fetches = fetches(&root)[1];
    assert!((2..=5).contains(&fetches), "{fetches}: {:?}", root.asked());
    drop(viewer);
}

/// The downstream has read the playlist.
fn wait_for_playlist(chain: &Chain) {
    wait_until("the playlist's lifetime", || {
        status(&ask(chain.address, "GET", "/l.m3u8", "")).contains("ttl=3")
    });
}

#[test]
fn what_is_fetched_ahead_ends_soon_after_its_viewer_has_left() {
    const RUNNING: u8 = 0;
    const BROKEN: u8 = 1;
    const WHOLE: u8 = 2;
    let ended = Arc::new(AtomicU8::new(RUNNING));
    let tells = ended.clone();
    let root = ScriptedRoot::start(move |asked, stream| {
        if path(asked) != "/s1.ts" {
            return hls(asked, stream, |number| 300_000 + number);
        }
        // Ten times as long as anybody stays.
        let piece = content(50_000);
        let mut send = || {
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 25000000\r\nETag: \"s1\"\r\n\r\n")?;
            (0..500).try_for_each(|_| {
                thread::sleep(Duration::from_millis(100));
                stream.write_all(&piece)
            })
        };
        let sent = send();
        tells.store(if sent.is_ok() { WHOLE } else { BROKEN }, Ordering::SeqCst);
        sent.map(|()| After::Keep)
    });
    let chain = chain(Root::At(root.address), Settings::default());
    wait_for_playlist(&chain);
    let mut viewer = Client::connect(chain.address);
    assert_eq!(viewer.ask("GET", "/s0.ts", "").unwrap().body, content(300_000));
    root.wait_for_request("/s1.ts");
    drop(viewer);
    wait_until("the end of the fetch", || ended.load(Ordering::SeqCst) != RUNNING);
    assert_eq!(ended.load(Ordering::SeqCst), BROKEN, "it was fetched for nobody");
    assert!(!root.asked().iter().any(|asked| path(asked) == "/s2.ts"), "{:?}", root.asked());
}

#[test]
fn what_is_fetched_ahead_gives_way_to_a_client_that_waits() {
    let (release, released) = channel::<()>();
    let released = std::sync::Mutex::new(released);
    let (waits, waiting) = sync_channel(1);
    let root = ScriptedRoot::start(move |asked, stream| {
        if path(asked) != "/slow.mp4" {
            return hls(asked, stream, |number| 300_000 + number);
        }
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\nETag: \"slow\"\r\n\r\n")?;
        stream.write_all(&content(2_000_000)[..1_000_000])?;
        let _ = waits.send(());
        let _ = released.lock().unwrap().recv_timeout(DEADLINE);
        stream.write_all(&content(2_000_000)[1_000_000..])?;
        Ok(After::Keep)
    });
    let chain = chain(Root::At(root.address), Settings::default());
    wait_for_playlist(&chain);
    let mut client = Client::connect(chain.address);
    client.request("GET", "/slow.mp4", "");
    client.head().unwrap();
    assert!(client.some(1_000_000).unwrap() == content(2_000_000)[..1_000_000]);
    waiting.recv_timeout(DEADLINE).unwrap();
    let mut viewer = Client::connect(chain.address);
    assert!(viewer.ask("GET", "/s0.ts", "").unwrap().body == content(300_000));
    root.wait_for_request("/s1.ts");
    // Many times what the segment would take.
    for number in 0..30 {
        let name = format!("/other{number}.ts");
        assert_eq!(ask(chain.address, "GET", &name, "").status(), 200);
    }
    assert_eq!(present(&chain, "/s1.ts"), 0, "it takes rate from a client that waits");
    release.send(()).unwrap();
    assert!(client.some(1_000_000).unwrap() == content(2_000_000)[1_000_000..]);
    wait_until("the segment", || present(&chain, "/s1.ts") == 300_001);
    assert!(viewer.ask("GET", "/s1.ts", "").unwrap().body == content(300_001));
}
