//! What people write: the command line, path files, key files, scenarios.

use clap::{CommandFactory, FromArgMatches};
use plait::{
    cli::Arguments,
    lab::{scenario::Scenario, shape::Shape},
    wire::{key::Key, path_source::PathSource},
};

fn paths(text: &str) {
    match PathSource::parse_lines(text) {
        Ok(paths) => {
            let lines: String = paths.iter().map(|path| format!("{path}\n")).collect();
            assert_eq!(PathSource::parse_lines(&lines), Ok(paths));
        }
        Err((line, error)) => {
            assert!((1..=text.lines().count()).contains(&line), "line {line}");
            assert!(error.to_string().len() < 1000, "{error}");
        }
    }
}

fn keys(text: &str) {
    if let Ok(keys) = Key::parse_all(text) {
        let texts: String = keys.iter().map(Key::to_text).collect();
        let again = Key::parse_all(&texts).expect("what was written");
        assert!(again.iter().map(Key::to_text).eq(keys.iter().map(Key::to_text)));
    }
}

fn scenario(text: &str) {
    match Scenario::parse("fuzz.toml", text) {
        Ok(scenario) => {
            for path in &scenario.paths {
                let Shape { rate_mbit, queue_bytes, .. } = path.shape();
                assert!(rate_mbit > 0.0 && queue_bytes > 0);
            }
            assert!(scenario.goodput_mbit_max() > 0.0 && !scenario.congctl().is_empty());
        }
        Err(error) => assert!(error.to_string().contains("fuzz.toml"), "{error}"),
    }
}

fn command_line(command: &mut clap::Command, text: &str) {
    let words = std::iter::once("plait").chain(text.split_whitespace());
    if let Ok(matches) = command.try_get_matches_from_mut(words) {
        // Help is no mistake, and some rules are checked behind the grammar.
        let _ = Arguments::from_arg_matches(&matches);
    }
}

/// The first byte chooses the reader.
#[test]
fn settings() {
    // Built once: that takes clap longer than to read a line.
    let command = std::sync::Mutex::new(Arguments::command());
    bolero::check!().for_each(|bytes: &[u8]| {
        let Some((choice, text)) = bytes.split_first() else { return };
        let Ok(text) = std::str::from_utf8(text) else { return };
        match choice {
            b'p' => paths(text),
            b'k' => keys(text),
            b's' => scenario(text),
            _ => command_line(&mut command.lock().expect("no panic before"), text),
        }
    });
}
