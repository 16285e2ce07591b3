//! What the cache asks the root about what it has, and what it makes of the root's word (RFC 9111, RFC 5861).

use std::{
    io::{self, Write},
    net::TcpStream,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use crate::{
    cache::wait_until,
    chain::{Chain, Plan, Root, text},
    client::{Answer, ask},
    content::content,
    process::DEADLINE,
    roots::{After, Asked, ScriptedRoot},
};

/// What a root says of whatever it is asked for.
#[derive(Clone)]
pub(crate) struct Manner {
    pub(crate) etag: &'static str,
    pub(crate) body: Vec<u8>,
    /// Header lines of a 200.
    pub(crate) says: &'static str,
    /// Header lines of a 304.
    pub(crate) confirms: &'static str,
    /// An error, without a body, in place of both.
    pub(crate) fails: Option<u16>,
    /// It resets the connection in place of any answer.
    pub(crate) resets: bool,
    /// It keeps requests with conditions waiting.
    pub(crate) waits: bool,
}

/// A root whose manner changes while it runs.
pub(crate) struct Changing {
    root: ScriptedRoot,
    manner: Arc<Mutex<Manner>>,
}

pub(crate) const LENGTH: usize = 5000;

impl Changing {
    pub(crate) fn start(says: &'static str, confirms: &'static str) -> Self {
        let manner = Manner {
            etag: "\"v0\"",
            body: content(LENGTH),
            says,
            confirms,
            fails: None,
            resets: false,
            waits: false,
        };
        let manner = Arc::new(Mutex::new(manner));
        let now = manner.clone();
        let root = ScriptedRoot::start(move |asked, stream| answer(asked, stream, &now));
        Self { root, manner }
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Manner)) {
        change(&mut self.manner.lock().unwrap());
    }

    /// What it was asked for `target`.
    pub(crate) fn asked(&self, target: &str) -> Vec<Asked> {
        let is_meant = |asked: &Asked| asked.line.split(' ').nth(1) == Some(target);
        self.root.asked().into_iter().filter(is_meant).collect()
    }

    /// A chain with a cache before it, and the cache's directory.
    pub(crate) fn chain(&self) -> (Chain, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let downstream = vec!["--cache".to_owned(), text(dir.path()).to_owned()];
        let plan = Plan { root: Root::At(self.root.address), downstream, ..Plan::default() };
        (plan.start(|_| {}), dir)
    }
}

fn answer(asked: &Asked, stream: &mut TcpStream, manner: &Mutex<Manner>) -> io::Result<After> {
    let now = || manner.lock().unwrap().clone();
    let until = Instant::now() + DEADLINE;
    while asked.header("if-none-match").is_some() && now().waits && Instant::now() < until {
        thread::sleep(Duration::from_millis(5));
    }
    let Manner { etag, body, says, confirms, fails, resets, .. } = now();
    if resets {
        return Ok(After::Reset);
    }
    if let Some(status) = fails {
        write!(stream, "HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n")?;
    } else if asked.header("if-none-match") == Some(etag) {
        let tag = if confirms.contains("ETag") { String::new() } else { format!("ETag: {etag}\r\n") };
        write!(stream, "HTTP/1.1 304 Not Modified\r\n{tag}{confirms}\r\n")?;
    } else {
        let length = body.len();
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nETag: {etag}\r\n{says}\r\n")?;
        if !asked.line.starts_with("HEAD") {
            stream.write_all(&body)?;
        }
    }
    Ok(After::Keep)
}

pub(crate) fn get(chain: &Chain, target: &str, headers: &str) -> Answer {
    ask(chain.address, "GET", target, headers)
}

/// What this cache says that it did.
pub(crate) fn way(answer: &Answer) -> &str {
    answer.header("cache-status").unwrap_or("")
}

/// The whole body comes with 200, and this cache says that it did this.
#[track_caller]
pub(crate) fn check(answer: &Answer, body: &[u8], did: &str) {
    assert_eq!(answer.status(), 200, "{}", answer.text());
    assert!(answer.body == body, "{} other bytes", answer.body.len());
    assert!(way(answer).starts_with(did), "{did} is expected: {}", way(answer));
}

