//! TCP_INFO of a socket: what the kernel measured of a connection.
//!
//! One of the leaf modules that may use `unsafe`: the option has no safe wrapper with the fields needed here.

use std::{
    io,
    mem::{MaybeUninit, size_of},
    os::fd::{AsRawFd, BorrowedFd},
    time::Duration,
};

/// `struct tcp_info` of linux/tcp.h up to the fields read here; the kernel fills as much of it as it knows.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct RawTcpInfo {
    states: [u8; 7],
    /// The lowest bit: tcpi_delivery_rate_app_limited.
    delivery: u8,
    rto: u32,
    ato: u32,
    snd_mss: u32,
    rcv_mss: u32,
    unacked: u32,
    sacked: u32,
    lost: u32,
    retrans: u32,
    fackets: u32,
    last_data_sent: u32,
    last_ack_sent: u32,
    last_data_recv: u32,
    last_ack_recv: u32,
    pmtu: u32,
    rcv_ssthresh: u32,
    rtt: u32,
    rttvar: u32,
    snd_ssthresh: u32,
    snd_cwnd: u32,
    advmss: u32,
    reordering: u32,
    rcv_rtt: u32,
    rcv_space: u32,
    total_retrans: u32,
    pacing_rate: u64,
    max_pacing_rate: u64,
    bytes_acked: u64,
    bytes_received: u64,
    segs_out: u32,
    segs_in: u32,
    notsent_bytes: u32,
    min_rtt: u32,
    data_segs_in: u32,
    data_segs_out: u32,
    delivery_rate: u64,
    busy_time: u64,
    rwnd_limited: u64,
    sndbuf_limited: u64,
    delivered: u32,
    delivered_ce: u32,
    bytes_sent: u64,
    bytes_retrans: u64,
    dsack_dups: u32,
    reord_seen: u32,
    rcv_ooopack: u32,
    snd_wnd: u32,
}

/// `TCP_CA_Loss` of linux/tcp.h, a value of tcpi_ca_state.
const CA_LOSS: u8 = 4;

/// A sample of one connection. tcp(7), linux/tcp.h.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpInfo {
    /// Smoothed round-trip time.
    pub rtt: Duration,
    /// Smallest round-trip time of the last minutes.
    pub rtt_min: Duration,
    /// Segments received out of order since the connection began: behind a loss, on most paths.
    pub out_of_order: u32,
    /// Most recent delivery rate, bytes per second; 0 before the first full sample.
    pub delivery_rate: u64,
    /// Congestion window, segments.
    pub congestion_window: u32,
    /// Payload of a full segment, bytes.
    pub segment_bytes: u32,
    /// Segments sent again since the connection began.
    pub retransmitted: u32,
    /// Bytes accepted from the application and not yet sent for the first time.
    pub not_sent_bytes: u32,
    /// Segments sent, the end of the stream included, that the peer has not acknowledged.
    pub unacknowledged: u32,
    /// Bytes the peer has acknowledged since the connection began.
    pub acknowledged_bytes: u64,
    /// Bytes received in order since the connection began.
    pub received_bytes: u64,
    /// [`TcpInfo::delivery_rate`] was limited by what there was to send, not by the path.
    pub is_app_limited: bool,
    /// Bytes sent since the connection began, those sent again included.
    pub sent_bytes: u64,
    /// Since when nothing was acknowledged, in whole milliseconds.
    pub since_acknowledged: Duration,
    /// The retransmission timer has fired: the window is one segment, and grows again from there (TCP_CA_Loss).
    pub is_recovering_from_timeout: bool,
}

impl TcpInfo {
    /// Reads TCP_INFO of `socket`.
    ///
    /// # Errors
    /// EOPNOTSUPP and the like when the descriptor is no TCP socket.
    pub fn of(socket: BorrowedFd<'_>) -> io::Result<Self> {
        let mut raw = MaybeUninit::<RawTcpInfo>::zeroed();
        let mut len = size_of::<RawTcpInfo>() as libc::socklen_t;
        // SAFETY: the kernel writes at most `len` bytes to `raw`, which is that large; the descriptor is borrowed, so open.
        let outcome = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                raw.as_mut_ptr().cast(),
                &mut len,
            )
        };
        if outcome != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: every field is an integer and the memory was zeroed before the kernel wrote to it.
        Ok((&unsafe { raw.assume_init() }).into())
    }
}

impl From<&RawTcpInfo> for TcpInfo {
    fn from(raw: &RawTcpInfo) -> Self {
        Self {
            rtt: Duration::from_micros(raw.rtt.into()),
            rtt_min: Duration::from_micros(raw.min_rtt.into()),
            out_of_order: raw.rcv_ooopack,
            delivery_rate: raw.delivery_rate,
            congestion_window: raw.snd_cwnd,
            segment_bytes: raw.snd_mss,
            retransmitted: raw.total_retrans,
            not_sent_bytes: raw.notsent_bytes,
            unacknowledged: raw.unacked,
            acknowledged_bytes: raw.bytes_acked,
            received_bytes: raw.bytes_received,
            is_app_limited: raw.delivery & 1 != 0,
            sent_bytes: raw.bytes_sent,
            since_acknowledged: Duration::from_millis(raw.last_ack_recv.into()),
            is_recovering_from_timeout: raw.states[1] == CA_LOSS,
        }
    }
}
