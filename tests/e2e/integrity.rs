//! What arrives is what the root has, byte for byte, whoever asks and however the chain is built.

use std::{fs, process::Command};

use crate::{
    chain::{Chain, Plan, Root, text},
    client::{Client, aria2c, ask, curl, plait_get},
    content::{Hash, content, hash, hash_file},
    missing::installed,
    process::{Settings, run},
    roots::{After, ScriptedRoot, chunked},
};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Nothing, one byte, and around the sizes of frames: the smallest, the first and the largest with its head.
const LENGTHS: [usize; 11] =
    [0, 1, 16 * KIB - 1, 16 * KIB, 16 * KIB + 1, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, MIB - 1, MIB, MIB + 1];

/// Many times what all queues, pipes and socket buffers of a chain hold.
const BIG: usize = 200_000_000;

fn name(length: usize) -> String {
    format!("file-{length}.bin")
}

/// Files of all [`LENGTHS`], fetched by all clients.
fn check(plan: Plan) {
    let has_nginx = plan.root != Root::Nginx || installed("nginx");
    if !has_nginx {
        return;
    }
    let chain = plan.start(|ground| {
        for length in LENGTHS {
            ground.store(&name(length), &content(length));
        }
    });
    let wanted = LENGTHS.map(|length| (name(length), hash(&content(length))));
    check_raw(&chain, &wanted);
    check_curl(&chain, &wanted);
    check_get(&chain, &wanted);
    check_aria2c(&chain, &wanted);
}

/// All files over one connection, by a client that looks at every byte.
fn check_raw(chain: &Chain, wanted: &[(String, Hash)]) {
    let mut client = Client::connect(chain.address);
    for (name, wanted) in wanted {
        let answer = client.ask("GET", &format!("/{name}"), "").unwrap();
        assert_eq!((answer.status(), &hash(&answer.body)), (200, wanted), "{name}");
    }
}

fn check_curl(chain: &Chain, wanted: &[(String, Hash)]) {
    let file = |name: &str| chain.ground.scratch(&format!("curl-{name}"));
    let files: Vec<_> = wanted.iter().map(|(name, _)| (chain.url(&format!("/{name}")), file(name))).collect();
    let args = files.iter().flat_map(|(url, file)| [url.as_str(), "-o", text(file)]);
    let output = curl(["-f"].into_iter().chain(args));
    assert!(output.status.success(), "curl: {output:?}");
    for (name, wanted) in wanted {
        assert_eq!(&hash_file(&file(name)), wanted, "curl received another {name}");
    }
}

fn check_get(chain: &Chain, wanted: &[(String, Hash)]) {
    for (name, wanted) in wanted {
        let file = chain.ground.scratch(&format!("get-{name}"));
        let output = plait_get(chain, &format!("/{name}"), &file);
        assert!(output.status.success(), "plait get {name}: {output:?}");
        assert_eq!(&hash_file(&file), wanted, "plait get received another {name}");
    }
}

fn check_aria2c(chain: &Chain, wanted: &[(String, Hash)]) {
    if !installed("aria2c") {
        return;
    }
    for (name, wanted) in wanted {
        let file = chain.ground.scratch(&format!("aria2c-{name}"));
        aria2c(&chain.url(&format!("/{name}")), &file);
        assert_eq!(&hash_file(&file), wanted, "aria2c received another {name}");
    }
}

/// Tests named after what is special in them, each a chain.
macro_rules! chains {
    ($check:ident; $($test:ident: $paths:literal paths, depth $depth:literal, $executor:literal, $placement:literal, $root:ident;)*) => {
        $(#[test]
        fn $test() {
            $check(Plan {
                paths: $paths,
                depth: $depth,
                root: Root::$root,
                settings: Settings { executor: $executor, placement: $placement, ..Settings::default() },
                ..Plan::default()
            });
        })*
    };
}

