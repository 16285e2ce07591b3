//! Paths and routes there and back. Fuzz them with `cargo bolero test wire::route::tests::any_route_bytes_decode_or_are_refused`.

use super::*;

fn path(text: &str) -> PathSpec {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn error(text: &str) -> RouteError {
    text.parse::<PathSpec>().expect_err(text)
}

fn hop_error(text: &str) -> HopError {
    text.parse::<HopAddr>().expect_err(text)
}

#[test]
fn paths_of_every_kind_parse_and_print() {
    for (text, printed) in [
        ("10.0.0.7:7002", "10.0.0.7:7002"),
        ("tcp:Relay-1.example.:1,[2001:DB8::1]:65535", "relay-1.example.:1,[2001:db8::1]:65535"),
        ("mptcp:relay_a:7000,b:7001,c:7002", "mptcp:relay_a:7000,b:7001,c:7002"),
    ] {
        assert_eq!(path(text).to_string(), printed);
        assert_eq!(path(printed), path(text));
    }
}

#[test]
fn a_path_is_a_first_hop_and_a_route() {
    let spec = path("mptcp:a:1,[::1]:2,10.0.0.3:3");
    assert_eq!(spec.transport(), Transport::Mptcp);
    assert_eq!((spec.first().host().as_str(), spec.first().port()), ("a", 1));
    assert_eq!(spec.first().socket_addr(), None);
    let all: Vec<_> = spec.hops().map(HopAddr::to_string).collect();
    assert_eq!(all, ["a:1", "[::1]:2", "10.0.0.3:3"]);
    let (second, rest) = spec.route().split_first().unwrap();
    assert_eq!(rest.transport(), Transport::Mptcp);
    assert_eq!(second.socket_addr(), Some("[::1]:2".parse().unwrap()));
    assert_eq!(second.host(), "::1");
    let (third, rest) = rest.split_first().unwrap();
    assert_eq!(HopAddr::from(third.socket_addr().unwrap()), *third);
    assert!(rest.is_empty() && rest.split_first().is_none());
    assert!(path("a:1").route().is_empty());
}

#[test]
fn what_is_wrong_with_a_hop_is_named() {
    for (text, expected) in [
        ("host", HopError::NoPort),
        ("[::1]", HopError::NoPort),
        ("[::1]7000", HopError::NoPort),
        ("host:", HopError::BadPort),
        ("host:0", HopError::BadPort),
        ("host:65536", HopError::BadPort),
        ("host:+80", HopError::BadPort),
        ("host:000080", HopError::BadPort),
        ("host:80 ", HopError::BadPort),
        (":80", HopError::NoHost),
        ("::1:80", HopError::Colons),
        ("udp:host:80", HopError::Colons),
        ("[::1:80", HopError::BadIpv6),
        ("[host]:80", HopError::BadIpv6),
        ("[fe80::1%eth0]:80", HopError::BadIpv6),
        (" host:80", HopError::BadCharacter { at: 0 }),
        ("ho\nst:80", HopError::BadCharacter { at: 2 }),
        ("höst:80", HopError::BadCharacter { at: 1 }),
        ("http//x:80", HopError::BadCharacter { at: 4 }),
    ] {
        assert_eq!(hop_error(text), expected, "{text:?}");
    }
    assert_eq!(hop_error(&format!("{}:1", "h".repeat(254))), HopError::TooLong);
    assert_eq!(hop_error(&format!("{}:123", "h".repeat(252))), HopError::TooLong);
    assert!(format!("{}:1", "h".repeat(253)).parse::<HopAddr>().is_ok());
}

#[test]
fn what_is_wrong_with_a_path_is_named() {
    assert_eq!(error(""), RouteError::EmptyHop { hop: 1 });
    assert_eq!(error("tcp:"), RouteError::EmptyHop { hop: 1 });
    assert_eq!(error("a:1,,b:2"), RouteError::EmptyHop { hop: 2 });
    assert_eq!(error("a:1,"), RouteError::EmptyHop { hop: 2 });
    let text = "b:x".to_owned();
    assert_eq!(error("a:1,b:x"), RouteError::Hop { hop: 2, text, source: HopError::BadPort });
    assert_eq!(error("a:1,b:x").to_string(), r#"hop 2 ("b:x") has no valid port (1 to 65535)"#);
    let hops = |count: usize| vec!["h:1"; count].join(",");
    assert_eq!(path(&hops(9)).hops().count(), 9);
    assert_eq!(error(&hops(10)), RouteError::TooManyHops { hops: 10, max: 9 });
    let long = vec![format!("{}:1", "h".repeat(253)); 9].join(",");
    assert_eq!(error(&long), RouteError::TooLong { bytes: 2 + 8 * 256 });
}

#[test]
fn any_text_parses_to_what_it_prints_or_is_refused() {
    bolero::check!().with_type::<(bool, bool, String)>().for_each(|(plausible, mptcp, text)| {
        let alphabet = b"ab.1:,[]:,::1";
        let text = match plausible {
            true => text.bytes().map(|b| char::from(alphabet[usize::from(b) % alphabet.len()])).collect(),
            false => text.clone(),
        };
        let text = if *mptcp { format!("mptcp:{text}") } else { text };
        if let Ok(spec) = text.parse::<PathSpec>() {
            assert_eq!(spec.to_string().parse(), Ok(spec.clone()));
            assert_eq!(Route::decode(&spec.route().encode()).as_ref(), Ok(spec.route()));
        }
    });
}

#[test]
fn any_route_bytes_decode_or_are_refused() {
    bolero::check!().with_type::<(Vec<u8>, Vec<(u16, u8)>)>().for_each(|(bytes, damage)| {
        let _ = Route::decode(bytes);
        let transport = if damage.len() % 2 == 0 { "" } else { "mptcp:" };
        let good = path(&format!("{transport}x:9,a:1,[::1]:2,relay.example:7000")).route().clone();
        let mut encoded = good.encode();
        for &(at, value) in damage {
            let at = usize::from(at) % encoded.len();
            encoded[at] ^= value;
        }
        if let Ok(route) = Route::decode(&encoded) {
            assert_eq!(Route::decode(&route.encode()), Ok(route));
        }
        for end in 0..encoded.len() {
            let _ = Route::decode(&encoded[..end]);
        }
    });
}

#[test]
fn a_route_with_a_wrong_length_is_refused() {
    let good = path("x:9,a:1,[::1]:2").route().encode();
    assert_eq!(good, b"\0\x02\x03a:1\x07[::1]:2");
    assert_eq!(path("mptcp:x:9,a:1").route().encode(), b"\x01\x01\x03a:1");
    for end in 0..good.len() {
        assert_eq!(Route::decode(&good[..end]), Err(RouteError::Framing), "{end}");
    }
    assert_eq!(Route::decode(&[&good[..], b"x"].concat()), Err(RouteError::Framing));
    assert_eq!(Route::decode(&[0, 9]), Err(RouteError::TooManyHops { hops: 9, max: 8 }));
    assert_eq!(Route::decode(&[0, 1, 0]), Err(RouteError::EmptyHop { hop: 1 }));
    assert_eq!(Route::decode(&[2, 0]), Err(RouteError::UnknownTransport { transport: 2 }));
    assert!(matches!(Route::decode(b"\0\x01\x04\xff\xfe:1"), Err(RouteError::Hop { hop: 1, .. })));
    assert_eq!(Route::decode(&[0, 0]), Ok(Route::default()));
    assert_eq!(Route::decode(&[1, 0]), Ok(Route::default().over(Transport::Mptcp)));
}
