//! `cargo xtask deb`: a Debian package with units, manual pages and completions.

use std::{fs, io, path::Path, process::Command};

/// Why there is no package.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// Something could not be run or written.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the kernel says.
        source: io::Error,
    },
    /// A program ended with an error.
    #[error("`{0}` failed, see above")]
    Failed(String),
}

/// Name of the script of each shell, where its completions are looked for.
const COMPLETIONS: [(&str, &str); 3] = [("bash", "plait.bash"), ("zsh", "_plait"), ("fish", "plait.fish")];

/// Builds the binary that is measured or packed.
pub fn build() -> Result<(), PackageError> {
    run("cargo", &["build", "--locked", "--release", "--package", "plait"])
}

/// Builds everything into `target/`, the package into `output`; with the binary of the tests, which is there sooner, for them.
pub fn deb(debug: bool, output: &Path) -> Result<(), PackageError> {
    let (profile, binary) =
        if debug { ("dev", "target/debug/plait") } else { ("release", "target/release/plait") };
    run("cargo", &["build", "--locked", "--profile", profile, "--package", "plait"])?;
    run(binary, &["man", "target/man"])?;
    let dir = Path::new("target/completions");
    let io = |what: &Path| {
        let what = what.display().to_string();
        |source| PackageError::Io { what, source }
    };
    fs::create_dir_all(dir).map_err(io(dir))?;
    for (shell, file) in COMPLETIONS {
        let script = Command::new(binary).args(["completions", shell]).output().map_err(io(dir))?;
        let file = dir.join(file);
        fs::write(&file, script.stdout).map_err(io(&file))?;
    }
    let output = output.display().to_string();
    let arguments = ["deb", "--package", "plait", "--no-build", "--locked", "--profile", profile];
    run("cargo", &[&arguments[..], &["--output", &output]].concat())
}

fn run(program: &str, arguments: &[&str]) -> Result<(), PackageError> {
    let text = format!("{program} {}", arguments.join(" "));
    let status = Command::new(program).args(arguments).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(PackageError::Failed(text)),
        Err(source) => Err(PackageError::Io { what: text, source }),
    }
}
