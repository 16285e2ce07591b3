//! Sends a span of an object to one client: what is there from the file, what is missing straight from the lanes.
//!
//! In: an object and a span. Out: its bytes on the client's connection, or the reason why not. Called by `edge`. Invariant:
//! bytes leave in order and are all of this object; a client that is fed by a fetch directly holds up no other reader.

use std::{
    io,
    ops::Range,
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use futures_util::{FutureExt, future::poll_immediate, pin_mut, select_biased};
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{AUTHORIZATION, CACHE_CONTROL},
};

use super::{
    DEADLINE_CHECK, LANES_STALL_MAX, RootAnswer, ask_root, carry,
    edge::{Begun, Edge},
    stored::{self, CACHE_STATUS, Way},
};
use crate::{
    cache::{
        control::Directives,
        fill::Attachment,
        freshness,
        object::{Lead, Object, Seat, Step},
        record::{BODY_OFFSET, Meta},
    },
    exec::{self, Interest},
    http::{
        forward::ClientBody,
        problem::{Problem, Side},
        request::RequestHead,
        response::ResponseHead,
        server::HttpConnection,
    },
    mp::manager::Incoming,
    net::sendfile_counting,
};

/// Fetches of the rest that end without a byte, one after the other, before the answer is given up.
const FRUITLESS_FETCHES_MAX: u32 = 3;

/// Why an answer is not complete.
pub(super) enum Failure {
    /// Nothing was sent yet: the client is told.
    Problem(Problem),
    /// Nothing was sent yet, and this is what the root says.
    Answered(Box<RootAnswer>),
    /// Nothing was sent yet, and the object is forgotten: there is another version now, or what is stored is of no use.
    Outdated,
    /// The connection must be reset.
    Broken(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Broken(error)
    }
}

/// A span of an object on its way to a client.
pub(super) struct Sending<'a> {
    edge: &'a Edge,
    /// The request as the root reads it.
    onward: &'a RequestHead,
    object: Arc<Object>,
    joins: bool,
    /// The object has the place of one whose file has lost bytes, once its first bytes come.
    replaces: bool,
    seat: Option<Seat>,
    position: u64,
    end: u64,
    head: Option<(ResponseHead, Way)>,
    fruitless: u32,
}

impl<'a> Sending<'a> {
    /// For the bytes of `span`, behind `head` if that is still to be sent.
    pub(super) fn new(
        edge: &'a Edge,
        onward: &'a RequestHead,
        object: &Arc<Object>,
        span: Range<u64>,
        head: Option<(ResponseHead, Way)>,
    ) -> Self {
        Self {
            edge,
            onward,
            object: object.clone(),
            joins: stored::joins(object),
            replaces: false,
            seat: None,
            position: span.start,
            end: span.end,
            head,
            fruitless: 0,
        }
    }

    /// The first byte that was not sent.
    pub(super) fn position(&self) -> u64 {
        self.position
    }
    /// Sends the head, unless that was done.
    pub(super) async fn send_head(&mut self, connection: &mut HttpConnection, way: Way) -> io::Result<()> {
        let Some((mut head, _)) = self.head.take() else { return Ok(()) };
        let status = stored::cache_status(way, Some((&self.object.meta(), SystemTime::now())));
        head.headers.append(CACHE_STATUS, status);
        connection.account().set_cache(way.cache_use());
        connection.send_head(head, true, true).await
    }

    /// The way that is told, where the first byte is not there yet.
    fn way_if(&self, missing: Way) -> Way {
        match &self.head {
            Some((_, Way::Hit)) | None => missing,
            Some((_, way)) => *way,
        }
    }

