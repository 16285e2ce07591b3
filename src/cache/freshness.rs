//! What may be stored, and for how long it may be reused: RFC 9111 for a shared cache, RFC 5861 for stale answers.
//!
//! In: heads of requests and responses, and the time as an argument. Out: decisions. No I/O, no clock. Invariant: an
//! answer is called fresh only if the RFC calls it fresh; where the root says nothing, [`usual_lifetime`] decides.
//!
//! No crate does this: http-cache-semantics 3 follows the older RFC 7234, knows no partial content, no stale answers of
//! RFC 5861 and no defaults by type, and cuts directives at commas inside quotes.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
    header::{AGE, AUTHORIZATION, CONTENT_TYPE, DATE, EXPIRES, LAST_MODIFIED, SET_COOKIE, VARY},
};

use super::control::Directives;
use crate::http::{
    date::parse_date, head::list_elements, mime, request::RequestHead, response::ResponseHead,
};

/// Segments and films do not change under their name; with a validator a day costs one round trip a day.
const MEDIA_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// A playlist that has ended, or lists renditions: long, but a mistake in it is mended within the hour.
const ENDED_PLAYLIST_LIFETIME: Duration = Duration::from_secs(3600);
/// A playlist whose text is not known yet counts as a live one of 2 s segments.
const UNKNOWN_PLAYLIST_LIFETIME: Duration = Duration::from_secs(1);
/// Heuristic freshness ends here, whatever the age of the file (RFC 9111 section 4.2.2 wants a limit; many use a day).
const HEURISTIC_LIFETIME_MAX: Duration = Duration::from_secs(24 * 3600);

/// RFC 5861 section 4: "an error is any situation that would result in a 500, 502, 503, or 504 HTTP response status code
/// being returned".
const STALE_IF: [StatusCode; 4] = [
    StatusCode::INTERNAL_SERVER_ERROR,
    StatusCode::BAD_GATEWAY,
    StatusCode::SERVICE_UNAVAILABLE,
    StatusCode::GATEWAY_TIMEOUT,
];

/// What servers call files whose type they do not know (nginx without types, S3, most others): their names tell more.
const TELL_NOTHING: [&[u8]; 4] = [b"", b"text/plain", b"application/octet-stream", b"binary/octet-stream"];

/// Whether this cache may keep the response: RFC 9111 section 3, "A cache MUST NOT store a response to a request unless:".
pub fn may_store(request: &RequestHead, response: &ResponseHead) -> bool {
    let asked = Directives::of_request(&request.headers);
    let said = Directives::of_response(&response.headers);
    // "the request method is understood by the cache": of HEAD and others nothing is kept.
    request.method == Method::GET
        // "the response status code is final", and one that this cache understands.
        && matches!(response.status, StatusCode::OK | StatusCode::PARTIAL_CONTENT)
        // "the no-store cache directive is not present in the response"; section 5.2.1.5 for the request.
        && !said.no_store
        && !asked.no_store
        // "if the cache is shared: the private response directive is either not present or allows a shared cache".
        && !said.private
        // "if the cache is shared: the Authorization header field is not present in the request or a response directive
        // is present that explicitly allows shared caching (see Section 3.5)": must-revalidate, public, s-maxage.
        && (!request.headers.contains_key(AUTHORIZATION)
            || said.must_revalidate
            || said.public
            || said.s_maxage.is_some())
        // Section 7.3 leaves this to the root; one that says nothing of caching has hardly meant its cookie for everybody.
        && (!response.headers.contains_key(SET_COOKIE)
            || said.public
            || said.s_maxage.is_some()
            || said.max_age.is_some())
        // It would never match.
        && !varies_by_anything(&response.headers)
    // The last condition, about freshness, holds for 200 and 206, which are heuristically cacheable.
}

/// What the root's playlist says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Playlist {
    /// EXT-X-ENDLIST or renditions: it will not change.
    Ended,
    /// It grows with every segment.
    Live {
        /// EXT-X-TARGETDURATION.
        target: Duration,
    },
}

