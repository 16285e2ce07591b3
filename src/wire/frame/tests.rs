//! Headers there and back. Every `bolero::check!` here is a fuzz target too:
//! `cargo bolero test wire::frame::tests::what_decodes_encodes_to_the_same_bytes`.

use super::*;

/// What a generator draws: any numbers, folded into a frame that is in bounds. Small values are as likely as large ones.
pub(in crate::wire) type Draw = (u8, u64, u32, u64, u64);

pub(in crate::wire) fn frame_in_bounds((kind, transfer, len, seq, offset): Draw) -> Frame {
    let transfer = TransferId(transfer);
    let head_len = FrameLen(1 + len % MAX_HEAD_BYTES);
    let flag = kind & 0x80 != 0;
    match kind % 12 {
        0 => Frame::Open { transfer, head_len },
        1 => Frame::Cancel { transfer },
        2 => Frame::Ping { token: seq },
        3 => Frame::Head { transfer, head_len },
        4 => Frame::Pong { token: seq },
        5 => {
            let len = 1 + len % MAX_FRAME_BYTES;
            let offset = Offset(offset % (MAX_BODY_BYTES - u64::from(len) + 1));
            Frame::Data { transfer, seq: Seq(seq % (MAX_SEQ + 1)), offset, len: FrameLen(len), again: flag }
        }
        11 => {
            let least = u32::from(!flag);
            let len = least + len % (MAX_REQUEST_BODY_FRAME_BYTES - least + 1);
            let offset = Offset(offset % (MAX_BODY_BYTES - u64::from(len) + 1));
            Frame::Body { transfer, offset, len: FrameLen(len), last: flag }
        }
        9 => Frame::Credit {
            transfer,
            frames: seq % (MAX_SEQ + 1),
            reading: [Reading::Eager, Reading::Paused, Reading::Resting][usize::from(kind >> 4) % 3],
            limit: Offset(offset % (MAX_BODY_BYTES + 1)),
            next: len,
        },
        outcome => {
            let frames = seq % (MAX_SEQ + 1);
            let bytes_max = frames.saturating_mul(u64::from(MAX_FRAME_BYTES)).min(MAX_BODY_BYTES);
            let bytes = frames + offset % (bytes_max - frames + 1);
            if outcome == 10 {
                return Frame::Total { transfer, frames, bytes };
            }
            let outcome = [Outcome::Complete, Outcome::Aborted, Outcome::Cancelled][usize::from(outcome - 6)];
            let reason_len =
                if outcome == Outcome::Aborted { len % (MAX_REASON_BYTES as u32 + 1) } else { 0 };
            Frame::End { transfer, outcome, frames, bytes, reason_len: FrameLen(reason_len) }
        }
    }
}

fn data_header() -> [u8; HEADER_BYTES] {
    Frame::Data {
        transfer: TransferId(9),
        seq: Seq(1),
        offset: Offset(1000),
        len: FrameLen(500),
        again: false,
    }
    .encode()
}

fn end_header(outcome: Outcome) -> [u8; HEADER_BYTES] {
    let (transfer, reason_len) = (TransferId(9), FrameLen(0));
    Frame::End { transfer, outcome, frames: 3, bytes: 3000, reason_len }.encode()
}

/// `header` with `bytes` written over it from `at` on.
fn with(mut header: [u8; HEADER_BYTES], at: usize, bytes: &[u8]) -> [u8; HEADER_BYTES] {
    header[at..at + bytes.len()].copy_from_slice(bytes);
    header
}

#[test]
fn every_frame_survives_the_wire() {
    bolero::check!().with_type::<Draw>().cloned().for_each(|draw| {
        let frame = frame_in_bounds(draw);
        assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
    });
}

#[test]
fn what_decodes_encodes_to_the_same_bytes() {
    // Random bytes hardly ever are a header, so damage a good one in up to three places instead.
    bolero::check!().with_type::<(Draw, [(u8, u8); 3])>().cloned().for_each(|(draw, damage)| {
        let mut header = frame_in_bounds(draw).encode();
        for (at, value) in damage {
            header[usize::from(at) % HEADER_BYTES] ^= value;
        }
        if let Ok(frame) = Frame::decode(&header) {
            assert_eq!(frame.encode(), header);
        }
    });
}

