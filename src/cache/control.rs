//! `Cache-Control` of requests and responses (RFC 9111 section 5.2), read strictly enough for a shared cache.
//!
//! In: header maps. Out: the directives that this cache acts on. Invariant: what cannot be read makes a response less
//! reusable, never more.

use std::time::Duration;

use http::{
    HeaderMap,
    header::{CACHE_CONTROL, PRAGMA},
};

/// RFC 9111 section 1.2.2: a delta-seconds that cannot be represented is 2^31.
const DELTA_SECONDS_MAX: u64 = 1 << 31;

/// The directives of one message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Directives {
    /// Not stored.
    pub no_store: bool,
    /// Not reused without validation; with field names (`no-cache="x"`) as without, which section 5.2.2.4 allows.
    pub no_cache: bool,
    /// Not for shared caches; with field names as without (section 5.2.2.7).
    pub private: bool,
    /// May be stored where it would not be.
    pub public: bool,
    /// Not reused once stale: `must-revalidate` or, in a shared cache the same, `proxy-revalidate`.
    pub must_revalidate: bool,
    /// The client wants no request to go further.
    pub only_if_cached: bool,
    /// Lifetime, or the age that a client accepts.
    pub max_age: Option<Duration>,
    /// Lifetime in shared caches.
    pub s_maxage: Option<Duration>,
    /// The freshness that a client wants to remain.
    pub min_fresh: Option<Duration>,
    /// The staleness that a client accepts.
    pub max_stale: Option<Duration>,
    /// RFC 5861 section 3.
    pub stale_while_revalidate: Option<Duration>,
    /// RFC 5861 section 4.
    pub stale_if_error: Option<Duration>,
}

impl Directives {
    /// Those of a response.
    pub fn of_response(headers: &HeaderMap) -> Self {
        Self::of(headers)
    }

    /// Those of a request.
    pub fn of_request(headers: &HeaderMap) -> Self {
        let mut directives = Self::of(headers);
        // RFC 9111 section 5.4: "Pragma: no-cache" of clients that know no Cache-Control.
        if !headers.contains_key(CACHE_CONTROL) {
            directives.no_cache |= headers
                .get_all(PRAGMA)
                .iter()
                .any(|value| value.as_bytes().trim_ascii().eq_ignore_ascii_case(b"no-cache"));
        }
        directives
    }

    fn of(headers: &HeaderMap) -> Self {
        let mut directives = Self::default();
        for value in headers.get_all(CACHE_CONTROL) {
            let mut rest = value.as_bytes();
            while let Some((name, argument)) = next_directive(&mut rest) {
                directives.add(name, argument.as_deref());
            }
        }
        directives
    }

    fn add(&mut self, name: &[u8], argument: Option<&[u8]>) {
        let seconds = || Some(delta_seconds(argument.unwrap_or_default()));
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        // Section 4.2.1: of several values "either the first occurrence should be used or the response should be
        // considered stale".
        if is("no-store") {
            self.no_store = true;
        } else if is("no-cache") {
            self.no_cache = true;
        } else if is("private") {
            self.private = true;
        } else if is("public") {
            self.public = true;
        } else if is("must-revalidate") || is("proxy-revalidate") {
            self.must_revalidate = true;
        } else if is("only-if-cached") {
            self.only_if_cached = true;
        } else if is("max-age") {
            self.max_age = self.max_age.or_else(seconds);
        } else if is("s-maxage") {
            self.s_maxage = self.s_maxage.or_else(seconds);
        } else if is("min-fresh") {
            self.min_fresh = self.min_fresh.or_else(seconds);
        } else if is("max-stale") {
            // Section 5.2.1.2: "If no value is assigned [...] the client will accept a stale response of any age."
            let any = Some(Duration::from_secs(DELTA_SECONDS_MAX));
            self.max_stale = self.max_stale.or_else(|| if argument.is_none() { any } else { seconds() });
        } else if is("stale-while-revalidate") {
            self.stale_while_revalidate = self.stale_while_revalidate.or_else(seconds);
        } else if is("stale-if-error") {
            self.stale_if_error = self.stale_if_error.or_else(seconds);
        }
    }
}

