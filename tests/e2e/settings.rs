//! Settings: from a file, and looked at without a start.

use std::{
    fs,
    io::Write,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Command, Output},
    thread,
};

use crate::{
    chain::{Chain, Ground, Plan, text},
    client::ask,
    process::{PLAIT, Process, Settings, run},
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

/// What `plait check` prints of a role, and its exit status.
fn looked(flags: &[&str]) -> (Option<i32>, String) {
    let Output { status, stdout, .. } = run(Settings::default().plait().arg("check").args(flags));
    (status.code(), String::from_utf8(stdout).unwrap())
}

#[test]
fn a_check_beside_the_running_role_says_that_it_may_be_that() {
    let chain = Plan::default().start(|ground| ground.store("f.mp4", FILM));
    let (cache, key) = (chain.ground.scratch("cache"), chain.ground.key());
    let flags = ["downstream", "--key", text(&key), "--path", &chain.paths[0], "--cache", text(&cache)];
    let (_running, address) = Process::role(
        "downstream",
        &Settings::default(),
        flags.iter().copied().chain(["--listen", "127.0.0.1:0"]),
    );
    let listen = address.to_string();
    let (status, said) = looked(&[&flags[..], &["--listen", &listen]].concat());
    assert_eq!(status, Some(1), "{said}");
    let wrong: Vec<_> = said.lines().filter(|line| line.starts_with("WRONG")).collect();
    assert!(wrong.len() == 2 && wrong.iter().all(|line| line.contains("this very role that runs")), "{said}");
    assert!(said.contains("WRONG  cache"), "{said}");
}

/// As root it may run where the role is not root: what it made there the role could not open.
#[test]
fn a_check_changes_nothing_in_a_cache() {
    let ground = Ground::new();
    let (cache, key) = (ground.scratch("cache"), ground.key());
    let flags = ["downstream", "--listen", "127.0.0.1:0", "--key", text(&key), "--path", "127.0.0.1:7000"];
    let check = || looked(&[&flags[..], &["--cache", text(&cache)]].concat());
    let there = || {
        let mut names: Vec<_> = fs::read_dir(&cache)
            .unwrap()
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let (status, said) = check();
    assert!(status == Some(0) && !cache.exists(), "{said}");
    fs::create_dir(&cache).unwrap();
    let (status, said) = check();
    assert_eq!((status, there()), (Some(0), vec![]), "{said}");
    // What a process that was killed leaves there.
    fs::write(cache.join("lock"), "").unwrap();
    fs::create_dir(cache.join("unnamed")).unwrap();
    fs::write(cache.join("unnamed/1"), "half").unwrap();
    let (status, said) = check();
    assert_eq!((status, there()), (Some(0), vec!["lock".to_owned(), "unnamed".to_owned()]), "{said}");
    assert_eq!(fs::read(cache.join("unnamed/1")).unwrap(), b"half");

    fs::remove_dir_all(&cache).unwrap();
    fs::write(&cache, "").unwrap();
    let (status, said) = check();
    assert!(
        status == Some(1) && said.contains("WRONG  cache") && said.contains("(change --cache)"),
        "{said}"
    );
}

#[test]
fn packaged_settings_are_right_where_their_files_are() {
    let ground = Ground::new();
    ground.store("f.mp4", FILM);
    let (files, cache) = (ground.files(), ground.scratch("cache"));
    let hosts = [("root", "root"), ("root", "upstream"), ("a", "relay"), ("b", "relay")];
    for (host, role) in hosts.into_iter().chain([("edge-1", "downstream"), ("edge-2", "downstream")]) {
        let packaged = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join(format!("packaging/config/{host}.example/{role}.toml"));
        let settings = fs::read_to_string(packaged).unwrap();
        // What a new host has that this one has not; ports are taken by other tests.
        let settings =
            settings.replace("/srv/videos", text(&files)).replace("/var/cache/plait", text(&cache));
        let free = |line: &str| match line.split_once(" = \"") {
            Some((key @ ("listen" | "admin"), _)) => format!("{key} = \"127.0.0.1:0\"\n"),
            _ => format!("{line}\n"),
        };
        let file = ground.scratch(&format!("{host}-{role}.toml"));
        fs::write(&file, settings.lines().map(free).collect::<String>()).unwrap();
        let mut plait = Settings::default().plait();
        plait.env("PLAIT_KEY", ground.key()).args(["check", role, "--config", text(&file)]);
        let Output { status, stdout, stderr } = run(&mut plait);
        let said = String::from_utf8([stdout, stderr].concat()).unwrap();
        assert!(status.success() && !said.contains("WRONG"), "{role}: {said}");
        assert!(said.lines().filter(|line| line.starts_with("ok  ")).count() >= 4, "{role}: {said}");
    }
}

/// A server that answers whatever it is asked with `answer`, once.
fn answering(answer: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        // Read to its end, so that closing does not reset the connection.
        let mut asked = Vec::new();
        while !asked.ends_with(b"\r\n\r\n") {
            let mut part = [0; 512];
            let came = std::io::Read::read(&mut client, &mut part).unwrap();
            asked.extend_from_slice(&part[..came]);
        }
        client.write_all(answer.as_bytes()).unwrap();
    });
    address
}

