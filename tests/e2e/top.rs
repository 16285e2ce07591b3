//! `plait top --once` against each role while bytes move.

use std::{collections::BTreeMap, net::SocketAddr, thread};

use crate::{
    chain::{Ground, Plan, text},
    client::ask,
    content::content,
    observe::eventually,
    process::{Settings, run},
    viewers::Viewers,
};

const LENGTH: usize = 20_000_000;

/// What it writes: lines `name: value`, and rows of a head before each cell, by their first two words.
struct Written {
    whole: String,
    named: BTreeMap<String, String>,
}

impl Written {
    fn of(address: SocketAddr) -> Self {
        let output = run(Settings::default().plait().args(["top", &address.to_string(), "--once"]));
        assert!(output.status.success(), "{output:?}");
        let whole = String::from_utf8(output.stdout).unwrap();
        let named = whole.lines().filter_map(|line| line.split_once(": "));
        let named = named.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Self { whole, named }
    }

    /// The value of `name`, which says more than nothing.
    fn some(&self, name: &str) -> &str {
        let value = self.named.get(name).unwrap_or_else(|| panic!("no {name}:\n{}", self.whole));
        assert!(
            !value.starts_with("0 ") && value != "0" && value != "-",
            "{name} is {value}:\n{}",
            self.whole
        );
        value
    }

    /// The first row that begins like this; `heads` are in it, with something that is not 0.
    fn row(&self, begin: &str, heads: &[&str]) -> String {
        let row = self.whole.lines().find(|line| line.starts_with(begin));
        let row = row.unwrap_or_else(|| panic!("no row {begin}:\n{}", self.whole));
        for head in heads {
            let cell = row.split(", ").find_map(|cell| cell.strip_prefix(head)).unwrap_or_default();
            assert!(!cell.is_empty() && !cell.starts_with(" 0 "), "no {head} in {row}");
        }
        row.to_owned()
    }
}

#[test]
fn top_shows_what_the_dashboard_shows_of_each_role() {
    let settings = Settings { admin: true, ..Settings::default() };
    let ground = Ground::new();
    ground.store("f.mp4", &content(LENGTH));
    ground.store("small.ts", &content(100_000));
    let downstream = vec!["--cache".to_owned(), text(&ground.scratch("cache")).to_owned()];
    let chain = Plan { settings, downstream, ..Plan::default() }.start_on(ground);
    eventually("a hit", || {
        let answer = ask(chain.address, "GET", "/small.ts", "");
        answer.header("cache-status").unwrap().contains("; hit").then_some(())
    });
    let viewers = Viewers::of(chain.address, &["/f.mp4", "/f.mp4"], LENGTH);
    let root = chain.root.as_ref().unwrap();
    let roles = [&chain.downstream, &chain.relays[0][0], &chain.upstream, root].map(|role| role.admin());
    // An answer has ended, so that there is something of everything; then all look at once, while bytes move.
    eventually("an answer of the root", || {
        let written = Written::of(roles[3]);
        written.whole.contains("request /f.mp4, status 200, body 20.0 MB").then_some(())
    });
    eventually("bytes that move", || {
        (!Written::of(roles[0]).named["carried now"].starts_with("0 ")).then_some(())
    });
    let [downstream, relay, upstream, root] =
        roles.map(|role| thread::spawn(move || Written::of(role))).map(|written| written.join().unwrap());
    viewers.leave();

    for name in ["carried now", "answers", "bodies", "cache hits", "lanes", "memory", "first byte"] {
        downstream.some(name);
    }
    for name in ["longest wait for lanes", "reorder depth"] {
        assert!(downstream.some(name).starts_with("p50 <= "), "{}", downstream.whole);
    }
    assert!(downstream.some("cache").starts_with("hit "), "{}", downstream.whole);
    assert!(downstream.whole.contains(" == 2 paths, "), "the chain: {}", downstream.whole);
    for path in &chain.paths {
        let row = downstream.row(&format!("path {path}, state up"), &["carried", "RTT", "lanes", "control"]);
        assert!(row.contains("parked ") && row.contains("resent "), "{row}");
    }
    let request =
        downstream.row("request /f.mp4, status 200", &["body", "time", "first byte", "wait", "path shares"]);
    assert!(request.contains("cache bypass"), "{request}");
    downstream.row("lane leads to", &["end", "RTT", "control"]);

    relay.row("what forwarded down", &["rate", "carried"]);
    relay.row("what forwarded up", &["carried"]);
    relay.row("lane leads to", &["end", "RTT", "control"]);
    assert!(relay.whole.contains("downstreams == ") && relay.some("carried now") != "-", "{}", relay.whole);

    upstream.row("what payload", &["rate", "carried"]);
    for name in ["carried now", "transfers", "asked the root", "first byte of the root", "lanes"] {
        upstream.some(name);
    }
    upstream.row("lane leads to", &["end", "RTT", "control"]);

    root.row("what bodies that have ended", &["carried"]);
    for name in ["answers", "bodies", "first byte"] {
        root.some(name);
    }
    root.row("request /f.mp4", &["body", "time"]);
}
