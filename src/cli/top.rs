//! `plait top`: the dashboard for a terminal.
//!
//! In: `/state.json` of a running process, once a second. Out: a screen with its paths, lanes and last requests, or one line
//! per path with `--once`. Called by the command line. Invariant: the terminal is as it was when this ends.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use ratatui::{
    Frame,
    crossterm::event::{self, Event, KeyCode, KeyModifiers},
    layout::{Constraint, Layout},
    style::{Color, Style, Stylize},
    text::Line,
    widgets::{Block, Row, Sparkline, Table},
};

use super::args::Top;
use crate::observe::{PathOnWire, Snapshot};

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);
/// The process answers within milliseconds, unless it hangs.
const DEADLINE: Duration = Duration::from_secs(2);
/// Forty requests and a thousand lanes take some 300 KiB; what is longer is something else.
const ANSWER_BYTES_MAX: u64 = 8 << 20;
/// Seconds of history: more than terminals are wide.
const HISTORY_MAX: usize = 512;

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum TopError {
    /// Nobody answers.
    #[error(
        "no answer from {address}: {source} (start the role with --admin, and name the same address here)"
    )]
    Silent {
        /// What was asked.
        address: SocketAddr,
        /// What the kernel says.
        source: io::Error,
    },
    /// Something else answers.
    #[error("{address} is no admin endpoint of Plait's: {reason}")]
    Strange {
        /// What was asked.
        address: SocketAddr,
        /// What is odd.
        reason: String,
    },
    /// The terminal cannot be used.
    #[error("terminal: {0}")]
    Terminal(#[from] io::Error),
}

/// Shows the process until `q`.
pub(super) fn run(top: &Top) -> Result<(), TopError> {
    let address = top.address.0;
    let mut view = View::new(look(address)?);
    if top.once {
        std::thread::sleep(PAUSE);
        view.update(look(address)?);
        view.lines().iter().for_each(|line| println!("{line}"));
        return Ok(());
    }
    let mut terminal = ratatui::try_init()?;
    let outcome = watch(&mut terminal, &mut view, address);
    ratatui::try_restore()?;
    outcome
}

fn watch(
    terminal: &mut ratatui::DefaultTerminal,
    view: &mut View,
    address: SocketAddr,
) -> Result<(), TopError> {
    loop {
        terminal.draw(|frame| view.draw(frame))?;
        if event::poll(PAUSE)?
            && let Event::Key(key) = event::read()?
        {
            let interrupts = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
            if interrupts || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                return Ok(());
            }
            continue;
        }
        match look(address) {
            Ok(snapshot) => view.update(snapshot),
            Err(error) => view.trouble = Some(error.to_string()),
        }
    }
}

