//! A transfer whose paths are shaken meanwhile: its client gets every byte, once and in order.

use std::{
    fmt::Write as _,
    fs,
    io::{Read, Write},
    thread,
    time::Duration,
};

use fastrand::Rng;
use plait::lab::{
    Lab, Scenario,
    chain::{Chain, ChainOptions, Content, Role},
    scenario::Event,
};

use crate::possible;

/// Three seconds of both paths.
const FILE_BYTES: usize = 24_000_000;
/// No byte for so long is a failure; the longest outage here takes a second.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);

const TWO_PATHS: &str = r#"
name = "shaken"
stands-for = "nothing: quick to test"
[[path]]
rate-mbit = 40
rtt-ms = 40
[[path]]
rate-mbit = 40
rtt-ms = 40
"#;

fn scenario(happens: &[(f64, usize, &str)]) -> Scenario {
    let mut text = TWO_PATHS.to_owned();
    for (at, path, what) in happens {
        writeln!(text, "[[event]]\nat = {at:?}\npath = {path}\n{what}").unwrap();
    }
    Scenario::parse("shaken.toml", &text).unwrap()
}

fn event(path: usize, what: &str) -> Event {
    scenario(&[(0.0, path, what)]).events.remove(0)
}

/// Fetches a file while these things happen: seconds after the beginning, path (from 1), what.
fn comes_whole_although(happens: &[(f64, usize, &str)]) {
    comes_whole_beside(happens, |_, _| ());
}

/// The same, while `beside` does what it likes.
fn comes_whole_beside(happens: &[(f64, usize, &str)], beside: impl FnOnce(&Lab, &Chain) + Send) {
    if !possible() {
        return;
    }
    let mut content = vec![0; FILE_BYTES];
    Rng::with_seed(7).fill(&mut content);
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), &content).unwrap();
    let lab = Lab::build(&scenario(happens)).unwrap();
    let mut options = ChainOptions::new(&lab, env!("CARGO_BIN_EXE_plait").into());
    options.content = Content::Directory(dir.path().to_owned());
    let chain = Chain::start(&lab, &options).unwrap();

    let mut stream = lab.client().connect(None, chain.entrance(), SILENCE_LIMIT).unwrap();
    stream.set_read_timeout(Some(SILENCE_LIMIT)).unwrap();
    let _timeline = chain.play(&lab);
    // An answer to HTTP/1.0 ends with the connection: whatever is too much is seen, too.
    stream.write_all(b"GET /f HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| beside(&lab, &chain));
        stream
            .read_to_end(&mut answer)
            .map_err(|error| format!("after {} bytes: {error}", answer.len()))
            .unwrap();
    });
    let head_len = answer.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
    let (head, body) = answer.split_at(head_len);
    assert!(head.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(head));
    let wrong = body.iter().zip(&content).position(|(got, wanted)| got != wanted);
    assert_eq!((body.len(), wrong), (FILE_BYTES, None));
}

#[test]
fn a_path_falls_silent_in_one_direction_or_both() {
    comes_whole_although(&[
        (0.5, 1, "down = true"),
        (1.5, 1, "down = false"),
        // Towards the client, and towards the server.
        (2.0, 1, "down = true\ndirection = \"to-client\""),
        (2.8, 1, "down = false"),
        (3.2, 1, "down = true\ndirection = \"to-server\""),
        (4.0, 1, "down = false"),
    ]);
}

#[test]
fn paths_flap_shrink_grow_and_lose_a_fifth() {
    comes_whole_although(&[
        (0.0, 1, "rate-mbit = 100"),
        (0.5, 1, "rate-mbit = 1"),
        (0.6, 2, "down = true"),
        (0.8, 2, "down = false"),
        (1.0, 2, "down = true"),
        (1.2, 2, "down = false"),
        (1.5, 1, "rate-mbit = 100"),
        (1.7, 2, "loss = 0.2"),
        (2.7, 2, "loss = 0"),
        // Both at once.
        (3.0, 1, "down = true"),
        (3.0, 2, "down = true"),
        (4.0, 1, "down = false"),
        (4.0, 2, "down = false"),
    ]);
}

/// While nothing is on its way, the root being slow, relays die whose hosts cannot say so: the client's side has nothing to
/// send either, and hears of it only if it asks.
#[test]
fn relays_die_unheard() {
    comes_whole_beside(&[], |lab, chain| {
        let roles =
            |wanted: fn(Role) -> bool| chain.processes().iter().filter(move |role| wanted(role.role()));
        let paths = |is_down| (1..=2).for_each(|path| lab.apply(&event(path, &format!("down = {is_down}"))));
        thread::sleep(Duration::from_millis(500));
        roles(|role| role == Role::Root).for_each(|root| root.freeze());
        // What it has sent arrives.
        thread::sleep(Duration::from_millis(1500));
        paths(true);
        let relays = || roles(|role| matches!(role, Role::Relay(_)));
        relays().for_each(|relay| relay.kill());
        // Longer than their kernel repeats itself.
        thread::sleep(Duration::from_millis(2500));
        relays().for_each(|relay| relay.start_again().unwrap());
        paths(false);
        roles(|role| role == Role::Root).for_each(|root| root.thaw());
    });
}
