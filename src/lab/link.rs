//! One emulated link: a thread between two TUN devices.
//!
//! In: packets that the kernel routes into either device. Out: the same packets from the other one, as the shaper of
//! their direction says. Called by the lab, which makes the devices. Invariant: an empty link sleeps; a busy one works
//! in rounds of 500 µs, whatever the rate of packets.

use std::{
    io::{self, IoSlice},
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    io::Errno,
};

use super::{
    punctual::make_punctual,
    segment::{Packet, VNET_BYTES},
    shape::{Counters, Direction, Shape, ShapeError},
    shaper::Shaper,
};

/// A busy thread looks at its devices once in this time: half of the millisecond that a delay may be off. Measured with a
/// flow of 100 Mbit/s: 0.15 of a core; with 250 µs it was 0.3.
const ROUND_NS: u64 = 500_000;
/// Rounds that a thread may take at once after a pause, so that a lone packet and its answer are not held up.
const ROUNDS_SAVED_MAX: u64 = 8;
/// Packets leave up to this much before they are due: half of what a virtual machine takes to wake a sleeper at each of
/// a packet's stations (50 to 150 µs), so that delays are right on average, there as on bare metal.
const EARLY_NS: u64 = 125_000;
/// Packets taken from one device in a round, so that the other direction's turn comes: 16 MiB of super-packets, far more
/// than a round's worth at the highest rate.
const READS_MAX: usize = 256;
/// The largest IP packet, and the header in front of it.
const FRAME_BYTES_MAX: usize = VNET_BYTES + 65_535;
/// Changes that wait for the thread, which takes them once a round; who sends more has to wait.
const COMMANDS_MAX: usize = 64;

/// A running link. Dropping it ends the thread and closes both devices.
#[derive(Debug)]
pub struct Link {
    /// Taken by drop only: the thread ends when it finds the other end closed.
    commands: Option<SyncSender<Command>>,
    wake: Arc<OwnedFd>,
    report: Arc<Mutex<Report>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Command {
    Set(Direction, Shape),
    Outage(Direction, bool),
}

/// What the thread tells the outside.
#[derive(Debug, Default)]
struct Report {
    counters: [Counters; 2],
    failure: Option<String>,
}

impl Link {
    /// Starts a link between two devices of [`tun::open`](super::tun::open). `forward` shapes what comes out of `a`
    /// and goes into `b`. The thread is named `name` (15 bytes of it are visible) and pinned to `cpu`.
    ///
    /// Errors: a shape that [`Shape::check`] refuses (`InvalidInput`), or no thread.
    pub fn start(
        name: &str,
        a: OwnedFd,
        b: OwnedFd,
        forward: Shape,
        backward: Shape,
        cpu: Option<usize>,
    ) -> io::Result<Self> {
        for shape in [&forward, &backward] {
            shape.check().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        }
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let report = Arc::new(Mutex::new(Report::default()));
        let (commands, received) = sync_channel(COMMANDS_MAX);
        let (woken, reported) = (wake.clone(), report.clone());
        let thread = thread::Builder::new().name(name.into()).spawn(move || {
            make_punctual(cpu);
            let mut mover = Mover::new([a, b], [forward, backward], woken, reported);
            if let Err(error) = mover.run(&received) {
                lock(&mover.report).failure = Some(error.to_string());
            }
        })?;
        Ok(Self { commands: Some(commands), wake, report, thread: Some(thread) })
    }

    /// Changes what a direction does, also for the packets that are waiting for its bottleneck. Those that have passed
    /// it keep their delay.
    pub fn set(&self, direction: Direction, shape: Shape) -> Result<(), ShapeError> {
        shape.check()?;
        self.command(Command::Set(direction, shape));
        Ok(())
    }

    /// Begins (`true`) or ends an outage of a direction: everything inside is dropped, and everything that comes.
    pub fn outage(&self, direction: Direction, down: bool) {
        self.command(Command::Outage(direction, down));
    }

    /// What the link has done so far: forward, backward.
    pub fn stats(&self) -> [Counters; 2] {
        lock(&self.report).counters
    }

    /// Why the thread has ended by itself: a device has gone, or its descriptor is none of a device. None while it runs.
    pub fn failure(&self) -> Option<String> {
        lock(&self.report).failure.clone()
    }

    fn command(&self, command: Command) {
        // A thread that has ended takes no commands; `failure` says why.
        if self.commands.as_ref().is_some_and(|commands| commands.send(command).is_ok()) {
            self.wake();
        }
    }

