//! Answers requests from the cache, and from the root what the cache lacks.
//!
//! In: requests of clients on this core. Out: answers whose bytes come from a file by sendfile, from lanes by splice, or
//! first the one and then the other. Invariants: the root is asked once for what many want at the same time; all bytes of
//! an answer are of one version of the response; what cannot be completed ends in a reset.

use std::{
    cell::Cell,
    io,
    ops::Range,
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{FutureExt, pin_mut, select_biased};
use http::{Method, StatusCode, header::HOST};

use super::{
    RootAnswer,
    ahead::{self, Ahead},
    ask_root, default_host, relay,
    sending::{Failure, Sending},
    stalled,
    stored::{self, Answer, CACHE_STATUS, Way},
    validation::{Confirmed, is_out_of_date},
};
use crate::{
    cache::{
        self, Asked, Asking, Cache, Debut, Key, Turn,
        control::Directives,
        fill::{self, Attachment, Fill},
        freshness::{self, Verdict},
        object::{Lead, Object, Step},
        record::Meta,
    },
    exec,
    http::{
        forward,
        multipart::{self, Multipart},
        problem::{Problem, Side},
        range::ByteRange,
        request::RequestHead,
        response::ResponseHead,
        server::HttpConnection,
    },
    mp::{
        consumer::{Sink, TransferError},
        manager::{Incoming, Manager},
    },
};

/// How often a request looks into the cache before it goes to the root by itself: once, once more after the answer that it
/// has waited for, and again where that was about another representation (`Vary`).
const ROUNDS: usize = 3;
/// How often an answer that was not begun begins anew, because what is stored turned out to be of another version: a file
/// that changes more often is told to be asked for again.
const ANEW_MAX: usize = 2;
/// How long requests wait for the end of an answer that has come without a length: a playlist's is there with its head.
const END_AWAITED_MAX: Duration = Duration::from_secs(1);
/// The cache, and the way to the root; one for each core.
#[derive(Clone)]
pub(super) struct Edge {
    pub(super) manager: Rc<Manager>,
    pub(super) cache: Arc<Cache>,
    pub(super) ahead: Ahead,
}

/// A request on its way through the cache.
pub(super) struct Quest<'a> {
    pub(super) edge: &'a Edge,
    pub(super) request: &'a RequestHead,
    /// As the root will read it.
    pub(super) onward: RequestHead,
    url: String,
    pub(super) key: Key,
    pub(super) asked: Directives,
    /// How often it began anew.
    begun_anew: Cell<usize>,
}

/// A fetch whose answer has begun.
pub(super) struct Begun {
    pub(super) incoming: Incoming,
    pub(super) lead: Lead,
    /// It made the object, which others wait for.
    pub(super) debut: Option<Debut>,
}

impl Edge {
    /// Sends one whole answer; an error says that it could not be completed.
    pub(super) async fn answer(
        &self,
        connection: &mut HttpConnection,
        request: &RequestHead,
    ) -> io::Result<()> {
        let url = cache::url(request);
        let key = Key::of(&url);
        if self.hit(connection, request, (&url, key)).await? {
            return Ok(());
        }
        let onward = match forward::request_to_root(request, default_host(connection, request).as_ref()) {
            Ok(head) => head,
            Err(error) => return connection.respond_problem(&error.problem()).await,
        };
        // Only a request without a Host, or with one elsewhere, becomes another one on its way.
        let quest =
            if onward.headers.get(HOST) == request.headers.get(HOST) && onward.target() == request.target() {
                Quest::of(self, request, onward, (url, key))
            } else {
                Quest::new(self, request, onward)
            };
        // In a place of its own: hits, which are most answers, need no room for it.
        Box::pin(quest.answer(connection)).await
    }
}

impl<'a> Quest<'a> {
    pub(super) fn new(edge: &'a Edge, request: &'a RequestHead, onward: RequestHead) -> Self {
        let url = cache::url(&onward);
        let key = Key::of(&url);
        Self::of(edge, request, onward, (url, key))
    }

    /// The same, of what the root will be asked for.
    fn of(edge: &'a Edge, request: &'a RequestHead, onward: RequestHead, (url, key): (String, Key)) -> Self {
        let asked = Directives::of_request(&request.headers);
        Self { edge, request, key, url, onward, asked, begun_anew: Cell::new(0) }
    }

