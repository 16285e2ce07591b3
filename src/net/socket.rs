//! One connected, non-blocking TCP or MPTCP socket and its readiness on this core.
//!
//! In: a descriptor, or an address to connect to. Out: whole reads and writes that wait for readiness. Callers bound
//! every wait with [`exec::timeout`] or a deadline of their own.

use std::{
    cell::Cell,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    pin::pin,
    time::Duration,
};

use bytes::BytesMut;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{RecvFlags, SendFlags, Shutdown, recv, send},
};
use socket2::{Domain, Protocol, SockRef, Type};

use super::{
    Congestion, MptcpMissing, MptcpState, Shared, TcpInfo, backoff,
    bbr::{self, BbrInfo},
    discard::discard,
    keep_alive, low_water, mptcp,
    pipe::close_idle_pipes,
    receive::receive,
    renewal::{Order, Renewal},
    splice_probe,
};
use crate::{
    exec::{self, Instant, Interest, Watch},
    wire::route::Transport,
};

/// Bytes that a lane may always accept before it can send them; fewer made no difference on long paths.
const LANE_NOT_SENT_BYTES_MIN: u32 = 128 << 10;

/// Why a connection could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The deadline passed first.
    #[error("no answer from {address} within {} ms", .deadline.as_millis())]
    Deadline {
        /// Where to.
        address: SocketAddr,
        /// How long it was tried.
        deadline: Duration,
    },
    /// The kernel or the peer refused.
    #[error("cannot connect to {address}: {source}")]
    Refused {
        /// Where to.
        address: SocketAddr,
        /// What the kernel says.
        source: io::Error,
    },
    /// This side has no MPTCP.
    #[error("cannot connect to {address} by MPTCP: {source}")]
    NoMptcp {
        /// Where to.
        address: SocketAddr,
        /// What is missing.
        source: MptcpMissing,
    },
}

impl ConnectError {
    /// The host has answered that no process listens there.
    pub fn nobody_there(&self) -> bool {
        matches!(self, Self::Refused { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused)
    }

    /// Nobody has said anything in time, neither yes nor no.
    pub fn is_unanswered(&self) -> bool {
        match self {
            Self::Deadline { .. } => true,
            // The kernel has given up sooner.
            Self::Refused { source, .. } => source.kind() == io::ErrorKind::TimedOut,
            Self::NoMptcp { .. } => false,
        }
    }
}

/// What is worth a wake-up where nothing is done before all has come. The kernel would enlarge the receive buffer for more
/// than a quarter of its usual 128 KiB, and stop sizing it by itself.
pub const BATCH_BYTES: usize = 32 << 10;

/// A connected socket. Dropping it closes the connection in order: what was sent still arrives.
pub struct Socket {
    // Dropped before the descriptor.
    watch: Watch,
    fd: Shared,
    /// SO_RCVLOWAT as it stands; only one handle of a connection waits for more than one byte.
    low_water: Cell<usize>,
    /// Since when the poll has seen room in which no byte was put; see [`Socket::room`].
    pub(super) room_seen_at: Cell<Option<Instant>>,
    /// In a box: a stranger's connection has none.
    renewal: Cell<Option<Box<Renewal>>>,
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // An armed poll holds the open file until it fires; this makes it fire.
        if self.fd.is_sole_owner() {
            self.fd.close();
        }
    }
}

