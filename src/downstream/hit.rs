//! The short way of the most frequent answer: the whole of a fresh object, to a client that asks for nothing else.
//!
//! In: a request. Out: the answer's head, written once for each stored response, and the file by sendfile; or nothing, and
//! `edge` answers. Invariant: what is sent is what `edge` would send.

use std::{
    io::{self, Write},
    sync::Arc,
    time::SystemTime,
};

use bytes::Bytes;
use http::{
    HeaderName, Method, StatusCode,
    header::{
        AGE, CACHE_CONTROL, DATE, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE,
        PRAGMA, RANGE, VARY, VIA,
    },
};

use super::{
    ahead, default_host,
    edge::Edge,
    sending::{Failure, Sending},
    stored::{self, Answer, Way},
};
use crate::{
    cache::{
        Key,
        control::Directives,
        freshness::{self, Verdict},
        object::Object,
        record::{BODY_OFFSET, Meta},
    },
    http::{forward, head::Version, request::RequestHead, server::HttpConnection},
    net::sendfile_counting,
};

/// A request with one of these wants something of its own, or has been here before.
const WISHES: [HeaderName; 9] = [
    RANGE,
    IF_RANGE,
    IF_MATCH,
    IF_NONE_MATCH,
    IF_MODIFIED_SINCE,
    IF_UNMODIFIED_SINCE,
    CACHE_CONTROL,
    PRAGMA,
    VIA,
];

impl Edge {
    /// Answers `request`, whose URL and key are given, if it can be answered in this way; false if nothing was sent.
    ///
    /// # Errors
    /// The answer was begun and could not be completed.
    pub(super) async fn hit(
        &self,
        connection: &mut HttpConnection,
        request: &RequestHead,
        (url, key): (&str, Key),
    ) -> io::Result<bool> {
        let is_usual = request.method == Method::GET
            && request.version == Version::Http11
            && connection.lasts()
            && !request.headers.keys().any(|name| WISHES.contains(name));
        if !is_usual {
            return Ok(false);
        }
        let Some(object) = self.cache.find_open(key, url) else { return Ok(false) };
        let (meta, now) = (object.meta(), SystemTime::now());
        if meta.freshness.verdict(&Directives::default(), now) != Verdict::Fresh {
            return Ok(false);
        }
        let (Some(head), Some(file)) = (head(request, &object, &meta, now), object.file()) else {
            return Ok(false);
        };
        if object.present_bytes() < object.len() {
            return Ok(false);
        }
        self.cache.was_asked_for(key);
        let onward = || forward::request_to_root(request, None).ok();
        ahead::follow(self, connection, onward, (key, &(0..object.len())), false);
        connection.account().set_cache(Way::Hit.cache_use());
        let mut bytes = Vec::with_capacity(head.len() + 128);
        bytes.extend_from_slice(&head);
        let (age_s, ttl_s) = (meta.freshness.age(now).as_secs(), meta.freshness.ttl_s(now));
        write!(bytes, "{AGE}: {age_s}\r\n{}: {}; ttl={ttl_s}\r\n", stored::CACHE_STATUS, stored::HIT)?;
        connection.send_written_head(StatusCode::OK, bytes).await?;
        let (length, stall_max) = (object.len(), connection.deadlines().stall);
        let mut sent = 0;
        let outcome =
            sendfile_counting(connection.socket(), file, (BODY_OFFSET, length), stall_max, &mut sent).await;
        connection.account().add_body_bytes(sent);
        if sent < length {
            Box::pin(self.send_rest(connection, request, &object, sent, outcome)).await?;
        }
        connection.finish_response();
        Ok(true)
    }

    /// Sends what the file has not given, or says whose fault that is.
    async fn send_rest(
        &self,
        connection: &mut HttpConnection,
        request: &RequestHead,
        object: &Arc<Object>,
        sent: u64,
        outcome: io::Result<()>,
    ) -> io::Result<()> {
        if object.unreadable(sent).is_none() {
            outcome?;
        }
        let onward = forward::request_to_root(request, default_host(connection, request).as_ref());
        let onward = onward.map_err(io::Error::other)?;
        // What is there of it is tried again from here on, and not found.
        let mut rest = Sending::new(self, &onward, object, sent..object.len(), None);
        match rest.run(connection).await {
            Ok(()) => Ok(()),
            Err(Failure::Broken(error)) => Err(error),
            // The head is sent: there is nothing else to say.
            Err(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// The head of the answer without `Age`, `Cache-Status` and its empty line; none for responses that have more ways than
/// one, and for playlists, which are read when they are sent.
fn head(request: &RequestHead, object: &Object, meta: &Meta, now: SystemTime) -> Option<Bytes> {
    let write = || {
        let has_one_way = meta.headers.contains_key(DATE)
            && !meta.headers.contains_key(VARY)
            && !freshness::is_playlist(&meta.headers, request.target());
        match stored::plan(request, meta, object.len(), true, now) {
            Answer::Send(mut head, _) if has_one_way => {
                head.headers.remove(AGE);
                let mut bytes = Vec::new();
                head.write_head(now, &mut bytes);
                bytes.truncate(bytes.len() - b"\r\n".len());
                Some(bytes.into())
            }
            _ => None,
        }
    };
    meta.hit_head.get_or_init(write).clone()
}
