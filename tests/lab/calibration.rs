//! `plait lab calibrate` says of each thing that the emulator is asked for whether it is so. What it finds on a machine that
//! runs other tests meanwhile is not for this one to say.

use std::process::Command;

use crate::possible;

#[test]
fn every_check_of_the_calibration_is_reported() {
    if !possible() {
        return;
    }
    let output = Command::new(env!("CARGO_BIN_EXE_plait")).args(["lab", "calibrate"]).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    let checks: Vec<_> = said.lines().collect();
    let wanted = [
        ("ping on the idle path of 50 ms", "must be within 1 ms"),
        ("ping on the idle path of 40 ms", "must be within 1 ms"),
        ("clean flow of 100 Mbit/s, 50 ms", "must be at least 94 %"),
        ("reno at 1 % loss, 40 ms, mean of 4", "must be within 25 %"),
        ("packets more than 2 ms late", "must be at most 1 %"),
    ];
    assert_eq!(checks.len(), wanted.len(), "{said}{errors}");
    let mut is_good = true;
    for (line, (what, bound)) in checks.iter().zip(wanted) {
        let (verdict, rest) = line.split_once(' ').unwrap();
        assert!(["ok", "BAD"].contains(&verdict), "{line}");
        is_good &= verdict == "ok";
        let seen = rest.trim_start().strip_prefix(what).and_then(|rest| rest.strip_suffix(bound));
        assert!(seen.is_some_and(|seen| !seen.trim().is_empty()), "not '{what} ... {bound}': {line}");
    }
    // Scripts go by the status, people by the words.
    assert_eq!(output.status.success(), is_good, "{said}{errors}");
    assert_eq!(errors.contains("the emulator is not good enough on this machine now"), !is_good, "{errors}");
}
