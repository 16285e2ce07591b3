//! What an operator's tools see: kernel settings, the service manager, manual pages.

use std::{
    fs,
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    process::{Command, Stdio},
    time::Duration,
};

use crate::{
    chain::Ground,
    missing::skipped,
    process::{DEADLINE, PLAIT, Process, Settings, run},
};

/// What a shell says in a network of its own, or None where this user can have none.
fn in_own_network(script: &str) -> Option<(bool, String)> {
    let unshared = |script: &str| {
        Command::new("unshare")
            .args(["--user", "--map-root-user", "--net", "sh", "-c", script, PLAIT])
            .output()
    };
    if !unshared("true").is_ok_and(|output| output.status.success()) {
        skipped("no network namespace can be made here");
        return None;
    }
    let output = unshared(script).unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    Some((output.status.success(), text.into_owned()))
}

#[test]
fn a_profile_is_applied_and_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let saved = dir.path().join("state/saved");
    let script = format!(
        "export PLAIT_TUNE_SAVED={}
         look() {{ cat /proc/sys/net/ipv4/tcp_rmem /proc/sys/net/ipv4/tcp_slow_start_after_idle; }}
         look > {}/before
         \"$0\" tune check wan-long-fat && exit 1
         \"$0\" tune apply wan-long-fat || exit 2
         \"$0\" tune check wan-long-fat || exit 3
         grep -qx 0 /proc/sys/net/ipv4/tcp_slow_start_after_idle || exit 4
         \"$0\" tune apply wan-lossy || exit 5
         \"$0\" tune revert || exit 6
         look | cmp - {}/before || exit 7
         \"$0\" tune revert && exit 8
         true",
        saved.display(),
        dir.path().display(),
        dir.path().display()
    );
    let Some((well, text)) = in_own_network(&script) else { return };
    assert!(well, "{text}");
    assert!(text.contains("differs  net.ipv4.tcp_slow_start_after_idle = 1, not 0"), "{text}");
    assert!(text.contains("set     net.ipv4.tcp_slow_start_after_idle = 0 (was 1)"), "{text}");
    assert!(text.contains("keeps nothing: no profile is applied"), "{text}");
    assert!(!saved.exists());
}

#[test]
fn who_reads_no_further_ends_what_prints() {
    for args in [&["completions", "bash"][..], &["tune", "show", "wan-long-fat"], &["tune", "advise"]] {
        let mut command = Command::new(PLAIT);
        let mut printing = command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(printing.stdout.take());
        let output = printing.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.is_empty(), "{args:?}: {said}");
    }
}

#[test]
fn profiles_are_printed_as_files() {
    let show = |args: &[&str]| {
        let output = Command::new(PLAIT).args(["tune", "show"]).args(args).output().unwrap();
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
    };
    assert_eq!(show(&["edge-many-clients"]), include_str!("../../tuning/edge-many-clients.conf"));
    assert_eq!(show(&[]).lines().count(), 4);
    assert!(show(&["wan"]).contains("there is no profile 'wan'; there are wan-long-fat, "));
}

#[test]
fn the_machine_is_looked_at() {
    let output = Command::new(PLAIT).args(["tune", "advise"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("open files (hard limit)"), "{text}");
    for line in text.lines() {
        assert!(["ok    ", "todo  ", "      "].iter().any(|start| line.starts_with(start)), "{line}");
    }
}

/// Waits until the service manager is told `wanted`.
fn hear(manager: &UnixDatagram, wanted: &str) {
    let mut message = [0; 512];
    loop {
        let bytes = manager.recv(&mut message).unwrap_or_else(|error| panic!("no {wanted}: {error}"));
        if std::str::from_utf8(&message[..bytes]).unwrap().lines().any(|line| line == wanted) {
            return;
        }
    }
}

#[test]
fn the_service_manager_hears_that_it_runs_and_stops() {
    for executor in ["tokio-uring", "glommio"] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_read_timeout(Some(DEADLINE)).unwrap();
        let settings = Settings { executor, ..Settings::default() };
        let mut command = settings.plait();
        command.args(["root", "--listen=127.0.0.1:0", "--dir"]).arg(dir.path());
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "400000");
        let (mut root, _) = Process::listening("root", &mut command);
        hear(&manager, "READY=1");
        hear(&manager, "WATCHDOG=1");
        hear(&manager, "WATCHDOG=1");
        root.freeze();
        manager.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let mut message = [0; 512];
        // One may be on its way.
        while manager.recv(&mut message).is_ok() {}
        root.thaw();
        manager.set_read_timeout(Some(DEADLINE)).unwrap();
        hear(&manager, "WATCHDOG=1");
        root.terminate();
        hear(&manager, "STOPPING=1");
        assert!(root.wait().success());
    }
}

#[test]
fn manual_pages_and_completions_name_every_role() {
    let dir = tempfile::tempdir().unwrap();
    let wrote = Command::new(PLAIT).arg("man").arg(dir.path()).status().unwrap();
    assert!(wrote.success());
    let page = std::fs::read_to_string(dir.path().join("plait-downstream.1")).unwrap();
    assert!(page.contains("path\\-file") && page.contains("PLAIT_KEY"), "{page}");
    assert!(dir.path().join("plait-lab-run.1").exists());
    for shell in ["bash", "zsh", "fish"] {
        let output = Command::new(PLAIT).args(["completions", shell]).output().unwrap();
        let script = String::from_utf8(output.stdout).unwrap();
        for role in ["root", "upstream", "relay", "downstream", "tune"] {
            assert!(script.contains(role), "{shell}: no {role}");
        }
    }
}

#[test]
fn help_tells_what_is_a_roles_own() {
    for (role, last) in
        [("root", "--stall-timeout"), ("relay", "--max-lanes"), ("downstream", "--cache-size")]
    {
        let output = Command::new(PLAIT).args([role, "--help"]).output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        let (own, of_all) = help.split_once("Options of every command:").unwrap();
        assert!(own.contains("--listen") && own.contains(last) && !own.contains("--executor"), "{help}");
        assert!(of_all.contains("--cores") && of_all.contains("--admin"), "{help}");
    }
}

/// As Kubernetes hands over a secret: readable for a group, in a directory that is said to be one for credentials.
#[test]
fn a_credential_may_be_readable_for_a_group() {
    let ground = Ground::new();
    let dir = ground.scratch("credentials");
    fs::create_dir(&dir).unwrap();
    let key = dir.join("plait.key");
    fs::copy(ground.key(), &key).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o440)).unwrap();
    let settings = Settings::default();
    let upstream = || {
        let mut command = settings.plait();
        command
            .args(["upstream", "--listen=127.0.0.1:0", "--root"])
            .arg(ground.files())
            .env("PLAIT_KEY", &key);
        command
    };
    let refused = run(&mut upstream());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && said.contains("has mode 0440: others can read or change it"),
        "{said}"
    );
    let elsewhere = run(upstream().env("CREDENTIALS_DIRECTORY", ground.files()));
    assert!(!elsewhere.status.success());
    let (mut process, _) = Process::listening("upstream", upstream().env("CREDENTIALS_DIRECTORY", &dir));
    // At a new key, too.
    process.hang_up();
    process.wait_for_log("the keys were read again");
    process.terminate();
    assert!(process.wait().success());
}
