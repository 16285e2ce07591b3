use std::time::UNIX_EPOCH;

use http::{HeaderValue, header::CACHE_CONTROL};

use super::*;
use crate::http::{date::format_date, head::Parsed, request::parse_request, response::parse_response};

fn request(headers: &str) -> RequestHead {
    let text = format!("GET /f.ts HTTP/1.1\r\nHost: a\r\n{headers}\r\n");
    match parse_request(text.as_bytes()) {
        Ok(Parsed::Complete { head, .. }) => head,
        other => panic!("{other:?}"),
    }
}

fn response(status: u16, headers: &str) -> ResponseHead {
    match parse_response(format!("HTTP/1.1 {status} X\r\n{headers}\r\n").as_bytes()) {
        Ok(Parsed::Complete { head, .. }) => head,
        other => panic!("{other:?}"),
    }
}

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// 2001-09-09: some time that can be written.
fn start() -> SystemTime {
    UNIX_EPOCH + s(1_000_000_000)
}

fn freshness(headers: &str) -> Freshness {
    let mut head = response(200, headers).headers;
    if !head.contains_key(DATE) {
        head.insert(DATE, format_date(start()).unwrap());
    }
    Freshness::new(&head, start(), start(), s(7))
}

fn asked(control: &str) -> Directives {
    Directives::of_request(&request(&format!("Cache-Control: {control}\r\n")).headers)
}

#[test]
fn what_is_stored() {
    let stored = |to: &str, status, from: &str| may_store(&request(to), &response(status, from));
    assert!(stored("", 200, "") && stored("", 206, "Cache-Control: public\r\n"));
    for status in [204, 301, 302, 304, 404, 416, 500, 503] {
        assert!(!stored("", status, ""), "{status}");
    }
    assert!(!stored("", 200, "Cache-Control: no-store\r\n"));
    assert!(!stored("", 200, "Cache-Control: private\r\n"));
    assert!(!stored("", 200, "Cache-Control: private=\"x\"\r\n"));
    assert!(!stored("", 200, "Vary: origin, *\r\n"));
    assert!(!stored("Cache-Control: no-store\r\n", 200, ""));
    assert!(!stored("", 200, "Set-Cookie: a=b\r\n"));
    assert!(stored("", 200, "Set-Cookie: a=b\r\nCache-Control: public\r\n"));
    let login = "Authorization: Basic x\r\n";
    assert!(!stored(login, 200, "Cache-Control: max-age=60\r\n"));
    for allowed in ["public", "s-maxage=1", "must-revalidate"] {
        assert!(stored(login, 200, &format!("Cache-Control: {allowed}\r\n")), "{allowed}");
    }
}

#[test]
fn the_first_explicit_lifetime_counts() {
    for (headers, lifetime) in [
        ("", 7),
        ("Cache-Control: max-age=100\r\n", 100),
        ("Cache-Control: max-age=100, s-maxage=50\r\n", 50),
        ("Cache-Control: max-age=0\r\nExpires: Sun, 09 Sep 2001 02:46:40 GMT\r\n", 0),
        ("Expires: Sun, 09 Sep 2001 01:47:40 GMT\r\n", 60),
        ("Expires: 0\r\n", 0),
        ("Expires: Sun, 09 Sep 2001 00:00:00 GMT\r\n", 0),
        ("Expires: Sun, 09 Sep 2001 01:47:40 GMT\r\nExpires: Sun, 09 Sep 2001 02:47:40 GMT\r\n", 0),
    ] {
        assert_eq!(freshness(headers).remaining(start()), s(lifetime), "{headers}");
    }
}

#[test]
fn age_counts_what_came_before_this_cache() {
    assert_eq!(freshness("Age: 30\r\n").age(start() + s(5)), s(35));
    assert_eq!(freshness("Age: x\r\n").age(start() + s(5)), s(5));
    assert_eq!(freshness("Date: Sun, 09 Sep 2001 01:46:00 GMT\r\n").age(start()), s(40));
    let head = response(200, "Age: 10\r\nCache-Control: max-age=60\r\n").headers;
    assert_eq!(Freshness::new(&head, start(), start() + s(3), s(7)).age(start() + s(3)), s(13));
    // A clock that goes backwards makes nothing older.
    assert_eq!(freshness("").age(start() - s(100)), s(0));
}

