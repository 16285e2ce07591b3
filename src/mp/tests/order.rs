//! Whatever lanes frames travel on and however they are cut, the body comes out whole and in order.

use std::{fs::File, io::Write, os::fd::OwnedFd, time::Duration};

use super::*;
use crate::{
    mp::consumer::Sink,
    wire::{
        frame::Frame,
        units::{FrameLen, Offset, Seq},
    },
};

/// An upstream that sends body after body, each cut and spread at random over exactly `lanes` lanes.
fn random_upstream(instance: u64, lanes: usize, bodies: Arc<Vec<Vec<u8>>>) -> Upstream {
    struct Spread {
        body: usize,
        joined: Tally,
        lots: Vec<Vec<Piece>>,
        frames: u64,
    }
    let transfers = Mutex::new(std::collections::HashMap::<u64, Arc<Spread>>::new());
    Upstream::start(instance, move |lane, Opening { transfer, nth }| {
        let spread = {
            let mut transfers = transfers.lock().unwrap();
            let number = transfers.len();
            let new = || {
                let mut random = Random(0x9e37_79b9 + number as u64);
                // Some bodies in frames of a few bytes, others in large ones.
                let size_max = [1 << 20, 70_000, 300][number % 3];
                let body = number % bodies.len();
                let len = bodies[body].len();
                let pieces = cut(len, || (1 + random.below(size_max)).max(len / 4000));
                let mut lots = vec![Vec::new(); lanes];
                for piece in &pieces {
                    lots[random.below(lanes)].push(*piece);
                }
                let frames = pieces.len() as u64;
                Arc::new(Spread { body, joined: Tally::default(), lots, frames })
            };
            transfers.entry(transfer.0).or_insert_with(new).clone()
        };
        spread.joined.add(1);
        spread.joined.reach(lanes)?;
        let body = &bodies[spread.body];
        let mut random = Random(transfer.0 | 1);
        lane.head(transfer)?;
        // A lane that the crew seats in the instant of the end finds nothing left.
        for piece in spread.lots.get(nth).into_iter().flatten() {
            if random.below(16) == 0 {
                thread::sleep(Duration::from_micros(random.below(2000) as u64));
            }
            lane.piece(transfer, body, *piece)?;
        }
        lane.end(transfer, spread.frames, body.len() as u64)
    })
}

/// Body `n` of a run: each size comes with each of the three kinds of frames.
fn bodies() -> Vec<Vec<u8>> {
    let mut random = Random(42);
    [0, 1, 65_535, 65_536, 65_537, 3_000_001, 299, 5_000_000].map(|len| random.bytes(len)).into()
}

#[test]
fn random_frames_over_random_lanes_come_out_in_order() {
    let _beside = PARKED_BYTES.read();
    let bodies = Arc::new(bodies());
    for setting in settings() {
        for per_path in [1, 2] {
            // Two paths to one upstream.
            let upstream = random_upstream(9, 2 * per_path, bodies.clone());
            let wanted = bodies.clone();
            setting.run(&[upstream.address; 2], Lanes::cold(per_path), async move |manager| {
                for round in 0..2 * wanted.len() {
                    fetch_whole(&manager, &wanted[round % wanted.len()]).await;
                }
            });
            upstream.assert_no_fault();
        }
    }
}

#[test]
fn a_file_gets_the_body_from_its_offset_on() {
    let _beside = PARKED_BYTES.read();
    let bodies = Arc::new(vec![Random(5).bytes(2_000_000)]);
    for setting in settings() {
        let upstream = random_upstream(9, 2, bodies.clone());
        let wanted = bodies.clone();
        setting.run(&[upstream.address], Lanes::cold(2), async move |manager| {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), b"before").unwrap();
            let mut incoming = manager.fetch(request()).await.unwrap();
            let opened = OwnedFd::from(File::options().write(true).open(file.path()).unwrap());
            let moved = incoming.consumer.run(Sink::File { file: opened, offset: 6 }, None).await.unwrap();
            assert_eq!(moved, 2_000_000);
            let got = std::fs::read(file.path()).unwrap();
            assert_eq!(&got[..6], b"before");
            assert_same(&got[6..], &wanted[0]);
        });
        upstream.assert_no_fault();
    }
}

