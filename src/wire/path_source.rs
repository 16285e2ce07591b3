//! Where paths come from: a path as it stands, or a name of DNS under which its first hops are found.
//!
//! In: a `--path` setting, or a line of a path file. Out: a [`PathSource`], and the [`PathSpec`] for each target that was
//! found. Called by the command line. Invariant: what these types hold prints as it is parsed. Nothing is asked here.

use std::{fmt, str::FromStr};

use thiserror::Error;

use super::route::{HopAddr, MAX_HOST_BYTES, PathSpec, Route, RouteError, Transport};

/// What stands before a name whose SRV records are meant.
const SERVICE_PREFIX: &str = "srv:";

/// A setting: `[tcp:|mptcp:]HOST:PORT[,HOST:PORT]...`, or `[tcp:|mptcp:]srv:NAME[,HOST:PORT]...`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathSource {
    /// One path.
    Path(PathSpec),
    /// A path over each target of a service.
    Service {
        /// Its name.
        name: ServiceName,
        /// The hops behind the target, and what carries the legs.
        route: Route,
    },
}

/// A name with SRV records (RFC 2782), such as `_plait._tcp.relays.example.net`, in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServiceName(String);

/// A setting that says no path.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PathSourceError {
    /// Some hop is wrong.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// What follows `srv:` is no name.
    #[error(
        "{text:?} is no name of a service (write srv:NAME, such as srv:_plait._tcp.relays.example.net, without a port)"
    )]
    Name {
        /// Its text, shortened.
        text: String,
    },
    /// The hops behind the first are looked up by the hop before, which knows addresses only.
    #[error("hop {hop}: only the first hop can be srv:NAME")]
    LaterService {
        /// Which hop, from 2 on.
        hop: usize,
    },
}

impl PathSource {
    /// Reads a path file: a setting on each line, `#` before a comment.
    ///
    /// # Errors
    /// The number of the first line that is none, from 1 on, and what is wrong with it.
    pub fn parse_lines(text: &str) -> Result<Vec<Self>, (usize, PathSourceError)> {
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
        (1..)
            .zip(lines)
            .filter(|(_, line)| !line.is_empty())
            .map(|(line, text)| text.parse().map_err(|error| (line, error)))
            .collect()
    }

    /// What carries each leg.
    pub fn transport(&self) -> Transport {
        match self {
            Self::Path(path) => path.transport(),
            Self::Service { route, .. } => route.transport(),
        }
    }

    /// The service to look up, if it is one.
    pub fn service(&self) -> Option<&ServiceName> {
        match self {
            Self::Path(_) => None,
            Self::Service { name, .. } => Some(name),
        }
    }

    /// The paths over `targets` of its service; the path itself where it is none.
    pub fn paths(&self, targets: impl IntoIterator<Item = HopAddr>) -> Vec<PathSpec> {
        match self {
            Self::Path(path) => vec![path.clone()],
            Self::Service { route, .. } => {
                targets.into_iter().map(|target| PathSpec::new(target, route.clone())).collect()
            }
        }
    }
}

impl FromStr for PathSource {
    type Err = PathSourceError;

    fn from_str(text: &str) -> Result<Self, PathSourceError> {
        let (transport, hops) = match text.split_once(SERVICE_PREFIX) {
            Some((transport @ ("" | "tcp:" | "mptcp:"), hops)) => (transport, hops),
            _ => {
                let later = |hop: &str| hop.starts_with(SERVICE_PREFIX);
                return match text.split(',').position(later) {
                    Some(index) => Err(PathSourceError::LaterService { hop: index + 1 }),
                    None => Ok(Self::Path(text.parse()?)),
                };
            }
        };
        let (name, rest) = hops.split_at(hops.find(',').unwrap_or(hops.len()));
        if let Some(index) = rest.split(',').position(|hop| hop.starts_with(SERVICE_PREFIX)) {
            return Err(PathSourceError::LaterService { hop: index + 1 });
        }
        // Some first hop, so that the others are read and counted as those of any path.
        let path: PathSpec = format!("{transport}target:1{rest}").parse()?;
        Ok(Self::Service { name: name.parse()?, route: path.route().clone() })
    }
}

