//! Lanes that stand in the way of their own transfer: frames that may not be parked, in front of the one that is next.
//!
//! In: looks at a frame that is left unread. Out: whether its lane is to be given up. Called by `producer`. Invariants: no I/O
//! and no clock; no lane is given up while the client takes anything, or could, or while its frame may be parked.
//!
//! A lane is first in, first out, and a frame that was lost is sent again behind whatever is on its new lane already. At the
//! bound of what may be parked that is never read, so the frame that would make room never comes, and all wait for ever.
//!
//! Giving these lanes up ends it, and takes no memory beyond the bound: what they had not brought is lost then, and the
//! upstream sends lost frames lowest first over the lanes that take their place. These begin empty. So the frame that is next,
//! if it is on no lane that still brings something, is the first of one of them, and a frame that is next goes to the client
//! without being parked. Each round of this moves the client by a frame at least; as the lost frames come in order, it is
//! rarely more than one for each fault of a path.

use std::time::Duration;

use crate::exec::Instant;

/// Several times what the upstream needs to see that a path stands still: until then the frame that is next may yet come by
/// itself, and later it is among the lost ones.
const JAM_MAX: Duration = Duration::from_secs(3);

/// One frame's wait; see the module's description.
#[derive(Debug, Default)]
pub(super) struct Jam {
    /// When it began, and what the client had taken then.
    began: Option<(Instant, u64)>,
}

impl Jam {
    /// Whether it has lasted too long. `is_full`: the frame waits because no more may be parked, and for nothing else; the
    /// client has taken so many bytes.
    pub(super) fn lasts(&mut self, is_full: bool, taken: u64, now: Instant) -> bool {
        let (since, _) = match self.began {
            Some(began @ (_, before)) if is_full && before == taken => began,
            _ => *self.began.insert((now, taken)),
        };
        now.duration_since(since) > JAM_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(50);

    /// After how many looks, of `looks`, the lane is given up.
    fn given_up(looks: u32, look: impl Fn(u32) -> (bool, u64)) -> Option<u32> {
        let (mut jam, start) = (Jam::default(), Instant::now());
        (0..looks).find(|&step| {
            let (is_full, taken) = look(step);
            jam.lasts(is_full, taken, start + STEP * step)
        })
    }

    #[test]
    fn a_lane_that_stands_still_at_the_bound_is_given_up() {
        let looks = JAM_MAX.as_millis() / STEP.as_millis();
        assert_eq!(given_up(1000, |_| (true, 7)), Some(looks as u32 + 1));
    }

    #[test]
    fn a_lane_is_kept_while_the_client_takes_something() {
        assert_eq!(given_up(1000, |step| (true, u64::from(step / 50))), None);
    }

    #[test]
    fn a_lane_that_waits_for_something_else_is_kept() {
        assert_eq!(given_up(1000, |_| (false, 7)), None);
        assert_eq!(given_up(1000, |step| (step % 50 > 0, 7)), None);
    }
}