/// How long an answer is fresh if the root says nothing of it (RFC 9111 section 4.2.2: "a cache MAY assign a heuristic
/// expiration time when an explicit time is not specified"). `path` is looked at for its extension.
pub fn usual_lifetime(headers: &HeaderMap, path: &str, playlist: Option<Playlist>) -> Duration {
    match playlist {
        Some(Playlist::Ended) => return ENDED_PLAYLIST_LIFETIME,
        // RFC 8216 section 6.3.4: a client reloads after one target duration, or half of one when nothing has changed.
        Some(Playlist::Live { target }) => return target / 2,
        None => {}
    }
    let kind = headers.get(CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    let kind = kind.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii().to_ascii_lowercase();
    if is_playlist(headers, path) {
        return UNKNOWN_PLAYLIST_LIFETIME;
    }
    let path = path.split('?').next().unwrap_or_default();
    let named = TELL_NOTHING.contains(&kind.as_slice()).then(|| mime::content_type(Path::new(path)));
    let kind = named.as_ref().map_or(kind.as_slice(), HeaderValue::as_bytes);
    if [&b"video/"[..], b"audio/", b"image/"].iter().any(|media| kind.starts_with(media)) {
        return MEDIA_LIFETIME;
    }
    // "If the response has a Last-Modified header field, caches are encouraged to use a heuristic expiration value that is
    // no more than some fraction of the interval since that time. A typical setting of this fraction might be 10%."
    let time = |name: HeaderName| headers.get(name).and_then(parse_date);
    let unchanged = match (time(DATE), time(LAST_MODIFIED)) {
        (Some(date), Some(modified)) => date.duration_since(modified).unwrap_or_default(),
        _ => Duration::ZERO,
    };
    (unchanged / 10).min(HEURISTIC_LIFETIME_MAX)
}

/// Whether the body is an HLS playlist (RFC 8216 section 4), by its type or name.
pub fn is_playlist(headers: &HeaderMap, path: &str) -> bool {
    let kind = headers.get(CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    let path = path.split('?').next().unwrap_or_default().to_ascii_lowercase();
    kind.to_ascii_lowercase().windows(7).any(|part| part == b"mpegurl")
        || path.ends_with(".m3u8")
        || path.ends_with(".m3u")
}

/// How long a stored response may be reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freshness {
    /// When its age was zero.
    born: SystemTime,
    lifetime: Duration,
    said: Directives,
}

/// What a stored response is good for, for one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Reuse it.
    Fresh,
    /// Reuse it, and validate it meanwhile.
    WhileRevalidating,
    /// Validate it first.
    Validate,
}

impl Freshness {
    /// Of a response that was asked for and came at these times; `usual` is what holds if it says nothing.
    pub fn new(
        headers: &HeaderMap,
        requested_at: SystemTime,
        received_at: SystemTime,
        usual: Duration,
    ) -> Self {
        let said = Directives::of_response(headers);
        let date = headers.get(DATE).and_then(parse_date);
        // RFC 9111 section 4.2.1, "The first match is used": s-maxage, max-age, Expires minus Date, or a heuristic.
        let lifetime = said.s_maxage.or(said.max_age).unwrap_or_else(|| {
            let mut expires = headers.get_all(EXPIRES).iter();
            match (expires.next().map(parse_date), expires.next()) {
                (None, _) => usual,
                (Some(Some(expires)), None) => {
                    expires.duration_since(date.unwrap_or(received_at)).unwrap_or_default()
                }
                // Section 5.3: "A cache recipient MUST interpret invalid date formats, especially the value "0", as
                // representing a time in the past"; of several values it is stale as well.
                (Some(_), _) => Duration::ZERO,
            }
        });
        // Section 4.2.3: corrected_initial_age = max(apparent_age, age_value + response_delay).
        let apparent =
            date.map_or(Duration::ZERO, |date| received_at.duration_since(date).unwrap_or_default());
        let age_value = headers.get(AGE).map_or(Duration::ZERO, |value| age_seconds(value.as_bytes()));
        let delay = received_at.duration_since(requested_at).unwrap_or_default();
        let initial = apparent.max(age_value + delay);
        let born = received_at.checked_sub(initial).unwrap_or(SystemTime::UNIX_EPOCH);
        Self { born, lifetime, said }
    }

    /// Section 4.2.3: current_age.
    pub fn age(&self, now: SystemTime) -> Duration {
        now.duration_since(self.born).unwrap_or_default()
    }

    /// What remains of its freshness; 0 if it is stale.
    pub fn remaining(&self, now: SystemTime) -> Duration {
        self.lifetime.saturating_sub(self.age(now))
    }

    /// Seconds until it becomes stale; negative since it is (RFC 9211 section 2.4).
    pub fn ttl_s(&self, now: SystemTime) -> i64 {
        self.lifetime.as_secs() as i64 - self.age(now).as_secs() as i64
    }

    /// How long ago it became stale.
    fn stale_for(&self, now: SystemTime) -> Duration {
        self.age(now).saturating_sub(self.lifetime)
    }

