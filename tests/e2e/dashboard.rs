//! The dashboard in a real browser: what it shows of each role, what it plays, and how soon it sees a relay die.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::{
    browser::{Browser, screenshots},
    chain::{Chain, Ground, Plan, text},
    client::ask,
    content::content,
    missing::installed,
    observe::eventually,
    process::{Process, Settings},
    viewers::Viewers,
};

/// What the issue promises: from a relay's end to its red picture.
const RED_MS: f64 = 2000.0;
/// Of the film, so that it lasts for some seconds.
const FILM_BYTES: usize = 60_000_000;
/// What viewers watch.
const FILMS: [&str; 3] = ["/films/glacier.mp4", "/films/harbour.mp4", "/films/night-train.mp4"];
/// Enough history for the pictures of docs/.
const HISTORY: Duration = Duration::from_secs(62);

fn watched() -> Settings {
    Settings { admin: true, ..Settings::default() }
}

fn library(ground: &Ground) {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/sample");
    fs::create_dir(ground.files().join("hls")).unwrap();
    for file in fs::read_dir(sample.join("hls")).unwrap().flatten() {
        let name = format!("hls/{}", file.file_name().to_str().unwrap());
        ground.store(&name, &fs::read(file.path()).unwrap());
    }
    ground.store("sample.mp4", &fs::read(sample.join("sample.mp4")).unwrap());
    fs::create_dir(ground.files().join("films")).unwrap();
    let film = content(FILM_BYTES);
    FILMS.iter().for_each(|name| ground.store(&name[1..], &film));
}

fn chain() -> Chain {
    let ground = Ground::new();
    library(&ground);
    let downstream = vec!["--cache".to_owned(), text(&ground.scratch("cache")).to_owned()];
    Plan { paths: 3, settings: watched(), downstream, ..Plan::default() }.start_on(ground)
}

/// Plays `target` with nothing but the keyboard.
fn play(browser: &mut Browser, target: &str) {
    browser.tab_to("$('file')");
    browser.write(target);
    browser.enter();
    browser.wait("$('player-state').textContent === 'playing' && $('video').currentTime > 0.5");
}

/// Watches for red in the page itself, and counts the milliseconds in which the page did not run although it was time to.
const WATCH: &str = "(() => {
    window.red = null; window.kept = 0;
    let last = Date.now();
    const beat = setInterval(() => {
        const now = Date.now();
        window.kept += Math.max(0, now - last - 40);
        last = now;
        if (window.red) clearInterval(beat);
    }, 20);
    const known = document.querySelectorAll('.path.down').length;
    new MutationObserver((_, observer) => {
        if (document.querySelectorAll('.path.down').length > known) { window.red = Date.now(); observer.disconnect(); }
    }).observe($('paths'), { attributes: true, subtree: true, childList: true });
})()";

/// Kills relays until one turns red in time. A late one is a failure, unless the page itself, which does next to nothing, was
/// kept from running for as long as it was late: then the machine was too busy to tell, and the next relay is killed. Both
/// clocks are this host's.
fn kill_until_one_is_seen_in_time(chain: &mut Chain, browser: &mut Browser) {
    let relays = chain.relays.len() - 1;
    for (number, relay) in chain.relays[..relays].iter_mut().enumerate() {
        browser.evaluate(WATCH);
        let killed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64() * 1e3;
        relay[0].kill();
        browser.wait("window.red !== null");
        let number_of = |value: serde_json::Value| value.as_f64().unwrap();
        let taken = number_of(browser.evaluate("window.red")) - killed;
        let kept = number_of(browser.evaluate("window.kept"));
        browser.wait(&format!("document.querySelectorAll('.strand.down').length === {}", number + 1));
        browser.wait(&format!("$('status').textContent === '{} of 3 paths down'", number + 1));
        eprintln!("a killed relay is red after {taken:.0} ms; the page was kept waiting for {kept:.0} ms");
        if taken <= RED_MS {
            return;
        }
        assert!(
            taken - RED_MS <= kept,
            "a killed relay is red after {taken} ms only ({kept} ms of them lost)"
        );
    }
    panic!("this machine was too busy each time to see whether a killed relay turns red in time");
}

