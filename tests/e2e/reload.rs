//! Settings that change while a chain runs: paths come and go, and keys are replaced, by SIGHUP, and no client notices.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use crate::{
    cache::wait_until,
    chain::{Ground, text},
    client::{Client, ask, try_get},
    content::content,
    gate::Gate,
    process::{Process, Settings, run},
};

/// Many times what a chain holds.
const BIG: usize = 100_000_000;

#[test]
fn paths_come_and_go_while_a_transfer_runs() {
    let bytes = content(BIG);
    for executor in ["tokio-uring", "glommio"] {
        let settings = Settings { executor, ..Settings::default() };
        let ground = Ground::new();
        ground.store("f", &bytes);
        let (_upstream, at) = ground.start_upstream(&settings, text(&ground.files()));
        let gates: Vec<_> = (0..2).map(|_| Gate::to(at)).collect();
        let file = ground.scratch("paths");
        let write = |gate: &Gate| fs::write(&file, format!("# one path\n{}\n", gate.address)).unwrap();
        write(&gates[0]);
        let more = ["--path-file".to_owned(), text(&file).to_owned()];
        let (downstream, address) = ground.start_downstream(&settings, &[], &more);
        let mut client = Client::connect(address);
        client.request("GET", "/f", "");
        assert_eq!(client.head().unwrap().status, 200);
        let begun = client.some(5_000_000).unwrap();

        write(&gates[1]);
        downstream.hang_up();
        gates[1].wait("a lane over the new path", |passed| passed.standing > 0);
        // Each core hears of it by itself, so one that was asked at once may still have used the old path.
        wait_until("new transfers over the new path", || {
            assert_eq!(ask(address, "GET", "/f", "Range: bytes=0-999999\r\n").body, bytes[..1_000_000]);
            gates[1].passed().back_bytes > 1_000_000
        });
        // What runs is finished over the lanes that it has, and then they go.
        assert!(gates[0].passed().standing > 0);
        let rest = client.some(BIG - begun.len()).unwrap();
        assert!([begun, rest].concat() == bytes);
        gates[0].wait("the end of the old path's lanes", |passed| passed.standing == 0);

        // A wrong file changes nothing.
        let before = gates[1].passed();
        fs::write(&file, "127.0.0.1:1\nnonsense\n").unwrap();
        downstream.hang_up();
        downstream.wait_for_log("line 2: hop 1 (\"nonsense\") has no port (write HOST:PORT); the paths stay");
        assert_eq!(client.ask("GET", "/f", "Range: bytes=7-9\r\n").unwrap().body, bytes[7..10]);
        assert_eq!(gates[1].passed().connections, before.connections);
    }
}

/// A host with its own copy of the key file.
struct Host {
    process: Process,
    key: PathBuf,
}

impl Host {
    fn start(ground: &Ground, settings: &Settings, name: &str, args: &[&str]) -> (Self, SocketAddr) {
        let key = ground.scratch(&format!("{name}.key"));
        fs::copy(ground.key(), &key).unwrap();
        let listen = ["--listen", "127.0.0.1:0", "--key", text(&key)];
        let (process, address) = Process::role(name, settings, [&[name], args, &listen].concat());
        (Self { process, key }, address)
    }

    /// Gives it the file as it is now.
    fn renew(&self, ground: &Ground, times: usize) {
        fs::copy(ground.key(), &self.key).unwrap();
        self.process.hang_up();
        self.process.wait_for_log_times("the keys were read again", times);
    }
}

/// Ends a loop of requests.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_key_is_replaced_while_requests_run() {
    let bytes = content(300_000);
    let (ground, settings) = (Ground::new(), Settings::default());
    ground.store("f", &bytes);
    let old_key = ground.scratch("old.key");
    fs::copy(ground.key(), &old_key).unwrap();
    let (upstream, at) = Host::start(&ground, &settings, "upstream", &["--root", text(&ground.files())]);
    let (relay, relay_at) = Host::start(&ground, &settings, "relay", &[]);
    let path = format!("{relay_at},{at}");
    let (downstream, address) = Host::start(&ground, &settings, "downstream", &["--path", &path]);
    let hosts = [&upstream, &relay, &downstream];
    let keygen = |flag: &str| {
        let output = run(settings.plait().args(["keygen", flag, text(&ground.key())]));
        assert!(output.status.success(), "{output:?}");
    };
    let get_with = |key: &PathBuf| {
        let file = ground.scratch("got");
        let args = ["get", "/f", "-o", text(&file), "--path", &path, "--key", text(key)];
        let output = run(settings.plait().args(args));
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        // A test that fails must not wait for the requests to end.
        let stop = Stop(&done);
        let requests = scope.spawn(|| {
            let mut requests = 0;
            while !done.load(Ordering::Relaxed) {
                let answer = try_get(address, "GET", "/f", "").unwrap();
                assert!(answer.status() == 200 && answer.body == bytes, "{}", answer.text());
                requests += 1;
            }
            requests
        });
        keygen("--add");
        hosts.iter().for_each(|host| host.renew(&ground, 1));
        assert!(get_with(&ground.key()).0, "the new key opens lanes");
        assert!(get_with(&old_key).0, "so does the old one");
        keygen("--drop-old");
        hosts.iter().for_each(|host| host.renew(&ground, 2));
        assert!(get_with(&ground.key()).0);
        let (opened, said) = get_with(&old_key);
        assert!(!opened && said.contains("key mismatch"), "{said}");
        drop(stop);
        assert!(requests.join().unwrap() > 0);
    });
    // A wrong file changes nothing.
    fs::write(&relay.key, "nonsense").unwrap();
    relay.process.hang_up();
    relay.process.wait_for_log("the keys stay as they are");
    assert!(get_with(&ground.key()).0);
}
