//! What the examples for Kubernetes and Nomad say hangs together: arguments, ports, names, the key.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::documents::{filled_in, must_parse, read};

/// A list of strings.
fn words(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
}

/// The arguments of a role are taken, with a key from the environment; its ports for lanes or viewers and for `--admin`.
#[track_caller]
fn ports_of(args: &[String]) -> [u64; 2] {
    let mut whole = vec!["plait".to_owned()];
    whole.extend(args.iter().map(|word| filled_in(word)));
    whole.push("--key=k".to_owned());
    must_parse("orchestrators", &whole);
    ["--listen", "--admin"].map(|name| flag(args, name).rsplit_once(':').unwrap().1.parse().unwrap())
}

/// What follows `=` of a flag.
#[track_caller]
fn flag<'a>(args: &'a [String], name: &str) -> &'a str {
    let value = args.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    value.unwrap_or_else(|| panic!("no {name} in {args:?}"))
}

/// Viewers come from the balancer's address, and it has so many of them at once.
#[track_caller]
fn takes_all_of_a_balancer(downstream: &[String], balancer: &str) {
    let maxconn = balancer.lines().find_map(|line| line.trim().strip_prefix("maxconn ")).unwrap();
    let [bound, wanted] = [flag(downstream, "--max-per-address"), maxconn].map(|n| n.parse::<u32>().unwrap());
    assert!(bound >= wanted, "{bound} < {wanted}");
}

/// Name and number of each of a container's or service's ports.
fn named_ports(list: &Value, number: &str) -> BTreeMap<String, u64> {
    let ports = list.as_array().unwrap().iter();
    ports.map(|port| (port["name"].as_str().unwrap().to_owned(), port[number].as_u64().unwrap())).collect()
}

#[test]
fn the_manifests_of_kubernetes_hang_together() {
    let manifests: Vec<Value> =
        serde_saphyr::from_multiple(&read("packaging/kubernetes/plait.yaml")).unwrap();
    let of_kind = |kinds: &[&str]| {
        let found = manifests.iter().filter(|manifest| kinds.contains(&manifest["kind"].as_str().unwrap()));
        found
            .map(|manifest| (manifest["metadata"]["name"].as_str().unwrap(), &manifest["spec"]))
            .collect::<BTreeMap<_, _>>()
    };
    let (services, workloads) = (of_kind(&["Service"]), of_kind(&["Deployment", "StatefulSet"]));
    assert!(manifests.iter().all(|manifest| manifest["metadata"]["namespace"] == "plait"));
    let mut args_of = BTreeMap::new();
    for (name, spec) in &workloads {
        let pod = &spec["template"];
        assert_eq!(spec["selector"]["matchLabels"], pod["metadata"]["labels"], "{name}");
        let container = &pod["spec"]["containers"][0];
        let ports = named_ports(&container["ports"], "containerPort");
        for probe in ["readinessProbe", "livenessProbe"] {
            for way in ["httpGet", "tcpSocket"] {
                let port = container[probe][way]["port"].as_str();
                assert!(port.is_none_or(|port| ports.contains_key(port)), "{name}: {probe}");
            }
        }
        if !container["image"].as_str().unwrap().contains("plait") {
            continue;
        }
        let args = words(&container["args"]);
        let wanted: BTreeSet<u64> = ports_of(&args).into();
        assert_eq!(ports.values().copied().collect::<BTreeSet<_>>(), wanted, "{name}");
        // A pod has an address of its own.
        assert!(
            ["--listen", "--admin"].iter().all(|name| flag(&args, name).starts_with("0.0.0.0:")),
            "{name}"
        );
        assert!(container["readinessProbe"]["httpGet"]["path"] == "/ready", "{name}");
        let variable = |wanted: &str| {
            let all = container["env"].as_array().unwrap();
            all.iter().find(|one| one["name"] == wanted).unwrap()["value"].as_str().unwrap()
        };
        let directory = variable("CREDENTIALS_DIRECTORY");
        assert_eq!(variable("PLAIT_KEY"), format!("{directory}/plait.key"), "{name}");
        // Each directory that is mounted is a volume's, that of the key is the secret's.
        let claims = spec["volumeClaimTemplates"].as_array();
        let claimed =
            claims.is_some_and(|claims| claims.iter().any(|claim| claim["metadata"]["name"] == "cache"));
        for mount in container["volumeMounts"].as_array().unwrap() {
            let volumes = pod["spec"]["volumes"].as_array().unwrap();
            let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]);
            if mount["mountPath"] == *directory {
                assert_eq!(volume.unwrap()["secret"]["secretName"], "plait-key", "{name}");
            } else {
                assert!(claimed && mount["mountPath"] == *flag(&args, "--cache"), "{name}: {mount}");
            }
        }
        assert_eq!(pod["spec"]["securityContext"]["seccompProfile"]["type"], "Localhost", "{name}: io_uring");
        args_of.insert(*name, args);
    }
    for (name, spec) in &services {
        let app = &spec["selector"]["app"];
        let served = workloads.values().find(|workload| workload["selector"]["matchLabels"]["app"] == *app);
        let container =
            &served.unwrap_or_else(|| panic!("{name} selects nobody"))["template"]["spec"]["containers"][0];
        let ports = named_ports(&container["ports"], "containerPort");
        for port in spec["ports"].as_array().unwrap() {
            match port["targetPort"].as_str() {
                Some(target) => assert!(ports.contains_key(target), "{name}"),
                None => assert_eq!(
                    ports.get(port["name"].as_str().unwrap()),
                    port["port"].as_u64().as_ref(),
                    "{name}"
                ),
            }
        }
    }
    // The names that the roles have of each other are those of services.
    let upstream =
        format!("plait-upstream.plait.svc.cluster.local:{}", services["plait-upstream"]["ports"][0]["port"]);
    assert_eq!(flag(&args_of["plait-relay"], "--allow"), upstream);
    let relays = format!(
        "srv:_{}._tcp.plait-relay.plait.svc.cluster.local",
        services["plait-relay"]["ports"][0]["name"].as_str().unwrap()
    );
    assert_eq!(flag(&args_of["plait-downstream"], "--path"), format!("{relays},{upstream}"));
    takes_all_of_a_balancer(&args_of["plait-downstream"], &read("packaging/kubernetes/haproxy.cfg"));
    assert_eq!(services["plait-relay"]["clusterIP"], "None");
    assert_eq!(args_of.len(), 3);
}