    async fn answer(&self, connection: &mut HttpConnection) -> io::Result<()> {
        let arrived = SystemTime::now();
        for _ in 0..ROUNDS {
            let found = self.find();
            if let Some(object) = &found {
                let (meta, now) = (object.meta(), SystemTime::now());
                let verdict = meta.freshness.verdict(&self.asked, now);
                let way = match verdict {
                    Verdict::Fresh | Verdict::WhileRevalidating => Some(Way::Hit),
                    // The root has confirmed it since this request came, for another one.
                    Verdict::Validate if meta.received_at >= arrived => Some(Way::Collapsed),
                    Verdict::Validate => None,
                };
                if let Some(way) = way.filter(|_| !self.asked.only_if_cached || self.is_there(object)) {
                    if verdict == Verdict::WhileRevalidating {
                        self.revalidate_meanwhile(object);
                    }
                    return self.serve(connection, object, None, way).await;
                }
            }
            // RFC 9111 section 5.2.1.7: "respond with a 504 (Gateway Timeout) status code".
            if self.asked.only_if_cached {
                let text = "it is not in the cache, or not all of it, and the request says only-if-cached";
                return connection
                    .respond_problem(&Problem::new(StatusCode::GATEWAY_TIMEOUT, Side::Client, text))
                    .await;
            }
            if !self.is_for_cache(found.is_some()) {
                break;
            }
            match self.edge.cache.turn(self.key) {
                Turn::Yours(asking) => return self.ask(connection, asking, found).await,
                Turn::Others(mut told) => {
                    if told.wait_for(|outcome| *outcome == Asked::Uncacheable).await.is_ok() {
                        break;
                    }
                }
            }
        }
        let requested_at = SystemTime::now();
        match ask_root(&self.edge.manager, connection, &self.onward).await? {
            Ok(answer) => {
                let status = answer.head.status;
                let way = if self.request.method == Method::GET { "bypass" } else { "method" };
                self.hear(&answer.head, requested_at);
                self.pass_on(connection, answer, Way::Forwarded(way, Some(status))).await
            }
            Err(problem) => connection.respond_problem(&problem).await,
        }
    }

    /// The stored response for this request (RFC 9111 section 4.1), fresh or stale.
    pub(super) fn find(&self) -> Option<Arc<Object>> {
        self.edge.cache.find(self.key, &self.url, |meta| self.is_selected(meta))
    }

    /// Whether a stored response is of the variant that this request asks for.
    fn is_selected(&self, meta: &Meta) -> bool {
        freshness::selects(&self.onward.headers, &meta.headers, &meta.selecting)
    }

    /// Whether all bytes that the answer needs are there now.
    fn is_there(&self, object: &Arc<Object>) -> bool {
        let spans = match self.plan(object, &object.meta(), SystemTime::now()) {
            _ if self.request.method != Method::GET => Vec::new(),
            Answer::Send(_, span) => vec![span],
            Answer::SendParts(_, _, parts) => parts.into_iter().map(multipart::span).collect(),
            Answer::NotModified(_) | Answer::Refuse(_) => Vec::new(),
        };
        spans.into_iter().all(|span| {
            let mut position = span.start;
            // Who joins no answers begins no fetch by asking for a step.
            while let Step::Present(there) = object.step(position..span.end, &mut None, false) {
                position = there.end;
                if position == span.end {
                    return true;
                }
            }
            span.is_empty()
        })
    }

    fn plan(&self, object: &Object, meta: &Meta, now: SystemTime) -> Answer {
        let ranges = stored::joins(object) || object.is_whole();
        stored::plan(self.request, meta, object.len(), ranges, now)
    }

    /// Whether the root's answer may be of use to others, and others' to this request.
    fn is_for_cache(&self, known: bool) -> bool {
        self.request.method == Method::GET
            && !self.asked.no_store
            && !stored::has_odd_range(self.request)
            // Of something unknown the client asks only whether it has changed: that is the cheapest answer.
            && (known || !stored::is_conditional(self.request))
    }

