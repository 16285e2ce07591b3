//! The record at the head of an object's file: what the object is, and which of its bytes are there.
//!
//! In: a [`Record`]. Out: bytes of one slot, and back. A file has two slots, written in turn, so that a record that was
//! being written when the process or the machine died leaves the one before. Invariant: what is read back is what was
//! written, or nothing (checksum); no length from the file is believed before it is checked.

use std::{
    ops::Range,
    sync::OnceLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::{Buf, BufMut, Bytes};
use http::{HeaderMap, Method, StatusCode};
use sha2::{Digest, Sha256};

use super::{
    freshness::Freshness,
    ranges::{SPANS_MAX, Spans},
};
use crate::http::{
    head::Parsed,
    request::{RequestHead, parse_request},
    response::{ResponseHead, parse_response},
};

/// Bytes of one slot: 16 KiB of spans, and a head of up to 14 KiB. What is not written takes no room on the disk.
pub const SLOT_BYTES: usize = 32 << 10;
/// Where the body begins in the file, on a page.
pub const BODY_OFFSET: u64 = 2 * SLOT_BYTES as u64;
/// URL and heads together; larger ones are not stored.
const TEXT_BYTES_MAX: usize = SLOT_BYTES - 16 * SPANS_MAX - 512;
/// What the heads begin and end with, a `Date` and a `Host` of their own among it.
const FIRST_LINES_BYTES_MAX: usize = 128;
const MAGIC: &[u8; 8] = b"plaitob1";
const CHECKSUM_BYTES: usize = 16;
/// Magic, length, checksum.
const PREFIX_BYTES: usize = 8 + 4 + CHECKSUM_BYTES;

/// What is known of a stored response besides its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Host and target, for people and against collisions.
    pub url: String,
    /// End-to-end headers of the response, without those of its length or range.
    pub headers: HeaderMap,
    /// Headers of the request that `Vary` names.
    pub selecting: HeaderMap,
    /// When it was asked for and when it (or what confirmed it) came.
    pub requested_at: SystemTime,
    /// See `requested_at`.
    pub received_at: SystemTime,
    /// How long it is fresh if its headers do not say.
    pub usual: Duration,
    /// What follows from these.
    pub freshness: Freshness,
    /// The head of a plain hit, once it was written; none if there is no such head.
    pub hit_head: OnceLock<Option<Bytes>>,
}

impl Meta {
    /// Of a response that was asked for and came at these times.
    pub fn new(
        url: String,
        headers: HeaderMap,
        selecting: HeaderMap,
        times: Range<SystemTime>,
        usual: Duration,
    ) -> Self {
        let Range { start: requested_at, end: received_at } = times;
        let freshness = Freshness::new(&headers, requested_at, received_at, usual);
        Self {
            url,
            headers,
            selecting,
            requested_at,
            received_at,
            usual,
            freshness,
            hit_head: OnceLock::new(),
        }
    }

    /// Whether it fits into a record.
    pub fn is_storable(&self) -> bool {
        self.text_bytes_max() <= TEXT_BYTES_MAX
    }

    /// The length of URL and heads, or a little more: they are not written to find out.
    fn text_bytes_max(&self) -> usize {
        let lines = self.headers.iter().chain(&self.selecting);
        let lines = lines.map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len());
        self.url.len() + lines.sum::<usize>() + FIRST_LINES_BYTES_MAX
    }

    /// The header maps as heads, whose parser is strict and bounded.
    fn texts(&self) -> [Vec<u8>; 2] {
        let mut texts = [Vec::new(), Vec::new()];
        let mut head = ResponseHead::new(StatusCode::OK);
        head.headers = self.headers.clone();
        head.write_head(self.received_at, &mut texts[0]);
        if let Ok(mut asked) = RequestHead::new(Method::GET, "/", "-") {
            asked.headers.extend(self.selecting.clone());
            asked.write_head(&mut texts[1]);
        }
        texts
    }
}

/// When a record was written, for the decision whether it can be trusted after a crash of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Era {
    /// The kernel's boot.
    pub boot: u128,
    /// Counts the times at which everything was brought to the disk.
    pub epoch: u64,
}

/// See the module's description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// When it was written.
    pub era: Era,
    /// Counts the records of one file.
    pub sequence: u64,
    /// Length of the whole object.
    pub len: u64,
    /// What the object is.
    pub meta: Meta,
    /// The bytes of it that there are.
    pub present: Spans,
}

impl Record {
    /// Where in the file this record goes.
    pub fn offset(&self) -> u64 {
        (self.sequence % 2) * SLOT_BYTES as u64
    }

