//! Rules of HTTP caches that clients and scripts see: what only the cache may answer, ranges with conditions, what a change
//! takes with it, variants, and what our own answers say.

use std::io::Write;

use crate::{
    cache::{Film, LENGTH as FILM_LENGTH, film, get as get_film, wait_until},
    chain::{Plan, Root, text},
    client::{Answer, Client, ask},
    content::content,
    revalidation::{Changing, LENGTH, check, get, look, store, way},
    roots::{After, Asked, ScriptedRoot},
};

const CACHED: &str = "Cache-Control: only-if-cached\r\n";

/// The cache's members of `Cache-Status`, from the root's side on.
fn ways(answer: &Answer) -> Vec<&str> {
    let headers = answer.head.headers.iter();
    headers.filter(|(name, _)| name == "cache-status").map(|(_, value)| value.as_str()).collect()
}

#[test]
fn only_if_cached_asks_no_root_for_what_is_missing() {
    let root = Film::start("Cache-Control: max-age=600\r\n");
    let chain = crate::cache::chain(Root::At(root.root.address), Default::default());
    crate::cache::check(&get_film(&chain, "Range: bytes=1000-1999\r\n"), &film(0), 1000..2000);
    let cached = |headers: &str| get_film(&chain, &format!("{CACHED}{headers}"));
    wait_until("its way into the cache", || cached("Range: bytes=1000-1999\r\n").status() == 206);
    crate::cache::check(&cached("Range: bytes=1500-1999\r\n"), &film(0), 1500..2000);
    for missing in [
        "",
        "Range: bytes=999-1999\r\n",
        "Range: bytes=1000-2000\r\n",
        "Range: bytes=-5\r\n",
        "Range: bytes=1000-1010,5000-5010\r\n",
    ] {
        assert_eq!(cached(missing).status(), 504, "{missing}");
    }
    let parts = cached("Range: bytes=1000-1010,1900-1910\r\n");
    assert!(parts.header("content-type").is_some_and(|kind| kind.starts_with("multipart/byteranges")));
    // What needs no byte.
    assert_eq!(ask(chain.address, "HEAD", "/f.mp4", CACHED).status(), 200);
    assert_eq!(cached("If-None-Match: \"v0\"\r\n").status(), 304);
    assert_eq!(cached("Range: bytes=9999999-\r\n").status(), 416);
    assert_eq!(root.asked().len(), 1, "{:?}", root.asked());
}

#[test]
fn only_if_cached_does_not_wait_for_what_another_fetches() {
    let (go_on, goes_on) = std::sync::mpsc::channel::<()>();
    let goes_on = std::sync::Mutex::new(goes_on);
    let body = content(FILM_LENGTH);
    let root = ScriptedRoot::start(move |_, stream| {
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Length: {FILM_LENGTH}\r\nETag: \"a\"\r\nCache-Control: max-age=600\r\n\r\n"
        )?;
        stream.write_all(&body[..FILM_LENGTH / 2])?;
        let _ = goes_on.lock().unwrap().recv_timeout(crate::process::DEADLINE);
        stream.write_all(&body[FILM_LENGTH / 2..])?;
        Ok(After::Keep)
    });
    let chain = crate::cache::chain(Root::At(root.address), Default::default());
    let mut first = Client::connect(chain.address);
    first.request("GET", "/f.mp4", "");
    let head = first.head().unwrap();
    let some = first.some(FILM_LENGTH / 2).unwrap();
    assert_eq!(get_film(&chain, CACHED).status(), 504);
    go_on.send(()).unwrap();
    let rest = first.some(FILM_LENGTH - some.len()).unwrap();
    assert!(head.status == 200 && [some, rest].concat() == content(FILM_LENGTH));
    wait_until("its way into the cache", || get_film(&chain, CACHED).status() == 200);
    assert_eq!(root.asked().len(), 1);
}

#[test]
fn if_range_is_about_what_is_stored() {
    let date = "Sun, 09 Sep 2001 01:46:40 GMT";
    let root =
        Changing::start("Cache-Control: max-age=600\r\nLast-Modified: Sun, 09 Sep 2001 01:46:40 GMT\r\n", "");
    let (chain, _dir) = root.chain();
    store(&chain, "/f");
    for (condition, status) in [
        ("\"v0\"", 206),
        (date, 206),
        ("\"v1\"", 200),
        ("W/\"v0\"", 200),
        ("Sun, 09 Sep 2001 01:46:39 GMT", 200),
        ("Sun, 09 Sep 2001 01:46:41 GMT", 200),
        ("yesterday", 200),
    ] {
        let answer = get(&chain, "/f", &format!("Range: bytes=10-19\r\nIf-Range: {condition}\r\n"));
        let film = content(LENGTH);
        let wanted = if status == 206 { &film[10..20] } else { &film[..] };
        assert_eq!(answer.status(), status, "{condition}");
        assert!(answer.body == wanted, "{condition}");
        assert!(way(&answer).starts_with("plait; hit"), "{condition}: {}", way(&answer));
    }
    assert_eq!(root.asked("/f").len(), 1);
}

