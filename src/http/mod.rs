//! HTTP/1.1 without I/O and without a clock: heads in, decisions and heads out.
//!
//! The root role, the upstream (a client of any root) and the downstream (a server of players) share these rooms. What
//! exists as a well-kept crate is used: httparse, http, httpdate, mime_guess, percent-encoding.

pub mod forward;
pub mod problem;
pub mod request;
pub mod response;