impl Socket {
    /// Takes over a connected socket; makes it non-blocking and switches Nagle's algorithm off.
    ///
    /// # Errors
    /// Those of fcntl(2).
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        // Heads and frame headers are small and must not wait for an acknowledgement; a peer that is gone already
        // answers EINVAL here and shows its error at the first read.
        let _ = SockRef::from(&fd).set_tcp_nodelay(true);
        // What was accepted from a plain TCP peer is a TCP socket, also on an MPTCP listener.
        let transport = match SockRef::from(&fd).protocol() {
            Ok(Some(Protocol::MPTCP)) => Transport::Mptcp,
            _ => Transport::Tcp,
        };
        let splices = transport == Transport::Tcp || splice_probe::mptcp_splices();
        #[cfg(test)]
        let splices = splices && super::simulated::may_splice();
        Ok(Self::on_this_core(Shared::new(fd, transport, splices)))
    }

    /// A second handle of a connection, with readiness of its own on the core that calls.
    pub fn on_this_core(shared: Shared) -> Self {
        let watch = Watch::new(shared.as_fd().as_raw_fd());
        let (room_seen_at, renewal) = (Cell::new(None), Cell::new(None));
        Self { watch, fd: shared, low_water: Cell::new(1), room_seen_at, renewal }
    }

    /// The connection without this core's readiness, to be used on another core or kept for later.
    pub fn share(&self) -> Shared {
        self.fd.clone()
    }

    /// The same for another core that is to go on: whatever arrives makes its handle readable.
    pub fn leave(&self) -> Shared {
        self.set_low_water(1);
        self.fd.clone()
    }

    /// Connects to `address` by `transport` within `deadline`, with `congestion` control set before the first segment.
    /// MPTCP may turn out to be plain TCP: [`Socket::mptcp`] tells.
    ///
    /// # Errors
    /// [`ConnectError`] names the address.
    pub async fn connect(
        address: SocketAddr,
        transport: Transport,
        congestion: &Congestion,
        deadline: Duration,
    ) -> Result<Self, ConnectError> {
        let refused = |source| ConnectError::Refused { address, source };
        #[cfg(test)]
        if let Some(dialled) = super::simulated::dial(address) {
            let dialled = exec::timeout(deadline, dialled).await;
            let fd = dialled.map_err(|exec::Elapsed| ConnectError::Deadline { address, deadline })?;
            return fd.and_then(Socket::new).map_err(refused);
        }
        let domain = Domain::for_address(address);
        let tcp_socket = || socket2::Socket::new(domain, Type::STREAM, Some(Protocol::TCP));
        let made = match transport {
            Transport::Tcp => match tcp_socket() {
                // A connection is worth more than an idle pipe.
                Err(error) if error.raw_os_error() == Some(libc::EMFILE) && close_idle_pipes() => {
                    tcp_socket()
                }
                made => made,
            }
            .map_err(refused)?,
            Transport::Mptcp => {
                mptcp::stream_socket(domain).map_err(|source| ConnectError::NoMptcp { address, source })?
            }
        };
        let start = |socket: socket2::Socket| {
            socket.set_nonblocking(true)?;
            congestion.apply(&socket, address.ip());
            // Where the kernel cannot, SYNs are repeated after 1, 2 and 4 s.
            let _ = backoff::bound(socket.as_fd());
            match socket.connect(&address.into()) {
                Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
                _ => Socket::new(socket.into()),
            }
        };
        let socket = start(made).map_err(refused)?;
        match exec::timeout(deadline, socket.watch.ready(Interest::Write)).await {
            Ok(ready) => ready.map_err(refused)?,
            Err(exec::Elapsed) => return Err(ConnectError::Deadline { address, deadline }),
        }
        match SockRef::from(&socket.fd).take_error().map_err(refused)? {
            Some(error) => Err(refused(error)),
            None => Ok(socket),
        }
    }

    /// Whether splice works on this socket.
    pub fn splices(&self) -> bool {
        self.fd.splices()
    }

    /// The address of the peer.
    pub fn peer(&self) -> io::Result<SocketAddr> {
        SockRef::from(&self.fd).peer_addr()?.as_socket().ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
    }

    /// The address that the peer has connected to.
    pub fn local(&self) -> io::Result<SocketAddr> {
        SockRef::from(&self.fd)
            .local_addr()?
            .as_socket()
            .ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
    }

    /// Sets congestion control for the leg towards `peer`; see [`Congestion`].
    pub fn set_congestion(&self, congestion: &Congestion, peer: IpAddr) {
        congestion.apply(&SockRef::from(&self.fd), peer);
    }

    /// Makes a lane that was silent be used again soon after its path is back, where the kernel can (Linux 6.15). What was
    /// [connected](Self::connect) does so anyway.
    pub fn bound_backoff(&self) {
        // TCP only; one that is no lane of ours any more shows its error elsewhere.
        let _ = backoff::bound(self.fd.as_fd());
    }

    /// Has BBR of a lane begin anew a second before it would pause to measure the round trip (PROBE_RTT), as long as the lane is as
    /// quick as it was. Over MPTCP each subflow pauses by itself.
    pub fn spare_pauses(&self) {
        if self.fd.transport() == Transport::Tcp {
            self.renewal.set(Some(Box::default()));
        }
    }

    /// Has the kernel ask the peer for a sign of life each time the connection was silent for `pause`, and break it after 14
    /// questions without an answer, or at once if the peer knows nothing of it.
    pub fn keep_alive(&self, pause: Duration) {
        keep_alive::ask(&SockRef::from(&self.fd), pause);
    }

    /// Keeps what is accepted and not sent yet below `bytes` (TCP_NOTSENT_LOWAT, tcp(7)), so that frames bind to lanes
    /// late; never below 128 KiB.
    pub fn bind_late(&self, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).max(LANE_NOT_SENT_BYTES_MIN);
        if let Err(error) = SockRef::from(&self.fd).set_tcp_notsent_lowat(bytes) {
            tracing::debug!(%error, "TCP_NOTSENT_LOWAT is not available: frames are bound to lanes earlier");
        }
    }

    /// A sample of the connection; of all subflows together if it is MPTCP.
    pub fn tcp_info(&self) -> io::Result<TcpInfo> {
        #[cfg(test)]
        if let Some(info) = super::simulated::tcp_info(self.fd.as_fd()) {
            return Ok(info);
        }
        self.fd.tcp_info()
    }

    /// How an MPTCP connection stands; `None` for plain TCP.
    pub fn mptcp(&self) -> Option<MptcpState> {
        match self.fd.transport() {
            Transport::Tcp => None,
            // A connection that is gone already shows its error at the next read.
            Transport::Mptcp => mptcp::state(self.fd.as_fd()).ok(),
        }
    }

    /// Resolves when the socket may be ready; see [`Watch::ready`].
    pub async fn ready(&self, interest: Interest) -> io::Result<()> {
        if interest == Interest::Read {
            self.set_low_water(1);
        }
        self.watch.ready(interest).await
    }

    /// Resolves when about `bytes` may be there to read, or fewer and no more will come. Early wake-ups are allowed.
    pub async fn readable_by(&self, bytes: usize) -> io::Result<()> {
        self.set_low_water(bytes.max(1));
        self.watch.ready(Interest::Read).await
    }

    fn set_low_water(&self, bytes: usize) {
        if self.low_water.get() == bytes || self.fd.transport() != Transport::Tcp {
            return;
        }
        // Where it is refused, every byte wakes.
        if low_water::set_low_water(self.fd.as_fd(), bytes.try_into().unwrap_or(libc::c_int::MAX)).is_ok() {
            self.low_water.set(bytes);
        }
    }

    /// Sends what the socket takes now; `more` says that bytes follow at once, so that they share a segment.
    ///
    /// # Errors
    /// `WouldBlock` when it takes nothing; otherwise the connection's error.
    pub fn try_send(&self, bytes: &[u8], more: bool) -> io::Result<usize> {
        let more = if more { SendFlags::MORE } else { SendFlags::empty() };
        let sent = send(&self.fd, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT | more)?;
        self.took();
        Ok(sent)
    }

    /// Bytes were put into it.
    pub(super) fn took(&self) {
        self.room_seen_at.set(None);
        let look = |renewal: &mut Renewal| {
            let now = Instant::now();
            let tcp = renewal.sends(now).then(|| self.tcp_info().ok()).flatten()?;
            renewal.looks(now, &tcp, BbrInfo::of(self.fd.as_fd()))
        };
        if let Some(order) = self.with_renewal(look).flatten() {
            self.renew(order, "instead of a pause of BBR");
        }
    }

    /// Waits for what lets the sender go on; a path that falls silent meanwhile must not have BBR pause as it comes back.
    pub async fn while_sending<F: Future>(&self, wait: F) -> F::Output {
        let mut wait = pin!(wait);
        while let Some(pause) = self.with_renewal(|renewal| renewal.waits(Instant::now())).flatten() {
            match exec::timeout(pause, wait.as_mut()).await {
                Ok(outcome) => return outcome,
                Err(exec::Elapsed) => self.look_for_silence(),
            }
        }
        wait.await
    }

    fn look_for_silence(&self) {
        let Ok(tcp) = self.tcp_info() else { return };
        let bbr = BbrInfo::of(self.fd.as_fd());
        let look = |renewal: &mut Renewal| renewal.looks_for_silence(Instant::now(), &tcp, bbr);
        if let Some(order) = self.with_renewal(look).flatten() {
            self.renew(order, "the path is silent");
        }
    }

    fn with_renewal<T>(&self, act: impl FnOnce(&mut Renewal) -> T) -> Option<T> {
        let mut renewal = self.renewal.take()?;
        let outcome = act(&mut renewal);
        if !renewal.is_over() {
            self.renewal.set(Some(renewal));
        }
        Some(outcome)
    }

    /// What fails here is that of a connection that has failed, which shows elsewhere.
    fn renew(&self, order: Order, why: &'static str) {
        let socket = self.fd.as_fd();
        let outcome = match order {
            Order::BeginAnew { bandwidth } => {
                bbr::bound_pacing(socket, bandwidth).and_then(|()| bbr::begin_anew(socket))
            }
            Order::Hold { bandwidth } => bbr::bound_pacing(socket, bandwidth),
            Order::Release => bbr::bound_pacing(socket, u64::MAX),
        };
        tracing::trace!(?order, ?outcome, why, "BBR of a lane");
    }

    /// Sends all of `bytes`.
    ///
    /// # Errors
    /// The connection's error.
    pub async fn send_all(&self, mut bytes: &[u8], more: bool) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.try_send(bytes, more) {
                Ok(sent) => bytes = &bytes[sent..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.room().await?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Receives what is there into `buf`; 0 is the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there; otherwise the connection's error.
    pub fn try_recv(&self, buf: &mut [u8]) -> io::Result<usize> {
        Ok(recv(&self.fd, buf, RecvFlags::DONTWAIT)?.0)
    }

    /// Appends up to `max` received bytes to `buffer`, as far as it has room; see [`Socket::try_recv`].
    pub(super) fn try_recv_into(&self, buffer: &mut BytesMut, max: usize) -> io::Result<usize> {
        receive(self.fd.as_fd(), buffer, max)
    }

    /// Receives at least one byte, or 0 at the end of the stream.
    ///
    /// # Errors
    /// The connection's error.
    pub async fn recv_some(&self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.try_recv(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.ready(Interest::Read).await?,
                outcome => return outcome,
            }
        }
    }

    /// Fills `buf`.
    ///
    /// # Errors
    /// `UnexpectedEof` when the stream ends first; otherwise the connection's error.
    pub async fn recv_exact(&self, mut buf: &mut [u8]) -> io::Result<()> {
        while !buf.is_empty() {
            match self.recv_some(buf).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => buf = &mut buf[n..],
            }
        }
        Ok(())
    }

    /// Looks at what is there without taking it; waits for at least one byte, or 0 at the end of the stream.
    ///
    /// # Errors
    /// The connection's error.
    pub async fn peek(&self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.try_peek(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.ready(Interest::Read).await?,
                outcome => return outcome,
            }
        }
    }

    /// Looks at what is there without taking it; 0 is the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there; otherwise the connection's error.
    pub fn try_peek(&self, buf: &mut [u8]) -> io::Result<usize> {
        Ok(recv(&self.fd, buf, RecvFlags::DONTWAIT | RecvFlags::PEEK)?.0)
    }

    /// True when bytes can be sent now: on a socket that [binds late](Self::bind_late), when little waits to be sent.
    ///
    /// # Errors
    /// Those of poll(2); an error of the connection counts as room, so that the next send shows it.
    pub fn has_room(&self) -> io::Result<bool> {
        let mut asked = [PollFd::new(&self.fd, PollFlags::OUT)];
        Ok(poll(&mut asked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? > 0)
    }

    /// True while nothing was received and the peer has not closed: what an idle connection must be to be used again.
    pub fn is_quiet(&self) -> bool {
        matches!(recv(&self.fd, &mut [0; 1][..], RecvFlags::DONTWAIT | RecvFlags::PEEK), Err(Errno::AGAIN))
    }

    /// Throws up to `max` received bytes away; 0 is the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there; otherwise the connection's error.
    pub fn try_discard(&self, max: usize) -> io::Result<usize> {
        discard(self.fd.as_fd(), max)
    }

    /// Throws up to `max` received bytes away; waits for at least one, or 0 at the end of the stream.
    ///
    /// # Errors
    /// The connection's error.
    pub async fn discard(&self, max: usize) -> io::Result<usize> {
        loop {
            match self.try_discard(max) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.ready(Interest::Read).await?,
                outcome => return outcome,
            }
        }
    }

    /// The same for a payload of which `left` bytes are still to come, and that nobody waits for: the task sleeps until some
    /// [`BATCH_BYTES`] are there.
    pub async fn discard_payload(&self, left: usize) -> io::Result<usize> {
        loop {
            match self.try_discard(left) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable_by(left.min(BATCH_BYTES)).await?;
                }
                outcome => return outcome,
            }
        }
    }

    /// True once the peer has all that was sent, and the end if that was said, or there is no peer any more.
    pub fn is_acknowledged(&self) -> bool {
        self.tcp_info().map_or(true, |info| info.unacknowledged == 0 && info.not_sent_bytes == 0)
    }

    /// Says that no more is sent; what was sent still arrives.
    pub fn finish(&self) {
        let _ = rustix::net::shutdown(&self.fd, Shutdown::Write);
    }

    /// Ends the connection by a reset, so that the peer cannot take what it has for the whole.
    pub fn abort(&self) {
        #[cfg(test)]
        if super::simulated::abort(self.fd.as_fd()) {
            return;
        }
        // tcp(7): connect to AF_UNSPEC dissolves the association; Linux sends a reset if anything may be missing.
        let _ = SockRef::from(&self.fd).set_linger(Some(Duration::ZERO));
        let _ = rustix::net::connect_unspec(&self.fd);
    }
}
