//! Every promise of the waist, held against both backends.

use std::{
    cell::{Cell, RefCell},
    io::{Read, Write},
    os::{fd::AsRawFd, unix::net::UnixStream},
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::Instant,
};

use futures_util::{FutureExt, pin_mut, select_biased};

use super::*;

const BACKENDS: [Backend; 2] = [Backend::TokioUring, Backend::Glommio];

/// Runs `entry` on one core of every backend.
fn on_each<Fut: Future<Output = ()> + 'static>(entry: fn() -> Fut) {
    for backend in BACKENDS {
        let cpus = vec![available_cpus()[0]];
        run(&Config { backend, cpus }, move |_| entry()).unwrap_or_else(|error| panic!("{backend}: {error}"));
    }
}

#[test]
fn an_unknown_cpu_is_refused_by_name() {
    let error = run(&Config { backend: Backend::TokioUring, cpus: vec![4095] }, |_| async {}).unwrap_err();
    assert!(error.to_string().contains("CPU 4095 is not available"), "{error}");
}

#[test]
fn entry_runs_once_on_every_core() {
    for backend in BACKENDS {
        let cpus = available_cpus();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = seen.clone();
        run(&Config { backend, cpus: cpus.clone() }, move |core| {
            let log = log.clone();
            async move {
                assert_eq!(super::core(), core);
                log.lock().unwrap().push(core);
            }
        })
        .unwrap();
        let mut seen = seen.lock().unwrap().clone();
        seen.sort();
        assert_eq!(seen, (0..cpus.len()).map(Core).collect::<Vec<_>>());
    }
}

#[test]
fn tasks_interleave_and_sleep() {
    on_each(|| async {
        let hits = Rc::new(Cell::new(0));
        for _ in 0..3 {
            let hits = hits.clone();
            spawn(async move {
                sleep(Duration::from_millis(5)).await;
                hits.set(hits.get() + 1);
            });
        }
        let start = Instant::now();
        while hits.get() < 3 {
            sleep(Duration::from_millis(1)).await;
        }
        assert!(start.elapsed() >= Duration::from_millis(5));
    });
}

#[test]
fn timeout_ends_a_wait_that_never_comes() {
    on_each(|| async {
        let (a, _b) = UnixStream::pair().unwrap();
        let watch = Watch::new(a.as_raw_fd());
        assert_eq!(
            timeout(Duration::from_millis(5), watch.ready(Interest::Read)).await.unwrap_err(),
            Elapsed
        );
        assert_eq!(timeout(Duration::from_secs(5), async { 7 }).await, Ok(7));
        a.shutdown(std::net::Shutdown::Both).unwrap();
    });
}

#[test]
fn readiness_of_each_interest() {
    on_each(|| async {
        let (mut a, mut b) = UnixStream::pair().unwrap();
        a.set_nonblocking(true).unwrap();
        let watch = Watch::new(a.as_raw_fd());
        watch.ready(Interest::Write).await.unwrap();
        // Data makes it readable, but is no hang-up.
        b.write_all(b"x").unwrap();
        watch.ready(Interest::Read).await.unwrap();
        assert!(timeout(Duration::from_millis(5), watch.ready(Interest::HangUp)).await.is_err());
        a.read_exact(&mut [0]).unwrap();
        // Full: not writable until the peer reads.
        while a.write(&[0; 65536]).is_ok() {}
        let fired = loop {
            // One readiness may be left over from before; the second is real.
            let first = timeout(Duration::from_millis(5), watch.ready(Interest::Write)).await;
            if first.is_err() || a.write(&[0]).is_err() {
                break timeout(Duration::from_millis(5), watch.ready(Interest::Write)).await;
            }
        };
        assert!(fired.is_err(), "writable although full");
        let drained = std::thread::spawn(move || {
            let mut total = 0;
            b.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            while let Ok(n @ 1..) = b.read(&mut [0; 65536]) {
                total += n;
            }
            total
        });
        watch.ready(Interest::Write).await.unwrap();
        let total = blocking(move || drained.join().unwrap()).await;
        assert!(total > 0);
        // The peer is gone now.
        watch.ready(Interest::HangUp).await.unwrap();
        watch.ready(Interest::Read).await.unwrap();
    });
}

#[test]
fn a_dropped_wait_is_taken_up_again() {
    on_each(|| async {
        let (a, mut b) = UnixStream::pair().unwrap();
        let watch = Watch::new(a.as_raw_fd());
        for _ in 0..100 {
            let wait = watch.ready(Interest::Read).fuse();
            pin_mut!(wait);
            let mut now = std::pin::pin!(async {}.fuse());
            select_biased! {
                _ = wait => panic!("nothing was sent"),
                () = now => {}
            }
        }
        b.write_all(b"x").unwrap();
        watch.ready(Interest::Read).await.unwrap();
    });
}

