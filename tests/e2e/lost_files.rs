//! Files of the cache that lose their bytes under a running process.

use std::fs;

use crate::{
    cache::{each_setting, get, object_files, start_on, status, wait_until},
    chain::{Ground, Root},
    client::Client,
    content::content,
};

/// More than a connection holds on its way, twice.
const LENGTH: usize = 32_000_000;
/// Behind what a client that has taken little was sent: what is on its way may be in the pages of the file that are cut
/// through.
const CUT: u64 = 24 << 20;

/// Leaves so much of the only object's file.
fn cut_off(ground: &Ground, bytes: u64) {
    let files = object_files(ground);
    assert_eq!(files.len(), 1, "{files:?}");
    fs::File::options().write(true).open(&files[0]).unwrap().set_len(bytes).unwrap();
}

#[test]
fn a_file_that_is_cut_off_costs_no_answer() {
    let film = content(LENGTH);
    each_setting(|settings| {
        let ground = Ground::new();
        ground.store("f.mp4", &film);
        let chain = start_on(ground, Root::Plait, settings);
        let wait_for_all = || {
            wait_until("the whole object", || {
                let answer = get(&chain, "");
                assert!(answer.body == film, "{} other bytes", answer.body.len());
                status(&answer).starts_with("plait; hit")
            });
        };
        for cut in [CUT, 0] {
            wait_for_all();
            cut_off(&chain.ground, cut);
            assert!(get(&chain, "").body == film, "cut to {cut} before the answer");
            wait_for_all();
            cut_off(&chain.ground, cut);
            let part = get(&chain, "Range: bytes=27000000-27999999\r\n");
            assert!(part.body == film[27_000_000..28_000_000], "cut to {cut} before a range");
            wait_for_all();
            let mut clients: Vec<_> = (0..3)
                .map(|_| {
                    let mut client = Client::connect(chain.address);
                    client.request("GET", "/f.mp4", "");
                    assert_eq!(client.head().unwrap().status, 200);
                    assert!(client.some(100_000).unwrap() == film[..100_000]);
                    client
                })
                .collect();
            cut_off(&chain.ground, cut);
            for client in &mut clients {
                let rest = client.some(LENGTH - 100_000).expect("the rest joins");
                assert!(rest == film[100_000..], "cut to {cut} in the middle");
                // The connection is in step.
                assert!(client.ask("GET", "/f.mp4", "Range: bytes=5-6\r\n").unwrap().body == film[5..7]);
            }
        }
        let told = chain.downstream.log().matches("has lost bytes").count();
        assert_eq!(told, 1, "{}", chain.downstream.log());
    });
}