/// Asks, without a word to the root, for what is there, fresh or stale.
pub(crate) fn look(chain: &Chain, target: &str) -> Answer {
    get(chain, target, "Cache-Control: only-if-cached, max-stale\r\n")
}

/// Gets `target` from the root and waits until it is in the cache.
pub(crate) fn store(chain: &Chain, target: &str) {
    assert_eq!(get(chain, target, "").status(), 200);
    wait_until("its way into the cache", || look(chain, target).status() == 200);
}

#[test]
fn what_a_304_forbids_to_store_is_forgotten() {
    let large =
        format!("Cache-Control: max-age=600\r\n{0}{0}{0}", format!("X-Large: {:015000}\r\n", 7)).leak();
    let root = Changing::start("Cache-Control: max-age=0\r\n", "");
    let (chain, _dir) = root.chain();
    let film = content(LENGTH);
    for (number, forbids) in [
        "Cache-Control: no-store\r\n",
        "Cache-Control: private, max-age=600\r\n",
        "Cache-Control: max-age=600\r\nVary: *\r\n",
        // It would not fit into the record.
        large,
    ]
    .into_iter()
    .enumerate()
    {
        let target = format!("/{number}");
        root.change(|manner| manner.confirms = forbids);
        store(&chain, &target);
        // The one who has asked is given what it is about.
        check(&get(&chain, &target, ""), &film, "plait; fwd=stale; fwd-status=304");
        assert_eq!(look(&chain, &target).status(), 504, "{forbids:.50}");
        check(&get(&chain, &target, ""), &film, "plait; fwd=uri-miss; fwd-status=200");
        let conditions: Vec<_> =
            root.asked(&target).iter().map(|asked| asked.header("if-none-match").is_some()).collect();
        assert_eq!(conditions, [false, true, false], "{forbids:.50}");
    }
}

/// What the root says to one who proves who he is may be about him only.
#[test]
fn who_proves_who_he_is_takes_nothing_from_others() {
    let film = content(LENGTH);
    let proof = "Authorization: Basic eDp5\r\n";
    for (says, confirms) in [
        // Credentials change nothing for this root.
        ("Cache-Control: max-age=600\r\n", "Cache-Control: max-age=600\r\n"),
        ("Cache-Control: max-age=0\r\n", "Cache-Control: private, max-age=7\r\n"),
        ("Cache-Control: max-age=0\r\n", "Cache-Control: no-store\r\nVary: *\r\n"),
        ("Cache-Control: max-age=0\r\n", "ETag: \"other\"\r\n"),
        ("Cache-Control: max-age=0, stale-while-revalidate=600\r\n", "Cache-Control: private\r\n"),
    ] {
        let root = Changing::start(says, confirms);
        let (chain, _dir) = root.chain();
        store(&chain, "/f");
        let known = look(&chain, "/f").header("cache-control").map(str::to_owned);
        let answer = get(&chain, "/f", &format!("Cache-Control: no-cache\r\n{proof}"));
        if confirms.starts_with("ETag") {
            assert_eq!(answer.status(), 502, "{}", answer.text());
        } else {
            check(&answer, &film, "plait; fwd=");
            let said = confirms.lines().next().unwrap().strip_prefix("Cache-Control: ");
            assert_eq!(answer.header("cache-control"), said, "it is told what the root has said");
        }
        get(&chain, "/f", proof);
        wait_until("the questions", || says.contains("600") || root.asked("/f").len() == 3);
        root.change(|manner| manner.says = "Cache-Control: no-store\r\n");
        assert_eq!(ask(chain.address, "HEAD", "/f", proof).status(), 200);
        root.change(|manner| manner.body = content(LENGTH + 1));
        assert_eq!(ask(chain.address, "HEAD", "/f", proof).status(), 200);
        root.change(|manner| manner.fails = Some(404));
        get(&chain, "/f", &format!("Cache-Control: no-cache\r\n{proof}"));
        let kept = look(&chain, "/f");
        check(&kept, &film, "plait; hit");
        assert_eq!(kept.header("cache-control").map(str::to_owned), known, "{confirms}");
    }
}

