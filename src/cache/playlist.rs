//! HLS playlists (RFC 8216): how long one stays true, and which segments follow which.
//!
//! In: the text of a playlist, and requests for segments. Out: what [`usual_lifetime`](super::freshness::usual_lifetime)
//! needs, and what a player will ask for next. No I/O. Invariant: what is remembered is bounded, whatever playlists say.

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use m3u8_rs::Playlist as Parsed;
use quick_cache::unsync;

use super::{Key, freshness::Playlist};

/// Larger ones are not looked at: a day of 2 s segments has 43,200 lines of some 40 bytes.
pub const PLAYLIST_BYTES_MAX: u64 = 4 << 20;
/// Segments of one playlist that are remembered: a day of 2 s segments.
const SEGMENTS_MAX: usize = 50_000;
/// Segments whose followers are known: thirty films of two hours, in a few megabytes.
const PLACES_MAX: usize = 100_000;
/// A target duration is 1 s at least, whatever the playlist says, so that a live one is not asked for all the time.
const TARGET_MIN: Duration = Duration::from_secs(1);

/// What a playlist asks players to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Path and query on the playlist's own host.
    pub target: String,
    /// EXT-X-BYTERANGE; else the whole.
    pub span: Option<Range<u64>>,
}

/// What is read out of a playlist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Whether it will change.
    pub kind: Playlist,
    /// Its segments in order, each EXT-X-MAP before the first segment that needs it; none of a list of renditions.
    pub segments: Vec<Segment>,
}

/// Reads the playlist at `target` of `host`; `None` if it is none.
pub fn read(text: &[u8], host: &str, target: &str) -> Option<Reading> {
    // The parser takes nearly anything for an empty playlist.
    if !text.trim_ascii_start().starts_with(b"#EXTM3U") {
        return None;
    }
    let playlist = match m3u8_rs::parse_playlist_res(text).ok()? {
        Parsed::MasterPlaylist(_) => return Some(Reading { kind: Playlist::Ended, segments: Vec::new() }),
        Parsed::MediaPlaylist(playlist) => playlist,
    };
    let target_duration = Duration::from_secs(playlist.target_duration.min(3600)).max(TARGET_MIN);
    let kind = if playlist.end_list { Playlist::Ended } else { Playlist::Live { target: target_duration } };
    let mut segments: Vec<Segment> = Vec::new();
    for segment in playlist.segments.iter().take(SEGMENTS_MAX) {
        if let Some(map) = &segment.map
            && let Some(init) = place(host, target, &map.uri)
        {
            let span =
                map.byte_range.as_ref().and_then(|range| span(range.offset.unwrap_or(0), range.length));
            segments.push(Segment { target: init, span });
        }
        let Some(place) = place(host, target, &segment.uri) else { continue };
        let span = segment.byte_range.as_ref().and_then(|range| {
            // RFC 8216 section 4.3.2.2: without an offset it begins where the one before it in the same file ended.
            let before = segments.last().filter(|before| before.target == place);
            let follows = before.and_then(|before| before.span.as_ref()).map(|span| span.end);
            span(range.offset.or(follows).unwrap_or(0), range.length)
        });
        segments.push(Segment { target: place, span });
    }
    Some(Reading { kind, segments })
}

fn span(offset: u64, length: u64) -> Option<Range<u64>> {
    offset.checked_add(length).filter(|_| length > 0).map(|end| offset..end)
}

