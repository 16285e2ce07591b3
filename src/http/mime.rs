//! Content types by file extension, for the root role and an upstream with `--root DIR`.

use std::path::Path;

use http::HeaderValue;

/// Types of streaming media that mime_guess does not know or names otherwise than players expect. `m4s` is the
/// segment type of ISO/IEC 23009-1 annex C; `ts` would be DLNA's; `m3u8` is RFC 8216 §4.
const MEDIA_TYPES: [(&str, &str); 12] = [
    ("mp4", "video/mp4"),
    ("m4v", "video/mp4"),
    ("m4a", "audio/mp4"),
    ("m4s", "video/iso.segment"),
    ("cmfv", "video/mp4"),
    ("cmfa", "audio/mp4"),
    ("ts", "video/mp2t"),
    ("m3u8", "application/vnd.apple.mpegurl"),
    ("mpd", "application/dash+xml"),
    ("webm", "video/webm"),
    ("vtt", "text/vtt"),
    ("jpg", "image/jpeg"),
];

/// The type for the last extension of `path`, in any case; `application/octet-stream` when nobody knows it.
pub fn content_type(path: &Path) -> HeaderValue {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or("");
    let media =
        MEDIA_TYPES.iter().find(|(known, _)| known.eq_ignore_ascii_case(extension)).map(|(_, name)| *name);
    let guess = || mime_guess::from_ext(extension).first_raw();
    HeaderValue::from_static(media.or_else(guess).unwrap_or("application/octet-stream"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn players_get_the_types_they_expect() {
        for (name, expected) in [
            ("a/film.mp4", "video/mp4"),
            ("FILM.MP4", "video/mp4"),
            ("seg-1.m4s", "video/iso.segment"),
            ("seg.1.ts", "video/mp2t"),
            ("index.m3u8", "application/vnd.apple.mpegurl"),
            ("manifest.mpd", "application/dash+xml"),
            ("clip.webm", "video/webm"),
            ("sub.vtt", "text/vtt"),
            ("poster.jpg", "image/jpeg"),
            ("poster.jpeg", "image/jpeg"),
            ("index.html", "text/html"),
            ("noextension", "application/octet-stream"),
            (".mp4", "application/octet-stream"),
            ("a.b/c", "application/octet-stream"),
            ("x.nobodyknows", "application/octet-stream"),
        ] {
            assert_eq!(content_type(Path::new(name)), expected, "{name}");
        }
    }
}
