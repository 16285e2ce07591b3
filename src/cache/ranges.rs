//! Which bytes of an object there are: disjoint spans in rising order.
//!
//! In: spans that were written. Out: what can be sent, what is missing. Invariants: spans never touch or overlap, none is
//! empty, and there are at most [`SPANS_MAX`].

use std::ops::Range;

/// A film that is watched from end to end is one span, each seek adds one. 1000 of them are 16 KiB in the record.
pub const SPANS_MAX: usize = 1000;

/// See the module's description.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spans(Vec<Range<u64>>);

impl Spans {
    /// Adds a span. False if it would be one more than [`SPANS_MAX`]; then nothing has changed.
    pub fn insert(&mut self, span: Range<u64>) -> bool {
        if span.is_empty() {
            return true;
        }
        // What touches or overlaps it.
        let first = self.0.partition_point(|known| known.end < span.start);
        let last = self.0.partition_point(|known| known.start <= span.end);
        if first == last {
            if self.0.len() == SPANS_MAX {
                return false;
            }
            self.0.insert(first, span);
        } else {
            let joined = self.0[first].start.min(span.start)..self.0[last - 1].end.max(span.end);
            self.0.splice(first..last, [joined]);
        }
        true
    }

    /// Takes a span out.
    pub fn remove(&mut self, span: Range<u64>) {
        let kept = |known: Range<u64>| {
            let (before, behind) =
                (known.start..known.end.min(span.start), known.start.max(span.end)..known.end);
            [before, behind].into_iter().filter(|part| !part.is_empty())
        };
        if !span.is_empty() {
            self.0 = std::mem::take(&mut self.0).into_iter().flat_map(kept).collect();
        }
    }

    /// Where the span that holds `position` ends.
    pub fn end_of(&self, position: u64) -> Option<u64> {
        let index = self.0.partition_point(|known| known.end <= position);
        self.0.get(index).filter(|known| known.start <= position).map(|known| known.end)
    }

    /// Where the first span that begins at `position` or later begins.
    pub fn next_start(&self, position: u64) -> Option<u64> {
        self.0.get(self.0.partition_point(|known| known.start < position)).map(|known| known.start)
    }

    /// Bytes in all spans.
    pub fn total(&self) -> u64 {
        self.0.iter().map(|span| span.end - span.start).sum()
    }

    /// True if there is no byte.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// In rising order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Range<u64>> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_what_a_plain_set_of_bytes_is() {
        bolero::check!().with_type::<Vec<(bool, u8, u8)>>().for_each(|steps| {
            let (mut spans, mut plain) = (Spans::default(), vec![false; 512]);
            for &(add, start, len) in steps {
                let span = u64::from(start)..u64::from(start) + u64::from(len);
                plain[span.start as usize..span.end as usize].fill(add);
                if add {
                    assert!(spans.insert(span));
                } else {
                    spans.remove(span);
                }
            }
            assert!(spans.iter().all(|span| !span.is_empty()));
            assert!(spans.0.windows(2).all(|pair| pair[0].end < pair[1].start), "{spans:?}");
            assert_eq!(spans.total(), plain.iter().filter(|&&there| there).count() as u64);
            for at in 0..512_usize {
                let end = plain[at..].iter().position(|&there| !there).map_or(512, |run| at + run);
                assert_eq!(spans.end_of(at as u64), plain[at].then_some(end as u64), "{at}");
                let starts = |&at: &usize| plain[at] && (at == 0 || !plain[at - 1]);
                assert_eq!(spans.next_start(at as u64), (at..512).find(starts).map(|at| at as u64), "{at}");
            }
        });
    }

    #[test]
    fn there_are_never_too_many() {
        let mut spans = Spans::default();
        for span in 0..SPANS_MAX as u64 {
            assert!(spans.insert(4 * span..4 * span + 1));
        }
        assert!(!spans.insert(1 << 20..1 << 21));
        assert!(spans.insert(1..2), "what extends a span is no new one");
        assert_eq!(spans.iter().len(), SPANS_MAX);
    }
}
