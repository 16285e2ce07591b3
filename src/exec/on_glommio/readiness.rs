//! Readiness on a glommio core: one epoll instance whose own readiness goes through glommio's ring.
//!
//! In: the waits of every [`Watch`] of the core. Out: their wakers are woken. Called by `on_glommio`, which runs
//! [`Readiness::serve`] as a task of the core. glommio 0.9 offers no readiness of a foreign descriptor, but a poll for
//! reading goes out for every new `TcpStream`; [`readable`] uses that on the epoll descriptor.
//!
//! Invariant: a registration is one-shot and names only interests that someone waits for or has waited for, so a
//! descriptor nobody asks about wakes nobody; and it is gone from the epoll instance before its `Watch` is.

use std::{
    cell::{Cell, OnceCell, RefCell},
    future::poll_fn,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_util::AsyncRead;
use glommio::{net::TcpStream, timer::Timer};
use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
    io::{Errno, fcntl_dupfd_cloexec},
};

use crate::exec::Interest;

/// Events taken from the kernel at once: 256 × 12 bytes fit a page; what is left over comes with the next turn.
const EVENTS_PER_TURN: usize = 256;

/// Turns that find events before the ring is entered again. Each one saves the ring's round trip (several system
/// calls) while the core is busy; timers and mail wait for that many turns.
const TURNS_PER_RING: usize = 16;

/// How often the epoll instance is looked at while no descriptor is free for [`readable`]: the granularity that
/// `exec::sleep` promises.
const OUT_OF_DESCRIPTORS_PAUSE: Duration = Duration::from_millis(1);

/// The epoll instance of one core.
pub(super) struct Readiness {
    epoll: OwnedFd,
    /// Indexed by the registered descriptor number: dense, small, and unique within an epoll instance.
    registered: RefCell<Vec<Option<Rc<Registration>>>>,
    /// Kept between the turns for their memory.
    turn: RefCell<Turn>,
}

#[derive(Default)]
struct Turn {
    events: Vec<epoll::Event>,
    wakers: Vec<Waker>,
    /// Fired for one interest while another is still awaited.
    unarmed: Vec<Rc<Registration>>,
}

impl Readiness {
    pub(super) fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self { epoll, registered: RefCell::default(), turn: RefCell::default() })
    }

    /// Wakes whoever's descriptor became ready, for ever.
    pub(super) async fn serve(self: Rc<Self>) {
        loop {
            if readable(self.epoll.as_fd()).await.is_err() {
                Timer::new(OUT_OF_DESCRIPTORS_PAUSE).await;
            }
            for _ in 0..TURNS_PER_RING {
                if !self.turn() {
                    break;
                }
                // Those that were woken go first: most arm their descriptor again, with one call for all interests.
                glommio::executor().yield_now().await;
                self.rearm();
            }
        }
    }

    /// Takes one batch of events and wakes its waiters; false when there was none.
    fn turn(&self) -> bool {
        let mut turn = self.turn.borrow_mut();
        let Turn { events, wakers, unarmed } = &mut *turn;
        events.clear();
        events.reserve(EVENTS_PER_TURN);
        // EINTR is the only failure a valid instance knows; the events stay for the next turn.
        let taken = epoll::wait(&self.epoll, spare_capacity(events), Some(&Timespec::default()));
        if matches!(taken, Ok(0) | Err(_)) {
            return false;
        }
        let registered = self.registered.borrow();
        for event in &*events {
            let Some(Some(registration)) = registered.get(event.data.u64() as usize) else { continue };
            registration.fire(event.flags, wakers);
            if !registration.awaited.get().is_empty() {
                unarmed.push(registration.clone());
            }
        }
        drop(registered);
        // A waker may be anyone's code: nothing is borrowed while it runs.
        let mut woken = std::mem::take(wakers);
        drop(turn);
        woken.drain(..).for_each(Waker::wake);
        self.turn.borrow_mut().wakers = woken;
        true
    }

    /// Arms what is still awaited of descriptors that fired for another interest.
    fn rearm(&self) {
        let mut unarmed = std::mem::take(&mut self.turn.borrow_mut().unarmed);
        let mut wakers = Vec::new();
        for registration in unarmed.drain(..) {
            // A failure is for the waiters to see: they wake, ask again and get it as their own.
            if registration.arm(&self.epoll).is_err() {
                registration.fire(registration.awaited.get(), &mut wakers);
            }
        }
        self.turn.borrow_mut().unarmed = unarmed;
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Registers `fd` and arms it for `interest`.
    fn register(&self, fd: RawFd, interest: Flags) -> io::Result<Rc<Registration>> {
        let Ok(slot) = usize::try_from(fd) else { return Err(Errno::BADF.into()) };
        // epoll(7) takes a pair of number and open file only once; a second watcher gets a number of its own.
        let own = if matches!(self.registered.borrow().get(slot), Some(Some(_))) {
            // SAFETY: whoever made the `Watch` keeps `fd` open for as long as the `Watch` lives, so during this call.
            Some(fcntl_dupfd_cloexec(unsafe { BorrowedFd::borrow_raw(fd) }, 0)?)
        } else {
            None
        };
        let fd = own.as_ref().map_or(fd, AsRawFd::as_raw_fd);
        let slot = own.as_ref().map_or(slot, |own| own.as_raw_fd() as usize);
        let registration = Rc::new(Registration {
            fd,
            _own: own,
            awaited: Cell::new(interest),
            armed: Cell::new(interest),
            fired: Cell::new(Flags::empty()),
            waiters: RefCell::default(),
        });
        let key = epoll::EventData::new_u64(slot as u64);
        epoll::add(&self.epoll, registration.as_fd(), key, interest | Flags::ONESHOT)?;
        let mut registered = self.registered.borrow_mut();
        if registered.len() <= slot {
            registered.resize(slot + 1, None);
        }
        registered[slot] = Some(registration.clone());
        Ok(registration)
    }

    #[cfg(test)]
    pub(super) fn registrations(&self) -> usize {
        self.registered.borrow().iter().flatten().count()
    }

    fn unregister(&self, registration: &Registration) {
        // The turn that is under way may hold it in `unarmed`: it must not arm a number that is free again.
        registration.awaited.set(Flags::empty());
        let listed = self.registered.borrow_mut()[registration.fd as usize].take();
        // It fails only where the owner closed the descriptor first, which unregistered it as well.
        let _ = epoll::delete(&self.epoll, registration.as_fd());
        drop(listed);
    }
}

