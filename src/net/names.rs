//! Who is asked about names: the system's resolver, or a DNS server that the user names; and services, which only DNS knows.
//!
//! In: names of hops and services. Out: addresses, targets. Called by `lanes` for each dial and by the command line for
//! `--path srv:...`. Invariants: every question has a deadline, and an answer's targets a bound.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    time::{Duration, Instant},
};

use hickory_resolver::{
    Resolver, TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig},
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::{RData, RecordType, rdata::SRV},
};

use super::resolve::{ResolveError, resolve};
use crate::{
    exec,
    wire::{path_source::ServiceName, route::HopAddr},
};

/// What one question may take: two tries of a server, and as much for a second one.
const DEADLINE: Duration = Duration::from_secs(6);
/// One try: a lost datagram costs this.
const TRY: Duration = Duration::from_millis(1500);
/// More relays than a transfer has lanes for; an answer with more is cut, those that come first stay.
pub const TARGETS_MAX: usize = 64;

/// A DNS server: `ADDR`, or `ADDR:PORT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameServer(pub SocketAddr);

impl FromStr for NameServer {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        /// Of DNS.
        const PORT: u16 = 53;
        let address = text.parse::<IpAddr>().map(|ip| (ip, PORT).into()).or_else(|_| text.parse());
        address
            .map(Self)
            .map_err(|_| "write ADDR or ADDR:PORT of a DNS server, such as 10.0.0.2 or 127.0.0.1:8600")
    }
}

/// Who is asked.
#[derive(Clone, Copy, Debug, Default)]
pub enum Names {
    /// getaddrinfo(3) about hosts, the servers of /etc/resolv.conf about services.
    #[default]
    System,
    /// This server about both.
    Server(NameServer),
}

/// Why there is no answer about a service.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ServiceError {
    /// No server is known.
    #[error("cannot ask for srv:{name}: {source} (see /etc/resolv.conf, or name a DNS server by --resolver)")]
    Servers {
        /// What was asked for.
        name: ServiceName,
        /// What is wrong.
        source: NetError,
    },
    /// No server has a good answer.
    #[error("no answer about srv:{name}: {source}")]
    Failed {
        /// What was asked for.
        name: ServiceName,
        /// What came instead.
        source: NetError,
    },
    /// Nothing came.
    #[error("no answer about srv:{name} within {} s", DEADLINE.as_secs())]
    Deadline {
        /// What was asked for.
        name: ServiceName,
    },
    /// RFC 2782: a target of "." says that there is no such service.
    #[error("srv:{name} has no target")]
    Empty {
        /// What was asked for.
        name: ServiceName,
    },
}

/// An SRV record of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The lowest is tried first.
    pub priority: u16,
    /// Among those of one priority; a path takes what it carries, so that this says no more than an order.
    pub weight: u16,
    /// Where it is.
    pub hop: HopAddr,
}

/// What DNS says of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Targets {
    /// One at least and 64 at most, the lowest priority first, then the greatest weight; each hop once.
    pub targets: Vec<Target>,
    /// How long it is to be believed.
    pub time_to_live: Duration,
}

impl Names {
    /// All addresses of `hop`.
    ///
    /// # Errors
    /// [`ResolveError`] names what was asked for.
    pub async fn addresses(self, hop: &HopAddr) -> Result<Vec<SocketAddr>, ResolveError> {
        let Self::Server(server) = self else { return resolve(&hop.to_string()).await };
        if let Some(address) = hop.socket_addr() {
            return Ok(vec![address]);
        }
        let (host, port, name) = (hop.host(), hop.port(), hop.to_string());
        exec::blocking(move || {
            let asked = wait_for(async {
                let resolver = resolver(Self::Server(server))?;
                let lookup = resolver.lookup_ip(absolute(&host));
                tokio::time::timeout(DEADLINE, lookup).await.unwrap_or(Err(NetError::Timeout))
            });
            match asked.map_err(NetError::from).and_then(|found| found) {
                Ok(found) => Ok(found.iter().map(|ip| (ip, port).into()).collect()),
                Err(source) => Err(ResolveError::Server { name, source: source.into() }),
            }
        })
        .await
    }

    /// What DNS says of each of `services`, all asked at once. Blocks for some seconds at most.
    pub fn targets(self, services: &[ServiceName]) -> Vec<Result<Targets, ServiceError>> {
        match wait_for(futures_util::future::join_all(services.iter().map(|name| self.targets_of(name)))) {
            Ok(answers) => answers,
            Err(error) => {
                let source = NetError::from(error);
                let failed =
                    |name: &ServiceName| ServiceError::Failed { name: name.clone(), source: source.clone() };
                services.iter().map(|name| Err(failed(name))).collect()
            }
        }
    }

