//! Sends the root a request that has a body, and takes its answer whenever it comes.
//!
//! In: the request's head and the pieces of its body. Out: the answer's head, and whether the root has taken all of the
//! body: only then the connection is of use afterwards. Called by `fetch`. Invariant: the root gets exactly the body that
//! the head announces, or a connection that ends before it.

use std::{pin::pin, sync::Arc, time::Duration};

use futures_util::future::{Either, select};

use super::{
    fetch::{RootError, read_head},
    source::ROOT_SILENT_MAX,
    upload::{Cut, Upload},
};
use crate::{
    exec,
    http::{
        chunked::{CHUNK_END, LAST_CHUNK},
        request::BodyLen,
        response::ResponseHead,
    },
    net::Socket,
};

/// A root that closes while it is sent a body may have said why before.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Sends `head` and the body behind it. A root may answer before it has the whole body (RFC 9112 section 9.5): if it
/// refuses, the rest is not sent; otherwise it gets the rest while its answer is on its way.
pub(super) async fn exchange(
    root: &Arc<str>,
    connection: &Socket,
    head: Vec<u8>,
    (len, body): (BodyLen, Upload),
) -> Result<(ResponseHead, bool), RootError> {
    // With readiness of its own, for as long as the body takes.
    let writer = Socket::on_this_core(connection.share());
    let mut sending = Box::pin(send(root.clone(), writer, head, (len, body)));
    let (head, is_sent) = {
        let reading = pin!(read_head(root, connection));
        match select(&mut sending, reading).await {
            Either::Left((Ok(()), reading)) => match exec::timeout(ROOT_SILENT_MAX, reading).await {
                Ok(head) => (head?, true),
                Err(exec::Elapsed) => return Err(RootError::Silent { root: root.clone() }),
            },
            Either::Left((Err(cut @ RootError::Cut(_)), _)) => return Err(cut),
            Either::Left((Err(lost), reading)) => match exec::timeout(LAST_WORDS, reading).await {
                Ok(Ok(head)) => return Ok((head, false)),
                _ => return Err(lost),
            },
            Either::Right((head, _)) => (head?, false),
        }
    };
    if !is_sent && head.status.is_success() {
        // It ends with the transfer at the latest, whose lane is where the pieces come from.
        exec::spawn(async move {
            let _ = sending.await;
        });
    }
    Ok((head, is_sent))
}

async fn send(
    root: Arc<str>,
    connection: Socket,
    head: Vec<u8>,
    (len, mut body): (BodyLen, Upload),
) -> Result<(), RootError> {
    let lost = |source| RootError::Lost { root: root.clone(), received: 0, source };
    connection.send_within(&head, false, ROOT_SILENT_MAX).await.map_err(lost)?;
    let mut missing = match len {
        BodyLen::None => Some(0),
        BodyLen::Fixed(bytes) => Some(bytes),
        BodyLen::Chunked => None,
    };
    while let Some(piece) = body.next().await? {
        match &mut missing {
            Some(missing) => {
                // More than was announced would be the next request.
                *missing = missing.checked_sub(piece.len() as u64).ok_or(Cut::Lost)?;
                connection.send_within(&piece, false, ROOT_SILENT_MAX).await.map_err(lost)?;
            }
            None => {
                let mut chunk = format!("{:x}\r\n", piece.len()).into_bytes();
                chunk.extend_from_slice(&piece);
                chunk.extend_from_slice(CHUNK_END);
                connection.send_within(&chunk, false, ROOT_SILENT_MAX).await.map_err(lost)?;
            }
        }
    }
    match missing {
        Some(0) => Ok(()),
        Some(_) => Err(Cut::Lost.into()),
        None => connection.send_within(LAST_CHUNK, false, ROOT_SILENT_MAX).await.map_err(lost),
    }
}
