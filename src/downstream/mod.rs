//! The downstream: answers clients with what comes over all paths at once.
//!
//! In: client connections. Out: the root's answers, byte for byte, or a problem that names the side at fault.
//! Invariant: a body that cannot be completed ends in a reset of the connection, never in a short response that looks
//! complete. One that breaks off because its upstream was lost is continued where that is safe.

mod ahead;
mod edge;
mod hit;
mod pass;
mod sending;
mod stored;
mod validation;

use std::{cell::OnceCell, io, rc::Rc, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt, pin_mut, select_biased};
use http::{HeaderName, HeaderValue, Method, StatusCode, header::HOST};
use tokio::sync::watch;

use crate::{
    cache::slot::Slot,
    exec::{self, Instant, Interest},
    http::{
        accept::{self, Limits},
        continuation::Continuation,
        cors,
        forward::{self, ClientBody, ClientResponse},
        problem::{Problem, Side},
        request::RequestHead,
        response::{self, Framing, Parsed, ResponseHead},
        server::HttpConnection,
    },
    mp::{
        consumer::{Sink, TransferError},
        fetch_error::FetchError,
        manager::{Incoming, Manager},
        progress::Progress,
    },
    net::{Legs, Limit, Listener},
};

use edge::Edge;
use pass::Passage;

/// Lanes that bring nothing for this long are given up: more than the 30 s that the upstream gives the root, whose
/// word comes first then.
const LANES_STALL_MAX: Duration = Duration::from_secs(40);
/// So many upstreams may die under one answer. A root that breaks off again and again is not asked for ever.
const CONTINUED_MAX: usize = 8;
/// How often a transfer's deadlines are looked at; they may be late by this much.
const DEADLINE_CHECK: Duration = Duration::from_secs(5);

/// What a client is told to wait when all lanes were busy: it has waited for 10 s already.
const RETRY_AFTER_S: u32 = 5;

/// The cache of this core, from the moment at which there is one.
struct Front {
    manager: Rc<Manager>,
    cache: Slot,
    edge: OnceCell<Edge>,
}

impl Front {
    fn edge(&self) -> Option<&Edge> {
        let cache = self.cache.get()?;
        Some(self.edge.get_or_init(|| Edge {
            manager: self.manager.clone(),
            cache: cache.clone(),
            ahead: Default::default(),
        }))
    }
}

/// Serves clients on this core until `stopping`, and lanes until the clients of all cores are served. All cores share
/// `cache`, if there is one.
pub async fn serve(
    manager: Rc<Manager>,
    cache: Slot,
    listener: Listener,
    legs: Legs,
    limits: Limits,
    stopping: watch::Receiver<bool>,
) {
    let passage = Passage::new(manager.clone(), cache.clone());
    let front = Front { manager: manager.clone(), cache, edge: OnceCell::new() };
    let answer = async move |connection: &mut HttpConnection, request: RequestHead| match front.edge() {
        _ if cors::is_preflight(&request) => {
            connection.send_head(cors::preflight_response(&request), true, false).await?;
            connection.finish_response();
            Ok(())
        }
        // What takes its time has a place of its own: an idle connection would hold room for the largest of these.
        _ if !request.is_plain() => Box::pin(passage.answer(connection, &request)).await,
        Some(edge) => edge.answer(connection, &request).await,
        None => Box::pin(answer(&front.manager, connection, &request)).await,
    };
    accept::serve(listener, legs, limits.passing_bodies(), Side::Downstream, stopping, answer).await;
    manager.close().await;
}

/// Sends one whole answer; an error says that it could not be completed.
pub(crate) async fn answer(
    manager: &Rc<Manager>,
    connection: &mut HttpConnection,
    request: &RequestHead,
) -> io::Result<()> {
    let towards_root = match forward::request_to_root(request, default_host(connection, request).as_ref()) {
        Ok(head) => head,
        Err(error) => return connection.respond_problem(&error.problem()).await,
    };
    match ask_root(manager, connection, &towards_root).await? {
        Ok(answer) => relay(manager, connection, (request, &towards_root), answer, None).await,
        Err(problem) => connection.respond_problem(&problem).await,
    }
}

/// What the root has answered: its head, how the body ends, and the body.
struct RootAnswer {
    head: ResponseHead,
    framing: Framing,
    incoming: Incoming,
}

/// Asks the root, or says why there is no answer. An error says that the client is gone meanwhile.
async fn ask_root(
    manager: &Rc<Manager>,
    connection: &HttpConnection,
    request: &RequestHead,
) -> io::Result<Result<RootAnswer, Problem>> {
    let began = Instant::now();
    let outcome = unless_gone(connection, fetch(manager, request)).await;
    connection.account().waited_for_root(began.elapsed());
    outcome
}

