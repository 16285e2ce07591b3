use super::*;
use crate::lanes::census::{End, LaneReport};

const DOCS: &str = include_str!("../../../docs/metrics.md");

/// Name and kind of every metric of the tables, which follow the one of labels.
fn documented() -> Vec<(String, String)> {
    let (_, tables) = DOCS.split_once("\n## ").unwrap();
    let rows = tables.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| {
        let mut cells = row.split('|');
        let name = cells.next().unwrap().trim().trim_end_matches('`').to_owned();
        (name, cells.next().unwrap().trim().to_owned())
    })
    .collect()
}

#[test]
fn the_documentation_names_every_metric_and_no_other() {
    let kind = |values: &Values| match values {
        Values::Counters(_) | Values::Seconds(_) => "counter",
        Values::Gauges(_) => "gauge",
        Values::Histograms(_) => "histogram",
    };
    let written = families(&Snapshot::default());
    let mut written: Vec<_> =
        written.iter().map(|family| (family.name.to_owned(), kind(&family.values).to_owned())).collect();
    let mut documented = documented();
    written.sort();
    documented.sort();
    assert_eq!(written, documented);
}

#[test]
fn the_documentation_names_every_limit_and_no_other() {
    let (_, rows) = DOCS.split_once("| `limit` of `plait_limits_hit_total` | ").unwrap();
    let rows = rows.lines().skip(2).map_while(|line| line.strip_prefix("| `"));
    let documented: Vec<_> = rows.map(|row| row.split_once('`').unwrap().0).collect();
    assert_eq!(documented, crate::net::Limit::ALL.map(crate::net::Limit::name));
}

#[test]
fn labels_are_escaped_and_buckets_add_up() {
    let mut snapshot = Snapshot::default();
    snapshot.paths.push(PathOnWire { name: "a\"b\\c".into(), received_bytes: 7, ..Default::default() });
    snapshot.lanes.push(LaneOnCore {
        core: 1,
        lane: LaneReport {
            end: End::RelayFar,
            peer: "up:7000".into(),
            number: 3,
            in_use: true,
            rtt_s: 0.025,
            delivery_rate: 1,
            congestion_window: 10,
            retransmitted: 2,
            out_of_order: 0,
            sent_bytes: 9,
            received_bytes: 8,
            congestion_control: "bbr".into(),
        },
    });
    let mut report = ClientsReport::default();
    report.traffic.first_byte = HistogramReport { buckets: vec![(0.1, 2), (1.0, 3)], above: 1, sum: 4.5 };
    snapshot.clients.insert("root".into(), report);
    let text = text(&snapshot);
    for line in [
        "# TYPE plait_path_received_bytes_total counter",
        "plait_path_received_bytes_total{path=\"a\\\"b\\\\c\"} 7",
        "plait_lane_round_trip_seconds{end=\"relay-far\",peer=\"up:7000\",core=\"1\",lane=\"3\"} 0.025",
        "plait_first_byte_seconds_bucket{role=\"root\",le=\"1\"} 5",
        "plait_first_byte_seconds_bucket{role=\"root\",le=\"+Inf\"} 6",
        "plait_first_byte_seconds_count{role=\"root\"} 6",
    ] {
        assert!(text.lines().any(|known| known == line), "'{line}' is missing:\n{text}");
    }
    assert!(!text.contains("plait_cache_objects"), "there is no cache");
}

#[test]
fn alerts_and_the_grafana_dashboard_use_documented_names() {
    let documented = documented();
    let files = [
        include_str!("../../../packaging/prometheus/alerts.yml"),
        include_str!("../../../packaging/grafana/plait.json"),
    ];
    for file in files {
        let words = file.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        let names: Vec<_> =
            words.filter(|word| word.starts_with("plait_") || word.starts_with("process_")).collect();
        assert!(names.len() > 10);
        for name in names {
            let base = name.trim_end_matches("_bucket");
            assert!(documented.iter().any(|(known, _)| known == base), "{name} is not in docs/metrics.md");
        }
    }
}
