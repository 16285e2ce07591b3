//! What is shown: the newest snapshot, and what has moved since the one before.
//!
//! In: snapshots. Out: rates, histories and rows of text. No I/O. Called by the screen, and by `--once`.

use std::collections::BTreeMap;

use super::figures::{percent, quantiles, rate, size, time};
use crate::{
    http::{account::CacheUse, traffic::Recent},
    lanes::census::LaneReport,
    observe::{LaneOnCore, PathOnWire, Snapshot},
};

/// Seconds of history: more than terminals are wide.
const HISTORY_MAX: usize = 512;
/// Without a screen that they would have to fit on.
const LANES_WRITTEN_MAX: usize = 40;
const REQUESTS_WRITTEN_MAX: usize = 10;

/// A path, or whatever else the role moves.
#[derive(Debug)]
pub(super) struct Strand {
    pub(super) name: String,
    /// Bytes until now.
    bytes: u64,
    /// Bits per second.
    pub(super) rate: f64,
    /// The newest last, kbit/s.
    pub(super) history: Vec<u64>,
}

/// See the module's description.
pub(super) struct View {
    pub(super) now: Snapshot,
    /// The paths come first, in the order of `now`.
    pub(super) strands: Vec<Strand>,
    /// Of each lane, bits per second in and out.
    lane_rates: Vec<(f64, f64)>,
    busiest: f64,
    pub(super) trouble: Option<String>,
    /// Instead of the last requests.
    pub(super) shows_lanes: bool,
}

/// Names and bytes of what `snapshot`'s role moves.
fn moved(snapshot: &Snapshot) -> Vec<(String, u64)> {
    if !snapshot.paths.is_empty() {
        return snapshot.paths.iter().map(|path| (path.name.clone(), path.received_bytes)).collect();
    }
    let end = |end: &str| snapshot.ends.get(end).copied().unwrap_or_default();
    match snapshot.role.as_str() {
        "relay" => vec![
            ("forwarded down".into(), end("relay-near").down_bytes),
            ("forwarded up".into(), end("relay-near").up_bytes),
        ],
        "upstream" => vec![("payload".into(), end("upstream").down_bytes)],
        "root" => {
            let bodies = snapshot.clients.get("root").map_or(0, |root| root.traffic.body_bytes);
            vec![("bodies that have ended".into(), bodies)]
        }
        _ => Vec::new(),
    }
}

fn key(lane: &LaneOnCore) -> (usize, &str, &str, usize) {
    (lane.core, lane.lane.end.name(), &lane.lane.peer, lane.lane.number)
}

impl View {
    pub(super) fn new(now: Snapshot) -> Self {
        let mut view = Self {
            lane_rates: vec![(0.0, 0.0); now.lanes.len()],
            now,
            strands: Vec::new(),
            busiest: 0.0,
            trouble: None,
            shows_lanes: false,
        };
        view.strands = moved(&view.now)
            .into_iter()
            .map(|(name, bytes)| Strand { name, bytes, rate: 0.0, history: Vec::new() })
            .collect();
        view
    }

    pub(super) fn update(&mut self, next: Snapshot) {
        let seconds = (next.now_s - self.now.now_s).max(0.001);
        // A counter that fell began anew.
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 * 8.0 / seconds;
        let mut known = std::mem::take(&mut self.strands);
        self.strands = moved(&next)
            .into_iter()
            .map(|(name, bytes)| {
                let mut strand = match known.iter().position(|strand| strand.name == name) {
                    Some(at) => known.swap_remove(at),
                    None => Strand { name, bytes, rate: 0.0, history: Vec::new() },
                };
                strand.rate = rate(bytes, strand.bytes);
                strand.bytes = bytes;
                strand.history.push((strand.rate / 1e3) as u64);
                let old = strand.history.len().saturating_sub(HISTORY_MAX);
                strand.history.drain(..old);
                strand
            })
            .collect();
        let before: BTreeMap<_, _> = self.now.lanes.iter().map(|lane| (key(lane), &lane.lane)).collect();
        let of_lane = |lane: &LaneOnCore| {
            let before = before.get(&key(lane)).copied().unwrap_or(&lane.lane);
            let field = |field: fn(&LaneReport) -> u64| rate(field(&lane.lane), field(before));
            (field(|lane| lane.received_bytes), field(|lane| lane.sent_bytes))
        };
        self.lane_rates = next.lanes.iter().map(of_lane).collect();
        let loads = next.cores.iter().zip(&self.now.cores).map(|(core, known)| core.busy_s - known.busy_s);
        self.busiest = loads.fold(0.0, f64::max) / seconds;
        (self.now, self.trouble) = (next, None);
    }

    pub(super) fn title(&self) -> String {
        let Snapshot { version, role, executor, now_s, started_s, .. } = &self.now;
        format!("plait {role} {version}, {executor}, up {:.0} s", now_s - started_s)
    }

    fn total(&self) -> f64 {
        self.strands.iter().fold(0.0, |sum, strand| sum + strand.rate)
    }

