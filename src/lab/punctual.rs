//! Threads that keep time on a busy machine.
//!
//! In: the CPU to stay on. Out: nothing; the calling thread is woken sooner. Called by the thread of a link. Invariant:
//! what the system refuses is done without: packets are then later, which the link counts.

use std::num::NonZeroU64;

use core_affinity::CoreId;

/// Pins the calling thread to `cpu` and asks for exact timers and for the lowest real-time priority (root only): the
/// hosts at its ends must not be able to make a cable wait for the CPU that they use themselves.
pub fn make_punctual(cpu: Option<usize>) {
    if let Some(id) = cpu {
        core_affinity::set_for_current(CoreId { id });
    }
    // The default of 50 µs would be added to every wait.
    let _ = rustix::thread::set_current_timer_slack(Some(NonZeroU64::MIN));
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: the kernel only reads one `sched_param`, which outlives the call; 0 is the calling thread.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &priority) };
}
