//! What an upstream owes its lanes, held against scripted roots.

mod harness;

use std::{
    collections::HashSet,
    io::Write,
    net::TcpListener,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use self::harness::{
    BACKENDS, GET, TEST_DEADLINE, TestLane, body_of, endless_root, get, key, pattern, root, with_upstream,
    with_upstream_of, with_upstream_placed,
};
use super::*;
use crate::wire::{
    filler,
    frame::{FIRST_CREDIT_BYTES, Frame, HEADER_BYTES, Outcome},
    handshake::HandshakeError,
    route::Route,
    units::TransferId,
};

#[test]
fn a_body_of_known_length_comes_whole_and_the_connection_is_used_again() {
    for len in [1, 16_384, 65_537, 5_000_000] {
        let connections = Arc::new(AtomicUsize::new(0));
        let seen = connections.clone();
        let root = root(move |number, stream, head| {
            assert_eq!(head, "GET /film.mp4 HTTP/1.1\r\nhost: video\r\nconnection: keep-alive\r\n\r\n");
            seen.fetch_max(number + 1, Ordering::Relaxed);
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {len}\r\nConnection: keep-alive\r\n\r\n");
            stream.write_all(head.as_bytes()).unwrap();
            stream.write_all(&pattern(len)).unwrap();
            true
        });
        let connections_before = AtomicUsize::new(0);
        with_upstream(root, |address| {
            let mut lane = TestLane::new(address);
            for transfer in [1, 2, 3] {
                let answer = lane.ask(transfer, GET);
                assert_eq!(answer.head(), (200, Some(len as u64)));
                assert!(answer.body() == pattern(len), "{len} bytes differ");
                assert_eq!(answer.outcome, Outcome::Complete);
                assert_eq!(answer.totals, (answer.frames.len() as u64, len as u64));
            }
            // Each upstream needs one connection for its three transfers.
            assert_eq!(
                connections.load(Ordering::Relaxed),
                connections_before.fetch_add(1, Ordering::Relaxed) + 1
            );
        });
    }
}

#[test]
fn filler_comes_without_the_root() {
    let root = root(|_, _, head| panic!("the root is asked: {head}"));
    for of_root in [format!("http://{root}"), "/".into()] {
        with_upstream_of(&of_root, |address| {
            let mut lane = TestLane::new(address);
            for (transfer, len) in [(1, 3_000_000), (2, 1), (3, 0)] {
                let answer = lane.ask(transfer, std::str::from_utf8(&filler::request(len)).unwrap());
                assert_eq!(answer.head(), (200, Some(len)));
                assert!(answer.body() == vec![0; len as usize], "{len} bytes differ");
                assert_eq!(answer.outcome, Outcome::Complete);
            }
        });
    }
}

#[test]
fn a_body_in_chunks_comes_whole_however_they_are_cut() {
    let body = pattern(300_000);
    let root = root(|number, stream, _| {
        let mut bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        let body = pattern(300_000);
        for chunk in body.chunks(70_001) {
            bytes.extend_from_slice(format!("{:x};note=\"x\"\r\n", chunk.len()).as_bytes());
            bytes.extend_from_slice(chunk);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"0\r\nChecksum: none\r\n\r\n");
        // Small segments cut every line somewhere.
        stream.set_nodelay(true).unwrap();
        let small = if number == 0 { 7 } else { 1_000 };
        let (start, rest) = bytes.split_at(1_000);
        for piece in start.chunks(small).chain(rest.chunks(8_191)) {
            stream.write_all(piece).unwrap();
        }
        true
    });
    with_upstream(root, |address| {
        let mut lane = TestLane::new(address);
        for transfer in [10, 11] {
            let answer = lane.ask(transfer, GET);
            assert_eq!(answer.head(), (200, None));
            assert!(answer.body() == body);
            assert_eq!((answer.outcome, answer.totals.1), (Outcome::Complete, 300_000));
        }
    });
}

#[test]
fn a_body_that_ends_with_the_connection_comes_whole() {
    let root = root(|_, stream, _| {
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n").unwrap();
        stream.write_all(&pattern(200_000)).unwrap();
        false
    });
    with_upstream(root, |address| {
        let mut lane = TestLane::new(address);
        for transfer in [1, 2] {
            let answer = lane.ask(transfer, GET);
            assert!(answer.body() == pattern(200_000));
            assert_eq!(answer.outcome, Outcome::Complete);
        }
    });
}

#[test]
fn responses_without_a_body_end_at_once() {
    let root = root(|number, stream, head| {
        assert!(number < BACKENDS.len(), "each upstream needs one connection");
        let response = match head.split_whitespace().nth(1).unwrap() {
            "/not-modified" => "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
            "/empty" => "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            "/nothing" => "HTTP/1.1 204 No Content\r\n\r\n",
            _ => "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
        };
        stream.write_all(response.as_bytes()).unwrap();
        true
    });
    with_upstream(root, |address| {
        let mut lane = TestLane::new(address);
        for (transfer, request, head) in [
            (1, "HEAD /film HTTP/1.1\r\nHost: video\r\n\r\n", (200, Some(9))),
            (2, "GET /not-modified HTTP/1.1\r\nHost: video\r\n\r\n", (304, Some(9))),
            (3, "GET /nothing HTTP/1.1\r\nHost: video\r\n\r\n", (204, None)),
            (4, "GET /empty HTTP/1.1\r\nHost: video\r\n\r\n", (200, Some(0))),
        ] {
            let answer = lane.ask(transfer, request);
            assert_eq!(answer.head(), head, "{request}");
            assert_eq!((answer.outcome, answer.totals), (Outcome::Complete, (0, 0)));
        }
    });
}

#[test]
fn a_root_that_fails_in_the_body_aborts_the_transfer_by_name() {
    let root = root(|_, stream, head| {
        let response: &[u8] = match head.split_whitespace().nth(1).unwrap() {
            "/short" => b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
            "/no-last-chunk" => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
            _ => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcdef",
        };
        stream.write_all(response).unwrap();
        false
    });
    with_upstream(root, |address| {
        let mut lane = TestLane::new(address);
        for (transfer, path, reason) in [
            (1, "/short", "closed the connection 6 bytes before the end of the body"),
            (2, "/no-last-chunk", "closed the connection before the last chunk"),
            (
                3,
                "/broken",
                "sent a broken body: the data of a chunk does not end in CRLF where its size says",
            ),
        ] {
            let answer = lane.ask(transfer, &format!("GET {path} HTTP/1.1\r\nHost: video\r\n\r\n"));
            assert_eq!(answer.body(), b"abc", "{path}");
            assert_eq!(answer.outcome, Outcome::Aborted);
            assert_eq!(answer.reason, format!("root {root} {reason}"));
        }
    });
}

#[test]
fn without_an_answer_of_the_root_the_client_is_told_who_failed() {
    let closed = {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        listener.local_addr().unwrap()
    };
    with_upstream(closed, |address| {
        let mut lane = TestLane::new(address);
        let answer = lane.ask(1, GET);
        let text = String::from_utf8(answer.body()).unwrap();
        assert!(text.starts_with(&format!("root: cannot connect to {closed}")), "{text}");
        assert_eq!(answer.head(), (502, Some(text.len() as u64)));
        assert_eq!(answer.outcome, Outcome::Complete);
        // The same in answer to HEAD.
        let answer = lane.ask(2, "HEAD / HTTP/1.1\r\nHost: video\r\n\r\n");
        assert_eq!(answer.head(), (502, Some(text.len() as u64)));
        assert_eq!((answer.outcome, answer.totals), (Outcome::Complete, (0, 0)));
        // Requests that are none of the root's business.
        for (transfer, request, status, text) in [
            (3, "GET / HTTP/1.1\r\nHost: video\r\n\r\nmore", 400, "downstream: bytes follow"),
            (4, "GET / HTTP/1.1\r\n", 400, "downstream: the head of a request on a lane is cut off"),
            (
                5,
                "GET / HTTP/1.1\r\nHost: video\r\nContent-Length: 4\r\n\r\n",
                400,
                "downstream: a GET or HEAD with",
            ),
            (6, "TRACE / HTTP/1.1\r\nHost: video\r\n\r\n", 405, "client: method TRACE is not allowed"),
            (7, "GET / HTTP/1.1\r\n\r\n", 400, "client: the Host header is missing"),
        ] {
            let answer = lane.ask(transfer, request);
            assert_eq!(answer.head().0, status, "{request}");
            let body = String::from_utf8(answer.body()).unwrap();
            assert!(body.starts_with(text), "{body}");
        }
    });
}

#[test]
fn a_kept_connection_that_died_is_replaced_once() {
    // Every connection answers once and closes at the second request without a word.
    let answered = Mutex::new(HashSet::new());
    let root = root(move |number, stream, _| {
        if !answered.lock().unwrap().insert(number) {
            return false;
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
        true
    });
    with_upstream(root, |address| {
        let mut lane = TestLane::new(address);
        for transfer in 1..6 {
            let answer = lane.ask(transfer, GET);
            assert_eq!((answer.body(), answer.outcome), (b"ok".to_vec(), Outcome::Complete));
        }
    });
}

#[test]
fn the_frames_of_several_lanes_are_the_body_once() {
    const BYTES: usize = 20_000_000;
    let fetched = Arc::new(AtomicUsize::new(0));
    let count = fetched.clone();
    let root = root(move |_, stream, _| {
        count.fetch_add(1, Ordering::Relaxed);
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\n\r\n").unwrap();
        stream.write_all(&pattern(BYTES)).is_ok()
    });
    with_upstream(root, |address| {
        let before = fetched.load(Ordering::Relaxed);
        let mut lanes: Vec<_> = (0..4).map(|_| TestLane::new(address)).collect();
        assert!(lanes.iter().all(|lane| lane.instance == lanes[0].instance));
        lanes.iter_mut().for_each(|lane| lane.open(5, GET));
        let readers: Vec<_> =
            lanes.into_iter().map(|mut lane| thread::spawn(move || (lane.answer(5), lane))).collect();
        let mut frames = Vec::new();
        let mut lanes = Vec::new();
        for reader in readers {
            let (answer, lane) = reader.join().unwrap();
            assert!(answer.head.is_some());
            assert_eq!((answer.outcome, answer.totals.1), (Outcome::Complete, BYTES as u64));
            assert!(!answer.frames.is_empty(), "a lane carried nothing");
            frames.extend(answer.frames);
            lanes.push((lane, answer.totals));
        }
        // Late ones may have come over two lanes.
        frames.sort();
        frames.dedup();
        assert_eq!(frames.len() as u64, lanes[0].1.0);
        assert!(body_of(frames) == pattern(BYTES));
        assert_eq!(fetched.load(Ordering::Relaxed), before + 1);
        // An OPEN that comes too late learns how it ended.
        let (mut lane, totals) = lanes.remove(0);
        let late = lane.ask(5, GET);
        assert!(late.head.is_none() && late.frames.is_empty());
        assert_eq!((late.outcome, late.totals), (Outcome::Complete, totals));
    });
}

/// Lanes that went on on another core, in this process.
pub(super) static MOVES: AtomicUsize = AtomicUsize::new(0);

#[test]
fn lanes_move_to_the_core_of_their_transfer_and_lose_nothing() {
    const BYTES: usize = 1_000_000;
    /// The kernel puts all of them on one of two cores once in 32,000 times.
    const LANES: usize = 16;
    let root = root(move |_, stream, _| {
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {BYTES}\r\n\r\n").unwrap();
        stream.write_all(&pattern(BYTES)).is_ok()
    });
    for placement in [Placement::Auto, Placement::Local, Placement::Spread] {
        let before = MOVES.load(Ordering::Relaxed);
        with_upstream_placed(&format!("http://{root}"), placement, |address| {
            let mut lanes: Vec<_> = (0..LANES).map(|_| TestLane::new(address)).collect();
            for transfer in 1..6 {
                // Another lane is the first one each time.
                lanes.rotate_left(1);
                lanes.iter_mut().for_each(|lane| lane.open(transfer, GET));
                let answers: Vec<_> = thread::scope(|scope| {
                    let readers: Vec<_> =
                        lanes.iter_mut().map(|lane| scope.spawn(move || lane.answer(transfer))).collect();
                    readers.into_iter().map(|reader| reader.join().unwrap()).collect()
                });
                assert!(answers.iter().all(|answer| answer.outcome == Outcome::Complete), "{placement:?}");
                let frames = answers.into_iter().flat_map(|answer| answer.frames).collect();
                assert!(body_of(frames) == pattern(BYTES), "{placement:?}");
            }
        });
        let moves = MOVES.load(Ordering::Relaxed) - before;
        assert!(moves > 0 || exec::available_cpus().len() == 1, "{placement:?}: no lane has moved");
    }
}

#[test]
fn cancel_ends_the_transfer_and_frees_its_lanes() {
    let (root, closed) = endless_root();
    with_upstream(root, |address| {
        let (mut first, mut second) = (TestLane::new(address), TestLane::new(address));
        first.open(1, GET);
        second.open(1, GET);
        while !matches!(first.next().unwrap().0, Frame::Data { .. }) {}
        first.send(Frame::Cancel { transfer: TransferId(1) });
        for lane in [&mut first, &mut second] {
            assert_eq!(lane.outcome(), Some(Outcome::Cancelled));
        }
        closed.recv_timeout(TEST_DEADLINE).unwrap();
        // One that crossed the END is ignored.
        first.send(Frame::Cancel { transfer: TransferId(1) });
        first.send(Frame::Ping { token: 9 });
        assert_eq!(first.next().unwrap().0, Frame::Pong { token: 9 });
        for lane in [&mut first, &mut second] {
            let transfer = 2 + u64::from(lane.stream.local_addr().unwrap().port());
            assert_eq!(lane.ask(transfer, "GET /small HTTP/1.1\r\nHost: video\r\n\r\n").body(), b"ok");
        }
    });
}

/// What nobody takes must not pile up in the sockets of the chain.
#[test]
fn without_credit_a_transfer_waits_and_goes_on_with_it() {
    let (root, _closed) = endless_root();
    with_upstream(root, |address| {
        let mut lane = TestLane::new(address);
        lane.open_without_credit(1, GET);
        assert_eq!(lane.data_until_silent(), FIRST_CREDIT_BYTES);
        lane.credit(1, FIRST_CREDIT_BYTES + 1_000_000);
        // Credit is never taken back.
        lane.credit(1, 1);
        assert_eq!(lane.data_until_silent(), 1_000_000);
        lane.send(Frame::Cancel { transfer: TransferId(1) });
        assert_eq!(lane.outcome(), Some(Outcome::Cancelled));
        // One that crossed the END is ignored.
        lane.credit(1, u64::from(u32::MAX));
        lane.send(Frame::Ping { token: 9 });
        assert_eq!(lane.next().unwrap().0, Frame::Pong { token: 9 });
    });
}

#[test]
fn what_a_lost_lane_has_carried_is_sent_again() {
    let (root, closed) = endless_root();
    with_upstream(root, |address| {
        let (mut first, mut second) = (TestLane::new(address), TestLane::new(address));
        first.is_silent = true;
        first.open(1, GET);
        let mut lost = Vec::new();
        while lost.len() < 2 {
            if let (Frame::Data { seq, .. }, payload) = first.next().unwrap() {
                lost.push((seq, payload));
            }
        }
        second.open(1, GET);
        drop(first);
        let come_again = |lane: &mut TestLane| {
            let mut missing = lost.clone();
            while !missing.is_empty() {
                if let (Frame::Data { seq, again: true, .. }, payload) = lane.next().unwrap() {
                    missing.retain(|lost| *lost != (seq, payload.clone()));
                }
            }
        };
        second.is_silent = true;
        come_again(&mut second);
        // The last lane, too: another one may come.
        drop(second);
        let mut third = TestLane::new(address);
        third.open(1, GET);
        come_again(&mut third);
        third.send(Frame::Cancel { transfer: TransferId(1) });
        assert_eq!(third.outcome(), Some(Outcome::Cancelled));
        closed.recv_timeout(TEST_DEADLINE).unwrap();
    });
}

#[test]
fn a_lane_that_leaves_before_the_first_frame_is_not_missed() {
    // A root that is slow to answer: a lane that leaves before has carried nothing. If it leaves before the other's OPEN
    // has arrived, the root is asked once more.
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let slow = harness::root(move |_, stream, _| {
        released.lock().unwrap().recv().unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").is_ok()
    });
    with_upstream(slow, |address| {
        let (mut first, mut second) = (TestLane::new(address), TestLane::new(address));
        first.open(1, GET);
        second.open(1, GET);
        drop(first);
        release.send(()).unwrap();
        release.send(()).unwrap();
        let answer = second.answer(1);
        assert_eq!((answer.body(), answer.outcome), (b"ok".to_vec(), Outcome::Complete));
    });
}

#[test]
fn only_key_holders_whose_route_ends_here_get_a_lane() {
    let root = root(|_, _, _| panic!("nothing is fetched"));
    with_upstream(root, |address| {
        let other_key = crate::wire::key::Key::from_bytes([8; 32]);
        let refused = TestLane::try_open(address, &other_key, &Route::default()).err().unwrap();
        assert_eq!(refused, HandshakeError::KeyMismatchReported);
        let route = Route::new(vec!["10.0.0.1:7000".parse().unwrap()]).unwrap();
        let refused = TestLane::try_open(address, &key(), &route).err().unwrap().to_string();
        assert!(
            refused.contains("this is the upstream, but the route goes on to 10.0.0.1:7000"),
            "{refused}"
        );
        // Nonsense on a lane closes it.
        let mut lane = TestLane::new(address);
        lane.send(Frame::Pong { token: 1 });
        assert!(lane.next().is_none());
        let mut lane = TestLane::new(address);
        lane.stream.write_all(&[b'x'; HEADER_BYTES]).unwrap();
        assert!(lane.next().is_none());
    });
}

#[test]
fn a_directory_is_read_without_a_root() {
    const BYTES: usize = 3_000_000;
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("film.mp4"), pattern(BYTES)).unwrap();
    std::fs::write(directory.path().join("empty"), "").unwrap();
    with_upstream_of(directory.path().to_str().unwrap(), |address| {
        let mut lanes = [TestLane::new(address), TestLane::new(address)];
        lanes.iter_mut().for_each(|lane| lane.open(1, GET));
        let readers = lanes.map(|mut lane| thread::spawn(move || (lane.answer(1), lane)));
        let [(first, mut lane), (second, _)] = readers.map(|reader| reader.join().unwrap());
        assert_eq!(first.totals, second.totals);
        assert_eq!((first.outcome, first.totals.1), (Outcome::Complete, BYTES as u64));
        assert!(body_of([first.frames, second.frames].concat()) == pattern(BYTES));
        for (transfer, request, head, body) in [
            (
                2,
                get("/film.mp4", "Range: bytes=1000-2999\r\n"),
                (206, Some(2000)),
                &pattern(BYTES)[1000..3000],
            ),
            (3, get("/empty", ""), (200, Some(0)), b""),
            (4, get("/film.mp4", "If-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT\r\n"), (304, None), b""),
        ] {
            let answer = lane.ask(transfer, &request);
            assert_eq!(answer.head(), head, "{request}");
            assert!(answer.body() == body, "{request}");
            assert_eq!(answer.outcome, Outcome::Complete);
        }
        for (transfer, path, status) in [(5, "/missing", 404), (6, "/../etc/passwd", 400)] {
            assert_eq!(lane.ask(transfer, &get(path, "")).head().0, status, "{path}");
        }
    });
}

#[test]
fn a_file_that_shrinks_is_never_padded() {
    const BYTES: usize = 64 << 20;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("film.mp4");
    with_upstream_of(directory.path().to_str().unwrap(), |address| {
        std::fs::File::create(&path).unwrap().set_len(BYTES as u64).unwrap();
        let (mut first, mut second) = (TestLane::new(address), TestLane::new(address));
        first.open(1, GET);
        // More than the socket buffers hold is still in the file when it is cut.
        while !matches!(first.next().unwrap().0, Frame::Data { .. }) {}
        second.open(1, GET);
        while !matches!(second.next().unwrap().0, Frame::Data { .. }) {}
        std::fs::File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
        // Either the frame that cannot be completed closes the lane, or the other lane's failure ends this one.
        let outcomes = [first.outcome(), second.outcome()];
        assert!(outcomes.contains(&None), "{outcomes:?}");
        assert!(!outcomes.contains(&Some(Outcome::Complete)), "{outcomes:?}");
        drop((first, second));
        let late = TestLane::new(address).ask(1, GET);
        assert_eq!(
            (late.outcome, &*late.reason),
            (Outcome::Aborted, "upstream: a file became shorter while it was sent")
        );
    });
}

/// A lone small packet on a lane that has rested would make BBR pause.
#[test]
fn the_head_brings_the_first_bytes_along() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("film.mp4"), pattern(10_000)).unwrap();
    with_upstream_of(directory.path().to_str().unwrap(), |address| {
        let mut lane = TestLane::new(address);
        for transfer in 1..=10 {
            lane.open(transfer, GET);
            let mut first = [0; 20_000];
            let arrived = lane.stream.peek(&mut first).unwrap();
            let head = Frame::decode(first.first_chunk().unwrap()).unwrap();
            assert!(matches!(head, Frame::Head { .. }), "{head:?}");
            assert!(arrived > HEADER_BYTES + head.payload_len().as_usize(), "{arrived} bytes: it came alone");
            assert!(lane.answer(transfer).body() == pattern(10_000));
        }
    });
}

#[test]
fn roots_are_read() {
    for (text, wanted) in [
        ("http://10.0.0.1:8080", "10.0.0.1:8080"),
        ("http://root.example/", "root.example:80"),
        ("http://[::1]:81", "[::1]:81"),
    ] {
        let RootOrigin::Http(authority) = text.parse().unwrap() else { panic!("{text}") };
        assert_eq!(&*authority, wanted);
    }
    for text in
        ["https://root", "root:80", "http://root/films", "http://a@root", "http://root/?x", "/no/such/films"]
    {
        assert!(text.parse::<RootOrigin>().is_err(), "{text}");
    }
}
