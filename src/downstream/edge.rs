//! Answers requests from the cache, and from the root what the cache lacks.
//!
//! In: requests of clients on this core. Out: answers whose bytes come from a file by sendfile, from lanes by splice, or
//! first the one and then the other. Invariants: the root is asked once for what many want at the same time; all bytes of
//! an answer are of one version of the response; what cannot be completed ends in a reset.

use std::{
    io,
    ops::Range,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use futures_util::{FutureExt, pin_mut, select_biased};
use http::{HeaderMap, Method, StatusCode, header::RANGE};

use super::{
    DEADLINE_CHECK, LANES_STALL_MAX, RootAnswer, ask_root, default_host, fetch, relay, stalled,
    stored::{self, Answer, CACHE_STATUS, Way},
};
use crate::{
    cache::{
        self, Asked, Asking, Cache, Key, Turn,
        control::Directives,
        fill::{Attachment, Fill, Vigil},
        freshness::{self, Verdict},
        object::{Lead, Object, Seat, Step},
        record::{BODY_OFFSET, Meta},
    },
    exec::{self, Interest},
    http::{
        forward,
        problem::{Problem, Side},
        request::RequestHead,
        response::ResponseHead,
        server::HttpConnection,
    },
    mp::{
        consumer::{Sink, TransferError},
        manager::{Incoming, Manager},
    },
    net::sendfile,
};

/// How often a request looks into the cache before it goes to the root by itself: once, once more after the answer that it
/// has waited for, and again where that was about another representation (`Vary`).
const ROUNDS: usize = 3;
/// Fetches of the rest that end without a byte, one after the other, before the answer is given up.
const FRUITLESS_FETCHES_MAX: u32 = 3;

/// The cache, and the way to the root; one for each core.
pub(super) struct Edge {
    pub(super) manager: Rc<Manager>,
    pub(super) cache: Arc<Cache>,
}

/// A request on its way through the cache.
struct Quest<'a> {
    edge: &'a Edge,
    request: &'a RequestHead,
    /// As the root will read it.
    onward: RequestHead,
    url: String,
    key: Key,
    asked: Directives,
}

/// A fetch whose answer has begun.
struct Begun {
    incoming: Incoming,
    lead: Lead,
}

impl Edge {
    /// Sends one whole answer; an error says that it could not be completed.
    pub(super) async fn answer(
        &self,
        connection: &mut HttpConnection,
        request: &RequestHead,
    ) -> io::Result<()> {
        let onward = match forward::request_to_root(request, default_host(connection, request).as_ref()) {
            Ok(head) => head,
            Err(error) => return connection.respond_problem(&error.problem()).await,
        };
        let url = cache::url(&onward);
        let asked = Directives::of_request(&request.headers);
        let quest = Quest { edge: self, request, key: Key::of(&url), url, onward, asked };
        quest.answer(connection).await
    }
}