type Flags = epoll::EventFlags;

/// One descriptor in the epoll instance. Flags are those of the three interests.
struct Registration {
    fd: RawFd,
    /// The descriptor itself where `fd` is a duplicate made here.
    _own: Option<OwnedFd>,
    /// Waited for and not fired yet.
    awaited: Cell<Flags>,
    /// What the kernel watches now: nothing between an event and the next arming.
    armed: Cell<Flags>,
    /// Fired and not yet told to a waiter.
    fired: Cell<Flags>,
    waiters: RefCell<[Option<Waker>; 3]>,
}

impl Registration {
    /// Takes an event, which has disarmed the descriptor.
    fn fire(&self, event: Flags, wakers: &mut Vec<Waker>) {
        let awaited = self.awaited.get();
        // As in poll(2), an error or a hang-up is an answer to every question.
        let gone = event.intersects(Flags::ERR | Flags::HUP);
        let fired = if gone { awaited } else { awaited & event };
        self.armed.set(Flags::empty());
        self.awaited.set(awaited - fired);
        self.fired.set(self.fired.get() | fired);
        let mut waiters = self.waiters.borrow_mut();
        for interest in [Interest::Read, Interest::Write, Interest::HangUp] {
            if fired.contains(flags(interest)) {
                wakers.extend(waiters[interest.slot()].take());
            }
        }
    }

    /// Has the kernel watch for all that is awaited.
    fn arm(&self, epoll: &OwnedFd) -> io::Result<()> {
        let awaited = self.awaited.get();
        if awaited != self.armed.get() {
            let key = epoll::EventData::new_u64(self.fd as u64);
            epoll::modify(epoll, self.as_fd(), key, awaited | Flags::ONESHOT)?;
            self.armed.set(awaited);
        }
        Ok(())
    }
}

impl AsFd for Registration {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: `fd` is `_own`, or the descriptor of a `Watch`, whose maker keeps it open for as long as the `Watch`
        // lives; a registration without a `Watch` awaits nothing and makes no call.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }
}

/// epoll(7) takes the numbers of poll(2).
fn flags(interest: Interest) -> Flags {
    Flags::from_bits_retain(interest.poll_mask())
}

/// What `exec::Watch` is on this backend.
pub(in crate::exec) struct Watch {
    readiness: Rc<Readiness>,
    fd: RawFd,
    registration: OnceCell<Rc<Registration>>,
}

impl Watch {
    pub(super) fn on(readiness: Rc<Readiness>, fd: RawFd) -> Self {
        Self { readiness, fd, registration: OnceCell::new() }
    }

    pub(in crate::exec) fn poll_ready(
        &self,
        interest: Interest,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let flag = flags(interest);
        let registration = match self.registration.get() {
            Some(registration) => registration,
            None => {
                let registration = self.readiness.register(self.fd, flag)?;
                self.registration.get_or_init(|| registration)
            }
        };
        let fired = registration.fired.get();
        if fired.contains(flag) {
            registration.fired.set(fired - flag);
            return Poll::Ready(Ok(()));
        }
        match &mut registration.waiters.borrow_mut()[interest.slot()] {
            Some(waiter) => waiter.clone_from(cx.waker()),
            empty => *empty = Some(cx.waker().clone()),
        }
        registration.awaited.set(registration.awaited.get() | flag);
        if !registration.armed.get().contains(flag)
            && let Err(error) = registration.arm(&self.readiness.epoll)
        {
            registration.awaited.set(registration.awaited.get() - flag);
            return Poll::Ready(Err(error));
        }
        Poll::Pending
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(registration) = self.registration.get() {
            self.readiness.unregister(registration);
        }
    }
}

/// Waits until `fd`, which is no socket, is readable; the wait itself stands in glommio's ring.
///
/// # Errors
/// EMFILE or ENFILE: there is no descriptor for a duplicate of `fd`.
pub(super) async fn readable(fd: BorrowedFd<'_>) -> io::Result<()> {
    let duplicate = fcntl_dupfd_cloexec(fd, 0)?;
    // SAFETY: the duplicate is owned here and given away. That it is no stream does no harm: the stream polls it when
    // it is made, and when that poll fires it calls recv(2), which answers ENOTSOCK.
    let mut stream = unsafe { TcpStream::from_raw_fd(duplicate.into_raw_fd()) };
    let _not_a_socket = poll_fn(|cx| Pin::new(&mut stream).poll_read(cx, &mut [0])).await;
    Ok(())
}
