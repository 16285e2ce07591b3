//! The server's side of one client connection: requests come out one by one, answers go in.
//!
//! In: a connected socket. Out: the heads of requests that can be answered; what cannot is answered here. Called by the
//! root role and by the downstream.
//!
//! Invariant: exactly the bytes of a request are taken off the socket, so that pipelined requests wait there and cost
//! no memory of this process; every wait has a deadline; an answer that cannot be completed ends in a reset and never
//! looks complete.

mod receive;

use std::{
    cell::{RefCell, RefMut},
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

use ::http::{HeaderName, HeaderValue, Method, StatusCode, header::CONNECTION};
use tokio::sync::watch;

use super::{
    account::Account,
    body::{BodyReader, RequestBodyError},
    cors,
    head::{Version, write_header},
    problem::Problem,
    request::RequestHead,
    response::ResponseHead,
    traffic::Traffic,
};
use crate::{
    exec::{self, Patience},
    net::{Limit, Socket},
};

/// Room for the head of an answer before it must grow: ours have 300 bytes, those of a distant root a bit more.
const HEAD_BYTES_USUAL: usize = 1 << 10;
/// What a client may still send while the connection is closed: without this its last words would cause a reset that
/// destroys the answer on its way (RFC 9112 section 9.6).
const LINGER_BYTES_MAX: usize = 64 << 10;
/// How long that may take: a round trip over the longest path and a bit.
const LINGER: Duration = Duration::from_secs(1);
/// A connection that has carried no request when the server stops may still bring one: its client took it to be there.
const FIRST_REQUEST: Duration = Duration::from_secs(1);
/// What the cache and the root had to do with it.
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// How long a client may take for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// From the first byte of a head (or body) to its last; then 408.
    pub request: Duration,
    /// Without any request; then the connection is closed silently.
    pub idle: Duration,
    /// Without taking a byte of an answer; then the connection is reset.
    pub stall: Duration,
    /// From the stop of the server to the end of the running answer; then the connection is reset.
    pub finish: Duration,
}

impl Default for Deadlines {
    /// 10 s for a head, which is one packet, whatever the path; 60 s idle, as long as common servers; five minutes of
    /// stall: a player that is paused stops reading, and asks again if it was away for longer;
    /// 10 s after a stop, for `plait up`, whose user waits for it; roles have --drain-timeout.
    fn default() -> Self {
        Self {
            request: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            stall: Duration::from_secs(300),
            finish: Duration::from_secs(10),
        }
    }
}

/// One client connection.
pub struct HttpConnection {
    socket: Rc<Socket>,
    deadlines: Deadlines,
    /// True once no new request is to be taken.
    stopping: watch::Receiver<bool>,
    /// Rings when no request has come for too long.
    idle: Patience,
    state: State,
    /// The answer that is owed or has begun belongs to a HEAD request.
    is_head: bool,
    /// The version of the request; 1.1 until it is known.
    version: Version,
    /// The client asked for a connection that lasts.
    client_stays: bool,
    /// It has brought a request.
    is_used: bool,
    /// See [`HttpConnection::passing_bodies`].
    passes_bodies: bool,
    /// See [`HttpConnection::read_by_pages`].
    serves_pages: bool,
    /// The body of the request that was given out is still to be read.
    has_body: bool,
    /// Of the request that is answered now.
    account: RefCell<Account>,
    /// Where accounts go that are closed here, and whose they are.
    traffic: Option<(Arc<Traffic>, Option<SocketAddr>)>,
    /// Dropped with the connection; made for the first who wants to hear of that.
    lives: Option<watch::Sender<()>>,
}

/// The end of a connection, for what is done on behalf of its client.
pub struct Ending(watch::Receiver<()>);

impl Ending {
    /// Resolves when the connection has ended.
    pub async fn wait(&mut self) {
        while self.0.changed().await.is_ok() {}
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The next request may come.
    Ready,
    /// A request was given out; nothing has been answered.
    Owing,
    /// The head of the answer is on its way and said whether the connection lasts.
    Answering { lasts: bool },
    /// The last answer is on its way.
    Closing,
    /// Nothing more comes or goes.
    Over,
}

/// Why there is no request.
enum NoRequest {
    /// The connection ended, or was idle for too long.
    Gone,
    /// The client is told; `lasts` says whether what follows on the connection can still be understood.
    Refused { problem: Problem, lasts: bool },
}

impl From<io::Error> for NoRequest {
    fn from(error: io::Error) -> Self {
        tracing::debug!(%error, "a client is gone");
        NoRequest::Gone
    }
}

impl NoRequest {
    fn last_words(problem: Problem) -> Self {
        NoRequest::Refused { problem, lasts: false }
    }
}

impl HttpConnection {
    /// Takes over a connection. Once `stopping` is true (or its sender is gone) the running answer is the last one.
    pub fn new(socket: Socket, deadlines: Deadlines, stopping: watch::Receiver<bool>) -> Self {
        Self {
            socket: Rc::new(socket),
            deadlines,
            stopping,
            idle: Patience::default(),
            state: State::Ready,
            is_head: false,
            version: Version::Http11,
            client_stays: true,
            is_used: false,
            passes_bodies: false,
            serves_pages: false,
            has_body: false,
            account: RefCell::default(),
            traffic: None,
            lives: None,
        }
    }

