//! The Debian package: what is in it, and that its services run as installed, on hosts with systemd in namespaces.
//!
//! `PLAIT_PACKAGE` names the package; `.ci/package` builds one, and `.ci/test` runs it. Where there is none, or this user may
//! make no hosts, the tests say so and pass.

mod host;
#[path = "../missing/mod.rs"]
mod missing;

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use host::{Host, wait_for};
use missing::{installed, skipped};

const UNITS: [&str; 5] = [
    "plait-root.service",
    "plait-upstream.service",
    "plait-relay.service",
    "plait-downstream.service",
    "plait-downstream.socket",
];

/// The package that is tested.
fn package() -> Option<PathBuf> {
    let package = std::env::var_os("PLAIT_PACKAGE").map(PathBuf::from);
    if package.is_none() {
        skipped("PLAIT_PACKAGE names no package (.ci/package builds one)");
    }
    package
}

fn give(host: &Host, package: &PathBuf) {
    host.write("/root/plait.deb", fs::read(package).unwrap(), 0o644);
}

fn install(host: &Host) {
    // The index of manual pages takes a while, and nobody asks for it.
    host.run("DEBIAN_FRONTEND=noninteractive dpkg --no-triggers --install /root/plait.deb");
}

#[test]
fn everything_is_in_the_package() {
    let Some(package) = package() else { return };
    if !installed("dpkg-deb") {
        return;
    }
    let listed = Command::new("dpkg-deb").arg("--contents").arg(&package).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let files: BTreeSet<&str> = listed.lines().filter_map(|line| line.split(" ./").nth(1)).collect();
    let mut wanted: Vec<String> = [
        "usr/bin/plait",
        "usr/share/bash-completion/completions/plait",
        "usr/share/zsh/vendor-completions/_plait",
        "usr/share/fish/vendor_completions.d/plait.fish",
        "usr/lib/modules-load.d/plait.conf",
        "usr/lib/sysctl.d/60-plait.conf",
        "usr/share/doc/plait/copyright",
        "usr/share/doc/plait/LICENSE-MIT",
        "usr/share/doc/plait/LICENSE-APACHE",
        "usr/share/doc/plait/LICENSE-hls.js",
        "usr/share/doc/plait/README.md",
        "usr/share/doc/plait/examples/alerts.yml",
        "usr/share/doc/plait/examples/plait.json",
        "usr/share/doc/plait/examples/root.example/root.toml",
        "usr/share/doc/plait/examples/root.example/upstream.toml",
        "usr/share/doc/plait/examples/a.example/relay.toml",
        "usr/share/doc/plait/examples/b.example/relay.toml",
        "usr/share/doc/plait/examples/edge-1.example/downstream.toml",
        "usr/share/doc/plait/examples/edge-2.example/downstream.toml",
        "usr/share/man/man1/plait.1.gz",
    ]
    .map(String::from)
    .into();
    wanted.extend(UNITS.map(|unit| format!("usr/lib/systemd/system/{unit}")));
    wanted.extend(
        ["root", "upstream", "relay", "downstream", "tune-apply"]
            .map(|page| format!("usr/share/man/man1/plait-{page}.1.gz")),
    );
    for profile in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tuning")).unwrap() {
        let name = profile.unwrap().file_name();
        wanted.push(format!("usr/share/doc/plait/tuning/{}", name.to_str().unwrap()));
    }
    let missing: Vec<_> = wanted.iter().filter(|file| !files.contains(file.as_str())).collect();
    assert!(missing.is_empty(), "not in the package: {missing:?}; it has {files:#?}");
}

/// Files and directories of the host that have to do with Plait.
fn traces(host: &Host) -> String {
    host.run("find /etc /usr /var /run -xdev -path /var/lib/dpkg -prune -o -iname '*plait*' -print | sort")
}