fn look(address: SocketAddr) -> Result<Snapshot, TopError> {
    let silent = |source| TopError::Silent { address, source };
    let mut stream = TcpStream::connect_timeout(&address, DEADLINE).map_err(silent)?;
    stream.set_read_timeout(Some(DEADLINE)).map_err(silent)?;
    let request = format!("GET /state.json HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(silent)?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).map_err(silent)?;
    let strange = |reason: String| TopError::Strange { address, reason };
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    match end.filter(|_| answer.starts_with(b"HTTP/1.1 200")) {
        Some(end) => serde_json::from_slice(&answer[end + 4..]).map_err(|error| strange(error.to_string())),
        None => Err(strange("it does not answer 200 to /state.json".into())),
    }
}

/// What is shown: the newest snapshot, and what has moved since the one before.
struct View {
    now: Snapshot,
    /// Of each path, in the order of `now`, bits per second.
    rates: Vec<f64>,
    /// Of all paths, the newest last, kbit/s.
    history: Vec<u64>,
    busiest: f64,
    trouble: Option<String>,
}

impl View {
    fn new(now: Snapshot) -> Self {
        let rates = vec![0.0; now.paths.len()];
        Self { now, rates, history: Vec::new(), busiest: 0.0, trouble: None }
    }

    fn update(&mut self, next: Snapshot) {
        let seconds = (next.now_s - self.now.now_s).max(0.001);
        let before = |name: &str| self.now.paths.iter().find(|path| path.name == name);
        let rate = |path: &PathOnWire| {
            let moved = before(&path.name)
                .map_or(0, |known| path.received_bytes.saturating_sub(known.received_bytes));
            moved as f64 * 8.0 / seconds
        };
        self.rates = next.paths.iter().map(rate).collect();
        let loads = next.cores.iter().zip(&self.now.cores).map(|(core, known)| core.busy_s - known.busy_s);
        self.busiest = loads.fold(0.0, f64::max) / seconds;
        self.history.push((self.rates.iter().sum::<f64>() / 1e3) as u64);
        let old = self.history.len().saturating_sub(HISTORY_MAX);
        self.history.drain(..old);
        (self.now, self.trouble) = (next, None);
    }

    fn title(&self) -> String {
        let Snapshot { version, role, now_s, started_s, ends, process, .. } = &self.now;
        format!(
            "plait {role} {version}, up {:.0} s: {:.1} Mbit/s, {} lanes, busiest core {:.0} %, {} MB",
            now_s - started_s,
            self.rates.iter().fold(0.0, |sum, rate| sum + rate) * 1e-6,
            ends.values().map(|end| end.standing).sum::<u64>(),
            self.busiest * 100.0,
            process.resident_bytes / 1_000_000,
        )
    }

    fn state(path: &PathOnWire) -> &'static str {
        match path {
            PathOnWire { down: true, .. } => "DOWN",
            PathOnWire { lanes: 0, .. } => "dialling",
            _ => "up",
        }
    }

    fn cells(&self, index: usize) -> [String; 7] {
        let (path, share) = (&self.now.paths[index], |part: u64, all: u64| 100 * part / all.max(1));
        [
            path.name.clone(),
            Self::state(path).into(),
            format!("{:.1} Mbit/s", self.rates[index] * 1e-6),
            format!("{:.1} ms", path.rtt_s * 1e3),
            format!("{}/{}", path.leased, path.lanes),
            format!("{} %", share(path.parked_bytes, path.received_bytes)),
            format!("{} %", share(path.frames_again, path.frames)),
        ]
    }

    /// Without a screen.
    fn lines(&self) -> Vec<String> {
        let paths = (0..self.now.paths.len()).map(|index| {
            let [name, state, rate, round_trip, lanes, parked, resent] = self.cells(index);
            format!(
                "{name}: {state}, {rate}, RTT {round_trip}, lanes {lanes}, parked {parked}, resent {resent}"
            )
        });
        std::iter::once(self.title()).chain(paths).collect()
    }

    fn draw(&self, frame: &mut Frame<'_>) {
        let paths = u16::try_from(self.now.paths.len()).unwrap_or(u16::MAX).saturating_add(3);
        let areas = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(paths.min(frame.area().height / 2)),
            Constraint::Length(6),
            Constraint::Min(3),
            Constraint::Length(1),
        ]);
        let [title, path_area, chart, requests, foot] = areas.areas(frame.area());
        frame.render_widget(Line::from(self.title()).bold(), title);
        let rows = self.now.paths.iter().enumerate().map(|(index, path)| {
            let colour = if path.down { Color::Red } else { Color::Reset };
            Row::new(self.cells(index)).style(Style::new().fg(colour))
        });
        let widths = [
            Constraint::Fill(1),
            Constraint::Length(8),
            Constraint::Length(15),
            Constraint::Length(10),
            Constraint::Length(8),
            Constraint::Length(7),
            Constraint::Length(7),
        ];
        let head = Row::new(["path", "state", "rate", "RTT", "lanes", "parked", "resent"]).bold();
        frame.render_widget(Table::new(rows, widths).header(head).block(Block::bordered()), path_area);
        let width = usize::from(chart.width.saturating_sub(2));
        let shown = &self.history[self.history.len().saturating_sub(width)..];
        let sparks = Sparkline::default().data(shown).style(Style::new().fg(Color::Cyan));
        frame.render_widget(sparks.block(Block::bordered().title("all paths, a second a column")), chart);
        frame.render_widget(self.requests(), requests);
        let foot_line = match &self.trouble {
            Some(trouble) => Line::from(trouble.as_str()).fg(Color::Red),
            None => Line::from("q ends this"),
        };
        frame.render_widget(foot_line, foot);
    }

    fn requests(&self) -> Table<'_> {
        let clients = self.now.clients.get("downstream").or_else(|| self.now.clients.get("root"));
        let rows = clients.into_iter().flat_map(|clients| &clients.traffic.recent).map(|one| {
            let stall = if one.shares.is_empty() {
                "-".into()
            } else {
                format!("{:.0} ms", one.longest_stall_s * 1e3)
            };
            Row::new([
                one.target.clone(),
                format!("{}{}", one.status, if one.complete { "" } else { " cut" }),
                format!("{:.1} MB", one.body_bytes as f64 * 1e-6),
                format!("{:.2} s", one.taken_s),
                stall,
                one.cache.map_or("-", |cache| cache.name()).to_owned(),
            ])
        });
        let widths = [
            Constraint::Fill(1),
            Constraint::Length(8),
            Constraint::Length(11),
            Constraint::Length(9),
            Constraint::Length(9),
            Constraint::Length(9),
        ];
        let head = Row::new(["request", "status", "body", "time", "stall", "cache"]).bold();
        Table::new(rows, widths).header(head).block(Block::bordered())
    }
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;

    #[test]
    fn a_screen_shows_rates_and_a_path_that_is_down() {
        let path = |name: &str, received_bytes| PathOnWire {
            name: name.into(),
            received_bytes,
            lanes: 1,
            ..PathOnWire::default()
        };
        let snapshot = |now_s, received_bytes| Snapshot {
            role: "downstream".into(),
            now_s,
            paths: vec![
                path("a:1,u:9", received_bytes),
                PathOnWire { down: true, lanes: 0, ..path("b:2,u:9", 0) },
            ],
            ..Snapshot::default()
        };
        let mut view = View::new(snapshot(10.0, 1_000_000));
        view.update(snapshot(12.0, 3_500_000));
        assert!(view.lines()[1].starts_with("a:1,u:9: up, 10.0 Mbit/s"), "{:?}", view.lines());
        for (width, height) in [(100, 24), (20, 5), (1, 1)] {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
            terminal.draw(|frame| view.draw(frame)).unwrap();
            let screen = terminal.backend().to_string();
            let is_wide = width == 100;
            assert_eq!(screen.contains("10.0 Mbit/s") && screen.contains("DOWN"), is_wide, "{screen}");
        }
    }
}
