//! Relays that DNS names: `--path srv:NAME,...` and a DNS server of the test's own.

use std::time::Instant;

use crate::{
    chain::{Ground, text},
    client::{Client, ask, try_get},
    content::content,
    gate::Gate,
    name_server::NameServer,
    process::{DEADLINE, Process, Settings, run},
};

const NAME: &str = "_plait._tcp.relays.test";
/// Many times what a chain holds.
const BIG: usize = 100_000_000;

/// An upstream, and gates before it, each with its own port.
struct Far {
    ground: Ground,
    settings: Settings,
    _upstream: Process,
    gates: Vec<Gate>,
    names: NameServer,
}

impl Far {
    fn start(gates: usize, executor: &'static str) -> Self {
        let (ground, settings) = (Ground::new(), Settings { executor, ..Settings::default() });
        let (upstream, at) = ground.start_upstream(&settings, text(&ground.files()));
        let gates = (0..gates).map(|_| Gate::to(at)).collect();
        Self { ground, settings, _upstream: upstream, gates, names: NameServer::start() }
    }

    fn port(&self, gate: usize) -> u16 {
        self.gates[gate].address.port()
    }

    fn flags(&self) -> Vec<String> {
        self.flags_over(&format!("srv:{NAME}"))
    }

    fn flags_over(&self, path: &str) -> Vec<String> {
        ["--path", path, "--resolver", &self.names.address.to_string()].map(str::to_owned).into()
    }
}

#[test]
fn relays_that_dns_names_come_and_go_while_a_transfer_runs() {
    let bytes = content(BIG);
    for executor in ["tokio-uring", "glommio"] {
        let far = Far::start(2, executor);
        far.ground.store("f", &bytes);
        far.names.serve(NAME, 0, &[(1, "r1.test.", far.port(0))]);
        let (downstream, address) = far.ground.start_downstream(&far.settings, &[], &far.flags());
        let mut client = Client::connect(address);
        client.request("GET", "/f", "");
        assert_eq!(client.head().unwrap().status, 200);
        let begun = client.some(5_000_000).unwrap();

        // A target more is found when the answer is too old.
        far.names.serve(NAME, 300, &[(1, "r2.test.", far.port(1)), (1, "r1.test.", far.port(0))]);
        downstream.wait_for_log(&format!("added=[\"r2.test:{}\"] removed=[]", far.port(1)));
        far.gates[1].wait("a lane over the new relay", |passed| passed.standing > 0);

        // One that goes is let go when what it carries is finished. SIGHUP asks at once.
        far.names.serve(NAME, 300, &[(1, "r2.test.", far.port(1))]);
        downstream.hang_up();
        downstream.wait_for_log(&format!("added=[] removed=[\"r1.test:{}\"]", far.port(0)));
        assert!(far.gates[0].passed().standing > 0);
        // The cores hear of it one after the other.
        let carried = (0..20).any(|_| {
            assert_eq!(ask(address, "GET", "/f", "Range: bytes=0-9999999\r\n").body, bytes[..10_000_000]);
            far.gates[1].passed().back_bytes > 9_000_000
        });
        assert!(carried, "new transfers go over what is left");
        let rest = client.some(BIG - begun.len()).unwrap();
        assert!([begun, rest].concat() == bytes);
        far.gates[0].wait("the end of the old relay's lanes", |passed| passed.standing == 0);

        // A server that fails changes nothing, and that is said once.
        far.names.refuse();
        downstream.hang_up();
        downstream.wait_for_log("what was found before stays");
        far.names.wait_for_questions(4);
        assert_eq!(client.ask("GET", "/f", "Range: bytes=7-9\r\n").unwrap().body, bytes[7..10]);
        assert_eq!(downstream.log().matches("what was found before stays").count(), 1);
        far.names.serve(NAME, 300, &[(1, "r1.test.", far.port(0))]);
        downstream.wait_for_log("has an answer again");
        far.gates[0].wait("a lane over it", |passed| passed.standing > 0);
    }
}

#[test]
fn a_downstream_starts_before_its_dns() {
    let far = Far::start(1, "tokio-uring");
    far.ground.store("f", b"film");
    far.names.refuse();
    let (downstream, address) = far.ground.start_downstream(&far.settings, &[], &far.flags());
    downstream.wait_for_log("it is asked again");
    assert_eq!(try_get(address, "GET", "/f", "").unwrap().status(), 502);
    far.names.serve(NAME, 300, &[(1, "r1.test.", far.port(0))]);
    downstream.wait_for_log("has an answer again");
    // The cores hear of it one after the other.
    far.gates[0].wait("a lane", |passed| passed.standing > 0);
    let until = Instant::now() + DEADLINE;
    let answer = loop {
        match try_get(address, "GET", "/f", "").unwrap() {
            answer if answer.status() == 502 => assert!(Instant::now() < until, "no path"),
            answer => break answer,
        }
    };
    assert_eq!(answer.body, b"film");
}

#[test]
fn targets_of_a_later_priority_stand_in_for_those_before() {
    let far = Far::start(1, "tokio-uring");
    far.ground.store("f", b"film");
    let key = far.ground.key();
    let relay = |address: &str| {
        Process::role("relay", &far.settings, ["relay", "--listen", address, "--key", text(&key)])
    };
    let ((mut near, near_at), (_second, second_at)) = (relay("127.0.0.1:0"), relay("127.0.0.1:0"));
    far.names.serve(NAME, 300, &[(20, "second.test.", second_at.port()), (10, "near.test.", near_at.port())]);
    let flags = far.flags_over(&format!("srv:{NAME},{}", far.gates[0].address));
    let (downstream, address) = far.ground.start_downstream(&far.settings, &[], &flags);
    assert_eq!(ask(address, "GET", "/f", "").body, b"film");
    near.kill();
    downstream.wait_for_log("added=[\"second.test:");
    assert_eq!(ask(address, "GET", "/f", "").body, b"film");
    let (_near, _) = relay(&near_at.to_string());
    downstream.wait_for_log("added=[] removed=[\"second.test:");
    assert_eq!(ask(address, "GET", "/f", "").body, b"film");
}

#[test]
fn a_check_asks_dns_and_get_uses_it() {
    let far = Far::start(1, "tokio-uring");
    far.ground.store("f", b"film");
    far.names.serve(NAME, 60, &[(1, "r1.test.", far.port(0))]);
    let key = far.ground.key();
    let check = |flags: &[String]| {
        let mut plait = far.settings.plait();
        let args = ["check", "--probe", "downstream", "--listen", "127.0.0.1:0", "--key", text(&key)];
        let output = run(plait.args(args).args(flags));
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    let (ok, said) = check(&far.flags());
    assert!(ok && said.contains(&format!("targets of srv:{NAME}: 1")), "{said}");
    assert!(said.contains(&format!("path r1.test:{} leads to an upstream", far.port(0))), "{said}");

    let file = far.ground.scratch("got");
    let get = ["get", "/f", "-o", text(&file), "--key", text(&key)];
    assert!(run(far.settings.plait().args(get).args(far.flags())).status.success());
    assert_eq!(std::fs::read(&file).unwrap(), b"film");

    far.names.refuse();
    let (ok, said) = check(&far.flags());
    assert!(!ok && said.contains(&format!("no answer about srv:{NAME}")), "{said}");
    let got = run(far.settings.plait().args(get).args(far.flags()));
    let said = String::from_utf8_lossy(&got.stderr).into_owned();
    assert!(!got.status.success() && said.contains(&format!("no answer about srv:{NAME}")), "{said}");
}
