//! Why a path gives no lane.

use crate::{
    lanes::handshake::HandshakeFailed,
    net::{ConnectError, ResolveError},
    wire::route::PathSpec,
};

/// Why a lane could not be dialled.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The first hop has no address.
    #[error("path {path}: {source}")]
    Resolve {
        /// The path as on the command line.
        path: String,
        /// What failed.
        source: ResolveError,
    },
    /// The first hop does not answer.
    #[error("path {path}: {source}")]
    Connect {
        /// The path as on the command line.
        path: String,
        /// What failed.
        source: ConnectError,
    },
    /// A hop refused, or the key is wrong.
    #[error("path {path}: {source}")]
    Handshake {
        /// The path as on the command line.
        path: String,
        /// What failed.
        source: HandshakeFailed,
    },
    /// As many lanes stand as may.
    #[error("path {path}: all {max} lanes of this core are busy (raise --lanes-max)")]
    Busy {
        /// The path as on the command line.
        path: String,
        /// The bound.
        max: usize,
    },
}

impl DialError {
    /// The upstream's own host has answered that no process listens there.
    pub fn nobody_there(&self, spec: &PathSpec) -> bool {
        match self {
            DialError::Connect { source, .. } => spec.route().is_empty() && source.nobody_there(),
            DialError::Handshake { source, .. } => source.nobody_there(),
            DialError::Resolve { .. } | DialError::Busy { .. } => false,
        }
    }

    /// Nobody has said anything in time, neither yes nor no.
    pub fn is_unanswered(&self) -> bool {
        match self {
            DialError::Resolve { source, .. } => source.is_unanswered(),
            DialError::Connect { source, .. } => source.is_unanswered(),
            DialError::Handshake { source, .. } => source.is_unanswered(),
            DialError::Busy { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io, time::Duration};

    use super::*;
    use crate::wire::{handshake::HandshakeError, reason::Reason};

    #[test]
    fn only_silence_is_no_answer() {
        let (path, address, deadline) = (String::new, "127.0.0.1:1".parse().unwrap(), Duration::from_secs(4));
        let connect = |source| DialError::Connect { path: path(), source };
        let failed = |kind: io::ErrorKind| {
            connect(ConnectError::Refused { address, source: kind.into() }).is_unanswered()
        };
        let shaken = |source| DialError::Handshake { path: path(), source }.is_unanswered();
        assert!(connect(ConnectError::Deadline { address, deadline }).is_unanswered());
        assert!(failed(io::ErrorKind::TimedOut));
        assert!(shaken(HandshakeFailed::Deadline { deadline }));
        assert!(shaken(HandshakeError::Unanswered { reason: Reason::default() }.into()));
        assert!(!failed(io::ErrorKind::ConnectionRefused));
        assert!(!failed(io::ErrorKind::HostUnreachable));
        assert!(!failed(io::ErrorKind::NetworkUnreachable));
        assert!(!shaken(HandshakeError::KeyMismatchReported.into()));
        assert!(!shaken(HandshakeError::NobodyThere { reason: Reason::default() }.into()));
        assert!(!shaken(HandshakeError::Unreachable { reason: Reason::default() }.into()));
        assert!(!DialError::Busy { path: path(), max: 1 }.is_unanswered());
    }
}