    async fn targets_of(self, name: &ServiceName) -> Result<Targets, ServiceError> {
        let resolver =
            resolver(self).map_err(|source| ServiceError::Servers { name: name.clone(), source })?;
        let asked = Instant::now();
        let lookup = resolver.lookup(name.as_str(), RecordType::SRV);
        let Ok(answer) = tokio::time::timeout(DEADLINE, lookup).await else {
            return Err(ServiceError::Deadline { name: name.clone() });
        };
        let answer = answer.map_err(|source| ServiceError::Failed { name: name.clone(), source })?;
        let records = answer.answers().iter().filter_map(|record| match &record.data {
            RData::SRV(record) => Some(record),
            _ => None,
        });
        let targets = in_order(name, records);
        if targets.is_empty() {
            return Err(ServiceError::Empty { name: name.clone() });
        }
        Ok(Targets { targets, time_to_live: answer.valid_until().saturating_duration_since(asked) })
    }
}

/// As [`Targets`] has them.
fn in_order<'a>(name: &ServiceName, records: impl Iterator<Item = &'a SRV>) -> Vec<Target> {
    let mut targets = Vec::new();
    for SRV { priority, weight, port, target, .. } in records.filter(|record| !record.target.is_root()) {
        let host = target.to_ascii();
        match format!("{}:{port}", host.trim_end_matches('.')).parse() {
            Ok(hop) => targets.push(Target { priority: *priority, weight: *weight, hop }),
            Err(error) => {
                tracing::warn!("srv:{name}: the target {host:?} with port {port} {error}; left out")
            }
        }
    }
    // Servers turn the order of their answers round; a set that stays must look the same.
    targets.sort_by_key(|target| (target.priority, u16::MAX - target.weight, target.hop.to_string()));
    let mut seen = HashSet::new();
    targets.retain(|target| seen.insert(target.hop.clone()));
    if targets.len() > TARGETS_MAX {
        tracing::warn!("srv:{name} has {} targets: the first {TARGETS_MAX} are used", targets.len());
        targets.truncate(TARGETS_MAX);
    }
    targets
}

/// A name that no search domain belongs to.
fn absolute(host: &str) -> String {
    format!("{}.", host.trim_end_matches('.'))
}

/// Each question has its own: none of what it keeps is of use for the next, which comes when the answer is too old.
fn resolver(names: Names) -> Result<TokioResolver, NetError> {
    let provider = TokioRuntimeProvider::default();
    let mut builder = match names {
        Names::System => Resolver::builder(provider)?,
        Names::Server(NameServer(address)) => {
            let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
                connection.port = address.port();
                connection
            });
            let server = NameServerConfig::new(address.ip(), true, connections.into());
            Resolver::builder_with_config(ResolverConfig::from_name_servers(vec![server]), provider)
        }
    };
    let options = builder.options_mut();
    (options.timeout, options.attempts, options.cache_size) = (TRY, 2, 0);
    builder.build()
}

/// Drives `work` on this thread, which none of the cores is.
fn wait_for<T>(work: impl Future<Output = T>) -> io::Result<T> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(priority: u16, weight: u16, port: u16, target: &str) -> SRV {
        SRV::new(priority, weight, port, target.parse().unwrap())
    }

    fn hops(records: &[SRV]) -> Vec<String> {
        let name = "_plait._tcp.example".parse().unwrap();
        in_order(&name, records.iter()).iter().map(|target| target.hop.to_string()).collect()
    }

    #[test]
    fn targets_stand_in_one_order_whatever_the_server_does() {
        let mut records = [
            record(20, 9, 7000, "Far.example."),
            record(10, 1, 7000, "b.example."),
            record(10, 5, 7001, "a.example."),
            record(10, 1, 7000, "a.example."),
            record(10, 5, 7001, "a.example."),
        ];
        let expected = ["a.example:7001", "a.example:7000", "b.example:7000", "far.example:7000"];
        assert_eq!(hops(&records), expected);
        records.reverse();
        assert_eq!(hops(&records), expected);
    }

    #[test]
    fn what_is_no_target_is_left_out() {
        // RFC 2782: "." says that the service is decidedly not available.
        assert_eq!(hops(&[record(0, 0, 0, ".")]), [""; 0]);
        assert_eq!(hops(&[record(0, 0, 0, "a."), record(0, 0, 1, "b.")]), ["b:1"]);
        let many: Vec<_> = (0..100).map(|host| record(1, host, 1, &format!("h{host}."))).collect();
        let kept = hops(&many);
        assert_eq!((kept.len(), &*kept[0], &*kept[63]), (TARGETS_MAX, "h99:1", "h36:1"));
    }

    #[test]
    fn name_servers() {
        let server = |text: &str| text.parse::<NameServer>().map(|server| server.0.to_string()).ok();
        assert_eq!(server("10.0.0.2").unwrap(), "10.0.0.2:53");
        assert_eq!(server("::1").unwrap(), "[::1]:53");
        assert_eq!(server("[::1]:8600").unwrap(), "[::1]:8600");
        assert_eq!(server("127.0.0.1:8600").unwrap(), "127.0.0.1:8600");
        assert_eq!(server("dns.example"), None);
    }
}
