//! What the documentation tells people to type, and what the packaging starts, is taken by the command line.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::CommandFactory;
use plait::{
    cli::Arguments,
    lab::{Scenario, scenario::Event},
};

use crate::{
    missing::{installed, skipped},
    process::{Settings, run},
};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn read(name: &str) -> String {
    fs::read_to_string(repository().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// All pages below `dir`.
fn pages(dir: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(repository().join(dir)).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && dir != "." {
            found.extend(pages(path.to_str().unwrap()));
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
    found
}

/// Whole lines of the shell blocks of a page, without comments.
fn shell_lines(page: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let (mut inside, mut goes_on) = (false, false);
    for line in page.lines() {
        let line = line.trim();
        if let Some(language) = line.strip_prefix("```") {
            (inside, goes_on) = (language == "sh", false);
            continue;
        }
        if !inside {
            continue;
        }
        let line = line.split("# ").next().unwrap().split(" #").next().unwrap();
        let (line, more) = line.strip_suffix('\\').map_or((line, false), |line| (line, true));
        match lines.last_mut() {
            Some(last) if goes_on => last.push_str(line),
            _ => lines.push(line.to_owned()),
        }
        goes_on = more;
    }
    lines
}

/// The words behind each `plait` of a line, up to what is the shell's.
fn commands(line: &str) -> Vec<Vec<String>> {
    let line = line.replace("cargo run --release -- ", "plait ").replace("\"$(command -v plait)\"", "plait");
    let known = |word: &str| Arguments::command().get_subcommands().any(|command| command.get_name() == word);
    line.split(['|', ';', '&'])
        .filter_map(|part| {
            let words: Vec<_> = part.split(['>', '<']).next()?.split_whitespace().collect();
            let first = words.iter().find(|word| !word.contains('=') && **word != "sudo")?;
            let at = words.iter().position(|word| *word == "plait" || word.ends_with("/plait"))?;
            // Elsewhere it may be the name of an image or a package.
            let is_command = first == &words[at] || words.get(at + 1).is_some_and(|word| known(word));
            let plain = |word: &&str| word.trim_matches(['"', '\'']).to_owned();
            is_command.then(|| words[at..].iter().map(plain).map(|word| filled_in(&word)).collect())
        })
        .collect()
}

/// With an address for every variable.
pub fn filled_in(word: &str) -> String {
    let mut parts = word.split('$');
    let mut text = parts.next().unwrap().to_owned();
    for part in parts {
        text.push_str("127.0.0.1");
        let end = part.find(|c: char| !c.is_ascii_alphanumeric() && !"_{}".contains(c));
        text.push_str(&part[end.unwrap_or(part.len())..]);
    }
    text
}

#[track_caller]
pub fn must_parse(place: &str, words: &[String]) {
    match Arguments::command().try_get_matches_from(words) {
        Ok(_) => {}
        Err(error) if !error.use_stderr() => {}
        Err(error) => panic!("{place}: `{}`: {error}", words.join(" ")),
    }
}

#[test]
fn commands_of_the_documentation_are_taken() {
    let mut count = 0;
    for dir in [".", "docs", "tuning", "bench", "flamegraphs", "packaging"] {
        for page in pages(dir) {
            for line in shell_lines(&fs::read_to_string(&page).unwrap()) {
                for words in commands(&line) {
                    must_parse(&page.display().to_string(), &words);
                    count += 1;
                }
            }
        }
    }
    assert!(count > 20, "only {count} commands were found");
}

#[test]
fn the_tables_of_flags_name_no_other() {
    let readme = read("README.md");
    let rows = readme.lines().filter_map(|line| line.strip_prefix("| `plait ")?.split_once("` |"));
    let mut count = 0;
    for (name, cells) in rows.filter(|(name, _)| !name.contains(['|', ' '])) {
        let mut grammar = Arguments::command();
        grammar.build();
        let command = grammar.find_subcommand(name).unwrap_or_else(|| panic!("no command {name}"));
        let flags = cells.split("`--").skip(1).map(|text| text.split([' ', '`']).next().unwrap());
        for flag in flags {
            let found = command.get_arguments().any(|argument| argument.get_long() == Some(flag));
            let below = command.get_subcommands().next().is_some();
            assert!(found || below, "plait {name} has no --{flag}");
            count += 1;
        }
    }
    assert!(count > 20, "only {count} flags were found");
}

#[test]
fn scenarios_of_the_documentation_bring_the_file() {
    for page in ["README.md", "tuning/README.md"] {
        let text = read(page);
        let blocks = text.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
        let scenarios: Vec<_> = blocks.filter(|block| block.contains("[[path]]")).collect();
        assert!(!scenarios.is_empty(), "{page} has none");
        for scenario in scenarios {
            let scenario = Scenario::parse(page, scenario).unwrap();
            for path in 1..=scenario.paths.len() {
                let last = scenario.events.iter().rfind(|event| event.path == path);
                assert!(last.is_none_or(Event::brings_back), "{page}: path {path} stays away");
            }
        }
    }
}

/// Role and file of each example of a configuration, by host.
fn examples() -> Vec<(String, PathBuf)> {
    let dirs = fs::read_dir(repository().join("packaging/config")).unwrap().map(|dir| dir.unwrap().path());
    let files = dirs.flat_map(|dir| fs::read_dir(dir).unwrap()).map(|file| file.unwrap().path());
    let examples: Vec<_> =
        files.map(|file| (file.file_stem().unwrap().to_str().unwrap().to_owned(), file)).collect();
    // root.example has two of them, the relays a.example and b.example and two edges one each.
    assert_eq!(examples.len(), 6);
    examples
}

#[test]
fn units_start_commands_that_exist() {
    for role in ["root", "upstream", "relay", "downstream"] {
        let unit = read(&format!("packaging/systemd/plait-{role}.service"));
        let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
        must_parse(role, &["plait".into(), role.into(), "--help".into()]);
        assert_eq!(start, format!("/usr/bin/plait {role} --config /etc/plait/{role}.toml"));
    }
    for (role, config) in examples() {
        let mut plait = Settings::default().plait();
        // The units say where it is.
        plait.env("PLAIT_KEY", "/nonexistent/plait.key").args(["check", &role, "--config"]).arg(config);
        let looked = run(&mut plait);
        let said = String::from_utf8_lossy(&looked.stderr).into_owned();
        assert!(said.lines().count() == 1 && said.contains(" things are wrong"), "{role}: {said}");
    }
}

#[test]
fn the_balancers_configurations_are_whole() {
    let config = read("packaging/kubernetes/haproxy.cfg");
    let inside: String = config
        .lines()
        .map(|line| if line.is_empty() { "\n".to_owned() } else { format!("    {line}\n") })
        .collect();
    assert!(
        read("packaging/kubernetes/plait.yaml").contains(&inside),
        "plait.yaml has another haproxy.cfg than the one beside it"
    );
    if !installed("haproxy") {
        return;
    }
    let job = read("packaging/nomad/plait.nomad.hcl");
    let (_, text) = job.split_once("<<EOF\n").unwrap();
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [("kubernetes", &*config), ("nomad", text.split("EOF").next().unwrap())] {
        let file = dir.path().join(name);
        fs::write(&file, text).unwrap();
        let output = run(std::process::Command::new("haproxy").args(["-c", "-f"]).arg(&file));
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn the_package_holds_what_it_says() {
    let manifest: toml::Table = read("Cargo.toml").parse().unwrap();
    let deb = &manifest["package"]["metadata"]["deb"];
    for asset in deb["assets"].as_array().unwrap() {
        let source = asset[0].as_str().unwrap();
        // Made by `cargo xtask deb`.
        if !source.starts_with("target/") {
            let (dir, pattern) = source.rsplit_once('/').unwrap_or((".", source));
            let there = match pattern {
                "*.toml" => !examples().is_empty(),
                "*" => fs::read_dir(repository().join(dir)).is_ok_and(|mut entries| entries.next().is_some()),
                name => repository().join(dir).join(name).is_file(),
            };
            assert!(there, "{source} is not there");
        }
    }
    for entry in deb["systemd-units"].as_array().unwrap() {
        let name = entry["unit-name"].as_str().unwrap();
        let unit = format!("packaging/systemd/{name}.service");
        assert!(repository().join(&unit).is_file(), "{unit}");
        // An upgrade restarts the role, and never the socket that holds its port; one setting is for both.
        let holds_a_port = repository().join(unit.replace(".service", ".socket")).exists();
        let restarts = entry.get("restart-after-upgrade").is_none_or(|restarts| restarts.as_bool().unwrap());
        let stops = entry.get("stop-on-upgrade").is_none_or(|stops| stops.as_bool().unwrap());
        assert_eq!((restarts, stops), (!holds_a_port, !holds_a_port), "{unit}");
        let restart = format!("deb-systemd-invoke try-restart {name}.service >");
        assert_eq!(read("packaging/debian/postinst").contains(&restart), holds_a_port, "{unit}");
    }
    // Where systemd holds the port, it is the one that the role would listen on, and as many may wait.
    let socket = read("packaging/systemd/plait-downstream.socket");
    let setting = |name: &str| socket.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    for (_, file) in examples().into_iter().filter(|(role, _)| role == "downstream") {
        let example: toml::Table = fs::read_to_string(&file).unwrap().parse().unwrap();
        assert_eq!(setting("ListenStream="), example["listen"].as_str().unwrap(), "{}", file.display());
    }
    assert!(
        read("src/net/listener.rs")
            .replace('_', "")
            .contains(&format!("BACKLOG: i32 = {};", setting("Backlog=")))
    );
}

#[test]
fn systemd_takes_the_units() {
    // Its own targets are what they stand on.
    let own = Path::new("/usr/lib/systemd/system");
    if !installed("systemd-analyze") {
        return;
    }
    if !own.join("sysinit.target").exists() {
        return skipped("systemd's own units are not there");
    }
    let root = tempfile::tempdir().unwrap();
    let units = root.path().join("usr/lib/systemd/system");
    fs::create_dir_all(&units).unwrap();
    for program in ["usr/bin/plait", "usr/bin/install", "bin/chown", "bin/kill", "bin/rm"] {
        let program = root.path().join(program);
        fs::create_dir_all(program.parent().unwrap()).unwrap();
        fs::copy("/bin/true", program).unwrap();
    }
    for entry in
        fs::read_dir(own).unwrap().chain(fs::read_dir(repository().join("packaging/systemd")).unwrap())
    {
        let path = entry.unwrap().path();
        let is_ours = path.starts_with(repository());
        if path.is_file() && (is_ours || path.extension().is_some_and(|extension| extension == "target")) {
            fs::copy(&path, units.join(path.file_name().unwrap())).unwrap();
        }
    }
    let analyze = |args: &[&str], unit: &str| {
        let mut command = std::process::Command::new("systemd-analyze");
        let output = run(command.args(args).arg(format!("--root={}", root.path().display())).arg(unit));
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{unit}: {}", String::from_utf8_lossy(&said));
    };
    for role in ["root", "upstream", "relay", "downstream"] {
        let unit = format!("plait-{role}.service");
        analyze(&["verify", "--man=no"], &unit);
        // Tenths: docs/security.md.
        analyze(&["security", "--offline=true", "--threshold=18"], &unit);
    }
    analyze(&["verify", "--man=no"], "plait-downstream.socket");
}

/// As GitHub makes one of a heading.
fn anchor(heading: &str) -> String {
    let kept = |c: char| c.is_alphanumeric() || "-_ ".contains(c);
    heading.trim().to_lowercase().chars().filter(|&c| kept(c)).collect::<String>().replace(' ', "-")
}

#[test]
fn links_lead_somewhere() {
    let mut count = 0;
    for page in
        [".", "docs", "tuning", "bench", "flamegraphs", "packaging", "assets"].into_iter().flat_map(pages)
    {
        let text = fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1) {
            let Some((link, _)) = link.split_once(')') else { continue };
            let (file, place) = link.split_once('#').unwrap_or((link, ""));
            // Elsewhere, or no link at all.
            if link.contains("://") || link.contains([' ', '`']) {
                continue;
            }
            let target = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: there is no {file}", page.display());
            if !place.is_empty() {
                let target = fs::read_to_string(target).unwrap();
                let headings =
                    target.lines().filter_map(|line| Some(line.strip_prefix('#')?.trim_start_matches('#')));
                assert!(
                    headings.into_iter().any(|known| anchor(known) == place),
                    "{}: no place {link}",
                    page.display()
                );
            }
            count += 1;
        }
    }
    assert!(count > 50, "only {count} links were found");
}
