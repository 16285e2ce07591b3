//! Lane counts of paths whose rate depends on the number of lanes, in virtual time.

use super::*;
use crate::mp::stripe::simulator::random::Random;

const SEEDS: u64 = 100;
const SAMPLE_SECONDS: f64 = 0.1;

/// A path: what it carries, in Mbit/s.
#[derive(Clone, Copy)]
struct Path {
    /// A single lane, because of random loss or a policer.
    lane: f64,
    /// All lanes together.
    all: f64,
    /// Standard deviation of a sample, as a share.
    noise: f64,
    round_trip: f64,
    /// How often a look at the lanes finds reason to try more.
    may_gain: f64,
    /// Others use up to this share of the path for two seconds at a time.
    cross_traffic: f64,
    /// Lanes use BBR.
    is_paced: bool,
}

const CLEAN: Path = Path {
    lane: 50.0,
    all: 50.0,
    noise: 0.05,
    round_trip: 0.1,
    may_gain: 0.02,
    cross_traffic: 0.0,
    is_paced: false,
};
const POLICED: Path = Path { lane: 10.0, all: 100.0, may_gain: 0.95, ..CLEAN };

/// What became of a path's lane count.
struct Story {
    /// When it first wanted 8 lanes.
    eight_at: f64,
    mean: f64,
    learned: usize,
    /// The most and how often the number changed.
    most: usize,
    changes: usize,
}

/// Transfers of some seconds, one after the other, for `seconds`.
fn run(paths: &[Path], seconds: f64, transfer_seconds: f64, seed: u64) -> Vec<Story> {
    let mut random = Random::new(seed);
    let mut counts: Vec<_> =
        paths.iter().map(|path| (LaneCount::new(1, LANES_MAX, path.is_paced), 1, 1.0, 0.0)).collect();
    let mut stories: Vec<_> = paths
        .iter()
        .map(|_| Story { eight_at: f64::INFINITY, mean: 0.0, learned: 1, most: 1, changes: 0 })
        .collect();
    let (mut at, mut began, mut others) = (0.0, 0.0, 0.0);
    while at < seconds {
        if random.chance(SAMPLE_SECONDS / 2.0) {
            others = random.unit();
        }
        at += SAMPLE_SECONDS;
        for (path, ((count, wanted, lanes, received), story)) in
            paths.iter().zip(counts.iter_mut().zip(&mut stories))
        {
            // New lanes come up to speed in slow start; those that are to rest do so at once.
            let pace = 1.0 - (-SAMPLE_SECONDS / (4.0 * path.round_trip)).exp();
            *lanes = f64::min(*wanted as f64, *lanes + (*wanted as f64 - *lanes) * pace);
            let rate = (path.lane * *lanes).min(path.all * (1.0 - path.cross_traffic * others));
            // Uniform, with the standard deviation asked for.
            let noise = 1.0 + path.noise * 3_f64.sqrt() * random.between(-1.0, 1.0);
            *received += rate * noise * 125_000.0 * SAMPLE_SECONDS;
            let (now, round_trip) =
                (Duration::from_secs_f64(at - began), Duration::from_secs_f64(path.round_trip));
            let may_gain = random.chance(path.may_gain);
            let before =
                std::mem::replace(wanted, count.sample(now, *received as u64, true, may_gain, round_trip));
            story.changes += usize::from(*wanted != before);
            story.most = story.most.max(*wanted);
            story.mean += *wanted as f64 * SAMPLE_SECONDS / seconds;
            story.learned = count.learned();
            if *wanted >= 8 {
                story.eight_at = story.eight_at.min(at);
            }
        }
        if at - began >= transfer_seconds {
            began = at;
            for (count, wanted, lanes, received) in &mut counts {
                *wanted = count.restart();
                (*lanes, *received) = (*wanted as f64, 0.0);
            }
        }
    }
    stories
}

fn stories(paths: &[Path], seconds: f64, transfer_seconds: f64) -> Vec<Story> {
    (0..SEEDS).flat_map(|seed| run(paths, seconds, transfer_seconds, seed)).collect()
}

/// Of so many per cent of the stories, the value is no larger.
fn percentile(stories: &[Story], percent: usize, value: impl Fn(&Story) -> f64) -> f64 {
    let mut values: Vec<_> = stories.iter().map(value).collect();
    values.sort_unstable_by(f64::total_cmp);
    values[(values.len() - 1) * percent / 100]
}

