//! Passes on requests that are neither GET nor HEAD, with their bodies, and forgets what they change.
//!
//! In: the head of such a request. Out: the root's answer. Invariants: a request is given to one lane, once; its body is read
//! no faster than the root takes it; what is cached under a URL that was changed is forgotten before the client hears of
//! the change.

use std::{cell::Cell, io, rc::Rc};

use bytes::Bytes;
use futures_util::{FutureExt, pin_mut, select_biased};
use http::{
    HeaderName, HeaderValue, StatusCode,
    header::{CONTENT_LOCATION, LOCATION},
};
use tokio::sync::mpsc;
use url::{Position, Url};

use super::{
    RETRY_AFTER_S, RootAnswer, default_host, framed, problem_of, relay,
    stored::{self, CACHE_STATUS, Way},
};
use crate::{
    cache::{self, Key, slot::Slot},
    http::{
        body::{BodyReader, RequestBodyError},
        forward,
        problem::{Problem, Side},
        request::{BodyLen, RequestHead},
        response::ResponseHead,
        server::HttpConnection,
    },
    mp::{
        manager::Manager,
        upload::{PIECES_MAX, Piece},
    },
    net::Limit,
};

/// Such requests of one core that may run at once. Each has a lane for itself, and viewers need most of them.
const RUNNING_MAX: usize = 64;

/// See the module's description; one for each core.
pub(super) struct Passage {
    pub(super) manager: Rc<Manager>,
    pub(super) cache: Slot,
    running: Cell<usize>,
}

struct Running<'a>(&'a Cell<usize>);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Passage {
    pub(super) fn new(manager: Rc<Manager>, cache: Slot) -> Self {
        Self { manager, cache, running: Cell::new(0) }
    }

    /// Sends one whole answer; an error says that it could not be completed.
    pub(super) async fn answer(
        &self,
        connection: &mut HttpConnection,
        request: &RequestHead,
    ) -> io::Result<()> {
        let host = default_host(connection, request);
        let onward = match forward::request_to_root_with_body(request, host.as_ref()) {
            Ok(head) => head,
            Err(error) => return connection.respond_problem(&error.problem()).await,
        };
        if self.running.get() >= RUNNING_MAX {
            Limit::Uploads.hit();
            let text = format_args!("busy: {RUNNING_MAX} requests that are no GET run already");
            let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, Side::Downstream, text);
            return connection.respond_problem(&problem.with_retry_after(RETRY_AFTER_S)).await;
        }
        self.running.set(self.running.get() + 1);
        let _running = Running(&self.running);
        let body = match connection.body(request).await {
            Ok(body) => body,
            Err(error) => return refuse(connection, &error).await,
        };
        let mut bytes = Vec::new();
        onward.write_head(&mut bytes);
        let (pieces, taken) = mpsc::channel(PIECES_MAX);
        let has_body = request.body_len() != BodyLen::None;
        let reading = read(body, pieces).fuse();
        let socket = connection.shared_socket();
        let asking = self.manager.fetch_once(Bytes::from(bytes), has_body.then_some(taken)).fuse();
        pin_mut!(reading, asking);
        let mut is_read = !has_body;
        let incoming = {
            let gone = socket.ready(crate::exec::Interest::HangUp).fuse();
            pin_mut!(gone);
            loop {
                select_biased! {
                    answer = asking => break answer,
                    outcome = reading => match outcome {
                        Ok(()) => is_read = true,
                        Err(error) => return refuse(connection, &error).await,
                    },
                    _ = gone => return Err(io::ErrorKind::ConnectionAborted.into()),
                }
            }
        };
        if is_read {
            connection.body_was_read();
        }
        let answer = incoming.map_err(|error| problem_of(&error)).and_then(|incoming| {
            let (head, framing) = framed(&incoming, &request.method)?;
            Ok(RootAnswer { head, framing, incoming })
        });
        let answer = match answer {
            Ok(answer) => answer,
            Err(problem) => {
                tracing::info!(method = %request.method, what = request.target(), "{problem}");
                return connection.respond_problem(&problem).await;
            }
        };
        self.invalidate(&onward, &answer.head);
        let header = self.cache.get().map(|_| told(answer.head.status));
        let relayed = relay(&self.manager, connection, (request, &onward), answer, header).fuse();
        pin_mut!(relayed);
        loop {
            select_biased! {
                outcome = relayed => return outcome,
                // An answer that came before the body's end: what is left of it, the root may still want. If it breaks
                // off, the root's answer says so.
                _ = reading => {}
            }
        }
    }

    /// RFC 9111 section 4.4: "A cache MUST invalidate the target URI when it receives a non-error status code in response to an
    /// unsafe request method", "MAY invalidate other URIs", such as those in Location and Content-Location, but not of
    /// another origin.
    fn invalidate(&self, onward: &RequestHead, head: &ResponseHead) {
        if onward.is_safe() || !(head.status.is_success() || head.status.is_redirection()) {
            return;
        }
        let url = cache::url(onward);
        self.cache.forget_url(Key::of(&url));
        let host = url.strip_suffix(onward.target()).unwrap_or_default();
        for name in [LOCATION, CONTENT_LOCATION] {
            let place = head.headers.get(name).and_then(|value| value.to_str().ok());
            if let Some(place) = place.and_then(|place| of_same_origin(&url, place)) {
                self.cache.forget_url(Key::of(&format!("{host}{place}")));
            }
        }
    }
}

/// Path and query of the place that `reference` leads to from `url`, a host and a target, if it is of the same origin
/// (RFC 9110 section 4.3.1: scheme, host and port).
fn of_same_origin(url: &str, reference: &str) -> Option<String> {
    let base = Url::parse(&format!("http://{url}")).ok()?;
    let place = base.join(reference).ok().filter(|place| place.origin() == base.origin())?;
    Some(place[Position::BeforePath..Position::AfterQuery].to_owned())
}

fn told(status: StatusCode) -> (HeaderName, HeaderValue) {
    (CACHE_STATUS, stored::cache_status(Way::Forwarded("method", Some(status)), None))
}

/// Reads all of a body into `pieces`; a dropped other end stops it without harm.
async fn read(mut body: BodyReader, pieces: mpsc::Sender<Piece>) -> Result<(), RequestBodyError> {
    loop {
        let (piece, is_last) = match body.next().await? {
            Some(bytes) => (Piece::Bytes(bytes), false),
            None => (Piece::Last, true),
        };
        if pieces.send(piece).await.is_err() {
            // Nobody takes more; the answer tells why.
            return std::future::pending().await;
        }
        if is_last {
            return Ok(());
        }
    }
}

/// Tells the client, if it is there, why its body is not taken.
async fn refuse(connection: &mut HttpConnection, error: &RequestBodyError) -> io::Result<()> {
    tracing::info!("{error}");
    match error.problem() {
        Some(problem) => connection.respond_problem(&problem).await,
        None => Err(io::ErrorKind::ConnectionAborted.into()),
    }
}
