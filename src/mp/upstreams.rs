//! Which upstream a transfer begins with, where paths end in different ones.
//!
//! In: the upstream process that each path with lanes leads to, and the path's round trip. Out: one of the processes, or
//! none where nothing is known. Called by the manager for each transfer. Paths belong together if their lanes have reached
//! the same process, however their last hops are written. No I/O.

use std::time::Duration;

/// Round trips up to this much longer than the shortest are as good.
const AS_FAST_RATIO: f64 = 1.5;
/// And by this much on short paths: a ping of a busy host varies as much.
const AS_FAST_MIN: Duration = Duration::from_millis(20);

/// The upstream process with the most live paths; among those, the ones whose fastest path is about as fast as any take
/// turns, counted by `turn`. Not `avoided`, which was just lost.
pub(super) fn choose(
    live: impl Iterator<Item = (u64, Duration)>,
    avoided: Option<u64>,
    turn: usize,
) -> Option<u64> {
    // Paths of a process, and the round trip of its fastest.
    let mut processes: Vec<(u64, usize, Duration)> = Vec::new();
    for (instance, round_trip) in live.filter(|(instance, _)| Some(*instance) != avoided) {
        match processes.iter_mut().find(|known| known.0 == instance) {
            Some((_, paths, fastest)) => {
                *paths += 1;
                *fastest = round_trip.min(*fastest);
            }
            None => processes.push((instance, 1, round_trip)),
        }
    }
    let most = processes.iter().map(|&(_, paths, _)| paths).max()?;
    processes.retain(|&(_, paths, _)| paths == most);
    let fastest = processes.iter().map(|&(_, _, round_trip)| round_trip).min()?;
    processes.retain(|&(_, _, round_trip)| round_trip <= fastest.mul_f64(AS_FAST_RATIO) + AS_FAST_MIN);
    Some(processes[turn % processes.len()].0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choices(paths: &[(u64, u64)], avoided: Option<u64>) -> Vec<Option<u64>> {
        let live = || paths.iter().map(|&(instance, ms)| (instance, Duration::from_millis(ms)));
        (0..4).map(|turn| choose(live(), avoided, turn)).collect()
    }

    #[test]
    fn the_upstream_with_the_most_and_fastest_paths_is_chosen_and_equal_ones_take_turns() {
        let (a, b) = (Some(1), Some(2));
        assert_eq!(choices(&[], None), [None; 4]);
        assert_eq!(choices(&[(1, 10), (2, 10)], None), [a, b, a, b]);
        assert_eq!(choices(&[(1, 10), (2, 90), (1, 20)], None), [a; 4]);
        assert_eq!(choices(&[(1, 10), (2, 90)], None), [a; 4], "a distant one stands by");
        assert_eq!(choices(&[(1, 100), (2, 110)], None), [a, b, a, b]);
        assert_eq!(choices(&[(1, 10), (2, 90), (1, 20)], a), [b; 4]);
        assert_eq!(choices(&[(1, 10), (1, 10)], a), [None; 4]);
    }
}
