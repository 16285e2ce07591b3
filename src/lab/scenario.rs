//! What a scenario file says.
//!
//! In: TOML, as in `bench/scenarios/`. Out: a [`Scenario`] whose every number was checked, or an error that names the
//! file, the key and the remedy. No I/O except [`Scenario::load`]. Called by the command line and the benchmark.

use std::{path::Path, time::Duration};

use serde::Deserialize;

use super::shape::{Direction, Shape, ShapeError};

/// Paths of a scenario: each costs a thread, a namespace and a third of a /16 of addresses is far away.
pub const PATHS_MAX: usize = 8;
/// Events of a scenario: more is a mistake, and each is shown on a line of its own.
const EVENTS_MAX: usize = 64;
/// A bottleneck's queue unless the file says otherwise, at least: a home router's smallest is a few dozen packets.
const QUEUE_MS_MIN: f64 = 25.0;

/// Four packets: less is no queue, and TCP cannot work with it.
const QUEUE_BYTES_MIN: u64 = 4 * 1500;

/// An emulated network and what runs on it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Scenario {
    /// Short, of a-z, 0-9 and hyphens.
    pub name: String,
    /// The network in the real world that this is like.
    pub stands_for: String,
    /// Congestion control of connections that do not choose one themselves, such as curl's (`congctl` of the routes).
    /// Without it: the first of [`Lanes::cc`].
    #[serde(default)]
    pub congctl: Option<String>,
    /// What Plait's lanes are started with.
    #[serde(default)]
    pub lanes: Lanes,
    /// The paths, each with a relay host of its own.
    #[serde(rename = "path")]
    pub paths: Vec<EmulatedPath>,
    /// What changes while traffic runs, in the order of [`Event::at`].
    #[serde(rename = "event", default)]
    pub events: Vec<Event>,
}

/// What Plait's lanes are started with.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Lanes {
    /// Congestion controls to run with, one after the other; the first is the default.
    pub cc: Vec<String>,
    /// Lanes per path and transfer (`--lanes`); without it the processes choose themselves.
    pub per_path: Option<u16>,
}

impl Default for Lanes {
    fn default() -> Self {
        Self { cc: vec!["bbr".into()], per_path: None }
    }
}

/// One path between the client and a relay. Everything counts for both directions, each with a queue of its own.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct EmulatedPath {
    /// Rate of the bottleneck in Mbit/s, headers included.
    pub rate_mbit: f64,
    /// Round trip of an idle path in milliseconds; half of it each way.
    pub rtt_ms: f64,
    /// Probability that a packet is lost, from 0 to 1; in both directions.
    #[serde(default)]
    pub loss: f64,
    /// Mean number of packets that are lost in a row; 1 is independent loss.
    #[serde(default = "one")]
    pub burst: f64,
    /// How far the delay drifts, in milliseconds; packets keep their order.
    #[serde(default)]
    pub jitter_ms: f64,
    /// Length of the bottleneck's queue in milliseconds at its rate. Without it: one round trip, which is what TCP's
    /// textbooks give a router and lets a single flow fill the link, but at least 25 ms.
    #[serde(default)]
    pub queue_ms: Option<f64>,
    /// What one TCP connection may carry at most, in Mbit/s: a policer.
    #[serde(default)]
    pub flow_mbit: Option<f64>,
}

fn one() -> f64 {
    1.0
}

/// A change of one path while traffic runs.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Event {
    /// Seconds after the beginning.
    pub at: f64,
    /// Which path, from 1.
    pub path: usize,
    /// The path goes dead (true) or comes back (false).
    #[serde(default)]
    pub down: Option<bool>,
    /// The one direction that `down` is about; without it both.
    #[serde(default)]
    pub direction: Option<Direction>,
    /// What happens to the process of Plait's relay.
    #[serde(default)]
    pub relay: Option<RelayChange>,
    /// From now on.
    #[serde(default)]
    pub rate_mbit: Option<f64>,
    /// From now on.
    #[serde(default)]
    pub rtt_ms: Option<f64>,
    /// From now on.
    #[serde(default)]
    pub loss: Option<f64>,
}

/// What can happen to a relay's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RelayChange {
    /// It is killed; the kernel closes its connections.
    Kill,
    /// It is started anew, on the same port.
    Start,
    /// It stops working (SIGSTOP); its kernel goes on acknowledging what comes until buffers are full.
    Freeze,
    /// It goes on.
    Thaw,
}

/// Why a scenario is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// There is neither such a file nor a scenario of this name.
    #[error("no scenario {name}: {reason} (built in are: {known})", known = names())]
    Unknown {
        /// What was asked for.
        name: String,
        /// Why it is no file either.
        reason: std::io::Error,
    },
    /// It is no TOML, or has keys that do not exist. The text names the line.
    #[error("{file}: {source}")]
    Syntax {
        /// The file.
        file: String,
        /// What the parser says.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value is out of bounds.
    #[error("{file}: {key} is {value}, but must be {rule}")]
    Value {
        /// The file.
        file: String,
        /// The key, as `path[2].loss`.
        key: String,
        /// What it says.
        value: String,
        /// What may stand there.
        rule: String,
    },
    /// The values are within bounds, but not all together.
    #[error("{file}: {key}: {source}")]
    Shape {
        /// The file.
        file: String,
        /// The table, as `path[2]`.
        key: String,
        /// What the emulator says.
        source: ShapeError,
    },
}