    /// Asks the root, for this request and all that wait.
    async fn ask(
        &self,
        connection: &mut HttpConnection,
        asking: Asking,
        stale: Option<Arc<Object>>,
    ) -> io::Result<()> {
        let mut onward = self.onward.clone();
        if let Some(stale) = &stale {
            stored::validate(&mut onward.headers, &stale.meta());
        }
        let requested_at = SystemTime::now();
        let why = self.why_asked(stale.as_deref(), requested_at);
        let answer = ask_root(&self.edge.manager, connection, &onward).await?;
        let (status, answered) = match &answer {
            Ok(answer) => (answer.head.status, Some(answer.head.status)),
            Err(problem) => (problem.status, None),
        };
        let way = Way::Forwarded(why, answered);
        let now = SystemTime::now();
        if let Some(stale) = &stale
            && stale.meta().freshness.serves_on_error(status, &self.asked, now)
        {
            drop((asking, answer));
            return self.serve(connection, stale, None, way).await;
        }
        // RFC 9111 section 5.2.2.2: a cache that is cut off "MUST generate an error response rather than reuse the stale
        // response", which "SHOULD be a 504". Who makes a 502 on the way to the root is cut off like us.
        let told = match &stale {
            Some(stale) if status == StatusCode::BAD_GATEWAY && stale.meta().freshness.is_held_back(now) => {
                StatusCode::GATEWAY_TIMEOUT
            }
            _ => status,
        };
        let answer = match answer {
            Ok(mut answer) => {
                answer.head.status = told;
                answer
            }
            Err(mut problem) => {
                drop(asking);
                problem.status = told;
                return connection.respond_problem(&problem).await;
            }
        };
        if answer.head.status == StatusCode::NOT_MODIFIED
            && let Some(stale) = stale
        {
            let confirmed = self.confirm(&stale, &answer.head.headers, requested_at);
            if !matches!(confirmed, Confirmed::Stays) {
                asking.is_uncacheable();
            }
            let meta = match confirmed {
                Confirmed::Stays | Confirmed::Goes => stale.meta(),
                Confirmed::Apart(meta) => Arc::new(*meta),
                Confirmed::Other => {
                    // The root confirms something that it was not asked about.
                    let text = "it answered 304 for another version than it was asked about";
                    return connection
                        .respond_problem(&Problem::new(StatusCode::BAD_GATEWAY, Side::Root, text))
                        .await;
                }
            };
            drop((asking, answer));
            return self.serve_as(connection, (&stale, &meta), None, way).await;
        }
        match self.keep(answer, requested_at, asking) {
            Ok((object, begun)) => self.serve(connection, &object, Some(begun), way).await,
            Err((answer, asking)) => {
                if let Some(stale) = stale.filter(|_| is_out_of_date(&onward.headers, answer.head.status)) {
                    self.edge.cache.forget_object(&stale);
                }
                if stored::may_be_duplicated(&self.onward, &answer.head, answer.framing)
                    && let Some(meta) = self.meta(&answer.head, requested_at)
                {
                    return self.pass_on_and_keep(connection, *answer, way, (asking, meta)).await;
                }
                asking.is_uncacheable();
                drop(asking);
                self.pass_on(connection, *answer, way).await
            }
        }
    }