#[test]
fn any_32_bytes_decode_or_are_refused() {
    bolero::check!().with_type::<[u8; HEADER_BYTES]>().for_each(|header| {
        if let Ok(frame) = Frame::decode(header) {
            assert_eq!(&frame.encode(), header);
        }
    });
}

/// A change of the layout breaks every deployed peer: it must not happen unnoticed.
#[test]
fn the_layout_is_the_documented_one() {
    let frame = Frame::Data {
        transfer: TransferId(0x1112131415161718),
        seq: Seq(0x010203040506),
        offset: Offset(0x2122232425262728),
        len: FrameLen(0x010203),
        again: false,
    };
    #[rustfmt::skip]
    assert_eq!(frame.encode(), [
        0x50, 0x82, 0, 0, 0, 1, 2, 3,
        0, 0, 1, 2, 3, 4, 5, 6,
        0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28,
        0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18,
    ]);
    assert_eq!(frame.payload_len().as_usize(), 0x010203);
    assert_eq!(Frame::Ping { token: 7 }.encode()[..16], *b"P\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\x07");
    assert_eq!(end_header(Outcome::Aborted)[..4], *b"P\x83\x02\0");
}

#[test]
fn nonsense_in_the_common_fields_is_named() {
    let data = data_header();
    assert_eq!(Frame::decode(&with(data, 0, b"H")), Err(FrameError::Magic { found: b'H' }));
    assert_eq!(Frame::decode(&with(data, 1, &[0])), Err(FrameError::UnknownKind { kind: 0 }));
    assert_eq!(Frame::decode(&with(data, 1, b"O")), Err(FrameError::UnknownKind { kind: b'O' }));
    assert_eq!(Frame::decode(&with(data, 3, &[1])), Err(FrameError::Reserved { kind: Kind::Data, value: 1 }));
    let unused = |kind, field, value| Err(FrameError::UnusedField { kind, field, value });
    assert_eq!(Frame::decode(&with(data, 2, &[4])), unused(Kind::Data, Field::Flags, 4));
    let cancel = Frame::Cancel { transfer: TransferId(9) }.encode();
    assert_eq!(Frame::decode(&with(cancel, 7, &[1])), unused(Kind::Cancel, Field::Len, 1));
    assert_eq!(Frame::decode(&with(cancel, 15, &[2])), unused(Kind::Cancel, Field::Seq, 2));
    assert_eq!(Frame::decode(&with(cancel, 23, &[3])), unused(Kind::Cancel, Field::Offset, 3));
    let pong = Frame::Pong { token: u64::MAX }.encode();
    assert_eq!(Frame::decode(&with(pong, 31, &[5])), unused(Kind::Pong, Field::Transfer, 5));
}

#[test]
fn a_piece_out_of_bounds_is_refused() {
    let data = data_header();
    let kind = Kind::Data;
    assert_eq!(Frame::decode(&with(data, 4, &[0; 4])), Err(FrameError::Empty { kind }));
    assert!(Frame::decode(&with(data, 4, &MAX_FRAME_BYTES.to_be_bytes())).is_ok());
    let len = MAX_FRAME_BYTES + 1;
    assert_eq!(
        Frame::decode(&with(data, 4, &len.to_be_bytes())),
        Err(FrameError::TooLong { kind, len: FrameLen(len), max: MAX_FRAME_BYTES })
    );
    assert!(Frame::decode(&with(data, 8, &MAX_SEQ.to_be_bytes())).is_ok());
    let seq = MAX_SEQ + 1;
    assert_eq!(
        Frame::decode(&with(data, 8, &seq.to_be_bytes())),
        Err(FrameError::SeqOutOfRange { kind, seq: Seq(seq) })
    );
    assert!(Frame::decode(&with(data, 16, &(MAX_BODY_BYTES - 500).to_be_bytes())).is_ok());
    for offset in [MAX_BODY_BYTES - 499, u64::MAX] {
        assert_eq!(
            Frame::decode(&with(data, 16, &offset.to_be_bytes())),
            Err(FrameError::OffsetOutOfRange { kind, offset: Offset(offset), len: FrameLen(500) })
        );
    }
}