#[test]
fn one_clients_refusal_is_no_word_on_what_is_stored() {
    let film = content(LENGTH);
    for says in ["Cache-Control: max-age=0\r\n", "Cache-Control: max-age=0, stale-while-revalidate=600\r\n"] {
        let root = Changing::start(says, "");
        let (chain, _dir) = root.chain();
        store(&chain, "/f");
        for status in [302, 400, 401, 403, 416, 429, 431] {
            root.change(|manner| manner.fails = Some(status));
            let before = root.asked("/f").len();
            if says.contains("stale-") {
                // The second question comes once the first one is answered.
                wait_until("the questions", || {
                    check(&get(&chain, "/f", ""), &film, "plait; hit");
                    root.asked("/f").len() > before + 1
                });
            } else {
                assert_eq!(get(&chain, "/f", "").status(), status);
            }
            check(&look(&chain, "/f"), &film, "plait; hit");
        }
        for status in [404, 410] {
            root.change(|manner| manner.fails = None);
            store(&chain, "/f");
            root.change(|manner| manner.fails = Some(status));
            wait_until("the removal", || {
                get(&chain, "/f", "");
                look(&chain, "/f").status() == 504
            });
        }
    }
}

#[test]
fn what_is_forbidden_behind_the_clients_back_is_forgotten_as_well() {
    let stale = "Cache-Control: max-age=0, stale-while-revalidate=600\r\n";
    let root = Changing::start(stale, "Cache-Control: private, max-age=600\r\n");
    let (chain, _dir) = root.chain();
    store(&chain, "/f");
    check(&get(&chain, "/f", ""), &content(LENGTH), "plait; hit");
    wait_until("the validation", || root.asked("/f").len() == 2);
    wait_until("the removal", || look(&chain, "/f").status() == 504);
    // A version that nobody has asked about.
    store(&chain, "/g");
    root.change(|manner| manner.confirms = "ETag: \"other\"\r\n");
    get(&chain, "/g", "");
    wait_until("the removal", || look(&chain, "/g").status() == 504);
}

#[test]
fn a_304_updates_what_is_stored_but_what_is_about_the_body() {
    let root = Changing::start(
        "Cache-Control: max-age=0\r\nX-Note: old\r\nX-Kept: yes\r\nContent-Type: video/mp4\r\n",
        "Cache-Control: max-age=600\r\nX-Note: new\r\nContent-Type: text/html\r\nContent-Encoding: br\r\n",
    );
    let (chain, _dir) = root.chain();
    let film = content(LENGTH);
    store(&chain, "/f");
    for did in ["plait; fwd=stale; fwd-status=304; ttl=", "plait; hit; ttl=", "plait; hit; ttl="] {
        let answer = get(&chain, "/f", "");
        check(&answer, &film, did);
        for (name, value) in
            [("x-note", "new"), ("x-kept", "yes"), ("content-type", "video/mp4"), ("content-length", "5000")]
        {
            assert_eq!(answer.header(name), Some(value), "{name}");
        }
        assert_eq!(answer.header("content-encoding"), None);
    }
    assert_eq!(root.asked("/f").len(), 2);
}

/// A root that compresses on the fly knows the file's tag when it confirms, which is that of other bytes.
#[test]
fn a_304_makes_no_tag_a_strong_one() {
    let root =
        Changing::start("Cache-Control: max-age=0\r\n", "Cache-Control: max-age=600\r\nETag: \"v0\"\r\n");
    root.change(|manner| manner.etag = "W/\"v0\"");
    let (chain, _dir) = root.chain();
    store(&chain, "/f");
    for did in ["plait; fwd=stale; fwd-status=304", "plait; hit"] {
        let answer = get(&chain, "/f", "");
        check(&answer, &content(LENGTH), did);
        assert_eq!(answer.header("etag"), Some("W/\"v0\""));
    }
}