#[test]
fn a_policed_path_has_eight_lanes_within_seconds() {
    for (paths, seconds) in [(1, 2.5), (2, 2.5)] {
        let stories = stories(&vec![POLICED; paths], 40.0, 40.0);
        let eight_at = percentile(&stories, 95, |story| story.eight_at);
        println!("{paths} paths: 8 lanes after {eight_at:.1} s");
        assert!(eight_at <= seconds, "{eight_at} s");
        assert!(stories.iter().all(|story| story.learned >= 8 && story.learned <= 16));
    }
}

#[test]
fn short_transfers_learn_together() {
    let stories = stories(&[POLICED], 60.0, 2.0);
    assert!(percentile(&stories, 5, |story| story.learned as f64) >= 8.0);
}

#[test]
fn lanes_that_random_loss_limits_become_many() {
    let stories = stories(&[Path { lane: 3.0, noise: 0.3, ..POLICED }; 2], 40.0, 40.0);
    assert!(percentile(&stories, 5, |story| story.learned as f64) >= 16.0);
}

#[test]
fn a_clean_path_stays_with_one_lane() {
    // With a reason, tries take some time.
    for (name, path, most) in
        [("without reason", CLEAN, 1.15), ("with reason", Path { may_gain: 0.95, noise: 0.1, ..CLEAN }, 1.25)]
    {
        let stories = stories(&[path; 2], 300.0, 60.0);
        let mean = percentile(&stories, 95, |story| story.mean);
        println!("{name}: {mean:.3} lanes");
        assert!(mean <= most, "{name}: {mean}");
        assert!(percentile(&stories, 95, |story| story.learned as f64) < 2.0);
    }
}

#[test]
fn without_any_reason_nothing_is_tried() {
    let stories = stories(&[Path { may_gain: 0.0, ..CLEAN }; 2], 300.0, 60.0);
    assert!(stories.iter().all(|story| story.mean < 1.001));
}

#[test]
fn what_others_do_to_a_path_is_not_taken_for_a_gain_for_long() {
    let path = Path { cross_traffic: 0.7, may_gain: 0.95, ..CLEAN };
    let stories = stories(&[path; 2], 300.0, 60.0);
    let (median, most) =
        (percentile(&stories, 50, |story| story.mean), percentile(&stories, 95, |story| story.mean));
    println!("{median:.2} lanes, p95 {most:.2}");
    assert!(median <= 2.5 && most <= 8.0);
}

#[test]
fn a_paced_lane_that_fills_a_lossy_path_stays_alone_and_more_are_seldom_tried() {
    let path = Path { lane: 47.0, may_gain: 0.95, noise: 0.1, is_paced: true, ..CLEAN };
    let stories = stories(&[path; 2], 300.0, 60.0);
    let (mean, changes) = (
        percentile(&stories, 95, |story| story.mean),
        percentile(&stories, 95, |story| story.changes as f64),
    );
    println!("{mean:.3} lanes, {changes} changes");
    assert!(mean <= 1.08 && changes <= 8.0, "{mean} lanes, {changes} changes");
    assert!(stories.iter().all(|story| story.learned == 1));
}

#[test]
fn a_paced_lane_of_a_lossy_path_that_others_use_does_not_become_many() {
    let path = Path { lane: 47.0, cross_traffic: 0.7, may_gain: 0.95, noise: 0.1, is_paced: true, ..CLEAN };
    let stories = stories(&[path; 2], 60.0, 10.0);
    let mean = percentile(&stories, 95, |story| story.mean);
    println!("{mean:.2} lanes");
    assert!(mean <= 3.0, "{mean}");
}

#[test]
fn twice_the_lanes_are_kept_for_what_they_bring() {
    let (mut count, mut wanted, mut received) = (LaneCount::new(1, LANES_MAX, false), 1, 0.0);
    for tenth in 1..=300 {
        // Mbit/s, as seen over a path of 50 with 1 % loss: lanes carry more in slow start.
        let rate = match wanted {
            1 => 1.7,
            2..=4 => 12.0,
            5..=16 => 34.7,
            _ => 43.2,
        };
        received += rate * 12_500.0;
        let now = Duration::from_millis(100 * tenth);
        wanted = count.sample(now, received as u64, true, true, Duration::from_millis(100));
    }
    assert_eq!((count.learned(), wanted), (LANES_MAX, LANES_MAX));
}

