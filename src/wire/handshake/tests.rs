//! Both sides against each other, then against everything an attacker or a broken network can do to the bytes. Fuzz it with
//! `cargo bolero test wire::handshake::tests::a_server_survives_any_bytes`.

use std::slice::from_ref;

use super::*;
use crate::wire::key::{KEY_BYTES, Key};
use crate::wire::route::{PathSpec, Route, Transport};

const INSTANCE: u64 = 0x0102_0304_0506_0708;

fn key() -> Key {
    Key::from_bytes(std::array::from_fn(|at| at as u8))
}

fn route() -> Route {
    let spec: PathSpec = "first:1,relay.example:7002,[2001:db8::1]:7003".parse().unwrap();
    spec.route().clone()
}

/// One connection up to the hello, with the nonces given.
fn up_to_hello(
    key: &Key,
    server_nonce: u8,
    client_nonce: u8,
) -> (ServerHandshake<'_>, AwaitingReply, Vec<u8>) {
    let (server, challenge) = ServerHandshake::new(from_ref(key), [server_nonce; NONCE_BYTES]);
    let route = route();
    let client = ClientHandshake::new(key, &route, [client_nonce; NONCE_BYTES]);
    let (client, hello) = client.challenge(&challenge).unwrap();
    (server, client, hello)
}

fn done<T: std::fmt::Debug>(progress: Result<Progress<T>, HandshakeError>) -> T {
    match progress {
        Ok(Progress::Done(done)) => done,
        other => panic!("not done: {other:?}"),
    }
}

/// Feeds `message` in pieces of at most `piece` bytes, never more than asked for.
fn feed<T>(
    mut message: &[u8],
    piece: usize,
    mut take: impl FnMut(&[u8]) -> Result<Progress<T>, HandshakeError>,
) -> Result<T, HandshakeError> {
    let mut progress = take(&[])?;
    loop {
        match progress {
            Progress::Done(done) => {
                assert!(message.is_empty(), "done too early");
                return Ok(done);
            }
            Progress::NeedMore(missing) => {
                assert!((1..=message.len()).contains(&missing), "asks for {missing} of {}", message.len());
                let (now, later) = message.split_at(missing.min(piece));
                message = later;
                progress = take(now)?;
            }
        }
    }
}

#[test]
fn a_lane_is_agreed_on_in_pieces_of_any_size() {
    let key = key();
    for piece in [1, 2, 7, 8, 9, 60, MAX_HELLO_BYTES] {
        let (mut server, mut client, hello) = up_to_hello(&key, 1, 2);
        let verified = feed(&hello, piece, |bytes| server.hello(bytes)).unwrap();
        assert_eq!(verified.route(), &route());
        let reply = verified.accept(INSTANCE);
        let accepted = feed(&reply, piece, |bytes| client.reply(bytes)).unwrap();
        assert_eq!(accepted, Accepted { instance: INSTANCE, fell_back: false });
    }
}

#[test]
fn a_lane_is_agreed_on_for_any_key_nonces_and_instance() {
    type Draw = ([u8; KEY_BYTES], [u8; NONCE_BYTES], [u8; NONCE_BYTES], u64, bool, u8);
    bolero::check!().with_type::<Draw>().for_each(
        |(key, server_nonce, client_nonce, instance, mptcp, hops)| {
            let key = Key::from_bytes(*key);
            let hop = "[2001:db8::ffff:1]:65535".parse::<crate::wire::route::HopAddr>().unwrap();
            let transport = if *mptcp { Transport::Mptcp } else { Transport::Tcp };
            let route = Route::new(vec![hop; usize::from(hops % 9)]).unwrap().over(transport);
            let (mut server, challenge) = ServerHandshake::new(from_ref(&key), *server_nonce);
            let client = ClientHandshake::new(&key, &route, *client_nonce);
            let (mut client, hello) = client.challenge(&challenge).unwrap();
            let verified = done(server.hello(&hello));
            assert_eq!(verified.route(), &route);
            let accepted = Accepted { instance: *instance, fell_back: *mptcp };
            assert_eq!(done(client.reply(&verified.pass_on(accepted))), accepted);
        },
    );
}