    /// Tells `traffic` of every request from now on.
    pub fn counted_in(mut self, traffic: Arc<Traffic>) -> Self {
        let peer = self.socket.peer().ok();
        self.traffic = Some((traffic, peer));
        self
    }

    /// Tells when this connection has ended.
    pub fn ending(&mut self) -> Ending {
        Ending(self.lives.get_or_insert_with(|| watch::channel(()).0).subscribe())
    }

    /// What is known of the request that is answered now.
    pub fn account(&self) -> RefMut<'_, Account> {
        self.account.borrow_mut()
    }

    /// The answer to the request has ended; `complete` says that all of it was sent.
    pub(super) fn close_account(&mut self, method: Method, target: String, answered: &io::Result<()>) {
        let outcome = self.account.take().close();
        if let Some((traffic, client)) = &self.traffic {
            traffic.ended(*client, method, target, outcome, answered.is_ok());
            if answered.as_ref().is_err_and(|error| !is_of_client(error)) {
                traffic.broke();
            }
        }
    }

    /// Gives out requests with any method, and leaves the bodies of those that are no GET or HEAD to whoever answers:
    /// [`HttpConnection::body`].
    pub fn passing_bodies(mut self) -> Self {
        self.passes_bodies = true;
        self
    }

    /// Lets scripts of any page read our own answers: one that says why there is no film is of use to a player, too.
    pub fn read_by_pages(mut self) -> Self {
        self.serves_pages = true;
        self
    }

    /// The body of the request that was given out. A client that waits for the word to send it is given that.
    ///
    /// # Errors
    /// The body is too long, or the client is gone.
    pub async fn body(&mut self, head: &RequestHead) -> Result<BodyReader, RequestBodyError> {
        let body = BodyReader::new(self.socket.clone(), head.body_len(), self.deadlines.request)?;
        // RFC 9110 section 10.1.1: a server "MAY omit sending a 100 (Continue) response if it has already received some or
        // all of the content"; nobody knows here whether the root will refuse the request.
        if self.has_body && receive::expects_continue(head) {
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n", false).await?;
        }
        Ok(body)
    }

    /// All of the body was read: the connection may be used again.
    pub fn body_was_read(&mut self) {
        self.has_body = false;
    }

    /// The next request that can be answered, or none when the connection is over. Requests that cannot are answered
    /// here.
    pub async fn next_request(&mut self) -> Option<RequestHead> {
        loop {
            match self.state {
                State::Ready => {}
                State::Closing => {
                    self.linger().await;
                    return None;
                }
                // An answer that was begun and not finished must not look complete.
                State::Owing | State::Answering { .. } => {
                    self.abort();
                    return None;
                }
                State::Over => return None,
            }
            match self.receive_request().await {
                Ok(head) => return Some(head),
                Err(NoRequest::Gone) => {
                    self.state = State::Over;
                    return None;
                }
                Err(NoRequest::Refused { problem, lasts }) => {
                    self.client_stays &= lasts;
                    let told = self.respond_problem(&problem).await;
                    // What it was has not become known as a whole.
                    self.close_account(Method::GET, "-".to_owned(), &told);
                    if told.is_err() {
                        self.abort();
                    }
                }
            }
        }
    }

    /// The socket, for sending a body.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// The socket, for a task of this core that sends a body on this connection's behalf.
    pub fn shared_socket(&self) -> Rc<Socket> {
        self.socket.clone()
    }

    /// How long this client may take for what.
    pub fn deadlines(&self) -> Deadlines {
        self.deadlines
    }

    /// Whether the connection can last after the answer that is owed now.
    pub fn lasts(&self) -> bool {
        self.client_stays && !self.has_body && !is_stopping(&self.stopping)
    }

