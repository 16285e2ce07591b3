//! What passes the chain, what does not, and how answers are framed for old and new clients.

use super::*;
use crate::http::request::{Parsed, parse_request};
use crate::http::response::parse_response;

fn request(text: &str) -> RequestHead {
    match parse_request(text.as_bytes()) {
        Ok(Parsed::Complete { head, .. }) => head,
        other => panic!("{text:?} gave {other:?}"),
    }
}

fn response(text: &str) -> ResponseHead {
    match parse_response(text.as_bytes()) {
        Ok(Parsed::Complete { head, .. }) => head,
        other => panic!("{text:?} gave {other:?}"),
    }
}

fn names(headers: &HeaderMap) -> Vec<&str> {
    let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    names
}

#[test]
fn requests_lose_what_is_about_the_connection() {
    let client = request(
        "GET /a?b HTTP/1.0\r\nHost: front\r\nRange: bytes=1-\r\nIf-Range: \"x\"\r\nAccept: */*\r\n\
         Connection: keep-alive, X-Hop, Upgrade, HOST, not a token\r\nKeep-Alive: 5\r\nX-Hop: 1\r\nx-hop: 2\r\n\
         Proxy-Connection: a\r\nProxy-Authorization: b\r\nTE: trailers\r\nTrailer: c\r\nUpgrade: h2c\r\n\
         Expect: 100-continue\r\nContent-Length: 7\r\nVia: 1.1 edge\r\nX-End: 1\r\n\r\n",
    );
    let onwards = request_to_root(&client, Some(&HeaderValue::from_static("root:8080"))).unwrap();
    assert_eq!(names(&onwards.headers), ["accept", "host", "if-range", "range", "via", "x-end"]);
    assert_eq!(onwards.headers[HOST], "root:8080");
    assert_eq!(onwards.headers.get_all(VIA).iter().collect::<Vec<_>>(), ["1.1 edge", "1.0 plait"]);
    assert_eq!((onwards.version, onwards.target()), (Version::Http11, "/a?b"));
    let mut bytes = Vec::new();
    onwards.write_head(&mut bytes);
    assert_eq!(request(std::str::from_utf8(&bytes).unwrap()), onwards);
}

#[test]
fn the_host_stays_or_must_be_given() {
    let client = request("GET / HTTP/1.1\r\nHost: front\r\n\r\n");
    assert_eq!(request_to_root(&client, None).unwrap().headers[HOST], "front");
    let hostless = request("GET / HTTP/1.0\r\n\r\n");
    let error = request_to_root(&hostless, None).unwrap_err();
    assert_eq!(error.problem().status, 400);
}

#[test]
fn loops_end() {
    let passed = |count: usize| {
        let via = "1.1 Plait, 1.1 other, ".repeat(count);
        request_to_root(&request(&format!("GET / HTTP/1.1\r\nHost: h\r\nVia: {via}\r\n\r\n")), None)
    };
    assert!(passed(MAX_VIA - 1).is_ok());
    assert_eq!(passed(MAX_VIA), Err(ForwardError::Loop));
    assert_eq!(ForwardError::Loop.problem().status, 508);
}

/// One row: response text, how its body ends, version and method of the client; then body, headers and keep-alive.
fn answer(text: &str, framing: Framing, client: &str) -> (ClientBody, ClientResponse) {
    let client = request(&format!("{client}\r\nHost: h\r\n\r\n"));
    let answer = response_to_client(&response(text), framing, &client, true);
    assert_eq!(answer.head.version, Version::Http11);
    let closes = answer.head.headers.get(CONNECTION).is_some_and(|value| value == "close");
    assert_eq!(closes, !answer.keep_alive);
    (answer.body, answer)
}

#[test]
fn known_lengths_stay() {
    let text = "HTTP/1.1 206 Partial Content\r\nContent-Length: 5\r\nContent-Range: bytes 0-4/9\r\n\
                Connection: close, content-range\r\nETag: \"x\"\r\n\r\n";
    let (body, answer) = answer(text, Framing::Fixed(5), "GET / HTTP/1.1");
    assert_eq!(body, ClientBody::Fixed(5));
    assert_eq!(names(&answer.head.headers), ["content-length", "content-range", "etag", "via"]);
    assert!(answer.keep_alive, "the root's close is not the client's");
    assert_eq!(answer.head.status, 206);
}

