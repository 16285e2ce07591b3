//! The downstream: answers clients with what comes over all paths at once.
//!
//! In: client connections. Out: the root's answers, byte for byte, or a problem that names the side at fault.
//! Invariant: a body that cannot be completed ends in a reset of the connection, never in a short response that looks
//! complete.

mod ahead;
mod edge;
mod sending;
mod stored;

use std::{io, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt, pin_mut, select_biased};
use http::{HeaderName, HeaderValue, StatusCode, header::HOST};
use tokio::sync::watch;

use crate::{
    cache::Cache,
    exec::{self, Interest},
    http::{
        accept, cors,
        forward::{self, ClientBody, ClientResponse},
        problem::{Problem, Side},
        request::RequestHead,
        response::{self, Framing, Parsed, ResponseHead},
        server::{Deadlines, HttpConnection},
    },
    mp::{
        consumer::{Consumer, Progress, Sink, TransferError},
        manager::{FetchError, Incoming, Manager},
    },
    net::{Legs, Listener},
};

use edge::Edge;

/// Lanes that bring nothing for this long are given up: more than the 30 s that the upstream gives the root, whose
/// word comes first then.
const LANES_STALL_MAX: Duration = Duration::from_secs(40);
/// How often a transfer's deadlines are looked at; they may be late by this much.
const DEADLINE_CHECK: Duration = Duration::from_secs(5);

/// Serves clients on this core until `stopping`, and lanes until the clients of all cores are served. All cores share
/// `cache`, if there is one.
pub async fn serve(
    manager: Rc<Manager>,
    cache: Option<Arc<Cache>>,
    listener: Listener,
    legs: Legs,
    stopping: watch::Receiver<bool>,
) {
    let answering = manager.clone();
    let edge = cache.map(|cache| Edge { manager: manager.clone(), cache, ahead: Default::default() });
    let answer = async move |connection: &mut HttpConnection, request: RequestHead| match &edge {
        _ if cors::is_preflight(&request) => {
            connection.send_head(cors::preflight_response(&request), true, false).await?;
            connection.finish_response();
            Ok(())
        }
        Some(edge) => edge.answer(connection, &request).await,
        None => answer(&answering, connection, &request).await,
    };
    accept::serve(listener, legs, Deadlines::default(), stopping, answer).await;
    manager.close().await;
}

/// Sends one whole answer; an error says that it could not be completed.
async fn answer(
    manager: &Rc<Manager>,
    connection: &mut HttpConnection,
    request: &RequestHead,
) -> io::Result<()> {
    let towards_root = match forward::request_to_root(request, default_host(connection, request).as_ref()) {
        Ok(head) => head,
        Err(error) => return connection.respond_problem(&error.problem()).await,
    };
    match ask_root(manager, connection, &towards_root).await? {
        Ok(answer) => relay(connection, request, answer, None).await,
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
    let gone = connection.socket().ready(Interest::HangUp).fuse();
    let fetched = fetch(manager, request).fuse();
    pin_mut!(gone, fetched);
    select_biased! {
        fetched = fetched => Ok(fetched),
        // Whoever closed will not read the answer.
        _ = gone => Err(io::ErrorKind::ConnectionAborted.into()),
    }
}

/// Asks the root, or says why there is no answer.
async fn fetch(manager: &Rc<Manager>, request: &RequestHead) -> Result<RootAnswer, Problem> {
    let mut bytes = Vec::new();
    request.write_head(&mut bytes);
    let incoming = manager.fetch(Bytes::from(bytes)).await.map_err(|error| {
        tracing::info!(what = request.target(), "{error}");
        problem_of(&error)
    })?;
    let (head, framing) = match response::parse_response(&incoming.head) {
        Ok(Parsed::Complete { head, len }) if len == incoming.head.len() => {
            let framing = head.framing(&request.method).map_err(|error| error.problem())?;
            (head, framing)
        }
        _ => {
            let text = "what came over the lanes is no response head";
            return Err(Problem::new(StatusCode::BAD_GATEWAY, Side::Upstream, text));
        }
    };
    Ok(RootAnswer { head, framing, incoming })
}

/// Passes an answer of the root's on, with one more header if that is given.
async fn relay(
    connection: &mut HttpConnection,
    request: &RequestHead,
    answer: RootAnswer,
    header: Option<(HeaderName, HeaderValue)>,
) -> io::Result<()> {
    let RootAnswer { head, framing, mut incoming } = answer;
    let ClientResponse { mut head, body, keep_alive } =
        forward::response_to_client(&head, framing, request, connection.lasts());
    if let Some((name, value)) = header {
        head.headers.append(name, value);
    }
    cors::allow_reading(&mut head.headers);
    let more = matches!(body, ClientBody::Fixed(1..) | ClientBody::Chunked | ClientBody::UntilClose);
    connection.send_head(head, keep_alive, more).await?;
    match carry(&mut incoming.consumer, connection, body).await {
        Ok(_) => {
            connection.finish_response();
            Ok(())
        }
        Err(error) => {
            let sent = incoming.consumer.bytes();
            tracing::info!(what = request.target(), sent, "{error}; the client's connection is reset");
            Err(io::Error::other(error))
        }
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

/// Moves the body to the client, unless it goes away or nothing moves for too long.
async fn carry(
    consumer: &mut Consumer,
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
    let progress = consumer.progress();
    let moved = consumer.run(sink, announced).fuse();
    let gone = client.ready(Interest::HangUp).fuse();
    let stalled = stalled(&progress, connection.deadlines().stall).fuse();
    pin_mut!(moved, gone, stalled);
    select_biased! {
        outcome = moved => outcome,
        _ = gone => Err(TransferError::Client(io::ErrorKind::ConnectionAborted.into())),
        error = stalled => Err(error),
    }
}

/// Resolves when nothing has moved for longer than the side that is waited for may take.
async fn stalled(progress: &Progress, client_stall_max: Duration) -> TransferError {
    loop {
        exec::sleep(DEADLINE_CHECK).await;
        let (side, bound) =
            if progress.on_client() { ("client", client_stall_max) } else { ("lanes", LANES_STALL_MAX) };
        if progress.moved_at().elapsed() >= bound {
            return TransferError::Stalled { side, seconds: bound.as_secs() };
        }
    }
}

/// What the client is told when there is no response.
fn problem_of(error: &FetchError) -> Problem {
    let (status, side) = match error {
        FetchError::Busy => (StatusCode::SERVICE_UNAVAILABLE, Side::Downstream),
        FetchError::NoLane { .. } | FetchError::LanesLost { .. } => (StatusCode::BAD_GATEWAY, Side::Relay),
        FetchError::Aborted { .. } => (StatusCode::BAD_GATEWAY, Side::Upstream),
        FetchError::Deadline => (StatusCode::GATEWAY_TIMEOUT, Side::Upstream),
        FetchError::Random(_) | FetchError::Queue(_) => (StatusCode::INTERNAL_SERVER_ERROR, Side::Downstream),
    };
    Problem::new(status, side, error.to_string())
}