/// The scenarios of `bench/scenarios/`, so that an installed binary has them, too.
const BUILT_IN: &[(&str, &str)] = &[
    ("two-equal", include_str!("../../bench/scenarios/two-equal.toml")),
    ("uneven", include_str!("../../bench/scenarios/uneven.toml")),
    ("far-apart", include_str!("../../bench/scenarios/far-apart.toml")),
    ("lossy", include_str!("../../bench/scenarios/lossy.toml")),
    ("lossy-cubic", include_str!("../../bench/scenarios/lossy-cubic.toml")),
    ("one-bad", include_str!("../../bench/scenarios/one-bad.toml")),
    ("second-dead-slow", include_str!("../../bench/scenarios/second-dead-slow.toml")),
    ("second-half-lost", include_str!("../../bench/scenarios/second-half-lost.toml")),
    ("second-far", include_str!("../../bench/scenarios/second-far.toml")),
    ("four-mixed", include_str!("../../bench/scenarios/four-mixed.toml")),
    ("policed", include_str!("../../bench/scenarios/policed.toml")),
    ("outage", include_str!("../../bench/scenarios/outage.toml")),
    ("relay-killed", include_str!("../../bench/scenarios/relay-killed.toml")),
    ("relay-frozen", include_str!("../../bench/scenarios/relay-frozen.toml")),
    ("relay-restarts", include_str!("../../bench/scenarios/relay-restarts.toml")),
    ("path-silent", include_str!("../../bench/scenarios/path-silent.toml")),
    ("path-deaf", include_str!("../../bench/scenarios/path-deaf.toml")),
    ("path-mute", include_str!("../../bench/scenarios/path-mute.toml")),
];

