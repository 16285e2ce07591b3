//! Asks the root for what a transfer's first OPEN wants.
//!
//! In: the request head from a lane. Out: the transfer's head and body, or a response that says why there is none. Runs
//! as a task of the core whose lane started the transfer. Invariant: not one byte of the body is taken from the
//! connection here, so that all of it can be spliced.

use std::{io, sync::Arc, time::Duration};

use futures_util::{FutureExt, pin_mut, select_biased};

use super::{
    Upstream,
    head::{self, Request, RequestError, Response, ResponseError, head_end},
    problem::Problem,
    source::{ROOT_SILENT_MAX, RootBody, Source},
    transfer::Transfer,
};
use crate::{
    exec,
    net::{ConnectError, ResolveError, Socket, resolve},
    wire::frame::MAX_HEAD_BYTES,
};

/// Connecting the root, which is near: a SYN and its first two repetitions, after 1 s and 3 s.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// Read at first for a head; it grows up to [`MAX_HEAD_BYTES`]. Heads of video files have some 300 bytes.
const HEAD_BYTES_FIRST: usize = 2 << 10;
/// Interim responses before the final one: a server sends one or two (100, 103).
const INTERIM_MAX: usize = 16;

/// Why there is no response of the root's.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("downstream: {0}")]
    Request(#[from] RequestError),
    #[error("upstream: the root's address is unknown: {0}")]
    Resolve(#[from] ResolveError),
    #[error("root: {0} (is it running?)")]
    Connect(#[from] ConnectError),
    #[error("root {root}: gave no answer within {} s", ROOT_SILENT_MAX.as_secs())]
    Silent { root: Arc<str> },
    #[error("root {root}: {source}")]
    Response { root: Arc<str>, source: ResponseError },
    #[error("root {root}: closed the connection without a whole answer")]
    Closed { root: Arc<str>, received: usize },
    #[error("root {root}: lost the connection before its answer: {source}")]
    Lost { root: Arc<str>, received: usize, source: io::Error },
}

impl FetchError {
    fn status(&self) -> &'static str {
        match self {
            FetchError::Request(RequestError::Method(_)) => "501 Not Implemented",
            FetchError::Request(_) => "400 Bad Request",
            FetchError::Resolve(ResolveError::Deadline { .. })
            | FetchError::Connect(ConnectError::Deadline { .. })
            | FetchError::Silent { .. } => "504 Gateway Timeout",
            _ => "502 Bad Gateway",
        }
    }
}

/// Gives `transfer` its head and body; `open` is the request head from the lane.
pub(super) async fn fetch(upstream: Arc<Upstream>, transfer: Arc<Transfer>, open: Vec<u8>) {
    let answer = {
        let (answer, ended) = (ask(&upstream, &open).fuse(), transfer.ended().fuse());
        pin_mut!(answer, ended);
        select_biased! {
            answer = answer => answer,
            () = ended => return,
        }
    };
    match answer {
        Ok((response, body)) => transfer.begin(response, Source::Root(body)),
        Err(error) => {
            tracing::info!(transfer = %transfer.id(), "{error}");
            let Problem { head, body } = Problem::new(error.status(), &error.to_string());
            let body = if open.starts_with(b"HEAD ") { bytes::Bytes::new() } else { body };
            transfer.begin(head, Source::Memory(body));
        }
    }
}

async fn ask(upstream: &Upstream, open: &[u8]) -> Result<(Vec<u8>, RootBody), FetchError> {
    let root = &upstream.root;
    let request = head::request(open, root)?;
    if let Some(kept) = upstream.pool.take() {
        match exchange(root, &kept, &request).await {
            // The root had given the connection up when the request arrived; GET and HEAD may be repeated (RFC 9110
            // section 9.2.2).
            Err(FetchError::Closed { received: 0, .. } | FetchError::Lost { received: 0, .. }) => {}
            outcome => return outcome,
        }
    }
    let fresh = connect(upstream).await?;
    exchange(root, &fresh, &request).await
}

async fn connect(upstream: &Upstream) -> Result<Socket, FetchError> {
    let mut refused = None;
    for address in resolve(&upstream.root).await? {
        match Socket::connect(address, &upstream.legs.client, CONNECT_DEADLINE).await {
            Ok(connection) => return Ok(connection),
            Err(error) => refused = Some(error),
        }
    }
    Err(refused.map_or_else(|| ResolveError::Empty { name: upstream.root.to_string() }.into(), Into::into))
}

/// Sends the request and reads the response's head.
async fn exchange(
    root: &Arc<str>,
    connection: &Socket,
    request: &Request,
) -> Result<(Vec<u8>, RootBody), FetchError> {
    let talk = async {
        let lost = |source| FetchError::Lost { root: root.clone(), received: 0, source };
        connection.send_all(&request.bytes, false).await.map_err(lost)?;
        for _ in 0..INTERIM_MAX {
            let head = read_head(root, connection).await?;
            let response = head::response(&head, request.is_head)
                .map_err(|source| FetchError::Response { root: root.clone(), source })?;
            if let Some(response) = response {
                return Ok(response);
            }
        }
        let source = ResponseError::Syntax("interim responses without end");
        Err(FetchError::Response { root: root.clone(), source })
    };
    let answered = exec::timeout(ROOT_SILENT_MAX, talk).await;
    let Response { bytes, framing, keep_alive } =
        answered.unwrap_or_else(|exec::Elapsed| Err(FetchError::Silent { root: root.clone() }))?;
    let body = RootBody {
        connection: connection.share(),
        framing,
        keep_alive,
        root: root.clone(),
        taken: false,
        failed: None,
    };
    Ok((bytes, body))
}

/// Takes one head off the connection, and nothing behind it.
async fn read_head(root: &Arc<str>, connection: &Socket) -> Result<Vec<u8>, FetchError> {
    let mut head = vec![0; HEAD_BYTES_FIRST];
    let mut received = 0;
    loop {
        if received == head.len() {
            if received >= MAX_HEAD_BYTES as usize {
                return Err(FetchError::Response { root: root.clone(), source: ResponseError::TooLong });
            }
            head.resize((2 * received).min(MAX_HEAD_BYTES as usize), 0);
        }
        let lost = |source| FetchError::Lost { root: root.clone(), received, source };
        let seen = match connection.peek(&mut head[received..]).await.map_err(lost)? {
            0 => return Err(FetchError::Closed { root: root.clone(), received }),
            n => received + n,
        };
        let end = head_end(&head[..seen], received);
        // What does not end the head belongs to it; left in the connection it would be seen again and again.
        let take = end.unwrap_or(seen);
        connection.recv_exact(&mut head[received..take]).await.map_err(lost)?;
        received = take;
        if end.is_some() {
            head.truncate(received);
            return Ok(head);
        }
    }
}
