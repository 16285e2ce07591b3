//! Starts processes from a thread that lives as long as this process.
//!
//! In: commands of [`Host::command`](super::host::Host::command), whose processes the kernel kills when the thread that
//! started them ends. Out: their processes. Called by the chain: events start roles anew from threads that end long
//! before the roles may. Invariant: what was started here ends with this process at the latest.

use std::{
    io,
    process::{Child, Command},
    sync::{
        LazyLock,
        mpsc::{Sender, channel},
    },
};

type Started = (Command, io::Result<Child>);

static STARTER: LazyLock<Sender<(Command, Sender<Started>)>> = LazyLock::new(|| {
    let (jobs, received) = channel::<(Command, Sender<Started>)>();
    std::thread::spawn(move || {
        for (mut command, answer) in received {
            let child = command.spawn();
            // Whoever asked waits for it.
            let _ = answer.send((command, child));
        }
    });
    jobs
});

/// Starts `command`, which comes back to be started again.
///
/// # Errors
/// Those of [`Command::spawn`].
pub(super) fn spawn(command: Command) -> io::Result<(Command, Child)> {
    let gone = || io::Error::other("the thread that starts processes has ended");
    let (answer, started) = channel();
    STARTER.send((command, answer)).map_err(|_| gone())?;
    let (command, child) = started.recv().map_err(|_| gone())?;
    Ok((command, child?))
}