#[test]
fn an_outage_is_no_reason_for_more_lanes() {
    let mut count = LaneCount::new(1, LANES_MAX, true);
    let mut received = 0;
    for tenth in 1..=150_u64 {
        // Full speed for 5 s, nothing for 4, and a lane that then needs 5 s to be as fast again.
        let share = match tenth {
            0..50 => 50,
            50..90 => 0,
            _ => (tenth - 90).min(50),
        };
        received += 12_500 * share;
        let now = Duration::from_millis(100 * tenth);
        let wanted = count.sample(now, received, true, tenth > 50, Duration::from_millis(100));
        // That it is out is known after a second.
        assert!(wanted == 1 || (51..62).contains(&tenth), "{wanted} lanes at {now:?}");
    }
}

/// When, in tenths of a second, how many lanes are wanted of a path over which so many Mbit/s come, by that time and the lanes that
/// there are.
fn changes(is_paced: bool, rate: impl Fn(u64, usize) -> f64, may_gain_after: u64) -> Vec<(u64, usize)> {
    let (mut count, mut received, mut changes) = (LaneCount::new(1, LANES_MAX, is_paced), 0.0, vec![(0, 1)]);
    for tenth in 1..=150_u64 {
        let (_, wanted) = changes[changes.len() - 1];
        received += 12_500.0 * rate(tenth, wanted);
        let (now, may_gain) = (Duration::from_millis(100 * tenth), tenth > may_gain_after);
        let next = count.sample(now, received as u64, true, may_gain, Duration::from_millis(150));
        if next != wanted {
            changes.push((tenth, next));
        }
    }
    changes
}

#[test]
fn losses_alone_are_reason_for_more_sooner_than_what_may_be_slow_start() {
    let first = |is_paced| changes(is_paced, |_, lanes| 2.0 * lanes as f64, 0)[1];
    let (unpaced, paced) = (first(false), first(true));
    assert!(unpaced.0 <= 11 && paced.0 >= 20, "{unpaced:?} {paced:?}");
}

#[test]
fn a_paced_lane_that_goes_up_and_down_is_left_alone() {
    // It has other rates every second, or the same.
    let tries = |by: f64| {
        let rate =
            |tenth: u64, lanes| (20.0 + if (tenth / 10).is_multiple_of(2) { by } else { 0.0 }) * lanes as f64;
        changes(true, rate, 0).len() - 1
    };
    assert!(tries(3.0) == 0 && tries(0.5) > 0);
}

#[test]
fn a_lone_lane_that_waits_for_timeouts_is_no_outage() {
    // After 3 s it is silent; paced ones and longer silence are an outage.
    let tried = |is_paced, silent: u64| {
        let rate = |tenth, lanes| if (30..30 + silent).contains(&tenth) { 0.0 } else { 2.0 * lanes as f64 };
        changes(is_paced, rate, 38).get(1).map_or(150, |&(tenth, _)| tenth) - silent
    };
    assert!(tried(false, 15) <= 60);
    assert!(tried(true, 15) >= 100 && tried(false, 35) >= 100);
}

#[test]
fn what_was_compared_with_slow_start_is_tried_again_as_soon_as_that_has_worn_out() {
    // More bring next to nothing; a second later one brings far less, or as much.
    let pause = |later| {
        let rate = |tenth, lanes| match lanes {
            1 if tenth < 15 => 12.0,
            1 => later,
            _ => 10.0,
        };
        let changes = changes(false, rate, 0);
        assert_eq!((changes[1].1, changes[2].1, changes[3].1), (4, 1, 4), "{changes:?}");
        changes[3].0 - changes[2].0
    };
    assert!(pause(2.0) < 12 && pause(11.0) >= 20, "{} {}", pause(2.0), pause(11.0));
}

