//! The run as Markdown: the table of all rows, what must be reached, and each row in detail.

use std::fmt::Write;

use crate::calibration;
use crate::cell::{Cell, Percentiles, Spread};
use crate::columns::Column;
use crate::columns::Warmth::{Cold, Warm};
use crate::goals::{Bound, Judgement, Verdict};
use crate::report::Run;
use crate::row::Row;

/// Later packets than the emulator may have (the calibration's own limit): figures beside it are doubtful.
const LATE_SHARE_MAX: f64 = 0.01;

/// Whose CPU time is counted, in the order that a byte meets them. The bench's own client is not: it checks every byte.
const ROLES: [&str; 5] = ["root", "upstream", "relays", "downstream", "client"];

/// The whole report.
pub fn markdown(run: &Run) -> String {
    let mut text = String::new();
    // Writing into a String cannot fail.
    let _ = write_run(run, &mut text);
    text
}

fn write_run(run: &Run, out: &mut String) -> std::fmt::Result {
    writeln!(out, "## transfer\n")?;
    if let Some(reason) = &run.invalid {
        writeln!(out, "{}", calibration::warning(reason))?;
    }
    if run.is_quick {
        writeln!(
            out,
            "**A quick look (--quick): smaller files, fewer runs and rows. The goals are meant for 200 MB.**\n"
        )?;
    }
    let commit = run.commit.as_ref().map(|commit| format!(", commit {commit}")).unwrap_or_default();
    writeln!(
        out,
        "{}{commit}, Linux {}, {} cores, load before {}. {} MB per transfer, {} alternating runs, each cut off after \
         {} s: `{}`\n",
        run.date,
        run.kernel,
        run.cores,
        run.load_before,
        run.size_bytes as f64 / 1e6,
        run.runs,
        run.deadline_s,
        run.command
    )?;
    writeln!(out, "{}", calibration::table(&run.calibration))?;
    for trouble in &run.given_up {
        writeln!(out, "- GIVEN UP: {trouble}\n")?;
    }
    write_overview(run, out)?;
    write_verdicts(run, out)?;
    writeln!(
        out,
        "### In detail\n\nTimes are p50 / p90 / p99 / max, from the client's connect; of transfers that were cut off only the \
         rate counts. Wire ÷ delivered: bytes through the links towards the client, 1.036 if nothing is sent twice. \
         Subflows are MPTCP's, the most at once in the transfers with the fewest and the most. \
         CPU time is that of all processes of a role; the root of kernel MPTCP is a thread of the bench. – means that nobody can tell.\n"
    )?;
    for row in &run.rows {
        write_row(row, out)?;
    }
    Ok(())
}

fn write_overview(run: &Run, out: &mut String) -> std::fmt::Result {
    writeln!(
        out,
        "### Mbit/s, median (share of 0.965 × the sum of link rates)\n\nWarm: one transfer has gone before through the \
         same processes. The others are \
         always cold: the first transfer of fresh processes. Plait's downstream has fetched filler while it started (`--warm-up`, \
         64 MB at most), but in the last column. \"1 each\": one lane on each path; \"auto\": as Plait comes.\n"
    )?;
    writeln!(
        out,
        "| scenario, congestion control | direct | best program | kernel MPTCP | Plait MPTCP lane, warm | Plait 1 each, warm | Plait auto, warm | Plait auto, cold | Plait auto, cold, no filler |"
    )?;
    writeln!(out, "| --- | --- | --- | --- | --- | --- | --- | --- | --- |")?;
    for row in &run.rows {
        let peer = row.best_peer().map_or("–".to_owned(), |(cell, mbit)| {
            format!("{}: {}{}", row.label(cell), rate_and_share(row, mbit), row.doubts(cell))
        });
        let rate = |column, warmth, weight| {
            let measured = row.cell(column, warmth).and_then(|cell| Some((cell, cell.mbit()?.median)));
            measured.map_or("–".to_owned(), |(cell, mbit)| {
                format!("{weight}{}{weight}{}", rate_and_share(row, mbit), row.doubts(cell))
            })
        };
        writeln!(
            out,
            "| {} | {} | {peer} | {} | {} | {} | {} | {} | {} |",
            row.name(),
            rate(Column::Direct, Cold, ""),
            rate(Column::KernelMptcp, Cold, ""),
            rate(Column::MptcpLane, Warm, ""),
            rate(Column::ParallelOne, Warm, ""),
            rate(Column::ParallelAuto, Warm, "**"),
            rate(Column::ParallelAuto, Cold, ""),
            rate(Column::ParallelUnwarmed, Cold, ""),
        )?;
    }
    writeln!(out)
}