impl Quest<'_> {
    async fn answer(&self, connection: &mut HttpConnection) -> io::Result<()> {
        let arrived = SystemTime::now();
        for _ in 0..ROUNDS {
            let found = self.find();
            if let Some(object) = &found {
                let (meta, now) = (object.meta(), SystemTime::now());
                match meta.freshness.verdict(&self.asked, now) {
                    Verdict::Fresh => return self.serve(connection, object, None, Way::Hit).await,
                    Verdict::WhileRevalidating => {
                        self.revalidate_meanwhile(object);
                        return self.serve(connection, object, None, Way::Hit).await;
                    }
                    // The root has confirmed it since this request came, for another one.
                    Verdict::Validate if meta.received_at >= arrived => {
                        return self.serve(connection, object, None, Way::Collapsed).await;
                    }
                    Verdict::Validate => {}
                }
            }
            // RFC 9111 section 5.2.1.7: "respond with a 504 (Gateway Timeout) status code".
            if self.asked.only_if_cached {
                let text = "it is not in the cache, and the request says only-if-cached";
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
        match ask_root(&self.edge.manager, connection, &self.onward).await? {
            Ok(answer) => {
                let status = answer.head.status;
                let way = if self.request.method == Method::GET { "bypass" } else { "method" };
                self.pass_on(connection, answer, Way::Forwarded(way, status)).await
            }
            Err(problem) => connection.respond_problem(&problem).await,
        }
    }

    /// The stored response for this request (RFC 9111 section 4.1), fresh or stale.
    fn find(&self) -> Option<Arc<Object>> {
        let object = self.edge.cache.find(self.key, &self.url)?;
        let meta = object.meta();
        freshness::selects(&self.onward.headers, &meta.headers, &meta.selecting).then_some(object)
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
        let answer = ask_root(&self.edge.manager, connection, &onward).await?;
        let failed = answer.as_ref().map_or(true, |answer| answer.head.status.is_server_error());
        if let Some(stale) = stale.as_ref().filter(|_| failed)
            && stale.meta().freshness.serves_on_error(&self.asked, SystemTime::now())
        {
            drop(asking);
            return self.serve(connection, stale, None, Way::Hit).await;
        }
        let answer = match answer {
            Ok(answer) => answer,
            Err(problem) => {
                drop(asking);
                return connection.respond_problem(&problem).await;
            }
        };
        let why = match &stale {
            None => "uri-miss",
            Some(_) if self.asked.no_cache || self.asked.max_age.is_some() => "request",
            Some(_) => "stale",
        };
        let way = Way::Forwarded(why, answer.head.status);
        if answer.head.status == StatusCode::NOT_MODIFIED
            && let Some(stale) = stale
        {
            if self.freshen(&stale, &answer.head.headers, requested_at) {
                drop((asking, answer));
                return self.serve(connection, &stale, None, way).await;
            }
            // The root confirms something that it was not asked about.
            self.edge.cache.forget_object(&stale);
            asking.is_uncacheable();
            let text = "it answered 304 for another version than it was asked about";
            return connection
                .respond_problem(&Problem::new(StatusCode::BAD_GATEWAY, Side::Root, text))
                .await;
        }
        match self.keep(answer, requested_at) {
            Ok((object, begun)) => {
                drop(asking);
                self.serve(connection, &object, Some(begun), way).await
            }
            Err(answer) => {
                if let Some(stale) = stale.filter(|_| !answer.head.status.is_server_error()) {
                    self.edge.cache.forget_object(&stale);
                }
                asking.is_uncacheable();
                drop(asking);
                self.pass_on(connection, *answer, way).await
            }
        }
    }

    /// Makes an object of the root's answer, or gives the answer back if it is not for the cache.
    fn keep(
        &self,
        answer: RootAnswer,
        requested_at: SystemTime,
    ) -> Result<(Arc<Object>, Begun), Box<RootAnswer>> {
        let span = stored::object_span(&self.onward, &answer.head, answer.framing);
        let Some((len, span)) = span else { return Err(Box::new(answer)) };
        let headers = stored::end_to_end(&answer.head.headers);
        let selecting = freshness::selecting_headers(&self.onward.headers, &headers);
        let usual = freshness::usual_lifetime(&headers, self.onward.target(), None);
        let times = requested_at..SystemTime::now();
        let meta = Meta::new(self.url.clone(), headers, selecting, times, usual);
        if !meta.is_storable() {
            return Err(Box::new(answer));
        }
        let object = Object::new(self.key, len, meta);
        let lead = object.begin(span);
        self.edge.cache.publish(&object);
        Ok((object, Begun { incoming: answer.incoming, lead }))
    }

    /// Takes over what a 304 says. False if it is about another version.
    fn freshen(&self, object: &Arc<Object>, confirmed: &HeaderMap, requested_at: SystemTime) -> bool {
        let meta = object.meta();
        let Some(headers) = stored::freshened(&meta, confirmed) else { return false };
        let times = requested_at..SystemTime::now();
        object.set_meta(Meta::new(meta.url.clone(), headers, meta.selecting.clone(), times, meta.usual));
        self.edge.cache.record(object);
        true
    }

    /// Validates what is stale and served nevertheless, unless somebody does already.
    fn revalidate_meanwhile(&self, object: &Arc<Object>) {
        let Turn::Yours(asking) = self.edge.cache.turn(self.key) else { return };
        let (manager, cache) = (self.edge.manager.clone(), self.edge.cache.clone());
        let (object, mut onward) = (object.clone(), self.onward.clone());
        onward.headers.remove(RANGE);
        stored::validate(&mut onward.headers, &object.meta());
        exec::spawn(async move {
            let requested_at = SystemTime::now();
            let Ok(answer) = fetch(&manager, &onward).await else { return };
            let meta = object.meta();
            match answer.head.status {
                StatusCode::NOT_MODIFIED => {
                    if let Some(headers) = stored::freshened(&meta, &answer.head.headers) {
                        let times = requested_at..SystemTime::now();
                        let (url, selecting) = (meta.url.clone(), meta.selecting.clone());
                        object.set_meta(Meta::new(url, headers, selecting, times, meta.usual));
                        cache.record(&object);
                    }
                }
                // The next request fetches what there is now.
                status if !status.is_server_error() => cache.forget_object(&object),
                _ => {}
            }
            drop(asking);
        });
    }

    async fn pass_on(&self, connection: &mut HttpConnection, answer: RootAnswer, way: Way) -> io::Result<()> {
        let header = (CACHE_STATUS, stored::cache_status(way, None));
        relay(connection, self.request, answer, Some(header)).await
    }

    /// Answers from `object`, whose first missing bytes `begun` brings, if it is given.
    async fn serve(
        &self,
        connection: &mut HttpConnection,
        object: &Arc<Object>,
        begun: Option<Begun>,
        way: Way,
    ) -> io::Result<()> {
        let (meta, now) = (object.meta(), SystemTime::now());
        let validator = stored::strong_validator(&meta.headers);
        let ranges = validator.is_some() || object.is_whole();
        let (head, span) = match stored::plan(self.request, &meta, object.len(), ranges, now) {
            Answer::Send(head, span) if self.request.method == Method::GET => (head, span),
            Answer::Send(mut head, _) | Answer::NotModified(mut head) => {
                head.headers.append(CACHE_STATUS, stored::cache_status(way, Some((&meta, now))));
                connection.send_head(head, true, false).await?;
                connection.finish_response();
                return Ok(());
            }
            Answer::Refuse(problem) => return connection.respond_problem(&problem).await,
        };
        let mut sending = Sending {
            quest: self,
            object: object.clone(),
            joins: validator.is_some(),
            seat: None,
            position: span.start,
            end: span.end,
            head: Some((head, way)),
            fruitless: 0,
        };
        if let Some(Begun { incoming, lead }) = begun {
            if lead.span.start == span.start {
                sending.send_head(connection, way).await?;
                sending.ride(connection, incoming, lead).await?;
            } else {
                self.edge.start(incoming, lead, None, validator.is_some());
            }
        }
        match sending.run(connection).await {
            Ok(()) => {
                connection.finish_response();
                Ok(())
            }
            Err(Failure::Problem(problem)) => connection.respond_problem(&problem).await,
            Err(Failure::Broken(error)) => {
                let (what, sent) = (self.request.target(), sending.position - span.start);
                tracing::info!(what, sent, "{error}; the client's connection is reset");
                Err(error)
            }
        }
    }
}

impl Edge {
    /// Runs a fetch as a task of this core, to its end or until nobody wants the rest.
    fn start(&self, incoming: Incoming, lead: Lead, attachment: Option<Rc<Attachment>>, joins: bool) {
        let cache = self.cache.clone();
        exec::spawn(async move {
            let mut incoming = incoming;
            let (object, length) = (lead.object().clone(), lead.span.end - lead.span.start);
            let vigil = Vigil::new(&lead, attachment.clone());
            let mut fill = Fill::new(cache.clone(), lead, attachment);
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
    }
}

/// Why an answer is not complete.
enum Failure {
    /// Nothing was sent yet: the client is told.
    Problem(Problem),
    /// The connection must be reset.
    Broken(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Broken(error)
    }
}

/// A span of an object on its way to a client.
struct Sending<'a> {
    quest: &'a Quest<'a>,
    object: Arc<Object>,
    joins: bool,
    seat: Option<Seat>,
    position: u64,
    end: u64,
    head: Option<(ResponseHead, Way)>,
    fruitless: u32,
}

impl Sending<'_> {
    /// Sends the head, unless that was done.
    async fn send_head(&mut self, connection: &mut HttpConnection, way: Way) -> io::Result<()> {
        let Some((mut head, _)) = self.head.take() else { return Ok(()) };
        let status = stored::cache_status(way, Some((&self.object.meta(), SystemTime::now())));
        head.headers.append(CACHE_STATUS, status);
        connection.send_head(head, true, true).await
    }

    /// The way that is told, where the first byte is not there yet.
    fn way_if(&self, missing: Way) -> Way {
        match &self.head {
            Some((_, Way::Hit)) | None => missing,
            Some((_, way)) => *way,
        }
    }

    async fn run(&mut self, connection: &mut HttpConnection) -> Result<(), Failure> {
        if self.position == self.end {
            self.send_head(connection, self.way_if(Way::Hit)).await?;
        }
        while self.position < self.end {
            let object = self.object.clone();
            let mut told = std::pin::pin!(object.changed().notified());
            told.as_mut().enable();
            match object.step(self.position..self.end, &mut self.seat, self.joins) {
                Step::Present(span) => {
                    self.send_head(connection, self.way_if(Way::Hit)).await?;
                    self.send_file(connection, span).await?;
                }
                Step::Coming => {
                    self.send_head(connection, self.way_if(Way::Collapsed)).await?;
                    self.wait(connection, told).await?;
                }
                Step::Missing(lead) => self.fetch(connection, lead).await?,
                Step::Lost => {
                    let text =
                        "the rest of the answer is lost, and the root gives no validator to ask for it";
                    return Err(self.fail(Problem::new(StatusCode::BAD_GATEWAY, Side::Root, text)));
                }
            }
        }
        Ok(())
    }

    async fn send_file(&mut self, connection: &HttpConnection, span: Range<u64>) -> Result<(), Failure> {
        let Some(file) = self.object.file() else {
            return Err(io::Error::from(io::ErrorKind::NotFound).into());
        };
        let (length, stall_max) = (span.end - span.start, connection.deadlines().stall);
        let offset = BODY_OFFSET + span.start;
        let sent = sendfile(connection.socket(), file, offset, length, stall_max).await?;
        self.position += sent;
        self.fruitless = 0;
        if sent < length {
            // Somebody has cut the file off.
            self.quest.edge.cache.forget_object(&self.object);
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(())
    }

    /// Waits until the object changes.
    async fn wait(&self, connection: &HttpConnection, told: impl Future<Output = ()>) -> Result<(), Failure> {
        let gone = connection.socket().ready(Interest::HangUp).fuse();
        let told = exec::timeout(LANES_STALL_MAX + DEADLINE_CHECK, told).fuse();
        pin_mut!(gone, told);
        select_biased! {
            told = told => told.map_err(|exec::Elapsed| io::Error::from(io::ErrorKind::TimedOut).into()),
            _ = gone => Err(io::Error::from(io::ErrorKind::ConnectionAborted).into()),
        }
    }

    /// Fetches the span of `lead` from the root, straight to the client.
    async fn fetch(&mut self, connection: &mut HttpConnection, lead: Lead) -> Result<(), Failure> {
        let meta = self.object.meta();
        let Some(validator) = stored::strong_validator(&meta.headers) else {
            return Err(io::Error::from(io::ErrorKind::InvalidData).into());
        };
        if self.fruitless >= FRUITLESS_FETCHES_MAX {
            let text = "the rest of the answer could not be fetched";
            return Err(self.fail(Problem::new(StatusCode::BAD_GATEWAY, Side::Upstream, text)));
        }
        self.fruitless += 1;
        let mut onward = self.quest.onward.clone();
        stored::ask_for_span(&mut onward.headers, &lead.span, validator);
        let answer = match ask_root(&self.quest.edge.manager, connection, &onward).await? {
            Ok(answer) => answer,
            // Once the head is sent, the next try may find another lane.
            Err(_) if self.head.is_none() => return Ok(()),
            Err(problem) => return Err(Failure::Problem(problem)),
        };
        if !stored::is_span(&answer.head, answer.framing, &meta, self.object.len(), &lead.span) {
            let status = answer.head.status;
            if !status.is_server_error() {
                // There is another version now, or none.
                self.quest.edge.cache.forget_object(&self.object);
            }
            let text = format_args!(
                "the file has changed or gone while it was sent (it answered {status}); ask again"
            );
            return Err(self.fail(Problem::new(StatusCode::BAD_GATEWAY, Side::Root, text)));
        }
        self.send_head(connection, self.way_if(Way::Partial)).await?;
        self.ride(connection, answer.incoming, lead).await.map_err(Failure::Broken)
    }

    /// Lets a fetch that begins where this client is feed it directly, for as long as that holds up nobody.
    async fn ride(&mut self, connection: &HttpConnection, incoming: Incoming, lead: Lead) -> io::Result<()> {
        let span = self.position..self.end.min(lead.span.end);
        let attachment = Attachment::new(connection.shared_socket(), span, &lead);
        let _let_go = LetGo(attachment.clone());
        self.quest.edge.start(incoming, lead, Some(attachment.clone()), self.joins);
        let outcome = {
            let detached = attachment.detached().fuse();
            let gone = connection.socket().ready(Interest::HangUp).fuse();
            let stalled = client_stalled(&attachment, connection.deadlines().stall).fuse();
            pin_mut!(detached, gone, stalled);
            select_biased! {
                outcome = detached => outcome,
                _ = gone => Err(io::ErrorKind::ConnectionAborted.into()),
                () = stalled => Err(io::ErrorKind::TimedOut.into()),
            }
        };
        if attachment.position() > self.position {
            self.fruitless = 0;
        }
        self.position = attachment.position();
        outcome
    }

    /// What becomes of an answer that cannot go on.
    fn fail(&self, problem: Problem) -> Failure {
        match self.head {
            Some(_) => Failure::Problem(problem),
            None => Failure::Broken(io::Error::other(problem.to_string())),
        }
    }
}

/// The fetch sends nothing to the client any more, however the client's task goes on.
struct LetGo(Rc<Attachment>);

impl Drop for LetGo {
    fn drop(&mut self) {
        self.0.detach();
    }
}

/// Resolves when the client has taken nothing for longer than it may.
async fn client_stalled(attachment: &Attachment, stall_max: Duration) {
    loop {
        exec::sleep(DEADLINE_CHECK).await;
        if attachment.blocked_since().is_some_and(|since: Instant| since.elapsed() >= stall_max) {
            return;
        }
    }
}