#[test]
fn a_304_may_say_what_selects() {
    let root = Changing::start(
        "Cache-Control: max-age=0\r\n",
        "Cache-Control: max-age=600\r\nVary: Accept-Encoding\r\n",
    );
    let (chain, _dir) = root.chain();
    let film = content(LENGTH);
    check(&get(&chain, "/f", "Accept-Encoding: gzip\r\n"), &film, "plait; fwd=uri-miss");
    let confirmed = get(&chain, "/f", "Accept-Encoding: br\r\n");
    check(&confirmed, &film, "plait; fwd=stale; fwd-status=304");
    // For this it was confirmed, and for nothing else.
    check(&get(&chain, "/f", "Accept-Encoding: br\r\n"), &film, "plait; hit");
    check(&get(&chain, "/f", "Accept-Encoding: gzip\r\n"), &film, "plait; fwd=vary-miss; fwd-status=200");
}

#[test]
fn stale_answers_are_given_while_the_root_is_asked() {
    let stale = "Cache-Control: max-age=0, stale-while-revalidate=600\r\n";
    let root = Changing::start(stale, "Cache-Control: max-age=600\r\n");
    let (chain, _dir) = root.chain();
    let film = content(LENGTH);
    for target in ["/same", "/other"] {
        store(&chain, target);
        root.change(|manner| manner.waits = true);
        // Nobody waits for the root, and it is asked once.
        (0..3).for_each(|_| check(&get(&chain, target, ""), &film, "plait; hit; ttl="));
        wait_until("the question", || root.asked(target).len() == 2);
        check(&get(&chain, target, ""), &film, "plait; hit; ttl=");
        let condition = root.asked(target)[1].header("if-none-match").map(str::to_owned);
        assert_eq!(condition.as_deref(), Some("\"v0\""));
        if target == "/other" {
            root.change(|manner| (manner.etag, manner.body) = ("\"v1\"", content(LENGTH + 1)));
        }
        root.change(|manner| manner.waits = false);
        if target == "/same" {
            let ttl = |answer: &Answer| way(answer).split_once("ttl=")?.1.parse::<i64>().ok();
            wait_until("its freshness", || ttl(&get(&chain, target, "")).is_some_and(|ttl| ttl > 0));
            assert_eq!(root.asked(target).len(), 2);
        } else {
            wait_until("the other version", || get(&chain, target, "").body == content(LENGTH + 1));
        }
    }
}

#[test]
fn stale_answers_stand_in_for_errors() {
    let root = Changing::start("Cache-Control: max-age=0, stale-if-error=600\r\n", "");
    let (chain, _dir) = root.chain();
    let film = content(LENGTH);
    store(&chain, "/f");
    for status in [500, 502, 503, 504] {
        root.change(|manner| manner.fails = Some(status));
        let did = format!("plait; fwd=stale; fwd-status={status}; ttl=");
        check(&get(&chain, "/f", ""), &film, &did);
    }
    // What the RFC does not name is the root's word.
    for status in [501, 505] {
        root.change(|manner| manner.fails = Some(status));
        assert_eq!(get(&chain, "/f", "").status(), status);
    }
    root.change(|manner| manner.resets = true);
    check(&get(&chain, "/f", ""), &film, "plait; fwd=stale; fwd-status=502; ttl=");
    root.change(|manner| (manner.resets, manner.fails) = (false, Some(404)));
    assert_eq!(get(&chain, "/f", "").status(), 404);
    assert_eq!(look(&chain, "/f").status(), 504, "the root says that it is gone");
    // A client may allow it, too.
    root.change(|manner| (manner.fails, manner.says) = (None, "Cache-Control: max-age=0\r\n"));
    store(&chain, "/g");
    root.change(|manner| manner.fails = Some(503));
    assert_eq!(get(&chain, "/g", "").status(), 503);
    check(&get(&chain, "/g", "Cache-Control: stale-if-error=60\r\n"), &film, "plait; fwd=stale");
}

