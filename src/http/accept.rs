//! Accepts clients and runs one task for each until the server stops.
//!
//! In: a listener and what answers one request. Out: nothing but its end. Called by the root role and by the downstream,
//! once on each core. Invariants: when [`serve`] returns, every connection it accepted is closed; at no time more stand
//! than [`Limits`] allows, and whoever is one too many is told so.

use std::{cell::Cell, convert::Infallible, io, rc::Rc, sync::Arc};

use ::http::StatusCode;
use futures_util::{FutureExt, pin_mut, select_biased};
use tokio::sync::{mpsc, watch};

use super::{
    problem::{Problem, Side},
    request::RequestHead,
    server::{Deadlines, HttpConnection, stopped},
    traffic::Traffic,
};
use crate::{
    exec,
    net::{Admission, Crowded, Legs, Limit, Listener, Seat, Socket, Tally, Told},
};

/// Connections accepted, and requests of one connection answered, before other tasks get their turn: neither need ever
/// wait when clients are fast enough. About a millisecond of work.
const TURN: u32 = 32;

/// Connections that are just being told that there are too many; further ones are closed without a word.
const TURNED_AWAY_MAX: usize = 64;
/// What they are told to wait: places become free as viewers leave, and a crowd that all comes back at once gains nothing.
const RETRY_AFTER_S: u32 = 5;

/// How many clients may be there, and what each may take its time for. Shared by the cores of a role.
#[derive(Clone, Debug)]
pub struct Limits {
    deadlines: Deadlines,
    admission: Arc<Admission>,
    turned_away: Arc<Tally>,
    passes_bodies: bool,
    traffic: Arc<Traffic>,
}

impl Limits {
    /// At most `total_max` connections, and `per_address_max` of one address, over all cores.
    pub fn new(total_max: usize, per_address_max: usize, deadlines: Deadlines) -> Self {
        let admission = Admission::new(total_max, per_address_max);
        Self {
            deadlines,
            admission,
            turned_away: Arc::default(),
            passes_bodies: false,
            traffic: Arc::default(),
        }
    }

    /// The same where every method is answered, and bodies of all but GET and HEAD go on to a root; see
    /// [`HttpConnection::passing_bodies`].
    pub fn passing_bodies(mut self) -> Self {
        self.passes_bodies = true;
        self
    }

    /// The same, but requests are not logged: for clients who only look at the process.
    pub fn without_log(self) -> Self {
        Self { traffic: Arc::new(Traffic::silent()), ..self }
    }

    /// What the clients of the role have asked for and got.
    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Connections now, how many there may be, and how many were turned away since the start.
    pub fn connections(&self) -> (usize, usize, u64) {
        let (taken, max) = self.admission.taken();
        (taken, max, self.turned_away.total())
    }

    /// A seat for the client at the other end of `socket`, which is gone if it has no address any more.
    fn admit(&self, socket: &Socket, side: Side) -> Option<Result<Seat, Problem>> {
        let peer = socket.peer().ok()?;
        let admitted = self.admission.admit(peer.ip());
        Some(admitted.map_err(|crowded| {
            if let Some(Told { since, total }) = self.turned_away.count() {
                tracing::warn!(%peer, since, total, "clients are turned away: {crowded}");
            }
            // Too many of one address are that client's business.
            let side = if let Crowded::Address { .. } = crowded { Side::Client } else { side };
            let text = format_args!("too many connections: {crowded}");
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, side, text).with_retry_after(RETRY_AFTER_S)
        }))
    }
}

/// Serves clients until `stopping` is true: then nothing is accepted, idle connections close, and running answers have
/// [`Deadlines::finish`] left.
///
/// `side` is the role that serves; `answer` sends one whole answer; an error says that it cannot be completed, and the connection is reset.
pub async fn serve<A>(
    listener: Listener,
    legs: Legs,
    limits: Limits,
    side: Side,
    mut stopping: watch::Receiver<bool>,
    answer: A,
) where
    A: AsyncFn(&mut HttpConnection, RequestHead) -> io::Result<()> + 'static,
{
    let answer = Rc::new(answer);
    // Every task holds a sender and sends nothing: the channel ends with the last of them.
    let (running, mut all_ended) = mpsc::channel::<Infallible>(1);
    let turning_away = Rc::new(Cell::new(0));
    let mut turn = 0;
    while let Some(socket) = listener.next(&mut stopping).await {
        yield_after_turn(&mut turn).await;
        let Some(admitted) = limits.admit(&socket, side) else { continue };
        if let Ok(peer) = socket.peer() {
            socket.set_congestion(&legs.client, peer.ip());
        }
        let mut connection = HttpConnection::new(socket, limits.deadlines, stopping.clone())
            .counted_in(limits.traffic.clone());
        if limits.passes_bodies {
            connection = connection.passing_bodies();
        }
        if side == Side::Downstream {
            connection = connection.read_by_pages();
        }
        let running = running.clone();
        match admitted {
            Ok(seat) => {
                let (answer, stopping) = (answer.clone(), stopping.clone());
                exec::spawn(async move {
                    converse(connection, stopping, &*answer).await;
                    drop((seat, running));
                });
            }
            Err(problem) if turning_away.get() < TURNED_AWAY_MAX => {
                turning_away.set(turning_away.get() + 1);
                let turning_away = turning_away.clone();
                exec::spawn(async move {
                    connection.turn_away(&problem).await;
                    turning_away.set(turning_away.get() - 1);
                    drop(running);
                });
            }
            Err(_) => {}
        }
    }
    drop((listener, running));
    let _ = all_ended.recv().await;
}

/// Answers the requests of one connection.
pub(crate) async fn converse<A>(
    mut connection: HttpConnection,
    mut stopping: watch::Receiver<bool>,
    answer: &A,
) where
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
        let (method, target) = (request.method.clone(), request.target().to_owned());
        let answered = answer(connection, request).await;
        connection.close_account(method, target, &answered);
        if let Err(error) = answered {
            if error.kind() == io::ErrorKind::TimedOut {
                Limit::ClientStall.hit();
            }
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