impl fmt::Display for PathSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.fmt(f),
            Self::Service { name, route } => {
                let transport = if route.transport() == Transport::Mptcp { "mptcp:" } else { "" };
                write!(f, "{transport}{SERVICE_PREFIX}{name}")?;
                route.hops().iter().try_for_each(|hop| write!(f, ",{hop}"))
            }
        }
    }
}

impl ServiceName {
    /// As DNS takes it; a dot at its end says that no search domain is to be tried.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ServiceName {
    type Err = PathSourceError;

    fn from_str(text: &str) -> Result<Self, PathSourceError> {
        /// Enough of a bad name to recognise it by.
        const SHOWN_CHARS: usize = 64;
        // RFC 1035 section 2.3.4: a label has 1 to 63 octets.
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        let labels = text.strip_suffix('.').unwrap_or(text);
        if labels.len() > MAX_HOST_BYTES || !labels.split('.').all(is_label) {
            return Err(PathSourceError::Name { text: text.chars().take(SHOWN_CHARS).collect() });
        }
        Ok(Self(text.to_ascii_lowercase()))
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> PathSourceError {
        text.parse::<PathSource>().expect_err(text)
    }

    fn hops(texts: &[&str]) -> Vec<HopAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_service_stands_for_a_path_over_each_target() {
        let source: PathSource = "srv:_plait._tcp.Relays.example.,u:7000".parse().unwrap();
        assert_eq!(source.service().unwrap().as_str(), "_plait._tcp.relays.example.");
        let paths = source.paths(hops(&["r1:7001", "[::1]:9"]));
        assert_eq!(
            paths.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["r1:7001,u:7000", "[::1]:9,u:7000"]
        );
        let direct: PathSource = "mptcp:srv:upstreams".parse().unwrap();
        assert_eq!(direct.to_string(), "mptcp:srv:upstreams");
        assert_eq!(direct.paths(hops(&["u:1"]))[0].to_string(), "mptcp:u:1");
        let plain: PathSource = "tcp:r:1,u:2".parse().unwrap();
        assert_eq!((plain.service(), plain.paths(None)[0].to_string()), (None, "r:1,u:2".to_owned()));
        // A host may have that name.
        assert_eq!("srv.example:7".parse::<PathSource>().unwrap().service(), None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for text in ["srv:", "srv:,u:1", "srv:a..b", "srv:a:7001,u:1", "srv:a b", "srv:.", "srv:ü"] {
            assert!(matches!(error(text), PathSourceError::Name { .. }), "{text:?}: {:?}", error(text));
        }
        assert!(matches!(error(&format!("srv:{}", "a".repeat(64))), PathSourceError::Name { .. }));
        assert!(matches!(error(&format!("srv:{}", "abc.".repeat(64))), PathSourceError::Name { .. }));
        assert_eq!(error("r:1,srv:a"), PathSourceError::LaterService { hop: 2 });
        assert_eq!(error("srv:a,u:1,srv:b"), PathSourceError::LaterService { hop: 3 });
        assert!(matches!(error("srv:a,"), PathSourceError::Route(RouteError::EmptyHop { hop: 2 })));
        assert!(matches!(error("srv:a,u"), PathSourceError::Route(RouteError::Hop { hop: 2, .. })));
        let many = format!("srv:a{}", ",h:1".repeat(9));
        assert!(matches!(error(&many), PathSourceError::Route(RouteError::TooManyHops { hops: 10, .. })));
    }

    #[test]
    fn any_text_parses_to_what_it_prints_or_is_refused() {
        bolero::check!().with_type::<(bool, String)>().for_each(|(plausible, text)| {
            let alphabet = b"ab.1:,_-srv:";
            let text = match plausible {
                true => text.bytes().map(|b| char::from(alphabet[usize::from(b) % alphabet.len()])).collect(),
                false => text.clone(),
            };
            if let Ok(source) = format!("srv:{text}").parse::<PathSource>() {
                assert_eq!(source.to_string().parse(), Ok(source));
            }
        });
    }
}
