//! Answers that the root sends without a length, in chunks, through the cache: kept once they have ended, and only then.

use std::{
    io::Write,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{
    chain::{Chain, Ground, Plan, Root, text},
    client::{Answer, Client, ask, try_get},
    content::content,
    process::{DEADLINE, Settings},
    roots::{After, ScriptedRoot, chunked},
};

const LENGTH: usize = 700_000;
/// More than the cache keeps of an answer whose length it does not know.
const TOO_LONG: usize = 9 << 20;
const HEAD: &str = "HTTP/1.1 200 OK\r\nCache-Control: max-age=600\r\nTransfer-Encoding: chunked\r\n\r\n";

fn chain(root: &ScriptedRoot, settings: Settings) -> Chain {
    let ground = Ground::new();
    let downstream = vec!["--cache".to_owned(), text(&ground.scratch("cache")).to_owned()];
    Plan { root: Root::At(root.address), settings, downstream, ..Plan::default() }.start_on(ground)
}

fn is_hit(answer: &Answer) -> bool {
    answer.header("cache-status").is_some_and(|status| status.starts_with("plait; hit"))
}

/// The answer, once the cache has it.
fn hit(chain: &Chain, target: &str, headers: &str) -> Answer {
    let until = Instant::now() + DEADLINE;
    loop {
        let answer = ask(chain.address, "GET", target, headers);
        if is_hit(&answer) {
            return answer;
        }
        assert!(Instant::now() < until, "{target} does not come from the cache: {:?}", answer.head);
    }
}

fn check_kept(settings: Settings) {
    let root = ScriptedRoot::start(|_, stream| {
        stream.write_all(HEAD.as_bytes())?;
        stream.write_all(&chunked(&content(LENGTH), &[1, 70_000, 300_000]))?;
        Ok(After::Keep)
    });
    let chain = chain(&root, settings);
    let first = ask(chain.address, "GET", "/a", "");
    assert_eq!((first.header("content-length"), first.body.len()), (None, LENGTH));
    assert!(first.body == content(LENGTH) && !is_hit(&first));
    // While the disk writes, it is told as collapsed.
    let second = hit(&chain, "/a", "");
    assert_eq!(second.header("content-length"), Some("700000"));
    assert!(second.body == content(LENGTH));
    let part = ask(chain.address, "GET", "/a", "Range: bytes=5-69999\r\n");
    assert_eq!((part.status(), part.header("content-range")), (206, Some("bytes 5-69999/700000")));
    assert!(part.body == content(LENGTH)[5..70_000]);
    assert_eq!(ask(chain.address, "HEAD", "/a", "").header("content-length"), Some("700000"));
    assert_eq!(root.asked().len(), 1);
    // Who knows no chunks gets it to the end of the connection, and others then from the cache.
    let mut old = Client::connect(chain.address);
    old.send("GET /b HTTP/1.0\r\nHost: films.example\r\n\r\n");
    assert!(old.answer("GET").unwrap().body == content(LENGTH));
    assert!(hit(&chain, "/b", "").body == content(LENGTH));
    assert_eq!(root.asked().len(), 2);
}

#[test]
fn an_answer_in_chunks_is_kept_once_it_has_ended() {
    check_kept(Settings::default());
}

#[test]
fn an_answer_in_chunks_is_kept_by_glommio() {
    check_kept(Settings { executor: "glommio", placement: "spread", ..Settings::default() });
}

#[test]
fn an_answer_in_chunks_is_kept_without_splice() {
    check_kept(Settings { no_splice: true, ..Settings::default() });
}

#[test]
fn one_that_breaks_off_leaves_nothing() {
    let asked = AtomicUsize::new(0);
    let root = ScriptedRoot::start(move |_, stream| {
        stream.write_all(HEAD.as_bytes())?;
        let body = chunked(&content(LENGTH), &[50_000]);
        let is_broken = asked.fetch_add(1, Ordering::SeqCst) == 0;
        stream.write_all(if is_broken { &body[..body.len() / 2] } else { &body })?;
        Ok(if is_broken { After::Close } else { After::Keep })
    });
    let chain = chain(&root, Settings::default());
    assert!(try_get(chain.address, "GET", "/a", "").is_err(), "half of it looks like the whole");
    let second = ask(chain.address, "GET", "/a", "");
    assert!(second.body == content(LENGTH) && !is_hit(&second));
    assert!(hit(&chain, "/a", "").body == content(LENGTH));
    assert_eq!(root.asked().len(), 2);
}

#[test]
fn who_asks_meanwhile_gets_the_same() {
    let root = ScriptedRoot::start(|_, stream| {
        let body = chunked(&content(LENGTH), &[50_000]);
        stream.write_all(HEAD.as_bytes())?;
        stream.write_all(&body[..LENGTH / 2])?;
        thread::sleep(Duration::from_millis(200));
        stream.write_all(&body[LENGTH / 2..])?;
        Ok(After::Keep)
    });
    let chain = chain(&root, Settings::default());
    thread::scope(|scope| {
        for _ in 0..5 {
            scope.spawn(|| assert!(ask(chain.address, "GET", "/a", "").body == content(LENGTH)));
        }
    });
    assert!(hit(&chain, "/a", "").body == content(LENGTH));
}

/// An answer that never ends, as a live stream's, keeps nobody from asking for it.
#[test]
fn one_without_an_end_holds_up_nobody() {
    let root = ScriptedRoot::start(|_, stream| {
        stream.write_all(HEAD.as_bytes())?;
        loop {
            stream.write_all(b"5\r\nnever\r\n")?;
            thread::sleep(Duration::from_millis(20));
        }
    });
    let chain = chain(&root, Settings::default());
    let clients = [(); 3].map(|()| {
        let mut client = Client::connect(chain.address);
        client.request("GET", "/a", "");
        assert_eq!(client.head().unwrap().status, 200);
        assert_eq!(client.some(10).unwrap(), b"5\r\nnever\r\n");
        client
    });
    assert_eq!(root.asked().len(), clients.len());
}

#[test]
fn one_that_is_too_long_passes() {
    let root = ScriptedRoot::start(|_, stream| {
        stream.write_all(HEAD.as_bytes())?;
        stream.write_all(&chunked(&content(TOO_LONG), &[1 << 20]))?;
        Ok(After::Keep)
    });
    let chain = chain(&root, Settings::default());
    for asked in 1..3 {
        let answer = ask(chain.address, "GET", "/a", "");
        assert!(answer.body == content(TOO_LONG) && !is_hit(&answer));
        assert_eq!(root.asked().len(), asked);
    }
}

/// A playlist is read once it is kept: it says how long it is fresh.
#[test]
fn a_playlist_in_chunks_is_read() {
    let root = ScriptedRoot::start(|_, stream| {
        let text = b"#EXTM3U\n#EXT-X-TARGETDURATION:6\n#EXTINF:6,\ns0.ts\n#EXT-X-ENDLIST\n";
        let kind = "Content-Type: application/vnd.apple.mpegurl";
        write!(stream, "HTTP/1.1 200 OK\r\n{kind}\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        stream.write_all(&chunked(text, &[20]))?;
        Ok(After::Keep)
    });
    let chain = chain(&root, Settings::default());
    let until = Instant::now() + DEADLINE;
    let ttl = |answer: &Answer| answer.header("cache-status").is_some_and(|way| way.contains("ttl=3"));
    while !ttl(&ask(chain.address, "GET", "/vod.m3u8", "")) {
        assert!(Instant::now() < until, "the playlist was not read");
        thread::sleep(Duration::from_millis(5));
    }
}