#[test]
fn encodings_pass_as_they_are_and_are_kept_apart() {
    let (packed, plain) = (content(3001), content(4001));
    let (packed_sent, plain_sent) = (packed.clone(), plain.clone());
    let root = ScriptedRoot::start(move |asked, stream| {
        let packs = asked.header("accept-encoding").is_some_and(|codings| codings.contains("gzip"));
        let (body, coding) =
            if packs { (&packed_sent, "Content-Encoding: gzip\r\n") } else { (&plain_sent, "") };
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nETag: \"{packs}\"\r\n{coding}Vary: Accept-Encoding\r\n\
             Cache-Control: max-age=600\r\n\r\n",
            body.len()
        )?;
        stream.write_all(body)?;
        Ok(After::Keep)
    });
    let chain = crate::cache::chain(Root::At(root.address), Default::default());
    for did in ["fwd=", "hit", "hit"] {
        for (codings, body, coding) in
            [("Accept-Encoding: gzip, br\r\n", &packed, Some("gzip")), ("", &plain, None)]
        {
            let answer = get(&chain, "/list.m3u8", codings);
            assert!(answer.body == *body, "{codings}: {} other bytes", answer.body.len());
            assert_eq!(answer.header("content-encoding"), coding);
            assert_eq!(answer.header("vary"), Some("Accept-Encoding"));
            let fwd = if coding.is_some() { "plait; fwd=uri-miss" } else { "plait; fwd=vary-miss" };
            let did = if did == "hit" { "plait; " } else { fwd };
            assert!(way(&answer).starts_with(did), "{did}: {}", way(&answer));
        }
    }
    assert_eq!(root.asked().len(), 2, "one for each");
}

/// A root of anything, which answers other methods with the status and header lines that they ask for.
fn obeying_root() -> ScriptedRoot {
    ScriptedRoot::start(|asked: &Asked, stream| {
        if asked.line.starts_with("GET") {
            let head = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nETag: \"a\"\r\nCache-Control: max-age=600\r\n\r\nfilm";
            stream.write_all(head.as_bytes())?;
        } else {
            let status = asked.header("x-status").unwrap_or("201");
            let line = asked.header("x-line").unwrap_or("X-No: line");
            write!(stream, "HTTP/1.1 {status} Done\r\nContent-Length: 0\r\n{line}\r\n\r\n")?;
        }
        Ok(After::Keep)
    })
}