#[test]
fn the_job_of_nomad_hangs_together() {
    let job: Value = hcl::from_str(&read("packaging/nomad/plait.nomad.hcl")).unwrap();
    let groups = job["job"]["plait"]["group"].as_object().unwrap();
    let mut taken = BTreeSet::new();
    let mut args_of = BTreeMap::new();
    for (name, group) in groups {
        // With the host's network, groups on one client share its ports.
        let ports: BTreeMap<_, _> = group["network"]["port"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(label, port)| (label.as_str(), port["static"].as_u64().unwrap()))
            .collect();
        for port in ports.values() {
            assert!(taken.insert(*port), "{name}: port {port} is another group's");
        }
        let service = &group["service"];
        for port in [&service["port"], &service["check"]["port"]] {
            assert!(port.as_str().is_none_or(|port| ports.contains_key(port)), "{name}: {port}");
        }
        let (task_name, task) = group["task"].as_object().unwrap().iter().next().unwrap();
        if task_name != name {
            continue;
        }
        let args = words(&task["config"]["args"]);
        let wanted: BTreeSet<u64> = ports_of(&args).into();
        assert_eq!(ports.values().copied().collect::<BTreeSet<_>>(), wanted, "{name}");
        assert_eq!(service["check"]["path"], "/ready", "{name}");
        // With the host's network, the role itself must keep away from those who are not asked who they are.
        assert_eq!(group["network"]["port"]["admin"]["host_network"], "private", "{name}");
        assert!(flag(&args, "--admin").starts_with("${NOMAD_IP_admin}:"), "{name}");
        assert!(flag(&args, "--listen").starts_with("0.0.0.0:"), "{name}");
        let template = &task["template"];
        assert_eq!(template["destination"], "secrets/plait.key", "{name}");
        assert_eq!(task["env"]["PLAIT_KEY"], "${NOMAD_SECRETS_DIR}/plait.key", "{name}");
        // A new key is read.
        assert_eq!([&template["change_mode"], &template["change_signal"]], ["signal", "SIGHUP"], "{name}");
        assert_eq!(template["perms"], "0400", "{name}");
        args_of.insert(name.as_str(), args);
    }
    let service =
        |group: &str| groups[group]["service"]["name"].as_str().unwrap().to_owned() + ".service.consul";
    let upstream =
        format!("{}:{}", service("upstream"), groups["upstream"]["network"]["port"]["plait"]["static"]);
    assert_eq!(flag(&args_of["relay"], "--allow"), upstream);
    assert_eq!(flag(&args_of["downstream"], "--path"), format!("srv:{},{upstream}", service("relay")));
    let balancer = groups["balancer"]["task"]["haproxy"]["template"]["data"].as_str().unwrap();
    takes_all_of_a_balancer(&args_of["downstream"], balancer);
    assert_eq!(args_of.len(), 3);
}