/// `work`'s output; whoever closed will not read the answer.
async fn unless_gone<T>(connection: &HttpConnection, work: impl Future<Output = T>) -> io::Result<T> {
    let gone = connection.socket().ready(Interest::HangUp).fuse();
    let work = work.fuse();
    pin_mut!(gone, work);
    select_biased! {
        output = work => Ok(output),
        _ = gone => Err(io::ErrorKind::ConnectionAborted.into()),
    }
}

/// Asks the root, or says why there is no answer.
async fn fetch(manager: &Rc<Manager>, request: &RequestHead) -> Result<RootAnswer, Problem> {
    let incoming = fetch_avoiding(manager, request, None).await.map_err(|error| {
        tracing::info!(what = request.target(), "{error}");
        problem_of(&error)
    })?;
    let (head, framing) = framed(&incoming, &request.method)?;
    Ok(RootAnswer { head, framing, incoming })
}

/// Asks for `request`, not over the upstream `lost` if there is another.
async fn fetch_avoiding(
    manager: &Rc<Manager>,
    request: &RequestHead,
    lost: Option<u64>,
) -> Result<Incoming, FetchError> {
    let mut head = Vec::new();
    request.write_head(&mut head);
    manager.fetch_avoiding(Bytes::from(head), lost).await
}

/// Passes an answer of the root's on, with one more header if that is given. `asked` are the client's request and the
/// root's.
async fn relay(
    manager: &Rc<Manager>,
    connection: &mut HttpConnection,
    asked: (&RequestHead, &RequestHead),
    answer: RootAnswer,
    header: Option<(HeaderName, HeaderValue)>,
) -> io::Result<()> {
    let (request, towards_root) = asked;
    let RootAnswer { head, framing, mut incoming } = answer;
    let continuation = Continuation::of(&request.method, &head, framing);
    let ClientResponse { mut head, body, keep_alive } =
        forward::response_to_client(&head, framing, request, connection.lasts());
    if let Some((name, value)) = header {
        head.headers.append(name, value);
    }
    cors::allow_reading(&mut head.headers);
    let more = matches!(body, ClientBody::Fixed(1..) | ClientBody::Chunked | ClientBody::UntilClose);
    connection.send_head(head, keep_alive, more).await?;
    let carried = match continuation {
        Some(continuation) => {
            let rest = Rest { manager, connection, request: towards_root, continuation };
            rest.carry_on(incoming).await
        }
        None => {
            let carried = carry(&mut incoming, connection, body).await;
            carried.map_err(|error| (error, incoming.consumer.given()))
        }
    };
    let (Ok(sent) | Err((_, sent))) = &carried;
    connection.account().add_body_bytes(*sent);
    match carried {
        Ok(_) => {
            connection.finish_response();
            Ok(())
        }
        Err((error, sent)) => {
            tracing::info!(what = request.target(), sent, "{error}; the client's connection is reset");
            Err(match error {
                TransferError::Client(error) => error,
                TransferError::Stalled { side: CLIENT, .. } => io::ErrorKind::TimedOut.into(),
                error => io::Error::other(error),
            })
        }
    }
}

/// The head that came over the lanes, and how its body ends.
fn framed(incoming: &Incoming, method: &Method) -> Result<(ResponseHead, Framing), Problem> {
    match response::parse_response(&incoming.head) {
        Ok(Parsed::Complete { head: response, len }) if len == incoming.head.len() => {
            response.framing(method).map(|framing| (response, framing)).map_err(|error| error.problem())
        }
        _ => Err(Problem::new(
            StatusCode::BAD_GATEWAY,
            Side::Upstream,
            "what came over the lanes is no response head",
        )),
    }
}

/// A body that goes on over another upstream, or a new one in the place of the old, where it breaks off.
struct Rest<'a> {
    manager: &'a Rc<Manager>,
    connection: &'a HttpConnection,
    /// As the root was asked for the whole.
    request: &'a RequestHead,
    continuation: Continuation,
}