#[test]
fn the_dashboard_shows_rates_plays_videos_and_sees_a_relay_die() {
    if !installed("chromium") {
        return;
    }
    let mut chain = chain();
    let mut browser = Browser::start(&chain.ground.scratch("profile"));
    browser.size(1280, 1500);
    browser.open(&format!("http://{}/", chain.downstream.admin()));
    browser.wait("document.querySelector('#status')?.textContent === 'all well'");
    browser.wait("document.querySelectorAll('.path .state').length === 3");

    let viewers = Viewers::of(chain.address, &FILMS, FILM_BYTES);
    browser.wait("Math.max(...[...rates.values()].flat()) > 1e6");
    // By hls.js, then what the browser plays itself; the second time from the cache.
    play(&mut browser, "/hls/index.m3u8");
    for target in ["/hls/segment0.ts", "/hls/segment1.ts", "/hls/segment2.ts", "/sample.mp4"] {
        // What the disk could not take at once is fetched again.
        eventually("a hit", || {
            let answer = ask(chain.address, "GET", target, "");
            answer.header("cache-status").unwrap().contains("; hit").then_some(())
        });
    }
    play(&mut browser, "/sample.mp4");
    browser.wait("$('video').currentSrc.endsWith('/sample.mp4')");
    // A target that a browser would take for another host.
    let resolved = browser.evaluate("source('//elsewhere.example/a.mp4')");
    assert_eq!(resolved, format!("http://{}//elsewhere.example/a.mp4", chain.address));
    browser.wait("$('recent').children.length >= 3");
    let tile = |name: &str| {
        format!(
            "[...$('tiles').children].find((tile) => tile.firstChild.textContent === '{name}')?.lastChild.textContent"
        )
    };
    browser.wait(&format!("parseInt({}) > 0", tile("Cache hits")));
    browser.wait(&format!("parseInt({}) >= 3", tile("Viewers")));
    browser.tab_to("document.querySelector('#lanes-details summary')");
    browser.enter();
    browser.wait("$('lanes-details').open && $('lanes').children.length >= 3");
    browser.wait("[...$('lanes').children].some((row) => row.children[3].textContent === 'busy')");
    if screenshots().is_some() {
        thread::sleep(HISTORY);
        play(&mut browser, "/hls/index.m3u8");
        browser.evaluate("document.activeElement.blur(); $('lanes-details').open = false");
    }
    // In the middle of it.
    browser.wait("document.querySelectorAll('.strands .moving').length === 3");
    browser.screenshot("dashboard-wide.png");
    assert_eq!(browser.evaluate("document.documentElement.scrollWidth <= innerWidth"), true);

    kill_until_one_is_seen_in_time(&mut chain, &mut browser);
    browser.size(390, 844);
    browser.scheme("dark");
    browser.wait("document.documentElement.scrollWidth <= innerWidth");
    browser.wait("document.querySelectorAll('.strands .moving').length >= 1");
    browser.screenshot("dashboard-phone.png");
    viewers.leave();
    assert_eq!(browser.complaints(), [] as [&str; 0]);
}

/// Of the other roles, and of all of them in one process.
#[test]
fn every_role_has_a_dashboard_whose_numbers_move() {
    if !installed("chromium") {
        return;
    }
    let chain = chain();
    let files = chain.ground.files();
    let args = ["up", "--listen", "127.0.0.1:0", "--paths", "2", "--dir", text(&files)];
    let (up, up_address) = Process::role("up", &watched(), args);
    let mut browser = Browser::start(&chain.ground.scratch("profile"));
    browser.size(1280, 900);
    let viewers = [chain.address, up_address].map(|address| Viewers::of(address, &FILMS[..2], FILM_BYTES));
    let root = chain.root.as_ref().unwrap();
    let roles = [("up", &up), ("relay", &chain.relays[0][0]), ("upstream", &chain.upstream), ("root", root)];
    for (role, process) in roles {
        browser.open(&format!("http://{}/", process.admin()));
        browser.wait("document.querySelector('#status')?.textContent === 'all well'");
        browser.wait(&format!("$('role').textContent === '{role}'"));
        // A root counts an answer when it ends.
        browser.wait("Math.max(...[...rates.values()].flat()) > 1e6");
        browser.wait("document.querySelectorAll('.strands .strand').length >= 1");
        browser.wait("document.querySelectorAll('#paths .path svg').length >= 1");
        browser.wait("document.documentElement.scrollWidth <= innerWidth");
        browser.screenshot(&format!("role-{role}.png"));
        assert_eq!(browser.complaints(), [] as [&str; 0], "{role}");
    }
    // What `up` serves is offered.
    browser.open(&format!("http://{}/", up.admin()));
    browser.wait(
        "[...document.querySelectorAll('#library option')].some((file) => file.value === '/hls/index.m3u8')",
    );
    play(&mut browser, "/sample.mp4");
    assert_eq!(browser.complaints(), [] as [&str; 0]);
    viewers.into_iter().for_each(Viewers::leave);
}

/// Its own failures are not taken for those of the process, and pass.
#[test]
fn the_dashboard_tells_its_own_failures() {
    if !installed("chromium") {
        return;
    }
    let chain = chain();
    let mut browser = Browser::start(&chain.ground.scratch("profile"));
    browser.open(&format!("http://{}/", chain.downstream.admin()));
    browser.wait("document.querySelector('#status')?.textContent === 'all well'");

    // Code that does not load is asked for again. Some browsers need none.
    browser.evaluate(
        "$('video').canPlayType = () => '';
        window.made = make;
        make = (tag, props, ...children) => made(tag, tag === 'script' ? { ...props, src: 'none.js' } : props, ...children)",
    );
    browser.tab_to("$('file')");
    browser.write("/hls/index.m3u8");
    browser.enter();
    browser.wait("$('player-state').textContent === 'cannot play: no hls.js from the process'");
    browser.evaluate("make = made; $('file').value = ''; document.activeElement.blur()");
    play(&mut browser, "/hls/index.m3u8");
    assert_eq!(browser.evaluate("player !== null"), true);

    browser.evaluate("window.shown = tiles; tiles = () => null.nothing");
    browser.wait("$('status').textContent.startsWith('this page fails: ')");
    browser.evaluate("tiles = shown");
    browser.wait("$('status').textContent === 'all well'");
    assert!(browser.complaints().iter().any(|said| said.contains("TypeError")), "{:?}", browser.complaints());
}