    /// Why the root is asked, though this may be stored (RFC 9211 section 2.2).
    fn why_asked(&self, stored: Option<&Object>, now: SystemTime) -> &'static str {
        let usually = |object: &Object| object.meta().freshness.verdict(&Directives::default(), now);
        match stored {
            Some(object) if usually(object) == Verdict::Fresh => "request",
            Some(_) => "stale",
            None if self.edge.cache.find(self.key, &self.url, |_| true).is_some() => "vary-miss",
            None => "uri-miss",
        }
    }

    /// Makes an object of the root's answer, or gives the answer back if it is not for the cache.
    pub(super) fn keep(
        &self,
        answer: RootAnswer,
        requested_at: SystemTime,
        asking: Asking,
    ) -> Result<(Arc<Object>, Begun), (Box<RootAnswer>, Asking)> {
        let span = stored::object_span(&self.onward, &answer.head, answer.framing);
        let Some((len, span)) = span else { return Err((Box::new(answer), asking)) };
        let Some(meta) = self.meta(&answer.head, requested_at) else {
            return Err((Box::new(answer), asking));
        };
        let (object, lead) = self.make(len, meta, span);
        if stored::ignores_ranges(&self.onward, answer.head.status) {
            object.set_comes_whole();
        }
        let debut = Some(Debut::new(object.clone(), asking));
        Ok((object, Begun { incoming: answer.incoming, lead, debut }))
    }

    /// What is stored of an answer that comes now, besides its body; none if that is too much.
    fn meta(&self, head: &ResponseHead, requested_at: SystemTime) -> Option<Meta> {
        let headers = stored::end_to_end(&head.headers);
        let selecting = freshness::selecting_headers(&self.onward.headers, &headers);
        let usual = freshness::usual_lifetime(&headers, self.onward.target(), None);
        let times = requested_at..SystemTime::now();
        Some(Meta::new(self.url.clone(), headers, selecting, times, usual)).filter(Meta::is_storable)
    }

    /// An object that nobody finds yet.
    fn make(&self, len: u64, meta: Meta, span: Range<u64>) -> (Arc<Object>, Lead) {
        let place = self.edge.cache.place(self.key, &self.url, |meta| self.is_selected(meta));
        let object = Object::new(place, len, meta);
        let lead = object.begin(span);
        (object, lead)
    }

    /// Passes an answer on whose length nobody knows, and keeps it if it comes to its end. Who asks for the same meanwhile
    /// waits for that, but not for long: the answer may have no end.
    async fn pass_on_and_keep(
        &self,
        connection: &mut HttpConnection,
        mut answer: RootAnswer,
        way: Way,
        (asking, meta): (Asking, Meta),
    ) -> io::Result<()> {
        let duplicate = answer.incoming.consumer.duplicate();
        {
            let passed = self.pass_on(connection, answer, way).fuse();
            let patience = exec::sleep(END_AWAITED_MAX).fuse();
            pin_mut!(passed, patience);
            loop {
                select_biased! {
                    outcome = passed => break outcome?,
                    () = patience => asking.is_uncacheable(),
                }
            }
        }
        let Some(body) = duplicate.take().filter(|body| !body.is_empty()) else {
            asking.is_uncacheable();
            return Ok(());
        };
        let (object, lead) = self.make(body.len() as u64, meta, 0..body.len() as u64);
        self.edge.cache.publish(&object);
        Fill::with_all(self.edge.cache.clone(), lead, body);
        ahead::learn(self.edge, &self.onward, &object);
        let cache = self.edge.cache.clone();
        exec::spawn(async move {
            // Whoever waits is not sent to an object that the disk refuses.
            let settled = || object.present_bytes() == object.len() || !object.is_stored();
            let settled = exec::timeout(END_AWAITED_MAX, fill::until(object.changed(), settled)).await;
            if settled.is_err() || !object.is_stored() {
                cache.forget_object(&object);
            }
            drop(asking);
        });
        Ok(())
    }

    async fn pass_on(&self, connection: &mut HttpConnection, answer: RootAnswer, way: Way) -> io::Result<()> {
        let header = (CACHE_STATUS, stored::cache_status(way, None));
        connection.account().set_cache(way.cache_use());
        relay(&self.edge.manager, connection, (self.request, &self.onward), answer, Some(header)).await
    }

    /// Answers from `object`, whose first missing bytes `begun` brings, if it is given.
    async fn serve(
        &self,
        connection: &mut HttpConnection,
        object: &Arc<Object>,
        begun: Option<Begun>,
        way: Way,
    ) -> io::Result<()> {
        self.serve_as(connection, (object, &object.meta()), begun, way).await
    }

    /// The same with what the root says of the object to this client.
    async fn serve_as(
        &self,
        connection: &mut HttpConnection,
        (object, meta): (&Arc<Object>, &Meta),
        begun: Option<Begun>,
        way: Way,
    ) -> io::Result<()> {
        let now = SystemTime::now();
        let joins = stored::joins(object);
        let ranged = self.plan(object, meta, now);
        let status = stored::cache_status(way, Some((meta, now)));
        connection.account().set_cache(way.cache_use());
        let (edge, onward) = (self.edge, &self.onward);
        let outcome = match ranged {
            Answer::Send(head, span) if self.request.method == Method::GET => {
                let (start, whole, head) = (span.start, span.clone(), Some((head, way)));
                // What this client waits for itself comes first, unless that was fetched ahead for it, or for another.
                let waits = !object.is_whole();
                let follow = |connection: &mut HttpConnection, caught_up| {
                    let from = (self.key, &whole);
                    ahead::follow(edge, connection, || Some(onward.clone()), from, caught_up)
                };
                let read_on = |connection: &mut HttpConnection| {
                    ahead::read_on(edge, connection, onward, object, &whole)
                };
                let is_there = begun.is_none() && object.comes_until(start) >= span.end;
                let follows_after = waits && begun.is_some();
                let mut is_followed = !follows_after && follow(connection, waits);
                if is_there && !is_followed {
                    read_on(connection);
                }
                let mut sending = Sending::new(edge, onward, object, span, head);
                match begun {
                    Some(begun) if begun.lead.span.start == start => {
                        sending.begin(connection, way, begun).await?;
                    }
                    Some(begun) => edge.start(begun, None, joins),
                    None => {}
                }
                let outcome = sending.run(connection).await;
                if outcome.is_ok() {
                    ahead::learn(edge, onward, object);
                    is_followed = is_followed || (follows_after && follow(connection, false));
                    if !is_there && !is_followed {
                        read_on(connection);
                    }
                }
                if let Err(Failure::Broken(error)) = &outcome {
                    let (what, sent) = (self.request.target(), sending.position() - start);
                    tracing::info!(what, sent, "{error}; the client's connection is reset");
                }
                outcome
            }
            Answer::SendParts(mut head, lines, parts) if self.request.method == Method::GET => {
                if let Some(begun) = begun {
                    edge.start(begun, None, joins);
                }
                head.headers.append(CACHE_STATUS, status);
                connection.send_head(head, true, true).await?;
                self.send_parts(connection, object, &lines, &parts).await
            }
            Answer::Send(mut head, _) | Answer::SendParts(mut head, ..) | Answer::NotModified(mut head) => {
                drop(begun);
                head.headers.append(CACHE_STATUS, status);
                connection.send_head(head, true, false).await.map_err(Failure::Broken)
            }
            Answer::Refuse(problem) => {
                drop(begun);
                return connection.respond_problem_with(&problem, Some((CACHE_STATUS, status))).await;
            }
        };
        match outcome {
            Ok(()) => {
                connection.finish_response();
                Ok(())
            }
            Err(Failure::Problem(problem)) => connection.respond_problem(&problem).await,
            Err(Failure::Answered(answer)) => self.pass_on(connection, *answer, Way::Partial).await,
            Err(Failure::Outdated) if self.begun_anew.get() < ANEW_MAX => {
                self.begun_anew.set(self.begun_anew.get() + 1);
                Box::pin(self.answer(connection)).await
            }
            Err(Failure::Outdated) => {
                let text = "the file changes again and again while it is asked for";
                connection.respond_problem(&Problem::new(StatusCode::BAD_GATEWAY, Side::Root, text)).await
            }
            Err(Failure::Broken(error)) => Err(error),
        }
    }

    /// The body of a `multipart/byteranges` answer.
    async fn send_parts(
        &self,
        connection: &mut HttpConnection,
        object: &Arc<Object>,
        lines: &Multipart,
        parts: &[ByteRange],
    ) -> Result<(), Failure> {
        for &part in parts {
            connection.send(&lines.before(part), true).await?;
            Sending::new(self.edge, &self.onward, object, multipart::span(part), None)
                .run(connection)
                .await?;
        }
        connection.send(&lines.end(), false).await?;
        Ok(())
    }
}