/// The path that a reference in the playlist at `base` names (RFC 3986 section 5.2), if it is on the same host.
fn place(host: &str, base: &str, reference: &str) -> Option<String> {
    let reference = reference.split('#').next().unwrap_or_default().trim();
    let printable = reference.bytes().all(|byte| byte.is_ascii_graphic());
    if reference.is_empty() || !printable {
        return None;
    }
    let reference = match reference.get(..7) {
        Some(scheme) if scheme.eq_ignore_ascii_case("http://") => {
            let (named, path) = reference[7..].split_at_checked(host.len())?;
            if !named.eq_ignore_ascii_case(host) || !path.starts_with('/') {
                return None;
            }
            path
        }
        _ if reference.starts_with("//") || reference.split(['/', '?']).next()?.contains(':') => return None,
        _ => reference,
    };
    let (path, query) =
        reference.split_once('?').map_or((reference, None), |(path, query)| (path, Some(query)));
    let base = base.split('?').next().unwrap_or_default();
    let directory = &base[..base.rfind('/')? + 1];
    let mut segments: Vec<&str> = Vec::new();
    let joined = if path.starts_with('/') { path.to_owned() } else { format!("{directory}{path}") };
    for segment in joined.split('/').skip(1) {
        match segment {
            "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    if joined.ends_with("/.") || joined.ends_with("/..") {
        segments.push("");
    }
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    Some(format!("/{}{query}", segments.join("/")))
}

/// Segments fetched ahead of the one that was asked for last. Players hold some 30 s; three segments of 6 s bridge the time
/// in which a new rendition or a slow path catches up.
const SEGMENTS_AHEAD: usize = 3;
/// Bytes fetched ahead, all at once, of a player that fills its buffer: what 100 Mbit/s bring in a round trip of 150 ms, and a
/// little more. Each segment has lanes of its own: with eight of 1.25 MB, cold lanes took the rate from each other, and a
/// buffer of 30 s that needs 5 s without any took 12.
const AHEAD_BYTES_OF_THE_FAST: u64 = 2_500_000;
/// In segments: the next one while the one before is sent, at least,
const AHEAD_OF_THE_FAST_MIN: u64 = 2;
/// and at most as many as find lanes.
const AHEAD_OF_THE_FAST_MAX: u64 = 8;
/// A player fills its buffer while it asks again sooner than this, once it has caught up with what is fetched ahead for it;
/// one that plays asks once in a segment's time, of some seconds.
const FAST_FOR: Duration = Duration::from_millis(500);

/// The segments of a playlist.
struct List {
    segments: Vec<Segment>,
    /// Until when somebody counts as filling a buffer from it.
    fast_until: Mutex<Option<Instant>>,
}

impl List {
    /// Whether who asks at `now` fills a buffer.
    fn is_fast(&self, caught_up: bool, now: Instant) -> bool {
        let mut until = self.fast_until.lock().unwrap_or_else(PoisonError::into_inner);
        let is_fast = caught_up || until.is_some_and(|until| now < until);
        *until = is_fast.then(|| now + FAST_FOR);
        is_fast
    }
}

/// Where a segment stands.
#[derive(Clone)]
struct Place {
    list: Arc<List>,
    index: u32,
}

/// What to fetch ahead.
#[derive(Debug, Default, PartialEq)]
pub struct Next {
    /// In the order in which they are played.
    pub segments: Vec<Segment>,
    /// All at once, or one after the other, so that the next one comes first.
    pub at_once: bool,
}

/// Which segments follow which, for the playlists that were asked for last.
pub struct Programme {
    /// A segment's URL and where its span begins, to its place in its list.
    places: unsync::Cache<(Key, u64), Place>,
}

impl Default for Programme {
    fn default() -> Self {
        Self { places: unsync::Cache::new(PLACES_MAX) }
    }
}

impl Programme {
    /// Remembers the segments of a playlist on `host`.
    pub fn learn(&mut self, host: &str, segments: Vec<Segment>) {
        let list = Arc::new(List { segments, fast_until: Mutex::default() });
        for (index, segment) in list.segments.iter().enumerate() {
            let key = Key::of(&format!("{host}{}", segment.target));
            let start = segment.span.as_ref().map_or(0, |span| span.start);
            self.places.insert((key, start), Place { list: list.clone(), index: index as u32 });
        }
    }

    /// What to fetch when the segment with this key and `span` is asked for at `now`. `caught_up`: it was expected, and is not
    /// there yet.
    pub fn next(&mut self, key: Key, span: &Range<u64>, caught_up: bool, now: Instant) -> Next {
        let Some(Place { list, index }) = self.places.get(&(key, span.start)) else { return Next::default() };
        let at_once = list.is_fast(caught_up, now);
        let fast = AHEAD_BYTES_OF_THE_FAST / (span.end - span.start).max(1);
        let fast = fast.clamp(AHEAD_OF_THE_FAST_MIN, AHEAD_OF_THE_FAST_MAX) as usize;
        let count = if at_once { fast } else { SEGMENTS_AHEAD };
        let segments = list.segments.iter().skip(*index as usize + 1).take(count).cloned().collect();
        Next { segments, at_once }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOD: &str = "#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:6\n#EXT-X-MAP:URI=\"init.mp4\",BYTERANGE=\"800@0\"\n\
        #EXTINF:6.0,\n1.m4s?t=1\n#EXTINF:6.0,\n../other/2.m4s\n#EXTINF:5.0,\n/abs/3.m4s\n#EXT-X-ENDLIST\n";

    fn targets(reading: &Reading) -> Vec<&str> {
        reading.segments.iter().map(|segment| segment.target.as_str()).collect()
    }

    #[test]
    fn segments_are_found_in_order() {
        let reading = read(VOD.as_bytes(), "a:80", "/films/x/list.m3u8?s=1").unwrap();
        assert_eq!(reading.kind, Playlist::Ended);
        let wanted = ["/films/x/init.mp4", "/films/x/1.m4s?t=1", "/films/other/2.m4s", "/abs/3.m4s"];
        assert_eq!(targets(&reading), wanted);
        assert_eq!(reading.segments[0].span, Some(0..800));
        let mut programme = Programme::default();
        programme.learn("a:80", reading.segments);
        let now = Instant::now();
        let mut next = |url, start| programme.next(Key::of(url), &(start..9), false, now).segments;
        let behind = next("a:80/films/x/1.m4s?t=1", 0);
        assert_eq!(behind.iter().map(|segment| segment.target.as_str()).collect::<Vec<_>>(), wanted[2..]);
        assert_eq!(next("a:80/abs/3.m4s", 0), []);
        assert_eq!(next("b/abs/3.m4s", 0), []);
    }

    #[test]
    fn a_player_that_fills_its_buffer_is_kept_ahead_of() {
        let text: String = (0..40).map(|number| format!("#EXTINF:2.0,\n{number}.ts\n")).collect();
        let text = format!("#EXTM3U\n#EXT-X-TARGETDURATION:2\n{text}#EXT-X-ENDLIST\n");
        let mut programme = Programme::default();
        programme.learn("a", read(text.as_bytes(), "a", "/l.m3u8").unwrap().segments);
        let began = Instant::now();
        let mut ask_for = |number: u32, bytes, caught_up, after_ms| {
            let now = began + Duration::from_millis(after_ms);
            let next = programme.next(Key::of(&format!("a/{number}.ts")), &(0..bytes), caught_up, now);
            (next.segments.len(), next.at_once)
        };
        let mut ask = |number, caught_up, after_ms| ask_for(number, 500_000, caught_up, after_ms);
        let (usual, fast) = ((SEGMENTS_AHEAD, false), (5, true));
        assert_eq!(ask(0, false, 0), usual);
        assert_eq!(ask(1, true, 200), fast);
        // What was fetched is there now, and it goes on as fast.
        assert_eq!([ask(2, false, 201), ask(3, false, 600), ask(4, false, 1000)], [fast; 3]);
        // Its buffer is full.
        assert_eq!([ask(5, false, 2500), ask(6, false, 2600)], [usual; 2]);
        assert_eq!(ask(7, true, 4500), fast);
        assert_eq!(ask(39, false, 4600).0, 0);
        // Large ones have lanes enough with two, small ones need more.
        let counts =
            [10_000_000, 1_250_000, 900_000, 100_000, 0].map(|bytes| ask_for(8, bytes, true, 4700).0);
        assert_eq!(counts, [2, 2, 2, 8, 8]);
    }

    #[test]
    fn byte_ranges_follow_each_other() {
        let text = "#EXTM3U\n#EXT-X-TARGETDURATION:6\n#EXTINF:6,\n#EXT-X-BYTERANGE:100@50\nf.ts\n\
            #EXTINF:6,\n#EXT-X-BYTERANGE:30\nf.ts\n";
        let reading = read(text.as_bytes(), "a", "/l.m3u8").unwrap();
        assert_eq!(reading.kind, Playlist::Live { target: Duration::from_secs(6) });
        let spans: Vec<_> = reading.segments.iter().map(|segment| segment.span.clone()).collect();
        assert_eq!(spans, [Some(50..150), Some(150..180)]);
        let mut programme = Programme::default();
        programme.learn("a", reading.segments);
        assert_eq!(programme.next(Key::of("a/f.ts"), &(50..150), false, Instant::now()).segments.len(), 1);
    }

    #[test]
    fn renditions_are_a_playlist_that_ended() {
        let text = "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nlow.m3u8\n";
        assert_eq!(read(text.as_bytes(), "a", "/m.m3u8").unwrap().kind, Playlist::Ended);
        assert_eq!(read(b"<html>", "a", "/m.m3u8"), None);
        assert_eq!(read(b"\x1f\x8b\x08", "a", "/m.m3u8"), None);
    }

    #[test]
    fn other_hosts_are_left_alone() {
        let at = |reference| place("a:1", "/d/l.m3u8", reference);
        assert_eq!(at("http://A:1/x?y").as_deref(), Some("/x?y"));
        assert_eq!(at("..").as_deref(), Some("/"));
        assert_eq!(at("../../x").as_deref(), Some("/x"));
        assert_eq!(at("?q").as_deref(), Some("/d/?q"));
        for other in ["http://b/x", "http://a:10/x", "https://a:1/x", "//a:1/x", "data:x", "", "a b", "#x"] {
            assert_eq!(at(other), None, "{other}");
        }
    }

    #[test]
    fn any_text_is_a_playlist_or_none() {
        bolero::check!().with_type::<Vec<u8>>().for_each(|text| {
            let mut whole = b"#EXTM3U\n".to_vec();
            whole.extend(text);
            for text in [text, &whole] {
                if let Some(reading) = read(text, "a", "/d/l.m3u8") {
                    assert!(reading.segments.iter().all(|segment| segment.target.starts_with('/')));
                }
            }
        });
    }
}
