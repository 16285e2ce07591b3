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
use http::StatusCode;

use super::{
    DEADLINE_CHECK, LANES_STALL_MAX, RootAnswer, ask_root,
    edge::{Begun, Edge},
    stored::{self, CACHE_STATUS, Way},
};
use crate::{
    cache::{
        fill::Attachment,
        object::{Lead, Object, Seat, Step},
        record::{BODY_OFFSET, Meta},
    },
    exec::{self, Interest},
    http::{
        problem::{Problem, Side},
        request::RequestHead,
        response::ResponseHead,
        server::HttpConnection,
    },
    net::sendfile,
};

/// Fetches of the rest that end without a byte, one after the other, before the answer is given up.
const FRUITLESS_FETCHES_MAX: u32 = 3;

/// Why an answer is not complete.
pub(super) enum Failure {
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
pub(super) struct Sending<'a> {
    edge: &'a Edge,
    /// The request as the root reads it.
    onward: &'a RequestHead,
    object: Arc<Object>,
    joins: bool,
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
                    let text = "the rest of the answer is lost, and the root does not send parts, or gives no validator to ask for one";
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
        connection.account().add_body_bytes(sent);
        self.fruitless = 0;
        if sent < length {
            // Somebody has cut the file off.
            self.edge.cache.forget_object(&self.object);
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(())
    }

    /// Waits until the object changes.
    async fn wait(&self, connection: &HttpConnection, told: impl Future<Output = ()>) -> Result<(), Failure> {
        let _waits = self.edge.cache.client_waits();
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
        let successor = self.edge.cache.find_open(self.object.key(), &meta.url);
        if let Some(successor) = successor.filter(|other| self.is_succeeded_by(other)) {
            self.go_on_with(successor);
            return Ok(());
        }
        let Some(validator) = stored::strong_validator(&meta.headers) else {
            return Err(io::Error::from(io::ErrorKind::InvalidData).into());
        };
        if self.fruitless >= FRUITLESS_FETCHES_MAX {
            let text = "the rest of the answer could not be fetched";
            return Err(self.fail(Problem::new(StatusCode::BAD_GATEWAY, Side::Upstream, text)));
        }
        self.fruitless += 1;
        let _waits = self.edge.cache.client_waits();
        let mut onward = self.onward.clone();
        stored::ask_for_span(&mut onward.headers, &lead.span, validator);
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
            if meta.is_storable() {
                return self.fetch_all(connection, answer, meta, lead).await;
            }
        }
        if !stored::is_span(&answer.head, answer.framing, &meta, self.object.len(), &lead.span) {
            let status = answer.head.status;
            if !status.is_server_error() {
                // There is another version now, or none.
                self.edge.cache.forget_object(&self.object);
            }
            let text = format_args!(
                "the file has changed or gone while it was sent (it answered {status}); ask again"
            );
            return Err(self.fail(Problem::new(StatusCode::BAD_GATEWAY, Side::Root, text)));
        }
        self.send_head(connection, self.way_if(Way::Partial)).await?;
        let begun = Begun { incoming: answer.incoming, lead, debut: None };
        self.ride(connection, begun).await.map_err(Failure::Broken)
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

    /// Whether `other` is the same version in this object's place, which comes whole.
    fn is_succeeded_by(&self, other: &Arc<Object>) -> bool {
        let validator = |object: &Object| stored::strong_validator(&object.meta().headers);
        !Arc::ptr_eq(other, &self.object)
            && other.comes_whole()
            && other.len() == self.object.len()
            && validator(other) == validator(&self.object)
    }

    fn go_on_with(&mut self, object: Arc<Object>) {
        self.seat = None;
        self.object = object;
        self.joins = false;
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
