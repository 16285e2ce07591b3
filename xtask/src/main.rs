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
        /// Another binary to record than the release build of this tree
        #[arg(long)]
        binary: Option<PathBuf>,
    },
    /// Builds a Debian package into target/debian/ (cargo install cargo-deb)
    Deb {
        /// Packs the debug build: for tests of the package
        #[arg(long)]
        debug: bool,
        /// Where it goes: a directory, which ends with /, or a file
        #[arg(long, default_value = "target/debian/")]
        output: PathBuf,
    },
}

fn main() -> ExitCode {
    let failed: Option<String> = match Arguments::parse().task {
        Task::Flamegraph { names, seconds, output, binary } => {
            let built = if binary.is_none() { package::build() } else { Ok(()) };
            let binary = binary.unwrap_or_else(|| "target/release/plait".into());
            match built {
                Ok(()) => {
                    flamegraph::draw(&names, seconds, &output, &binary).err().map(|error| error.to_string())
                }
                Err(error) => Some(error.to_string()),
            }
        }
        Task::Deb { debug, output } => package::deb(debug, &output).err().map(|error| error.to_string()),
    };
    match failed {
        None => ExitCode::SUCCESS,
        Some(error) => {
            eprintln!("cargo xtask: {error}");
            ExitCode::FAILURE
        }
    }
}