    /// Sends what is left of the span.
    pub(super) async fn run(&mut self, connection: &mut HttpConnection) -> Result<(), Failure> {
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
                    self.edge.cache.forget_object(&object);
                    let text = "the rest of the answer is lost, and the root does not send parts, or gives no validator to ask for one";
                    return Err(self.outdated(text.to_owned()));
                }
            }
        }
        Ok(())
    }

    /// Sends a span from the file. What that does not give comes from the root then.
    pub(super) async fn send_file(
        &mut self,
        connection: &HttpConnection,
        span: Range<u64>,
    ) -> Result<(), Failure> {
        let Some(file) = self.object.file() else {
            return Err(io::Error::from(io::ErrorKind::NotFound).into());
        };
        let (length, stall_max) = (span.end - span.start, connection.deadlines().stall);
        let range = (BODY_OFFSET + span.start, length);
        let mut sent = 0;
        let outcome = sendfile_counting(connection.socket(), file, range, stall_max, &mut sent).await;
        self.position += sent;
        connection.account().add_body_bytes(sent);
        if sent > 0 {
            self.fruitless = 0;
        }
        if sent == length {
            return Ok(());
        }
        // The error may be the client's.
        match self.object.unreadable(self.position) {
            Some(error) => self.replace_lost(error),
            None => outcome.map_err(Failure::Broken),
        }
    }

    /// The file has lost bytes: goes on with an object of the same version in its place.
    fn replace_lost(&mut self, error: io::Error) -> Result<(), Failure> {
        self.edge.cache.lose(&self.object, &error);
        if !self.joins {
            return Err(Failure::Broken(error));
        }
        self.count_fruitless()?;
        if let Some(successor) = self.successor() {
            self.go_on_with(successor);
            return Ok(());
        }
        let meta = Meta::clone(&self.object.meta());
        self.go_on_with(Object::new(self.object.key(), self.object.len(), meta));
        self.replaces = true;
        Ok(())
    }

    /// One more try to get the rest that may bring nothing.
    fn count_fruitless(&mut self) -> Result<(), Failure> {
        if self.fruitless >= FRUITLESS_FETCHES_MAX {
            let text = "the rest of the answer could not be fetched";
            return Err(self.fail(Problem::new(StatusCode::BAD_GATEWAY, Side::Upstream, text)));
        }
        self.fruitless += 1;
        Ok(())
    }

    /// Waits until the object changes.
    async fn wait(&self, connection: &HttpConnection, told: impl Future<Output = ()>) -> Result<(), Failure> {
        let _waits = self.edge.cache.client_waits();
        let gone = connection.socket().ready(Interest::HangUp).fuse();
        let told = exec::timeout(LANES_STALL_MAX + DEADLINE_CHECK, told).fuse();
        pin_mut!(gone, told);
        select_biased! {
            told = told => told.map_err(|exec::Elapsed| io::Error::other("nothing of the rest has come").into()),
            _ = gone => Err(io::Error::from(io::ErrorKind::ConnectionAborted).into()),
        }
    }

    /// Fetches the span of `lead` from the root, straight to the client.
    async fn fetch(&mut self, connection: &mut HttpConnection, lead: Lead) -> Result<(), Failure> {
        let meta = self.object.meta();
        if let Some(successor) = self.successor() {
            self.go_on_with(successor);
            return Ok(());
        }
        let Some(validator) = stored::strong_validator(&meta.headers) else {
            return Err(io::Error::from(io::ErrorKind::InvalidData).into());
        };
        self.count_fruitless()?;
        let _waits = self.edge.cache.client_waits();
        let mut onward = self.onward.clone();
        let span = lead.span.clone();
        stored::ask_for_span(&mut onward.headers, &span, validator);
        // Nobody waits for what is not stored.
        let lead = Some(lead).filter(|_| !Directives::of_request(&onward.headers).no_store);
        let requested_at = SystemTime::now();
        let answer = match ask_root(&self.edge.manager, connection, &onward).await? {
            Ok(answer) => answer,
            // Once the head is sent, the next try may find another lane.
            Err(_) if self.head.is_none() => return Ok(()),
            Err(problem) => return Err(Failure::Problem(problem)),
        };
        if stored::is_all(&onward, &answer.head, answer.framing, &meta, self.object.len()) {
            let times = requested_at..SystemTime::now();
            let meta = stored::renewed(&self.onward.headers, &meta, &answer.head.headers, times);
            if meta.is_storable()
                && let Some(lead) = lead
            {
                return self.fetch_all(connection, answer, meta, lead).await;
            }
            return Err(self.is_answered(answer));
        }
        if !stored::is_span(&answer.head, answer.framing, &meta, self.object.len(), &span) {
            return Err(self.is_answered(answer));
        }
        if must_forget(&onward.headers, &answer.head) {
            self.edge.cache.forget_object(&self.object);
            self.tell_caching(&answer.head);
        }
        let lead = lead.filter(|_| freshness::may_store(&onward, &answer.head));
        self.send_head(connection, self.way_if(Way::Partial)).await?;
        let Some(lead) = lead else {
            return self.pass(connection, answer.incoming, span.end - span.start).await;
        };
        if std::mem::take(&mut self.replaces) {
            self.edge.cache.publish_in_free_place(&self.object);
        }
        let begun = Begun { incoming: answer.incoming, lead, debut: None };
        self.ride(connection, begun).await.map_err(Failure::Broken)
    }

    /// What follows from an answer that is not the span that was asked for.
    fn is_answered(&self, answer: RootAnswer) -> Failure {
        let status = answer.head.status;
        // Another version, or a root that sends no such parts; any other answer may be about this client only.
        let has_changed = matches!(
            status,
            StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE
        );
        if has_changed || matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE) {
            self.edge.cache.forget_object(&self.object);
        }
        let text =
            format!("the file has changed or gone while it was sent (it answered {status}); ask again");
        if has_changed {
            return self.outdated(text);
        }
        match self.head {
            Some(_) if status != StatusCode::NOT_MODIFIED => Failure::Answered(Box::new(answer)),
            _ => self.fail(Problem::new(StatusCode::BAD_GATEWAY, Side::Root, text)),
        }
    }

    /// The object is of no use, which was forgotten: what was not begun may begin anew.
    fn outdated(&self, text: String) -> Failure {
        match self.head {
            Some(_) => Failure::Outdated,
            None => Failure::Broken(io::Error::other(format!("{}: {text}", Side::Root))),
        }
    }

    /// What the root says of caching now is what the client is told, if its head is not sent yet.
    fn tell_caching(&mut self, answer: &ResponseHead) {
        if let Some((head, _)) = &mut self.head {
            head.headers.remove(CACHE_CONTROL);
            let said: Vec<HeaderValue> = answer.headers.get_all(CACHE_CONTROL).iter().cloned().collect();
            head.headers.extend(said.into_iter().map(|value| (CACHE_CONTROL, value)));
        }
    }

    /// Sends the client a span of so many bytes that is not for the cache.
    async fn pass(
        &mut self,
        connection: &HttpConnection,
        mut incoming: Incoming,
        length: u64,
    ) -> Result<(), Failure> {
        let carried = carry(&mut incoming, connection, ClientBody::Fixed(length)).await;
        let given = incoming.consumer.given();
        if given > 0 {
            self.fruitless = 0;
        }
        self.position += given;
        connection.account().add_body_bytes(given);
        match carried {
            Ok(_) => Ok(()),
            // The next try may find other lanes.
            Err(error) if error.may_be_continued() => Ok(()),
            Err(error) => Err(Failure::Broken(io::Error::other(error))),
        }
    }

    /// The root ignores ranges: its answer is a new object, which takes the place of this one.
    async fn fetch_all(
        &mut self,
        connection: &mut HttpConnection,
        answer: RootAnswer,
        meta: Meta,
        lead: Lead,
    ) -> Result<(), Failure> {
        let object = Object::new(self.object.key(), self.object.len(), meta);
        object.set_comes_whole();
        let begun = Begun { incoming: answer.incoming, lead: object.begin(0..object.len()), debut: None };
        self.edge.cache.publish(&object);
        // Whoever waits for the part finds that object then.
        drop(lead);
        self.go_on_with(object);
        if self.position > 0 {
            // It waits for its place as a reader.
            self.edge.start(begun, None, false);
            return Ok(());
        }
        self.send_head(connection, self.way_if(Way::Partial)).await?;
        self.ride(connection, begun).await.map_err(Failure::Broken)
    }

    /// Another object of the same version in this one's place: it comes whole, or the file of this one has lost bytes.
    fn successor(&self) -> Option<Arc<Object>> {
        let validator = |object: &Object| stored::strong_validator(&object.meta().headers);
        let other = self.edge.cache.find_open(self.object.key(), &self.object.meta().url)?;
        let fits = !Arc::ptr_eq(&other, &self.object)
            && other.is_stored()
            && other.len() == self.object.len()
            && validator(&other).is_some()
            && validator(&other) == validator(&self.object);
        fits.then_some(other)
    }

    fn go_on_with(&mut self, object: Arc<Object>) {
        self.seat = None;
        self.joins = stored::joins(&object);
        self.replaces = false;
        self.object = object;
    }

    /// Sends the head and lets the fetch that has brought it feed the client.
    pub(super) async fn begin(
        &mut self,
        connection: &mut HttpConnection,
        way: Way,
        mut begun: Begun,
    ) -> io::Result<()> {
        {
            let mut head = pin!(self.send_head(connection, way));
            match poll_immediate(head.as_mut()).await {
                Some(sent) => sent?,
                // A client that takes nothing now holds up nobody.
                None => {
                    begun.debut = None;
                    head.await?;
                }
            }
        }
        self.ride(connection, begun).await
    }

    /// Lets a fetch that begins where this client is feed it directly, for as long as that holds up nobody.
    pub(super) async fn ride(&mut self, connection: &HttpConnection, begun: Begun) -> io::Result<()> {
        let span = self.position..self.end.min(begun.lead.span.end);
        let attachment = Attachment::new(connection.shared_socket(), span, &begun.lead);
        let _let_go = LetGo(attachment.clone());
        let figures = begun.incoming.figures();
        let _waits = self.edge.cache.client_waits();
        self.edge.start(begun, Some(attachment.clone()), self.joins);
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
        connection.account().add_body_bytes(attachment.position() - self.position);
        connection.account().add_carried(figures.carried());
        self.position = attachment.position();
        self.seat = attachment.take_seat();
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

/// Whether the root says with a part of an object that others must not have it any more. What it says to one who proves
/// who he is may be about him only.
pub(super) fn must_forget(asked: &HeaderMap, answer: &ResponseHead) -> bool {
    let said = Directives::of_response(&answer.headers);
    (said.no_store || said.private) && !asked.contains_key(AUTHORIZATION)
}

/// The fetch sends nothing to the client any more, however the client's task goes on.
struct LetGo(Rc<Attachment>);

impl Drop for LetGo {
    fn drop(&mut self) {
        self.0.detach();
        // One that nobody has taken would keep the fetch for a client that is gone.
        drop(self.0.take_seat());
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
