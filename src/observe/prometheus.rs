//! A snapshot as Prometheus text, version 0.0.4.
//!
//! In: a [`Snapshot`]. Out: text. No I/O. Invariant: every name stands in docs/metrics.md, with its kind and labels; names
//! stay as they are.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, NoLabelSet, prometheus_text},
    metrics::MetricType,
    registry::Registry,
};

use super::snapshot::{ClientsReport, LaneOnCore, PathOnWire, Snapshot};
use crate::http::{account::CacheUse, traffic::HistogramReport};

type Labels = Vec<(&'static str, String)>;

/// Kind and values of a metric.
#[derive(Debug)]
enum Values {
    Counters(Vec<(Labels, u64)>),
    /// Counters of seconds.
    Seconds(Vec<(Labels, f64)>),
    Gauges(Vec<(Labels, f64)>),
    Histograms(Vec<(Labels, HistogramReport)>),
}

/// All values of one name.
#[derive(Debug)]
struct Family {
    name: &'static str,
    help: &'static str,
    values: Values,
}

/// The text of `snapshot`.
pub(super) fn text(snapshot: &Snapshot) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Families(families(snapshot))));
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = prometheus_text::encode(&mut text, &registry);
    text
}

#[derive(Debug)]
struct Families(Vec<Family>);

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        for Family { name, help, values } in &self.0 {
            // The encoder writes it.
            let counter = name.strip_suffix("_total").unwrap_or(name);
            match values {
                Values::Counters(values) if !values.is_empty() => {
                    let mut metric = encoder.encode_descriptor(counter, help, None, MetricType::Counter)?;
                    for (labels, value) in values {
                        metric.encode_family(labels)?.encode_counter::<NoLabelSet, _, u64>(value, None)?;
                    }
                }
                Values::Seconds(values) if !values.is_empty() => {
                    let mut metric = encoder.encode_descriptor(counter, help, None, MetricType::Counter)?;
                    for (labels, value) in values {
                        metric.encode_family(labels)?.encode_counter::<NoLabelSet, _, u64>(value, None)?;
                    }
                }
                Values::Gauges(values) if !values.is_empty() => {
                    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
                    for (labels, value) in values {
                        metric.encode_family(labels)?.encode_gauge(value)?;
                    }
                }
                Values::Histograms(values) if !values.is_empty() => {
                    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
                    for (labels, value) in values {
                        metric.encode_family(labels)?.encode_histogram::<NoLabelSet>(
                            value.sum,
                            value.count(),
                            &value.buckets,
                            None,
                        )?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// A gauge without labels.
fn one(value: impl Into<f64>) -> Values {
    Values::Gauges(vec![(Labels::new(), value.into())])
}

fn count(value: u64) -> Values {
    Values::Counters(vec![(Labels::new(), value)])
}

fn families(snapshot: &Snapshot) -> Vec<Family> {
    let mut all = Vec::new();
    process(snapshot, &mut all);
    paths(&snapshot.paths, &mut all);
    lanes(&snapshot.lanes, &mut all);
    ends(snapshot, &mut all);
    clients(snapshot, &mut all);
    inside(snapshot, &mut all);
    all
}

fn process(snapshot: &Snapshot, all: &mut Vec<Family>) {
    let mut add = |name, help, values| all.push(Family { name, help, values });
    let (process, pools) = (&snapshot.process, &snapshot.pools);
    let info = vec![
        ("version", snapshot.version.clone()),
        ("role", snapshot.role.clone()),
        ("executor", snapshot.executor.clone()),
    ];
    add("plait_info", "Always 1; the labels say what runs", Values::Gauges(vec![(info, 1.0)]));
    add("process_start_time_seconds", "When the process began, seconds since 1970", one(snapshot.started_s));
    add("process_resident_memory_bytes", "Memory in RAM", one(process.resident_bytes as f64));
    add("process_open_fds", "Open descriptors", one(process.descriptors as f64));
    add("process_max_fds", "Descriptors that may be open", one(process.descriptors_max as f64));
    let busy = snapshot.cores.iter().map(|core| (vec![("core", core.core.to_string())], core.busy_s));
    add("plait_core_busy_seconds_total", "CPU time of a core's thread", Values::Seconds(busy.collect()));
    add("plait_pipes_open", "Pipes that exist", one(pools.pipes as f64));
    add("plait_pipes_idle", "Pipes in the pool", one(pools.pipes_idle as f64));
    add("plait_pipes_max", "Pipes that may exist", one(pools.pipes_max as f64));
    add("plait_pipes_refused_total", "Payload was copied for want of a pipe", count(pools.pipes_refused));
    add("plait_buffers_idle", "Buffers in the pool", one(pools.buffers_idle as f64));
    add("plait_parked_bytes", "Payload that waits for earlier frames", one(snapshot.parked_bytes as f64));
    add("plait_parked_max_bytes", "Payload that may wait", one(snapshot.parked_bytes_max as f64));
    let limits = snapshot.limits.iter().map(|(limit, hits)| (vec![("limit", limit.clone())], *hits));
    add("plait_limits_hit_total", "Bounds that were met", Values::Counters(limits.collect()));
}

fn paths(paths: &[PathOnWire], all: &mut Vec<Family>) {
    let labels = |path: &PathOnWire| vec![("path", path.name.clone())];
    let gauge = |value: fn(&PathOnWire) -> f64| {
        Values::Gauges(paths.iter().map(|path| (labels(path), value(path))).collect())
    };
    let counter = |value: fn(&PathOnWire) -> u64| {
        Values::Counters(paths.iter().map(|path| (labels(path), value(path))).collect())
    };
    let mut add = |name, help, values| all.push(Family { name, help, values });
    let up = |path: &PathOnWire| f64::from(u8::from(path.lanes > 0));
    add("plait_path_up", "1 while a lane of the path stands", gauge(up));
    add("plait_path_lanes", "Lanes that stand", gauge(|path| path.lanes as f64));
    add("plait_path_lanes_leased", "Lanes that carry a transfer", gauge(|path| path.leased as f64));
    add("plait_path_lanes_opened_total", "Lanes that have come up", counter(|path| path.lanes_opened));
    add("plait_path_dials_failed_total", "Dials that have failed", counter(|path| path.dials_failed));
    add("plait_path_received_bytes_total", "Payload that has come", counter(|path| path.received_bytes));
    add("plait_path_parked_bytes_total", "Payload that was parked", counter(|path| path.parked_bytes));
    add("plait_path_frames_total", "Frames that have come", counter(|path| path.frames));
    add(
        "plait_path_frames_resent_total",
        "Frames that another lane had carried before",
        counter(|path| path.frames_again),
    );
    add("plait_path_round_trip_seconds", "Round trip to the upstream", gauge(|path| path.rtt_s));
    add("plait_path_subflows", "MPTCP subflows of a lane", gauge(|path| path.subflows as f64));
}

fn lanes(lanes: &[LaneOnCore], all: &mut Vec<Family>) {
    let labels = |lane: &LaneOnCore| {
        vec![
            ("end", lane.lane.end.name().to_owned()),
            ("peer", lane.lane.peer.clone()),
            ("core", lane.core.to_string()),
            ("lane", lane.lane.number.to_string()),
        ]
    };
    let gauge = |value: fn(&LaneOnCore) -> f64| {
        Values::Gauges(lanes.iter().map(|lane| (labels(lane), value(lane))).collect())
    };
    let counter = |value: fn(&LaneOnCore) -> u64| {
        Values::Counters(lanes.iter().map(|lane| (labels(lane), value(lane))).collect())
    };
    let mut add = |name, help, values| all.push(Family { name, help, values });
    let info = lanes.iter().map(|lane| {
        let mut labels = labels(lane);
        labels.push(("congestion_control", lane.lane.congestion_control.clone()));
        (labels, 1.0)
    });
    add("plait_lane_info", "Always 1; names the congestion control", Values::Gauges(info.collect()));
    let in_use = |lane: &LaneOnCore| f64::from(u8::from(lane.lane.in_use));
    add("plait_lane_in_use", "1 while it carries a transfer", gauge(in_use));
    add("plait_lane_round_trip_seconds", "Round trip of this leg", gauge(|lane| lane.lane.rtt_s));
    add(
        "plait_lane_delivery_rate_bytes_per_second",
        "What the kernel delivered at last",
        gauge(|lane| lane.lane.delivery_rate as f64),
    );
    add(
        "plait_lane_congestion_window_segments",
        "Congestion window",
        gauge(|lane| f64::from(lane.lane.congestion_window)),
    );
    add(
        "plait_lane_retransmitted_segments_total",
        "Segments sent again",
        counter(|lane| lane.lane.retransmitted.into()),
    );
    add(
        "plait_lane_out_of_order_segments_total",
        "Segments received out of order",
        counter(|lane| lane.lane.out_of_order.into()),
    );
    add("plait_lane_sent_bytes_total", "Bytes that have left", counter(|lane| lane.lane.sent_bytes));
    add("plait_lane_received_bytes_total", "Bytes that have come", counter(|lane| lane.lane.received_bytes));
}

fn ends(snapshot: &Snapshot, all: &mut Vec<Family>) {
    let mut add = |name, help, values| all.push(Family { name, help, values });
    let ends = || snapshot.ends.iter().map(|(end, totals)| (vec![("end", end.clone())], totals));
    let standing = ends().map(|(labels, totals)| (labels, totals.standing as f64));
    add("plait_lanes", "Lanes that stand", Values::Gauges(standing.collect()));
    let opened = ends().map(|(labels, totals)| (labels, totals.opened));
    add("plait_lanes_opened_total", "Lanes that have come up", Values::Counters(opened.collect()));
    let relay = snapshot.ends.get("relay-near").into_iter().flat_map(|totals| {
        let directions = [("up", totals.up_bytes), ("down", totals.down_bytes)];
        directions.map(|(direction, bytes)| (vec![("direction", direction.to_owned())], bytes))
    });
    add("plait_relay_bytes_total", "Bytes that a relay has forwarded", Values::Counters(relay.collect()));
    let upstream = snapshot.ends.get("upstream");
    let sent = upstream.map(|totals| (Labels::new(), totals.down_bytes));
    add(
        "plait_upstream_payload_bytes_total",
        "Payload sent in frames",
        Values::Counters(sent.into_iter().collect()),
    );
    let resent = upstream.map(|totals| (Labels::new(), totals.resent_bytes));
    add(
        "plait_upstream_resent_bytes_total",
        "Payload that travelled again over another lane",
        Values::Counters(resent.into_iter().collect()),
    );
}

fn clients(snapshot: &Snapshot, all: &mut Vec<Family>) {
    let roles = || snapshot.clients.iter();
    let label = |role: &String| vec![("role", role.clone())];
    let gauge = |value: fn(&ClientsReport) -> f64| {
        Values::Gauges(roles().map(|(role, report)| (label(role), value(report))).collect())
    };
    let counter = |value: fn(&ClientsReport) -> u64| {
        Values::Counters(roles().map(|(role, report)| (label(role), value(report))).collect())
    };
    let histogram = |value: fn(&ClientsReport) -> &HistogramReport| {
        Values::Histograms(roles().map(|(role, report)| (label(role), value(report).clone())).collect())
    };
    let mut add = |name, help, values| all.push(Family { name, help, values });
    add("plait_client_connections", "Connections of clients", gauge(|report| report.connections as f64));
    add(
        "plait_client_connections_max",
        "Connections that there may be",
        gauge(|report| report.connections_max as f64),
    );
    add("plait_clients_turned_away_total", "Connections too many", counter(|report| report.turned_away));
    let statuses = roles().flat_map(|(role, report)| {
        let classes = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"].iter().zip(report.traffic.statuses);
        classes.map(|(class, count)| (vec![("role", role.clone()), ("status", (*class).to_owned())], count))
    });
    add("plait_requests_total", "Requests that have ended", Values::Counters(statuses.collect()));
    add("plait_answers_aborted_total", "Answers cut off", counter(|report| report.traffic.aborted));
    add(
        "plait_answers_broken_total",
        "Answers cut off, and not by the client",
        counter(|report| report.traffic.broken),
    );
    add(
        "plait_body_bytes_total",
        "Bytes of bodies that clients have taken, counted when an answer ends",
        counter(|report| report.traffic.body_bytes),
    );
    let caches = snapshot.clients.get("downstream").filter(|_| snapshot.cache.is_some());
    let results = caches.into_iter().flat_map(|report| {
        let results = CacheUse::ALL.iter().zip(report.traffic.caches);
        results.map(|(cache, count)| (vec![("result", cache.name().to_owned())], count))
    });
    add("plait_cache_requests_total", "Requests by what the cache had", Values::Counters(results.collect()));
    add(
        "plait_first_byte_seconds",
        "From a request to the head of its answer",
        histogram(|report| &report.traffic.first_byte),
    );
    add(
        "plait_longest_stall_seconds",
        "Longest wait for the lanes in an answer that they carried",
        histogram(|report| &report.traffic.stall),
    );
    add(
        "plait_reorder_depth_frames",
        "How far ahead a frame came in an answer that lanes carried",
        histogram(|report| &report.traffic.depth),
    );
}

fn inside(snapshot: &Snapshot, all: &mut Vec<Family>) {
    let mut add = |name, help, values| all.push(Family { name, help, values });
    let gauge = |value: Option<u64>| {
        Values::Gauges(value.map(|value| (Labels::new(), value as f64)).into_iter().collect())
    };
    let counter = |value: Option<u64>| {
        Values::Counters(value.map(|value| (Labels::new(), value)).into_iter().collect())
    };
    let cache = snapshot.cache.as_ref();
    add("plait_cache_objects", "Objects in the cache", gauge(cache.map(|cache| cache.objects)));
    add("plait_cache_bytes", "Bytes that they take", gauge(cache.map(|cache| cache.bytes)));
    add("plait_cache_max_bytes", "Bytes that they may take", gauge(cache.map(|cache| cache.bytes_max)));
    let doors = || snapshot.doors.iter().map(|(role, door)| (vec![("role", role.clone())], door));
    let hellos = doors().map(|(labels, door)| (labels, door.hellos as f64));
    add("plait_hellos", "Hellos of lanes that are awaited", Values::Gauges(hellos.collect()));
    let hellos_max = doors().map(|(labels, door)| (labels, door.hellos_max as f64));
    add("plait_hellos_max", "Hellos that may be awaited", Values::Gauges(hellos_max.collect()));
    let refused = doors().flat_map(|(labels, door)| {
        door.refused.iter().map(move |(reason, count)| {
            let mut labels = labels.clone();
            labels.push(("reason", reason.clone()));
            (labels, *count)
        })
    });
    add("plait_refused_total", "Peers refused at the door", Values::Counters(refused.collect()));
    let upstream = snapshot.upstream.as_ref();
    add("plait_transfers_running", "Transfers that run", gauge(upstream.map(|it| it.transfers)));
    add("plait_kept_bytes", "Payload not acknowledged", gauge(upstream.map(|it| it.kept_bytes)));
    add("plait_kept_max_bytes", "Payload that may be kept", gauge(upstream.map(|it| it.kept_bytes_max)));
    add("plait_root_requests_total", "Requests to the root", counter(upstream.map(|it| it.root_requests)));
    add(
        "plait_root_failures_total",
        "Requests that the root has not answered",
        counter(upstream.map(|it| it.root_failures)),
    );
    let first_byte = upstream.map(|upstream| (Labels::new(), upstream.root_first_byte.clone()));
    add(
        "plait_root_first_byte_seconds",
        "From a request to the head of the root's answer",
        Values::Histograms(first_byte.into_iter().collect()),
    );
}

#[cfg(test)]
mod tests;
