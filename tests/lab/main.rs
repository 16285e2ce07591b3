//! The lab from the outside: what its networks do, and that nothing of it is left, however it ends.
//!
//! Each test has networks of its own. Where this user may make none, the tests say so and pass.

mod calibration;
mod chaos;
mod leftovers;
#[path = "../missing/mod.rs"]
mod missing;
mod network;
mod player;
mod shaken;
mod unprivileged;
mod warm_up;

use missing::skipped;
use plait::lab::Lab;

/// Whether tests can run here; if not, a note says what is missing.
fn possible() -> bool {
    let missing = Lab::missing();
    if let Some(missing) = &missing {
        skipped(format_args!("the lab: {missing}"));
    }
    missing.is_none()
}

/// Two small, clean paths.
const SMALL: &str = r#"
name = "small"
stands-for = "nothing: quick to test"
[[path]]
rate-mbit = 20
rtt-ms = 20
[[path]]
rate-mbit = 20
rtt-ms = 20
"#;
