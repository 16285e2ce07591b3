//! `plait top`: the dashboard for a terminal.
//!
//! In: `/state.json` of a running process, once a second. Out: a screen of what the dashboard shows, or lines of it with
//! `--once`. Called by the command line. Invariant: the terminal is as it was when this ends.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};

mod figures;
mod screen;
mod view;

use super::args::Top;
use crate::observe::Snapshot;
use view::View;

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);
/// The process answers within milliseconds, unless it hangs.
const DEADLINE: Duration = Duration::from_secs(2);
/// Forty requests and a thousand lanes take some 300 KiB; what is longer is something else.
const ANSWER_BYTES_MAX: u64 = 8 << 20;

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
        terminal.draw(|frame| screen::draw(view, frame))?;
        if event::poll(PAUSE)?
            && let Event::Key(key) = event::read()?
        {
            if key.code == KeyCode::Char('l') {
                view.shows_lanes = !view.shows_lanes;
            }
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

#[cfg(test)]
mod tests;