#[test]
fn unknown_lengths_are_chunked_or_closed() {
    let text = "HTTP/1.0 200 OK\r\nServer: x\r\n\r\n";
    for framing in [Framing::UntilClose, Framing::Chunked] {
        let (body, modern) = answer(text, framing, "GET / HTTP/1.1");
        assert_eq!(body, ClientBody::Chunked);
        assert_eq!(names(&modern.head.headers), ["server", "transfer-encoding", "via"]);
        assert_eq!(modern.head.headers[VIA], "1.0 plait");
        let (body, old) = answer(text, framing, "GET / HTTP/1.0\r\nConnection: keep-alive");
        assert_eq!(body, ClientBody::UntilClose);
        assert_eq!(names(&old.head.headers), ["connection", "server", "via"]);
        assert!(!old.keep_alive);
    }
}

#[test]
fn bodiless_answers_tell_a_length_only_where_they_may() {
    for (status, client, expected) in [
        ("200 OK", "HEAD / HTTP/1.1", Some("5")),
        ("206 Partial Content", "HEAD / HTTP/1.1", Some("5")),
        ("304 Not Modified", "GET / HTTP/1.1", Some("5")),
        ("204 No Content", "GET / HTTP/1.1", None),
        ("204 No Content", "HEAD / HTTP/1.1", None),
    ] {
        let text = format!("HTTP/1.1 {status}\r\nContent-Length: 5\r\n\r\n");
        let (body, answer) = answer(&text, Framing::None, client);
        assert_eq!(body, ClientBody::None);
        let length = answer.head.headers.get(CONTENT_LENGTH).map(|value| value.to_str().unwrap());
        assert_eq!(length, expected, "{status} {client}");
        assert!(!answer.head.headers.contains_key(TRANSFER_ENCODING));
    }
}

#[test]
fn connections_follow_the_client_and_the_role() {
    let text = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
    let (_, old) = answer(text, Framing::Fixed(5), "GET / HTTP/1.0\r\nConnection: keep-alive");
    assert!(old.keep_alive && old.head.headers[CONNECTION] == "keep-alive");
    let (_, modern) = answer(text, Framing::Fixed(5), "GET / HTTP/1.1\r\nConnection: close");
    assert!(!modern.keep_alive);
    let client = request("GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(!response_to_client(&response(text), Framing::Fixed(5), &client, false).keep_alive);
}

#[test]
fn any_answer_is_read_back_with_the_framing_that_was_promised() {
    const LINES: [&str; 10] = [
        "Content-Length: 5\r\n",
        "Content-Length: 0\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Connection: close\r\n",
        "Connection: content-length, transfer-encoding\r\n",
        "Connection: via, date\r\n",
        "Trailer: x\r\n",
        "ETag: \"x\"\r\n",
        "Via: 1.0 plait\r\n",
        "Keep-Alive: 5\r\n",
    ];
    const CLIENTS: [&str; 4] =
        ["GET / HTTP/1.1", "GET / HTTP/1.0", "HEAD / HTTP/1.1", "GET / HTTP/1.0\r\nConnection: keep-alive"];
    const STATUSES: [&str; 5] = ["200", "204", "206", "304", "416"];
    bolero::check!().with_type::<(u8, u8, bool, Vec<u8>)>().with_iterations(5_000).for_each(
        |(status, client, keep_alive, picks)| {
            let lines: String = picks.iter().map(|&pick| LINES[usize::from(pick) % LINES.len()]).collect();
            let text = format!("HTTP/1.1 {}\r\n{lines}\r\n", STATUSES[usize::from(*status) % STATUSES.len()]);
            let client =
                request(&format!("{}\r\nHost: h\r\n\r\n", CLIENTS[usize::from(*client) % CLIENTS.len()]));
            let Ok(Parsed::Complete { head, .. }) = parse_response(text.as_bytes()) else { return };
            let Ok(framing) = head.framing(&client.method) else { return };
            let answer = response_to_client(&head, framing, &client, *keep_alive);
            let mut out = Vec::new();
            answer.head.write_head(std::time::UNIX_EPOCH, &mut out);
            let Ok(Parsed::Complete { head, .. }) = parse_response(&out) else { panic!("not read back") };
            let expected = match answer.body {
                ClientBody::None => Framing::None,
                ClientBody::Fixed(length) => Framing::Fixed(length),
                ClientBody::Chunked => Framing::Chunked,
                ClientBody::UntilClose => Framing::UntilClose,
            };
            assert_eq!(head.framing(&client.method), Ok(expected));
            assert_eq!(head.keep_alive(expected), answer.keep_alive);
        },
    );
}