// Every pair of two columns' values stands in some row: three differ seldom in a bug that no pair shows.
chains! { check;
    one_path_direct: 1 paths, depth 0, "tokio-uring", "local", Plait;
    one_path_one_relay: 1 paths, depth 1, "tokio-uring", "spread", Nginx;
    one_path_two_relays: 1 paths, depth 2, "tokio-uring", "auto", Directory;
    one_path_three_relays: 1 paths, depth 3, "tokio-uring", "local", Plait;
    two_paths_direct: 2 paths, depth 0, "tokio-uring", "spread", Directory;
    two_paths_one_relay: 2 paths, depth 1, "tokio-uring", "local", Plait;
    two_paths_one_relay_spread: 2 paths, depth 1, "tokio-uring", "spread", Plait;
    two_paths_two_relays: 2 paths, depth 2, "tokio-uring", "spread", Nginx;
    two_paths_three_relays: 2 paths, depth 3, "tokio-uring", "auto", Nginx;
    four_paths_direct: 4 paths, depth 0, "tokio-uring", "auto", Nginx;
    four_paths_one_relay: 4 paths, depth 1, "tokio-uring", "local", Directory;
    four_paths_two_relays: 4 paths, depth 2, "tokio-uring", "local", Nginx;
    four_paths_three_relays: 4 paths, depth 3, "tokio-uring", "spread", Directory;
    glommio_one_path_direct: 1 paths, depth 0, "glommio", "spread", Nginx;
    glommio_one_path_one_relay: 1 paths, depth 1, "glommio", "auto", Plait;
    glommio_one_path_three_relays: 1 paths, depth 3, "glommio", "spread", Directory;
    glommio_two_paths_direct: 2 paths, depth 0, "glommio", "local", Plait;
    glommio_two_paths_one_relay: 2 paths, depth 1, "glommio", "local", Directory;
    glommio_two_paths_one_relay_spread: 2 paths, depth 1, "glommio", "spread", Nginx;
    glommio_two_paths_two_relays: 2 paths, depth 2, "glommio", "spread", Plait;
    glommio_four_paths_one_relay: 4 paths, depth 1, "glommio", "spread", Plait;
    glommio_four_paths_two_relays: 4 paths, depth 2, "glommio", "auto", Nginx;
}

/// One file of 200 MB, by curl, `plait get` and aria2c's parallel ranges.
fn check_big(plan: Plan) {
    if plan.root == Root::Nginx && !installed("nginx") {
        return;
    }
    let bytes = content(BIG);
    let wanted = [("big.bin".to_owned(), hash(&bytes))];
    let chain = plan.start(|ground| ground.store("big.bin", &bytes));
    drop(bytes);
    check_curl(&chain, &wanted);
    fs::remove_file(chain.ground.scratch("curl-big.bin")).unwrap();
    check_get(&chain, &wanted);
    fs::remove_file(chain.ground.scratch("get-big.bin")).unwrap();
    check_aria2c(&chain, &wanted);
}

chains! { check_big;
    big_one_path_three_relays: 1 paths, depth 3, "tokio-uring", "local", Plait;
    big_two_paths_spread: 2 paths, depth 1, "tokio-uring", "spread", Plait;
    big_two_paths_local: 2 paths, depth 1, "tokio-uring", "local", Nginx;
    big_four_paths_of_a_directory: 4 paths, depth 0, "tokio-uring", "auto", Directory;
    big_glommio_two_paths_spread: 2 paths, depth 1, "glommio", "spread", Plait;
    big_glommio_two_paths_local: 2 paths, depth 1, "glommio", "local", Directory;
}

/// A chain before a root of the test's own, fetched whole by a raw client, curl and `plait get`.
fn check_scripted(executor: &'static str, root: &ScriptedRoot, wanted: &[u8]) {
    let settings = Settings { executor, ..Settings::default() };
    let chain = Plan { root: Root::At(root.address), settings, ..Plan::default() }.start(|_| {});
    let wanted = [("any".to_owned(), hash(wanted))];
    check_raw(&chain, &wanted);
    check_curl(&chain, &wanted);
    check_get(&chain, &wanted);
}