#[test]
fn a_change_takes_with_it_what_it_names_of_its_own_origin() {
    let root = obeying_root();
    let dir = tempfile::tempdir().unwrap();
    let downstream = vec!["--cache".to_owned(), text(dir.path()).to_owned()];
    let chain = Plan { root: Root::At(root.address), downstream, ..Plan::default() }.start(|_| {});
    let ask = |method: &str, host: &str, target: &str, headers: &str| {
        let mut client = Client::connect(chain.address);
        client.send(format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n"));
        client.answer(method).unwrap()
    };
    let (own, evil) = ("films.example", "films.example.evil");
    let places =
        [(own, "/b"), (own, "/dir/b?q=1"), ("films.example:8080", "/b"), (evil, "/b"), (own, "/dir/form")];
    let is_stored = |(host, target): (&str, &str)| ask("GET", host, target, CACHED).status() == 200;
    // A place of the last is none but the form itself.
    let cases = [
        ("Location: /b", "201", Some(0)),
        ("Content-Location: /b", "200", Some(0)),
        ("Location: ../b", "303", Some(0)),
        ("Content-Location: b?q=1", "204", Some(1)),
        ("Location: ./x/../b?q=1#part", "201", Some(1)),
        ("Location: //films.example/b", "201", Some(0)),
        ("Location: http://films.example/b", "201", Some(0)),
        ("Location: HTTP://Films.Example:80/b", "201", Some(0)),
        ("Content-Location: http://films.example.evil/b", "201", None),
        ("Location: http://films.example.evil/b", "201", None),
        ("Location: //films.example.evil/b", "201", None),
        ("Location: http://films.example:8080/b", "201", None),
        ("Location: https://films.example/b", "201", None),
        ("Location: http://[", "201", None),
        // Nothing has changed.
        ("Location: /b", "404", None),
        ("Content-Location: /b", "500", None),
    ];
    for (line, status, taken) in cases {
        for (host, target) in places {
            wait_until("its way into the cache", || {
                ask("GET", host, target, "");
                is_stored((host, target))
            });
        }
        let answer = ask("POST", own, "/dir/form", &format!("X-Status: {status}\r\nX-Line: {line}\r\n"));
        assert_eq!(answer.status().to_string(), status);
        let is_error = status.starts_with(['4', '5']);
        for (number, place) in places.into_iter().enumerate() {
            let goes = Some(number) == taken || (number == 4 && !is_error);
            assert_eq!(is_stored(place), !goes, "{line}, {status}: {place:?}");
        }
    }
}

#[test]
fn our_own_answers_may_be_read_by_any_page() {
    #[track_caller]
    fn may_be_read(answer: &Answer, status: u16) {
        assert_eq!(answer.status(), status, "{}", answer.text());
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"), "{status}");
        let exposed = answer.header("access-control-expose-headers").unwrap_or_default();
        assert!(exposed.contains("Retry-After") && exposed.contains("Content-Range"), "{status}: {exposed}");
    }
    let root = Changing::start("Cache-Control: max-age=600\r\n", "");
    let (chain, _dir) = root.chain();
    store(&chain, "/f");
    let origin = "Origin: https://player.example\r\n";
    may_be_read(&get(&chain, "/f", &format!("{origin}Range: bytes=9000-\r\n")), 416);
    may_be_read(&get(&chain, "/f", &format!("{origin}If-Match: \"x\"\r\n")), 412);
    may_be_read(&get(&chain, "/g", &format!("{origin}{CACHED}")), 504);
    root.change(|manner| manner.resets = true);
    may_be_read(&get(&chain, "/g", origin), 502);
    may_be_read(&ask(chain.address, "DELETE", "/g", origin), 502);
    let mut client = Client::connect(chain.address);
    client.send("GET / HTTP/1.1\r\n\r\n");
    may_be_read(&client.answer("GET").unwrap(), 400);
    // Without a cache, too: this one says when to come back.
    let downstream = ["--max-per-address", "1"].map(str::to_owned).to_vec();
    let chain = Plan { downstream, ..Plan::default() }.start(|ground| ground.store("f", b"film"));
    let mut first = Client::connect(chain.address);
    assert_eq!(first.ask("GET", "/f", "").unwrap().status(), 200);
    let answer = Client::connect(chain.address).answer("GET").unwrap();
    may_be_read(&answer, 503);
    assert!(answer.header("retry-after").is_some());
}

#[test]
fn cache_status_keeps_what_caches_before_have_said() {
    let before = "Origin; hit; ttl=30";
    let root = Changing::start("Cache-Control: max-age=600\r\nCache-Status: Origin; hit; ttl=30\r\n", "");
    let (chain, _dir) = root.chain();
    #[track_caller]
    fn says(answer: &Answer, status: u16, before: &str, did: &str) {
        assert_eq!(answer.status(), status);
        let ways = ways(answer);
        assert!(ways.len() == 2 && ways[0] == before && ways[1].starts_with(did), "{did}: {ways:?}");
    }
    says(&get(&chain, "/f", ""), 200, before, "plait; fwd=uri-miss; fwd-status=200; stored; ttl=");
    wait_until("its way into the cache", || look(&chain, "/f").status() == 200);
    says(&get(&chain, "/f", ""), 200, before, "plait; hit; ttl=");
    says(&get(&chain, "/f", "Range: bytes=0-9\r\n"), 206, before, "plait; hit; ttl=");
    says(&get(&chain, "/f", "If-None-Match: \"v0\"\r\n"), 304, before, "plait; hit; ttl=");
    says(&get(&chain, "/g", "Cache-Control: no-store\r\n"), 200, before, "plait; fwd=bypass; fwd-status=200");
    // Our own answers that are about what is stored; those that are not say nothing (RFC 9211 section 2).
    let refused = get(&chain, "/f", "Range: bytes=9000-\r\n");
    assert!(refused.status() == 416 && way(&refused).starts_with("plait; hit; ttl="), "{}", way(&refused));
    let refused = get(&chain, "/f", "If-Match: \"x\"\r\n");
    assert!(refused.status() == 412 && way(&refused).starts_with("plait; hit; ttl="), "{}", way(&refused));
    let missing = get(&chain, "/missing", CACHED);
    assert_eq!((missing.status(), ways(&missing).len()), (504, 0));
    // Where the root's 304 says something else, that is stored.
    root.change(|manner| manner.confirms = "Cache-Control: max-age=600\r\nCache-Status: Other; hit\r\n");
    let confirmed = get(&chain, "/f", "Cache-Control: no-cache\r\n");
    says(&confirmed, 200, "Other; hit", "plait; fwd=request; fwd-status=304; ttl=");
    says(&get(&chain, "/f", ""), 200, "Other; hit", "plait; hit; ttl=");
    check(&get(&chain, "/f", ""), &content(LENGTH), "Other; hit");
}
