//! A deadline for something that is waited for again and again and hardly ever missed.
//!
//! In: a future and how long it may take. Out: its output in time, or [`Elapsed`]. Invariant: no wait ends in [`Elapsed`]
//! before its time is over. The timer is not taken back when a wait ends: it rings for nobody, or serves the waits
//! that follow, and is set again only when it rings. So a wait costs two looks at the clock, not a timer.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::Poll,
    time::Duration,
};

use super::{Elapsed, Instant, sleep};

/// See the module's description.
#[derive(Default)]
pub struct Patience(Option<Bell>);

struct Bell {
    rings_at: Instant,
    sleep: Pin<Box<dyn Future<Output = ()>>>,
}

impl Bell {
    fn at(rings_at: Instant, now: Instant) -> Self {
        Self { rings_at, sleep: Box::pin(sleep(rings_at.saturating_duration_since(now))) }
    }
}

impl Patience {
    /// Waits for `future`, at most for `time`. The future is dropped when the time is over.
    ///
    /// # Errors
    /// [`Elapsed`] when it is.
    pub async fn wait<F: Future>(&mut self, time: Duration, future: F) -> Result<F::Output, Elapsed> {
        let deadline = Instant::now() + time;
        let mut future = pin!(future);
        poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(output));
            }
            loop {
                let bell = match &mut self.0 {
                    Some(bell) if bell.rings_at <= deadline => bell,
                    bell => bell.insert(Bell::at(deadline, Instant::now())),
                };
                if bell.sleep.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                self.0 = None;
                if Instant::now() >= deadline {
                    return Poll::Ready(Err(Elapsed));
                }
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;
    use crate::exec::{Backend, Config, available_cpus, run};

    #[test]
    fn a_timer_that_stands_serves_waits_that_end_later_and_sooner() {
        for backend in [Backend::TokioUring, Backend::Glommio] {
            run(&Config { backend, cpus: vec![available_cpus()[0]] }, |_| async {
                let mut patience = Patience::default();
                let short = Duration::from_millis(20);
                assert_eq!(patience.wait(short, ready(1)).await, Ok(1));
                for time in [10 * short, short, 2 * short] {
                    // Leaves a timer behind.
                    let _ = patience.wait(time, super::super::timeout(short / 4, pending::<()>())).await;
                    let began = Instant::now();
                    assert_eq!(patience.wait(2 * short, pending::<()>()).await, Err(Elapsed));
                    assert!(began.elapsed() >= 2 * short);
                }
            })
            .unwrap();
        }
    }
}
