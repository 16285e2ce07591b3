//! How a request comes off the socket of a connection.
//!
//! In: what the client sends. Out: the head of a request, with the body that goes on to the root still there and any other
//! thrown away; or why there is none. Called by `server`. Invariant: exactly the bytes of a request are taken off the socket.

use std::{cell::RefCell, io, time::Duration};

use ::http::{Method, StatusCode, header::EXPECT};
use futures_util::{FutureExt, pin_mut, select_biased};

use super::{FIRST_REQUEST, HttpConnection, NoRequest, State, is_stopping, stopped};
use crate::{
    exec::{self, Interest},
    http::{
        account::Account,
        cors::is_preflight,
        head::{MAX_HEAD_BYTES, Version},
        problem::{Problem, Side},
        request::{BodyLen, Parsed, RequestHead, parse_request},
    },
};

/// The largest head with the empty line that may stand before it.
const HEAD_BYTES_MAX: usize = MAX_HEAD_BYTES + 2;
/// Looked at in one receive: nearly every head is smaller.
const RECEIVE_BYTES: usize = 4 << 10;
thread_local! {
    /// What is looked at; one for the core, for nobody waits with it, so that an idle connection holds no buffer.
    static LOOKED_AT: RefCell<[u8; RECEIVE_BYTES]> = const { RefCell::new([0; RECEIVE_BYTES]) };
}
/// Largest body that a request may carry. Nothing here reads bodies; a small one is thrown away so that the connection
/// can be used again.
const REQUEST_BODY_BYTES_MAX: u64 = 64 << 10;

/// What has come of a request.
enum Begun {
    /// Its head, which is off the socket.
    Head(RequestHead),
    /// These bytes, which are still there.
    Some(Vec<u8>),
}

impl HttpConnection {
    /// The next request, once all of it that is not passed on has come.
    pub(super) async fn receive_request(&mut self) -> Result<RequestHead, NoRequest> {
        (self.is_head, self.version, self.client_stays) = (false, Version::Http11, true);
        self.has_body = false;
        let request_deadline = self.deadlines.request;
        let head = match self.first_bytes().await? {
            Begun::Head(head) => head,
            Begun::Some(begun) => match exec::timeout(request_deadline, self.receive_head(begun)).await {
                Ok(head) => head?,
                Err(exec::Elapsed) => return Err(NoRequest::last_words(too_slow(request_deadline))),
            },
        };
        self.account.replace(Account::new());
        self.is_head = head.method == Method::HEAD;
        self.version = head.version;
        self.client_stays = head.keep_alive();
        if !head.is_plain() || head.body_len() != BodyLen::None {
            match exec::timeout(request_deadline, self.skip_body(&head)).await {
                Ok(skipped) => skipped?,
                Err(exec::Elapsed) => return Err(NoRequest::last_words(too_slow(request_deadline))),
            }
        }
        self.state = State::Owing;
        Ok(head)
    }

    /// Waits until a request begins, and looks at what has come of it.
    async fn first_bytes(&mut self) -> Result<Begun, NoRequest> {
        // Hardly any client sends the next request before it has the answer: it is waited for without a look.
        let mut is_over = self.is_used && is_stopping(&self.stopping);
        let mut looks = !self.is_used || is_over;
        loop {
            // A request that is there already is answered even if the server stops.
            if looks && let Some(begun) = self.look()? {
                self.is_used = true;
                return Ok(begun);
            }
            if is_over {
                return Err(NoRequest::Gone);
            }
            looks = true;
            let readable = self.idle.wait(self.deadlines.idle, self.socket.ready(Interest::Read)).fuse();
            let (stopping, is_used) = (&mut self.stopping, self.is_used);
            let stops = async {
                stopped(stopping).await;
                if !is_used {
                    exec::sleep(FIRST_REQUEST).await;
                }
            }
            .fuse();
            pin_mut!(readable, stops);
            select_biased! {
                readable = readable => match readable {
                    Ok(readable) => readable?,
                    Err(exec::Elapsed) => return Err(NoRequest::Gone),
                },
                () = stops => is_over = true,
            }
        }
    }

