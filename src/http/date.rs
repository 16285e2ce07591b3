//! HTTP dates, in and out, without the panics of times that HTTP cannot write.
//!
//! `response`, `conditional` and `file_response` call it with times of clocks and files, which may be anything.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderValue;

/// 9999-12-31T23:59:59Z in seconds: the last second that IMF-fixdate has digits for; httpdate panics behind it.
const MAX_DATE_S: u64 = 253_402_300_799;

/// The time cut to whole seconds, which is all that HTTP dates carry; `None` before 1970 and after 9999.
pub fn to_seconds(time: SystemTime) -> Option<SystemTime> {
    let seconds = time.duration_since(UNIX_EPOCH).ok()?.as_secs();
    (seconds <= MAX_DATE_S).then(|| UNIX_EPOCH + Duration::from_secs(seconds))
}

/// IMF-fixdate (RFC 9110 §5.6.7); `None` for a time that it cannot express.
pub fn format_date(time: SystemTime) -> Option<HeaderValue> {
    HeaderValue::try_from(httpdate::fmt_http_date(to_seconds(time)?)).ok()
}

/// Any of the three date forms of RFC 9110 §5.6.7; `None` when it is not a date.
pub fn parse_date(value: &HeaderValue) -> Option<SystemTime> {
    httpdate::parse_http_date(value.to_str().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_forms_of_the_rfc_are_one_time() {
        let time = UNIX_EPOCH + Duration::from_secs(784_111_777);
        for form in
            ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]
        {
            assert_eq!(parse_date(&HeaderValue::from_static(form)), Some(time), "{form}");
        }
        assert_eq!(format_date(time).unwrap(), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(format_date(time + Duration::from_millis(999)), format_date(time));
    }

    #[test]
    fn times_that_http_cannot_write_are_none() {
        assert_eq!(format_date(UNIX_EPOCH - Duration::from_nanos(1)), None);
        assert_eq!(format_date(UNIX_EPOCH + Duration::from_secs(MAX_DATE_S + 1)), None);
        assert_eq!(
            format_date(UNIX_EPOCH + Duration::from_secs(MAX_DATE_S)).unwrap(),
            "Fri, 31 Dec 9999 23:59:59 GMT"
        );
    }

    #[test]
    fn any_bytes_are_a_date_or_none() {
        bolero::check!().with_type::<Vec<u8>>().for_each(|bytes| {
            if let Ok(value) = HeaderValue::from_bytes(bytes)
                && let Some(time) = parse_date(&value)
            {
                assert!(format_date(time).is_some());
            }
        });
    }
}
