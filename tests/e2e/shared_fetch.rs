//! One fetch for many clients: who joins, who leaves, and what a root that ignores ranges makes of it.

use std::{
    io::Write,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use crate::{
    cache::{Film, LENGTH, chain, check, each_setting, film, get, start_on, wait_until},
    chain::{Ground, Root},
    client::{Client, ask, try_get},
    content::content,
    process::Settings,
    roots::{After, ScriptedRoot},
};

#[test]
fn fifty_clients_cost_one_fetch() {
    each_setting(|settings| {
        let film_root = Film::start("Cache-Control: max-age=60\r\n");
        let chain = chain(Root::At(film_root.root.address), settings);
        let wanted = film(0);
        thread::scope(|scope| {
            for _ in 0..50 {
                scope.spawn(|| check(&get(&chain, ""), &wanted, 0..LENGTH));
            }
        });
        assert_eq!(film_root.asked().len(), 1, "{:?}", film_root.asked());
    });
}

/// The root takes its time between head and body, and in the middle of it; the client that asked first may be gone by then.
#[test]
fn who_asks_between_head_and_body_shares_the_fetch() {
    each_setting(|settings| {
        let wanted = film(0);
        let body = wanted.clone();
        let root = ScriptedRoot::start(move |_, stream| {
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\nETag: \"a\"\r\n")?;
            write!(stream, "Cache-Control: max-age=60\r\n\r\n")?;
            for half in body.chunks(LENGTH / 2) {
                thread::sleep(Duration::from_millis(400));
                stream.write_all(half)?;
            }
            Ok(After::Keep)
        });
        let chain = chain(Root::At(root.address), settings);
        for leaves in [false, true] {
            let url = if leaves { "/leaves.mp4" } else { "/stays.mp4" };
            let mut first = Client::connect(chain.address);
            first.request("GET", url, "");
            thread::scope(|scope| {
                for number in 1..10 {
                    let (chain, wanted) = (&chain, &wanted);
                    scope.spawn(move || {
                        thread::sleep(Duration::from_millis(number * 70));
                        check(&ask(chain.address, "GET", url, ""), wanted, 0..LENGTH);
                    });
                }
                if leaves {
                    thread::sleep(Duration::from_millis(100));
                    drop(first);
                } else {
                    first.head().unwrap();
                    assert!(first.some(LENGTH).unwrap() == wanted);
                }
            });
            let fetched = root.asked().iter().filter(|asked| asked.line.contains(url)).count();
            assert_eq!(fetched, 1, "{:?}", root.asked());
        }
    });
}

/// A validator says that parts would fit, and the root sends the whole of it each time: allowed by RFC 9110 section 14.2.
#[test]
fn a_root_that_ignores_ranges_costs_no_answer() {
    const LONG: usize = 24_000_000;
    each_setting(|settings| {
        let wanted = content(LONG);
        let body = wanted.clone();
        let root = ScriptedRoot::start(move |_, stream| {
            write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {LONG}\r\nETag: \"a\"\r\n")?;
            write!(stream, "Cache-Control: max-age=60\r\n\r\n")?;
            stream.write_all(&body)?;
            Ok(After::Keep)
        });
        let chain = chain(Root::At(root.address), settings);
        // Parts are there when their viewer leaves; then some want all of it at once.
        for url in ["/one.mp4", "/two.mp4"] {
            let mut leaver = Client::connect(chain.address);
            leaver.request("GET", url, "");
            leaver.head().unwrap();
            leaver.some(1_000_000).unwrap();
            drop(leaver);
            wait_until("the fetch's end", || chain.downstream.log().contains(&format!("GET {url} ")));
            thread::scope(|scope| {
                for _ in 0..if url == "/one.mp4" { 1 } else { 8 } {
                    let (chain, wanted) = (&chain, &wanted);
                    scope.spawn(move || check(&ask(chain.address, "GET", url, ""), wanted, 0..LONG));
                }
            });
            // All of it is there by then, or will be.
            let part = ask(chain.address, "GET", url, "Range: bytes=20000000-20000999\r\n");
            assert!(part.status() == 206 || part.status() == 200, "{:?}", part.head);
            let span = if part.status() == 206 { 20_000_000..20_001_000 } else { 0..LONG };
            check(&part, &wanted, span);
        }
        // Nothing is there: what the root answers is what there is.
        let part = ask(chain.address, "GET", "/three.mp4", "Range: bytes=20000000-20000999\r\n");
        check(&part, &wanted, if part.status() == 206 { 20_000_000..20_001_000 } else { 0..LONG });
        wait_until("the whole", || {
            let part = ask(chain.address, "GET", "/three.mp4", "Range: bytes=20000000-20000999\r\n");
            part.status() == 206 && part.body == wanted[20_000_000..20_001_000]
        });
    });
}

#[test]
fn a_first_client_that_leaves_or_sleeps_holds_up_nobody() {
    let ground = Ground::new();
    let film = content(60_000_000);
    ground.store("f.mp4", &film);
    let chain = start_on(ground, Root::Plait, Settings::default());
    let mut sleeper = Client::connect(chain.address);
    sleeper.request("GET", "/f.mp4", "");
    let head = sleeper.head().unwrap();
    sleeper.some(1000).unwrap();
    let mut leaver = Client::connect(chain.address);
    leaver.request("GET", "/f.mp4", "");
    leaver.head().unwrap();
    leaver.some(1000).unwrap();
    drop(leaver);
    for _ in 0..2 {
        assert!(get(&chain, "").body == film);
    }
    let length: usize = head.header("content-length").unwrap().parse().unwrap();
    assert!(sleeper.some(length - 1000).unwrap() == film[1000..]);
}

/// As above, but what it sends the second time must not be stored.
#[test]
fn what_must_not_be_stored_takes_no_objects_place() {
    let wanted = content(LENGTH);
    let body = wanted.clone();
    let asked = AtomicUsize::new(0);
    let root = ScriptedRoot::start(move |_, stream| {
        let is_first = asked.fetch_add(1, Ordering::SeqCst) == 0;
        let control = if is_first { "max-age=60" } else { "no-store" };
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\nETag: \"a\"\r\n")?;
        write!(stream, "Cache-Control: {control}\r\n\r\n")?;
        if is_first {
            stream.write_all(&body[..LENGTH / 2])?;
            return Ok(After::Close);
        }
        stream.write_all(&body)?;
        Ok(After::Keep)
    });
    let chain = chain(Root::At(root.address), Settings::default());
    assert!(try_get(chain.address, "GET", "/f.mp4", "").is_err(), "half of it looks like the whole");
    // It breaks off visibly, or is all of it; then it is asked for anew.
    for _ in 0..3 {
        if let Ok(answer) = try_get(chain.address, "GET", "/f.mp4", "") {
            assert!(answer.status() == 502 || answer.body == wanted, "{:?}", answer.head);
        }
    }
    assert_eq!(ask(chain.address, "GET", "/f.mp4", "Cache-Control: only-if-cached\r\n").status(), 504);
    assert!(get(&chain, "").body == wanted);
}