#[test]
fn it_is_installed_upgraded_and_taken_away() {
    let Some(package) = package() else { return };
    if !Host::possible() {
        return;
    }
    let host = Host::boot("a.example");
    give(&host, &package);
    // The kernel is not the host's own: what it is told is only noted.
    for program in ["/usr/sbin/modprobe", "/usr/lib/systemd/systemd-sysctl"] {
        host.write(program, "#!/bin/sh\necho \"$(basename \"$0\") $*\" >>/root/kernel\n", 0o755);
    }
    let before = traces(&host);
    install(&host);
    let told = host.run("cat /root/kernel");
    assert!(told.contains("modprobe -q tcp_bbr\n"), "{told}");
    assert!(told.contains("systemd-sysctl --prefix=/net/ipv4/tcp_allowed_congestion_control\n"), "{told}");
    for unit in UNITS {
        let state =
            host.run(&format!("systemctl is-enabled {unit} || true; systemctl is-active {unit} || true"));
        assert_eq!(state, "disabled\ninactive\n", "{unit}");
    }
    assert_eq!(host.run("plait --version"), format!("plait {}\n", env!("CARGO_PKG_VERSION")));
    // Without settings there is nothing to start, and that is no failure.
    host.run("systemctl start plait-relay");
    assert_eq!(host.property("plait-relay", "ConditionResult"), "no");

    host.run("plait keygen /etc/plait/plait.key && cp /usr/share/doc/plait/examples/a.example/relay.toml /etc/plait/");
    host.run("systemctl enable --now plait-relay");
    runs_as_it_should(&host, "plait-relay", "0000000000000000");

    let pid = host.property("plait-relay", "MainPID");
    install(&host);
    wait_for("a new process after the upgrade", || {
        (host.property("plait-relay", "MainPID") != pid
            && host.property("plait-relay", "ActiveState") == "active")
            .then_some(())
    });
    for unit in UNITS.into_iter().filter(|unit| *unit != "plait-relay.service") {
        let state =
            host.run(&format!("systemctl is-enabled {unit} || true; systemctl is-active {unit} || true"));
        assert_eq!(state, "disabled\ninactive\n", "{unit} after the upgrade");
    }
    assert_eq!(host.run("systemctl is-enabled plait-relay"), "enabled\n");

    // Whoever hangs is replaced (WatchdogSec=).
    let pid = host.property("plait-relay", "MainPID");
    host.run(&format!("kill -STOP {pid}"));
    wait_for("another process by the watchdog", || {
        (host.property("plait-relay", "NRestarts") != "0").then_some(())
    });
    wait_for("its start", || (host.property("plait-relay", "ActiveState") == "active").then_some(()));

    host.run("dpkg --no-triggers --remove plait");
    assert!(host.try_run("pgrep -x plait").stdout.is_empty(), "it still runs");
    assert_eq!(host.run("ls /run/plait-keys"), "", "copies of the key are left");
    host.run("mkdir -p /var/lib/plait && : >/var/lib/plait/tune.saved && dpkg --no-triggers --purge plait");
    // The key and the settings are their owner's.
    assert_eq!(host.run("ls /etc/plait"), "plait.key\nrelay.toml\n");
    host.run("rm -r /etc/plait /run/plait-keys");
    assert_eq!(traces(&host), before);
}

/// Values of the lines that begin so.
fn metrics(host: &Host, name: &str) -> Vec<f64> {
    let text = host.run("curl -sSf http://127.0.0.1:9500/metrics");
    let lines = text.lines().filter(|line| line.starts_with(name));
    lines.map(|line| line.rsplit_once(' ').unwrap().1.parse().unwrap()).collect()
}

