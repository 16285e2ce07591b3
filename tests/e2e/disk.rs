//! Disks that are full, or read-only, for real: in a mount namespace of the downstream's own.

use std::{fs, net::SocketAddr, path::Path, process::Command};

use crate::{
    chain::{Chain, Ground, Plan, text},
    client::ask,
    content::content,
    missing::skipped,
    observe::limit_hits,
    process::{PLAIT, Process, Settings, run},
};

/// More than fit into the file system.
const FILMS: usize = 12;
const FILM_BYTES: usize = 1_000_000;

/// `program` in a mount namespace of its own, where `mounts` were run; none if there cannot be one here.
fn in_namespace(mounts: &str, program: &str) -> Option<Command> {
    let in_namespace = |program: &str| {
        let script = format!("{mounts} && exec \"$0\" \"$@\"");
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script, program]);
        command
    };
    let works = Command::new("unshare").arg("--version").output().is_ok_and(|out| out.status.success())
        && run(&mut in_namespace("true")).status.success();
    if !works {
        skipped("no mount namespace can be made here");
    }
    works.then(|| in_namespace(program))
}

/// A downstream of `chain` with its cache in `dir`, by `command`, which runs plait.
fn start(mut command: Command, chain: &Chain, dir: &Path) -> (Process, SocketAddr) {
    let (settings, key) = (Settings::default(), chain.ground.key());
    command.args(["downstream", "--listen", "127.0.0.1:0", "--key", text(&key), "--cache", text(dir)]);
    for path in &chain.paths {
        command.args(["--path", path]);
    }
    command
        .env("PLAIT_ADMIN", "0")
        .env("PLAIT_EXECUTOR", settings.executor)
        .env("PLAIT_CORES", &settings.cores);
    Process::listening("downstream", &mut command)
}

#[test]
fn a_disk_that_was_mounted_read_only_costs_the_cache_and_not_the_answers() {
    let ground = Ground::new();
    let dir = ground.scratch("cache");
    fs::create_dir(&dir).unwrap();
    let mounts = format!("mount --bind '{0}' '{0}' && mount -o remount,bind,ro '{0}'", text(&dir));
    let Some(command) = in_namespace(&mounts, PLAIT) else { return };
    ground.store("f.ts", &content(FILM_BYTES));
    let chain = Plan::default().start_on(ground);
    let (downstream, address) = start(command, &chain, &dir);
    for _ in 0..2 {
        let answer = ask(address, "GET", "/f.ts", "");
        assert!(answer.status() == 200 && answer.body == content(FILM_BYTES));
    }
    downstream.wait_for_log("serving on without a cache");
    assert_eq!(downstream.log().matches("Read-only file system").count(), 1, "{}", downstream.log());
}

#[test]
fn a_full_disk_costs_hits_and_is_told_once() {
    let ground = Ground::new();
    let dir = ground.scratch("small");
    fs::create_dir(&dir).unwrap();
    let mount = format!("mount -t tmpfs -o size=4m none '{}'", text(&dir));
    let Some(command) = in_namespace(&mount, PLAIT) else { return };
    for number in 0..FILMS {
        ground.store(&format!("{number}.ts"), &content(FILM_BYTES + number));
    }
    let chain = Plan::default().start_on(ground);
    let (downstream, address) = start(command, &chain, &dir);
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
    assert!(limit_hits(downstream.admin(), "cache-disk") > 0.0);
    assert_eq!(downstream.log().matches("cannot be written").count(), 1, "{}", downstream.log());
}
