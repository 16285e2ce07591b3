//! Keeps a pool warm: the first lanes, pings, new lanes in the place of lost ones, and the end of those nobody needs.
//!
//! In: time, and what disturbs the pool. Out: lanes on the shelf. Invariants: a path that fails is dialled with growing
//! pauses; a lane that answers no ping is closed.

use std::{pin::pin, rc::Rc, time::Duration};

use futures_util::future::{Either, join_all, select};

use super::{DialError, Place, Pool};
use crate::{
    exec::{self, Instant},
    lanes::{LaneError, PathReport},
    wire::route::Transport,
};

/// A lane is pinged after it was quiet this long: below the 30 s after which mobile networks' NATs forget a connection.
const PING_AFTER: Duration = Duration::from_secs(15);
/// A PONG later than this means a dead path: three times the longest round trip of a geostationary satellite.
const PONG_DEADLINE: Duration = Duration::from_secs(3);
/// Pings of a new lane: a process that has just started answers the first one late, by milliseconds.
const FIRST_PINGS: usize = 3;
/// To a path as long as this they make no difference: one ping is enough.
const LONG_ROUND_TRIP: Duration = Duration::from_millis(20);
/// Lanes beyond the warm ones are closed after being idle this long.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// First pause after a failed dial; doubles up to [`BACKOFF_MAX`], with up to half of it added at random.
const BACKOFF_MIN: Duration = Duration::from_millis(250);
/// A path that comes back is used again at most this much later.
const BACKOFF_MAX: Duration = Duration::from_secs(15);

/// Why a lane was not added to the warm ones.
#[derive(Debug, thiserror::Error)]
enum WarmUpError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error(transparent)]
    Lane(#[from] LaneError),
}

impl Pool {
    /// Resolves once the first warm lanes stand, or the path has failed to bring them.
    pub async fn tried(&self) {
        self.tried.wait().await;
    }

    /// Keeps the pool warm for as long as the process runs: a task of the core.
    pub async fn keep(self: Rc<Self>) {
        let mut backoff = BACKOFF_MIN;
        while !self.closing.get() {
            self.check_idle().await;
            let mut pause = PING_AFTER;
            let missing = self.config.lanes_warm.saturating_sub(self.open.get());
            if missing > 0 {
                let outcomes = join_all((0..missing).map(|_| self.warm_up())).await;
                self.tried.set();
                match outcomes.into_iter().collect::<Result<(), _>>() {
                    Ok(()) => {
                        backoff = BACKOFF_MIN;
                        continue;
                    }
                    Err(error) => {
                        tracing::debug!("{error}");
                        self.dial_if_awaited();
                        pause = jittered(backoff);
                        backoff = (backoff * 2).min(BACKOFF_MAX);
                    }
                }
            }
            // Requests may have been sooner.
            self.tried.set();
            // A lane that is lost is replaced at once, unless dialling fails anyway.
            let disturbed = async {
                self.disturbed.notified().await;
                if backoff > BACKOFF_MIN {
                    std::future::pending::<()>().await;
                }
            };
            let hung_up = async {
                // With one lane more on the shelf it begins anew, and watches that, too.
                while let Either::Left(_) = select(pin!(self.shelved.notified()), pin!(self.hung_up())).await
                {
                }
            };
            let waited = exec::timeout(pause, select(pin!(disturbed), pin!(hung_up)))
                .await
                .map(|first| matches!(first, Either::Right(_)));
            if waited == Ok(true) {
                // Whoever closes all lanes as soon as they stand must not be dialled without a pause.
                exec::sleep(jittered(BACKOFF_MIN)).await;
            }
        }
    }

    /// Dials one lane, measures its round trip and shelves it. A lane that answers no ping counts as a failed dial, or
    /// it would be dialled again without a pause.
    async fn warm_up(self: &Rc<Self>) -> Result<(), WarmUpError> {
        let lane = self.dial(Place::take(self)).await?;
        let pings = async {
            for _ in 0..FIRST_PINGS {
                if lane.ping(PONG_DEADLINE).await? >= LONG_ROUND_TRIP {
                    break;
                }
            }
            Ok::<_, LaneError>(())
        };
        match pings.await {
            Ok(()) => {
                // By now the path manager has had a few round trips for its subflows.
                if self.path.spec().transport() == Transport::Mptcp {
                    let PathReport { name, subflows, fell_back, .. } = self.path.report();
                    tracing::info!(path = name, subflows, fallback = fell_back, "an MPTCP lane stands");
                }
                self.shelve(Rc::new(lane));
                Ok(())
            }
            Err(error) => {
                tracing::warn!("{error}");
                drop(lane);
                self.lane_gone();
                Err(error.into())
            }
        }
    }

    /// Closes lanes that are dead or not needed and pings those that were quiet for long.
    async fn check_idle(&self) {
        let now = Instant::now();
        let mut due = Vec::new();
        {
            let mut idle = self.idle.borrow_mut();
            for lane in std::mem::take(&mut *idle) {
                let quiet = now.duration_since(lane.quiet_since());
                let unused = now.duration_since(lane.unused_since());
                let surplus = unused > IDLE_MAX && self.open.get() > self.config.lanes_warm;
                if surplus || !lane.is_quiet() {
                    drop(lane);
                    self.open.set(self.open.get() - 1);
                } else if quiet >= PING_AFTER / 2 {
                    due.push(lane);
                } else {
                    idle.push(lane);
                }
            }
        }
        self.note_warmth();
        let pings = due.into_iter().map(|lane| async move {
            match lane.ping(PONG_DEADLINE).await {
                Ok(_) => self.shelve(lane),
                Err(error) => {
                    self.report(&error);
                    drop(lane);
                    self.lane_gone();
                }
            }
        });
        futures_util::future::join_all(pings).await;
    }

    fn report(&self, error: &LaneError) {
        tracing::info!("{error}; it is dialled again");
    }
}

/// `pause` and up to half of it more, so that many edges do not dial a relay that restarts in the same instant.
fn jittered(pause: Duration) -> Duration {
    let mut random = [0; 2];
    // Without randomness there is no jitter, which is harmless.
    let _ = exec::fill_random(&mut random);
    pause + pause.mul_f64(f64::from(u16::from_be_bytes(random)) / f64::from(u16::MAX) / 2.0)
}