fn names() -> String {
    BUILT_IN.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

impl Scenario {
    /// The scenarios that the binary carries, in the order of the project's table.
    ///
    /// # Errors
    /// None that a test has not seen; see [`Scenario::parse`].
    pub fn built_in() -> Result<Vec<Self>, ScenarioError> {
        BUILT_IN.iter().map(|(name, text)| Self::parse(name, text)).collect()
    }

    /// The scenario of this built-in name, or of this file.
    ///
    /// # Errors
    /// Neither exists, or the file is wrong.
    pub fn load(name_or_file: &str) -> Result<Self, ScenarioError> {
        if let Some((name, text)) = BUILT_IN.iter().find(|(name, _)| *name == name_or_file) {
            return Self::parse(name, text);
        }
        let text = std::fs::read_to_string(Path::new(name_or_file))
            .map_err(|reason| ScenarioError::Unknown { name: name_or_file.to_owned(), reason })?;
        Self::parse(name_or_file, &text)
    }

    /// Reads `text`; `file` names it in errors.
    ///
    /// # Errors
    /// Syntax, or a value out of bounds.
    pub fn parse(file: &str, text: &str) -> Result<Self, ScenarioError> {
        let scenario: Self = toml::from_str(text)
            .map_err(|source| ScenarioError::Syntax { file: file.to_owned(), source: Box::new(source) })?;
        scenario.check(&Checker { file })?;
        Ok(scenario)
    }

    /// The congestion control of connections that do not choose one.
    pub fn congctl(&self) -> &str {
        self.congctl.as_deref().unwrap_or(&self.lanes.cc[0])
    }

    /// Sum of the rates of all paths in Mbit/s.
    pub fn rate_mbit_sum(&self) -> f64 {
        self.paths.iter().map(|path| path.rate_mbit).sum()
    }

    /// What the paths can carry of a file together, in Mbit/s: 0.965 of the rates, because of 1500 bytes on the wire
    /// 1448 are payload.
    pub fn goodput_mbit_max(&self) -> f64 {
        0.965 * self.rate_mbit_sum()
    }

    fn check(&self, checker: &Checker<'_>) -> Result<(), ScenarioError> {
        let name_ok =
            |name: &str| name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'));
        let short = |key: &str, text: &str| {
            checker.rule(
                key,
                text,
                !text.is_empty() && text.len() <= 40 && name_ok(text),
                "1 to 40 of a-z, 0-9, -",
            )
        };
        short("name", &self.name)?;
        checker.rule(
            "stands-for",
            &self.stands_for,
            !self.stands_for.trim().is_empty(),
            "a sentence that names the real network",
        )?;
        if let Some(congctl) = &self.congctl {
            short("congctl", congctl)?;
        }
        checker.rule("lanes.cc", "an empty list", !self.lanes.cc.is_empty(), "a list such as [\"bbr\"]")?;
        for cc in &self.lanes.cc {
            short("lanes.cc", cc)?;
        }
        if let Some(lanes) = self.lanes.per_path {
            checker.range("lanes.per-path", lanes.into(), 1.0, 64.0, "")?;
        }
        let paths = self.paths.len();
        checker.range("the number of [[path]] tables", paths as f64, 1.0, PATHS_MAX as f64, "")?;
        checker.range(
            "the number of [[event]] tables",
            self.events.len() as f64,
            0.0,
            EVENTS_MAX as f64,
            "",
        )?;
        for (index, path) in self.paths.iter().enumerate() {
            path.check(checker, &format!("path[{}]", index + 1))?;
        }
        let mut before = 0.0;
        for (index, event) in self.events.iter().enumerate() {
            let key = format!("event[{}]", index + 1);
            checker.range(&format!("{key}.at"), event.at, before, 3600.0, " s, in ascending order")?;
            before = event.at;
            checker.range(&format!("{key}.path"), event.path as f64, 1.0, paths as f64, "")?;
            let empty = *event == Event::nothing(event.at, event.path);
            checker.rule(&key, "without effect", !empty, "given down, relay, rate-mbit, rtt-ms or loss")?;
            let has_down = event.direction.is_none() || event.down.is_some();
            checker.rule(&format!("{key}.direction"), "alone", has_down, "beside down")?;
            let after = self.paths[event.path - 1].changed(event);
            after.check(checker, &key)?;
        }
        Ok(())
    }
}

impl EmulatedPath {
    /// Length of the bottleneck's queue in milliseconds at its rate.
    pub fn queue_ms(&self) -> f64 {
        self.queue_ms.unwrap_or(self.rtt_ms.max(QUEUE_MS_MIN))
    }

    /// What each direction of the emulated link does.
    pub fn shape(&self) -> Shape {
        let bytes_per_ms = self.rate_mbit * 1e3 / 8.0;
        Shape {
            rate_mbit: self.rate_mbit,
            queue_bytes: ((bytes_per_ms * self.queue_ms()) as u64).max(QUEUE_BYTES_MIN),
            delay: Duration::from_secs_f64(self.rtt_ms / 2e3),
            jitter: Duration::from_secs_f64(self.jitter_ms / 1e3),
            loss: self.loss,
            burst: (self.burst > 1.0).then_some(self.burst),
            flow_mbit: self.flow_mbit,
        }
    }

    /// This path after `event`, except for outages, which are no quality of the path.
    pub fn changed(&self, event: &Event) -> Self {
        Self {
            rate_mbit: event.rate_mbit.unwrap_or(self.rate_mbit),
            rtt_ms: event.rtt_ms.unwrap_or(self.rtt_ms),
            loss: event.loss.unwrap_or(self.loss),
            // The router's memory does not change with the weather.
            queue_ms: Some(self.queue_ms() * self.rate_mbit / event.rate_mbit.unwrap_or(self.rate_mbit)),
            ..self.clone()
        }
    }

    fn check(&self, checker: &Checker<'_>, key: &str) -> Result<(), ScenarioError> {
        checker.range(&format!("{key}.rate-mbit"), self.rate_mbit, 0.1, 10_000.0, " Mbit/s")?;
        checker.range(&format!("{key}.rtt-ms"), self.rtt_ms, 0.0, 4000.0, " ms")?;
        checker.range(&format!("{key}.loss"), self.loss, 0.0, 0.9, ", a share of the packets")?;
        checker.range(&format!("{key}.burst"), self.burst, 1.0, 100.0, " packets")?;
        checker.range(
            &format!("{key}.jitter-ms"),
            self.jitter_ms,
            0.0,
            self.rtt_ms / 2.0,
            " ms, half of rtt-ms",
        )?;
        if let Some(queue_ms) = self.queue_ms {
            checker.range(&format!("{key}.queue-ms"), queue_ms, 1.0, 60_000.0, " ms")?;
        }
        if let Some(flow_mbit) = self.flow_mbit {
            checker.range(
                &format!("{key}.flow-mbit"),
                flow_mbit,
                0.1,
                self.rate_mbit,
                " Mbit/s, the path's rate",
            )?;
        }
        Ok(())
    }
}

impl Event {
    fn nothing(at: f64, path: usize) -> Self {
        Self { at, path, down: None, direction: None, relay: None, rate_mbit: None, rtt_ms: None, loss: None }
    }

    /// Whether a path that was out of use is of use again from here on.
    pub fn brings_back(&self) -> bool {
        self.down == Some(false) || matches!(self.relay, Some(RelayChange::Start | RelayChange::Thaw))
    }
}

/// Words for what is wrong.
struct Checker<'a> {
    file: &'a str,
}

impl Checker<'_> {
    fn rule(&self, key: &str, value: &str, holds: bool, rule: &str) -> Result<(), ScenarioError> {
        if holds {
            return Ok(());
        }
        Err(ScenarioError::Value {
            file: self.file.to_owned(),
            key: key.to_owned(),
            value: value.to_owned(),
            rule: rule.to_owned(),
        })
    }

    /// Refuses NaN, too, which TOML can write.
    fn range(&self, key: &str, value: f64, low: f64, high: f64, unit: &str) -> Result<(), ScenarioError> {
        let holds = (low..=high).contains(&value);
        self.rule(key, &value.to_string(), holds, &format!("from {low} to {high}{unit}"))
    }
}

#[cfg(test)]
mod tests;
