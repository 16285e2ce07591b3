//! Packets of a TUN device, and the cutting of TSO super-packets.
//!
//! In: frames as the device gives them: a `virtio_net_hdr`, then an IP packet of up to 64 KiB, which may stand for many
//! TCP segments. Out: what the shaper has to know of it, and frames that carry any run of its segments. Called by the
//! link's thread. Invariant: a run is a packet that the sender's kernel could have sent: sequence number, IP
//! identification, lengths, flags and checksums are those of its segments. What is not understood is passed on whole.

#[cfg(test)]
mod tests;

use std::ops::Range;

use super::shaper::{Arrival, Flow};

/// Length of `struct virtio_net_hdr` (linux/virtio_net.h) in its legacy form: flags, type of segmentation, then four
/// 16-bit numbers in the host's byte order.
pub const VNET_BYTES: usize = 10;
const VNET_FLAG_NEEDS_CSUM: u8 = 1;
const VNET_GSO_NONE: u8 = 0;
const VNET_GSO_TCPV4: u8 = 1;
const VNET_GSO_TCPV6: u8 = 4;
/// Added to the type where the packet carries CWR.
const VNET_GSO_ECN: u8 = 0x80;

const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;
const TCP_BYTES: usize = 20;
const TCP: u8 = 6;
const TCP_FIN_PSH: u8 = 0x01 | 0x08;
const TCP_CWR: u8 = 0x80;
const TCP_CHECKSUM_AT: usize = 16;

/// IP and TCP headers with all their options: 40 + 60 bytes, or 60 + 60. A super-packet with IPv6 extension headers
/// beyond that is not cut.
const HEADERS_BYTES_MAX: usize = 120;

/// The headers of a run: `virtio_net_hdr`, IP, TCP.
#[derive(Debug)]
pub struct Headers {
    bytes: [u8; VNET_BYTES + HEADERS_BYTES_MAX],
    len: usize,
}

impl Headers {
    /// What is to be written in front of the run's payload.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// A frame of a TUN device.
#[derive(Debug)]
pub struct Packet {
    /// The `virtio_net_hdr` included.
    frame: Box<[u8]>,
    arrival: Arrival,
    /// Where a super-packet may be cut.
    cut: Option<Cut>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    /// Where in the IP packet the TCP header begins.
    tcp_at: usize,
    /// Length of the IP and TCP headers.
    headers: usize,
    /// TCP payload of every segment but the last.
    payload: usize,
}

impl Packet {
    /// Reads a frame. None: it is too short for an IP packet.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let (vnet, ip) = frame.split_at_checked(VNET_BYTES)?;
        if ip.len() < IPV4_BYTES {
            return None;
        }
        let cut = find_cut(vnet, ip);
        let (segments, segment_bytes, last_bytes) = match cut {
            None => (1, ip.len(), ip.len()),
            Some(Cut { headers, payload, .. }) => {
                let carried = ip.len() - headers;
                let segments = carried.div_ceil(payload);
                (segments, headers + payload, headers + carried - (segments - 1) * payload)
            }
        };
        // A frame has at most 64 KiB, so its segments fit.
        let arrival = Arrival {
            segments: segments as u16,
            segment_bytes: segment_bytes as u32,
            last_bytes: last_bytes as u32,
            flow: find_flow(ip),
        };
        Some(Self { frame: frame.into(), arrival, cut })
    }

    /// What the shaper has to know.
    pub fn arrival(&self) -> &Arrival {
        &self.arrival
    }

    /// The frame as it came: the whole packet.
    pub fn frame(&self) -> &[u8] {
        &self.frame
    }

    /// The frame that carries only `segments`: headers and payload. None: that is the whole packet, see
    /// [`Packet::frame`].
    pub fn run(&self, segments: &Range<u16>) -> Option<(Headers, &[u8])> {
        let cut = self.cut?;
        if *segments == (0..self.arrival.segments) {
            return None;
        }
        let all = &self.frame[VNET_BYTES + cut.headers..];
        let first = usize::from(segments.start) * cut.payload;
        let end = (usize::from(segments.end) * cut.payload).min(all.len());
        let payload = all.get(first..end)?;
        let mut bytes = [0; VNET_BYTES + HEADERS_BYTES_MAX];
        let len = VNET_BYTES + cut.headers;
        bytes[..len].copy_from_slice(&self.frame[..len]);
        let is_last = segments.end == self.arrival.segments;
        let (vnet, ip) = bytes[..len].split_at_mut(VNET_BYTES);
        rewrite_ip(ip, segments.start, payload.len());
        rewrite_tcp(ip, cut.tcp_at, first, is_last, payload.len());
        let has_cwr = ip[cut.tcp_at + 13] & TCP_CWR != 0;
        rewrite_vnet(vnet, &cut, payload.len(), has_cwr);
        Some((Headers { bytes, len }, payload))
    }
}

