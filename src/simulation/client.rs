//! A client: asks for files, one after the other, and looks at every byte that comes.
//!
//! In: a specification. Out: how its requests ended; a panic where an invariant is broken. Runs in the world.

use std::{io, net::SocketAddr, rc::Rc, time::Duration};

use http::Method;

use super::{
    chain::EDGE,
    root::pattern,
    scenario::{ClientSpec, File, RequestSpec, Scenario, Survives},
};
use crate::{
    exec::{self, on_simulator::passed},
    http::{
        chunked::{ChunkDecoder, ChunkStep},
        response::{Framing, Parsed, parse_response},
    },
    net::{Congestion, Leg, Socket},
    wire::route::Transport,
};

/// No answer takes longer: the longest wait for a head, three times, and a few silences of the longest kind behind it.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(900);
/// How often a client asks again whose connection was given up while it was idle.
const DIALS_MAX: usize = 3;

/// See the module's description.
pub(super) struct Client<'a> {
    scenario: &'a Rc<Scenario>,
    spec: &'a ClientSpec,
    told: Told,
}

/// How requests ended.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Told {
    pub(super) bytes: u64,
    pub(super) complete: u32,
    pub(super) broken: u32,
    pub(super) refused: u32,
    pub(super) cancelled: u32,
}

/// How one did.
#[derive(Debug)]
#[expect(dead_code, reason = "a failure shows them")]
enum Outcome {
    Complete,
    /// A status that says so.
    Refused(u16, String),
    /// It broke off, visibly.
    Broken(io::Error, u64),
    Cancelled,
}

/// A connection and what has come too early.
struct Stream<'a> {
    socket: &'a Socket,
    early: Vec<u8>,
    scratch: Vec<u8>,
}

impl<'a> Client<'a> {
    pub(super) fn new(scenario: &'a Rc<Scenario>, spec: &'a ClientSpec) -> Self {
        Self { scenario, spec, told: Told::default() }
    }

    /// Asks for everything.
    pub(super) async fn run(mut self) -> Told {
        exec::sleep(self.spec.begins).await;
        let mut socket = None;
        for request in &self.spec.requests {
            let outcome = exec::timeout(ANSWER_TIME_MAX, self.ask(&mut socket, request)).await;
            let outcome = outcome.unwrap_or_else(|_| panic!("an answer never ends: {request:?}"));
            match &outcome {
                Outcome::Complete => self.told.complete += 1,
                Outcome::Refused(..) => self.told.refused += 1,
                Outcome::Broken(..) => self.told.broken += 1,
                Outcome::Cancelled => self.told.cancelled += 1,
            }
            if !matches!(outcome, Outcome::Complete) {
                socket = None;
            }
            let file = &self.scenario.files[request.file];
            let must_come = match self.scenario.survives {
                Survives::Everything => true,
                Survives::WhatCanBeContinued => file.can_be_continued(),
                Survives::Nothing => false,
            };
            if must_come && file.is_honest() {
                // Too few lanes for all: some are told to come back.
                let may_be_busy = self.scenario.lanes_max < self.scenario.clients.len();
                let is_well = match outcome {
                    Outcome::Complete | Outcome::Cancelled => true,
                    Outcome::Refused(503, _) => may_be_busy,
                    _ => false,
                };
                assert!(is_well, "at {:?}: {request:?} of {file:?} ended with {outcome:?}", passed());
            }
        }
        self.told
    }

    async fn ask(&mut self, socket: &mut Option<Socket>, request: &RequestSpec) -> Outcome {
        for _ in 0..DIALS_MAX {
            let is_fresh = socket.is_none();
            if is_fresh {
                let address: SocketAddr = EDGE.parse().unwrap();
                let congestion = Congestion::Auto(Leg::Client);
                let dialled = Socket::connect(address, Transport::Tcp, &congestion, ANSWER_TIME_MAX).await;
                *socket = Some(dialled.expect("the downstream is always there"));
            }
            let Some(connection) = socket.as_ref() else { continue };
            let mut stream = Stream { socket: connection, early: Vec::new(), scratch: vec![0; 64 << 10] };
            match self.converse(&mut stream, request).await {
                // It was closed before this request arrived.
                Outcome::Broken(_, u64::MAX) if !is_fresh => *socket = None,
                outcome => return outcome,
            }
        }
        Outcome::Broken(io::ErrorKind::NotConnected.into(), 0)
    }

