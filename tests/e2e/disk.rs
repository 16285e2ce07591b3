//! A disk that is full for real: a small tmpfs in a mount namespace of the downstream's own.

use std::{fs, process::Command};

use crate::{
    chain::{Ground, Plan, text},
    client::ask,
    content::content,
    process::{PLAIT, Process, Settings, run},
};

/// More than fit into the file system.
const FILMS: usize = 12;
const FILM_BYTES: usize = 1_000_000;

#[test]
fn a_full_disk_costs_hits_and_is_told_once() {
    let ground = Ground::new();
    let dir = ground.scratch("small");
    fs::create_dir(&dir).unwrap();
    let mounted = format!("mount -t tmpfs -o size=4m none '{}' && exec \"$0\" \"$@\"", text(&dir));
    let in_namespace = |program: &str| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &mounted, program]);
        command
    };
    if !Command::new("unshare").arg("--version").output().is_ok_and(|out| out.status.success())
        || !run(&mut in_namespace("true")).status.success()
    {
        eprintln!("skipped: no mount namespace can be made here");
        return;
    }
    for number in 0..FILMS {
        ground.store(&format!("{number}.ts"), &content(FILM_BYTES + number));
    }
    let chain = Plan::default().start_on(ground);
    let settings = Settings::default();
    let key = chain.ground.key();
    let mut command = in_namespace(PLAIT);
    command.args(["downstream", "--listen", "127.0.0.1:0", "--key", text(&key), "--cache", text(&dir)]);
    for path in &chain.paths {
        command.args(["--path", path]);
    }
    command.env("PLAIT_EXECUTOR", settings.executor).env("PLAIT_CORES", &settings.cores);
    let (downstream, address) = Process::listening("downstream on a small disk", &mut command);
    let mut hits = 0;
    for _ in 0..2 {
        for number in 0..FILMS {
            let answer = ask(address, "GET", &format!("/{number}.ts"), "");
            assert_eq!(answer.status(), 200);
            assert!(answer.body == content(FILM_BYTES + number), "{number}: {} bytes", answer.body.len());
            hits +=
                usize::from(answer.header("cache-status").is_some_and(|way| way.starts_with("plait; hit")));
        }
    }
    assert!(hits < FILMS, "{hits} hits: not all of it can be there");
    downstream.wait_for_log("serving on without it");
    assert_eq!(downstream.log().matches("cannot be written").count(), 1, "{}", downstream.log());
}
