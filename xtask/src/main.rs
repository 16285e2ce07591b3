//! `cargo xtask`: what a developer runs now and then.

mod chain;
mod flamegraph;
mod package;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

/// What a developer of Plait runs now and then.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Records each role under load with perf and draws it into flamegraphs/
    Flamegraph {
        /// Which: relay, upstream, downstream-miss, downstream-spread, downstream-hit, downstream-mptcp [default: all]
        names: Vec<String>,
        /// Seconds to record
        #[arg(long, default_value_t = 8)]
        seconds: u32,
        /// Where the SVGs go
        #[arg(long, default_value = "flamegraphs")]
        output: PathBuf,
        /// The binary to record; release builds have line tables
        #[arg(long, default_value = "target/release/plait")]
        binary: PathBuf,
    },
    /// Builds a Debian package into target/debian/ (cargo install cargo-deb)
    Deb,
}

fn main() -> ExitCode {
    let failed: Option<String> = match Arguments::parse().task {
        Task::Flamegraph { names, seconds, output, binary } => {
            flamegraph::draw(&names, seconds, &output, &binary).err().map(|error| error.to_string())
        }
        Task::Deb => package::deb().err().map(|error| error.to_string()),
    };
    match failed {
        None => ExitCode::SUCCESS,
        Some(error) => {
            eprintln!("cargo xtask: {error}");
            ExitCode::FAILURE
        }
    }
}
