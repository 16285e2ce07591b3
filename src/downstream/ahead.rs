//! Fetches what a player will ask for next, and reads the playlists that say what that is.
//!
//! In: answers that were given. Out: objects in the cache. Runs beside the clients of this core. Invariants: what is fetched
//! ahead is bounded by what players have asked for, and so is how often the root is asked for it; it takes no rate from a
//! client that waits for the root; it ends soon after its viewer has left.

use std::{
    cell::Cell,
    ops::{Range, RangeInclusive},
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{
    FutureExt, pin_mut, select_biased,
    stream::{self, StreamExt},
};
use http::{
    Method,
    header::{CACHE_CONTROL, HOST, PRAGMA, RANGE},
};

use super::{
    LANES_STALL_MAX,
    edge::{Begun, Edge, Quest},
    fetch,
    sending::must_forget,
    stored::{self, Answer},
};
use crate::{
    cache::{
        self, Key, Turn,
        control::Directives,
        fill::until,
        freshness::{self, Verdict},
        object::{Object, Seat, Step},
        playlist::{self, Next, Segment},
        record::Meta,
    },
    exec,
    http::{
        range::RangeSpec,
        request::RequestHead,
        server::{Ending, HttpConnection},
    },
};

/// Fetches ahead on one core at once, a lane each on every path: a quarter of the lanes that there are by default, so that
/// clients find one. What is not fetched ahead is served as it is asked for.
const RUNNING_MAX: usize = 64;
/// What is fetched ahead ends when its viewer's connection has been closed for so long: players that open one for each
/// segment, or change the network, are back by then.
const LINGER: Duration = Duration::from_secs(5);
/// Bytes fetched ahead of who reads a file in order: as many as it asks for at a time, but no fewer than 2 s of 8 Mbit/s, and
/// no more than a viewer who leaves may cost.
const READ_AHEAD_BYTES: RangeInclusive<u64> = 2 << 20..=8 << 20;
/// Fetches of what a span lacks, before it is left to who asks for it: one, and three more where the root or a path fails, as
/// for a client. Those that bring a few bytes count as well: nobody waits for the rest.
const FETCHES_MAX: usize = 4;
/// How long a playlist may take to the disk after it was sent.
const PLAYLIST_DEADLINE: Duration = Duration::from_secs(10);

/// How many run on this core.
#[derive(Clone, Default)]
pub(super) struct Ahead(Rc<Cell<usize>>);

/// Places of some of them.
struct Running {
    all: Rc<Cell<usize>>,
    count: usize,
}

impl Ahead {
    /// Up to `wanted` places; none if there is none.
    fn enter(&self, wanted: usize) -> Option<Running> {
        let count = wanted.min(RUNNING_MAX - self.0.get());
        (count > 0).then(|| {
            self.0.set(self.0.get() + count);
            Running { all: self.0.clone(), count }
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.all.set(self.all.get() - self.count);
    }
}

/// A request for the URL with `key` is answered with `span`: fetches what comes next, if that is known. `onward` is that request as the root would read it; `caught_up`: what it asks for was fetched ahead, and is not
/// there yet. False if no playlist names it.
pub(super) fn follow(
    edge: &Edge,
    connection: &mut HttpConnection,
    onward: impl FnOnce() -> Option<RequestHead>,
    (key, span): (Key, &Range<u64>),
    caught_up: bool,
) -> bool {
    let Next { segments, at_once } = edge.cache.next_segments(key, span, caught_up);
    if segments.is_empty() {
        return false;
    }
    let Some(onward) = onward().filter(may_be_for_others) else { return true };
    let mut requests: Vec<_> =
        segments.into_iter().filter_map(|segment| request_for(&onward, segment)).collect();
    if at_once {
        // Most have been begun when the one before was asked for.
        requests.retain(|(request, span)| span.is_some() || !edge.cache.expects(&cache::url(request)));
    }
    let Some(running) = edge.ahead.enter(if at_once { requests.len() } else { 1 }) else { return true };
    let (edge, viewer) = (edge.clone(), connection.ending());
    exec::spawn(async move {
        let fetched = stream::iter(&requests).map(async |(request, span)| {
            Quest::new(&edge, request, request.clone()).fetch_ahead(span.clone()).await;
        });
        unless_left(viewer, fetched.buffered(running.count).for_each(async |()| {})).await;
        drop(running);
    });
    true
}

/// `span` of `object` is sent: fetches what is behind it, for a client that reads range after range.
pub(super) fn read_on(
    edge: &Edge,
    connection: &mut HttpConnection,
    onward: &RequestHead,
    object: &Arc<Object>,
    span: &Range<u64>,
) {
    if !onward.headers.contains_key(RANGE) || object.is_whole() || !stored::joins(object) {
        return;
    }
    let Ok(client) = connection.socket().peer() else { return };
    if !edge.cache.reads_on(object.key(), client.ip(), span) || !may_be_for_others(onward) {
        return;
    }
    let bytes = (span.end - span.start).clamp(*READ_AHEAD_BYTES.start(), *READ_AHEAD_BYTES.end());
    let ahead = span.end..object.len().min(span.end + bytes);
    // Not at every request, and few bytes each time.
    if object.comes_until(span.end) >= ahead.end.min(span.end + bytes / 2) {
        return;
    }
    let Some(running) = edge.ahead.enter(1) else { return };
    let (edge, object, onward, viewer) = (edge.clone(), object.clone(), onward.clone(), connection.ending());
    exec::spawn(async move {
        let quest = Quest::new(&edge, &onward, onward.clone());
        unless_left(viewer, quest.wait_for(&object, ahead, true)).await;
        drop(running);
    });
}

/// Nothing is fetched ahead for who wants nothing stored, or nothing of the root.
fn may_be_for_others(onward: &RequestHead) -> bool {
    let asked = Directives::of_request(&onward.headers);
    !asked.no_store && !asked.only_if_cached
}

/// Does `work`, until its viewer has left.
async fn unless_left(mut viewer: Ending, work: impl Future<Output = ()>) {
    let left = async {
        viewer.wait().await;
        exec::sleep(LINGER).await;
    }
    .fuse();
    let work = work.fuse();
    pin_mut!(left, work);
    select_biased! {
        () = work => {}
        () = left => {}
    }
}

/// The request of the same player for a segment.
fn request_for(onward: &RequestHead, segment: Segment) -> Option<(RequestHead, Option<Range<u64>>)> {
    let host = onward.headers.get(HOST)?.to_str().ok()?;
    let mut request = RequestHead::new(Method::GET, &segment.target, host).ok()?;
    request.headers = onward.headers.clone();
    // What it wants of the bytes that it asks for, as that they are validated, it has not said of others.
    for name in [RANGE, CACHE_CONTROL, PRAGMA] {
        request.headers.remove(name);
    }
    stored::remove_conditions(&mut request.headers);
    if let Some(span) = &segment.span {
        let range = RangeSpec::FromTo { first: span.start, last: span.end - 1 };
        request.headers.insert(RANGE, range.to_value());
    }
    Some((request, segment.span))
}

/// `object` was sent: if it is a playlist, reads once what it says.
pub(super) fn learn(edge: &Edge, onward: &RequestHead, object: &Arc<Object>) {
    let headers = &object.meta().headers;
    let is_playlist =
        freshness::is_playlist(headers, onward.target()) && object.len() <= playlist::PLAYLIST_BYTES_MAX;
    if !is_playlist || !object.is_first_reading() {
        return;
    }
    let (cache, object, target) = (edge.cache.clone(), object.clone(), onward.target().to_owned());
    exec::spawn(async move {
        let whole = until(object.changed(), || object.present_bytes() == object.len());
        if exec::timeout(PLAYLIST_DEADLINE, whole).await.is_err() {
            return;
        }
        let read = object.clone();
        let Ok(text) = exec::blocking(move || read.read_all()).await else { return };
        let meta = object.meta();
        let host = meta.url.strip_suffix(&target).unwrap_or_default().to_owned();
        let Some(reading) = playlist::read(&text, &host, &target) else { return };
        let usual = freshness::usual_lifetime(&meta.headers, &target, Some(reading.kind));
        let (headers, selecting) = (meta.headers.clone(), meta.selecting.clone());
        let times = meta.requested_at..meta.received_at;
        object.set_meta(Meta::new(meta.url.clone(), headers, selecting, times, usual));
        cache.record(&object);
        cache.learn(&host, reading.segments);
    });
}

impl Quest<'_> {
    /// Brings a span of what is asked for, or all of it, into the cache.
    async fn fetch_ahead(&self, span: Option<Range<u64>>) {
        let now = SystemTime::now();
        let fresh =
            self.find().filter(|object| object.meta().freshness.verdict(&self.asked, now) == Verdict::Fresh);
        let (object, begun) = match fresh {
            Some(object) => (object, None),
            None => {
                // Who asks already brings it, and what is not for the cache is not for us.
                let Turn::Yours(asking) = self.edge.cache.turn(self.key) else { return };
                let requested_at = SystemTime::now();
                let Ok(answer) = fetch(&self.edge.manager, &self.onward).await else { return };
                match self.keep(answer, requested_at, asking) {
                    Ok((object, begun)) => (object, Some(begun)),
                    Err((_, asking)) => return asking.is_uncacheable(),
                }
            }
        };
        let meta = object.meta();
        let joins = stored::joins(&object);
        let ranged = stored::plan(self.request, &meta, object.len(), joins, now);
        let span = match (span, ranged) {
            (Some(_), Answer::Send(_, span)) => span,
            _ => 0..object.len(),
        };
        if let Some(begun) = begun {
            self.edge.start_ahead(begun, joins);
        }
        self.wait_for(&object, span, joins).await;
    }

    /// Stays a reader of the span until it is there, or cannot be had for the cache.
    async fn wait_for(&self, object: &Arc<Object>, span: Range<u64>, joins: bool) {
        let (mut position, mut seat): (u64, Option<Seat>) = (span.start, None);
        let mut fetches = 0;
        // What is not stored any more takes no bytes, and would lack them each time.
        while position < span.end && object.is_stored() {
            let mut told = std::pin::pin!(object.changed().notified());
            told.as_mut().enable();
            match object.step(position..span.end, &mut seat, joins) {
                Step::Present(there) => position = there.end,
                Step::Coming => {
                    if exec::timeout(LANES_STALL_MAX, told).await.is_err() {
                        return;
                    }
                }
                Step::Missing(_) if fetches == FETCHES_MAX => return,
                Step::Missing(lead) => {
                    fetches += 1;
                    let meta = object.meta();
                    let Some(validator) = stored::strong_validator(&meta.headers) else { return };
                    let mut onward = self.onward.clone();
                    stored::ask_for_span(&mut onward.headers, &lead.span, validator);
                    let Ok(answer) = fetch(&self.edge.manager, &onward).await else { return };
                    let fits = stored::is_span(&answer.head, answer.framing, &meta, object.len(), &lead.span);
                    if fits && must_forget(&onward.headers, &answer.head) {
                        self.edge.cache.forget_object(object);
                    }
                    if !fits || !freshness::may_store(&onward, &answer.head) {
                        return;
                    }
                    self.edge.start_ahead(Begun { incoming: answer.incoming, lead, debut: None }, joins);
                }
                Step::Lost => return,
            }
        }
    }
}
