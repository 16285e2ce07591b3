//! Parts that a stored file lacks: who may keep what the root sends of them, and what its other answers are for.

use std::{
    io::Write,
    sync::{Arc, Mutex},
};

use crate::{
    cache::{Film, LENGTH, chain, check, each_setting, film, get, serve_film},
    chain::{Chain, Root},
    process::Settings,
    roots::{After, ScriptedRoot},
};

/// What the root says from now on: these headers of the film's parts, or another answer, all of it.
#[derive(Clone, Copy)]
enum Says {
    Parts(&'static str),
    Instead(&'static str),
}

/// A root that changes its mind.
struct Fickle {
    root: ScriptedRoot,
    says: Arc<Mutex<Says>>,
}

const USUAL: Says = Says::Parts("Cache-Control: max-age=60\r\n");

impl Fickle {
    /// With a chain whose cache has the film's first 100,000 bytes.
    fn start(settings: Settings) -> (Self, Chain) {
        let says = Arc::new(Mutex::new(USUAL));
        let now = says.clone();
        let root = ScriptedRoot::start(move |asked, stream| {
            let says = *now.lock().unwrap();
            match says {
                Says::Parts(headers) => serve_film(asked, stream, &film(0), "\"v0\"", headers),
                Says::Instead(answer) => stream.write_all(answer.as_bytes()).map(|()| After::Keep),
            }
        });
        let chain = chain(Root::At(root.address), settings);
        check(&get(&chain, "Range: bytes=0-99999\r\n"), &film(0), 0..100_000);
        (Self { root, says }, chain)
    }

    fn says(&self, says: Says) {
        *self.says.lock().unwrap() = says;
    }
}

#[test]
fn a_part_that_must_not_be_stored_is_not() {
    let usual = "Cache-Control: max-age=60\r\n";
    each_setting(|settings| {
        for (asks, says, is_stored) in [
            ("Cache-Control: no-store\r\n", usual, false),
            ("Authorization: Basic eDp5\r\n", usual, false),
            ("Authorization: Basic eDp5\r\n", "Cache-Control: public, max-age=60\r\n", true),
            ("", "Cache-Control: max-age=60, no-store\r\n", false),
            ("", "Cache-Control: max-age=60, private\r\n", false),
            ("", usual, true),
        ] {
            let (root, chain) = Fickle::start(settings.clone());
            root.says(Says::Parts(says));
            // The first half of it is there.
            let part = get(&chain, &format!("{asks}Range: bytes=50000-199999\r\n"));
            check(&part, &film(0), 50_000..200_000);
            root.says(USUAL);
            let before = root.root.asked().len();
            check(&get(&chain, "Range: bytes=150000-199999\r\n"), &film(0), 150_000..200_000);
            let asked = root.root.asked().len() - before;
            assert_eq!(asked == 0, is_stored, "{asks}{says}{:?}", root.root.asked());
            // Only the root's own word is about what others have been given.
            let before = root.root.asked().len();
            check(&get(&chain, "Range: bytes=0-99999\r\n"), &film(0), 0..100_000);
            let is_there = root.root.asked().len() == before;
            assert_eq!(is_there, is_stored || !asks.is_empty(), "{asks}{says}{:?}", root.root.asked());
        }
    });
}

#[test]
fn one_clients_refusal_is_not_everybodys() {
    for (answer, code) in [
        ("HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic\r\nContent-Length: 5\r\n\r\nlogin", 401),
        ("HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\nlogin", 403),
        ("HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\nContent-Length: 5\r\n\r\nlogin", 429),
        ("HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7\r\nContent-Length: 5\r\n\r\nlogin", 503),
    ] {
        let (root, chain) = Fickle::start(Settings::default());
        root.says(Says::Instead(answer));
        let refused = get(&chain, "Range: bytes=200000-299999\r\n");
        assert_eq!((refused.status(), refused.text().as_str()), (code, "login"), "{:?}", refused.head);
        let told = if code == 401 { "www-authenticate" } else { "retry-after" };
        assert!(code == 403 || refused.header(told).is_some(), "{:?}", refused.head);
        root.says(USUAL);
        let before = root.root.asked().len();
        check(&get(&chain, "Range: bytes=0-99999\r\n"), &film(0), 0..100_000);
        assert_eq!(root.root.asked().len(), before, "{code}: {:?}", root.root.asked());
        check(&get(&chain, ""), &film(0), 0..LENGTH);
    }
}

#[test]
fn what_is_gone_is_forgotten_and_told() {
    for (answer, code) in [
        ("HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone", 404),
        ("HTTP/1.1 410 Gone\r\nContent-Length: 4\r\n\r\ngone", 410),
    ] {
        let (root, chain) = Fickle::start(Settings::default());
        root.says(Says::Instead(answer));
        for range in ["200000-299999", "0-99999"] {
            let gone = get(&chain, &format!("Range: bytes={range}\r\n"));
            assert_eq!((gone.status(), gone.text().as_str()), (code, "gone"), "{range}: {:?}", gone.head);
        }
    }
}

#[test]
fn a_range_that_has_not_begun_is_of_the_new_version() {
    each_setting(|settings| {
        let film_root = Film::start("Cache-Control: max-age=60\r\n");
        let chain = chain(Root::At(film_root.root.address), settings);
        check(&get(&chain, "Range: bytes=0-99999\r\n"), &film(0), 0..100_000);
        for version in 1..3 {
            film_root.change();
            let first = 500_000 * version;
            let range = format!("Range: bytes={first}-{}\r\n", first + 99_999);
            let answer = get(&chain, &range);
            check(&answer, &film(version), first..first + 100_000);
            assert_eq!(answer.header("etag"), Some(format!("\"v{version}\"").as_str()));
            let before = film_root.asked().len();
            check(&get(&chain, &range), &film(version), first..first + 100_000);
            assert_eq!(film_root.asked().len(), before, "{:?}", film_root.asked());
        }
        check(&get(&chain, ""), &film(2), 0..LENGTH + 2);
    });
}
