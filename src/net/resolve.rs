//! Names to addresses, off the cores' threads.

use std::{
    io,
    net::{SocketAddr, ToSocketAddrs},
    time::Duration,
};

use hickory_resolver::net::NetError;

use crate::exec;

/// How long a name may take: two tries of the resolver's usual 5 s.
const DEADLINE: Duration = Duration::from_secs(10);

/// Why a name has no address.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The resolver's answer.
    #[error("cannot resolve {name}: {source}")]
    Failed {
        /// What was asked for.
        name: String,
        /// What the resolver says.
        source: io::Error,
    },
    /// The named server's answer.
    #[error("the DNS server knows no {name}: {source}")]
    Server {
        /// What was asked for.
        name: String,
        /// What came instead.
        source: Box<NetError>,
    },
    /// It answered with nothing.
    #[error("{name} has no address")]
    Empty {
        /// What was asked for.
        name: String,
    },
    /// It did not answer.
    #[error("no answer about {name} within {} s", DEADLINE.as_secs())]
    Deadline {
        /// What was asked for.
        name: String,
    },
}

impl ResolveError {
    /// Nobody has said anything in time.
    pub fn is_unanswered(&self) -> bool {
        matches!(self, Self::Deadline { .. })
    }
}

/// All addresses of `name`, which is `HOST:PORT`. An address needs no resolver.
///
/// # Errors
/// [`ResolveError`] names what was asked for.
pub async fn resolve(name: &str) -> Result<Vec<SocketAddr>, ResolveError> {
    if let Ok(address) = name.parse() {
        return Ok(vec![address]);
    }
    let name = name.to_owned();
    let asked = name.clone();
    let answer = exec::blocking(move || asked.to_socket_addrs().map(Vec::from_iter));
    match exec::timeout(DEADLINE, answer).await {
        Err(exec::Elapsed) => Err(ResolveError::Deadline { name }),
        Ok(Err(source)) => Err(ResolveError::Failed { name, source }),
        Ok(Ok(addresses)) if addresses.is_empty() => Err(ResolveError::Empty { name }),
        Ok(Ok(addresses)) => Ok(addresses),
    }
}
