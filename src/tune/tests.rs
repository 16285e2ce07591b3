use std::{fs, path::Path};

use super::{
    kernel::{Found, Kernel},
    profile::{PROFILES, Setting, parse},
    saved,
};

fn setting(key: &str, value: &str) -> Setting {
    Setting { key: key.into(), value: value.into() }
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

#[test]
fn every_key_of_every_profile_has_its_reason_before_it() {
    for profile in PROFILES {
        let settings = profile.settings().unwrap();
        assert!(!settings.is_empty(), "{}", profile.name);
        let mut keys: Vec<_> = settings.iter().map(|setting| &setting.key).collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), settings.len(), "{}: a key stands twice", profile.name);
        let mut comment = String::new();
        for line in profile.text.lines() {
            match line.strip_prefix('#') {
                Some(text) => comment += text,
                None if line.is_empty() => comment.clear(),
                None => {
                    let about = format!("{}: before {line}", profile.name);
                    let (reason, rest) = comment.split_once(" Kernels: ").expect(&about);
                    let (kernels, costs) = rest.split_once(" Costs: ").expect(&about);
                    assert!([reason, kernels, costs].iter().all(|part| part.trim().len() > 3), "{about}");
                    comment.clear();
                }
            }
        }
    }
}

#[test]
fn lines_are_read_as_sysctl_d_has_them() {
    let text =
        "# a reason\n; another\n\n net.ipv4.tcp_rmem =  4096\t131072  67108864 \nfs.pipe-max-size=1048576\n";
    let settings =
        [setting("net.ipv4.tcp_rmem", "4096 131072 67108864"), setting("fs.pipe-max-size", "1048576")];
    assert_eq!(parse(text).unwrap(), settings);
    for wrong in
        ["net.core.x", "net.core.x =", "= 1", "net = 1", "net..x = 1", "../../etc.passwd = 1", "a/b.c = 1"]
    {
        let error = parse(&format!("\n{wrong}")).unwrap_err().to_string();
        assert!(error.starts_with("line 2: "), "{wrong}: {error}");
    }
}

#[test]
fn settings_are_compared_and_written() {
    let dir = tempfile::tempdir().unwrap();
    let kernel = Kernel::at(dir.path());
    let wanted = setting("net.ipv4.tcp_rmem", "4096 131072 67108864");
    assert_eq!(kernel.look(&wanted).unwrap(), Found::Missing);
    assert!(kernel.set(&wanted).is_err(), "a setting that does not exist is not made");
    write(&dir.path().join("net/ipv4/tcp_rmem"), "4096\t131072\t6291456\n");
    assert_eq!(kernel.look(&wanted).unwrap(), Found::Other("4096 131072 6291456".into()));
    kernel.set(&wanted).unwrap();
    assert_eq!(kernel.look(&wanted).unwrap(), Found::Same);
}

#[test]
fn what_was_there_first_is_what_is_saved() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("state/tune.saved");
    assert_eq!(saved::load(&file).unwrap(), []);
    saved::add(&file, &[setting("a.b", "1"), setting("a.c", "2 3")]).unwrap();
    saved::add(&file, &[setting("a.b", "9"), setting("a.d", "4")]).unwrap();
    assert_eq!(
        saved::load(&file).unwrap(),
        [setting("a.b", "1"), setting("a.c", "2 3"), setting("a.d", "4")]
    );
    saved::forget(&file).unwrap();
    assert_eq!(saved::load(&file).unwrap(), []);
    fs::write(&file, "a.b = 1\nnonsense\n").unwrap();
    assert!(saved::load(&file).unwrap_err().to_string().contains("line 2: 'nonsense'"));
}