#[test]
fn a_probe_asks_the_root_by_http() {
    let ground = Ground::new();
    let key = ground.key();
    let probe = |root: SocketAddr| {
        let root = format!("http://{root}");
        looked(&["--probe", "upstream", "--listen", "127.0.0.1:0", "--key", text(&key), "--root", &root])
    };
    let (_root, address) = ground.start_root(&Settings::default());
    let (status, said) = probe(address);
    assert!(status == Some(0) && said.contains(" answers\n"), "{said}");
    let missing = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(probe(answering(missing)).0, Some(0), "it need not have anything at /");
    for (answer, reason) in [
        ("SSH-2.0-OpenSSH_9.2p1\r\n", "(is it an HTTP server?)"),
        ("", "it closes after 0 bytes of an answer"),
        ("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", "it answers 503"),
    ] {
        let (status, said) = probe(answering(answer));
        assert!(status == Some(1) && said.contains(reason), "{reason}: {said}");
    }
}

#[test]
fn a_probe_of_a_relay_looks_up_its_next_hops() {
    let ground = Ground::new();
    let (key, nowhere) = (ground.key(), format!("{}.invalid:7000", "a".repeat(64)));
    let allow =
        ["--allow", "127.0.0.1:7000", "--allow", "[::1]:7000", "--allow", "*:7000", "--allow", &nowhere];
    let flags = [&["relay", "--listen", "127.0.0.1:0", "--key", text(&key)], &allow[..]].concat();
    let (status, said) = looked(&[&["--probe"], &flags[..]].concat());
    assert_eq!((status, said.matches("WRONG").count()), (Some(1), 1), "{said}");
    assert!(said.contains(&format!("WRONG  next hop {nowhere} has an address: ")), "{said}");
    assert!(said.contains("(change --allow)") && said.matches("ok     next hop ").count() == 2, "{said}");
    assert!(said.contains("note   routes come with the lanes: `plait check --probe downstream`"), "{said}");
    assert_eq!(looked(&flags).0, Some(0), "nothing is asked without --probe");
}

#[test]
fn a_check_starts_the_executor() {
    let dir = tempfile::tempdir().unwrap();
    let flags = "check --executor glommio root --listen 127.0.0.1:0 --dir";
    let check = |limit: &str| {
        let script = format!("{limit} exec \"$0\" {flags} \"$1\"");
        let Output { status, stdout, .. } =
            run(Command::new("sh").args(["-c", &script, PLAIT]).arg(dir.path()));
        (status.code(), String::from_utf8(stdout).unwrap())
    };
    let (status, said) = check("");
    assert!(status == Some(0) && said.contains("ok     executor glommio"), "{said}");
    let (status, said) = check("ulimit -l 16;");
    assert_eq!(status, Some(1), "{said}");
    assert!(
        said.contains("WRONG  executor glommio: ") && said.contains("(memlock) is 16384 bytes, "),
        "{said}"
    );
}
