//! SIGTERM, SIGINT and SIGHUP of a role, and SIGPIPE of what only prints.

use std::{
    sync::{Arc, atomic::AtomicBool},
    thread,
};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGPIPE, SIGTERM},
    flag,
    iterator::Signals,
};
use tokio::sync::watch;

use super::{roles::RunError, service};

/// Reads settings again; says in the log what came of it.
pub(super) type Reload = Box<dyn FnMut() + Send>;

/// Ends the process in silence once nobody reads what it prints any more, as in `plait top --once | head`: Rust's own
/// programs panic there. Only for commands that print and end; a role must outlive a broken pipe.
pub(super) fn end_with_reader() -> Result<(), RunError> {
    flag::register_conditional_default(SIGPIPE, Arc::new(AtomicBool::new(true)))
        .map(drop)
        .map_err(RunError::Signals)
}

/// Turns true at SIGTERM or SIGINT; a second one ends the process at once. At SIGHUP `reload` runs, on a thread of its own,
/// which may block.
pub(super) fn stop_signal(reload: Option<Reload>) -> Result<watch::Receiver<bool>, RunError> {
    let hang_up = reload.as_ref().map(|_| SIGHUP);
    let mut signals =
        Signals::new([SIGTERM, SIGINT].into_iter().chain(hang_up)).map_err(RunError::Signals)?;
    let (stop, stopped) = watch::channel(false);
    let mut reload = reload.unwrap_or_else(|| Box::new(|| {}));
    thread::spawn(move || {
        for signal in signals.forever() {
            match signal {
                SIGHUP => reload(),
                _ if *stop.borrow() => std::process::exit(130),
                _ => {
                    service::stopping();
                    tracing::info!("stopping: what runs may end; a second signal ends it at once");
                    // Receivers may be gone already; then so is the process, soon.
                    stop.send_replace(true);
                }
            }
        }
    });
    Ok(stopped)
}