    /// Who is left and right of this role.
    pub(super) fn chain(&self) -> String {
        let now = &self.now;
        let at = now.clients_at.as_deref().unwrap_or_default();
        let viewers = now.clients.get("downstream").map_or(0, |clients| clients.connections);
        let carried = rate(self.total());
        match now.role.as_str() {
            _ if !now.paths.is_empty() => {
                let mut upstreams: Vec<_> = now.paths.iter().filter_map(|path| path.hops.last()).collect();
                upstreams.sort();
                upstreams.dedup();
                let upstreams: Vec<_> = upstreams.into_iter().map(String::as_str).collect();
                let (paths, upstreams) = (now.paths.len(), upstreams.join(", "));
                format!(
                    "{viewers} viewers -- downstream {at} == {paths} paths, {carried} == upstream {upstreams} -- root"
                )
            }
            "relay" => format!("downstreams == {carried} == relay == next hops"),
            "upstream" => format!("downstreams == {carried} == upstream -- root"),
            "root" => format!("clients -- {carried} -- root {at}"),
            _ => String::new(),
        }
    }

    /// The dashboard's tiles.
    pub(super) fn tiles(&self) -> Vec<(&'static str, String)> {
        let now = &self.now;
        let mut tiles = vec![("carried now", rate(self.total()))];
        if let Some(clients) = now.clients.get("downstream").or_else(|| now.clients.get("root")) {
            let traffic = &clients.traffic;
            tiles.push(("clients", format!("{} of {}", clients.connections, clients.connections_max)));
            let answers = traffic.statuses.iter().sum::<u64>();
            tiles.push((
                "answers",
                format!("{answers}, {} cut off, {} broken", traffic.aborted, traffic.broken),
            ));
            tiles.push(("bodies", size(traffic.body_bytes)));
        }
        if let (Some(cache), Some(clients)) = (&now.cache, now.clients.get("downstream")) {
            let caches = clients.traffic.caches;
            let hits = percent(caches[CacheUse::Hit as usize], caches.iter().sum());
            tiles.push(("cache hits", format!("{hits} ({})", size(cache.bytes))));
        }
        if !now.paths.is_empty() {
            tiles.push(("parked", size(now.parked_bytes)));
        }
        if let Some(upstream) = &now.upstream {
            let ends = now.ends.get("upstream").copied().unwrap_or_default();
            tiles.push(("transfers", upstream.transfers.to_string()));
            tiles.push(("kept", size(upstream.kept_bytes)));
            tiles.push(("resent", percent(ends.resent_bytes, ends.down_bytes)));
            let (requests, failures) = (upstream.root_requests, upstream.root_failures);
            tiles.push(("asked the root", format!("{requests}, {failures} failed")));
        }
        tiles.push(("lanes", now.ends.values().map(|end| end.standing).sum::<u64>().to_string()));
        tiles.push(("busiest core", format!("{:.0} %", self.busiest * 100.0)));
        tiles.push(("memory", size(now.process.resident_bytes)));
        tiles.push(("limits hit", self.limits()));
        tiles
    }

    fn limits(&self) -> String {
        let now = &self.now;
        let turned_away = now.clients.values().map(|clients| clients.turned_away).sum();
        let own = [("connections", turned_away), ("pipes", now.pools.pipes_refused)];
        let refused = now.doors.values().flat_map(|door| &door.refused);
        let named = refused.chain(&now.limits).map(|(name, count)| (name.as_str(), *count));
        let hit = own.into_iter().chain(named).filter(|(_, count)| *count > 0);
        let hit: Vec<_> = hit.map(|(name, count)| format!("{name} {count}")).collect();
        if hit.is_empty() { "0".into() } else { hit.join(", ") }
    }

    /// The dashboard's histograms, each as two numbers.
    pub(super) fn distributions(&self) -> Vec<(&'static str, String)> {
        let now = &self.now;
        let mut rows = Vec::new();
        if let Some(clients) = now.clients.get("downstream").or_else(|| now.clients.get("root")) {
            rows.push(("first byte", quantiles(&clients.traffic.first_byte, time)));
            if !now.paths.is_empty() {
                rows.push(("longest wait for lanes", quantiles(&clients.traffic.stall, time)));
                let frames = |frames| format!("{frames:.0} frames");
                rows.push(("reorder depth", quantiles(&clients.traffic.depth, frames)));
            }
            if now.cache.is_some() {
                let uses = CacheUse::ALL.iter().zip(clients.traffic.caches);
                let uses: Vec<_> = uses.map(|(way, count)| format!("{} {count}", way.name())).collect();
                rows.push(("cache", uses.join(", ")));
            }
        }
        if let Some(upstream) = &now.upstream {
            rows.push(("first byte of the root", quantiles(&upstream.root_first_byte, time)));
        }
        rows
    }

    pub(super) fn strand_heads(&self) -> [&'static str; 9] {
        let what = if self.now.paths.is_empty() { "what" } else { "path" };
        [what, "state", "rate", "carried", "RTT", "lanes", "parked", "resent", "control"]
    }

