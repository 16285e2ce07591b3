//! What a downstream fetches before it says that it listens.

use plait::lab::{
    Lab, Scenario,
    chain::{Chain, ChainOptions, Content},
};

use crate::{SMALL, possible};

/// Bytes that came over each path while a chain was started, its downstream with this flag.
fn bytes_at_the_start(flag: &str) -> Vec<u64> {
    let lab = Lab::build(&Scenario::parse("small.toml", SMALL).unwrap()).unwrap();
    let mut options = ChainOptions::new(&lab, env!("CARGO_BIN_EXE_plait").into());
    options.content = Content::Generated(1);
    options.flags.push(("downstream".into(), flag.into()));
    let _chain = Chain::start(&lab, &options).unwrap();
    lab.counters().iter().map(|directions| directions.iter().map(|one| one.bytes).sum()).collect()
}

#[test]
fn a_downstream_warms_its_paths_with_as_many_bytes_as_it_may() {
    if !possible() {
        return;
    }
    let [none, beside, two, most] =
        ["--warm-up=0", "--take-over", "--warm-up=2M", "--warm-up=64MiB"].map(bytes_at_the_start);
    assert!(none.iter().all(|&bytes| bytes < 100_000), "without filler: {none:?}");
    assert!(beside.iter().all(|&bytes| bytes < 100_000), "the paths are another's: {beside:?}");
    assert!(two.iter().all(|&bytes| bytes > 300_000), "each path carries some of it: {two:?}");
    assert!((2_000_000..4_000_000).contains(&two.iter().sum::<u64>()), "2 MB: {two:?}");
    // 2 x 20 Mbit/s for eight seconds, and a little that is under way then.
    let bound = 2 * 20_000_000 / 8 * 10;
    assert!((1_000_000..bound).contains(&most.iter().sum::<u64>()), "it ends by itself: {most:?}");
}