/// A change of the layout breaks every deployed peer: it must not happen unnoticed.
#[test]
fn the_layout_is_the_documented_one() {
    let key = key();
    let (mut server, _, hello) = up_to_hello(&key, 0xaa, 0xbb);
    let (_, challenge) = ServerHandshake::new(from_ref(&key), [0xaa; NONCE_BYTES]);
    assert_eq!(challenge[..8], *b"PLAT\x04\0\0\0");
    assert_eq!(challenge[8..], [0xaa; 16]);
    let route = b"\0\x02\x12relay.example:7002\x12[2001:db8::1]:7003";
    assert_eq!(hello[..6], *b"PLAT\x04\x01");
    assert_eq!(hello[6..8], (hello.len() as u16).to_be_bytes());
    assert_eq!(hello[8..12], key.key_id().0);
    assert_eq!(hello[12..28], [0xbb; 16]);
    assert_eq!(hello[28..hello.len() - 32], *route);
    let (signed, mac) = hello.split_at(hello.len() - 32);
    assert_eq!(*mac, key.seal("plait-1 hello").with(&challenge).with(signed).finish());

    let reply = done(server.hello(&hello)).refuse(Refusal::NotAllowed, &Reason::new("no"));
    assert_eq!(reply[..18], *b"PLAT\x04\x02\x00\x32\0\0\0\0\0\0\0\0no");
    let (signed, mac) = reply.split_at(18);
    assert_eq!(*mac, key.seal("plait-1 reply").with(&challenge).with(&hello).with(signed).finish());
}

#[test]
fn a_refusal_arrives_with_its_reason() {
    let key = key();
    let reason = Reason::new(&"the next hop is on fire ".repeat(40));
    for refusal in [Refusal::NotAllowed, Refusal::Unreachable, Refusal::NobodyThere, Refusal::Unanswered] {
        let (mut server, mut client, hello) = up_to_hello(&key, 1, 2);
        let reply = done(server.hello(&hello)).refuse(refusal, &reason);
        assert_eq!(reply.len(), MAX_REPLY_BYTES);
        let error = client.reply(&reply).unwrap_err();
        let reason = reason.clone();
        assert_eq!(
            error,
            match refusal {
                Refusal::NotAllowed => HandshakeError::Refused { reason },
                Refusal::Unreachable => HandshakeError::Unreachable { reason },
                Refusal::NobodyThere => HandshakeError::NobodyThere { reason },
                Refusal::Unanswered => HandshakeError::Unanswered { reason },
            }
        );
        assert!(error.to_string().contains("on fire"), "{error}");
    }
}

#[test]
fn another_key_is_named_on_both_sides() {
    let (ours, theirs) = (key(), Key::from_bytes([9; KEY_BYTES]));
    let (mut server, challenge) = ServerHandshake::new(from_ref(&ours), [1; NONCE_BYTES]);
    let route = route();
    let client = ClientHandshake::new(&theirs, &route, [2; NONCE_BYTES]);
    let (mut client, hello) = client.challenge(&challenge).unwrap();
    let error = server.hello(&hello).unwrap_err();
    assert_eq!(error, HandshakeError::KeyMismatch { theirs: theirs.key_id(), ours: ours.key_id() });
    let error = client.reply(&bad_key_reply()).unwrap_err();
    assert_eq!(error, HandshakeError::KeyMismatchReported);
    assert_eq!(
        error.to_string(),
        "the peer refused the lane: key mismatch (start it with the same --key file)"
    );
}

/// While a key is replaced, each end of a lane may know the new one first: what counts is that the server knows it.
#[test]
fn either_key_of_a_rotation_opens_a_lane() {
    let key = |byte| Key::from_bytes([byte; KEY_BYTES]);
    let (both, route) = ([key(9), key(7)], route());
    for (theirs, is_known) in [(key(9), true), (key(7), true), (key(8), false)] {
        let (mut server, challenge) = ServerHandshake::new(&both, [1; NONCE_BYTES]);
        let client = ClientHandshake::new(&theirs, &route, [2; NONCE_BYTES]);
        let (mut client, hello) = client.challenge(&challenge).unwrap();
        match server.hello(&hello) {
            Ok(Progress::Done(hello)) if is_known => {
                assert!(matches!(client.reply(&hello.accept(5)), Ok(Progress::Done(_))));
            }
            Err(HandshakeError::KeyMismatch { .. }) if !is_known => {}
            other => panic!("{other:?}"),
        }
    }
}

