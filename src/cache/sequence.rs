//! Who reads a file in order, one range after the other.
//!
//! In: the ranges that clients ask for. Out: whether one goes on where the same client's range before it has ended. No I/O.
//! Invariant: what is remembered is bounded, whatever clients ask for.

use std::{net::IpAddr, ops::Range};

use quick_cache::unsync;

use super::Key;

/// Ends of ranges that are remembered, one for each reader: those of more readers than one host serves, in a megabyte.
const ENDS_MAX: usize = 10_000;

/// See the module's description.
pub struct Sequences {
    ends: unsync::Cache<(Key, IpAddr, u64), ()>,
}

impl Default for Sequences {
    fn default() -> Self {
        Self { ends: unsync::Cache::new(ENDS_MAX) }
    }
}

impl Sequences {
    /// A client asks for a range. Whether it reads on. Viewers behind one address are told apart by where they are.
    pub fn reads_on(&mut self, key: Key, client: IpAddr, span: &Range<u64>) -> bool {
        let reads_on = self.ends.remove(&(key, client, span.start)).is_some();
        self.ends.insert((key, client, span.end), ());
        reads_on
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn only_adjacent_ranges_of_one_client_and_file_are_a_sequence() {
        let mut sequences = Sequences::default();
        let client = |number| IpAddr::V4(Ipv4Addr::new(10, 0, 0, number));
        let mut ask = |key, number, span| sequences.reads_on(Key(key), client(number), &span);
        assert!(!ask(1, 1, 0..10));
        assert!(!ask(1, 2, 10..20) && !ask(2, 1, 10..20) && !ask(1, 1, 11..20));
        // Somebody else at the same address, elsewhere in the file.
        assert!(!ask(1, 1, 500..600));
        assert!(ask(1, 1, 10..20) && ask(1, 1, 20..21) && ask(1, 1, 600..700));
        // It has gone on already.
        assert!(!ask(1, 1, 10..15));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut sequences = Sequences::default();
        let client = IpAddr::V4(Ipv4Addr::LOCALHOST);
        for start in 0..3 * ENDS_MAX as u64 {
            sequences.reads_on(Key(1), client, &(10 * start..10 * start + 5));
        }
        assert!(sequences.ends.len() <= ENDS_MAX);
    }
}
