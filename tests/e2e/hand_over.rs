//! A new process takes over the port of an old one, or sockets that somebody holds for both: no request is lost.

use std::{
    net::{SocketAddr, TcpListener},
    os::fd::AsRawFd,
    process::Command,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{
    chain::{Ground, text},
    client::{Client, try_get},
    content::content,
    process::{DEADLINE, Process, Settings, run},
};

/// Requests on connections of their own, one after the other on each of some threads, while `change` happens; how many.
/// Each must be answered.
fn requests_while(address: SocketAddr, body: &[u8], change: impl FnOnce(&dyn Fn(usize))) -> usize {
    /// More than a process has cores, so that one of them always connects.
    const THREADS: usize = 4;
    let (done, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let answer = try_get(address, "GET", "/f", "Connection: close\r\n");
                    let answer = answer.unwrap_or_else(|error| {
                        done.store(true, Ordering::Relaxed);
                        panic!("a request was lost: {error}")
                    });
                    assert!(answer.status() == 200 && answer.body == body, "{}", answer.text());
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        /// Ends the requests even when `change` panics.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _stop = Stop(&done);
        change(&|more| {
            let (from, until) = (answered.load(Ordering::Relaxed), Instant::now() + DEADLINE);
            while answered.load(Ordering::Relaxed) < from + more && !done.load(Ordering::Relaxed) {
                assert!(Instant::now() < until, "no more requests are answered");
                thread::yield_now();
            }
        });
    });
    answered.into_inner()
}

#[test]
fn a_second_process_takes_over_the_port_of_a_downstream() {
    let body = content(1000);
    for executor in ["tokio-uring", "glommio"] {
        let settings = Settings { executor, ..Settings::default() };
        let ground = Ground::new();
        ground.store("f", &body);
        let (_upstream, at) = ground.start_upstream(&settings, text(&ground.files()));
        let path = [at.to_string()];
        let (mut old, address) = ground.start_downstream(&settings, &path, &[]);
        let key = ground.key();
        let listen = address.to_string();
        let args =
            ["downstream", "--key", text(&key), "--path", &path[0], "--listen", &listen, "--take-over"];
        let answered = requests_while(address, &body, |wait| {
            wait(100);
            // Three generations.
            for _ in 0..2 {
                let (new, its_address) = Process::role("the next downstream", &settings, args);
                assert_eq!(its_address, address);
                wait(100);
                old.terminate();
                assert_eq!(old.wait().code(), Some(0), "{}", old.log());
                old = new;
                wait(100);
            }
        });
        println!("{executor}: {answered} requests over two hand-overs, none lost");
    }
}

/// Of the other roles, too: what is refused or reset would fail requests.
#[test]
fn every_role_is_replaced_while_requests_run() {
    let body = content(1000);
    let (ground, settings) = (Ground::new(), Settings::default());
    ground.store("f", &body);
    let (key, files) = (ground.key(), ground.files());
    let (root, root_at) = ground.start_root(&settings);
    let (root_at, url) = (root_at.to_string(), format!("http://{root_at}"));
    let (upstream, at) = ground.start_upstream(&settings, &url);
    let (relay, relay_at) = ground.start_relay(&settings);
    let path = [format!("{relay_at},{at}")];
    let (_downstream, address) = ground.start_downstream(&settings, &path, &[]);
    let (at, relay_at) = (at.to_string(), relay_at.to_string());
    let roles: [(&str, Process, Vec<&str>); 3] = [
        ("root", root, vec!["--listen", &root_at, "--dir", text(&files)]),
        ("upstream", upstream, vec!["--listen", &at, "--root", &url, "--key", text(&key)]),
        ("relay", relay, vec!["--listen", &relay_at, "--key", text(&key)]),
    ];
    let mut kept = Vec::new();
    requests_while(address, &body, |wait| {
        for (role, mut old, args) in roles {
            wait(50);
            let args = [&[role, "--take-over"][..], &args].concat();
            kept.push(Process::role(format!("the next {role}"), &settings, args));
            old.terminate();
            assert_eq!(old.wait().code(), Some(0), "{role}: {}", old.log());
            wait(50);
        }
    });
}

