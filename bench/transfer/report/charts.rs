//! SVG charts of rates: one per row with a bar for each column, and one of all rows.

use std::path::Path;

use plotters::prelude::*;

use crate::Outcome;
use crate::columns::{Column, Warmth};
use crate::row::Row;

const WIDTH_PX: u32 = 900;
/// Height of a bar with its gap.
const BAR_PX: u32 = 24;
/// Title, axis and margins.
const FRAME_PX: u32 = 110;
/// Room for the names of the bars.
const LABEL_PX: u32 = 230;
/// Room behind the longest bar for its figure.
const OVERHANG: f64 = 1.12;

const PLAIT: RGBColor = RGBColor(0x1b, 0x7f, 0x5c);
const PLAIT_COLD: RGBColor = RGBColor(0x8c, 0xc7, 0xb1);
const DIRECT: RGBColor = RGBColor(0xc3, 0xc9, 0xd0);
const PEER: RGBColor = RGBColor(0x8a, 0x93, 0x9f);
const MPTCP: RGBColor = RGBColor(0x4a, 0x7f, 0xb5);
const LIMIT: RGBColor = RGBColor(0xc0, 0x39, 0x2b);

/// One bar: a value with its extremes.
struct Bar {
    label: String,
    value: f64,
    extremes: Option<(f64, f64)>,
    color: RGBColor,
}

/// Goodput of every column of `row`.
pub fn row(row: &Row, path: &Path) -> Outcome<()> {
    let bar = |cell: &crate::cell::Cell| {
        let mbit = cell.mbit()?;
        let color = match (cell.column, cell.warmth) {
            (Column::Direct, _) => DIRECT,
            (Column::KernelMptcp, _) => MPTCP,
            (column, Warmth::Warm) if column.is_plait() => PLAIT,
            (column, Warmth::Cold) if column.is_plait() => PLAIT_COLD,
            _ => PEER,
        };
        Some(Bar { label: row.label(cell), value: mbit.median, extremes: Some((mbit.min, mbit.max)), color })
    };
    let bars: Vec<Bar> = row.cells.iter().filter_map(bar).collect();
    let title = format!("{} ({})", row.name(), row.describe_paths());
    draw(&title, "Mbit/s: median, min to max; red: all links together", &bars, row.capacity_mbit, 1, path)
}

/// Share of what the links can deliver, in every row.
pub fn overview(rows: &[Row], path: &Path) -> Outcome<()> {
    let mut bars = Vec::new();
    for row in rows {
        let program = row.best_peer();
        let program_label = program.map_or(String::new(), |(cell, _)| row.label(cell));
        let mptcp = row.mbit(Column::KernelMptcp, Warmth::Cold);
        let plait = row.mbit(Column::ParallelAuto, Warmth::Warm);
        let group = [
            (format!("{}: direct", row.name()), row.mbit(Column::Direct, Warmth::Cold), DIRECT),
            (program_label, program.map(|(_, mbit)| mbit), PEER),
            ("kernel MPTCP".to_owned(), mptcp, MPTCP),
            ("Plait, warm".to_owned(), plait, PLAIT),
        ];
        for (label, mbit, color) in group {
            let value = mbit.map(|mbit| mbit / row.capacity_mbit);
            bars.extend(value.map(|value| Bar { label, value, extremes: None, color }));
        }
    }
    draw(
        "Transfer rate over emulated paths",
        "share of what all links together can deliver",
        &bars,
        1.0,
        2,
        path,
    )
}

fn draw(title: &str, axis: &str, bars: &[Bar], limit: f64, digits: usize, path: &Path) -> Outcome<()> {
    let count = bars.len().max(1);
    let area = SVGBackend::new(path, (WIDTH_PX, FRAME_PX + BAR_PX * count as u32)).into_drawing_area();
    area.fill(&WHITE)?;
    let longest = bars.iter().map(|bar| bar.extremes.map_or(bar.value, |(_, max)| max)).fold(limit, f64::max);
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 17))
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(LABEL_PX)
        .build_cartesian_2d(0.0..longest * OVERHANG, (0..count - 1).into_segmented())?;
    // The first bar stands at the top, where the axis ends.
    let of_segment = |segment: &SegmentValue<usize>| match segment {
        SegmentValue::CenterOf(index) if *index < bars.len() => bars[bars.len() - 1 - index].label.clone(),
        _ => String::new(),
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc(axis)
        .y_labels(count)
        .y_label_formatter(&of_segment)
        .label_style(("sans-serif", 13))
        .draw()?;
    let black = ShapeStyle::from(&BLACK).stroke_width(1);
    for (index, bar) in bars.iter().rev().enumerate() {
        let (bottom, middle, top) =
            (SegmentValue::Exact(index), SegmentValue::CenterOf(index), SegmentValue::Exact(index + 1));
        let mut rectangle = Rectangle::new([(0.0, bottom), (bar.value, top)], bar.color.filled());
        rectangle.set_margin(3, 3, 0, 0);
        chart.draw_series([rectangle])?;
        let mut end = bar.value;
        if let Some((min, max)) = bar.extremes {
            chart.draw_series([PathElement::new([(min, middle.clone()), (max, middle.clone())], black)])?;
            end = max;
        }
        let figure = format!(" {:.digits$}", bar.value);
        chart.draw_series([
            EmptyElement::at((end, middle)) + Text::new(figure, (2, -6), ("sans-serif", 13))
        ])?;
    }
    let line = [(limit, SegmentValue::Exact(0)), (limit, SegmentValue::Exact(count))];
    chart.draw_series([PathElement::new(line, LIMIT.stroke_width(2))])?;
    area.present()?;
    Ok(())
}