/// Where the super-packet may be cut; None if this is none, or none that is understood.
fn find_cut(vnet: &[u8], ip: &[u8]) -> Option<Cut> {
    let version = match vnet[1] & !VNET_GSO_ECN {
        VNET_GSO_TCPV4 => 4,
        VNET_GSO_TCPV6 => 6,
        _ => return None,
    };
    let tcp_at = usize::from(host_u16(vnet, 6));
    let ip_bytes_min = if version == 4 { IPV4_BYTES } else { IPV6_BYTES };
    if ip[0] >> 4 != version || vnet[0] & VNET_FLAG_NEEDS_CSUM == 0 || tcp_at < ip_bytes_min {
        return None;
    }
    if version == 4 && tcp_at != usize::from(ip[0] & 15) * 4 {
        return None;
    }
    let headers = tcp_at + usize::from(*ip.get(tcp_at + 12)? >> 4) * 4;
    let payload = usize::from(host_u16(vnet, 4));
    let fits = headers >= tcp_at + TCP_BYTES && headers <= HEADERS_BYTES_MAX && headers < ip.len();
    (fits && payload > 0).then_some(Cut { tcp_at, headers, payload })
}

/// The TCP connection of a packet that is no fragment and has no IPv6 extension headers.
fn find_flow(ip: &[u8]) -> Option<Flow> {
    let mut addresses = [0; 32];
    let tcp_at = match ip[0] >> 4 {
        4 if ip[9] == TCP && [ip[6] & 0x3f, ip[7]] == [0, 0] => {
            addresses[..8].copy_from_slice(&ip[12..20]);
            usize::from(ip[0] & 15) * 4
        }
        6 if ip[6] == TCP => {
            addresses.copy_from_slice(ip.get(8..IPV6_BYTES)?);
            IPV6_BYTES
        }
        _ => return None,
    };
    let ports = ip.get(tcp_at..tcp_at + 4)?.try_into().ok()?;
    Some(Flow { addresses, ports })
}

/// Sets lengths, identification and header checksum for `payload` bytes that begin with segment `first`.
fn rewrite_ip(headers: &mut [u8], first: u16, payload: usize) {
    let total = headers.len() + payload;
    if headers[0] >> 4 == 6 {
        put_u16(headers, 4, (total - IPV6_BYTES) as u16);
        return;
    }
    let identification = net_u16(headers, 4).wrapping_add(first);
    put_u16(headers, 2, total as u16);
    put_u16(headers, 4, identification);
    put_u16(headers, 10, 0);
    let own = usize::from(headers[0] & 15) * 4;
    let checksum = !fold(sum(&headers[..own]));
    put_u16(headers, 10, checksum);
}

/// Sets sequence number, flags and the checksum of the pseudo-header, which whoever completes the checksum builds on
/// (`CHECKSUM_PARTIAL`).
fn rewrite_tcp(headers: &mut [u8], tcp_at: usize, skipped: usize, is_last: bool, payload: usize) {
    let tcp_bytes = headers.len() - tcp_at + payload;
    let (ip, tcp) = headers.split_at_mut(tcp_at);
    let sequence = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]).wrapping_add(skipped as u32);
    tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
    if skipped > 0 {
        tcp[13] &= !TCP_CWR;
    }
    if !is_last {
        tcp[13] &= !TCP_FIN_PSH;
    }
    let addresses = if ip[0] >> 4 == 4 { &ip[12..20] } else { &ip[8..IPV6_BYTES] };
    let pseudo = sum(addresses) + u64::from(TCP) + tcp_bytes as u64;
    put_u16(tcp, TCP_CHECKSUM_AT, fold(pseudo));
}

/// Says how the rest of the way is to segment and to complete the checksum.
fn rewrite_vnet(vnet: &mut [u8], cut: &Cut, payload: usize, has_cwr: bool) {
    let is_super = payload > cut.payload;
    let kind = vnet[1] & !VNET_GSO_ECN;
    let ecn = if has_cwr { vnet[1] & VNET_GSO_ECN } else { 0 };
    vnet[0] = VNET_FLAG_NEEDS_CSUM;
    vnet[1] = if is_super { kind | ecn } else { VNET_GSO_NONE };
    let fields = [cut.headers, if is_super { cut.payload } else { 0 }, cut.tcp_at, TCP_CHECKSUM_AT]
        .map(|field| field as u16);
    for (at, field) in vnet[2..].chunks_exact_mut(2).zip(fields) {
        at.copy_from_slice(&field.to_ne_bytes());
    }
}

/// RFC 1071: the sum of 16-bit words, not folded yet.
fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks_exact(2).map(|word| u64::from(u16::from_be_bytes([word[0], word[1]]))).sum()
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn host_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

fn net_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}
