//! Budget of a loop that its peer could keep busy without a pause.
//!
//! In: a call for each small piece of work, such as a frame. Out: now and then a pause, in which the core's other tasks run.
//! Called wherever bytes that are there already can make a task go on without waiting.

use super::yield_now;

/// A frame costs a few microseconds: so many make a millisecond, and the pause costs next to nothing of it.
const STEPS_MAX: u32 = 128;

/// See the module's description.
#[derive(Debug, Default)]
pub struct Budget {
    steps: u32,
}

impl Budget {
    /// Accounts for one piece of work.
    pub async fn spend(&mut self) {
        self.steps += 1;
        if self.steps >= STEPS_MAX {
            self.steps = 0;
            yield_now().await;
        }
    }
}