/// A key id is no proof: with the right one and the wrong key the MAC decides.
#[test]
fn a_borrowed_key_id_does_not_help() {
    let (ours, theirs) = (key(), Key::from_bytes([9; KEY_BYTES]));
    let (mut server, challenge) = ServerHandshake::new(from_ref(&ours), [1; NONCE_BYTES]);
    let route = route();
    let (_, mut hello) =
        ClientHandshake::new(&theirs, &route, [2; NONCE_BYTES]).challenge(&challenge).unwrap();
    let signed = hello.len() - MAC_BYTES;
    hello[8..12].copy_from_slice(&ours.key_id().0);
    let mac = theirs.seal(LABEL_HELLO).with(&challenge).with(&hello[..signed]).finish();
    hello[signed..].copy_from_slice(&mac);
    let message = Message::Hello;
    assert_eq!(server.hello(&hello).unwrap_err(), HandshakeError::NotAuthentic { message });
}

/// A message that a damaged length made longer gets the bytes it waits for, and must fail then.
fn refused<T>(
    progress: Result<Progress<T>, HandshakeError>,
    mut take: impl FnMut(&[u8]) -> Result<Progress<T>, HandshakeError>,
    bit: usize,
) {
    match progress {
        Err(_) => {}
        Ok(Progress::NeedMore(missing)) => {
            assert!(take(&vec![0; missing]).is_err(), "bit {bit} passed with more bytes");
        }
        Ok(Progress::Done(_)) => panic!("bit {bit} passed"),
    }
}

#[test]
fn every_flipped_bit_is_refused() {
    let key = key();
    let (mut server, _, hello) = up_to_hello(&key, 1, 2);
    let reply = done(server.hello(&hello)).accept(INSTANCE);
    let flipped = |message: &[u8], bit: usize| {
        let mut message = message.to_vec();
        message[bit / 8] ^= 1 << (bit % 8);
        message
    };
    for bit in 0..hello.len() * 8 {
        let (mut server, _, _) = up_to_hello(&key, 1, 2);
        refused(server.hello(&flipped(&hello, bit)), |rest| server.hello(rest), bit);
    }
    for bit in 0..reply.len() * 8 {
        let (_, mut client, _) = up_to_hello(&key, 1, 2);
        refused(client.reply(&flipped(&reply, bit)), |rest| client.reply(rest), bit);
    }
    let route = route();
    for bit in 0..CHALLENGE_BYTES * 8 {
        let (mut server, challenge) = ServerHandshake::new(from_ref(&key), [1; NONCE_BYTES]);
        let challenge = flipped(&challenge, bit).try_into().unwrap();
        let client = ClientHandshake::new(&key, &route, [2; NONCE_BYTES]);
        // The client sees damage before the nonce, the server damage to it.
        if let Ok((_, hello)) = client.challenge(&challenge) {
            assert!(bit >= 8 * 8, "challenge bit {bit}");
            server.hello(&hello).unwrap_err();
        }
    }
}

#[test]
fn every_truncation_waits_for_the_rest() {
    let key = key();
    let (mut server, _, hello) = up_to_hello(&key, 1, 2);
    let reply = done(server.hello(&hello)).accept(INSTANCE);
    let expected = |at: usize, whole: usize| if at < PREFIX_BYTES { PREFIX_BYTES - at } else { whole - at };
    for at in 0..hello.len() {
        let (mut server, _, _) = up_to_hello(&key, 1, 2);
        let progress = server.hello(&hello[..at]);
        assert!(matches!(progress, Ok(Progress::NeedMore(n)) if n == expected(at, hello.len())));
        let missing = expected(at, hello.len());
        assert_eq!(server.closed(), HandshakeError::Truncated { message: Message::Hello, missing });
    }
    for at in 0..reply.len() {
        let (_, mut client, _) = up_to_hello(&key, 1, 2);
        let progress = client.reply(&reply[..at]);
        assert!(matches!(progress, Ok(Progress::NeedMore(n)) if n == expected(at, reply.len())));
        let missing = expected(at, reply.len());
        assert_eq!(client.closed(), HandshakeError::Truncated { message: Message::Reply, missing });
    }
}

