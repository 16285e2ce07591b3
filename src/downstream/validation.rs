//! Takes over what the root says of a stored response without sending it again.
//!
//! In: the head of a 304, or of a 200 to HEAD, and the object that it is about. Out: an object that is fresh again, or forgotten. Called by
//! `edge`. Invariant: what must not be stored any more is found by nobody from then on.

use std::{sync::Arc, time::SystemTime};

use http::{HeaderMap, Method, StatusCode, header::RANGE};

use super::{edge::Quest, fetch, stored};
use crate::{
    cache::{Cache, Turn, object::Object},
    exec,
    http::{request::RequestHead, response::ResponseHead},
};

/// What a 304 says of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Confirmed {
    /// It is as it was, and stored.
    Stays,
    /// It is as it was, and an answer to this request, but forgotten: the root wants it stored no longer.
    Goes,
    /// It is about another version. What was stored is forgotten.
    Other,
}

impl Quest<'_> {
    /// Takes over what a 304 to this request says.
    pub(super) fn confirm(
        &self,
        object: &Arc<Object>,
        confirmed: &HeaderMap,
        requested_at: SystemTime,
    ) -> Confirmed {
        confirm(&self.edge.cache, &self.onward, object, confirmed, requested_at)
    }

    /// Takes over what an answer says, which is passed on, of the stored response to GET (RFC 9111 section 4.3.5).
    pub(super) fn hear(&self, head: &ResponseHead, requested_at: SystemTime) {
        // Section 5.2.1.5 of no-store: a cache "MUST NOT store any part of either this request or any response to it".
        if self.request.method != Method::HEAD || head.status != StatusCode::OK || self.asked.no_store {
            return;
        }
        let Some(object) = self.find() else { return };
        match stored::is_told_by_head(&object.meta(), object.len(), &head.headers) {
            Some(true) => {
                let mut onward = self.onward.clone();
                onward.method = Method::GET;
                confirm(&self.edge.cache, &onward, &object, &head.headers, requested_at);
            }
            Some(false) => self.edge.cache.forget_object(&object),
            None => {}
        }
    }

    /// Validates what is stale and served nevertheless, unless somebody does already.
    pub(super) fn revalidate_meanwhile(&self, object: &Arc<Object>) {
        // As above.
        if self.asked.no_store {
            return;
        }
        let Turn::Yours(asking) = self.edge.cache.turn(self.key) else { return };
        let (manager, cache) = (self.edge.manager.clone(), self.edge.cache.clone());
        let (object, mut onward) = (object.clone(), self.onward.clone());
        onward.method = Method::GET;
        onward.headers.remove(RANGE);
        stored::validate(&mut onward.headers, &object.meta());
        exec::spawn(async move {
            let requested_at = SystemTime::now();
            let Ok(answer) = fetch(&manager, &onward).await else { return };
            match answer.head.status {
                StatusCode::NOT_MODIFIED => {
                    let said = &answer.head.headers;
                    if confirm(&cache, &onward, &object, said, requested_at) != Confirmed::Stays {
                        asking.is_uncacheable();
                    }
                }
                // The next request fetches what there is now.
                status if !status.is_server_error() => cache.forget_object(&object),
                _ => {}
            }
            drop(asking);
        });
    }
}

fn confirm(
    cache: &Arc<Cache>,
    request: &RequestHead,
    object: &Arc<Object>,
    confirmed: &HeaderMap,
    requested_at: SystemTime,
) -> Confirmed {
    let times = requested_at..SystemTime::now();
    let confirmed = stored::confirmed(request, &object.meta(), confirmed, times);
    if !matches!(confirmed, Some((_, true))) {
        cache.forget_object(object);
    }
    match confirmed {
        Some((meta, may_stay)) => {
            object.set_meta(meta);
            if !may_stay {
                return Confirmed::Goes;
            }
            cache.record(object);
            Confirmed::Stays
        }
        None => Confirmed::Other,
    }
}
