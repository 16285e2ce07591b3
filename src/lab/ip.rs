//! Addresses and routes by iproute2's `ip`.
//!
//! In: lines as `ip` takes them. Out: done, or an error with what `ip` says. Called by the topology.

use std::{
    ffi::OsString,
    io::{self, Write},
    os::fd::BorrowedFd,
    process::Stdio,
};

use super::{
    host::{Host, inherit},
    topology::LabError,
};

/// Lines for one `ip -batch` inside a host.
#[derive(Debug, Default)]
pub struct Batch {
    lines: String,
}

impl Batch {
    /// One more line.
    pub fn line(&mut self, line: impl AsRef<str>) {
        self.lines.push_str(line.as_ref());
        self.lines.push('\n');
    }

    /// Runs the lines inside `host`, in order, up to the first that fails. `$PEER` stands for the network namespace
    /// `peer`.
    ///
    /// # Errors
    /// `ip` is not installed, or one line failed.
    pub fn run(&self, host: &Host, peer: Option<BorrowedFd<'_>>) -> Result<(), LabError> {
        let failed = |source| failed(host.name(), source);
        let mut command = host.command("ip");
        // Not every user's PATH has the administrator's programs.
        let mut path = std::env::var_os("PATH").unwrap_or_default();
        path.push(OsString::from(":/usr/sbin:/sbin"));
        command.env("PATH", path).args(["-batch", "-"]);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let lines = match peer {
            Some(peer) => {
                let name = inherit(&mut command, peer).map_err(failed)?;
                self.lines.replace("$PEER", &name.to_string_lossy())
            }
            None => self.lines.clone(),
        };
        let mut child = command.spawn().map_err(|error| not_started(host.name(), error))?;
        // It reads all of standard input before it ends, unless a line fails; then its message is what counts.
        let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(lines.as_bytes()));
        let output = child.wait_with_output().map_err(failed)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(LabError::Program(format!(
                "ip in {}: {}; the lines were:\n{lines}",
                host.name(),
                said.trim()
            )));
        }
        written.map_err(failed)
    }
}

fn failed(host: &str, source: io::Error) -> LabError {
    LabError::System { what: format!("ip in {host}"), source }
}

fn not_started(host: &str, error: io::Error) -> LabError {
    match error.kind() {
        io::ErrorKind::NotFound => LabError::Program("the lab needs `ip`: install iproute2".to_owned()),
        _ => failed(host, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_no_ip_is_told_what_to_install() {
        let text = |code| not_started("server", io::Error::from_raw_os_error(code)).to_string();
        assert_eq!(text(libc::ENOENT), "the lab needs `ip`: install iproute2");
        assert_eq!(text(libc::EACCES), "ip in server: Permission denied (os error 13)");
    }
}