#[test]
fn requests_may_want_it_fresher_or_staler() {
    let stored = freshness("Cache-Control: max-age=100\r\n");
    for (control, after, verdict) in [
        ("", 99, Verdict::Fresh),
        ("", 100, Verdict::Validate),
        ("no-cache", 1, Verdict::Validate),
        ("max-age=10", 10, Verdict::Fresh),
        ("max-age=10", 11, Verdict::Validate),
        ("max-age=0", 1, Verdict::Validate),
        ("min-fresh=50", 50, Verdict::Fresh),
        ("min-fresh=50", 51, Verdict::Validate),
        ("max-stale", 9999, Verdict::Fresh),
        ("max-stale=20", 120, Verdict::Fresh),
        ("max-stale=20", 121, Verdict::Validate),
        ("max-stale=20, max-age=200", 110, Verdict::Validate),
    ] {
        assert_eq!(stored.verdict(&asked(control), start() + s(after)), verdict, "{control} after {after} s");
    }
    assert_eq!(freshness("Cache-Control: no-cache\r\n").verdict(&asked(""), start()), Verdict::Validate);
    for strict in ["must-revalidate, max-age=1", "proxy-revalidate, max-age=1", "s-maxage=1"] {
        let strict = freshness(&format!("Cache-Control: {strict}\r\n"));
        assert_eq!(strict.verdict(&asked("max-stale"), start() + s(2)), Verdict::Validate);
    }
}

#[test]
fn stale_answers_of_rfc_5861() {
    let stored = freshness("Cache-Control: max-age=10, stale-while-revalidate=20, stale-if-error=100\r\n");
    let at = |after| stored.verdict(&asked(""), start() + s(after));
    assert_eq!((at(9), at(30), at(31)), (Verdict::Fresh, Verdict::WhileRevalidating, Verdict::Validate));
    assert!(stored.serves_on_error(StatusCode::BAD_GATEWAY, &asked(""), start() + s(110)));
    assert!(!stored.serves_on_error(StatusCode::BAD_GATEWAY, &asked(""), start() + s(111)));
    assert!(!stored.serves_on_error(StatusCode::BAD_GATEWAY, &asked("no-cache"), start() + s(20)));
    assert!(freshness("").serves_on_error(
        StatusCode::BAD_GATEWAY,
        &asked("stale-if-error=60"),
        start() + s(60)
    ));
    assert!(!freshness("").serves_on_error(StatusCode::BAD_GATEWAY, &asked(""), start() + s(60)));
    let answered =
        |status| stored.serves_on_error(StatusCode::from_u16(status).unwrap(), &asked(""), start());
    assert_eq!([500, 502, 503, 504].map(answered), [true; 4]);
    assert_eq!([200, 404, 431, 501, 505].map(answered), [false; 5]);
    let strict = freshness("Cache-Control: max-age=10, must-revalidate, stale-if-error=100\r\n");
    assert!(!strict.serves_on_error(StatusCode::BAD_GATEWAY, &asked(""), start() + s(20)));
}

