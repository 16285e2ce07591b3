//! Cross-core mail: a bounded lock-free inbox per core.
//!
//! In: closures from any thread. Out: each runs on its core, in order of arrival. Invariant: a full inbox refuses, it
//! never grows and never blocks the sender.

use std::{fmt, future::poll_fn, sync::Arc, task::Poll};

use crossbeam_queue::ArrayQueue;
use futures_util::task::AtomicWaker;
use tokio::sync::watch;

use super::Core;

/// Letters waiting in one inbox. A letter starts a producer or hands over a connection, so 4096 is more than the
/// transfers a core could start before it reads its mail again; at 16 bytes a letter the inbox takes 64 KiB.
const INBOX_LETTERS_MAX: usize = 4096;

/// Letters delivered before the other tasks of the core get their turn.
const LETTERS_PER_TURN: usize = 64;

/// A closure on its way to another core.
pub type Mail = Box<dyn FnOnce() + Send>;

/// The inbox of the core is full; the letter comes back.
pub struct MailFull(pub Mail);

impl fmt::Debug for MailFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MailFull")
    }
}

struct Inbox {
    letters: ArrayQueue<Mail>,
    reader: AtomicWaker,
}

/// All inboxes of a run. Clones share them.
#[derive(Clone)]
pub struct Mesh {
    inboxes: Arc<[Inbox]>,
    closing: Arc<watch::Sender<bool>>,
}

impl Mesh {
    pub(super) fn new(cores: usize) -> Self {
        let inbox = |_| Inbox { letters: ArrayQueue::new(INBOX_LETTERS_MAX), reader: AtomicWaker::new() };
        Self { inboxes: (0..cores).map(inbox).collect(), closing: Arc::new(watch::Sender::new(false)) }
    }

    /// How many cores take part.
    pub fn cores(&self) -> usize {
        self.inboxes.len()
    }

    /// Sends `letter` to `core`; callable from every thread.
    ///
    /// # Errors
    /// [`MailFull`] gives the letter back when the inbox holds its maximum.
    pub fn post(&self, core: Core, letter: Mail) -> Result<(), MailFull> {
        let inbox = &self.inboxes[core.0];
        inbox.letters.push(letter).map_err(MailFull)?;
        inbox.reader.wake();
        Ok(())
    }

    /// Ends the run: [`Mesh::closed`] resolves on every core.
    pub(super) fn close(&self) {
        self.closing.send_replace(true);
    }

    /// Resolves when a core could not start: a process that runs on some of its cores only would lose every connection
    /// that the kernel gives to the others.
    pub(super) async fn closed(&self) {
        // The sender lives in this mesh.
        let _ = self.closing.subscribe().wait_for(|closing| *closing).await;
    }

    /// Opens the letters of `core` for ever; runs as a task of that core.
    pub(super) async fn deliver(&self, core: Core) {
        let inbox = &self.inboxes[core.0];
        loop {
            poll_fn(|cx| {
                inbox.reader.register(cx.waker());
                if inbox.letters.is_empty() { Poll::Pending } else { Poll::Ready(()) }
            })
            .await;
            for _ in 0..LETTERS_PER_TURN {
                match inbox.letters.pop() {
                    Some(letter) => letter(),
                    None => break,
                }
            }
            if !inbox.letters.is_empty() {
                super::yield_now().await;
            }
        }
    }
}