/// A body of unknown length in chunks of many sizes, which end anywhere in a frame; also HTTP/1.0 clients get it.
fn check_chunked(executor: &'static str) {
    for length in [0, 1, 64 * KIB + 1, 5 * MIB + 7] {
        let bytes = content(length);
        let body = chunked(&bytes, &[1, 4095, 65_536, 7, 300_001, 16]);
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let root = ScriptedRoot::of_pieces(head, vec![body], || After::Keep);
        check_scripted(executor, &root, &bytes);
    }
}

#[test]
fn a_chunked_body_of_unknown_length() {
    check_chunked("tokio-uring");
}

#[test]
fn a_chunked_body_of_unknown_length_on_glommio() {
    check_chunked("glommio");
}

/// The same over chains of other shapes. (aria2c's parallel ranges want a length.)
#[test]
fn a_chunked_body_over_other_chains() {
    let bytes = content(5 * MIB + 7);
    let body = chunked(&bytes, &[1, 4095, 65_536, 7, 300_001, 16]);
    let wanted = [("any".to_owned(), hash(&bytes))];
    for (executor, depth) in [("glommio", 0), ("glommio", 2), ("tokio-uring", 0), ("tokio-uring", 2)] {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let root = ScriptedRoot::of_pieces(head, vec![body.clone()], || After::Keep);
        let settings = Settings { executor, placement: "spread", ..Settings::default() };
        let plan = Plan { depth, root: Root::At(root.address), settings, ..Plan::default() };
        let chain = plan.start(|_| {});
        for _ in 0..3 {
            check_curl(&chain, &wanted);
        }
    }
}

#[test]
fn chunk_lines_that_arrive_in_pieces() {
    // Each byte of the framing in a segment of its own, with extension and trailer.
    let bytes = content(1000);
    let mut body = b"3e8;name=value\r\n".to_vec();
    body.extend_from_slice(&bytes);
    body.extend_from_slice(b"\r\n0\r\nX-Trailer: yes\r\n\r\n");
    let pieces = body.chunks(1).map(<[u8]>::to_vec).collect();
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let root = ScriptedRoot::start(move |_, stream| {
        use std::io::Write;
        stream.set_nodelay(true)?;
        stream.write_all(head.as_bytes())?;
        let pieces: &Vec<Vec<u8>> = &pieces;
        pieces.iter().try_for_each(|piece| stream.write_all(piece))?;
        Ok(After::Keep)
    });
    check_scripted("tokio-uring", &root, &bytes);
}

#[test]
fn a_body_that_ends_with_the_connection() {
    for (executor, length) in [("tokio-uring", 0), ("tokio-uring", 3 * MIB + 1), ("glommio", 3 * MIB + 1)] {
        let bytes = content(length);
        let head = "HTTP/1.0 200 OK\r\nContent-Type: video/mp4\r\n\r\n";
        let root = ScriptedRoot::of_pieces(head, vec![bytes.clone()], || After::Close);
        check_scripted(executor, &root, &bytes);
    }
}

#[test]
fn payload_is_the_same_when_it_is_copied() {
    // Where splice is refused, payload takes another way through every role.
    let bytes = content(9 * MIB + 3);
    for executor in ["tokio-uring", "glommio"] {
        for placement in ["local", "spread"] {
            let settings = Settings { executor, placement, no_splice: true, ..Settings::default() };
            let chain = Plan { settings, ..Plan::default() }.start(|ground| ground.store("f", &bytes));
            chain.upstream.wait_for_log("PLAIT_NO_SPLICE");
            assert_eq!(hash(&ask(chain.address, "GET", "/f", "").body), hash(&bytes));
        }
    }
}

#[test]
fn several_lanes_per_path() {
    let bytes = content(20 * MIB + 1);
    let plan = Plan { downstream: vec!["--lanes".into(), "4".into()], ..Plan::default() };
    let chain = plan.start(|ground| ground.store("f", &bytes));
    for _ in 0..3 {
        assert_eq!(hash(&ask(chain.address, "GET", "/f", "").body), hash(&bytes));
    }
}

