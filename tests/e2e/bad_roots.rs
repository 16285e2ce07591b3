//! Roots that misbehave: the client gets the right status, the right bytes, or sees that they are not whole; and what one
//! answer leaves behind on a connection never becomes a part of the next.

use std::{
    io::Write,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use crate::{
    chain::{Chain, Plan, Root},
    client::{Client, ask, try_get},
    content::content,
    roots::{After, Asked, ScriptedRoot},
};

/// A chain in front of a root that answers `/good` as it should and everything else as `bad` says, on the same connections.
fn chain_with<B>(bad: B) -> (ScriptedRoot, Chain)
where
    B: Fn(&Asked, &mut std::net::TcpStream) -> std::io::Result<After> + Send + Sync + 'static,
{
    let root = ScriptedRoot::start(move |asked, stream| {
        if asked.line.starts_with("GET /good ") {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood")?;
            return Ok(After::Keep);
        }
        bad(asked, stream)
    });
    let chain = Plan { root: Root::At(root.address), ..Plan::default() }.start(|_| {});
    (root, chain)
}

#[test]
fn what_a_root_says_too_much_is_nobodys_answer() {
    const EVIL: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    let rows: [(&str, &str, &str, u16); 4] = [
        ("longer than announced", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "hello", 200),
        (
            "behind the last chunk",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
            "hi",
            200,
        ),
        ("a body of 304", "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n", "", 304),
        ("a body of 204", "HTTP/1.1 204 No Content\r\n\r\n", "", 204),
    ];
    for (case, answer, body, status) in rows {
        let (_root, chain) = chain_with(move |_, stream| {
            stream.write_all([answer, EVIL].concat().as_bytes())?;
            Ok(After::Keep)
        });
        let mut client = Client::connect(chain.address);
        for _ in 0..5 {
            let bad = client.ask("GET", "/bad", "If-None-Match: \"a\"\r\n").unwrap();
            assert_eq!((bad.status(), bad.text().as_str()), (status, body), "{case}");
            let good = client.ask("GET", "/good", "").unwrap();
            assert_eq!((good.status(), good.text().as_str()), (200, "good"), "{case}");
        }
    }
}

#[test]
fn an_answer_that_is_none_is_a_bad_gateway() {
    let rows: [(&str, &[u8]); 6] = [
        ("nonsense", b"nonsense\r\n\r\n"),
        ("zeros", &[0; 4096]),
        ("another protocol", b"SSH-2.0-OpenSSH_9.2\r\n"),
        ("two lengths", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nhello"),
        ("a length that is none", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nhello"),
        ("nothing", b""),
    ];
    for (case, answer) in rows {
        let (_root, chain) = chain_with(move |_, stream| {
            stream.write_all(answer)?;
            Ok(After::Close)
        });
        let mut client = Client::connect(chain.address);
        for _ in 0..3 {
            let bad = client.ask("GET", "/bad", "").unwrap();
            assert_eq!(bad.status(), 502, "{case}: {}", bad.text());
            assert!(bad.text().starts_with("root: "), "{case}: {}", bad.text());
            assert_eq!(client.ask("GET", "/good", "").unwrap().text(), "good", "{case}");
        }
    }
}

#[test]
fn a_slow_root_is_waited_for() {
    let (_root, chain) = chain_with(|_, stream| {
        for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n0123456789abcdefghij" {
            stream.write_all(&[*byte])?;
            thread::sleep(Duration::from_millis(10));
        }
        Ok(After::Keep)
    });
    assert_eq!(ask(chain.address, "GET", "/bad", "").text(), "0123456789abcdefghij");
}

/// The root resets each connection after a part, and has `tag` of its answer's number for its version.
fn breaking_off(tag: fn(usize) -> &'static str) -> (ScriptedRoot, Chain, Vec<u8>) {
    const PART: usize = 1_000_000;
    let bytes = content(3 * PART);
    let (body, answers) = (bytes.clone(), AtomicUsize::new(0));
    let (root, chain) = chain_with(move |asked, stream| {
        let etag = tag(answers.fetch_add(1, Ordering::Relaxed));
        let (total, range) = (body.len(), asked.header("range"));
        let first = range.and_then(|range| range.strip_prefix("bytes=")?.split('-').next()?.parse().ok());
        let is_same = asked.header("if-range").is_none_or(|version| version == etag);
        let (status, first): (_, usize) = if let (Some(first), true) = (first, is_same) {
            ("206 Partial Content", first)
        } else {
            ("200 OK", 0)
        };
        write!(stream, "HTTP/1.1 {status}\r\nETag: {etag}\r\nContent-Length: {}\r\n", total - first)?;
        if status.starts_with("206") {
            write!(stream, "Content-Range: bytes {first}-{}/{total}\r\n", total - 1)?;
        }
        stream.write_all(b"\r\n")?;
        stream.write_all(&body[first..total.min(first + PART)])?;
        // Its bytes arrive before its end does.
        thread::sleep(Duration::from_millis(200));
        Ok(if first + PART >= total { After::Keep } else { After::Reset })
    });
    (root, chain, bytes)
}

#[test]
fn a_root_that_is_restarted_in_the_middle_goes_on() {
    let (root, chain, bytes) = breaking_off(|_| "\"v1\"");
    let answer = ask(chain.address, "GET", "/f", "");
    assert_eq!(answer.status(), 200);
    assert!(answer.body == bytes);
    assert!(root.asked().len() >= 3, "{:?}", root.asked());
}

#[test]
fn a_file_that_changes_in_the_middle_is_not_mixed() {
    let (root, chain, _) = breaking_off(|answer| ["\"v1\"", "\"v2\"", "\"v3\"", "\"v4\""][answer.min(3)]);
    assert!(try_get(chain.address, "GET", "/f", "").is_err());
    assert_eq!(root.asked().len(), 2, "it is asked for the rest once: {:?}", root.asked());
}
