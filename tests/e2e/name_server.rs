//! A DNS server of the test's own, on a port of the kernel's choice: answers over UDP what it is told to.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use hickory_resolver::proto::{
    op::{Message, ResponseCode},
    rr::{
        RData, Record, RecordType,
        rdata::{A, SRV},
    },
};

use crate::process::DEADLINE;

/// A target of a service: priority, host, port. Every host is 127.0.0.1.
pub type Target = (u16, &'static str, u16);

#[derive(Default)]
struct Zone {
    /// Of each name; None: the server refuses.
    services: HashMap<String, (u32, Vec<Target>)>,
    refuses: bool,
    questions: usize,
}

/// See the module's description.
pub struct NameServer {
    pub address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
}

impl NameServer {
    pub fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let zone = Arc::new(Mutex::new(Zone::default()));
        let weak = Arc::downgrade(&zone);
        // It ends soon after its handle is dropped.
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Some(zone) = weak.upgrade() {
                if let Ok((length, client)) = socket.recv_from(&mut bytes) {
                    let question = Message::from_vec(&bytes[..length]).unwrap();
                    let answer = zone.lock().unwrap().answer(&question);
                    socket.send_to(&answer.to_vec().unwrap(), client).unwrap();
                }
            }
        });
        Self { address, zone }
    }

    /// What it says of `name` from now on.
    pub fn serve(&self, name: &str, time_to_live_s: u32, targets: &[Target]) {
        let mut zone = self.zone.lock().unwrap();
        zone.services.insert(name.to_owned(), (time_to_live_s, targets.to_vec()));
        zone.refuses = false;
    }

    /// It answers SERVFAIL to everything.
    pub fn refuse(&self) {
        self.zone.lock().unwrap().refuses = true;
    }

    /// Waits until it was asked for services that many times more.
    pub fn wait_for_questions(&self, more: usize) {
        let asked = || self.zone.lock().unwrap().questions;
        let (before, began) = (asked(), std::time::Instant::now());
        while asked() < before + more {
            assert!(began.elapsed() < DEADLINE, "nobody asks");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Zone {
    fn answer(&mut self, question: &Message) -> Message {
        let query = question.queries[0].clone();
        let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
        answer.metadata.recursion_available = true;
        answer.add_query(query.clone());
        let name = query.name().to_ascii().to_ascii_lowercase();
        match query.query_type() {
            _ if self.refuses => answer.metadata.response_code = ResponseCode::ServFail,
            RecordType::SRV => {
                self.questions += 1;
                match self.services.get(name.trim_end_matches('.')) {
                    Some((time_to_live, targets)) => {
                        answer.add_answers(targets.iter().map(|&(priority, host, port)| {
                            let data = SRV::new(priority, 1, port, host.parse().unwrap());
                            Record::from_rdata(query.name().clone(), *time_to_live, RData::SRV(data))
                        }));
                    }
                    None => answer.metadata.response_code = ResponseCode::NXDomain,
                }
            }
            RecordType::A => {
                let data = RData::A(A(Ipv4Addr::LOCALHOST));
                answer.add_answer(Record::from_rdata(query.name().clone(), 60, data));
            }
            _ => {}
        }
        if self.refuses && query.query_type() == RecordType::SRV {
            self.questions += 1;
        }
        answer
    }
}