/// Section 4.2.1: "Caches are encouraged to consider responses that have invalid freshness information (e.g., a max-age
/// directive with a non-integer value) to be stale": 0.
fn delta_seconds(digits: &[u8]) -> Duration {
    let valid = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let number = std::str::from_utf8(digits).ok().filter(|_| valid);
    let seconds = number.map_or(0, |digits| digits.parse().unwrap_or(DELTA_SECONDS_MAX));
    Duration::from_secs(seconds.min(DELTA_SECONDS_MAX))
}

/// Takes one `token [ "=" ( token / quoted-string ) ]` off a list.
fn next_directive<'a>(rest: &mut &'a [u8]) -> Option<(&'a [u8], Option<Vec<u8>>)> {
    loop {
        *rest = rest.trim_ascii_start();
        match rest {
            [] => return None,
            [b',', behind @ ..] => *rest = behind,
            _ => break,
        }
    }
    let name_end = rest.iter().position(|byte| matches!(byte, b'=' | b',')).unwrap_or(rest.len());
    let name = rest[..name_end].trim_ascii();
    *rest = &rest[name_end..];
    let Some(behind) = rest.strip_prefix(b"=") else { return Some((name, None)) };
    *rest = behind;
    let mut argument = Vec::new();
    if let Some(quoted) = rest.trim_ascii_start().strip_prefix(b"\"") {
        let mut bytes = quoted.iter();
        while let Some(&byte) = bytes.next() {
            match byte {
                b'"' => break,
                b'\\' => argument.extend(bytes.next()),
                _ => argument.push(byte),
            }
        }
        *rest = bytes.as_slice();
        // Whatever stands between the quote and the comma belongs to nothing.
        let end = rest.iter().position(|&byte| byte == b',').unwrap_or(rest.len());
        *rest = &rest[end..];
    } else {
        let end = rest.iter().position(|&byte| byte == b',').unwrap_or(rest.len());
        argument.extend_from_slice(rest[..end].trim_ascii());
        *rest = &rest[end..];
    }
    Some((name, Some(argument)))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn read(value: &[u8]) -> Directives {
        let value = HeaderValue::from_bytes(value).unwrap();
        Directives::of_request(&HeaderMap::from_iter([(CACHE_CONTROL, value)]))
    }

    const fn s(seconds: u64) -> Option<Duration> {
        Some(Duration::from_secs(seconds))
    }

    #[test]
    fn directives_are_read_in_all_their_forms() {
        let all =
            read(b"Public, MAX-AGE=60 ,, s-maxage=\"120\", no-cache=\"set-cookie, x\",proxy-revalidate");
        assert!(all.public && all.no_cache && all.must_revalidate && !all.private && !all.no_store);
        assert_eq!((all.max_age, all.s_maxage), (s(60), s(120)));
        assert_eq!(read(b"max-age=5, max-age=9").max_age, s(5));
        assert_eq!(read(b"max-age=1.5").max_age, s(0));
        assert_eq!(read(b"max-age").max_age, s(0));
        assert_eq!(read(b"max-age=99999999999999999999999").max_age, s(DELTA_SECONDS_MAX));
        assert_eq!(read(b"max-stale").max_stale, s(DELTA_SECONDS_MAX));
        assert_eq!(read(b"max-stale=3").max_stale, s(3));
        assert_eq!(read(b"x=\"no-store, private\""), Directives::default());
        assert!(read(b"x=\"a\\\"b\", no-store").no_store);
    }

    #[test]
    fn pragma_counts_only_without_cache_control() {
        let mut headers = HeaderMap::from_iter([(PRAGMA, HeaderValue::from_static("no-cache"))]);
        assert!(Directives::of_request(&headers).no_cache);
        assert!(!Directives::of_response(&headers).no_cache);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("max-age=1"));
        assert!(!Directives::of_request(&headers).no_cache);
    }

    #[test]
    fn any_bytes_are_read_to_their_end() {
        bolero::check!().with_type::<Vec<u8>>().for_each(|bytes| {
            let mut rest = bytes.as_slice();
            let mut count = 0;
            while next_directive(&mut rest).is_some() {
                count += 1;
                assert!(count <= bytes.len(), "no progress");
            }
        });
    }
}
