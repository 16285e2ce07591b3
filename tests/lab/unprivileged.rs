//! The lab of a user without any rights, in user namespaces.
//!
//! Root becomes nobody for this, with a /dev/net/tun of nobody's own in a mount namespace: as open, or as closed, as the test
//! wants it, whatever this machine's is like. Who is not root runs these tests, and all others, without rights anyway.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
};

use tempfile::TempDir;

use crate::{
    SMALL,
    missing::{installed, skipped},
    possible,
};

/// Arguments: the device's mode, where to put it, the command.
const AS_NOBODY: &str = r#"
mode=$1 dir=$2; shift 2
mount -t tmpfs -o mode=755,size=64k none "$dir" || exit
mknod -m "$mode" "$dir/tun" c 10 200 || exit
mount --bind "$dir/tun" /dev/net/tun || exit
exec setpriv --reuid=65534 --regid=65534 --clear-groups "$@"
"#;
/// Whether the lab must work for this user: not asked of Plait, whose own idea of it is on trial.
const IS_POSSIBLE: &str =
    r#"test "$(id -u)" != 0 && : <>/dev/net/tun && unshare --user --map-root-user --net true"#;

/// A directory that nobody can read, with a binary and a scenario.
struct Ground(TempDir);

impl Ground {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(dir.path().join("dev")).unwrap();
        fs::write(dir.path().join("small.toml"), SMALL).unwrap();
        let (binary, own) = (Path::new(env!("CARGO_BIN_EXE_plait")), dir.path().join("plait"));
        if fs::hard_link(binary, &own).is_err() {
            // By another process: a descriptor of ours, inherited by another test's child, would make it busy.
            assert!(Command::new("cp").arg(binary).arg(&own).status().unwrap().success());
        }
        Self(dir)
    }

    /// Runs a command in the directory as a user without rights.
    fn run(&self, device_mode: &str, command: &[&str]) -> Output {
        let mut run = if rustix::process::geteuid().is_root() {
            let mut run = Command::new("unshare");
            run.args(["--mount", "sh", "-c", AS_NOBODY, "sh", device_mode]).arg(self.0.path().join("dev"));
            run.args(command);
            run
        } else {
            let mut run = Command::new(command[0]);
            run.args(&command[1..]);
            run
        };
        run.current_dir(self.0.path()).output().unwrap()
    }

    fn run_lab(&self, device_mode: &str) -> (bool, String, String) {
        let flags = ["--size", "1M", "--runs", "1", "--role-flag", "all=--cores=0", "small.toml"];
        let Output { status, stdout, stderr } =
            self.run(device_mode, &[&["./plait", "lab", "run"], &flags[..]].concat());
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (status.success(), text(stdout), text(stderr))
    }
}

fn is_equipped() -> bool {
    possible() && installed("unshare") && installed("setpriv")
}

#[test]
fn a_file_comes_over_the_chain_of_a_user_without_rights() {
    if !is_equipped() {
        return;
    }
    let ground = Ground::new();
    let asked = ground.run("666", &["sh", "-c", IS_POSSIBLE]);
    if !asked.status.success() {
        let why = String::from_utf8_lossy(&asked.stderr);
        skipped(format_args!("the lab of a user without rights: {}", why.trim()));
        return;
    }
    let (is_done, said, errors) = ground.run_lab("666");
    assert!(is_done, "{said}{errors}");
    for words in ["run 1 of 1", "CPU s/GB: root"] {
        assert!(said.contains(words), "no '{words}' in:\n{said}");
    }
}

#[test]
fn a_user_who_may_not_open_the_device_is_told_how_to_change_that() {
    if !is_equipped() {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        skipped("only root can take a device from somebody");
        return;
    }
    let ground = Ground::new();
    // Whether it can be taken from nobody here.
    let asked = ground.run("600", &["sh", "-c", "test -c /dev/net/tun && ! test -r /dev/net/tun"]);
    if !asked.status.success() {
        skipped(format_args!("a device of nobody's own: {}", String::from_utf8_lossy(&asked.stderr).trim()));
        return;
    }
    let (is_done, _, errors) = ground.run_lab("600");
    assert!(!is_done, "{errors}");
    for words in ["cannot open /dev/net/tun: Permission denied", "chmod 0666 /dev/net/tun", "run as root"] {
        assert!(errors.contains(words), "no '{words}' in:\n{errors}");
    }
}
