//! `plait get`: what it takes for the rest of a file, and what it shows meanwhile.

use std::{
    fs,
    io::{Read, Write},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, SystemTime},
};

use crate::{
    chain::{Chain, Plan, Root, text},
    client::plait_get,
    content::content,
    hostile::ground,
    missing::installed,
    observe::eventually,
    process::{DEADLINE, PLAIT},
    roots::{After, ScriptedRoot, chunked},
    scripted::{Tally, Upstream},
    wire::{frame::Frame, units::FrameLen},
};

const HAVE: usize = 10;
const LENGTH: usize = 100;

/// A chain whose root answers so, and what a download has left there of `"v1"`.
fn with_part(root: &ScriptedRoot) -> Chain {
    let chain = Plan { paths: 1, root: Root::At(root.address), ..Plan::default() }.start(|_| {});
    fs::write(chain.ground.scratch("f.part"), &content(LENGTH)[..HAVE]).unwrap();
    fs::write(chain.ground.scratch("f.part.etag"), "\"v1\"").unwrap();
    chain
}

#[test]
fn only_all_of_the_rest_completes_a_partial_file() {
    let rest = |first: usize, last: usize| content(LENGTH)[first..=last].to_vec();
    let fixed = |range: &str, more: &str, body: Vec<u8>| {
        let head = format!("Content-Range: bytes {range}\r\nContent-Length: {}\r\n{more}", body.len());
        (head, body)
    };
    let v1 = "ETag: \"v1\"\r\n";
    let chunks = format!("Content-Range: bytes 10-99/100\r\nTransfer-Encoding: chunked\r\n{v1}");
    let date = "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\nDate: Sun, 06 Nov 1994 09:49:37 GMT\r\n";
    for (case, (head, body), is_rest) in [
        ("all of it", fixed("10-99/100", v1, rest(10, 99)), true),
        ("it ends too early", fixed("10-19/100", v1, rest(10, 19)), false),
        ("it begins too late", fixed("11-99/100", v1, rest(11, 99)), false),
        ("of unknown length", fixed("10-99/*", v1, rest(10, 99)), false),
        ("its length is another", fixed("10-99/100", v1, rest(10, 19)), false),
        ("its length is not said", (chunks, chunked(&rest(10, 99), &[7])), false),
        ("of another version", fixed("10-99/100", "ETag: \"v2\"\r\n", rest(10, 99)), false),
        (
            "of a version that is about the same",
            fixed("10-99/100", "ETag: W/\"v1\"\r\n", rest(10, 99)),
            false,
        ),
        ("of no version", fixed("10-99/100", "", rest(10, 99)), false),
        ("of a date", fixed("10-99/100", date, rest(10, 99)), false),
    ] {
        let root = ScriptedRoot::start(move |asked, stream| {
            assert_eq!(asked.header("range"), Some("bytes=10-"));
            assert_eq!(asked.header("if-range"), Some("\"v1\""));
            write!(stream, "HTTP/1.1 206 Partial Content\r\n{head}\r\n")?;
            stream.write_all(&body)?;
            Ok(After::Keep)
        });
        let chain = with_part(&root);
        let file = chain.ground.scratch("f");
        let output = plait_get(&chain, "/f", &file);
        let part = fs::read(chain.ground.scratch("f.part")).unwrap_or_default();
        if is_rest {
            assert!(output.status.success(), "{case}: {output:?}");
            assert!(fs::read(&file).unwrap() == content(LENGTH), "{case}");
        } else {
            assert_eq!(output.status.code(), Some(1), "{case}: {output:?}");
            assert!(!file.exists() && part == content(LENGTH)[..HAVE], "{case}");
        }
    }
}

/// RFC 9110 section 8.8.2.2: of two versions made in one second, both have the date.
#[test]
fn a_download_goes_on_by_a_date_only_if_that_is_strong() {
    for (age_s, is_strong) in [(3600, true), (10, false)] {
        let root = ScriptedRoot::start(move |asked, stream| {
            if asked.header("range").is_some() {
                write!(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
                return Ok(After::Keep);
            }
            let now = SystemTime::now();
            let modified = httpdate::fmt_http_date(now - Duration::from_secs(age_s));
            let date = httpdate::fmt_http_date(now);
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\nLast-Modified: {modified}\r\nDate: {date}\r\n\r\n"
            )?;
            stream.write_all(&content(LENGTH)[..HAVE])?;
            Ok(After::Close)
        });
        let chain = Plan { paths: 1, root: Root::At(root.address), ..Plan::default() }.start(|_| {});
        let file = chain.ground.scratch("f");
        for _ in 0..2 {
            let output = plait_get(&chain, "/f", &file);
            assert_eq!(output.status.code(), Some(1), "{output:?}");
        }
        let ranges = root.asked().iter().filter(|asked| asked.header("range").is_some()).count();
        assert_eq!(ranges > 0, is_strong, "{age_s} s: {:?}", root.asked());
        assert_eq!(chain.ground.scratch("f.part.etag").exists(), is_strong, "{age_s} s");
    }
}