    /// What has come of a request. Nearly always that is all of its head, which is then taken off the socket.
    fn look(&self) -> Result<Option<Begun>, NoRequest> {
        LOOKED_AT.with_borrow_mut(|seen| {
            let came = match self.socket.try_peek(&mut seen[..]) {
                Ok(0) => return Err(NoRequest::Gone),
                Ok(came) => came,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            match parse_request(&seen[..came]) {
                // Its bytes are there, and nobody else takes them.
                Ok(Parsed::Complete { head, len }) if self.socket.try_discard(len)? == len => {
                    Ok(Some(Begun::Head(head)))
                }
                Ok(Parsed::Complete { .. }) => Err(NoRequest::Gone),
                _ => Ok(Some(Begun::Some(seen[..came].to_vec()))),
            }
        })
    }

    /// Receives a head, of which `head` is there, and takes exactly its bytes off the socket.
    async fn receive_head(&mut self, mut head: Vec<u8>) -> Result<RequestHead, NoRequest> {
        // What was looked at before, and taken.
        let mut known = 0;
        // The parser starts over at each call. So that a head which comes byte by byte costs no more than twice its
        // length, it is called when the head may have ended or has doubled.
        let mut parse_at = 1;
        loop {
            let came = head.len() - known;
            let may_end = has_empty_line(&head[known.saturating_sub(2)..]);
            let parsed = if may_end || head.len() >= parse_at || head.len() == HEAD_BYTES_MAX {
                parse_at = 2 * head.len();
                parse_request(&head)
            } else {
                Ok(Parsed::Partial)
            };
            match parsed {
                Ok(Parsed::Complete { head: request, len }) => {
                    self.take(len.saturating_sub(known)).await?;
                    return Ok(request);
                }
                Ok(Parsed::Partial) => self.take(came).await?,
                Err(error) => {
                    self.take(came).await?;
                    return Err(NoRequest::last_words(error.problem()));
                }
            }
            known = head.len();
            head.resize(known + RECEIVE_BYTES.min(HEAD_BYTES_MAX - known), 0);
            let came = self.socket.peek(&mut head[known..]).await?;
            if came == 0 {
                return Err(NoRequest::Gone);
            }
            head.truncate(known + came);
        }
    }

    /// Throws the body of a request away, or refuses the request; one that goes on to the root stays.
    async fn skip_body(&mut self, head: &RequestHead) -> Result<(), NoRequest> {
        let taken = if self.passes_bodies { head.may_go_on() } else { head.method_allowed() };
        if self.passes_bodies && !head.is_plain() && taken.is_ok() && !is_preflight(head) {
            self.has_body = head.body_len() != BodyLen::None;
            return Ok(());
        }
        let refusal = taken.err().filter(|_| !is_preflight(head)).map(|error| error.problem());
        let len = match body_length(head) {
            Ok(len) => len,
            Err(problem) => return Err(NoRequest::last_words(refusal.unwrap_or(problem))),
        };
        if len > 0 && expects_continue(head) {
            // Whether the body still follows a refusal is the client's choice, so that the connection is of no more use.
            if let Some(problem) = refusal {
                return Err(NoRequest::last_words(problem));
            }
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n", false).await?;
        }
        self.take(len).await?;
        match refusal {
            Some(problem) => Err(NoRequest::Refused { problem, lasts: self.client_stays }),
            None => Ok(()),
        }
    }

    /// Takes `len` bytes off the socket and drops them.
    pub(super) async fn take(&self, mut len: usize) -> Result<(), NoRequest> {
        while len > 0 {
            match self.socket.discard(len).await? {
                0 => return Err(NoRequest::Gone),
                n => len -= n,
            }
        }
        Ok(())
    }
}

/// Whether the client waits for an interim answer before it sends its body (RFC 9110 section 10.1.1).
pub(super) fn expects_continue(head: &RequestHead) -> bool {
    head.version == Version::Http11
        && head
            .headers
            .get(EXPECT)
            .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// How many bytes of body follow the head, if few enough to be thrown away.
fn body_length(head: &RequestHead) -> Result<usize, Problem> {
    let refused = |status, text: &dyn std::fmt::Display| Err(Problem::new(status, Side::Client, text));
    match head.body_len() {
        BodyLen::None => Ok(0),
        BodyLen::Fixed(len) if len <= REQUEST_BODY_BYTES_MAX => Ok(len as usize),
        BodyLen::Fixed(len) => refused(
            StatusCode::PAYLOAD_TOO_LARGE,
            &format_args!("the request has a body of {len} bytes, and nothing here takes one"),
        ),
        BodyLen::Chunked => refused(
            StatusCode::LENGTH_REQUIRED,
            &"the request has a chunked body (send none, or a small one with a Content-Length)",
        ),
    }
}

fn too_slow(deadline: Duration) -> Problem {
    let text = format_args!("the request was not complete within {} s", deadline.as_secs_f32());
    Problem::new(StatusCode::REQUEST_TIMEOUT, Side::Client, text)
}

/// True when `bytes` hold the end of a head: an empty line, with or without carriage returns.
fn has_empty_line(bytes: &[u8]) -> bool {
    bytes.windows(2).any(|pair| pair == b"\n\n") || bytes.windows(3).any(|line| line == b"\n\r\n")
}