#[test]
fn waits_on_one_descriptor_in_both_directions() {
    on_each(|| async {
        let (a, mut b) = UnixStream::pair().unwrap();
        let watch = Rc::new(Watch::new(a.as_raw_fd()));
        let (done, reader) = (Rc::new(Cell::new(false)), watch.clone());
        let flag = done.clone();
        spawn(async move {
            reader.ready(Interest::Read).await.unwrap();
            flag.set(true);
        });
        watch.ready(Interest::Write).await.unwrap();
        yield_now().await;
        assert!(!done.get());
        b.write_all(b"x").unwrap();
        while !done.get() {
            sleep(Duration::from_millis(1)).await;
        }
    });
}

#[test]
fn post_reaches_a_sleeping_core_and_yield_lets_others_run() {
    for backend in BACKENDS {
        let cpus = available_cpus();
        let last = Core(cpus.len() - 1);
        let (send, receive) = mpsc::channel();
        let receive = Arc::new(Mutex::new(receive));
        run(&Config { backend, cpus }, move |core| {
            let (send, receive) = (send.clone(), receive.clone());
            async move {
                if core == Core(0) {
                    sleep(Duration::from_millis(20)).await;
                    post(last, Box::new(move || send.send(super::core()).unwrap())).unwrap();
                }
                if core == last {
                    let got = loop {
                        if let Ok(got) = receive.lock().unwrap().try_recv() {
                            break got;
                        }
                        yield_now().await;
                    };
                    assert_eq!(got, last);
                }
            }
        })
        .unwrap();
    }
}

#[test]
fn blocking_work_runs_elsewhere() {
    on_each(|| async {
        let here = std::thread::current().id();
        let there = blocking(move || std::thread::current().id()).await;
        assert_ne!(here, there);
    });
}

#[test]
fn panics_of_blocking_work_reach_the_caller() {
    on_each(|| async {
        let caught = AssertUnwindSafe(blocking(|| panic!("on purpose"))).catch_unwind().await;
        assert_eq!(caught.unwrap_err().downcast_ref(), Some(&"on purpose"));
        assert_eq!(blocking(|| 7).await, 7);
    });
}

#[test]
fn a_panicking_task_leaves_the_core_running() {
    on_each(|| async {
        spawn(async { panic!("on purpose") });
        yield_now().await;
        sleep(Duration::from_millis(1)).await;
    });
}

#[test]
fn a_panic_of_entry_is_passed_on() {
    for backend in BACKENDS {
        let cpus = vec![available_cpus()[0]];
        let run = || run(&Config { backend, cpus }, |_| async { panic!("on purpose") });
        let caught = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
        assert_eq!(caught.downcast_ref(), Some(&"on purpose"), "{backend}");
    }
}

#[test]
fn a_task_may_need_what_its_spawner_holds() {
    on_each(|| async {
        let shared = Rc::new(RefCell::new(0));
        let held = shared.borrow_mut();
        let task = shared.clone();
        spawn(async move { *task.borrow_mut() += 1 });
        drop(held);
        while *shared.borrow() == 0 {
            yield_now().await;
        }
    });
}

#[test]
fn wakes_from_any_thread_reach_a_sleeping_core() {
    on_each(|| async {
        let (ask, asked) = mpsc::channel::<tokio::sync::oneshot::Sender<usize>>();
        let thread = std::thread::spawn(move || {
            for (count, answer) in asked.iter().enumerate() {
                answer.send(count).unwrap();
            }
        });
        for count in 0..1000 {
            let (answer, answered) = tokio::sync::oneshot::channel();
            ask.send(answer).unwrap();
            assert_eq!(timeout(Duration::from_secs(5), answered).await, Ok(Ok(count)));
        }
        drop(ask);
        thread.join().unwrap();
    });
}

#[test]
fn the_end_of_entry_drops_every_task() {
    let witness = Arc::new(());
    for backend in BACKENDS {
        let (cpus, held) = (available_cpus(), witness.clone());
        run(&Config { backend, cpus }, move |_| {
            let held = held.clone();
            async move {
                for _ in 0..10 {
                    let held = held.clone();
                    spawn(async move {
                        let (a, b) = UnixStream::pair().unwrap();
                        let watch = Watch::new(a.as_raw_fd());
                        let wait = timeout(Duration::from_secs(600), watch.ready(Interest::Read)).await;
                        drop((held, b, wait));
                    });
                }
                sleep(Duration::from_millis(1)).await;
            }
        })
        .unwrap();
        assert_eq!(Arc::strong_count(&witness), 1, "{backend} keeps tasks");
    }
}

