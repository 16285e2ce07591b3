//! Runs of super-packets against the packets that a network card would have made.

use super::*;

const PAYLOAD: usize = 1448;
const SEQUENCE: u32 = 0xffff_f000;
const FIN_PSH_ACK_CWR: u8 = 0x01 | 0x08 | 0x10 | 0x80;

/// A super-packet as the kernel gives it: 12 bytes of TCP options, a partial checksum.
fn super_packet(version: u8, payload: usize) -> Vec<u8> {
    let (kind, ip_bytes) =
        if version == 4 { (VNET_GSO_TCPV4, IPV4_BYTES) } else { (VNET_GSO_TCPV6, IPV6_BYTES) };
    let mut frame = vec![VNET_FLAG_NEEDS_CSUM, kind | VNET_GSO_ECN];
    for field in [ip_bytes + 32, PAYLOAD, ip_bytes, TCP_CHECKSUM_AT] {
        frame.extend((field as u16).to_ne_bytes());
    }
    let mut ip = vec![0; ip_bytes + 32];
    if version == 4 {
        ip[..10].copy_from_slice(&[0x45, 0, 0, 0, 0xff, 0xfe, 0x40, 0, 64, TCP]);
        ip[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        put_u16(&mut ip, 2, (ip_bytes + 32 + payload) as u16);
    } else {
        ip[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 0, TCP, 64]);
        ip[8..40].copy_from_slice(&std::array::from_fn::<u8, 32, _>(|at| at as u8 * 7));
        put_u16(&mut ip, 4, (32 + payload) as u16);
    }
    let tcp = &mut ip[ip_bytes..];
    tcp[..4].copy_from_slice(&[0x1f, 0x90, 0xc0, 0x01]);
    tcp[4..8].copy_from_slice(&SEQUENCE.to_be_bytes());
    tcp[12..14].copy_from_slice(&[0x80, FIN_PSH_ACK_CWR]);
    frame.extend(ip);
    frame.extend((0..payload).map(|at| (at % 251) as u8));
    frame
}

/// The frame of a run, headers and payload together.
fn frame_of(packet: &Packet, segments: Range<u16>) -> Vec<u8> {
    match packet.run(&segments) {
        None => packet.frame().to_vec(),
        Some((headers, payload)) => [headers.as_slice(), payload].concat(),
    }
}

/// What a receiver checks: lengths, header checksum, and that completing the partial checksum makes it right.
fn check(frame: &[u8], version: u8) {
    let ip = &frame[VNET_BYTES..];
    let ip_bytes = if version == 4 { IPV4_BYTES } else { IPV6_BYTES };
    if version == 4 {
        assert_eq!(usize::from(net_u16(ip, 2)), ip.len());
        assert_eq!(fold(sum(&ip[..ip_bytes])), 0xffff, "the IP header's checksum");
    } else {
        assert_eq!(usize::from(net_u16(ip, 4)), ip.len() - ip_bytes);
    }
    assert_eq!(frame[0], VNET_FLAG_NEEDS_CSUM);
    assert_eq!(
        [2, 6, 8].map(|at| usize::from(host_u16(frame, at))),
        [ip_bytes + 32, ip_bytes, TCP_CHECKSUM_AT]
    );
    let mut segment = ip[ip_bytes..].to_vec();
    let pseudo = sum(&ip[ip_bytes - if version == 4 { 8 } else { 32 }..ip_bytes]) + 6 + segment.len() as u64;
    assert_eq!(net_u16(&segment, TCP_CHECKSUM_AT), fold(pseudo), "the partial checksum");
    segment.resize(segment.len().next_multiple_of(2), 0);
    let completed = !fold(sum(&segment));
    put_u16(&mut segment, TCP_CHECKSUM_AT, completed);
    assert_eq!(fold(sum(&segment) + pseudo), 0xffff, "the completed checksum");
}

#[test]
fn a_super_packet_counts_as_its_segments() {
    let packet = Packet::parse(&super_packet(4, 3 * PAYLOAD + 100)).expect("is an IP packet");
    let arrival = packet.arrival();
    assert_eq!((arrival.segments, arrival.segment_bytes, arrival.last_bytes), (4, 1500, 152));
    let flow = arrival.flow.expect("is TCP");
    assert_eq!(
        (&flow.addresses[..8], flow.ports),
        (&[10, 0, 0, 1, 10, 0, 0, 2][..], [0x1f, 0x90, 0xc0, 0x01])
    );
    let full = Packet::parse(&super_packet(6, 2 * PAYLOAD)).expect("is an IP packet");
    assert_eq!((full.arrival().segments, full.arrival().last_bytes), (2, 1520));
}

