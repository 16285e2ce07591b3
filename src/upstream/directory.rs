//! Answers from a directory that the upstream reads itself, in place of a root.
//!
//! In: a request head. Out: the head of the answer and the span of the file that follows it. Called by `fetch`.
//! Invariant: nothing outside the directory is opened; see [`files`].

use std::{
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::{
    fetch::{Answer, head_bytes},
    source::Source,
    transfer::FileBody,
};
use crate::{
    exec,
    http::{
        file_response::{self, file_response},
        request::RequestHead,
        target::relative_path,
    },
    root::files::{self, OpenError, OpenFile},
};

/// The answer to `request`; the disk is waited for on another thread.
pub(super) async fn answer(directory: &OwnedFd, request: RequestHead) -> Answer {
    let path = match relative_path(request.target()) {
        Ok(path) => path,
        Err(error) => return Answer::problem(&error.problem(), &request.method),
    };
    match open(directory, path.clone()).await {
        Ok(file) => plan(&request, &path, file),
        Err(error) => {
            files::complain(&error, &path);
            Answer::problem(&error.problem(), &request.method)
        }
    }
}

async fn open(directory: &OwnedFd, path: PathBuf) -> Result<OpenFile, OpenError> {
    let directory = directory.try_clone().map_err(OpenError::Exhausted)?;
    exec::blocking(move || files::open(directory.as_fd(), &path)).await
}

fn plan(request: &RequestHead, path: &Path, file: OpenFile) -> Answer {
    let name = if file.is_index { Path::new(files::INDEX) } else { path };
    let response = file_response(request, name, file.facts, SystemTime::now());
    let head = head_bytes(&response.head);
    match response.body {
        file_response::FileBody::None => Answer::Stream(head, Source::Spent),
        file_response::FileBody::Text(text) => Answer::Stream(head, Source::Memory(text.into())),
        file_response::FileBody::Span { offset, len } => {
            Answer::File(head, FileBody { file: file.fd, start: offset, len })
        }
    }
}