    /// The bytes of its slot, at most [`SLOT_BYTES`], if [`Meta::is_storable`].
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(1024);
        body.put_u128(self.era.boot);
        for number in [
            self.era.epoch,
            self.sequence,
            self.len,
            since_epoch(self.meta.requested_at),
            since_epoch(self.meta.received_at),
            self.meta.usual.as_millis() as u64,
        ] {
            body.put_u64(number);
        }
        let [response, request] = self.meta.texts();
        for text in [self.meta.url.as_bytes(), &response, &request] {
            body.put_u32(text.len() as u32);
            body.put_slice(text);
        }
        body.put_u32(self.present.iter().len() as u32);
        for span in self.present.iter() {
            body.put_u64(span.start);
            body.put_u64(span.end);
        }
        let mut bytes = Vec::with_capacity(PREFIX_BYTES + body.len());
        bytes.put_slice(MAGIC);
        bytes.put_u32(body.len() as u32);
        bytes.put_slice(&checksum(&body));
        bytes.put_slice(&body);
        bytes
    }

    /// Reads a slot; `None` if it holds no whole record.
    pub fn decode(slot: &[u8]) -> Option<Self> {
        let rest = slot.strip_prefix(MAGIC)?;
        let mut rest = rest;
        let len = rest.try_get_u32().ok()? as usize;
        let (sum, rest) = rest.split_at_checked(CHECKSUM_BYTES)?;
        let mut body = rest.get(..len)?;
        if checksum(body) != sum {
            return None;
        }
        let boot = body.try_get_u128().ok()?;
        let mut number = || body.try_get_u64().ok();
        let (epoch, sequence, len) = (number()?, number()?, number()?);
        let (requested, received, usual_ms) = (number()?, number()?, number()?);
        let url = String::from_utf8(text(&mut body)?.to_vec()).ok()?;
        let Ok(Parsed::Complete { head: response, .. }) = parse_response(text(&mut body)?) else {
            return None;
        };
        let Ok(Parsed::Complete { head: request, .. }) = parse_request(text(&mut body)?) else { return None };
        let mut selecting = request.headers;
        selecting.remove(http::header::HOST);
        let mut present = Spans::default();
        for _ in 0..body.try_get_u32().ok()?.min(SPANS_MAX as u32) {
            let (start, end) = (body.try_get_u64().ok()?, body.try_get_u64().ok()?);
            if start >= end || end > len {
                return None;
            }
            present.insert(start..end);
        }
        let times = time(requested)?..time(received)?;
        let meta = Meta::new(url, response.headers, selecting, times, Duration::from_millis(usual_ms));
        Some(Self { era: Era { boot, epoch }, sequence, len, meta, present })
    }

    /// The newer of a file's two records that `trusted` accepts.
    pub fn newest(slots: [&[u8]; 2], trusted: impl Fn(Era) -> bool) -> Option<Self> {
        let records = slots.into_iter().filter_map(Self::decode).filter(|record| trusted(record.era));
        records.max_by_key(|record| record.sequence)
    }
}

fn text<'a>(body: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = body.try_get_u32().ok()? as usize;
    let (text, rest) = body.split_at_checked(len)?;
    *body = rest;
    Some(text)
}

fn checksum(body: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut sum = [0; CHECKSUM_BYTES];
    sum.copy_from_slice(&Sha256::digest(body)[..CHECKSUM_BYTES]);
    sum
}

/// Milliseconds; times before 1970 are 1970.
fn since_epoch(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

fn time(ms: u64) -> Option<SystemTime> {
    UNIX_EPOCH.checked_add(Duration::from_millis(ms))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn record(sequence: u64, spans: &[Range<u64>]) -> Record {
        let mut present = Spans::default();
        for span in spans {
            present.insert(span.clone());
        }
        let mut headers = HeaderMap::new();
        headers.append("etag", HeaderValue::from_static("\"a\""));
        headers.append("date", HeaderValue::from_static("Sun, 09 Sep 2001 01:46:40 GMT"));
        let mut selecting = HeaderMap::new();
        selecting.append("accept-encoding", HeaderValue::from_static("gzip"));
        let at = UNIX_EPOCH + Duration::from_millis(1_000_000_000_123);
        let meta = Meta::new("a/film.mp4".into(), headers, selecting, at..at, Duration::from_secs(5));
        Record { era: Era { boot: 1 << 100, epoch: 3 }, sequence, len: 1 << 40, meta, present }
    }

    #[test]
    fn the_length_of_heads_is_known_without_writing_them() {
        let mut meta = record(1, &[]).meta;
        for _ in 0..3 {
            let written = meta.url.len() + meta.texts().iter().map(Vec::len).sum::<usize>();
            assert!(
                (written..=written + FIRST_LINES_BYTES_MAX).contains(&meta.text_bytes_max()),
                "{written}"
            );
            meta.headers.remove("date");
            meta.headers.append("set-cookie", HeaderValue::from_static("a=b"));
            meta.selecting.append("host", HeaderValue::from_static("film.example"));
        }
    }

    #[test]
    fn a_record_is_read_back_as_it_was() {
        let spans: Vec<_> = (0..2 * SPANS_MAX as u64).map(|n| 3 * n..3 * n + 1).collect();
        for spans in [&spans[..0], &spans[..1], &spans] {
            let record = record(7, spans);
            let bytes = record.encode();
            assert!(bytes.len() <= SLOT_BYTES);
            assert_eq!(Record::decode(&bytes), Some(record));
        }
    }

    #[test]
    fn a_torn_record_leaves_the_one_before() {
        let (old, new) = (record(4, std::slice::from_ref(&(0..5))), record(5, std::slice::from_ref(&(0..9))));
        let (old_bytes, new_bytes) = (old.encode(), new.encode());
        assert_eq!(Record::newest([&old_bytes, &new_bytes], |_| true), Some(new));
        for torn in 0..new_bytes.len() {
            let found = Record::newest([&old_bytes, &new_bytes[..torn]], |_| true);
            assert_eq!(found.as_ref(), Some(&old), "{torn}");
        }
        assert_eq!(Record::newest([&old_bytes, &new_bytes], |_| false), None);
    }
}
