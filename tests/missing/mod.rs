//! What this machine lacks for a test: all tests decide here what becomes of it.
//!
//! A test that cannot run says so and passes, so that everybody may run the rest. With `PLAIT_REQUIRE_ALL=1` it fails.

use std::env;

/// Says that something is not tested, and why.
#[track_caller]
pub fn skipped(why: impl std::fmt::Display) {
    assert!(
        env::var_os("PLAIT_REQUIRE_ALL").is_none(),
        "PLAIT_REQUIRE_ALL is set, and this is not tested: {why}"
    );
    eprintln!("note: not tested: {why}");
}

/// Whether `program` is installed; if not, what needs it is [`skipped`].
#[track_caller]
#[allow(dead_code, reason = "not every program of tests needs others")]
pub fn installed(program: &str) -> bool {
    // Servers are there, and not on every user's PATH.
    let more = ["/usr/sbin".into(), "/sbin".into()];
    let found = env::var_os("PATH")
        .is_some_and(|path| env::split_paths(&path).chain(more).any(|dir| dir.join(program).is_file()));
    if !found {
        skipped(format_args!("{program} is not installed"));
    }
    found
}
