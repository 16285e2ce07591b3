//! The downstream: answers clients with what comes over all paths at once.
//!
//! In: client connections. Out: the root's answers, byte for byte, or a problem that names the side at fault.
//! Invariant: a body that cannot be completed ends in a reset of the connection, never in a short response that looks
//! complete.

use std::{io, rc::Rc, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt, pin_mut, select_biased};
use http::{HeaderValue, StatusCode, header::HOST};
use tokio::sync::watch;

use crate::{
    exec::{self, Interest},
    http::{
        accept::{self, Limits},
        forward::{self, ClientBody, ClientResponse},
        problem::{Problem, Side},
        request::RequestHead,
        response::{self, Parsed},
        server::HttpConnection,
    },
    mp::{
        consumer::{Consumer, Progress, Sink, TransferError},
        manager::{FetchError, Incoming, Manager},
    },
    net::{Legs, Listener},
};

/// Lanes that bring nothing for this long are given up: more than the 30 s that the upstream gives the root, whose
/// word comes first then.
const LANES_STALL_MAX: Duration = Duration::from_secs(40);
/// How often a transfer's deadlines are looked at; they may be late by this much.
const DEADLINE_CHECK: Duration = Duration::from_secs(5);

/// What a client is told to wait when all lanes were busy: it has waited for 10 s already.
const RETRY_AFTER_S: u32 = 5;

/// Serves clients on this core until `stopping`, and lanes until the clients of all cores are served.
pub async fn serve(
    manager: Rc<Manager>,
    listener: Listener,
    legs: Legs,
    limits: Limits,
    stopping: watch::Receiver<bool>,
) {
    let answering = manager.clone();
    let answer = async move |connection: &mut HttpConnection, request: RequestHead| {
        answer(&answering, connection, &request).await
    };
    accept::serve(listener, legs, limits, Side::Downstream, stopping, answer).await;
    manager.close().await;
}

/// Sends one whole answer; an error says that it could not be completed.
async fn answer(
    manager: &Rc<Manager>,
    connection: &mut HttpConnection,
    request: &RequestHead,
) -> io::Result<()> {
    let mut towards_root = Vec::new();
    match forward::request_to_root(request, default_host(connection, request).as_ref()) {
        Ok(head) => head.write_head(&mut towards_root),
        Err(error) => return connection.respond_problem(&error.problem()).await,
    }
    let incoming = {
        let gone = connection.socket().ready(Interest::HangUp).fuse();
        let fetched = manager.fetch(Bytes::from(towards_root)).fuse();
        pin_mut!(gone, fetched);
        select_biased! {
            fetched = fetched => fetched,
            // Whoever closed will not read the answer.
            _ = gone => return Err(io::ErrorKind::ConnectionAborted.into()),
        }
    };
    let Incoming { head, mut consumer, .. } = match incoming {
        Ok(incoming) => incoming,
        Err(error) => {
            tracing::info!(what = request.target(), "{error}");
            return connection.respond_problem(&problem_of(&error)).await;
        }
    };
    let framed = match response::parse_response(&head) {
        Ok(Parsed::Complete { head: response, len }) if len == head.len() => response
            .framing(&request.method)
            .map(|framing| (response, framing))
            .map_err(|error| error.problem()),
        _ => Err(Problem::new(
            StatusCode::BAD_GATEWAY,
            Side::Upstream,
            "what came over the lanes is no response head",
        )),
    };
    let (response, framing) = match framed {
        Ok(framed) => framed,
        Err(problem) => return connection.respond_problem(&problem).await,
    };
    let ClientResponse { head, body, keep_alive } =
        forward::response_to_client(&response, framing, request, connection.lasts());
    let more = matches!(body, ClientBody::Fixed(1..) | ClientBody::Chunked | ClientBody::UntilClose);
    connection.send_head(head, keep_alive, more).await?;
    match carry(&mut consumer, connection, body).await {
        Ok(_) => {
            connection.finish_response();
            Ok(())
        }
        Err(error) => {
            let sent = consumer.bytes();
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
        exec::sleep(DEADLINE_CHECK.min(client_stall_max)).await;
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
        FetchError::Busy => {
            return Problem::new(StatusCode::SERVICE_UNAVAILABLE, Side::Downstream, error)
                .with_retry_after(RETRY_AFTER_S);
        }
        FetchError::NoLane { .. } | FetchError::LanesLost { .. } => (StatusCode::BAD_GATEWAY, Side::Relay),
        FetchError::Aborted { .. } => (StatusCode::BAD_GATEWAY, Side::Upstream),
        FetchError::Deadline => (StatusCode::GATEWAY_TIMEOUT, Side::Upstream),
        FetchError::Random(_) | FetchError::Queue(_) => (StatusCode::INTERNAL_SERVER_ERROR, Side::Downstream),
    };
    Problem::new(status, side, error.to_string())
}