/// As its unit says: told to be ready, alive, with no more rights than it needs, and the key for it alone.
#[track_caller]
fn runs_as_it_should(host: &Host, unit: &str, capabilities: &str) {
    let type_and_state = ["Type", "ActiveState", "NRestarts"].map(|name| host.property(unit, name));
    assert_eq!(type_and_state, ["notify", "active", "0"], "{unit}");
    let pid = host.property(unit, "MainPID");
    let status = host.run(&format!("cat /proc/{pid}/status"));
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_start_matches(':').split_whitespace().next().unwrap().to_owned()
    };
    assert_ne!(field("Uid"), "0", "{unit}");
    assert_eq!([field("CapEff"), field("CapBnd")], [capabilities; 2], "{unit}");
    assert_eq!([field("NoNewPrivs"), field("Seccomp")], ["1", "2"], "{unit}");
    if unit != "plait-root" {
        let role = unit.strip_prefix("plait-").unwrap();
        let of_key = host.run(&format!("stat --format='%u %a' /run/plait-keys/{role}.key"));
        assert_eq!(of_key, format!("{} 400\n", field("Uid")), "{unit}");
    }
    let told = || host.property(unit, "WatchdogTimestampMonotonic");
    let first = told();
    wait_for("a sign of life", || (told() != first).then_some(()));
}

/// `root.example`, two relays and two edges, with the files that the package has for each of them, as they are.
#[test]
fn the_examples_are_a_chain() {
    let Some(package) = package() else { return };
    if !Host::possible() {
        return;
    }
    let names = ["root.example", "a.example", "b.example", "edge-1.example", "edge-2.example"];
    let hosts: Vec<Host> = thread::scope(|scope| {
        let booting: Vec<_> = names.map(|name| scope.spawn(move || Host::boot(name))).into();
        booting.into_iter().map(|host| host.join().unwrap()).collect()
    });
    let known: String =
        (1..).zip(names).map(|(number, name)| format!("198.51.100.{number} {name}\n")).collect();
    for (number, host) in (1..).zip(&hosts) {
        host.plug_in(&hosts[0], number);
        host.write("/etc/hosts", format!("127.0.0.1 localhost\n{known}"), 0o644);
        give(host, &package);
    }
    thread::scope(|scope| {
        for (host, name) in hosts.iter().zip(names) {
            scope.spawn(move || {
                install(host);
                host.run(&format!("cp /usr/share/doc/plait/examples/{name}/*.toml /etc/plait/"));
            });
        }
    });
    let [root, a, b, edge_1, edge_2] = &hosts[..] else { unreachable!() };
    let edges = [edge_1, edge_2];
    root.run("mkdir /srv/videos && cd /srv/videos && head -c 20000000 /dev/urandom >film.bin && head -c 3000000 /dev/urandom >next.bin");
    // What leads out of the library is not there, and what stays in it is.
    root.run("cd /srv/videos && ln -s film.bin link.bin && ln -s ../../etc/hosts out.bin");
    root.run("plait keygen /etc/plait/plait.key");
    let copy_key = || {
        let key = root.run("cat /etc/plait/plait.key");
        hosts[1..].iter().for_each(|host| host.write("/etc/plait/plait.key", &key, 0o600));
    };
    copy_key();

    let of_key_holders = [
        (root, "plait-upstream"),
        (a, "plait-relay"),
        (b, "plait-relay"),
        (edge_1, "plait-downstream"),
        (edge_2, "plait-downstream"),
    ];
    root.run("systemctl enable --now plait-root");
    for (host, unit) in of_key_holders {
        let role = unit.strip_prefix("plait-").unwrap();
        host.run(&format!(
            "plait check --probe {role} --config /etc/plait/{role}.toml --key /etc/plait/plait.key"
        ));
        host.run(&format!("systemctl enable --now {unit}"));
    }
    thread::scope(|scope| {
        for (host, unit) in of_key_holders.into_iter().chain([(root, "plait-root")]) {
            // CAP_NET_BIND_SERVICE: capability 10.
            let capabilities =
                if unit == "plait-downstream" { "0000000000000400" } else { "0000000000000000" };
            scope.spawn(move || runs_as_it_should(host, unit, capabilities));
        }
    });
    for edge in edges {
        for file in ["film.bin", "next.bin"] {
            let wanted = root.run(&format!("sha256sum </srv/videos/{file}"));
            let got = edge.run(&format!("curl -sSf http://127.0.0.1/{file} | sha256sum"));
            assert_eq!(got, wanted, "{file}");
        }
        let linked = edge.run("cd /tmp && for file in link out; do curl -s -o /dev/null -w '%{http_code} ' http://127.0.0.1/$file.bin; done");
        assert_eq!(linked, "200 404 ");
        wait_for("both paths", || (metrics(edge, "plait_path_up{") == [1.0, 1.0]).then_some(()));
        // What the disk cannot take at once is fetched again.
        wait_for("an answer from the cache", || {
            let got = edge.run("curl -sSf http://127.0.0.1/next.bin | sha256sum");
            assert_eq!(got, root.run("sha256sum </srv/videos/next.bin"));
            (metrics(edge, "plait_cache_requests_total{result=\"hit\"}").first() >= Some(&1.0)).then_some(())
        });
    }

    // A new key, as the README says.
    edge_1.run("cp -p /etc/plait/plait.key /root/old.key");
    for (times, flag) in [(1, "--add"), (2, "--drop-old")] {
        root.run(&format!("plait keygen {flag} /etc/plait/plait.key"));
        copy_key();
        for (host, unit) in of_key_holders {
            host.run(&format!("systemctl reload {unit}"));
            host.wait_for_log(unit, "the keys were read again", times);
        }
    }
    let get = |key: &str| {
        let paths =
            ["a", "b"].map(|relay| format!("--path {relay}.example:7000,root.example:7000")).join(" ");
        edge_1.try_run(&format!("rm -f /root/film; plait get /film.bin -o /root/film --key {key} {paths}"))
    };
    let new = get("/etc/plait/plait.key");
    assert!(new.status.success(), "{}", String::from_utf8_lossy(&new.stderr));
    let old = get("/root/old.key");
    let said = String::from_utf8_lossy(&old.stderr).into_owned();
    assert!(!old.status.success() && said.contains("key mismatch"), "the old key: {said}");

    socket_holds_the_port(edge_1, edge_2);
}

