//! Connections to the root, kept between responses.
//!
//! In: connections whose last response was read to its end. Out: the one that was used last, if it is still good. Called
//! by `fetch` and `transfer` on every core. Invariant: at most [`IDLE_MAX`] wait, none is handed out after
//! [`IDLE_TIME_MAX`], and none that has anything to read.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use crate::{
    exec::Instant,
    net::{Shared, Socket},
};

/// 256: as many transfers as may end in the same moment on a busy upstream; each waiting connection costs the root one,
/// and nginx has 512 for each of its workers by default.
const IDLE_MAX: usize = 256;
/// 30 s: below the 75 s after which nginx closes, and the 60 s of S3-style stores, so that few die on the shelf.
const IDLE_TIME_MAX: Duration = Duration::from_secs(30);

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct RootPool {
    idle: Mutex<Vec<(Shared, Instant)>>,
}

impl RootPool {
    /// A connection on this core, the youngest first.
    pub(super) fn take(&self) -> Option<Socket> {
        loop {
            let (connection, since) = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
            let connection = Socket::on_this_core(connection);
            if since.elapsed() < IDLE_TIME_MAX && connection.is_quiet() {
                return Some(connection);
            }
        }
    }

    /// Keeps a connection for later, in place of the oldest if there are too many.
    pub(super) fn give(&self, connection: Shared) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let expired = idle.iter().take_while(|(_, since)| since.elapsed() >= IDLE_TIME_MAX).count();
        let surplus = usize::from(idle.len() >= IDLE_MAX);
        idle.drain(..expired.max(surplus));
        idle.push((connection, Instant::now()));
    }
}