/// All roles are replaced while a viewer takes a film at its own pace, which goes on for longer than any process would wait
/// that was to be gone soon.
#[test]
fn a_slow_viewer_outlives_the_processes_that_began_its_answer() {
    /// A supervisor that knows nothing better kills after ten seconds.
    const LONG: Duration = Duration::from_secs(11);
    let film = content(100_000_000);
    for executor in ["tokio-uring", "glommio"] {
        let (ground, settings) = (Ground::new(), Settings { executor, ..Settings::default() });
        ground.store("f", &film);
        let (key, files) = (ground.key(), ground.files());
        let (upstream, at) = ground.start_upstream(&settings, text(&files));
        let (relay, relay_at) = ground.start_relay(&settings);
        let path = [format!("{relay_at},{at}")];
        let (downstream, address) = ground.start_downstream(&settings, &path, &[]);
        let mut viewer = Client::connect(address);
        viewer.request("GET", "/f", "");
        assert_eq!(viewer.head().unwrap().status, 200);
        let (at, relay_at, listen) = (at.to_string(), relay_at.to_string(), address.to_string());
        let roles: [(&str, Process, Vec<&str>); 3] = [
            ("downstream", downstream, vec!["--listen", &listen, "--key", text(&key), "--path", &path[0]]),
            ("upstream", upstream, vec!["--listen", &at, "--root", text(&files), "--key", text(&key)]),
            ("relay", relay, vec!["--listen", &relay_at, "--key", text(&key)]),
        ];
        let (olds, _news): (Vec<_>, Vec<_>) = roles
            .into_iter()
            .map(|(role, old, args)| {
                let args = [&[role, "--take-over"][..], &args].concat();
                let (new, _) = Process::role(format!("the next {role}"), &settings, args);
                old.terminate();
                old.wait_for_log("stopping");
                (old, new)
            })
            .unzip();
        let (until, mut taken) = (Instant::now() + LONG, Vec::new());
        while Instant::now() < until {
            taken.extend(viewer.some(100_000).unwrap());
            thread::sleep(Duration::from_millis(100));
        }
        taken.extend(viewer.some(film.len() - taken.len()).unwrap());
        assert!(taken == film, "{executor}: other bytes");
        for mut old in olds {
            assert_eq!(old.wait().code(), Some(0), "{executor}: {}", old.log());
        }
        assert_eq!(try_get(address, "GET", "/f", "Range: bytes=0-9\r\n").unwrap().body, film[..10]);
    }
}

