//! The side that listens: an upstream or a relay.
//!
//! In: the client's bytes. Out: challenge, verdict. Called for every accepted connection. Invariant: only a
//! [`VerifiedHello`] can accept or refuse, so that nobody without the key learns more than "wrong key".

use super::super::key::{Key, KeyId, Seal};
use super::super::reason::Reason;
use super::super::route::Route;
use super::{
    Accepted, CHALLENGE_BYTES, HELLO_NONCE_AT, HELLO_ROUTE_AT, HandshakeError, Intake, LABEL_HELLO,
    LABEL_REPLY, MIN_REPLY_BYTES, Message, NONCE_BYTES, PREFIX_BYTES, PURPOSE_LANE, Progress, Status, prefix,
};

/// Waits for the hello that answers its challenge.
#[derive(Debug)]
pub struct ServerHandshake<'k> {
    keys: &'k [Key],
    challenge: [u8; CHALLENGE_BYTES],
    pub(super) intake: Intake,
}

/// A key holder's wish, made on this very connection. Answer it with [`accept`](Self::accept) or
/// [`refuse`](Self::refuse).
#[derive(Debug)]
pub struct VerifiedHello {
    route: Route,
    /// Has taken challenge and hello already.
    reply_seal: Seal,
}

/// Why a key holder gets no lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// This server does not serve the route: it is not on a relay's `--allow` list, or leads on from an upstream.
    NotAllowed,
    /// A relay's next hop cannot be reached, or refused in turn.
    Unreachable,
    /// The next hop is the upstream, or leads to it, and its host has refused the connection: no process listens there.
    NobodyThere,
    /// The next hop, or one behind it, has not answered in time.
    Unanswered,
}

impl<'k> ServerHandshake<'k> {
    /// Starts with the challenge to send. The client may hold any of `keys`, newest first, at least one. `nonce` must be
    /// random and new for every connection: it is what makes a recorded hello worthless.
    pub fn new(keys: &'k [Key], nonce: [u8; NONCE_BYTES]) -> (Self, [u8; CHALLENGE_BYTES]) {
        let mut challenge = [0; CHALLENGE_BYTES];
        // The challenge's last three bytes before the nonce are reserved: no code, and no length, for it is fixed.
        challenge[..PREFIX_BYTES].copy_from_slice(&prefix(0, 0));
        challenge[PREFIX_BYTES..].copy_from_slice(&nonce);
        (Self { keys, challenge, intake: Intake::hello() }, challenge)
    }

    /// Takes what was read; start with an empty slice to learn how much to read. After an error the connection is lost.
    pub fn hello(&mut self, bytes: &[u8]) -> Result<Progress<VerifiedHello>, HandshakeError> {
        match self.intake.feed(bytes)? {
            0 => self.verify().map(Progress::Done),
            missing => Ok(Progress::NeedMore(missing)),
        }
    }

    /// What to report when the connection ends before the hello does.
    pub fn closed(&self) -> HandshakeError {
        self.intake.closed()
    }

    fn verify(&self) -> Result<VerifiedHello, HandshakeError> {
        let (body, mac) = self.intake.body_and_mac();
        let mut theirs = KeyId([0; 4]);
        theirs.0.copy_from_slice(&body[PREFIX_BYTES..HELLO_NONCE_AT]);
        let Some(key) = self.keys.iter().find(|key| key.key_id() == theirs) else {
            let ours = self.keys.first().map_or(KeyId([0; 4]), Key::key_id);
            return Err(HandshakeError::KeyMismatch { theirs, ours });
        };
        let seal = key.seal(LABEL_HELLO).with(&self.challenge).with(body);
        seal.verify(mac).map_err(|_| HandshakeError::NotAuthentic { message: Message::Hello })?;
        if self.intake.code() != PURPOSE_LANE {
            return Err(HandshakeError::UnknownPurpose { purpose: self.intake.code() });
        }
        let route = Route::decode(&body[HELLO_ROUTE_AT..])?;
        let reply_seal = key.seal(LABEL_REPLY).with(&self.challenge).with(&self.intake.bytes);
        Ok(VerifiedHello { route, reply_seal })
    }
}

impl VerifiedHello {
    /// The hops that remain behind this server; empty if it is to be the upstream.
    pub fn route(&self) -> &Route {
        &self.route
    }

    /// The upstream's reply that opens the lane. `instance` is its random number for this run of it.
    pub fn accept(self, instance: u64) -> Vec<u8> {
        self.pass_on(Accepted { instance, fell_back: false })
    }

    /// A relay's: what the next hop said, and whether the leg there fell back.
    pub fn pass_on(self, Accepted { instance, fell_back }: Accepted) -> Vec<u8> {
        let status = if fell_back { Status::AcceptedFellBack } else { Status::Accepted };
        self.reply(status, instance, "")
    }

    /// The reply that says why there is no lane. Close the connection behind it.
    pub fn refuse(self, refusal: Refusal, reason: &Reason) -> Vec<u8> {
        let status = match refusal {
            Refusal::NotAllowed => Status::Refused,
            Refusal::Unreachable => Status::Unreachable,
            Refusal::NobodyThere => Status::NobodyThere,
            Refusal::Unanswered => Status::Unanswered,
        };
        self.reply(status, 0, reason.as_str())
    }

    fn reply(self, status: Status, instance: u64, reason: &str) -> Vec<u8> {
        let mut reply = Vec::from(prefix(status as u8, MIN_REPLY_BYTES + reason.len()));
        reply.extend_from_slice(&instance.to_be_bytes());
        reply.extend_from_slice(reason.as_bytes());
        let mac = self.reply_seal.with(&reply).finish();
        reply.extend_from_slice(&mac);
        reply
    }
}

/// What a server sends to a client with another key, so that a person reads "key mismatch" and not "connection reset". It
/// is the same for everyone and proves nothing: a client believes it only as an explanation of its failure.
pub fn bad_key_reply() -> [u8; MIN_REPLY_BYTES] {
    let mut reply = [0; MIN_REPLY_BYTES];
    reply[..PREFIX_BYTES].copy_from_slice(&prefix(Status::BadKey as u8, MIN_REPLY_BYTES));
    reply
}
