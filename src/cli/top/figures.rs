//! Figures as people read them; the same as the dashboard writes.

use crate::http::traffic::HistogramReport;

fn scaled(mut value: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if unit == 0 || value >= 100.0 { 0 } else { 1 };
    format!("{value:.digits$} {}", units[unit])
}

/// Bits per second.
pub(super) fn rate(bits: f64) -> String {
    scaled(bits, &["bit/s", "kbit/s", "Mbit/s", "Gbit/s"])
}

/// Bytes.
pub(super) fn size(bytes: u64) -> String {
    scaled(bytes as f64, &["B", "kB", "MB", "GB", "TB"])
}

/// Seconds.
pub(super) fn time(seconds: f64) -> String {
    match seconds {
        0.01..1.0 => format!("{:.0} ms", seconds * 1e3),
        ..1.0 => format!("{:.1} ms", seconds * 1e3),
        _ => format!("{seconds:.2} s"),
    }
}

/// A part of all.
pub(super) fn percent(part: u64, all: u64) -> String {
    if all == 0 { "-".into() } else { format!("{:.0} %", 100.0 * part as f64 / all as f64) }
}

/// Bounds below which half of the values are, and all but one in a hundred.
pub(super) fn quantiles(report: &HistogramReport, unit: impl Fn(f64) -> String) -> String {
    let count = report.count();
    if count == 0 {
        return "-".into();
    }
    let bound = |part: f64| {
        let wanted = (count as f64 * part).ceil() as u64;
        let mut seen = 0;
        for (bound, values) in &report.buckets {
            seen += values;
            if seen >= wanted {
                return format!("<= {}", unit(*bound));
            }
        }
        report.buckets.last().map_or_else(String::new, |(bound, _)| format!("> {}", unit(*bound)))
    };
    format!("p50 {}, p99 {} ({count})", bound(0.5), bound(0.99))
}
