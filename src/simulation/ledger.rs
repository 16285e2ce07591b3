//! Which frames the downstream has, so that the upstream may let go of them.
//!
//! In: from the downstream, frames that are whole in its memory and those given to their sink, each told where its bytes
//! move, not where they are counted for the upstream; from the upstream, frames whose bytes it no longer keeps. Out: a panic
//! where it lets go of one that the downstream has not. Both sides run on this thread. Outside of a simulation nothing is
//! noted.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

use crate::wire::units::{Seq, TransferId};

/// Of one transfer.
#[derive(Default)]
struct Has {
    /// All before this one are with the sink.
    next: u64,
    /// Of the others, those of which every byte is in the process.
    whole: BTreeSet<u64>,
}

thread_local! {
    /// None while nothing is simulated.
    static LEDGER: RefCell<Option<BTreeMap<u64, Has>>> = const { RefCell::new(None) };
}

/// Begins or ends to take notes; forgets all.
pub(super) fn keep(is_kept: bool) {
    LEDGER.set(is_kept.then(BTreeMap::new));
}

fn with(transfer: TransferId, note: impl FnOnce(&mut Has)) {
    LEDGER.with_borrow_mut(|ledger| {
        if let Some(ledger) = ledger {
            note(ledger.entry(transfer.0).or_default());
        }
    });
}

/// Downstream: bytes of frame `seq` have left its lane and are in the process; `left` more have not.
pub(crate) fn has_read(transfer: TransferId, seq: u64, left: usize) {
    with(transfer, |has| {
        if left == 0 {
            has.whole.insert(seq);
        }
    });
}

/// Downstream: all frames before `next` were given to the sink.
pub(crate) fn has_given(transfer: TransferId, next: u64) {
    with(transfer, |has| {
        has.next = next;
        has.whole = has.whole.split_off(&next);
    });
}

/// Upstream: these frames were acknowledged, and will never be sent again.
pub(crate) fn let_go(transfer: TransferId, seqs: &[Seq]) {
    with(transfer, |has| {
        let lost = seqs.iter().find(|seq| seq.0 >= has.next && !has.whole.contains(&seq.0));
        assert!(
            lost.is_none(),
            "{lost:?} of transfer {transfer} is freed, and the downstream has not got it"
        );
    });
}
