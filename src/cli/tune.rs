//! `plait tune`: shows kernel settings, compares them, applies them and takes them back.

use std::{io::Write, path::PathBuf};

use clap::{Args, Subcommand};

use super::args::CpuList;
use crate::tune::{
    Kernel, Profile, Setting, advice,
    kernel::Found,
    profile::PROFILES,
    saved::{self, SavedError},
};

/// `plait tune`.
#[derive(Debug, Args)]
pub struct Tune {
    /// File that keeps what the kernel had before
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        default_value = "/var/lib/plait/tune.saved",
        env = "PLAIT_TUNE_SAVED"
    )]
    pub saved: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub order: TuneOrder,
}

/// The commands of `plait tune`.
#[derive(Debug, Subcommand)]
pub enum TuneOrder {
    /// Lists the profiles, or prints one as a file for /etc/sysctl.d/
    Show {
        /// Which [default: a line for each]
        profile: Option<Profile>,
    },
    /// Compares this machine with a profile; fails if they differ
    Check {
        /// Which.
        profile: Profile,
    },
    /// Sets what a profile says until the next boot, and keeps what was there before. Needs root
    Apply {
        /// Which.
        profile: Profile,
    },
    /// Sets what was there before the first `apply`. Needs root
    Revert,
    /// Looks at network cards (queues, interrupts, rings, offloads), limits and MPTCP; changes nothing
    Advise {
        /// One card only
        #[arg(long, value_name = "NAME")]
        nic: Option<String>,
    },
}

/// Why `plait tune` failed.
#[derive(Debug, thiserror::Error)]
pub enum TuneError {
    /// Some settings are not as the profile says.
    #[error("{0} settings differ: plait tune apply {1}, as root")]
    Differs(usize, &'static str),
    /// Some settings could not be read or written; each was printed.
    #[error("{0} settings failed, see above")]
    Failed(usize),
    /// Nothing was applied, or it was taken back already.
    #[error("{path} keeps nothing: no profile is applied", path = .0.display())]
    NothingSaved(PathBuf),
    /// The file with the old values cannot be used.
    #[error(transparent)]
    Saved(#[from] SavedError),
    /// A profile of this binary is broken.
    #[error("profile {0}: {1}")]
    Profile(&'static str, #[source] crate::tune::profile::SyntaxError),
}

/// Runs one command. `cores` is what `--cores` says.
pub(super) fn run(tune: &Tune, cores: Option<&CpuList>) -> Result<(), TuneError> {
    let kernel = Kernel::running();
    match &tune.order {
        TuneOrder::Show { profile: None } => {
            let line = |profile: &Profile| {
                let what = profile.text.lines().next().unwrap_or_default().trim_start_matches("# ");
                format!("{:18} {what}\n", profile.name)
            };
            print(&PROFILES.iter().map(line).collect::<String>());
            Ok(())
        }
        TuneOrder::Show { profile: Some(profile) } => {
            print(profile.text);
            Ok(())
        }
        TuneOrder::Check { profile } => check(&kernel, profile),
        TuneOrder::Apply { profile } => apply(&kernel, profile, &tune.saved),
        TuneOrder::Revert => revert(&kernel, &tune.saved),
        TuneOrder::Advise { nic } => {
            let cpus = cores.map_or_else(
                || core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect(),
                |list| list.0.clone(),
            );
            print(
                &advice::all(&cpus, nic.as_deref())
                    .iter()
                    .map(|advice| format!("{advice}\n"))
                    .collect::<String>(),
            );
            Ok(())
        }
    }
}

/// `| head` closes the pipe: it has seen enough.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn settings(profile: &Profile) -> Result<Vec<Setting>, TuneError> {
    profile.settings().map_err(|error| TuneError::Profile(profile.name, error))
}

fn check(kernel: &Kernel, profile: &Profile) -> Result<(), TuneError> {
    let (mut differ, mut failed) = (0, 0);
    for setting in settings(profile)? {
        let Setting { key, value } = &setting;
        match kernel.look(&setting) {
            Ok(Found::Same) => println!("ok       {key} = {value}"),
            Ok(Found::Other(found)) => {
                differ += 1;
                println!("differs  {key} = {found}, not {value}");
            }
            Ok(Found::Missing) => println!("missing  {key}: this kernel does not have it"),
            Err(error) => {
                failed += 1;
                println!("failed   {key}: {error}");
            }
        }
    }
    match (failed, differ) {
        (0, 0) => Ok(()),
        (0, differ) => Err(TuneError::Differs(differ, profile.name)),
        (failed, _) => Err(TuneError::Failed(failed)),
    }
}

fn apply(kernel: &Kernel, profile: &Profile, saved_in: &std::path::Path) -> Result<(), TuneError> {
    let mut todo = Vec::new();
    let mut before = Vec::new();
    let mut failed = 0;
    for setting in settings(profile)? {
        match kernel.look(&setting) {
            Ok(Found::Same) => {}
            Ok(Found::Other(found)) => {
                before.push(Setting { key: setting.key.clone(), value: found });
                todo.push(setting);
            }
            Ok(Found::Missing) => println!("skipped {}: this kernel does not have it", setting.key),
            Err(error) => {
                failed += 1;
                println!("failed  {}: {error}", setting.key);
            }
        }
    }
    if !before.is_empty() {
        saved::add(saved_in, &before)?;
    }
    for (setting, before) in todo.iter().zip(&before) {
        failed += usize::from(!set(kernel, setting, &before.value));
    }
    if failed > 0 {
        return Err(TuneError::Failed(failed));
    }
    println!(
        "done; to keep it over a reboot: plait tune show {0} > /etc/sysctl.d/90-plait.conf",
        profile.name
    );
    Ok(())
}

fn set(kernel: &Kernel, setting: &Setting, before: &str) -> bool {
    let Setting { key, value } = setting;
    match kernel.set(setting) {
        Ok(()) => {
            println!("set     {key} = {value} (was {before})");
            true
        }
        Err(error) => {
            // A queueing discipline or congestion control that the kernel does not have is "no such file" to it.
            let hint = match error.kind() {
                std::io::ErrorKind::PermissionDenied => ": run as root, outside of containers",
                std::io::ErrorKind::NotFound => {
                    ": this kernel has no such thing, or its module is not loaded"
                }
                _ => "",
            };
            println!("failed  {key} = {value}: {error}{hint}");
            false
        }
    }
}

fn revert(kernel: &Kernel, saved_in: &std::path::Path) -> Result<(), TuneError> {
    let before = saved::load(saved_in)?;
    if before.is_empty() {
        return Err(TuneError::NothingSaved(saved_in.to_owned()));
    }
    let mut failed = 0;
    for setting in &before {
        match kernel.look(setting) {
            Ok(Found::Same) => {}
            Ok(Found::Other(found)) => failed += usize::from(!set(kernel, setting, &found)),
            Ok(Found::Missing) => println!("skipped {}: this kernel does not have it any more", setting.key),
            Err(error) => {
                failed += 1;
                println!("failed  {}: {error}", setting.key);
            }
        }
    }
    // What could not be restored is kept for another try.
    if failed > 0 {
        return Err(TuneError::Failed(failed));
    }
    Ok(saved::forget(saved_in)?)
}