#[test]
fn every_run_is_what_the_sender_could_have_sent() {
    for version in [4, 6] {
        let payload = 9 * PAYLOAD + 77;
        let whole = super_packet(version, payload);
        let packet = Packet::parse(&whole).expect("is an IP packet");
        for (start, end) in (0..10).flat_map(|start| (start + 1..=10).map(move |end| (start, end))) {
            let frame = frame_of(&packet, start..end);
            if (start, end) == (0, 10) {
                assert_eq!(frame, whole);
                continue;
            }
            check(&frame, version);
            let ip_bytes = if version == 4 { IPV4_BYTES } else { IPV6_BYTES };
            let tcp = &frame[VNET_BYTES + ip_bytes..];
            let first = usize::from(start) * PAYLOAD;
            let expected = &whole[VNET_BYTES + ip_bytes + 32 + first..];
            let len = (usize::from(end) * PAYLOAD).min(payload) - first;
            assert_eq!(tcp[32..], expected[..len]);
            assert_eq!(tcp[4..8], SEQUENCE.wrapping_add(first as u32).to_be_bytes());
            let cwr = if start == 0 { 0x80 } else { 0 };
            let fin_psh = if end == 10 { 0x09 } else { 0 };
            assert_eq!(tcp[13], 0x10 | cwr | fin_psh, "flags of {start}..{end}");
            let is_super = end - start > 1 && len > PAYLOAD;
            let kind = whole[1] & !VNET_GSO_ECN | if start == 0 { VNET_GSO_ECN } else { 0 };
            assert_eq!(frame[1], if is_super { kind } else { VNET_GSO_NONE });
            assert_eq!(usize::from(host_u16(&frame, 4)), if is_super { PAYLOAD } else { 0 });
            if version == 4 {
                assert_eq!(net_u16(&frame[VNET_BYTES..], 4), 0xfffe_u16.wrapping_add(start));
            }
        }
    }
}

/// A run that is a super-packet again is cut like the first one: kernels and links may stand in a row.
#[test]
fn a_run_of_a_run_is_a_run() {
    let packet = Packet::parse(&super_packet(4, 8 * PAYLOAD)).expect("is an IP packet");
    let part = Packet::parse(&frame_of(&packet, 2..7)).expect("is an IP packet");
    assert_eq!(part.arrival().segments, 5);
    assert_eq!(frame_of(&part, 1..3), frame_of(&packet, 3..5));
}

#[test]
fn what_is_not_understood_is_passed_on_whole() {
    assert!(Packet::parse(&[]).is_none());
    assert!(Packet::parse(&[0; VNET_BYTES + 19]).is_none());
    let mut alien = super_packet(4, 3 * PAYLOAD);
    alien[VNET_BYTES] = 0x47;
    let packet = Packet::parse(&alien).expect("is long enough");
    assert_eq!((packet.arrival().segments, packet.run(&(0..1)).is_none()), (1, true));
}

#[test]
fn no_frame_makes_it_panic() {
    bolero::check!().with_type::<(bool, bool, Vec<(u16, u8)>, Vec<u8>)>().with_iterations(20_000).for_each(
        |(is_valid, is_v4, changes, noise)| {
            let mut frame =
                if *is_valid { super_packet(if *is_v4 { 4 } else { 6 }, 3 * PAYLOAD) } else { noise.clone() };
            let reach = frame.len().min(VNET_BYTES + 80);
            for (at, value) in changes {
                if reach > 0 {
                    frame[usize::from(*at) % reach] = *value;
                }
            }
            let Some(packet) = Packet::parse(&frame) else { return };
            let segments = packet.arrival().segments;
            assert!(segments >= 1);
            for first in 0..segments.min(50) {
                let part = frame_of(&packet, first..first + 1);
                assert!(part.len() <= frame.len());
            }
            assert_eq!(frame_of(&packet, 0..segments), frame);
        },
    );
}
