//! Asks the root for what a transfer's first OPEN wants.
//!
//! In: the request head from a lane. Out: the transfer's head and body, or a response that says why there is none. Runs
//! as a task of the core whose lane started the transfer. Invariant: not one byte of the body is taken from the
//! connection here, so that all of it can be spliced.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use ::http::{
    HeaderValue, Method, StatusCode,
    header::{CONNECTION, HOST, TRANSFER_ENCODING},
};
use bytes::Bytes;
use futures_util::{FutureExt, pin_mut, select_biased};

use super::{
    RootOrigin, Upstream, directory, filler,
    source::{Chunks, ROOT_SILENT_MAX, Remaining, RootBody, Source},
    transfer::{FileBody, Transfer},
    upload::{Cut, Upload},
    with_body,
};
use crate::{
    exec::{self, Instant},
    http::{
        forward::strip_hop_by_hop,
        problem::{Problem, Side},
        request::{BodyLen, Parsed, RequestHead, Version, parse_request},
        response::{Framing, ResponseError, ResponseHead, parse_final_response},
    },
    net::{ConnectError, ResolveError, Socket, resolve},
    wire::{self, frame::MAX_HEAD_BYTES, route::Transport},
};

/// Connecting the root, which is near: a SYN and its first two repetitions, after 1 s and 3 s.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// Read at first for a head; it grows up to [`MAX_HEAD_BYTES`]. Heads of video files have some 300 bytes.
const HEAD_BYTES_FIRST: usize = 2 << 10;

/// What a transfer begins with: the head as its lanes get it, and a body.
pub(super) enum Answer {
    /// A body that is pulled through conduits.
    Stream(Vec<u8>, Source),
    /// A body in a file.
    File(Vec<u8>, FileBody),
}

impl Answer {
    /// An answer of our own, without its text for HEAD.
    pub(super) fn problem(problem: &Problem, method: &Method) -> Self {
        let text = if *method == Method::HEAD { Bytes::new() } else { problem.body().into() };
        Answer::Stream(head_bytes(&problem.head()), Source::Memory(text))
    }
}

