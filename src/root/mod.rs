//! The root role: an HTTP/1.1 server of one directory, which stores all videos.
//!
//! In: a directory and a listener on this core. Out: its files, whole or in ranges, by sendfile. Called by the command
//! line. Invariant: an answer has exactly the length its head announced, or ends in a reset.

pub mod files;

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::Arc,
    time::SystemTime,
};

use http::{
    HeaderValue, StatusCode,
    header::{CONTENT_LENGTH, LOCATION},
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use tokio::sync::watch;

use crate::{
    http::{
        accept::{self, Limits},
        file_response::{FileBody, file_response},
        problem::Side,
        request::RequestHead,
        response::ResponseHead,
        server::HttpConnection,
        target::relative_path,
    },
    net::{Legs, Listener, Tally, Told, sendfile},
};
use files::{OpenError, OpenFile};

/// Files that became shorter while they were sent: as often as clients ask.
static SHRUNK: Tally = Tally::new();

/// What stands for itself in a path (RFC 3986 section 2.3) or separates its segments.
const ESCAPED_IN_PATHS: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// The directory that is served; all cores share it.
#[derive(Debug)]
pub struct Root {
    dir: OwnedFd,
    limits: Limits,
}

impl Root {
    /// Opens the directory.
    ///
    /// # Errors
    /// Those of [`files::open_directory`].
    pub fn open(dir: &Path, limits: Limits) -> io::Result<Self> {
        Ok(Self { dir: files::open_directory(dir)?, limits })
    }
}

/// Serves the directory on this core until `stopping` is true; see [`accept::serve`].
pub async fn serve(root: Arc<Root>, listener: Listener, legs: Legs, stopping: watch::Receiver<bool>) {
    let limits = root.limits.clone();
    let answer =
        async move |connection: &mut HttpConnection, request| root.answer(connection, &request).await;
    accept::serve(listener, legs, limits, Side::Root, stopping, answer).await;
}

impl Root {
    /// What clients may take, and what they took.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    async fn answer(&self, connection: &mut HttpConnection, request: &RequestHead) -> io::Result<()> {
        // Questions of browsers about other origins are the downstream's to answer.
        if let Err(error) = request.method_allowed() {
            return connection.respond_problem(&error.problem()).await;
        }
        let path = match relative_path(request.target()) {
            Ok(path) => path,
            Err(error) => return connection.respond_problem(&error.problem()).await,
        };
        match files::open(self.dir.as_fd(), &path) {
            Ok(file) => send_file(connection, request, &path, &file).await,
            Err(OpenError::LacksSlash) => {
                connection.send_head(redirect(&path, request.target()), true, false).await?;
                connection.finish_response();
                Ok(())
            }
            Err(error) => {
                files::complain(&error, &path);
                connection.respond_problem(&error.problem()).await
            }
        }
    }
}

async fn send_file(
    connection: &mut HttpConnection,
    request: &RequestHead,
    path: &Path,
    file: &OpenFile,
) -> io::Result<()> {
    let name = if file.is_index { Path::new(files::INDEX) } else { path };
    let response = file_response(request, name, file.facts, SystemTime::now());
    match response.body {
        FileBody::None => connection.send_head(response.head, true, false).await?,
        FileBody::Text(text) => {
            connection.send_head(response.head, true, true).await?;
            connection.send(text.as_bytes(), false).await?;
        }
        FileBody::Span { offset, len } => {
            connection.send_head(response.head, true, len > 0).await?;
            let stall_max = connection.deadlines().stall;
            let sent = sendfile(connection.socket(), file.fd.as_fd(), offset, len, stall_max).await?;
            connection.account().add_body_bytes(sent);
            if sent < len {
                let missing = len - sent;
                if let Some(Told { since, .. }) = SHRUNK.count() {
                    tracing::warn!(path = %path.display(), missing, since, "a file became shorter while it was sent");
                }
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
    connection.finish_response();
    Ok(())
}

/// Points to the directory with its slash. The address is written anew from names that are not empty, so that it
/// cannot begin with two slashes, which would name another host.
fn redirect(path: &Path, target: &str) -> ResponseHead {
    let mut location = format!("/{}/", percent_encode(path.as_os_str().as_encoded_bytes(), ESCAPED_IN_PATHS));
    if let Some((_, query)) = target.split_once('?') {
        location.push('?');
        location.push_str(query);
    }
    let mut head = ResponseHead::new(StatusCode::MOVED_PERMANENTLY);
    if let Ok(location) = HeaderValue::try_from(location) {
        head.headers.insert(LOCATION, location);
    }
    head.headers.insert(CONTENT_LENGTH, HeaderValue::from(0));
    head
}

#[cfg(test)]
mod tests;
