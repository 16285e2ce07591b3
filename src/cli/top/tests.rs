use ratatui::{Terminal, backend::TestBackend};

use super::{screen::draw, *};
use crate::observe::PathOnWire;

fn snapshot(now_s: f64, received_bytes: u64) -> Snapshot {
    let path = |name: &str, received_bytes| PathOnWire {
        name: name.into(),
        received_bytes,
        lanes: 1,
        ..PathOnWire::default()
    };
    Snapshot {
        role: "downstream".into(),
        now_s,
        paths: vec![
            path("a:1,u:9", received_bytes),
            PathOnWire { down: true, lanes: 0, ..path("b:2,u:9", 0) },
        ],
        limits: [("lanes".to_owned(), 3), ("kept".to_owned(), 0)].into(),
        ..Snapshot::default()
    }
}

#[test]
fn a_screen_shows_rates_and_a_path_that_is_down() {
    let mut view = View::new(snapshot(10.0, 1_000_000));
    view.update(snapshot(12.0, 3_500_000));
    let lines = view.lines();
    assert!(
        lines.iter().any(|line| line.starts_with("path a:1,u:9, state up, rate 10.0 Mbit/s")),
        "{lines:?}"
    );
    assert!(lines.iter().any(|line| line == "limits hit: lanes 3"), "{lines:?}");
    for (width, height) in [(140, 40), (100, 24), (20, 5), (1, 1)] {
        for shows_lanes in [false, true] {
            view.shows_lanes = shows_lanes;
            let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
            terminal.draw(|frame| draw(&view, frame)).unwrap();
            let screen = terminal.backend().to_string();
            let is_wide = width >= 100;
            assert_eq!(screen.contains("10.0 Mbit/s") && screen.contains("DOWN"), is_wide, "{screen}");
        }
    }
}

#[test]
fn a_path_keeps_its_history_when_another_one_goes() {
    let mut view = View::new(snapshot(10.0, 0));
    view.update(snapshot(11.0, 125_000));
    let mut next = snapshot(12.0, 0);
    next.paths.remove(0);
    view.update(next);
    view.update(snapshot(13.0, 250_000));
    let histories: Vec<_> = view.strands.iter().map(|strand| strand.history.clone()).collect();
    assert_eq!(histories, [vec![0], vec![0, 0, 0]], "the first one is new again");
}
