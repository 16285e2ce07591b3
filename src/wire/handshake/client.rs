//! The side that connects: a downstream, or a relay towards its next hop.
//!
//! In: the server's bytes. Out: hello, then the proven acceptance. Called for every new lane. Invariant: a lane is used only
//! after a reply that a key holder made for this very hello.

use super::super::key::{Key, Seal};
use super::super::reason::Reason;
use super::super::route::Route;
use super::{
    CHALLENGE_BYTES, HandshakeError, Intake, LABEL_HELLO, LABEL_REPLY, MIN_HELLO_BYTES, Message, NONCE_BYTES,
    PREFIX_BYTES, PURPOSE_LANE, Progress, REPLY_REASON_AT, Status, check_magic, prefix,
};

/// Waits for the challenge.
#[derive(Debug)]
pub struct ClientHandshake<'k> {
    key: &'k Key,
    route: &'k Route,
    nonce: [u8; NONCE_BYTES],
}

/// Has answered the challenge and waits for the reply.
#[derive(Debug)]
pub struct AwaitingReply {
    /// Has taken challenge and hello already.
    seal: Seal,
    pub(super) intake: Intake,
}

/// The lane is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// The upstream's random number for this run of it: lanes with the same one reach the same process.
    pub instance: u64,
    /// A leg behind the server was to be MPTCP and is plain TCP.
    pub fell_back: bool,
}

impl<'k> ClientHandshake<'k> {
    /// For a connection whose server is to forward along `route`. `nonce` must be random and new for every connection: it
    /// is what makes a recorded reply worthless.
    pub fn new(key: &'k Key, route: &'k Route, nonce: [u8; NONCE_BYTES]) -> Self {
        Self { key, route, nonce }
    }

    /// Takes the server's challenge; returns the hello to send.
    pub fn challenge(
        self,
        challenge: &[u8; CHALLENGE_BYTES],
    ) -> Result<(AwaitingReply, Vec<u8>), HandshakeError> {
        let &[m0, m1, m2, m3, version, ref rest @ ..] = challenge;
        check_magic(Message::Challenge, [m0, m1, m2, m3], version)?;
        if !rest.starts_with(&[0, 0, 0]) {
            return Err(HandshakeError::Reserved);
        }
        let hello = self.hello(challenge);
        let seal = self.key.seal(LABEL_REPLY).with(challenge).with(&hello);
        Ok((AwaitingReply { seal, intake: Intake::reply() }, hello))
    }

    fn hello(&self, challenge: &[u8; CHALLENGE_BYTES]) -> Vec<u8> {
        let route = self.route.encode();
        // An empty route is two bytes of the minimum.
        let mut hello = Vec::from(prefix(PURPOSE_LANE, MIN_HELLO_BYTES - 2 + route.len()));
        hello.extend_from_slice(&self.key.key_id().0);
        hello.extend_from_slice(&self.nonce);
        hello.extend_from_slice(&route);
        let mac = self.key.seal(LABEL_HELLO).with(challenge).with(&hello).finish();
        hello.extend_from_slice(&mac);
        hello
    }
}

impl AwaitingReply {
    /// Takes what was read; start with an empty slice to learn how much to read. Every verdict but acceptance is an error,
    /// and after an error the connection is lost.
    pub fn reply(&mut self, bytes: &[u8]) -> Result<Progress<Accepted>, HandshakeError> {
        match self.intake.feed(bytes)? {
            0 => self.verify().map(Progress::Done),
            missing => Ok(Progress::NeedMore(missing)),
        }
    }

    /// What to report when the connection ends before the reply does.
    pub fn closed(&self) -> HandshakeError {
        self.intake.closed()
    }

    fn verify(&self) -> Result<Accepted, HandshakeError> {
        let (body, mac) = self.intake.body_and_mac();
        let status = self.intake.code();
        if self.seal.clone().with(body).verify(mac).is_err() {
            // Without proof the status is a hint: it may choose the words, the lane is lost whatever it says.
            return Err(match status {
                status if status == Status::BadKey as u8 => HandshakeError::KeyMismatchReported,
                _ => HandshakeError::NotAuthentic { message: Message::Reply },
            });
        }
        let instance =
            body[PREFIX_BYTES..REPLY_REASON_AT].iter().fold(0, |value, &byte| value << 8 | u64::from(byte));
        let reason = Reason::decode(&body[REPLY_REASON_AT..])?;
        match status {
            status if status == Status::Accepted as u8 && reason.is_empty() => {
                Ok(Accepted { instance, fell_back: false })
            }
            status if status == Status::AcceptedFellBack as u8 && reason.is_empty() => {
                Ok(Accepted { instance, fell_back: true })
            }
            status if status == Status::Refused as u8 && instance == 0 => {
                Err(HandshakeError::Refused { reason })
            }
            status if status == Status::Unreachable as u8 && instance == 0 => {
                Err(HandshakeError::Unreachable { reason })
            }
            status if status == Status::NobodyThere as u8 && instance == 0 => {
                Err(HandshakeError::NobodyThere { reason })
            }
            status if status == Status::Unanswered as u8 && instance == 0 => {
                Err(HandshakeError::Unanswered { reason })
            }
            status => Err(HandshakeError::BadStatus { status }),
        }
    }
}
