//! Draws a [`View`] on as much of a terminal as there is.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Style, Stylize},
    text::{Line, Span},
    widgets::{Block, Paragraph, Row, Sparkline, Table, Wrap},
};

use super::{figures::rate, view::View};

/// The colours of the paths, the same ones in all places.
const COLOURS: [Color; 6] =
    [Color::Cyan, Color::Yellow, Color::Magenta, Color::Green, Color::LightRed, Color::LightBlue];
/// Charts beside each other; a narrower one says nothing.
const CHART_WIDTH_MIN: u16 = 24;

/// The whole screen.
pub(super) fn draw(view: &View, frame: &mut Frame<'_>) {
    let height = frame.area().height;
    let strands = u16::try_from(view.strands.len()).unwrap_or(u16::MAX).saturating_add(3);
    let facts = u16::try_from(view.distributions().len()).unwrap_or(u16::MAX).saturating_add(4);
    let areas = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(facts.min(height / 3)),
        Constraint::Length(strands.min(height / 4)),
        Constraint::Length(6.min(height / 5)),
        Constraint::Min(3),
        Constraint::Length(1),
    ]);
    let [title, chain, about, paths, charts, rows, foot] = areas.areas(frame.area());
    frame.render_widget(Line::from(view.title()).bold(), title);
    frame.render_widget(Line::from(view.chain()), chain);
    frame.render_widget(facts_of(view), about);
    frame.render_widget(strands_of(view), paths);
    draw_charts(view, frame, charts);
    if view.shows_lanes {
        let widths = [22, 11, 4, 7, 12, 12, 9, 7, 10, 12, 8];
        frame.render_widget(table(&View::LANE_HEADS, view.lanes(), widths), rows);
    } else {
        let widths = [20, 8, 9, 9, 10, 9, 6, 10, 14];
        frame.render_widget(table(&View::REQUEST_HEADS, view.requests(), widths), rows);
    }
    let foot_line = match &view.trouble {
        Some(trouble) => Line::from(trouble.as_str()).fg(Color::Red),
        None if view.shows_lanes => Line::from("q ends this, l shows the last requests"),
        None => Line::from("q ends this, l shows the lanes"),
    };
    frame.render_widget(foot_line, foot);
}

fn colour(view: &View, index: usize) -> Color {
    let is_down = view.now.paths.get(index).is_some_and(|path| path.down);
    if is_down { Color::Red } else { COLOURS[index % COLOURS.len()] }
}

fn facts_of(view: &View) -> Paragraph<'_> {
    let named =
        |(name, value): (&'static str, String)| [Span::from(format!("{name} ")), Span::from(value).bold()];
    let mut tiles = Vec::new();
    for tile in view.tiles() {
        if !tiles.is_empty() {
            tiles.push(Span::from("  "));
        }
        tiles.extend(named(tile));
    }
    let mut lines = vec![Line::from(tiles)];
    lines.extend(view.distributions().into_iter().map(|row| Line::from(named(row).to_vec())));
    Paragraph::new(lines).wrap(Wrap { trim: true }).block(Block::bordered())
}

fn strands_of(view: &View) -> Table<'_> {
    let rows = (0..view.strands.len())
        .map(|index| Row::new(view.strand_cells(index)).style(Style::new().fg(colour(view, index))));
    let widths = [20, 12, 12, 9, 9, 6, 7, 7, 8].map(Constraint::Length);
    let widths = [&[Constraint::Fill(1)], &widths[1..]].concat();
    Table::new(rows, widths).header(Row::new(view.strand_heads()).bold()).block(Block::bordered())
}

/// A chart for each, as many as there is room for.
fn draw_charts(view: &View, frame: &mut Frame<'_>, area: Rect) {
    let room = usize::from(area.width / CHART_WIDTH_MIN).max(1);
    let shown = view.strands.len().min(room);
    let areas = Layout::horizontal(vec![Constraint::Fill(1); shown]).split(area);
    for (index, (strand, area)) in view.strands.iter().zip(areas.iter()).enumerate() {
        let width = usize::from(area.width.saturating_sub(2));
        let history = &strand.history[strand.history.len().saturating_sub(width)..];
        let top = history.iter().max().map_or(0.0, |kbit| *kbit as f64 * 1e3);
        let block = Block::bordered().title(strand.name.as_str()).title_bottom(format!("top {}", rate(top)));
        let sparks = Sparkline::default().data(history).style(Style::new().fg(colour(view, index)));
        frame.render_widget(sparks.block(block), *area);
    }
}

fn table<'a, const N: usize>(
    heads: &[&'a str; N],
    rows: impl Iterator<Item = [String; N]>,
    widths: [u16; N],
) -> Table<'a> {
    let mut widths = widths.map(Constraint::Length);
    widths[0] = Constraint::Fill(1);
    Table::new(rows.map(Row::new), widths).header(Row::new(*heads).bold()).block(Block::bordered())
}