#[test]
fn a_recorded_hello_fails_against_another_challenge() {
    let key = key();
    let (_, _, recorded) = up_to_hello(&key, 1, 2);
    let (mut server, _, _) = up_to_hello(&key, 3, 2);
    let message = Message::Hello;
    assert_eq!(server.hello(&recorded).unwrap_err(), HandshakeError::NotAuthentic { message });
}

#[test]
fn a_recorded_reply_fails_for_another_hello_or_challenge() {
    let key = key();
    let (mut server, _, hello) = up_to_hello(&key, 1, 2);
    let recorded = done(server.hello(&hello)).accept(INSTANCE);
    for (server_nonce, client_nonce) in [(1, 3), (3, 2)] {
        let (_, mut client, _) = up_to_hello(&key, server_nonce, client_nonce);
        let message = Message::Reply;
        assert_eq!(client.reply(&recorded).unwrap_err(), HandshakeError::NotAuthentic { message });
    }
    let (_, mut client, hello) = up_to_hello(&key, 1, 2);
    client.reply(&hello).expect_err("its own hello sent back");
}

#[test]
fn strangers_are_told_apart() {
    let key = key();
    let fresh = || up_to_hello(&key, 1, 2);
    let hello_error = |bytes: &[u8]| fresh().0.hello(bytes).unwrap_err();
    let found = *b"GET ";
    let message = Message::Hello;
    assert_eq!(hello_error(b"GET / HTTP/1.1\r\n"), HandshakeError::NotPlait { message, found });
    let http = hello_error(b"GET / HTTP/1.1\r\n").to_string();
    assert!(http.contains("\"GET \"") && http.contains("right address"), "{http}");
    assert_eq!(hello_error(b"PLAT\x01\x01\0\x50"), HandshakeError::Version { theirs: 1, ours: VERSION });
    let (len, max) = (MAX_HELLO_BYTES + 1, MAX_HELLO_BYTES);
    assert_eq!(hello_error(b"PLAT\x04\x01\x08\x01"), HandshakeError::TooLong { message, len, max });
    assert_eq!(hello_error(b"PLAT\x04\x01\0\x3d"), HandshakeError::TooShort { message, len: 61, min: 62 });
    let (mut server, mut client, mut hello) = fresh();
    let reply = done(server.hello(&hello)).accept(INSTANCE);
    hello.push(0);
    assert_eq!(hello_error(&hello), HandshakeError::TrailingBytes { message });
    let long = [&reply[..], &[0]].concat();
    let message = Message::Reply;
    assert_eq!(client.reply(&long).unwrap_err(), HandshakeError::TrailingBytes { message });
    let challenge_error = |challenge: &[u8; CHALLENGE_BYTES]| {
        ClientHandshake::new(&key, &Route::default(), [2; NONCE_BYTES]).challenge(challenge).unwrap_err()
    };
    let (found, message) = (*b"SSH-", Message::Challenge);
    assert_eq!(challenge_error(b"SSH-2.0-OpenSSH_9.9\r\n   "), HandshakeError::NotPlait { message, found });
    assert_eq!(
        challenge_error(b"PLAT\x07\0\0\0nonce-of-16-byte"),
        HandshakeError::Version { theirs: 7, ours: VERSION }
    );
    assert_eq!(challenge_error(b"PLAT\x04\0\x01\0nonce-of-16-byte"), HandshakeError::Reserved);
}

