//! The network of a simulation: links with a delay and a rate, connections along them, and all that can befall both.
//!
//! In: dials of simulated processes, and harm. Out: sockets of the kernel's that behave like TCP connections over such a
//! link: each end is one of a socket pair, and tasks of the world move the bytes between the other ends, late, in pieces,
//! or not at all. So everything above sees real descriptors, which splice, tee and fill up. Called by [`Socket`] in place
//! of what only TCP can do, and by the simulation, which owns the links.
//!
//! What TCP hides is not simulated: packets are not lost, doubled or reordered, a connection is late instead.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    future::Future,
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
    pin::{Pin, pin},
    rc::{Rc, Weak},
    time::Duration,
};

use futures_util::future::select;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::ioctl_fionread,
    net::{AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, recv, send, socketpair},
};
use tokio::sync::Notify;

use super::{Socket, TcpInfo, pipe::forget_idle};
use crate::exec::{
    self,
    on_simulator::{WORLD, passed, random, spawn_in},
};

/// What a connection has on its way in one direction at most, as a congestion window.
const IN_FLIGHT_BYTES_MAX: usize = 512 << 10;
/// Moved at once at most: what the kernel hands over when a fast network is busy.
const SEGMENT_BYTES_MAX: usize = 64 << 10;
/// After a silence the sender's next try may come this much later: half of what TCP's backed-off timer may add.
const RETRY_LATE_MAX: Duration = Duration::from_millis(400);

thread_local! {
    static NETWORK: RefCell<Option<Rc<Network>>> = const { RefCell::new(None) };
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From who has dialled.
    Up = 0,
    /// To who has dialled.
    Down = 1,
}

impl Way {
    fn back(self) -> Self {
        match self {
            Self::Up => Self::Down,
            Self::Down => Self::Up,
        }
    }
}

/// See the module's description.
#[derive(Default)]
pub(crate) struct Network {
    listeners: RefCell<BTreeMap<SocketAddr, Listener>>,
    /// By the descriptor that a process has of it.
    connections: RefCell<BTreeMap<RawFd, (Weak<Connection>, Way)>>,
    /// In how many of 16 connections splice works.
    splicing: Cell<u8>,
}

#[derive(Clone)]
struct Listener {
    link: Rc<Link>,
    /// None: the host answers that nobody listens.
    accept: Option<Rc<dyn Fn(Socket, SocketAddr)>>,
}

/// One leg of a path, in both directions.
pub(crate) struct Link {
    delay: Cell<Duration>,
    bytes_per_s: Cell<f64>,
    /// Bytes are moved in pieces of at most so many.
    segment_bytes: Cell<usize>,
    silent: [Cell<bool>; 2],
    /// When the last byte that was given to it has left.
    free_at: [Cell<Duration>; 2],
    changed: Notify,
    connections: RefCell<Vec<Weak<Connection>>>,
}

struct Connection {
    link: Rc<Link>,
    /// Of who has dialled, then of who has accepted.
    ends: [End; 2],
    ways: [OneWay; 2],
    is_over: Cell<bool>,
    over: Notify,
}

struct End {
    /// The network's side.
    net: Socket,
    /// A copy of what the process has.
    process: OwnedFd,
    /// It was ended by a reset.
    has_aborted: Cell<bool>,
}

#[derive(Default)]
struct OneWay {
    queue: RefCell<VecDeque<(Duration, Carried)>>,
    in_flight: Cell<usize>,
    arrived: Cell<u64>,
    stirred: Notify,
    room: Notify,
}

enum Carried {
    Bytes(Vec<u8>),
    Fin,
    Reset,
}

impl Network {
    /// The network of this thread's simulation; `splicing` of 16 connections splice.
    pub(crate) fn start(splicing: u8) -> Rc<Self> {
        forget_idle();
        let network = Rc::new(Self::default());
        network.splicing.set(splicing);
        NETWORK.set(Some(network.clone()));
        network
    }

    /// The simulation is over.
    pub(crate) fn stop() {
        NETWORK.set(None);
    }

    /// Connections to `address` run along `link` and are given to `accept`; without it they are refused.
    pub(crate) fn listen(
        &self,
        address: SocketAddr,
        link: &Rc<Link>,
        accept: Option<Rc<dyn Fn(Socket, SocketAddr)>>,
    ) {
        self.listeners.borrow_mut().insert(address, Listener { link: link.clone(), accept });
    }

