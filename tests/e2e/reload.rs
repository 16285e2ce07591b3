//! Settings that change while a chain runs: paths come and go by SIGHUP, and no client notices.

use std::fs;

use crate::{
    chain::{Ground, text},
    client::{Client, ask},
    content::content,
    gate::Gate,
    process::Settings,
};

/// Many times what a chain holds.
const BIG: usize = 100_000_000;

#[test]
fn paths_come_and_go_while_a_transfer_runs() {
    let bytes = content(BIG);
    for executor in ["tokio-uring", "glommio"] {
        let settings = Settings { executor, ..Settings::default() };
        let ground = Ground::new();
        ground.store("f", &bytes);
        let (_upstream, at) = ground.start_upstream(&settings, text(&ground.files()));
        let gates: Vec<_> = (0..2).map(|_| Gate::to(at)).collect();
        let file = ground.scratch("paths");
        let write = |gate: &Gate| fs::write(&file, format!("# one path\n{}\n", gate.address)).unwrap();
        write(&gates[0]);
        let more = ["--path-file".to_owned(), text(&file).to_owned()];
        let (downstream, address) = ground.start_downstream(&settings, &[], &more);
        let mut client = Client::connect(address);
        client.request("GET", "/f", "");
        assert_eq!(client.head().unwrap().status, 200);
        let begun = client.some(5_000_000).unwrap();

        write(&gates[1]);
        downstream.hang_up();
        gates[1].wait("a lane over the new path", |passed| passed.standing > 0);
        assert_eq!(ask(address, "GET", "/f", "Range: bytes=0-999999\r\n").body, bytes[..1_000_000]);
        assert!(gates[1].passed().back_bytes > 1_000_000, "new transfers use the new path");
        // What runs is finished over the lanes that it has, and then they go.
        assert!(gates[0].passed().standing > 0);
        let rest = client.some(BIG - begun.len()).unwrap();
        assert!([begun, rest].concat() == bytes);
        gates[0].wait("the end of the old path's lanes", |passed| passed.standing == 0);

        // A wrong file changes nothing.
        let before = gates[1].passed();
        fs::write(&file, "127.0.0.1:1\nnonsense\n").unwrap();
        downstream.hang_up();
        downstream.wait_for_log("line 2: hop 1 (\"nonsense\") has no port (write HOST:PORT); the paths stay");
        assert_eq!(client.ask("GET", "/f", "Range: bytes=7-9\r\n").unwrap().body, bytes[7..10]);
        assert_eq!(gates[1].passed().connections, before.connections);
    }
}