/// A key holder can still be of another release: what it signs is checked like anything else.
#[test]
fn a_key_holders_nonsense_is_refused() {
    let key = key();
    let (_, challenge) = ServerHandshake::new(from_ref(&key), [1; NONCE_BYTES]);
    let signed_hello = |purpose: u8, route: &[u8]| {
        let mut hello = Vec::from(prefix(purpose, 60 + route.len()));
        hello.extend_from_slice(&key.key_id().0);
        hello.extend_from_slice(&[2; NONCE_BYTES]);
        hello.extend_from_slice(route);
        let mac = key.seal(LABEL_HELLO).with(&challenge).with(&hello).finish();
        hello.extend_from_slice(&mac);
        up_to_hello(&key, 1, 2).0.hello(&hello)
    };
    assert!(done(signed_hello(1, b"\0\0")).route().is_empty());
    assert_eq!(signed_hello(9, b"\0\0").unwrap_err(), HandshakeError::UnknownPurpose { purpose: 9 });
    for route in [&b"\0\x01"[..], b"\0\x09", b"\x02\0", b"\0\0\0", b"\0\x01\x03a:0", b"\0\x01\x05a b:1"] {
        assert!(matches!(signed_hello(1, route), Err(HandshakeError::Route(_))), "{route:?}");
    }

    let (_, _, hello) = up_to_hello(&key, 1, 2);
    let signed_reply = |status: u8, instance: u64, reason: &[u8]| {
        let mut reply = Vec::from(prefix(status, MIN_REPLY_BYTES + reason.len()));
        reply.extend_from_slice(&instance.to_be_bytes());
        reply.extend_from_slice(reason);
        let mac = key.seal(LABEL_REPLY).with(&challenge).with(&hello).with(&reply).finish();
        reply.extend_from_slice(&mac);
        up_to_hello(&key, 1, 2).1.reply(&reply)
    };
    assert_eq!(done(signed_reply(1, 5, b"")), Accepted { instance: 5, fell_back: false });
    assert_eq!(done(signed_reply(5, 7, b"")), Accepted { instance: 7, fell_back: true });
    for (status, instance, reason) in [
        (0, 0, &b""[..]),
        (1, 5, b"but"),
        (2, 5, b"no"),
        (3, 5, b""),
        (4, 0, b""),
        (5, 5, b"but"),
        (99, 0, b""),
    ] {
        assert_eq!(signed_reply(status, instance, reason).unwrap_err(), HandshakeError::BadStatus { status });
    }
    assert!(matches!(signed_reply(2, 0, b"a\x1b[2J"), Err(HandshakeError::Reason(_))));
    assert!(matches!(signed_reply(2, 0, b"\xff"), Err(HandshakeError::Reason(_))));
}

/// Random bytes behind a plausible prefix, as a whole and cut in two.
fn stranger(bytes: &[u8], code: u8) -> Vec<u8> {
    let mut message = Vec::from(prefix(code % 6, PREFIX_BYTES + bytes.len()));
    message.extend_from_slice(bytes);
    message
}

#[test]
fn a_server_survives_any_bytes() {
    let key = key();
    bolero::check!().with_type::<(u8, u16, Vec<u8>)>().for_each(|(code, cut, bytes)| {
        for message in [bytes.clone(), stranger(bytes, *code)] {
            let (mut server, _, _) = up_to_hello(&key, 1, 2);
            let (first, second) = message.split_at(usize::from(*cut) % (message.len() + 1));
            for part in [first, second] {
                assert!(!matches!(server.hello(part), Ok(Progress::Done(_) | Progress::NeedMore(0))));
                assert!(server.intake.bytes.len() <= MAX_HELLO_BYTES);
            }
        }
    });
}

#[test]
fn a_client_survives_any_bytes() {
    let key = key();
    bolero::check!().with_type::<(u8, u16, Vec<u8>)>().for_each(|(code, cut, bytes)| {
        for message in [bytes.clone(), stranger(bytes, *code)] {
            let (_, mut client, _) = up_to_hello(&key, 1, 2);
            let (first, second) = message.split_at(usize::from(*cut) % (message.len() + 1));
            for part in [first, second] {
                assert!(!matches!(client.reply(part), Ok(Progress::Done(_) | Progress::NeedMore(0))));
                assert!(client.intake.bytes.len() <= MAX_REPLY_BYTES);
            }
        }
    });
}