    /// Sends the head of the answer; `more` says that a body follows at once, so that they share a segment. The
    /// `Connection` header is set here; `lasts` is false when only the end of the connection ends the body.
    ///
    /// # Errors
    /// The client is gone or takes nothing.
    pub async fn send_head(&mut self, mut head: ResponseHead, lasts: bool, more: bool) -> io::Result<()> {
        let lasts = lasts && self.lasts();
        self.state = State::Answering { lasts };
        self.account().head_goes(head.status);
        let timing = self.account().server_timing();
        if let Some(timing) = timing {
            head.headers.append(SERVER_TIMING, timing);
        }
        head.headers.remove(CONNECTION);
        if !lasts {
            head.headers.insert(CONNECTION, HeaderValue::from_static("close"));
        } else if self.version == Version::Http10 {
            head.headers.insert(CONNECTION, HeaderValue::from_static("keep-alive"));
        }
        let mut bytes = Vec::with_capacity(HEAD_BYTES_USUAL);
        head.write_head(SystemTime::now(), &mut bytes);
        self.send(&bytes, more).await
    }

    /// Sends the head of an answer with `status`, behind which the connection lasts, and a body at once. `bytes` are the
    /// head without its empty line.
    ///
    /// # Errors
    /// The client is gone or takes nothing.
    pub async fn send_written_head(&mut self, status: StatusCode, mut bytes: Vec<u8>) -> io::Result<()> {
        self.state = State::Answering { lasts: true };
        self.account().head_goes(status);
        let timing = self.account().server_timing();
        if let Some(timing) = timing {
            write_header(&SERVER_TIMING, &timing, &mut bytes);
        }
        bytes.extend_from_slice(b"\r\n");
        self.send(&bytes, true).await
    }

    /// Sends bytes of the body from memory.
    ///
    /// # Errors
    /// The client is gone or takes nothing.
    pub async fn send(&self, bytes: &[u8], more: bool) -> io::Result<()> {
        self.socket.send_within(bytes, more, self.deadlines.stall).await
    }

    /// Answers the request with `problem`, whole.
    ///
    /// # Errors
    /// The client is gone or takes nothing.
    pub async fn respond_problem(&mut self, problem: &Problem) -> io::Result<()> {
        self.respond_problem_with(problem, None).await
    }

    /// The same with one more header, if that is given.
    ///
    /// # Errors
    /// The client is gone or takes nothing.
    pub async fn respond_problem_with(
        &mut self,
        problem: &Problem,
        header: Option<(HeaderName, HeaderValue)>,
    ) -> io::Result<()> {
        match problem.status {
            StatusCode::REQUEST_TIMEOUT => Limit::RequestTime.hit(),
            StatusCode::URI_TOO_LONG | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => Limit::HeadSize.hit(),
            _ => {}
        }
        let body = if self.is_head { String::new() } else { problem.body() };
        let mut head = problem.head();
        head.headers.extend(header);
        if self.serves_pages {
            cors::allow_reading(&mut head.headers);
        }
        self.send_head(head, true, !body.is_empty()).await?;
        self.send(body.as_bytes(), false).await?;
        self.account().add_body_bytes(body.len() as u64);
        self.finish_response();
        Ok(())
    }

    /// Answers with `problem` before anything was asked, and closes in order.
    pub async fn turn_away(&mut self, problem: &Problem) {
        self.client_stays = false;
        match self.respond_problem(problem).await {
            Ok(()) => self.linger().await,
            Err(_) => self.abort(),
        }
    }

    /// Says that the answer is complete: every announced byte was sent.
    pub fn finish_response(&mut self) {
        self.state = match self.state {
            State::Answering { lasts: true } => State::Ready,
            State::Answering { lasts: false } => State::Closing,
            // Nothing was answered: there is nothing to complete.
            State::Owing | State::Ready | State::Closing | State::Over => State::Over,
        };
    }

    /// Ends the connection by a reset: the answer cannot be completed, and the client must see that.
    pub fn abort(&mut self) {
        self.socket.abort();
        self.state = State::Over;
    }

    /// Lets what was sent arrive before the connection is closed.
    async fn linger(&mut self) {
        self.socket.finish();
        let _ = exec::timeout(LINGER, self.take(LINGER_BYTES_MAX)).await;
        self.state = State::Over;
    }
}

fn is_stopping(stopping: &watch::Receiver<bool>) -> bool {
    *stopping.borrow() || stopping.has_changed().is_err()
}

/// Resolves once the server stops.
pub async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error says that nobody is left who could ask for it; then there is nobody to serve for either.
    let _ = stopping.wait_for(|stops| *stops).await;
}

/// Whether an answer was not completed because its client is gone or takes nothing.
fn is_of_client(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, TimedOut};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | TimedOut)
}