/// The data of a chunked body (RFC 9112 §7.1) without extensions and trailers, which must be whole.
fn dechunk(mut coded: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let line = coded.windows(2).position(|pair| pair == b"\r\n").expect("a chunk's size");
        let size = usize::from_str_radix(std::str::from_utf8(&coded[..line]).unwrap(), 16).unwrap();
        let (data, rest) = coded[line + 2..].split_at(size);
        assert_eq!(&rest[..2], b"\r\n", "behind a chunk of {size}");
        body.extend_from_slice(data);
        coded = &rest[2..];
        if size == 0 {
            assert_eq!(coded, b"", "behind the last chunk");
            return body;
        }
    }
}

#[test]
fn chunked_output_parses_to_the_body() {
    let _beside = PARKED_BYTES.read();
    let bodies = Arc::new(bodies());
    for setting in settings() {
        let upstream = random_upstream(9, 2, bodies.clone());
        let wanted = bodies.clone();
        setting.run(&[upstream.address], Lanes::cold(2), async move |manager| {
            for body in wanted.iter() {
                let client = Client::new();
                let mut incoming = manager.fetch(request()).await.unwrap();
                let moved = incoming.consumer.run(Sink::Chunked(&client.socket), None).await.unwrap();
                assert_eq!(moved, body.len() as u64);
                assert_same(&dechunk(&client.finish().await), body);
            }
        });
        upstream.assert_no_fault();
    }
}

#[test]
fn a_body_is_whole_with_its_last_frame_although_the_totals_came_before() {
    let _beside = PARKED_BYTES.read();
    const BODY: &[u8] = b"0123456789";
    for setting in settings() {
        let (joined, told, whole) = (Tally::default(), Tally::default(), Tally::default());
        let may_end = whole.clone();
        let upstream = Upstream::start(9, move |lane, Opening { transfer, nth }| {
            joined.add(1);
            joined.reach(2)?;
            lane.head(transfer)?;
            if nth == 0 {
                lane.data(transfer, 0, 0, &BODY[..5])?;
                lane.end(transfer, 2, 10)?;
                told.add(1);
                return Ok(());
            }
            told.reach(1)?;
            // Long enough for the end to be taken.
            thread::sleep(Duration::from_millis(100));
            lane.data(transfer, 1, 5, &BODY[5..])?;
            may_end.reach(1)?;
            lane.end(transfer, 2, 10)
        });
        setting.run(&[upstream.address], Lanes::cold(2), async move |manager| {
            fetch_whole(&manager, BODY).await;
            whole.add(1);
        });
        upstream.assert_no_fault();
    }
}

#[test]
fn the_rest_of_a_superseded_frame_is_not_taken_for_a_later_one() {
    let _beside = PARKED_BYTES.read();
    const BODY: &[u8] = b"0123456789";
    for setting in settings() {
        let (begun, superseded) = (Tally::default(), Tally::default());
        let upstream = Upstream::start(9, move |lane, Opening { transfer, nth }| {
            lane.head(transfer)?;
            if nth == 0 {
                // Frame 1, then a copy of frame 0 of which a part is missing for now.
                lane.data(transfer, 1, 5, &BODY[5..])?;
                let (seq, offset, len) = (Seq(0), Offset(0), FrameLen(5));
                lane.send(Frame::Data { transfer, seq, offset, len, again: true }, &BODY[..2])?;
                begun.add(1);
                superseded.reach(1)?;
                // Long enough for the other copy to be taken.
                thread::sleep(Duration::from_millis(100));
                lane.stream.write_all(&BODY[2..5])?;
            } else {
                begun.reach(1)?;
                // Long enough for the part that is there to be taken.
                thread::sleep(Duration::from_millis(100));
                lane.data(transfer, 0, 0, &BODY[..5])?;
                superseded.add(1);
            }
            lane.end(transfer, 2, 10)
        });
        setting.run(&[upstream.address], Lanes::cold(2), async move |manager| {
            fetch_whole(&manager, BODY).await;
        });
        upstream.assert_no_fault();
    }
}
