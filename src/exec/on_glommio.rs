//! (being written)
use super::Interest;
use std::{
    future::Future,
    io,
    os::fd::RawFd,
    task::{Context, Poll},
    time::Duration,
};
pub(super) fn run(_main: impl Future<Output = ()>) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
pub(super) fn spawn(_task: impl Future<Output = ()> + 'static) {
    unimplemented!()
}
pub(super) async fn sleep(_time: Duration) {
    unimplemented!()
}
pub(super) async fn blocking<T: Send + 'static>(_work: impl FnOnce() -> T + Send + 'static) -> T {
    unimplemented!()
}
pub(super) async fn yield_now() {
    unimplemented!()
}
pub(super) struct Watch;
impl Watch {
    pub(super) fn new(_fd: RawFd) -> Self {
        unimplemented!()
    }
    pub(super) fn poll_ready(&self, _interest: Interest, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        unimplemented!()
    }
}