/// Why there is no response of the root's.
#[derive(Debug, thiserror::Error)]
pub(super) enum RootError {
    #[error("its address is unknown: {0}")]
    Resolve(#[from] ResolveError),
    #[error("{0} (is it running?)")]
    Connect(#[from] ConnectError),
    #[error("{root} gave no answer within {} s", ROOT_SILENT_MAX.as_secs())]
    Silent { root: Arc<str> },
    #[error(transparent)]
    Response(#[from] ResponseError),
    #[error("{root} closed the connection without a whole answer")]
    Closed { root: Arc<str>, received: usize },
    #[error(transparent)]
    Cut(#[from] Cut),
    #[error("{root} lost the connection before its answer: {source}")]
    Lost { root: Arc<str>, received: usize, source: io::Error },
}

impl RootError {
    fn problem(&self) -> Problem {
        let (status, side) = match self {
            RootError::Response(error) => return error.problem(),
            RootError::Resolve(ResolveError::Deadline { .. }) => {
                (StatusCode::GATEWAY_TIMEOUT, Side::Upstream)
            }
            RootError::Resolve(_) => (StatusCode::BAD_GATEWAY, Side::Upstream),
            RootError::Cut(_) => (StatusCode::BAD_REQUEST, Side::Downstream),
            RootError::Connect(ConnectError::Deadline { .. }) | RootError::Silent { .. } => {
                (StatusCode::GATEWAY_TIMEOUT, Side::Root)
            }
            _ => (StatusCode::BAD_GATEWAY, Side::Root),
        };
        Problem::new(status, side, self)
    }
}

/// Gives `transfer` its head and body; `open` is the request's head from the lane, `body` what follows it there.
pub(super) async fn fetch(upstream: Arc<Upstream>, transfer: Arc<Transfer>, open: Vec<u8>, body: Upload) {
    let answer = {
        let (answer, ended) = (answer(&upstream, &open, body).fuse(), transfer.ended().fuse());
        pin_mut!(answer, ended);
        select_biased! {
            answer = answer => answer,
            () = ended => return,
        }
    };
    match answer {
        Answer::Stream(head, source) => transfer.begin(head, source),
        Answer::File(head, file) => transfer.begin_file(head, file),
    }
}

async fn answer(upstream: &Upstream, open: &[u8], body: Upload) -> Answer {
    if let Some(bytes) = wire::filler::asked(open) {
        return filler::answer(bytes);
    }
    let request = match read_request(open) {
        Ok(request) => request,
        Err(problem) => {
            tracing::info!("{problem}");
            let method = if open.starts_with(b"HEAD ") { Method::HEAD } else { Method::GET };
            return Answer::problem(&problem, &method);
        }
    };
    let root = match &upstream.root {
        RootOrigin::Dir(directory) => {
            return match request.method_allowed() {
                Ok(()) => directory::answer(directory, request).await,
                Err(error) => Answer::problem(&error.problem(), &request.method),
            };
        }
        RootOrigin::Http(root) => root,
    };
    let began = Instant::now();
    upstream.figures.requests.fetch_add(1, Ordering::Relaxed);
    match ask(upstream, root, &request, body).await {
        Ok((head, body)) => {
            upstream.figures.first_byte.observe(began.elapsed().as_secs_f64());
            Answer::Stream(head, Source::Root(body))
        }
        Err(error) => {
            upstream.figures.failures.fetch_add(1, Ordering::Relaxed);
            let problem = error.problem();
            tracing::info!("{problem}");
            Answer::problem(&problem, &request.method)
        }
    }
}

/// The request of an OPEN. The downstream has checked it once, as the last to know the client.
fn read_request(open: &[u8]) -> Result<RequestHead, Problem> {
    let bad = |text| Problem::new(StatusCode::BAD_REQUEST, Side::Downstream, text);
    let request = match parse_request(open).map_err(|error| error.problem())? {
        Parsed::Complete { head, len } if len == open.len() => head,
        Parsed::Complete { .. } => return Err(bad("bytes follow the head of a request on a lane")),
        Parsed::Partial => return Err(bad("the head of a request on a lane is cut off")),
    };
    request.may_go_on().map_err(|error| error.problem())?;
    match request.body_len() {
        BodyLen::None => Ok(request),
        _ if !request.is_plain() => Ok(request),
        BodyLen::Fixed(_) | BodyLen::Chunked => Err(bad("a GET or HEAD with a body came on a lane")),
    }
}

async fn ask(
    upstream: &Upstream,
    root: &Arc<str>,
    request: &RequestHead,
    body: Upload,
) -> Result<(Vec<u8>, RootBody), RootError> {
    let mut to_root = request.clone();
    strip_hop_by_hop(&mut to_root.headers);
    to_root.headers.insert(CONNECTION, HeaderValue::from_static("keep-alive"));
    if let Ok(host) = HeaderValue::from_str(root) {
        // Only a request of HTTP/1.0 may lack it.
        to_root.headers.entry(HOST).or_insert(host);
    }
    to_root.version = Version::Http11;
    if request.body_len() == BodyLen::Chunked {
        // RFC 9112 section 6.1: "If any transfer coding is applied to a request's content, the sender MUST apply chunked".
        to_root.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    let mut bytes = Vec::new();
    to_root.write_head(&mut bytes);
    if !request.is_plain() {
        // RFC 9110 section 9.2.2: what is not idempotent is not repeated "unless it has some means to know that the request
        // semantics are actually idempotent", so that a connection which the root may be closing is of no use.
        let fresh = connect(upstream, root).await?;
        if request.body_len() == BodyLen::None {
            return exchange(root, &fresh, &bytes, &request.method).await;
        }
        let body = (request.body_len(), body);
        let (head, is_sent) = with_body::exchange(root, &fresh, bytes, body).await?;
        return begun(root, &fresh, head, &request.method, is_sent);
    }
    if let Some(kept) = upstream.pool.take() {
        match exchange(root, &kept, &bytes, &request.method).await {
            // The root had given the connection up when the request arrived; GET and HEAD may be repeated (RFC 9110
            // section 9.2.2).
            Err(RootError::Closed { received: 0, .. } | RootError::Lost { received: 0, .. }) => {}
            outcome => return outcome,
        }
    }
    let fresh = connect(upstream, root).await?;
    exchange(root, &fresh, &bytes, &request.method).await
}

async fn connect(upstream: &Upstream, root: &str) -> Result<Socket, RootError> {
    let mut refused = None;
    for address in resolve(root).await? {
        match Socket::connect(address, Transport::Tcp, &upstream.legs.client, CONNECT_DEADLINE).await {
            Ok(connection) => return Ok(connection),
            Err(error) => refused = Some(error),
        }
    }
    Err(refused.map_or_else(|| ResolveError::Empty { name: root.to_owned() }.into(), Into::into))
}

/// Sends the request and reads the response's head.
async fn exchange(
    root: &Arc<str>,
    connection: &Socket,
    request: &[u8],
    method: &Method,
) -> Result<(Vec<u8>, RootBody), RootError> {
    let talk = async {
        let lost = |source| RootError::Lost { root: root.clone(), received: 0, source };
        connection.send_all(request, false).await.map_err(lost)?;
        read_head(root, connection).await
    };
    let head = exec::timeout(ROOT_SILENT_MAX, talk)
        .await
        .unwrap_or_else(|exec::Elapsed| Err(RootError::Silent { root: root.clone() }))?;
    begun(root, connection, head, method, true)
}

/// The head for the lanes, and the body that follows it on `connection`, which is of use afterwards only if the root has
/// taken all of the request.
fn begun(
    root: &Arc<str>,
    connection: &Socket,
    mut head: ResponseHead,
    method: &Method,
    is_sent: bool,
) -> Result<(Vec<u8>, RootBody), RootError> {
    let framing = head.framing(method)?;
    let keep_alive = is_sent && head.keep_alive(framing);
    let remaining = match framing {
        Framing::None => Remaining::Fixed(0),
        Framing::Fixed(bytes) => Remaining::Fixed(bytes),
        Framing::Chunked => Remaining::Chunked(Chunks::default()),
        Framing::UntilClose => Remaining::UntilClose,
    };
    strip_hop_by_hop(&mut head.headers);
    if framing == Framing::Chunked {
        // Tells the downstream that a body which ends has ended: where the connection's end is all that ends it, nobody knows.
        head.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    let bytes = head_bytes(&head);
    if bytes.len() > MAX_HEAD_BYTES as usize {
        return Err(ResponseError::HeadTooLarge.into());
    }
    let body = RootBody::new(connection.share(), remaining, keep_alive, root.clone());
    Ok((bytes, body))
}

/// A head as the lanes get it.
pub(super) fn head_bytes(head: &ResponseHead) -> Vec<u8> {
    let mut bytes = Vec::new();
    head.write_head(SystemTime::now(), &mut bytes);
    bytes
}

/// Takes the final head and what is before it off the connection, and nothing behind it.
pub(super) async fn read_head(root: &Arc<str>, connection: &Socket) -> Result<ResponseHead, RootError> {
    let mut bytes = vec![0; HEAD_BYTES_FIRST];
    let mut received = 0;
    loop {
        if received == bytes.len() {
            // The parser refuses a head of that length, so this grows no further.
            bytes.resize((2 * received).min(MAX_HEAD_BYTES as usize), 0);
        }
        let lost = |source| RootError::Lost { root: root.clone(), received, source };
        let seen = match connection.peek(&mut bytes[received..]).await.map_err(lost)? {
            0 => return Err(RootError::Closed { root: root.clone(), received }),
            n => received + n,
        };
        let (head, end) = match parse_final_response(&bytes[..seen])? {
            Parsed::Complete { head, len } => (Some(head), len),
            // All of it belongs to the head; left in the connection it would be seen again and again.
            Parsed::Partial => (None, seen),
        };
        connection.recv_exact(&mut bytes[received..end]).await.map_err(lost)?;
        received = end;
        if let Some(head) = head {
            return Ok(head);
        }
    }
}
