//! Sizes on the command line.
//!
//! In: a number with or without a unit. Out: bytes within the bounds of their use.

use std::str::FromStr;

use crate::wire::filler::FILLER_BYTES_MAX;

/// Bytes in memory: of a generated file, or kept for downstreams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteCount(pub u64);

/// What the largest host that was thought of has to spare.
const BYTE_COUNT_MAX: u64 = 16_000_000_000;

/// Room on a disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSize(pub u64);

/// Bytes of filler, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FillerSize(pub u64);

/// Smaller caches would hold no film and little else.
const DISK_SIZE_MIN: u64 = 1 << 20;

/// SI units and, with an i, powers of 1024; the B may be left out.
const UNITS: [(&str, u64); 9] = [
    ("", 1),
    ("k", 1000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
    ("T", 1_000_000_000_000),
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
];

fn bytes(text: &str) -> Option<u64> {
    let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let unit = unit.strip_suffix(['B', 'b']).unwrap_or(unit);
    let (_, factor) = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
    digits.parse::<u64>().ok()?.checked_mul(*factor)
}

impl FromStr for ByteCount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match bytes(text) {
            Some(bytes @ 1..=BYTE_COUNT_MAX) => Ok(Self(bytes)),
            _ => Err("write a number such as 200M, 500MB or 1GiB, at most 16GB".to_owned()),
        }
    }
}

impl FromStr for DiskSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match bytes(text) {
            Some(bytes @ DISK_SIZE_MIN..) => Ok(Self(bytes)),
            _ => Err("write a number such as 500M, 20GiB or 1TB, at least 1MiB".to_owned()),
        }
    }
}

impl FromStr for FillerSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match bytes(text) {
            Some(bytes @ 0..=FILLER_BYTES_MAX) => Ok(Self(bytes)),
            _ => Err("write a number such as 16M or 64MiB, at most that, or 0 for none".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, wanted) in [
            ("1234", 1234),
            ("200M", 200_000_000),
            ("200MB", 200_000_000),
            ("1k", 1000),
            ("2GiB", 2 << 30),
            ("2gi", 2 << 30),
            ("7B", 7),
        ] {
            assert_eq!(text.parse(), Ok(ByteCount(wanted)), "{text}");
        }
        for wrong in
            ["", "M", "0", "1T", "-1", "17G", "99999999999999999999G", "1é", "1 M", "1MM", "1iB", "1BB"]
        {
            assert!(wrong.parse::<ByteCount>().is_err(), "{wrong}");
        }
        for (text, wanted) in [("0", 0), ("64M", 64_000_000), ("64MiB", 64 << 20)] {
            assert_eq!(text.parse(), Ok(FillerSize(wanted)), "{text}");
        }
        for wrong in ["", "65MiB", "none", "-1"] {
            assert!(wrong.parse::<FillerSize>().is_err(), "{wrong}");
        }
        assert_eq!("1T".parse(), Ok(DiskSize(1_000_000_000_000)));
        assert_eq!("20GiB".parse(), Ok(DiskSize(20 << 30)));
        for wrong in ["1MB", "x", "20000000TiB"] {
            assert!(wrong.parse::<DiskSize>().is_err(), "{wrong}");
        }
    }
}
