//! The root role: an HTTP/1.1 server of one directory, which stores all videos.

pub mod files;
