//! What the root role, the upstream (a client of any root) and the downstream (a server for players) share of HTTP/1.1.
//!
//! Bytes of a socket's buffer come in; heads, body lengths, ranges, decisions and the bytes of answers go out. Nothing
//! here does I/O or reads the clock: `now` is an argument. A request walks `request` → `target` → `conditional` →
//! `range` → `file_response` in the root role, and `request` → `forward` → `response` → `forward` through the proxies;
//! `chunked` cuts a body of unknown length, `problem` is every answer that we make up ourselves.
//!
//! Invariant of the room: a head that was accepted here can be written out again and is read by any strict HTTP/1.1
//! parser as the same head, with the same body length (no request smuggling, no header injection).

pub mod accept;
pub mod account;
pub mod body;
pub mod chunked;
pub mod conditional;
pub mod continuation;
pub mod cors;
pub mod date;
pub mod file_response;
pub mod forward;
pub mod head;
pub mod mime;
pub mod multipart;
pub mod problem;
pub mod range;
pub mod request;
pub mod response;
pub mod server;
pub mod target;
pub mod traffic;
