//! Valid and broken bodies, whole and cut anywhere.

use super::*;

/// Runs a decoder as a proxy would, with a socket that gives pieces of the given sizes. Returns the data and how many
/// bytes the body took, or `None` for those when the bytes end before the body.
fn decode(bytes: &[u8], cuts: &[u8]) -> Result<(Vec<u8>, Option<usize>), ChunkError> {
    let mut decoder = ChunkDecoder::new();
    let (mut data, mut at, mut owed) = (Vec::new(), 0, 0_u64);
    let mut cuts = cuts.iter().map(|&cut| usize::from(cut % 8) + 1).chain(std::iter::repeat(usize::MAX));
    while at < bytes.len() {
        let piece = cuts.next().unwrap_or(usize::MAX).min(bytes.len() - at);
        let shown = &bytes[at..at + piece];
        if owed > 0 {
            let taken = usize::try_from(owed).unwrap_or(usize::MAX).min(piece);
            data.extend_from_slice(&shown[..taken]);
            (at, owed) = (at + taken, owed - taken as u64);
            continue;
        }
        match decoder.step(shown)? {
            ChunkStep::NeedMore { taken } => {
                assert_eq!(taken, piece, "framing left in a readable socket");
                at += taken;
            }
            ChunkStep::Data { taken, size } => (at, owed) = (at + taken, size),
            ChunkStep::End { taken } => return Ok((data, Some(at + taken))),
        }
    }
    Ok((data, None))
}

#[test]
fn a_body_of_two_chunks() {
    let body = b"4\r\nWiki\r\nA ; name=\"v\"\r\npedia in c\r\n0\r\n\r\nGET";
    assert_eq!(decode(body, &[]), Ok((b"Wikipedia in c".to_vec(), Some(body.len() - 3))));
    let trailers = b"1\r\nx\r\n00;e\r\nDigest: abc\r\nB:\r\n\r\n";
    assert_eq!(decode(trailers, &[]), Ok((b"x".to_vec(), Some(trailers.len()))));
    assert_eq!(decode(LAST_CHUNK, &[]), Ok((vec![], Some(5))));
}

#[test]
fn steps_take_the_end_of_one_chunk_with_the_start_of_the_next() {
    let mut decoder = ChunkDecoder::default();
    assert_eq!(decoder.step(b"4\r\nWiki\r\n"), Ok(ChunkStep::Data { taken: 3, size: 4 }));
    assert_eq!(decoder.step(b"\r\n1f"), Ok(ChunkStep::NeedMore { taken: 4 }));
    assert_eq!(decoder.step(b""), Ok(ChunkStep::NeedMore { taken: 0 }));
    assert_eq!(decoder.step(b"\r\nxx"), Ok(ChunkStep::Data { taken: 2, size: 31 }));
    assert_eq!(decoder.step(b"\r\n0\r\n\r\nnext"), Ok(ChunkStep::End { taken: 7 }));
    assert_eq!(decoder.step(b"next"), Ok(ChunkStep::End { taken: 0 }));
}

#[test]
fn broken_bodies() {
    for (body, error) in [
        ("\r\n", ChunkError::SizeLine),
        (" \r\n", ChunkError::SizeLine),
        (";\r\n", ChunkError::SizeLine),
        (" 4\r\n", ChunkError::SizeLine),
        ("4\n", ChunkError::SizeLine),
        ("4 4\r\n", ChunkError::SizeLine),
        ("0x4\r\n", ChunkError::SizeLine),
        ("-4\r\n", ChunkError::SizeLine),
        ("+4\r\n", ChunkError::SizeLine),
        ("4;a\nb\r\n", ChunkError::SizeLine),
        ("4;a\rb\r\n", ChunkError::SizeLine),
        ("4;a\0b\r\n", ChunkError::SizeLine),
        ("4\r\r\n", ChunkError::SizeLine),
        ("10000000000000000\r\n", ChunkError::SizeLine),
        ("FFFFFFFFFFFFFFFF\r\n", ChunkError::BodyTooLong),
        ("1000000000000001\r\n", ChunkError::BodyTooLong),
        ("1\r\nxy\r\n", ChunkError::DataEnd),
        ("1\r\nx\n0\r\n\r\n", ChunkError::DataEnd),
        ("1\r\nx0\r\n\r\n", ChunkError::DataEnd),
        ("0\r\nA: b\n\r\n", ChunkError::Trailer),
        ("0\r\n A: b\r\n\r\n", ChunkError::Trailer),
        ("0\r\nA: b\0\r\n\r\n", ChunkError::Trailer),
        ("0\r\nGET / HTTP/1.1\r\n\r\n", ChunkError::Trailer),
    ] {
        assert_eq!(decode(body.as_bytes(), &[]), Err(error), "{body:?}");
        assert_eq!(decode(body.as_bytes(), &[0; 64]), Err(error), "{body:?} byte by byte");
    }
}