#[test]
fn a_head_out_of_bounds_is_refused() {
    let transfer = TransferId(9);
    for frame in
        [Frame::Open { transfer, head_len: FrameLen(1) }, Frame::Head { transfer, head_len: FrameLen(1) }]
    {
        let (header, kind) = (frame.encode(), frame.kind());
        assert_eq!(Frame::decode(&with(header, 4, &[0; 4])), Err(FrameError::Empty { kind }));
        let len = FrameLen(MAX_HEAD_BYTES + 1);
        assert_eq!(
            Frame::decode(&with(header, 4, &len.0.to_be_bytes())),
            Err(FrameError::TooLong { kind, len, max: MAX_HEAD_BYTES })
        );
    }
}

#[test]
fn a_piece_of_a_request_out_of_bounds_is_refused() {
    let (transfer, kind) = (TransferId(9), Kind::Body);
    let piece = |last, len| Frame::Body { transfer, offset: Offset(7), len: FrameLen(len), last }.encode();
    assert_eq!(Frame::decode(&with(piece(false, 1), 4, &[0; 4])), Err(FrameError::Empty { kind }));
    assert!(Frame::decode(&with(piece(true, 1), 4, &[0; 4])).is_ok());
    let max = MAX_REQUEST_BODY_FRAME_BYTES;
    for last in [false, true] {
        assert_eq!(
            Frame::decode(&with(piece(last, max), 4, &(max + 1).to_be_bytes())),
            Err(FrameError::TooLong { kind, len: FrameLen(max + 1), max })
        );
        let offset = Offset(MAX_BODY_BYTES);
        assert_eq!(
            Frame::decode(&with(piece(last, 1), 16, &offset.0.to_be_bytes())),
            Err(FrameError::OffsetOutOfRange { kind, offset, len: FrameLen(1) })
        );
    }
    assert_eq!(
        Frame::decode(&with(piece(false, 1), 2, &[2])),
        Err(FrameError::UnusedField { kind, field: Field::Flags, value: 2 })
    );
    assert_eq!(
        Frame::decode(&with(piece(false, 1), 15, &[1])),
        Err(FrameError::UnusedField { kind, field: Field::Seq, value: 1 })
    );
}

#[test]
fn an_end_that_cannot_be_is_refused() {
    let complete = end_header(Outcome::Complete);
    for outcome in [0, 4, 255] {
        assert_eq!(
            Frame::decode(&with(complete, 2, &[outcome])),
            Err(FrameError::UnknownOutcome { outcome })
        );
    }
    for outcome in [Outcome::Complete, Outcome::Cancelled] {
        let header = with(end_header(outcome), 7, &[1]);
        assert_eq!(Frame::decode(&header), Err(FrameError::ReasonWithoutAbort { outcome, len: FrameLen(1) }));
    }
    let aborted = end_header(Outcome::Aborted);
    assert_eq!(Frame::decode(&with(aborted, 4, &512_u32.to_be_bytes())).map(|f| f.payload_len().0), Ok(512));
    assert_eq!(
        Frame::decode(&with(aborted, 4, &513_u32.to_be_bytes())),
        Err(FrameError::TooLong { kind: Kind::End, len: FrameLen(513), max: 512 })
    );
    for (frames, bytes) in [(0, 1), (1, 0), (3, 2), (1, u64::from(MAX_FRAME_BYTES) + 1)] {
        let header = with(with(complete, 8, &u64::to_be_bytes(frames)), 16, &u64::to_be_bytes(bytes));
        assert_eq!(Frame::decode(&header), Err(FrameError::ImpossibleTotals { frames, bytes }));
    }
    assert!(matches!(
        Frame::decode(&with(complete, 16, &[0xff; 8])),
        Err(FrameError::OffsetOutOfRange { kind: Kind::End, .. })
    ));
    assert!(matches!(
        Frame::decode(&with(complete, 8, &[0xff; 8])),
        Err(FrameError::SeqOutOfRange { kind: Kind::End, .. })
    ));
}

#[test]
fn each_kind_has_its_direction() {
    for kind in 0..9 {
        let frame = frame_in_bounds((kind, 1, 1, 1, 1));
        let expected = if kind < 3 { Direction::ToUpstream } else { Direction::ToDownstream };
        assert_eq!(frame.direction(), expected, "{frame:?}");
    }
}
