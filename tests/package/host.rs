//! A host with systemd, in namespaces of its own: its files are those of this machine, and what it changes is its own.
//!
//! In: nothing but root's rights. Out: a place where packages are installed and services run as on any Debian. Invariant:
//! nothing of it is left when it is dropped, and it changes no setting of this machine's kernel.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::missing::{installed, skipped};

/// What takes a second on a quiet machine.
pub const DEADLINE: Duration = Duration::from_secs(120);
/// Between two looks at something that comes without a sign.
const PAUSE: Duration = Duration::from_millis(50);

/// Where Debian's systemd is.
const SYSTEMD: &str = "/lib/systemd/systemd";

/// `$1` is an empty directory, `$2` the name of a control group. What systemd does to the kernel as a whole it must not do here.
const BOOT: &str = r#"
set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root" "$1/groups"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
mount -t cgroup2 cgroup2 "$1/groups"
mkdir "$1/groups/$2"
echo 0 >"$1/groups/$2/cgroup.procs"
umount "$1/groups"
exec unshare --cgroup sh -c '
set -eu
cd "$1/root"
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs dev
for device in null zero full random urandom tty; do
    : >dev/$device
    mount --bind /dev/$device dev/$device
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
: >dev/console
# In an image for containers it forbids packages to restart services.
rm -f usr/sbin/policy-rc.d
mkdir -p run/systemd/system
for unit in systemd-modules-load.service systemd-sysctl.service systemd-udevd.service systemd-udev-trigger.service \
    dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-fs-fuse-connections.mount; do
    ln -s /dev/null run/systemd/system/$unit
done
printf "[Unit]\nDescription=Nothing but what a test starts\n" >run/systemd/system/quiet.target
hostname "$2"
ip link set lo up
mkdir .this
pivot_root . .this
umount -l .this
rmdir .this
export container=plait-test
exec /lib/systemd/systemd --system --unit=quiet.target --show-status=no --log-target=journal
' sh "$1" "$2"
"#;

/// A host that has booted.
pub struct Host {
    boot: Child,
    /// systemd's number outside.
    pid: u32,
    group: String,
    dir: TempDir,
}

impl Host {
    /// Whether there can be hosts here; if not, a note says why.
    pub fn possible() -> bool {
        if !["unshare", "nsenter", "ip", "dpkg", "curl"].into_iter().all(installed) {
            return false;
        }
        if !Path::new(SYSTEMD).exists() {
            skipped("systemd is not installed");
            return false;
        }
        let script = "mount --make-rprivate / && mkdir \"$1/cgroup\" && mount -t cgroup2 none \"$1/cgroup\" && test -w \"$1/cgroup/cgroup.procs\"
            mount -t tmpfs tmpfs \"$1\" && cd \"$1\" && mkdir u w r && mount -t overlay overlay -o lowerdir=/,upperdir=u,workdir=w r";
        let dir = tempfile::tempdir().unwrap();
        let tried = unshare(&["--mount"]).args(["sh", "-ec", script, "sh"]).arg(dir.path()).output().unwrap();
        if !tried.status.success() {
            skipped(format_args!("no hosts can be made here: {}", String::from_utf8_lossy(&tried.stderr)));
        }
        tried.status.success()
    }

    /// Boots one.
    pub fn boot(name: &str) -> Self {
        /// Of this process.
        static HOSTS: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::tempdir().unwrap();
        let number = HOSTS.fetch_add(1, Ordering::Relaxed);
        let group = format!("plait-test-{}-{number}", std::process::id());
        let namespaces = ["--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc", "--net"];
        let boot = unshare(&namespaces)
            .args(["sh", "-c", BOOT, "sh"])
            .arg(dir.path())
            .arg(&group)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut host = Self { boot, pid: 0, group, dir };
        let children = format!("/proc/{0}/task/{0}/children", host.boot.id());
        wait_for("a first process", || {
            host.pid = fs::read_to_string(&children).ok()?.split_whitespace().next()?.parse().ok()?;
            Some(())
        });
        let root = PathBuf::from(format!("/proc/{}/root", host.pid));
        wait_for("systemd", || root.join("run/systemd/private").exists().then_some(()));
        wait_for("a quiet host", || {
            let state = host.try_run("systemctl is-system-running");
            matches!(&*text(&state.stdout), "running\n" | "degraded\n").then_some(())
        });
        host.run(&format!("hostname {name}"));
        host
    }

