//! Accepts clients and runs one task for each until the server stops.
//!
//! In: a listener and what answers one request. Out: nothing but its end. Called by the root role and by the downstream,
//! once on each core. Invariant: when [`serve`] returns, every connection it accepted is closed.

use std::{convert::Infallible, io, rc::Rc};

use futures_util::{FutureExt, pin_mut, select_biased};
use tokio::sync::{mpsc, watch};

use super::{
    request::RequestHead,
    server::{Deadlines, HttpConnection, stopped},
};
use crate::{
    exec,
    net::{Legs, Listener},
};

/// Connections accepted, and requests of one connection answered, before other tasks get their turn: neither need ever
/// wait when clients are fast enough. About a millisecond of work.
const TURN: u32 = 32;

/// Serves clients until `stopping` is true: then nothing is accepted, idle connections close, and running answers have
/// [`Deadlines::finish`] left.
///
/// `answer` sends one whole answer; an error says that it cannot be completed, and the connection is reset.
pub async fn serve<A>(
    listener: Listener,
    legs: Legs,
    deadlines: Deadlines,
    mut stopping: watch::Receiver<bool>,
    answer: A,
) where
    A: AsyncFn(&mut HttpConnection, RequestHead) -> io::Result<()> + 'static,
{
    let answer = Rc::new(answer);
    // Every task holds a sender and sends nothing: the channel ends with the last of them.
    let (running, mut all_ended) = mpsc::channel::<Infallible>(1);
    let mut turn = 0;
    while let Some(socket) = listener.next(&mut stopping).await {
        if let Ok(peer) = socket.peer() {
            socket.set_congestion(&legs.client, peer.ip());
        }
        let connection = HttpConnection::new(socket, deadlines, stopping.clone());
        let (answer, stopping, running) = (answer.clone(), stopping.clone(), running.clone());
        exec::spawn(async move {
            converse(connection, stopping, &*answer).await;
            drop(running);
        });
        yield_after_turn(&mut turn).await;
    }
    drop((listener, running));
    let _ = all_ended.recv().await;
}

/// Answers the requests of one connection.
async fn converse<A>(mut connection: HttpConnection, mut stopping: watch::Receiver<bool>, answer: &A)
where
    A: AsyncFn(&mut HttpConnection, RequestHead) -> io::Result<()>,
{
    let finish = connection.deadlines().finish;
    let in_time = {
        let answers = answer_all(&mut connection, answer).fuse();
        let late = async {
            stopped(&mut stopping).await;
            exec::sleep(finish).await;
        }
        .fuse();
        pin_mut!(answers, late);
        select_biased! {
            () = answers => true,
            () = late => false,
        }
    };
    if !in_time {
        tracing::info!(
            "an answer was not taken within {} s of the stop: its connection is reset",
            finish.as_secs_f32()
        );
        connection.abort();
    }
}

async fn answer_all<A>(connection: &mut HttpConnection, answer: &A)
where
    A: AsyncFn(&mut HttpConnection, RequestHead) -> io::Result<()>,
{
    let mut turn = 0;
    while let Some(request) = connection.next_request().await {
        if let Err(error) = answer(connection, request).await {
            tracing::debug!(%error, "an answer was not completed");
            connection.abort();
            return;
        }
        yield_after_turn(&mut turn).await;
    }
}

async fn yield_after_turn(turn: &mut u32) {
    *turn += 1;
    if *turn >= TURN {
        *turn = 0;
        exec::yield_now().await;
    }
}
