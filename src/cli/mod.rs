//! The command line: what can be said, and what each word starts.
//!
//! In: arguments. Out: a running role, or one clear line on standard error and a non-zero exit. Names and meaning are
//! a contract: scripts depend on them.

mod admin;
mod args;
mod attach;
mod cache;
mod check;
mod config;
mod discovery;
mod get;
mod lab;
mod path_file;
mod roles;
mod sample;
mod service;
mod signals;
mod size;
mod top;
mod tune;
mod up;

use std::process::ExitCode;

use clap::Parser;

use crate::observe::logs;

pub use args::{Arguments, Command, Global};

/// Parses the arguments of the process and runs the command.
pub fn main() -> ExitCode {
    let arguments = match config::arguments(std::env::args_os().collect()) {
        Ok(arguments) => Arguments::parse_from(arguments),
        Err(error) => {
            eprintln!("plait: {error}");
            return ExitCode::FAILURE;
        }
    };
    logs::start(&arguments.global.log, arguments.global.log_format);
    match roles::run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("plait: {error}");
            ExitCode::FAILURE
        }
    }
}