impl Rest<'_> {
    /// Moves the body to the client; with an error comes how much was given to it.
    async fn carry_on(self, mut incoming: Incoming) -> Result<u64, (TransferError, u64)> {
        let mut given = 0;
        let mut continued = 0;
        loop {
            let transfer = incoming.consumer.transfer().clone();
            transfer.let_move();
            let body = ClientBody::Fixed(self.continuation.missing(given));
            let outcome = carry(&mut incoming, self.connection, body).await;
            given += incoming.consumer.given();
            let error = match outcome {
                Ok(_) => return Ok(given),
                // Only the word that this was all is missing.
                Err(error) if error.may_be_continued() && self.continuation.missing(given) == 0 => {
                    return Ok(given);
                }
                Err(error) if error.may_be_continued() && continued < CONTINUED_MAX => error,
                Err(error) => return Err((error, given)),
            };
            // Its lanes are of use for what follows.
            drop(incoming.consumer);
            incoming = match self.ask(given, transfer.instance()).await {
                Ok(rest) => rest,
                Err(reason) => {
                    tracing::info!("{reason}, so that the body is not continued");
                    return Err((error, given));
                }
            };
            continued += 1;
            tracing::info!(what = self.request.target(), given, "{error}; the body goes on from here");
        }
    }

    /// The answer that continues the body, checked.
    async fn ask(&self, given: u64, lost: Option<u64>) -> Result<Incoming, String> {
        let request = self.continuation.request(self.request, given);
        let rest = unless_gone(self.connection, fetch_avoiding(self.manager, &request, lost))
            .await
            .map_err(|error| format!("client: {error}"))?
            .map_err(|error| error.to_string())?;
        let (head, framing) = framed(&rest, &request.method).map_err(|problem| problem.to_string())?;
        self.continuation.check(&head, framing, given).map_err(|error| error.to_string())?;
        Ok(rest)
    }
}

/// The host that a client means which names none, as HTTP/1.0 allows: the address it has connected to.
fn default_host(connection: &HttpConnection, request: &RequestHead) -> Option<HeaderValue> {
    if request.headers.contains_key(HOST) {
        return None;
    }
    let address = connection.socket().local().ok()?;
    HeaderValue::try_from(address.to_string()).ok()
}

/// The side of a [`TransferError::Stalled`] that takes nothing.
const CLIENT: &str = "client";

/// Moves the body to the client, unless it goes away or nothing moves for too long.
async fn carry(
    incoming: &mut Incoming,
    connection: &HttpConnection,
    body: ClientBody,
) -> Result<u64, TransferError> {
    let client = connection.socket();
    let (sink, announced) = match body {
        ClientBody::None => (Sink::Plain(client), Some(0)),
        ClientBody::Fixed(length) => (Sink::Plain(client), Some(length)),
        ClientBody::Chunked => (Sink::Chunked(client), None),
        ClientBody::UntilClose => (Sink::Plain(client), None),
    };
    let (figures, progress) = (incoming.figures(), incoming.consumer.progress());
    let outcome = {
        let moved = incoming.consumer.run(sink, announced).fuse();
        let gone = client.ready(Interest::HangUp).fuse();
        let stalled = stalled(&progress, connection.deadlines().stall).fuse();
        pin_mut!(moved, gone, stalled);
        select_biased! {
            outcome = moved => outcome,
            _ = gone => Err(TransferError::Client(io::ErrorKind::ConnectionAborted.into())),
            error = stalled => Err(error),
        }
    };
    connection.account().add_carried(figures.carried());
    match outcome {
        // The client has left with all that was announced, before the word came that this was all.
        Err(TransferError::Client(_)) if announced == Some(incoming.consumer.given()) => {
            Ok(incoming.consumer.given())
        }
        outcome => outcome,
    }
}

/// Resolves when nothing has moved for longer than the side that is waited for may take.
async fn stalled(progress: &Progress, client_stall_max: Duration) -> TransferError {
    loop {
        exec::sleep(DEADLINE_CHECK.min(client_stall_max)).await;
        let (side, bound) =
            if progress.on_client() { (CLIENT, client_stall_max) } else { ("lanes", LANES_STALL_MAX) };
        if progress.moved_at().elapsed() >= bound {
            return TransferError::Stalled { side, seconds: bound.as_secs() };
        }
    }
}

/// What the client is told when there is no response.
fn problem_of(error: &FetchError) -> Problem {
    let (status, side) = match error {
        FetchError::Busy => {
            Limit::LanesWait.hit();
            return Problem::new(StatusCode::SERVICE_UNAVAILABLE, Side::Downstream, error)
                .with_retry_after(RETRY_AFTER_S);
        }
        FetchError::NoLane { .. } | FetchError::LanesLost { .. } => (StatusCode::BAD_GATEWAY, Side::Relay),
        FetchError::Aborted { .. } => (StatusCode::BAD_GATEWAY, Side::Upstream),
        FetchError::TooLarge => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, Side::Client),
        FetchError::Deadline => (StatusCode::GATEWAY_TIMEOUT, Side::Upstream),
        FetchError::Random(_) | FetchError::Queue(_) => (StatusCode::INTERNAL_SERVER_ERROR, Side::Downstream),
    };
    Problem::new(status, side, error.to_string())
}