    fn wake(&self) {
        // Fails only when as many wake-ups are pending as a u64 can count.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.commands = None;
        self.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(report: &Mutex<Report>) -> MutexGuard<'_, Report> {
    report.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the thread owns.
struct Mover {
    devices: [OwnedFd; 2],
    /// By direction: that of index 0 reads from device 0.
    shapers: [Shaper<Rc<Packet>>; 2],
    refused: [u64; 2],
    wake: Arc<OwnedFd>,
    report: Arc<Mutex<Report>>,
    started: Instant,
    /// When the next round may begin.
    round_ns: u64,
    frame: Box<[u8]>,
}

impl Mover {
    fn new(
        devices: [OwnedFd; 2],
        shapes: [Shape; 2],
        wake: Arc<OwnedFd>,
        report: Arc<Mutex<Report>>,
    ) -> Self {
        Self {
            devices,
            shapers: shapes.map(|shape| Shaper::new(shape, fastrand::u64(..))),
            refused: [0; 2],
            wake,
            report,
            started: Instant::now(),
            round_ns: 0,
            frame: vec![0; FRAME_BYTES_MAX].into(),
        }
    }

    /// Moves packets until the link is dropped (`Ok`) or a device fails.
    fn run(&mut self, commands: &Receiver<Command>) -> io::Result<()> {
        loop {
            let began_ns = self.now_ns();
            if !self.obey(commands, began_ns) {
                return Ok(());
            }
            let mut has_more = false;
            for direction in 0..2 {
                has_more |= self.take_in(direction)?;
            }
            for direction in 0..2 {
                self.give_out(direction)?;
            }
            self.publish();
            if !has_more {
                self.wait(began_ns)?;
            }
        }
    }

    fn now_ns(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    /// Takes the commands that have come. False: the link has been dropped.
    fn obey(&mut self, commands: &Receiver<Command>, now_ns: u64) -> bool {
        loop {
            match commands.try_recv() {
                Ok(Command::Set(direction, shape)) => self.shapers[direction as usize].set(now_ns, shape),
                Ok(Command::Outage(direction, down)) => self.shapers[direction as usize].outage(now_ns, down),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Reads what a device has. True: there may be more.
    fn take_in(&mut self, direction: usize) -> io::Result<bool> {
        let now_ns = self.now_ns();
        for _ in 0..READS_MAX {
            let len = match rustix::io::read(&self.devices[direction], &mut *self.frame) {
                Ok(len) => len,
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            if let Some(packet) = Packet::parse(&self.frame[..len]) {
                let arrival = *packet.arrival();
                self.shapers[direction].offer(now_ns, Rc::new(packet), &arrival);
            }
        }
        Ok(true)
    }

    /// Writes what is due into the other device.
    fn give_out(&mut self, direction: usize) -> io::Result<()> {
        let now_ns = self.now_ns() + EARLY_NS;
        let device = &self.devices[1 - direction];
        while let Some(delivery) = self.shapers[direction].deliver(now_ns) {
            let written = match delivery.packet.run(&delivery.segments) {
                None => rustix::io::write(device, delivery.packet.frame()),
                Some((headers, payload)) => {
                    rustix::io::writev(device, &[IoSlice::new(headers.as_slice()), IoSlice::new(payload)])
                }
            };
            match written {
                Ok(_) => {}
                // Down for now, or out of memory: what a cable does to a host that is switched off.
                Err(Errno::IO | Errno::NOMEM | Errno::AGAIN | Errno::INVAL) => {
                    self.refused[direction] += u64::from(delivery.segments.end - delivery.segments.start);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn publish(&self) {
        let mut report = lock(&self.report);
        for direction in 0..2 {
            report.counters[direction] =
                Counters { refused: self.refused[direction], ..self.shapers[direction].counters() };
        }
    }

    /// Waits until the next round may begin, and then until there is something to do.
    fn wait(&mut self, began_ns: u64) -> io::Result<()> {
        self.round_ns = (self.round_ns + ROUND_NS).max(began_ns.saturating_sub(ROUNDS_SAVED_MAX * ROUND_NS));
        let early_ns = self.round_ns.saturating_sub(self.now_ns());
        if early_ns > 0 {
            thread::sleep(Duration::from_nanos(early_ns));
        }
        let due_ns = self.shapers.iter().filter_map(Shaper::next_ns).min();
        let left_ns = due_ns.map(|due_ns| due_ns.saturating_sub(self.now_ns() + EARLY_NS));
        if left_ns == Some(0) {
            return Ok(());
        }
        let timeout = left_ns.and_then(|left_ns| Timespec::try_from(Duration::from_nanos(left_ns)).ok());
        let mut ready = [
            PollFd::from_borrowed_fd(self.wake.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.devices[0].as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.devices[1].as_fd(), PollFlags::IN),
        ];
        match poll(&mut ready, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if !ready[0].revents().is_empty() {
            let _ = rustix::io::read(&self.wake, &mut [0u8; 8]);
        }
        Ok(())
    }
}