    /// One request and its answer. `u64::MAX` bytes stand for an answer that did not even begin.
    async fn converse(&mut self, stream: &mut Stream<'_>, request: &RequestSpec) -> Outcome {
        let version = if request.is_http10 { "1.0" } else { "1.1" };
        let mut head = format!("GET /{} HTTP/{version}\r\nHost: v\r\n", request.file);
        if let Some((first, last)) = request.range {
            head += &format!("Range: bytes={first}-{last}\r\n");
        }
        head += "\r\n";
        let unbegun = |error| Outcome::Broken(error, u64::MAX);
        if let Err(error) = stream.socket.send_all(head.as_bytes(), false).await {
            return unbegun(error);
        }
        let (answer, framing) = loop {
            if let Ok(Parsed::Complete { head, len }) = parse_response(&stream.early) {
                stream.early.drain(..len);
                let framing = head.framing(&Method::GET).unwrap();
                break (head, framing);
            }
            match stream.more(4096).await {
                Ok(true) => {}
                Ok(false) => return unbegun(io::ErrorKind::UnexpectedEof.into()),
                Err(error) => return unbegun(error),
            }
        };
        let status = answer.status.as_u16();
        if status >= 500 {
            let Framing::Fixed(len) = framing else { panic!("{answer:?}") };
            let mut body = Vec::new();
            while (body.len() as u64) < len {
                match stream.take(4096).await {
                    Ok(bytes) if !bytes.is_empty() => body.extend(bytes),
                    _ => return Outcome::Broken(io::ErrorKind::UnexpectedEof.into(), 0),
                }
            }
            return Outcome::Refused(status, String::from_utf8_lossy(&body).into_owned());
        }
        let file = &self.scenario.files[request.file];
        let (start, end) = match request.range.filter(|_| file.takes_ranges) {
            Some((first, last)) => (first, last + 1),
            None => (0, file.len),
        };
        assert_eq!(
            status,
            if (start, end) == (0, file.len) && request.range.is_none() || !file.takes_ranges {
                200
            } else {
                206
            }
        );
        let mut body = Body { file, request, at: start, start, end, has_stalled: false };
        let outcome = body.receive(stream, framing).await;
        self.told.bytes += body.at - start;
        outcome
    }
}

/// What comes behind the head.
struct Body<'a> {
    file: &'a File,
    request: &'a RequestSpec,
    start: u64,
    at: u64,
    end: u64,
    has_stalled: bool,
}

impl Body<'_> {
    async fn receive(&mut self, stream: &mut Stream<'_>, framing: Framing) -> Outcome {
        match framing {
            Framing::None => {}
            Framing::Fixed(len) => {
                assert_eq!(len, self.end - self.start, "the announced length");
                while self.at < self.end {
                    match self.take(stream, self.end - self.at).await {
                        Ok(1..) => {}
                        Ok(0) => return self.broken(io::ErrorKind::UnexpectedEof.into()),
                        Err(Some(error)) => return self.broken(error),
                        Err(None) => return Outcome::Cancelled,
                    }
                }
            }
            Framing::UntilClose => loop {
                match self.take(stream, u64::MAX).await {
                    Ok(1..) => {}
                    Ok(0) => break,
                    Err(Some(error)) => return self.broken(error),
                    Err(None) => return Outcome::Cancelled,
                }
            },
            Framing::Chunked => {
                let mut decoder = ChunkDecoder::new();
                loop {
                    while stream.early.is_empty() {
                        match stream.more(self.request.read_bytes).await {
                            Ok(true) => {}
                            Ok(false) => return self.broken(io::ErrorKind::UnexpectedEof.into()),
                            Err(error) => return self.broken(error),
                        }
                    }
                    let mut content = match decoder.step(&stream.early).unwrap() {
                        ChunkStep::NeedMore { taken } => {
                            stream.early.drain(..taken);
                            continue;
                        }
                        ChunkStep::End { taken } => {
                            stream.early.drain(..taken);
                            break;
                        }
                        ChunkStep::Data { taken, size } => {
                            stream.early.drain(..taken);
                            size
                        }
                    };
                    while content > 0 {
                        match self.take(stream, content).await {
                            Ok(0) => return self.broken(io::ErrorKind::UnexpectedEof.into()),
                            Ok(bytes) => content -= bytes,
                            Err(Some(error)) => return self.broken(error),
                            Err(None) => return Outcome::Cancelled,
                        }
                    }
                }
            }
        }
        assert_eq!(self.at, self.end, "a truncation was taken for the end of {:?}", self.file);
        Outcome::Complete
    }

    fn broken(&self, error: io::Error) -> Outcome {
        Outcome::Broken(error, self.at - self.start)
    }

    /// Takes up to `max` bytes, as this client does; no error says that it goes away.
    async fn take(&mut self, stream: &mut Stream<'_>, max: u64) -> Result<u64, Option<io::Error>> {
        let got = self.at - self.start;
        if self.request.cancel_at.is_some_and(|at| got >= at) {
            return Err(None);
        }
        if let Some((at, time)) = self.request.stall
            && got >= at
            && !std::mem::replace(&mut self.has_stalled, true)
        {
            exec::sleep(time).await;
        }
        let max = max.min(self.request.read_bytes as u64) as usize;
        let bytes = stream.take(max).await.map_err(Some)?;
        let wanted = pattern(self.request.file, self.at, bytes.len());
        if bytes != wanted {
            let wrong = bytes.iter().zip(wanted).position(|(is, should)| is != should);
            panic!("byte {} of {:?} is wrong", self.at + wrong.unwrap_or(0) as u64, self.request);
        }
        self.at += bytes.len() as u64;
        assert!(self.at <= self.end, "more than the whole of {:?}", self.file);
        if !self.request.pause.is_zero() {
            exec::sleep(self.request.pause).await;
        }
        Ok(bytes.len() as u64)
    }
}

impl Stream<'_> {
    /// Receives up to `max` bytes behind those that came early; false at the end.
    async fn more(&mut self, max: usize) -> io::Result<bool> {
        let max = max.min(self.scratch.len());
        let received = self.socket.recv_some(&mut self.scratch[..max]).await?;
        self.early.extend_from_slice(&self.scratch[..received]);
        Ok(received > 0)
    }

    /// Up to `max` bytes; none at the end.
    async fn take(&mut self, max: usize) -> io::Result<Vec<u8>> {
        if self.early.is_empty() {
            self.more(max).await?;
        }
        let take = max.min(self.early.len());
        let rest = self.early.split_off(take);
        Ok(std::mem::replace(&mut self.early, rest))
    }
}
