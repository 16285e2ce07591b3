//! Rules of HTTP caches that clients and scripts see: what only the cache may answer, ranges with conditions, what a change
//! takes with it, variants, and what our own answers say.

use std::io::Write;

use crate::{
    cache::wait_until,
    chain::{Plan, Root, text},
    client::Client,
    roots::{After, Asked, ScriptedRoot},
};

const CACHED: &str = "Cache-Control: only-if-cached\r\n";

/// A root of anything, which answers other methods with the status and header lines that they ask for.
fn obeying_root() -> ScriptedRoot {
    ScriptedRoot::start(|asked: &Asked, stream| {
        if asked.line.starts_with("GET") {
            let head = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nETag: \"a\"\r\nCache-Control: max-age=600\r\n\r\nfilm";
            stream.write_all(head.as_bytes())?;
        } else {
            let status = asked.header("x-status").unwrap_or("201");
            let line = asked.header("x-line").unwrap_or("X-No: line");
            write!(stream, "HTTP/1.1 {status} Done\r\nContent-Length: 0\r\n{line}\r\n\r\n")?;
        }
        Ok(After::Keep)
    })
}

#[test]
fn a_change_takes_with_it_what_it_names_of_its_own_origin() {
    let root = obeying_root();
    let dir = tempfile::tempdir().unwrap();
    let downstream = vec!["--cache".to_owned(), text(dir.path()).to_owned()];
    let chain = Plan { root: Root::At(root.address), downstream, ..Plan::default() }.start(|_| {});
    let ask = |method: &str, host: &str, target: &str, headers: &str| {
        let mut client = Client::connect(chain.address);
        client.send(format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n"));
        client.answer(method).unwrap()
    };
    let (own, evil) = ("films.example", "films.example.evil");
    let places =
        [(own, "/b"), (own, "/dir/b?q=1"), ("films.example:8080", "/b"), (evil, "/b"), (own, "/dir/form")];
    let is_stored = |(host, target): (&str, &str)| ask("GET", host, target, CACHED).status() == 200;
    // A place of the last is none but the form itself.
    let cases = [
        ("Location: /b", "201", Some(0)),
        ("Content-Location: /b", "200", Some(0)),
        ("Location: ../b", "303", Some(0)),
        ("Content-Location: b?q=1", "204", Some(1)),
        ("Location: ./x/../b?q=1#part", "201", Some(1)),
        ("Location: //films.example/b", "201", Some(0)),
        ("Location: http://films.example/b", "201", Some(0)),
        ("Location: HTTP://Films.Example:80/b", "201", Some(0)),
        ("Content-Location: http://films.example.evil/b", "201", None),
        ("Location: http://films.example.evil/b", "201", None),
        ("Location: //films.example.evil/b", "201", None),
        ("Location: http://films.example:8080/b", "201", None),
        ("Location: https://films.example/b", "201", None),
        ("Location: http://[", "201", None),
        // Nothing has changed.
        ("Location: /b", "404", None),
        ("Content-Location: /b", "500", None),
    ];
    for (line, status, taken) in cases {
        for (host, target) in places {
            wait_until("its way into the cache", || {
                ask("GET", host, target, "");
                is_stored((host, target))
            });
        }
        let answer = ask("POST", own, "/dir/form", &format!("X-Status: {status}\r\nX-Line: {line}\r\n"));
        assert_eq!(answer.status().to_string(), status);
        let is_error = status.starts_with(['4', '5']);
        for (number, place) in places.into_iter().enumerate() {
            let goes = Some(number) == taken || (number == 4 && !is_error);
            assert_eq!(is_stored(place), !goes, "{line}, {status}: {place:?}");
        }
    }
}
