use super::*;

const SMALL: &str = r#"
name = "small"
stands-for = "a cable"
[[path]]
rate-mbit = 50
rtt-ms = 10
"#;

fn refusal(text: &str) -> String {
    Scenario::parse("x.toml", text).unwrap_err().to_string()
}

#[test]
fn every_built_in_scenario_is_right_and_named_like_its_file() {
    let all = Scenario::built_in().unwrap();
    for (scenario, (name, _)) in all.iter().zip(BUILT_IN) {
        assert_eq!(scenario.name, *name);
    }
    let mut files: Vec<_> = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/bench/scenarios"))
        .unwrap()
        .map(|file| file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    files.sort();
    let mut names: Vec<_> = all.iter().map(|scenario| scenario.name.clone()).collect();
    names.sort();
    assert_eq!(files, names, "a file that is not built in");
}

#[test]
fn defaults() {
    let scenario = Scenario::parse("x.toml", SMALL).unwrap();
    let path = &scenario.paths[0];
    assert_eq!((path.loss, path.burst, path.jitter_ms, path.flow_mbit), (0.0, 1.0, 0.0, None));
    assert_eq!(path.queue_ms(), 25.0);
    assert_eq!(EmulatedPath { rtt_ms: 200.0, ..path.clone() }.queue_ms(), 200.0);
    assert_eq!(scenario.congctl(), "bbr");
    assert_eq!(scenario.lanes.per_path, None);
    assert_eq!(scenario.goodput_mbit_max(), 0.965 * 50.0);
}

#[test]
fn everything_can_be_said() {
    let text = r#"
name = "all"
stands-for = "everything"
congctl = "reno"
[lanes]
cc = ["cubic", "bbr"]
per-path = 4
[[path]]
rate-mbit = 0.5
rtt-ms = 10.5
loss = 0.01
burst = 4
jitter-ms = 2
queue-ms = 30
flow-mbit = 0.25
[[event]]
at = 1
path = 1
down = true
[[event]]
at = 2.5
path = 1
down = false
rate-mbit = 5
rtt-ms = 20
loss = 0.5
"#;
    let scenario = Scenario::parse("x.toml", text).unwrap();
    assert_eq!(scenario.congctl(), "reno");
    assert_eq!((scenario.lanes.cc[0].as_str(), scenario.lanes.per_path), ("cubic", Some(4)));
    let after = scenario.paths[0].changed(&scenario.events[1]);
    assert_eq!((after.rate_mbit, after.rtt_ms, after.loss, after.burst), (5.0, 20.0, 0.5, 4.0));
    assert!((after.queue_ms() - 3.0).abs() < 1e-9, "the same bytes at ten times the rate");
}

#[test]
fn refusals_name_file_key_and_rule() {
    for (from, to, words) in [
        (
            "rate-mbit = 50",
            "rate-mbit = 0",
            "x.toml: path[1].rate-mbit is 0, but must be from 0.1 to 10000 Mbit/s",
        ),
        ("rate-mbit = 50", "rate-mbit = nan", "path[1].rate-mbit is NaN"),
        ("rtt-ms = 10", "rtt-ms = 10\nloss = 5", "path[1].loss is 5, but must be from 0 to 0.9"),
        ("rtt-ms = 10", "rtt-ms = 10\njitter-ms = 6", "path[1].jitter-ms is 6, but must be from 0 to 5 ms"),
        ("rtt-ms = 10", "rtt-ms = 10\nburst = 0", "path[1].burst is 0"),
        ("rtt-ms = 10", "rtt-ms = 10\nflow-mbit = 60", "path[1].flow-mbit is 60"),
        ("rtt-ms = 10", "rtt-ms = 10\nqueue-ms = 0", "path[1].queue-ms is 0"),
        ("\"small\"", "\"Not So\"", "name is Not So, but must be 1 to 40 of a-z"),
        ("\"a cable\"", "\" \"", "stands-for"),
        ("rtt-ms = 10", "rtt-ms = 10\n[lanes]\ncc = []", "lanes.cc"),
        ("rtt-ms = 10", "rtt-ms = 10\n[[event]]\nat = 1\npath = 1", "event[1] is without effect"),
        ("rtt-ms = 10", "rtt-ms = 10\n[[event]]\nat = 1\npath = 0\ndown = true", "event[1].path is 0"),
        ("rtt-ms = 10", "rtt-ms = 10\n[[event]]\nat = 1\npath = 2\ndown = true", "event[1].path is 2"),
        ("rtt-ms = 10", "rtt-ms = 10\n[[event]]\nat = 1\npath = 1\nloss = 2", "event[1].loss is 2"),
        (
            "rtt-ms = 10",
            "rtt-ms = 10\n[[event]]\nat = 1\npath = 1\nrelay = \"melt\"",
            "unknown variant `melt`",
        ),
        (
            "rtt-ms = 10",
            "rtt-ms = 10\n[[event]]\nat = 1\npath = 1\nloss = 0.1\ndirection = \"to-client\"",
            "event[1].direction is alone, but must be beside down",
        ),
        ("rtt-ms = 10", "latency = 10", "unknown field `latency`"),
        ("rtt-ms = 10", "", "missing field `rtt-ms`"),
        ("rtt-ms = 10", "rtt-ms =", "TOML parse error at line"),
    ] {
        let said = refusal(&SMALL.replace(from, to));
        assert!(said.starts_with("x.toml: ") && said.contains(words), "{to}: {said}");
    }
    let without_paths = refusal("name = \"none\"\nstands-for = \"nothing\"\npath = []");
    assert!(without_paths.contains("the number of [[path]] tables is 0"), "{without_paths}");
}

#[test]
fn an_unknown_name_is_told_the_known_ones() {
    let said = Scenario::load("no-such").unwrap_err().to_string();
    assert!(said.contains("no-such") && said.contains("two-equal"), "{said}");
}