    fn connect(self: &Rc<Self>, link: &Rc<Link>, accept: &dyn Fn(Socket, SocketAddr)) -> io::Result<OwnedFd> {
        let pair = || {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        };
        let end = || -> io::Result<(OwnedFd, End)> {
            let (process, net) = pair()?;
            let copy = process.try_clone()?;
            Ok((process, End { net: Socket::new(net)?, process: copy, has_aborted: Cell::new(false) }))
        };
        let ((near, near_end), (far, far_end)) = (end()?, end()?);
        let connection = Rc::new(Connection {
            link: link.clone(),
            ends: [near_end, far_end],
            ways: Default::default(),
            is_over: Cell::new(false),
            over: Notify::new(),
        });
        for (fd, way) in [(&near, Way::Up), (&far, Way::Down)] {
            self.connections.borrow_mut().insert(fd.as_raw_fd(), (Rc::downgrade(&connection), way));
        }
        link.connections.borrow_mut().retain(|other| other.strong_count() > 0);
        link.connections.borrow_mut().push(Rc::downgrade(&connection));
        for way in [Way::Up, Way::Down] {
            let (sends, receives) = (connection.clone(), connection.clone());
            spawn_in(WORLD, async move {
                sends.unless_over(sends.send(way)).await;
            });
            spawn_in(WORLD, async move {
                receives.unless_over(receives.receive(way)).await;
            });
        }
        let peer = SocketAddr::from(([10, 0, 9, 9], random(|random| random.u16(1024..))));
        accept(Socket::new(far)?, peer);
        Ok(near)
    }

    fn find(&self, fd: BorrowedFd<'_>) -> Option<(Rc<Connection>, Way)> {
        let connections = self.connections.borrow();
        let (connection, way) = connections.get(&fd.as_raw_fd())?;
        Some((connection.upgrade()?, *way))
    }
}

impl Link {
    /// A link that works.
    pub(crate) fn new(delay: Duration, bytes_per_s: f64, segment_bytes: usize) -> Rc<Self> {
        Rc::new(Self {
            delay: Cell::new(delay),
            bytes_per_s: Cell::new(bytes_per_s),
            segment_bytes: Cell::new(segment_bytes.min(SEGMENT_BYTES_MAX)),
            silent: Default::default(),
            free_at: Default::default(),
            changed: Notify::new(),
            connections: RefCell::default(),
        })
    }

    /// Nothing comes through that way any more, or all does again.
    pub(crate) fn silence(&self, way: Way, is_silent: bool) {
        self.silent[way as usize].set(is_silent);
        self.changed.notify_waiters();
    }

    /// From now on it carries so much.
    pub(crate) fn set_rate(&self, bytes_per_s: f64) {
        self.bytes_per_s.set(bytes_per_s);
    }

    /// The rate it has now, in bytes per second.
    pub(crate) fn rate(&self) -> f64 {
        self.bytes_per_s.get()
    }

    /// Connections along it that stand.
    pub(crate) fn connections(&self) -> usize {
        self.connections.borrow().iter().filter(|connection| connection.strong_count() > 0).count()
    }

    /// Resets the connections along it that `choose` picks by their number.
    pub(crate) fn reset(&self, choose: impl Fn(usize) -> bool) {
        let connections: Vec<_> = self.connections.borrow().iter().filter_map(Weak::upgrade).collect();
        for (number, connection) in connections.iter().enumerate() {
            if choose(number) {
                connection.reset();
            }
        }
    }

    /// Waits until `bytes` have left.
    async fn transmit(&self, way: Way, bytes: usize) {
        let free_at = &self.free_at[way as usize];
        let took = Duration::from_secs_f64(bytes as f64 / self.bytes_per_s.get());
        free_at.set(free_at.get().max(passed()) + took);
        let wait = free_at.get().saturating_sub(passed());
        if wait > Duration::from_micros(200) {
            exec::sleep(wait).await;
        }
    }

    /// Waits until something comes through.
    async fn passes(&self, way: Way) {
        let mut has_waited = false;
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            if !self.silent[way as usize].get() {
                break;
            }
            has_waited = true;
            changed.await;
        }
        if has_waited {
            let late = random(|random| random.f64());
            exec::sleep(RETRY_LATE_MAX.mul_f64(late)).await;
        }
    }
}

impl End {
    /// The process has closed it without having read all: TCP answers that by a reset.
    fn was_closed_unread(&self) -> bool {
        let mut asked = [PollFd::new(&self.net, PollFlags::HUP)];
        let _ = poll(&mut asked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        asked[0].revents().contains(PollFlags::HUP) && ioctl_fionread(&self.process).unwrap_or(0) > 0
    }
}

impl Connection {
    async fn unless_over(&self, work: impl Future<Output = ()>) {
        let mut over = pin!(self.over.notified());
        over.as_mut().enable();
        if !self.is_over.get() {
            select(pin!(work), over).await;
        }
    }