    /// Writes a file there, in the place of one that may be there.
    pub fn write(&self, path: &str, bytes: impl AsRef<[u8]>, mode: u32) {
        // By a shell of the host's: its symbolic links must not lead out of it.
        let script = format!(
            "mkdir -p \"$(dirname {path})\" && rm -f {path} && umask 077 && cat >{path} && chmod {mode:o} {path}"
        );
        let mut shell = self.shell(&script).stdin(Stdio::piped()).spawn().unwrap();
        shell.stdin.take().unwrap().write_all(bytes.as_ref()).unwrap();
        assert!(shell.wait().unwrap().success(), "{path} cannot be written");
    }

    fn shell(&self, script: &str) -> Command {
        let pid = self.pid.to_string();
        let mut command = Command::new("nsenter");
        command
            .args([
                "--target", &pid, "--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup", "--root", "--wd",
            ])
            .args([
                "env",
                "-i",
                "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
                "LC_ALL=C",
                "HOME=/root",
                "sh",
                "-c",
                script,
            ]);
        command
    }

    /// What a shell says there, and how it ended.
    pub fn try_run(&self, script: &str) -> Output {
        self.shell(script).stdin(Stdio::null()).output().unwrap()
    }

    /// What it says; it must succeed.
    #[track_caller]
    pub fn run(&self, script: &str) -> String {
        let output = self.try_run(script);
        let said = text(&output.stdout);
        if !output.status.success() {
            let journal = text(&self.try_run("journalctl --no-pager --quiet --lines=60").stdout);
            panic!("`{script}` failed: {said}{}\nits journal:\n{journal}", text(&output.stderr));
        }
        said
    }

    /// A property of a unit.
    pub fn property(&self, unit: &str, name: &str) -> String {
        self.run(&format!("systemctl show --property={name} --value {unit}")).trim().to_owned()
    }

    /// Waits until the journal of a unit has that `times` times.
    #[track_caller]
    pub fn wait_for_log(&self, unit: &str, wanted: &str, times: usize) {
        let journal = || self.run(&format!("journalctl --no-pager --quiet --output=cat --unit={unit}"));
        let until = Instant::now() + DEADLINE;
        while journal().matches(wanted).count() < times {
            assert!(
                Instant::now() < until,
                "{unit} did not log '{wanted}' {times} times but:\n{}",
                journal()
            );
            thread::sleep(PAUSE);
        }
    }

    /// Connects the host to a switch, which is in the network of another, and gives it an address.
    pub fn plug_in(&self, switch: &Self, number: usize) {
        let name = format!("port{number}");
        let pid = self.pid.to_string();
        switch.run("ip link show switch >/dev/null 2>&1 || { ip link add switch type bridge && ip link set switch up; }");
        let address = format!("198.51.100.{number}/24");
        if std::ptr::eq(self, switch) {
            self.run(&format!("ip address add {address} dev switch"));
            return;
        }
        // From here, where both hosts' numbers mean something.
        let mut command = Command::new("nsenter");
        command.args([
            "--target",
            &switch.pid.to_string(),
            "--net",
            "ip",
            "link",
            "add",
            &name,
            "type",
            "veth",
        ]);
        assert!(command.args(["peer", "name", "wire", "netns", &pid]).status().unwrap().success());
        switch.run(&format!("ip link set {name} master switch up"));
        self.run(&format!("ip address add {address} dev wire && ip link set wire up"));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The first process of a namespace takes all others with it.
        if self.pid != 0 {
            let _ = Command::new("kill").args(["-KILL", &self.pid.to_string()]).status();
        }
        let _ = self.boot.kill();
        let _ = self.boot.wait();
        let script = "mount --make-rprivate / && mount -t cgroup2 none \"$1\" && find \"$1/$2\" -depth -type d -exec rmdir {} +";
        let until = Instant::now() + DEADLINE;
        loop {
            let mut command = unshare(&["--mount"]);
            command.args(["sh", "-c", script, "sh"]).arg(self.dir.path()).arg(&self.group);
            let removed = command.stderr(Stdio::null()).status().is_ok_and(|status| status.success());
            if removed || Instant::now() > until {
                break;
            }
            thread::sleep(PAUSE);
        }
    }
}

fn unshare(namespaces: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command.args(namespaces).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Waits until there is something.
#[track_caller]
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "{what} did not come");
        thread::sleep(PAUSE);
    }
}