/// Tells, when it is dropped, that enough was viewed.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Viewers of `edge` notice neither a restart nor an upgrade where systemd has the port.
fn socket_holds_the_port(edge: &Host, viewer: &Host) {
    edge.run("systemctl stop plait-downstream && systemctl enable --now plait-downstream.socket && systemctl start plait-downstream");
    assert_eq!(edge.property("plait-downstream.socket", "Listen"), "0.0.0.0:80 (Stream)");
    assert_eq!(edge.property("plait-downstream.socket", "Backlog"), "32768");
    let opened = edge.property("plait-downstream.socket", "ActiveEnterTimestampMonotonic");
    for change in ["a restart", "an upgrade"] {
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let viewing = scope.spawn(|| {
                let mut answers = 0;
                while !done.load(Ordering::Relaxed) {
                    viewer.run("curl -sSf --max-time 60 http://edge-1.example/next.bin -o /dev/null");
                    answers += 1;
                }
                answers
            });
            // Also if the change fails, so that the viewer ends.
            let stop = Stop(&done);
            if change == "an upgrade" {
                install(edge);
            } else {
                edge.run("systemctl restart plait-downstream && systemctl restart plait-downstream");
            }
            drop(stop);
            assert!(viewing.join().unwrap() > 0, "{change}");
        });
    }
    viewer.run("curl -sSf --max-time 60 http://edge-1.example/next.bin -o /dev/null");
    for unit in ["plait-downstream.service", "plait-downstream.socket"] {
        assert_eq!(edge.property(unit, "ActiveState"), "active", "{unit} after an upgrade");
    }
    let kept = edge.property("plait-downstream.socket", "ActiveEnterTimestampMonotonic");
    assert_eq!(kept, opened, "the socket was closed");
}