/// The directory is the old process's until that has ended. The next one serves without it, and then with it.
fn a_cache_goes_from_one_process_to_the_next(settings: &Settings, of_systemd: bool) {
    let (film, body) = (content(60_000_000), content(1000));
    let ground = Ground::new();
    ground.store("film", &film);
    ground.store("f", &body);
    let (key, cache) = (ground.key(), ground.scratch("cache"));
    let (_upstream, at) = ground.start_upstream(settings, text(&ground.files()));
    let path = at.to_string();
    let args = ["downstream", "--key", text(&key), "--path", &path, "--cache", text(&cache)];
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let start = |listen: &str, more: &[&str]| {
        if of_systemd {
            (with_socket(settings, "downstream", &socket, &args), socket.local_addr().unwrap())
        } else {
            let args = [&args, &["--listen", listen][..], more].concat();
            Process::role("downstream", settings, args)
        }
    };
    let (mut old, address) = start("127.0.0.1:0", &[]);
    let cache_says = || {
        let answer = try_get(address, "GET", "/f", "Connection: close\r\n").unwrap();
        assert!(answer.body == body);
        answer.header("cache-status").unwrap_or("").to_owned()
    };
    let wait_until = |what: &str, done: &dyn Fn() -> bool| {
        let until = Instant::now() + DEADLINE;
        while !done() {
            assert!(Instant::now() < until, "{what}");
        }
    };
    wait_until("nothing is cached", &|| cache_says().contains("hit"));
    let mut viewer = Client::connect(address);
    viewer.request("GET", "/film", "");
    assert_eq!(viewer.head().unwrap().status, 200);
    requests_while(address, &body, |wait| {
        wait(50);
        let (new, _) = start(&address.to_string(), &["--take-over"]);
        new.wait_for_log("serving without a cache until that process has gone");
        old.terminate();
        old.wait_for_log("stopping");
        // It has a viewer still.
        wait_until("the new process does not serve", &|| cache_says().is_empty());
        assert!(viewer.some(film.len()).unwrap() == film, "the viewer got other bytes");
        assert_eq!(old.wait().code(), Some(0), "{}", old.log());
        new.wait_for_log("the cache is in use from now on");
        assert!(cache_says().contains("hit"), "what the old process has stored is lost");
        wait(50);
        old = new;
    });
    // Nobody else may have the directory, unless it says that this process is to go.
    let listen = ["--listen", "127.0.0.1:0"];
    let refused = run(settings.plait().args([&args, &listen[..]].concat()));
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is the cache of another process"));
    for (more, is_well) in [(&[][..], false), (&["--take-over"], true)] {
        let checked = run(settings.plait().arg("check").args([&args, &listen[..], more].concat()));
        assert_eq!(checked.status.success(), is_well, "{checked:?}");
    }
}

#[test]
fn a_cache_is_taken_over_with_the_port() {
    for executor in ["tokio-uring", "glommio"] {
        a_cache_goes_from_one_process_to_the_next(&Settings { executor, ..Settings::default() }, false);
    }
}

#[test]
fn a_cache_is_taken_over_with_sockets_of_systemd() {
    a_cache_goes_from_one_process_to_the_next(&Settings::default(), true);
}

/// Starts a role with a listening socket in the way of sd_listen_fds(3), which wants to know the process.
fn with_socket(settings: &Settings, name: &str, listener: &TcpListener, args: &[&str]) -> Process {
    let role = settings.plait();
    let mut command = Command::new("sh");
    command.args(["-c", "exec 3<&0 0</dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"", "sh"]);
    command.arg(role.get_program()).args(args);
    for (name, value) in role.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.stdin(listener.try_clone().map(std::os::fd::OwnedFd::from).unwrap());
    let (process, address) = Process::listening(name, &mut command);
    assert_eq!(address, listener.local_addr().unwrap(), "descriptor {}", listener.as_raw_fd());
    process
}

#[test]
fn sockets_of_systemd_outlive_the_process() {
    let body = content(1000);
    for executor in ["tokio-uring", "glommio"] {
        let settings = Settings { executor, ..Settings::default() };
        let ground = Ground::new();
        ground.store("f", &body);
        let key = ground.key();
        let (lanes, clients) = (TcpListener::bind("127.0.0.1:0"), TcpListener::bind("127.0.0.1:0"));
        let (lanes, clients) = (lanes.unwrap(), clients.unwrap());
        let path = lanes.local_addr().unwrap().to_string();
        let files = ground.files();
        let upstream = ["upstream", "--root", text(&files), "--key", text(&key)];
        let downstream = ["downstream", "--path", &path, "--key", text(&key)];
        let _upstream = with_socket(&settings, "upstream", &lanes, &upstream);
        let mut old = with_socket(&settings, "downstream", &clients, &downstream);
        requests_while(clients.local_addr().unwrap(), &body, |wait| {
            wait(100);
            old.terminate();
            assert_eq!(old.wait().code(), Some(0), "{}", old.log());
            // Until there is a new process, clients wait in the queue of the socket.
            old = with_socket(&settings, "the next downstream", &clients, &downstream);
            wait(100);
        });
    }
}