    /// What is known of a strand; only paths have all of it.
    pub(super) fn strand_cells(&self, index: usize) -> [String; 9] {
        let strand = &self.strands[index];
        let Some(path) = self.now.paths.get(index) else {
            let none = String::new;
            let (name, carried) = (strand.name.clone(), size(strand.bytes));
            return [name, none(), rate(strand.rate), carried, none(), none(), none(), none(), none()];
        };
        let lanes = self.now.lanes.iter().filter(|lane| lane.lane.peer == path.name);
        let mut control: Vec<_> = lanes.map(|lane| lane.lane.congestion_control.as_str()).collect();
        control.sort_unstable();
        control.dedup();
        [
            path.name.clone(),
            state(path).into(),
            rate(strand.rate),
            size(path.received_bytes),
            time(path.rtt_s),
            format!("{}/{}", path.leased, path.lanes),
            percent(path.parked_bytes, path.received_bytes),
            percent(path.frames_again, path.frames),
            control.join(" "),
        ]
    }

    pub(super) const REQUEST_HEADS: [&str; 9] =
        ["request", "status", "body", "time", "first byte", "wait", "depth", "cache", "path shares"];

    /// The requests that ended last.
    pub(super) fn requests(&self) -> impl Iterator<Item = [String; 9]> {
        let clients = self.now.clients.get("downstream").or_else(|| self.now.clients.get("root"));
        clients.into_iter().flat_map(|clients| &clients.traffic.recent).map(|one| self.request_cells(one))
    }

    fn request_cells(&self, one: &Recent) -> [String; 9] {
        let carried = one.shares.iter().map(|share| share.bytes).sum::<u64>();
        let by_lanes = |text: String| if carried > 0 { text } else { "-".into() };
        // In the order of the paths.
        let of_path = |path: &PathOnWire| {
            let of = one.shares.iter().find(|share| share.path == path.name);
            percent(of.map_or(0, |share| share.bytes), carried).trim_end_matches(" %").to_owned()
        };
        let shares: Vec<_> = self.now.paths.iter().map(of_path).collect();
        [
            one.target.clone(),
            format!("{}{}", one.status, if one.complete { "" } else { " cut" }),
            size(one.body_bytes),
            time(one.taken_s),
            one.first_byte_s.map_or_else(|| "-".into(), time),
            by_lanes(time(one.longest_stall_s)),
            by_lanes(one.reorder_depth.to_string()),
            one.cache.map_or("-", CacheUse::name).to_owned(),
            by_lanes(format!("{} %", shares.join("/"))),
        ]
    }

    pub(super) const LANE_HEADS: [&str; 11] = [
        "lane leads to",
        "end",
        "core",
        "state",
        "in",
        "out",
        "RTT",
        "window",
        "sent again",
        "out of order",
        "control",
    ];

    /// The lanes that stand.
    pub(super) fn lanes(&self) -> impl Iterator<Item = [String; 11]> {
        self.now.lanes.iter().zip(&self.lane_rates).map(|(LaneOnCore { core, lane }, (inwards, outwards))| {
            let is_relays = lane.end.name().starts_with("relay");
            [
                lane.peer.clone(),
                lane.end.name().into(),
                core.to_string(),
                if is_relays {
                    "stands"
                } else if lane.in_use {
                    "busy"
                } else {
                    "idle"
                }
                .into(),
                rate(*inwards),
                rate(*outwards),
                time(lane.rtt_s),
                lane.congestion_window.to_string(),
                lane.retransmitted.to_string(),
                lane.out_of_order.to_string(),
                lane.congestion_control.clone(),
            ]
        })
    }

    /// Without a screen.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines = vec![self.title(), self.chain()];
        let named = |(name, value): (&str, String)| format!("{name}: {value}");
        lines.extend(self.tiles().into_iter().map(named));
        lines.extend(
            (0..self.strands.len()).map(|index| row(&self.strand_heads(), &self.strand_cells(index))),
        );
        lines.extend(self.distributions().into_iter().map(named));
        let requests = self.requests().take(REQUESTS_WRITTEN_MAX);
        lines.extend(requests.map(|cells| row(&Self::REQUEST_HEADS, &cells)));
        lines.extend(self.lanes().take(LANES_WRITTEN_MAX).map(|cells| row(&Self::LANE_HEADS, &cells)));
        lines
    }
}

pub(super) fn state(path: &PathOnWire) -> &'static str {
    match path {
        PathOnWire { down: true, .. } => "DOWN",
        PathOnWire { lanes: 0, .. } => "dialling",
        PathOnWire { fell_back: true, .. } => "up, no MPTCP",
        _ => "up",
    }
}

/// `head cell, head cell, ...`, without cells that say nothing.
fn row(heads: &[&str], cells: &[String]) -> String {
    let said = heads.iter().zip(cells).filter(|(_, cell)| !cell.is_empty());
    said.map(|(head, cell)| format!("{head} {cell}")).collect::<Vec<_>>().join(", ")
}