#[test]
fn a_leap_that_brings_nearly_twice_as_much_is_kept_whole_and_one_that_brings_less_by_half() {
    // Mbit/s; sixteen lanes bring so many times what four do, and more than sixteen no more.
    let learned = |gain: f64| {
        let rate = |_, lanes| match lanes {
            1..=4 => 10.0 * lanes as f64,
            _ => 40.0 * gain,
        };
        let wanted: Vec<_> = changes(false, rate, 0).into_iter().map(|(_, lanes)| lanes).collect();
        // What is wanted after the try of 32 in which it ends.
        let after = wanted.iter().position(|&lanes| lanes == LANES_MAX).unwrap() + 1;
        wanted[after]
    };
    assert_eq!((learned(1.8), learned(1.6)), (16, 8));
}

#[test]
fn sixteen_lanes_that_slow_start_made_look_like_enough_become_more_when_it_has_worn_out() {
    // Mbit/s over a path of 50 with 1 % loss. The queue that slow start fills hides the losses, so that fewer are tried meanwhile.
    let rate = |tenth, lanes| match lanes {
        1 => 4.0,
        2..=4 => 20.0,
        5..=8 => 13.0,
        9..=16 if tenth > 65 => 27.0,
        _ => 47.0,
    };
    let (mut count, mut received, mut wanted, mut seen) =
        (LaneCount::new(1, LANES_MAX, false), 0.0, 1, vec![1]);
    for tenth in 1..=150_u64 {
        received += 12_500.0 * rate(tenth, wanted);
        let (now, may_gain) = (Duration::from_millis(100 * tenth), !(30..70).contains(&tenth));
        wanted = count.sample(now, received as u64, true, may_gain, Duration::from_millis(100));
        if seen.last() != Some(&wanted) {
            seen.push(wanted);
        }
    }
    assert_eq!(seen, [1, 4, 16, 32, 16, 8, 16, 32]);
}

#[test]
fn paced_lanes_that_are_policed_become_many() {
    for seconds in [2.0, 40.0] {
        let stories = stories(&[Path { is_paced: true, ..POLICED }; 2], 40.0, seconds);
        let learned = percentile(&stories, 5, |story| story.learned as f64);
        assert!(learned >= 8.0, "{learned} after transfers of {seconds} s");
    }
}

#[test]
fn fewer_lanes_that_bring_less_are_tried_more_and_more_seldom() {
    let mut tries = Vec::new();
    let (mut count, mut received, mut wanted) = (LaneCount::new(1, LANES_MAX, true), 0.0, 1);
    for tenth in 1..=3000_u64 {
        received += 12_500.0 * f64::min(wanted as f64 * POLICED.lane, POLICED.all);
        let now = Duration::from_millis(100 * tenth);
        // Once they fill the path nothing speaks for more.
        let may_gain = count.learned() < 10;
        let before = std::mem::replace(
            &mut wanted,
            count.sample(now, received as u64, true, may_gain, Duration::from_millis(60)),
        );
        if wanted < before && wanted < count.learned() {
            tries.push(now);
        }
    }
    assert!(count.learned() >= 10, "{}", count.learned());
    let pauses: Vec<_> = tries.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(!pauses.is_empty() && tries.len() <= 6, "{tries:?}");
    assert!(pauses.windows(2).all(|pair| pair[1] > pair[0].mul_f64(1.5)), "{pauses:?}");
}

#[test]
fn tries_are_told_of_until_they_have_come_to_something() {
    const STEP: Duration = Duration::from_millis(100);
    const TICKS: u32 = 300;
    let trying = |path: Path, may_gain: bool| -> Vec<bool> {
        let mut count = LaneCount::new(1, LANES_MAX, false);
        let mut received = 0.0;
        (1..=TICKS)
            .map(|tick| {
                let lanes = count.wanted as f64;
                received += (lanes * path.lane).min(path.all) * 1e6 / 8.0 * STEP.as_secs_f64();
                count.sample(STEP * tick, received as u64, true, may_gain, Duration::from_millis(50));
                count.is_trying(may_gain)
            })
            .collect()
    };
    assert!(!trying(CLEAN, false).contains(&true), "nothing says that more lanes would carry more");
    let policed = trying(POLICED, true);
    assert!(policed[..20].iter().all(|&is_trying| is_trying), "from the first look on");
    let last = policed.iter().take_while(|&&is_trying| is_trying).count();
    assert!(last < 100, "it comes to something within ten seconds, not {last} looks");
}
