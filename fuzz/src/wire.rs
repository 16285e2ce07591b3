//! What a peer on a lane says: frames, and the handshake before them.

use plait::wire::{
    filler::{self, FILLER_BYTES_MAX},
    frame::{Frame, HEADER_BYTES, MAX_FRAME_BYTES},
    frame_check::{FrameCheck, MAX_SEQ_AHEAD},
    handshake::{ClientHandshake, MAX_HELLO_BYTES, MAX_REPLY_BYTES, Progress, ServerHandshake},
    key::{KEY_BYTES, Key},
    route::{PathSpec, Route},
    units::{Seq, TransferId},
};

/// The input is a lane's bytes: headers one after the other, the payload left out.
#[test]
fn frames() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let mut check = FrameCheck::new(TransferId(7));
        // One past the last number that was let through, and the end of its frame.
        let (mut next, mut end, mut is_ended) = (0, 0, false);
        for header in bytes.as_chunks::<HEADER_BYTES>().0 {
            let Ok(frame) = Frame::decode(header) else { return };
            assert_eq!(&frame.encode(), header, "{frame:?}");
            assert!(frame.payload_len().0 <= MAX_FRAME_BYTES);
            let wanted = Seq(u64::from(header[23] & 1));
            let before = check.clone();
            if check.accept(&frame, wanted).is_err() {
                assert_eq!(format!("{check:?}"), format!("{before:?}"), "an error changed the state");
                continue;
            }
            match frame {
                Frame::Pong { .. } => continue,
                Frame::Data { seq, offset, len, again, .. } => {
                    assert!(seq.0 <= wanted.0 + MAX_SEQ_AHEAD);
                    if !again {
                        assert!(
                            seq.0 >= next && offset.0 >= end + (seq.0 - next),
                            "{frame:?} after {next} at {end}"
                        );
                        (next, end) = (seq.0 + 1, offset.0 + u64::from(len.0));
                    }
                }
                Frame::Head { .. } => assert_eq!(next, 0),
                Frame::Total { .. } | Frame::End { .. } => {}
                frame => panic!("{frame:?} goes the other way"),
            }
            assert!(!is_ended, "{frame:?} after END");
            is_ended = check.is_ended();
        }
    });
}

/// The first byte says who speaks and where the rest is cut in two: a client with a hello, a server with a reply, or
/// either of them with a good message that the rest damages. Or a route, which only key holders may send.
#[test]
fn handshake() {
    let key = Key::from_bytes([7; KEY_BYTES]);
    let route = "mptcp:r.example:1,[2001:db8::1]:2,u:3".parse::<PathSpec>().expect("a path").route().clone();
    bolero::check!().for_each(|bytes: &[u8]| {
        let Some((&choice, rest)) = bytes.split_first() else { return };
        let keys = std::slice::from_ref(&key);
        let (mut server, challenge) = ServerHandshake::new(keys, [1; 16]);
        let (mut client, hello) =
            ClientHandshake::new(&key, &route, [2; 16]).challenge(&challenge).expect("our own");
        // XOR: what is not there leaves a byte as it is.
        let damaged = |good: &[u8]| -> Vec<u8> {
            good.iter().zip(rest.iter().chain(std::iter::repeat(&0))).map(|(a, b)| a ^ b).collect()
        };
        let feed = |message: &[u8], max: usize, take: &mut dyn FnMut(&[u8]) -> Option<usize>| {
            let (mut first, mut second) = message.split_at(usize::from(choice >> 3).min(message.len()));
            let mut taken = 0;
            for part in [&mut first, &mut second] {
                taken += part.len();
                let Some(missing) = take(part) else { return };
                assert!(missing > 0 && taken + missing <= max, "{missing} more after {taken}");
            }
        };
        let missing = |progress| match progress {
            Ok(Progress::NeedMore(missing)) => Some(missing),
            Ok(Progress::Done(())) => panic!("a stranger was believed"),
            Err(_) => None,
        };
        fn none<T, E>(progress: Result<Progress<T>, E>) -> Result<Progress<()>, E> {
            progress.map(|progress| match progress {
                Progress::NeedMore(more) => Progress::NeedMore(more),
                Progress::Done(_) => Progress::Done(()),
            })
        }
        let from_client = |server: &mut ServerHandshake<'_>, message: &[u8]| {
            if message != hello {
                feed(message, MAX_HELLO_BYTES, &mut |part| missing(none(server.hello(part))));
            }
        };
        let mut from_server = |message: &[u8]| {
            let (mut again, _) = ServerHandshake::new(keys, [1; 16]);
            let Ok(Progress::Done(verified)) = again.hello(&hello) else { panic!("our own") };
            let reply = verified.accept(5);
            let message = if choice % 8 == 3 { damaged(&reply) } else { message.to_vec() };
            // The engine reads what is compared here, and has sent us the right one before.
            if message != reply {
                feed(&message, MAX_REPLY_BYTES, &mut |part| missing(none(client.reply(part))));
            }
        };
        match choice % 8 {
            0 => from_client(&mut server, rest),
            2 => from_client(&mut server, &damaged(&hello)),
            1 | 3 => from_server(rest),
            4 => {
                if let Some(challenge) = rest.first_chunk() {
                    let _ = ClientHandshake::new(&key, &route, [2; 16]).challenge(challenge);
                }
            }
            _ => {
                if let Ok(route) = Route::decode(rest) {
                    assert_eq!(Route::decode(&route.encode()), Ok(route));
                }
            }
        }
    });
}

/// The input is the payload of an OPEN.
#[test]
fn filler_is_bounded() {
    bolero::check!().for_each(|open: &[u8]| {
        assert!(filler::asked(open).is_none_or(|bytes| bytes <= FILLER_BYTES_MAX));
        let asked = [b"filler ", open].concat();
        if let Some(bytes) = filler::asked(&asked) {
            assert!(bytes <= FILLER_BYTES_MAX);
            assert_eq!(filler::asked(&filler::request(bytes)), Some(bytes));
        }
    });
}