impl Edge {
    /// Runs a fetch as a task of this core, to its end or until nobody wants the rest.
    pub(super) fn start(&self, begun: Begun, attachment: Option<Rc<Attachment>>, joins: bool) {
        let debut = Rc::new(Cell::new(begun.debut));
        let fill = Fill::new(self.cache.clone(), begun.lead, attachment).with_debut(debut.clone());
        self.run(begun.incoming, fill, joins);
        // The client has been given what is there.
        debut.take();
    }

    /// The same for a fetch that gives way to clients who wait.
    pub(super) fn start_ahead(&self, begun: Begun, joins: bool) {
        let fill = Fill::new(self.cache.clone(), begun.lead, None).giving_way();
        self.run(begun.incoming, fill, joins);
    }

    fn run(&self, incoming: Incoming, fill: Fill, joins: bool) {
        let cache = self.cache.clone();
        let is_attached = fill.is_attached();
        let mut task = Box::pin(async move {
            let (mut incoming, mut fill) = (incoming, fill);
            let (object, length, vigil) = (fill.object().clone(), fill.len(), fill.vigil());
            let progress = incoming.consumer.progress();
            let outcome = {
                let moved = incoming.consumer.run(Sink::Fill(&mut fill), Some(length)).fuse();
                let unwanted = vigil.unwanted().fuse();
                // Clients are watched by the tasks that serve them.
                let silent = stalled(&progress, Duration::MAX).fuse();
                pin_mut!(moved, unwanted, silent);
                select_biased! {
                    outcome = moved => outcome.err(),
                    () = unwanted => Some(cache::fill::Unwanted.into()),
                    error = silent => Some(error),
                }
            };
            // The lanes are free from here on.
            drop(incoming);
            fill.settle().await;
            drop(fill);
            // Without a validator the rest of this very answer is the only one that fits.
            if !joins && !object.is_whole() {
                cache.forget_object(&object);
            }
            match outcome {
                None | Some(TransferError::Unwanted(_)) => {}
                Some(error) => {
                    tracing::info!(url = object.meta().url, "a fetch for the cache ended: {error}")
                }
            }
        });
        // The client's first bytes are most often there: they do not wait for the task's turn.
        if is_attached && task.as_mut().now_or_never().is_some() {
            return;
        }
        exec::spawn(task);
    }
}
