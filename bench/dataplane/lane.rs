//! In: a running `plait relay`. Out: an authenticated lane through it, both of whose ends are ours.
//!
//! Called by the relay scenario. The harness plays the downstream and the upstream: the bytes of the handshake come
//! from `plait::wire::handshake`, the I/O happens here.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;

use plait::wire::handshake::{CHALLENGE_BYTES, ClientHandshake, Progress, ServerHandshake};
use plait::wire::key::Key;
use plait::wire::route::{HopAddr, Route};

use crate::Outcome;
use crate::load::Line;

/// Opens a lane through `relay` to `upstream`, authenticated with the key in the file `key`.
pub fn open(relay: SocketAddr, upstream: &TcpListener, key: &Path) -> Outcome<Line> {
    let key = Key::load_all(key)?.swap_remove(0);
    let route = Route::new(vec![HopAddr::from(upstream.local_addr()?)])?;
    let mut near = TcpStream::connect(relay)?;
    std::thread::scope(|scope| {
        // The relay connects on while our hello is answered: its other end is served beside.
        let far = scope.spawn(|| accept(upstream, &key));
        let mut challenge = [0; CHALLENGE_BYTES];
        near.read_exact(&mut challenge)?;
        let (mut awaiting, hello) = ClientHandshake::new(&key, &route, [1; 16]).challenge(&challenge)?;
        near.write_all(&hello)?;
        let mut more = Vec::new();
        while let Progress::NeedMore(bytes) = awaiting.reply(&more)? {
            more.resize(bytes, 0);
            near.read_exact(&mut more)?;
        }
        let far = far.join().map_err(|_| "the far end of the lane panicked")??;
        Line::new(far, near)
    })
}

fn accept(upstream: &TcpListener, key: &Key) -> Result<TcpStream, String> {
    let text = |error: &dyn std::error::Error| error.to_string();
    let (mut far, _) = upstream.accept().map_err(|error| text(&error))?;
    let (mut server, challenge) = ServerHandshake::new(std::slice::from_ref(key), [2; 16]);
    far.write_all(&challenge).map_err(|error| text(&error))?;
    let mut more = Vec::new();
    loop {
        match server.hello(&more).map_err(|error| text(&error))? {
            Progress::NeedMore(bytes) => {
                more.resize(bytes, 0);
                far.read_exact(&mut more).map_err(|error| text(&error))?;
            }
            Progress::Done(hello) => {
                far.write_all(&hello.accept(1)).map_err(|error| text(&error))?;
                return Ok(far);
            }
        }
    }
}