    /// Whether a request with these directives may have it (RFC 9111 section 4).
    pub fn verdict(&self, asked: &Directives, now: SystemTime) -> Verdict {
        // Sections 5.2.1.4 and 5.2.2.4: not "without successful validation on the origin server".
        if asked.no_cache || self.said.no_cache {
            return Verdict::Validate;
        }
        let age = self.age(now);
        // Section 4.2: response_is_fresh = (freshness_lifetime > current_age).
        if self.lifetime > age {
            // Section 5.2.1.1: "the client prefers a response whose age is less than or equal to the specified number".
            let too_old = asked.max_age.is_some_and(|max| age > max);
            // Section 5.2.1.3: "no less than its current age plus the specified time in seconds".
            let too_late = asked.min_fresh.is_some_and(|min| self.lifetime - age < min);
            return if too_old || too_late { Verdict::Validate } else { Verdict::Fresh };
        }
        if self.must_not_be_stale() || asked.max_age.is_some() || asked.min_fresh.is_some() {
            return Verdict::Validate;
        }
        let stale_for = self.stale_for(now);
        // Section 5.2.1.2: "it has exceeded its freshness lifetime by no more than the specified number of seconds".
        if asked.max_stale.is_some_and(|max| stale_for <= max) {
            return Verdict::Fresh;
        }
        // RFC 5861 section 3: "caches MAY serve the response in which it appears after it becomes stale, up to the indicated
        // number of seconds" and "SHOULD attempt to revalidate it while still serving stale responses".
        if self.said.stale_while_revalidate.is_some_and(|max| stale_for <= max) {
            return Verdict::WhileRevalidating;
        }
        Verdict::Validate
    }

    /// Whether it may stand in for an error of this status: RFC 5861 section 4, in the response or in the request.
    pub fn serves_on_error(&self, status: StatusCode, asked: &Directives, now: SystemTime) -> bool {
        let allowed = self.said.stale_if_error.max(asked.stale_if_error);
        STALE_IF.contains(&status)
            && !self.must_not_be_stale()
            && !self.said.no_cache
            && !asked.no_cache
            && allowed.is_some_and(|max| self.stale_for(now) <= max)
    }

    /// Whether it is stale and waits for the root's word, whoever asks.
    pub fn is_held_back(&self, now: SystemTime) -> bool {
        self.must_not_be_stale() && self.lifetime <= self.age(now)
    }

    /// RFC 9111 section 4.2.4: "A cache MUST NOT generate a stale response if it is prohibited by an explicit in-protocol
    /// directive"; section 5.2.2.10: s-maxage "incorporates the semantics of the proxy-revalidate response directive".
    fn must_not_be_stale(&self) -> bool {
        self.said.must_revalidate || self.said.s_maxage.is_some()
    }
}

/// RFC 9111 section 5.1: of a list only the first member counts, and what is invalid is ignored.
fn age_seconds(value: &[u8]) -> Duration {
    let first = value.split(|&byte| byte == b',').next().unwrap_or_default().trim_ascii();
    let digits =
        std::str::from_utf8(first).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let seconds = digits.and_then(|digits| digits.parse::<u64>().ok()).unwrap_or(0);
    Duration::from_secs(seconds.min(1 << 31))
}

/// The request's headers that `Vary` of the response names: those that select it (RFC 9111 section 4.1).
pub fn selecting_headers(request: &HeaderMap, response: &HeaderMap) -> HeaderMap {
    let mut selecting = HeaderMap::new();
    for name in varying(response) {
        for value in request.get_all(&name) {
            // As many values as the request had headers: there is room.
            selecting.append(name.clone(), value.clone());
        }
    }
    selecting
}

/// Whether a stored response was selected by the same headers that this request has (RFC 9111 section 4.1: "all the
/// presented request header fields nominated by that Vary field value match those fields in the original request").
pub fn selects(request: &HeaderMap, response: &HeaderMap, selecting: &HeaderMap) -> bool {
    !varies_by_anything(response)
        && varying(response).all(|name| {
            // "transforming [...] by adding or removing whitespace" and "combining multiple header field lines" do not matter.
            let members = |headers: &HeaderMap| {
                list_elements(headers, name.clone()).map(<[u8]>::to_vec).collect::<Vec<_>>()
            };
            members(request) == members(selecting)
        })
}

/// Section 4.1: "A stored response with a Vary header field value containing a member "*" always fails to match."
fn varies_by_anything(response: &HeaderMap) -> bool {
    list_elements(response, VARY).any(|name| name == b"*")
}

fn varying(response: &HeaderMap) -> impl Iterator<Item = HeaderName> {
    list_elements(response, VARY).filter_map(|name| HeaderName::from_bytes(name).ok())
}

#[cfg(test)]
#[path = "freshness_tests.rs"]
mod tests;