#[test]
fn two_watches_share_a_descriptor() {
    on_each(|| async {
        let (a, mut b) = UnixStream::pair().unwrap();
        let first = Watch::new(a.as_raw_fd());
        first.ready(Interest::Write).await.unwrap();
        for _ in 0..3 {
            let second = Watch::new(a.as_raw_fd());
            second.ready(Interest::Write).await.unwrap();
            b.write_all(b"x").unwrap();
            let (one, two) = futures_util::join!(first.ready(Interest::Read), second.ready(Interest::Read));
            one.and(two).unwrap();
            let mut byte = [0];
            (&a).read_exact(&mut byte).unwrap();
        }
        first.ready(Interest::Write).await.unwrap();
    });
}

#[test]
fn unread_data_keeps_a_descriptor_ready() {
    on_each(|| async {
        let (a, mut b) = UnixStream::pair().unwrap();
        let watch = Watch::new(a.as_raw_fd());
        b.write_all(b"xyz").unwrap();
        for _ in 0..3 {
            watch.ready(Interest::Read).await.unwrap();
            watch.ready(Interest::Read).await.unwrap();
            (&a).read_exact(&mut [0]).unwrap();
        }
        a.set_nonblocking(true).unwrap();
        assert!((&a).read(&mut [0]).is_err());
    });
}

#[test]
fn an_interest_left_waiting_outlives_the_others() {
    on_each(|| async {
        let (a, mut b) = UnixStream::pair().unwrap();
        let watch = Rc::new(Watch::new(a.as_raw_fd()));
        let (gone, other) = (Rc::new(Cell::new(false)), watch.clone());
        let flag = gone.clone();
        spawn(async move {
            other.ready(Interest::HangUp).await.unwrap();
            flag.set(true);
        });
        for _ in 0..10 {
            b.write_all(b"x").unwrap();
            watch.ready(Interest::Read).await.unwrap();
            (&a).read_exact(&mut [0]).unwrap();
        }
        yield_now().await;
        assert!(!gone.get());
        drop(b);
        let hung_up = async {
            while !gone.get() {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(5), hung_up).await.unwrap();
    });
}

#[test]
fn an_idle_core_sleeps() {
    on_each(|| async {
        let switches = || {
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
            line.trim().parse::<u32>().unwrap()
        };
        let (a, _b) = UnixStream::pair().unwrap();
        let watch = Watch::new(a.as_raw_fd());
        let before = switches();
        // 300 wake-ups, were there one every millisecond.
        assert!(timeout(Duration::from_millis(300), watch.ready(Interest::Read)).await.is_err());
        let slept = switches() - before;
        assert!(slept <= 10, "woke up {slept} times");
        a.shutdown(std::net::Shutdown::Both).unwrap();
    });
}

#[test]
fn a_full_inbox_refuses() {
    let mesh = Mesh::new(1);
    let mut taken = 0;
    while mesh.post(Core(0), Box::new(|| ())).is_ok() {
        taken += 1;
    }
    assert_eq!(taken, 4096);
}

/// CPUs that the calling thread may run on.
fn allowed() -> usize {
    rustix::thread::sched_getaffinity(None).unwrap().count() as usize
}

#[test]
fn a_thread_that_shares_its_cpu_may_leave_it() {
    let cpus = available_cpus();
    if cpus.len() < 2 {
        println!("not tested: there is one CPU, and nowhere to go");
        return;
    }
    for backend in BACKENDS {
        let done = Arc::new(AtomicBool::new(false));
        let (stop, cpu) = (done.clone(), cpus[0]);
        // Another process, as far as the scheduler can tell.
        let hog = std::thread::spawn(move || {
            core_affinity::set_for_current(core_affinity::CoreId { id: cpu });
            while !stop.load(Ordering::Relaxed) {}
        });
        let config = Config { backend, cpus: cpus.clone() };
        run(&config, move |core| {
            let done = done.clone();
            async move {
                assert_eq!(allowed(), 1);
                if core != Core(0) {
                    return;
                }
                let (near, _far) = UnixStream::pair().unwrap();
                let watch = Watch::new(near.as_raw_fd());
                let deadline = Instant::now() + Duration::from_secs(60);
                while allowed() == 1 {
                    assert!(
                        Instant::now() < deadline,
                        "still pinned to a CPU that another thread keeps busy"
                    );
                    let until = Instant::now() + Duration::from_micros(100);
                    while Instant::now() < until {}
                    watch.ready(Interest::Write).await.unwrap();
                }
                done.store(true, Ordering::Relaxed);
            }
        })
        .unwrap();
        hog.join().unwrap();
    }
}
