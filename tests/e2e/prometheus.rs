//! What Prometheus and Grafana are given: promtool reads it, and the alerts fire when they should.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::{Value, json};

use crate::{
    chain::{Ground, Plan, text},
    client::{Client, ask},
    content::content,
    missing::installed,
    process::{Settings, run},
};

fn packaged(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(name)
}

/// Runs promtool, which `.ci/packages` installs; none if it is not there, of which a line tells.
fn promtool(args: &[&str]) -> Option<Output> {
    if !installed("promtool") {
        eprintln!("skipped: promtool {}", args.join(" "));
        return None;
    }
    let script = "exec promtool \"$@\" 2>&1";
    Some(run(Command::new("sh").args(["-c", script, "sh"]).args(args)))
}

fn assert_content(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn alerts_load_and_fire_when_they_should() {
    let (rules, tests) = (packaged("prometheus/alerts.yml"), packaged("prometheus/alerts_test.yml"));
    let Some(checked) = promtool(&["check", "rules", text(&rules)]) else { return };
    assert_content(&checked);
    assert_content(&promtool(&["test", "rules", text(&tests)]).unwrap());
}

/// Every object in `value` that has this field.
fn with_field<'a>(value: &'a Value, field: &str, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(fields) => {
            if fields.contains_key(field) {
                found.push(value);
            }
            fields.values().for_each(|value| with_field(value, field, found));
        }
        Value::Array(values) => values.iter().for_each(|value| with_field(value, field, found)),
        _ => {}
    }
}

#[test]
fn the_grafana_dashboard_is_one_and_prometheus_reads_its_expressions() {
    let dashboard: Value =
        serde_json::from_slice(&fs::read(packaged("grafana/plait.json")).unwrap()).unwrap();
    assert!(dashboard["schemaVersion"].is_u64() && dashboard["title"] == "Plait", "{dashboard}");
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "two panels have the same id");
    // Grafana has 24 columns; on none of its cells two panels lie.
    let mut cells = BTreeSet::new();
    for panel in panels {
        let at = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{panel}");
        for (x, y) in
            (at("x")..at("x") + at("w")).flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y)))
        {
            assert!(cells.insert((x, y)), "something lies on {}", panel["title"]);
        }
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{panel}");
    }
    let mut targets = Vec::new();
    with_field(&dashboard, "expr", &mut targets);
    assert!(targets.len() > panels.len(), "{}", targets.len());
    // As recording rules, which promtool reads; JSON is YAML.
    let rules: Vec<_> = targets
        .iter()
        .enumerate()
        .map(|(number, target)| {
            let expression = target["expr"].as_str().unwrap();
            let expression = expression.replace("$__rate_interval", "1m").replace("$instance", ".*");
            assert!(!expression.contains('$'), "{expression}");
            json!({"record": format!("panel:{number}"), "expr": expression})
        })
        .collect();
    let ground = Ground::new();
    let file = ground.scratch("panels.yml");
    fs::write(&file, json!({"groups": [{"name": "panels", "rules": rules}]}).to_string()).unwrap();
    let Some(checked) = promtool(&["check", "rules", text(&file)]) else { return };
    assert_content(&checked);
}

/// After requests that met a limit, too, so that hardly a metric is missing.
#[test]
fn promtool_finds_nothing_wrong_in_what_roles_say() {
    let settings = Settings { admin: true, ..Settings::default() };
    let ground = Ground::new();
    ground.store("f.mp4", &content(5_000_000));
    let downstream = vec!["--cache".to_owned(), text(&ground.scratch("cache")).to_owned()];
    let chain = Plan { settings, downstream, ..Plan::default() }.start_on(ground);
    assert_eq!(ask(chain.address, "GET", "/f.mp4", "").status(), 200);
    let root = chain.root.as_ref().unwrap();
    for role in [&chain.downstream, &chain.relays[0][0], &chain.upstream, root] {
        let mut client = Client::connect(role.admin());
        client.send("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let file = chain.ground.scratch("metrics");
        fs::write(&file, client.answer("GET").unwrap().body).unwrap();
        if !installed("promtool") {
            eprintln!("skipped: promtool check metrics");
            return;
        }
        let checked =
            run(Command::new("sh").args(["-c", "exec promtool check metrics <\"$0\" 2>&1", text(&file)]));
        assert_content(&checked);
        assert!(checked.stdout.is_empty(), "{}", String::from_utf8_lossy(&checked.stdout));
    }
}
