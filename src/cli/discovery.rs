//! The paths of a running downstream: read from the flags and the path file, found by DNS, and followed as they change.
//!
//! In: the flags; answers of DNS; [`Order::ReadAgain`] at SIGHUP. Out: the [`PathSet`], renewed when it is another one. Called
//! by the command line. Invariants: what fails changes nothing, and is said once; paths that stay keep their lanes; the only
//! thread that blocks is its own.

use std::{
    collections::HashMap,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{
    args::Paths,
    path_file::{self, PathsError},
};
use crate::{
    mp::manager::PathSet,
    net::{Names, ServiceError, Target, Targets},
    wire::{
        path_source::{PathSource, ServiceName},
        route::PathSpec,
    },
};

/// Consul and others answer with a time to live of 0; asking more often than this would load them for nothing.
const ASK_AGAIN_MIN: Duration = Duration::from_secs(5);
/// A relay that is new is used, and one that is gone let go, after this at the latest.
const ASK_AGAIN_MAX: Duration = Duration::from_secs(300);
/// Pause after the first answer that did not come; it doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_secs(1);
/// A server that is back is noticed after this.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// How often it is looked whether the targets of the next priority are needed, if there are any.
const LOOK: Duration = Duration::from_secs(1);

/// What the thread is told.
enum Order {
    /// To read the path file and ask DNS at once.
    ReadAgain,
}

/// What is known of a service.
struct Service {
    /// The last good answer; nothing before the first.
    targets: Vec<Target>,
    /// When to ask again.
    due: Instant,
    /// After a failure, the pause before the next question.
    retry: Option<Duration>,
}

/// See the module's description.
pub(super) struct Discovery {
    flags: Paths,
    sources: Vec<PathSource>,
    services: HashMap<ServiceName, Service>,
}

impl Discovery {
    /// Reads the flags and asks DNS for the first time. A service without an answer has no paths yet.
    ///
    /// # Errors
    /// [`PathsError`], about what the flags and the path file say.
    pub(super) fn start(flags: &Paths) -> Result<(Self, Vec<ServiceError>), PathsError> {
        let sources = path_file::read(flags)?;
        let mut discovery = Self { flags: flags.clone(), sources, services: HashMap::new() };
        let errors = discovery.ask(Instant::now());
        Ok((discovery, errors))
    }

    /// All paths as they should be now. Those over targets of a higher priority (which come later, RFC 2782) only while no
    /// path over the lower ones is up, as `before` knows them.
    pub(super) fn specs(&self, before: &PathSet) -> Vec<PathSpec> {
        let is_up = |spec: &PathSpec| {
            before.iter().find(|path| path.spec() == spec).is_none_or(|path| !path.report().down)
        };
        let mut specs = Vec::new();
        for source in &self.sources {
            let targets = source.service().and_then(|name| self.services.get(name));
            let targets = targets.map_or(&[][..], |service| &service.targets);
            if source.service().is_none() {
                specs.extend(source.paths(None));
            }
            for group in targets.chunk_by(|one, next| one.priority == next.priority) {
                let paths = source.paths(group.iter().map(|target| target.hop.clone()));
                let up = paths.iter().any(is_up);
                specs.extend(paths);
                if up {
                    break;
                }
            }
        }
        specs
    }

    /// The services that have an answer, and how many targets.
    pub(super) fn services(&self) -> impl Iterator<Item = (&ServiceName, usize)> {
        let answered = self.services.iter().filter(|(_, service)| !service.targets.is_empty());
        answered.map(|(name, service)| (name, service.targets.len()))
    }

    /// Follows DNS, and what it is told by the function that it returns, on a thread of its own.
    pub(super) fn follow(mut self, paths: watch::Sender<PathSet>) -> impl FnMut() + Send {
        let (orders, told) = mpsc::sync_channel(1);
        thread::spawn(move || {
            loop {
                let order = match self.next_look() {
                    Some(pause) => told.recv_timeout(pause),
                    None => told.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
                };
                match order {
                    Ok(Order::ReadAgain) => match path_file::read(&self.flags) {
                        Ok(sources) => {
                            self.sources = sources;
                            self.services.values_mut().for_each(|service| service.due = Instant::now());
                            self.renew(&paths, "the paths were read again", true);
                        }
                        Err(error) => tracing::error!("{error}; the paths stay as they are"),
                    },
                    Err(mpsc::RecvTimeoutError::Timeout) => {
                        self.renew(&paths, "DNS: the paths have changed", false)
                    }
                    Err(mpsc::RecvTimeoutError::Disconnected) => return,
                }
            }
        });
        // One that is not taken yet will do.
        move || drop(orders.try_send(Order::ReadAgain))
    }

    /// How long there is nothing to do.
    fn next_look(&self) -> Option<Duration> {
        let now = Instant::now();
        let pause = |service: &Service| {
            let due = service.due.saturating_duration_since(now);
            let several = service.targets.first().map(|target| target.priority)
                != service.targets.last().map(|target| target.priority);
            if several { due.min(LOOK) } else { due }
        };
        self.services.values().map(pause).min()
    }

    /// Asks what is due, and passes the set on if it is another one.
    fn renew(&mut self, paths: &watch::Sender<PathSet>, occasion: &str, always: bool) {
        for error in self.ask(Instant::now()) {
            tracing::warn!("{error}; what was found before stays, and it is asked again");
        }
        let before = paths.borrow().clone();
        let after = path_file::renewed(&before, self.specs(&before));
        let names_without = |set: &PathSet, others: &PathSet| {
            let new = set.iter().filter(|path| !others.iter().any(|other| Arc::ptr_eq(path, other)));
            new.map(|path| path.name().to_owned()).collect::<Vec<_>>()
        };
        let (added, removed) = (names_without(&after, &before), names_without(&before, &after));
        if always || !added.is_empty() || !removed.is_empty() {
            paths.send_replace(after);
            tracing::info!(?added, ?removed, "{occasion}");
        }
    }

    /// Asks about services that are new or due at `now`; the failures of those that had an answer, or were not asked before.
    fn ask(&mut self, now: Instant) -> Vec<ServiceError> {
        let mut wanted: Vec<_> = self.sources.iter().filter_map(PathSource::service).cloned().collect();
        self.services.retain(|name, _| wanted.contains(name));
        wanted.retain(|name| self.services.get(name).is_none_or(|service| service.due <= now));
        let answers = names(&self.flags).targets(&wanted);
        let mut news = Vec::new();
        for (name, answer) in wanted.into_iter().zip(answers) {
            let fresh = || Service { targets: Vec::new(), due: now, retry: None };
            let service = self.services.entry(name.clone()).or_insert_with(fresh);
            if service.retry.is_some() && answer.is_ok() {
                tracing::info!("srv:{name} has an answer again");
            }
            news.extend(service.take(answer));
        }
        news
    }
}

impl Service {
    /// Believes an answer, or keeps the last one; a failure that is new is returned.
    fn take(&mut self, answer: Result<Targets, ServiceError>) -> Option<ServiceError> {
        match answer {
            Ok(Targets { targets, time_to_live }) => {
                let due = Instant::now() + time_to_live.clamp(ASK_AGAIN_MIN, ASK_AGAIN_MAX);
                *self = Self { targets, due, retry: None };
                None
            }
            Err(error) => {
                let pause = self.retry.map_or(RETRY_MIN, |pause| (pause * 2).min(RETRY_MAX));
                self.due = Instant::now() + pause;
                self.retry.replace(pause).is_none().then_some(error)
            }
        }
    }
}

/// Who is asked about names, as the flags say.
pub(super) fn names(flags: &Paths) -> Names {
    flags.resolver.map_or(Names::System, Names::Server)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lanes::PathStatus;

    fn target(priority: u16, hop: &str) -> Target {
        Target { priority, weight: 0, hop: hop.parse().unwrap() }
    }

    fn answer(targets: &[(u16, &str)], time_to_live: u64) -> Result<Targets, ServiceError> {
        let targets = targets.iter().map(|(priority, hop)| target(*priority, hop)).collect();
        Ok(Targets { targets, time_to_live: Duration::from_secs(time_to_live) })
    }

    fn name() -> ServiceName {
        "relays".parse().unwrap()
    }

    fn service() -> Service {
        Service { targets: Vec::new(), due: Instant::now(), retry: None }
    }

    fn with(answered: Result<Targets, ServiceError>) -> Discovery {
        let flags = Paths {
            path: Vec::new(),
            path_file: None,
            key: "key".into(),
            lanes: None,
            lanes_max: 1,
            resolver: None,
        };
        let sources = ["d:1", "srv:relays,u:7"].map(|text| text.parse().unwrap()).into();
        let mut found = service();
        found.take(answered);
        Discovery { flags, sources, services: [(name(), found)].into() }
    }

    fn shown(specs: &[PathSpec]) -> Vec<String> {
        specs.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn targets_that_come_later_are_used_while_those_before_are_down() {
        let discovery = with(answer(&[(1, "a:1"), (1, "b:1"), (2, "c:1")], 60));
        let set = path_file::renewed(&Vec::new(), discovery.specs(&Vec::new()));
        assert_eq!(shown(&discovery.specs(&set)), ["d:1", "a:1,u:7", "b:1,u:7"]);
        let down = |name: &str, set: &PathSet| {
            let path: &Arc<PathStatus> = set.iter().find(|path| path.name() == name).unwrap();
            path.failed();
        };
        down("a:1,u:7", &set);
        assert_eq!(discovery.specs(&set).len(), 3, "one is enough");
        down("b:1,u:7", &set);
        let more = path_file::renewed(&set, discovery.specs(&set));
        assert_eq!(shown(&discovery.specs(&more)), ["d:1", "a:1,u:7", "b:1,u:7", "c:1,u:7"]);
        assert!(discovery.next_look().unwrap() <= LOOK);
    }

    #[test]
    fn a_failure_keeps_the_answer_before_and_is_said_once() {
        let mut found = service();
        let failed = || Err(ServiceError::Deadline { name: name() });
        assert!(found.take(answer(&[(1, "a:1")], 60)).is_none());
        assert!(found.take(failed()).is_some());
        for _ in 0..10 {
            assert!(found.take(failed()).is_none());
        }
        assert_eq!((found.targets.len(), found.retry), (1, Some(RETRY_MAX)));
        assert!(found.take(answer(&[(1, "b:1")], 60)).is_none());
        assert_eq!(found.targets, [target(1, "b:1")]);
        assert!(found.take(failed()).is_some());
    }

    #[test]
    fn a_time_to_live_has_bounds() {
        for (seconds, expected) in
            [(0, ASK_AGAIN_MIN), (60, Duration::from_secs(60)), (86_400, ASK_AGAIN_MAX)]
        {
            let mut found = service();
            let before = Instant::now();
            found.take(answer(&[(1, "a:1")], seconds));
            let pause = found.due - before;
            assert!(pause >= expected && pause < expected + Duration::from_secs(60), "{pause:?}");
        }
    }
}