#[test]
fn where_the_root_says_nothing() {
    let usual = |kind: &str, path: &str, playlist| {
        let headers = response(200, &format!("Content-Type: {kind}\r\n")).headers;
        usual_lifetime(&headers, path, playlist)
    };
    let hls = "application/vnd.apple.mpegurl";
    assert_eq!(usual("video/mp2t", "/a.ts", None), MEDIA_LIFETIME);
    assert_eq!(usual("Audio/MP4; codecs=x", "/a", None), MEDIA_LIFETIME);
    // A server that knows no types.
    assert_eq!(usual("text/plain", "/a.ts?token=1", None), MEDIA_LIFETIME);
    assert_eq!(usual("application/octet-stream", "/a.MP4", None), MEDIA_LIFETIME);
    assert_eq!(usual("text/html", "/a.mp4", None), s(0));
    assert_eq!(usual(hls, "/a.m3u8", None), UNKNOWN_PLAYLIST_LIFETIME);
    assert_eq!(usual("text/plain", "/a.M3U8?x=1", None), UNKNOWN_PLAYLIST_LIFETIME);
    assert_eq!(usual(hls, "/a.m3u8", Some(Playlist::Ended)), ENDED_PLAYLIST_LIFETIME);
    assert_eq!(usual(hls, "/a.m3u8", Some(Playlist::Live { target: s(6) })), s(3));
    assert_eq!(usual("text/html", "/", None), s(0));
    let old = "Date: Sun, 09 Sep 2001 01:46:40 GMT\r\nLast-Modified: Sun, 09 Sep 2001 01:30:00 GMT\r\n";
    assert_eq!(usual_lifetime(&response(200, old).headers, "/", None), s(100));
}

#[test]
fn vary_selects_by_the_request() {
    let varying = response(200, "Vary: Accept-Encoding, origin\r\nvary: X-Y\r\n").headers;
    let first = request("Accept-Encoding: gzip,br\r\nX-Y: 1\r\nCookie: c\r\n").headers;
    let selecting = selecting_headers(&first, &varying);
    assert_eq!(selecting.len(), 2);
    let fits = |headers: &str| selects(&request(headers).headers, &varying, &selecting);
    assert!(fits("accept-encoding: gzip ,  br\r\nx-y: 1\r\nCookie: other\r\n"));
    assert!(fits("accept-encoding: gzip\r\naccept-encoding: br\r\nx-y: 1\r\n"));
    assert!(!fits("accept-encoding: gzip\r\nx-y: 1\r\n"));
    assert!(!fits("accept-encoding: gzip, br\r\nx-y: 1\r\norigin: http://b\r\n"));
    assert!(!fits(""));
    // What a 304 may have made of it.
    for anything in ["Vary: *\r\n", "Vary: accept-encoding, *\r\n"] {
        assert!(!selects(&first, &response(200, anything).headers, &first), "{anything}");
    }
}

/// What the RFC never allows, whatever is said and asked.
#[test]
fn nothing_stale_or_forbidden_is_called_fresh() {
    type Case = (u16, u16, u16, bool, bool, bool, Option<u16>, Option<u16>);
    bolero::check!().with_type::<Case>().for_each(
        |&(max_age, age, after, no_cache, must, swr, want, min)| {
            let mut control = format!("max-age={max_age}");
            for (set, text) in
                [(no_cache, ", no-cache"), (must, ", must-revalidate"), (swr, ", stale-while-revalidate=9")]
            {
                control.push_str(if set { text } else { "" });
            }
            let mut head = HeaderMap::new();
            head.insert(CACHE_CONTROL, HeaderValue::from_str(&control).unwrap());
            head.insert(AGE, HeaderValue::from(age));
            let stored = Freshness::new(&head, start(), start(), s(u64::MAX));
            let asked = Directives {
                max_age: want.map(|want| s(want.into())),
                min_fresh: min.map(|min| s(min.into())),
                ..Directives::default()
            };
            let now = start() + s(after.into());
            let (total, lifetime) = (u64::from(age) + u64::from(after), u64::from(max_age));
            match stored.verdict(&asked, now) {
                Verdict::Fresh => {
                    assert!(!no_cache && total < lifetime);
                    assert!(want.is_none_or(|want| total <= want.into()));
                    assert!(min.is_none_or(|min| lifetime - total >= min.into()));
                }
                Verdict::WhileRevalidating => {
                    assert!(swr && !must && !no_cache && total >= lifetime && total <= lifetime + 9);
                }
                Verdict::Validate => {}
            }
            assert_eq!(stored.age(now), s(total));
        },
    );
}
