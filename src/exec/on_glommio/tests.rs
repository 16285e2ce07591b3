//! What only this backend promises.

use std::{fs::File, io::Write, os::fd::AsRawFd, os::unix::net::UnixStream, sync::mpsc};

use super::*;
use crate::exec::{self, Backend, Config, Interest};

fn on_one_core<Fut: Future<Output = ()> + 'static>(entry: fn() -> Fut) {
    let config = Config { backend: Backend::Glommio, cpus: vec![exec::available_cpus()[0]] };
    exec::run(&config, move |_| entry()).unwrap();
}

#[test]
fn watches_that_come_and_go_leave_nothing_behind() {
    on_one_core(|| async {
        for _ in 0..3000 {
            let (a, mut b) = UnixStream::pair().unwrap();
            let (first, second) = (exec::Watch::new(a.as_raw_fd()), exec::Watch::new(a.as_raw_fd()));
            b.write_all(b"x").unwrap();
            first.ready(Interest::Read).await.unwrap();
            // Left armed, and on its way to fire.
            let _ = second.ready(Interest::Write).now_or_never();
            assert_eq!(core().readiness.registrations(), 2);
        }
        assert_eq!(core().readiness.registrations(), 0);
    });
}

#[test]
fn tasks_that_end_leave_the_list() {
    on_one_core(|| async {
        let before = core().tasks.borrow().alive.len();
        for _ in 0..100 {
            exec::spawn(async { exec::yield_now().await });
        }
        assert_eq!(core().tasks.borrow().alive.len(), before + 100);
        while core().tasks.borrow().alive.len() > before {
            exec::yield_now().await;
        }
    });
}

#[test]
fn what_epoll_cannot_watch_is_an_error() {
    on_one_core(|| async {
        let file = File::open("/proc/self/exe").unwrap();
        let error = exec::Watch::new(file.as_raw_fd()).ready(Interest::Read).await.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        let error = exec::Watch::new(-1).ready(Interest::Read).await.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    });
}

#[test]
fn work_nobody_waits_for_is_finished_before_the_end() {
    let (send, receive) = mpsc::channel();
    let config = Config { backend: Backend::Glommio, cpus: vec![exec::available_cpus()[0]] };
    exec::run(&config, move |_| {
        let send = send.clone();
        async move {
            let (begin, begun) = oneshot::channel();
            exec::spawn(exec::blocking(move || {
                let _ = begin.send(());
                std::thread::sleep(Duration::from_millis(50));
                send.send(7).unwrap();
            }));
            begun.await.unwrap();
        }
    })
    .unwrap();
    assert_eq!(receive.try_recv(), Ok(7));
}

#[test]
fn too_little_locked_memory_is_named() {
    let kind = ReactorErrorKind::MemLockLimit(65536, 524288);
    let text = refusal(GlommioError::ReactorError(kind)).to_string();
    assert!(text.contains("(memlock) is 65536 bytes, glommio wants 524288"), "{text}");
    let text = refusal(io::Error::from_raw_os_error(libc::ENOMEM).into()).to_string();
    assert!(text.contains("memlock"), "{text}");
}

#[test]
fn a_sleep_for_ever_can_be_asked_for() {
    on_one_core(|| async {
        assert!(sleep(Duration::MAX).now_or_never().is_none());
    });
}