fn write_verdicts(run: &Run, out: &mut String) -> std::fmt::Result {
    let Some(first) = run.rows.first() else { return Ok(()) };
    writeln!(
        out,
        "### Must reach\n\nPlait auto with warm lanes, medians; behind it the goal, and what one lane on each path reaches. \
         CUT OFF: good enough, but the deadline cut off some of these transfers, whose tails nobody has seen. FELL BACK: what was to be MPTCP was plain TCP.\n"
    )?;
    let goals: Vec<&str> = first.verdicts.iter().map(|verdict| verdict.goal).collect();
    writeln!(out, "| scenario, congestion control | goal of this row | {} |", goals.join(" | "))?;
    writeln!(out, "| --- | --- |{}", " --- |".repeat(goals.len()))?;
    for row in &run.rows {
        let own = row.own_verdict.as_ref();
        let own = own.map_or("–".to_owned(), |verdict| format!("{}: {}", verdict.goal, describe(verdict)));
        let others: Vec<String> = row.verdicts.iter().map(describe).collect();
        writeln!(out, "| {} | {own} | {} |", row.name(), others.join(" | "))?;
    }
    let all = run.rows.iter().flat_map(|row| row.own_verdict.iter().chain(&row.verdicts));
    let count = |wanted| all.clone().filter(|verdict| verdict.judgement == wanted).count();
    writeln!(
        out,
        "\n{} reached, {} MISSED, {} CUT OFF, {} FELL BACK, {} not measured.\n",
        count(Judgement::Reached),
        count(Judgement::Missed),
        count(Judgement::CutOff),
        count(Judgement::FellBack),
        count(Judgement::NotMeasured)
    )
}

fn describe(verdict: &Verdict) -> String {
    let (sign, bound) = match verdict.bound {
        Bound::AtLeast(bound) => ('≥', bound),
        Bound::AtMost(bound) => ('≤', bound),
    };
    // Milliseconds have no use for decimals, ratios do.
    let show = |value: f64| if bound > 10.0 { format!("{value:.0}") } else { format!("{value:.3}") };
    let mut beside =
        verdict.one_lane_each.map(|value| format!("; 1 each: {}", show(value))).unwrap_or_default();
    if let Some(value) = verdict.cold_to_cold {
        beside += &format!("; cold ÷ cold: {}", show(value));
    }
    if verdict.is_other_cut_off {
        beside += "; what it is divided by was cut off";
    }
    let bound = if bound > 10.0 { format!("{bound:.0}") } else { format!("{bound}") };
    let value = match (verdict.value.map(show), verdict.judgement) {
        (Some(value), Judgement::Reached) => value,
        (Some(value), Judgement::CutOff) => format!("**{value} CUT OFF**"),
        (Some(value), Judgement::FellBack) => format!("**{value} FELL BACK**"),
        (Some(value), _) => format!("**{value} MISSED**"),
        (None, _) => "not measured".to_owned(),
    };
    format!("{value} ({sign} {bound}{beside})")
}