#[test]
fn up_runs_the_whole_chain_in_one_process() {
    let ground = crate::chain::Ground::new();
    let bytes = content(5 * MIB);
    ground.store("f.mp4", &bytes);
    let files = ground.files();
    let settings = Settings::default();
    let args = ["up", "--listen", "127.0.0.1:0", "--paths", "3", "--dir", text(&files)];
    let (mut up, address) = crate::process::Process::role("up", &settings, args);
    let answer = ask(address, "GET", "/f.mp4", "");
    assert_eq!(answer.header("content-type"), Some("video/mp4"));
    assert_eq!(hash(&answer.body), hash(&bytes));
    up.terminate();
    assert_eq!(up.wait().code(), Some(0));
}

/// Without a directory and without ffmpeg it serves the library that it carries, at the addresses that it prints, says how fast
/// each path is, and ends at Ctrl-C.
#[test]
fn up_serves_its_own_library_until_ctrl_c() {
    let ground = crate::chain::Ground::new();
    let mut command = Settings::default().plait();
    command.args(["up", "--listen", "127.0.0.1:0"]);
    command.env("PATH", "").env("XDG_CACHE_HOME", ground.scratch("cache"));
    let (mut up, address) = crate::process::Process::listening("up", &mut command);
    up.wait_for_output("stop with Ctrl-C");
    let front = format!("http://{address}");
    let said = up.output();
    let targets: Vec<_> = said.lines().filter_map(|line| line.trim().strip_prefix(&front)).collect();
    assert!(targets.contains(&"/sample.mp4") && targets.contains(&"/hls/index.m3u8"), "{said}");
    for target in &targets {
        let answer = ask(address, "GET", target, "");
        assert!(answer.status() == 200 && !answer.body.is_empty(), "{target}");
    }
    up.wait_for_output("Mbit/s, RTT ");
    up.interrupt();
    assert_eq!(up.wait().code(), Some(0));
    up.wait_for_output("stopped");
}

#[test]
fn get_continues_a_partial_file() {
    let bytes = content(10 * MIB);
    let chain = Plan::default().start(|ground| ground.store("f", &bytes));
    let etag = ask(chain.address, "HEAD", "/f", "").header("etag").unwrap().to_owned();
    let file = chain.ground.scratch("f");
    let (part, version) = (chain.ground.scratch("f.part"), chain.ground.scratch("f.part.etag"));
    // What a download that was interrupted leaves: only the rest may be fetched, so the mark in it survives.
    let mut kept = bytes[..4 * MIB].to_vec();
    kept[0] ^= 1;
    fs::write(&part, &kept).unwrap();
    fs::write(&version, &etag).unwrap();
    let output = plait_get(&chain, "/f", &file);
    assert!(output.status.success(), "{output:?}");
    let got = fs::read(&file).unwrap();
    assert_eq!((hash(&got[1..]), got[0]), (hash(&bytes[1..]), bytes[0] ^ 1));
    assert!(!part.exists() && !version.exists());
    // Of another version nothing is kept.
    fs::write(&part, &kept).unwrap();
    fs::write(&version, "\"of-another-version\"").unwrap();
    let output = plait_get(&chain, "/f", &file);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(hash_file(&file), hash(&bytes));
}

#[test]
fn get_says_what_is_not_there() {
    let chain = Plan::default().start(|_| {});
    let file = chain.ground.scratch("f");
    let output = plait_get(&chain, "/missing", &file);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("404"), "{output:?}");
    assert!(!file.exists());
}

#[test]
fn keygen_never_overwrites() {
    let ground = crate::chain::Ground::new();
    let key = fs::read(ground.key()).unwrap();
    let mut command: Command = Settings::default().plait();
    let output = run(command.arg("keygen").arg(ground.key()));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(fs::read(ground.key()).unwrap(), key);
}
