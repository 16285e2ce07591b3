//! What the service manager is told (sd_notify(3)): ready, stopping, alive. Without one, nothing happens.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use sd_notify::NotifyState;

use crate::exec::{self, Core};

/// Says that the process runs, as soon as all cores do, and goes on to say so as long as all of them turn.
#[derive(Clone, Debug)]
pub(super) struct Service {
    /// How often each core shows that it turns, if the manager wants to know (`WatchdogSec=`).
    interval: Option<Duration>,
    /// Cores that have not started yet.
    starting: Arc<AtomicUsize>,
    /// Which cores have turned since the manager was told.
    turned: Arc<[AtomicBool]>,
}

impl Service {
    pub(super) fn new(cores: usize) -> Self {
        Self {
            // Half of it is what sd_watchdog_enabled(3) recommends; a core may be late by as much again.
            interval: sd_notify::watchdog_enabled().map(|limit| limit / 4),
            starting: Arc::new(AtomicUsize::new(cores)),
            turned: (0..cores).map(|_| AtomicBool::new(false)).collect(),
        }
    }

    /// To be called once on every core, when it is ready to serve. `announce` is called on the last one.
    pub(super) fn started(&self, core: Core, announce: impl FnOnce()) {
        if self.starting.fetch_sub(1, Ordering::AcqRel) == 1 {
            announce();
            tell(NotifyState::Ready);
        }
        if let Some(interval) = self.interval {
            exec::spawn(self.clone().turn(core, interval));
        }
    }

    async fn turn(self, core: Core, interval: Duration) {
        loop {
            exec::sleep(interval).await;
            self.turned[core.0].store(true, Ordering::Release);
            if self.turned.iter().all(|turned| turned.load(Ordering::Acquire)) {
                self.turned.iter().for_each(|turned| turned.store(false, Ordering::Release));
                tell(NotifyState::Watchdog);
            }
        }
    }
}

/// Says that the process drains.
pub(super) fn stopping() {
    tell(NotifyState::Stopping);
}

fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        // The manager acts on its own deadline.
        tracing::warn!("cannot tell the service manager: {error}");
    }
}
