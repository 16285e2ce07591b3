//! Files of the cache that lose their bytes under a running process, and accounts of what is on the disk.

use std::{fs, io::Write, os::unix::fs::MetadataExt};

use crate::{
    cache::{cache_dir, chain, each_setting, get, object_files, start_on, status, wait_until},
    chain::{Chain, Ground, Plan, Root, text},
    client::{Client, ask, try_get},
    content::content,
    process::Settings,
    roots::{After, ScriptedRoot},
};

/// More than a connection holds on its way, twice.
const LENGTH: usize = 32_000_000;
/// Behind what a client that has taken little was sent: what is on its way may be in the pages of the file that are cut
/// through.
const CUT: u64 = 24 << 20;

/// Leaves so much of the only object's file.
fn cut_off(ground: &Ground, bytes: u64) {
    let files = object_files(ground);
    assert_eq!(files.len(), 1, "{files:?}");
    fs::File::options().write(true).open(&files[0]).unwrap().set_len(bytes).unwrap();
}

#[test]
fn a_file_that_is_cut_off_costs_no_answer() {
    let film = content(LENGTH);
    each_setting(|settings| {
        let ground = Ground::new();
        ground.store("f.mp4", &film);
        let chain = start_on(ground, Root::Plait, settings);
        let wait_for_all = || {
            wait_until("the whole object", || {
                let answer = get(&chain, "");
                assert!(answer.body == film, "{} other bytes", answer.body.len());
                status(&answer).starts_with("plait; hit")
            });
        };
        for cut in [CUT, 0] {
            wait_for_all();
            cut_off(&chain.ground, cut);
            assert!(get(&chain, "").body == film, "cut to {cut} before the answer");
            wait_for_all();
            cut_off(&chain.ground, cut);
            let part = get(&chain, "Range: bytes=27000000-27999999\r\n");
            assert!(part.body == film[27_000_000..28_000_000], "cut to {cut} before a range");
            wait_for_all();
            let mut clients: Vec<_> = (0..3)
                .map(|_| {
                    let mut client = Client::connect(chain.address);
                    client.request("GET", "/f.mp4", "");
                    assert_eq!(client.head().unwrap().status, 200);
                    assert!(client.some(100_000).unwrap() == film[..100_000]);
                    client
                })
                .collect();
            cut_off(&chain.ground, cut);
            for client in &mut clients {
                let rest = client.some(LENGTH - 100_000).expect("the rest joins");
                assert!(rest == film[100_000..], "cut to {cut} in the middle");
                // The connection is in step.
                assert!(client.ask("GET", "/f.mp4", "Range: bytes=5-6\r\n").unwrap().body == film[5..7]);
            }
        }
        let told = chain.downstream.log().matches("has lost bytes").count();
        assert_eq!(told, 1, "{}", chain.downstream.log());
    });
}

/// Without a validator nobody can tell whether the rest would fit.
#[test]
fn what_cannot_be_joined_breaks_visibly() {
    let film = content(3_000_000);
    let body = film.clone();
    let root = ScriptedRoot::start(move |_, stream| {
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n", body.len())?;
        write!(stream, "Cache-Control: max-age=600\r\n\r\n")?;
        stream.write_all(&body).map(|()| After::Keep)
    });
    let chain = chain(Root::At(root.address), Settings::default());
    wait_until("the whole object", || status(&get(&chain, "")).starts_with("plait; hit"));
    cut_off(&chain.ground, 1 << 20);
    assert!(try_get(chain.address, "GET", "/f.mp4", "").is_err(), "a third looks like the whole");
    assert!(get(&chain, "").body == film);
}

/// Objects and bytes, as `plait cache stat` says.
fn stat(chain: &Chain) -> (u64, u64) {
    let dir = cache_dir(&chain.ground);
    let output = crate::process::run(chain.settings.plait().args(["cache", "--cache", text(&dir), "stat"]));
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    let number = |name: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.trim().parse().ok()).unwrap_or_else(|| panic!("no {name} in {said}"))
    };
    (number("objects "), number("bytes "))
}

/// The same of what is on the disk.
fn on_disk(chain: &Chain) -> (u64, u64) {
    let files = object_files(&chain.ground);
    let bytes = files.iter().map(|file| fs::metadata(file).unwrap().blocks() * 512).sum();
    (files.len() as u64, bytes)
}

const BLOCK: u64 = 4096;
/// Two slots of a record and an inode, and a block that the file system may need to find the others.
const MORE_BLOCKS: u64 = 4;

fn differ_little((objects, bytes): (u64, u64), others: (u64, u64)) -> bool {
    objects == others.0 && bytes.abs_diff(others.1) <= objects * MORE_BLOCKS * BLOCK
}

#[test]
fn the_account_is_the_same_after_a_restart_and_after_a_kill() {
    let ground = Ground::new();
    for number in 0..8 {
        ground.store(&format!("{number}.ts"), &content(1_000_000 + 1001 * number));
    }
    let dir = cache_dir(&ground);
    let downstream: Vec<_> = ["--cache", text(&dir), "--cache-size", "6MB"].map(str::to_owned).into();
    let mut chain = Plan { downstream: downstream.clone(), ..Plan::default() }.start_on(ground);
    // Some whole, some in parts, the last ones in place of others.
    let fill = |chain: &Chain, numbers: std::ops::Range<usize>| {
        for number in numbers {
            let headers = if number % 3 == 1 { "Range: bytes=100001-399999\r\n" } else { "" };
            let answer = ask(chain.address, "GET", &format!("/{number}.ts"), headers);
            assert!(matches!(answer.status(), 200 | 206), "{:?}", answer.head);
        }
    };
    fill(&chain, 0..8);
    let settled = |chain: &Chain, what: &str| {
        wait_until(what, || {
            let account = stat(chain);
            account.0 > 0 && account.1 <= 6_000_000 && differ_little(account, on_disk(chain))
        });
        stat(chain)
    };
    let before = settled(&chain, "the account of what was fetched");
    for killed in [false, true] {
        if killed {
            fill(&chain, 3..6);
            chain.downstream.kill();
        } else {
            chain.downstream.terminate();
            assert!(chain.downstream.wait().success());
        }
        let (process, address) = chain.ground.start_downstream(&chain.settings, &chain.paths, &downstream);
        (chain.downstream, chain.address) = (process, address);
        chain.downstream.wait_for_log("the cache was looked through");
        let after = settled(&chain, "the account of what was found");
        assert!(killed || differ_little(before, after), "{before:?} became {after:?}");
    }
}

#[test]
fn a_purge_means_a_url_in_all_its_spellings() {
    let ground = Ground::new();
    ground.store("f.mp4", &content(100_000));
    let chain = start_on(ground, Root::Plait, Settings::default());
    let dir = cache_dir(&chain.ground);
    let purge = |url: &str| {
        let mut command = chain.settings.plait();
        let output = crate::process::run(command.args(["cache", "--cache", text(&dir), "purge", url]));
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    for url in ["http://Films.Example/f.mp4", "films.example/f.mp4", "/f.mp4"] {
        get(&chain, "");
        wait_until("the object", || status(&get(&chain, "")).starts_with("plait; hit"));
        assert_eq!(purge(url), "1 purged\n", "{url}");
        assert_eq!(purge(url), "0 purged\n", "{url}");
        assert!(!status(&get(&chain, "")).starts_with("plait; hit"), "{url}");
    }
}