    async fn send(&self, way: Way) {
        let (end, one_way) = (&self.ends[way as usize], &self.ways[way as usize]);
        let segment_bytes = self.link.segment_bytes.get();
        let mut buffer = vec![0; segment_bytes];
        loop {
            while one_way.in_flight.get() >= IN_FLIGHT_BYTES_MAX {
                one_way.room.notified().await;
            }
            let carried = match end.net.recv_some(&mut buffer).await {
                Ok(0) if end.has_aborted.get() || end.was_closed_unread() => Carried::Reset,
                Ok(0) => Carried::Fin,
                Ok(bytes) => {
                    self.link.transmit(way, bytes).await;
                    one_way.in_flight.set(one_way.in_flight.get() + bytes);
                    Carried::Bytes(buffer[..bytes].to_vec())
                }
                Err(_) => Carried::Reset,
            };
            let is_last = !matches!(carried, Carried::Bytes(_));
            let jitter = random(|random| random.f64()) / 50.0;
            let arrival = passed() + self.link.delay.get().mul_f64(1.0 + jitter);
            one_way.queue.borrow_mut().push_back((arrival, carried));
            one_way.stirred.notify_one();
            if is_last {
                return;
            }
        }
    }

    async fn receive(&self, way: Way) {
        let (end, one_way) = (&self.ends[way.back() as usize], &self.ways[way as usize]);
        loop {
            let next = one_way.queue.borrow_mut().pop_front();
            let Some((arrival, carried)) = next else {
                one_way.stirred.notified().await;
                continue;
            };
            let wait = arrival.saturating_sub(passed());
            if !wait.is_zero() {
                exec::sleep(wait).await;
            }
            self.link.passes(way).await;
            match carried {
                Carried::Bytes(bytes) => {
                    // A word to who has closed is answered by a reset.
                    if end.net.send_all(&bytes, false).await.is_err() {
                        return self.reset();
                    }
                    one_way.arrived.set(one_way.arrived.get() + bytes.len() as u64);
                    one_way.in_flight.set(one_way.in_flight.get() - bytes.len());
                    one_way.room.notify_one();
                }
                Carried::Fin => return end.net.finish(),
                Carried::Reset => return self.reset(),
            }
        }
    }

    /// Both processes see a reset behind what has arrived.
    fn reset(&self) {
        if self.is_over.replace(true) {
            return;
        }
        for end in &self.ends {
            // unix(7) resets a connection whose other end is closed with something unread in it.
            let _ = send(&end.process, b"x", SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        }
        self.over.notify_waiters();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(network) = network() {
            network.connections.borrow_mut().retain(|_, (connection, _)| connection.strong_count() > 0);
        }
    }
}

fn network() -> Option<Rc<Network>> {
    NETWORK.try_with(|network| network.try_borrow().ok().and_then(|network| network.clone())).ok().flatten()
}

/// Whether this thread simulates.
pub(crate) fn is_running() -> bool {
    network().is_some()
}

/// Whether splice is to work on the next socket.
pub(super) fn may_splice() -> bool {
    network().is_none_or(|network| random(|random| random.u8(..16)) < network.splicing.get())
}

type Dialling = Pin<Box<dyn Future<Output = io::Result<OwnedFd>>>>;

/// Connects `address`, if this thread simulates.
pub(super) fn dial(address: SocketAddr) -> Option<Dialling> {
    let network = network()?;
    Some(Box::pin(async move {
        let Some(Listener { link, .. }) = network.listeners.borrow().get(&address).cloned() else {
            return Err(io::ErrorKind::HostUnreachable.into());
        };
        for way in [Way::Up, Way::Down] {
            exec::sleep(link.delay.get()).await;
            link.passes(way).await;
        }
        let accept = network.listeners.borrow().get(&address).and_then(|listener| listener.accept.clone());
        match accept {
            Some(accept) => network.connect(&link, &*accept),
            None => Err(io::ErrorKind::ConnectionRefused.into()),
        }
    }))
}

/// Ends a simulated connection by a reset; false if it is none.
pub(super) fn abort(fd: BorrowedFd<'_>) -> bool {
    let Some(network) = network() else { return false };
    if let Some((connection, way)) = network.find(fd) {
        connection.ends[way as usize].has_aborted.set(true);
    }
    let _ = rustix::net::shutdown(fd, Shutdown::Both);
    true
}

/// What the kernel would say of a simulated connection.
pub(super) fn tcp_info(fd: BorrowedFd<'_>) -> Option<TcpInfo> {
    let (connection, way) = network()?.find(fd)?;
    let rtt = 2 * connection.link.delay.get();
    let acknowledged_bytes = connection.ways[way as usize].arrived.get();
    let received_bytes = connection.ways[1 - way as usize].arrived.get();
    Some(TcpInfo { rtt, rtt_min: rtt, acknowledged_bytes, received_bytes, ..TcpInfo::default() })
}

/// Drops up to `len` received bytes; see [`super::discard`].
pub(super) fn discard(fd: BorrowedFd<'_>, len: usize) -> io::Result<usize> {
    let mut scratch = [0; 16 << 10];
    let max = len.min(scratch.len());
    Ok(recv(fd, &mut scratch[..max], RecvFlags::DONTWAIT)?.0)
}
