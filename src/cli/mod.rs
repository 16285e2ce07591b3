//! The command line: what can be said, and what each word starts.
//!
//! In: arguments. Out: a running role, or one clear line on standard error and a non-zero exit. Names and meaning are
//! a contract: scripts depend on them.

mod args;
mod cache;
mod get;
mod lab;
mod path_file;
mod roles;
mod sample;
mod service;
mod signals;
mod tune;
mod up;

use std::process::ExitCode;

use clap::Parser;

pub use args::{Arguments, Command, Global};

/// Parses the arguments of the process and runs the command.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start_log(&arguments.global.log);
    match roles::run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("plait: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start_log(filter: &str) {
    use std::io::IsTerminal;
    // The filter was checked when the arguments were parsed.
    let filter = tracing_subscriber::EnvFilter::new(filter);
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
}
