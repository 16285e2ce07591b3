//! Takes over what the root says of a stored response without sending it again.
//!
//! In: the head of a 304, or of a 200 to HEAD, and the object that it is about. Out: an object that is fresh again, or forgotten. Called by
//! `edge`. Invariants: what must not be stored any more is found by nobody from then on; what is about one client only
//! takes nothing from the others.

use std::{sync::Arc, time::SystemTime};

use http::{
    HeaderMap, Method, StatusCode,
    header::{AUTHORIZATION, RANGE},
};

use super::{edge::Quest, fetch, stored};
use crate::{
    cache::{Cache, Turn, object::Object, record::Meta},
    exec,
    http::{request::RequestHead, response::ResponseHead},
};

/// What a 304 says of an object.
pub(super) enum Confirmed {
    /// It is as it was, and stored.
    Stays,
    /// It is as it was, and an answer to this request, but forgotten: the root wants it stored no longer.
    Goes,
    /// It is as it was, and stored as it was; this is what it is for the one client who has proved who he is.
    Apart(Box<Meta>),
    /// It is about another version. What was stored is forgotten, unless this may be one client's only.
    Other,
}

/// Whether what the root says may be about the sender of this request only: he proves who he is.
fn is_about_one(asked: &HeaderMap) -> bool {
    asked.contains_key(AUTHORIZATION)
}

/// Whether an answer that is not stored, with this status, says that what is stored is out of date: there is another
/// version now, or none. All others may be about this client: his rights, his haste, his cookies, his range.
pub(super) fn is_out_of_date(asked: &HeaderMap, status: StatusCode) -> bool {
    let is_about_it = matches!(
        status,
        StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::NOT_FOUND | StatusCode::GONE
    );
    is_about_it && !is_about_one(asked)
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
            Some(false) if !is_about_one(&self.onward.headers) => self.edge.cache.forget_object(&object),
            Some(false) | None => {}
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
                    let confirmed = confirm(&cache, &onward, &object, said, requested_at);
                    if !matches!(confirmed, Confirmed::Stays) {
                        asking.is_uncacheable();
                    }
                }
                // The next request fetches what there is now.
                status if is_out_of_date(&onward.headers, status) => cache.forget_object(&object),
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
    let is_about_one = is_about_one(&request.headers);
    match stored::confirmed(request, &object.meta(), confirmed, times) {
        Some((meta, true)) => {
            object.set_meta(meta);
            cache.record(object);
            Confirmed::Stays
        }
        Some((meta, false)) if is_about_one => Confirmed::Apart(Box::new(meta)),
        Some((meta, false)) => {
            cache.forget_object(object);
            object.set_meta(meta);
            Confirmed::Goes
        }
        None => {
            if !is_about_one {
                cache.forget_object(object);
            }
            Confirmed::Other
        }
    }
}
