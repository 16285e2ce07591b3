//! Which targets name files, and that none of them leaves the directory.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Component;

use super::*;

#[test]
fn targets_that_name_files() {
    for (target, expected) in [
        ("/a/b.mp4", b"a/b.mp4".as_slice()),
        ("/a%20b?c=/../d", b"a b"),
        ("//a///b", b"a/b"),
        ("/./a/.", b"a"),
        ("/a/", b"a/"),
        ("/", b"."),
        ("/?x", b"."),
        ("/...", b"..."),
        ("/..a/b..", b"..a/b.."),
        ("/a%5c..%5Cb", b"a\\..\\b"),
        ("/%ff%FE", b"\xff\xfe"),
        ("/\u{fc}", b"\xc3\xbc"),
        ("/%2525", b"%25"),
        ("/%252e%252e", b"%2e%2e"),
        ("/a+b", b"a+b"),
        ("/%7e;v=1", b"~;v=1"),
    ] {
        assert_eq!(relative_path(target).expect(target).as_os_str(), OsStr::from_bytes(expected), "{target}");
    }
}

#[test]
fn targets_that_do_not() {
    for (target, error) in [
        ("", TargetError::NotAbsolute),
        ("a", TargetError::NotAbsolute),
        ("?/a", TargetError::NotAbsolute),
        ("/..", TargetError::Parent),
        ("/a/../b", TargetError::Parent),
        ("/%2e%2E/b", TargetError::Parent),
        ("/.%2e", TargetError::Parent),
        ("/a%2Fb", TargetError::EncodedSlash),
        ("/..%2f..", TargetError::EncodedSlash),
        ("/a%00b", TargetError::Nul),
        ("/a\0b", TargetError::Nul),
        ("/%", TargetError::Escape),
        ("/%2", TargetError::Escape),
        ("/%2/", TargetError::Escape),
        ("/%zz", TargetError::Escape),
        ("/%25%", TargetError::Escape),
    ] {
        assert_eq!(relative_path(target), Err(error), "{target}");
        assert_eq!(error.problem().status, 400);
    }
}

fn assert_beneath(target: &str) {
    let Ok(path) = relative_path(target) else { return };
    assert!(path.is_relative() && !path.as_os_str().is_empty());
    assert!(!path.as_os_str().as_bytes().contains(&0));
    let plain = path.components().all(|component| matches!(component, Component::Normal(_)));
    assert!(plain || path.as_os_str() == ".", "{target} gave {path:?}");
}

#[test]
fn no_target_leaves_the_directory() {
    const PIECES: [&str; 14] =
        ["/", "..", ".", "%2e", "%2F", "%00", "%", "%5c", "\\", "a", "\0", "\u{fc}", "?", "%25"];
    bolero::check!().with_type::<(String, Vec<u8>)>().with_iterations(5_000).for_each(|(text, picks)| {
        assert_beneath(text);
        assert_beneath(&format!("/{text}"));
        let target: String = picks.iter().map(|&pick| PIECES[usize::from(pick) % PIECES.len()]).collect();
        assert_beneath(&format!("/{target}"));
    });
}
