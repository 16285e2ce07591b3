//! The log: lines of text, or a JSON object a line, on standard error.
//!
//! In: `--log` and `--log-format`. Out: a subscriber for the whole process. Called once, by the command line. Warnings that
//! strangers can cause are bounded where they arise, by [`Tally`](crate::net::Tally).

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

/// `--log-format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For programs: an object a line.
    Json,
}

/// Starts the log; `filter` was checked before.
pub fn start(filter: &str, format: LogFormat) {
    let log = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_target(false)
        .with_writer(io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(io::stderr().is_terminal()).init(),
        LogFormat::Json => log.json().flatten_event(true).with_target(true).with_ansi(false).init(),
    }
}
