//! Settings: from a file, and looked at without a start.

use std::{fs, process::Output};

use crate::{
    chain::{Chain, Ground, Plan, text},
    client::ask,
    process::{Process, Settings, run},
};

const FILM: &[u8] = b"film";

fn check(chain: &Chain, flags: &[&str]) -> (Option<i32>, String) {
    let key = chain.ground.key();
    let mut plait = chain.settings.plait();
    plait.args(["check", "downstream", "--listen", "127.0.0.1:0", "--key", text(&key)]).args(flags);
    let Output { status, stdout, stderr } = run(&mut plait);
    let said = [stdout, stderr].concat();
    (status.code(), String::from_utf8(said).unwrap())
}

#[test]
fn a_role_starts_from_a_file() {
    let chain = Plan::default().start(|ground| ground.store("f.mp4", FILM));
    let file = chain.ground.scratch("downstream.toml");
    let (key, paths) = (chain.ground.key(), format!("{:?}", chain.paths));
    let settings =
        format!("listen = \"127.0.0.1:0\"\nkey = {key:?}\npath = {paths}\nlanes = 1\nlog = \"warn\"\n");
    fs::write(&file, &settings).unwrap();
    let (downstream, address) =
        Process::role("downstream", &Settings::default(), ["downstream", "--config", text(&file)]);
    assert_eq!(ask(address, "GET", "/f.mp4", "").body, FILM);
    // The environment of the tests says what is logged.
    downstream.wait_for_log("started");

    fs::write(&file, format!("{settings}lane-max = 3\n")).unwrap();
    let wrong = run(Settings::default().plait().args(["downstream", "--config", text(&file)]));
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(!wrong.status.success() && said.contains("(is lanes-max meant?)"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn a_check_says_all_that_is_wrong_at_once() {
    let mut chain = Plan::default().start(|ground| ground.store("f.mp4", FILM));
    let path = chain.paths.clone();
    let paths = ["--path", &path[0], "--path", &path[1]];
    let (key, probe) = (chain.ground.key(), |chain: &Chain, key: &str| {
        let mut plait = chain.settings.plait();
        plait.args(["check", "--probe", "downstream", "--listen", "127.0.0.1:0", "--key", key]);
        let Output { status, stdout, .. } = run(plait.args(paths));
        (status.code(), String::from_utf8(stdout).unwrap())
    });
    let (status, said) = probe(&chain, text(&key));
    assert_eq!(status, Some(0), "{said}");
    assert!(!said.contains("WRONG") && said.matches("ok  ").count() >= 6, "{said}");
    chain.relays[0][0].kill();
    let (status, said) = probe(&chain, text(&key));
    assert_eq!(status, Some(1), "{said}");
    let wrong: Vec<_> = said.lines().filter(|line| line.starts_with("WRONG")).collect();
    assert!(wrong.len() == 1 && wrong[0].contains(&path[0]), "{said}");

    let other = Ground::new();
    let (status, said) = probe(&chain, text(&other.key()));
    assert_eq!((status, said.matches("WRONG").count()), (Some(1), 2), "another key opens no path: {said}");

    let taken = chain.address.to_string();
    let missing = chain.ground.scratch("missing");
    let flags = ["--path", "nonsense:7", "--path-file", text(&missing), "--listen", &taken];
    let mut plait = chain.settings.plait();
    plait.args(["check", "downstream", "--key", text(&missing)]).args(flags);
    let Output { status, stdout, stderr } = run(&mut plait);
    let said = String::from_utf8_lossy(&stdout).into_owned();
    assert_eq!((status.code(), said.matches("WRONG").count()), (Some(1), 3), "{said}");
    for flag in ["--listen", "--path-file", "missing"] {
        assert!(said.contains(flag), "'{flag}' is missing: {said}");
    }
    assert!(String::from_utf8_lossy(&stderr).contains("3 of "), "{stderr:?}");
    let (status, said) = check(&chain, &["--path", &path[1], "--lane-cc", "no-such"]);
    assert!(status == Some(1) && said.contains("modprobe tcp_no-such"), "{said}");
}
