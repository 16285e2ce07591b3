//! What the cache reads: its own files after a crash or on a bad disk, and playlists of any root.

use std::time::{Duration, UNIX_EPOCH};

use bytes::BufMut;
use http::{HeaderMap, HeaderValue};
use plait::cache::{
    playlist,
    ranges::Spans,
    record::{Era, Meta, Record, SLOT_BYTES},
};
use sha2::{Digest, Sha256};

fn sample() -> Record {
    let at = UNIX_EPOCH + Duration::from_millis(1_000_000_000_123);
    let headers = HeaderMap::from_iter([(http::header::ETAG, HeaderValue::from_static("\"a\""))]);
    let selecting = HeaderMap::from_iter([(http::header::ACCEPT, HeaderValue::from_static("video/mp4"))]);
    let meta = Meta::new("a/film.mp4".into(), headers, selecting, at..at, Duration::from_secs(5));
    let mut present = Spans::default();
    present.insert(0..100);
    present.insert(200..300);
    Record { era: Era { boot: 1, epoch: 2 }, sequence: 3, len: 1000, meta, present }
}

/// A slot of `body` whose checksum is right, as only a bug of ours writes it.
fn sealed(magic: &[u8], body: &[u8]) -> Vec<u8> {
    let mut slot = magic.to_vec();
    slot.put_u32(body.len() as u32);
    slot.put_slice(&Sha256::digest(body)[..16]);
    slot.put_slice(body);
    slot
}

fn check_record(slot: &[u8]) {
    let Some(record) = Record::decode(slot) else { return };
    assert!(record.present.iter().all(|span| span.start < span.end && span.end <= record.len));
    if record.meta.is_storable() {
        let bytes = record.encode();
        assert!(bytes.len() <= SLOT_BYTES);
        // Whoever writes a head gives it a date; then it is the same for ever.
        let dated = Record::decode(&bytes).expect("what was written");
        assert_eq!(
            (dated.era, dated.sequence, &dated.present),
            (record.era, record.sequence, &record.present)
        );
        assert_eq!(Record::decode(&dated.encode()), Some(dated));
    }
}

/// The first byte chooses: a damaged slot, a sealed body that says anything, or a playlist.
#[test]
fn records_and_playlists() {
    let good = sample().encode();
    let (magic, body) = (&good[..8], &good[28..]);
    assert_eq!(sealed(magic, body), good, "the layout of a slot");
    bolero::check!().for_each(|bytes: &[u8]| {
        let Some((choice, rest)) = bytes.split_first() else { return };
        match choice {
            b'd' => {
                let damaged: Vec<u8> =
                    good.iter().zip(rest.iter().chain(std::iter::repeat(&0))).map(|(a, b)| a ^ b).collect();
                if damaged != good {
                    assert_eq!(Record::decode(&damaged), None, "a damaged record was believed");
                }
                check_record(rest);
            }
            b'r' => check_record(&sealed(magic, rest)),
            _ => {
                let Some(reading) = playlist::read(rest, "h.example:80", "/vod/a/index.m3u8?t=1") else {
                    return;
                };
                for segment in &reading.segments {
                    assert!(segment.target.starts_with('/'), "{segment:?}");
                    assert!(segment.target.bytes().all(|byte| byte.is_ascii_graphic()), "{segment:?}");
                    assert!(segment.span.as_ref().is_none_or(|span| span.start < span.end), "{segment:?}");
                }
            }
        }
    });
}
