//! Fuzz targets: bytes that strangers and files choose go through the readers that meet them first.
//!
//! `cargo +nightly bolero test -p plait-fuzz TARGET` lets libFuzzer find inputs by coverage, beginning with the seeds in
//! `__fuzz__/TARGET/corpus`. `cargo test -p plait-fuzz` needs neither: it runs the seeds and a thousand random inputs.
//! Every target checks what the readers promise, and not only that they return.

#![cfg(test)]

mod cache;
mod chunked;
mod config;
mod heads;
mod ranges;
mod wire;
