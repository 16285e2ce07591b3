//! Why a path gives no lane.

use crate::{
    lanes::handshake,
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
        source: handshake::HandshakeFailed,
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
}