#[test]
fn a_second_download_to_the_same_file_leaves_it_to_the_first() {
    let go_on = Tally::default();
    let released = go_on.clone();
    let root = ScriptedRoot::start(move |_, stream| {
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\nETag: \"v1\"\r\n\r\n")?;
        stream.write_all(&content(LENGTH)[..HAVE])?;
        released.reach(1)?;
        stream.write_all(&content(LENGTH)[HAVE..])?;
        Ok(After::Keep)
    });
    let chain = Plan { paths: 1, root: Root::At(root.address), ..Plan::default() }.start(|_| {});
    let file = chain.ground.scratch("f");
    thread::scope(|scope| {
        let first = scope.spawn(|| plait_get(&chain, "/f", &file));
        eventually("the first is on its way", || (!root.asked().is_empty()).then_some(()));
        let second = plait_get(&chain, "/f", &file);
        go_on.add(1);
        let said = String::from_utf8_lossy(&second.stderr);
        let reason = format!("another download writes to {}.part: wait until it ends", text(&file));
        assert!(second.status.code() == Some(1) && said.contains(&reason), "{said}");
        let first = first.join().unwrap();
        assert!(first.status.success(), "{first:?}");
    });
    assert!(fs::read(&file).unwrap() == content(LENGTH));
    assert_eq!(root.asked().len(), 1);
}

/// The bar of a terminal shows what is written of the whole, and the rate of each path beside it. A frame that came over two
/// lanes is written once.
#[test]
fn the_bar_shows_what_is_written() {
    const FRAME: usize = 256 << 10;
    if !installed("script") {
        return;
    }
    let bytes = content(4 * FRAME);
    let (body, doubled, released) = (bytes.clone(), Tally::default(), Tally::default());
    let go_on = released.clone();
    let upstream = Upstream::start(1, move |lane, opening| {
        let transfer = opening.transfer;
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        lane.send(Frame::Head { transfer, head_len: FrameLen(head.len() as u32) }, head.as_bytes())?;
        let frame = |seq: usize| (seq as u64, (seq * FRAME) as u64, &body[seq * FRAME..(seq + 1) * FRAME]);
        if opening.nth == 0 {
            doubled.reach(1)?;
            for (seq, offset, bytes) in [frame(0), frame(1)] {
                lane.data(transfer, seq, offset, bytes)?;
            }
            released.reach(1)?;
            for (seq, offset, bytes) in [frame(2), frame(3)] {
                lane.data(transfer, seq, offset, bytes)?;
            }
        } else {
            let (seq, offset, bytes) = frame(1);
            lane.data_again(transfer, seq, offset, bytes)?;
            doubled.add(1);
            released.reach(1)?;
        }
        lane.end(transfer, 4, body.len() as u64)
    });
    let ground = ground();
    let (key, file) = (ground.key(), ground.scratch("f"));
    let get = format!(
        "stty cols 200; {PLAIT} get /f -o {} --key {} --path {} --lanes 2 --cores 0",
        text(&file),
        text(&key),
        upstream.address
    );
    let mut terminal = Command::new("script")
        .args(["-qec", &get, "/dev/null"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut screen, (shown, sees)) = (terminal.stdout.take().unwrap(), mpsc::channel());
    thread::spawn(move || {
        let mut some = [0; 4096];
        while let Ok(len @ 1..) = screen.read(&mut some) {
            if shown.send(String::from_utf8_lossy(&some[..len]).into_owned()).is_err() {
                return;
            }
        }
    });
    let mut seen = String::new();
    let wanted = |seen: &str| seen.contains("512.00 KiB/1.00 MiB") && seen.contains(" Mbit/s");
    while !wanted(&seen) {
        match sees.recv_timeout(DEADLINE / 6) {
            Ok(more) => seen += &more,
            Err(error) => {
                let _ = terminal.kill();
                let _ = terminal.wait();
                panic!("{error}: the bar does not show what is written: {seen:?}");
            }
        }
        // It is drawn again and again.
        assert!(seen.len() < 1 << 20, "the bar does not show what is written: {seen:?}");
    }
    go_on.add(1);
    assert!(terminal.wait().unwrap().success());
    assert!(fs::read(&file).unwrap() == bytes);
}