#[test]
fn an_error_is_final() {
    let mut decoder = ChunkDecoder::new();
    assert_eq!(decoder.step(b"1\r\n"), Ok(ChunkStep::Data { taken: 3, size: 1 }));
    assert_eq!(decoder.step(b"x"), Err(ChunkError::DataEnd));
    assert_eq!(decoder.step(b"\r\n"), Err(ChunkError::DataEnd));
}

#[test]
fn bounds() {
    let extension = |len: usize| format!("1000000000000000;{}\r\n", "e".repeat(len - 1));
    let mut decoder = ChunkDecoder::new();
    assert!(matches!(
        decoder.step(extension(MAX_CHUNK_EXTENSION_BYTES).as_bytes()),
        Ok(ChunkStep::Data { size: MAX_BODY_BYTES, .. })
    ));
    assert_eq!(decoder.step(b"\r\n1\r\n"), Err(ChunkError::BodyTooLong), "the sum counts");
    let long = extension(MAX_CHUNK_EXTENSION_BYTES + 1);
    assert_eq!(decode(long.as_bytes(), &[]), Err(ChunkError::ExtensionTooLong));
    assert_eq!(decode(&b"1".repeat(5000), &[7; 2000]), Err(ChunkError::ExtensionTooLong));

    let trailers = |len: usize| format!("0\r\nA: {}\r\n\r\n", "b".repeat(len - 7));
    assert!(matches!(decode(trailers(MAX_TRAILER_BYTES).as_bytes(), &[]), Ok((_, Some(_)))));
    let long = trailers(MAX_TRAILER_BYTES + 1);
    assert_eq!(decode(long.as_bytes(), &[]), Err(ChunkError::TrailerTooLong));
    assert_eq!(decode(long.as_bytes(), &[7; 9000]), Err(ChunkError::TrailerTooLong));
}

#[test]
fn headers_of_chunks() {
    for (size, text) in [
        (1, "1\r\n"),
        (15, "f\r\n"),
        (16, "10\r\n"),
        (0x1_0000, "10000\r\n"),
        (u64::MAX, "ffffffffffffffff\r\n"),
    ] {
        assert_eq!(&*chunk_header(NonZeroU64::new(size).unwrap()), text.as_bytes());
    }
}

#[test]
fn what_was_encoded_is_decoded_however_it_is_cut() {
    bolero::check!().with_type::<(Vec<Vec<u8>>, Vec<u8>)>().for_each(|(chunks, cuts)| {
        let mut body = Vec::new();
        for chunk in chunks {
            if let Some(size) = NonZeroU64::new(chunk.len() as u64) {
                body.extend_from_slice(&chunk_header(size));
                body.extend_from_slice(chunk);
                body.extend_from_slice(CHUNK_END);
            }
        }
        body.extend_from_slice(LAST_CHUNK);
        let len = body.len();
        body.extend_from_slice(b"next");
        assert_eq!(decode(&body, cuts), Ok((chunks.concat(), Some(len))));
    });
}

#[test]
fn cuts_change_nothing_of_any_bytes() {
    const PIECES: [&[u8]; 14] = [
        b"0",
        b"1",
        b"2",
        b"a",
        b"\r\n",
        b"\r",
        b"\n",
        b";x",
        b" ",
        b"1\r\nx\r\n",
        b"0\r\n",
        b"A: b\r\n",
        b"\0",
        b"2\r\nyy\r\n",
    ];
    bolero::check!().with_type::<(Vec<u8>, Vec<u8>)>().with_iterations(5_000).for_each(|(picks, cuts)| {
        let bytes: Vec<u8> = picks.iter().flat_map(|&pick| PIECES[usize::from(pick) % 14]).copied().collect();
        for bytes in [&bytes, picks] {
            assert_eq!(decode(bytes, cuts), decode(bytes, &[]));
        }
    });
}