fn write_row(row: &Row, out: &mut String) -> std::fmt::Result {
    writeln!(out, "#### {}\n", row.name())?;
    writeln!(out, "{}: {}.\n", row.stands_for.trim_end_matches('.'), row.describe_paths())?;
    writeln!(
        out,
        "| | Mbit/s, median (min–max) | share | transfer s | first byte ms | longest stall ms \
         | wire ÷ delivered | bytes by path | subflows | runs |\n\
         | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    )?;
    for cell in &row.cells {
        write_cell(row, cell, out)?;
    }
    writeln!(out)?;
    write_cpu(row, out)?;
    for cell in &row.cells {
        for failure in &cell.failures {
            writeln!(out, "- {} FAILED: {failure}", row.label(cell))?;
        }
        if cell.late() > LATE_SHARE_MAX {
            writeln!(
                out,
                "- {} is DOUBTFUL: the emulator was more than 2 ms late with {:.1} % of the packets, median",
                row.label(cell),
                cell.late() * 100.0
            )?;
        }
    }
    writeln!(out)
}

fn write_cell(row: &Row, cell: &Cell, out: &mut String) -> std::fmt::Result {
    let label = row.label(cell);
    let Some(mbit) = cell.mbit() else {
        let reason = match (&cell.absent, cell.failures.last()) {
            (Some(reason), _) => format!("not available: {reason}"),
            (None, Some(failure)) => format!("failed: {failure}"),
            (None, None) => "not measured".to_owned(),
        };
        return writeln!(out, "| {label} | {reason} | | | | | | | | 0 |");
    };
    let by_path: Vec<String> =
        cell.path_shares().iter().map(|share| format!("{:.0}", share * 100.0)).collect();
    let subflows = match cell.subflows() {
        None => "–".to_owned(),
        Some((fewest, most)) if fewest == most => most.to_string(),
        Some((fewest, most)) => format!("{fewest} to {most}"),
    };
    let mut runs = format!("{}{}", cell.samples.len(), row.doubts(cell));
    if !cell.failures.is_empty() {
        runs += &format!(", {} failed", cell.failures.len());
    }
    writeln!(
        out,
        "| {label} | {} | {:.3} | {} | {} | {} | {} | {} % | {subflows} | {runs} |",
        show(mbit, 1),
        mbit.median / row.capacity_mbit,
        percentiles(&cell.times(), 1.0, 1),
        percentiles(&cell.first_bytes(), 1e3, 0),
        percentiles(&cell.stalls(), 1e3, 0),
        cell.wire_ratio().map_or("–".to_owned(), |ratio| format!("{:.3}", ratio.median)),
        by_path.join(" + ")
    )
}

fn write_cpu(row: &Row, out: &mut String) -> std::fmt::Result {
    let samples = || row.cells.iter().flat_map(|cell| &cell.samples);
    let roles: Vec<&str> =
        ROLES.into_iter().filter(|&role| samples().any(|sample| sample.cpu_s.contains_key(role))).collect();
    if roles.is_empty() {
        return Ok(());
    }
    writeln!(out, "| CPU s/GB, median | {} |", roles.join(" | "))?;
    writeln!(out, "| --- |{}", " --- |".repeat(roles.len()))?;
    for cell in row.cells.iter().filter(|cell| !cell.samples.is_empty()) {
        let figures: Vec<String> = roles
            .iter()
            .map(|role| cell.cpu_s_per_gb(role).map_or("–".to_owned(), |cpu| format!("{:.2}", cpu.median)))
            .collect();
        writeln!(out, "| {} | {} |", row.label(cell), figures.join(" | "))?;
    }
    writeln!(out)
}

fn rate_and_share(row: &Row, mbit: f64) -> String {
    format!("{mbit:.1} ({:.2})", mbit / row.capacity_mbit)
}

fn show(spread: Spread, digits: usize) -> String {
    format!("{:.digits$} ({:.digits$}–{:.digits$})", spread.median, spread.min, spread.max)
}

/// The four of them, or one figure if all are the same.
fn percentiles(times: &Percentiles, scale: f64, digits: usize) -> String {
    let Some(seconds) = times.seconds() else { return "–".to_owned() };
    let figures = seconds.map(|seconds| format!("{:.digits$}", seconds * scale));
    if figures.iter().all(|figure| *figure == figures[0]) { figures[0].clone() } else { figures.join(" / ") }
}