#[test]
fn what_must_be_validated_is_never_given_stale() {
    let strict = "Cache-Control: max-age=0, must-revalidate, stale-if-error=600\r\n";
    let root = Changing::start(strict, strict);
    let (mut chain, _dir) = root.chain();
    let film = content(LENGTH);
    let wish = "Cache-Control: max-stale, stale-if-error=600\r\n";
    check(&get(&chain, "/f", ""), &film, "plait; fwd=uri-miss");
    check(&get(&chain, "/f", wish), &film, "plait; fwd=stale; fwd-status=304");
    root.change(|manner| manner.resets = true);
    let answer = get(&chain, "/f", wish);
    assert_eq!(answer.status(), 504, "{}", answer.text());
    assert!(answer.text().starts_with("root: "), "{}", answer.text());
    assert_eq!(get(&chain, "/new", "").status(), 502, "nothing is stored of this");
    root.change(|manner| (manner.resets, manner.fails) = (false, Some(503)));
    assert_eq!(get(&chain, "/f", wish).status(), 503, "the root's word");
    root.change(|manner| manner.fails = None);
    check(&get(&chain, "/f", wish), &film, "plait; fwd=stale; fwd-status=304");
    // Not even the upstream is there.
    chain.upstream.kill();
    let answer = get(&chain, "/f", wish);
    assert_eq!(answer.status(), 504, "{}", answer.text());
}

#[test]
fn no_cache_asks_the_root_each_time() {
    let root = Changing::start(
        "Cache-Control: max-age=600, no-cache\r\n",
        "Cache-Control: max-age=600, no-cache\r\n",
    );
    let (chain, _dir) = root.chain();
    let film = content(LENGTH);
    check(&get(&chain, "/f", ""), &film, "plait; fwd=uri-miss");
    for number in 1..3 {
        check(&get(&chain, "/f", ""), &film, "plait; fwd=stale; fwd-status=304");
        assert_eq!(root.asked("/f")[number].header("if-none-match"), Some("\"v0\""));
    }
    root.change(|manner| manner.resets = true);
    assert_eq!(get(&chain, "/f", "").status(), 502);
    // The same by the client's wish, of something fresh.
    root.change(|manner| (manner.resets, manner.says) = (false, "Cache-Control: max-age=600\r\n"));
    store(&chain, "/g");
    for wish in ["Cache-Control: no-cache\r\n", "Pragma: no-cache\r\n"] {
        root.change(|manner| manner.confirms = "Cache-Control: max-age=600\r\n");
        check(&get(&chain, "/g", wish), &film, "plait; fwd=request; fwd-status=304");
        check(&get(&chain, "/g", ""), &film, "plait; hit");
    }
    assert_eq!(root.asked("/g").len(), 3);
}

#[test]
fn a_200_to_head_updates_what_is_stored_or_shows_that_it_is_another() {
    let root = Changing::start("Cache-Control: max-age=0\r\nX-Note: old\r\n", "");
    let (chain, _dir) = root.chain();
    let film = content(LENGTH);
    let head = |target: &str| assert_eq!(ask(chain.address, "HEAD", target, "").status(), 200);
    ["/same", "/tag", "/length", "/forbidden"].into_iter().for_each(|target| store(&chain, target));
    root.change(|manner| manner.says = "Cache-Control: max-age=600\r\nX-Note: new\r\n");
    head("/same");
    let answer = get(&chain, "/same", "");
    check(&answer, &film, "plait; hit");
    assert_eq!(answer.header("x-note"), Some("new"));
    root.change(|manner| manner.etag = "\"v1\"");
    head("/tag");
    assert_eq!(look(&chain, "/tag").status(), 504);
    root.change(|manner| (manner.etag, manner.body) = ("\"v0\"", content(LENGTH + 1)));
    head("/length");
    assert_eq!(look(&chain, "/length").status(), 504);
    root.change(|manner| (manner.body, manner.says) = (content(LENGTH), "Cache-Control: no-store\r\n"));
    head("/forbidden");
    assert_eq!(look(&chain, "/forbidden").status(), 504);
}
